//! What is counted, as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::openmetrics::{self, Metrics};
use super::{admin_of, looked_at, put, services, shares};
use crate::harness::http::At;
use crate::harness::{
    Client, Done, HUP, Host, NEW, Place, USR2, again, first_word, guest, replace, scratch, until,
};

fn metrics(admin: &At) -> Metrics {
    let answer = admin.get("/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    openmetrics::parse(&answer.body)
}

#[test]
fn a_client_that_asks_for_plain_text_gets_the_format_of_prometheus() {
    let host = Host::start(&["--listen", "127.0.0.1:0", "--admin", "0"]);
    let admin = admin_of(&host);
    let answer = admin
        .request("GET", "/metrics")
        .with("Accept", "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
        .answer();
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let standard = metrics(&admin);
    let name = |line: &str| line.split(['{', ' ']).next().unwrap().to_owned();
    let text = &answer.body;
    let samples: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(name)
        .collect();
    let expected: Vec<_> = standard.samples().map(|sample| sample.name.clone()).collect();
    assert_eq!(samples, expected);
    // A family has the name of its samples, and a type that the format has.
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (family, kind) = line.split_once(' ').unwrap();
        let first = if kind == "histogram" {
            format!("{family}_bucket")
        } else {
            family.to_owned()
        };
        assert!(samples.contains(&first), "{line}");
        assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
    }
    assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
}

/// The value of a series of a service, with one more label if there is one.
fn of(metrics: &Metrics, service: &str, name: &str, label: &[(&str, &str)]) -> f64 {
    metrics.value(
        &format!("wasm_inetd_{name}"),
        &[&[("service", service)], label].concat(),
    )
}

/// The values of all counters and histograms, by series.
fn counters(admin: &At) -> BTreeMap<(String, BTreeMap<String, String>), f64> {
    let metrics = metrics(admin);
    let rising = metrics.families().iter().filter(|family| family.kind != "gauge");
    rising
        .flat_map(|family| &family.samples)
        .map(|sample| ((sample.name.clone(), sample.labels.clone()), sample.value))
        .collect()
}

/// The name of a series without its beginning, its label if it has one beside the service, and its value.
type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// Compares series of a service with what they should be. All other series of the same names are 0.
fn expect(admin: &At, service: &str, expected: &[Expected<'_>]) {
    let metrics = metrics(admin);
    for (name, label, value) in expected {
        assert_eq!(of(&metrics, service, name, label), *value, "{name} {label:?}");
    }
    let names: BTreeSet<_> = expected
        .iter()
        .map(|(name, ..)| format!("wasm_inetd_{name}"))
        .collect();
    let sum = |name: &str| {
        let samples = metrics.samples().filter(|sample| sample.name == name);
        samples.map(|sample| sample.value).sum::<f64>()
    };
    for name in names {
        let all = expected
            .iter()
            .filter(|(other, ..)| name == format!("wasm_inetd_{other}"));
        assert_eq!(
            sum(&name),
            all.map(|(.., value)| value).sum::<f64>(),
            "there is more of {name}"
        );
    }
}

#[test]
fn connections_that_finish_are_counted_with_all_that_they_took() {
    let (host, admin) = looked_at("lines-session", &[]);
    for _ in 0..3 {
        let client = host.connect();
        client.echo("hello\n");
        client.finish();
        assert_eq!(client.rest(), b"");
        host.outcome();
    }
    let open = host.connect();
    open.echo("one\n");
    open.send("half");
    until("half a line has come", || {
        of(&metrics(&admin), "lines-session", "received_bytes_total", &[]) == 26.0
    });
    expect(
        &admin,
        "lines-session",
        &[
            ("connections_accepted_total", &[], 4.0),
            ("connections_ended_total", &[("outcome", "finished")], 3.0),
            ("connections_open", &[], 1.0),
            ("received_bytes_total", &[], 26.0),
            ("sent_bytes_total", &[], 22.0),
            ("connection_duration_seconds_count", &[], 3.0),
            ("first_byte_seconds_count", &[], 3.0),
            ("instantiation_seconds_count", &[], 3.0),
            ("guest_traps_total", &[], 0.0),
            ("generation", &[], 1.0),
            ("generations_alive", &[], 1.0),
            ("reloads_total", &[], 0.0),
            ("accept_errors_total", &[], 0.0),
        ],
    );
    let metrics = metrics(&admin);
    for name in ["connections_refused_total", "limit_hits_total"] {
        let name = format!("wasm_inetd_{name}");
        let values: Vec<_> = metrics
            .samples()
            .filter(|sample| sample.name == name)
            .map(|sample| sample.value)
            .collect();
        assert!(
            values.len() > 5 && values.iter().all(|value| *value == 0.0),
            "{name} {values:?}"
        );
    }
    let value = |name: &str| of(&metrics, "lines-session", name, &[]);
    // What takes longer holds what takes less.
    assert!(value("connection_duration_seconds_sum") >= value("first_byte_seconds_sum"));
    assert!(value("first_byte_seconds_sum") >= value("instantiation_seconds_sum"));
    assert!(value("instantiation_seconds_sum") > 0.0);
    assert!(value("guest_cpu_seconds_total") > 0.0);
    assert!(value("guest_memory_bytes") >= 65_536.0);
    let uptime = metrics.value("wasm_inetd_uptime_seconds", &[]);
    assert!(uptime >= value("connection_duration_seconds_sum"), "{uptime}");
    let used = |kind: &str| of(&metrics, "lines-session", "pool_used", &[("kind", kind)]);
    assert!(
        used("memories") >= 1.0
            && used("memories") <= of(&metrics, "lines-session", "pool_size", &[("kind", "memories")])
    );
    assert_eq!(
        metrics.value("wasm_inetd_build_info", &[("version", env!("CARGO_PKG_VERSION"))]),
        1.0
    );
}

#[test]
fn an_instance_that_is_gone_has_no_memory() {
    let (host, admin) = looked_at("lines-session", &["--first-byte-timeout", "300ms"]);
    let clients: Vec<_> = (0..10).map(|_| host.connect()).collect();
    for client in &clients {
        // The host waits for the FIN of the client now, without an instance.
        assert_eq!(client.rest(), b"");
    }
    let memory = of(&metrics(&admin), "lines-session", "guest_memory_bytes", &[]);
    assert_eq!(memory, 0.0);
}

#[test]
fn connections_that_are_refused_are_counted_by_reason() {
    let (host, admin) = looked_at("echo", &["--max-connections-per-source", "1"]);
    let client = host.connect();
    client.echo("hello");
    for _ in 0..2 {
        host.refuses();
        host.line("connection refused");
    }
    expect(
        &admin,
        "echo",
        &[
            ("connections_accepted_total", &[], 3.0),
            (
                "connections_refused_total",
                &[("reason", "source-connections")],
                2.0,
            ),
            (
                "limit_hits_total",
                &[("limit", "max-connections-per-source")],
                2.0,
            ),
            ("connections_open", &[], 1.0),
        ],
    );
}

#[test]
fn traps_are_counted() {
    let (host, admin) = looked_at("trap", &[]);
    for _ in 0..2 {
        let client = host.connect();
        client.send("!");
        client.expect_reset();
        assert_eq!(host.outcome(), "guest-trap");
    }
    expect(
        &admin,
        "trap",
        &[
            ("guest_traps_total", &[], 2.0),
            ("connections_ended_total", &[("outcome", "guest-trap")], 2.0),
            ("received_bytes_total", &[], 2.0),
            ("connections_open", &[], 0.0),
        ],
    );
    until("the generation has failed them", || {
        admin.json("/generations")["generations"][0]["failed"] == 2
    });
}

#[test]
fn limits_that_are_hit_are_counted_by_flag() {
    for (guest, flags, said, limit, outcome) in [
        (
            "echo",
            ["--idle-timeout", "300ms"],
            "x",
            "idle-timeout",
            "idle-timeout",
        ),
        (
            "echo",
            ["--first-byte-timeout", "300ms"],
            "",
            "first-byte-timeout",
            "first-byte-timeout",
        ),
        (
            "echo",
            ["--max-lifetime", "300ms"],
            "x",
            "max-lifetime",
            "lifetime",
        ),
        (
            "echo",
            ["--max-bytes-in", "4B"],
            "hello",
            "max-bytes",
            "byte-limit",
        ),
        ("spin", ["--max-call-time", "200ms"], "!", "cpu-time", "cpu-limit"),
    ] {
        let (host, admin) = looked_at(guest, &flags);
        let client = host.connect();
        client.send(said);
        // To its end, whichever it is.
        while matches!(std::io::Read::read(&mut &client.0, &mut [0; 16]), Ok(1..)) {}
        drop(client);
        assert_eq!(host.outcome(), outcome, "{flags:?}");
        expect(
            &admin,
            guest,
            &[
                ("limit_hits_total", &[("limit", limit)], 1.0),
                ("connections_ended_total", &[("outcome", outcome)], 1.0),
            ],
        );
    }
    // What the guest deals with by itself has ended nothing.
    let (host, admin) = looked_at("hoard", &["--max-memory", "8MiB"]);
    let client = host.connect();
    for answer in ["taken\n", "refused\n"] {
        client.send("5");
        client.expect(answer);
    }
    client.finish();
    client.rest();
    assert_eq!(host.outcome(), "finished");
    expect(
        &admin,
        "hoard",
        &[
            ("limit_hits_total", &[("limit", "max-memory")], 1.0),
            ("connections_ended_total", &[("outcome", "finished")], 1.0),
        ],
    );
}

#[test]
fn swaps_rollbacks_and_rejected_files_are_counted() {
    let place = Place::new("admin-counted", "echo");
    let host = place.serve(&["--admin", "0"]);
    let admin = admin_of(&host);
    let counts = |reloads: f64, rollbacks: f64, rejected: f64, generation: f64| {
        expect(
            &admin,
            "guest",
            &[
                ("reloads_total", &[], reloads),
                ("rollbacks_total", &[], rollbacks),
                ("rejected_components_total", &[], rejected),
                ("generation", &[], generation),
            ],
        );
    };
    counts(0.0, 0.0, 0.0, 1.0);
    let old = host.connect();
    old.echo("hello");
    place.put("lines-session");
    host.signal(HUP);
    host.line(NEW);
    counts(1.0, 0.0, 0.0, 2.0);
    assert_eq!(of(&metrics(&admin), "guest", "generations_alive", &[]), 2.0);
    place.replace("not WebAssembly");
    host.signal(HUP);
    host.line("keeps serving");
    counts(1.0, 0.0, 1.0, 2.0);
    host.signal(USR2);
    host.line("rolled back to");
    counts(1.0, 1.0, 1.0, 1.0);
    // The first generation counts once, though it has connections of before and serves those to
    // come.
    assert_eq!(of(&metrics(&admin), "guest", "generations_alive", &[]), 1.0);
    // What was gone back from is not taken again.
    place.put("lines-session");
    host.signal(HUP);
    host.line("was rolled back");
    counts(1.0, 1.0, 2.0, 1.0);
    old.echo("still here");
}

#[test]
fn generations_and_refusals_of_a_reconfiguration_are_counted() {
    let dir = scratch("metrics-reconfigured");
    fs::create_dir_all(dir.join("gate")).unwrap();
    fs::write(dir.join("gate/1.conversation"), "> \"a\\n\"\n< \"a\\n\"\n").unwrap();
    fs::copy(guest("lines"), dir.join("lines.wasm")).unwrap();
    fs::copy(guest("upper"), dir.join("upper.wasm")).unwrap();
    fs::write(dir.join("bad.wasm"), "not WebAssembly").unwrap();
    let config = dir.join("services.toml");
    let text = |of_a: &str| {
        format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n{of_a}\n\
             [[service]]\nname = \"b\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"lines.wasm\"\n"
        )
    };
    let lines = "component = \"lines.wasm\"";
    fs::write(&config, text(lines)).unwrap();
    let host = Host::with_config(&config, 2);
    let admin = admin_of(&host);
    let counts = |reloads: f64, rejected: f64| {
        let metrics = metrics(&admin);
        for (service, reloads, rejected) in [("a", reloads, rejected), ("b", 0.0, 0.0)] {
            let of = |name| of(&metrics, service, name, &[]);
            assert_eq!(of("reloads_total"), reloads, "{service}");
            assert_eq!(of("rejected_components_total"), rejected, "{service}");
            assert_eq!(of("generation"), reloads + 1.0, "{service}");
        }
    };
    counts(0.0, 0.0);
    let gated = |component: &str| format!("component = \"{component}.wasm\"\ngate = \"gate\"");
    for (of_a, happens, reloads, rejected) in [
        (gated("lines"), "services reconfigured", 1.0, 0.0),
        // The component, the gate and a middleware are refused.
        (gated("bad"), "nothing changed", 1.0, 1.0),
        (gated("upper"), "nothing changed", 1.0, 2.0),
        (
            format!("{lines}\nmiddleware = [\"bad.wasm\"]"),
            "nothing changed",
            1.0,
            3.0,
        ),
        // That is no fault of the component.
        (
            format!("{lines}\ngrants = {{ dirs = [\"missing::/x\"] }}"),
            "nothing changed",
            1.0,
            3.0,
        ),
        (lines.to_owned(), "services reconfigured", 2.0, 3.0),
    ] {
        replace(&config, text(&of_a));
        host.signal(HUP);
        host.line(happens);
        counts(reloads, rejected);
    }
}

#[test]
fn no_peer_can_make_a_series() {
    const EACH: u32 = 2500;
    let (host, admin) = looked_at(
        "lines-session",
        &[
            "-q",
            "--log-connections",
            "none",
            "--max-connections-per-source",
            "1",
        ],
    );
    let before = metrics(&admin).series();
    let address = host.address();
    thread::scope(|scope| {
        for thread in 0..4_u32 {
            scope.spawn(move || {
                for i in 0..EACH {
                    // 127.64.0.0 and on: an address for each.
                    let [_, b, c, d] = (thread * EACH + i).to_be_bytes();
                    let client = Client::from([127, 64 + b, c, d], address);
                    // Whoever closes first keeps the port for a minute, which other tests may want: it is never the client.
                    match i % 3 {
                        0 => client.echo(format!("{thread} {i}\n")),
                        1 => {}
                        _ => {
                            client.send("quit\n");
                            assert_eq!(client.half(), b"");
                        }
                    }
                    client.reset();
                }
            });
        }
    });
    let all = || {
        let metrics = metrics(&admin);
        let value = |name: &str| of(&metrics, "lines-session", name, &[]);
        (value("connections_accepted_total"), value("connections_open"))
    };
    until("all have come and gone", || all() == (f64::from(4 * EACH), 0.0));
    let after = metrics(&admin).series();
    assert_eq!(after.len(), before.len());
    assert_eq!(after, before);
}

#[test]
fn no_counter_ever_falls_when_a_connection_ends() {
    let (host, admin) = looked_at("echo", &["-q", "--log-connections", "none"]);
    let counters = || counters(&admin);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, _done) = (&done, Done(&done));
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = counters();
                while !done.load(Ordering::Relaxed) {
                    let next = counters();
                    for (series, value) in &next {
                        let before = last[series];
                        assert!(*value >= before, "{series:?} falls from {before} to {value}");
                    }
                    last = next;
                }
            });
        }
        // Each has moved more than the next one will have when it is looked at again: what is missing, or there twice, for a
        // moment shows.
        for _ in 0..5000 {
            let client = host.connect();
            client.echo([b'x'; 64 << 10]);
            client.reset();
        }
    });
}

#[test]
fn no_counter_falls_when_a_service_changes_or_comes_back() {
    let own = "[admin]\nlisten = \"127.0.0.1:0\"\n";
    let chat = guest("chat");
    for (test, more) in [
        ("own", String::new()),
        (
            "shared",
            format!("component = {chat:?}\nisolation = \"service\"\n"),
        ),
    ] {
        let service = format!("{own}[[service]]\nname = \"held\"\nlisten = [\"127.0.0.1:0\"]\n{more}");
        let path = services(&format!("counts-{test}"), &service);
        let host = Host::with_config(&path, 2);
        let admin = admin_of(&host);
        let reread = |more: &str| {
            put(&path, more);
            host.signal(HUP);
        };
        let serves = |address| {
            let client = Client::connect(address).unwrap();
            client.send("hello\n");
            // Something of the guest has come.
            client.0.peek(&mut [0]).unwrap();
            client
        };
        let ends = |client: Client| {
            client.finish();
            client.rest();
            host.line("connection ended");
        };
        let mut last = counters(&admin);
        let mut rises = |when: &str| {
            let next = counters(&admin);
            for (series, value) in &last {
                // A service that is not there has no series.
                let now = next.get(series).copied().unwrap_or(f64::INFINITY);
                assert!(
                    now >= *value,
                    "{test}, {when}: {series:?} falls from {value} to {now}"
                );
            }
            last.extend(next);
        };
        let first = serves(host.address());
        let second = serves(host.address());
        rises("before");
        reread(&format!("{service}limits = {{ idle-timeout = \"9m\" }}\n"));
        host.line("services reconfigured");
        rises("it has changed");
        ends(first);
        rises("one that was open before has ended");
        reread(own);
        host.line("services reconfigured");
        rises("it is removed");
        reread(&service);
        let line = host.line("listening on");
        let address = first_word(line.split_once("listening on ").unwrap().1);
        host.line("services reconfigured");
        rises("it is there again");
        ends(serves(address.parse().unwrap()));
        rises("another has ended");
        ends(second);
        rises("all have ended");
        let metrics = metrics(&admin);
        let held = |name: &str| {
            let samples = metrics.samples().filter(|sample| {
                sample.name == format!("wasm_inetd_connections_{name}") && sample.labels["service"] == "held"
            });
            samples.map(|sample| sample.value).sum::<f64>()
        };
        assert_eq!(held("accepted_total"), 3.0);
        assert_eq!(
            held("accepted_total"),
            held("refused_total") + held("ended_total") + held("open")
        );
    }
}

/// The type and the labels of each metric that a document lists. An item of the list has the form
/// "- `NAME` (TYPE; `LABEL`, `LABEL`): MEANING".
fn listed(document: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut metrics = BTreeMap::new();
    for item in document.split("\n- `wasm_inetd_").skip(1) {
        let (name, rest) = item.split_once("` (").expect(item);
        let (head, meaning) = rest.split_once("):").expect(item);
        assert_ne!(meaning.trim(), "", "{name} has no meaning");
        let kind = head.split(';').next().unwrap_or_default().to_owned();
        let labels = head.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let twice = metrics.insert(format!("wasm_inetd_{name}"), (kind, labels));
        assert_eq!(twice, None, "{name} is listed twice");
    }
    metrics
}

#[test]
fn the_document_names_all_metrics_and_no_others() {
    let (host, admin) = looked_at("lines-session", &[]);
    host.connect().echo("hello\n");
    let document = fs::read_to_string(guest_builder::workspace().join("docs/admin.md")).unwrap();
    let metrics = metrics(&admin);
    // The unit is part of the name.
    let families: BTreeMap<String, (String, BTreeSet<String>)> = metrics
        .families()
        .iter()
        .map(|family| {
            let after = match family.kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let labels = family
                .samples
                .iter()
                .flat_map(|sample| sample.labels.keys())
                // The bound of a bucket; every histogram has it.
                .filter(|label| *label != "le")
                .cloned()
                .collect();
            (format!("{}{after}", family.name), (family.kind.clone(), labels))
        })
        .collect();
    assert_eq!(listed(&document), families);
    // And each value of each label that is not a name.
    for sample in metrics.samples() {
        for (label, value) in &sample.labels {
            let known = ["service", "le", "version"].contains(&label.as_str());
            assert!(
                known || document.contains(&format!("`{value}`")),
                "{label} {value} is missing"
            );
        }
    }
}

#[test]
fn generations_of_other_settings_are_measured_while_they_have_connections() {
    let dir = scratch("metrics-settings");
    fs::create_dir_all(&dir).unwrap();
    let config = dir.join("services.toml");
    let text = |more: &str| {
        // An instance that returns its streams is gone at once.
        let component = guest("lines-session");
        format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\n[[service]]\nname = \"a\"\ncomponent = {component:?}\n\
             listen = [\"127.0.0.1:0\"]\n{more}"
        )
    };
    fs::write(&config, text("")).unwrap();
    let host = Host::with_config(&config, 1);
    let admin = admin_of(&host);
    let open = host.connect();
    open.echo("hello\n");
    replace(&config, text("limits = { max-memory = \"1MiB\" }\n"));
    host.signal(HUP);
    host.line("services reconfigured");
    let metrics = || openmetrics::parse(&admin.get("/metrics").body);
    let used = [("kind", "instances")];
    assert_eq!(of(&metrics(), "a", "pool_used", &used), 1.0);
    assert_eq!(of(&metrics(), "a", "generations_alive", &[]), 2.0);
    drop(open);
    host.line("connection ended");
    until("the first generation is gone", || {
        let metrics = metrics();
        of(&metrics, "a", "generations_alive", &[]) == 1.0 && of(&metrics, "a", "pool_used", &used) == 0.0
    });
}

#[test]
fn a_generation_that_serves_nothing_is_not_listed_after_a_change_of_settings() {
    let dir = scratch("metrics-listed");
    fs::create_dir_all(&dir).unwrap();
    let (config, component) = (dir.join("services.toml"), dir.join("guest.wasm"));
    let put = |more: &str| {
        let text = format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\n[[service]]\nname = \"a\"\n\
             component = \"guest.wasm\"\nlisten = [\"127.0.0.1:0\"]\n{more}"
        );
        replace(&config, text);
    };
    let is_listed = |admin: &At, expected: &[(u64, &str, u64)]| {
        let shares = shares(admin);
        let found: Vec<_> = shares
            .iter()
            .map(|(number, state, open)| (*number, state.as_str(), *open))
            .collect();
        assert_eq!(found, expected);
        let alive = of(&metrics(admin), "a", "generations_alive", &[]);
        assert_eq!(alive, expected.len() as f64);
    };
    fs::copy(guest("copy"), &component).unwrap();
    put("");
    let host = Host::with_config(&config, 1);
    let admin = admin_of(&host);
    let open = host.connect();
    open.echo("hello");
    replace(&component, again("copy", 1));
    host.signal(HUP);
    host.line(NEW);
    is_listed(&admin, &[(1, "previous", 1), (2, "current", 0)]);
    // The second generation is replaced by itself under other settings.
    put("limits = { idle-timeout = \"9m\" }\n");
    host.signal(HUP);
    host.line("services reconfigured");
    is_listed(&admin, &[(1, "previous", 1), (3, "current", 0)]);
    replace(&component, again("copy", 2));
    host.signal(HUP);
    host.line(NEW);
    is_listed(&admin, &[(1, "ending", 1), (3, "previous", 0), (4, "current", 0)]);
    open.echo("still here");
}
