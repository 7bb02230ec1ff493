//! Many connections at once, and no more than may be.

use std::thread;

use crate::harness::{Client, Host, noise, until};

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
fn connections_one_after_another_leave_nothing_behind() {
    let host = Host::serving("lines-session", &["-q"]);
    let round = |connections: u64| {
        thread::scope(|scope| {
            for thread in 0..4 {
                let address = host.address();
                scope.spawn(move || {
                    for i in 0..connections / 4 {
                        let client = Client::connect(address).unwrap();
                        client.echo(line(thread * connections + i));
                        if i % 10 == 0 {
                            client.finish();
                            assert_eq!(client.rest(), b"");
                        } else {
                            client.reset();
                        }
                    }
                });
            }
        });
    };
    let before = host.entries("fd");
    let gone = || until("all descriptors are closed", || host.entries("fd") == before);
    round(10_000);
    gone();
    let (mappings, memory) = (host.mappings(), host.memory("VmRSS"));
    round(90_000);
    gone();
    let grown = host.memory("VmRSS").saturating_sub(memory);
    assert!(grown < 4096, "90,000 connections left {grown} KiB behind");
    let mappings = host.mappings().saturating_sub(mappings);
    assert!(
        mappings < 100,
        "90,000 connections left {mappings} mappings behind"
    );
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
