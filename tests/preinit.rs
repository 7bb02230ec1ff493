//! `--preinit`: what a guest does once at its load, every connection begins with.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{HUP, Host, NEW, Place, command, file, guest, scratch};

/// A program that says in which state it was started, and leaves another one. `initialise` is what its function for that
/// does, and `more` what it has beside.
fn program(name: &str, initialise: &str, more: &str) -> PathBuf {
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (global $count (mut i32) (i32.const 0x30))
            (data (i32.const 0) "\10\00\00\00\03\00\00\00")
            (data (i32.const 16) "new")
            (func $say
                (i32.store8 (i32.const 18) (global.get $count))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                (i32.store8 (i32.const 16) (i32.const 0x78))
                (global.set $count (i32.const 0x39)))
            (func (export "_start") (call $say))
            (func (export "wizer-initialize") {initialise})
            {more})"#
    );
    file(name, wat::parse_str(text).unwrap())
}

/// Initialises it to `ok1`.
const INITIALISE: &str = "(i32.store16 (i32.const 16) (i32.const 0x6b6f))
    (global.set $count (i32.add (global.get $count) (i32.const 1)))";

/// What a program says on a connection.
fn says(host: &Host) -> String {
    let client = host.connect();
    client.finish();
    String::from_utf8(client.rest()).unwrap()
}

#[test]
fn a_module_begins_every_connection_with_what_it_was_initialised_to() {
    let module = program("preinit-module.wasm", INITIALISE, "");
    let host = Host::with(&module, &[]);
    assert_eq!(says(&host), "ne0");
    let host = Host::with(&module, &["--preinit"]);
    for _ in 0..3 {
        assert_eq!(says(&host), "ok1");
    }
}

#[test]
fn a_time_that_was_kept_is_past() {
    // Waits until its monotonic clock shows 50 ms, and keeps what the clock shows then. A
    // connection says `ok` if that is past.
    let text = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\02\00\00\00")
        (data (i32.const 16) "ok")
        (func $now (result i64)
            (drop (call $time (i32.const 1) (i64.const 0) (i32.const 32)))
            (i64.load (i32.const 32)))
        (func (export "wizer-initialize")
            (loop $wait (br_if $wait (i64.lt_u (call $now) (i64.const 50000000))))
            (i64.store (i32.const 40) (call $now)))
        (func (export "_start")
            (if (i64.lt_u (call $now) (i64.load (i32.const 40)))
                (then (i32.store16 (i32.const 16) (i32.const 0x6f6e))))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;
    let module = file("preinit-clock.wasm", wat::parse_str(text).unwrap());
    assert_eq!(says(&Host::with(&module, &["--preinit"])), "ok");
}

#[test]
fn a_module_that_resumes_elsewhere_does() {
    let resume = r#"(func (export "wizer.resume") (i32.store8 (i32.const 17) (i32.const 0x21)) (call $say))"#;
    let module = program("preinit-resume.wasm", INITIALISE, resume);
    assert_eq!(says(&Host::with(&module, &[])), "ne0");
    assert_eq!(says(&Host::with(&module, &["--preinit"])), "o!1");
}

#[test]
fn a_component_begins_every_connection_with_what_it_was_initialised_to() {
    let host = Host::serving("primes", &[]);
    let client = host.connect();
    client.send("?\n1\n348513\n");
    assert_eq!(client.line(), "348513 primes, found for this connection");
    assert_eq!(
        (client.line(), client.line()),
        ("2".to_owned(), "4999999".to_owned())
    );

    let host = Host::serving("primes", &["--preinit"]);
    for _ in 0..2 {
        let client = host.connect();
        client.send("?\n1\n348513\n");
        assert_eq!(client.line(), "348513 primes, found before the connection");
        assert_eq!(
            (client.line(), client.line()),
            ("2".to_owned(), "4999999".to_owned())
        );
    }
}

/// What the host says of a component that it refuses to serve with.
fn refusal(component: &Path) -> String {
    let output = command()
        .args(["--listen", "127.0.0.1:0", "--preinit", "--component"])
        .arg(component)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn what_cannot_be_initialised_is_refused_in_a_sentence() {
    for nothing in ["echo", "lines-session", "cat"] {
        let said = refusal(&guest(nothing));
        assert!(
            said.contains("exports no function `wizer-initialize`") && said.contains("omit `--preinit`"),
            "{said}"
        );
    }
    let module = program("preinit-trap.wasm", "unreachable", "");
    let said = refusal(&module);
    assert!(
        said.contains("cannot be initialised for `--preinit`") && said.contains("unreachable"),
        "{said}"
    );
    let table = "(table $t 1 funcref) (func (drop (table.grow $t (ref.null func) (i32.const 1))))";
    let module = program("preinit-table.wasm", INITIALISE, table);
    let said = refusal(&module);
    assert!(
        said.contains("cannot be snapshotted") && said.contains("table.grow"),
        "{said}"
    );
}

/// A component with nothing in it but its function `initialise`.
fn component(name: &str, memory: &str, initialise: &str) -> PathBuf {
    let text = format!(
        r#"(component
            (import "wasi:io/streams@0.2.0" (instance $streams
                (export "output-stream" (type (sub resource)))))
            (alias export $streams "output-stream" (type $stream))
            (import "wasi:cli/stdout@0.2.0" (instance $stdout
                (alias outer 1 $stream (type $outer))
                (export "output-stream" (type $own (eq $outer)))
                (export "get-stdout" (func (result (own $own))))))
            (core func $get (canon lower (func $stdout "get-stdout")))
            (core module $module
                (import "host" "get" (func $get (result i32)))
                {memory}
                (func (export "initialise") {initialise}))
            (core instance $instance (instantiate $module
                (with "host" (instance (export "get" (func $get))))))
            (func (export "wizer-initialize") (canon lift (core func $instance "initialise")))
            (instance $sessions)
            (export "inet:service/sessions@0.1.0" (instance $sessions)))"#
    );
    file(name, wat::parse_str(text).unwrap())
}

#[test]
fn what_it_has_come_to_has_to_be_in_its_memory() {
    let room = "(memory 1)";
    for (name, memory, initialise, why) in [
        (
            "handle",
            room,
            "(drop (call $get))",
            "it holds handles of the host",
        ),
        ("full", "(memory 1 1)", "", "its memory cannot grow by a page"),
        (
            "pieces",
            "(memory 512)",
            every(3, 512 << 16).as_str(),
            "its memory has too many separate regions",
        ),
    ] {
        let said = refusal(&component(&format!("preinit-{name}.wasm"), memory, initialise));
        assert!(
            said.contains("cannot be snapshotted") && said.contains(why),
            "{said}"
        );
    }
}

/// Stores 1 in every `distance`th byte of the first `bytes` bytes of memory.
fn every(distance: usize, bytes: usize) -> String {
    format!(
        "(local $at i32)
         (loop $next
            (i32.store8 (local.get $at) (i32.const 1))
            (local.set $at (i32.add (local.get $at) (i32.const {distance})))
            (br_if $next (i32.lt_u (local.get $at) (i32.const {bytes}))))"
    )
}

/// Wizer asks for each memory twice.
#[test]
fn a_memory_counts_and_grows_once() {
    // More than half of the stretches that a snapshot may have.
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 512)
            (func (export "wizer-initialize") {})
            (func (export "_start")
                (i32.store (i32.const 0) (i32.const 6000000))
                (i32.store (i32.const 4) (i32.const 1))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#,
        every(6, 512 << 16)
    );
    let module = file("preinit-half.wasm", wat::parse_str(text).unwrap());
    assert_eq!(says(&Host::with(&module, &["--preinit"])), "\u{1}");
    // Its snapshot is made, and says what the component lacks.
    let said = refusal(&component("preinit-page.wasm", "(memory 1 2)", &every(6, 60)));
    assert!(said.contains("has no `[constructor]session`"), "{said}");
}

#[test]
fn a_hang_up_initialises_again() {
    let module = program("preinit-again.wasm", INITIALISE, "");
    let host = Host::with(&module, &["--preinit"]);
    host.signal(HUP);
    host.line(NEW);
    assert_eq!(says(&host), "ok1");
}

#[test]
fn what_was_compiled_is_found_again_and_replaced_when_it_comes_out_otherwise() {
    let cache = scratch("preinit-cache");
    let arguments = ["--preinit", "-v", "--cache", cache.to_str().unwrap()];
    // Beside the key, by which entries are signed.
    let entries = || fs::read_dir(&cache).unwrap().count() - 1;
    let module = program("preinit-cached.wasm", INITIALISE, "");
    // Of what shows its state, and of what it has come to.
    for found in [2, 0] {
        let host = Host::with(&module, &arguments);
        assert_eq!(
            host.log().matches("compiled=true").count(),
            found,
            "{}",
            host.log()
        );
        assert_eq!(says(&host), "ok1");
        assert_eq!(entries(), 2);
    }
    // One that comes to something else each time.
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start"))
            (func (export "wizer-initialize") (drop (call $random (i32.const 64) (i32.const 8)))))"#,
    );
    let module = file("preinit-random.wasm", module.unwrap());
    for compiled in [2, 1, 1] {
        let host = Host::with(&module, &arguments);
        assert_eq!(
            host.log().matches("compiled=true").count(),
            compiled,
            "{}",
            host.log()
        );
        assert_eq!(entries(), 4);
    }
}

#[test]
fn a_new_generation_is_initialised_too() {
    let place = Place::new("preinit", "primes");
    let good = program("preinit-swap.wasm", INITIALISE, "");
    let bad = program("preinit-swap-bad.wasm", "unreachable", "");
    let host = place.serve(&["--preinit"]);
    place.replace(fs::read(bad).unwrap());
    host.signal(HUP);
    let line = host.line("the current generation keeps serving");
    assert!(line.contains("cannot be initialised"), "{line}");
    let client = host.connect();
    client.send("2\n");
    assert_eq!(client.line(), "3");
    place.replace(fs::read(good).unwrap());
    host.signal(HUP);
    host.line(NEW);
    assert_eq!(says(&host), "ok1");
}

#[test]
fn initialising_without_end_is_given_up() {
    // Sleeps for an hour.
    let sleep = "(i32.store8 (i32.const 64) (i32.const 0))
        (i64.store (i32.const 88) (i64.const 3600000000000))
        (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 256)))";
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "poll_oneoff"
                (func $poll (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start"))
            (func (export "wizer-initialize") {sleep}))"#
    );
    let module = file("preinit-forever.wasm", wat::parse_str(text).unwrap());
    let said = refusal(&module);
    assert!(said.contains("it took longer than 60s"), "{said}");
}
