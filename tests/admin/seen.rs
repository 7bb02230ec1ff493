//! What there is to see, and to whom it is not shown.

use sha2::{Digest as _, Sha256};

use super::*;

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
    // The time is counted when the guest gives its thread back, and the client can hear it before.
    until("what the instance costs is counted", || {
        let metrics = openmetrics::parse(&admin.get("/metrics").body);
        let value = |name| metrics.value(name, &[("service", "chat")]);
        value("wasm_inetd_guest_memory_bytes") >= 65_536.0
            && value("wasm_inetd_guest_cpu_seconds_total") > 0.0
    });
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
        host.line("rolled back to");
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
            "reloads",
            "rollbacks"
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

#[test]
fn the_digest_of_a_generation_can_be_computed_from_its_files() {
    let read = |name: &str| Sha256::digest(fs::read(guest(name)).unwrap());
    let (gzip, lines) = (read("gzip"), read("lines"));
    let middleware = guest("gzip");
    let composed = ["--middleware", middleware.to_str().unwrap()];
    let both = Sha256::digest([gzip, lines].concat());
    for (args, expected) in [(&[][..], lines), (&composed, both)] {
        let (_host, admin) = looked_at("lines", args);
        let digest = &generations(&admin)[0]["digest"];
        assert_eq!(digest.as_str(), Some(&*format!("{expected:x}")), "{args:?}");
    }
}
