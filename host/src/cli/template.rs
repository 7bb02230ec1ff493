//! The guest projects that `wasm-inetd new` can create.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ContractArg {
    Streams,
    #[value(alias = "session")]
    Sessions,
    Cli,
}

impl ContractArg {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Sessions => "sessions",
            Self::Cli => "cli",
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Language {
    Rust,
    C,
    #[value(alias = "javascript")]
    Js,
    Python,
    Go,
    Zig,
}

impl Language {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
            Self::Js => "js",
            Self::Python => "python",
            Self::Go => "go",
            Self::Zig => "zig",
        }
    }
}
