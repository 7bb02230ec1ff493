#!/bin/sh
# Builds lines.c as a module for WASI preview 1: build.sh [OUT]
#
# CLANG is the compiler, if it is not the `clang` in PATH. Any that finds a sysroot for WASI by itself will do.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
clang=${CLANG:-clang}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The compiler, its linker, the library of C and that of the compiler come in packages of their own. A program of
# nothing tells whether all are there.
if ! echo 'int main(void) { return 0; }' | "$clang" --target=wasm32-wasi -x c - -o "$work/nothing.wasm" 2>/dev/null; then
    echo "$clang cannot build programs for WASI: install what it takes with \`apt-get install clang lld wasi-libc libclang-rt-dev-wasm32\`, or set CLANG." >&2
    exit 127
fi

# The stack is part of the memory, of which every connection has its own.
"$clang" --target=wasm32-wasi -std=c11 -Wall -Wextra -Os -Wl,--strip-all -Wl,-z,stack-size=16384 \
    "$here/lines.c" -o "$work/lines.wasm"
mv "$work/lines.wasm" "$out"
