//! Many services of one host, by a file that can be read again.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::harness::{
    Client, HOST, HUP, Host, TERM, assert_errors, command, file, first_word, guest, replace, scratch, until,
    with_cache,
};

/// A directory of its own for one test, with a file of services in it.
struct Services(PathBuf);

impl Services {
    fn new(name: &str, text: &str) -> Self {
        let dir = scratch(&format!("services-{name}"));
        fs::create_dir_all(&dir).unwrap();
        for name in [
            "lines",
            "upper",
            "lines-session",
            "daytime",
            "count",
            "upper-case",
        ] {
            fs::copy(guest(name), dir.join(name).with_extension("wasm")).unwrap();
        }
        let services = Self(dir);
        services.put(text);
        services
    }

    fn file(&self) -> PathBuf {
        self.0.join("services.toml")
    }

    fn put(&self, text: &str) {
        replace(&self.file(), text);
    }

    /// Has `host` read the file again with this text, and waits until it has.
    fn reread(&self, host: &Host, text: &str) {
        self.put(text);
        host.signal(HUP);
        host.line("services reconfigured");
    }
}

fn run(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

/// Whether a client is served by a guest that gives lines back in capitals.
fn is_upper(client: &Client) -> bool {
    client.send("hello\n");
    let line = client.line();
    assert!(line.eq_ignore_ascii_case("hello"), "{line}");
    line == "HELLO"
}

#[test]
fn limits_for_each_source_apply_to_connections_that_have_not_sent_their_header() {
    let text = |most: usize| {
        format!(
            "[[service]]\nname = \"a\"\nlimits = {{ max-connections-per-source = {most} }}\n\
             [[service.listen]]\naddress = \"127.0.0.1:0\"\n\
             proxy-protocol = {{ from = [\"127.0.0.1\"], timeout = \"1m\" }}\n"
        )
    };
    let services = Services::new("early", &text(100));
    let host = Host::with_config(&services.file(), 1);
    let early: Vec<_> = (0..3).map(|_| host.connect()).collect();
    for client in &early {
        client.send("PROXY TCP4 192.0.2.7 ");
    }
    // They were accepted before this one, which the guest answers.
    let last = host.connect();
    last.send("PROXY TCP4 192.0.2.9 192.0.2.1 1 2\r\n");
    last.echo("accepted");
    services.reread(&host, &text(1));
    early[0].send("192.0.2.1 1 2\r\n");
    early[0].echo("one");
    for client in &early[1..] {
        client.send("192.0.2.1 1 2\r\n");
        let line = host.line("connection refused");
        assert!(line.contains("reason=\"source-connections\""), "{line}");
    }
}

#[test]
fn services_of_one_file_serve_beside_each_other() {
    let services = Services::new(
        "beside",
        r#"
        [defaults.limits]
        max-connections = 4

        [[service]]
        name = "echo"
        listen = ["127.0.0.1:0", "127.0.0.1:0"]

        [[service]]
        name = "upper"
        component = "upper.wasm"
        listen = ["127.0.0.1:0"]
        limits = { max-connections = 1 }
        log-connections = "none"
        "#,
    );
    let mut host = Host::with_config(&services.file(), 3);
    let [one, two, upper] = host.addresses()[..] else {
        panic!()
    };
    assert!(!is_upper(&Client::connect(one).unwrap()));
    assert!(!is_upper(&Client::connect(two).unwrap()));
    for _ in 0..2 {
        host.line("service=\"echo\" connection=");
    }
    let first = Client::connect(upper).unwrap();
    assert!(is_upper(&first));
    // A limit that is reached is that of one service.
    let waits = Client::connect(upper).unwrap();
    waits.send("hello\n");
    assert!(!is_upper(&Client::connect(one).unwrap()));
    drop(first);
    assert_eq!(waits.line(), "HELLO");
    drop(waits);
    assert!(host.stop().success());
    let log = host.log();
    assert!(
        !log.lines()
            .any(|line| line.contains("connection ended") && line.contains("\"upper\"")),
        "{log}"
    );
}

#[test]
fn a_file_is_checked_without_being_run() {
    let services = Services::new(
        "check",
        "[[service]]\nname = \"a\"\ncomponent = \"lines.wasm\"\nlisten = [\"127.0.0.1:1\"]\n",
    );
    let path = services.file();
    let path = path.to_str().unwrap();
    let good = run(&["check", "--config", path]);
    assert!(good.status.success(), "{good:?}");
    for (text, expected) in [
        (
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:1\"]\nwacth = true\n",
            ":4: service[0]: unknown key `wacth`; did you mean `watch`?",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]\n",
            ":3: service[0].listen[1]: 127.0.0.1:1 conflicts with 127.0.0.1:1 of service `a`; choose another address",
        ),
    ] {
        services.put(text);
        for args in [
            &["check", "--config", path][..],
            &["--config", path],
            &["config", "--print", "--config", path],
        ] {
            let refused = run(args);
            assert_eq!(refused.status.code(), Some(2), "{refused:?}");
            let said = String::from_utf8(refused.stderr).unwrap();
            assert_eq!(said, format!("error: {path}{expected}\n"));
        }
    }
    let missing = run(&["check", "--config", "nowhere.toml"]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
}

#[test]
fn a_check_finds_all_that_would_keep_the_host_from_starting() {
    let services = Services::new(
        "preflight",
        r#"
[admin]
listen = "127.0.0.1:0"
token = "nowhere/token"

[[service]]
name = "first"
component = "missing.wasm"
middleware = ["upper-case.wasm", "garbage.wasm"]
gate = "missing"
record = "garbage.wasm/records"
listen = ["127.0.0.1:0"]

[service.grants]
dirs = ["missing::/data"]
allow-outbound = ["host.invalid:80"]

[[service]]
name = "second"

record = "link/records"

[[service.listen]]
address = "127.0.0.1:0"
socket.backlog = 7

[[service.listen]]
address = "127.0.0.1:0"
[service.listen.tls]
certificate = "missing.pem"
key = "garbage.wasm"
client-ca = "missing-ca.pem"
"#,
    );
    fs::write(services.0.join("garbage.wasm"), "garbage").unwrap();
    std::os::unix::fs::symlink("nowhere", services.0.join("link")).unwrap();
    let path = services.file();
    let path = path.to_str().unwrap();
    let checked = run(&["check", "--config", path]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let said = String::from_utf8(checked.stderr).unwrap();
    let expected = [
        "4: admin.token: cannot create the token file",
        "8: service[0].component: service `first`: cannot read the component `",
        "9: service[0].middleware[1]: service `first`: `",
        "10: service[0].gate: service `first`: cannot read the conversations of `gate`",
        "11: service[0].record: service `first`: cannot record to `",
        "15: service[0].grants.dirs[0]: service `first`: cannot open the granted directory `",
        "16: service[0].grants.allow-outbound[0]: service `first`: cannot resolve the granted destination",
        "21: service[1].record: service `second`: cannot record to `",
        "30: service[1].listen[1].tls.certificate: service `second`: cannot serve TLS on 127.0.0.1:0",
        "31: service[1].listen[1].tls.key: service `second`: cannot serve TLS on 127.0.0.1:0",
        "32: service[1].listen[1].tls.client-ca: service `second`: cannot serve TLS on 127.0.0.1:0",
    ];
    let lines: Vec<_> = said.lines().collect();
    assert_errors(&lines, path, &expected);
    // A start says the same, in the log.
    let started = run(&["--config", path]);
    assert_eq!(started.status.code(), Some(1), "{started:?}");
    let log = String::from_utf8(started.stderr).unwrap();
    for line in lines {
        let sentence = line.strip_prefix("error: ").unwrap();
        assert!(
            log.contains(&format!("ERROR {sentence}")),
            "{sentence} is missing in {log}"
        );
    }
}

#[test]
fn a_check_shows_the_first_hundred_errors() {
    let service = |number| format!("[[service]]\nname = \"{number}\"\ncomponent = \"missing.wasm\"\n");
    let missing: String = (0..110).map(service).collect();
    let refused = missing.replace("component = \"missing.wasm\"", "listen = []");
    for (name, text) in [("many-missing", missing), ("many-refused", refused)] {
        let services = Services::new(name, &text);
        let checked = run(&["check", "--config", services.file().to_str().unwrap()]);
        let said = String::from_utf8(checked.stderr).unwrap();
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 101, "{said}");
        assert!(
            errors[100].ends_with("further errors are not shown; correct those above first"),
            "{said}"
        );
    }
}

#[test]
fn a_check_goes_on_after_values_that_are_refused() {
    let services = Services::new(
        "preflight-refused",
        r#"
threads = 0

[admin]
listen = "127.0.0.1:0"
token = "nowhere/token"

[[service]]
listen = ["127.0.0.1:0"]
component = "missing.wasm"

[[service]]
name = "contradicts"
listen = ["127.0.0.1:0"]
component = "missing.wasm"
instances = 2

[[service]]
name = "sound"
listen = ["127.0.0.1:0"]
component = "missing.wasm"
"#,
    );
    let path = services.file();
    let path = path.to_str().unwrap();
    let checked = run(&["check", "--config", path]);
    assert_eq!(checked.status.code(), Some(2), "{checked:?}");
    let said = String::from_utf8(checked.stderr).unwrap();
    let expected = [
        "2: threads: invalid value `0`",
        "8: service[0]: missing key `name`",
        "16: service[1].instances: requires `isolation",
        "6: admin.token: cannot create the token file",
        "21: service[2].component: service `sound`: cannot read the component `",
    ];
    let lines: Vec<_> = said.lines().collect();
    assert_errors(&lines, path, &expected);
}

#[test]
fn a_check_finds_sockets_that_could_not_be_bound() {
    let service = |name: &str, listen: &str| {
        format!("[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\", \"{listen}\"]\n")
    };
    let text = [
        "admin = { listen = \"unix:missing/admin\" }\n".to_owned(),
        service("a", "unix:missing/s"),
        service("b", "unix:lines.wasm"),
        service("c", "inherited:web"),
    ];
    let services = Services::new("preflight-sockets", &text.concat());
    let path = services.file();
    let path = path.to_str().unwrap();
    let of_check = [
        (
            1,
            "admin.listen",
            "missing` does not exist; create it, or choose another path with the key",
        ),
        (
            4,
            "service[0].listen[1]",
            "missing` does not exist; create it, or choose another path",
        ),
        (
            7,
            "service[1].listen[1]",
            "the path is not a socket; remove the file, or choose another",
        ),
    ];
    let of_start = (10, "service[2].listen[1]", "no socket was inherited");
    for (args, expected) in [
        (&["check", "--config", path][..], of_check.to_vec()),
        (&["--config", path], [&of_check[..], &[of_start]].concat()),
    ] {
        let refused = run(args);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8(refused.stderr).unwrap();
        let lines: Vec<_> = said
            .lines()
            .filter(|line| line.contains(": cannot listen on "))
            .collect();
        assert_eq!(lines.len(), expected.len(), "{said}");
        for (line, (number, key, reason)) in lines.iter().zip(expected) {
            let place = format!("{path}:{number}: {key}: ");
            assert!(line.contains(&place) && line.contains(reason), "{key}: {line}");
        }
    }
    // The service manager can open a socket when it starts the host.
    services.put(&service("c", "inherited:web"));
    let checked = run(&["check", "--config", path]);
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(
        String::from_utf8(checked.stdout).unwrap(),
        "1 service, no errors\nnot checked: inherited:web, which the service manager opens when it starts \
         the host\n"
    );
}

#[test]
fn a_reconfiguration_finds_all_that_a_start_would_find() {
    let text = r#"
[[service]]
name = "a"
component = "lines.wasm"
gate = "talks"
record = "records"
listen = ["unix:s"]
grants.dirs = ["data::/data"]
"#;
    let services = Services::new("reread-preflight", text);
    let in_dir = |name: &str| services.0.join(name);
    for dir in ["talks", "data", "token"] {
        fs::create_dir(in_dir(dir)).unwrap();
    }
    fs::write(in_dir("talks/1.conversation"), "> \"a\\n\"\n< \"A\\n\"\n").unwrap();
    let host = Host::with_config(&services.file(), 1);
    for dir in ["talks", "data", "records"] {
        let _ = fs::remove_dir_all(in_dir(dir));
    }
    fs::write(in_dir("records"), "").unwrap();
    services.put(&format!(
        "admin = {{ listen = \"unix:missing/admin\", token = \"token\" }}\n{text}\
         socket.owner = \"no-such-user-here\"\n\
         [[service]]\nname = \"b\"\ncomponent = \"missing.wasm\"\nlisten = [{{ address = \"127.0.0.1:0\", \
         tls = {{ certificate = \"missing.crt\", key = \"missing.key\" }} }}]\n"
    ));
    let path = services.file();
    let checked = run(&["check", "--config", path.to_str().unwrap()]);
    let said = String::from_utf8(checked.stderr).unwrap();
    host.signal(HUP);
    let line = host.line("nothing changed");
    let keys = [
        "admin.token",
        "admin.listen",
        "service[0].gate",
        "service[0].record",
        "service[0].grants.dirs[0]",
        "service[0].socket.owner",
        "service[1].component",
        "service[1].listen[0].tls.certificate",
        "service[1].listen[0].tls.key",
    ];
    assert_eq!(said.lines().count(), keys.len(), "{said}");
    for key in keys {
        let sentence = said.lines().find(|line| line.contains(&format!(": {key}: ")));
        let sentence = sentence.unwrap_or_else(|| panic!("{key}: {said}"));
        let sentence = sentence.strip_prefix("error: ").unwrap();
        assert!(line.contains(sentence), "{sentence}: {line}");
    }
}

#[test]
fn a_middleware_that_cannot_be_loaded_has_its_own_line() {
    let services = Services::new(
        "preflight-middleware",
        "[[service]]\nname = \"a\"\ncomponent = \"lines.wasm\"\nlisten = [\"127.0.0.1:0\"]\n\
         middleware = [\n\"upper-case.wasm\",\n\"upper.wasm\",\n]\n",
    );
    let path = services.file();
    let path = path.to_str().unwrap();
    for args in [&["check", "--config", path, "--compile"][..], &["--config", path]] {
        let refused = run(args);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8(refused.stderr).unwrap();
        let place = format!("{path}:7: service[0].middleware[1]: service `a`: `");
        assert!(
            said.contains(&place) && said.contains("is not a middleware"),
            "{said}"
        );
    }
}

#[test]
fn a_check_leaves_nothing_behind_and_compiles_only_when_asked() {
    let text = r#"
[admin]
listen = "127.0.0.1:0"
token = "token"
[[service]]
name = "a"
component = "bad.wasm"
record = "records/of/a"
listen = ["127.0.0.1:0"]
"#;
    let services = Services::new("preflight-compile", text);
    // It is valid and has a contract, and its instances trap when they start.
    fs::copy(guest("start-trap"), services.0.join("bad.wasm")).unwrap();
    let path = services.file();
    let path = path.to_str().unwrap();
    let checked = run(&["check", "--config", path]);
    assert_eq!(checked.stdout, b"1 service, no errors\n", "{checked:?}");
    assert!(!services.0.join("token").exists() && !services.0.join("records").exists());
    let compiled = run(&["check", "--config", path, "--compile"]);
    assert_eq!(compiled.status.code(), Some(1), "{compiled:?}");
    let said = String::from_utf8(compiled.stderr).unwrap();
    assert!(
        said.starts_with(&format!("error: {path}:7: service[0].component: service `a`: `")),
        "{said}"
    );
    // Without being compiled, a file that is damaged is found.
    let lines = fs::read(guest("lines")).unwrap();
    fs::write(services.0.join("bad.wasm"), &lines[..lines.len() / 2]).unwrap();
    let damaged = run(&["check", "--config", path]);
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    let said = String::from_utf8(damaged.stderr).unwrap();
    assert!(said.contains("bad.wasm` is not a valid component ("), "{said}");
    services.put(&text.replace("bad.wasm", "lines.wasm"));
    let good = run(&["check", "--config", path, "--compile"]);
    assert!(good.status.success(), "{good:?}");
}

#[test]
fn a_check_logs_the_warnings_of_a_start() {
    let services = Services::new("warnings", "");
    let open = services.0.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let echo = "[[service]]\nname = \"a\"\n";
    let anywhere = "listen = [\"127.0.0.1:0\"]\n";
    // Each connection takes more than one.
    let mappings = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let mappings = mappings.trim();
    let warnings = |line: &str| {
        let (_, warning) = line.split_once(" WARN ")?;
        Some(warning.to_owned())
    };
    for (text, words) in [
        (
            format!("{echo}{anywhere}limits = {{ max-connections = 300 }}\n"),
            "300 connections (`limits.max-connections`) and what their guests may open need 341 file \
             descriptors, but this process may open 200",
        ),
        (
            format!("{echo}{anywhere}limits = {{ max-connections = {mappings} }}\n"),
            "memory mappings, but the system allows",
        ),
        (
            format!("cache = \"/proc/x\"\n{echo}{anywhere}"),
            "cannot cache compiled components in `/proc/x`",
        ),
        (
            format!("cache = \"open/of/others\"\n{echo}{anywhere}"),
            "chmod go-w",
        ),
        (
            format!("{echo}listen = [\"unix:open/s\"]\n"),
            "another user could put a socket in the place of",
        ),
        (
            format!("[admin]\nlisten = \"0.0.0.0:0\"\n{echo}{anywhere}"),
            "is not a loopback address",
        ),
    ] {
        services.put(&text);
        let path = services.file();
        let path = path.to_str().unwrap();
        let limited = |args: &[&str]| {
            let mut command = with_cache(Command::new("sh"));
            command.args(["-c", "ulimit -n 200 && exec \"$0\" \"$@\"", HOST]);
            command.args(args);
            command
        };
        let checked = limited(&["check", "--config", path]).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        let said = String::from_utf8(checked.stderr).unwrap();
        let found: Vec<_> = said.lines().filter_map(warnings).collect();
        assert!(found.iter().any(|line| line.contains(words)), "{words}: {said}");
        assert_eq!(services.0.join("open").read_dir().unwrap().count(), 0, "{text}");
        let mut host = Host::launch(&mut limited(&["--config", path]));
        host.line("listening on");
        host.stop();
        let start = host.log();
        let line = start
            .lines()
            .filter_map(warnings)
            .find(|line| line.contains(words));
        assert!(line.is_some(), "{words}: {start}");
    }
}

#[test]
fn a_check_finds_components_that_cannot_serve_by_their_exports_and_imports() {
    let services = Services::new("outline", "");
    let write = |name: &str, text: &str| {
        fs::write(services.0.join(name), wat::parse_str(text).unwrap()).unwrap();
    };
    fs::copy(guest("line-limit"), services.0.join("line-limit.wasm")).unwrap();
    write("nothing.wasm", "(component)");
    write("module.wasm", "(module (func (export \"start\")))");
    write("table.wasm", "(component (core module (table 2000000 funcref)))");
    write(
        "http.wasm",
        r#"(component
            (import "wasi:http/outgoing-handler@0.2.6" (instance (export "handle" (func))))
            (instance $i) (export "wasi:cli/run@0.2.6" (instance $i)))"#,
    );
    for (settings, key, words) in [
        (
            "component = \"line-limit.wasm\"",
            "component",
            "so it is a middleware",
        ),
        ("component = \"nothing.wasm\"", "component", "exports nothing"),
        ("component = \"module.wasm\"", "component", "no function `_start`"),
        ("component = \"table.wasm\"", "component", "elements in a table"),
        ("component = \"http.wasm\"", "component", "has no HTTP interfaces"),
        (
            "component = \"lines.wasm\"\nmiddleware = [\"lines.wasm\"]",
            "middleware[0]",
            "is not a middleware",
        ),
        (
            "component = \"lines-session.wasm\"\nmiddleware = [\"upper-case.wasm\"]",
            "component",
            "inet:service/sessions",
        ),
        (
            "component = \"count.wasm\"\nisolation = \"service\"",
            "component",
            "`isolation = \"service\"` requires",
        ),
        (
            "component = \"lines.wasm\"\npreinit = true",
            "component",
            "exports no function `wizer-initialize`",
        ),
    ] {
        services.put(&format!(
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n{settings}\n"
        ));
        let path = services.file();
        let path = path.to_str().unwrap();
        let [checked, compiled] = [
            &["check", "--config", path][..],
            &["check", "--config", path, "--compile"],
        ]
        .map(run);
        assert_eq!(checked.status.code(), Some(1), "{settings}: {checked:?}");
        let said = String::from_utf8(checked.stderr).unwrap();
        assert!(
            said.contains(&format!("service[0].{key}: ")),
            "{settings}: {said}"
        );
        assert!(said.contains(words), "{settings}: {said}");
        // The start says the same.
        assert_eq!(String::from_utf8(compiled.stderr).unwrap(), said, "{settings}");
    }
}

#[test]
fn flags_can_be_printed_as_a_file_that_serves_the_same() {
    let component = guest("upper");
    let component = component.to_str().unwrap();
    let printed = run(&[
        "config",
        "--print",
        "--listen",
        "127.0.0.1:0",
        "--component",
        component,
    ]);
    assert!(printed.status.success(), "{printed:?}");
    let file = file("printed.toml", &printed.stdout);
    let host = Host::with_config(&file, 1);
    assert!(is_upper(&host.connect()));
    let again = run(&["config", "--config", file.to_str().unwrap()]);
    assert_eq!(
        again.stdout.escape_ascii().to_string(),
        printed.stdout.escape_ascii().to_string()
    );
}

/// The address in a line that says where a service listens.
fn address(line: &str) -> std::net::SocketAddr {
    let (_, address) = line.split_once("listening on ").unwrap();
    first_word(address).parse().unwrap()
}

#[test]
fn services_come_change_and_go_while_others_serve() {
    let echo = "[[service]]\nname = \"echo\"\nlisten = [\"127.0.0.1:0\"]\n";
    let lines = "[[service]]\nname = \"lines\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"lines.wasm\"\n";
    let services = Services::new("change", &format!("{echo}{lines}"));
    let mut host = Host::with_config(&services.file(), 2);
    let [stays, changes] = host.addresses()[..] else {
        panic!()
    };
    let (of_echo, of_lines) = (Client::connect(stays).unwrap(), Client::connect(changes).unwrap());
    of_echo.echo("before");
    of_lines.echo("before\n");
    let reread = |text: &str| {
        services.put(text);
        host.signal(HUP);
    };
    // One comes, one stays, and one changes: its listener is the same, and its guest is another.
    let upper = lines.replace("lines.wasm", "upper.wasm");
    let more = "[[service]]\nname = \"more\"\nlisten = [\"127.0.0.1:0\"]\n";
    reread(&format!("{more}{upper}{echo}"));
    let new = address(&host.line("listening on"));
    host.line("services reconfigured");
    Client::connect(new).unwrap().echo("new");
    assert!(is_upper(&Client::connect(changes).unwrap()));
    assert!(!is_upper(&Client::connect(stays).unwrap()));
    // What was open goes on with what it had.
    of_echo.echo("after");
    of_lines.echo("after\n");
    // Two go, and with them their listeners. A connection that was open stays.
    reread(echo);
    host.line("services reconfigured");
    for gone in [new, changes] {
        assert_eq!(
            std::net::TcpStream::connect(gone).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    }
    of_lines.echo("still\n");
    of_echo.echo("still");
    assert!(!is_upper(&Client::connect(stays).unwrap()));
    drop((of_echo, of_lines));
    assert!(host.stop().success());
}

/// One service, `echo`, of which the file says more.
fn echo(more: &str) -> String {
    format!("[[service]]\nname = \"echo\"\n{more}\n")
}

const ANYWHERE: &str = "listen = [\"127.0.0.1:0\"]";

#[test]
fn rules_of_access_hold_as_soon_as_they_are_read_again() {
    let services = Services::new("access", &echo(ANYWHERE));
    let host = Host::with_config(&services.file(), 1);
    let from = |source| Client::from(source, host.address());
    let reread = |more: &str| services.reread(&host, &echo(&format!("{ANYWHERE}\n{more}")));
    let open = from([127, 0, 1, 7]);
    open.echo("before");
    reread("access = { deny = [\"127.0.1.0/24\"] }");
    from([127, 0, 1, 7]).expect_reset();
    assert!(host.line("connection refused").contains("reason=\"access\""));
    from([127, 0, 0, 1]).echo("not denied");
    // Who is in already stays.
    open.echo("after");
    reread("access = { allow = [\"127.0.1.7\"] }");
    from([127, 0, 1, 7]).echo("allowed");
    from([127, 0, 0, 1]).expect_reset();
    reread("");
    from([127, 0, 0, 1]).echo("everybody");
}

#[test]
fn limits_that_change_count_the_connections_that_are_open() {
    let limits =
        |most| format!("{ANYWHERE}\nlimits = {{ max-connections = {most}, max-connections-per-source = 1 }}");
    let services = Services::new("limits", &echo(&limits(10)));
    let host = Host::with_config(&services.file(), 1);
    let open = host.connect();
    open.echo("first");
    host.refuses();
    for most in [11, 12, 9] {
        services.reread(&host, &echo(&limits(most)));
        host.refuses();
        open.echo("still there");
    }
    drop(open);
    host.line("connection ended");
    host.connect().echo("next");
}

#[test]
fn a_first_limit_for_a_source_counts_the_connections_that_are_open() {
    let services = Services::new("first-limit", &echo(ANYWHERE));
    let host = Host::with_config(&services.file(), 1);
    let mut open: Vec<_> = (0..3).map(|_| host.connect()).collect();
    for client in &open {
        client.echo("open");
    }
    let limits = "limits = { max-connections-per-source = 2 }";
    services.reread(&host, &echo(&format!("{ANYWHERE}\n{limits}")));
    for _ in 0..2 {
        host.refuses();
        open.pop();
        host.line("connection ended");
    }
    // The permit of that one is free a moment later.
    until("there is room for another", || {
        Client::connect(host.address()).is_ok_and(|client| {
            (&client.0).write_all(b"next").is_ok() && (&client.0).read_exact(&mut [0; 4]).is_ok()
        })
    });
}

#[test]
fn a_service_that_comes_back_counts_the_connections_that_it_left_open() {
    for (name, limit) in [
        ("comes-back", "max-connections = 2"),
        ("comes-back-by-source", "max-connections-per-source = 2"),
    ] {
        let other = "[[service]]\nname = \"other\"\nlisten = [\"127.0.0.1:0\"]\n";
        let limited = format!("{}{other}", echo(&format!("{ANYWHERE}\nlimits = {{ {limit} }}")));
        let services = Services::new(name, &limited);
        let host = Host::with_config(&services.file(), 2);
        let open: Vec<_> = (0..2).map(|_| host.connect()).collect();
        for client in &open {
            client.echo("open");
        }
        services.reread(&host, other);
        services.put(&limited);
        host.signal(HUP);
        let back = address(&host.line("listening on"));
        host.line("services reconfigured");
        let more = Client::connect(back).unwrap();
        let is_served = || (&more.0).write_all(b"more").is_ok() && (&more.0).read_exact(&mut [0; 4]).is_ok();
        if limit.contains("source") {
            assert!(!is_served(), "{limit}");
            continue;
        }
        more.send("more");
        assert!(more.hears_nothing(), "{limit}");
        for client in &open {
            client.echo("still open");
        }
        drop(open);
        more.expect("more");
    }
}

#[test]
fn what_takes_a_restart_is_compared_with_what_runs() {
    let text = |threads: u32, backlog: u32| {
        format!(
            "threads = {threads}\n{}",
            echo(&format!("{ANYWHERE}\nsocket = {{ backlog = {backlog} }}"))
        )
    };
    let services = Services::new("restart", &text(2, 100));
    let host = Host::with_config(&services.file(), 1);
    // As long as the file says something else than what runs, each time that it is read.
    for _ in 0..2 {
        services.put(&text(3, 200));
        host.signal(HUP);
        assert!(host.line("requires a restart").contains("`threads`"));
        assert!(host.line("requires a restart").contains("socket options"));
        host.line("services reconfigured");
    }
    let said = host.log().matches("requires a restart").count();
    services.reread(&host, &text(2, 100));
    assert_eq!(host.log().matches("requires a restart").count(), said);
}

#[test]
fn cores_that_the_host_may_no_longer_use_change_no_setting() {
    let services = Services::new("cores", &echo(ANYWHERE));
    let host = Host::with_config(&services.file(), 1);
    let all = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap();
    let mut one = CpuSet::new();
    one.set(first);
    for task in fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap() {
        let task = task.unwrap().file_name().to_str().unwrap().parse().unwrap();
        // A thread that has ended needs no core.
        let _ = sched_setaffinity(Pid::from_raw(task), &one);
    }
    services.reread(&host, &echo(ANYWHERE));
    assert!(!host.log().contains("requires a restart"), "{}", host.log());
}

#[test]
fn what_clashes_with_a_listener_that_is_open_is_named() {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let at = |ip: &str| format!("listen = [\"{ip}:{port}\"]");
    let services = Services::new("narrower", &echo(&at("0.0.0.0")));
    let host = Host::with_config(&services.file(), 1);
    services.put(&echo(&at("127.0.0.1")));
    host.signal(HUP);
    let line = host.line("nothing changed");
    assert!(
        line.contains(&format!(
            "127.0.0.1:{port} conflicts with 0.0.0.0:{port}, on which this host listens until a restart"
        )),
        "{line}"
    );
    host.connect().echo("as before");
}

#[test]
fn a_port_that_the_system_has_chosen_is_not_given_to_another_service() {
    let services = Services::new("chosen-port", &echo(ANYWHERE));
    let host = Host::with_config(&services.file(), 1);
    let taken = host.address();
    let other = format!("[[service]]\nname = \"b\"\nlisten = [\"{taken}\"]\n");
    services.put(&format!("{}{other}", echo(ANYWHERE)));
    host.signal(HUP);
    let line = host.line("nothing changed");
    let expected = format!(
        "{taken} conflicts with {taken}, on which service `echo` listens for 127.0.0.1:0; choose another address"
    );
    assert!(line.contains(&expected), "{line}");
    host.connect().echo("as before");
}

#[test]
fn certificates_that_cannot_be_used_are_found_before_any_address_is_bound() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = echo(&format!("listen = [\"{}\"]", taken.local_addr().unwrap()));
    let tls = "{ certificate = \"no.crt\", key = \"no.key\" }";
    let other =
        format!("[[service]]\nname = \"b\"\nlisten = [{{ address = \"127.0.0.1:0\", tls = {tls} }}]\n");
    let services = Services::new("unusable", &format!("{taken}{other}"));
    let file = services.file();
    let refused = run(&["--config", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    // What cannot be bound would have been found first otherwise.
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("no.crt") && !said.contains("cannot listen on"),
        "{said}"
    );
}

#[test]
fn a_listener_that_goes_lets_in_no_more_than_may_come() {
    let two = "listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\nlimits = { max-connections = 1 }";
    let one = format!("{ANYWHERE}\nlimits = {{ max-connections = 1 }}");
    let services = Services::new("goes", &echo(two));
    let host = Host::with_config(&services.file(), 2);
    let [stays, goes] = host.addresses()[..] else {
        panic!()
    };
    let open = Client::connect(stays).unwrap();
    open.echo("first");
    let waits = Client::connect(goes).unwrap();
    services.reread(&host, &echo(&one));
    // There is no room for it, and nowhere to wait.
    waits.expect_reset();
    open.echo("still there");
}

#[test]
fn a_hang_up_while_it_starts_is_heard_when_it_has_started() {
    let services = Services::new(
        "starting",
        "cache = \"off\"\n[[service]]\nname = \"echo\"\nlisten = [\"127.0.0.1:0\"]\n\
         [[service]]\nname = \"lines\"\ncomponent = \"lines.wasm\"\nlisten = [\"127.0.0.1:0\"]\n",
    );
    let mut host = Host::launch(command().arg("--config").arg(services.file()));
    // Another component is still to be compiled.
    host.line("serving the embedded echo guest");
    host.signal(HUP);
    host.line("listening on");
    host.line("services reconfigured");
    host.signal(TERM);
    assert!(host.wait().success());
}

#[test]
fn a_listener_that_stays_is_set_as_the_file_says_now() {
    let services = Services::new("settings", &echo(ANYWHERE));
    let host = Host::with_config(&services.file(), 1);
    host.connect().echo("plain");
    host.line("connection ended");
    let reread = |more: &str| services.reread(&host, &echo(more));
    reread("listen = [{ address = \"127.0.0.1:0\", proxy-protocol = { from = [\"127.0.0.0/8\"] } }]");
    let client = host.connect();
    client.send("PROXY TCP4 192.0.2.7 192.0.2.1 49152 80\r\n");
    client.echo("for another");
    drop(client);
    let line = host.line("connection ended");
    assert!(line.contains("peer=\"192.0.2.7:49152\""), "{line}");
    reread(ANYWHERE);
    host.connect().echo("PROXY TCP4 192.0.2.7 192.0.2.1 49152 80\r\n");
}

#[test]
fn middlewares_come_and_go_with_the_file() {
    let composed = format!("{ANYWHERE}\nmiddleware = [\"upper-case.wasm\"]");
    let services = Services::new("middleware", &echo(&composed));
    let host = Host::with_config(&services.file(), 1);
    let open = host.connect();
    assert!(is_upper(&open));
    for (more, upper) in [(ANYWHERE, false), (&composed, true)] {
        services.reread(&host, &echo(more));
        assert_eq!(is_upper(&host.connect()), upper);
        // What was open goes on with what it had.
        assert!(is_upper(&open));
    }
}

#[test]
fn a_bad_file_changes_nothing() {
    let echo = "[[service]]\nname = \"echo\"\nlisten = [\"127.0.0.1:0\"]\n";
    let services = Services::new("bad", echo);
    let host = Host::with_config(&services.file(), 1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let client = host.connect();
    client.echo("first");
    let descriptors = host.entries("fd");
    for (bad, reason) in [
        ("nonsense".to_owned(), ":1:"),
        (echo.replace("listen", "lisent"), "did you mean `listen`?"),
        (format!("{echo}component = \"nowhere.wasm\""), "nowhere.wasm"),
        (format!("{echo}component = \"services.toml\""), "services.toml"),
        // One address is free, and the other is not.
        (
            format!("{echo}[[service]]\nname = \"more\"\nlisten = [\"127.0.0.1:0\", \"{taken}\"]\n"),
            ":6: service[1].listen[1]: service `more`: cannot listen on",
        ),
        (
            echo.replace("127.0.0.1:0", &taken.to_string()),
            ":3: service[0].listen[0]: service `echo`: cannot listen on",
        ),
        (
            format!("{echo}[[service]]\nname = \"more\"\nlisten = [\"unix:missing/s\"]\n"),
            ":6: service[1].listen[0]: service `more`: cannot listen on",
        ),
    ] {
        services.put(&bad);
        host.signal(HUP);
        let line = host.line("nothing changed");
        assert!(line.contains(reason), "{line}");
        client.echo("as before");
        host.connect().echo("as before");
        host.line("connection ended");
    }
    // Where it comes back to what it was, all is as it was.
    services.put(echo);
    host.signal(HUP);
    host.line("services reconfigured");
    client.echo("as before");
    host.connect().echo("as before");
    host.line("connection ended");
    assert_eq!(host.entries("fd"), descriptors);
}

#[test]
fn no_connect_is_refused_while_the_file_is_read_again() {
    let text = |guest: &str, limit: u32| {
        format!(
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"{guest}.wasm\"\n\
             limits = {{ max-connections = {limit} }}\n"
        )
    };
    let services = Services::new("refused", &text("lines", 100));
    let host = Host::with_config(&services.file(), 1);
    let address = host.address();
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    is_upper(&Client::connect(address).unwrap());
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..10 {
            services.put(&text(
                if round % 2 == 0 { "upper" } else { "lines-session" },
                100 + round % 3,
            ));
            host.signal(HUP);
            host.line("services reconfigured");
            let before = served.load(Ordering::Relaxed);
            until("connections are served", || {
                served.load(Ordering::Relaxed) >= before + 20
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    let log = host.log();
    assert!(
        !log.lines()
            .any(|line| line.contains("outcome=") && !line.contains("finished")),
        "{log}"
    );
}

#[test]
fn the_example_is_in_order_and_the_schema_can_be_had() {
    let example = guest_builder::workspace().join("docs/services.toml");
    let printed = run(&["config", "--config", example.to_str().unwrap()]);
    assert!(printed.status.success(), "{printed:?}");
    // Its components and certificates are not there.
    let checked = run(&["check", "--config", example.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(
        said.lines()
            .all(|line| line.contains("No such file or directory")),
        "{said}"
    );
    let schema = run(&["config", "--schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    let text = fs::read_to_string(example).unwrap();
    let example = serde_json::to_value(toml::from_str::<toml::Table>(&text).unwrap()).unwrap();
    assert!(jsonschema::is_valid(&schema, &example), "{example}");
}

#[test]
fn a_unix_socket_whose_file_is_gone_is_created_again() {
    let text = "[[service]]\nname = \"a\"\nlisten = [\"unix:s\"]\n";
    let services = Services::new("socket-gone", text);
    let host = Host::with_config(&services.file(), 1);
    let path = services.0.join("s");
    let echoes = || {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        client
    };
    let mut open = echoes();
    // A client that waits in the backlog would be served, too: the host ends the old socket as any
    // other.
    fs::remove_file(&path).unwrap();
    services.reread(&host, text);
    echoes();
    open.write_all(b"still").unwrap();
    open.read_exact(&mut [0; 5]).unwrap();
    let created = || host.log().matches("was removed or replaced").count();
    assert_eq!(created(), 1, "{}", host.log());
    // Nothing is done to a socket that is where it was.
    let before = fs::metadata(&path).unwrap().ino();
    services.reread(&host, text);
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
    // The file of another process is left alone.
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    host.signal(HUP);
    host.line("another process listens there");
    assert_eq!(created(), 1, "{}", host.log());
    drop((other, open));
    host.signal(HUP);
    host.line("services reconfigured");
    echoes();
}
