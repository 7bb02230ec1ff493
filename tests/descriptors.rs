//! Descriptors and permits: how many a guest, and a client that does not close, may hold.

use std::fs;
use std::net::TcpListener;

use crate::harness::{Client, Host, field, guest, refused, scratch};

fn asks(client: &Client, what: &str) -> String {
    client.send(format!("{what}\n"));
    client.line()
}

#[test]
fn a_guest_and_its_service_hold_no_more_sockets_than_they_may() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let host = Host::serving(
        "errands",
        &["--allow-outbound", &address, "--max-connections", "10"],
    );
    let hold = format!("hold-sockets 100 {address}");
    let (first, second, third) = (host.connect(), host.connect(), host.connect());
    // 16 for each connection, and two times `--max-connections` for the service.
    assert_eq!(asks(&first, &hold), "16");
    assert_eq!(asks(&second, &hold), "4");
    assert_eq!(asks(&third, &hold), "0");
    first.finish();
    first.rest();
    host.line("connection ended");
    assert_eq!(asks(&third, &hold), "16");
    // One that is dropped makes room for another.
    second.finish();
    second.rest();
    host.line("connection ended");
    let fourth = host.connect();
    for _ in 0..20 {
        assert_eq!(asks(&fourth, &format!("connect {address}")), "connected");
    }
}

#[test]
fn a_guest_holds_no_more_files_than_it_may() {
    let dir = scratch("held");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("note"), "a note").unwrap();
    let host = Host::serving("errands", &["--dir", &format!("{}::/data", dir.display())]);
    let client = host.connect();
    assert_eq!(asks(&client, "hold-files 200 /data/note"), "200");
    client.send("hold-files 100 /data/note\n");
    client.expect_reset();
    assert_eq!(host.outcome(), "guest-trap");
}

#[test]
fn a_connection_that_lingers_makes_room_for_others() {
    let host = Host::serving("daytime", &["--max-connections", "2"]);
    let lingering: Vec<_> = (0..2)
        .map(|_| {
            let client = host.connect();
            assert!(!client.rest().is_empty());
            client
        })
        .collect();
    // It waits for a permit, which the others keep until their clients close.
    assert!(!host.connect().rest().is_empty());
    let line = host.line("connection ended");
    assert_eq!(field(&line, "outcome"), "finished");
    let duration: f64 = field(&line, "duration_ms").parse().unwrap();
    assert!((500.0..4000.0).contains(&duration), "{line}");
    drop(lingering);
}

#[test]
fn directories_of_the_kernel_are_not_granted() {
    let errands = guest("errands").display().to_string();
    for (dir, expected) in [
        ("/proc", "`/proc`: it belongs to `/proc`"),
        ("/proc/self", "`/proc/self`: it belongs to `/proc`"),
        ("/sys", "`/sys`: it belongs to `/sys`"),
        ("/dev", "`/dev`: it belongs to `/dev`"),
        ("/", "`/`: it contains `/proc`"),
    ] {
        let grant = format!("{dir}::/data");
        for args in [
            &[
                "--listen",
                "127.0.0.1:0",
                "--component",
                &errands,
                "--dir",
                &grant,
            ][..],
            &["check", &errands, "--dir", &grant],
        ] {
            let refusal = refused(args);
            assert_eq!(refusal.status, Some(1), "{}", refusal.message);
            assert!(refusal.message.contains(expected), "{}", refusal.message);
            assert!(
                refusal.message.contains("grant a directory of ordinary files"),
                "{}",
                refusal.message
            );
        }
    }
}
