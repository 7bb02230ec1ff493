//! Files that hang and large directories of one service stop no other service, and no reload.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::harness::{
    Client, Done, HUP, Host, NEW, Place, USR2, command, file, guest, replace, scratch, until,
};

/// More connections than the host has threads for files, of all services together.
const MANY: usize = 520;

/// Has a host hang at this place of its code once there is a named pipe at `pipe`.
fn hanging_at<'a>(command: &'a mut Command, place: &str, pipe: &Path) -> &'a mut Command {
    command.env("WASM_INETD_HANG", format!("{place}={}", pipe.display()))
}

/// Opens a named pipe without a wait for its other end.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

fn pipe_at(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A link to the standard input of the process that follows it. If that is a pipe, reading it waits
/// for bytes, and so hangs as a file on a lost mount does.
pub fn hang(path: &Path) {
    let link = path.with_extension("link");
    symlink("/dev/stdin", &link).unwrap();
    fs::rename(link, path).unwrap();
}

/// Starts a host whose standard input is a pipe, and returns the other end of the pipe.
pub fn with_pipe(command: &mut Command) -> (Host, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let mut host = Host::reading(command, reader);
    host.listens(1);
    (host, writer)
}

/// Writes a services file with the service `a`, and with `more` behind it.
fn put_service(services: &Path, more: &str) {
    fs::create_dir_all(services.parent().unwrap()).unwrap();
    let text = format!("[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n{more}");
    replace(services, text);
}

/// Counts the threads for files that have this nice value.
fn nice(host: &Host, value: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
    // After the name, nice is the 17th field (proc(5)).
    let nice = |stat: &String| {
        let (name, fields) = stat.rsplit_once(')').unwrap();
        name.ends_with("(files") && fields.split_whitespace().nth(16) == Some(value)
    };
    stats.filter(nice).count()
}

#[test]
fn guests_that_wait_for_a_file_keep_no_other_service_from_its_files() {
    let dir = scratch("waiting-guests");
    for name in ["pipes", "notes"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    let (pipe, component) = (dir.join("pipes/pipe"), dir.join("component.wasm"));
    pipe_at(&pipe);
    fs::write(dir.join("notes/note"), "a note").unwrap();
    fs::copy(guest("errands"), &component).unwrap();
    let config = dir.join("services.toml");
    let service = |name: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"component.wasm\"\n\
             grants = {{ dirs = [\"{name}::/data\"] }}\n"
        )
    };
    fs::write(&config, service("pipes") + &service("notes")).unwrap();
    let host = Host::with_config(&config, 2);
    let [pipes, notes] = host.addresses() else {
        panic!()
    };
    let waiting: Vec<_> = (0..MANY)
        .map(|_| {
            let client = Client::connect(*pipes).unwrap();
            client.send("read /data/pipe\n");
            client
        })
        .collect();
    until("all connections are accepted", || host.entries("fd") > MANY);
    let line = host.line("have not opened");
    assert!(line.contains("service=\"pipes\""), "{line}");
    let threads = host.entries("task");
    assert!(threads < 100, "{threads} threads");
    // Threads that use files give way to others. The first of each service keeps its timers, and
    // the service without pipes has started one for files.
    assert_eq!((nice(&host, "0"), nice(&host, "19")), (2, 64 + 1));
    // The other service has its files, and is reloaded.
    let reads = |name: &str| {
        let client = Client::connect(*notes).unwrap();
        client.send(format!("read /data/{name}\n"));
        client.line()
    };
    assert_eq!(reads("note"), "a note");
    replace(&component, crate::harness::again("errands", 1));
    host.signal(HUP);
    let reloaded = host.line("component reloaded service=\"notes\"");
    assert!(reloaded.contains("service=\"notes\""), "{reloaded}");
    assert_eq!(reads("note"), "a note");
    // Guests that wait get their turn, once the pipe has a writer.
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, _done) = (&done, Done(&done));
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                // Fails while nobody reads.
                drop(File::options().write(true).custom_flags(NONBLOCK).open(&pipe));
            }
        });
        for client in waiting {
            // Reading a pipe at an offset fails.
            assert!(client.line().starts_with("refused"));
        }
    });
}

/// Opens the file or the pipe of the granted directory, as the first byte of input says. Closes it
/// when the next byte comes. Answers with a byte after each step.
const CLOSES: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func $open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "file" "pipe" "\20\00\00\00\01\00\00\00")
    (func $step (result i32)
        (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 20)))
        (drop (call $read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 20)))
        (i32.load (i32.const 20)))
    (func (export "_start")
        (drop (call $read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 20)))
        (if (call $open (i32.const 3) (i32.const 0)
                (select (i32.const 4) (i32.const 0) (i32.eq (i32.load8_u (i32.const 32)) (i32.const 112)))
                (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 24))
            (then unreachable))
        (if (call $step) (then
            (if (call $close (i32.load (i32.const 24))) (then unreachable))
            (drop (call $step))))))"#;

/// Closes hang if their threads do, so it is seen that no other thread closes a file.
#[test]
fn files_are_closed_on_threads_for_files() {
    let dir = scratch("closes");
    fs::create_dir_all(&dir).unwrap();
    let (kept, pipe) = (dir.join("file"), dir.join("pipe"));
    File::create(&kept).unwrap();
    pipe_at(&pipe);
    let module = file("closes.wasm", wat::parse_str(CLOSES).unwrap());
    let host = Host::with(&module, &["--dir", &format!("{}::/data", dir.display())]);
    let opens = |name: &str| {
        let client = host.connect();
        client.send(name);
        client
    };
    let holding = ["f", "f"].map(|name| {
        let client = opens(name);
        client.expect("f");
        client
    });
    let is_kept = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|path| path == kept);
    let open = || {
        let all = fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap();
        all.filter(|entry| is_kept(entry.as_ref().unwrap())).count()
    };
    assert_eq!(open(), 2);
    let mut waiting: Vec<_> = (0..80).map(|_| opens("p")).collect();
    until("all threads wait for the pipe", || {
        // If all guests have begun, the directories of another one wait.
        waiting.push(opens("p"));
        thread::sleep(Duration::from_millis(50));
        host.log().contains("have not opened")
    });
    let [closing, ending] = holding;
    closing.send("c");
    closing.expect("c");
    ending.finish();
    ending.rest();
    host.line("connection ended");
    assert_eq!(open(), 2, "closed on a thread that serves");
    until("the files are closed", || {
        // Fails while nobody reads.
        drop(File::options().write(true).custom_flags(NONBLOCK).open(&pipe));
        open() == 0
    });
}

/// A directory with so many files, and the grant of it.
fn with_files(name: &str, count: usize) -> String {
    let dir = scratch(name);
    fs::create_dir_all(&dir).unwrap();
    for number in 0..count {
        let name = format!("a file whose name is long enough for some chunks, {number}");
        File::create(dir.join(name)).unwrap();
    }
    format!("{}::/data", dir.display())
}

/// The guests have read the first entry of some of them.
#[test]
fn lists_that_a_guest_does_not_read_keep_no_thread() {
    let grant = with_files("unread-lists", 1000);
    let host = Host::serving("amass", &["--dir", &grant]);
    let holding = ["begun-lists 70", "lists 70"].map(|holds| {
        let client = host.connect();
        assert_eq!(client.asks(holds), "70");
        client
    });
    // A connection begins when its directories are open.
    assert_eq!(host.connect().asks("entries 2"), "2");
    for client in &holding {
        assert_eq!(client.asks("entries 1"), "1");
    }
}

/// Lists the granted directory to its end, with a buffer of `LEN` bytes for each call. Answers with
/// the number of entries, and of those whose type is not that of a file.
const LISTS: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_readdir" (func $readdir
        (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 20)
    (func (export "_start")
        (local $cookie i64) (local $used i32) (local $at i32) (local $end i32)
        (local $count i32) (local $others i32)
        (block $done (loop $call
            (if (call $readdir (i32.const 3) (i32.const 1024) (i32.const LEN) (local.get $cookie) (i32.const 0))
                (then unreachable))
            (local.set $used (i32.load (i32.const 0)))
            (local.set $at (i32.const 1024))
            (block $no_more (loop $entry
                (br_if $no_more (i32.gt_u (i32.add (local.get $at) (i32.const 24))
                    (i32.add (local.get $used) (i32.const 1024))))
                (local.set $end (i32.add (i32.add (local.get $at) (i32.const 24))
                    (i32.load offset=16 (local.get $at))))
                (br_if $no_more (i32.gt_u (local.get $end) (i32.add (local.get $used) (i32.const 1024))))
                (local.set $cookie (i64.load (local.get $at)))
                (local.set $count (i32.add (local.get $count) (i32.const 1)))
                (if (i32.ne (i32.load8_u offset=20 (local.get $at)) (i32.const 4))
                    (then (local.set $others (i32.add (local.get $others) (i32.const 1)))))
                (local.set $at (local.get $end))
                (br $entry)))
            (br_if $call (i32.eq (local.get $used) (i32.const LEN)))))
        (i32.store (i32.const 16) (local.get $count))
        (i32.store (i32.const 20) (local.get $others))
        (i32.store (i32.const 4) (i32.const 16))
        (i32.store (i32.const 8) (i32.const 8))
        (drop (call $write (i32.const 1) (i32.const 4) (i32.const 1) (i32.const 12)))))"#;

#[test]
fn modules_list_large_directories_in_pieces() {
    let grant = with_files("module-lists", 3000);
    let (dir, _) = grant.split_once("::").unwrap();
    // Preview 1 has no type for it.
    let _socket = UnixListener::bind(Path::new(dir).join("socket")).unwrap();
    for len in ["1000000", "4096", "200"] {
        let module = wat::parse_str(LISTS.replace("LEN", len)).unwrap();
        let module = file(&format!("lists-{len}.wasm"), module);
        let host = Host::with(&module, &["--dir", &grant]);
        // The directory, the one above it, and the socket are no files.
        let expected = [3003_u32, 3].map(u32::to_le_bytes).concat();
        assert_eq!(host.connect().rest(), expected, "{len}");
    }
}

#[test]
fn a_watched_file_that_hangs_keeps_one_thread() {
    let place = Place::new("hangs", "lines-session");
    let mut command = command();
    command.args(["-v", "--listen", "127.0.0.1:0", "--watch", "--component"]);
    let (host, mut pipe) = with_pipe(command.arg(place.file()));
    hang(&place.file());
    let line = host.line("took longer than 10s");
    assert!(line.contains("WARN") && line.contains("guest.wasm"), "{line}");
    let threads = host.entries("task");
    // It is tried again and again, and logged once.
    let line = host.line("reload failed again");
    assert!(line.contains("DEBUG"), "{line}");
    assert!(host.entries("task") <= threads, "each try keeps a thread");
    host.connect().echo("still here\n");
    // Once the call has returned, the file is read again.
    place.put("echo");
    pipe.write_all(b"late").unwrap();
    drop(pipe);
    host.line(NEW);
}

#[test]
fn a_services_file_that_hangs_keeps_one_thread() {
    let services = scratch("hung-services").join("services.toml");
    let put = |more: &str| put_service(&services, more);
    put("");
    let (host, mut pipe) = with_pipe(command().arg("--config").arg(&services));
    hang(&services);
    host.signal(HUP);
    // A pipe holds less, so the host has begun to read it when this returns.
    pipe.write_all(&[b'#'; (64 << 10) + 1]).unwrap();
    host.signal(USR2);
    host.line("reconfiguration given up");
    let threads = host.entries("task");
    host.signal(HUP);
    let line = host.line("reconfiguration failed: an earlier one has not returned from reading");
    assert!(line.contains("services.toml"), "{line}");
    assert!(host.entries("task") <= threads, "each signal keeps a thread");
    host.connect().echo("still here");
    // Once the call has returned, the file is read again.
    put("limits.max-connections = 7\n");
    drop(pipe);
    host.signal(HUP);
    host.line("services reconfigured");
}

#[test]
fn a_gate_that_hangs_keeps_one_thread() {
    let place = Place::new("hung-gate", "echo");
    let gate = scratch("hung-gate-gate");
    fs::create_dir_all(&gate).unwrap();
    fs::write(gate.join("echo.conversation"), "> \"hello\\n\"\n< \"hello\\n\"\n").unwrap();
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--gate"]);
    command.arg(&gate).arg("--component").arg(place.file());
    // A gate has regular files only, which do not hang on a file system of this machine.
    let pipe = gate.join("pipe");
    let host = Host::spawn(hanging_at(&mut command, "gate", &pipe), &[]);
    pipe_at(&pipe);
    place.put("lines-session");
    host.signal(HUP);
    host.line("reload failed: reading the gate took longer than 10s");
    let threads = host.entries("task");
    host.signal(HUP);
    until("the second request was refused", || {
        host.log().matches("reload failed: reading the gate").count() == 2
    });
    assert!(host.entries("task") <= threads, "each signal keeps a thread");
    host.connect().echo("still here");
}

#[test]
fn the_file_of_a_socket_that_hangs_stops_no_service_and_no_drain() {
    let dir = scratch("hung-socket");
    fs::create_dir_all(&dir).unwrap();
    let services = dir.join("services.toml");
    let a = "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\", \"unix:a\"]\n";
    let b = "[[service]]\nname = \"b\"\nlisten = [\"unix:b\"]\n";
    fs::write(&services, format!("{a}{b}")).unwrap();
    let pipe = dir.join("pipe");
    let mut command = command();
    command.arg("--config").arg(&services).current_dir(&dir);
    let mut host = Host::launch(hanging_at(&mut command, "socket", &pipe));
    host.listens(3);
    pipe_at(&pipe);
    replace(&services, a);
    host.signal(HUP);
    host.line("services reconfigured");
    host.connect().echo("still here");
    assert!(host.stop().success(), "{}", host.log());
    assert!(dir.join("a").exists() && dir.join("b").exists(), "nothing hung");
}

#[test]
fn a_directory_of_records_that_hangs_keeps_no_connection_for_ever() {
    let dir = scratch("hung-record");
    fs::create_dir_all(&dir).unwrap();
    let pipe = dir.join("pipe");
    pipe_at(&pipe);
    let mut command = command();
    command.args([
        "record",
        "--listen",
        "127.0.0.1:0",
        "--max-connections",
        "5",
        "--to",
    ]);
    command.arg(dir.join("talks"));
    let host = Host::spawn(hanging_at(&mut command, "record", &pipe), &[]);
    for _ in 0..5 {
        let client = host.connect();
        client.echo("hello");
        client.finish();
    }
    until("the connections have ended", || {
        let log = host.log();
        let count = |text| log.matches(text).count();
        // The last one waits for the others.
        count("is being written") == 4
            && count("the conversation is lost") == 1
            && count("connection ended") == 5
    });
    host.connect().echo("still here");
}

#[test]
fn a_certificate_that_hangs_keeps_no_later_reconfiguration_waiting() {
    let dir = scratch("hung-certificate");
    let services = dir.join("services.toml");
    let put = |more: &str| put_service(&services, more);
    put("");
    let (host, pipe) = with_pipe(command().arg("--config").arg(&services));
    hang(&dir.join("b.pem"));
    put(
        "[[service]]\nname = \"b\"\nlisten = [{ address = \"127.0.0.1:0\", \
         tls = { certificate = \"b.pem\", key = \"b.pem\" } }]\n",
    );
    host.signal(HUP);
    let line = host.line("reading the files of its listeners took longer than 10s");
    assert!(line.contains("service[1].listen: service `b`"), "{line}");
    // The call has not returned.
    put("limits.max-connections = 7\n");
    host.signal(HUP);
    host.line("services reconfigured");
    host.connect().echo("still here");
    drop(pipe);
}

#[test]
fn a_signal_is_heard_while_a_watched_file_keeps_changing() {
    let place = Place::new("restless", "lines-session");
    let host = place.serve(&["--watch"]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, _done) = (&done, Done(&done));
        let file = place.file();
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if let Ok(file) = File::options().write(true).open(&file) {
                    file.set_modified(SystemTime::now()).unwrap();
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        place.put("echo");
        host.signal(HUP);
        host.line(NEW);
        assert!(!host.log().contains("has changed all the time"), "{}", host.log());
        // Without a signal, it is read after some time.
        place.put("upper");
        let line = host.line("has changed all the time for 10s");
        assert!(line.contains("guest.wasm"), "{line}");
        host.line(NEW);
    });
}
