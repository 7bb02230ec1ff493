//! Sessions whose service changes, and sessions that move to a guest that fails.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::http::At;
use crate::harness::{Client, HUP, Host, Place, USR2, field, file, guest, guest_of, scratch};

const MOVED: &str = "session moved";

/// Functions of a guest of the sessions contract whose sessions move, as text.
struct Movable {
    /// What the constructor does first.
    opens: &'static str,
    /// Length of the answer to the bytes `LONG`, and to others.
    answers: [usize; 2],
    /// What `snapshot` does first.
    snapshots: &'static str,
}

impl Movable {
    /// Writes the component to a file.
    fn write(&self, name: &str) -> PathBuf {
        let Self {
            opens,
            answers: [long, short],
            snapshots,
        } = self;
        let text = format!(
            r#"(module
            (import "[export]inet:service/sessions@0.1.0" "[resource-new]session"
                (func $new (param i32) (result i32)))
            (memory (export "memory") 200)
            (global $spins (mut i32) (i32.const 0))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            (func (export "inet:service/sessions@0.1.0#[constructor]session") (param i32) (result i32)
                {opens}
                (call $new (i32.const 7)))
            ;; The answer stands at 16. The bytes of an event are at the third parameter.
            (func (export "inet:service/sessions@0.1.0#[method]session.handle")
                (param i32 i32 i32 i32) (result i32)
                (i32.store (i32.const 16) (i32.const 8192))
                (i32.store (i32.const 20) (i32.const 0))
                (i32.store8 (i32.const 24) (i32.const 0))
                (if (i32.eq (local.get 1) (i32.const 1)) (then
                    (i32.store (i32.const 20) (select (i32.const {long}) (i32.const {short})
                        (i32.eq (i32.load8_u (local.get 2)) (i32.const 76))))))
                (i32.const 16))
            ;; A state of no bytes, at 64.
            (func (export "inet:service/migration@0.1.0#snapshot") (param i32) (result i32)
                {snapshots}
                (i32.store8 (i32.const 64) (i32.const 1))
                (i32.store (i32.const 68) (i32.const 1))
                (i64.store (i32.const 72) (i64.const 0))
                (i32.const 64))
            (func (export "inet:service/migration@0.1.0#restore") (param i32) (result i32)
                (i32.store8 (i32.const 96) (i32.const 0))
                (i32.store (i32.const 100) (call $new (i32.const 7)))
                (i32.const 96)))"#
        );
        let component = guest_of(wat::parse_str(text).unwrap(), "movable-session-service");
        file(&format!("migrate-{name}.wasm"), component)
    }
}

const PLAIN: Movable = Movable {
    opens: "",
    answers: [2, 2],
    snapshots: "",
};

/// Connects clients, each of which has said something and received the answer.
fn talking(host: &Host, count: usize, says: &str, answer: impl AsRef<[u8]>) -> Vec<Client> {
    let clients: Vec<Client> = (0..count).map(|_| host.connect()).collect();
    for client in &clients {
        client.send(says);
        client.expect(&answer);
    }
    clients
}

#[test]
fn sessions_that_move_do_not_make_up_for_connections_that_fail() {
    let traps = Movable {
        opens: "unreachable",
        ..PLAIN
    };
    let place = Place::new("migrate-traps", "echo");
    place.replace(fs::read(PLAIN.write("idle")).unwrap());
    let host = place.serve(&["--watch", "--migrate", "-v"]);
    let clients = talking(&host, 20, "a", [0; 2]);
    place.replace(fs::read(traps.write("traps")).unwrap());
    for _ in &clients {
        host.line(MOVED);
    }
    for _ in 0..5 {
        host.connect().expect_reset();
    }
    let line = host.line("rolled back to the previous generation");
    assert_eq!(
        field(&line, "reason"),
        "the guest failed 5 of its first 5 connections",
        "{line}"
    );
}

#[test]
fn a_session_that_waits_for_its_peer_holds_up_no_other() {
    // The snapshots take long enough for a session to become busy while it waits for its turn.
    let first = Movable {
        answers: [10 << 20, 2],
        snapshots: "(global.set $spins (i32.const 30000000))
            (loop $spin
                (global.set $spins (i32.sub (global.get $spins) (i32.const 1)))
                (br_if $spin (global.get $spins)))",
        ..PLAIN
    };
    let place = Place::new("migrate-blocked", "echo");
    place.replace(fs::read(first.write("slow")).unwrap());
    let host = place.serve(&["--watch", "--migrate", "-v"]);
    let clients = talking(&host, 8, "a", [0; 2]);
    place.replace(fs::read(PLAIN.write("quick")).unwrap());
    host.line(MOVED);
    // It gets an answer that it does not read.
    clients[3].send("L");
    for _ in 2..clients.len() {
        host.line(MOVED);
    }
}

/// A services file for one service, in a directory of its own with its component.
struct Service {
    dir: PathBuf,
}

impl Service {
    fn new(name: &str, component: &Path, settings: &str) -> Self {
        let dir = scratch(&format!("migrate-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let service = Self { dir };
        service.put(component);
        service.set(settings);
        service
    }

    fn put(&self, component: &Path) {
        let new = self.dir.join("new");
        fs::copy(component, &new).unwrap();
        fs::rename(new, self.dir.join("guest.wasm")).unwrap();
    }

    fn set(&self, settings: &str) {
        let text = format!(
            "[log]\nlevel = \"debug\"\n[[service]]\nname = \"s\"\nlisten = [\"127.0.0.1:0\"]\n\
             component = \"guest.wasm\"\n{settings}\n"
        );
        fs::write(self.dir.join("services.toml"), text).unwrap();
    }

    fn start(&self) -> Host {
        Host::with_config(&self.dir.join("services.toml"), 1)
    }
}

const CHANGED: &str = "services reconfigured";

#[test]
fn a_drain_closes_sessions_that_moved_to_a_changed_service() {
    let service = Service::new("drain", &guest("count"), "migrate = true");
    let host = service.start();
    let client = host.connect();
    client.send("a\n");
    client.expect("1 a\n");
    service.set("migrate = true\ndrain-generations = \"100ms\"");
    host.signal(HUP);
    host.line(MOVED);
    // Sessions do not move to it.
    service.put(&guest("lines-session"));
    host.signal(HUP);
    host.line("component reloaded");
    assert_eq!(host.outcome(), "drained");
}

#[test]
fn no_more_sessions_move_to_a_service_than_its_connections() {
    let service = Service::new(
        "room",
        &guest("count"),
        "migrate = true\nlimits = { max-connections = 20 }",
    );
    let host = service.start();
    let clients = talking(&host, 12, "a\n", "1 a\n");
    service.set("migrate = true\nlimits = { max-connections = 3 }");
    host.signal(HUP);
    for _ in 0..9 {
        host.line("session stays on its generation: the service has as many connections as `limits.max-connections` allows");
    }
    for client in &clients {
        client.send("b\n");
        client.expect("2 b\n");
    }
    assert_eq!(host.log().matches(MOVED).count(), 3, "{}", host.log());
    // There is room to try another component.
    service.put(&guest("tally"));
    host.signal(HUP);
    host.line("component reloaded");
}

#[test]
fn a_change_does_not_bring_back_what_was_rolled_back() {
    let service = Service::new("left", &guest("lines"), "");
    let host = service.start();
    service.put(&guest("upper"));
    host.signal(HUP);
    host.line("component reloaded");
    host.signal(USR2);
    host.line("rolled back to the previous generation");
    service.set("limits = { idle-timeout = \"2m\" }");
    host.signal(HUP);
    let line = host.line("the component was rolled back");
    assert!(line.contains("services.toml:6: service[0].component"), "{line}");
    let client = host.connect();
    client.send("a\n");
    client.expect("a\n");
    service.put(&guest("lines-session"));
    host.signal(HUP);
    host.line(CHANGED);
    host.connect().echo("a\n");
}

#[test]
fn a_service_that_was_replaced_does_not_roll_back() {
    let service = Service::new("replaced", &guest("echo"), "");
    let host = service.start();
    service.put(&guest("trap"));
    host.signal(HUP);
    host.line("component reloaded");
    let clients = talking(&host, 5, "a", "a");
    service.set("limits = { idle-timeout = \"2m\" }");
    host.signal(HUP);
    host.line(CHANGED);
    for client in &clients {
        client.send("!");
        client.expect_reset();
        assert_eq!(host.outcome(), "guest-trap");
    }
    assert!(!host.log().contains("rolled back"), "{}", host.log());
}

#[test]
fn a_rollback_stands_against_a_change_that_is_being_prepared() {
    let service = Service::new("meanwhile", &guest("lines"), "gate = \"gate\"");
    let gate = service.dir.join("gate");
    fs::create_dir_all(&gate).unwrap();
    fs::write(gate.join("1.conversation"), "> pause 1s\ncut\n").unwrap();
    let host = service.start();
    service.put(&guest("upper"));
    host.signal(HUP);
    host.line("component reloaded");
    // The gate holds the change up.
    service.set("gate = \"gate\"\nlimits = { idle-timeout = \"2m\" }");
    host.signal(HUP);
    host.signal(USR2);
    let line = host.line("reconfiguration given up");
    assert!(line.contains("SIGUSR2 requested a rollback meanwhile"), "{line}");
    host.line("rolled back to the previous generation");
    let client = host.connect();
    client.send("a\n");
    client.expect("a\n");
}

#[test]
fn a_reload_that_is_requested_while_a_change_is_prepared_is_not_lost() {
    let service = Service::new("asked", &guest("lines"), "");
    let gate = service.dir.join("gate");
    fs::create_dir_all(&gate).unwrap();
    fs::write(gate.join("1.conversation"), "> \"a\\n\"\ncut\n").unwrap();
    fs::write(gate.join("2.conversation"), "> pause 1s\ncut\n").unwrap();
    let admin = "[admin]\nlisten = \"unix:admin\"\ntoken = \"token\"\n";
    service.set(&format!("gate = \"gate\"\n{admin}"));
    let host = service.start();
    service.set(&format!(
        "gate = \"gate\"\nlimits = {{ idle-timeout = \"2m\" }}\n{admin}"
    ));
    host.signal(HUP);
    // The component was read by the time that the gate is tried.
    host.line("conversation replayed");
    service.put(&guest("upper"));
    let token = fs::read_to_string(service.dir.join("token")).unwrap();
    let answer = At::Unix(service.dir.join("admin"))
        .request("POST", "/services/s/reload")
        .bearing(token.trim())
        .answer();
    assert_eq!(answer.status, 202, "{}", answer.body);
    host.line(CHANGED);
    host.line("component reloaded");
    let client = host.connect();
    client.send("a\n");
    client.expect("A\n");
}

#[test]
fn rules_of_access_hold_for_a_client_that_is_arriving_when_the_service_changes() {
    let proxy =
        "[[service.listen]]\naddress = \"127.0.0.1:0\"\nproxy-protocol = { from = [\"127.0.0.1\"] }\n";
    let service = Service::new("arriving", &guest("echo"), "");
    let set = |settings: &str| {
        let file = service.dir.join("services.toml");
        let text = format!("[log]\nlevel = \"debug\"\n[[service]]\nname = \"s\"\n{settings}{proxy}");
        fs::write(file, text).unwrap();
    };
    set("");
    let host = service.start();
    let client = host.connect();
    client.send("PROXY TCP4 192.0.2.1 ");
    set("access = { deny = [\"192.0.2.0/24\"] }\nlimits = { idle-timeout = \"2m\" }\n");
    host.signal(HUP);
    host.line(CHANGED);
    client.send("192.0.2.2 1 2\r\nhello");
    client.expect_reset();
    assert_eq!(field(&host.line("connection refused"), "reason"), "access");
}
