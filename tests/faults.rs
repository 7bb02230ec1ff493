//! Peers and systems that do not behave.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::harness::tools::{is_root, permitted, tool, with_own_mounts};
use crate::harness::{
    HOST, HUP, Host, Place, TERM, command, field, file, guest, refusal_of, refused, scratch, until,
    with_cache,
};
use crate::pools::{MAPPINGS, host_with_mappings};

#[test]
fn a_peer_that_resets_while_the_guest_writes() {
    let host = Host::serving("chargen", &["--threads", "1"]);
    let neighbour = host.connect();
    for _ in 0..20 {
        let client = host.connect();
        client.expect(" !\"");
        client.reset();
        assert_eq!(host.outcome(), "peer-reset");
        neighbour.expect([0; 0]);
    }
    neighbour.expect(" !\"");
}

#[test]
fn a_peer_that_resets_while_the_guest_reads() {
    for guest in ["echo", "lines", "lines-session", "discard", "sink"] {
        let host = Host::serving(guest, &[]);
        let client = host.connect();
        client.send("half a line");
        client.reset();
        assert_eq!(host.outcome(), "peer-reset", "{guest}");
    }
}

#[test]
fn a_silent_connection_is_closed_and_a_talking_one_is_not() {
    for guest in ["echo", "lines", "lines-session"] {
        let host = Host::serving(guest, &["--idle-timeout", "2s"]);
        let silent = host.connect();
        let talking = host.connect();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    talking.echo("a line\n");
                    thread::sleep(Duration::from_millis(10));
                }
            });
            assert_eq!(silent.rest(), b"", "{guest}");
            over.store(true, Ordering::Relaxed);
        });
        drop(silent);
        let line = host.line("connection ended");
        assert_eq!(field(&line, "outcome"), "idle-timeout", "{guest}");
        assert_eq!(field(&line, "bytes_in"), "0", "{guest}");
        let lasted: f64 = field(&line, "duration_ms").parse().unwrap();
        assert!(
            (2_000.0..30_000.0).contains(&lasted),
            "{guest} was closed after {lasted} ms"
        );
        talking.echo("another line\n");
    }
}

#[test]
fn a_connection_closed_for_its_silence_ends_with_fin_although_bytes_are_unread() {
    let host = Host::serving("deaf", &["--idle-timeout", "300ms"]);
    let client = host.connect();
    client.send("hello");
    assert_eq!(client.half(), b"");
    // A reset would follow on the FIN if the host had left what it was sent unread.
    client.finish();
    assert_eq!(host.outcome(), "idle-timeout");
    assert!(client.0.take_error().unwrap().is_none());
}

#[test]
fn a_peer_that_stops_reading_is_idle_too() {
    let host = Host::serving("chargen", &["--idle-timeout", "300ms"]);
    let client = host.connect();
    client.expect(" !\"");
    assert_eq!(host.outcome(), "idle-timeout");
    client.expect_reset();
}

#[test]
fn running_out_of_descriptors_is_waited_out() {
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--max-connections",
        "100",
        "--threads",
        "1",
    ];
    let host = Host::below_shell("ulimit -n 40", &args);
    assert!(
        host.log().contains("raise the limit"),
        "no warning in {}",
        host.log()
    );
    let mut clients: Vec<_> = (0..60).map(|_| host.connect()).collect();
    for client in &clients {
        client.send("hello");
    }
    let line = host.line("cannot accept connections at the moment");
    assert_eq!(field(&line, "service"), "echo");
    let later = clients.split_off(30);
    drop(clients);
    host.line("accepting connections again");
    for client in &later[..15] {
        client.expect("hello");
    }
    drop(later);
    host.connect().echo("hello");
    // One line an episode, not one an attempt.
    let log = host.log();
    assert!(log.matches("cannot accept").count() < 10, "{log}");
}

#[test]
fn without_the_address_space_for_a_pool_instances_are_allocated_on_demand() {
    let args = ["--listen", "127.0.0.1:0", "--max-connections", "1000"];
    let host = Host::below_shell("ulimit -v 12000000", &args);
    assert!(host.log().contains("on demand"), "no warning in {}", host.log());
    let clients: Vec<_> = (0..300).map(|_| host.connect()).collect();
    for client in &clients {
        client.echo("hello");
    }
}

#[test]
fn a_timeout_beyond_all_time_is_none() {
    let host = Host::serving("echo", &["--idle-timeout", "300000000000y"]);
    let client = host.connect();
    client.echo("hello");
    client.finish();
    assert_eq!(client.rest(), b"");
    assert_eq!(host.outcome(), "finished");
}

#[test]
fn more_connections_than_the_system_has_mappings_for_are_warned_of() {
    let start = |name: &str, connections: u64| {
        let (component, most) = (guest(name), connections.to_string());
        let args = ["--listen", "127.0.0.1:0", "--max-connections", &most];
        let args = [&args[..], &["--component", component.to_str().unwrap()]].concat();
        host_with_mappings(MAPPINGS, &args)
    };
    assert!(!start("echo", 1000).log().contains("max_map_count"));
    // Those of sessions need no stacks of their own.
    let of_sessions = start("lines-session", MAPPINGS / 4 + 1);
    assert!(!of_sessions.log().contains("max_map_count"));
    for (name, connections) in [("echo", MAPPINGS / 4 + 1), ("lines-session", MAPPINGS / 2 + 1)] {
        let host = start(name, connections);
        assert!(host.log().contains("vm.max_map_count"), "{}", host.log());
        host.connect().echo("hello\n");
    }
}

/// Returns a command that runs `program` as a user that is held to the limit on threads. The
/// superuser is not.
fn without_privileges(program: &str) -> Command {
    as_user(65534, program)
}

/// Returns a command that runs `program` as the user of this number, if this one is the superuser.
fn as_user(number: u32, program: &str) -> Command {
    if !rustix::process::geteuid().is_root() {
        return with_cache(Command::new(program));
    }
    let user = [format!("--reuid={number}"), format!("--regid={number}")];
    let mut setpriv = with_cache(Command::new("setpriv"));
    setpriv.args(user).args(["--clear-groups", program]);
    setpriv
}

/// Sets how many threads the user of a host may have for the host to start another one.
fn limit_threads(host: &Host, max: &str) {
    let mut prlimit = without_privileges("prlimit");
    let (pid, limit) = (format!("--pid={}", host.pid()), format!("--nproc={max}:"));
    assert!(prlimit.args([pid, limit]).status().unwrap().success());
}

#[test]
fn a_reload_without_a_thread_fails_and_ends_nothing() {
    let place = Place::new("threadless", "lines");
    let component = place.file();
    let component = component.to_str().unwrap();
    let config = place.0.join("services.toml");
    let text =
        format!("[[service]]\nname = \"lines\"\ncomponent = \"{component}\"\nlisten = [\"127.0.0.1:0\"]\n");
    fs::write(&config, text).unwrap();
    let of_file = ["--config", config.to_str().unwrap()];
    let of_flags = ["--listen", "127.0.0.1:0", "--component", component];
    for (args, failed, done) in [
        (&of_file[..], "reconfiguration failed", "services reconfigured"),
        (&of_flags[..], "reload failed", "nothing to reload"),
    ] {
        let host = Host::spawn(without_privileges(HOST).args(args), &["--listen"]);
        let before = getrlimit(Resource::Nproc).current;
        let before = before.map_or("unlimited".to_owned(), |max| max.to_string());
        limit_threads(&host, "1");
        host.signal(HUP);
        let said = host.line(failed);
        assert!(
            said.contains("the system gives the host no further thread"),
            "{said}"
        );
        host.connect().echo("hello\n");
        limit_threads(&host, &before);
        host.signal(HUP);
        host.line(done);
    }
}

/// A host that can start no further thread until this is dropped.
struct Threadless {
    host: Host,
    before: String,
}

impl Threadless {
    fn serving(name: &str, args: &[&str]) -> Self {
        let component = guest(name);
        let common = [
            "--listen",
            "127.0.0.1:0",
            "--component",
            component.to_str().unwrap(),
        ];
        let host = Host::spawn(without_privileges(HOST).args(common).args(args), &["--listen"]);
        let before = getrlimit(Resource::Nproc).current;
        let before = before.map_or("unlimited".to_owned(), |max| max.to_string());
        limit_threads(&host, "1");
        Self { host, before }
    }

    /// Lifts the limit again.
    fn recover(self) -> Host {
        limit_threads(&self.host, &self.before);
        assert!(!self.host.log().contains("panic"), "{}", self.host.log());
        self.host
    }
}

#[test]
fn a_start_without_threads_says_so() {
    // The limit counts all processes of a user, so each start has a user of its own. The process
    // itself is the first thread, and the last number lacks the clock of the sandbox.
    let most = match rustix::process::geteuid().is_root() {
        true => 7,
        false => 1,
    };
    for max in 1..=most {
        let mut command = as_user(64_000 + max, "prlimit");
        command.args([&format!("--nproc={max}"), HOST, "--threads", "4"]);
        command.args(["--cache", "off", "--listen", "127.0.0.1:0"]);
        let refusal = refusal_of(&mut command);
        assert_eq!(refusal.status, Some(1), "{max}: {}", refusal.message);
        let advice = "raise the limit (`ulimit -u`, or `TasksMax=` in the systemd unit)";
        assert!(refusal.message.contains(advice), "{max}: {}", refusal.message);
        assert!(!refusal.message.contains("panic"), "{max}: {}", refusal.message);
    }
}

#[test]
fn a_check_finds_that_there_are_too_few_threads() {
    // The limit counts all processes of a user, so this needs one who has no others.
    if !is_root() {
        return;
    }
    let services = file(
        "too-many-threads.toml",
        "threads = 400\n[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n",
    );
    let services = services.to_str().unwrap();
    for args in [&["check", "--config", services][..], &["--config", services]] {
        let mut command = as_user(64_200, "prlimit");
        let refusal = refusal_of(command.args(["--nproc=100", HOST]).args(args));
        assert_eq!(refusal.status, Some(1), "{args:?}: {}", refusal.message);
        for part in [
            "cannot start the threads of the host (",
            "expected a system that lets it have 405 threads or more",
            "or lower `threads` from 400",
        ] {
            assert!(refusal.message.contains(part), "{args:?}: {}", refusal.message);
        }
        let place = format!("error: {services}:1: threads: ");
        assert_eq!(refusal.message.starts_with(&place), args[0] == "check");
    }
}

#[test]
fn files_are_polled_without_a_thread_to_watch_them() {
    const USER: u32 = 64_100;
    // The limit counts all processes of a user, so this needs one who has no others.
    if !is_root() {
        return;
    }
    let place = Place::new("threadless-watch", "lines");
    let component = place.file();
    let component = component.to_str().unwrap();
    let cache = place.0.join("cache");
    fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::chown(&cache, Some(USER), Some(USER)).unwrap();
    let cache = ["--cache", cache.to_str().unwrap()];
    let mut compile = as_user(USER, HOST);
    compile.arg("compile").args(cache).arg(component);
    assert!(compile.status().unwrap().success());
    // The host has 5 threads. One more looks up the directories, and another one watches them.
    for (threads, is_watched) in [(5, false), (6, false), (7, true)] {
        let mut command = as_user(USER, "prlimit");
        command.args([
            &format!("--nproc={threads}"),
            HOST,
            "--threads",
            "1",
            "--watch",
            "-v",
        ]);
        command
            .args(cache)
            .args(["--component", component, "--listen", "127.0.0.1:0"]);
        let host = Host::spawn(&mut command, &["--listen"]);
        if !is_watched {
            let warning = "cannot watch the component files";
            until(warning, || host.log().contains(warning));
        }
        host.connect().echo("hello\n");
        assert!(!host.log().contains("ERROR"), "{threads}: {}", host.log());
    }
}

#[test]
fn guests_use_files_without_a_further_thread() {
    // More than there are threads for files.
    const CONNECTIONS: usize = 70;
    let dir = scratch("threadless-files");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("note"), "a note").unwrap();
    let grant = format!("{}::/data", dir.display());
    let threadless = Threadless::serving("errands", &["--dir", &grant]);
    let reads = |host: &Host| {
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| host.connect()).collect();
        for client in &clients {
            client.send("read /data/note\n");
        }
        for client in &clients {
            assert_eq!(client.line(), "a note");
        }
    };
    reads(&threadless.host);
    reads(&threadless.recover());
}

#[test]
fn long_calls_without_a_further_thread_end_at_their_limit() {
    let threadless = Threadless::serving("spin", &["--threads", "2", "--max-call-time", "1s"]);
    // More of them than there are threads to replace theirs.
    let spinning: Vec<_> = (0..6).map(|_| threadless.host.connect()).collect();
    for client in &spinning {
        client.echo("hello");
    }
    for client in &spinning {
        client.send("!");
    }
    let other = threadless.host.connect();
    other.echo("hello");
    for _ in &spinning {
        assert_eq!(threadless.host.outcome(), "cpu-limit");
    }
    other.echo("and again");
    let host = threadless.recover();
    host.connect().echo("and later");
}

#[test]
fn errors_of_accept_are_survived() {
    let Some(program) = tool("strace") else {
        return;
    };
    if !permitted(
        "strace",
        Command::new(program).args(["-qq", "-o", "/dev/null", "true"]),
    ) {
        return;
    }
    for (error, waits, cause) in [
        ("EMFILE", true, "ulimit -n"),
        ("ENFILE", true, "fs.file-max"),
        ("ENOBUFS", true, "no memory"),
        ("ENOMEM", true, "no memory"),
        ("ECONNABORTED", false, "ulimit -n"),
        ("EINTR", false, "ulimit -n"),
        ("EPROTO", false, "ulimit -n"),
    ] {
        // The first five calls of each thread fail, with a connection waiting all the while.
        let strace = format!(
            "exec strace -D -f -qq -o /dev/null -e trace=accept4 -e inject=accept4:error={error}:when=1..5 \"$0\" \"$@\"; true"
        );
        let host = Host::below_shell(&strace, &["--listen", "127.0.0.1:0", "--threads", "1"]);
        host.connect().echo("hello");
        host.connect().echo("hello");
        if waits {
            host.line("accepting connections again");
        }
        let log = host.log();
        for (line, times) in [
            (cause, waits),
            ("ulimit -n", error == "EMFILE"),
            ("cannot accept", waits),
            ("accepting connections again", waits),
            ("WARN", waits),
        ] {
            assert_eq!(log.matches(line).count(), usize::from(times), "{error}: {log}");
        }
    }
}

#[test]
fn an_error_of_the_system_comes_with_advice() {
    let Some(program) = tool("strace") else {
        return;
    };
    if !permitted(
        "strace",
        Command::new(&program).args(["-qq", "-o", "/dev/null", "true"]),
    ) {
        return;
    }
    for (call, error, address, advice) in [
        ("socket", "EMFILE", "127.0.0.1:0", "raise the limit (`ulimit -n`"),
        (
            "socket",
            "ENFILE",
            "127.0.0.1:0",
            "raise the limit with `sysctl fs.file-max`",
        ),
        (
            "socket",
            "EAFNOSUPPORT",
            "[::1]:0",
            "IPv6 is disabled on this machine",
        ),
        (
            "socket",
            "ENOBUFS",
            "127.0.0.1:0",
            "the system has no memory for another socket",
        ),
        ("bind", "EACCES", "127.0.0.1:80", "CAP_NET_BIND_SERVICE"),
        (
            "bind",
            "EACCES",
            "127.0.0.1:0",
            "a security policy of the system forbids it",
        ),
        (
            "bind",
            "EPERM",
            "unix:/tmp/wasm-inetd-advice",
            "create files in `/tmp`",
        ),
    ] {
        let mut strace = with_cache(Command::new(&program));
        strace
            .args(["-f", "-qq", "-o", "/dev/null", "-e"])
            .arg(format!("trace={call}"))
            .arg("-e")
            .arg(format!("inject={call}:error={error}"));
        let refusal = refusal_of(strace.arg(HOST).args(["--listen", address]));
        assert_eq!(refusal.status, Some(1), "{error}: {}", refusal.message);
        assert!(
            refusal.message.contains(&format!("cannot listen on {address}: "))
                && refusal.message.contains(advice),
            "{error}: {}",
            refusal.message
        );
    }
}

#[test]
fn a_write_beyond_the_limit_on_the_size_of_files_fails_and_ends_nothing() {
    let (dir, talks) = (scratch("file-size"), scratch("file-size-talks"));
    fs::create_dir_all(&dir).unwrap();
    let errands = guest("errands");
    let grant = format!("{}::/data:rw", dir.display());
    let mut host = Host::below_shell(
        "ulimit -f 0",
        &[
            "record",
            "--to",
            talks.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            // The cache of compiled code cannot be written either.
            "--cache",
            dir.join("cache").to_str().unwrap(),
            "--component",
            errands.to_str().unwrap(),
            "--dir",
            &grant,
        ],
    );
    let client = host.connect();
    client.send("write /data/file\n");
    // WASI has no name for the error.
    let answer = client.line();
    assert!(answer.starts_with("refused: I/O error"), "{answer}");
    client.send("list /data\n");
    // The file that stayed empty, and the cache.
    assert_eq!(client.line(), "2");
    drop(client);
    let line = host.line("cannot write the recorded conversation");
    assert!(line.contains("File too large"), "{line}");
    assert_eq!(field(&line, "service"), "errands");
    assert_eq!(fs::read_dir(talks).unwrap().count(), 0);
    assert!(host.stop().success());
}

#[test]
fn a_signal_to_stop_ends_process_1_while_it_starts() {
    let Some(unshare) = tool("unshare") else {
        return;
    };
    let process_1 = ["--map-root-user", "--pid", "--fork"];
    if !permitted("unshare", Command::new(&unshare).args(process_1).arg("true")) {
        return;
    }
    // It is tried for five seconds.
    let never = r#"(module
        (memory (export "memory") 1)
        (func $start (loop (br 0)))
        (start $start)
        (func (export "_start")))"#;
    let never = file("never-starts.wasm", wat::parse_str(never).unwrap());
    let mut command = with_cache(Command::new(unshare));
    command.args(process_1).arg(HOST);
    command.args(["--listen", "127.0.0.1:0", "--component", never.to_str().unwrap()]);
    let mut host = Host::launch(&mut command);
    let parent = host.pid();
    let children = format!("/proc/{parent}/task/{parent}/children");
    let mut child = String::new();
    until("there is a process 1", || {
        child = fs::read_to_string(&children).unwrap_or_default();
        !child.is_empty()
    });
    // A signal that arrives before the host handles signals is lost.
    let ended = AtomicBool::new(false);
    let status = thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let _ = Command::new("kill").args(["-TERM", child.trim()]).output();
            }
        });
        let status = host.wait();
        ended.store(true, Ordering::Relaxed);
        status
    });
    assert_eq!(status.code(), Some(128 + TERM), "{}", host.log());
}

#[test]
fn a_full_disk_fails_what_writes_to_it_and_ends_nothing() {
    let Some(unshare) = tool("unshare") else {
        return;
    };
    let mount = [
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "none",
        "/mnt",
    ];
    if !permitted("unshare", Command::new(&unshare).args(mount)) {
        return;
    }
    let dir = scratch("full-disk");
    fs::create_dir_all(&dir).unwrap();
    // A file system of 64 KiB, in which no compiled component has room. Only this host sees it.
    let mount = format!(
        "exec '{}' --map-root-user --mount sh -c 'mount -t tmpfs -o size=64k none {} && exec \"$0\" \"$@\"' \
         \"$0\" \"$@\"; true",
        unshare.display(),
        dir.display()
    );
    let errands = guest("errands");
    let grant = format!("{}::/data:rw", dir.display());
    let mut host = Host::below_shell(
        &mount,
        &[
            "record",
            "--to",
            dir.join("talks").to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--cache",
            dir.join("cache").to_str().unwrap(),
            "--component",
            errands.to_str().unwrap(),
            "--dir",
            &grant,
        ],
    );
    let log = host.log();
    let warned = |line: &str| line.contains("cannot keep the compiled ") && line.contains("No space left on");
    assert!(log.lines().any(warned), "{log}");
    let seen = PathBuf::from(format!("/proc/{}/root{}", host.pid(), dir.display()));
    // The key, by which entries are signed, is small enough.
    assert_eq!(fs::read_dir(seen.join("cache")).unwrap().count(), 1);

    // What fits is written.
    let client = host.connect();
    client.send("write /data/file\n");
    assert_eq!(client.line(), "written");
    drop(client);
    let talks = || fs::read_dir(seen.join("talks")).unwrap().count();
    until("the conversation is recorded", || talks() == 1);

    // Nothing fits any more.
    let filled = fs::write(seen.join("rest"), vec![0; 64 << 10]);
    assert_eq!(filled.unwrap_err().kind(), io::ErrorKind::StorageFull);
    let client = host.connect();
    client.send("write /data/other\n");
    let answer = client.line();
    // WASI has no name for the error.
    assert!(answer.starts_with("refused: "), "{answer}");
    drop(client);
    let line = host.line("cannot write the recorded conversation");
    assert!(line.contains("No space left on device"), "{line}");
    assert_eq!(talks(), 1);
    assert!(host.stop().success());
}

/// Other owners or modes of the directories would not help.
#[test]
fn a_file_system_that_takes_no_files_is_told_from_a_directory_of_others() {
    let dir = scratch("takes-no-files");
    fs::create_dir_all(&dir).unwrap();
    let at = dir.display();
    let echo = guest("echo").display().to_string();
    for (options, advice) in [
        // The directory itself is the one file.
        ("nr_inodes=1", "free some space there"),
        ("ro", "mount the file system with write access"),
    ] {
        let script = format!("mount -t tmpfs -o {options} none {at} && exec \"$0\" \"$@\"");
        for (args, another) in [
            (
                &["compile", "--cache", &format!("{at}/cache"), &echo][..],
                ", or set `--cache` to another directory",
            ),
            (
                &[
                    "record",
                    "--to",
                    &format!("{at}/talks"),
                    "--listen",
                    "127.0.0.1:0",
                ],
                ", or choose another directory with `--to`",
            ),
            (
                &["--listen", &format!("unix:{at}/s")],
                ", or choose another path with --listen",
            ),
        ] {
            let Some(mut command) = with_own_mounts() else {
                return;
            };
            command.args(["sh", "-c", &script, HOST]).args(args);
            let refusal = refusal_of(&mut command);
            assert_eq!(refusal.status, Some(1), "{}", refusal.message);
            assert!(
                refusal.message.contains(&format!("{advice}{another}")),
                "{}",
                refusal.message
            );
        }
    }
}

#[test]
fn signals_that_ask_for_nothing_end_nothing() {
    let mut host = Host::serving("echo", &[]);
    // 34 is the first real-time signal that the C library leaves to programs, and 64 the last.
    for name in [
        "34", "35", "64", "ALRM", "IO", "PIPE", "PROF", "PWR", "STKFLT", "TTIN", "TTOU", "URG", "USR1",
        "VTALRM", "WINCH", "XFSZ",
    ] {
        let kill = Command::new("kill")
            .args([&format!("-{name}"), &host.pid().to_string()])
            .status();
        assert!(kill.unwrap().success(), "{name}");
        host.connect().echo("hello\n");
    }
    assert!(host.stop().success());
}

#[test]
fn signals_that_enforce_limits_or_report_errors_end_the_host() {
    for (name, number) in [("ABRT", 6), ("SYS", 31), ("TRAP", 5), ("XCPU", 24)] {
        let mut host = Host::serving("echo", &[]);
        host.signal(number);
        assert_eq!(host.wait().signal(), Some(number), "{name}");
    }
}

#[test]
fn a_stack_size_from_the_environment_that_cannot_work_is_refused() {
    for (size, works) in [
        ("1", false),
        ("65536", false),
        ("1000000000000000", false),
        ("2097152", true),
        ("67108864", true),
        ("+2097152", false),
        ("small", false),
        ("", false),
    ] {
        let guest = guest("echo");
        let args = [
            "--listen",
            "127.0.0.1:0",
            "--watch",
            "--component",
            guest.to_str().unwrap(),
        ];
        if works {
            let host = Host::spawn(command().env("RUST_MIN_STACK", size).args(args), &args);
            host.connect().echo("hello\n");
        } else {
            let output = command().env("RUST_MIN_STACK", size).args(args).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            let message = String::from_utf8(output.stderr).unwrap();
            assert!(
                message.contains("RUST_MIN_STACK") && message.lines().count() == 1,
                "{message}"
            );
        }
    }
}

#[test]
fn signals_that_the_parent_has_blocked_are_heard() {
    let trap = guest("trap");
    let mut command = with_cache(Command::new("env"));
    let arguments = ["--listen", "127.0.0.1:0", "--component", trap.to_str().unwrap()];
    command.arg("--block-signal").arg(HOST).args(arguments);
    let mut host = Host::spawn(&mut command, &arguments);
    // A trap of compiled code is a signal that the host handles.
    let client = host.connect();
    client.send("!");
    client.expect_reset();
    assert_eq!(host.outcome(), "guest-trap");
    host.signal(TERM);
    assert!(host.wait().success());
}

#[test]
fn a_named_pipe_in_place_of_a_file_is_refused() {
    let dir = scratch("named-pipe");
    fs::create_dir_all(&dir).unwrap();
    let pipe = dir.join("pipe").display().to_string();
    assert!(
        Command::new("mkfifo")
            .args(["-m", "600", &pipe])
            .status()
            .unwrap()
            .success()
    );
    let expected = "it is a named pipe, not a file";
    let echo = guest("echo").display().to_string();
    for (args, expected) in [
        (&["--tls-certificate", &pipe, "--tls-key", &pipe][..], expected),
        (&["--component", &pipe], expected),
        (&["--component", &echo, "--middleware", &pipe], expected),
        (
            &["--admin", "0", "--admin-token", &pipe],
            "is not a file; expected the path of a token file",
        ),
    ] {
        let args = [&["--listen", "127.0.0.1:0"], args].concat();
        let refusal = refused(&args);
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        assert!(refusal.message.contains(expected), "{}", refusal.message);
    }
    for (args, status) in [(["--config", &pipe], 2), (["check", &pipe], 1)] {
        let refusal = refused(&args);
        assert_eq!(refusal.status, Some(status), "{}", refusal.message);
        assert!(refusal.message.contains(expected), "{}", refusal.message);
    }
}

#[test]
fn a_token_file_that_cannot_be_written_is_not_left_behind() {
    let token = scratch("fsize-token");
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "0",
        "--cache",
        "off",
        "--admin-token",
    ];
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 0 && exec \"$0\" \"$@\"", HOST]);
    let refusal = refusal_of(limited.args(args).arg(&token));
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    assert!(
        refusal.message.contains("cannot create the token file"),
        "{}",
        refusal.message
    );
    assert!(!token.exists());
}
