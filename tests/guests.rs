//! Every guest does what it is there for. One module for each guest, by its name.

use std::net::Shutdown;

use crate::harness::{DEADLINE, Host, guest, noise, refused};

#[test]
fn every_guest_has_a_module_here() {
    let source = include_str!("guests.rs");
    for guest in guest_builder::all(guest_builder::workspace()).unwrap() {
        let module = format!("mod {} {{", guest.name.replace('-', "_"));
        let tests = source.split_once(&module).map(|(_, tests)| tests);
        let tests = tests.unwrap_or_else(|| panic!("the guest {} has no test", guest.name));
        let tests = tests.split_once("\n}").map_or(tests, |(tests, _)| tests);
        assert!(
            tests.contains("#[test]"),
            "the module of the guest {} has no test",
            guest.name
        );
    }
}

/// What both line guests do.
fn serves_lines(guest: &str) {
    let host = Host::serving(guest, &[]);

    let client = host.connect();
    client.echo("one\n");
    client.send("tw");
    assert!(
        client.hears_nothing(),
        "{guest} answered before the line was whole"
    );
    client.send("o\nthree\r\n");
    client.expect("two\nthree\r\n");
    client.send("quit\r\n");
    assert_eq!(client.rest(), b"", "{guest} on quit");
    drop(client);
    assert_eq!(host.outcome(), "finished");

    let client = host.connect();
    client.send("a last line without its end");
    client.finish();
    assert_eq!(client.rest(), b"a last line without its end");

    let longest = [vec![b'x'; 4096], vec![b'\n']].concat();
    let client = host.connect();
    client.echo(&longest);
    client.send([b"x", longest.as_slice()].concat());
    assert_eq!(
        client.rest(),
        b"error: a line may have 4096 bytes\n",
        "{guest} on an over-long line"
    );
}

mod echo {
    use super::*;

    #[test]
    fn gives_bytes_back() {
        let host = Host::serving("echo", &[]);
        let client = host.connect();
        client.echo("hello");
        client.echo([0, 255, b'\n', 7]);
        client.finish();
        assert_eq!(client.rest(), b"");
        assert_eq!(host.outcome(), "finished");
    }
}

mod lines {
    #[test]
    fn serves_lines() {
        super::serves_lines("lines");
    }
}

mod lines_session {
    #[test]
    fn serves_lines() {
        super::serves_lines("lines-session");
    }
}

mod discard {
    use super::*;

    #[test]
    fn says_nothing() {
        let host = Host::serving("discard", &[]);
        let client = host.connect();
        client.send("is anybody there?");
        assert!(client.hears_nothing());
        client.finish();
        assert_eq!(client.rest(), b"");
        assert_eq!(host.outcome(), "finished");
    }
}

mod chargen {
    use super::*;

    #[test]
    fn sends_the_pattern_of_rfc_864_until_the_peer_goes() {
        let host = Host::serving("chargen", &[]);
        let client = host.connect();
        let printable: Vec<u8> = (b' '..=b'~').collect();
        for line in 0..200 {
            let start = line % printable.len();
            let expected: Vec<u8> = printable.iter().cycle().skip(start).take(72).copied().collect();
            client.expect([expected.as_slice(), b"\r\n"].concat());
        }
        drop(client);
        assert_eq!(host.outcome(), "peer-reset");
    }

    #[test]
    fn does_not_mind_what_it_is_sent() {
        let host = Host::serving("chargen", &[]);
        let client = host.connect();
        // More than the socket's buffers hold: the host has to take it although the guest does not.
        client.0.set_write_timeout(Some(DEADLINE)).unwrap();
        client.send(vec![b'x'; 16 << 20]);
        client.expect(" !\"#$");
    }
}

mod daytime {
    use super::*;

    #[test]
    fn says_the_time_and_ends() {
        let host = Host::serving("daytime", &[]);
        let before = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let client = host.connect();
        let said = String::from_utf8(client.rest()).unwrap();
        let after = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let time = said.strip_suffix("\r\n").unwrap();
        assert!(
            (before.as_str()..=after.as_str()).contains(&time),
            "{before} <= {time} <= {after}"
        );
        drop(client);
        assert_eq!(host.outcome(), "finished");
    }
}

mod copy {
    use super::*;

    #[test]
    fn gives_back_what_it_is_sent_however_much_that_is() {
        let host = Host::serving("copy", &[]);
        let client = host.connect();
        client.echo("hello");
        let bytes = noise(5, 3_000_000);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&bytes);
                client.finish();
            });
            assert!(client.rest() == bytes);
        });
        assert_eq!(host.outcome(), "finished");
    }
}

mod arbiter {
    use super::*;

    #[test]
    fn gives_back_what_it_is_sent_and_ends_with_its_peer() {
        let host = Host::serving("arbiter", &[]);
        let client = host.connect();
        client.echo("hello\n");
        client.finish();
        assert_eq!(client.rest(), b"");
        assert_eq!(host.outcome(), "finished");
    }
}

mod sink {
    use super::*;

    #[test]
    fn greets_and_reads_on() {
        let host = Host::serving("sink", &[]);
        let client = host.connect();
        assert_eq!(client.rest(), b"ready\n");
        client.send("more");
        client.finish();
        assert_eq!(host.outcome(), "finished");
    }
}

mod metronome {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn beats_time_until_it_is_sent_something() {
        let host = Host::serving("metronome", &["--idle-timeout", "1s"]);
        let start = Instant::now();
        let client = host.connect();
        for _ in 0..8 {
            client.expect("tick\ntock\n");
        }
        // 15 beats lie between the first and the last. They also outlast the idle timeout, since bytes move.
        assert!(
            start.elapsed() >= Duration::from_millis(1500),
            "{:?}",
            start.elapsed()
        );
        client.send("enough");
        let rest = client.rest();
        assert!(b"tick\ntock\n".repeat(rest.len()).starts_with(&rest), "{rest:?}");
        drop(client);
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
        super::fails_alone("trap", "streams");
    }
}

mod panic {
    #[test]
    fn ends_its_connection_and_no_other() {
        super::fails_alone("panic", "sessions");
    }
}

/// A guest that traps at a `!` while a neighbour keeps talking.
fn fails_alone(guest: &str, contract: &str) {
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
        assert!(line.contains("unreachable"), "the reason is missing: {line}");
        neighbour.echo("after");
    }
    assert_eq!(neighbour.0.shutdown(Shutdown::Write).ok(), Some(()));
}

mod spin {
    use super::*;

    #[test]
    fn does_not_starve_its_neighbours() {
        let host = Host::serving("spin", &["--threads", "1", "--max-call-time", "off"]);
        let spinning: Vec<_> = (0..3).map(|_| host.connect()).collect();
        for client in &spinning {
            client.echo("hello");
            client.send("!");
        }
        let neighbour = host.connect();
        for _ in 0..100 {
            neighbour.echo("still served");
        }
    }
}

mod restless {
    use super::*;

    #[test]
    fn does_not_starve_its_neighbours_and_is_idle() {
        let host = Host::serving("restless", &["--threads", "1", "--idle-timeout", "2s"]);
        let restless: Vec<_> = (0..3).map(|_| host.connect()).collect();
        for client in &restless {
            client.echo("hello");
            client.send("!");
        }
        let neighbour = host.connect();
        for _ in 0..100 {
            neighbour.echo("still served");
        }
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

mod start_trap {
    #[test]
    fn is_refused_at_start_up() {
        super::does_not_start("start-trap", "unreachable");
    }
}

mod start_spin {
    #[test]
    fn is_refused_at_start_up() {
        super::does_not_start("start-spin", "takes longer");
    }
}

fn does_not_start(name: &str, reason: &str) {
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
