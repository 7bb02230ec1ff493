//! What guests that misbehave come to. One module for each, by its name.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;

use crate::harness::{Client, HUP, Host, Place, again, field, file, guest, refused, text_guest, text_module};

/// `memory.rs` has what the host keeps for it.
mod amass {
    use super::*;

    #[test]
    fn traps_with_one_handle_too_many() {
        let host = Host::serving("amass", &[]);
        let client = host.connect();
        client.send("sleeps 9000\n");
        client.expect("9000\n");
        client.send("sleeps 1000\n");
        client.expect_reset();
        assert_eq!(host.outcome(), "guest-trap");
    }
}

/// `memory.rs` has what the host keeps for it, and `docs/limits.md` how long its calls take.
mod lengthy {
    use super::*;

    #[test]
    fn traps_at_a_list_that_is_too_long() {
        let host = Host::serving("lengthy", &[]);
        for (call, traps) in [
            ("poll 9000", false),
            ("poll 11000", true),
            ("poll-each 4900", false),
            ("poll-each 5100", true),
            ("zeroes 16384", false),
            ("zeroes 16385", true),
            ("errors 16384", false),
            ("errors 16385", true),
        ] {
            let client = host.connect();
            client.send(format!("{call}\n"));
            if traps {
                client.expect_reset();
                assert_eq!(host.outcome(), "guest-trap", "{call}");
            } else {
                let times = client.line();
                assert_eq!(times.split(' ').count(), 2, "{call}: {times}");
                client.finish();
                assert_eq!(client.rest(), b"", "{call}");
                assert_eq!(host.outcome(), "finished", "{call}");
            }
        }
    }
}

mod afterwards {
    use super::*;

    #[test]
    fn has_what_it_writes_after_its_run_has_returned_delivered() {
        let host = Host::serving("afterwards", &[]);
        assert_eq!(host.connect().rest(), b"during\nafter\n");
        assert_eq!(host.outcome(), "finished");
    }
}

mod flood {
    use super::*;

    #[test]
    fn sends_piece_after_piece_in_order() {
        let host = Host::serving("flood", &["--threads", "1"]);
        let client = host.connect();
        for number in 0..200_u64 {
            client.expect(number.to_be_bytes().repeat(8192));
        }
        // It leaves room for others while it does so.
        host.connect().expect([0; 8]);
        client.reset();
        assert_eq!(host.outcome(), "peer-reset");
    }
}

mod hang_up {
    #[test]
    fn resets_its_connection() {
        super::resets("hang-up");
    }
}

mod hang_up_session {
    #[test]
    fn resets_its_connection() {
        super::resets("hang-up-session");
    }
}

fn resets(guest: &str) {
    let host = Host::serving(guest, &[]);
    let client = host.connect();
    client.echo("hello");
    client.send("!");
    client.expect_reset();
    let line = host.line("connection ended");
    assert!(line.contains("outcome=\"guest-reset\""), "{line}");
    assert!(line.contains("reason=\"refused\""), "{line}");
}

mod curious {
    use super::*;

    #[test]
    fn finds_clocks_and_random_numbers_and_nothing_else() {
        let host = Host::serving("curious", &[]);
        let mut randoms = Vec::new();
        for _ in 0..2 {
            let found = String::from_utf8(host.connect().rest()).unwrap();
            let (rest, random) = found.split_once("random ").unwrap();
            randoms.push(random.to_owned());
            assert_eq!(
                rest,
                "arguments 0\nvariables 0\nroot refused\nfile refused\nwrite refused\nconnect refused\n\
                 listen refused\ninput 0\nclock true\n"
            );
        }
        assert_ne!(randoms[0], randoms[1]);
    }
}

mod secret {
    use super::*;

    #[test]
    fn a_secret_stays_with_its_connection() {
        let host = Host::serving("secret", &[]);
        let first = host.connect();
        first.send("12345");
        first.expect("kept");
        let second = host.connect();
        second.send("?");
        assert!(second.hears_nothing());
        first.send("?");
        first.expect("12345");
        // Nor does it stay behind in the memory that the next instance gets.
        first.send("67890");
        first.expect("kept");
        drop(first);
        host.line("connection ended");
        for _ in 0..10 {
            let next = host.connect();
            next.send("?");
            next.finish();
            assert_eq!(next.rest(), b"");
        }
    }
}

mod trap {
    #[test]
    fn ends_its_connection_and_no_other() {
        super::fails_alone("trap", "streams", "unreachable");
    }
}

mod panic {
    #[test]
    fn ends_its_connection_and_no_other() {
        super::fails_alone("panic", "sessions", "unreachable");
    }

    #[test]
    fn is_explained_in_the_log() {
        for (args, level) in [
            (&[][..], None),
            (&["-v"][..], Some("DEBUG")),
            (&["--env", "RUST_BACKTRACE=1"][..], Some("INFO")),
            (&["--env", "RUST_BACKTRACE=0"][..], None),
        ] {
            let mut host = super::Host::serving("panic", args);
            let client = host.connect();
            client.send("!");
            client.expect_reset();
            let line = host.line("guest output");
            assert_eq!(super::field(&line, "service"), "panic");
            let line = host.line("connection ended");
            assert!(line.contains(" WARN "), "{line}");
            let stderr = super::field(&line, "stderr");
            for part in ["panic/src/lib.rs:", "the peer asked for a panic"] {
                assert!(stderr.contains(part), "{part} is missing in {line}");
            }
            for nothing in ["note: ", "stack backtrace"] {
                assert!(!stderr.contains(nothing), "{line}");
            }
            host.stop();
            let log = host.log();
            let found = log.lines().find(|line| line.contains("the guest failed"));
            assert_eq!(found.is_some(), level.is_some(), "{args:?}: {log}");
            if let (Some(found), Some(level)) = (found, level) {
                assert!(found.contains(level), "{found}");
                assert_eq!(super::field(found, "service"), "panic");
                assert!(log.contains("::panicking::panic_fmt"), "{log}");
                // The prefixes of Rust's mangled names.
                assert!(!log.contains("!_R") && !log.contains("!_ZN"), "{log}");
            }
        }
    }
}

/// A guest that traps at a `!`, for `reason`, while a neighbour keeps talking.
fn fails_alone(guest: &str, contract: &str, reason: &str) {
    let host = Host::serving(guest, &["--threads", "1"]);
    let neighbour = host.connect();
    neighbour.echo("before");
    for _ in 0..20 {
        let client = host.connect();
        client.echo("hello");
        client.send("!");
        neighbour.echo("meanwhile");
        client.expect_reset();
        let line = host.line("connection ended");
        assert!(line.contains("outcome=\"guest-trap\""), "{line}");
        assert!(line.contains(&format!("contract=\"{contract}\"")), "{line}");
        assert!(line.contains(reason), "the reason is missing: {line}");
        neighbour.echo("after");
    }
    assert_eq!(neighbour.0.shutdown(Shutdown::Write).ok(), Some(()));
}

/// Sees that a connection is served while so many others keep their guests busy, and gives all of them.
fn serves_beside(host: &Host, busy: usize) -> Vec<Client> {
    let mut clients: Vec<_> = (0..busy).map(|_| host.connect()).collect();
    for client in &clients {
        client.echo("hello");
        client.send("!");
    }
    let neighbour = host.connect();
    for _ in 0..100 {
        neighbour.echo("still served");
    }
    clients.push(neighbour);
    clients
}

mod spin {
    use super::*;

    #[test]
    fn does_not_starve_its_neighbours() {
        let host = Host::serving("spin", &["--threads", "1", "--max-call-time", "off"]);
        serves_beside(&host, 3);
    }
}

/// A session is called on the stack of its thread as long as its calls may take only so long.
mod spin_in_direct_calls {
    use super::*;

    #[test]
    fn does_not_starve_its_neighbours_and_takes_few_threads() {
        let args = ["--threads", "1", "--max-call-time", "1h", "--drain-timeout", "1s"];
        let mut host = Host::serving("spin", &args);
        let _clients = serves_beside(&host, 20);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
        let threads = tasks.count();
        assert!(threads < 20, "{threads} threads");
        // What ends a connection ends it in such a call too.
        assert!(host.stop().success());
        for _ in 0..21 {
            assert_eq!(host.outcome(), "drained");
        }
    }

    #[test]
    fn is_interrupted_at_every_limit() {
        for (args, outcome) in [
            (&["--max-call-time", "300ms"][..], "cpu-limit"),
            (&["--max-call-time", "1h", "--max-lifetime", "300ms"], "lifetime"),
            (
                &["--max-call-time", "1h", "--idle-timeout", "300ms"],
                "idle-timeout",
            ),
        ] {
            let host = Host::serving("spin", args);
            let client = host.connect();
            client.echo("hello");
            client.send("!");
            client.expect_reset();
            assert_eq!(host.outcome(), outcome);
        }
    }

    #[test]
    fn leaves_others_what_they_need_though_it_has_a_thread() {
        // More than there are stacks for calls that cannot be made directly while it does.
        const CONNECTIONS: usize = 1200;
        let most = (CONNECTIONS + 2).to_string();
        let args = [
            "--threads",
            "1",
            "--max-call-time",
            "4s",
            "--max-connections",
            &most,
        ];
        let host = Host::serving("spin", &args);
        let spinning = host.connect();
        spinning.echo("hello");
        spinning.send("!");
        let others: Vec<_> = (0..CONNECTIONS).map(|_| host.connect()).collect();
        for client in &others {
            client.send("hello");
        }
        for client in &others {
            client.expect("hello");
        }
        assert_eq!(host.outcome(), "cpu-limit");
        for client in &others {
            client.echo("and again");
        }
    }

    #[test]
    fn keeps_no_call_of_another_service_waiting() {
        // More than there are stacks for calls that cannot be made directly while it does.
        const CONNECTIONS: usize = 1200;
        let service = |name: &str, component: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = {:?}\n\
                 limits = {{ max-connections = {CONNECTIONS}, max-call-time = \"1h\" }}\n",
                guest(component),
            )
        };
        let services = ["spinning", "others"].map(|name| service(name, "spin")).concat();
        let config = file("spin-beside.toml", format!("threads = 2\n{services}"));
        let host = Host::with_config(&config, 2);
        let [spinning, others] = [0, 1].map(|at| host.addresses()[at]);
        // As many long calls as there are threads, which do not end.
        let _busy = [(); 2].map(|()| {
            let client = Client::connect(spinning).unwrap();
            client.echo("hello");
            client.send("!");
            client
        });
        let others: Vec<_> = (0..CONNECTIONS)
            .map(|_| Client::connect(others).unwrap())
            .collect();
        for client in &others {
            client.send("hello");
        }
        for client in &others {
            client.expect("hello");
        }
    }

    #[test]
    fn is_interrupted_in_every_connection_though_all_of_them_wait_for_each_other() {
        // More than there are stacks for calls that are made aside.
        const CONNECTIONS: usize = 1200;
        let most = CONNECTIONS.to_string();
        let args = [
            "--threads",
            "1",
            "--max-call-time",
            "10ms",
            "--max-connections",
            &most,
        ];
        let host = Host::serving("spin", &args);
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| host.connect()).collect();
        for client in &clients {
            client.send("!");
        }
        for _ in 0..CONNECTIONS {
            assert_eq!(host.outcome(), "cpu-limit");
        }
        host.connect().echo("still served");
    }
}

mod restless {
    use super::*;

    #[test]
    fn does_not_starve_its_neighbours_and_is_idle() {
        let host = Host::serving("restless", &["--threads", "1", "--idle-timeout", "2s"]);
        let _clients = serves_beside(&host, 3);
        let mut idle = std::collections::BTreeSet::new();
        while idle.len() < 4 {
            let line = host.line("connection ended");
            assert!(line.contains("outcome=\"idle-timeout\""), "{line}");
            idle.insert(crate::harness::field(&line, "connection"));
        }
    }
}

mod huge_answer {
    use super::*;

    #[test]
    fn may_be_large_but_not_huge() {
        let host = Host::serving("huge-answer", &[]);
        let client = host.connect();
        client.send("1000");
        client.expect(vec![b'x'; 1000 << 10]);
        client.send("2000");
        client.expect_reset();
        let line = host.line("connection ended");
        assert!(line.contains("outcome=\"guest-trap\""), "{line}");
    }
}

mod sleep {
    use super::*;

    #[test]
    fn is_woken_by_the_limit_on_its_call_or_by_the_deadlines_of_its_connection() {
        for (limits, outcome) in [
            (["--max-call-time", "300ms", "--idle-timeout", "off"], "cpu-limit"),
            (
                ["--max-call-time", "off", "--idle-timeout", "300ms"],
                "idle-timeout",
            ),
            (["--max-call-time", "off", "--max-lifetime", "300ms"], "lifetime"),
        ] {
            let host = Host::serving("sleep", &limits);
            let client = host.connect();
            client.send("!");
            client.expect_reset();
            assert_eq!(host.outcome(), outcome);
        }
    }
}

mod recurse {
    use super::*;

    #[test]
    fn ends_its_connection_and_no_other() {
        fails_alone("recurse", "sessions", "");
    }

    /// A program whose allocator calls itself so many times, 32 bytes of stack each, whenever the
    /// host calls it. The program itself calls the host at every level of its own recursion, which
    /// never stops.
    fn with_allocator(depth: u32) -> PathBuf {
        let text = format!(
            r#"(component
              (import "wasi:random/random@0.2.0" (instance $random
                (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
              (core module $allocates
                (memory (export "memory") 1)
                (func $recurse (param i32)
                  (if (local.get 0) (then (call $recurse (i32.sub (local.get 0) (i32.const 1))))))
                (func (export "realloc") (param i32 i32 i32 i32) (result i32)
                  (call $recurse (i32.const {depth}))
                  (i32.const 64)))
              (core instance $allocates (instantiate $allocates))
              (core func $bytes (canon lower (func $random "get-random-bytes")
                (memory (core memory $allocates "memory"))
                (realloc (core func $allocates "realloc"))))
              (core module $runs
                (import "host" "bytes" (func $bytes (param i64 i32)))
                (func $recurse (param i32) (result i32)
                  (call $bytes (i64.const 8) (i32.const 32))
                  (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
                (func (export "run") (result i32) (call $recurse (i32.const 0))))
              (core instance $runs (instantiate $runs
                (with "host" (instance (export "bytes" (func $bytes))))))
              (func $run (result (result)) (canon lift (core func $runs "run")))
              (instance $exports (export "run" (func $run)))
              (export "wasi:cli/run@0.2.0" (instance $exports)))"#
        );
        file(&format!("recurse-{depth}.wasm"), wat::parse_str(text).unwrap())
    }

    /// The allocator has a limit of its own on its part of the stack, below what the program has
    /// used.
    #[test]
    fn has_its_limit_again_in_its_allocator() {
        // The first is nearly as deep as the limit permits, so the program comes to its own limit.
        // The second exceeds it at once.
        for depth in [8_150, 8_300] {
            let host = Host::with(&with_allocator(depth), &["--max-call-time", "off"]);
            for _ in 0..2 {
                host.connect().expect_reset();
                let line = host.line("connection ended");
                assert_eq!(field(&line, "outcome"), "guest-trap", "{depth}");
                assert!(line.contains("call stack exhausted"), "{line}");
            }
        }
    }
}

mod handles {
    #[test]
    fn ends_its_connection_and_no_other() {
        super::fails_alone("handles", "streams", "handle");
    }

    #[test]
    fn are_bounded_for_a_module_too() {
        let module = super::text_module("handles", "of-a-module");
        let host = super::Host::with(&module, &["--max-memory", "1MiB"]);
        let client = host.connect();
        client.expect("waits");
        client.send("!");
        client.expect_reset();
        let line = host.line("connection ended");
        assert!(line.contains("outcome=\"guest-trap\""), "{line}");
        assert!(line.contains("table"), "{line}");
    }
}

mod brittle {
    use super::*;

    #[test]
    fn is_not_started_at_the_rate_at_which_connections_come() {
        let host = Host::serving("brittle", &["-v"]);
        host.connect().echo("hello");
        for _ in 2..=6 {
            host.refuses();
        }
        let line = host.line("breaker open: instances fail at start; connections are refused");
        assert_eq!(field(&line, "service"), "brittle");
        // Those that are let in to try are connections 7, 8 and 9, of which the last is served.
        let mut refused = 0;
        let served = loop {
            // It may be reset before it has sent anything, and before it knows that it has connected.
            if let Ok(client) = Client::connect(host.address())
                && (&client.0).write_all(b"!").is_ok()
                && (&client.0).read_exact(&mut [0]).is_ok()
            {
                break client;
            }
            refused += 1;
        };
        served.echo("hello");
        host.line("breaker closed: instances start again");
        for _ in 0..3 {
            host.connect().echo("hello");
        }
        let log = host.log();
        assert!(
            refused > 2 && log.matches("connection refused").count() == refused - 2,
            "{log}"
        );
        assert_eq!(log.matches("instances fail").count(), 3, "{log}");
        assert_eq!(log.matches("breaker half-open").count(), 3, "{log}");
        assert_eq!(log.matches("breaker closed").count(), 1, "{log}");
        assert!(log.contains("reason=\"failing\""), "{log}");
    }
}

/// A guest that fails at the end of a client which has sent nothing. Others are served.
#[test]
fn a_client_that_sends_nothing_opens_no_breaker() {
    let module = wat::parse_str(
        r#"(module
          (import "wasi_snapshot_preview1" "fd_read"
            (func $read (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_write"
            (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "_start")
            (i32.store (i32.const 0) (i32.const 16))
            (i32.store (i32.const 4) (i32.const 100))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (if (i32.eqz (i32.load (i32.const 8))) (then (unreachable)))
            (i32.store (i32.const 4) (i32.load (i32.const 8)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#,
    );
    let host = Host::with(&file("fails-at-an-end.wasm", module.unwrap()), &[]);
    for _ in 0..10 {
        let silent = host.connect();
        silent.finish();
        silent.expect_reset();
        assert_eq!(host.outcome(), "guest-trap");
    }
    host.connect().echo("served");
    assert!(!host.log().contains("breaker open"), "{}", host.log());
}

mod tables {
    use super::*;

    #[test]
    fn gets_what_it_may_have_and_no_more() {
        for (max, thousands) in [("64MiB", "20"), ("160KiB", "12")] {
            let host = Host::with(&text_guest("tables"), &["--max-memory", max]);
            assert_eq!(String::from_utf8(host.connect().rest()).unwrap(), thousands);
            assert_eq!(host.outcome(), "finished");
        }
    }
}

mod start_trap {
    #[test]
    fn is_refused_at_start_up() {
        super::does_not_start("start-trap", "unreachable");
    }
}

mod start_slow {
    use super::*;

    #[test]
    fn fails_its_connection_and_is_not_repeated_for_it() {
        let args = ["--isolation", "service", "--max-call-time", "1ms", "-v"];
        let host = Host::serving("start-slow", &args);
        for started in 1..=5 {
            host.refuses();
            assert_eq!(host.outcome(), "cpu-limit");
            assert_eq!(host.log().matches("shared instance started").count(), started);
        }
        host.line("breaker open: instances fail at start; connections are refused");
    }
}

mod start_spin {
    #[test]
    fn is_refused_at_start_up() {
        let message = super::does_not_start("start-spin", "took longer");
        assert!(!message.contains("memory"), "{message}");
    }
}

fn does_not_start(name: &str, reason: &str) -> String {
    let component = guest(name);
    let refusal = refused(&[
        "--listen",
        "127.0.0.1:0",
        "--component",
        component.to_str().unwrap(),
    ]);
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    for word in [component.to_str().unwrap(), "cannot start", reason] {
        assert!(refusal.message.contains(word), "{}", refusal.message);
    }
    assert!(!refusal.message.contains("listening"), "{}", refusal.message);
    refusal.message
}

mod hoard {
    use super::*;

    #[test]
    fn gets_what_it_may_have_and_no_more() {
        let host = Host::serving("hoard", &["--max-memory", "8MiB"]);
        let client = host.connect();
        for answer in ["taken\n", "refused\n"] {
            client.send("5");
            client.expect(answer);
        }
        // The refusal is the guest's to deal with, and no concern of its neighbours.
        let neighbour = host.connect();
        neighbour.send("5");
        neighbour.expect("taken\n");
        client.send("1");
        client.expect("taken\n");
    }
}

mod deaf {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::time::Duration;

    #[test]
    fn holds_its_peer_back() {
        let host = Host::serving("deaf", &["--threads", "1"]);
        let client = host.connect();
        let before = host.memory("VmRSS");
        client
            .0
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let chunk = vec![0; 1 << 20];
        let mut taken = 0;
        let error = loop {
            match (&client.0).write(&chunk) {
                Ok(count) => taken += count,
                Err(error) => break error,
            }
            assert!(
                taken < 64 << 20,
                "the host takes more than any socket buffer holds"
            );
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let grown = host.memory("VmRSS").saturating_sub(before);
        assert!(
            grown < 4096,
            "{grown} KiB more for bytes that the guest does not read"
        );
    }
}

/// `programs/output.rs` has what else it does.
mod chorus {
    use super::*;

    #[test]
    fn is_heard_in_all_its_voices() {
        let host = Host::serving("chorus", &[]);
        let client = host.connect();
        client.send("sing\nover\n");
        assert_eq!(host.said(), "all wait");
        let mut sung = vec![0; 48 << 20];
        (&client.0).read_exact(&mut sung).unwrap();
        for letter in *b"abc" {
            assert_eq!(sung.iter().filter(|sung| **sung == letter).count(), 16 << 20);
        }
        client.expect("over!\n");
    }
}

/// `log.rs` has what all guests together may log, and in what words.
mod herald {
    use super::*;

    #[test]
    fn fills_no_more_of_the_log_than_its_part() {
        let host = Host::serving("herald", &[]);
        let client = host.connect();
        client.echo("5000\n");
        host.line("further lines are not logged");
        client.finish();
        client.rest();
        host.line("connection ended");
        assert_eq!(host.log().matches("guest log").count(), 1000);
    }
}

mod talker {
    use super::*;

    #[test]
    fn fills_no_more_of_the_log_by_moving() {
        for (name, grants) in [("talker", &[][..]), ("talker-with-dir", &["--dir", "/usr::/"])] {
            let place = Place::new(name, "talker");
            let host = place.serve(&[&["--migrate", "-v"], grants].concat());
            let client = host.connect();
            client.echo("600");
            place.replace(again("talker", 1));
            host.signal(HUP);
            host.line("session moved");
            client.echo("600");
            host.line("further lines are not logged");
            client.finish();
            client.rest();
            host.line("connection ended");
            assert_eq!(host.log().matches("guest output").count(), 1000);
        }
    }
}

/// `shared.rs` has what it does to those who share its instance.
mod moody {
    #[test]
    fn ends_its_connection_and_no_other() {
        let host = super::Host::serving("moody", &[]);
        let neighbour = host.connect();
        neighbour.echo("before\n");
        let client = host.connect();
        client.send("trap\n");
        client.expect_reset();
        assert_eq!(host.outcome(), "guest-trap");
        neighbour.echo("after\n");
    }
}

/// `shared.rs` has what clients can do with its calls.
mod dawdle {
    #[test]
    fn echoes_when_it_has_waited() {
        let host = super::Host::serving("dawdle", &["--env", "WAIT=10"]);
        host.connect().echo("late\n");
    }
}

/// `migrate.rs` has what it does when it is to move.
mod stuck {
    use super::*;

    #[test]
    fn serves_as_long_as_it_may_stay() {
        let host = Host::serving("stuck", &[]);
        for word in ["trap", "spin", "huge"] {
            host.connect().echo(word);
        }
    }
}

/// `programs.rs` has what it may do if that is granted.
mod errands {
    use super::*;

    #[test]
    fn is_refused_all_that_was_not_granted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let host = Host::serving("errands", &[]);
        let client = host.connect();
        for (errand, answer) in [
            ("args", "errands.wasm"),
            // What is known of the connection, and nothing of the host's own.
            ("variables", "5"),
            ("env PATH", "no such variable"),
            ("read /etc/passwd", "not found"),
            ("list /", "not found"),
            ("write /tmp/errands", "not found"),
            (&format!("connect {address}"), "refused"),
            (&format!("send {address}"), "refused"),
            ("listen 127.0.0.1:0", "refused"),
            ("resolve localhost", "refused"),
        ] {
            client.send(format!("{errand}\n"));
            let found = client.line();
            assert!(found.starts_with(answer), "{errand}: {found}");
        }
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    }
}
