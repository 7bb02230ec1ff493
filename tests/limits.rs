//! Every limit on a connection, obeyed and violated, by a guest of each contract where the guest has a part in it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::admin::admin_of;
use crate::harness::{Client, DEADLINE, HUP, Host, TERM, field, file, scratch, until};
use crate::tls::served;

const ECHOES: [&str; 3] = ["echo", "lines", "lines-session"];

/// A time that a limit in these tests is above, however slow the machine.
const MOMENT: Duration = Duration::from_millis(20);

#[test]
fn one_source_has_no_more_connections_than_it_may() {
    let host = Host::serving("echo", &["--max-connections-per-source", "2"]);
    let mut clients: Vec<_> = (0..2).map(|_| host.connect()).collect();
    for client in &clients {
        client.echo("hello");
    }
    host.refuses();
    let line = host.line("connection refused");
    assert!(
        line.contains("reason=\"source-connections\"") && field(&line, "peer").starts_with("127.0.0.1:"),
        "{line}"
    );
    Client::from([127, 0, 0, 2], host.address()).echo("hello");
    clients[0].echo("still here");
    drop(clients.remove(0));
    until("there is room for another", || {
        Client::connect(host.address()).is_ok_and(|client| {
            (&client.0).write_all(b"hello").is_ok() && (&client.0).read_exact(&mut [0; 5]).is_ok()
        })
    });
}

#[test]
fn connections_come_no_faster_than_they_may() {
    let start = Instant::now();
    let host = Host::serving("echo", &["--max-rate", "5"]);
    for _ in 0..5 {
        host.connect().echo("hello");
    }
    for _ in 0..5 {
        host.connect().echo("hello");
    }
    // The first five at once, the others a fifth of a second apart.
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    let log = host.log();
    assert!(!log.contains("refused"), "{log}");
    let line = host.line("max-rate is reached");
    assert!(line.contains(" service=\"echo\""), "{line}");
}

#[test]
fn a_refused_source_takes_nothing_of_the_rate() {
    let header = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
    let balancer = ["--proxy-protocol-from", "127.0.0.1", "--deny", "192.0.2.0/24"];
    for (args, refused, source, admitted) in [
        (&["--deny", "127.0.0.1"][..], "", 2, ""),
        (
            &["--proxy-protocol-from", "127.0.0.2"],
            "",
            2,
            "PROXY UNKNOWN\r\n",
        ),
        (&balancer, header, 1, "PROXY UNKNOWN\r\n"),
    ] {
        let host = Host::serving("echo", &[&["--max-rate", "2/h"], args].concat());
        for _ in 0..5 {
            match Client::connect(host.address()) {
                Ok(client) => {
                    // It may be reset before it has sent that.
                    let _ = (&client.0).write_all(refused.as_bytes());
                    client.expect_reset();
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
            }
            host.line("connection refused");
        }
        for _ in 0..2 {
            let client = Client::from([127, 0, 0, source], host.address());
            client.send(admitted);
            client.echo("hello");
        }
    }
    // Of this source, the first connection counts.
    let host = Host::serving("echo", &["--max-rate", "2/h", "--max-rate-per-source", "1/h"]);
    host.connect().echo("hello");
    for _ in 0..5 {
        host.refuses();
    }
    Client::from([127, 0, 0, 2], host.address()).echo("hello");
}

#[test]
fn one_source_comes_no_faster_than_it_may() {
    let host = Host::serving("echo", &["--max-rate-per-source", "3/h"]);
    for _ in 0..3 {
        host.connect().echo("hello");
    }
    host.refuses();
    let line = host.line("connection refused");
    assert!(line.contains("reason=\"source-rate\""), "{line}");
    Client::from([127, 0, 0, 2], host.address()).echo("hello");
}

#[test]
fn a_peer_that_never_speaks_is_closed() {
    for guest in ECHOES {
        let host = Host::serving(guest, &["--first-byte-timeout", "300ms"]);
        let client = host.connect();
        assert_eq!(client.rest(), b"", "{guest}");
        assert_eq!(host.outcome(), "first-byte-timeout", "{guest}");
    }
}

#[test]
fn a_peer_that_has_spoken_may_be_silent_for_longer() {
    for guest in ECHOES {
        let host = Host::serving(guest, &["--first-byte-timeout", "1s"]);
        let client = host.connect();
        client.echo("hello\n");
        let silent = host.connect();
        // When that one is closed, the time is over for the other too, which came first.
        assert_eq!(silent.rest(), b"");
        client.echo("still here\n");
        client.finish();
        assert_eq!(client.rest(), b"", "{guest}");
    }
}

#[test]
fn a_guest_that_speaks_first_needs_no_first_byte_of_its_peer() {
    let host = Host::serving("metronome", &["--first-byte-timeout", "500ms"]);
    let client = host.connect();
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        client.expect("tick\n");
        client.expect("tock\n");
    }
}

#[test]
fn a_peer_that_does_not_read_is_reset() {
    for (guest, request) in [
        ("chargen", ""),
        ("echo", "x"),
        ("lines", "x\n"),
        ("lines-session", "x\n"),
    ] {
        let host = Host::serving(guest, &["--write-timeout", "300ms"]);
        let mut socket = TcpStream::connect(host.address()).unwrap();
        if !request.is_empty() {
            // Until neither side can take more.
            socket.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            let requests = request.repeat(64 * 1024 / request.len());
            while socket.write(requests.as_bytes()).is_ok() {}
        }
        assert_eq!(host.outcome(), "write-timeout", "{guest}");
    }
}

#[test]
fn a_guest_that_gives_up_its_writes_does_not_keep_a_peer_that_does_not_read() {
    for isolation in ["connection", "service"] {
        let flags = ["--write-timeout", "500ms", "--isolation", isolation];
        let host = Host::serving("moody", &flags);
        let client = host.connect();
        client.send("give-up\n");
        assert_eq!(host.outcome(), "write-timeout", "{isolation}");
        drop(client);
    }
}

#[test]
fn a_peer_that_reads_slowly_is_served() {
    let host = Host::serving("chargen", &["--write-timeout", "1s"]);
    let mut socket = TcpStream::connect(host.address()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    let mut some = vec![0; 1 << 20];
    while Instant::now() < until {
        socket.read_exact(&mut some).unwrap();
        thread::sleep(MOMENT);
    }
    drop(socket);
    assert_eq!(host.outcome(), "peer-reset");
}

#[test]
fn a_write_goes_on_as_soon_as_a_slow_peer_has_read_a_little() {
    let dir = scratch("limits-slow");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s");
    let listen = format!("unix:{}", path.display());
    let args = ["--listen", &listen, "--admin", "0"];
    let unix = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    };
    {
        let host = Host::serving("chargen", &args);
        let client = host.connect().0;
        SockRef::from(&client).set_recv_buffer_size(64 << 10).unwrap();
        is_seen_to_read(&host, client, "TCP");
        is_seen_to_read(&host, unix(), "Unix");
    }
    let (authority, _, host) = served("limits-slow", "chargen", &args);
    let client = authority.client().connects(&host).unwrap();
    SockRef::from(&client.sock)
        .set_recv_buffer_size(64 << 10)
        .unwrap();
    is_seen_to_read(&host, client, "TLS over TCP");
    let client = authority.client().over(unix(), "localhost").unwrap();
    is_seen_to_read(&host, client, "TLS over Unix");
}

/// A client that is alone, and for which more waits than it reads: whenever it has read a little, the host sends more. A limit on
/// time sees then that it reads, however slowly.
fn is_seen_to_read(host: &Host, mut client: impl Read, transport: &str) {
    let admin = admin_of(host);
    let sent = || admin.json("/connections")["connections"][0]["bytes_out"].as_u64();
    client.read_exact(&mut [0]).unwrap();
    let mut some = vec![0; 256 << 10];
    for round in 0..12 {
        let before = sent().unwrap();
        client.read_exact(&mut some).unwrap();
        until(&format!("more is sent by {transport} in round {round}"), || {
            sent().unwrap() > before
        });
    }
    drop(client);
    host.line("connection ended");
}

#[test]
fn a_connection_lives_no_longer_than_it_may() {
    for guest in ECHOES {
        let host = Host::serving(guest, &["--max-lifetime", "500ms"]);
        let short = host.connect();
        short.echo("hello\n");
        short.finish();
        assert_eq!(short.rest(), b"");
        assert_eq!(host.outcome(), "finished", "{guest}");
        let mut socket = TcpStream::connect(host.address()).unwrap();
        let mut answer = [0; 6];
        // However much it has to say.
        while socket
            .write_all(b"hello\n")
            .and_then(|()| socket.read_exact(&mut answer))
            .is_ok()
        {}
        assert_eq!(host.outcome(), "lifetime", "{guest}");
    }
}

#[test]
fn a_peer_sends_no_more_than_it_may() {
    ten_bytes_are_all("--max-bytes-in", "bytes_in", "x");
}

#[test]
fn a_guest_sends_no_more_than_it_may() {
    ten_bytes_are_all("--max-bytes-out", "bytes_out", "x\n");
}

/// With 10 bytes allowed by `flag`, 10 bytes come back and `more` ends the connection, of which the log counts no more.
fn ten_bytes_are_all(flag: &str, count: &str, more: &str) {
    for guest in ECHOES {
        let host = Host::serving(guest, &[flag, "10B"]);
        let client = host.connect();
        client.echo("012345678\n");
        client.finish();
        assert_eq!(client.rest(), b"");
        assert_eq!(host.outcome(), "finished", "{guest}");
        let client = host.connect();
        client.echo("012345678\n");
        client.send(more);
        client.expect_reset();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "byte-limit", "{guest}");
        assert_eq!(field(&line, count), "10", "{guest}");
    }
}

/// Longer than any clock can count from now, and short enough for a flag.
const EONS: &str = "400000000000y";

#[test]
fn limits_beyond_all_time_are_none() {
    let flags = [
        "--max-call-time",
        "--first-byte-timeout",
        "--idle-timeout",
        "--write-timeout",
        "--max-lifetime",
        "--drain-timeout",
        "--drain-generations",
    ];
    let flags: Vec<_> = flags.into_iter().flat_map(|flag| [flag, EONS]).collect();
    let own = ["--max-cpu-time", EONS];
    let shared = ["--isolation", "service"];
    for (guest, more) in [
        ("echo", own),
        ("lines", shared),
        ("lines-session", own),
        ("cat", own),
    ] {
        let mut host = Host::serving(guest, &[&flags[..], &more].concat());
        let client = host.connect();
        client.echo("hello\n");
        client.finish();
        assert_eq!(client.rest(), b"");
        assert_eq!(host.outcome(), "finished", "{guest}: {}", host.log());
        // A reload and a drain wait by some of them.
        let open = host.connect();
        open.echo("hello\n");
        host.signal(HUP);
        host.connect().echo("hello\n");
        host.signal(TERM);
        host.line("draining");
        drop(open);
        assert!(host.wait().success(), "{guest}: {}", host.log());
        assert!(!host.log().contains("panic"), "{guest}: {}", host.log());
    }
}

#[test]
fn a_call_that_never_ends_is_interrupted() {
    spinning_ends("`--max-call-time`", &["--max-call-time", "200ms"]);
}

#[test]
fn a_guest_that_has_used_its_time_is_interrupted() {
    let limits = ["--max-call-time", "off", "--max-cpu-time", "200ms"];
    spinning_ends("`--max-cpu-time`", &limits);
}

/// A module that asks for random bytes by `calls`, and writes a line before and after that.
fn random(name: &str, calls: &str) -> PathBuf {
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_write"
                (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 2)
            (data (i32.const 65536) "\10\00\01\00\05\00\00\00        line\n")
            (func $say
                (drop (call $write (i32.const 1) (i32.const 65536) (i32.const 1) (i32.const 65544))))
            {calls}
            (func (export "_start") (call $say) (call $calls) (call $say)))"#
    );
    file(&format!("random-{name}.wasm"), wat::parse_str(text).unwrap())
}

const RANDOM: &str = "(drop (call $random (i32.const 0) (i32.const 65536)))\n";

/// A module that does so in one function without a loop.
fn in_a_row(calls: usize) -> PathBuf {
    let code = RANDOM.repeat(calls);
    random(&format!("in-a-row-{calls}"), &format!("(func $calls {code})"))
}

/// A module that does so in each frame of a recursion, once the frames above have returned.
fn in_returns(frames: usize, calls: usize) -> PathBuf {
    let calls = RANDOM.repeat(calls);
    let text = format!(
        "(func $calls (call $recurse (i32.const {frames})))
        (func $recurse (param $frames i32)
            (if (local.get $frames)
                (then (call $recurse (i32.sub (local.get $frames) (i32.const 1)))))
            {calls})"
    );
    random(&format!("in-returns-{frames}"), &text)
}

#[test]
fn a_guest_is_interrupted_between_calls_that_follow_each_other() {
    interrupted_in_its_calls(&in_a_row(30), &in_a_row(20_000));
}

#[test]
fn a_guest_is_interrupted_while_the_frames_of_a_recursion_return() {
    interrupted_in_its_calls(&in_returns(2, 10), &in_returns(2000, 10));
}

/// A module that copies elements of many tables in each frame of a recursion, once the frames above
/// have returned. Each element is used for the first time.
fn in_copies(frames: usize) -> PathBuf {
    let elements = (frames + 1) * 128;
    let each = |text: &dyn Fn(usize) -> String| (0..30).map(text).collect::<String>();
    let tables = each(&|number| format!("(table $t{number} {elements} {elements} funcref)\n"));
    let copies = each(&|number| {
        format!("(table.copy $to $t{number} (i32.const 0) (local.get $from) (i32.const 128))\n")
    });
    let text = format!(
        "(table $to 128 128 funcref)
        {tables}
        (func $calls (call $recurse (i32.const {})))
        (func $recurse (param $from i32)
            (if (local.get $from)
                (then (call $recurse (i32.sub (local.get $from) (i32.const 128)))))
            {copies})",
        frames * 128
    );
    random(&format!("in-copies-{frames}"), &text)
}

#[test]
fn a_guest_is_interrupted_between_instructions_that_take_long() {
    interrupted_in_its_calls(&in_copies(2), &in_copies(1800));
}

/// Serves `short`, and ends `long` in time.
fn interrupted_in_its_calls(short: &Path, long: &Path) {
    let host = Host::with(short, &[]);
    let client = host.connect();
    client.expect("line\nline\n");
    client.finish();
    assert_eq!(host.outcome(), "finished");

    let host = Host::with(long, &["--threads", "1", "--max-cpu-time", "200ms"]);
    let before = host.processor_time();
    let client = host.connect();
    client.expect("line\n");
    client.expect_reset();
    let line = host.line("connection ended");
    assert_eq!(field(&line, "outcome"), "cpu-limit");
    let used = host.processor_time() - before;
    assert!(used < Duration::from_secs(1), "{used:?}");

    // The only thread hears the signal meanwhile.
    let mut host = Host::with(long, &["--threads", "1", "--drain-timeout", "100ms"]);
    let client = host.connect();
    client.expect("line\n");
    assert!(host.stop().success());
    assert_eq!(host.outcome(), "drained");
}

/// Resets a guest that loops forever under `limits`, and names `limit` as the reason.
fn spinning_ends(limit: &str, limits: &[&str]) {
    let host = Host::serving("spin", limits);
    let client = host.connect();
    let before = host.processor_time();
    client.send("!");
    client.expect_reset();
    let line = host.line("connection ended");
    assert_eq!(field(&line, "outcome"), "cpu-limit");
    assert!(line.contains(limit), "{line}");
    // The limits are 200 ms.
    let used = host.processor_time() - before;
    assert!(used < Duration::from_secs(1), "{used:?}");
}

#[test]
fn time_that_a_guest_only_waits_is_not_used() {
    for guest in ["metronome", "lines-session", "lines"] {
        let host = Host::serving(guest, &["--max-call-time", "400ms", "--max-cpu-time", "400ms"]);
        let client = host.connect();
        if guest == "metronome" {
            for _ in 0..5 {
                client.expect("tick\ntock\n");
            }
        } else {
            let until = Instant::now() + Duration::from_millis(1000);
            while Instant::now() < until {
                client.echo("hello\n");
                thread::sleep(MOMENT);
            }
            client.finish();
            assert_eq!(client.rest(), b"");
            assert_eq!(host.outcome(), "finished", "{guest}");
        }
    }
}

#[test]
fn what_a_shared_guest_writes_after_a_limit_is_not_sent() {
    // The guest answers the end of its input with what it has of a line.
    let host = Host::serving("lines", &["--isolation", "service", "--max-bytes-in", "100"]);
    for _ in 0..50 {
        let client = host.connect();
        client.send([b'x'; 101]);
        client.finish();
        client.expect_reset();
        let line = host.line("connection ended");
        assert_eq!(
            (field(&line, "outcome"), field(&line, "bytes_out")),
            ("byte-limit".to_owned(), "0".to_owned())
        );
    }
}
