//! Calls of guests that wait for a processor: the time is not theirs.

use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use crate::harness::{CONT, Client, Host, STOP, until};

/// More than a call takes on a processor of its own, and less than it takes beside all others.
const MAX: &str = "500ms";

/// Longer than [`MAX`], and less than the ten times for which a call may wait for the host.
const LONGER: Duration = Duration::from_millis(1500);

fn host() -> Host {
    Host::serving("primes", &["--threads", "2", "--max-call-time", MAX])
}

/// Has each of so many guests make a table of primes, which is one long call.
fn calls(host: &Host, count: usize) -> Vec<Client> {
    let clients: Vec<_> = (0..count).map(|_| host.connect()).collect();
    for client in &clients {
        client.send("1000\n");
    }
    clients
}

fn are_answered(clients: &[Client]) {
    for client in clients {
        assert_eq!(client.line(), "7919");
    }
}

/// Processes that keep the processors busy until this is dropped.
struct Neighbours(Vec<Child>);

impl Neighbours {
    fn new(count: usize) -> Self {
        let spinner = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn();
        Self((0..count).map(|_| spinner().unwrap()).collect())
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn calls_that_wait_for_each_other_are_not_charged_for_it() {
    let host = host();
    are_answered(&calls(&host, 50));
}

#[test]
fn calls_of_a_stopped_process_are_not_charged_for_it() {
    let host = host();
    let before = host.processor_time();
    let clients = calls(&host, 20);
    until("calls are under way", || {
        host.processor_time() - before >= Duration::from_millis(50)
    });
    host.signal(STOP);
    // The stall that the calls are in, not a wait for anything.
    thread::sleep(LONGER);
    host.signal(CONT);
    are_answered(&clients);
}

#[test]
fn what_comes_while_the_process_is_stopped_is_handled_before_its_client_is_called_idle() {
    for isolation in ["connection", "service"] {
        let args = ["--idle-timeout", "1s", "--isolation", isolation];
        let host = Host::serving("lines", &args);
        let clients: Vec<_> = (0..20).map(|_| host.connect()).collect();
        for client in &clients {
            client.echo("hello\n");
        }
        host.signal(STOP);
        for client in &clients {
            client.send("in time\n");
        }
        // The stall that they are in, beyond their timeout.
        thread::sleep(LONGER);
        host.signal(CONT);
        for client in &clients {
            client.expect("in time\n");
        }
        // Silence after the stall counts.
        for _ in &clients {
            assert_eq!(host.outcome(), "idle-timeout");
        }
    }
}

#[test]
fn calls_beside_a_busy_process_are_not_charged_for_it() {
    let host = host();
    let _neighbours = Neighbours::new(16);
    are_answered(&calls(&host, 10));
}
