#!/bin/sh
# Builds lines.c as a component by the sessions contract: build.sh [OUT]
#
# CLANG is the compiler, if it is not the `clang` in PATH. Any that finds a sysroot for WASI by itself will do.
# WIT_BINDGEN makes bindings of the contract, if it is not the `wit-bindgen` in PATH.
# WASM_COMPONENT_LD makes a component of objects, if it is not that of Rust's toolchain.
# WIT is the directory with the contract, if it is neither `wit` beside this file nor that of the repository.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
clang=${CLANG:-clang}
wit_bindgen=${WIT_BINDGEN:-wit-bindgen}
linker=${WASM_COMPONENT_LD:-$(rustc --print target-libdir 2>/dev/null || true)/../bin/wasm-component-ld}
wit=$here/wit
[ -d "$wit" ] || wit=$here/../../../wit
wit=${WIT:-$wit}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

missing() {
    echo "$1" >&2
    exit 127
}

# The compiler, its linker, the library of C and that of the compiler come in packages of their own. A program of
# nothing tells whether all are there.
echo 'int main(void) { return 0; }' | "$clang" --target=wasm32-wasi -x c - -o "$work/nothing.wasm" 2>/dev/null ||
    missing "$clang cannot build programs for WASI: install what it takes with \`apt-get install clang lld wasi-libc libclang-rt-dev-wasm32\`, or set CLANG."
command -v "$wit_bindgen" >/dev/null ||
    missing "$wit_bindgen is not here: install it with \`cargo install --locked --version 0.60.0 --no-default-features --features c wit-bindgen-cli\`, or set WIT_BINDGEN."
command -v "$linker" >/dev/null ||
    missing "$linker is not here: install Rust's toolchain, which has it, with rustup, or set WASM_COMPONENT_LD."

# By a short name of their interface, the bindings can be read. It says on standard error what it writes, too.
"$wit_bindgen" c "$wit" --world session-service --rename inet:service/sessions@0.1.0=sessions \
    --out-dir "$work" 2>"$work/said" || {
    cat "$work/said" >&2
    exit 1
}

# The stack is part of the memory, of which every connection has its own. The guest asks nothing of WASI, so no adapter
# for it is linked.
"$clang" --target=wasm32-wasi -mexec-model=reactor -std=c11 -Wall -Wextra -Os -I"$work" \
    "$here/lines.c" "$work/session_service.c" "$work/session_service_component_type.o" \
    -fuse-ld="$linker" -Wl,--wasi-adapter,none -Wl,--strip-all -Wl,-z,stack-size=16384 -o "$work/lines.wasm"
mv "$work/lines.wasm" "$out"
