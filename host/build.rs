//! Builds the default guest, which the host embeds and serves when it is given no component.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), Box<dyn std::error::Error>> {
    let workspace = guest_builder::workspace();
    for input in [
        "guest/Cargo.toml",
        "guest/src",
        "wit",
        "rust-toolchain.toml",
        ".cargo/config.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?);
    guest_builder::ensure_target(workspace, |note| println!("cargo::warning={note}"))?;
    let target_dir = guest_builder::target_dir(&out_dir)?;
    let built = guest_builder::build(workspace, &target_dir, &[guest_builder::Guest::default_guest()])?;
    let built: &Path = built.first().ok_or("the builder returned no component")?;
    fs::copy(built, out_dir.join("echo.wasm"))?;
    Ok(())
}
