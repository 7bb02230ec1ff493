//! Pools: how many connections of a component with many memories they serve, and what is said of
//! it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::admin::{admin_of, pool_used};
use crate::harness::{Client, HOST, HUP, Host, Place, command, field, file, guest, scratch, until};

/// A program that waits for an hour, as a component of so many core instances with a memory each.
fn waiting(memories: usize) -> PathBuf {
    let instances = "(core instance (instantiate $e))".repeat(memories);
    let text = format!(
        r#"(component
        (import "wasi:io/poll@0.2.6" (instance $poll
            (export "pollable" (type $p (sub resource)))
            (export "[method]pollable.block" (func (param "self" (borrow $p))))))
        (alias export $poll "pollable" (type $pollable))
        (import "wasi:clocks/monotonic-clock@0.2.6" (instance $clock
            (alias outer 1 $pollable (type $outer))
            (export "pollable" (type $p (eq $outer)))
            (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
        (core func $block (canon lower (func $poll "[method]pollable.block")))
        (core func $subscribe (canon lower (func $clock "subscribe-duration")))
        (core module $e (memory 1))
        {instances}
        (core module $m
            (import "" "block" (func $block (param i32)))
            (import "" "subscribe" (func $subscribe (param i64) (result i32)))
            (func (export "run") (result i32)
                (call $block (call $subscribe (i64.const 3600000000000)))
                (i32.const 0)))
        (core instance $i (export "block" (func $block)) (export "subscribe" (func $subscribe)))
        (core instance $c (instantiate $m (with "" (instance $i))))
        (func $run (result (result)) (canon lift (core func $c "run")))
        (instance $r (export "run" (func $run)))
        (export "wasi:cli/run@0.2.6" (instance $r)))"#
    );
    file(&format!("waiting-{memories}.wasm"), wat::parse_str(text).unwrap())
}

/// A program of so many components, of which each calls the next synchronously. The functions are
/// asynchronous, and the last one does not return.
fn chain(parts: usize) -> PathBuf {
    let lift = r#"(func (export "run") async (result (result)) (canon lift (core func $i "run") async
        (callback (core func $i "resume"))))"#;
    let resume = r#"(func (export "resume") (param i32 i32 i32) (result i32) unreachable)"#;
    let result = |count: usize| match count {
        0 => "$last".to_owned(),
        count => format!("$part{count}"),
    };
    let instances: String = (1..parts)
        .map(|part| {
            let (this, next) = (result(part), result(part - 1));
            format!("(instance {this} (instantiate $part (with \"next\" (func {next} \"run\"))))")
        })
        .collect();
    let text = format!(
        r#"(component
        (component $last
            (core func $set (canon waitable-set.new))
            (core module $m
                (import "" "set" (func $set (result i32)))
                {resume}
                (func (export "run") (result i32)
                    (i32.or (i32.const 2) (i32.shl (call $set) (i32.const 4)))))
            (core instance $i (instantiate $m (with "" (instance (export "set" (func $set))))))
            {lift})
        (component $part
            (import "next" (func $next async (result (result))))
            (core func $next (canon lower (func $next)))
            (core module $m
                (import "" "next" (func $next (result i32)))
                {resume}
                (func (export "run") (result i32) (drop (call $next)) (i32.const 0)))
            (core instance $i (instantiate $m (with "" (instance (export "next" (func $next))))))
            {lift})
        (instance $last (instantiate $last))
        {instances}
        (instance $run (export "run" (func {first} "run")))
        (export "wasi:cli/run@0.3.0" (instance $run)))"#,
        first = result(parts - 1)
    );
    file(&format!("chain-{parts}.wasm"), wat::parse_str(text).unwrap())
}

/// A program that keeps its stack while the host has a result for it, and waits for years then.
fn resumed() -> PathBuf {
    let text = r#"(component
        (import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
            (export "wait-for" (func async (param "how-long" u64)))))
        (core func $wait (canon lower (func $clock "wait-for")))
        (core func $begin (canon lower (func $clock "wait-for") async))
        (core module $e (memory (export "memory") 1))
        (core instance $e (instantiate $e))
        (core func $set (canon waitable-set.new))
        (core func $join (canon waitable.join))
        (core func $next (canon waitable-set.wait (memory (core memory $e "memory"))))
        (core module $m
            (import "" "wait" (func $wait (param i64)))
            (import "" "begin" (func $begin (param i64) (result i32)))
            (import "" "set" (func $set (result i32)))
            (import "" "join" (func $join (param i32 i32)))
            (import "" "next" (func $next (param i32 i32) (result i32)))
            (func (export "run") (result i32) (local $set i32)
                (local.set $set (call $set))
                (call $join
                    (i32.shr_u (call $begin (i64.const 1000000)) (i32.const 4)) (local.get $set))
                (drop (call $next (local.get $set) (i32.const 0)))
                (call $wait (i64.const 1000000000000000))
                (i32.const 0)))
        (core instance $i (instantiate $m (with "" (instance
            (export "wait" (func $wait)) (export "begin" (func $begin)) (export "set" (func $set))
            (export "join" (func $join)) (export "next" (func $next))))))
        (func $run async (result (result)) (canon lift (core func $i "run")))
        (instance $r (export "run" (func $run)))
        (export "wasi:cli/run@0.3.0" (instance $r)))"#;
    file("resumed.wasm", wat::parse_str(text).unwrap())
}

/// A program as a core module of several memories, which waits for its client.
fn module(memories: usize) -> PathBuf {
    file(
        &format!("module-{memories}.wasm"),
        module_with_tables(memories, 0),
    )
}

/// The same with so many tables besides.
fn module_with_tables(memories: usize, tables: usize) -> Vec<u8> {
    let more = "(memory 1)".repeat(memories - 1) + &"(table 1 funcref)".repeat(tables);
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        {more}
        (func (export "_start")
            (i32.store (i32.const 0) (i32.const 64))
            (i32.store (i32.const 4) (i32.const 64))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))))"#
    );
    wat::parse_str(text).unwrap()
}

/// The arguments of a host whose pools can be looked at.
fn observed<'a>(component: &'a Path, connections: &'a str) -> [&'a str; 8] {
    [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "0",
        "--max-connections",
        connections,
        "--component",
        component.to_str().unwrap(),
    ]
}

/// Starts a host that takes `limit` for the number of memory mappings that the system allows.
pub fn host_with_mappings(limit: u64, args: &[&str]) -> Host {
    let mut command = command();
    command.env("WASM_INETD_MAX_MAP_COUNT", limit.to_string());
    Host::spawn(command.args(args), args)
}

/// Writes a services file of one service with this name and these limits.
fn write_service(config: &Path, name: &str, limits: &str) {
    let text = format!(
        "[[service]]\nname = \"{name}\"\ncomponent = \"{}\"\nlisten = [\"127.0.0.1:0\"]\n\
         limits = {{ {limits} }}\n",
        guest("lines").display()
    );
    fs::write(config, text).unwrap();
}

/// Opens a connection that is served, and keeps its instance.
fn held(host: &Host) -> Client {
    let client = host.connect();
    client.echo("hello\n");
    client
}

/// Runs `check` below a shell that runs `setup` first. Returns what it prints and what it logs.
fn check(setup: &str, args: &[&str]) -> (String, String) {
    let script = format!("{setup} && exec \"$0\" check \"$@\"");
    let mut command = Command::new("sh");
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .arg("-c")
        .arg(script)
        .arg(HOST)
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert_eq!(status.code(), Some(0), "{stderr}");
    (stdout, stderr)
}

/// The sentence about the pool of each service in a log.
fn sentences(log: &str) -> Vec<String> {
    let said = log
        .lines()
        .filter_map(|line| line.split_once("an instance of the component takes "));
    said.map(|(_, said)| said.split(" service=").next().unwrap().to_owned())
        .collect()
}

/// Opens as many connections as the pool is said to serve, of at most 64, and one more, where a
/// process may have so many `mappings`. Each instance of the component has so many memories.
/// Returns how many are served.
fn serves_as_said(component: &Path, memories: usize, mappings: u64) -> usize {
    let component = component.to_str().unwrap();
    let limit = ["--max-connections", "64"];
    let setup = format!("export WASM_INETD_MAX_MAP_COUNT={mappings}");
    let (said, logged) = check(&setup, &[&limit[..], &[component]].concat());
    let served = said.split_once("serves     ").map_or(64, |(_, served)| {
        let (served, rest) = served.split_once(' ').unwrap();
        assert!(rest.starts_with("of 64 connections at the same time\n"), "{said}");
        served.parse().unwrap()
    });
    let in_use = (memories * served) as f64;
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "0",
        "--component",
        component,
    ];
    let host = host_with_mappings(mappings, &[&args[..], &limit].concat());
    let sentences = (sentences(&host.log()), sentences(&logged));
    assert_eq!(sentences.0, sentences.1, "a start and a check say the same");
    let admin = admin_of(&host);
    let _clients: Vec<_> = (0..served).map(|_| host.connect()).collect();
    until("all connections are served", || {
        pool_used(&admin, "memories") == in_use
    });
    if served == 64 {
        assert!(sentences.0.is_empty(), "{sentences:?}");
        return served;
    }
    let expected = format!(
        "so the pool serves {served} connections at the same time, but `--max-connections` is 64: lower \
         it to "
    );
    assert!(sentences.0[0].contains(&expected), "{sentences:?}");
    // However many come, the guest is not to blame, so the breaker stays closed.
    for _ in 0..8 {
        host.refuses();
        let ended = host.line("connection ended");
        assert_eq!(field(&ended, "outcome"), "start-failed");
    }
    assert_eq!(pool_used(&admin, "memories"), in_use);
    assert!(!host.log().contains("breaker open"), "{}", host.log());
    assert_eq!(
        host.log().matches("connection ended").count(),
        8,
        "{}",
        host.log()
    );
    served
}

/// Memory mappings that a system allows a process if nobody has set another limit. Tests have the
/// host count on this number, whatever the system allows.
pub const MAPPINGS: u64 = 65_530;

/// Memory mappings that the system allows a process.
fn limit_on_mappings() -> u64 {
    let limit = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    limit.trim().parse().unwrap()
}

#[test]
fn a_component_of_many_core_instances_is_served_on_all_connections() {
    assert_eq!(serves_as_said(&waiting(42), 42, MAPPINGS), 64);
}

#[test]
fn a_module_of_many_memories_is_served_on_all_connections() {
    assert_eq!(serves_as_said(&module(42), 42, MAPPINGS), 64);
}

#[test]
fn a_pool_serves_as_many_connections_as_is_said() {
    let served = serves_as_said(&waiting(400), 400, MAPPINGS);
    assert!((3..40).contains(&served), "{served}");
    // 64 TiB of address space have room for 16,384 memories.
    let limit = limit_on_mappings();
    if limit >= 200_000 {
        assert_eq!(serves_as_said(&waiting(400), 400, limit), 40);
    }
}

/// Starts a host for a component that lets so many clients in, and connects as many. Returns what
/// keeps both.
fn filled(component: &Path, connections: usize) -> (Host, Vec<Client>) {
    let most = connections.to_string();
    let args = observed(component, &most);
    let host = Host::start(&args);
    let clients: Vec<_> = (0..connections).map(|_| host.connect()).collect();
    (host, clients)
}

#[test]
fn all_connections_have_the_stacks_that_they_can_keep() {
    for (component, connections, stacks) in [(chain(2), 100, 2), (chain(16), 16, 16), (resumed(), 100, 2)] {
        let (host, clients) = filled(&component, connections);
        let admin = admin_of(&host);
        until("all connections keep their stacks", || {
            let log = host.log();
            assert!(!log.contains("WARN"), "{log}");
            pool_used(&admin, "stacks") >= (connections * stacks) as f64
        });
        drop(clients);
    }
}

#[test]
fn connections_for_which_there_are_no_stacks_fail_at_the_start() {
    let component = chain(16);
    let args = observed(&component, "64");
    // Pools may take 768, of which 128 are for spare stacks. Each connection takes 36.
    let host = host_with_mappings(1024, &args);
    let sentences = sentences(&host.log());
    let [sentence] = &sentences[..] else {
        panic!("{}", host.log());
    };
    let (parts, served) = sentence.split_once(", so the pool serves ").unwrap();
    assert_eq!(parts, "0 memories, 0 tables and 17 stacks");
    assert!(sentence.contains("vm.max_map_count"), "{sentence}");
    let served: usize = served.split(' ').next().unwrap().parse().unwrap();
    assert!((5..18).contains(&served), "{sentence}");
    let admin = admin_of(&host);
    let mut clients: Vec<_> = (0..served).map(|_| host.connect()).collect();
    until("as many are served", || {
        pool_used(&admin, "stacks") >= (16 * served) as f64
    });
    assert!(!host.log().contains("connection ended"), "{}", host.log());
    // Two are for a component that is tried.
    clients.extend((0..2).map(|_| host.connect()));
    until("these are served too", || {
        pool_used(&admin, "stacks") >= (16 * served + 32) as f64
    });
    for _ in 0..8 {
        host.refuses();
        let ended = host.line("connection ended");
        assert_eq!(field(&ended, "outcome"), "start-failed");
    }
    drop(clients);
}

#[test]
fn components_of_many_memories_leave_mappings_to_other_services() {
    let dir = scratch("pools-mappings");
    fs::create_dir_all(&dir).unwrap();
    let large = waiting(950);
    let mut text = String::new();
    for (name, component, connections) in [
        ("first", &large, 17),
        ("second", &large, 17),
        ("third", &large, 17),
        ("other", &guest("lines"), 300),
    ] {
        writeln!(
            text,
            "[[service]]\nname = \"{name}\"\ncomponent = \"{}\"\nlisten = [\"127.0.0.1:0\"]\n\
             limits = {{ max-connections = {connections} }}",
            component.display()
        )
        .unwrap();
    }
    let config = dir.join("services.toml");
    fs::write(&config, text).unwrap();
    let mut host = host_with_mappings(MAPPINGS, &["--config", config.to_str().unwrap()]);
    // The first is there already.
    host.listens(3);
    // More than there are mappings for, so that some end at once.
    let clients: Vec<_> = host.addresses()[..3]
        .iter()
        .flat_map(|address| (0..17).map(|_| Client::connect(*address).unwrap()))
        .collect();
    until("each service has refused some", || {
        let log = host.log();
        let failed = |name: &str| {
            let service = format!("service=\"{name}\"");
            let lines = log.lines().filter(|line| line.contains(&service));
            lines.filter(|line| line.contains("start-failed")).count()
        };
        ["first", "second", "third"].iter().all(|name| failed(name) > 0)
    });
    let mappings = host.mappings() as u64;
    assert!(mappings < MAPPINGS / 4 * 3 + 1000, "{mappings} of {MAPPINGS}");
    let others: Vec<_> = (0..300)
        .map(|_| Client::connect(host.addresses()[3]).unwrap())
        .collect();
    others.iter().for_each(|other| other.echo("hello\n"));
    drop((clients, others));
    host.signal(HUP);
    host.line("services reconfigured");
    Client::connect(host.addresses()[3]).unwrap().echo("hello\n");
}

#[test]
fn settings_that_do_not_concern_the_pool_keep_it() {
    let dir = scratch("pools-settings");
    fs::create_dir_all(&dir).unwrap();
    let config = dir.join("services.toml");
    write_service(&config, "lines", "max-memory = \"64MiB\"");
    let host = Host::with_config(&config, 1);
    let mut clients = vec![held(&host)];
    let before = host.mappings();
    for limits in [
        "max-memory = \"65MiB\"",
        "max-memory = \"65MiB\", idle-timeout = \"9m\"",
        "max-memory = \"65MiB\", max-call-time = \"7s\"",
        "max-memory = \"65MiB\", max-connections = 900",
    ] {
        write_service(&config, "lines", limits);
        host.signal(HUP);
        host.line("services reconfigured");
        clients.push(held(&host));
    }
    // The stacks of a pool for 1,024 connections take more than 2,000.
    let mappings = host.mappings();
    assert!(mappings < before + 1000, "{before} mappings became {mappings}");
    clients.iter().for_each(|client| client.echo("again\n"));
}

#[test]
fn pools_that_open_connections_keep_leave_mappings_to_the_host() {
    const LIMIT: u64 = 8192;
    let dir = scratch("pools-kept");
    fs::create_dir_all(&dir).unwrap();
    let config = dir.join("services.toml");
    // The stacks of a pool take more than 500 mappings, and it can take 900.
    let connections = 200;
    write_service(&config, "lines", &format!("max-connections = {connections}"));
    let host = host_with_mappings(LIMIT, &["--config", config.to_str().unwrap()]);
    let before = host.mappings();
    let mut clients = vec![held(&host)];
    // Each pool is too small for the next settings.
    for more in 1..=16 {
        write_service(
            &config,
            "lines",
            &format!("max-connections = {}", connections + more),
        );
        host.signal(HUP);
        host.line("services reconfigured");
        clients.push(held(&host));
    }
    let added = host.mappings() - before;
    assert!(added < LIMIT as usize / 8 * 7, "{added} mappings came");
    // Those that have no pool of their own share one, and the log says how many it serves.
    let sentences = sentences(&host.log());
    let last = sentences.last().expect("a sentence about the pool");
    assert!(
        last.contains("but `limits.max-connections` is 216: lower it to 2")
            && last.contains("vm.max_map_count"),
        "{sentences:?}"
    );
    clients.iter().for_each(|client| client.echo("again\n"));
}

#[test]
fn a_service_for_which_no_mappings_are_left_is_refused() {
    let dir = scratch("pools-refused");
    fs::create_dir_all(&dir).unwrap();
    let config = dir.join("services.toml");
    let name = |number: usize| format!("lines-{number}");
    write_service(&config, &name(0), "max-connections = 100");
    // The stacks of a pool take 332 mappings, and all pools may take 1,792.
    let host = host_with_mappings(2048, &["--config", config.to_str().unwrap()]);
    let mut clients = vec![held(&host)];
    let refused = (1..10).find_map(|number| {
        // Another service takes the place of the one before, whose connection stays.
        write_service(&config, &name(number), "max-connections = 100");
        host.signal(HUP);
        let line = host.line_of(&["services reconfigured", "reconfiguration failed"]);
        if line.contains("failed") {
            return Some(line);
        }
        let of_service = format!("service=\"{}\"", name(number));
        let address = || {
            let log = host.log();
            let mut lines = log.lines().filter(|line| line.contains(&of_service));
            let (_, place) = lines.find_map(|line| line.split_once("listening on "))?;
            place.split(' ').next()?.parse().ok()
        };
        until("the service listens", || address().is_some());
        let client = Client::connect(address().unwrap()).unwrap();
        client.echo("hello\n");
        clients.push(client);
        None
    });
    let refused = refused.expect("no change was refused");
    assert!(
        refused.contains("; open connections keep ") && refused.contains("; nothing changed"),
        "{refused}"
    );
    assert!(clients.len() > 3, "{}", host.log());
    clients.iter().for_each(|client| client.echo("again\n"));
}

#[test]
fn pools_of_earlier_generations_count_with_what_they_have() {
    let component = file("pools-generations.wasm", module_with_tables(8, 2));
    let args = observed(&component, "100");
    // A pool takes 332 mappings at once and up to 1,964, and pools may take 6,144.
    let host = host_with_mappings(8192, &args);
    let admin = admin_of(&host);
    let mut clients = vec![host.connect()];
    let in_use = |clients: usize| pool_used(&admin, "memories") == (8 * clients) as f64;
    until("the first is served", || in_use(1));
    for tables in [4, 8, 16, 32, 64] {
        file("pools-generations.wasm", module_with_tables(8, tables));
        host.signal(HUP);
        let line = host.line_of(&["component reloaded", "reload failed"]);
        assert!(line.contains("component reloaded"), "{line}");
        clients.push(host.connect());
        until("all are served", || in_use(clients.len()));
    }
    assert!(sentences(&host.log()).is_empty(), "{}", host.log());
}

#[test]
fn services_share_the_address_space_in_a_check_as_they_do_when_they_run() {
    let dir = scratch("pools");
    fs::create_dir_all(&dir).unwrap();
    let component = waiting(42);
    let mut text = "[defaults.limits]\nmax-connections = 64\n".to_owned();
    for name in ["first", "second"] {
        let listen = "listen = [\"127.0.0.1:0\"]";
        let component = component.display();
        writeln!(
            text,
            "[[service]]\nname = \"{name}\"\ncomponent = \"{component}\"\n{listen}"
        )
        .unwrap();
    }
    let config = dir.join("services.toml");
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    // In KiB: 26 TiB, of which the pool of each service takes 16.5, if there is as much.
    let setup = "ulimit -v 27917287424";
    let (_, logged) = check(setup, &["--compile", "--config", config]);
    let mut host = Host::below_shell(setup, &["--config", config]);
    host.listens(1);
    let (started, checked) = (sentences(&host.log()), sentences(&logged));
    assert_eq!(started, checked);
    assert!(
        started.len() == 1 && started[0].contains("the pool serves 50 connections"),
        "{started:?}"
    );
    // Without an address space that is too small, there is room for all.
    assert!(sentences(&check("true", &["--config", config]).1).is_empty());
}

#[test]
fn a_check_that_compiles_nothing_says_the_same() {
    let dir = scratch("pools-uncompiled");
    fs::create_dir_all(&dir).unwrap();
    let config = dir.join("services.toml");
    let component = waiting(400);
    let text = format!(
        "[[service]]\nname = \"large\"\ncomponent = \"{}\"\nlisten = [\"127.0.0.1:0\"]\n\
         limits = {{ max-connections = 64 }}\n",
        component.display()
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let [quick, whole] = [&["--config", config][..], &["--compile", "--config", config]]
        .map(|args| sentences(&check("true", args).1));
    assert!(quick.len() == 1 && quick == whole, "{quick:?} {whole:?}");
}

#[test]
fn a_full_pool_says_nothing_of_a_new_component() {
    // As many as a module may have.
    const MEMORIES: usize = 100;
    let place = Place::new("pools-full", "lines");
    let first = fs::read(module(MEMORIES)).unwrap();
    // The same with another digest.
    let second = [&first[..], &[0, 2, 1, b'x']].concat();
    place.replace(&first);
    let host = place.serve(&["--watch", "--admin", "0", "--max-connections", "400"]);
    let admin = admin_of(&host);
    let said = sentences(&host.log());
    let served = said[0].split_once("so the pool serves ").unwrap().1;
    let served: usize = served.split(' ').next().unwrap().parse().unwrap();
    let fill = || -> Vec<_> {
        let clients = (0..served).map(|_| host.connect()).collect();
        until("the pool is full", || {
            pool_used(&admin, "memories") == (MEMORIES * served) as f64
        });
        clients
    };
    let clients = fill();
    place.replace(&second);
    let failed = host.line("reload failed");
    assert!(failed.contains("fill the pool"), "{failed}");
    // The watch tries again without a change.
    drop(clients);
    host.line("component reloaded");
    let _clients = fill();
    // Enough for a rollback, if they counted.
    for _ in 0..10 {
        host.refuses();
        let ended = host.line("connection ended");
        assert_eq!(field(&ended, "outcome"), "start-failed");
    }
    let log = host.log();
    assert!(
        !log.contains("rolled back") && !log.contains("breaker open"),
        "{log}"
    );
}
