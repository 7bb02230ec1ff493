//! Middlewares before services: each by its name, and then what holds for all of them.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{CONT, Client, Host, field, file, guest, noise, refused, until};

/// A host that serves with `service` behind `middlewares`, of which the first is nearest the peer.
fn behind(service: &str, middlewares: &[&str], args: &[&str]) -> Host {
    Host::with(&guest(service), &with(middlewares, args))
}

/// The flags for that.
fn with<'a>(middlewares: &[&str], args: &[&'a str]) -> Vec<&'a str> {
    let flags = middlewares.iter().flat_map(|name| {
        let path = guest(name).to_str().unwrap().to_owned();
        // For as long as the test runs.
        ["--middleware", &*path.leak()]
    });
    flags.chain(args.iter().copied()).collect()
}

#[test]
fn clients_that_reset_at_once_end_no_instance_that_others_share() {
    for most in ["8", "1000"] {
        let args = [
            "--isolation",
            "service",
            "--max-connections",
            most,
            "--log-connections",
            "none",
        ];
        let host = behind("sink", &["upper-case"], &args);
        let member = host.connect();
        member.expect("READY\n");
        for _ in 0..12_000 {
            // A host that is behind may reset it first.
            if let Ok(client) = Client::connect(host.address()) {
                client.reset();
            }
        }
        member.send("still here");
        member.finish();
        assert_eq!(member.rest(), b"", "{}", host.log());
        host.connect().expect("READY\n");
    }
}

/// What the program `gzip` makes of `bytes`, with whatever it has to say of them.
fn gzip(args: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = gzip.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It may have seen enough.
            let _ = stdin.write_all(bytes);
        });
        gzip.wait_with_output().unwrap().stdout
    })
}

/// Reads until `gzip -d` makes `expected` of all that has come, which is not over yet.
fn expect_in_gzip(client: &Client, expected: &[u8], came: &mut Vec<u8>) {
    while gzip(&["-dc"], came) != expected {
        let mut some = [0; 4096];
        let count = std::io::Read::read(&mut &client.0, &mut some).unwrap();
        assert_ne!(count, 0, "the end, after {}", came.escape_ascii());
        came.extend(&some[..count]);
    }
}

mod load;

mod upper_case {
    use super::*;

    #[test]
    fn gives_what_the_service_says_in_capitals() {
        // One that gives its own inbound half back, one that reads and writes, and one that says no end of things.
        for service in ["echo", "arbiter", "copy", "lines"] {
            let host = behind(service, &["upper-case"], &[]);
            let client = host.connect();
            client.send("one\n");
            client.expect("ONE\n");
            client.send("two\n");
            client.expect("TWO\n");
            client.finish();
            assert_eq!(client.rest(), b"", "{service}");
            assert_eq!(host.outcome(), "finished", "{service}");
        }
    }

    #[test]
    fn stands_before_the_embedded_guest_too() {
        let host = Host::start(&with(&["upper-case"], &["--listen", "127.0.0.1:0"]));
        assert!(
            host.log().contains("the embedded echo guest behind middleware "),
            "{}",
            host.log()
        );
        let client = host.connect();
        client.send("hello");
        client.expect("HELLO");
    }
}

mod line_limit {
    use super::*;

    #[test]
    fn lines_that_are_within_the_bound_pass_and_a_longer_one_resets() {
        for (args, max) in [(&[][..], 4096), (&["--env", "LINE_LIMIT=10"][..], 10)] {
            for service in ["echo", "copy"] {
                let host = behind(service, &["line-limit"], args);
                let client = host.connect();
                let longest = [vec![b'x'; max], b"\n".to_vec()].concat();
                for line in [&longest, &longest, &b"\n".to_vec()] {
                    client.echo(line);
                }
                // A line that is cut into chunks is one line.
                client.echo(&longest[..max / 2]);
                client.echo(&longest[max / 2..]);
                client.finish();
                assert_eq!(client.rest(), b"");
                assert_eq!(host.outcome(), "finished");
                let client = host.connect();
                client.echo(&longest[..max]);
                client.send("x");
                client.expect_reset();
                let line = host.line("connection ended");
                assert_eq!(field(&line, "outcome"), "guest-reset", "{service}");
                assert_eq!(field(&line, "reason"), "limit-exceeded", "{service}");
            }
        }
    }

    #[test]
    fn a_bound_that_is_no_number_is_refused_at_the_load() {
        let part = format!("`{}` rejects its configuration", guest("line-limit").display());
        for (middlewares, limit) in [
            (&["line-limit"][..], "ten"),
            (&["upper-case", "line-limit", "gzip"], "ten"),
            (&["line-limit"], "0"),
            (&["line-limit"], "+5"),
            (&["line-limit"], "4294967296"),
            (&["line-limit"], ""),
        ] {
            let variable = format!("LINE_LIMIT={limit}");
            let args = with(middlewares, &["--env", &variable]);
            let message = refusal(&guest("echo"), &args);
            let found = format!("LINE_LIMIT is `{limit}`");
            for words in [
                &*part,
                &found,
                "expected a number of bytes from 1 to 4294967295, such as 4096",
            ] {
                assert!(message.contains(words), "{message}");
            }
        }
    }
}

mod gzip {
    use super::*;

    #[test]
    fn is_a_conversation_in_gzip() {
        for service in ["echo", "copy", "lines"] {
            let host = behind(service, &["gzip"], &[]);
            let client = host.connect();
            let mut came = Vec::new();
            // Each a member of its own, answered before the next is sent.
            for (number, said) in ["one\n", "two\n", "three\n"].into_iter().enumerate() {
                client.send(gzip(&["-c"], said.as_bytes()));
                let expected = ["one\n", "two\n", "three\n"][..=number].concat();
                expect_in_gzip(&client, expected.as_bytes(), &mut came);
            }
            client.finish();
            came.extend(client.rest());
            assert_eq!(host.outcome(), "finished", "{service}");
            assert_eq!(gzip(&["-dc"], &came), b"one\ntwo\nthree\n");
            let whole = file(&format!("said-by-{service}.gz"), &came);
            let tested = Command::new("gzip").arg("-t").arg(whole).status().unwrap();
            assert!(tested.success(), "it is whole, for a program that looks");
        }
    }

    #[test]
    fn much_passes_in_both_directions() {
        let host = behind("copy", &["gzip"], &[]);
        let said = [noise(1, 3 << 20), vec![0; 20 << 20], noise(2, 1 << 20)].concat();
        let sent = [gzip(&["-1c"], &said[..5 << 20]), gzip(&["-9c"], &said[5 << 20..])].concat();
        let client = host.connect();
        let came = std::thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&sent);
                client.finish();
            });
            client.rest()
        });
        assert!(gzip(&["-dc"], &came) == said, "it comes back otherwise");
        assert_eq!(host.outcome(), "finished");
    }

    #[test]
    fn little_that_stands_for_much_takes_no_memory() {
        let host = behind("sink", &["gzip"], &["--max-memory", "3MiB"]);
        let client = host.connect();
        client.send(gzip(&["-9c"], &vec![0; 256 << 20]));
        client.finish();
        assert_eq!(gzip(&["-dc"], &client.rest()), b"ready\n");
        assert_eq!(host.outcome(), "finished");
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_reset() {
        let whole = gzip(&["-c"], &noise(3, 10_000));
        let mut damaged = whole.clone();
        damaged[5_000] ^= 1;
        let mut other_sum = whole.clone();
        *other_sum.iter_mut().rev().nth(6).unwrap() ^= 1;
        let trailing = [whole.as_slice(), b"and more"].concat();
        let host = behind("copy", &["gzip"], &[]);
        for sent in [
            &whole[..5],
            &whole[..5_000],
            &whole[..whole.len() - 1],
            b"",
            b"no gzip at all",
            &damaged,
            &other_sum,
            &trailing,
        ] {
            let client = host.connect();
            client.send(sent);
            client.finish();
            client.expect_reset();
            let line = host.line("connection ended");
            assert_eq!(field(&line, "outcome"), "guest-reset");
            assert_eq!(field(&line, "reason"), "protocol-error");
        }
        // Zero bytes may follow, and nothing else after them.
        for (padding, accepted) in [
            (&[0; 1][..], true),
            (&[0; 10_000], true),
            (&[0, 0, 1], false),
            (&[0, 0x1f, 0x8b], false),
        ] {
            for pieces in [1, 2] {
                let client = host.connect();
                let sent = [&whole, padding].concat();
                let cut = if pieces == 1 { 0 } else { whole.len() };
                client.send(&sent[..cut]);
                client.send(&sent[cut..]);
                client.finish();
                if accepted {
                    assert_eq!(gzip(&["-dc"], &client.rest()), noise(3, 10_000));
                    assert_eq!(host.outcome(), "finished");
                } else {
                    client.expect_reset();
                    assert_eq!(field(&host.line("connection ended"), "reason"), "protocol-error");
                }
            }
        }
        // A member of nothing is whole.
        let client = host.connect();
        client.send(gzip(&["-c"], b""));
        client.finish();
        assert_eq!(gzip(&["-dc"], &client.rest()), b"");
        assert_eq!(host.outcome(), "finished");
    }
}

mod trap_middleware {
    use super::*;

    #[test]
    fn a_trap_of_any_part_ends_its_connection_and_no_other() {
        for (service, middlewares) in [
            ("echo", &["trap-middleware"][..]),
            ("echo", &["line-limit", "trap-middleware"]),
            ("trap", &["line-limit", "upper-case"]),
        ] {
            let host = behind(service, middlewares, &[]);
            let neighbour = host.connect();
            neighbour.echo("1");
            let client = host.connect();
            client.echo("2");
            client.send("!");
            client.expect_reset();
            assert_eq!(host.outcome(), "guest-trap");
            neighbour.echo("3");
            neighbour.finish();
            neighbour.rest();
        }
    }
}

mod forger {
    use super::*;

    #[test]
    fn cannot_end_another_connection() {
        let host = behind("echo", &["forger"], &[]);
        let client = host.connect();
        client.send("1");
        client.expect_reset();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "guest-trap");
        assert!(line.contains("`forward` was called for connection 0"), "{line}");
    }
}

mod chain {
    use super::*;

    #[test]
    fn forwards_few_ends_at_the_same_time() {
        let host = Host::serving("chain", &[]);
        let client = host.connect();
        client.send([16]);
        client.echo("as many as parts");
        client.finish();
        assert_eq!(client.rest(), b"");
        assert_eq!(host.outcome(), "finished");
        let client = host.connect();
        client.send([17]);
        client.expect_reset();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "guest-trap");
        assert!(line.contains("while 16 of its ends were forwarded"), "{line}");
    }
}

#[test]
fn the_first_is_nearest_the_peer() {
    let long = [vec![b'x'; 5000], b"\n".to_vec()].concat();
    let packed = gzip(&["-c"], &long);
    assert!(packed.len() < 4096);
    // The limit sees what was decoded, or what was not.
    let host = behind("echo", &["gzip", "line-limit"], &[]);
    let client = host.connect();
    client.send(&packed);
    client.expect_reset();
    assert_eq!(field(&host.line("connection ended"), "reason"), "limit-exceeded");
    let host = behind("echo", &["line-limit", "gzip"], &[]);
    let client = host.connect();
    client.send(&packed);
    client.finish();
    assert_eq!(gzip(&["-dc"], &client.rest()), long);
    assert_eq!(host.outcome(), "finished");
    // Three, two of them the same.
    for middlewares in [
        ["gzip", "line-limit", "upper-case"],
        ["gzip", "upper-case", "upper-case"],
    ] {
        let host = behind("copy", &middlewares, &[]);
        let client = host.connect();
        let mut came = Vec::new();
        client.send(gzip(&["-c"], b"hello\n"));
        expect_in_gzip(&client, b"HELLO\n", &mut came);
        client.finish();
        client.rest();
        assert_eq!(host.outcome(), "finished");
    }
}

/// What a peer sends to be heard as `said` by a service behind `middlewares`.
fn pack(middlewares: &[&str], said: &[u8]) -> Vec<u8> {
    if middlewares.contains(&"gzip") {
        gzip(&["-c"], said)
    } else {
        said.to_vec()
    }
}

/// What a peer hears as it was said by that service.
fn unpack(middlewares: &[&str], heard: &[u8]) -> Vec<u8> {
    if middlewares.contains(&"gzip") {
        gzip(&["-dc"], heard)
    } else {
        heard.to_vec()
    }
}

/// Compositions that see inbound bytes, outbound bytes, or both.
const COMPOSITIONS: [&[&str]; 5] = [
    &["line-limit"],
    &["upper-case"],
    &["gzip"],
    &["line-limit", "upper-case", "line-limit"],
    &["gzip", "upper-case", "line-limit"],
];

#[test]
fn each_side_ends_its_half_by_itself() {
    for middlewares in COMPOSITIONS {
        // The peer first: what it has said before is answered after.
        let host = behind("lines", middlewares, &[]);
        let client = host.connect();
        client.send(pack(middlewares, b"1\n2"));
        client.finish();
        assert_eq!(unpack(middlewares, &client.rest()), b"1\n2");
        assert_eq!(host.outcome(), "finished");
        // The service first, which reads on.
        let host = behind("sink", middlewares, &["--idle-timeout", "off"]);
        let client = host.connect();
        let heard = unpack(middlewares, &client.half());
        assert_eq!(heard.to_ascii_lowercase(), b"ready\n");
        let said = pack(middlewares, &[b'\n'; 1000]);
        for _ in 0..100 {
            client.send(&said);
        }
        client.finish();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "finished");
        assert_eq!(field(&line, "bytes_in"), (100 * said.len()).to_string());
        // The service, which wants nothing any more. The peer is silent, and does not end.
        let host = behind("lines", middlewares, &["--idle-timeout", "off"]);
        let client = host.connect();
        client.send(pack(middlewares, b"quit\n"));
        assert_eq!(unpack(middlewares, &client.half()), b"");
        assert_eq!(host.outcome(), "finished");
        drop(client);
    }
}

/// Isolations of connections.
const ISOLATIONS: [&str; 2] = ["connection", "service"];

/// When `upload` ends its own half, and whether it hears how the peer's half ended.
const UPLOADS: [&[&str]; 4] = [
    &["--env", "ANSWER=first"],
    &["--env", "ANSWER=between"],
    &["--env", "ANSWER=last"],
    &["--env", "ANSWER=first", "--env", "END=unheard"],
];

/// What the guest says, and the outcome of its connection. A guest that has ended its half can still
/// read when the connection ends, so the lines come in either order.
fn said_and_outcome(host: &Host) -> (String, String) {
    let lines = [(); 2].map(|()| host.line_of(&["guest output", "connection ended"]));
    let find = |text: &str| lines.iter().find(|line| line.contains(text)).unwrap();
    (
        field(find("guest output"), "stderr"),
        field(find("connection ended"), "outcome"),
    )
}

#[test]
fn a_service_hears_every_byte_and_the_end() {
    for (isolation, upload) in ISOLATIONS
        .into_iter()
        .flat_map(|one| UPLOADS.map(|two| (one, two)))
    {
        for middlewares in COMPOSITIONS {
            let args = [upload, &["--isolation", isolation]].concat();
            let host = behind("upload", middlewares, &args);
            let case = format!("{middlewares:?} {args:?}");
            let end = if upload.contains(&"END=unheard") {
                ""
            } else {
                ", Ok(())"
            };
            let (first, last) = (pack(middlewares, b"first\n"), pack(middlewares, b"last\n"));
            for waits in [true, false] {
                let client = host.connect();
                client.send(&first);
                if waits && !upload.contains(&"ANSWER=last") {
                    // The service has ended its half.
                    client.half();
                }
                client.send(&last);
                client.finish();
                let (said, outcome) = said_and_outcome(&host);
                assert_eq!(said, format!("11 bytes{end}"), "{case}");
                assert_eq!(outcome, "finished", "{case}");
            }
        }
    }
}

#[test]
fn what_a_middleware_refuses_is_no_end_for_the_service() {
    let whole = gzip(&["-c"], b"hello\n");
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let long = [&b"hello\n"[..], &[b'x'; 5000]].concat();
    let packed = gzip(&["-c"], &long);
    for (isolation, upload) in ISOLATIONS
        .into_iter()
        .flat_map(|one| UPLOADS.map(|two| (one, two)))
    {
        for (middlewares, sent, reason, code) in [
            (
                &["gzip"][..],
                &whole[..whole.len() - 3],
                "protocol-error",
                "ProtocolError",
            ),
            (&["gzip"], &damaged, "protocol-error", "ProtocolError"),
            (&["line-limit"], &long, "limit-exceeded", "LimitExceeded"),
            (
                &["line-limit", "gzip", "line-limit"],
                &packed,
                "limit-exceeded",
                "LimitExceeded",
            ),
            (
                &["gzip", "line-limit"],
                &packed[..20],
                "protocol-error",
                "ProtocolError",
            ),
        ] {
            let args = [upload, &["--isolation", isolation]].concat();
            let host = behind("upload", middlewares, &args);
            let case = format!("{middlewares:?} {args:?}");
            let client = host.connect();
            if upload.contains(&"ANSWER=first") {
                client.half();
            }
            client.send(&sent[..10]);
            client.send(&sent[10..]);
            if middlewares != ["line-limit"] {
                // It may have been reset by now.
                let _ = client.0.shutdown(Shutdown::Write);
            }
            let line = host.line("connection ended");
            assert_eq!(field(&line, "outcome"), "guest-reset", "{case}");
            assert_eq!(field(&line, "reason"), reason, "{case}");
            if upload.contains(&"ANSWER=last") {
                client.expect_reset();
            } else if middlewares == ["line-limit"] {
                // A peer that has read FIN learns of the reset when it sends more.
                until("a reset", || (&client.0).write(b"more").is_err());
            }
            if isolation == "service" && !upload.contains(&"END=unheard") {
                until("the end", || host.log().contains(" bytes, "));
                assert!(
                    host.log().contains(&format!("Err(ErrorCode::{code}")),
                    "{}",
                    host.log()
                );
            }
            assert!(!host.log().contains("Ok(())"), "{case}: {}", host.log());
        }
    }
}

#[test]
fn a_peer_that_resets_is_no_end_for_the_service() {
    for isolation in ISOLATIONS {
        for middlewares in COMPOSITIONS {
            for answer in ["ANSWER=first", "ANSWER=between", "ANSWER=last"] {
                let args = ["--env", answer, "--isolation", isolation];
                let host = behind("upload", middlewares, &args);
                let client = host.connect();
                if answer == "ANSWER=first" {
                    client.half();
                }
                client.send(pack(middlewares, b"upload\n"));
                if answer == "ANSWER=between" {
                    client.half();
                }
                client.reset();
                assert_eq!(host.outcome(), "peer-reset", "{middlewares:?} {args:?}");
                assert!(!host.log().contains("Ok(())"), "{}", host.log());
            }
        }
    }
}

#[test]
fn what_came_before_a_reset_is_heard_although_a_write_meets_the_reset_first() {
    let said = b"123456789\n".repeat(6000);
    let alone: &[&str] = &[];
    for isolation in ISOLATIONS {
        for middlewares in [alone].into_iter().chain(COMPOSITIONS) {
            let args = ["--env", "ANSWER=between", "--isolation", isolation];
            let host = behind("upload", middlewares, &args);
            let case = format!("{middlewares:?} {isolation}");
            let sent = pack(middlewares, &said);
            let client = host.connect();
            host.pause();
            client.send(&sent);
            client.reset();
            host.signal(CONT);
            let (heard, outcome) = said_and_outcome(&host);
            assert_eq!(heard, "60000 bytes, Err(ErrorCode::ConnectionReset)", "{case}");
            assert_eq!(outcome, "peer-reset", "{case}");
            let log = host.log();
            assert!(
                log.contains(&format!("bytes_in={} ", sent.len())),
                "{case}: {log}"
            );
        }
    }
}

#[test]
fn a_service_that_wants_nothing_leaves_what_comes_to_the_host() {
    for middlewares in [&["line-limit"][..], &["gzip", "line-limit"]] {
        let host = behind("chargen", middlewares, &[]);
        let client = host.connect();
        // More than the socket's buffers hold, and no gzip.
        client.send(vec![b'\n'; 16 << 20]);
        assert!(!client.hears_nothing());
        drop(client);
        assert_eq!(host.outcome(), "peer-reset");
    }
}

#[test]
fn resets_pass() {
    for middlewares in [
        &["line-limit"][..],
        &["upper-case"],
        &["gzip"],
        &["line-limit", "upper-case"],
    ] {
        let says = |client: &Client, said: &[u8]| {
            client.send(pack(middlewares, said));
            if middlewares.contains(&"gzip") {
                expect_in_gzip(client, said, &mut Vec::new());
            } else {
                client.expect(said);
            }
        };
        for service in ["copy", "echo", "lines"] {
            let host = behind(service, middlewares, &[]);
            let client = host.connect();
            says(&client, b"1\n");
            client.reset();
            assert_eq!(host.outcome(), "peer-reset", "{service}");
        }
        let host = behind("hang-up", middlewares, &[]);
        let client = host.connect();
        says(&client, b"1");
        client.send(pack(middlewares, b"!"));
        client.expect_reset();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "guest-reset");
        assert_eq!(field(&line, "reason"), "refused");
    }
}

/// So little that what would be kept of a service that is not held back, or of a peer, would soon be more.
const LITTLE: [&str; 2] = ["--max-memory", "4MiB"];

#[test]
fn a_peer_that_does_not_read_holds_the_service_back() {
    for middlewares in [
        &["upper-case"][..],
        &["line-limit"],
        &["line-limit", "upper-case", "upper-case"],
        &["gzip"],
    ] {
        let host = behind(
            "chargen",
            middlewares,
            &[&LITTLE[..], &["--write-timeout", "2s"]].concat(),
        );
        let client = host.connect();
        // It is not for lack of memory that it ends.
        assert_eq!(host.outcome(), "write-timeout", "{middlewares:?}");
        drop(client);
    }
}

#[test]
fn a_service_that_does_not_read_holds_the_peer_back() {
    for middlewares in [
        &["line-limit"][..],
        &["gzip"],
        &["line-limit", "trap-middleware", "upper-case"],
    ] {
        let said = match middlewares {
            // So many bytes that they stand for more than may be kept.
            ["gzip"] => gzip(&["-1c"], &noise(4, 32 << 20)),
            _ => vec![b'\n'; 32 << 20],
        };
        let host = behind(
            "deaf",
            middlewares,
            &[&LITTLE[..], &["--idle-timeout", "2s"]].concat(),
        );
        let client = host.connect();
        client.0.set_nonblocking(true).unwrap();
        // The sockets' buffers do not hold all of it.
        let error = (&client.0).write_all(&said).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        // No byte moves any more, and it is not for lack of memory.
        assert_eq!(host.outcome(), "idle-timeout", "{middlewares:?}");
    }
}

#[test]
fn limits_hold_for_all_parts_together() {
    let alone = ["--max-memory", "512KiB"];
    Host::serving("copy", &alone).connect().echo("hello");
    let copy = guest("copy");
    let args = with(&["upper-case", "line-limit"], &alone);
    let message = refusal(&copy, &args);
    assert!(
        message.contains("`--max-memory`") && message.contains("cannot start"),
        "{message}"
    );
    let host = behind(
        "echo",
        &["line-limit", "upper-case"],
        &["--idle-timeout", "300ms"],
    );
    let client = host.connect();
    client.send("1");
    client.expect("1");
    assert_eq!(client.rest(), b"");
    assert_eq!(host.outcome(), "idle-timeout");
}

#[test]
fn as_many_connections_as_there_may_be_have_room() {
    let middlewares = ["line-limit", "upper-case", "line-limit"];
    let host = behind("copy", &middlewares, &["--max-connections", "300"]);
    let clients: Vec<Client> = (0..300).map(|_| host.connect()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.echo(format!("{number}\n"));
    }
    for (number, client) in clients.iter().enumerate() {
        client.echo(format!("{number}\n"));
        client.finish();
        assert_eq!(client.rest(), b"");
    }
    let log = host.log();
    assert!(!log.contains("WARN"), "{log}");
}

/// What a host has to say that serves with none of it.
fn refusal(component: &Path, args: &[&str]) -> String {
    let component = component.to_str().unwrap();
    let refusal = refused(&[&["--listen", "127.0.0.1:0", "--component", component], args].concat());
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    refusal.message
}
