#!/bin/sh
# Builds lines.c as a core module for WASI preview 1: build.sh [OUT].
# OUT is `lines.wasm` beside this script by default.
#
# CLANG: the clang to use (default: `clang` in PATH). It must find a WASI sysroot by itself.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
clang=${CLANG:-clang}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

install='`apt-get install clang lld wasi-libc libclang-rt-dev-wasm32`'
if ! command -v "$clang" >/dev/null; then
    echo "$clang is not installed: install it with $install, or set CLANG." >&2
    exit 127
fi
# The compiler, its linker, the C library and the compiler's runtime library are separate packages.
# Build an empty program to check that all are installed.
if ! echo 'int main(void) { return 0; }' |
    "$clang" --target=wasm32-wasi -x c - -o "$work/nothing.wasm" 2>/dev/null; then
    echo "$clang cannot build programs for WASI: install its linker and libraries with" \
        "$install, or set CLANG." >&2
    exit 127
fi

# The stack is part of the linear memory, and each connection has its own: keep the stack small.
# For a release, `-Wl,--strip-all` drops the names of functions, which the log has after a trap.
"$clang" --target=wasm32-wasi -std=c11 -Wall -Wextra -Os -Wl,-z,stack-size=16384 \
    "$here/lines.c" -o "$work/lines.wasm"
mv "$work/lines.wasm" "$out"
