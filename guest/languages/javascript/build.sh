#!/bin/sh
# Builds the component: build.sh [OUT], where OUT is `lines.wasm` beside this script unless it is given.
#
# COMPONENTIZE_QJS is the command that makes a component of JavaScript: `componentize-qjs` in PATH unless it is set.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
tool=${COMPONENTIZE_QJS:-componentize-qjs}

if ! command -v "$tool" >/dev/null; then
    echo "build.sh: cannot find \`$tool\`, which \`npm install --global componentize-qjs@0.4.5\` installs" >&2
    exit 127
fi

# The contract stands beside this script where the folder was copied, and at the root of the repository otherwise.
wit=$here/wit
[ -d "$wit" ] || wit=$here/../../../wit

# This service asks for no clock, no random number and no file. So nothing of WASI is imported (--stub-wasi). The sessions
# contract has no asynchronous function, and the engine without them starts faster (--sync).
"$tool" --wit "$wit" --world session-service --js "$here/lines.js" --stub-wasi --sync --output "$out"
