//! Rollbacks where settings change with the component, and where generations drain.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;

use crate::disks::{hang, with_pipe};
use crate::harness::{Client, HUP, Host, NEW, Place, USR2, again, command, field, guest, replace, scratch};

/// A services file with one service, in a directory of its own.
struct Service(std::path::PathBuf);

impl Service {
    fn new(name: &str, component: &str, more: &str) -> Self {
        let dir = scratch(&format!("rollback-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let service = Self(dir);
        service.put(component, more);
        service
    }

    /// Replaces the component, and the settings beside it.
    fn put(&self, component: &str, more: &str) {
        replace(&self.0.join("guest.wasm"), fs::read(guest(component)).unwrap());
        let text = format!(
            "[[service]]\nname = \"a\"\ncomponent = \"guest.wasm\"\nlisten = [\"127.0.0.1:0\"]\n{more}"
        );
        replace(&self.0.join("services.toml"), text);
    }

    fn serve(&self) -> Host {
        Host::with_config(&self.0.join("services.toml"), 1)
    }

    /// Serves, and returns the other end of the pipe that is the standard input of the host.
    fn serve_with_pipe(&self) -> (Host, io::PipeWriter) {
        with_pipe(command().arg("--config").arg(self.0.join("services.toml")))
    }
}

/// Has a host read this component from the pipe. A pipe holds less, so the host has begun to read
/// it when this returns. The host has read it when the pipe is dropped.
fn put_in(pipe: &mut io::PipeWriter, component: &str) {
    let bytes = fs::read(guest(component)).unwrap();
    assert!(bytes.len() > 64 << 10, "{component} is too small");
    pipe.write_all(&bytes).unwrap();
}

/// Has the guest `moody` fail a connection of `127.0.0.SOURCE`.
fn fail_from(source: u8, address: SocketAddr) {
    let client = Client::from([127, 0, 0, source], address);
    // The guest may have failed before it heard anything.
    let _ = (&client.0).write_all(b"trap\n");
    while matches!((&client.0).read(&mut [0; 16]), Ok(1..)) {}
}

/// Has a guest fail `count` connections of one client.
fn fail(address: SocketAddr, count: usize) {
    for _ in 0..count {
        fail_from(1, address);
    }
}

/// Has the host serve a connection of each of these clients, and waits until it has ended.
fn serve(host: &Host, sources: impl IntoIterator<Item = u8>) {
    for source in sources {
        let client = Client::from([127, 0, 0, source], host.address());
        client.echo("hello\n");
        client.finish();
        client.rest();
        host.line("connection ended");
    }
}

#[test]
fn a_component_that_comes_with_settings_is_watched_and_rolled_back() {
    let service = Service::new("settings", "echo", "");
    let host = service.serve();
    service.put("moody", "drain-generations = \"1h\"\n");
    host.signal(HUP);
    host.line("services reconfigured");
    fail(host.address(), 5);
    let line = host.line("rolled back to the previous generation");
    assert_eq!(
        (field(&line, "generation"), field(&line, "leaves")),
        ("1".into(), "2".into())
    );
    assert!(line.contains("failed 5 of its first 5 connections"), "{line}");
    host.connect().echo("hello");
    // The content that was left is not taken again.
    host.signal(HUP);
    host.line("was rolled back");
    host.connect().echo("hello");
}

#[test]
fn a_rollback_brings_back_no_rights_and_no_limits() {
    for (name, more) in [
        ("rights", "grants = { env = { NEW = \"1\" } }\n"),
        ("limits", "limits = { max-memory = \"32MiB\" }\n"),
    ] {
        let service = Service::new(name, "echo", "");
        let host = service.serve();
        service.put("moody", more);
        host.signal(HUP);
        host.line("services reconfigured");
        fail(host.address(), 10);
        let line = host.line("there is no generation to roll back to");
        assert_eq!(field(&line, "generation"), "2", "{name}");
        assert!(line.contains("failed 5 of its first 5 connections"), "{line}");
        // One line is enough, and a request is always answered.
        host.signal(USR2);
        host.line("there is no generation to roll back to");
        let log = host.log();
        assert_eq!(
            log.matches("no generation to roll back to").count(),
            2,
            "{name}: {log}"
        );
        assert!(!log.contains("rolled back to"), "{name}: {log}");
    }
}

#[test]
fn other_settings_leave_the_rollback_as_it_was() {
    let service = Service::new("kept", "echo", "");
    let host = service.serve();
    service.put("lines-session", "");
    host.signal(HUP);
    host.line(NEW);
    service.put("lines-session", "limits = { idle-timeout = \"1m\" }\n");
    host.signal(HUP);
    host.line("services reconfigured");
    host.signal(USR2);
    let line = host.line("rolled back to the previous generation");
    assert_eq!(
        (field(&line, "generation"), field(&line, "leaves")),
        ("1".into(), "3".into())
    );
    let client = host.connect();
    client.echo("quit\n");
}

#[test]
fn a_generation_that_is_rolled_back_to_keeps_its_connections() {
    let place = Place::new("rollback-drain", "echo");
    let host = place.serve(&["--watch", "--drain-generations", "3s"]);
    let first = host.connect();
    first.echo("hello");
    place.put("lines-session");
    host.line(NEW);
    let second = host.connect();
    second.echo("hello\n");
    host.signal(USR2);
    host.line("rolled back to the previous generation");
    // The generation that was left drains, after the first one would have.
    assert_eq!(second.rest(), b"");
    let line = host.line("reached `--drain-generations`");
    assert_eq!(field(&line, "generation"), "2");
    first.echo("still here");
    // A connection of either time drains when another component comes.
    let third = host.connect();
    third.echo("hello");
    place.put("upper");
    host.line(NEW);
    for client in [first, third] {
        assert_eq!(client.rest(), b"");
    }
    let line = host.line("reached `--drain-generations`");
    assert_eq!(field(&line, "generation"), "1");
    let log = host.log();
    assert_eq!(log.matches("reached `--drain-generations`").count(), 2, "{log}");
}

#[test]
fn one_client_cannot_have_a_generation_rolled_back_that_serves_others() {
    let place = Place::new("rollback-clients", "echo");
    let host = place.serve(&[]);
    serve(&host, 2..=4);
    place.put("moody");
    host.signal(HUP);
    host.line(NEW);
    for _ in 0..5 {
        fail_from(9, host.address());
        host.line("connection ended");
    }
    host.line("the guest fails, but for too few clients; no rollback");
    assert!(!host.log().contains("rolled back to"), "{}", host.log());
    for source in [2, 3] {
        fail_from(source, host.address());
    }
    host.line("rolled back to the previous generation");
    serve(&host, [2, 9]);
}

/// A program that writes without end, and traps when it cannot.
const WRITER: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 1024))
        (i32.store (i32.const 4) (i32.const 1024))
        (loop $again
            (br_if $again (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
        unreachable))"#;

#[test]
fn clients_that_reset_their_connections_cannot_have_a_generation_rolled_back() {
    let place = Place::new("rollback-resets", "echo");
    let host = place.serve(&[]);
    serve(&host, 2..=4);
    place.replace(wat::parse_str(WRITER).unwrap());
    host.signal(HUP);
    host.line(NEW);
    for source in 2..=9 {
        let client = Client::from([127, 0, 0, source], host.address());
        client.expect([0; 100]);
        client.reset();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "guest-trap", "{line}");
        // The fault of the guest alone would be a warning.
        assert!(line.contains(" INFO "), "{line}");
    }
    assert!(!host.log().contains("rolled back to"), "{}", host.log());
}

#[test]
fn a_bug_that_the_previous_generation_has_too_is_no_reason_to_roll_back() {
    let place = Place::new("rollback-same-bug", "moody");
    let host = place.serve(&[]);
    let crash = || {
        for _ in 0..5 {
            fail_from(9, host.address());
            assert_eq!(host.outcome(), "guest-trap");
        }
    };
    crash();
    place.replace(again("moody", 1));
    host.signal(HUP);
    host.line(NEW);
    crash();
    host.line("the previous generation failed the same clients; no rollback");
    assert!(!host.log().contains("rolled back to"), "{}", host.log());
}

#[test]
fn an_operator_can_insist_on_a_component_that_was_rolled_back() {
    let place = Place::new("rollback-insist", "echo");
    let host = place.serve(&[]);
    host.connect().echo("hello");
    place.put("moody");
    host.signal(HUP);
    host.line(NEW);
    fail(host.address(), 5);
    host.line("rolled back to the previous generation");
    host.signal(HUP);
    let line = host.line("was rolled back");
    assert!(line.contains("request the reload again"), "{line}");
    host.connect().echo("hello");
    host.signal(HUP);
    assert_eq!(field(&host.line(NEW), "generation"), "3");
    // It fails as it did, and stays.
    for _ in 0..5 {
        fail_from(1, host.address());
        assert_eq!(host.outcome(), "guest-trap");
    }
    assert_eq!(host.log().matches("rolled back to").count(), 1, "{}", host.log());
}

#[test]
fn an_operator_can_insist_by_the_services_file() {
    let service = Service::new("insist", "echo", "");
    let host = service.serve();
    service.put("moody", "");
    host.signal(HUP);
    host.line(NEW);
    fail(host.address(), 5);
    host.line("rolled back to the previous generation");
    service.put("moody", "drain-generations = \"1h\"\n");
    host.signal(HUP);
    let line = host.line("reconfiguration failed");
    assert!(line.contains("send SIGHUP again"), "{line}");
    host.connect().echo("hello");
    host.signal(HUP);
    host.line("services reconfigured");
    for _ in 0..5 {
        fail_from(1, host.address());
        assert_eq!(host.outcome(), "guest-trap");
    }
    assert_eq!(host.log().matches("rolled back to").count(), 1, "{}", host.log());
}

#[test]
fn a_rollback_gives_up_a_reload_whose_file_is_read() {
    let place = Place::new("rollback-overtakes", "echo");
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--component"]);
    let (host, mut pipe) = with_pipe(command.arg(place.file()));
    place.put("lines-session");
    host.signal(HUP);
    host.line(NEW);
    hang(&place.file());
    host.signal(HUP);
    put_in(&mut pipe, "upper");
    host.signal(USR2);
    host.line("rolled back to the previous generation");
    drop(pipe);
    let line = host.line("reload given up");
    assert_eq!(field(&line, "generation"), "1");
    host.connect().echo("hello");
    // A request after the rollback is carried out.
    place.put("upper");
    host.signal(HUP);
    assert_eq!(field(&host.line(NEW), "generation"), "3");
}

#[test]
fn a_rollback_gives_up_a_reload_whose_gate_takes_time() {
    let place = Place::new("rollback-overtakes-gate", "echo");
    let gate = place.0.join("gate");
    fs::create_dir_all(&gate).unwrap();
    // Without the end of its line, the new component answers nothing.
    fs::write(gate.join("hello.conversation"), "> \"hello\"\n< \"hello\"\n").unwrap();
    let host = place.serve(&["-v", "--gate", gate.to_str().unwrap(), "--gate-patience", "1h"]);
    place.put("lines-session");
    host.signal(HUP);
    host.line("loading ");
    host.signal(USR2);
    // The gate alone would end later, as `took longer`.
    host.line("reload given up");
    host.connect().echo("hello");
}

#[test]
fn a_rollback_gives_up_a_reconfiguration() {
    let service = Service::new("overtakes", "echo", "");
    let (host, mut pipe) = service.serve_with_pipe();
    service.put("lines-session", "");
    host.signal(HUP);
    host.line(NEW);
    service.put("upper", "drain-generations = \"1h\"\n");
    hang(&service.0.join("guest.wasm"));
    host.signal(HUP);
    put_in(&mut pipe, "upper");
    // This one waits for the first.
    host.signal(HUP);
    host.signal(USR2);
    host.line("reconfiguration given up");
    host.line("rolled back to the previous generation");
    drop(pipe);
    host.connect().echo("hello");
    // The next line about a change is of a request after the rollback.
    service.put("upper", "drain-generations = \"2h\"\n");
    host.signal(HUP);
    let line = host.line_of(&["service changed", "reconfiguration failed", NEW]);
    assert_eq!(field(&line, "generation"), "3", "{line}");
    host.line("services reconfigured");
}

#[test]
fn the_log_says_how_to_insist() {
    let place = Place::new("rollback-how", "echo");
    let host = place.serve(&["--watch"]);
    place.put("lines-session");
    host.line(NEW);
    host.signal(USR2);
    host.line("rolled back to the previous generation");
    // Nobody has requested this one.
    place.put("lines-session");
    host.line("request a reload twice within 10m");
    host.signal(HUP);
    host.line("request the reload again within 10m");
    host.signal(HUP);
    assert_eq!(field(&host.line(NEW), "generation"), "3");
}

#[test]
fn nobody_is_told_to_replace_the_file_of_the_embedded_guest() {
    let service = Service::new("embedded", "lines-session", "");
    let host = service.serve();
    let put = |more: &str| {
        let text = format!("[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n{more}");
        replace(&service.0.join("services.toml"), text);
        host.signal(HUP);
    };
    put("");
    host.line("services reconfigured");
    host.signal(USR2);
    host.line("rolled back to the previous generation");
    put("limits.idle-timeout = \"1h\"\n");
    let line = host.line("reconfiguration failed");
    assert!(line.contains("the embedded echo guest was rolled back"), "{line}");
    assert!(!line.contains("file has not changed"), "{line}");
    assert!(line.contains("send SIGHUP again"), "{line}");
}

#[test]
fn a_request_before_the_refusal_does_not_insist() {
    let service = Service::new("insist-early", "echo", "");
    let token = service.0.join("token");
    let put = |component: &str, more: &str| {
        service.put(component, more);
        let file = service.0.join("services.toml");
        let services = fs::read_to_string(&file).unwrap();
        let admin = "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"token\"\n";
        replace(&file, format!("{admin}{services}"));
    };
    put("echo", "");
    let (host, mut pipe) = service.serve_with_pipe();
    put("moody", "");
    host.signal(HUP);
    host.line(NEW);
    fail(host.address(), 5);
    host.line("rolled back to the previous generation");
    put("moody", "drain-generations = \"1h\"\n");
    let component = service.0.join("guest.wasm");
    hang(&component);
    host.signal(HUP);
    put_in(&mut pipe, "moody");
    replace(&component, fs::read(guest("moody")).unwrap());
    // This line shows that the host has received the second signal before it refuses the first.
    fs::write(&token, "another-token-of-the-test\n").unwrap();
    host.signal(HUP);
    host.line("admin token has changed");
    drop(pipe);
    host.line("reconfiguration failed");
    host.line("reconfiguration failed");
    host.connect().echo("hello");
    host.signal(HUP);
    host.line("services reconfigured");
}
