//! What connections that share an instance have in common, and what each still has to itself.

use std::fs;
use std::io::{self, Read, Write as _};
use std::net::Shutdown;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crate::harness::{
    Client, Done, HUP, Host, NEW, Place, TERM, USR2, again, command, field, file, guest, guest_of, refused,
    replace, scratch, until,
};

/// A host that serves with `guest` in instances that connections share.
fn sharing(guest: &str, args: &[&str]) -> Host {
    Host::serving(guest, &[&["--isolation", "service"], args].concat())
}

/// Comes into the chat room that `host` has for new connections, and finds `others` there.
fn enter(host: &Host, name: &str, others: &str) -> Client {
    let client = host.connect();
    client.expect("Your name?\n");
    client.send(format!("{name}\n"));
    client.expect(format!("* here: {others}\n"));
    client
}

/// What a guest gives for an order.
fn answer(client: &Client, order: &str) -> String {
    client.send(format!("{order}\n"));
    client.line()
}

#[test]
fn connections_meet() {
    let host = sharing("chat", &[]);
    let ann = enter(&host, "ann", "nobody else");
    let bob = enter(&host, "bob", "ann");
    let cy = host.connect();
    cy.expect("Your name?\n");
    cy.send("bob\ncy\n");
    cy.expect("Somebody has that name. Your name?\n* here: ann, bob\n");
    ann.expect("* bob has come\n* cy has come\n");
    bob.expect("* cy has come\n");
    bob.send("good \x1b[1mmorning\r\n");
    for other in [&ann, &cy] {
        other.expect("bob: good [1mmorning\n");
    }
    // Who has nothing more to say hears what was said before, and leaves.
    bob.finish();
    assert_eq!(bob.rest(), b"");
    cy.reset();
    ann.expect("* bob has gone\n* cy has gone\n");
    let bob = enter(&host, "bob", "ann");
    ann.expect("* bob has come\n");
    bob.send("a line that is too long\n".repeat(2) + &"x".repeat(1025));
    bob.expect_reset();
    ann.expect("bob: a line that is too long\nbob: a line that is too long\n* bob has gone\n");
}

#[test]
fn one_that_does_not_read_holds_up_nobody() {
    let host = sharing("chat", &[]);
    let slow = enter(&host, "slow", "nobody else");
    let fast = enter(&host, "fast", "slow");
    let talker = enter(&host, "talker", "fast, slow");
    fast.expect("* talker has come\n");
    let lines = format!("{}\n", "x".repeat(1000)).repeat(100);
    let heard = format!("talker: {}\n", "x".repeat(1000)).repeat(100);
    // Far more than all buffers between hold.
    for _ in 0..200 {
        talker.send(&lines);
        fast.expect(&heard);
    }
    while !slow.line().starts_with("* you have missed ") {}
}

#[test]
fn every_guest_by_streams_can_be_shared() {
    for guest in ["echo", "arbiter", "copy"] {
        let host = sharing(guest, &[]);
        let clients: Vec<_> = (0..3).map(|_| host.connect()).collect();
        for client in &clients {
            client.echo("hello\n");
        }
        for client in clients {
            client.echo(crate::harness::noise(3, 1 << 18));
            client.finish();
            assert_eq!(client.rest(), b"", "{guest}");
            assert_eq!(host.outcome(), "finished", "{guest}");
        }
    }
}

#[test]
fn a_trap_ends_the_connections_of_its_instance_and_no_other() {
    let host = sharing("moody", &["--instances", "2", "-v"]);
    let clients: Vec<_> = (0..6)
        .map(|number| {
            let client = host.connect();
            // The one with fewer connections gets the next.
            assert_eq!(answer(&client, "count"), (number / 2 + 1).to_string());
            client
        })
        .collect();
    clients[2].send("trap\n");
    for number in [0, 2, 4] {
        clients[number].expect_reset();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "guest-trap");
        assert!(line.contains("unreachable"), "{line}");
    }
    for number in [1, 3, 5] {
        clients[number].echo("still here\n");
    }
    assert_eq!(answer(&host.connect(), "count"), "1");
    host.line("shared instance started");
    let log = host.log();
    assert_eq!(log.matches("shared instance started").count(), 3, "{log}");
    assert_eq!(log.matches("shared instance failed").count(), 1, "{log}");
}

#[test]
fn the_failure_of_an_instance_is_logged_with_what_it_wrote() {
    let host = sharing("moody", &["--env", "RUST_BACKTRACE=1"]);
    let client = host.connect();
    client.echo("say\n");
    client.send("trap\n");
    client.expect_reset();
    let line = host.line("shared instance failed");
    assert!(line.contains(" WARN "), "{line}");
    assert_eq!(field(&line, "service"), "moody");
    assert_eq!(field(&line, "stderr"), "as it was told");
    assert_eq!(field(&host.line("the guest failed"), "service"), "moody");
}

#[test]
fn the_last_line_of_a_failed_instance_needs_no_line_break() {
    let host = sharing("moody", &[]);
    let client = host.connect();
    client.echo("say\n");
    client.echo("mutter\n");
    client.send("trap\n");
    client.expect_reset();
    let line = host.line("shared instance failed");
    assert_eq!(field(&line, "stderr"), "as it was told\\nwithout an end");
    // It is logged once as well.
    assert_eq!(host.log().matches("stderr=\"without an end\"").count(), 1);
}

#[test]
fn a_failure_in_a_gate_is_not_one_of_a_connection() {
    let gate = scratch("gate-of-shared");
    let talk = |end| format!("> \"say\\n\"\n< \"say\\n\"\n> \"trap\\n\"\n< {end}\n");
    fs::create_dir_all(&gate).unwrap();
    fs::write(gate.join("1.conversation"), talk("trap")).unwrap();
    let place = Place::new("shared-gate", "moody");
    let host = place.serve(&["--isolation", "service", "--gate", gate.to_str().unwrap()]);
    place.replace(again("moody", 1));
    host.signal(HUP);
    host.line(NEW);
    let log = host.log();
    for text in ["shared instance failed", "guest output"] {
        assert!(!log.contains(text), "{log}");
    }
    // What the guest wrote is part of a difference.
    fs::write(gate.join("1.conversation"), talk("cpu-limit")).unwrap();
    place.replace(again("moody", 2));
    host.signal(HUP);
    let line = host.line("keeps serving");
    assert!(line.contains("standard error: as it was told"), "{line}");
}

#[test]
fn one_that_keeps_others_waiting_ends_with_its_instance_and_those_to_come_are_served() {
    for (order, says) in [("spin", "spins"), ("sleep", "sleeps")] {
        let host = sharing("moody", &["--threads", "1", "--max-call-time", "300ms"]);
        let (client, neighbour) = (host.connect(), host.connect());
        client.echo("hello\n");
        neighbour.echo("hello\n");
        client.send(format!("{order}\n"));
        let line = host.line("guest output");
        assert_eq!(
            (field(&line, "stderr"), field(&line, "instance")),
            (says.into(), "1".into())
        );
        // It has not been taken, so it is not lost.
        let next = host.connect();
        assert_eq!(answer(&next, "count"), "1");
        for lost in [client, neighbour] {
            lost.expect_reset();
            let line = host.line("connection ended");
            assert_eq!(field(&line, "outcome"), "cpu-limit");
            assert!(line.contains("`--max-call-time`"), "{line}");
        }
        next.echo("still here\n");
    }
}

#[test]
fn instances_are_numbered_on_after_a_change_of_settings() {
    let service = |more: &str| {
        format!(
            "[[service]]\nname = \"a\"\nisolation = \"service\"\ncomponent = {:?}\n\
             listen = [\"127.0.0.1:0\"]\nlimits = {{ max-call-time = \"1m\"{more} }}\n",
            guest("moody")
        )
    };
    let config = file("shared-numbers.toml", service(""));
    let host = Host::with_config(&config, 1);
    let number = || {
        let client = host.connect();
        client.send("sleep\n");
        let line = host.line("guest output");
        (client, field(&line, "instance"))
    };
    let (_first, instance) = number();
    assert_eq!(instance, "1");
    replace(&config, service(", idle-timeout = \"1h\""));
    host.signal(HUP);
    host.line("services reconfigured");
    let (_second, instance) = number();
    assert_eq!(instance, "2");
}

#[test]
fn one_that_is_always_busy_lets_others_have_their_turn() {
    let host = sharing("copy", &["--threads", "1", "--max-call-time", "300ms"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        for _ in 0..4 {
            let busy = host.connect();
            let reader = busy.0.try_clone().unwrap();
            scope.spawn(move || io::copy(&mut &reader, &mut io::sink()));
            let done = &done;
            scope.spawn(move || {
                let bytes = vec![0; 1 << 18];
                while !done.load(Relaxed) {
                    busy.send(&bytes);
                }
                busy.finish();
            });
        }
        let neighbour = host.connect();
        for _ in 0..300 {
            neighbour.echo("still served");
        }
        neighbour.finish();
        assert_eq!(neighbour.rest(), b"");
    });
    for _ in 0..5 {
        assert_eq!(host.outcome(), "finished");
    }
}

#[test]
fn what_goes_on_without_connections_is_bounded_too() {
    let host = sharing("moody", &["--max-call-time", "300ms"]);
    let client = host.connect();
    client.echo("haunt\n");
    client.reset();
    host.line("shared instance failed");
    assert_eq!(answer(&host.connect(), "count"), "1");
}

#[test]
fn a_limit_ends_one_connection_and_leaves_the_rest() {
    for (limit, value, outcome) in [
        ("--idle-timeout", "300ms", "idle-timeout"),
        ("--max-lifetime", "300ms", "lifetime"),
        ("--max-bytes-in", "100", "byte-limit"),
        ("--max-bytes-out", "100", "byte-limit"),
    ] {
        let host = sharing("moody", &[limit, value]);
        let client = host.connect();
        client.echo("hello\n");
        if outcome == "byte-limit" {
            client.send(format!("{}\n", "x".repeat(100)));
            client.expect_reset();
        } else {
            assert_eq!(client.rest(), b"", "{limit}");
        }
        drop(client);
        assert_eq!(host.outcome(), outcome);
        // The guest hears of it: of the limit on what it writes by its write.
        if limit != "--max-bytes-out" {
            until("the guest says so", || {
                host.log().contains("ended: ErrorCode::ConnectionAborted")
            });
        }
        let next = host.connect();
        assert_eq!(answer(&next, "count"), "2", "{limit}");
        until("the guest is done with the first", || {
            answer(&host.connect(), "open") == "2"
        });
    }
}

#[test]
fn a_peer_that_does_not_read_is_reset_and_no_other() {
    let host = sharing("moody", &["--write-timeout", "500ms"]);
    let (deaf, neighbour) = (host.connect(), host.connect());
    neighbour.echo("hello\n");
    let line = format!("{}\n", "x".repeat(60_000));
    let writer = deaf.0.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        // It fails when the connection is reset.
        while std::io::Write::write_all(&mut &writer, line.as_bytes()).is_ok() {}
    });
    assert_eq!(host.outcome(), "write-timeout");
    writing.join().unwrap();
    neighbour.echo("still here\n");
}

#[test]
fn a_guest_resets_one_connection() {
    let host = sharing("moody", &[]);
    let (client, neighbour) = (host.connect(), host.connect());
    neighbour.echo("hello\n");
    client.send("reset\n");
    client.expect_reset();
    let line = host.line("connection ended");
    assert_eq!(field(&line, "outcome"), "guest-reset");
    assert_eq!(field(&line, "reason"), "refused");
    assert_eq!(answer(&neighbour, "count"), "2");
}

#[test]
fn memory_is_that_of_all() {
    let host = sharing("moody", &["--max-memory", "8MiB"]);
    let (one, other) = (host.connect(), host.connect());
    assert_eq!(answer(&one, "take 5000"), "taken");
    assert_eq!(answer(&other, "take 5000"), "refused");
    assert_eq!(answer(&one, "count"), "2");
}

#[test]
fn a_drain_ends_them() {
    let mut host = sharing("chat", &["--drain-timeout", "3s"]);
    let ann = enter(&host, "ann", "nobody else");
    let bob = enter(&host, "bob", "ann");
    ann.expect("* bob has come\n");
    host.signal(TERM);
    host.line("draining");
    bob.send("until it is over\n/quit\n");
    ann.expect("bob: until it is over\n* bob has gone\n");
    assert_eq!(bob.rest(), b"");
    drop(bob);
    assert_eq!(host.outcome(), "finished");
    assert_eq!(host.outcome(), "drained");
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn members_at_rest_are_all_ended_with_fin() {
    let mut host = sharing("chat", &["--drain-timeout", "2s"]);
    let mut members: Vec<Client> = Vec::new();
    for name in ["ann", "bob", "cy", "dan", "eve", "fay"] {
        let member = host.connect();
        member.expect("Your name?\n");
        member.send(format!("{name}\n"));
        assert!(member.line().starts_with("* here: "));
        for other in &members {
            other.expect(format!("* {name} has come\n"));
        }
        members.push(member);
    }
    host.signal(TERM);
    // When one is ended, the guest tells the others, which is no reason to reset them.
    for member in &members {
        member.rest();
    }
    drop(members);
    assert_eq!(host.wait().code(), Some(0));
    let log = host.log();
    assert_eq!(log.matches("outcome=\"drained\"").count(), 6, "{log}");
}

#[test]
fn a_room_of_the_generation_before_goes_on_and_another_opens() {
    let place = Place::new("shared-swap", "chat");
    let host = place.serve(&["--isolation", "service", "-v"]);
    let ann = enter(&host, "ann", "nobody else");
    place.replace(again("chat", 1));
    // Before that, one more is in the first room.
    let bob = enter(&host, "bob", "ann");
    host.signal(HUP);
    host.line(NEW);
    let cy = enter(&host, "cy", "nobody else");
    ann.expect("* bob has come\n");
    ann.send("are we alone?\n");
    bob.expect("ann: are we alone?\n");
    drop((ann, bob));
    host.line("shared instance ended");
    drop(cy);
    // This one goes on without anybody.
    enter(&host, "dan", "nobody else");
    let log = host.log();
    assert_eq!(log.matches("shared instance ended").count(), 1, "{log}");
    assert_eq!(log.matches("shared instance started").count(), 2, "{log}");
}

#[test]
fn a_room_takes_new_members_again_after_a_rollback() {
    let place = Place::new("shared-rollback", "chat");
    let host = place.serve(&["--isolation", "service", "-v"]);
    let ann = enter(&host, "ann", "nobody else");
    place.replace(again("chat", 1));
    host.signal(HUP);
    host.line(NEW);
    let cy = enter(&host, "cy", "nobody else");
    host.signal(USR2);
    host.line("rolled back to");
    let bob = enter(&host, "bob", "ann");
    ann.expect("* bob has come\n");
    cy.send("is anybody here?\n");
    drop(cy);
    host.line("shared instance ended");
    drop((ann, bob));
    for _ in 0..2 {
        host.line("connection ended");
    }
    // The instance of the restored generation goes on without anybody.
    enter(&host, "dan", "nobody else");
    let log = host.log();
    assert_eq!(log.matches("shared instance ended").count(), 1, "{log}");
    assert_eq!(log.matches("shared instance started").count(), 2, "{log}");
}

#[test]
fn a_failure_counts_once_against_its_generation() {
    let place = Place::new("shared-faults", "moody");
    let host = place.serve(&["--isolation", "service"]);
    host.connect().echo("hello\n");
    place.replace(again("moody", 1));
    host.signal(HUP);
    host.line(NEW);
    for round in 1..=5 {
        let clients: Vec<_> = (0..3).map(|_| host.connect()).collect();
        for client in &clients {
            client.echo("hello\n");
        }
        let log = host.log();
        assert!(!log.contains("rolled back"), "in round {round}: {log}");
        clients[0].send("trap\n");
        for client in clients {
            client.expect_reset();
        }
    }
    host.line("rolled back to the previous generation");
}

#[test]
fn what_fails_at_its_start_is_not_started_at_the_rate_at_which_connections_come() {
    let host = sharing("moody", &["--env", "MOOD=trap", "-v"]);
    for _ in 0..5 {
        host.refuses();
    }
    host.line("breaker open: instances fail at start; connections are refused");
    host.refuses();
    let log = host.log();
    assert!(log.matches("shared instance started").count() <= 6, "{log}");
}

#[test]
fn hundreds_are_in_one_instance() {
    let host = sharing("moody", &[]);
    let clients: Vec<_> = (0..500).map(|_| host.connect()).collect();
    for client in &clients {
        client.echo("hello\n");
    }
    assert_eq!(answer(&clients[0], "open"), "500");
    for client in clients.iter().rev() {
        client.echo("still here\n");
    }
}

#[test]
fn connections_one_after_another_leave_nothing_in_their_instance() {
    // The fewer there may be, the fewer handles the guest may hold.
    let host = sharing("moody", &["--max-connections", "10", "-qq"]);
    let rounds = |count| {
        for round in 0..count {
            let client = host.connect();
            client.echo("hello\n");
            match round % 3 {
                0 => client.reset(),
                1 => drop(client),
                _ => {
                    client.finish();
                    assert_eq!(client.rest(), b"");
                }
            }
        }
    };
    rounds(500);
    let (memory, descriptors) = (host.memory("VmRSS"), host.entries("fd"));
    rounds(2000);
    let last = host.connect();
    assert_eq!(answer(&last, "count"), "2501");
    until("all others are gone", || answer(&last, "open") == "1");
    assert!(host.entries("fd") <= descriptors + 2);
    let grown = host.memory("VmRSS").saturating_sub(memory);
    assert!(grown < 2048, "{grown} KiB more for nothing");
}

#[test]
fn connections_that_end_before_the_guest_takes_them_leave_nothing() {
    // The guest raises its back-pressure for each connection.
    let limits = ["--first-byte-timeout", "200ms", "--max-connections", "500"];
    let host = sharing("moody", &[&limits[..], &["--env", "MOOD=close", "-qq"]].concat());
    let first = host.connect();
    first.echo("hello\n");
    let rounds = |count| {
        for _ in 0..count {
            let clients: Vec<_> = (0..499).map(|_| host.connect()).collect();
            first.echo("reopen\n");
            for client in clients {
                let _ = (&client.0).read_to_end(&mut Vec::new());
            }
        }
    };
    rounds(2);
    let memory = host.memory("VmRSS");
    rounds(4);
    let grown = host.memory("VmRSS").saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB more for nothing");
    first.echo("reopen\n");
    let next = host.connect();
    assert_eq!(answer(&next, "count"), "8");
    assert_eq!(answer(&next, "open"), "2");
}

#[test]
fn connections_wait_until_the_guest_lowers_its_back_pressure() {
    let host = sharing("moody", &[]);
    let (first, other) = (host.connect(), host.connect());
    for client in [&first, &other] {
        client.echo("hello\n");
    }
    first.echo("close\n");
    other.echo("still here\n");
    let second = host.connect();
    second.send("count\n");
    assert!(second.hears_nothing());
    first.echo("reopen\n");
    assert_eq!(second.line(), "3");
}

#[test]
fn an_instance_whose_guest_does_not_return_from_its_calls_is_ended() {
    // Each call waits for a set of waitables that stays empty.
    let module = r#"(module
        (import "$root" "[waitable-set-new]" (func $set (result i32)))
        (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
        (func (export "[async-lift]inet:service/handler@0.1.0#handle") (param i32) (result i32)
            (i32.or (i32.shl (call $set) (i32.const 4)) (i32.const 2)))
        (func (export "[callback][async-lift]inet:service/handler@0.1.0#handle")
            (param i32 i32 i32) (result i32)
            unreachable))"#;
    let component = guest_of(wat::parse_str(module).unwrap(), "service");
    let component = file("never-returns.wasm", component);
    let times = ["--first-byte-timeout", "20ms", "--max-call-time", "100ms"];
    let shares = ["--max-connections", "10", "--isolation", "service"];
    let host = Host::with(&component, &[times, shares].concat());
    // 1,024 calls, and two for each of 10 connections. A connection can end before its call.
    until("the instance is ended", || {
        let clients: Vec<_> = (0..10).map(|_| host.connect()).collect();
        for client in clients {
            let _ = (&client.0).read_to_end(&mut Vec::new());
        }
        host.log().contains("shared instance failed")
    });
    let line = host.line("shared instance failed");
    assert!(
        line.contains("not returned from 1044 calls of `handle`"),
        "{line}"
    );
}

/// The host cannot take back calls for connections that have ended. The guest returns from them
/// later, and other connections wait until then.
#[test]
fn clients_that_leave_while_the_guest_waits_end_no_instance() {
    let limits = ["--first-byte-timeout", "100ms", "--max-connections", "100"];
    let host = sharing("dawdle", &[&limits[..], &["--env", "WAIT=6000"]].concat());
    // 1,024 calls, and two for each of 100 connections.
    for _ in 0..14 {
        let clients: Vec<_> = (0..100).map(|_| host.connect()).collect();
        for client in clients {
            let _ = (&client.0).read_to_end(&mut Vec::new());
        }
    }
    until("the guest returns from its calls", || {
        let client = host.connect();
        let mut answer = Vec::new();
        // Until then, the host resets it.
        let echoed = (&client.0).write_all(b"served");
        let echoed = echoed.and_then(|()| client.0.shutdown(Shutdown::Write));
        echoed.is_ok() && (&client.0).read_to_end(&mut answer).is_ok() && answer == b"served"
    });
    let log = host.log();
    let failed = log.lines().find(|line| line.contains("shared instance failed"));
    assert_eq!(failed, None);
}

#[test]
fn what_cannot_be_shared_is_refused_in_a_sentence() {
    let module = wat::parse_str("(module (memory (export \"memory\") 1) (func (export \"_start\")))");
    let module = file("shared-module.wasm", module.unwrap());
    for (component, found) in [
        (
            guest("lines-session"),
            "exports `inet:service/sessions@0.1.0`, but",
        ),
        (guest("cat"), "exports `wasi:cli/run@0.2."),
        (guest("cat3"), "exports `wasi:cli/run@0.3."),
        (module, "is a core module, but"),
    ] {
        let component = component.to_str().unwrap();
        let text = format!(
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = {component:?}\n\
             isolation = \"service\"\n"
        );
        let services = file("shared-refused.toml", text);
        let checked = command()
            .args(["check", "--config"])
            .arg(services)
            .output()
            .unwrap();
        let said = String::from_utf8(checked.stderr).unwrap();
        assert!(said.contains(found), "{said}");
        let refusal = refused(&[
            "--listen",
            "127.0.0.1:0",
            "--component",
            component,
            "--isolation",
            "service",
        ]);
        assert_eq!(refusal.status, Some(1));
        for word in [
            component,
            found,
            "`--isolation service` requires",
            "inet:service/handler@0.1.0",
        ] {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
    }
    for (flags, words) in [
        (
            &["--isolation", "service", "--component", "x", "--migrate"][..],
            ["--migrate", "`--isolation service`"],
        ),
        (
            &["--isolation", "service", "--max-cpu-time", "1s"],
            ["--max-cpu-time", "`--isolation service`"],
        ),
        (&["--instances", "2"], ["--instances", "--isolation service"]),
    ] {
        let refusal = refused(flags);
        assert_eq!(refusal.status, Some(2), "{}", refusal.message);
        for word in words {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
    }
}

#[test]
fn a_peer_that_is_gone_before_it_is_taken_costs_nothing() {
    let host = sharing(
        "moody",
        &[
            "--threads",
            "2",
            "--max-call-time",
            "1s",
            "--max-lifetime",
            "300ms",
        ],
    );
    let client = host.connect();
    client.echo("hello\n");
    client.send("spin\n");
    assert_eq!(host.said(), "spins");
    let waiting = host.connect();
    // It ends on time, though its instance has no time for it.
    let mut byte = [0];
    assert!(!matches!((&waiting.0).read(&mut byte), Ok(1)));
    assert_eq!(host.outcome(), "lifetime");
}
