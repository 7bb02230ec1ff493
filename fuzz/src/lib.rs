//! Input that nobody thought of, and models of what should come of it.
//!
//! Each module has a function `run` that makes a case of any bytes, does what the case says, compares with a model, and
//! panics where they differ. `cargo test` runs it on random bytes. With libFuzzer, it runs on bytes
//! that lead somewhere new. `fuzz/run` does so for some seconds on each target, or on the targets that
//! are named, and needs a C++ compiler:
//!
//! ```console
//! $ fuzz/run 600 connection
//! ```
//!
//! `cargo fuzz` runs the targets too. It instruments all dependencies, so it compiles all of them
//! again:
//!
//! ```console
//! $ cargo install cargo-fuzz
//! $ cargo fuzz run --dev --sanitizer none --features libfuzzer connection -- -max_total_time=600
//! ```

#![forbid(unsafe_code)]

pub mod cache;
pub mod command_line;
pub mod connection;
pub mod conversation;
pub mod framer;
mod guests;
pub mod handshake;
pub mod migration;
pub mod proxy_header;
pub mod services_file;
mod transport;
