#!/bin/sh
# Builds the component: build.sh [OUT]. OUT is `lines.wasm` beside this script by default.
#
# CARGO: the cargo to use (default: `cargo` in PATH).
# RUSTC: the rustc to use (default: `rustc` in PATH).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
cargo=${CARGO:-cargo}
rustc=${RUSTC:-rustc}

if ! command -v "$cargo" >/dev/null; then
    echo "$cargo is not installed: install Rust with rustup (https://rustup.rs) and run" \
        "\`rustup target add wasm32-wasip2\`, or set CARGO." >&2
    exit 127
fi
if ! command -v "$rustc" >/dev/null; then
    echo "$rustc is not installed: install Rust with rustup (https://rustup.rs) and run" \
        "\`rustup target add wasm32-wasip2\`, or set RUSTC." >&2
    exit 127
fi
libdir=$("$rustc" --print target-libdir --target wasm32-wasip2)
if ! [ -d "$libdir" ]; then
    echo "Rust's target wasm32-wasip2 is not installed:" \
        "install it with \`rustup target add wasm32-wasip2\`." >&2
    exit 127
fi

# The stack is part of the linear memory, and each connection has its own: keep the stack small.
export CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS='-C link-arg=-zstack-size=65536'
target=${CARGO_TARGET_DIR:-$here/target}
"$cargo" build --quiet --release --target wasm32-wasip2 \
    --manifest-path "$here/Cargo.toml" --target-dir "$target"
cp "$target/wasm32-wasip2/release/lines.wasm" "$out"
