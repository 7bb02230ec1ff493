//! Every guest does what it is there for. One module for each guest, by its name, those that misbehave in `hostile.rs`, and
//! middlewares in `middleware.rs`.

use crate::harness::lines::serves_lines;
use crate::harness::{DEADLINE, Host, guest, noise};

#[test]
fn every_guest_has_a_module_here() {
    let source = concat!(
        include_str!("guests.rs"),
        include_str!("hostile.rs"),
        include_str!("middleware.rs")
    );
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

mod pong {
    use super::*;

    #[test]
    fn answers_words_and_arrays() {
        let host = Host::serving("pong", &[]);
        let client = host.connect();
        client.send("PING\r\n*1\r\n$4\r\nping\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n\r\n");
        client.expect("+PONG\r\n+PONG\r\n-ERR unknown command\r\n");
        client.finish();
        assert_eq!(client.rest(), b"");
        let client = host.connect();
        client.send("*1000000\r\n");
        client.expect_reset();
    }
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

/// `shared.rs` has what it does where connections share an instance.
mod chat {
    use super::*;

    #[test]
    fn has_rooms_for_one_where_each_connection_has_an_instance() {
        let host = Host::serving("chat", &[]);
        for _ in 0..2 {
            let client = host.connect();
            client.expect("Your name?\n");
            client.send("no name\nann\n");
            client.expect("A name has 1 to 20 letters and digits. Your name?\n* here: nobody else\n");
            client.send("is anybody there?\n/quit\n");
            assert_eq!(client.rest(), b"");
            assert_eq!(host.outcome(), "finished");
        }
    }
}

mod lines {
    use super::*;

    #[test]
    fn echoes_line_by_line() {
        assert_eq!(serves_lines(&guest("lines")), "streams");
    }
}

mod lines_session {
    use super::*;

    #[test]
    fn echoes_line_by_line() {
        assert_eq!(serves_lines(&guest("lines-session")), "sessions");
    }
}

mod whoami {
    use super::*;

    #[test]
    fn tells_its_peer_who_that_is() {
        let host = Host::serving("whoami", &[]);
        let client = host.connect();
        let (remote, local) = (client.0.local_addr().unwrap(), host.address());
        let expected = format!("remote {remote}\nlocal {local}\nlistener {local}\n");
        assert_eq!(String::from_utf8(client.rest()).unwrap(), expected);
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

mod upper {
    use super::*;

    #[test]
    fn gives_lines_back_in_capitals() {
        let host = Host::serving("upper", &[]);
        let client = host.connect();
        client.send("one\nt");
        client.expect("ONE\n");
        client.send("wo\nthree\r\nfour");
        client.expect("TWO\nTHREE\r\n");
        client.finish();
        assert_eq!(client.rest(), b"FOUR");
        assert_eq!(host.outcome(), "finished");

        // As much as fits a line at once, cut anywhere.
        let lines: Vec<u8> = (0..2_000)
            .flat_map(|n| format!("{}{n}\n", "a".repeat(n % 97)).into_bytes())
            .collect();
        let client = host.connect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&lines);
                client.finish();
            });
            assert!(client.rest() == lines.to_ascii_uppercase());
        });
        assert_eq!(host.outcome(), "finished");
    }

    #[test]
    fn resets_whoever_sends_too_long_a_line() {
        let host = Host::serving("upper", &[]);
        let client = host.connect();
        let longest = [vec![b'x'; 4096], vec![b'\n']].concat();
        client.send(&longest);
        client.expect(longest.to_ascii_uppercase());
        client.send([b"x", longest.as_slice()].concat());
        client.expect_reset();
        let line = host.line("connection ended");
        assert!(
            line.contains("guest-reset") && line.contains("limit-exceeded"),
            "{line}"
        );
    }
}

mod primes {
    use super::*;

    #[test]
    fn knows_them() {
        let host = Host::serving("primes", &[]);
        let client = host.connect();
        for (n, prime) in [
            ("1", "2"),
            ("2", "3"),
            ("10", "29"),
            (" 6544 ", "65539"),
            ("348513", "4999999"),
        ] {
            client.send(format!("{n}\n"));
            assert_eq!(client.line(), prime);
        }
        for wrong in ["0", "348514", "-1", "", "one"] {
            client.send(format!("{wrong}\n"));
            assert_eq!(client.line(), "error: a number from 1 to 348513 is expected");
        }
        client.send("1".repeat(21));
        assert_eq!(client.rest(), b"error: a line may have at most 20 bytes\n");
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
        assert_eq!(client.half(), b"ready\n");
        client.send("more");
        client.finish();
        assert_eq!(host.outcome(), "finished");
    }
}

mod impatient {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn greets_after_a_pause_and_ends_if_no_name_comes() {
        let host = Host::serving("impatient", &[]);
        let client = host.connect();
        client.expect("Your name?\n");
        for name in ["ann", "bob"] {
            let start = Instant::now();
            client.send(format!("{name}\n"));
            client.expect(format!("Hello {name}!\nYour name?\n"));
            let pause = start.elapsed();
            assert!((100..1000).contains(&pause.as_millis()), "{pause:?}");
        }
        // Half a line is no name, and bytes do not prolong the time.
        let start = Instant::now();
        client.send("ca");
        assert_eq!(client.rest(), b"Too late.\n");
        let patience = start.elapsed();
        assert!((800..5000).contains(&patience.as_millis()), "{patience:?}");
        drop(client);
        assert_eq!(host.outcome(), "finished");
    }

    #[test]
    fn timers_of_connections_that_share_an_instance_are_independent() {
        let host = Host::serving("impatient", &["--isolation", "service"]);
        let late = host.connect();
        late.expect("Your name?\n");
        let start = Instant::now();
        let others: Vec<_> = (0..20).map(|_| host.connect()).collect();
        for client in &others {
            client.expect("Your name?\n");
            client.send("ann\n");
        }
        for client in &others {
            client.expect("Hello ann!\nYour name?\n");
        }
        // One after the other, the pauses would take two seconds.
        assert!(
            start.elapsed() < Duration::from_millis(1500),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(late.rest(), b"Too late.\n");
    }
}

mod upload {
    use super::*;

    #[test]
    fn says_what_came_and_how_it_ended() {
        for (env, answer, says) in [
            ("ANSWER=last", "6\n", "6 bytes, Ok(())"),
            ("ANSWER=first", "ready\n", "6 bytes, Ok(())"),
            ("ANSWER=between", "ready\n", "6 bytes, Ok(())"),
            ("END=unheard", "6\n", "6 bytes"),
        ] {
            let host = Host::serving("upload", &["--env", env]);
            let client = host.connect();
            client.send("upload");
            client.finish();
            assert_eq!(client.rest(), answer.as_bytes());
            assert_eq!(host.said(), says);
            assert_eq!(host.outcome(), "finished");
        }
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

/// What both guests that number lines do; `first` and `second` are their answers to `one` and `two`.
fn numbers_lines(guest: &str, first: &str, second: &str) {
    let host = Host::serving(guest, &[]);
    let client = host.connect();
    client.send("one\ntw");
    client.expect(first);
    client.send("o\n");
    client.expect(second);
    client.send("quit\n");
    assert_eq!(client.rest(), b"", "{guest} on quit");
    // The next connection begins anew.
    let client = host.connect();
    client.send("one\n");
    client.expect(first);
    client.send([b'x'; 4097]);
    assert_eq!(client.rest(), b"", "{guest} on a line that is too long");
}

mod count {
    #[test]
    fn numbers_lines() {
        super::numbers_lines("count", "1 one\n", "2 two\n");
    }
}

mod tally {
    #[test]
    fn numbers_lines_and_counts_their_bytes() {
        super::numbers_lines("tally", "1 (4) one\n", "2 (8) two\n");
    }
}

mod cat {
    #[test]
    fn gives_bytes_back() {
        super::gives_bytes_back("cat");
    }
}

mod cat3 {
    #[test]
    fn gives_bytes_back() {
        super::gives_bytes_back("cat3");
    }
}

/// What both programs do that copy.
fn gives_bytes_back(guest: &str) {
    let host = Host::serving(guest, &[]);
    let bytes = noise(7, 1 << 20);
    let client = host.connect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.send(&bytes);
            client.finish();
        });
        assert!(client.rest() == bytes, "{guest}");
    });
    let line = host.line("connection ended");
    assert!(line.ends_with("outcome=\"finished\" status=0"), "{line}");
    // What is small comes at once.
    let client = host.connect();
    client.echo("a");
    client.echo("b");
}
