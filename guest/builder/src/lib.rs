//! Builds guests for `wasm32-wasip2`.
//!
//! `cargo guests` is this crate's binary, the build script of `host` uses it to embed the default guest, and
//! the tests use it to have every guest at hand. It runs cargo once more, with a profile of its own (`guest`)
//! in the same target directory: the directories of that profile are never locked by the outer cargo, so the
//! two cannot wait for each other.

#![forbid(unsafe_code)]

use std::error::Error as StdError;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// The target that guests are built for.
pub const TARGET: &str = "wasm32-wasip2";

/// The default guest, which the host embeds.
pub const DEFAULT: &str = "echo";

const PROFILE: &str = "guest";

/// Numbers the files that are being written, so that no two share a name.
static PARTS: AtomicU64 = AtomicU64::new(0);

/// A guest in the workspace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guest {
    /// Its name: `target/guests/NAME.wasm`.
    pub name: String,
    /// Its package, which is its name but for the default guest, whose package is `guest`.
    pub package: String,
}

impl Guest {
    /// The default guest.
    pub fn default_guest() -> Self {
        Self {
            name: DEFAULT.to_owned(),
            package: "guest".to_owned(),
        }
    }
}

/// Why guests could not be built, as a sentence for the person who runs the build.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Error {}

impl Error {
    fn io(what: &str, path: &Path, error: &io::Error) -> Self {
        Error(format!("cannot {what} `{}`: {error}", path.display()))
    }
}

/// The workspace that this crate stands in.
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// The target directory that holds `path`, which may be an `OUT_DIR` or an executable: the nearest directory
/// above it that cargo has tagged as a cache.
///
/// # Errors
///
/// There is none, as where an executable was copied out of its target directory.
pub fn target_dir(path: &Path) -> Result<PathBuf, Error> {
    path.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map(Path::to_path_buf)
        .ok_or_else(|| {
            Error(format!(
                "`{}` is not in a cargo target directory (no parent directory has a CACHEDIR.TAG)",
                path.display()
            ))
        })
}

/// Every guest of the workspace, by name: the packages in `guest`, `guest/*`, `guest/middleware/*` and
/// `guest/hostile/*` that are libraries of type `cdylib`, or programs alone.
///
/// # Errors
///
/// A directory or manifest cannot be read.
pub fn all(workspace: &Path) -> Result<Vec<Guest>, Error> {
    let root = workspace.join("guest");
    let mut guests = vec![Guest::default_guest()];
    for parent in [root.clone(), root.join("middleware"), root.join("hostile")] {
        let entries = fs::read_dir(&parent).map_err(|e| Error::io("list", &parent, &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("list", &parent, &e))?;
            let manifest = entry.path().join("Cargo.toml");
            if !manifest.is_file() {
                continue;
            }
            let text = fs::read_to_string(&manifest).map_err(|e| Error::io("read", &manifest, &e))?;
            let source = entry.path().join("src");
            let program = source.join("main.rs").is_file() && !source.join("lib.rs").is_file();
            if program || text.contains("\"cdylib\"") {
                let name = entry.file_name().to_string_lossy().into_owned();
                guests.push(Guest {
                    package: name.clone(),
                    name,
                });
            }
        }
    }
    guests.sort();
    Ok(guests)
}

/// Builds `guests` and returns the component of each, in the same order, inside `target_dir`.
///
/// # Errors
///
/// The target is missing and cannot be installed, or cargo fails; its own messages are on standard error.
pub fn build(workspace: &Path, target_dir: &Path, guests: &[Guest]) -> Result<Vec<PathBuf>, Error> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--profile", PROFILE, "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .stdin(Stdio::null());
    for guest in guests {
        cargo.args(["--package", &guest.package]);
    }
    // What the outer cargo was told of the native build says nothing of the guests.
    for name in [
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo
        .status()
        .map_err(|e| Error(format!("cannot run cargo to build the guests: {e}")))?;
    if !status.success() {
        return Err(Error(format!(
            "building the guests for {TARGET} failed ({status}); see cargo's messages above"
        )));
    }
    let built = target_dir.join(TARGET).join(PROFILE);
    Ok(guests
        .iter()
        .map(|guest| built.join(guest.package.replace('-', "_")).with_extension("wasm"))
        .collect())
}

/// Builds every guest and puts each at `target_dir/guests/NAME.wasm`, whose paths it returns.
///
/// A file appears there whole: it is written beside its place and renamed.
///
/// # Errors
///
/// As of [`build`], and a file cannot be written.
pub fn build_all(workspace: &Path, target_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let guests = all(workspace)?;
    let built = build(workspace, target_dir, &guests)?;
    let dir = target_dir.join("guests");
    fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, &e))?;
    guests
        .iter()
        .zip(built)
        .map(|(guest, from)| {
            let to = dir.join(&guest.name).with_extension("wasm");
            place(&from, &to)?;
            Ok(to)
        })
        .collect()
}

/// Copies the file `from` to `to`, which appears whole or not at all.
///
/// # Errors
///
/// A file cannot be read or written.
pub fn place(from: &Path, to: &Path) -> Result<(), Error> {
    let mut part = to.as_os_str().to_owned();
    part.push(format!(
        ".{}-{}",
        std::process::id(),
        PARTS.fetch_add(1, Ordering::Relaxed)
    ));
    let part = PathBuf::from(part);
    fs::copy(from, &part).map_err(|e| Error::io("copy", from, &e))?;
    fs::rename(&part, to).map_err(|e| Error::io("write", to, &e))
}

/// Makes sure that rustc can build for the guests' target: where rustup was told not to install what
/// `rust-toolchain.toml` declares, `rustup target add` does it now. `say` is told before that happens.
///
/// # Errors
///
/// The target is missing and rustup is too, or fails.
pub fn ensure_target(workspace: &Path, say: impl FnOnce(&str)) -> Result<(), Error> {
    if has_target(workspace) {
        return Ok(());
    }
    let targets = declared_targets(workspace)?;
    let list = targets.join(" ");
    say(&format!(
        "the Rust target of the guests is not installed: running `rustup target add {list}`"
    ));
    let output = Command::new("rustup")
        .current_dir(workspace)
        .args(["target", "add"])
        .args(&targets)
        .stdin(Stdio::null())
        .output();
    let why = match output {
        Ok(output) if output.status.success() && has_target(workspace) => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr)
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("rustup gave no reason")
            .trim()
            .to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error(format!(
        "the guests need the Rust target `{TARGET}`, which is not installed; \
         `rustup target add {list}` failed ({why}): install the target for this toolchain, then \
         build again"
    )))
}

fn has_target(workspace: &Path) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .current_dir(workspace)
        .args(["--print", "target-libdir", "--target", TARGET])
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else { return false };
    let dir = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success() && Path::new(&dir).is_dir()
}

/// The `targets` of `rust-toolchain.toml`.
fn declared_targets(workspace: &Path) -> Result<Vec<String>, Error> {
    let path = workspace.join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
    let targets: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| key.trim() == "targets")
        .flat_map(|(_, list)| list.split('"').skip(1).step_by(2))
        .map(str::to_owned)
        .collect();
    if targets.is_empty() {
        return Err(Error(format!(
            "`{}` does not declare `targets = [\"{TARGET}\"]`",
            path.display()
        )));
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_default_guest_and_its_neighbours() {
        let guests = all(workspace()).unwrap();
        let package = |name: &str| {
            let guest = guests.iter().find(|guest| guest.name == name);
            guest.map(|guest| guest.package.as_str())
        };
        assert_eq!(package("echo"), Some("guest"));
        assert_eq!(package("lines"), Some("lines"));
        assert_eq!(package("gzip"), Some("gzip"), "middleware counts");
        assert_eq!(package("trap"), Some("trap"), "hostile guests count");
        assert_eq!(package("builder"), None, "a native crate is no guest");
    }

    #[test]
    fn reads_the_targets_that_the_toolchain_file_declares() {
        assert_eq!(declared_targets(workspace()).unwrap(), [TARGET]);
    }

    #[test]
    fn a_path_outside_a_target_directory_is_refused() {
        let error = target_dir(Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("CACHEDIR.TAG"), "{error}");
    }
}
