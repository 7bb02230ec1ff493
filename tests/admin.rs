//! The admin endpoint: what can be seen there, what can be changed, and by whom.

mod browser;
mod metrics;
mod openmetrics;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use crate::harness::http::At;
use crate::harness::{
    Client, DEADLINE, Done, HUP, Host, NEW, Place, TERM, USR2, again, command, field, file, first_word,
    guest, refused, replace, scratch, until,
};

/// Where a host can be looked at, as it says itself.
fn admin_of(host: &Host) -> At {
    let log = host.log();
    let said = log.split_once("to be looked at on ");
    let (_, place) = said.unwrap_or_else(|| panic!("it cannot be looked at:\n{log}"));
    At::parse(first_word(place))
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

#[test]
fn without_the_flag_there_is_nothing_to_look_at() {
    let host = Host::serving("echo", &[]);
    host.connect().echo("hello");
    assert!(!host.log().contains("to be looked at"), "{}", host.log());
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
    assert!(
        host.log().contains("is no address of the loopback"),
        "{}",
        host.log()
    );
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
    for address in [
        "nowhere",
        "65536",
        "-1",
        "localhost:9090",
        "unix:",
        "inherited:admin",
    ] {
        let refusal = refused(&["--listen", "127.0.0.1:0", &format!("--admin={address}")]);
        assert_eq!(refusal.status, Some(2), "{address}: {}", refusal.message);
        assert!(
            refusal.message.contains("--admin") && refusal.message.contains("expected PORT"),
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
    let (component, socket) = (dir.join("lines.wasm"), dir.join("s"));
    // A pipe has what it is to serve with only when somebody writes that.
    assert!(Command::new("mkfifo").arg(&component).status().unwrap().success());
    let mut host = Host::launch(
        command()
            .args(["--listen", "127.0.0.1:0", "--drain-timeout", "1h", "--component"])
            .arg(&component)
            .arg("--admin")
            .arg(format!("unix:{}", socket.display())),
    );
    host.line("to be looked at on unix:");
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
    fs::write(&component, fs::read(guest("lines")).unwrap()).unwrap();
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

/// What is there of the only open connection.
fn only(admin: &At) -> Value {
    let mut connections = admin.json("/connections");
    let connections = connections["connections"].as_array_mut().unwrap();
    assert_eq!(connections.len(), 1, "{connections:?}");
    connections.remove(0)
}

/// The names of what an object says.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn an_open_connection_is_shown_while_bytes_move() {
    let (host, admin) = looked_at("lines-session", &[]);
    let client = host.connect();
    client.echo("hello\n");
    let first = only(&admin);
    assert_eq!(
        keys(&first),
        [
            "bytes_in",
            "bytes_out",
            "connection",
            "contract",
            "generation",
            "guest_cpu_seconds",
            "guest_memory_bytes",
            "idle_seconds",
            "listener",
            "peer",
            "seconds",
            "service"
        ]
    );
    for (key, expected) in [
        ("connection", Value::from(1)),
        ("service", "lines-session".into()),
        ("generation", 1.into()),
        ("contract", "sessions".into()),
        ("peer", client.0.local_addr().unwrap().to_string().into()),
        ("listener", host.address().to_string().into()),
        ("bytes_in", 6.into()),
        ("bytes_out", 6.into()),
    ] {
        assert_eq!(first[key], expected, "{key}");
    }
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap();
    assert!(number(&first, "guest_cpu_seconds") > 0.0, "{first}");
    assert!(number(&first, "guest_memory_bytes") >= 65_536.0, "{first}");
    assert!(
        number(&first, "idle_seconds") <= number(&first, "seconds"),
        "{first}"
    );
    until("it is idle for longer than it was", || {
        let now = only(&admin);
        number(&now, "idle_seconds") > number(&first, "idle_seconds")
            && number(&now, "seconds") > number(&first, "seconds")
    });
    // What has come in is counted, though no line of it is whole.
    client.send("half a li");
    until("half a line has come", || only(&admin)["bytes_in"] == 15);
    assert_eq!(only(&admin)["bytes_out"], 6);
    client.send("ne\n");
    client.expect("half a line\n");
    until("it was answered", || only(&admin)["bytes_out"] == 18);
    client.finish();
    client.rest();
    host.outcome();
    assert_eq!(admin.json("/connections")["connections"], serde_json::json!([]));
}

#[test]
fn what_an_instance_costs_that_others_share_is_no_connections_own() {
    let (host, admin) = looked_at("chat", &["--isolation", "service"]);
    let client = host.connect();
    client.expect("Your name?\n");
    let connection = only(&admin);
    assert!(connection["guest_memory_bytes"].is_null() && connection["guest_cpu_seconds"].is_null());
    let metrics = openmetrics::parse(&admin.get("/metrics").body);
    assert!(metrics.value("wasm_inetd_guest_memory_bytes", &[("service", "chat")]) >= 65_536.0);
    assert!(metrics.value("wasm_inetd_guest_cpu_seconds_total", &[("service", "chat")]) > 0.0);
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
fn a_swap_and_the_way_back_are_shown_while_traffic_moves() {
    let place = Place::new("admin-swap", "echo");
    let host = place.serve(&["--admin", "0"]);
    let admin = admin_of(&host);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, _done) = (&done, Done(&done));
        let address = host.address();
        for _ in 0..2 {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let client = Client::connect(address).unwrap();
                    client.echo("hello\n");
                    client.reset();
                }
            });
        }
        let old = host.connect();
        old.echo("no line");
        let [only] = &generations(&admin)[..] else {
            panic!("{:?}", generations(&admin))
        };
        assert_eq!(
            keys(only),
            [
                "contract",
                "digest",
                "failed",
                "generation",
                "open",
                "seconds",
                "service",
                "started",
                "state"
            ]
        );
        assert_eq!(
            (&only["service"], &only["contract"], &only["state"]),
            (&"guest".into(), &"streams".into(), &"current".into())
        );
        place.put("lines-session");
        host.signal(HUP);
        host.line(NEW);
        let stays = host.connect();
        stays.echo("hello\n");
        let [first, second] = &generations(&admin)[..] else {
            panic!("{:?}", generations(&admin))
        };
        assert_eq!(first["digest"], only["digest"]);
        assert_ne!(first["digest"], second["digest"]);
        for generation in [first, second] {
            let digest = generation["digest"].as_str().unwrap();
            assert!(
                digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{digest}"
            );
            assert_eq!(generation["failed"], 0);
        }
        assert_eq!(
            (&first["state"], &second["state"]),
            (&"previous".into(), &"current".into())
        );
        assert_eq!(second["contract"], "sessions");
        assert!(first["open"].as_u64() >= Some(1) && second["open"].as_u64() >= Some(1));
        // Those that come now are of the new one, all of them.
        let started = |generation: usize| generations(&admin)[generation]["started"].as_u64().unwrap();
        let before = (started(0), started(1));
        until("more connections have come", || started(1) > before.1 + 10);
        assert_eq!(started(0), before.0);
        until("the old one has what it keeps", || shares(&admin)[0].2 == 1);
        host.signal(USR2);
        host.line("gone back");
        let before = started(0);
        until("the old one has new connections", || started(0) > before + 10);
        let states: Vec<_> = shares(&admin)
            .into_iter()
            .map(|(number, state, _)| (number, state))
            .collect();
        assert_eq!(states, [(1, "current".to_owned()), (2, "ending".to_owned())]);
        until("the new one has what it keeps", || shares(&admin)[1].2 == 1);
        stays.echo("still here\n");
        old.echo("still here");
        drop(stays);
        until("the last connection of it has ended", || {
            shares(&admin).len() == 1
        });
    });
}

#[test]
fn events_tell_all_that_there_is_to_see_again_and_again() {
    let (host, admin) = looked_at("lines-session", &[]);
    let mut events = admin.request("GET", "/events").events();
    let (name, first) = events.next();
    assert_eq!(name, "status");
    assert_eq!(
        keys(&first),
        [
            "connections",
            "connections_total",
            "generations",
            "services",
            "state",
            "uptime_seconds",
            "version"
        ]
    );
    assert_eq!(
        (&first["state"], &first["version"]),
        (&"serving".into(), &env!("CARGO_PKG_VERSION").into())
    );
    let client = host.connect();
    client.echo("hello\n");
    let mut last = first["uptime_seconds"].as_f64().unwrap();
    // The one that is on its way may have been made before the connection.
    let shown = loop {
        let (_, next) = events.next();
        let uptime = next["uptime_seconds"].as_f64().unwrap();
        assert!(uptime > last, "{next}");
        last = uptime;
        if next["connections_total"] == 1 {
            break next;
        }
    };
    assert_eq!(shown["connections"][0]["connection"], 1);
    let service = &shown["services"][0];
    assert_eq!(
        keys(service),
        [
            "accepted",
            "bytes_in",
            "bytes_out",
            "ended",
            "failed",
            "first_byte_seconds",
            "generation",
            "guest_cpu_seconds",
            "guest_memory_bytes",
            "listeners",
            "name",
            "open",
            "refused",
            "rejected",
            "rollbacks",
            "swaps"
        ]
    );
    assert_eq!(
        (&service["open"], &service["accepted"], &service["bytes_in"]),
        (&1.into(), &1.into(), &6.into())
    );
    assert_eq!(
        service["listeners"],
        serde_json::json!([host.address().to_string()])
    );
    // How long first bytes take is known from connections that have ended.
    client.finish();
    client.rest();
    host.outcome();
    let quantiles = loop {
        let (_, next) = events.next();
        if next["services"][0]["first_byte_seconds"].is_object() {
            break next["services"][0]["first_byte_seconds"].clone();
        }
        assert_eq!(next["services"][0]["ended"], 0, "nothing was told of it: {next}");
    };
    let (p50, p99) = (
        quantiles["p50"].as_f64().unwrap(),
        quantiles["p99"].as_f64().unwrap(),
    );
    assert!(0.0 < p50 && p50 <= p99, "{quantiles}");
}

#[test]
fn two_thousand_idle_sessions_are_all_counted() {
    const MANY: usize = 2000;
    let (host, admin) = looked_at("lines-session", &["--max-connections", "2100"]);
    let mut clients: Vec<_> = (0..MANY).map(|_| host.connect()).collect();
    for client in &clients {
        client.echo("hello\n");
    }
    let opens = || {
        let metrics = openmetrics::parse(&admin.get("/metrics").body);
        metrics.value("wasm_inetd_connections_open", &[("service", "lines-session")]) as usize
    };
    assert_eq!(opens(), MANY);
    assert_eq!(shares(&admin), [(1, "current".to_owned(), MANY as u64)]);
    let connections = admin.json("/connections");
    let connections = connections["connections"].as_array().unwrap();
    let numbers: Vec<_> = connections
        .iter()
        .map(|one| one["connection"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=MANY as u64).collect::<Vec<_>>());
    assert!(
        connections
            .iter()
            .all(|one| one["bytes_in"] == 6 && one["bytes_out"] == 6)
    );
    // The page is told of those that came last, and of how many there are.
    let (_, status) = admin.request("GET", "/events").events().next();
    assert_eq!(status["connections_total"], MANY);
    let shown = status["connections"].as_array().unwrap();
    assert_eq!(shown.len(), 1000);
    assert_eq!(shown[0]["connection"], MANY);
    clients.truncate(MANY / 2);
    until("half of them are gone", || opens() == MANY / 2);
    for client in &clients {
        client.echo("still here\n");
    }
}

#[test]
fn what_is_not_there_cannot_be_asked_for() {
    let (_host, admin) = looked_at("echo", &[]);
    for path in [
        "/nowhere",
        "/connections/",
        "/connections/x/close",
        "/services/echo",
        "/metrics/",
    ] {
        let answer = admin.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json()["error"].is_string(), "{answer:?}");
    }
    for path in [
        "/",
        "/events",
        "/metrics",
        "/healthz",
        "/readyz",
        "/connections",
        "/generations",
    ] {
        let answer = admin.request("POST", path).answer();
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some("GET, HEAD")),
            "{path}"
        );
    }
}

#[test]
fn a_page_of_another_site_sees_nothing_by_a_name_that_leads_here() {
    let (_host, admin) = looked_at("echo", &[]);
    let named = |path: &str| {
        admin
            .request("GET", path)
            .with("Host", "rebound.example:9090")
            .answer()
            .status
    };
    for path in ["/", "/events", "/connections", "/generations"] {
        assert_eq!(named(path), 421, "{path}");
    }
    // What asks for these has the name that it was given, and no browser.
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(named(path), 200, "{path}");
    }
    let page = admin.get("/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert_eq!(page.header("access-control-allow-origin"), None);
    assert!(!page.body.contains("NONCE"));
    let again = admin.get("/");
    assert_ne!(
        again.header("content-security-policy"),
        Some(policy),
        "a nonce is used once"
    );
}

/// Everything that can be changed, for a host whose service is `guest` and whose first connection is open.
const CHANGES: [&str; 4] = [
    "/connections/1/close",
    "/services/guest/swap",
    "/services/guest/rollback",
    "/drain",
];

/// A host at which each of [`CHANGES`] would change something, with a client of its first connection.
fn changeable(place: &Place, token: Option<&Token>) -> (Host, At, Client) {
    let mut args = vec!["--admin", "0"];
    args.extend(
        token
            .into_iter()
            .flat_map(|token| ["--admin-token", token.path()]),
    );
    let host = place.serve(&args);
    let admin = admin_of(&host);
    let client = host.connect();
    client.echo("hello\n");
    place.put("lines-session");
    host.signal(HUP);
    host.line(NEW);
    place.replace(again("echo", 1));
    (host, admin, client)
}

/// Nothing of [`CHANGES`] has been done.
fn has_not_changed(host: &Host, admin: &At, client: &Client) {
    client.echo("hello\n");
    assert_eq!(admin.get("/readyz").body, "serving\n");
    let expected = [(1, "previous".to_owned(), 1), (2, "current".to_owned(), 0)];
    assert_eq!(shares(admin), expected);
    assert!(!host.log().contains("asked to"), "{}", host.log());
}

#[test]
fn who_may_not_change_anything_changes_nothing() {
    let (place, token) = (Place::new("admin-may-not", "echo"), Token::new("may-not"));
    let (host, admin, client) = changeable(&place, Some(&token));
    let address = admin.tcp();
    for path in CHANGES {
        let request = |method: &str| admin.request(method, path);
        let without = request("POST").answer();
        assert_eq!(
            (without.status, without.header("www-authenticate")),
            (401, Some("Bearer")),
            "{path}"
        );
        for wrong in ["", "x", "token-of-the-test-may-no", "token-of-the-test-may-not-x"] {
            assert_eq!(
                request("POST").bearing(wrong).answer().status,
                401,
                "{path} {wrong:?}"
            );
        }
        // It has to be where a browser puts it only if it is told to.
        let elsewhere = admin.request("POST", &format!("{path}?token={}", token.text));
        assert_eq!(elsewhere.answer().status, 401, "{path}");
        let basic = request("POST").with("Authorization", &format!("Basic {}", token.text));
        assert_eq!(basic.answer().status, 401, "{path}");
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            let answer = request(method).bearing(&token.text);
            let answer = if method == "HEAD" {
                answer.head()
            } else {
                answer.answer()
            };
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, Some("POST")),
                "{method} {path}"
            );
        }
        for origin in [
            "http://evil.example",
            "null",
            &format!("http://127.0.0.1:{}", address.port() ^ 1),
            &format!("http://localhost:{}", address.port()),
            "",
        ] {
            let answer = request("POST")
                .bearing(&token.text)
                .with("Origin", origin)
                .answer();
            assert_eq!(answer.status, 403, "{path} {origin:?}");
        }
        for site in ["cross-site", "same-site", "?"] {
            let answer = request("POST")
                .bearing(&token.text)
                .with("Sec-Fetch-Site", site)
                .answer();
            assert_eq!(answer.status, 403, "{path} {site}");
        }
        let named = request("POST")
            .bearing(&token.text)
            .with("Host", "rebound.example");
        assert_eq!(named.answer().status, 421, "{path}");
    }
    has_not_changed(&host, &admin, &client);
}

#[test]
fn without_a_token_of_its_own_a_host_cannot_be_changed() {
    let place = Place::new("admin-no-token", "echo");
    let (host, admin, client) = changeable(&place, None);
    for path in CHANGES {
        for request in [
            admin.request("POST", path),
            admin.request("POST", path).bearing("0123456789abcdef"),
        ] {
            let answer = request.answer();
            assert_eq!(answer.status, 403, "{path}");
            let error = answer.json();
            assert!(
                error["error"].as_str().unwrap().contains("--admin-token"),
                "{error}"
            );
        }
    }
    has_not_changed(&host, &admin, &client);
}

/// Has a change made by who may.
fn change(admin: &At, path: &str, token: &Token) {
    let answer = admin.request("POST", path).bearing(&token.text).answer();
    assert_eq!(answer.status, 202, "{path}: {answer:?}");
}

#[test]
fn one_connection_is_closed_and_no_other() {
    let token = Token::new("close");
    let (host, admin) = looked_at("lines-session", &["--admin-token", token.path()]);
    // One after the other: it is the one that comes in first that has the first number.
    let [first, second] = [(), ()].map(|()| {
        let client = host.connect();
        client.echo("hello\n");
        client
    });
    // As the page has it.
    let closed = admin
        .request("POST", "/connections/1/close")
        .bearing(&token.text)
        .with("Origin", &format!("http://{}", admin.tcp()))
        .with("Sec-Fetch-Site", "same-origin")
        .answer();
    assert_eq!(
        (closed.status, closed.json()["done"].as_str()),
        (202, Some("closing"))
    );
    // With FIN if it was at rest for a while, and with a reset if it was not.
    let mut rest = Vec::new();
    let _ = (&first.0).read_to_end(&mut rest);
    assert_eq!(rest, b"");
    drop(first);
    let line = host.line("connection ended");
    assert_eq!(
        (field(&line, "connection"), field(&line, "outcome")),
        ("1".into(), "closed".into())
    );
    second.echo("still here\n");
    let gone = admin
        .request("POST", "/connections/1/close")
        .bearing(&token.text)
        .answer();
    assert_eq!(gone.status, 404, "{gone:?}");
    let metrics = openmetrics::parse(&admin.get("/metrics").body);
    let labels = [("service", "lines-session"), ("outcome", "closed")];
    assert_eq!(metrics.value("wasm_inetd_connections_ended_total", &labels), 1.0);
}

#[test]
fn a_component_is_swapped_and_gone_back_from() {
    let (place, token) = (Place::new("admin-post-swap", "echo"), Token::new("swap"));
    let host = place.serve(&["--admin", "0", "--admin-token", token.path()]);
    let admin = admin_of(&host);
    place.put("lines-session");
    change(&admin, "/services/guest/swap", &token);
    assert_eq!(field(&host.line(NEW), "generation"), "2");
    let shown = || {
        shares(&admin)
            .into_iter()
            .map(|(number, state, _)| (number, state))
            .collect::<Vec<_>>()
    };
    assert_eq!(shown(), [(1, "previous".to_owned()), (2, "current".to_owned())]);
    change(&admin, "/services/guest/rollback", &token);
    let line = host.line("gone back");
    assert_eq!(
        (field(&line, "generation"), field(&line, "leaves")),
        ("1".into(), "2".into())
    );
    until("there is one again", || shown() == [(1, "current".to_owned())]);
    // There is nothing before it.
    let again = admin
        .request("POST", "/services/guest/rollback")
        .bearing(&token.text)
        .answer();
    assert_eq!(again.status, 409, "{again:?}");
    for path in [
        "/services/other/swap",
        "/services/other/rollback",
        "/services/%FF/swap",
    ] {
        let answer = admin.request("POST", path).bearing(&token.text).answer();
        assert_eq!(answer.status, 404, "{path}");
    }
    // What cannot serve is told in the log, and changes nothing.
    place.replace("not WebAssembly");
    change(&admin, "/services/guest/swap", &token);
    host.line("goes on serving");
    host.connect().echo("no line");
}

#[test]
fn the_embedded_guest_cannot_be_swapped() {
    let token = Token::new("embedded");
    let host = Host::start(&[
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "0",
        "--admin-token",
        token.path(),
    ]);
    let request = admin_of(&host).request("POST", "/services/echo/swap");
    assert_eq!(request.bearing(&token.text).answer().status, 409);
}

#[test]
fn a_drain_ends_the_host_when_its_connections_have_ended() {
    let token = Token::new("drain");
    let (mut host, admin) = looked_at("lines", &["--admin-token", token.path(), "--drain-timeout", "1h"]);
    let client = host.connect();
    client.echo("hello\n");
    change(&admin, "/drain", &token);
    host.line("draining");
    assert_eq!(admin.get("/readyz").body, "draining\n");
    let metrics = openmetrics::parse(&admin.get("/metrics").body);
    assert_eq!(metrics.value("wasm_inetd_draining", &[]), 1.0);
    client.echo("meanwhile\n");
    client.send("quit\n");
    assert_eq!(client.rest(), b"");
    drop(client);
    assert_eq!(host.outcome(), "finished");
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn a_token_that_others_can_read_is_refused_at_the_start() {
    for mode in [0o644, 0o640, 0o602] {
        let token = Token::new("open");
        fs::set_permissions(&token.path, fs::Permissions::from_mode(mode)).unwrap();
        let refusal = refused(&[
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "0",
            "--admin-token",
            token.path(),
        ]);
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        let remedy = format!("chmod 600 {}", token.path());
        assert!(
            refusal.message.contains(&remedy) && refusal.message.contains(&format!("{mode:04o}")),
            "{}",
            refusal.message
        );
        assert!(!refusal.message.contains(&token.text), "{}", refusal.message);
    }
}

#[test]
fn a_token_is_made_for_its_owner_where_there_is_none() {
    let dir = scratch("admin-made");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("token");
    let start = || looked_at("echo", &["--admin-token", path.to_str().unwrap()]);
    let (host, _) = start();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let token = fs::read_to_string(&path).unwrap();
    assert!(
        !host.log().contains(token.trim()),
        "a log is read by more than who may"
    );
    drop(host);
    // It is kept for the next start.
    let (mut host, admin) = start();
    assert_eq!(fs::read_to_string(&path).unwrap(), token);
    let drain = admin.request("POST", "/drain").bearing(token.trim()).answer();
    assert_eq!(drain.status, 202, "{drain:?}");
    assert_eq!(host.wait().code(), Some(0));
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

#[test]
fn who_watches_without_end_leaves_room_for_others() {
    let (_host, admin) = looked_at("echo", &[]);
    let watch = || {
        let mut stream = TcpStream::connect(admin.tcp()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
            .write_all(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            .unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8(status.to_vec()).unwrap())
    };
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
    let line = host.line("takes a restart");
    assert!(line.contains("WARN") && line.contains("`admin`"), "{line}");
    host.line("the configuration was read again");
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
    host.line("the configuration was read again");
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
    host.line("the configuration was read again");
    assert_eq!((names(), samples("more")), ("\"echo\"".to_owned(), 0));
    let metrics = openmetrics::parse(&admin.get("/metrics").body);
    let accepted = metrics.value("wasm_inetd_connections_accepted_total", &[("service", "echo")]);
    assert_eq!(accepted, 1.0, "what stays is counted on");
    client.echo("still here");
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
