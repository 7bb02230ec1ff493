//! Files that cannot serve are refused before anything is bound, with a sentence that helps.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{HOST, Host, Refusal, file, guest, refused, with_cache};

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
        &["is not WebAssembly (it is a script)", "expected a component"],
    );
}

/// The file may be a key, and the log must not show a byte of it.
#[test]
fn another_format_is_named_without_its_content() {
    for (name, bytes, format) in [
        ("format-text.wasm", &b"s3cr3t of many words\n"[..], "(it is text)"),
        (
            "format-pem.wasm",
            b"-----BEGIN PRIVATE KEY-----\ns3cr3t\n",
            "(it is a PEM file, such as a certificate or a key)",
        ),
        ("format-gzip.wasm", b"\x1f\x8b\x08s3cr3t", "(it is gzip data)"),
        ("format-elf.wasm", b"\x7fELFs3cr3t", "(it is an ELF file)"),
        ("format-html.wasm", b"\n<!DOCTYPE html>s3cr3t", "(it is HTML)"),
        (
            "format-wat.wasm",
            b"(component s3cr3t)",
            "(it is WebAssembly text",
        ),
        (
            "format-unknown.wasm",
            b"\xffs3cr3t\x00",
            "(it is of no known format)",
        ),
    ] {
        let path = file(name, bytes);
        refuses(&path, &["is not WebAssembly", format]);
        let check = refused(&["check", path.to_str().unwrap()]);
        for message in [
            check.message,
            refused(&["--listen", "127.0.0.1:0", "--component", path.to_str().unwrap()]).message,
        ] {
            assert!(message.contains(format) && !message.contains("s3cr"), "{message}");
        }
    }
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

/// A check of a services file reads what a start compiles, and both say the same.
#[test]
fn damage_is_described_in_the_same_words_by_a_check_and_a_start() {
    let whole = fs::read(guest("echo")).unwrap();
    let mut body = whole.clone();
    // An instruction of a function, which only its compilation would find.
    let code = body.windows(2).rposition(|bytes| bytes == [0x0b, 0x0b]).unwrap();
    body[code] = 0xff;
    for (name, bytes) in [
        ("same-words-half", &whole[..whole.len() / 2]),
        ("same-words-end", &whole[..whole.len() - 1]),
        ("same-words-body", &body),
    ] {
        let component = file(&format!("{name}.wasm"), bytes);
        let text =
            format!("[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = {component:?}\n");
        let services = file(&format!("{name}.toml"), text);
        let reason = |args: &[&str]| {
            let message = refused(args).message;
            let (_, reason) = message.split_once("is not a valid component (").expect(&message);
            reason.to_owned()
        };
        let start = reason(&["--config", services.to_str().unwrap()]);
        assert!(!start.contains("::_R"), "{start}");
        assert_eq!(reason(&["check", "--config", services.to_str().unwrap()]), start);
        assert_eq!(reason(&["check", component.to_str().unwrap()]), start);
    }
}

/// A services file with a component, and further `keys` of the service.
fn services(name: &str, component: &str, keys: &str) -> PathBuf {
    let component = file(&format!("{name}.wasm"), wat::parse_str(component).unwrap());
    let text =
        format!("[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = {component:?}\n{keys}");
    file(&format!("{name}.toml"), text)
}

/// What a check and a start say of the component in a services file, which both refuse in the same
/// words.
fn refused_by_check_and_start(services: &Path) -> String {
    let services = services.to_str().unwrap();
    let reason = |args: &[&str]| {
        let Refusal { status, message } = refused(args);
        assert_eq!(status, Some(1), "{args:?}: {message}");
        let (_, reason) = message.split_once("service[0].component: ").expect(&message);
        reason.trim_end().to_owned()
    };
    let start = reason(&["--config", services]);
    assert_eq!(reason(&["check", "--config", services]), start);
    start
}

/// A check of a services file links and instantiates components without their code, and says what a
/// start says.
#[test]
fn what_a_surface_shows_is_refused_in_the_same_words_by_a_check_and_a_start() {
    let program = |imports: &str, memory: &str| {
        format!(
            "(component {imports}
                (core module $m {memory} (func (export \"run\") (result i32) unreachable))
                (core instance $i (instantiate $m))
                (func $run (result (result)) (canon lift (core func $i \"run\")))
                (instance $run (export \"run\" (func $run)))
                (export \"wasi:cli/run@0.2.6\" (instance $run)))"
        )
    };
    let import = |module: &str, item: &str| {
        format!(
            "(module (import \"{module}\" {item}) (memory (export \"memory\") 1) (func (export \"_start\")))"
        )
    };
    let empty = |interface: &str| format!("(component (instance $i) (export \"{interface}\" (instance $i)))");
    let refused_by_all = [
        "(module (func (export \"_start\") (param i32)))".to_owned(),
        "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func (result i32)))
            (memory 1) (func (export \"_start\")))"
            .to_owned(),
        "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func (result i32)))
            (global (export \"memory\") i32 (i32.const 0)) (func (export \"_start\")))"
            .to_owned(),
        import("env", "\"f\" (func)"),
        import("env", "\"memory\" (memory 1)"),
        import("wasi_snapshot_preview1", "\"frobnicate\" (func)"),
        import("wasi_snapshot_preview1", "\"fd_write\" (func (param i32))"),
        "(module (memory (export \"memory\") 2000) (func (export \"_start\")))".to_owned(),
        "(module (memory 1) (data (i32.const 65536) \"beyond\") (func (export \"_start\")))".to_owned(),
        program("(import \"acme:log/sink@1.0.0\" (instance))", "")
            .replace("(instance))", "(instance (export \"f\" (func))))"),
        program("(import \"log\" (func (param \"x\" string)))", ""),
        program(
            "(import \"wasi:cli/environment@0.2.0\" (instance (export \"frob\" (func))))",
            "",
        ),
        program(
            "(import \"wasi:random/random@0.2.0\" (instance (export \"get-random-u64\" (func (result u32)))))",
            "",
        ),
        program("", "(memory 2000)"),
        program("", "").replace("(result (result))", "(result u32)"),
        program("(import \"c\" (component))", ""),
        program("(component $c) (export \"c\" (component $c))", ""),
        program("(import \"m\" (core module))", ""),
        checking("check"),
        checking("other"),
        empty("inet:service/handler@0.1.0"),
        empty("inet:service/sessions@0.1.0"),
        empty("wasi:cli/run@0.2.6"),
        empty("wasi:cli/run@0.3.0"),
    ];
    for (number, text) in refused_by_all.iter().enumerate() {
        refused_by_check_and_start(&services(&format!("surface-{number}"), text, ""));
    }
    // What only the code does is not found.
    let traps = "(module (func $f unreachable) (start $f) (func (export \"_start\")))";
    let services = services("surface-traps", traps, "");
    let mut check = with_cache(Command::new(HOST));
    check.args(["check", "--config"]).arg(&services);
    let checked = check.output().unwrap();
    assert_eq!(checked.stdout, b"1 service, no errors\n", "{checked:?}");
    let compiled = refused(&["check", "--compile", "--config", services.to_str().unwrap()]).message;
    assert!(compiled.contains("cannot start ("), "{compiled}");
}

/// A check does not initialise a guest, but looks at all that a start looks at before.
#[test]
fn what_cannot_be_initialised_is_refused_in_the_same_words_by_a_check_and_a_start() {
    let module =
        |items: &str| format!("(module (memory (export \"memory\") 1) (func (export \"_start\")) {items})");
    let component = |items: &str, code: &str, initialiser: &str| {
        format!(
            "(component {items}
                (core module $m {code}
                    (func (export \"plain\")) (func (export \"parameter\") (param i32))
                    (func (export \"run\") (result i32) (i32.const 0)))
                (core instance $i (instantiate $m))
                {initialiser}
                (func $run (result (result)) (canon lift (core func $i \"run\")))
                (instance $run (export \"run\" (func $run)))
                (export \"wasi:cli/run@0.2.6\" (instance $run)))"
        )
    };
    let plain = "(func (export \"wizer-initialize\") (canon lift (core func $i \"plain\")))";
    let global = "(global (mut funcref) (ref.null func))";
    let own = "exports `wizer-initialize` with parameters or results";
    for (number, (text, words)) in [
        (module(""), "exports no function `wizer-initialize`"),
        (
            module("(memory (export \"wizer-initialize\") 1)"),
            "exports no function `wizer-initialize`",
        ),
        (module("(func (export \"wizer-initialize\") (param i32))"), own),
        (
            module("(func (export \"wizer-initialize\") (result i32) unreachable)"),
            own,
        ),
        (
            module("(func (export \"wizer-initialize\")) (func (export \"_initialize\") (param i32))"),
            "exports `_initialize` with parameters or results",
        ),
        (
            module("(func (export \"wizer-initialize\")) (func (export \"wizer.resume\") (param i32))"),
            "exports `wizer.resume` with parameters or results",
        ),
        (
            module(&format!("(func (export \"wizer-initialize\")) {global}")),
            "mutable global containing a reference type",
        ),
        // The structure is what the start looks at first.
        (module(global), "mutable global containing a reference type"),
        (
            "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i32)))
                (memory (export \"memory\") 1) (func (export \"_start\"))
                (func (export \"wizer-initialize\")))"
                .to_owned(),
            "imports `fd_write` of `wasi_snapshot_preview1` as `(func (param i32))`",
        ),
        (component("", "", ""), "exports no function `wizer-initialize`"),
        (
            component(
                "",
                "",
                "(instance $n) (export \"wizer-initialize\" (instance $n))",
            ),
            "exports no function `wizer-initialize`",
        ),
        (
            component(
                "",
                "",
                "(func (export \"wizer-initialize\") (param \"a\" u32)
                    (canon lift (core func $i \"parameter\")))",
            ),
            own,
        ),
        (
            component(
                "",
                "",
                "(func (export \"wizer-initialize\") (result u32) (canon lift (core func $i \"run\")))",
            ),
            own,
        ),
        (
            component("", global, plain),
            "mutable global containing a reference type",
        ),
        (
            component(
                "(import \"acme:log/sink@1.0.0\" (instance (export \"f\" (func))))",
                "",
                plain,
            ),
            "has an import that the host does not provide (`f` of `acme:log/sink@1.0.0`)",
        ),
        (
            component(
                "(import \"wasi:random/random@0.2.6\" (instance (export \"get-random-u64\" (func))))",
                "",
                plain,
            ),
            "imports `get-random-u64` of `wasi:random/random@0.2.6` as `func()`",
        ),
    ]
    .iter()
    .enumerate()
    {
        let services = services(&format!("initialised-{number}"), text, "preinit = true\n");
        let said = refused_by_check_and_start(&services);
        assert!(said.contains(words), "{text}: {said:?} does not say {words:?}");
        for word in ["type mismatch", "expected 0", "matching implementation"] {
            assert!(!said.contains(word), "{text}: {said:?} says {word:?}");
        }
    }
}

/// A start takes the function that resumes a program in place of `_start`.
#[test]
fn what_can_be_initialised_passes_a_check() {
    for (number, text) in [
        "(module (memory (export \"memory\") 1) (func (export \"_start\"))
            (func (export \"wizer-initialize\") unreachable) (func (export \"wizer.resume\")))",
        "(module (memory (export \"memory\") 1) (func (export \"_start\"))
            (memory (export \"wizer.resume\") 1) (func (export \"wizer-initialize\")))",
    ]
    .iter()
    .enumerate()
    {
        let services = services(&format!("initialised-well-{number}"), text, "preinit = true\n");
        let mut check = with_cache(Command::new(HOST));
        check.args(["check", "--config"]).arg(&services);
        let checked = check.output().unwrap();
        assert_eq!(checked.stdout, b"1 service, no errors\n", "{checked:?}");
    }
}

#[test]
fn a_module_that_imports_a_function_of_preview_1_otherwise() {
    let start = "and WASI preview 1 has it as";
    let host = "`(func (param i32 i32 i32 i32) (result i32))`";
    for (item, found, expected) in [
        ("(func (param i32))", "`(func (param i32))`", host),
        ("(memory 1)", "a memory", "a function"),
        ("(table 1 funcref)", "a table", "a function"),
        ("(global i32)", "a global", "a function"),
    ] {
        let text = format!(
            "(module (import \"wasi_snapshot_preview1\" \"fd_write\" {item})
                (memory (export \"memory\") 1) (func (export \"_start\")))"
        );
        let words =
            format!("imports `fd_write` of `wasi_snapshot_preview1` as {found}, {start} {expected}: build");
        refuses(
            &file("imports-otherwise.wasm", wat::parse_str(text).unwrap()),
            &[&words],
        );
    }
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
            "not a WASI preview 1 program (it imports `f` of `env`, which preview 1 does not have)",
        ),
        (
            "(module (func (export \"_initialize\")))",
            "exports `_initialize` and no `_start`, so it is a reactor",
        ),
        (
            "(module (func (export \"_start\") (param i32)))",
            "`_start` is not a function without parameters and results",
        ),
        (
            "(module (memory (export \"_start\") 1))",
            "`_start` is not a function without parameters and results",
        ),
        (
            "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i32)))
                (memory 1) (func (export \"_start\")))",
            "exports no memory as `memory`",
        ),
    ] {
        refuses(&file("core.wasm", wat::parse_str(text).unwrap()), &[why]);
    }
}

#[test]
fn a_component_that_is_a_program_by_name_alone() {
    for interface in ["wasi:cli/run@0.2.3", "wasi:cli/run@0.3.1"] {
        let text = format!(r#"(component (instance $i) (export "{interface}" (instance $i)))"#);
        refuses(
            &file("no-program.wasm", wat::parse_str(text).unwrap()),
            &[
                "exports a contract whose function types differ",
                &format!("`{interface}` has no function `run`"),
            ],
        );
    }
}

#[test]
fn a_program_whose_run_has_another_type() {
    for (version, parameters, result) in [
        ("0.2.6", "", ""),
        ("0.2.6", "", "(result u32)"),
        ("0.2.6", "(param \"a\" u32)", "(result (result))"),
        ("0.3.0", "", ""),
        ("0.3.0", "", "(result u32)"),
    ] {
        let core = match (parameters, result) {
            ("", "") => "(func (export \"run\"))",
            ("", _) => "(func (export \"run\") (result i32) (i32.const 0))",
            _ => "(func (export \"run\") (param i32) (result i32) (i32.const 0))",
        };
        let text = format!(
            r#"(component
                (core module $m {core})
                (core instance $i (instantiate $m))
                (func $run {parameters} {result} (canon lift (core func $i "run")))
                (component $c
                    (import "f" (func $f {parameters} {result})) (export "run" (func $f)))
                (instance $r (instantiate $c (with "f" (func $run))))
                (export "wasi:cli/run@{version}" (instance $r)))"#
        );
        let component = wat::parse_str(text).unwrap();
        refuses(
            &file("run-of-another-type.wasm", component),
            &["function types differ", ", this host has "],
        );
    }
}

/// A component that imports a function of an interface with another type than the host has.
fn importer(interface: &str, function: &str) -> Vec<u8> {
    let text = format!(
        r#"(component
            (import "{interface}" (instance $i {function}))
            (core module $m (func (export "run") (result i32) (i32.const 0)))
            (core instance $c (instantiate $m))
            (func $run (result (result)) (canon lift (core func $c "run")))
            (component $p (import "f" (func $f (result (result)))) (export "run" (func $f)))
            (instance $r (instantiate $p (with "f" (func $run))))
            (export "wasi:cli/run@0.2.6" (instance $r)))"#
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn an_import_with_another_type() {
    for (interface, function, words) in [
        (
            "wasi:random/random@0.2.6",
            r#"(export "get-random-bytes" (func (param "len" u32) (result (list u8))))"#,
            "imports `get-random-bytes` of `wasi:random/random@0.2.6` as `func(len: u32) -> list<u8>`, \
             and this host has another type for it (in the parameters, this host has `u64`, and the \
             component has `u32`): build it against the published WIT of `wasi:random@0.2.6`",
        ),
        (
            "wasi:random/random@0.2.6",
            r#"(export "get-random-u64" (func (param "a" u8) (result (tuple u64 string))))"#,
            "as `func(a: u8) -> tuple<u64, string>`, and this host has another type for it (in the \
             parameters, this host has 0 values, and the component has one value)",
        ),
        (
            "wasi:clocks/monotonic-clock@0.2.6",
            r#"(export "now" (func (result (option string))))"#,
            "as `func() -> option<string>`, and this host has another type for it (in the result, this \
             host has `u64`, and the component has `option`)",
        ),
        (
            "wasi:clocks/monotonic-clock@0.3.0",
            r#"(export "wait-for" (func (param "how-long" u64)))"#,
            "as `func(how-long: u64)`, and this host has another type for it (the function of this host \
             is `async`, and that of the component is not)",
        ),
        (
            "wasi:cli/exit@0.2.6",
            r#"(export "exit" (instance))"#,
            "imports `exit` of `wasi:cli/exit@0.2.6`, and this host has another type for it (this host has a \
             function, and the component has an instance)",
        ),
    ] {
        let path = file("import-of-another-type.wasm", importer(interface, function));
        refuses(&path, &[words]);
    }
}

#[test]
fn a_component_that_exports_something_else() {
    let component = wat::parse_str(
        r#"(component
            (instance $i)
            (export "acme:http/handler@1.0.0" (instance $i))
            (export "extra" (instance $i)))"#,
    )
    .unwrap();
    refuses(
        &file("other.wasm", component),
        &[
            "exports `acme:http/handler@1.0.0`, `extra`",
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
    refuses(&file("functions.wasm", component.unwrap()), &["this host has "]);
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
        &["acme:rocket/engine@1.0.0", "does not provide", "WASI's cli"],
    );
}

#[test]
fn functions_of_wasi_that_are_not_provided_are_named() {
    let program = |import: &str| {
        format!("(component {import} (instance $i) (export \"wasi:cli/run@0.2.6\" (instance $i)))")
    };
    for (import, words) in [
        (
            "(import \"wasi:clocks/timezone@0.2.6\" (instance (export \"utc-offset\" (func (result s32)))))",
            "(`utc-offset` of `wasi:clocks/timezone@0.2.6`): it provides",
        ),
        (
            "(import \"wasi:cli/environment@0.2.99\" (instance (export \"soon\" (func))))",
            "(`soon` of `wasi:cli/environment@0.2.99`): it provides",
        ),
        (
            "(import \"acme:cache/store\" (instance (export \"x\" (type (sub resource)))))",
            "(`x` of `acme:cache/store`): it provides",
        ),
        ("(import \"launch\" (func))", "(`launch`): it provides"),
    ] {
        let component = wat::parse_str(program(import)).unwrap();
        let path = file("missing-function.wasm", component);
        refuses(&path, &[words, "0.2.12 and 0.3.0"]);
        let refusal = refused(&["--listen", "127.0.0.1:0", "--component", path.to_str().unwrap()]);
        assert!(!refusal.message.contains("linker"), "{}", refusal.message);
    }
    let component =
        wat::parse_str(r#"(component (instance $i) (export "inet:service/handles@0.1.0" (instance $i)))"#);
    refuses(
        &file("other-interface.wasm", component.unwrap()),
        &["exports `inet:service/handles@0.1.0`: expected `inet:service/handler@0.1.0`"],
    );
    let component =
        wat::parse_str(r#"(component (instance $i) (export "inet:service/handler@0.2.0" (instance $i)))"#);
    refuses(
        &file("other-version.wasm", component.unwrap()),
        &["exports `inet:service/handler@0.2.0`, but this host serves version 0.1.0"],
    );
    let component = wat::parse_str(program(
        "(import \"inet:service/types@0.2.0\" (instance (export \"x\" (type (sub resource)))))",
    ));
    refuses(
        &file("other-version-of-types.wasm", component.unwrap()),
        &["imports `inet:service/types@0.2.0`, but this host serves version 0.1.0"],
    );
    let component = wat::parse_str(
        r#"(component (instance $i) (export "wasi:http/incoming-handler@0.2.6" (instance $i)))"#,
    );
    refuses(
        &file("http-handler.wasm", component.unwrap()),
        &["exports `wasi:http/incoming-handler@0.2.6`, but this host serves no HTTP components"],
    );
    let module = wat::parse_str(
        r#"(module (import "wasi_unstable" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (func (export "_start")))"#,
    );
    refuses(
        &file("old-preview.wasm", module.unwrap()),
        &[
            "imports `wasi_unstable`",
            "this host provides `wasi_snapshot_preview1`",
        ],
    );
}

#[test]
fn interfaces_of_wasi_that_are_not_provided() {
    for (text, words) in [
        (
            r#"(component (instance $i) (export "wasi:cli/run@0.3.0-rc-2026-01-06" (instance $i)))"#,
            ["exports `wasi:cli/run@0.3.0-rc-2026-01-06`", "WASI 0.2 and 0.3"],
        ),
        (
            r#"(component (instance $i) (export "wasi:cli/run@0.4.0" (instance $i)))"#,
            ["exports `wasi:cli/run@0.4.0`", "WASI 0.2 and 0.3"],
        ),
        (
            r#"(component
                (import "wasi:clocks/monotonic-clock@0.3.0-rc-2026-01-06" (instance
                    (export "now" (func (result u64)))))
                (instance $i) (export "wasi:cli/run@0.2.6" (instance $i)))"#,
            [
                "imports `wasi:clocks/monotonic-clock@0.3.0-rc",
                "WASI 0.2 and 0.3",
            ],
        ),
        (
            r#"(component
                (import "wasi:http/outgoing-handler@0.2.6" (instance (export "handle" (func))))
                (instance $i) (export "wasi:cli/run@0.2.6" (instance $i)))"#,
            [
                "imports `wasi:http/outgoing-handler@0.2.6`",
                "has no HTTP interfaces",
            ],
        ),
        (
            r#"(component
                (import "wasi:logging/logging@0.1.0" (instance (export "log" (func))))
                (instance $i) (export "wasi:cli/run@0.2.6" (instance $i)))"#,
            [
                "imports `wasi:logging/logging@0.1.0`, but this host provides",
                "`wasi:logging/logging@0.1.0-draft`",
            ],
        ),
    ] {
        refuses(&file("other-wasi.wasm", wat::parse_str(text).unwrap()), &words);
    }
}

/// What is said of a valid component or module whose instances the host does not make.
fn refused_as_valid(name: &str, text: &str, words: &[&str]) {
    let path = file(&format!("valid-{name}.wasm"), wat::parse_str(text).unwrap());
    // Whether a pool could be reserved is not to decide: without address space there is none.
    for command in ["exec \"$0\" \"$@\"", "ulimit -v 8000000 && exec \"$0\" \"$@\""] {
        let output = with_cache(Command::new("sh"))
            .args(["-c", command, HOST, "--listen", "127.0.0.1:0", "--component"])
            .arg(&path)
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {message}");
        for word in words {
            assert!(
                message.contains(word),
                "{name}: {message:?} does not say {word:?}"
            );
        }
        assert!(!message.contains("copy the complete file"), "{name}: {message}");
    }
}

#[test]
fn a_valid_component_that_uses_what_is_not_offered() {
    for (name, text, proposal) in [
        (
            "gc",
            "(module (type (struct)) (func (export \"_start\")))",
            "garbage collection (GC)",
        ),
        (
            "exceptions",
            "(module (tag) (func (export \"_start\")))",
            "exceptions",
        ),
        (
            "shared",
            "(module (memory (export \"memory\") 1 2 shared) (func (export \"_start\")))",
            "shared memory (threads)",
        ),
        (
            "error-context",
            "(component (type (option error-context)))",
            "`error-context`",
        ),
    ] {
        let words = ["is valid, but uses what this host does not offer", proposal];
        refused_as_valid(name, text, &words);
    }
}

#[test]
fn a_valid_component_that_is_too_large() {
    let many = "(core instance (instantiate $m))".repeat(1001);
    for (name, text, words) in [
        (
            "table",
            "(module (table 2000000 funcref) (func (export \"_start\")))".to_owned(),
            ["2000000 elements in a table", "allows 1280000"],
        ),
        (
            "instances",
            format!("(component (core module $m) {many})"),
            ["1001 core instances", "allows 1000"],
        ),
        (
            "memory",
            "(module (memory i64 70000) (func (export \"_start\")))".to_owned(),
            ["4587520000 bytes in a memory", "allows 4294967296"],
        ),
        (
            "module",
            format!("(module {} (func (export \"_start\")))", "(memory 1)".repeat(101)),
            [
                "exceeds a bound of this host",
                "memories count exceeds limit of 100",
            ],
        ),
        (
            "component-instances",
            format!(
                "(component (component $c) {})",
                "(instance (instantiate $c))".repeat(1001)
            ),
            ["1002 component instances", "allows 1000"],
        ),
    ] {
        refused_as_valid(name, &text, &words);
    }
}

#[test]
fn a_component_that_imports_or_exports_components() {
    for (name, text, words) in [
        (
            "component-import",
            "(component (import \"c\" (component)))",
            "imports the component `c`, but this host links",
        ),
        (
            "component-export",
            "(component (component $c) (export \"d\" (component $c)))",
            "exports the component `d`, but this host links",
        ),
    ] {
        refused_as_valid(name, text, &[words]);
    }
    let whole = wat::parse_str("(component (import \"c\" (component)) (core module))").unwrap();
    let cut = file("component-import-cut.wasm", &whole[..whole.len() - 1]);
    refuses(&cut, &["is not a valid component"]);
}

#[test]
fn the_reason_of_the_engine_does_not_say_that_a_valid_component_is_invalid() {
    let text = "(component (import \"f\" (func $f)) (export \"g\" (func $f)))";
    let words = ["is valid, but this host cannot serve it (component export `g` is a reexport"];
    refused_as_valid("reexport", text, &words);
}

#[test]
fn a_component_is_accepted_whatever_the_number_of_connections() {
    let memories = format!("(module {} (func (export \"_start\")))", "(memory 1)".repeat(100));
    let instances = format!(
        r#"(component
            (core module $m (memory 1) (func (export "run") (result i32) (i32.const 0)))
            (core instance $i (instantiate $m)) {}
            (func $run (result (result)) (canon lift (core func $i "run")))
            (component $c (import "f" (func $f (result (result)))) (export "run" (func $f)))
            (instance $r (instantiate $c (with "f" (func $run))))
            (export "wasi:cli/run@0.2.6" (instance $r)))"#,
        "(core instance (instantiate $m))".repeat(59)
    );
    for (name, text) in [("memories", memories), ("instances", instances)] {
        let path = file(&format!("many-{name}.wasm"), wat::parse_str(text).unwrap());
        for connections in ["1", "4", "64"] {
            let host = Host::with(&path, &["--max-connections", connections]);
            assert_eq!(host.connect().rest(), b"", "{name} {connections}");
            assert_eq!(host.outcome(), "finished", "{name} {connections}: {}", host.log());
        }
    }
}

#[test]
fn valid_modules_of_unusual_form_are_served() {
    for (name, text) in [
        (
            "memories",
            "(module (memory (export \"memory\") 1) (memory 1) (func (export \"_start\")))",
        ),
        (
            "tables",
            "(module (table 1 funcref) (table 2 funcref) (func (export \"_start\")))",
        ),
        (
            "large-table",
            "(module (table 50000 funcref) (func (export \"_start\")))",
        ),
        ("no-memory", "(module (func (export \"_start\")))"),
    ] {
        let path = file(&format!("unusual-{name}.wasm"), wat::parse_str(text).unwrap());
        let host = Host::with(&path, &[]);
        assert_eq!(host.connect().rest(), b"", "{name}");
        assert_eq!(host.outcome(), "finished", "{name}: {}", host.log());
    }
}

#[test]
fn a_component_of_many_core_instances_serves_every_connection() {
    let many = "(core instance (instantiate $m))".repeat(42);
    let text = format!(
        r#"(component
            (core module $m (func (export "run") (result i32) (i32.const 0)))
            (core instance $i (instantiate $m)) {many}
            (func $run (result (result)) (canon lift (core func $i "run")))
            (component $c (import "f" (func $f (result (result)))) (export "run" (func $f)))
            (instance $r (instantiate $c (with "f" (func $run))))
            (export "wasi:cli/run@0.2.6" (instance $r)))"#
    );
    let path = file("forty-instances.wasm", wat::parse_str(text).unwrap());
    let host = Host::with(&path, &["--max-connections", "64"]);
    let clients: Vec<_> = (0..64).map(|_| host.connect()).collect();
    for client in clients {
        assert_eq!(client.rest(), b"");
        assert_eq!(host.outcome(), "finished", "{}", host.log());
    }
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
    refuses_with(
        &["--max-memory", "64KiB"],
        &guest("lines"),
        &["exceeds memory limits): raise `--max-memory`"],
    );
}

/// A program that exports `configuration` with a function `name` of another type than `check` has.
fn checking(name: &str) -> String {
    format!(
        r#"(component
            (core module $m (func (export "run") (result i32) (i32.const 0)))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (component $c (import "f" (func $f (result (result)))) (export "run" (func $f)))
            (instance $r (instantiate $c (with "f" (func $run))))
            (export "wasi:cli/run@0.2.6" (instance $r))
            (component $d (import "f" (func $f (result (result)))) (export "{name}" (func $f)))
            (instance $k (instantiate $d (with "f" (func $run))))
            (export "inet:service/configuration@0.1.0" (instance $k)))"#
    )
}

#[test]
fn a_check_of_the_configuration_with_another_type() {
    for (name, words) in [
        ("check", "`check` of `inet:service/configuration@0.1.0`"),
        ("other", "is exported without its function `check`"),
    ] {
        let path = file(
            &format!("configuration-{name}.wasm"),
            wat::parse_str(checking(name)).unwrap(),
        );
        refuses(&path, &["function types differ", words]);
    }
}

#[test]
fn a_program_that_resumes_with_parameters() {
    let text = r#"(module (memory (export "memory") 1) (func (export "_start"))
        (func (export "wizer-initialize")) (func (export "wizer.resume") (param i32)))"#;
    let path = file("resume.wasm", wat::parse_str(text).unwrap());
    refuses_with(&["--preinit"], &path, &["exports `wizer.resume` with parameters"]);
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
