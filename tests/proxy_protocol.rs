//! The PROXY protocol: balancers say for whom they connect, before all else.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::harness::tools;
use crate::harness::{Client, DEADLINE, Host, field, guest, noise, scratch, until};

const FROM_HERE: [&str; 2] = ["--proxy-protocol-from", "127.0.0.1"];

/// A header of version 2 for `192.0.2.7:49152` that has reached `192.0.2.1:80`.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x01\xc0\x00\x00\x50";

/// The same of version 1.
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 49152 80\r\n";

fn is_refused(host: &Host, bytes: &[u8], reason: &str) {
    // It may be reset before all is sent, and before it knows that it has connected.
    let refused = Client::connect(host.address()).and_then(|client| {
        (&client.0).write_all(bytes)?;
        (&client.0).read_to_end(&mut Vec::new())
    });
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    let line = host.line("connection refused");
    assert!(line.contains(&format!("reason=\"{reason}\"")), "{line}");
}

#[test]
fn guest_and_log_know_the_true_client() {
    let host = Host::serving("whoami", &FROM_HERE);
    let six = b"PROXY TCP6 2001:db8::7 2001:db8::1 49152 80\r\n";
    for (header, remote, local) in [
        (V1, "192.0.2.7:49152", "192.0.2.1:80"),
        (V2, "192.0.2.7:49152", "192.0.2.1:80"),
        (six, "[2001:db8::7]:49152", "[2001:db8::1]:80"),
    ] {
        let client = host.connect();
        client.send(header);
        let said = String::from_utf8(client.rest()).unwrap();
        assert!(
            said.starts_with(&format!("remote {remote}\nlocal {local}\nlistener 127.0.0.1:")),
            "{said}"
        );
        drop(client);
        assert_eq!(field(&host.line("connection ended"), "peer"), remote);
    }
}

#[test]
fn what_follows_the_header_is_for_the_guest() {
    for guest in ["echo", "lines-session", "cat"] {
        let host = Host::serving(guest, &FROM_HERE);
        for header in [V1, V2] {
            let client = host.connect();
            client.send([header, b"PROXY\r\n"].concat());
            client.finish();
            assert_eq!(client.rest(), b"PROXY\r\n", "{guest}");
            // Byte by byte.
            let client = host.connect();
            for byte in header {
                client.send([*byte]);
            }
            client.echo("hello\n");
            client.finish();
            assert_eq!(client.rest(), b"");
        }
    }
}

#[test]
fn a_balancer_that_connects_for_itself_is_the_peer() {
    let host = Host::serving("echo", &FROM_HERE);
    let local = [&V2[..12], b"\x20\x00\x00\x00"].concat();
    // The block of addresses is discarded: an unassigned family, and bytes that are no values.
    let odd = [&V2[..12], b"\x20\x7f\x00\x05\xff\xff\xff\xff\xff"].concat();
    for header in [
        &b"PROXY UNKNOWN\r\n"[..],
        b"PROXY UNKNOWN \xff\xfe\r\n",
        &local,
        &odd,
    ] {
        let client = host.connect();
        let peer = client.0.local_addr().unwrap().to_string();
        client.send(header);
        client.echo("hello");
        drop(client);
        assert_eq!(field(&host.line("connection ended"), "peer"), peer);
    }
}

#[test]
fn who_is_not_trusted_is_refused() {
    let host = Host::serving("echo", &["--proxy-protocol-from", "127.0.0.2"]);
    is_refused(&host, V2, "untrusted");
    let client = Client::from([127, 0, 0, 2], host.address());
    client.send(V2);
    client.echo("hello");
}

#[test]
fn the_longest_time_for_a_header_is_a_long_time() {
    let timeout = ["--proxy-protocol-timeout", "18446744073709551615s"];
    let host = Host::serving("echo", &[&FROM_HERE[..], &timeout].concat());
    let client = host.connect();
    client.send(V2);
    client.echo("hello");
}

#[test]
fn what_is_no_header_is_refused() {
    let host = Host::serving("echo", &[&FROM_HERE[..], &["-v"]].concat());
    let too_long = [&V2[..14], b"\xff\xff"].concat();
    let long_line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
    for bytes in [
        &b"hello\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 1.2.3.4\r\n           ",
        b"\x16\x03\x01\x02\x00",
        &too_long,
        &long_line,
    ] {
        is_refused(&host, bytes, "proxy-header");
    }
    // One that goes before it has said anything.
    let client = host.connect();
    client.finish();
    client.expect_reset();
    host.line("reason=\"proxy-header\"");
    let log = host.log();
    let rejected: Vec<_> = log
        .lines()
        .filter(|line| line.contains("connection rejected: "))
        .collect();
    assert!(rejected.len() > 6, "{log}");
    let listener = format!(" listener=\"{}\"", host.address());
    for line in rejected {
        assert!(
            line.contains(" service=\"echo\"") && line.contains(&listener),
            "{line}"
        );
    }
}

#[test]
fn a_header_that_takes_too_long_is_refused() {
    let host = Host::serving(
        "echo",
        &[
            "--proxy-protocol-from",
            "127.0.0.1",
            "--proxy-protocol-timeout",
            "300ms",
        ],
    );
    for part in [&b""[..], &V1[..20], &V2[..14]] {
        is_refused(&host, part, "proxy-timeout");
    }
    let client = host.connect();
    client.send(V1);
    client.echo("hello");
}

#[test]
fn a_drain_does_not_wait_for_headers() {
    let args = [
        "--proxy-protocol-from",
        "127.0.0.1",
        "--proxy-protocol-timeout",
        "1h",
        "--drain-timeout",
        "100ms",
    ];
    let mut host = Host::serving("echo", &args);
    let before = host.entries("fd");
    let client = host.connect();
    client.send(&V1[..20]);
    until("it was accepted", || host.entries("fd") > before);
    assert!(host.stop().success());
    client.expect_reset();
    assert!(host.log().contains("reason=\"drained\""), "{}", host.log());
}

#[test]
fn limits_and_rules_are_for_the_true_client() {
    let args = [
        "--proxy-protocol-from",
        "127.0.0.1",
        "--max-connections-per-source",
        "1",
        "--deny",
        "198.51.100.0/24",
    ];
    let host = Host::serving("echo", &args);
    let header = |client: &str| format!("PROXY TCP4 {client} 192.0.2.1 49152 80\r\n");
    let first = host.connect();
    first.send(header("192.0.2.7"));
    first.echo("hello");
    is_refused(&host, header("192.0.2.7").as_bytes(), "source-connections");
    is_refused(&host, header("198.51.100.1").as_bytes(), "access");
    let other = host.connect();
    other.send(header("192.0.2.8"));
    other.echo("hello");
}

#[test]
fn it_is_spoken_over_sockets_of_the_file_system() {
    let dir = scratch("proxy-unix");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s");
    let component = guest("whoami");
    let _host = Host::start(&[
        "--listen",
        &format!("unix:{}", path.display()),
        "--component",
        component.to_str().unwrap(),
        "--proxy-protocol-from",
        "192.0.2.0/24",
    ]);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(V2).unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("remote 192.0.2.7:49152\n"), "{said}");
}

#[test]
fn headers_that_were_damaged_leave_nothing_behind() {
    let host = Host::serving(
        "echo",
        &[
            "--proxy-protocol-from",
            "127.0.0.1",
            "--proxy-protocol-timeout",
            "5s",
            "-q",
        ],
    );
    host.connect().send(V1);
    let before = host.entries("fd");
    let random = noise(11, 4 * 10_000);
    let mut most = 0;
    for (round, random) in random.chunks_exact(4).enumerate() {
        let mut header = if round % 2 == 0 { V1.to_vec() } else { V2.to_vec() };
        for change in random.chunks_exact(2) {
            let place = usize::from(change[0]) % header.len();
            header[place] = change[1];
        }
        let client = host.connect();
        let _ = (&client.0).write_all(&header);
        // What is half a header ends with this.
        let _ = client.0.shutdown(std::net::Shutdown::Write);
        // An end or a reset, whichever it comes to.
        let _ = (&client.0).read_to_end(&mut Vec::new());
        most = most.max(host.entries("fd"));
    }
    // One at a time: its own connection, and those that the host has not closed yet.
    assert!(most <= before + 8, "{most} descriptors, {before} before");
    until("all descriptors are back", || host.entries("fd") <= before);
    let client = host.connect();
    client.send(V2);
    client.echo("hello");
    assert!(!host.log().contains("panic"), "{}", host.log());
}

/// A balancer that is running. It is killed when this is dropped.
struct Balancer(Child);

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// HAProxy in front of `server`, which it tells of its clients by `how`.
fn haproxy(program: &Path, name: &str, server: &str, how: &str) -> (Balancer, SocketAddr) {
    let dir = scratch(&format!("haproxy-{name}"));
    fs::create_dir_all(&dir).unwrap();
    let address = free();
    let config = dir.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "defaults\n mode tcp\n timeout connect 60s\n timeout client 60s\n timeout server 60s\n\
             listen front\n bind {address}\n server one {server} {how}\n"
        ),
    )
    .unwrap();
    let child = Command::new(program)
        .arg("-f")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let balancer = Balancer(child);
    until("the balancer listens", || Client::connect(address).is_ok());
    (balancer, address)
}

#[test]
fn haproxy_tells_of_its_clients() {
    let Some(program) = tools::tool("haproxy") else {
        return;
    };
    let dir = scratch("haproxy-unix");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s");
    let component = guest("whoami");
    let host = Host::start(&[
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &format!("unix:{}", path.display()),
        "--component",
        component.to_str().unwrap(),
        "--proxy-protocol-from",
        "127.0.0.1",
    ]);
    let (tcp, unix) = (host.address().to_string(), format!("unix@{}", path.display()));
    for (name, server, how) in [
        ("v1", &tcp, "send-proxy"),
        ("v2", &tcp, "send-proxy-v2"),
        (
            "v2-values",
            &tcp,
            "send-proxy-v2 proxy-v2-options unique-id,crc32c",
        ),
        ("v2-unix", &unix, "send-proxy-v2"),
    ] {
        let (_balancer, address) = haproxy(&program, name, server, how);
        let client = Client::connect(address).unwrap();
        let said = String::from_utf8(client.rest()).unwrap();
        let expected = format!("remote {}\nlocal {address}\n", client.0.local_addr().unwrap());
        assert!(said.starts_with(&expected), "{name}: {said}");
    }
}
