#!/bin/sh
# Builds lines.zig as a core module for WASI preview 1: build.sh [OUT].
# OUT is `lines.wasm` beside this script by default.
#
# ZIG: the Zig compiler to use (default: `zig` in PATH). It must be version 0.16, because Zig's
# standard library changes with each version.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
zig=${ZIG:-zig}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

install='install Zig 0.16 with `pip install --target DIR ziglang==0.16.0`'
if ! command -v "$zig" >/dev/null; then
    echo "$zig is not installed: $install and set ZIG to DIR/ziglang/zig." >&2
    exit 127
fi
version=$("$zig" version 2>/dev/null) || version=unknown
case $version in
0.16.*) ;;
*)
    echo "$zig has version $version: $install and set ZIG to DIR/ziglang/zig." >&2
    exit 127
    ;;
esac

# The stack is part of the linear memory, and each connection has its own: keep the stack small.
# ReleaseSafe checks for undefined behaviour, such as an index out of bounds. For a release,
# ReleaseSmall leaves out these checks and the names of functions.
"$zig" build-exe -target wasm32-wasi -O ReleaseSafe --stack 65536 --cache-dir "$work" \
    "-femit-bin=$work/lines.wasm" "$here/lines.zig"
mv "$work/lines.wasm" "$out"
