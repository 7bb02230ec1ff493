//! The admin endpoint: what can be seen there, what can be changed, and by whom.

mod browser;
mod changes;
mod held;
mod metrics;
mod openmetrics;
mod seen;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use crate::harness::http::At;
use crate::harness::{
    Client, DEADLINE, Done, HUP, Host, INT, NEW, Place, TERM, USR2, again, command, field, file, first_word,
    guest, refused, replace, scratch, until,
};

/// Where a host can be looked at, as it says itself.
pub fn admin_of(host: &Host) -> At {
    let log = host.log();
    let said = log.split_once("admin interface at ");
    let (_, place) = said.unwrap_or_else(|| panic!("it has no admin interface:\n{log}"));
    At::parse(first_word(place))
}

/// Returns how much of one kind the pools have in use.
pub fn pool_used(admin: &At, kind: &str) -> f64 {
    let metrics = admin.get("/metrics").body;
    let kind = format!("kind=\"{kind}\"");
    let used = metrics
        .lines()
        .find(|line| line.starts_with("wasm_inetd_pool_used{") && line.contains(&kind));
    let (_, count) = used
        .unwrap_or_else(|| panic!("{metrics}"))
        .rsplit_once(' ')
        .unwrap();
    count.parse().unwrap()
}

/// A host that serves with `guest`, and where it can be looked at.
fn looked_at(name: &str, args: &[&str]) -> (Host, At) {
    let host = Host::serving(name, &[&["--admin", "0"], args].concat());
    let admin = admin_of(&host);
    (host, admin)
}

/// A token in a file, as `--admin-token` has it.
struct Token {
    path: PathBuf,
    text: String,
}

impl Token {
    fn new(name: &str) -> Self {
        let text = format!("token-of-the-test-{name}");
        let path = file(&format!("admin-{name}.token"), &text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Self { path, text }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// The sockets at which a process listens, of TCP and in the file system.
fn listening(pid: u32) -> usize {
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|target| {
            let target = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(target.to_owned())
        })
        .collect();
    // The column with the state, how it is told of one that listens, and the column with the inode (proc(5)).
    [
        ("tcp", 3, "0A", 9),
        ("tcp6", 3, "0A", 9),
        ("unix", 3, "00010000", 6),
    ]
    .iter()
    .flat_map(|(table, state, listens, inode)| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
        let lines: Vec<Vec<String>> = table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        lines
            .into_iter()
            .filter(|columns| columns.get(*state).is_some_and(|state| state == listens))
            .filter_map(|columns| columns.get(*inode).cloned())
            .collect::<Vec<_>>()
    })
    .filter(|inode| sockets.contains(inode))
    .count()
}

/// The generations of a host with one service.
fn generations(admin: &At) -> Vec<Value> {
    admin.json("/generations")["generations"]
        .as_array()
        .unwrap()
        .clone()
}

/// Their numbers, states and open connections.
fn shares(admin: &At) -> Vec<(u64, String, u64)> {
    let share = |generation: &Value| {
        (
            generation["generation"].as_u64().unwrap(),
            generation["state"].as_str().unwrap().to_owned(),
            generation["open"].as_u64().unwrap(),
        )
    };
    generations(admin).iter().map(share).collect()
}

#[test]
fn without_the_flag_there_is_nothing_to_look_at() {
    let host = Host::serving("echo", &[]);
    host.connect().echo("hello");
    assert!(!host.log().contains("admin interface"), "{}", host.log());
    assert_eq!(listening(host.pid()), 1);
    let (host, _) = looked_at("echo", &[]);
    assert_eq!(listening(host.pid()), 2, "which could not be seen otherwise");
}

#[test]
fn a_port_alone_is_one_of_the_loopback() {
    let (host, admin) = looked_at("echo", &[]);
    assert!(
        admin.tcp().ip().is_loopback() && admin.tcp().port() != 0,
        "{admin:?}"
    );
    assert_eq!(admin.get("/healthz").body, "alive\n");
    assert!(!host.log().contains("WARN"), "{}", host.log());
}

#[test]
fn an_address_that_others_can_reach_is_warned_of() {
    let host = Host::serving("echo", &["--admin", "0.0.0.0:0"]);
    assert!(host.log().contains("is not a loopback address"), "{}", host.log());
    let admin = At::Tcp(SocketAddr::from(([127, 0, 0, 1], admin_of(&host).tcp().port())));
    assert_eq!(admin.get("/healthz").status, 200);
    // There it may have a name.
    let named = admin
        .request("GET", "/connections")
        .with("Host", "gateway.example:9090");
    assert_eq!(named.answer().status, 200);
}

#[test]
fn a_unix_socket_is_for_its_owner_and_goes_with_the_host() {
    let dir = scratch("admin-unix");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("admin.sock");
    let mut host = Host::serving("echo", &["--admin", &format!("unix:{}", path.display())]);
    let admin = admin_of(&host);
    assert_eq!(admin, At::Unix(path.clone()));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(admin.get("/readyz").body, "serving\n");
    assert_eq!(host.stop().code(), Some(0));
    assert!(!path.exists(), "the socket is left behind");
}

#[test]
fn an_address_that_cannot_be_is_named_with_its_flag() {
    for (address, expected) in [
        ("nowhere", "expected PORT"),
        ("65536", "expected PORT"),
        ("-1", "expected PORT"),
        ("localhost:9090", "expected PORT"),
        ("unix:", "expected a path after `unix:`"),
        ("inherited:admin", "expected PORT"),
    ] {
        let refusal = refused(&["--listen", "127.0.0.1:0", &format!("--admin={address}")]);
        assert_eq!(refusal.status, Some(2), "{address}: {}", refusal.message);
        assert!(
            refusal.message.contains("--admin") && refusal.message.contains(expected),
            "{}",
            refusal.message
        );
    }
}

#[test]
fn an_address_that_is_taken_is_said_in_a_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let refusal = refused(&["--listen", "127.0.0.1:0", "--admin", &taken]);
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    for part in ["--admin", &taken, "in use"] {
        assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
    }
    assert!(!refusal.message.contains("listening on"), "{}", refusal.message);
}

#[test]
fn it_is_ready_when_it_serves_and_not_before_or_after() {
    let dir = scratch("admin-ready");
    fs::create_dir_all(&dir).unwrap();
    let socket = dir.join("s");
    // The component comes through a pipe, so that the host starts until it is written.
    let (component, mut writer) = io::pipe().unwrap();
    let mut host = Host::reading(
        command()
            .args(["--listen", "127.0.0.1:0", "--drain-timeout", "1h"])
            .args(["--component", "/dev/stdin", "--admin"])
            .arg(format!("unix:{}", socket.display())),
        component,
    );
    // The log says where it is when all listeners are bound.
    let connects = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
    until("the admin interface listens", connects);
    let admin = At::Unix(socket);
    let said = |path: &str| {
        let answer = admin.get(path);
        (answer.status, answer.body)
    };
    assert_eq!(said("/readyz"), (503, "starting\n".to_owned()));
    assert_eq!(said("/healthz"), (200, "alive\n".to_owned()));
    assert_eq!(admin.json("/connections")["connections"], serde_json::json!([]));
    assert_eq!(admin.json("/generations")["generations"], serde_json::json!([]));
    openmetrics::parse(&admin.get("/metrics").body);
    writer.write_all(&fs::read(guest("lines")).unwrap()).unwrap();
    drop(writer);
    host.line("admin interface at unix:");
    host.listens(1);
    assert_eq!(said("/readyz"), (200, "serving\n".to_owned()));
    let client = host.connect();
    client.echo("hello\n");
    host.signal(TERM);
    host.line("draining");
    assert_eq!(said("/readyz"), (503, "draining\n".to_owned()));
    assert_eq!(said("/healthz"), (200, "alive\n".to_owned()));
    client.send("quit\n");
    assert_eq!(client.rest(), b"");
    assert!(host.wait().success());
}

#[test]
fn who_holds_up_the_admin_port_holds_up_no_service() {
    let (host, admin) = looked_at("echo", &[]);
    let open = host.connect();
    open.echo("before");
    let connect = || {
        let stream = TcpStream::connect(admin.tcp()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    };
    let mut unfinished = connect();
    unfinished
        .write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        .unwrap();
    let idle: Vec<_> = (0..200).map(|_| connect()).collect();
    for _ in 0..20 {
        open.echo("meanwhile");
        host.connect().echo("hello");
    }
    // None of them may stay, be it that it has said nothing or half of something.
    let _ = unfinished.read_to_end(&mut Vec::new());
    for mut stream in idle {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(admin.get("/readyz").status, 200);
}

/// Asks for events, and reads no more than the status of the answer.
fn watch(admin: &At) -> (TcpStream, String) {
    let mut stream = Client::connect(admin.tcp()).unwrap().0;
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        .unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    (stream, String::from_utf8(status.to_vec()).unwrap())
}

#[test]
fn who_watches_without_end_leaves_room_for_others() {
    let (_host, admin) = looked_at("echo", &[]);
    let watch = || watch(&admin);
    // None of them reads what there is to see.
    let watchers: Vec<_> = (0..32).map(|_| watch()).collect();
    assert!(watchers.iter().all(|(_, status)| status == "HTTP/1.1 200"));
    assert_eq!(watch().1, "HTTP/1.1 503");
    assert_eq!(admin.get("/readyz").status, 200);
    drop(watchers);
    until("one who has left makes room", || watch().1 == "HTTP/1.1 200");
}

/// A file of one service, and of what is said beside it.
fn services(name: &str, more: &str) -> PathBuf {
    let dir = scratch(&format!("admin-file-{name}"));
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("services.toml");
    put(&path, more);
    path
}

fn put(path: &Path, more: &str) {
    let text = format!("{more}\n[[service]]\nname = \"echo\"\nlisten = [\"127.0.0.1:0\"]\n");
    replace(path, text);
}

#[test]
fn a_file_can_say_it_too_and_a_change_of_it_takes_a_restart() {
    let path = services("says", "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"token\"\n");
    let host = Host::with_config(&path, 1);
    let admin = admin_of(&host);
    assert_eq!(admin.get("/readyz").body, "serving\n");
    // Paths are meant from the directory of the file.
    let token = fs::read_to_string(path.with_file_name("token")).unwrap();
    put(&path, "[admin]\nlisten = \"127.0.0.2:0\"\n");
    host.signal(HUP);
    let line = host.line("requires a restart");
    assert!(line.contains("WARN") && line.contains("`admin`"), "{line}");
    host.line("services reconfigured");
    assert_eq!(admin.get("/readyz").body, "serving\n");
    assert_eq!(listening(host.pid()), 2);
    let drain = admin.request("POST", "/drain").bearing(token.trim()).answer();
    assert_eq!(drain.status, 202, "{drain:?}");
}

#[test]
fn a_service_that_comes_or_goes_is_shown_or_not() {
    let path = services("comes", "[admin]\nlisten = \"127.0.0.1:0\"\n");
    let host = Host::with_config(&path, 1);
    let admin = admin_of(&host);
    let names = || {
        let names: Vec<_> = generations(&admin)
            .iter()
            .map(|one| one["service"].to_string())
            .collect();
        names.join(" ")
    };
    assert_eq!(names(), "\"echo\"");
    let client = host.connect();
    client.echo("hello");
    let more =
        "[admin]\nlisten = \"127.0.0.1:0\"\n[[service]]\nname = \"more\"\nlisten = [\"127.0.0.1:0\"]\n";
    put(&path, more);
    host.signal(HUP);
    host.line("services reconfigured");
    assert_eq!(names(), "\"more\" \"echo\"");
    let samples = |service: &str| {
        let metrics = openmetrics::parse(&admin.get("/metrics").body);
        metrics
            .samples()
            .filter(|sample| sample.label("service") == Some(service))
            .count()
    };
    assert_eq!(samples("more"), samples("echo"));
    put(&path, "[admin]\nlisten = \"127.0.0.1:0\"\n");
    host.signal(HUP);
    host.line("services reconfigured");
    assert_eq!((names(), samples("more")), ("\"echo\"".to_owned(), 0));
    let metrics = openmetrics::parse(&admin.get("/metrics").body);
    let accepted = metrics.value("wasm_inetd_connections_accepted_total", &[("service", "echo")]);
    assert_eq!(accepted, 1.0, "what stays is counted on");
    client.echo("still here");
    put(&path, more);
    host.signal(HUP);
    host.line("services reconfigured");
    // A number stands for one generation, whatever becomes of its service.
    let all = generations(&admin);
    let back = all.iter().find(|one| one["service"] == "more").unwrap();
    assert_eq!(back["generation"], 2);
}

#[test]
fn flags_are_printed_as_a_file_that_says_the_same() {
    let print = |args: &[&str]| {
        let output = command().args(["config", "--print"]).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = print(&[
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "9090",
        "--admin-token",
        "/run/token",
    ]);
    let (_, admin) = printed.split_once("[admin]\n").expect(&printed);
    assert!(
        admin.starts_with("listen = \"127.0.0.1:9090\"\ntoken = \"/run/token\"\n"),
        "{printed}"
    );
    let path = services("printed", "[admin]\nlisten = \"0\"\n");
    let printed = print(&["--config", path.to_str().unwrap()]);
    assert!(
        printed.contains("[admin]\nlisten = \"127.0.0.1:0\"\n"),
        "{printed}"
    );
    let without = print(&["--listen", "127.0.0.1:0"]);
    assert!(!without.contains("admin"), "{without}");
    // It is for nothing without an address.
    let refusal = refused(&["--listen", "127.0.0.1:0", "--admin-token", "/run/token"]);
    assert_eq!(refusal.status, Some(2), "{}", refusal.message);
    assert!(refusal.message.contains("--admin "), "{}", refusal.message);
}
