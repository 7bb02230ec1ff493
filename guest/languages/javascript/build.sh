#!/bin/sh
# Builds the component: build.sh [OUT]. OUT is `lines.wasm` beside this script by default.
#
# COMPONENTIZE_QJS: the componentize-qjs to use (default: `componentize-qjs` in PATH).

set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
tool=${COMPONENTIZE_QJS:-componentize-qjs}

if ! command -v "$tool" >/dev/null; then
    echo "$tool is not installed: install it with \`npm install --global componentize-qjs@0.4.5\`," \
        "or set COMPONENTIZE_QJS." >&2
    exit 127
fi

# The contract is in `wit` beside this script, or else in `wit` at the root of the repository.
wit=$here/wit
[ -d "$wit" ] || wit=$here/../../../wit

# The guest imports standard error from WASI: an exception writes its message, file and line to it.
# --sync: leave out asynchronous functions. The sessions contract has none, and the engine starts
# faster without them.
"$tool" --wit "$wit" --world session-service --js "$here/lines.js" --sync --output "$out"
