//! Middlewares before services: each by its name, and then what holds for all of them.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Client, HUP, Host, NEW, Place, again, command, field, file, guest, noise, refused};

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
            host.log().contains("the embedded echo guest behind `"),
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
        for service in ["copy", "echo", "lines", "deaf"] {
            let host = behind(service, middlewares, &[]);
            let client = host.connect();
            if service == "deaf" {
                // Nobody reads, so nobody can hear of it but the host.
                client.finish();
                drop(client);
                continue;
            }
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
    let alone = ["--max-memory", "256KiB"];
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

#[test]
fn what_does_not_fit_is_refused_by_its_name() {
    let handler = "inet:service/handler@0.1.0";
    let imports_more = wat::parse_str(format!(
        r#"(component
            (import "acme:rocket/engine@1.0.0" (instance (export "launch" (func))))
            (import "{handler}" (instance $i))
            (export "{handler}" (instance $i)))"#
    ));
    let other_types = wat::parse_str(format!(
        r#"(component
            (import "{handler}" (instance $i (export "serve" (func))))
            (export "{handler}" (instance $i)))"#
    ));
    let other_version = wat::parse_str(format!(
        r#"(component
            (import "inet:service/handler@0.9.0" (instance $i))
            (export "{handler}" (instance $i)))"#
    ));
    let imports_more = file("imports-more.wasm", imports_more.unwrap());
    let other_types = file("other-types.wasm", other_types.unwrap());
    let other_version = file("other-version.wasm", other_version.unwrap());
    let missing = Path::new("/no/such/file.wasm").to_owned();
    let text = file("no-middleware.wasm", "#!/bin/sh\n");
    let module = file("middleware-module.wasm", wat::parse_str("(module)").unwrap());
    let (echo, upper_case) = (guest("echo"), guest("upper-case"));
    for (middlewares, service, at_fault, words) in [
        (
            vec![&missing],
            &echo,
            &missing,
            &["cannot read", "--middleware"][..],
        ),
        (vec![&upper_case, &text], &echo, &text, &["is not WebAssembly"]),
        (
            vec![&module],
            &echo,
            &module,
            &["is no middleware", "is a core module"],
        ),
        (
            vec![&upper_case, &guest("copy")],
            &echo,
            &guest("copy"),
            &[
                "is no middleware",
                "imports `inet:service/types@0.1.0` of that package",
                handler,
                "--component",
            ],
        ),
        (
            vec![&guest("lines-session")],
            &echo,
            &guest("lines-session"),
            &["is no middleware", "exports `inet:service/sessions@0.1.0`"],
        ),
        (
            vec![&other_version],
            &echo,
            &other_version,
            &["is no middleware", "imports `inet:service/handler@0.9.0`"],
        ),
        (
            vec![&upper_case],
            &guest("lines-session"),
            &guest("lines-session"),
            &[
                "cannot stand behind a middleware",
                "exports `inet:service/sessions@0.1.0`",
                handler,
            ],
        ),
        (
            vec![&upper_case],
            &guest("cat"),
            &guest("cat"),
            &["cannot stand behind a middleware", "exports `wasi:cli/run"],
        ),
        (
            vec![&upper_case],
            &module,
            &module,
            &["cannot stand behind a middleware", "is a core module"],
        ),
        (
            vec![&upper_case],
            &upper_case,
            &upper_case,
            &["imports `inet:service/handler@0.1.0`", "--middleware"],
        ),
        (
            vec![&other_types],
            &echo,
            &other_types,
            &["cannot be composed with `", "echo.wasm`", "`serve`", "wit/"],
        ),
        (
            vec![&imports_more, &upper_case],
            &echo,
            &imports_more,
            &["does not offer", "acme:rocket/engine@1.0.0"],
        ),
    ] {
        let flags = middlewares
            .iter()
            .flat_map(|path| ["--middleware", path.to_str().unwrap()]);
        let message = refusal(service, &flags.collect::<Vec<_>>());
        let lines: Vec<&str> = message.lines().filter(|line| line.contains("ERROR")).collect();
        let [line] = lines.as_slice() else {
            panic!("expected one line of error in {message}")
        };
        let fault = format!("`{}`", at_fault.display());
        assert!(line.contains(&fault), "{line:?} does not name {fault}");
        for word in words {
            assert!(line.contains(word), "{line:?} does not say {word:?}");
        }
    }
}

/// A host that serves with the embedded guest behind a middleware that changes.
fn behind_a_place(place: &Place, args: &[&str]) -> Host {
    let path = place.file();
    let first = ["--listen", "127.0.0.1:0", "--middleware", path.to_str().unwrap()];
    Host::start(&[&first, args].concat())
}

fn says(host: &Host) -> String {
    let client = host.connect();
    client.send("hello\n");
    client.line()
}

#[test]
fn a_middleware_that_changes_is_taken() {
    let place = Place::new("middleware-watch", "upper-case");
    let host = behind_a_place(&place, &["--watch"]);
    assert_eq!(says(&host), "HELLO");
    let old = host.connect();
    old.send("one\n");
    old.expect("ONE\n");
    place.put("line-limit");
    assert_eq!(field(&host.line(NEW), "generation"), "2");
    assert_eq!(says(&host), "hello");
    old.send("two\n");
    old.expect("TWO\n");
    // What does not fit changes nothing.
    place.put("echo");
    let line = host.line("goes on serving");
    assert!(
        line.contains("is no middleware") && line.contains(place.file().to_str().unwrap()),
        "{line}"
    );
    assert_eq!(says(&host), "hello");
    fs::remove_file(place.file()).unwrap();
    host.line("cannot read");
    place.put("upper-case");
    host.line(NEW);
    assert_eq!(says(&host), "HELLO");
}

#[test]
fn any_part_that_changes_is_taken() {
    let place = Place::new("middleware-parts", "copy");
    let path = place.0.join("before.wasm");
    fs::copy(guest("upper-case"), &path).unwrap();
    let host = place.serve(&["--watch", "--middleware", path.to_str().unwrap()]);
    assert_eq!(says(&host), "HELLO");
    place.put("lines");
    host.line(NEW);
    let client = host.connect();
    client.send("hello\nquit\n");
    assert_eq!(client.rest(), b"HELLO\n");
    crate::harness::replace(&path, fs::read(guest("line-limit")).unwrap());
    host.line(NEW);
    assert_eq!(says(&host), "hello");
}

#[test]
fn without_a_watch_a_signal_has_all_parts_read_again() {
    let place = Place::new("middleware-signal", "upper-case");
    let host = behind_a_place(&place, &[]);
    host.signal(HUP);
    host.line("the component is the same");
    place.replace(again("upper-case", 1));
    host.signal(HUP);
    host.line(NEW);
    place.put("line-limit");
    assert_eq!(says(&host), "HELLO", "nobody has asked");
    host.signal(HUP);
    host.line(NEW);
    assert_eq!(says(&host), "hello");
}

#[test]
fn a_service_is_initialised_before_it_is_composed() {
    let message = refusal(&guest("copy"), &with(&["upper-case"], &["--preinit"]));
    let copy = format!("`{}` exports no function", guest("copy").display());
    assert!(message.contains(&copy), "{message}");
}

#[test]
fn check_and_replay_compose_too() {
    let args = with(&["gzip", "upper-case"], &[]);
    let output = command()
        .arg("check")
        .args(&args)
        .arg(guest("echo"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    for name in ["echo", "gzip", "upper-case"] {
        assert!(said.contains(guest(name).to_str().unwrap()), "{said}");
    }
    let talks = crate::harness::scratch("middleware-talks");
    fs::create_dir_all(&talks).unwrap();
    fs::write(
        talks.join("1.conversation"),
        "> \"hello\\n\"\n< \"HELLO\\n\"\n> end\n< end\n",
    )
    .unwrap();
    for (middleware, same) in [("upper-case", true), ("line-limit", false)] {
        let mut replay = command();
        let replay = replay.arg("replay").args(with(&[middleware], &[]));
        let output = replay.arg(&talks).arg(guest("echo")).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.success(), same, "{said}");
    }
}

#[test]
fn what_was_composed_is_kept_for_the_next_start() {
    let cache = crate::harness::scratch("middleware-cache");
    let flags = ["--cache", cache.to_str().unwrap(), "-v"];
    for (compiled, middlewares) in [
        ("compiled=true", ["upper-case", "line-limit"]),
        ("compiled=false", ["upper-case", "line-limit"]),
        ("compiled=true", ["line-limit", "upper-case"]),
    ] {
        let host = behind("echo", &middlewares, &flags);
        assert!(host.log().contains(compiled), "{}", host.log());
    }
}
