//! The log, as programs and people read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Stdio};

use regex::Regex;
use serde_json::{Value, json};

use crate::harness::{Client, HUP, Host, NEW, Place, USR2, field, file, words};
use crate::tls::served;

#[test]
fn a_connection_leaves_one_line_that_says_everything() {
    let host = Host::serving("lines", &[]);
    let client = host.connect();
    let local = client.0.local_addr().unwrap().to_string();
    client.send("hello\nquit\nrest");
    client.finish();
    assert_eq!(client.rest(), b"hello\n");
    let line = host.line("connection ended");
    assert_eq!(field(&line, "connection"), "1");
    assert_eq!(field(&line, "peer"), local);
    assert_eq!(field(&line, "listener"), host.address().to_string());
    assert_eq!(field(&line, "contract"), "streams");
    assert_eq!(field(&line, "bytes_in"), "15");
    assert_eq!(field(&line, "bytes_out"), "6");
    assert_eq!(field(&line, "outcome"), "finished");
    assert!(field(&line, "duration_ms").parse::<f64>().unwrap() > 0.0);
    host.connect().finish();
    assert_eq!(field(&host.line("connection ended"), "connection"), "2");
}

#[test]
fn json_lines_are_objects_with_the_same_fields() {
    let mut host = Host::serving("echo", &["--log-format", "json"]);
    let client = host.connect();
    client.echo("hello");
    client.finish();
    client.rest();
    let line: serde_json::Value = serde_json::from_str(&host.line("connection ended")).unwrap();
    assert_eq!(line["message"], "connection ended");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["connection"], 1);
    assert_eq!(line["contract"], "streams");
    assert_eq!(line["bytes_in"], 5);
    assert_eq!(line["bytes_out"], 5);
    assert_eq!(line["outcome"], "finished");
    assert!(line["duration_ms"].is_f64());
    assert!(line["timestamp"].is_string());
    host.stop();
    for line in host.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

/// What `docs/log.schema.json` says of a line.
fn schema() -> jsonschema::Validator {
    let text = fs::read_to_string(guest_builder::workspace().join("docs/log.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    assert!(jsonschema::draft202012::meta::is_valid(&schema));
    jsonschema::draft202012::new(&schema).unwrap()
}

/// Fails on a line that is not as the schema has it.
fn check(schema: &jsonschema::Validator, line: &Value) {
    let errors: Vec<_> = schema.iter_errors(line).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{line}: {errors:#?}");
    // A line about a guest names its service.
    for key in ["connection", "instance"] {
        assert!(line.get(key).is_none() || line.get("service").is_some(), "{line}");
    }
}

/// The lines of the log that a host leaves by JSON, by their messages.
fn lines_of_many_kinds() -> Vec<Value> {
    let place = Place::new("log-schema", "errands");
    let mut host = place.serve(&[
        "--log-format",
        "json",
        "-vv",
        "--max-connections-per-source",
        "1",
        "--admin",
        "0",
    ]);
    let client = host.connect();
    client.send("complain one\\ntwo\n");
    assert_eq!(client.line(), "complained");
    host.refuses();
    host.line("connection refused");
    client.send("exit 3\n");
    assert_eq!(client.rest(), b"leaving");
    drop(client);
    host.line("connection ended");
    // Of another address, since the permit of this one is free a moment later.
    let panics = Client::from([127, 0, 0, 2], host.address());
    panics.send("panic\n");
    panics.expect_reset();
    drop(panics);
    host.line("connection ended");
    place.put("lines-session");
    host.signal(HUP);
    host.line(NEW);
    Client::from([127, 0, 0, 3], host.address()).echo("hello\n");
    host.line("connection ended");
    place.replace("not WebAssembly");
    host.signal(HUP);
    host.line("keeps serving");
    host.signal(USR2);
    host.line("rolled back to");
    assert_eq!(host.stop().code(), Some(0));
    let mut log = host.log();
    // Where connections share an instance, it is the instance that says something and costs something.
    let mut host = Host::serving("chat", &["--log-format", "json", "--isolation", "service"]);
    let client = host.connect();
    client.expect("Your name?\n");
    client.finish();
    client.rest();
    host.line("connection ended");
    assert_eq!(host.stop().code(), Some(0));
    log = log + "\n" + &host.log();
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn json_lines_are_as_their_schema_has_them() {
    let schema = schema();
    let lines = lines_of_many_kinds();
    for line in &lines {
        check(&schema, line);
    }
    let told: BTreeSet<_> = lines
        .iter()
        .map(|line| line["message"].as_str().unwrap())
        .collect();
    for message in [
        "connection ended",
        "connection refused",
        "guest output",
        "component reloaded",
        "rolled back to the previous generation",
        "drained",
    ] {
        assert!(told.contains(message), "{message} is missing in {told:?}");
    }
    // It would find what is wrong with each.
    let of = |message: &str| {
        lines
            .iter()
            .find(|line| line["message"] == message)
            .unwrap()
            .clone()
    };
    for message in ["connection ended", "connection refused", "guest output", NEW] {
        let line = of(message);
        for key in line.as_object().unwrap().keys() {
            let optional = [
                "first_byte_ms",
                "guest_cpu_ms",
                "guest_memory",
                "reason",
                "status",
            ]
            .contains(&key.as_str());
            let mut without = line.clone();
            without.as_object_mut().unwrap().remove(key);
            assert_eq!(
                schema.is_valid(&without),
                optional && message == "connection ended",
                "{message} without {key}"
            );
            let mut other = line.clone();
            other[key] = json!(["of another type"]);
            assert!(!schema.is_valid(&other), "{other}");
        }
        let mut more = line.clone();
        more["more"] = json!("more than there should be");
        assert!(!schema.is_valid(&more), "{more}");
    }
    let mut other = of("connection ended");
    other["outcome"] = json!("unheard-of");
    assert!(!schema.is_valid(&other), "{other}");
    let mut nested = of("drained");
    nested["more"] = json!({});
    assert!(!schema.is_valid(&nested), "{nested}");
}

#[test]
fn the_schema_of_lines_has_all_words_that_there_are() {
    let text = fs::read_to_string(guest_builder::workspace().join("docs/log.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let listed = |of: &Value| -> BTreeSet<String> {
        let words = of["enum"].as_array().unwrap();
        words
            .iter()
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    };
    let mut outcomes = listed(&schema["$defs"]["ended"]["properties"]["outcome"]);
    outcomes.insert("host-panic".to_owned());
    assert_eq!(outcomes, words("host/src/connection.rs"));
    let reasons = listed(&schema["$defs"]["refused"]["properties"]["reason"]);
    assert_eq!(reasons, words("host/src/admission.rs"));
}

#[test]
fn a_field_has_one_form_in_all_lines_of_text() {
    let (authority, _, mut host) = served("log-forms", "echo", &["-v"]);
    let plain = host.connect();
    plain.send("no handshake");
    host.line("connection refused");
    drop(plain);
    drop(authority.client().connects(&host).unwrap());
    host.line("connection ended");
    host.stop();
    let log = host.log();
    let failed = log.lines().find(|line| line.contains("TLS handshake failed"));
    let failed = failed.unwrap_or_else(|| panic!("{log}"));
    for field in [" service=\"", " peer=\"", " listener=\""] {
        assert!(failed.contains(field), "{field}: {failed}");
    }
    let field = Regex::new(r#" (\w+)=("?)"#).unwrap();
    let mut forms: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for found in field.captures_iter(&log) {
        let (_, [name, quote]) = found.extract();
        forms.entry(name).or_default().insert(quote);
    }
    assert_eq!(forms["peer"], BTreeSet::from(["\""]));
    let mixed: Vec<_> = forms.iter().filter(|(_, forms)| forms.len() > 1).collect();
    assert!(mixed.is_empty(), "{mixed:?} in {log}");
}

#[test]
fn no_guest_can_forge_a_line_of_json() {
    let schema = schema();
    let mut host = Host::serving("errands", &["--log-format", "json"]);
    let forged = r#"{"timestamp":"2026-01-01T00:00:00.000000Z","level":"ERROR","message":"forged"}"#;
    // Each would end a line for somebody, or change what is seen of it.
    let tries = [
        format!("a\"}}\\n{forged}"),
        format!("b\"}}\r{forged}"),
        format!("c\u{b}{forged}\u{c}{forged}"),
        format!("d\u{85}{forged}\u{2028}{forged}\u{2029}{forged}"),
        format!("e\u{1b}[2K\u{1b}[1G{forged}\u{7}\u{8}\u{0}"),
        format!("f\",\"outcome\":\"finished\",\"x\":\"{forged}\\"),
    ];
    let client = host.connect();
    for text in &tries {
        client.send(format!("complain {text}\n"));
        assert_eq!(client.line(), "complained");
    }
    client.finish();
    client.rest();
    host.line("connection ended");
    assert_eq!(host.stop().code(), Some(0));
    let log = host.log();
    let mut said = Vec::new();
    for line in log.split('\n') {
        assert!(
            !line.bytes().any(|byte| byte < b' '),
            "{line:?} has a control character"
        );
        // Who takes more characters for the end of a line finds nothing that is an object of its own.
        let wide = line.split(['\u{85}', '\u{2028}', '\u{2029}', '\r', '\u{b}', '\u{c}']);
        let objects: Vec<Value> = wide.filter_map(|part| serde_json::from_str(part).ok()).collect();
        assert!(
            objects.iter().all(|object| object["message"] != "forged"),
            "{line:?}"
        );
        let line: Value = serde_json::from_str(line).unwrap();
        check(&schema, &line);
        assert_ne!(line["message"], "forged");
        if line["message"] == "guest output" {
            assert_eq!(line["connection"], 1);
            said.push(line["stderr"].as_str().unwrap().to_owned());
        }
    }
    let expected: Vec<_> = tries
        .iter()
        .flat_map(|text| text.split("\\n"))
        .map(|line| line.trim_ascii_end().to_owned())
        .collect();
    assert_eq!(said, expected);
}

/// A line that would be taken for one of the host's own, if it began a line of the log.
const FORGED: &str = "2026-01-01T00:00:00.000000Z ERROR forged";

/// Has names from outside written to the log: of a function in the backtrace of a trap, of a file,
/// and of what a balancer sends.
fn log_of_odd_names(format: &str) -> String {
    let odd = format!("x\n{FORGED}\u{1b}[31m\u{9b}31m\u{7f}\u{202e}\u{2028}{FORGED}");
    // In the text format of WebAssembly, `\u{…}` is an escape too.
    let name = odd.escape_default();
    let module = format!(
        "(module (memory (export \"memory\") 1) (func $\"{name}\" unreachable) (func (export \"_start\") (call 0)))"
    );
    let component = file(
        &format!("odd-{format}-{odd}.wasm"),
        wat::parse_str(module).unwrap(),
    );
    let mut host = Host::with(
        &component,
        &[
            "-v",
            "--log-format",
            format,
            "--proxy-protocol-from",
            "127.0.0.0/8",
        ],
    );
    let client = host.connect();
    client.send("PROXY TCP4 192.0.2.7 192.0.2.1 49152 80\r\n");
    client.expect_reset();
    host.line("connection ended");
    let client = host.connect();
    client.send(format!("PROXY TCP4 {}\r\n", &odd[..60]));
    client.expect_reset();
    host.line("connection refused");
    host.stop();
    host.log()
}

#[test]
fn lines_of_guests_are_bounded_with_their_escapes() {
    // Each line is of characters that are escaped by six bytes.
    let module = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\00\04\00\00")
        (func (export "_start") (local $lines i32)
            (memory.fill (i32.const 16) (i32.const 0x1b) (i32.const 1023))
            (i32.store8 (i32.const 1039) (i32.const 0x0a))
            (loop $more
                (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
                (local.set $lines (i32.add (local.get $lines) (i32.const 1)))
                (br_if $more (i32.lt_u (local.get $lines) (i32.const 4))))
            unreachable))"#;
    let module = file("escapes.wasm", wat::parse_str(module).unwrap());
    for format in ["text", "json"] {
        let mut host = Host::with(&module, &["--log-format", format]);
        host.connect().expect_reset();
        let ended = host.line("connection ended");
        host.stop();
        let log = host.log();
        let said: Vec<_> = log.lines().filter(|line| line.contains("guest output")).collect();
        assert!(said.iter().all(|line| line.len() < 1024 + 300), "{format}: {log}");
        // Nothing is left out.
        let escapes = |text: &str| text.matches("\\u{1b}").count() + text.matches("\\u001b").count();
        assert_eq!(escapes(&said.concat()), 4 * 1023, "{format}: {log}");
        assert!(ended.len() < 4 * 1024 + 1000 && escapes(&ended) > 100, "{ended}");
    }
}

#[test]
fn no_name_from_outside_can_forge_a_line() {
    let log = log_of_odd_names("text");
    let own = Regex::new(r"^\d{4}-\d\d-\d\dT[\d:.]+Z +(ERROR|WARN|INFO|DEBUG) ").unwrap();
    assert!(log.contains("forged") && log.contains("wasm backtrace"), "{log}");
    for line in log.lines() {
        assert!(!line.starts_with(FORGED), "{log}");
        if line.contains(" serving component ") {
            assert!(line.contains(&format!("x\\n{FORGED}")), "{line:?}");
        }
        // Only a backtrace has several lines, which are indented.
        assert!(own.is_match(line) || line.starts_with("    "), "{line:?}");
        let is_odd = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}');
        assert!(!line.contains(is_odd), "{line:?}");
    }
}

#[test]
fn no_name_from_outside_can_forge_a_line_of_json() {
    let log = log_of_odd_names("json");
    assert!(log.contains("forged"), "{log}");
    let mut has_name = false;
    for line in log.lines() {
        assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
        assert!(!line.contains(['\u{202e}', '\u{2028}']), "{line:?}");
        let line: Value = serde_json::from_str(line).unwrap();
        // The value is the same for who parses it.
        has_name |= line["message"]
            .as_str()
            .unwrap()
            .contains("\u{1b}[31m\u{9b}31m\u{7f}");
    }
    assert!(has_name, "{log}");
}

#[test]
fn guests_log_by_levels_of_their_own_within_the_same_bounds() {
    let mut host = Host::serving("herald", &["-vv"]);
    let client = host.connect();
    client.echo("it \x1b[31mburns\n");
    for level in ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "ERROR"] {
        let line = host.line("guest log");
        assert!(line.contains(&format!("{level} guest log")), "{line}");
        assert!(line.contains("said=\"it \\u{1b}[31mburns\""), "{line}");
        assert_eq!(field(&line, "connection"), "1");
        assert_eq!(field(&line, "context"), "herald");
    }
    client.echo("5000\n");
    host.line("further lines are not logged");
    client.finish();
    client.rest();
    host.line("connection ended");
    // Ten at once say more than fits into a second. A second later the log says how much was left
    // out, although no guest says more.
    let clients: Vec<_> = (0..10).map(|_| host.connect()).collect();
    for client in &clients {
        client.send("1000\n");
    }
    for client in &clients {
        client.expect("1000\n");
    }
    host.line("lines were not logged");
    host.stop();
    let log = host.log();
    assert_eq!(
        log.lines()
            .filter(|line| line.contains("connection=1 ") && line.contains("guest log"))
            .count(),
        1000
    );
}

#[test]
fn guests_of_one_service_take_no_lines_of_another() {
    let herald = crate::harness::guest("herald");
    let service = |name| {
        format!("[[service]]\nname = \"{name}\"\ncomponent = {herald:?}\nlisten = [\"127.0.0.1:0\"]\n")
    };
    let config = file("log-shares.toml", service("loud") + &service("calm"));
    let mut host = Host::with_config(&config, 2);
    let [loud, calm] = [0, 1].map(|listener| host.addresses()[listener]);
    let many: Vec<_> = (0..8).map(|_| Client::connect(loud).unwrap()).collect();
    let one = Client::connect(calm).unwrap();
    one.echo("0\n");
    for client in &many {
        client.send("1000\n");
    }
    for client in &many {
        client.expect("1000\n");
    }
    one.echo("500\n");
    host.line("lines were not logged");
    host.stop();
    let log = host.log();
    let of = |service: &str, text: &str| {
        let of = format!("service=\"{service}\"");
        log.lines()
            .filter(|line| line.contains(&of) && line.contains(text))
            .count()
    };
    assert_eq!(of("calm", "guest log"), 500);
    assert_eq!(of("calm", "lines were not logged"), 0);
    assert!(of("loud", "lines were not logged") > 0);
}

/// Has guests of `herald` log more lines than the queue of the log holds, while nobody reads the
/// log. Returns the number of connections.
fn fill_log(address: SocketAddr) -> usize {
    // Guests may log only so many lines in a second.
    let start = std::time::Instant::now();
    let mut connections = 0;
    while start.elapsed() < std::time::Duration::from_secs(4) || connections < 12 {
        let client = Client::connect(address).unwrap();
        client.echo("999\n");
        client.finish();
        assert_eq!(client.rest(), b"");
        connections += 1;
        // Each connection also has two lines of the host, and these must fit into their room.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    connections
}

/// A host whose log is not read while it serves.
struct Unread {
    host: Child,
    log: BufReader<ChildStderr>,
}

impl Unread {
    fn start(args: &[&str]) -> Self {
        let mut command = crate::harness::command();
        let mut host = command.args(args).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(host.stderr.take().unwrap());
        Self { host, log }
    }

    /// Stops the host, and returns the log from where it was read last.
    fn stop(mut self) -> String {
        crate::harness::signal(&self.host, crate::harness::TERM);
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        self.host.wait().unwrap();
        log
    }
}

#[test]
fn guests_leave_room_in_the_log_for_lines_of_the_host() {
    let herald = crate::harness::guest("herald");
    let mut unread = Unread::start(&["--listen", "127.0.0.1:0", "--component", herald.to_str().unwrap()]);
    let connections = fill_log(listens_at(&mut unread.log));
    let log = unread.stop();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count("connection ended"), connections);
    assert!(count("guest log") > 4000, "{}", count("guest log"));
}

#[test]
fn guests_of_one_service_take_no_room_of_another_in_a_log_that_is_not_read() {
    let herald = crate::harness::guest("herald");
    let service = |name| {
        format!("[[service]]\nname = \"{name}\"\ncomponent = {herald:?}\nlisten = [\"127.0.0.1:0\"]\n")
    };
    let config = file("log-room.toml", service("loud") + &service("calm"));
    let mut unread = Unread::start(&["--config", config.to_str().unwrap()]);
    let [loud, calm] = [(); 2].map(|()| listens_at(&mut unread.log));
    let connections = fill_log(loud);
    Client::connect(calm).unwrap().echo("500\n");
    let log = unread.stop();
    let of = |service: &str, text: &str| {
        let of = format!("service=\"{service}\"");
        let lines = log.lines().filter(|line| line.contains(&of));
        lines.filter(|line| line.contains(text)).count()
    };
    assert_eq!(of("calm", "guest log"), 500);
    assert_eq!(of("calm", "lines were not logged"), 0);
    assert!(of("loud", "lines were not logged") > 0);
    assert_eq!(of("loud", "connection ended"), connections);
}

#[test]
fn connections_of_one_service_take_no_room_of_another_in_a_log_that_is_not_read() {
    let service = |name| format!("[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\n");
    let config = file("log-connections.toml", service("busy") + &service("calm"));
    let mut unread = Unread::start(&["--config", config.to_str().unwrap()]);
    let [busy, calm] = [(); 2].map(|()| listens_at(&mut unread.log));
    let connect = |address, count| {
        for _ in 0..count {
            let client = Client::connect(address).unwrap();
            client.finish();
            assert_eq!(client.rest(), b"");
        }
    };
    // More than the queue takes of any service.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| connect(busy, 2000));
        }
    });
    connect(calm, 500);
    let log = unread.stop();
    let ended = |service: &str| {
        let of = format!("service=\"{service}\"");
        let lines = log.lines().filter(|line| line.contains("connection ended"));
        lines.filter(|line| line.contains(&of)).count()
    };
    assert!(ended("busy") < 8000, "the log was read");
    assert_eq!(ended("calm"), 500);
    for line in ["stop requested", "drained"] {
        assert!(log.contains(line), "{line}");
    }
}

#[test]
fn quiet_leaves_where_it_listens_and_what_is_wrong() {
    for flag in ["-q", "-qq"] {
        let mut host = Host::serving("echo", &[flag]);
        host.connect().echo("hello");
        assert_eq!(host.stop().code(), Some(0));
        let log = host.log();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("listening on"), "{log}");
    }
}

#[test]
fn a_log_that_nobody_can_take_does_not_stop_the_service() {
    for sink in ["2>/dev/full", "2>&-"] {
        // Its own port cannot be read from such a log, so it gets one that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut child = crate::harness::with_cache(std::process::Command::new("sh"))
            .args([
                "-c",
                &format!("exec \"$0\" --listen {free} {sink}"),
                crate::harness::HOST,
            ])
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + crate::harness::DEADLINE;
        let client = loop {
            match crate::harness::Client::connect(free) {
                Ok(client) => break client,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{sink}: {error}"),
            }
            std::thread::yield_now();
        };
        client.echo("hello");
        for _ in 0..20 {
            crate::harness::Client::connect(free).unwrap().echo("hello again");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_log_whose_reader_has_gone_does_not_stop_the_service() {
    log_that_is_not_read(drop);
}

#[test]
fn a_log_whose_reader_does_not_read_does_not_stop_the_service() {
    // The pipe is full and still open.
    log_that_is_not_read(std::mem::forget);
}

/// The first line of the log is read, `then` comes the end of it, and the service goes on.
fn log_that_is_not_read(then: impl FnOnce(BufReader<ChildStderr>)) {
    let Unread { mut host, mut log } = Unread::start(&["--listen", "127.0.0.1:0", "-v"]);
    let address = listens_at(&mut log);
    then(log);
    for _ in 0..2000 {
        crate::harness::Client::connect(address).unwrap().echo("hello");
    }
    host.kill().unwrap();
    host.wait().unwrap();
}

/// Reads the log up to the line that says where the host listens.
fn listens_at(log: &mut impl std::io::BufRead) -> std::net::SocketAddr {
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the log ended");
        if let Some((_, address)) = line.split_once("listening on ") {
            return crate::harness::first_word(address).parse().unwrap();
        }
    }
}
