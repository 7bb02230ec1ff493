//! Many connections at once, and no more than may be.

use std::thread;

use crate::harness::{Client, Host, noise};

#[test]
fn a_thousand_connections_at_once_are_each_served_their_own_bytes() {
    for guest in ["echo", "lines-session"] {
        let host = Host::serving(guest, &[]);
        let clients: Vec<(Client, String)> = (0..1000)
            .map(|i| (host.connect(), format!("connection {i} says {i}\n")))
            .collect();
        for (client, text) in &clients {
            client.send(text);
        }
        for (client, text) in &clients {
            client.expect(text);
        }
        for (client, text) in clients.iter().rev() {
            client.echo(text);
            client.finish();
        }
        for (client, _) in &clients {
            assert_eq!(client.rest(), b"");
        }
        for _ in &clients {
            assert_eq!(host.outcome(), "finished");
        }
    }
}

#[test]
fn beyond_the_cap_clients_wait_in_the_backlog() {
    for threads in ["1", "3"] {
        let host = Host::serving("echo", &["--max-connections", "2", "--threads", threads]);
        let first = host.connect();
        let second = host.connect();
        first.echo("one");
        second.echo("two");
        let waiting: Vec<_> = (0..5).map(|_| host.connect()).collect();
        for client in &waiting {
            client.send("three");
        }
        for client in &waiting {
            assert!(client.hears_nothing(), "more connections than the cap are served");
        }
        first.echo("still here");
        let mut leaving = first;
        for client in waiting {
            drop(leaving);
            client.expect("three");
            client.echo("four");
            leaving = client;
        }
        second.echo("five");
    }
}

#[test]
fn the_cap_counts_for_all_listeners_together() {
    let host = Host::start(&[
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "127.0.0.1:0",
        "--max-connections",
        "1",
    ]);
    let [one, other] = host.addresses() else {
        panic!("two listeners")
    };
    for _ in 0..3 {
        let first = Client::connect(*one).unwrap();
        first.echo("one");
        let second = Client::connect(*other).unwrap();
        second.send("two");
        assert!(second.hears_nothing());
        drop(first);
        second.expect("two");
    }
}

#[test]
fn a_peer_that_does_not_read_costs_no_memory() {
    let host = Host::serving("chargen", &["--threads", "1"]);
    let reading = host.connect();
    reading.expect(" !\"");
    let before = host.memory("VmRSS");
    let silent: Vec<_> = (0..50).map(|_| host.connect()).collect();
    for client in &silent {
        // Something has arrived, so the guest has begun to write and goes on until it is held back.
        client.0.peek(&mut [0]).unwrap();
    }
    // Another peer gets its bytes meanwhile: 8 MB, more than all socket buffers of the silent ones hold.
    let mut taken = 0;
    while taken < 8_000_000 {
        let count = std::io::Read::read(&mut &reading.0, &mut [0; 65536]).unwrap();
        assert!(count > 0, "the host has closed a connection");
        taken += count;
    }
    let grown = host.memory("VmRSS").saturating_sub(before);
    assert!(grown < 50 * 512, "{grown} KiB more for 50 peers that do not read");
}

#[test]
fn connections_one_after_another_leave_nothing_behind() {
    let host = Host::serving("lines-session", &[]);
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{}/fd", host.pid()))
            .unwrap()
            .count()
    };
    let round = || {
        thread::scope(|scope| {
            for thread in 0..4 {
                let address = host.address();
                scope.spawn(move || {
                    for i in 0..250 {
                        let client = Client::connect(address).unwrap();
                        client.echo(line(thread * 1000 + i));
                        client.finish();
                        assert_eq!(client.rest(), b"");
                    }
                });
            }
        });
        for _ in 0..1000 {
            host.line("connection ended");
        }
    };
    round();
    let (open, memory) = (descriptors(), host.memory("VmRSS"));
    round();
    round();
    assert_eq!(descriptors(), open);
    let grown = host.memory("VmRSS").saturating_sub(memory);
    assert!(grown < 4096, "2,000 connections left {grown} KiB behind");
}

/// A line of 64 bytes before its end.
fn line(seed: u64) -> Vec<u8> {
    let mut line = noise(seed, 64);
    line.iter_mut()
        .filter(|byte| **byte == b'\n')
        .for_each(|byte| *byte = b' ');
    line.push(b'\n');
    line
}
