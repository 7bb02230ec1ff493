//! A component that changes under a running service.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, Done, HUP, Host, NEW, Place, USR2, again, field, file, guest, scratch, until};

/// Whether a new connection is served by `echo`, and not by `lines-session`.
fn echoes(host: &Host) -> bool {
    let client = host.connect();
    client.send("quit\n");
    client.finish();
    client.rest() == b"quit\n"
}

#[test]
fn a_new_file_serves_new_connections_and_open_ones_keep_theirs() {
    let place = Place::new("new-file", "echo");
    let host = place.serve(&["--watch"]);
    let old = host.connect();
    old.echo("no line");
    place.put("lines-session");
    let line = host.line(NEW);
    assert_eq!(field(&line, "generation"), "2");
    assert_eq!(field(&line, "contract"), "sessions");
    assert!(!echoes(&host));
    assert_eq!(field(&host.line("connection ended"), "generation"), "2");
    old.echo("quit\n");
    old.finish();
    assert_eq!(old.rest(), b"");
    assert_eq!(field(&host.line("connection ended"), "generation"), "1");
}

#[test]
fn every_way_to_change_a_file_is_seen() {
    let place = Place::new("ways", "echo");
    let (echo, lines) = (
        fs::read(guest("echo")).unwrap(),
        fs::read(guest("lines-session")).unwrap(),
    );
    let host = place.serve(&["--watch"]);
    // In place.
    fs::write(place.file(), &lines).unwrap();
    host.line(NEW);
    assert!(!echoes(&host));
    // By a rename, which is what `put` does.
    place.put("echo");
    host.line(NEW);
    assert!(echoes(&host));
    // By removing it first.
    fs::remove_file(place.file()).unwrap();
    host.line("cannot read");
    assert!(echoes(&host));
    fs::write(place.file(), &lines).unwrap();
    host.line(NEW);
    assert!(!echoes(&host));
    // By a link to another file, and then by a directory that is a link.
    let releases = ["1", "2"].map(|name| place.0.join(name));
    for (release, bytes) in releases.iter().zip([&echo, &lines]) {
        fs::create_dir(release).unwrap();
        fs::write(release.join("guest.wasm"), bytes).unwrap();
    }
    let link = |target: &Path, name: &str| {
        symlink(target, place.0.join("link")).unwrap();
        fs::rename(place.0.join("link"), place.0.join(name)).unwrap();
    };
    link(&releases[0], "current");
    link(Path::new("current/guest.wasm"), "guest.wasm");
    host.line(NEW);
    assert!(echoes(&host));
    link(&releases[1], "current");
    host.line(NEW);
    assert!(!echoes(&host));
    assert!(!host.log().contains("cannot watch"), "{}", host.log());
}

#[test]
fn without_a_watch_a_signal_has_the_file_read_again() {
    let place = Place::new("signal", "echo");
    let host = place.serve(&[]);
    host.signal(HUP);
    host.line("component unchanged");
    place.put("lines-session");
    assert!(echoes(&host), "nobody has asked");
    host.signal(HUP);
    host.line(NEW);
    assert!(!echoes(&host));
    host.signal(USR2);
    let line = host.line("rolled back to");
    assert_eq!(
        (field(&line, "generation"), field(&line, "leaves")),
        ("1".into(), "2".into())
    );
    assert!(echoes(&host));
    // It is there still, and was not liked.
    host.signal(HUP);
    host.line("was rolled back");
    host.signal(USR2);
    host.line("there is no generation to roll back to");
    assert!(echoes(&host));
    // Something else is taken again.
    place.put("daytime");
    host.signal(HUP);
    assert_eq!(field(&host.line(NEW), "generation"), "3");
}

#[test]
fn the_embedded_guest_has_no_file_to_be_read_again() {
    let host = Host::start(&["--listen", "127.0.0.1:0"]);
    host.signal(HUP);
    host.line("the embedded echo guest has no file");
    host.connect().echo("hello");
}

#[test]
fn what_cannot_serve_leaves_what_serves() {
    let place = Place::new("torture", "lines-session");
    // What can serve and yet says something else is no news to the clients either.
    let gate = scratch("torture-gate");
    fs::create_dir_all(&gate).unwrap();
    let hello = "> \"hello\\n\"\n< \"hello\\n\"\n> end\n< end\n";
    fs::write(gate.join("hello.conversation"), hello).unwrap();
    let host = Host::with_no_privileges(&place.file(), &["--watch", "--gate", gate.to_str().unwrap()]);
    let whole = fs::read(guest("echo")).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let address = host.address();
        let (done, _done) = (&done, Done(&done));
        for _ in 0..4 {
            // Clients that come all the while, and one that stays.
            scope.spawn(move || {
                let stays = Client::connect(address).unwrap();
                while !done.load(Ordering::Relaxed) {
                    stays.echo("still here\n");
                    let client = Client::connect(address).unwrap();
                    client.echo("hello\n");
                    client.finish();
                    assert_eq!(client.rest(), b"");
                }
            });
        }
        let refused_as = |what: &[&str]| {
            let line = host.line("keeps serving");
            assert!(
                what.iter().any(|what| line.contains(what)) && line.contains("generation=1"),
                "{line}"
            );
        };
        let refused = |what: &str| refused_as(&[what]);
        for length in (0..whole.len()).step_by(997).skip(1) {
            place.replace(&whole[..length]);
            // One that ends where a part of it does is valid, and has nothing to serve with.
            refused_as(&["is not a valid component", "exports nothing"]);
        }
        let large = fs::File::create(place.file()).unwrap();
        large.set_len(300 << 20).unwrap();
        refused("is larger than 256.0 MiB");
        place.replace("");
        refused("is empty");
        fs::set_permissions(place.file(), fs::Permissions::from_mode(0o000)).unwrap();
        refused("Permission denied");
        place.replace(wat::parse_str("(component)").unwrap());
        refused("exports nothing");
        place.replace(fs::read(guest("start-trap")).unwrap());
        refused("cannot start");
        fs::remove_file(place.file()).unwrap();
        refused("No such file");
        fs::create_dir(place.file()).unwrap();
        refused("directory");
        fs::remove_dir(place.file()).unwrap();
        // A bit is another one. Where that does not matter, the component serves.
        for at in (500..whole.len()).step_by(whole.len() / 40) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            place.replace(&flipped);
            host.line_of(&["keeps serving", NEW]);
        }
        // Somebody writes slowly, and in place.
        let mut file = fs::File::create(place.file()).unwrap();
        for piece in whole.chunks(whole.len() / 4 + 1) {
            std::io::Write::write_all(&mut file, piece).unwrap();
            thread::sleep(Duration::from_millis(300));
        }
        host.line(NEW);
    });
    assert!(echoes(&host));
}

#[test]
fn what_cannot_be_tried_is_tried_again() {
    let place = Place::new("untried", "echo");
    let granted = scratch("granted-later");
    fs::create_dir_all(&granted).unwrap();
    let host = place.serve(&["--watch", "--dir", &format!("{}::/data", granted.display())]);
    fs::remove_dir(&granted).unwrap();
    place.put("lines-session");
    let line = host.line("keeps serving");
    assert!(line.contains("cannot open the granted directory"), "{line}");
    fs::create_dir(&granted).unwrap();
    host.line(NEW);
    assert!(!echoes(&host));
    assert_eq!(host.log().matches("keeps serving").count(), 1, "{}", host.log());
}

#[test]
fn what_cannot_be_tried_is_tried_ever_more_rarely() {
    let place = Place::new("untried-again", "echo");
    let granted = scratch("granted-never");
    fs::create_dir_all(&granted).unwrap();
    let dir = format!("{}::/data", granted.display());
    let host = place.serve(&["--watch", "-v", "--dir", &dir]);
    fs::remove_dir(&granted).unwrap();
    place.put("lines-session");
    host.line("keeps serving");
    let start = Instant::now();
    // After one second, and after two more.
    for _ in 0..2 {
        host.line("reload failed again");
    }
    let took = start.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
}

#[test]
fn other_files_of_a_watched_directory_cause_few_looks() {
    let place = Place::new("noise", "echo");
    let host = place.serve(&["--watch", "-vv"]);
    let noise = place.0.join("noise");
    let start = Instant::now();
    let mut changes = 0;
    while start.elapsed() < Duration::from_secs(2) {
        fs::write(&noise, "noise").unwrap();
        changes += 1;
    }
    // A change among them is seen all the same.
    place.put("lines-session");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, _done) = (&done, Done(&done));
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                fs::write(&noise, "noise").unwrap();
            }
        });
        host.line(NEW);
    });
    let log = host.log();
    let looks = log.matches("looking for changes of the component").count();
    // Ten in a second, and those that are due.
    let most = 2 + start.elapsed().as_millis() as usize * 11 / 1000;
    assert!(
        (2..=most).contains(&looks),
        "{looks} looks for {changes} changes; expected {most}"
    );
}

#[test]
fn one_line_is_enough_for_what_stays_bad() {
    let place = Place::new("one-line", "echo");
    let host = place.serve(&["--watch"]);
    place.replace("not WebAssembly");
    host.line("keeps serving");
    for _ in 0..3 {
        // The same again, in another file. It is looked at once a second at least.
        place.replace("not WebAssembly");
        thread::sleep(Duration::from_millis(1300));
        host.connect().echo("hello");
    }
    place.put("lines-session");
    host.line(NEW);
    assert_eq!(host.log().matches("keeps serving").count(), 1, "{}", host.log());
}

#[test]
fn a_generation_that_fails_its_connections_is_gone_back_from() {
    for (bad, number) in [("trap", 5), ("brittle", 5)] {
        let place = Place::new(&format!("rollback-{bad}"), "echo");
        let host = place.serve(&["--watch"]);
        host.connect().echo("hello");
        place.put(bad);
        host.line(NEW);
        for _ in 0..number {
            if let Ok(client) = Client::connect(host.address()) {
                let _ = std::io::Write::write_all(&mut &client.0, b"!");
                while matches!(std::io::Read::read(&mut &client.0, &mut [0; 16]), Ok(1..)) {}
            }
        }
        let line = host.line("rolled back to");
        assert!(line.contains("failed 5 of its first 5 connections"), "{line}");
        assert!(echoes(&host));
        // It is not tried again for being touched.
        let bytes = fs::read(place.file()).unwrap();
        place.replace(bytes);
        host.line("was rolled back");
        assert!(echoes(&host));
    }
}

#[test]
fn old_generations_end_in_time() {
    let place = Place::new("drain", "echo");
    let host = place.serve(&["--watch", "--drain-generations", "1s"]);
    let old = host.connect();
    old.echo("hello");
    place.put("lines-session");
    host.line(NEW);
    let new = host.connect();
    new.echo("hello\n");
    assert_eq!(old.rest(), b"");
    let line = host.line("connection ended");
    assert_eq!(
        (field(&line, "generation"), field(&line, "outcome")),
        ("1".into(), "drained".into())
    );
    new.echo("still here\n");
}

#[test]
fn swaps_leave_nothing_behind() {
    let place = Place::new("flat", "echo");
    let host = place.serve(&[]);
    let swaps = |count: usize| {
        for i in 0..count {
            place.put(["lines-session", "echo"][i % 2]);
            host.signal(HUP);
            host.line(NEW);
            let client = host.connect();
            client.echo("hello\n");
            client.finish();
            assert_eq!(client.rest(), b"");
        }
    };
    // As many as wasmtime keeps slots of its pool apart for.
    swaps(200);
    let (memory, mappings, files) = (host.memory("VmRSS"), host.mappings(), host.entries("fd"));
    swaps(200);
    let grown = host.memory("VmRSS").saturating_sub(memory);
    assert!(grown < 4096, "200 swaps left {grown} KiB behind");
    let more = host.mappings().saturating_sub(mappings);
    assert!(more < 50, "200 swaps left {more} mappings behind");
    until("all descriptors are closed", || host.entries("fd") <= files);
}

/// Reloads of a service that is busy all the time. The first of them fill the pool and the caches
/// of the allocator, and all others together take little memory.
#[test]
fn two_hundred_reloads_under_load_lose_nothing_and_keep_the_memory() {
    let place = Place::new("many-reloads", "lines-session");
    let host = place.serve(&["--log-connections", "none"]);
    let address = host.address();
    let done = AtomicBool::new(false);
    let reload = |number: u8| {
        place.replace(again("lines-session", number % 2));
        host.signal(HUP);
        host.line(NEW);
    };
    thread::scope(|scope| {
        let (done, _done) = (&done, Done(&done));
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let client = Client::connect(address).unwrap();
                    for _ in 0..20 {
                        client.echo("hello\n");
                    }
                    client.finish();
                    assert_eq!(client.rest(), b"");
                }
            });
        }
        (0..20).for_each(reload);
        let before = host.memory("VmRSS");
        (20..200).for_each(reload);
        let after = host.memory("VmRSS");
        let grown = after.saturating_sub(before);
        assert!(grown < 4 << 10, "{grown} KiB more than {before} KiB");
    });
    assert!(!host.log().contains("guest-trap"), "{}", host.log());
}

#[test]
fn a_first_instance_that_starts_more_slowly_than_guests_may_is_warned_of() {
    let module = r#"(module
        (memory (export "memory") 1)
        (func $start (local $n i32)
            (loop
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if 0 (i32.lt_u (local.get $n) (i32.const 300000000)))))
        (start $start)
        (func (export "_start")))"#;
    let module = file("slow-start.wasm", wat::parse_str(module).unwrap());
    let warning = "`--max-call-time` is 1ms";
    let host = Host::with(&module, &["--max-call-time", "1ms"]);
    assert!(host.log().contains(warning), "{}", host.log());
    let client = host.connect();
    client.expect_reset();
    assert_eq!(host.outcome(), "cpu-limit");
    let host = Host::with(&module, &["--max-call-time", "off"]);
    assert!(!host.log().contains("`--max-call-time` is"), "{}", host.log());
}

#[test]
fn a_host_that_stops_while_a_gate_is_tried_does_not_panic() {
    let gate = scratch("swap-gate-stops");
    fs::create_dir_all(&gate).unwrap();
    fs::write(gate.join("1.conversation"), "> \"a\\n\"\n< \"a\\n\"\n> end\n").unwrap();
    fs::write(gate.join("2.conversation"), "> pause 20s\ncut\n").unwrap();
    let place = Place::new("gate-stops", "echo");
    let mut host = place.serve(&["-v", "--gate", gate.to_str().unwrap()]);
    place.put("lines");
    host.signal(HUP);
    host.line("conversation replayed");
    assert!(host.stop().success());
    assert!(!host.log().contains("ERROR"), "{}", host.log());
}
