//! Sessions that move when another generation replaces theirs.

mod changes;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::admin::admin_of;
use crate::harness::{
    Client, Done, HUP, Host, NEW, Place, USR2, again, component_of, field, file, guest, refused, replace,
    scratch, until,
};

const MOVED: &str = "session moved";
const STAYS: &str = "session stays on its generation: the new guest refused it";

/// The generation and the outcome of the connection that has ended next.
fn ended(host: &Host) -> (String, String) {
    let line = host.line("connection ended");
    (field(&line, "generation"), field(&line, "outcome"))
}

fn words(generation: &str, outcome: &str) -> (String, String) {
    (generation.to_owned(), outcome.to_owned())
}

#[test]
fn an_idle_session_moves_with_what_it_remembers() {
    let place = Place::new("moves", "count");
    let host = place.serve(&["--watch", "--migrate", "-v", "--drain-generations", "1s"]);
    let client = host.connect();
    client.send("a\nb\n");
    client.expect("1 a\n2 b\n");
    place.put("tally");
    let line = host.line(MOVED);
    assert_eq!(
        (field(&line, "from"), field(&line, "generation")),
        ("1".into(), "2".into())
    );
    client.send("c\n");
    client.expect("3 (2) c\n");
    // The time of the first generation runs out, which does not concern it any more.
    host.line("its connections are closed");
    client.send("d\n");
    client.expect("4 (4) d\n");
    client.finish();
    assert_eq!(client.rest(), b"");
    assert_eq!(ended(&host), words("2", "finished"));
}

#[test]
fn sessions_move_when_the_file_names_another_component() {
    let dir = scratch("migrate-config");
    fs::create_dir_all(&dir).unwrap();
    let names = |component: &Path| {
        let text = format!(
            "log = {{ level = \"debug\" }}\n\
             [[service]]\nname = \"s\"\nlisten = [\"127.0.0.1:0\"]\nmigrate = true\ncomponent = \"{}\"\n",
            component.display()
        );
        replace(&dir.join("services.toml"), text);
    };
    names(&guest("count"));
    let host = Host::with_config(&dir.join("services.toml"), 1);
    let client = host.connect();
    client.send("a\nb\n");
    client.expect("1 a\n2 b\n");
    let next = dir.join("next.wasm");
    replace(&next, fs::read(guest("tally")).unwrap());
    names(&next);
    host.signal(HUP);
    let line = host.line(MOVED);
    assert_eq!(
        (field(&line, "from"), field(&line, "generation")),
        ("1".into(), "2".into())
    );
    client.send("c\n");
    client.expect("3 (2) c\n");
    // It moves on with the service that it has come to.
    replace(&next, again("tally", 1));
    host.signal(HUP);
    let line = host.line(MOVED);
    assert_eq!(field(&line, "generation"), "3");
    client.send("d\n");
    client.expect("4 (4) d\n");
    client.finish();
    assert_eq!(client.rest(), b"");
    assert_eq!(ended(&host), words("3", "finished"));
}

#[test]
fn the_conversation_of_a_session_that_moved_is_not_recorded() {
    let dir = scratch("migrate-record");
    fs::create_dir_all(&dir).unwrap();
    let component = dir.join("guest.wasm");
    replace(&component, fs::read(guest("count")).unwrap());
    let text = "log = { level = \"debug\" }\n\
                [[service]]\nname = \"s\"\nlisten = [\"127.0.0.1:0\"]\nmigrate = true\n\
                record = \"talks\"\ncomponent = \"guest.wasm\"\n";
    replace(&dir.join("services.toml"), text);
    let host = Host::with_config(&dir.join("services.toml"), 1);
    let moves = host.connect();
    moves.send("a\n");
    moves.expect("1 a\n");
    let stays = host.connect();
    stays.send("b\n");
    stays.expect("1 b\n");
    stays.finish();
    assert_eq!(stays.rest(), b"");
    ended(&host);
    replace(&component, fs::read(guest("tally")).unwrap());
    host.signal(HUP);
    host.line(MOVED);
    moves.finish();
    assert_eq!(moves.rest(), b"");
    host.line("conversation not recorded: the session moved to another generation");
    ended(&host);
    let talks: Vec<_> = fs::read_dir(dir.join("talks"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(talks.len(), 1, "{talks:?}");
    assert!(talks[0].contains("1 b"), "{talks:?}");
}

#[test]
fn a_component_that_cannot_move_sessions_is_named() {
    let place = Place::new("cannot-move", "lines-session");
    let host = place.serve(&["--migrate"]);
    assert!(
        host.log().contains("`--migrate` is set, but component "),
        "{}",
        host.log()
    );
    place.put("echo");
    host.signal(HUP);
    host.line("so its connections stay on their generation");
}

#[test]
fn without_being_asked_to_none_moves() {
    let place = Place::new("unasked", "count");
    let host = place.serve(&["--watch", "-v"]);
    let client = host.connect();
    client.send("a\n");
    client.expect("1 a\n");
    place.put("tally");
    host.line(NEW);
    client.send("b\n");
    client.expect("2 b\n");
    client.finish();
    assert_eq!(client.rest(), b"");
    assert_eq!(ended(&host), words("1", "finished"));
    assert!(!host.log().contains(MOVED));
}

#[test]
fn a_session_in_the_middle_of_a_message_moves_after_it() {
    let place = Place::new("busy", "count");
    let host = place.serve(&["--watch", "--migrate", "-v"]);
    let client = host.connect();
    client.send("a\nb");
    client.expect("1 a\n");
    place.put("tally");
    host.line("session stays on its generation: it is busy");
    client.send("\n");
    client.expect("2 b\n");
    host.line(MOVED);
    client.send("c\n");
    client.expect("3 (2) c\n");
}

#[test]
fn the_log_says_how_many_sessions_have_not_moved() {
    let place = Place::new("staying", "count");
    let host = place.serve(&["--watch", "--migrate"]);
    let clients: Vec<Client> = (0..3).map(|_| host.connect()).collect();
    for (index, client) in clients.iter().enumerate() {
        // Two are in the middle of a line.
        client.send(if index == 0 { "a\n" } else { "a\nb" });
        client.expect("1 a\n");
    }
    place.put("tally");
    let line = host.line("sessions stay on earlier generations");
    assert_eq!(
        (field(&line, "generation"), field(&line, "sessions")),
        ("2".into(), "2".into())
    );
    // They move nevertheless, when they are at the end of a line.
    for client in &clients[1..] {
        client.send("\n");
        client.expect("2 b\n");
        until("the session has moved", || {
            client.send("c\n");
            client.line().ends_with(" (2) c")
        });
    }
    assert_eq!(
        host.log().matches("sessions stay on").count(),
        1,
        "{}",
        host.log()
    );
}

#[test]
fn a_generation_that_is_rolled_back_to_continues_its_counts() {
    let place = Place::new("counts", "count");
    let host = place.serve(&["--migrate", "-v", "--admin", "0"]);
    let admin = admin_of(&host);
    let first = || {
        let all = admin.json("/generations");
        let first = &all["generations"][0];
        assert_eq!(
            (&first["generation"], &first["state"]),
            (&1.into(), &"current".into())
        );
        [&first["open"], &first["started"], &first["failed"]].map(|count| count.as_u64().unwrap())
    };
    let over = host.connect();
    over.send("a\n");
    over.expect("1 a\n");
    over.finish();
    over.rest();
    host.line("connection ended");
    let stays = host.connect();
    stays.send("a\n");
    stays.expect("1 a\n");
    assert_eq!(first(), [1, 2, 0]);
    place.put("lines-session");
    host.signal(HUP);
    host.line(NEW);
    host.line("a component does not support migration");
    host.signal(USR2);
    host.line("rolled back to");
    // The session is served by its generation, which is current again.
    let next = host.connect();
    next.send("a\n");
    next.expect("1 a\n");
    assert_eq!(first(), [2, 3, 0]);
    stays.send("b\n");
    stays.expect("2 b\n");
    stays.finish();
    stays.rest();
    host.line("connection ended");
    assert_eq!(first(), [1, 3, 0]);
}

#[test]
fn one_that_cannot_be_restored_stays_until_it_can() {
    let place = Place::new("stays", "tally");
    let host = place.serve(&["--watch", "--migrate", "-v"]);
    let client = host.connect();
    client.send("a\n");
    client.expect("1 (2) a\n");
    place.put("count");
    let line = host.line(STAYS);
    assert_eq!(field(&line, "reason"), "unknown-version");
    assert_eq!(
        (field(&line, "generation"), field(&line, "declined")),
        ("1".into(), "2".into())
    );
    client.send("b\n");
    client.expect("2 (4) b\n");
    // What does not move sessions, and a service by the other contract.
    for (other, answer) in [("lines-session", "3 (6) c\n"), ("echo", "4 (8) c\n")] {
        place.put(other);
        host.line("session stays on its generation: a component does not support migration");
        client.send("c\n");
        client.expect(answer);
    }
    place.replace(again("tally", 1));
    let line = host.line(MOVED);
    assert_eq!(
        (field(&line, "from"), field(&line, "generation")),
        ("1".into(), "5".into())
    );
    client.send("d\n");
    client.expect("5 (10) d\n");
    client.finish();
    assert_eq!(client.rest(), b"");
    assert_eq!(ended(&host), words("5", "finished"));
}

#[test]
fn going_back_takes_sessions_along_that_can_go() {
    let place = Place::new("back", "count");
    let host = place.serve(&["--migrate", "-v"]);
    let client = host.connect();
    client.send("a\n");
    client.expect("1 a\n");
    place.replace(again("count", 1));
    host.signal(HUP);
    host.line(MOVED);
    client.send("b\n");
    client.expect("2 b\n");
    host.signal(USR2);
    let line = host.line(MOVED);
    assert_eq!(
        (field(&line, "from"), field(&line, "generation")),
        ("2".into(), "1".into())
    );
    client.send("c\n");
    client.expect("3 c\n");
}

#[test]
fn a_timer_goes_on_running() {
    let place = Place::new("timer", "metronome");
    let host = place.serve(&["--migrate", "-v"]);
    let client = host.connect();
    client.expect("tick\ntock\n");
    for number in 0..5 {
        place.replace(again("metronome", number));
        host.signal(HUP);
        host.line(MOVED);
        client.expect("tick\ntock\n");
    }
}

#[test]
fn a_generation_in_which_nothing_can_be_restored_is_gone_back_from() {
    let place = Place::new("restore-trap", "count");
    let host = place.serve(&["--watch", "--migrate"]);
    let clients: Vec<Client> = (0..8).map(|_| host.connect()).collect();
    for client in &clients {
        client.send("a\n");
        client.expect("1 a\n");
    }
    place.put("stuck");
    host.line("session stays on its generation: the new guest failed");
    let line = host.line("rolled back to");
    assert!(
        line.contains("failed to restore 5 of the first 5 sessions"),
        "{line}"
    );
    for client in clients {
        client.send("b\n");
        client.expect("2 b\n");
        client.finish();
        assert_eq!(client.rest(), b"");
        assert_eq!(ended(&host), words("1", "finished"));
    }
}

#[test]
fn one_that_is_never_restored_does_not_keep_others_from_moving() {
    let place = Place::new("restore-spin", "count");
    // Which holds for calls, and not for those that others wait for.
    let host = place.serve(&["--watch", "--migrate", "--max-call-time", "off"]);
    let (slow, other) = (host.connect(), host.connect());
    slow.send("a\nb\n");
    slow.expect("1 a\n2 b\n");
    other.send("a\n");
    other.expect("1 a\n");
    place.put("stuck");
    let failures = [(); 2].map(|()| host.line("session stays on its generation: the new guest failed"));
    let late = failures
        .iter()
        .filter(|line| field(line, "reason") == "a call that moves the session took longer than 10s");
    assert_eq!(late.count(), 1, "{failures:?}");
    slow.send("c\n");
    slow.expect("3 c\n");
    other.send("c\n");
    other.expect("2 c\n");
}

#[test]
fn a_session_that_fails_at_its_snapshot_is_reset() {
    for (word, outcome) in [
        ("trap", "guest-trap"),
        ("huge", "guest-trap"),
        ("spin", "cpu-limit"),
    ] {
        let place = Place::new(&format!("snapshot-{word}"), "stuck");
        let host = place.serve(&["--watch", "--migrate", "-v", "--max-call-time", "200ms"]);
        let (bad, good) = (host.connect(), host.connect());
        bad.echo(word);
        good.echo("well");
        place.put("count");
        bad.expect_reset();
        // The one ends and the other moves, in either order.
        let mut lines = [(); 2].map(|()| host.line_of(&["connection ended", MOVED]));
        lines.sort_by_key(|line| line.contains(MOVED));
        assert_eq!(field(&lines[0], "outcome"), outcome);
        assert_eq!(field(&lines[1], "generation"), "2");
        good.send("a\n");
        good.expect("8 a\n");
    }
}

/// Many sessions that talk all the while, through many generations: none loses its count, and what has been moved from
/// is freed.
#[test]
fn no_session_loses_anything_under_load() {
    const SESSIONS: usize = 20;
    let place = Place::new("load", "tally");
    let sessions = SESSIONS.to_string();
    // Just as many as there are: those that move need no room of their own.
    let host = place.serve(&["--migrate", "-v", "--max-connections", &sessions]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let address = host.address();
        let (done, over) = (&done, Done(&done));
        let clients: Vec<_> = (0..SESSIONS)
            .map(|_| {
                scope.spawn(move || {
                    let client = Client::connect(address).unwrap();
                    let mut lines = 0;
                    while !done.load(Ordering::Relaxed) {
                        lines += 1;
                        client.send("hello\n");
                        client.expect(format!("{lines} ({}) hello\n", lines * 6));
                    }
                    client.finish();
                    assert_eq!(client.rest(), b"");
                })
            })
            .collect();
        let swaps = |count: u8| {
            for number in 0..count {
                place.replace(again("tally", number));
                host.signal(HUP);
                host.line(NEW);
                for _ in 0..SESSIONS {
                    if clients.iter().all(thread::ScopedJoinHandle::is_finished) {
                        break;
                    }
                    host.line(MOVED);
                }
            }
        };
        swaps(20);
        let mappings = host.mappings();
        swaps(40);
        let more = host.mappings().saturating_sub(mappings);
        drop(over);
        assert!(more < 20, "40 generations left {more} mappings behind");
    });
    until("every connection has ended", || {
        host.log().matches("outcome=\"finished\"").count() == SESSIONS
    });
}

#[test]
fn a_migration_of_other_resources_is_refused() {
    // The interface has a resource of its own in place of the sessions.
    let wit = scratch("migrate-other-resource");
    fs::create_dir_all(&wit).unwrap();
    for entry in fs::read_dir(guest_builder::workspace().join("wit")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace("use sessions.{session};", "resource session;");
        fs::write(wit.join(path.file_name().unwrap()), text).unwrap();
    }
    let component = file("migrate-other-resource.wasm", dummy(&wit));
    let refusal = refused(&[
        "--listen",
        "127.0.0.1:0",
        "--component",
        component.to_str().unwrap(),
    ]);
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    assert!(
        refusal
            .message
            .contains("`inet:service/migration@0.1.0` does not move the `session` of"),
        "{}",
        refusal.message
    );
    // A record has another type.
    let path = wit.join("migration.wit");
    let text = fs::read_to_string(guest_builder::workspace().join("wit/migration.wit")).unwrap();
    assert!(text.contains("version: u32"));
    fs::write(path, text.replace("version: u32", "version: s32")).unwrap();
    let component = file("migrate-other-type.wasm", dummy(&wit));
    let refusal = refused(&[
        "--listen",
        "127.0.0.1:0",
        "--component",
        component.to_str().unwrap(),
    ]);
    assert!(
        refusal
            .message
            .contains("function types differ from those in `wit/`"),
        "{}",
        refusal.message
    );
    // The same component by the contract is served.
    let component = file(
        "migrate-dummy.wasm",
        dummy(&guest_builder::workspace().join("wit")),
    );
    Host::with(&component, &[]);
}

/// Returns a component of the world `movable-session-service` in a directory, each of whose functions
/// traps.
fn dummy(wit: &Path) -> Vec<u8> {
    component_of(wit, "movable-session-service", |wit, world| {
        wit_component::dummy_module(wit, world, wit_parser::ManglingAndAbi::Standard32)
    })
}
