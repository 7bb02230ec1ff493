//! Files that cannot serve are refused before anything is bound, with a sentence that helps.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::harness::{Host, file, guest, refused};

/// The message for `path`, which holds each of `words`, comes with status 1, and before anything is bound.
fn refuses(path: &Path, words: &[&str]) {
    refuses_with(&[], path, words);
}

/// The same with further arguments.
fn refuses_with(args: &[&str], path: &Path, words: &[&str]) {
    // Were the address bound first, the message would be of that.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let path = path.to_str().unwrap();
    let refusal = refused(&[&["--listen", &listen, "--component", path], args].concat());
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    let lines: Vec<&str> = refusal
        .message
        .lines()
        .filter(|line| line.contains("ERROR"))
        .collect();
    let [line] = lines.as_slice() else {
        panic!("expected one line of error in {}", refusal.message)
    };
    assert!(line.contains(path), "{line} does not name the file");
    for word in words {
        assert!(line.contains(word), "{line:?} does not say {word:?}");
    }
}

#[test]
fn a_missing_file() {
    refuses(
        Path::new("/no/such/file.wasm"),
        &["cannot read the component", "No such file"],
    );
}

#[test]
fn a_directory() {
    refuses(Path::new("/"), &["cannot read the component", "directory"]);
}

#[test]
fn an_empty_file() {
    refuses(
        &file("empty.wasm", ""),
        &["is empty", "expected a WebAssembly component"],
    );
}

#[test]
fn something_else() {
    refuses(
        &file("text.wasm", "#!/bin/sh\n"),
        &["is not WebAssembly", "#!/bin/s", "expected a component"],
    );
}

#[test]
fn a_truncated_component() {
    let whole = fs::read(guest("echo")).unwrap();
    for length in [8, 9, 100, whole.len() / 2, whole.len() - 1] {
        let path = file(&format!("truncated-{length}.wasm"), &whole[..length]);
        let words: &[&str] = if length == 8 {
            &["exports nothing"]
        } else {
            &["is not a valid component"]
        };
        refuses(&path, words);
    }
    refuses(
        &file("truncated-5.wasm", &whole[..5]),
        &["is not a valid component"],
    );
}

#[test]
fn a_core_module_that_is_no_program() {
    for (text, why) in [
        (
            "(module (func (export \"run\")))",
            "not a WASI preview 1 program (it exports no function `_start`)",
        ),
        (
            "(module (import \"env\" \"f\" (func)) (func (export \"_start\")))",
            "not a WASI preview 1 program (unknown import: `env::f`",
        ),
    ] {
        refuses(&file("core.wasm", wat::parse_str(text).unwrap()), &[why]);
    }
}

#[test]
fn a_component_that_is_a_program_by_name_alone() {
    let text = r#"(component (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#;
    let component = wat::parse_str(text).unwrap();
    refuses(
        &file("no-program.wasm", component),
        &["exports a contract whose function types differ"],
    );
}

#[test]
fn a_component_that_exports_something_else() {
    let component = wat::parse_str(
        r#"(component
            (instance $i)
            (export "wasi:http/incoming-handler@0.2.0" (instance $i))
            (export "extra" (instance $i)))"#,
    )
    .unwrap();
    refuses(
        &file("other.wasm", component),
        &[
            "exports `wasi:http/incoming-handler@0.2.0`, `extra`",
            "inet:service/handler@0.1.0",
            "inet:service/sessions@0.1.0",
            "wasi:cli/run",
        ],
    );
}

#[test]
fn a_component_that_exports_nothing() {
    refuses(
        &file("nothing.wasm", wat::parse_str("(component)").unwrap()),
        &["exports nothing", "expected"],
    );
}

#[test]
fn another_version_of_the_contract() {
    let component =
        wat::parse_str(r#"(component (instance $i) (export "inet:service/handler@0.9.0" (instance $i)))"#);
    refuses(
        &file("version.wasm", component.unwrap()),
        &["exports `inet:service/handler@0.9.0`", "serves version 0.1.0"],
    );
}

#[test]
fn the_contract_with_other_types() {
    let component =
        wat::parse_str(r#"(component (instance $i) (export "inet:service/sessions@0.1.0" (instance $i)))"#);
    refuses(
        &file("types.wasm", component.unwrap()),
        &["function types differ", "wit/"],
    );
}

#[test]
fn the_contract_with_functions_of_other_types() {
    let component = wat::parse_str(
        r#"(component
            (core module $m
                (func (export "new") (result i32) i32.const 1)
                (func (export "handle") (param i32)))
            (core instance $i (instantiate $m))
            (type $session (resource (rep i32)))
            (func $new (result (own $session)) (canon lift (core func $i "new")))
            (func $handle (param "self" (borrow $session)) (canon lift (core func $i "handle")))
            (component $named
                (import "session" (type $s (sub resource)))
                (import "new" (func $new (result (own $s))))
                (import "handle" (func $handle (param "self" (borrow $s))))
                (export $session "session" (type $s))
                (export "[constructor]session" (func $new) (func (result (own $session))))
                (export "[method]session.handle" (func $handle) (func (param "self" (borrow $session)))))
            (instance $sessions (instantiate $named
                (with "session" (type $session)) (with "new" (func $new)) (with "handle" (func $handle))))
            (export "inet:service/sessions@0.1.0" (instance $sessions)))"#,
    );
    refuses(&file("functions.wasm", component.unwrap()), &["type mismatch"]);
}

#[test]
fn an_import_that_is_not_offered() {
    let component = wat::parse_str(
        r#"(component
            (import "acme:rocket/engine@1.0.0" (instance (export "launch" (func))))
            (instance $i)
            (export "inet:service/sessions@0.1.0" (instance $i)))"#,
    );
    refuses(
        &file("import.wasm", component.unwrap()),
        &["acme:rocket/engine@1.0.0", "does not provide", "only WASI"],
    );
}

#[test]
fn a_middleware_alone() {
    let component = wat::parse_str(
        r#"(component
            (import "inet:service/handler@0.1.0" (instance $i))
            (export "inet:service/handler@0.1.0" (instance $i)))"#,
    );
    refuses(
        &file("middleware.wasm", component.unwrap()),
        &["middleware", "wac plug"],
    );
}

#[test]
fn more_memory_than_it_may_have() {
    refuses_with(&["--max-memory", "64KiB"], &guest("lines"), &["`max-memory`"]);
}

#[test]
fn the_behaviour_is_that_of_the_file() {
    let path = file("swapped.wasm", fs::read(guest("echo")).unwrap());
    let args = ["--listen", "127.0.0.1:0", "--component", path.to_str().unwrap()];
    let echo = Host::start(&args);
    echo.connect().echo("hello");
    fs::copy(guest("daytime"), &path).unwrap();
    let daytime = Host::start(&args);
    assert!(daytime.connect().rest().ends_with(b"Z\r\n"));
    // The file was read, not mapped: what was loaded from it does not change with it.
    echo.connect().echo("hello");
}
