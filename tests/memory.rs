//! What the host keeps for one connection, whatever its guest does. SECURITY.md lists the bounds.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use crate::harness::{Client, Host, field, file, guest, refused, scratch, until};

/// Connections at once, so that what is not theirs matters little.
const PEERS: usize = 8;

/// `--max-memory` of these tests.
const MAX_MEMORY: &str = "4MiB";

/// KiB that a connection may take with it: 4 MiB, a third of that for handles, 512 KiB of stack and
/// two buffers of 64 KiB.
const MOST: u64 = (4 << 10) + (4 << 10) / 3 + 512 + 2 * 64;

/// A program as a core module of so many memories, which it fills before it writes a byte and waits
/// for its client.
fn filling(memories: usize, pages: usize) -> PathBuf {
    let more: String = (1..memories)
        .map(|number| format!("(memory $m{number} {pages})"))
        .collect();
    let fills: String = (0..memories)
        .map(|number| {
            let length = pages << 16;
            format!("(memory.fill $m{number} (i32.const 0) (i32.const 7) (i32.const {length}))")
        })
        .collect();
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory $m0 (export "memory") {pages})
        {more}
        (func (export "_start")
            {fills}
            (i32.store (i32.const 0) (i32.const 64))
            (i32.store (i32.const 4) (i32.const 1))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))))"#
    );
    file(&format!("filling-{memories}.wasm"), wat::parse_str(text).unwrap())
}

#[test]
fn what_stays_of_an_instance_does_not_grow_with_its_memories() {
    let (memories, pages) = (100, 5);
    let args = ["--max-connections", "16", "--max-memory", "64MiB"];
    let host = Host::with(&filling(memories, pages), &args);
    let before = host.memory("RssAnon");
    let peers: Vec<_> = (0..PEERS).map(|_| host.connect()).collect();
    for peer in &peers {
        peer.expect([7]);
    }
    let filled = (memories * pages * 64 * PEERS) as u64;
    let held = host.memory("RssAnon") - before;
    assert!(held >= filled, "{held} of {filled} KiB");
    drop(peers);
    until("all connections have ended", || {
        host.log().matches("connection ended").count() == PEERS
    });
    // A page of each memory, and what the heap keeps.
    let kept = host.memory("RssAnon").saturating_sub(before);
    assert!(kept < 16 << 10, "{kept} of {held} KiB");
}

/// KiB that a host takes for each of [`PEERS`], when one connection has done the same before.
fn grown(host: &Host, mut does: impl FnMut(&Client)) -> u64 {
    let first = host.connect();
    does(&first);
    let before = host.memory("RssAnon");
    let peers: Vec<_> = (0..PEERS).map(|_| host.connect()).collect();
    peers.iter().for_each(does);
    let after = host.memory("RssAnon");
    after.saturating_sub(before) / PEERS as u64
}

/// Programs that fill half of their memory, and then take as many handles of one kind as they get.
#[test]
fn a_guest_takes_its_memory_and_a_stated_part_of_it_more() {
    for (guest, fills, kinds) in [
        (
            "amass",
            "memory 32",
            &[
                ("sleeps", 1000),
                ("streams", 500),
                ("futures", 500),
                ("sets", 1000),
                ("reads", 500),
                ("writes", 500),
                ("inputs", 500),
                ("errors", 300),
                ("pollables", 500),
                ("input-handles", 1000),
                ("output-handles", 1000),
            ][..],
        ),
        (
            "lengthy",
            "hold memory 32",
            &[
                ("hold pollables", 500),
                ("hold inputs", 1000),
                ("hold outputs", 1000),
                ("hold input-pollables", 500),
            ],
        ),
    ] {
        for (kind, count) in kinds {
            let host = Host::serving(guest, &["--max-memory", MAX_MEMORY]);
            let grown = grown(&host, |client| {
                assert_eq!(client.asks(fills), "32");
                assert_eq!(client.asks(&format!("{kind} {count}")), count.to_string());
            });
            assert!(
                grown < MOST,
                "{grown} KiB for each of {PEERS} with {count} {kind}"
            );
            // With less memory than by default, a guest may also hold fewer.
            let client = host.connect();
            client.send(format!("{kind} 1100\n"));
            client.expect_reset();
            let line = host.line("guest-trap");
            assert!(
                line.contains("table has no free keys") || line.contains("handle limit"),
                "{line}"
            );
        }
    }
}

/// Has let go of everything by the time that it makes the next.
#[test]
fn what_a_guest_lets_go_of_is_not_kept() {
    for kind in [
        "sleeps",
        "streams",
        "sets",
        "reads",
        "writes",
        "inputs",
        "errors",
        "pollables",
    ] {
        let host = Host::serving("amass", &["--max-memory", MAX_MEMORY]);
        let grown = grown(&host, |client| {
            assert_eq!(client.asks(&format!("drop {kind} 3000")), "3000");
        });
        assert!(grown < 1024, "{grown} KiB for each of {PEERS} after 3000 {kind}");
    }
}

/// Streams from standard input to standard error, for which the guest holds no handle.
#[test]
fn streams_between_two_ends_of_the_host_are_few() {
    let host = Host::serving("amass", &["--max-memory", MAX_MEMORY]);
    let grown = grown(&host, |client| {
        assert_eq!(client.asks("pipes 300"), "300");
    });
    assert!(grown < 2048, "{grown} KiB for each of {PEERS} with 300 streams");
}

/// Conversations of 4 MiB each, of bytes that take four times as many in the file. All of them end
/// at the same time.
#[test]
fn writing_a_conversation_takes_no_further_memory() {
    let dir = scratch("memory-recorded");
    let host = Host::start(&[
        "record",
        "--to",
        dir.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--component",
        guest("echo").to_str().unwrap(),
    ]);
    let peers: Vec<_> = (0..PEERS).map(|_| host.connect()).collect();
    let chunk = [0xff; 64 << 10];
    let chunks = 2 << 4;
    for peer in &peers {
        (0..chunks).for_each(|_| peer.echo(chunk));
    }
    let open = host.memory("VmHWM");
    peers.iter().for_each(Client::finish);
    peers.iter().for_each(|_| _ = host.line("connection ended"));
    let ended = host.memory("VmHWM");
    for number in 1..=PEERS {
        let written = fs::metadata(dir.join(format!("{number:08}.conversation"))).unwrap();
        assert!(written.len() > (2 * 4 * chunks * chunk.len()) as u64);
    }
    let more = ended.saturating_sub(open) / PEERS as u64;
    assert!(more < 1024, "{more} KiB more for each of {PEERS}");
}

/// Has so many clients ask for an answer of 960 KiB at once and not read it. Returns the KiB that
/// the host takes when all of them are gone.
fn after_a_burst(host: &Host, clients: usize) -> u64 {
    let before = host.entries("fd");
    let clients: Vec<_> = (0..clients)
        .map(|_| {
            let client = host.connect();
            client.send("960");
            client
        })
        .collect();
    for client in &clients {
        // It has its answer, most of which waits in the host.
        client.0.peek(&mut [0]).unwrap();
    }
    drop(clients);
    until("all connections have ended", || host.entries("fd") == before);
    host.memory("RssAnon")
}

/// The first burst has filled what the pool keeps.
#[test]
fn what_a_burst_of_large_answers_takes_is_given_back() {
    let args = ["--max-connections", "200", "--send-buffer", "64KiB"];
    let host = Host::serving("huge-answer", &args);
    let first = after_a_burst(&host, 200);
    for number in 2..=4 {
        let kept = after_a_burst(&host, 200);
        assert!(
            kept < first + (40 << 10),
            "{kept} KiB after burst {number}, and {first} KiB after the first"
        );
    }
}

/// A composition of a component that calls so many others at once, of which each waits for a clock
/// with much of its stack in use.
fn composition(parts: usize) -> String {
    let clock = "(import \"clock\" (instance $c
        (export \"wait-for\" (func async (param \"how-long\" u64)))))
        (core func $wait (canon lower (func $c \"wait-for\")))";
    let numbers = 0..parts;
    let each = |text: &str| -> String {
        let each = numbers
            .clone()
            .map(|number| text.replace('#', &number.to_string()));
        each.collect()
    };
    format!(
        "(component
          (import \"wasi:clocks/monotonic-clock@0.3.0\" (instance $c
            (export \"wait-for\" (func async (param \"how-long\" u64)))))
          (component $part {clock}
            (core module $m (import \"\" \"wait\" (func $wait (param i64)))
              (func $deep (param i32) (result i32)
                (if (i32.eqz (local.get 0)) (then
                  (call $wait (i64.const 1000000000000000)) (return (i32.const 1))))
                (i32.add (call $deep (i32.sub (local.get 0) (i32.const 1))) (i32.const 1)))
              (func (export \"go\") (drop (call $deep (i32.const 3000)))))
            (core instance $i (instantiate $m (with \"\" (instance (export \"wait\" (func $wait))))))
            (func (export \"go\") async (canon lift (core func $i \"go\"))))
          (component $main {clock}
            {imports}
            (core module $m (import \"\" \"wait\" (func $wait (param i64)))
              {core_imports}
              (func (export \"run\") (result i32)
                {calls}
                (call $wait (i64.const 1000000000000000)) (i32.const 0)))
            (core instance $i (instantiate $m (with \"\" (instance
              (export \"wait\" (func $wait)) {core_exports}))))
            (func (export \"run\") async (result (result)) (canon lift (core func $i \"run\"))))
          {instances}
          (instance $main (instantiate $main (with \"clock\" (instance $c)) {with}))
          (instance $run (export \"run\" (func $main \"run\")))
          (export \"wasi:cli/run@0.3.0\" (instance $run)))",
        imports = each("(import \"g#\" (func $g# async)) (core func $h# (canon lower (func $g#) async))"),
        core_imports = each("(import \"\" \"g#\" (func $g# (result i32)))"),
        calls = each("(drop (call $g#))"),
        core_exports = each("(export \"g#\" (func $h#))"),
        instances = each("(instance $n# (instantiate $part (with \"clock\" (instance $c))))"),
        with = each("(with \"g#\" (func $n# \"go\"))"),
    )
}

/// Each part that waits keeps a stack.
#[test]
fn the_parts_of_a_composition_that_wait_are_few() {
    let component = |parts| {
        let bytes = wat::parse_str(composition(parts)).unwrap();
        file(&format!("memory-{parts}-parts.wasm"), bytes)
    };
    let host = Host::with(&component(15), &["--first-byte-timeout", "1s"]);
    // They wait beside one another.
    let _client = host.connect();
    let line = host.line("connection ended");
    assert_eq!(field(&line, "outcome"), "first-byte-timeout", "{line}");
    let many = component(16);
    let refusal = refused(&["check", many.to_str().unwrap()]);
    assert!(
        refusal
            .message
            .contains("17 components that each can keep a stack"),
        "{}",
        refusal.message
    );
}

/// Each socket has a write that waits, since nobody reads from it.
#[test]
fn sockets_keep_one_write_each() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let grant = address.to_string();
    let host = Host::serving(
        "errands",
        &["--max-memory", MAX_MEMORY, "--allow-outbound", &grant],
    );
    // It ends with the process.
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    let grown = grown(&host, |client| {
        assert_eq!(client.asks(&format!("fill-sockets 16 {address}")), "16");
    });
    // 64 KiB for each, and 128 KiB for the rest of the connection.
    assert!(
        grown < 16 * 64 + 2 * 64,
        "{grown} KiB for each of {PEERS} with 16 sockets"
    );
}

/// A program that logs a message of so many bytes, in an encoding.
fn logging(encoding: &str, bytes: usize) -> PathBuf {
    let pages = bytes.div_ceil(64 << 10) + 1;
    let text = format!(
        r#"(component
          (import "wasi:logging/logging@0.1.0-draft" (instance $log
            (type $levels (enum "trace" "debug" "info" "warn" "error" "critical"))
            (export "level" (type $level (eq $levels)))
            (export "log" (func (param "level" $level) (param "context" string) (param "message" string)))))
          (core module $libc (memory (export "mem") {pages}))
          (core instance $libc (instantiate $libc))
          (core func $log (canon lower (func $log "log")
            (memory (core memory $libc "mem")) string-encoding={encoding}))
          (core module $m
            (import "" "mem" (memory {pages}))
            (import "" "log" (func $log (param i32 i32 i32 i32 i32)))
            (func (export "run") (result i32)
              ;; Of Latin-1, these are letters that take two bytes in UTF-8.
              (memory.fill (i32.const 0) (i32.const 0xe9) (i32.const {bytes}))
              (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const {bytes}))
              (i32.const 0)))
          (core instance $i (instantiate $m (with "" (instance
            (export "mem" (memory $libc "mem")) (export "log" (func $log))))))
          (func $run (result (result)) (canon lift (core func $i "run")))
          (instance $run (export "run" (func $run)))
          (export "wasi:cli/run@0.2.0" (instance $run)))"#
    );
    file(&format!("logging-{bytes}.wasm"), wat::parse_str(text).unwrap())
}

/// A letter of Latin-1 takes two bytes in the host.
#[test]
fn strings_that_take_more_in_the_host_are_shorter() {
    for (bytes, outcome) in [(500 << 10, "finished"), (600 << 10, "guest-trap")] {
        let host = Host::with(&logging("latin1+utf16", bytes), &[]);
        let _client = host.connect();
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), outcome, "{line}");
    }
}

/// The composition of `exchange.wat`, with so many sets of flags.
fn exchange(sets: usize) -> PathBuf {
    let count = |sets: usize| format!("(global $sets i32 (i32.const {sets}))");
    let text = include_str!("../guest/hostile/exchange/exchange.wat");
    assert!(text.contains(&count(1000)));
    let text = text.replace(&count(1000), &count(sets));
    file(&format!("exchange-{sets}.wasm"), wat::parse_str(text).unwrap())
}

/// The host has all values of a write at once, and takes more for them than the guest.
#[test]
fn parts_that_exchange_values_keep_few_in_the_host() {
    let args = ["--max-memory", MAX_MEMORY, "--max-cpu-time", "100ms"];
    let host = Host::with(&exchange(1000), &args);
    let held = |peers: usize| {
        let _peers: Vec<_> = (0..peers).map(|_| host.connect()).collect();
        for _ in 0..peers {
            assert_eq!(host.outcome(), "cpu-limit");
        }
        host.memory("VmHWM")
    };
    let first = held(1);
    let most = held(PEERS) - first;
    // A stack for each part and one for results, and 2 MiB for the values.
    let stated = MOST + 3 * 768 + (2 << 10);
    assert!(most < PEERS as u64 * stated, "{most} KiB for {PEERS}");
    let host = Host::with(&exchange(1100), &args);
    let _client = host.connect();
    let line = host.line("connection ended");
    assert!(line.contains("too much data is being copied"), "{line}");
}

/// Calls of WASI 0.3 that wait for a thread keep their paths in the host.
#[test]
fn calls_that_wait_for_files_keep_no_long_paths() {
    let dir = scratch("memory-paths");
    fs::create_dir_all(&dir).unwrap();
    let made = Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap();
    assert!(made.success());
    let grant = format!("{}::/data", dir.display());
    let host = Host::serving("amass", &["--dir", &grant]);
    let client = host.connect();
    assert_eq!(client.asks("fifos 64"), "64");
    client.send("paths 1\n");
    client.expect_reset();
    let line = host.line("connection ended");
    assert!(line.contains("too much data is being copied"), "{line}");
}

/// Calls that a guest cancels stay in the queue of the threads, with their paths.
#[test]
fn cancelled_calls_that_wait_for_files_are_few() {
    let dir = scratch("memory-cancelled");
    fs::create_dir_all(&dir).unwrap();
    let fifo = dir.join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let grant = format!("{}::/data", dir.display());
    let host = Host::serving("amass", &["--dir", &grant, "--max-memory", MAX_MEMORY]);
    let client = host.connect();
    assert_eq!(client.asks("fifos 64"), "64");
    let before = host.memory("RssAnon");
    for kind in ["lookups", "list-reads"] {
        assert_eq!(client.asks(&format!("drop {kind} 1000")), "1000");
    }
    let kept = host.memory("RssAnon") - before;
    assert!(kept < 8 << 10, "{kept} KiB for calls that were cancelled");
    // With a writer of the pipe, the threads are free, and calls go on.
    let _writer = File::options().write(true).open(fifo).unwrap();
    assert_eq!(client.asks("directories 1"), "1");
}

/// Each list keeps the entries that it has read with the one that the guest asked for.
#[test]
fn lists_that_a_guest_does_not_read_keep_few_entries() {
    let dir = scratch("memory-lists");
    fs::create_dir_all(&dir).unwrap();
    (0..1000).for_each(|number| _ = File::create(dir.join(number.to_string())).unwrap());
    let grant = format!("{}::/data", dir.display());
    for (guest, holds) in [
        ("amass", "begun-lists 100"),
        ("lengthy", "hold begun-listings 100"),
    ] {
        let host = Host::serving(guest, &["--dir", &grant, "--max-memory", MAX_MEMORY]);
        let grown = grown(&host, |client| assert_eq!(client.asks(holds), "100"));
        let most = 100 * 20 + 512;
        assert!(
            grown < most,
            "{guest}: {grown} KiB for each of {PEERS} with 100 lists"
        );
    }
}

/// A scratch directory with a file of so many bytes, and the grant of it to guests that may write.
fn granted(name: &str, bytes: usize) -> (PathBuf, String) {
    let dir = scratch(name);
    fs::create_dir_all(&dir).unwrap();
    let content: Vec<_> = (0..bytes).map(|at| (at % 251) as u8).collect();
    fs::write(dir.join("file"), content).unwrap();
    let grant = format!("{}::/data:rw", dir.display());
    (dir, grant)
}

/// KiB of 100 streams of files: 16 of them keep 64 KiB, and each of the others 4 KiB.
const STREAMS: u64 = 16 * 64 + 84 * 4;

/// Streams of WASI 0.2 keep what they have read until it is taken.
#[test]
fn streams_of_files_that_have_read_keep_few_bytes() {
    let (_, grant) = granted("memory-file-reads", 1 << 20);
    let host = Host::serving("amass", &["--dir", &grant, "--max-memory", MAX_MEMORY]);
    let grown = grown(&host, |client| {
        assert_eq!(client.asks("file-reads 100"), "100");
    });
    let most = STREAMS + 512;
    assert!(
        grown < most,
        "{grown} KiB for each of {PEERS} with 100 streams from a file"
    );
}

/// What they are given to write waits for a thread.
#[test]
fn streams_of_files_that_wait_to_write_keep_few_bytes() {
    let (dir, grant) = granted("memory-file-writes", 0);
    let made = Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap();
    assert!(made.success());
    let host = Host::serving("amass", &["--dir", &grant, "--max-memory", MAX_MEMORY]);
    let writers: Vec<_> = (0..PEERS).map(|_| host.connect()).collect();
    for client in &writers {
        assert_eq!(client.asks("file-outputs 100"), "100");
    }
    let keeps_threads = host.connect();
    assert_eq!(keeps_threads.asks("fifos 64"), "64");
    let before = host.memory("RssAnon");
    for client in &writers {
        assert_eq!(client.asks("file-writes 100"), "100");
    }
    let grown = host.memory("RssAnon").saturating_sub(before) / PEERS as u64;
    // The guest itself makes 64 KiB of bytes.
    let most = STREAMS + 512;
    assert!(
        grown < most,
        "{grown} KiB for each of {PEERS} with 100 streams to a file"
    );
}

#[test]
fn a_write_to_a_file_above_what_its_stream_permits_traps() {
    let (_, grant) = granted("memory-file-trap", 0);
    let host = Host::serving("lengthy", &["--dir", &grant]);
    let client = host.connect();
    client.send("hold writes 1\n");
    client.expect_reset();
    let line = host.line("guest-trap");
    assert!(
        line.contains("write exceeds what check-write permitted"),
        "{line}"
    );
}

/// Streams that keep little read and write everything all the same.
#[test]
fn files_are_copied_whole_while_many_streams_have_read() {
    let (dir, grant) = granted("memory-file-copies", 300_000);
    let copied = || {
        let copied = fs::read(dir.join("copy")).unwrap() == fs::read(dir.join("file")).unwrap();
        fs::remove_file(dir.join("copy")).unwrap();
        copied
    };
    let host = Host::serving("amass", &["--dir", &grant]);
    let client = host.connect();
    for streams in [0, 17] {
        assert_eq!(client.asks(&format!("file-reads {streams}")), streams.to_string());
        for kind in ["file-copies", "drop file-copies"] {
            assert_eq!(client.asks(&format!("{kind} 1")), "1");
            assert!(copied(), "{kind} with {streams} other streams");
        }
    }
}
