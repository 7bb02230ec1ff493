//! Many peers that mean no good, and what they cost.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::admin::{admin_of, pool_used};
use crate::harness::http::At;
use crate::harness::{Client, Host, guest, until};

/// Peers at once that take or send nothing.
const PEERS: u32 = 500;

/// The most memory that one of them may hold, in KiB. `SECURITY.md` has the figures that were
/// measured.
const MOST: u64 = 85;

#[test]
fn a_storm_of_resets_leaves_nothing_behind() {
    for guest in ["lines-session", "lines"] {
        let host = Host::serving(guest, &["--max-connections", "300", "--admin", "0"]);
        let admin = admin_of(&host);
        let before = host.entries("fd");
        thread::scope(|scope| {
            for thread in 0..4 {
                let address = host.address();
                scope.spawn(move || {
                    for i in 0..5_000 {
                        let client = Client::connect(address).unwrap();
                        // Bytes that nobody takes any more may be refused.
                        for _ in 0..(i + thread) % 4 {
                            let _ = (&client.0).write(b"half a li");
                        }
                        client.reset();
                    }
                });
            }
        });
        until("all descriptors are closed", || host.entries("fd") == before);
        until("all instances are gone", || instances(&admin) == 0.0);
        // As many as there are permits, all at once.
        let clients: Vec<_> = (0..300).map(|_| host.connect()).collect();
        for client in &clients {
            client.echo("hello\n");
        }
        assert_eq!(instances(&admin), 300.0);
        let log = host.log();
        assert!(!log.contains("panic") && !log.contains("WARN"), "{log}");
    }
}

/// Returns how many instances of the pool are in use.
fn instances(admin: &At) -> f64 {
    pool_used(admin, "instances")
}

#[test]
fn peers_that_do_not_read_cost_little_memory_and_no_time() {
    let host = Host::serving("chargen", &["--write-timeout", "20s"]);
    stalled(&host, "write-timeout", |client| {
        // Something has arrived, so the guest has begun to write and goes on until it is held back.
        client.0.peek(&mut [0]).unwrap();
    });
}

#[test]
fn peers_that_send_to_a_guest_that_does_not_read_cost_little_memory_and_no_time() {
    let host = Host::serving("deaf", &["--first-byte-timeout", "off", "--idle-timeout", "20s"]);
    stalled(&host, "idle-timeout", |client| {
        client.0.set_nonblocking(true).unwrap();
        let chunk = [0; 65536];
        while match (&client.0).write(&chunk) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        } {}
        client.0.set_nonblocking(false).unwrap();
    });
}

/// Many clients that have come to a halt by `stall` cost nothing but some memory, others are served meanwhile, and all end
/// with `outcome`.
fn stalled(host: &Host, outcome: &str, stall: impl Fn(&Client)) {
    let first = host.connect();
    stall(&first);
    let before = host.memory("VmRSS");
    let clients: Vec<_> = (1..PEERS).map(|_| host.connect()).collect();
    clients.iter().for_each(&stall);
    let grown = host.memory("VmRSS").saturating_sub(before) / u64::from(PEERS);
    assert!(grown < MOST, "{grown} KiB for each peer");
    // What they have sent or been sent is under way until no time passes on the processor.
    until("no time passes on the processor", || {
        let (start, used) = (Instant::now(), host.processor_time());
        thread::sleep(Duration::from_millis(300));
        host.processor_time() - used < start.elapsed() / 20
    });
    let log = host.log();
    assert!(!log.contains("connection ended"), "they had ended by then: {log}");
    for _ in 0..PEERS {
        assert_eq!(host.outcome(), outcome);
    }
    for client in clients {
        // A reset, or FIN behind what was sent.
        while matches!((&client.0).read(&mut [0; 65536]), Ok(1..)) {}
    }
    until("all descriptors are closed", || host.entries("fd") < 100);
}

#[test]
fn a_panic_of_the_host_ends_one_connection() {
    let args = ["--listen", "127.0.0.1:0"];
    let host = Host::below_shell("export WASM_INETD_PANIC_AT=2", &args);
    let neighbour = host.connect();
    neighbour.echo("hello");
    host.connect().expect_reset();
    assert!(host.line("panic").contains("failpoint: panic at connection 2"));
    let line = host.line("connection ended");
    for part in ["connection=2", "host-panic", "panics=1", "127.0.0.1"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    neighbour.echo("still here");
    host.connect().echo("hello");
}

#[test]
fn what_passed_before_a_panic_of_the_host_stays_counted() {
    let component = guest("lines-session");
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "0",
        "--component",
        component.to_str().unwrap(),
    ];
    let host = Host::below_shell("export WASM_INETD_PANIC_AFTER=1", &args);
    let admin = admin_of(&host);
    let counted = |name: &str| {
        let metrics = admin.get("/metrics").body;
        let series = format!("wasm_inetd_{name}{{service=\"lines-session\"");
        let samples = metrics.lines().filter(|line| line.starts_with(&series));
        let values = samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap());
        values.sum::<f64>()
    };
    let client = host.connect();
    client.echo("hello\n");
    until("the time of the guest is counted", || {
        counted("guest_cpu_seconds_total") > 0.0
    });
    let names = [
        "received_bytes_total",
        "sent_bytes_total",
        "guest_cpu_seconds_total",
    ];
    let before = names.map(counted);
    assert_eq!((before[0], before[1]), (6.0, 6.0));
    // It panics when the connection is over, and before it is counted.
    client.finish();
    assert!(host.line("panic").contains("failpoint: panic after connection 1"));
    assert_eq!(host.outcome(), "host-panic");
    for (name, before) in names.into_iter().zip(before) {
        let after = counted(name);
        assert!(after >= before, "{name} fell from {before} to {after}");
    }
    assert_eq!(counted("connections_ended_total"), 1.0);
    assert_eq!(counted("connection_duration_seconds_count"), 1.0);
    let ended = "wasm_inetd_connections_ended_total{service=\"lines-session\",outcome=\"host-panic\"} 1";
    let metrics = admin.get("/metrics").body;
    assert!(metrics.contains(ended), "{metrics}");
}
