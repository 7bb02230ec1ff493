//! What systemd gives and is told: sockets that are open already, and notices.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::tools;
use crate::harness::{
    Client, DEADLINE, HOST, HUP, Host, Place, TERM, command, guest, scratch, until, with_cache,
};

/// Opens sockets as a service manager does and becomes the program: names of descriptors, then sockets with their kinds, then
/// the program and its arguments.
const LAUNCHER: &str = "
import os, socket, sys
names, sockets, program = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
kept = []
for place in sockets:
    if place.startswith('/'):
        one = socket.socket(socket.AF_UNIX)
        one.bind(place)
        one.listen()
    elif place == 'datagram':
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(('127.0.0.1', 0))
    elif place == 'deaf':
        one = socket.socket()
        one.bind(('127.0.0.1', 0))
    elif place == 'connection':
        listener = socket.create_server(('127.0.0.1', 0))
        client = socket.create_connection(listener.getsockname())
        one, _ = listener.accept()
    elif place == 'file':
        one = open('/dev/null')
    else:
        one = socket.create_server((place, 0), family=socket.AF_INET6 if ':' in place else socket.AF_INET)
    kept.append(one)
# Out of the way first.
copies = [os.dup2(one.fileno(), 100 + number) for number, one in enumerate(kept)]
for number, copy in enumerate(copies):
    os.dup2(copy, 3 + number, inheritable=True)
os.environ['LISTEN_FDS'] = str(len(kept))
os.environ['LISTEN_FDNAMES'] = names
os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(program[0], program)
";

/// A host that is started with sockets.
fn launch(names: &str, sockets: &str, args: &[&str]) -> Command {
    let mut python = with_cache(Command::new("python3"));
    python.args(["-c", LAUNCHER, names, sockets, HOST]).args(args);
    python
}

fn launched(names: &str, sockets: &str, args: &[&str]) -> Host {
    Host::spawn(&mut launch(names, sockets, args), args)
}

/// What a host says that is started with sockets and does not serve.
fn refused(names: &str, sockets: &str, args: &[&str]) -> String {
    let output = launch(names, sockets, args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn python() -> bool {
    tools::tool("python3").is_some()
}

#[test]
fn sockets_are_inherited_by_name_and_by_number() {
    if !python() {
        return;
    }
    let dir = scratch("systemd-inherited");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s");
    let sockets = format!("127.0.0.1 ::1 {}", path.display());
    let args = [
        "--listen",
        "inherited:web",
        "--listen",
        "inherited:1",
        "--listen",
        "inherited:local",
    ];
    let mut host = launched("web::local", &sockets, &args);
    assert_eq!(host.addresses().len(), 2);
    assert!(host.addresses()[0].is_ipv4() && host.addresses()[1].is_ipv6());
    assert_eq!(host.places()[2], format!("unix:{}", path.display()));
    for address in host.addresses() {
        Client::connect(*address).unwrap().echo("hello");
    }
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    drop(client);
    assert!(host.stop().success());
    // It is not ours to remove.
    assert!(path.exists());
}

#[test]
fn rules_of_access_need_a_socket_with_networks() {
    if !python() {
        return;
    }
    let dir = scratch("systemd-access");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s").display().to_string();
    let args = ["--listen", "inherited:0", "--allow", "127.0.0.0/8"];
    let said = refused("", &path, &args);
    assert!(
        said.contains("rules of access have no effect on Unix sockets"),
        "{said}"
    );
    launched("", "127.0.0.1", &args);
}

#[test]
fn options_of_tcp_have_no_effect_on_an_inherited_unix_socket() {
    if !python() {
        return;
    }
    let dir = scratch("systemd-options");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s").display().to_string();
    let args = [
        "--listen",
        "inherited:0",
        "--keepalive",
        "30s",
        "--nodelay",
        "off",
    ];
    let log = launched("", &path, &args).log();
    for flag in ["nodelay", "keepalive"] {
        let warning = format!("`--{flag}` has no effect on an inherited Unix socket");
        assert!(log.contains(&warning), "{log}");
    }
}

#[test]
fn rules_of_access_of_a_file_need_a_socket_with_networks_also_when_it_is_read_again() {
    if !python() {
        return;
    }
    let dir = scratch("systemd-access-file");
    fs::create_dir_all(&dir).unwrap();
    let (socket, file) = (dir.join("s").display().to_string(), dir.join("services.toml"));
    let args = ["--config", file.to_str().unwrap()];
    let text = "[[service]]\nname = \"a\"\nlisten = [\"inherited:0\"]\n";
    let own = format!("{text}access = {{ allow = [\"127.0.0.0/8\"] }}\n");
    let expected = ":4: service[0].access.allow: service `a`: rules of access have no effect";
    fs::write(&file, &own).unwrap();
    let said = refused("", &socket, &args);
    assert!(said.contains(expected), "{said}");
    // Rules of the defaults are for other services.
    fs::remove_file(&socket).unwrap();
    fs::write(
        &file,
        format!("[defaults.access]\nallow = [\"127.0.0.0/8\"]\n{text}"),
    )
    .unwrap();
    let host = launched("", &socket, &args);
    fs::write(&file, &own).unwrap();
    host.signal(HUP);
    let line = host.line("nothing changed");
    assert!(line.contains(expected), "{line}");
    fs::write(&file, text).unwrap();
    host.signal(HUP);
    host.line("services reconfigured");
}

#[test]
fn a_socket_that_is_named_and_then_numbered_stays() {
    if !python() {
        return;
    }
    let dir = scratch("systemd-renamed");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("services.toml");
    let put = |first: &str, second: &str| {
        let listen = format!("[\"inherited:{first}\", \"inherited:{second}\"]");
        fs::write(&file, format!("[[service]]\nname = \"a\"\nlisten = {listen}\n")).unwrap();
    };
    put("web", "mail");
    let args = ["--config", file.to_str().unwrap()];
    let mut command = launch("web:mail", "127.0.0.1 127.0.0.1", &args);
    let host = Host::spawn(&mut command, &["--listen"; 2]);
    let addresses = host.addresses().to_vec();
    for (first, second) in [("0", "mail"), ("1", "0"), ("web", "1")] {
        put(first, second);
        host.signal(HUP);
        let line = host.line_of(&["services reconfigured", "nothing changed"]);
        assert!(
            line.contains("services reconfigured"),
            "{first}, {second}: {line}"
        );
        for address in &addresses {
            Client::connect(*address).unwrap().echo("hello");
        }
    }
    // One socket is one listener, whatever it is called.
    put("web", "0");
    host.signal(HUP);
    let line = host.line_of(&["services reconfigured", "nothing changed"]);
    assert!(
        line.contains("another listener already uses this socket"),
        "{line}"
    );
}

#[test]
fn who_asks_for_the_address_of_an_inherited_socket_is_told_to_serve_that_socket() {
    if !python() {
        return;
    }
    let dir = scratch("systemd-taken");
    fs::create_dir_all(&dir).unwrap();
    let (file, path) = (dir.join("services.toml"), dir.join("s"));
    let put = |listen: &str| {
        fs::write(
            &file,
            format!("[[service]]\nname = \"a\"\nlisten = [\"{listen}\"]\n"),
        )
        .unwrap();
    };
    put("inherited:web");
    let args = ["--config", file.to_str().unwrap()];
    let sockets = format!("127.0.0.1 {} 0.0.0.0", path.display());
    let host = launched("web:local:", &sockets, &args);
    let port_of = |number: u32| {
        let fd = format!("/proc/{}/fd/{number}", host.pid());
        let link = fs::read_link(fd).unwrap();
        let inode = link
            .to_str()
            .unwrap()
            .trim_matches(|c: char| !c.is_ascii_digit())
            .to_owned();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let row = table
            .lines()
            .find(|row| row.split_whitespace().nth(9) == Some(&inode));
        let port = row
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .split_once(':')
            .unwrap()
            .1;
        u16::from_str_radix(port, 16).unwrap()
    };
    // Also those that no service uses.
    for (listen, own) in [
        (host.address().to_string(), "inherited:web"),
        (format!("unix:{}", path.display()), "inherited:local"),
        (format!("127.0.0.1:{}", port_of(5)), "inherited:2"),
    ] {
        put(&listen);
        host.signal(HUP);
        let line = host.line("nothing changed");
        let advice = format!("the host has inherited this address as {own}: serve that socket");
        assert!(line.contains(&advice) && line.contains(&listen), "{line}");
        assert!(!line.contains("stop "), "{line}");
    }
    host.connect().echo("as before");
    put("inherited:local");
    host.signal(HUP);
    host.line("services reconfigured");
}

#[test]
fn what_cannot_be_inherited_is_named() {
    let alone = crate::harness::refused(&["--listen", "inherited:web"]);
    assert_eq!(alone.status, Some(1));
    assert!(
        alone.message.contains("no socket was inherited"),
        "{}",
        alone.message
    );
    if !python() {
        return;
    }
    for (names, sockets, listen, expected) in [
        (
            "web",
            "127.0.0.1",
            "inherited:mail",
            "the inherited sockets are 0 (web)",
        ),
        (
            "web",
            "127.0.0.1",
            "inherited:1",
            "the inherited sockets are 0 (web)",
        ),
        (
            "web",
            "127.0.0.1",
            "inherited:+0",
            "the inherited sockets are 0 (web)",
        ),
        (
            "web:web",
            "127.0.0.1 127.0.0.1",
            "inherited:web",
            "2 inherited sockets",
        ),
        (
            "web",
            "datagram",
            "inherited:web",
            "name the address with `ListenStream=`",
        ),
        (
            "web",
            "file",
            "inherited:web",
            "name the address with `ListenStream=`",
        ),
        ("web", "deaf", "inherited:web", "call listen(2)"),
        ("web", "connection", "inherited:web", "set `Accept=no`"),
    ] {
        let message = refused(names, sockets, &["--listen", listen]);
        assert!(
            message.contains(expected) && message.contains(&format!("cannot listen on {listen}")),
            "{message}"
        );
    }
    let twice = refused(
        "web",
        "127.0.0.1",
        &["--listen", "inherited:web", "--listen", "inherited:0"],
    );
    assert!(
        twice.contains("another listener already uses this socket"),
        "{twice}"
    );
}

#[test]
fn numbers_that_no_service_manager_writes_are_refused() {
    for (variables, name) in [
        ("LISTEN_PID=$$ LISTEN_FDS=+1", "LISTEN_FDS"),
        ("LISTEN_PID=$$ LISTEN_FDS=-1", "LISTEN_FDS"),
        ("LISTEN_PID=$$ LISTEN_FDS=one", "LISTEN_FDS"),
        ("LISTEN_PID=$$ LISTEN_FDS=", "LISTEN_FDS"),
        // No process has as many descriptors.
        ("LISTEN_PID=$$ LISTEN_FDS=2147483647", "LISTEN_FDS"),
        ("LISTEN_PID=+$$ LISTEN_FDS=1", "LISTEN_PID"),
        ("LISTEN_PID= LISTEN_FDS=1", "LISTEN_PID"),
        ("LISTEN_PID=0 LISTEN_FDS=1", "LISTEN_PID"),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDS_FIRST_FD=+3",
            "LISTEN_FDS_FIRST_FD",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDS_FIRST_FD=2147483647",
            "LISTEN_FDS_FIRST_FD",
        ),
    ] {
        let script = format!("export {variables} && exec \"$0\" --listen inherited:0");
        let output = with_cache(Command::new("sh"))
            .args(["-c", &script, HOST])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{variables}: {output:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.contains(&format!("the environment variable {name} is `"))
                && message.contains(": expected ")
                && message.lines().count() == 1,
            "{variables}: {message}"
        );
    }
}

#[test]
fn no_socket_is_inherited_by_the_number_zero() {
    let setup = "export LISTEN_PID=$$ LISTEN_FDS=0";
    let host = Host::below_shell(setup, &["--listen", "127.0.0.1:0"]);
    host.connect().echo("hello");
}

#[test]
fn sockets_of_another_process_are_not_taken() {
    let output = command()
        .args(["--listen", "inherited:0"])
        .envs([("LISTEN_FDS", "1"), ("LISTEN_PID", "1")])
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("no socket was inherited"), "{message}");
}

#[test]
fn systemd_socket_activate_starts_it() {
    let Some(activate) = tools::tool("systemd-socket-activate") else {
        return;
    };
    let dir = scratch("systemd-activate");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s");
    let component = guest("upper");
    let args = [
        "--listen",
        "inherited:web",
        "--component",
        component.to_str().unwrap(),
    ];
    let mut command = with_cache(Command::new(activate));
    // Its own environment is not handed on.
    if let Some(cache) = command
        .get_envs()
        .find_map(|(key, value)| (key == "XDG_CACHE_HOME").then(|| value.unwrap().to_owned()))
    {
        command.arg(format!("--setenv=XDG_CACHE_HOME={}", cache.display()));
    }
    command
        .arg(format!("--listen={}", path.display()))
        .arg("--fdname=web")
        .arg(HOST)
        .args(args);
    // It starts the program when somebody connects.
    let connecting = std::thread::spawn(move || connect_when_there(&path));
    let host = Host::spawn(&mut command, &args);
    let mut client = connecting.join().unwrap();
    client.write_all(b"hello\n").unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HELLO\n");
    drop(client);
    assert_eq!(host.outcome(), "finished");
}

fn connect_when_there(path: &Path) -> UnixStream {
    let mut client = None;
    crate::harness::until("the socket is there", || {
        client = UnixStream::connect(path).ok();
        client.is_some()
    });
    let client = client.unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client
}

/// A service manager that hears what it is told.
struct Manager(UnixDatagram, PathBuf);

impl Manager {
    fn new(name: &str) -> Self {
        let dir = scratch(&format!("systemd-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("n");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket, path)
    }

    fn heard(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn has_heard_nothing(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let heard = self.0.recv(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        matches!(heard, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[test]
fn the_service_manager_is_told() {
    let manager = Manager::new("notices");
    let place = Place::new("systemd-notices", "echo");
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--component",
        place.file().to_str().unwrap(),
    ]
    .map(str::to_owned);
    let args = args.each_ref().map(String::as_str);
    let mut host = Host::spawn(command().env("NOTIFY_SOCKET", &manager.1).args(args), &args);
    let ready = manager.heard();
    assert!(
        ready.contains("READY=1\n") && ready.contains("STATUS="),
        "{ready}"
    );
    host.connect().echo("hello");
    host.signal(HUP);
    let reloading = manager.heard();
    assert!(reloading.contains("RELOADING=1\n"), "{reloading}");
    let (_, time) = reloading.split_once("MONOTONIC_USEC=").unwrap();
    assert!(
        time.lines().next().unwrap().parse::<u64>().unwrap() > 0,
        "{reloading}"
    );
    assert!(manager.heard().contains("READY=1\n"));
    assert!(manager.has_heard_nothing());
    host.signal(TERM);
    assert!(manager.heard().contains("STOPPING=1\n"));
    assert!(host.wait().success());
}

#[test]
fn a_service_manager_is_told_at_an_abstract_address() {
    let name = format!("wasm-inetd-notices-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let manager = Manager(socket, format!("@{name}").into());
    let args = ["--listen", "127.0.0.1:0"];
    let _host = Host::spawn(command().env("NOTIFY_SOCKET", &manager.1).args(args), &args);
    assert!(manager.heard().contains("READY=1\n"));
}

#[test]
fn a_service_manager_that_is_gone_is_no_matter() {
    let manager = Manager::new("gone");
    fs::remove_file(&manager.1).unwrap();
    let args = ["--listen", "127.0.0.1:0"];
    let mut host = Host::spawn(command().env("NOTIFY_SOCKET", &manager.1).args(args), &args);
    host.connect().echo("hello");
    assert!(host.stop().success());
}

#[test]
fn a_service_manager_that_does_not_read_keeps_no_signal_waiting() {
    let manager = Manager::new("unread");
    let args = ["--listen", "127.0.0.1:0"];
    let mut host = Host::spawn(command().env("NOTIFY_SOCKET", &manager.1).args(args), &args);
    assert!(manager.heard().contains("READY=1\n"));
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to(b"STATUS=", &manager.1).is_ok() {}
    host.signal(HUP);
    host.line("cannot notify the service manager");
    host.connect().echo("hello");
    assert!(host.stop().success());
    assert_eq!(host.log().matches("cannot notify").count(), 1, "{}", host.log());
}

#[test]
fn who_does_not_listen_is_not_ready() {
    let manager = Manager::new("not-ready");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = command()
        .env("NOTIFY_SOCKET", &manager.1)
        .args(["--listen", &address])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(manager.has_heard_nothing());
}

/// The system calls of a group such as `@chown`, or the one of this name.
fn calls_of(analyze: &Path, group: &str) -> BTreeSet<String> {
    if !group.starts_with('@') {
        return [group.to_owned()].into();
    }
    let output = Command::new(analyze)
        .args(["--no-pager", "syscall-filter", group])
        .output()
        .unwrap();
    assert!(output.status.success(), "{group}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("    "));
    let names = names.filter(|name| !name.starts_with('#'));
    names.flat_map(|name| calls_of(analyze, name)).collect()
}

/// The system calls that the unit in `deploy` allows.
fn calls_of_unit(analyze: &Path) -> BTreeSet<String> {
    let unit = fs::read_to_string("../deploy/systemd/wasm-inetd.service").unwrap();
    let mut allowed = BTreeSet::new();
    for filter in unit
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="))
    {
        let (names, denies) = match filter.strip_prefix('~') {
            Some(names) => (names, true),
            None => (filter, false),
        };
        for call in names.split_whitespace().flat_map(|name| calls_of(analyze, name)) {
            if denies {
                allowed.remove(&call);
            } else {
                allowed.insert(call);
            }
        }
    }
    allowed
}

#[test]
fn the_unit_allows_the_system_calls_of_the_host() {
    let (Some(strace), Some(analyze)) = (tools::tool("strace"), tools::tool("systemd-analyze")) else {
        return;
    };
    if !tools::permitted(
        "strace",
        Command::new(&strace).args(["-qq", "-o", "/dev/null", "true"]),
    ) {
        return;
    }
    let place = Place::new("systemd-calls", "errands");
    let (dir, config, calls) = (
        place.0.join("data"),
        place.0.join("services.toml"),
        place.0.join("calls"),
    );
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "a file").unwrap();
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let text = format!(
        "cache = \"cache\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[[service]]\nname = \"a\"\n\
         component = \"guest.wasm\"\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n\
         socket = {{ owner = \"{}:{}\" }}\ngrants = {{ dirs = [\"{}::/data:rw\"] }}\n",
        place.0.join("s").display(),
        user.as_raw(),
        group.as_raw(),
        dir.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(strace);
    // The host is the child, and not strace.
    command.args(["-D", "-f", "-qq", "-o"]).arg(&calls).arg(HOST);
    command.arg("--config").arg(&config);
    let mut host = Host::launch(&mut command);
    host.listens(2);
    let client = host.connect();
    assert_eq!(client.asks("read /data/file"), "a file");
    drop(client);
    host.line("connection ended");
    host.signal(HUP);
    host.line("services reconfigured");
    let pid = format!("{} ", host.pid());
    assert!(host.stop().success());
    let mut log = String::new();
    until("strace has written the last call", || {
        log = fs::read_to_string(&calls).unwrap();
        let mut lines = log.lines();
        lines.any(|line| line.starts_with(&pid) && line.contains("exit_group("))
    });
    let allowed = calls_of_unit(&analyze);
    let used: BTreeSet<_> = log
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('))
        // Signals, and the ends of calls that other lines interrupt, have other words there.
        .filter(|(name, _)| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert!(
        used.contains("setpriority") && used.contains("accept4"),
        "{used:?}"
    );
    let denied: Vec<_> = used.difference(&allowed).collect();
    assert!(denied.is_empty(), "{denied:?}");
}
