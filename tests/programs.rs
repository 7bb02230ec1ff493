//! Programs that read standard input and write standard output: what they are given, how they end, and programs of others.

mod others;
mod output;

use std::fs;
use std::net::TcpListener;

use crate::harness::tools::with_own_mounts;
use crate::harness::{CONT, Client, HOST, HUP, Host, TERM, command, field, file, guest, scratch};

/// Has the program run an errand, and gives its answer.
fn errand(client: &Client, errand: &str) -> String {
    client.send(format!("{errand}\n"));
    client.line()
}

#[test]
fn a_program_finds_its_arguments_and_its_connection() {
    let host = Host::serving(
        "errands",
        &[
            "--env",
            "COLOUR=dark blue",
            "--env",
            "EMPTY=",
            "--",
            "-v",
            "two words",
        ],
    );
    let client = host.connect();
    assert_eq!(errand(&client, "args"), "errands.wasm -v two words");
    assert_eq!(errand(&client, "variables"), "7");
    let near = client.0.local_addr().unwrap();
    for (variable, value) in [
        ("COLOUR", "dark blue"),
        ("EMPTY", ""),
        ("PROTO", "TCP"),
        ("TCPREMOTEIP", "127.0.0.1"),
        ("TCPREMOTEPORT", &near.port().to_string()),
        ("TCPLOCALIP", "127.0.0.1"),
        ("TCPLOCALPORT", &host.address().port().to_string()),
    ] {
        assert_eq!(errand(&client, &format!("env {variable}")), value, "{variable}");
    }
}

#[test]
fn what_is_granted_is_granted_to_the_other_contracts_too() {
    let host = Host::serving("curious", &["--env", "A=1", "--", "b"]);
    let found = String::from_utf8(host.connect().rest()).unwrap();
    assert!(found.starts_with("arguments 2\nvariables 1\n"), "{found}");
}

#[test]
fn a_directory_is_to_be_read_and_only_if_that_is_said_to_be_written() {
    let dir = scratch("granted");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("note"), "a note").unwrap();
    fs::write(dir.with_extension("secret"), "a secret").unwrap();
    let dir = dir.to_str().unwrap();
    for (mode, answer) in [("", "refused"), (":ro", "refused"), (":rw", "written")] {
        let host = Host::serving("errands", &["--dir", &format!("{dir}::/data{mode}")]);
        let client = host.connect();
        assert_eq!(errand(&client, "read /data/note"), "a note");
        let found = errand(&client, "write /data/new");
        assert!(found.starts_with(answer), "{mode}: {found}");
        for outside in ["/data/../granted.secret", "/etc/passwd"] {
            let found = errand(&client, &format!("read {outside}"));
            assert!(
                found.starts_with("refused") || found == "not found",
                "{outside}: {found}"
            );
        }
    }
    assert_eq!(fs::read(format!("{dir}/new")).unwrap(), b"written");
}

#[test]
fn one_destination_is_granted_and_no_other() {
    let (granted, other) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let address = granted.local_addr().unwrap().to_string();
    let host = Host::serving("errands", &["--allow-outbound", &address]);
    let client = host.connect();
    assert_eq!(errand(&client, &format!("connect {address}")), "connected");
    granted.accept().unwrap();
    let other = other.local_addr().unwrap();
    for refused in [
        &format!("connect {other}"),
        &format!("send {address}"),
        "listen 127.0.0.1:0",
        "listen 0.0.0.0:0",
        "resolve localhost",
    ] {
        let found = errand(&client, refused);
        assert!(found.starts_with("refused"), "{refused}: {found}");
    }
}

#[test]
fn names_of_destinations_are_resolved_again_at_each_hangup() {
    let dir = scratch("names-again");
    fs::create_dir_all(&dir).unwrap();
    let (hosts, config) = (dir.join("hosts"), dir.join("services.toml"));
    // Both listen at the same port of two addresses.
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = first.local_addr().unwrap().port();
    let second = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let name = format!("backend.test:{port}");
    let component = guest("errands");
    fs::write(
        &config,
        format!(
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"{}\"\n\
             grants = {{ allow-outbound = [\"{name}\"] }}\n",
            component.display()
        ),
    )
    .unwrap();
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--allow-outbound",
        &name,
        "--component",
        component.to_str().unwrap(),
    ];
    for args in [&flags[..], &["--config", config.to_str().unwrap()]] {
        fs::write(&hosts, "127.0.0.1 backend.test\n").unwrap();
        let Some(mut command) = with_own_mounts() else {
            return;
        };
        command
            .args(["sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""])
            .arg(&hosts)
            .arg(HOST)
            .args(args);
        let host = Host::spawn(&mut command, &["--listen"]);
        let client = host.connect();
        let may = |listener: &TcpListener| {
            let address = listener.local_addr().unwrap();
            errand(&client, &format!("connect {address}")) == "connected"
        };
        assert!(may(&first) && !may(&second));
        fs::write(&hosts, "127.0.0.2 backend.test\n").unwrap();
        host.signal(HUP);
        let line = host.line("have new addresses");
        assert!(line.contains(&format!("connect to 127.0.0.2:{port}")), "{line}");
        // A guest that runs has them too.
        assert!(!may(&first) && may(&second));
        fs::write(&hosts, "").unwrap();
        host.signal(HUP);
        let line = host.line("the previous addresses stay in use");
        assert!(line.contains(" WARN ") && line.contains(&name), "{line}");
        assert!(!may(&first) && may(&second));
        assert_eq!(host.log().matches("have new addresses").count(), 1);
    }
}

#[test]
fn a_destination_without_an_address_is_refused_at_the_start() {
    let refusal = crate::harness::refused(&["--allow-outbound", "host.invalid:80"]);
    assert_eq!(refusal.status, Some(1));
    assert!(refusal.message.contains("host.invalid:80"), "{}", refusal.message);
}

#[test]
fn what_was_said_before_the_end_arrives_whatever_the_status() {
    let host = Host::serving("errands", &[]);
    for status in [0, 3, 255] {
        let client = host.connect();
        client.send(format!("exit {status}\nargs\n"));
        assert_eq!(client.rest(), b"leaving");
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "finished");
        // A component can say no more of it than whether it is 0.
        assert_eq!(field(&line, "status"), if status == 0 { "0" } else { "1" });
    }
}

#[test]
fn a_directory_that_cannot_be_opened_is_no_fault_of_the_guest() {
    for guest in ["errands", "lines-session"] {
        let dir = scratch(&format!("granted-to-{guest}"));
        fs::create_dir_all(&dir).unwrap();
        let host = Host::serving(guest, &["--dir", &format!("{}::/data", dir.display())]);
        fs::remove_dir(&dir).unwrap();
        // More than a guest may fail at its start.
        for _ in 0..6 {
            host.refuses();
            let line = host.line("connection ended");
            assert_eq!(field(&line, "outcome"), "grant-failed");
            assert!(line.contains("cannot open the granted directory"), "{line}");
        }
        fs::create_dir(&dir).unwrap();
        // It is another directory.
        host.refuses();
        host.signal(HUP);
        host.line("component unchanged");
        let client = host.connect();
        client.send("args\n");
        assert!(
            client
                .line()
                .starts_with(if guest == "errands" { "errands" } else { "args" })
        );
        assert!(!host.log().contains("instances fail"), "{}", host.log());
    }
}

#[test]
fn standard_error_goes_to_the_log_and_cannot_forge_it() {
    let host = Host::serving("errands", &[]);
    let client = host.connect();
    assert_eq!(
        errand(&client, "complain one\\nERROR \\e[31mforged"),
        "complained"
    );
    for said in ["one", "ERROR \\u{1b}[31mforged"] {
        let line = host.line("guest output");
        assert!(
            line.contains("INFO") && line.contains(&format!("stderr=\"{said}\"")),
            "{line}"
        );
        assert_eq!(field(&line, "connection"), "1");
    }
    let client = host.connect();
    client.send("panic\n");
    client.expect_reset();
    assert_eq!(field(&host.line("panicked"), "connection"), "2");
    assert_eq!(host.outcome(), "guest-trap");
}

#[test]
fn a_guest_that_never_stops_talking_does_not_fill_the_log() {
    let host = Host::serving("errands", &[]);
    let client = host.connect();
    let lines = "x\\n".repeat(5000);
    assert_eq!(errand(&client, &format!("complain {lines}")), "complained");
    host.line("further lines are not logged");
    assert_eq!(errand(&client, "complain again"), "complained");
    client.finish();
    client.rest();
    host.line("connection ended");
    assert_eq!(host.log().matches("guest output").count(), 1000);
}

#[test]
fn a_peer_that_is_gone_is_an_error_for_the_program_and_no_trap() {
    for guest in ["cat", "cat3"] {
        let host = Host::serving(guest, &[]);
        let client = host.connect();
        client.echo("hello");
        client.reset();
        assert_eq!(host.outcome(), "peer-reset", "{guest}");
        // In the middle of writing.
        let client = host.connect();
        client.0.set_nonblocking(true).unwrap();
        while std::io::Write::write(&mut &client.0, &[b'x'; 64 << 10]).is_ok() {}
        client.reset();
        assert_eq!(host.outcome(), "peer-reset", "{guest}");
    }
}

#[test]
fn programs_keep_to_the_limits() {
    for (flags, said, outcome) in [
        (&["--max-cpu-time", "300ms"][..], "spin\n", "cpu-limit"),
        (&["--idle-timeout", "300ms"], "", "idle-timeout"),
        (&["--max-lifetime", "300ms"], "", "lifetime"),
        (&["--max-bytes-in", "3"], "args\n", "byte-limit"),
        (&["--max-memory", "4MiB"], "hoard 8000000\n", "guest-trap"),
        (&[], "random 65537\n", "guest-trap"),
    ] {
        let host = Host::serving("errands", flags);
        let client = host.connect();
        client.send(said);
        assert_eq!(host.outcome(), outcome, "{flags:?}");
    }
    let mut host = Host::serving("errands", &["--drain-timeout", "300ms"]);
    let (idle, busy) = (host.connect(), host.connect());
    assert_eq!(errand(&idle, "hoard 1000000"), "1000000");
    assert_eq!(errand(&idle, "random 65536"), "65536");
    busy.send("spin\n");
    host.signal(TERM);
    assert!(host.wait().success());
    assert_eq!(
        host.log().matches("outcome=\"drained\"").count(),
        2,
        "{}",
        host.log()
    );
}

#[test]
fn while_one_program_spins_another_is_served() {
    let host = Host::serving("errands", &["--threads", "1"]);
    let busy = host.connect();
    busy.send("spin\n");
    let client = host.connect();
    for _ in 0..100 {
        assert_eq!(errand(&client, "args"), "errands.wasm");
    }
}

#[test]
fn what_is_granted_is_said_beforehand() {
    let check = |args: &[&str]| {
        let output = command()
            .arg("check")
            .arg(guest("errands"))
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let said = check(&[]);
    assert!(said.contains("contract   cli\n"), "{said}");
    assert!(
        said.contains("denied; grant addresses") && said.contains("no directories; grant them"),
        "{said}"
    );
    let said = check(&["--dir", ".::/", "--allow-outbound", "127.0.0.1:1"]);
    assert!(
        said.contains("the directories granted with --dir") && said.contains("granted with --allow-outbound"),
        "{said}"
    );
}

/// A module whose `_start` runs `body` and ends with the error number that it leaves.
fn module_that(body: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "path_open" (func $open
                (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 160)
            (data (i32.const 64) "file")
            (func $vector (param $at i32) (param $buffer i32) (param $len i32)
                (i32.store (local.get $at) (local.get $buffer))
                (i32.store offset=4 (local.get $at) (local.get $len)))
            (func (export "_start") (call $exit {body})))"#
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn calls_of_modules_are_bounded() {
    let dir = scratch("bounded-calls");
    fs::create_dir_all(&dir).unwrap();
    let grant = format!("{}::/:rw", dir.display());
    let status = |name: &str, body: &str| {
        let module = file(&format!("bounded-{name}.wasm"), module_that(body));
        let host = Host::with(&module, &["--dir", &grant]);
        let client = host.connect();
        let sent = client.rest();
        (sent, field(&host.line("connection ended"), "status"))
    };
    let open = "(call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 1)
        (i64.const 70) (i64.const 70) (i32.const 0) (i32.const 32))";
    // Three bytes short of whole pieces.
    let (len, sum) = (4 * 1024 * 1024 - 3, "(i32.load (i32.const 16))");
    let whole = format!(
        "(block (result i32)
            (call $vector (i32.const 0) (i32.const 0) (i32.const 0))
            (call $vector (i32.const 8) (i32.const 1024) (i32.const {len}))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 16)))
            ;; All bytes were written, and the description of the buffer is as it was.
            (i32.or
                (i32.ne {sum} (i32.const {len}))
                (i32.or
                    (i32.ne (i32.load (i32.const 8)) (i32.const 1024))
                    (i32.ne (i32.load (i32.const 12)) (i32.const {len})))))"
    );
    let (sent, ended) = status("stdout", &whole);
    assert_eq!((sent.len(), ended.as_str()), (len, "0"));
    let to_file = format!(
        "(block (result i32)
            (drop {open})
            (call $vector (i32.const 0) (i32.const 1024) (i32.const {len}))
            (i32.or
                (call $write (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 16))
                (i32.ne {sum} (i32.const {len}))))"
    );
    assert_eq!(status("file", &to_file).1, "0");
    assert_eq!(fs::metadata(dir.join("file")).unwrap().len(), len as u64);
    let from_file = format!(
        "(block (result i32)
            (drop {open})
            (call $vector (i32.const 0) (i32.const 1024) (i32.const {len}))
            (i32.or
                (call $read (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 16))
                (i32.ne {sum} (i32.const 65536))))"
    );
    assert_eq!(status("read", &from_file).1, "0");
    for (name, body, expected) in [
        (
            "vectors",
            "(call $write (i32.const 2) (i32.const 1024) (i32.const 1025) (i32.const 16))",
            "28",
        ),
        (
            "fewer-vectors",
            "(call $write (i32.const 2) (i32.const 1024) (i32.const 1024) (i32.const 16))",
            "0",
        ),
        (
            "negative",
            "(call $read (i32.const 0) (i32.const 1024) (i32.const -1) (i32.const 16))",
            "28",
        ),
        (
            "path",
            "(call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 2000000) (i32.const 1)
                (i64.const 70) (i64.const 70) (i32.const 0) (i32.const 32))",
            "48",
        ),
        (
            "clocks",
            "(call $poll (i32.const 65536) (i32.const 262144) (i32.const 1025) (i32.const 16))",
            "28",
        ),
        (
            "fewer-clocks",
            "(call $poll (i32.const 65536) (i32.const 262144) (i32.const 100) (i32.const 16))",
            "0",
        ),
        // The number of bytes is written over the description of the buffer.
        (
            "overlap",
            "(block (result i32)
                (call $vector (i32.const 16) (i32.const 65537) (i32.const 131073))
                (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 16)))
                (i32.ne (i32.load (i32.const 16)) (i32.const 131073)))",
            "0",
        ),
        (
            "no-file",
            "(block (result i32)
                (call $vector (i32.const 0) (i32.const 1024) (i32.const 1000000))
                (call $write (i32.const 77) (i32.const 0) (i32.const 1) (i32.const 16)))",
            "8",
        ),
    ] {
        assert_eq!(status(name, body).1, expected, "{name}");
    }
}

#[test]
fn a_module_reads_what_came_before_a_reset_and_then_an_error() {
    // Answers each read with so much that it is written at once, and says how reading has ended.
    let text = r#"(module
        (import "wasi_snapshot_preview1" "fd_read"
            (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write"
            (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 3)
        (data (i32.const 32) "end\nerror\n")
        (func $say (param $fd i32) (param $at i32) (param $len i32)
            (i32.store (i32.const 0) (local.get $at))
            (i32.store (i32.const 4) (local.get $len))
            (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
        (func (export "_start")
            (loop $more
                (i32.store (i32.const 0) (i32.const 1024))
                (i32.store (i32.const 4) (i32.const 1000))
                (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8))
                    (then (call $say (i32.const 2) (i32.const 36) (i32.const 6)) return))
                (if (i32.eqz (i32.load (i32.const 8)))
                    (then (call $say (i32.const 2) (i32.const 32) (i32.const 4)) return))
                (call $say (i32.const 1) (i32.const 4096) (i32.const 65536))
                (br $more))))"#;
    let module = file("reads-on.wasm", wat::parse_str(text).unwrap());
    let host = Host::with(&module, &[]);
    let client = host.connect();
    host.pause();
    client.send([b'x'; 50_000]);
    client.reset();
    host.signal(CONT);
    let lines = [(); 2].map(|()| host.line_of(&["guest output", "connection ended"]));
    let has = |text: &str| lines.iter().any(|line| line.contains(text));
    for text in ["stderr=\"error\"", "bytes_in=50000 ", "outcome=\"peer-reset\""] {
        assert!(has(text), "{text}: {lines:?}");
    }
}
