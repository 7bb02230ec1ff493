//! A guest that gives its inbound half back is served without it, and its peer cannot tell.

use std::fs;

use crate::harness::{Host, field, noise};

/// Everything that a peer and the log see of a few connections to `guest`.
fn seen(guest: &str) -> Vec<String> {
    let mut host = Host::serving(guest, &["--idle-timeout", "1s", "--drain-timeout", "2s"]);
    let mut seen = Vec::new();
    let mut note = |host: &Host, what: &str| {
        let line = host.line("connection ended");
        let fields = ["bytes_in", "bytes_out", "outcome"].map(|key| field(&line, key));
        seen.push(format!("{what}: {fields:?}"));
    };

    let client = host.connect();
    client.finish();
    assert_eq!(client.rest(), b"");
    note(&host, "FIN at once");

    let client = host.connect();
    client.echo("one\n");
    client.echo("two\n");
    client.finish();
    assert_eq!(client.rest(), b"");
    note(&host, "two lines, FIN");

    let client = host.connect();
    let bytes: Vec<u8> = noise(3, 300_000).chunks(100).flat_map(line).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.send(&bytes);
            client.finish();
        });
        assert!(client.rest() == bytes);
    });
    note(&host, "much at once");

    let client = host.connect();
    client.echo("one\n");
    client.reset();
    note(&host, "a reset");

    let client = host.connect();
    client.echo("one\n");
    assert_eq!(client.rest(), b"");
    note(&host, "silence");

    let client = host.connect();
    client.echo("one\n");
    host.signal(libc::SIGTERM);
    host.line("draining");
    client.echo("two\n");
    client.finish();
    assert_eq!(client.rest(), b"");
    note(&host, "a drain");
    assert!(host.wait().success());
    seen
}

/// Bytes that hold no line feed but at their end.
fn line(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.iter().map(|byte| if *byte == b'\n' { b'.' } else { *byte });
    bytes.chain([b'\n']).collect()
}

#[test]
fn a_peer_cannot_tell_whether_its_bytes_pass_through_the_guest() {
    let copied = seen("lines");
    assert_eq!(copied.len(), 6);
    assert_eq!(seen("echo"), copied);
    assert_eq!(seen("arbiter"), copied);
    assert_eq!(seen("copy"), copied);
}

#[test]
fn a_guest_that_has_nothing_left_to_do_takes_no_memory() {
    let mappings = |guest| {
        let host = Host::serving(guest, &[]);
        let count = || {
            let maps = fs::read_to_string(format!("/proc/{}/maps", host.pid())).unwrap();
            maps.lines().count()
        };
        let warm: Vec<_> = (0..8).map(|_| host.connect()).collect();
        warm.iter().for_each(|client| client.echo("hello\n"));
        let before = count();
        // One after another, since a slot of the pool that was ever used keeps its mappings.
        let connect = || {
            let client = host.connect();
            client.echo("hello\n");
            client
        };
        let _clients: Vec<_> = (0..100).map(|_| connect()).collect();
        count() - before
    };
    let (relayed, copied) = (mappings("echo"), mappings("lines"));
    assert!(copied >= 100, "{copied} mappings for 100 instances");
    assert!(
        relayed < 20,
        "{relayed} mappings for 100 connections without an instance"
    );
}
