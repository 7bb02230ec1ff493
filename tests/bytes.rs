//! What is sent arrives, whole and in order, and both halves end as they should.

use std::thread;

use crate::harness::{Host, field, noise};

/// Sends `bytes` from a second thread while reading as many, and compares.
fn echo_while_reading(guest: &str, bytes: &[u8]) {
    let host = Host::serving(guest, &[]);
    let client = host.connect();
    thread::scope(|scope| {
        scope.spawn(|| {
            client.send(bytes);
            client.finish();
        });
        assert!(
            client.rest() == bytes,
            "{guest} gave back other bytes than it was sent"
        );
    });
    let line = host.line("connection ended");
    assert_eq!(field(&line, "bytes_in"), bytes.len().to_string());
    assert_eq!(field(&line, "bytes_out"), bytes.len().to_string());
    assert_eq!(field(&line, "outcome"), "finished");
}

#[test]
fn ten_megabytes_come_back_as_they_were_sent() {
    echo_while_reading("echo", &noise(1, 10_000_000));
}

#[test]
fn ten_megabytes_of_lines_come_back_through_streams_that_the_guest_copies() {
    echo_while_reading("lines", &lines(10_000_000));
}

#[test]
fn ten_megabytes_of_lines_come_back_through_a_session() {
    echo_while_reading("lines-session", &lines(10_000_000));
}

/// Noise as lines of 0 to 255 bytes.
fn lines(count: usize) -> Vec<u8> {
    let mut bytes = noise(2, count);
    bytes
        .iter_mut()
        .filter(|byte| **byte == b'\n')
        .for_each(|byte| *byte = b'.');
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes[at] as usize;
        if let Some(end) = bytes.get_mut(at + length) {
            *end = b'\n';
        }
        at += length + 1;
    }
    bytes
}

#[test]
fn a_peer_that_has_sent_fin_still_receives_everything() {
    for guest in ["echo", "lines", "lines-session"] {
        let host = Host::serving(guest, &[]);
        let client = host.connect();
        let bytes = lines(500_000);
        thread::scope(|scope| {
            // The guest cannot have written all of it when FIN arrives: nobody reads yet.
            scope.spawn(|| {
                client.send(&bytes);
                client.finish();
            });
            assert!(client.rest() == bytes, "{guest} lost bytes after FIN");
        });
        assert_eq!(host.outcome(), "finished", "{guest}");
    }
}

#[test]
fn a_guest_that_has_sent_fin_still_receives_everything() {
    let host = Host::serving("sink", &[]);
    let client = host.connect();
    assert_eq!(client.half(), b"ready\n");
    let bytes = noise(3, 1_000_000);
    client.send(&bytes);
    client.finish();
    let line = host.line("connection ended");
    assert_eq!(field(&line, "bytes_in"), "1000000");
    assert_eq!(field(&line, "bytes_out"), "6");
    assert_eq!(field(&line, "outcome"), "finished");
}

#[test]
fn the_last_words_of_a_guest_are_not_lost_to_what_the_peer_still_sends() {
    for guest in ["lines", "lines-session"] {
        let host = Host::serving(guest, &[]);
        let client = host.connect();
        // Nobody reads what follows `quit`, and a socket closed with unread bytes would reset the connection.
        client.send("last words\nquit\n");
        client.send(noise(4, 100_000));
        client.expect("last words\n");
        assert_eq!(client.rest(), b"", "{guest}");
        drop(client);
        assert_eq!(host.outcome(), "finished", "{guest}");
    }
}
