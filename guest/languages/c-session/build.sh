#!/bin/sh
# Builds lines.c as a component with the sessions contract: build.sh [OUT].
# OUT is `lines.wasm` beside this script by default.
#
# CLANG: the clang to use (default: `clang` in PATH). It must find a WASI sysroot by itself.
# WIT_BINDGEN: the generator of bindings to use (default: `wit-bindgen` in PATH).
# WASM_COMPONENT_LD: the linker that writes components (default: the one in the Rust toolchain).
# WIT: the directory of the contract (default: `wit` beside this script, or that of the repository).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
clang=${CLANG:-clang}
wit_bindgen=${WIT_BINDGEN:-wit-bindgen}
libdir=$(rustc --print target-libdir 2>/dev/null || true)
linker=${WASM_COMPONENT_LD:-$libdir/../bin/wasm-component-ld}
wit=$here/wit
[ -d "$wit" ] || wit=$here/../../../wit
wit=${WIT:-$wit}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

missing() {
    echo "$*" >&2
    exit 127
}

install='`apt-get install clang lld wasi-libc libclang-rt-dev-wasm32`'
command -v "$clang" >/dev/null ||
    missing "$clang is not installed: install it with $install, or set CLANG."
# The compiler, its linker, the C library and the compiler's runtime library are separate packages.
# Build an empty program to check that all are installed.
echo 'int main(void) { return 0; }' |
    "$clang" --target=wasm32-wasi -x c - -o "$work/nothing.wasm" 2>/dev/null ||
    missing "$clang cannot build programs for WASI: install its linker and libraries with" \
        "$install, or set CLANG."
command -v "$wit_bindgen" >/dev/null ||
    missing "$wit_bindgen is not installed: install it with" \
        "\`cargo install --locked --version 0.60.0 --no-default-features --features c" \
        "wit-bindgen-cli\`, or set WIT_BINDGEN."
command -v "$linker" >/dev/null ||
    missing "$linker is not installed: install the Rust toolchain, which contains it, with rustup," \
        "or set WASM_COMPONENT_LD."

# A short interface name keeps the generated names readable. On standard error, wit-bindgen also
# lists the files that it writes; show this only if it fails.
"$wit_bindgen" c "$wit" --world session-service --rename inet:service/sessions@0.1.0=sessions \
    --out-dir "$work" 2>"$work/said" || {
    cat "$work/said" >&2
    exit 1
}

# The stack is part of the linear memory, and each connection has its own: keep the stack small.
# The linker adds an adapter for WASI preview 1 only if the source uses WASI, such as by `fprintf`.
# For a release, `-Wl,--strip-all` drops the names of functions, which the log has after a trap.
"$clang" --target=wasm32-wasi -mexec-model=reactor -std=c11 -Wall -Wextra -Os -I"$work" \
    "$here/lines.c" "$work/session_service.c" "$work/session_service_component_type.o" \
    -fuse-ld="$linker" -Wl,-z,stack-size=16384 -o "$work/lines.wasm"
mv "$work/lines.wasm" "$out"
