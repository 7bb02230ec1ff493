//! Descriptors and permits: how many a guest, and a client that does not close, may hold.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::tools::with_own_mounts;
use crate::harness::{
    Client, HOST, Host, field, file, guest, refusal_of, refused, scratch, until, with_cache,
};

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
    assert_eq!(first.asks(&hold), "16");
    assert_eq!(second.asks(&hold), "4");
    assert_eq!(third.asks(&hold), "0");
    first.finish();
    first.rest();
    host.line("connection ended");
    assert_eq!(third.asks(&hold), "16");
    // One that is dropped makes room for another.
    second.finish();
    second.rest();
    host.line("connection ended");
    let fourth = host.connect();
    for _ in 0..20 {
        assert_eq!(fourth.asks(&format!("connect {address}")), "connected");
    }
}

/// A socket whose handle was dropped stays open as long as a stream leads from it or to it.
#[test]
fn streams_of_dropped_sockets_count() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let port = format!("PORT={}", address.port());
    let address = address.to_string();
    let args = [
        "--allow-outbound",
        &address,
        "--env",
        &port,
        "--max-connections",
        "10",
    ];
    let host = Host::serving("amass", &args);
    let (first, second, third) = (host.connect(), host.connect(), host.connect());
    // 16 for each connection, and two times `--max-connections` for the service.
    assert_eq!(first.asks("socket-receives 100"), "16");
    assert_eq!(second.asks("socket-sends 100"), "4");
    first.finish();
    first.rest();
    host.line("connection ended");
    // Streams that end make room for other sockets, once the host has closed theirs.
    for word in ["socket-receives", "socket-sends"] {
        let mut opened = 0;
        until("more sockets than may be open at the same time", || {
            opened += third.asks(&format!("drop {word} 10")).parse::<u32>().unwrap();
            opened >= 40
        });
    }
    let mut kept = 0;
    until("as many sockets as at first", || {
        kept += third.asks("socket-sends 100").parse::<u32>().unwrap();
        kept >= 16
    });
    assert_eq!(kept, 16);
}

/// A directory with a file, and the grant of it.
fn with_file(name: &str) -> (PathBuf, String) {
    let dir = scratch(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "a file").unwrap();
    let grant = format!("{}::/data", dir.display());
    (dir, grant)
}

#[test]
fn a_guest_holds_no_more_files_than_it_may() {
    let (_, grant) = with_file("held");
    let host = Host::serving("errands", &["--dir", &grant]);
    let client = host.connect();
    assert_eq!(client.asks("hold-files 200 /data/file"), "200");
    client.send("hold-files 100 /data/file\n");
    client.expect_reset();
    assert_eq!(host.outcome(), "guest-trap");
}

/// With few connections, the guests of a service hold 256 files together.
#[test]
fn the_guests_of_a_service_hold_no_more_files_than_they_may() {
    let (_, grant) = with_file("held-by-service");
    let host = Host::serving("errands", &["--dir", &grant, "--max-connections", "3"]);
    let (first, second) = (host.connect(), host.connect());
    assert_eq!(first.asks("hold-files 200 /data/file"), "200");
    assert_eq!(second.asks("hold-files 100 /data/file"), "56");
    assert!(second.asks("read /data/file").starts_with("refused: "));
    // Directories count too.
    assert!(second.asks("list /data").starts_with("refused: "));
    first.finish();
    first.rest();
    host.line("connection ended");
    // A file that is closed makes room for another.
    let third = host.connect();
    assert_eq!(third.asks("hold-files 198 /data/file"), "198");
    for _ in 0..20 {
        assert_eq!(third.asks("read /data/file"), "a file");
        // The directory is one, and its list is another.
        assert_eq!(third.asks("list /data"), "1");
    }
    assert_eq!(third.asks("hold-files 3 /data/file"), "2");
    assert!(third.asks("read /data/file").starts_with("refused: "));
}

#[test]
fn files_that_streams_of_wasi_0_3_keep_open_count() {
    let (_, grant) = with_file("held-by-streams");
    let host = Host::serving("amass", &["--dir", &grant, "--max-connections", "2"]);
    let (first, second) = (host.connect(), host.connect());
    assert_eq!(first.asks("files 80"), "80");
    assert_eq!(first.asks("file-streams 100"), "100");
    assert_eq!(second.asks("files 100"), "76");
    assert_eq!(second.asks("drop files 1"), "0");
    first.finish();
    first.rest();
    host.line("connection ended");
    assert_eq!(second.asks("drop files 300"), "300");
    assert_eq!(second.asks("drop file-streams 300"), "300");
    assert_eq!(second.asks("files 50"), "50");
}

#[test]
fn lists_of_directories_count() {
    let (_, grant) = with_file("held-by-lists");
    let host = Host::serving("amass", &["--dir", &grant, "--max-connections", "2"]);
    let (first, second) = (host.connect(), host.connect());
    assert_eq!(first.asks("files 80"), "80");
    assert_eq!(first.asks("lists 50"), "50");
    assert_eq!(first.asks("begun-lists 50"), "50");
    assert_eq!(second.asks("files 100"), "76");
    assert_eq!(second.asks("begun-lists 1"), "0");
    first.finish();
    first.rest();
    host.line("connection ended");
    assert_eq!(second.asks("drop lists 300"), "300");
    assert_eq!(second.asks("drop begun-lists 300"), "300");
    assert_eq!(second.asks("begun-lists 50"), "50");
}

#[test]
fn lists_of_directories_by_wasi_0_2_count() {
    let (_, grant) = with_file("held-by-listings");
    let host = Host::serving("lengthy", &["--dir", &grant, "--max-connections", "2"]);
    let (first, second) = (host.connect(), host.connect());
    assert_eq!(first.asks("hold listings 200"), "200");
    assert_eq!(second.asks("hold listings 100"), "56");
    first.finish();
    first.rest();
    host.line("connection ended");
    assert_eq!(second.asks("hold begun-listings 100"), "100");
}

/// Opens 200 files, and answers with how many it has opened and the error number of the last try.
/// For each byte it closes two, by `fd_renumber` and by `fd_close`, and opens three. It answers
/// with the sum of the first two error numbers, and the third.
const OPENS: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func $path_open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 64) "file")
    (func $open (result i32)
        (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 0)
            (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 32)))
    (func $answer (param $one i32) (param $other i32)
        (i32.store8 (i32.const 128) (local.get $one))
        (i32.store8 (i32.const 129) (local.get $other))
        (i32.store (i32.const 0) (i32.const 128))
        (i32.store (i32.const 4) (i32.const 2))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))
    (func (export "_start") (local $opened i32) (local $error i32)
        (block $done (loop $next
            (br_if $done (i32.eq (local.get $opened) (i32.const 200)))
            (br_if $done (local.tee $error (call $open)))
            (local.set $opened (i32.add (local.get $opened) (i32.const 1)))
            (br $next)))
        (call $answer (local.get $opened) (local.get $error))
        (loop $again
            (i32.store (i32.const 0) (i32.const 128))
            (i32.store (i32.const 4) (i32.const 1))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
            (if (i32.load (i32.const 16)) (then
                (drop (call $renumber (i32.const 6) (i32.const 5)))
                (drop (call $close (i32.const 5)))
                (call $answer (i32.add (call $open) (call $open)) (call $open))
                (br $again))))))"#;

#[test]
fn the_modules_of_a_service_hold_no_more_files_than_they_may() {
    let (_, grant) = with_file("held-by-modules");
    let module = file("opens.wasm", wat::parse_str(OPENS).unwrap());
    let host = Host::with(&module, &["--dir", &grant, "--max-connections", "3"]);
    let answer = |client: &Client| {
        let mut answer = [0; 2];
        (&client.0).read_exact(&mut answer).unwrap();
        answer
    };
    let first = host.connect();
    assert_eq!(answer(&first), [200, 0]);
    // The error is `nfile`.
    let second = host.connect();
    assert_eq!(answer(&second), [56, 41]);
    for _ in 0..3 {
        second.send("x");
        assert_eq!(answer(&second), [0, 41]);
    }
    first.finish();
    first.rest();
    host.line("connection ended");
    second.send("x");
    assert_eq!(answer(&second), [0, 0]);
    assert_eq!(answer(&host.connect()), [199, 41]);
}

/// The host asks the system for the descriptors of files that guests may open, and so has those of
/// connections left.
#[test]
fn guests_that_hold_all_files_that_they_may_leave_others_their_connections() {
    let (dir, grant) = with_file("all-files");
    let config = dir.join("services.toml");
    let service = |name: &str, guest_name: &str, rest: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"{}\"\n\
             limits = {{ max-connections = 10 }}\n{rest}\n",
            guest(guest_name).display()
        )
    };
    let grants = format!("grants = {{ dirs = [\"{grant}\"] }}");
    fs::write(
        &config,
        service("files", "errands", &grants) + &service("copies", "copy", ""),
    )
    .unwrap();
    let mut command = with_cache(Command::new("sh"));
    command.args(["-c", "ulimit -S -n 64 && exec \"$0\" --config \"$1\"", HOST]);
    let host = Host::spawn(command.arg(&config), &["--listen", "--listen"]);
    let [files, copies] = host.addresses() else {
        panic!()
    };
    let holding: Vec<_> = (0..10)
        .map(|_| {
            let client = Client::connect(*files).unwrap();
            client.send("hold-files 200 /data/file\n");
            client
        })
        .collect();
    let held: usize = holding
        .iter()
        .map(|client| client.line().parse::<usize>().unwrap())
        .sum();
    assert_eq!(held, 256);
    let clients: Vec<_> = (0..10).map(|_| Client::connect(*copies).unwrap()).collect();
    for client in &clients {
        client.echo("hello");
    }
    assert!(!host.log().contains("cannot accept"), "{}", host.log());
}

#[test]
fn a_limit_on_descriptors_below_those_of_files_is_warned_of() {
    let (_, grant) = with_file("few-descriptors");
    let errands = guest("errands").display().to_string();
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--component",
        &errands,
        "--max-connections",
        "10",
    ];
    let warns = |args: &[&str]| {
        let host = Host::below_shell("ulimit -n 300", args);
        host.log()
            .contains("what their guests may open need 453 file descriptors")
    };
    assert!(!warns(&args));
    assert!(warns(&[&args[..], &["--dir", &grant]].concat()));
}

#[test]
fn the_limit_is_raised_for_the_directories_on_the_way_of_paths() {
    let (_, grant) = with_file("raised-descriptors");
    let errands = guest("errands").display().to_string();
    let args = ["--listen", "127.0.0.1:0", "--component", &errands];
    let few = ["--max-connections", "10", "--dir", &grant];
    let host = Host::below_shell("ulimit -Sn 300 && ulimit -Hn 5000", &[args, few].concat());
    let limits = fs::read_to_string(format!("/proc/{}/limits", host.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    let files: Vec<_> = files.unwrap().split_whitespace().collect();
    assert_eq!(files[3..5], ["5000", "5000"]);
    assert!(!host.log().contains("file descriptors"), "{}", host.log());
}

#[test]
fn a_connection_that_lingers_makes_room_for_others() {
    let host = Host::serving("daytime", &["--max-connections", "2"]);
    let lingering: Vec<_> = (0..2)
        .map(|_| {
            let client = host.connect();
            assert!(!client.half().is_empty());
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
fn a_lack_of_descriptors_and_mappings_names_the_setting() {
    let services = |names: &[&str]| {
        let service = |name: &&str| {
            format!(
                "[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\n\
                 limits = {{ max-connections = 100000 }}\n"
            )
        };
        let text: String = names.iter().map(service).collect();
        file(&format!("short-of-{}.toml", names.len()), text)
    };
    let (one, two) = (services(&["a"]), services(&["a", "b"]));
    let lines = |args: &[&str]| {
        let log = Host::below_shell("ulimit -n 500", args).log();
        ["file descriptors", "memory mappings"].map(|what| {
            let line = log.lines().find(|line| line.contains(what));
            line.unwrap_or_else(|| panic!("{log}")).to_owned()
        })
    };
    for (args, setting) in [
        (
            &["--listen", "127.0.0.1:0", "--max-connections", "100000"][..],
            "`--max-connections`",
        ),
        (&["--config", one.to_str().unwrap()], "`limits.max-connections`"),
        (
            &["--config", two.to_str().unwrap()],
            "the sum of `limits.max-connections`",
        ),
    ] {
        let connections = if setting.contains("sum") { 200_000 } else { 100_000 };
        for line in lines(args) {
            let said = format!("{connections} connections ({setting}) ");
            assert!(line.contains(&said), "{line}");
            assert!(line.contains(&format!("or lower {setting}")), "{line}");
        }
    }
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

#[test]
fn a_start_with_too_few_descriptors_says_so_or_raises_the_limit() {
    let start = |limit: &str| {
        let mut command = with_cache(Command::new("sh"));
        let script = format!("ulimit {limit} && exec \"$0\" --listen 127.0.0.1:0");
        command.args(["-c", &script, HOST]);
        command
    };
    for limit in ["-n 6", "-n 8", "-n 12"] {
        let refusal = refusal_of(&mut start(limit));
        assert_eq!(refusal.status, Some(1), "{limit}: {}", refusal.message);
        let advice = "raise the limit (`ulimit -n`, or `LimitNOFILE=` in the systemd unit)";
        assert!(refusal.message.contains(advice), "{limit}: {}", refusal.message);
        assert!(!refusal.message.contains("panic"), "{limit}: {}", refusal.message);
    }
    let host = Host::spawn(&mut start("-S -n 8"), &["--listen"]);
    host.connect().echo("hello");
}

#[test]
fn directories_of_the_kernel_are_not_granted_wherever_they_are() {
    let errands = guest("errands").display().to_string();
    let setup = "mount -t tmpfs none /mnt && mkdir /mnt/here && \
                 if [ \"$1\" = devices ]; then mkdir /mnt/here/below && mknod /mnt/here/null c 0 0; \
                 else mount -t \"$1\" none /mnt/here; fi || exit 77; \
                 exec \"$0\" check \"$2\" --dir /mnt/here::/data";
    let mut seen = 0;
    for (kind, refusal) in [
        ("devices", "it contains the device `null`"),
        ("binfmt_misc", "it belongs to `/mnt/here`"),
        ("bpf", "it belongs to `/mnt/here`"),
        ("hugetlbfs", "it belongs to `/mnt/here`"),
        ("mqueue", "it belongs to `/mnt/here`"),
        ("pstore", "it belongs to `/mnt/here`"),
    ] {
        let Some(mut command) = with_own_mounts() else {
            return;
        };
        let checked = command
            .args(["sh", "-c", setup, HOST, kind, &errands])
            .output()
            .unwrap();
        let said = String::from_utf8(checked.stderr).unwrap();
        // Not every kernel and user can have each.
        if checked.status.code() == Some(77) {
            continue;
        }
        seen += 1;
        assert_eq!(checked.status.code(), Some(1), "{kind}: {said}");
        assert!(said.contains(refusal), "{kind}: {said}");
    }
    assert!(seen > 0, "this user can mount none of them");
}

#[test]
fn shared_memory_is_granted_without_a_file_system_of_the_kernel_in_it() {
    let errands = guest("errands").display().to_string();
    let setup = "mount -t tmpfs none /dev/shm && mkdir /dev/shm/files /dev/shm/kernel && \
                 mount --rbind /proc /dev/shm/kernel && exec \"$0\" check \"$1\" --dir \"$2::/data\"";
    for (dir, refusal) in [
        ("/dev/shm", Some("it contains `/dev/shm/kernel`")),
        ("/dev/shm/kernel", Some("it belongs to `/dev/shm/kernel`")),
        ("/dev/shm/kernel/self", Some("it belongs to `/dev/shm/kernel`")),
        ("/dev/shm/files", None),
    ] {
        let Some(mut command) = with_own_mounts() else {
            return;
        };
        let checked = command
            .args(["sh", "-c", setup, HOST, &errands, dir])
            .output()
            .unwrap();
        let said = String::from_utf8(checked.stderr).unwrap();
        assert_eq!(
            checked.status.code(),
            Some(i32::from(refusal.is_some())),
            "{dir}: {said}"
        );
        assert!(said.contains(refusal.unwrap_or_default()), "{dir}: {said}");
    }
}

/// A module that uses a path of as many names as its client says in a byte. It answers with the
/// number of calls that find the path too long.
const NAMES: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func $open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_create_directory" (func $create
        (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_get" (func $stat
        (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_set_times" (func $set_times
        (param i32 i32 i32 i32 i64 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_link" (func $link
        (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_readlink" (func $readlink
        (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_remove_directory" (func $remove
        (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_rename" (func $rename
        (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_symlink" (func $symlink
        (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink
        (param i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 64) "link")
    (data (i32.const 72) "b")
    (global $refused (mut i32) (i32.const 0))
    (func $count (param i32)
        (global.set $refused
            (i32.add (global.get $refused) (i32.eq (local.get 0) (i32.const 37)))))
    (func (export "_start") (local $path i32) (local $len i32) (local $at i32)
        (i32.store (i32.const 0) (i32.const 16))
        (i32.store (i32.const 4) (i32.const 1))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (local.set $path (i32.const 4096))
        (local.set $len (i32.mul (i32.load8_u (i32.const 16)) (i32.const 2)))
        (loop $names
            (i32.store16 (i32.add (local.get $path) (local.get $at)) (i32.const 0x2f61))
            (local.set $at (i32.add (local.get $at) (i32.const 2)))
            (br_if $names (i32.lt_u (local.get $at) (local.get $len))))
        (call $count (call $open (i32.const 3) (i32.const 0) (local.get $path) (local.get $len)
            (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 32)))
        (call $count (call $create (i32.const 3) (local.get $path) (local.get $len)))
        (call $count (call $stat (i32.const 3) (i32.const 0) (local.get $path) (local.get $len)
            (i32.const 1024)))
        (call $count (call $set_times (i32.const 3) (i32.const 0) (local.get $path) (local.get $len)
            (i64.const 0) (i64.const 0) (i32.const 0)))
        (call $count (call $link (i32.const 3) (i32.const 0) (local.get $path) (local.get $len)
            (i32.const 3) (i32.const 72) (i32.const 1)))
        (call $count (call $link (i32.const 3) (i32.const 0) (i32.const 72) (i32.const 1)
            (i32.const 3) (local.get $path) (local.get $len)))
        (call $count (call $readlink (i32.const 3) (local.get $path) (local.get $len)
            (i32.const 1024) (i32.const 64) (i32.const 32)))
        (call $count (call $remove (i32.const 3) (local.get $path) (local.get $len)))
        (call $count (call $rename (i32.const 3) (local.get $path) (local.get $len)
            (i32.const 3) (i32.const 72) (i32.const 1)))
        (call $count (call $rename (i32.const 3) (i32.const 72) (i32.const 1)
            (i32.const 3) (local.get $path) (local.get $len)))
        (call $count (call $symlink (i32.const 72) (i32.const 1)
            (i32.const 3) (local.get $path) (local.get $len)))
        (call $count (call $symlink (local.get $path) (local.get $len)
            (i32.const 3) (i32.const 64) (i32.const 4)))
        (call $count (call $unlink (i32.const 3) (local.get $path) (local.get $len)))
        (i32.store8 (i32.const 16) (global.get $refused))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// Where WASI looks up a path itself, it keeps one descriptor for each name.
#[test]
fn paths_of_guests_have_few_names() {
    let dir = scratch("descriptors-names");
    fs::create_dir_all(&dir).unwrap();
    let grant = format!("{}::/data:rw", dir.display());
    let args = ["--dir", &grant];
    // The number of names, and of the calls that refuse them: the target of a link, and each path.
    for guest in ["lengthy", "amass"] {
        let host = Host::serving(guest, &args);
        let client = host.connect();
        for (names, refused) in [(16, 0), (17, 1), (64, 1), (65, 14), (2000, 14)] {
            let answer = client.asks(&format!("names {names}"));
            assert_eq!(answer, refused.to_string(), "{guest} with {names} names");
        }
    }
    let module = file("descriptors-names.wasm", wat::parse_str(NAMES).unwrap());
    let host = Host::with(&module, &args);
    for (names, refused) in [(16, 0), (17, 1), (64, 1), (65, 13), (255, 13)] {
        let client = host.connect();
        client.send([names]);
        client.expect([refused]);
    }
}
