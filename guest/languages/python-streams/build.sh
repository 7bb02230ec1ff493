#!/bin/sh
# Builds the component: build.sh [OUT], where OUT is `lines.wasm` beside this script unless it is given.
#
# COMPONENTIZE_PY is the command that makes a component of Python: `componentize-py` in PATH unless it is set. Where pip has
# installed it by --target DIR it is DIR/bin/componentize-py, with PYTHONPATH=DIR in the environment.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
tool=${COMPONENTIZE_PY:-componentize-py}

if ! command -v "$tool" >/dev/null; then
    echo "build.sh: cannot find \`$tool\`, which \`pip install componentize-py==0.25.1\` installs" >&2
    exit 127
fi

# The contract stands beside this script where the folder was copied, and at the root of the repository otherwise.
wit=$here/wit
[ -d "$wit" ] || wit=$here/../../../wit

# Python leaves its byte code beside the source, so that is copied first.
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
cp "$here/lines.py" "$temporary"

# This service asks for no clock, no random number and no file. So nothing of WASI is imported.
"$tool" --wit-path "$wit" --world service componentize --stub-wasi --python-path "$temporary" --output "$out" lines
