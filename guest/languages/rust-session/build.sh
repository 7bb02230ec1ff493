#!/bin/sh
# Builds the component: build.sh [OUT], where OUT is `lines.wasm` beside this script unless it is given.
#
# CARGO is cargo, if it is not the one in PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
cargo=${CARGO:-cargo}

if ! command -v "$cargo" >/dev/null; then
    echo "$cargo is not here: install Rust with rustup (https://rustup.rs) and \`rustup target add wasm32-wasip2\`, or set CARGO." >&2
    exit 127
fi
if ! [ -d "$(rustc --print target-libdir --target wasm32-wasip2 2>/dev/null)" ]; then
    echo "Rust's library for WebAssembly is not here: install it with \`rustup target add wasm32-wasip2\`." >&2
    exit 127
fi

# The stack is part of the memory, of which every connection has its own. One that begins with room for a heap need not grow, which
# takes longer than to make an instance.
export CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS='-C link-arg=-zstack-size=65536 -C link-arg=--initial-heap=131072'
target=${CARGO_TARGET_DIR:-$here/target}
"$cargo" build --quiet --release --target wasm32-wasip2 --manifest-path "$here/Cargo.toml" --target-dir "$target"
cp "$target/wasm32-wasip2/release/lines.wasm" "$out"
