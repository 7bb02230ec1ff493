#!/bin/sh
# Builds the component: build.sh [OUT]. OUT is `lines.wasm` beside this script by default.
#
# COMPONENTIZE_PY: the componentize-py to use (default: `componentize-py` in PATH). If pip installed
# it with --target DIR, set COMPONENTIZE_PY=DIR/bin/componentize-py and PYTHONPATH=DIR.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
tool=${COMPONENTIZE_PY:-componentize-py}

if ! command -v "$tool" >/dev/null; then
    echo "$tool is not installed: install it with \`pip install componentize-py==0.25.1\`," \
        "or set COMPONENTIZE_PY." >&2
    exit 127
fi

# The contract is in `wit` beside this script, or else in `wit` at the root of the repository.
wit=$here/wit
[ -d "$wit" ] || wit=$here/../../../wit

# Python writes its byte code beside the source: build from a copy of the source.
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
cp "$here/sessions.py" "$temporary"

# The guest imports standard error from WASI: an exception writes its traceback to it.
"$tool" --wit-path "$wit" --world session-service \
    componentize --python-path "$temporary" --output "$out" sessions
