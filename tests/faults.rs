//! Peers and systems that do not behave.

use crate::harness::{Host, field};

#[test]
fn a_peer_that_resets_while_the_guest_writes() {
    let host = Host::serving("chargen", &["--threads", "1"]);
    let neighbour = host.connect();
    for _ in 0..20 {
        let client = host.connect();
        client.expect(" !\"");
        client.reset();
        assert_eq!(host.outcome(), "peer-reset");
        neighbour.expect([0; 0]);
    }
    neighbour.expect(" !\"");
}

#[test]
fn a_peer_that_resets_while_the_guest_reads() {
    for guest in ["echo", "lines", "lines-session", "discard", "sink"] {
        let host = Host::serving(guest, &[]);
        let client = host.connect();
        client.send("half a line");
        client.reset();
        assert_eq!(host.outcome(), "peer-reset", "{guest}");
    }
}

#[test]
fn a_silent_connection_is_closed_and_a_talking_one_is_not() {
    for guest in ["echo", "lines", "lines-session", "deaf"] {
        let host = Host::serving(guest, &["--idle-timeout", "300ms"]);
        let silent = host.connect();
        let talking = host.connect();
        let mut lines = 0;
        while guest != "deaf" && silent.hears_nothing() {
            talking.echo("a line\n");
            lines += 1;
        }
        assert_eq!(silent.rest(), b"", "{guest}");
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "idle-timeout", "{guest}");
        assert_eq!(field(&line, "bytes_in"), "0", "{guest}");
        let lasted: f64 = field(&line, "duration_ms").parse().unwrap();
        assert!(
            (300.0..10_000.0).contains(&lasted),
            "{guest} was closed after {lasted} ms"
        );
        if guest != "deaf" {
            assert!(lines > 0);
            talking.echo("another line\n");
        }
    }
}

#[test]
fn a_peer_that_stops_reading_is_idle_too() {
    let host = Host::serving("chargen", &["--idle-timeout", "300ms"]);
    let client = host.connect();
    client.expect(" !\"");
    assert_eq!(host.outcome(), "idle-timeout");
    client.expect_reset();
}

#[test]
fn running_out_of_descriptors_is_waited_out() {
    let args = ["--listen", "127.0.0.1:0", "--max-connections", "100"];
    let host = Host::below_shell("ulimit -n 40", &args);
    assert!(
        host.log().contains("raise the limit"),
        "no warning in {}",
        host.log()
    );
    let mut clients: Vec<_> = (0..60).map(|_| host.connect()).collect();
    for client in &clients {
        client.send("hello");
    }
    host.line("cannot accept connections for now");
    let later = clients.split_off(30);
    drop(clients);
    host.line("accepting again");
    for client in &later[..15] {
        client.expect("hello");
    }
    drop(later);
    host.connect().echo("hello");
    // One line an episode and thread, not one an attempt.
    let log = host.log();
    assert!(log.matches("cannot accept").count() < 10, "{log}");
}

#[test]
fn without_the_address_space_for_a_pool_instances_are_allocated_on_demand() {
    let args = ["--listen", "127.0.0.1:0", "--max-connections", "1000"];
    let host = Host::below_shell("ulimit -v 12000000", &args);
    assert!(host.log().contains("on demand"), "no warning in {}", host.log());
    let clients: Vec<_> = (0..300).map(|_| host.connect()).collect();
    for client in &clients {
        client.echo("hello");
    }
}
