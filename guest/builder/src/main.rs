//! `cargo guests`: builds every guest to `target/guests/NAME.wasm`, and the default one to `./guest.wasm` too.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let workspace = guest_builder::workspace();
    let target_dir = guest_builder::target_dir(&std::env::current_exe()?)?;
    guest_builder::ensure_target(workspace, |note| eprintln!("note: {note}"))?;
    for path in guest_builder::build_all(workspace, &target_dir)? {
        if path
            .file_stem()
            .is_some_and(|name| name == guest_builder::DEFAULT)
        {
            let default = workspace.join("guest.wasm");
            guest_builder::place(&path, &default)?;
            show(&default);
        }
        show(&path);
    }
    Ok(())
}

/// Prints a path, short where it lies below the current directory.
fn show(path: &Path) {
    let here = std::env::current_dir().unwrap_or_default();
    println!("{}", path.strip_prefix(&here).unwrap_or(path).display());
}
