//! How a host comes to its end.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::disks::{hang, with_pipe};
use crate::harness::{
    CONT, Client, HUP, Host, INT, Place, STOP, TERM, USR2, command, field, guest, replace, scratch,
};

/// How long a drain may take whose timeout is one second: at most four seconds more, for the
/// connections that are closed with FIN, and for a slow machine.
const ON_TIME: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

#[test]
fn an_idle_host_ends_at_once() {
    for signal in [INT, TERM] {
        let mut host = Host::serving("echo", &[]);
        host.signal(signal);
        assert_eq!(host.wait().code(), Some(0));
        assert_eq!(field(&host.line("drained"), "closed"), "0");
    }
}

#[test]
fn open_connections_may_finish_and_no_new_ones_come_in() {
    let mut host = Host::serving("lines", &["--drain-timeout", "1h"]);
    let client = host.connect();
    client.echo("before\n");
    host.signal(TERM);
    host.line("draining");
    while TcpStream::connect(host.address()).is_ok() {
        thread::yield_now();
    }
    client.echo("meanwhile\n");
    client.send("quit\n");
    assert_eq!(client.rest(), b"");
    drop(client);
    assert_eq!(host.outcome(), "finished");
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn what_is_left_at_the_timeout_is_closed_and_counted() {
    let mut host = Host::serving("spin", &["--drain-timeout", "3s", "--max-call-time", "off"]);
    let talking = host.connect();
    let idle = host.connect();
    let stuck = host.connect();
    talking.echo("hello");
    idle.echo("hello");
    stuck.echo("hello");
    stuck.send("!");
    let start = Instant::now();
    host.signal(TERM);
    host.line("draining");
    for _ in 0..100 {
        talking.echo("still talking");
    }
    talking.finish();
    assert_eq!(talking.rest(), b"");
    assert_eq!(idle.rest(), b"", "what owes the peer nothing is closed with FIN");
    stuck.expect_reset();
    drop(idle);
    assert_eq!(field(&host.line("drained: "), "closed"), "2");
    assert_eq!(host.wait().code(), Some(0));
    let took = start.elapsed();
    let extra = Duration::from_secs(2);
    assert!((ON_TIME.0 + extra..ON_TIME.1 + extra).contains(&took), "{took:?}");
    let log = host.log();
    assert_eq!(log.matches("outcome=\"finished\"").count(), 1, "{log}");
    assert_eq!(log.matches("outcome=\"drained\"").count(), 2, "{log}");
}

#[test]
fn an_answer_that_is_cut_off_does_not_end_like_a_whole_one() {
    let mut host = Host::serving("chargen", &["--drain-timeout", "300ms"]);
    let client = host.connect();
    client.expect(" !\"");
    host.signal(TERM);
    // It reads all the time, so the guest is never held back, and is cut in the middle of what it says.
    client.expect_reset();
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn a_peer_that_does_not_read_does_not_hold_up_a_drain() {
    let mut host = Host::serving("chargen", &["--drain-timeout", "100ms"]);
    let client = host.connect();
    client.expect(" !\"");
    assert_eq!(host.stop().code(), Some(0));
    client.expect_reset();
    assert_eq!(host.outcome(), "drained");
}

#[test]
fn a_second_signal_does_not_wait() {
    let mut host = Host::serving("echo", &["--drain-timeout", "1h"]);
    let client = host.connect();
    client.echo("hello");
    host.signal(TERM);
    host.line("draining");
    host.signal(TERM);
    assert_eq!(host.wait().code(), Some(1));
}

#[test]
fn signals_that_change_nothing_during_a_drain_are_logged() {
    let mut host = Host::serving("lines", &["--drain-timeout", "1h"]);
    let client = host.connect();
    client.echo("before\n");
    host.signal(TERM);
    host.line("draining: ");
    for (signal, line) in [
        (HUP, "SIGHUP reloads nothing"),
        (USR2, "SIGUSR2 rolls nothing back"),
    ] {
        host.signal(signal);
        host.line(line);
    }
    client.echo("meanwhile\n");
    client.send("quit\n");
    assert_eq!(client.rest(), b"");
    drop(client);
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn a_signal_that_comes_with_the_one_to_stop_is_logged() {
    for (signal, line) in [
        (HUP, "SIGHUP reloads nothing"),
        (USR2, "SIGUSR2 rolls nothing back"),
    ] {
        // Which of the two is heard first must not depend on chance.
        for _ in 0..4 {
            let mut host = Host::serving("echo", &[]);
            host.pause();
            host.signal(signal);
            host.signal(TERM);
            host.signal(CONT);
            assert_eq!(host.wait().code(), Some(0));
            assert!(host.log().contains(line), "{}", host.log());
        }
    }
}

#[test]
fn a_reload_that_a_drain_gives_up_is_logged() {
    let place = Place::new("drain-reload", "echo");
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--component"]);
    let (mut host, mut pipe) = with_pipe(command.arg(place.file()));
    hang(&place.file());
    host.signal(HUP);
    // A pipe holds less, so the host has begun to read it when this returns.
    let bytes = fs::read(guest("upper")).unwrap();
    assert!(bytes.len() > 64 << 10);
    pipe.write_all(&bytes).unwrap();
    host.signal(TERM);
    let line = host.line_of(&["reload given up", "drained"]);
    assert!(line.contains("the host drains"), "{line}");
    assert_eq!(field(&line, "generation"), "1");
    drop(pipe);
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn guests_that_fail_during_a_drain_cause_no_rollback() {
    let place = Place::new("drain-fails", "echo");
    let mut host = place.serve(&["--drain-timeout", "1h"]);
    host.connect().echo("hello");
    place.put("moody");
    host.signal(HUP);
    host.line("component reloaded");
    let clients: Vec<_> = (0..6).map(|_| host.connect()).collect();
    for client in &clients {
        client.echo("hello\n");
    }
    host.signal(TERM);
    host.line("draining: ");
    for client in &clients {
        client.send("trap\n");
        assert_eq!(host.outcome(), "guest-trap");
    }
    assert_eq!(host.wait().code(), Some(0));
    assert!(!host.log().contains("rolled back"), "{}", host.log());
}

#[test]
fn a_drain_ends_on_time_whatever_guests_and_peers_do() {
    let dir = scratch("drain");
    fs::create_dir_all(&dir).unwrap();
    let component = dir.join("guest.wasm");
    fs::copy(guest("spin"), &component).unwrap();
    let mut host = Host::with(&component, &["--max-call-time", "off", "--drain-timeout", "1s"]);
    let clients = |count: usize| -> Vec<_> { (0..count).map(|_| host.connect()).collect() };
    let looping = clients(3);
    for client in &looping {
        client.echo("hello");
    }
    looping[0].send("!");
    // One idle connection, one with half a line, one that loops, and one that sleeps, which takes another guest.
    looping[1].send("half a li");
    replace(&component, fs::read(guest("sleep")).unwrap());
    host.signal(HUP);
    host.line("component reloaded");
    let sleeping = clients(1);
    sleeping[0].echo("hello");
    sleeping[0].send("!");
    let start = Instant::now();
    host.signal(TERM);
    let line = host.line("INFO drained");
    assert_eq!(field(&line, "closed"), "4");
    assert_eq!(host.wait().code(), Some(0));
    let took = start.elapsed();
    assert!((ON_TIME.0..ON_TIME.1).contains(&took), "{took:?}");
    assert_eq!(host.log().matches("\"drained\"").count(), 4);
}

#[test]
fn who_has_connected_before_the_drain_is_served() {
    let mut host = Host::serving("lines", &["--drain-timeout", "3m"]);
    // They wait in the backlog of a host that stands still, and it goes on with being told to stop.
    host.signal(STOP);
    let clients: Vec<_> = (0..500)
        .map(|_| Client::connect(host.address()).unwrap())
        .collect();
    host.signal(TERM);
    host.signal(CONT);
    for client in &clients {
        client.echo("hello\n");
        client.finish();
        assert_eq!(client.rest(), b"");
    }
    assert!(host.wait().success());
    assert!(host.log().contains("drained closed=0"), "{}", host.log());
}
