//! `host check`.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::harness::{command, file, guest};

fn check(args: &[&str], path: &Path) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command().arg("check").args(args).arg(path).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn it_says_what_a_component_is() {
    for (name, contract, import) in [
        ("lines-session", "sessions", "wasi:cli/stderr"),
        ("echo", "streams", "inet:service/types@0.1.0"),
        ("curious", "sessions", "wasi:sockets/tcp"),
    ] {
        let component = guest(name);
        let (status, said, complaint) = check(&[], &component);
        assert_eq!((status, complaint.as_str()), (Some(0), ""), "{name}");
        for word in [
            component.to_str().unwrap(),
            contract,
            import,
            "KiB at instantiation",
            " ms\n",
        ] {
            assert!(said.contains(word), "no {word} in {said}");
        }
        let withheld = said.lines().find(|line| line.contains("wasi:sockets/tcp@"));
        assert!(
            withheld.is_none_or(|line| line.contains("denied; grant addresses with --allow-outbound")),
            "{said}"
        );
    }
}

#[test]
fn a_function_that_initialises_is_used_by_preinit() {
    let primes = guest("primes");
    for (args, is_unused) in [(&[][..], true), (&["--preinit"], false)] {
        let (status, said, complaint) = check(args, &primes);
        assert_eq!(status, Some(0), "{complaint}");
        let unused = said.lines().any(|line| line == "unused     wizer-initialize");
        assert_eq!(unused, is_unused, "{said}");
    }
}

#[test]
fn it_says_whether_sessions_can_move() {
    for (name, can) in [("count", true), ("lines-session", false), ("echo", false)] {
        let (status, said, _) = check(&[], &guest(name));
        assert_eq!(
            (status, said.contains("migration  sessions can move")),
            (Some(0), can),
            "{said}"
        );
    }
}

/// A module that writes a line and the beginning of another one to standard error, and traps, in
/// this function.
fn complains(name: &str, function: &str) -> PathBuf {
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\10\00\00\00\14\00\00\00")
            (data (i32.const 16) "no table\nand no more")
            (func $complain
                (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
                unreachable)
            (func (export "_start"))
            {function})"#
    );
    file(name, wat::parse_str(text).unwrap())
}

#[test]
fn it_says_what_a_guest_wrote_that_fails_at_its_load() {
    let starts = complains("check-start.wasm", "(start $complain)");
    let initialises = complains(
        "check-preinit.wasm",
        r#"(export "wizer-initialize" (func $complain))"#,
    );
    for (args, path, refused) in [
        (&[][..], &starts, "cannot start (wasm trap: "),
        (
            &["--preinit"],
            &initialises,
            "cannot be initialised for `--preinit` (wasm trap: ",
        ),
    ] {
        let (status, _, complaint) = check(args, path);
        assert_eq!(status, Some(1), "{complaint}");
        for words in [refused, "; standard error: no table | and no more"] {
            assert!(complaint.contains(words), "no {words:?} in {complaint}");
        }
        assert!(!complaint.contains("wasm backtrace"), "{complaint}");
        // Whoever asks for it gets the backtrace.
        let args = [args, &["--env", "RUST_BACKTRACE=1"]].concat();
        let (_, _, complaint) = check(&args, path);
        let trace = "the guest failed at its load";
        assert!(
            complaint.contains(trace) && complaint.contains("wasm backtrace"),
            "{complaint}"
        );
    }
}

#[test]
fn it_says_why_a_component_would_be_refused() {
    for (args, path, reason) in [
        (&[][..], file("check-empty.wasm", ""), "is empty"),
        (&[][..], guest("start-trap"), "cannot start"),
        (&[][..], Path::new("/no/such/file.wasm").to_owned(), "cannot read"),
        (&["--max-memory", "64KiB"][..], guest("lines"), "`--max-memory`"),
    ] {
        let (status, said, complaint) = check(args, &path);
        assert_eq!((status, said.as_str()), (Some(1), ""), "{complaint}");
        assert!(
            complaint.contains(reason) && complaint.contains(path.to_str().unwrap()),
            "{complaint}"
        );
    }
    let (status, _, complaint) = check(&[], Path::new("--no-such-flag"));
    assert_eq!(status, Some(2), "{complaint}");
}
