//! Middlewares before services: each by its name, and then what holds for all of them.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Client, Host, field, file, guest, noise, refused};

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
    fn a_bound_that_is_no_number_is_said() {
        let host = behind("echo", &["line-limit"], &["--env", "LINE_LIMIT=ten"]);
        host.connect().expect_reset();
        assert!(host.said().contains("LINE_LIMIT is `ten`"));
        assert_eq!(field(&host.line("connection ended"), "reason"), "internal-error");
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
        // Who says nothing breaks nothing off.
        let client = host.connect();
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

#[test]
fn each_side_ends_its_half_by_itself() {
    for middlewares in [
        &["line-limit"][..],
        &["upper-case"],
        &["line-limit", "upper-case", "line-limit"],
    ] {
        // The peer first: what it has said before is answered after.
        let host = behind("lines", middlewares, &[]);
        let client = host.connect();
        client.send("1\n2");
        client.finish();
        assert_eq!(client.rest(), b"1\n2");
        assert_eq!(host.outcome(), "finished");
        // The service first, which reads on.
        let host = behind("sink", middlewares, &["--idle-timeout", "off"]);
        let client = host.connect();
        assert_eq!(client.rest().to_ascii_lowercase(), b"ready\n");
        for _ in 0..100 {
            client.send([b'\n'; 1000]);
        }
        client.finish();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "finished");
        assert_eq!(field(&line, "bytes_in"), "100000");
        // The service, which wants nothing any more. The peer is silent, and does not end.
        let host = behind("lines", middlewares, &["--idle-timeout", "off"]);
        let client = host.connect();
        client.send("quit\n");
        assert_eq!(client.rest(), b"");
        assert_eq!(host.outcome(), "finished");
        drop(client);
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
        &["line-limit", "upper-case"],
    ] {
        for service in ["copy", "echo", "lines"] {
            let host = behind(service, middlewares, &[]);
            let client = host.connect();
            client.send("1\n");
            client.expect("1\n");
            client.reset();
            assert_eq!(host.outcome(), "peer-reset", "{service}");
        }
        let host = behind("hang-up", middlewares, &[]);
        let client = host.connect();
        client.echo("1");
        client.send("!");
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
        &["line-limit", "trap-middleware", "upper-case"],
    ] {
        let host = behind(
            "deaf",
            middlewares,
            &[&LITTLE[..], &["--idle-timeout", "2s"]].concat(),
        );
        let client = host.connect();
        client.0.set_nonblocking(true).unwrap();
        let error = loop {
            if let Err(error) = (&client.0).write(&[b'\n'; 65536]) {
                break error;
            }
        };
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
        message.contains("--max-memory") && message.contains("cannot start"),
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
