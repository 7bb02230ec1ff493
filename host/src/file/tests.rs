use std::path::Path;
use std::time::Duration;

use jsonschema::Validator;

use super::*;
use crate::config::{Address, Limits};

/// What is wrong with a text, in one line.
fn problem(text: &str) -> String {
    parse(text, Path::new("/etc")).unwrap_err().to_string()
}

const WHOLE: &str = r#"
threads = 3
drain-timeout = "1m"
cache = "cache"

[log]
format = "json"
level = "warn"

[defaults]
watch = true
log-connections = "failed"
drain-generations = "1h"
grants = { env = { LANG = "C" } }
access = { deny = ["192.0.2.0/24"] }
socket = { backlog = 16, nodelay = false }

[defaults.limits]
max-connections = 10
idle-timeout = "off"

[[service]]
name = "first"
listen = ["127.0.0.1:7", "unix:first.sock"]

[[service]]
name = "second"
component = "second.wasm"
middleware = ["limit.wasm", "/log.wasm"]
args = ["--strict"]
gate = "conversations"
gate-patience = "1m"
isolation = "service"
instances = 2
access = { allow = ["::1"] }
grants = { allow-outbound = ["192.0.2.7:5432"] }

[[service.listen]]
address = "[::]:443"
name = "front"
socket = { backlog = 32, dual-stack = true, keepalive = "1m" }
proxy-protocol = { from = ["10.0.0.0/8"], timeout = "1s" }

[service.listen.tls]
certificate = "cert.pem"
key = "/keys/key.pem"
more = [{ certificate = "other.pem", key = "other-key.pem" }]
alpn = ["h2"]
client-ca = "ca.pem"
client-optional = true

[service.limits]
max-connections = 20
max-rate = "7/m"
max-bytes-in = "1KiB"
"#;

#[test]
fn a_file_says_all_that_flags_say() {
    let config = parse(WHOLE, Path::new("/etc")).unwrap();
    assert_eq!(
        (config.threads().get(), config.drain_timeout),
        (3, Duration::from_secs(60))
    );
    let [first, second] = &config.services[..] else {
        panic!()
    };
    // What is left out is by the defaults of the file, and then by those of the program.
    assert_eq!(
        (first.limits.max_connections.get(), first.limits.idle_timeout),
        (10, None)
    );
    assert_eq!(first.limits.max_memory, Limits::default().max_memory);
    assert_eq!(first.listen[0].socket.backlog, 16);
    assert_eq!(first.listen[1].address, Address::Unix("/etc/first.sock".into()));
    assert!(!first.watch, "there is no file to watch");
    assert_eq!(second.component.as_deref(), Some(Path::new("/etc/second.wasm")));
    assert!(second.watch);
    assert_eq!(second.grants.env, [("LANG".to_owned(), "C".to_owned())]);
    assert_eq!((second.access.allow.len(), second.access.deny.len()), (1, 1));
    let listen = &second.listen[0];
    assert_eq!((listen.socket.backlog, listen.socket.nodelay), (32, false));
    let tls = listen.tls.as_ref().unwrap();
    assert_eq!(tls.identities[0].key, Path::new("/keys/key.pem"));
    assert_eq!(tls.identities[1].certificate, Path::new("/etc/other.pem"));
    assert!(!tls.clients.as_ref().unwrap().required);
}

#[test]
fn what_is_printed_says_the_same() {
    let config = parse(WHOLE, Path::new("/etc")).unwrap();
    let printed = print(&config).unwrap();
    assert_eq!(parse(&printed, Path::new("/")).unwrap(), config, "{printed}");
}

#[test]
fn what_is_printed_means_the_same_in_another_directory() {
    let mut config = parse(WHOLE, Path::new("here")).unwrap();
    config.make_paths_absolute().unwrap();
    let printed = print(&config).unwrap();
    assert_eq!(parse(&printed, Path::new("there")).unwrap(), config, "{printed}");
}

#[test]
fn a_problem_has_a_line_a_key_and_a_suggestion() {
    let service = "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:1\"]\n";
    for (text, expected) in [
        ("", "1: missing key `service`"),
        (
            "service = []",
            "1: service: no service is defined; expected at least one [[service]] table",
        ),
        ("[[service]\n", "1: unclosed array table, expected `]`"),
        (
            "thread = 1\nservice = []",
            "1: unknown key `thread`; did you mean `threads`?; 2: service: no service is defined; expected \
             at least one [[service]] table",
        ),
        (
            &format!("{service}limits = {{ max-memroy = \"1MiB\" }}"),
            "4: service[0].limits: unknown key `max-memroy`; did you mean `max-memory`?",
        ),
        (
            &format!("{service}[service.access]\nxyz = []"),
            "5: service[0].access: unknown key `xyz`; expected one of `allow`, `deny`",
        ),
        (
            &format!("{service}max-connections = 5"),
            "4: service[0]: `max-connections` belongs in `limits`",
        ),
        (
            &format!("{service}log-connections = true"),
            "4: service[0].log-connections: invalid type: boolean, expected one of `all`, `failed`, `none`",
        ),
        (
            &format!("{service}component = 2020-01-01"),
            "4: service[0].component: invalid type: date or time, which no key takes; put text in quotes",
        ),
        (
            &format!("{service}grants.env = {{ \"\" = \"x\" }}"),
            "4: service[0].grants.env.: the name of the variable is empty; expected KEY = \"VALUE\"",
        ),
        (
            &format!("{service}limits = {{ max-memory = \"lots\" }}"),
            "4: service[0].limits.max-memory: invalid value `lots`: expected a size with a unit from \
             64KiB to 4GiB, such as 512KiB or 64MiB",
        ),
        (
            &format!("{service}limits = {{ idle-timeout = 5 }}"),
            "4: service[0].limits.idle-timeout: invalid type: integer, expected a string such as \"30s\"",
        ),
        (
            &format!("log = {{ level = \"inof\" }}\n{service}"),
            "1: log.level: unknown value `inof`; did you mean `info`?",
        ),
        (
            &format!("{service}watch = true"),
            "4: service[0].watch: requires `component` or `middleware` to be set",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = []",
            "3: service[0].listen: the list is empty; expected at least one address",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = [\"localhost\"]",
            "3: service[0].listen[0]: invalid value `localhost`: expected ADDRESS:PORT with a numeric \
             address (such as 127.0.0.1:8080 or [::1]:8080), unix:PATH, unix:@NAME or inherited:NAME",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = [{ adress = \"127.0.0.1:1\" }]",
            "3: service[0].listen[0]: unknown key `adress`; did you mean `address`?",
        ),
        (
            &format!("{service}{}", service.replace(":1", ":2")),
            "5: service[1].name: another service is already named `a`; choose a different name",
        ),
        (
            &format!("{service}{}", service.replace("\"a\"", "\"b\"")),
            "6: service[1].listen[0]: 127.0.0.1:1 conflicts with 127.0.0.1:1 of service `a`; choose another address",
        ),
        (
            &format!("{service}isolation = \"service\"\nlimits = {{ max-cpu-time = \"1s\" }}"),
            "5: service[0].limits.max-cpu-time: the CPU time of one connection cannot be measured in a \
             shared instance; remove this setting or `isolation = \"service\"`",
        ),
        (
            &format!("{service}isolation = \"service\"\nrecord = \"talks\""),
            "5: service[0].record: a conversation with a shared instance depends on other connections \
             and cannot be replayed; record without `isolation = \"service\"`",
        ),
        (
            &format!("{service}gate-patience = \"1m\""),
            "4: service[0].gate-patience: requires `gate` to be set",
        ),
        (
            &format!("{service}gate = \"talks\"\ngate-patience = \"0s\""),
            "5: service[0].gate-patience: invalid value `0s`: expected a time above zero",
        ),
        (
            &format!(
                "[[service]]\nname = \"a\"\nlisten = [\"unix:{}\"]",
                "x".repeat(103)
            ),
            "3: service[0].listen[0]: the socket path has 108 bytes; the limit is 107; choose a shorter path",
        ),
        (
            &format!("{service}grants = {{ env = {{ PROTO = \"a\" }} }}"),
            "4: service[0].grants.env.PROTO: the host sets the variable `PROTO` for each connection; \
             choose another name",
        ),
        (
            &format!("{service}[service.grants.env]\n\"A=B\" = \"a\""),
            "5: service[0].grants.env.A: the name of a variable that starts with `A` contains `=`; \
             expected KEY = \"VALUE\"",
        ),
        (
            &format!("{service}[service.grants.env]\nA = \"\"\nB = \"\\u0000\""),
            "6: service[0].grants.env.B: a NUL byte would end the text for the guest; remove it",
        ),
        (
            &format!("{service}args = [\n\"a\",\n\"\\u0000\",\n]"),
            "6: service[0].args[1]: a NUL byte would end the text for the guest; remove it",
        ),
        (
            &format!("{service}[service.grants]\ndirs = [\"a::/x\", \"b::/x\"]"),
            "5: service[0].grants.dirs: two directories are called `/x` in the guest; rename one of the \
             two",
        ),
        (
            &format!("{service}\n\ninstances = 2"),
            "6: service[0].instances: requires `isolation = \"service\"`; otherwise each connection has \
             its own instance",
        ),
        (
            &format!("{service}component = \"oci://example.org/a:1\""),
            "4: service[0].component: `oci://` references are not supported; expected the path of a file; \
             download the component first",
        ),
        (
            &format!("cache = \"\"\n{service}"),
            "1: cache: the path is empty; expected a directory, or `off`",
        ),
        (
            &format!("{service}socket = {{ mode = \"0600\" }}"),
            "4: service[0].socket.mode: has no effect here: a TCP socket has no file; remove the key",
        ),
        (
            "[[service]]\nname = \"a\"\n[[service.listen]]\naddress = \"unix:a\"\n\
             socket.dual-stack = true",
            "5: service[0].listen[0].socket.dual-stack: has no effect here: a Unix socket has no TCP \
             options; remove the key",
        ),
        (
            "[[service]]\nname = \"a\"\n[[service.listen]]\naddress = \"unix:a\"\n\
             socket.send-buffer = \"64KiB\"",
            "5: service[0].listen[0].socket.send-buffer: has no effect here: connections of a Unix socket \
             have the default buffers of the kernel; remove the key",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = [\"[::ffff:192.0.2.1]:80\"]\nsocket.dual-stack = false",
            "4: service[0].socket.dual-stack: a socket for IPv6 alone cannot have [::ffff:192.0.2.1]:80, \
             which is an address of IPv4; choose 192.0.2.1:80, or remove this setting",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = [\"unix:a\"]\naccess = { deny = [\"::1\"] }",
            "4: service[0].access.deny: has no effect here: clients of a Unix socket have no network \
             address; remove the key",
        ),
        (
            &format!(
                "{service}[service.access]\nallow = [\"192.0.2.0/24\", \"::1\"]\ndeny = [\"192.0.2.7\", \"::1\"]"
            ),
            "6: service[0].access.deny: the network ::1/128 is in `access.allow` too; remove it from one of \
             the two",
        ),
        (
            &format!(
                "defaults.access.deny = [\"::ffff:192.0.2.0/120\"]\n{service}access.allow = [\"192.0.2.0/24\"]"
            ),
            "1: defaults.access.deny: the network 192.0.2.0/24 is in `access.allow` too; remove it from one \
             of the two",
        ),
        (
            &format!("{service}gate = \"a\""),
            "4: service[0].gate: requires `component` or `middleware` to be set",
        ),
        (
            "[service]\nname = \"a\"\nlisten = [\"127.0.0.1:1\"]",
            "1: service: invalid type: a table, expected a list; write [[service]] instead of [service]",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = \"127.0.0.1:1\"",
            "3: service[0].listen: invalid type: string, expected a list; write [VALUE]",
        ),
        (
            "[[service]]\nname = \"a\"\n[service.listen]\naddress = \"127.0.0.1:1\"",
            "3: service[0].listen: invalid type: a table, expected a list; write [[service.listen]] \
             instead of [service.listen]",
        ),
        (
            &format!("{service}[service.grants.dirs]\nhost = \"/data\""),
            "4: service[0].grants.dirs: invalid type: a table, expected a list; write a list of texts, such \
             as [\"data::/data:rw\"]",
        ),
        (
            &format!("{service}args = {{ name = \"a\" }}"),
            "4: service[0].args: invalid type: a table, expected a list; write a list of texts, such as \
             [\"TEXT\"]",
        ),
        (
            &format!("{service}limits = 1"),
            "4: service[0].limits: invalid type: integer, expected a table",
        ),
        (
            &format!("{service}limits = [7]"),
            "4: service[0].limits: invalid type: a list, expected a table; write [service.limits] or \
             limits = { KEY = VALUE }",
        ),
        (
            &format!("log = [\"json\"]\n{service}"),
            "1: log: invalid type: a list, expected a table; write [log] or log = { KEY = VALUE }",
        ),
        (
            "service = [[\"a\"]]",
            "1: service[0]: invalid type: a list, expected a table; write [[service]]",
        ),
        (
            "service = \"a\"",
            "1: service: invalid type: string, expected a list; write [[service]]",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = [{ address = \"127.0.0.1:1\", tls = { certificate = \
             \"a\", key = \"b\", more = [[\"c\", \"d\"]] } }]",
            "3: service[0].listen[0].tls.more[0]: invalid type: a list, expected a table; write \
             { KEY = VALUE }",
        ),
        (
            &format!("admin = {{ listen = \"127.0.0.1:1\" }}\n{service}"),
            "1: admin.listen: 127.0.0.1:1 conflicts with 127.0.0.1:1 of service `a`; choose another \
             address",
        ),
        (
            &format!("admin = {{ listen = \"1\", token = \"\" }}\n{service}"),
            "1: admin.token: the path is empty; expected a path, or remove the key; 1: admin.listen: \
             127.0.0.1:1 conflicts with 127.0.0.1:1 of service `a`; choose another address",
        ),
        (
            &format!("admin = {{ listen = \"unix:x\", token = \"./x\" }}\n{service}"),
            "1: admin.token: the path conflicts with unix:/etc/x of the admin interface; choose another path",
        ),
        (
            &format!("admin = {{ listen = \"9\", token = \"talks\" }}\n{service}record = \"talks/\""),
            "1: admin.token: the path conflicts with `record` of service `a`; choose another path",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = [\"unix:/x\"]\n\
             [[service]]\nname = \"b\"\nlisten = [\"127.0.0.1:1\"]\nrecord = \"/usr/../x\"\n",
            "7: service[1].record: the path conflicts with unix:/x of service `a`; choose another path",
        ),
        (
            &format!("{service}record = \"\""),
            "4: service[0].record: the path is empty; expected a path, or remove the key",
        ),
        (
            &format!("{service}drain-generations = \"1m\""),
            "4: service[0].drain-generations: requires `component` or `middleware` to be set",
        ),
        (
            &format!("{service}grants = {{ dirs = [\"a::/data\", \"b::./data/\"] }}"),
            "4: service[0].grants.dirs: `/data` and `./data/` are the same directory in the guest; \
             rename one of the two",
        ),
        (
            "[[service]]\nname = \"a\"\nlisten = [{ address = \"127.0.0.1:1\", tls = { certificate = \
             \"a\", key = \"b\", more = [{ certificate = \"a\", key = \"b\" }], alpn = [\"h2\", \"h2\"] } }]",
            "3: service[0].listen[0].tls.alpn: the protocol `h2` is given twice; remove one of the two; \
             3: service[0].listen[0].tls.more: the certificate `/etc/a` is given twice; remove one of \
             the two",
        ),
        (
            &format!("{service}watch = 1"),
            "4: service[0].watch: invalid type: integer, expected true or false",
        ),
        (
            &format!("{service}limits = {{ max-connections = 0 }}"),
            "4: service[0].limits.max-connections: invalid value `0`: no connection could be served; \
             expected a number above zero",
        ),
        // Everything that is wrong is said.
        (
            "cache = \"\"\n[[service]]\nname = \"a\"\nlisten = []\nwatch = true",
            "1: cache: the path is empty; expected a directory, or `off`; 4: service[0].listen: the list \
             is empty; expected at least one address; 5: service[0].watch: requires `component` or \
             `middleware` to be set",
        ),
    ] {
        assert_eq!(problem(text), expected, "{text}");
    }
}

#[test]
fn all_keys_and_values_that_are_refused_are_reported() {
    let text = r#"threads = "many"
drain-timeout = "x"
xyz = "red"
cache = ""

[[service]]
name = "a"
component = 5
watch = true
listen = ["127.0.0.1:1", "here", "127.0.0.1:2", "there"]
limits = { idle-timeout = "q", max-memory = "z" }
access = { allow = ["x", "::1", "y"] }

[[service]]
nmae = "b"
listen = []

[[service]]
name = "a b"
listen = 5

[[service]]
name = "d"
listen = ["127.0.0.1:3"]
watch = true
"#;
    let problems = parse(text, Path::new("/etc")).unwrap_err();
    let expected = [
        "1: threads: invalid value `many`: expected",
        "2: drain-timeout: invalid value `x`: expected",
        "3: unknown key `xyz`; expected one of",
        "4: cache: the path is empty",
        "8: service[0].component: invalid type: integer, expected a path in quotes",
        "10: service[0].listen[1]: invalid value `here`: expected",
        "10: service[0].listen[3]: invalid value `there`: expected",
        "11: service[0].limits.idle-timeout: invalid value `q`: expected",
        "11: service[0].limits.max-memory: invalid value `z`: expected",
        "12: service[0].access.allow[0]: invalid value `x`: expected",
        "12: service[0].access.allow[2]: invalid value `y`: expected",
        // No other check is made of a service whose values are not all known.
        "15: service[1]: unknown key `nmae`; did you mean `name`?",
        "19: service[2].name: invalid value `a b`: expected",
        "20: service[2].listen: invalid type: integer, expected a list",
        "25: service[3].watch: requires `component` or `middleware` to be set",
    ];
    let found: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}: {expected}");
    }
}

#[test]
fn errors_that_are_not_shown_are_mentioned() {
    let service = |number: usize| {
        format!("[[service]]\nname = \"{number}\"\nlisten = [\"127.0.0.1:{number}\"]\nwatch = 1\n")
    };
    let problems = |count: usize| {
        let text: String = (1..=count).map(service).collect();
        parse(&text, Path::new("/etc")).unwrap_err().0
    };
    let all = problems(100);
    assert_eq!(all.len(), 100);
    assert!(
        all.iter()
            .all(|problem| problem.to_string().contains("invalid type"))
    );
    let part = problems(102);
    assert_eq!(part.len(), 101);
    assert_eq!(
        part[100].to_string(),
        "400: further errors are not shown; correct those above first"
    );
}

#[test]
fn a_value_of_the_defaults_that_is_refused_is_not_missing_in_the_services() {
    let text = "[defaults.grants]\ndirs = [\"nowhere\"]\n[[service]]\nname = \"a\"\n\
                listen = [\"127.0.0.1:1\"]\nwatch = true\nthreads = 1\n";
    let problems = problem(text);
    assert!(
        problems.starts_with("2: defaults.grants.dirs[0]: invalid value `nowhere`: ")
            && problems.contains("; 7: service[0]: `threads` belongs at the top of the file")
            && !problems.contains("requires"),
        "{problems}"
    );
}

#[test]
fn rules_of_access_in_the_defaults_are_for_services_whose_clients_have_an_address() {
    let text = "[defaults.access]\nallow = [\"127.0.0.0/8\"]\n\
                [[service]]\nname = \"tcp\"\nlisten = [\"127.0.0.1:1\", \"unix:a\"]\n\
                [[service]]\nname = \"unix\"\nlisten = [\"unix:b\", \"unix:@c\"]\n\
                [[service]]\nname = \"proxied\"\nlisten = [{ address = \"unix:d\", \
                proxy-protocol = { from = [\"::1\"] } }]\n";
    let config = parse(text, Path::new("/etc")).unwrap();
    let rules: Vec<_> = config
        .services
        .iter()
        .map(|service| service.access.allow.len())
        .collect();
    assert_eq!(rules, [1, 0, 1]);
    let printed = print(&config).unwrap();
    assert_eq!(parse(&printed, Path::new("/")).unwrap(), config, "{printed}");
}

#[test]
fn no_list_stands_in_place_of_a_table() {
    let whole: toml::Value = toml::from_str(WHOLE).unwrap();
    let mut found = Vec::new();
    keys(&whole, &[], &mut found);
    let mut count = 0;
    for path in found {
        let mut file = whole.clone();
        let value = at(&mut file, &path);
        if !value.is_table() {
            continue;
        }
        *value = toml::Value::Array(Vec::new());
        count += 1;
        let problem = problem(&toml::to_string(&file).unwrap());
        let (expected, key) = ("expected a ", path.last().unwrap());
        assert!(
            problem.contains("invalid type: ")
                && problem.contains(expected)
                && problem.contains(key.as_str()),
            "{path:?}: {problem}"
        );
    }
    assert!(count >= 12, "{count}");
}

/// What the schema says of a text: whether it is one.
fn is_valid(schema: &Validator, text: &str) -> bool {
    let value: toml::Table = toml::from_str(text).unwrap();
    let value = serde_json::to_value(value).unwrap();
    schema.is_valid(&value)
}

/// The schema, ready to be asked. Its patterns take some time to compile.
fn validator() -> Validator {
    jsonschema::validator_for(&serde_json::from_str(&schema()).unwrap()).unwrap()
}

/// Every key that stands in a table, with the path that leads to it.
fn keys(value: &toml::Value, path: &[String], found: &mut Vec<Vec<String>>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = [path, std::slice::from_ref(key)].concat();
                keys(value, &path, found);
                found.push(path);
            }
        }
        toml::Value::Array(array) => {
            for (index, value) in array.iter().enumerate() {
                keys(value, &[path, &[index.to_string()]].concat(), found);
            }
        }
        _ => {}
    }
}

/// What stands at a path.
fn at<'a>(value: &'a mut toml::Value, path: &[String]) -> &'a mut toml::Value {
    path.iter().fold(value, |value, key| match value {
        toml::Value::Array(array) => &mut array[key.parse::<usize>().unwrap()],
        value => &mut value[key.as_str()],
    })
}

#[test]
fn the_schema_has_the_ranges_of_the_host() {
    let schema = validator();
    let check = |text: &str| {
        let accepted = parse(text, Path::new("/etc"));
        let valid = is_valid(&schema, text);
        assert_eq!(valid, accepted.is_ok(), "{text}\n{accepted:?}");
        valid
    };
    let service = "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:9\"]\n";
    // Pairs of values, the first of which is accepted, and the second refused.
    let pairs = |before: &str, key: &str, pairs: &[(&str, &str)]| {
        for (good, bad) in pairs {
            for (value, expected) in [(good, true), (bad, false)] {
                let text = format!("{before}{key} = {value}\n");
                assert_eq!(check(&text), expected, "{text}");
            }
        }
    };
    assert!(check(service));
    for text in [
        "service = []\n",
        &service.replace("[\"127.0.0.1:9\"]", "[]"),
        &format!("{service}watch = true\n"),
        &format!("{service}middleware = []\nwatch = true\n"),
        &format!("{service}middleware = []\ngate = \"a\"\n"),
        &format!("{service}middleware = []\ndrain-generations = \"1s\"\n"),
        &format!("{service}preinit = true\n"),
        &format!("{service}migrate = true\n"),
        &format!("{service}gate = \"a\"\n"),
        &format!("{service}component = \"a\"\ngate-patience = \"1s\"\n"),
        &format!("{service}instances = 2\n"),
        &format!("{service}isolation = \"connection\"\ninstances = 2\n"),
        &format!("defaults.isolation = \"connection\"\n{service}instances = 2\n"),
        &format!("defaults.isolation = \"service\"\n{service}isolation = \"connection\"\ninstances = 2\n"),
        &format!("{service}record = \"\"\n"),
        &format!("{service}component = \"a\"\ngate = \"\"\n"),
        &format!("{service}grants.dirs = [\"/tmp::rw\"]\n"),
        &format!("{service}grants = {{ env = {{ \"\" = \"a\" }} }}\n"),
        &format!("{service}grants = {{ env = {{ \"A=\" = \"a\" }} }}\n"),
        &format!("{service}grants = {{ env = {{ \"A\\u0000\" = \"a\" }} }}\n"),
        &format!("{service}grants = {{ env = {{ A = \"a\\u0000\" }} }}\n"),
        &format!("{service}args = [\"a\\u0000\"]\n"),
        &format!("{service}grants.dirs = [\"a\\u0000::/b\"]\n"),
        &format!("{service}grants.dirs = [\"a::/b\\u0000\"]\n"),
        &format!("{service}grants = {{ env = {{ TCPREMOTEIP = \"a\" }} }}\n"),
    ] {
        assert!(!check(text), "{text}");
    }
    for text in [
        "watch = false",
        "middleware = []",
        "middleware = []\ncomponent = \"a\"\nwatch = true",
        "middleware = [\"a\"]\nwatch = true",
        "component = \"a\"\nwatch = true\nmigrate = true\ngate = \"a\"",
    ] {
        assert!(check(&format!("{service}{text}\n")), "{text}");
    }
    for text in [
        format!("{service}isolation = \"service\"\ninstances = 2\n"),
        format!("defaults.isolation = \"service\"\n{service}instances = 2\n"),
        format!("{service}component = \"a\"\ngate = \"a\"\ngate-patience = \"1s\"\n"),
    ] {
        assert!(check(&text), "{text}");
    }
    let of_service = |key: &str, list: &[(&str, &str)]| pairs(service, key, list);
    let top = |key: &str, list: &[(&str, &str)]| {
        for (good, bad) in list {
            assert!(check(&format!("{key} = {good}\n{service}")), "{key} {good}");
            assert!(!check(&format!("{key} = {bad}\n{service}")), "{key} {bad}");
        }
    };
    top(
        "threads",
        &[
            ("1", "0"),
            ("1024", "1025"),
            ("\"7\"", "5000"),
            ("\"1024\"", "\"1025\""),
            ("2", "1.5"),
            ("1e2", "-1"),
        ],
    );
    top(
        "drain-timeout",
        &[
            ("\"0s\"", "\"off\""),
            ("\"1m 30s\"", "\"1\""),
            ("\"1.5h\"", "\"1x\""),
            ("\"0\"", "\"00\""),
            ("\"2days\"", "\"\""),
            ("\"1.0s\"", "\"1.s\""),
            ("\"1.123us\"", "\"1.1234us\""),
            ("\"1.1230us\"", "\"1.12301us\""),
            ("\"1.123456ms\"", "\"1.1234567ms\""),
            ("\"1.123456789s\"", "\"1.1234567891s\""),
            ("\"1m 0.5s\"", "\"1m 0.5ns\""),
            ("\"0 . 1 2 s\"", "\"0.0ns\""),
            ("\"0.25h\"", "\"1. h\""),
        ],
    );
    top("cache", &[("\"off\"", "\"\"")]);
    top(
        "admin.listen",
        &[
            ("\"0\"", "\"x\""),
            ("\"[::1]:1\"", "\"inherited:a\""),
            ("\"unix:a\"", "\"unix:@a\""),
            ("\"65535\"", "\"99999\""),
            ("\"007\"", "\"+7\""),
            ("\"0.0.0.0:1\"", "\"224.0.0.1:1\""),
        ],
    );
    top(
        "otlp",
        &[
            (
                "{ endpoint = \"http://a\", sample = 0 }",
                "{ endpoint = \"https://a\" }",
            ),
            (
                "{ endpoint = \"http://a\", sample = -0.0 }",
                "{ endpoint = \"http://a\", sample = -0.5 }",
            ),
            (
                "{ endpoint = \"http://a\", sample = 1.0 }",
                "{ endpoint = \"http://a\", sample = 2 }",
            ),
            (
                "{ endpoint = \"http://a\", sample = \"0.5\" }",
                "{ endpoint = \"http://a\", sample = -0.1 }",
            ),
            ("{ endpoint = \"HTTP://a\" }", "{ endpoint = \"http://a:99999\" }"),
            (
                "{ endpoint = \"http://[::1]:1/a\" }",
                "{ endpoint = \"http://a:+1\" }",
            ),
            (
                "{ endpoint = \"http://a:65535/\" }",
                "{ endpoint = \"http://a/v1/traces\" }",
            ),
            (
                "{ endpoint = \"http://a\", sample = \"1.\" }",
                "{ endpoint = \"http://a\", sample = \"+0.5\" }",
            ),
            (
                "{ endpoint = \"http://a\", sample = \".5\" }",
                "{ endpoint = \"http://a\", sample = \"1e-1\" }",
            ),
            ("{ endpoint = \"http://a\" }", "{ endpoint = \"http://a?b\" }"),
            ("{ endpoint = \"http://[::1]\" }", "{ endpoint = \"http://[x]\" }"),
            (
                "{ endpoint = \"http://[::]:1\" }",
                "{ endpoint = \"http://[:::]\" }",
            ),
            (
                "{ endpoint = \"http://a_b!\" }",
                "{ endpoint = \"http://a%20b\" }",
            ),
            (
                "{ endpoint = \"http://a/{b}\" }",
                "{ endpoint = \"http://a/<b>\" }",
            ),
        ],
    );
    of_service("component", &[("\"a\"", "\"\""), ("\"a:b/c\"", "\"oci://a\"")]);
    of_service("middleware", &[("[\"a\"]", "[\"https://a\"]")]);
    of_service(
        "grants.dirs",
        &[
            ("[\"a::/b\"]", "[\"a\"]"),
            ("[\"a::/b:rw\"]", "[\"a::\"]"),
            ("[\"a::/b:ro\"]", "[\"a::/b:RW\"]"),
            ("[\"../a::/b\"]", "[\"a::/b:ro:rw\"]"),
            ("[\"a:b::c\"]", "[\"::/b\"]"),
            ("[\"a::/b..\"]", "[\"a::/b:c\"]"),
            ("[\"a::..b/c\"]", "[\"a::b::c\"]"),
            ("[\"a::b\"]", "[\"a::/b/../c:rw\"]"),
            ("[\"a::rwx\"]", "[\"a::..\"]"),
            ("[\"a::/b\", \"a::/c\"]", "[\"a::/b\", \"a::/b\"]"),
        ],
    );
    of_service(
        "grants.allow-outbound",
        &[
            ("[\"a:1\"]", "[\"a:0\"]"),
            ("[\"[::1]:65535\"]", "[\"a:65536\"]"),
            ("[\"a:80\"]", "[\"a\"]"),
            ("[\"a:080\"]", "[\"a:+1\"]"),
            ("[\"a b:80\"]", "[\"postgres://user@a:80\"]"),
            ("[\"::1:80\"]", "[\"user@a:80\"]"),
            ("[\"a&b:80\"]", "[\"a?password=b:80\"]"),
            ("[\"a:1\"]", "[\"a#b:80\"]"),
        ],
    );
    of_service(
        "access.allow",
        &[
            ("[\"::/0\"]", "[\"everyone\"]"),
            ("[\"10.0.0.0/8\"]", "[\"10.0.0.0/33\"]"),
            ("[\"0.0.0.0/0\"]", "[\"010.0.0.0/8\"]"),
            ("[\"::1/128\"]", "[\"::1/129\"]"),
            ("[\"10.0.0.1/032\"]", "[\"10.0.0.1/\"]"),
            ("[\"FE80::/10\"]", "[\"10.0.0.256\"]"),
            ("[\"10.0.0.1\"]", "[\"10/8\"]"),
            ("[\"::\"]", "[\"127.0.0.1:0\"]"),
            ("[\"1:2:3:4:5:6:7:8\"]", "[\"1:2:3:4:5:6:7\"]"),
            ("[\"1::8\"]", "[\"1:2:3:4:5:6:7:8:9\"]"),
            ("[\"1:2:3:4:5:6:7::\"]", "[\"1:2:3:4:5:6:7:8::\"]"),
            ("[\"::2:3:4:5:6:7:8\"]", "[\"1::3::5\"]"),
            ("[\"1:2:3:4:5:6:1.2.3.4\"]", "[\"1:2:3:4:5:6:7:1.2.3.4\"]"),
            ("[\"::ffff:192.0.2.1\"]", "[\"::ffff:192.0.2.256\"]"),
            ("[\"2001:db8::/32\"]", "[\"[2001:db8::]/32\"]"),
            ("[\"ABCD::\"]", "[\"12345::\"]"),
            ("[\"1:2:3::7:8\"]", "[\"1:2:3:::7:8\"]"),
            ("[\"::1.2.3.4\"]", "[\"1.2.3.4::\"]"),
        ],
    );
    of_service(
        "socket.backlog",
        &[("1", "0"), ("65535", "70000"), ("\"9\"", "\"x\"")],
    );
    of_service("socket.keepalive", &[("\"off\"", "\"0s\""), ("\"1m\"", "\"on\"")]);
    of_service(
        "socket.send-buffer",
        &[("\"4KiB\"", "\"0\""), ("\"off\"", "\"4 zibibyte\"")],
    );
    let unix = "[[service]]\nname = \"a\"\nlisten = [\"unix:a\"]\n";
    pairs(
        unix,
        "socket.mode",
        &[
            ("\"660\"", "\"888\""),
            ("\"00777\"", "\"1777\""),
            ("\"0\"", "\"\""),
        ],
    );
    pairs(
        unix,
        "socket.owner",
        &[
            ("\"a\"", "\"\""),
            ("\":b\"", "\"a:\""),
            ("\"a:b\"", "\"a:b:c\""),
            ("\"0\"", "\"4294967295\""),
            ("\"4294967294:007\"", "\"root:4294967295\""),
            ("\":04294967294\"", "\":04294967295\""),
            ("\"4294967295a\"", "\"4294967296:b\""),
            ("\"+1\"", "\"99999999999\""),
        ],
    );
    of_service(
        "limits",
        &[
            ("{ max-connections = 1 }", "{ max-connections = 0 }"),
            ("{ max-connections = \"7\" }", "{ max-connections = \"off\" }"),
            ("{ max-connections = 1e3 }", "{ max-connections = 1e-3 }"),
            ("{ max-rate = 10.0 }", "{ max-rate = -0.0 }"),
            (
                "{ max-connections = 1000000000 }",
                "{ max-connections = 1000000001 }",
            ),
            (
                "{ max-connections-per-source = \"off\" }",
                "{ max-connections-per-source = 0 }",
            ),
            ("{ max-rate = \"7/h\" }", "{ max-rate = \"7/d\" }"),
            ("{ max-rate = 1000000 }", "{ max-rate = 1000001 }"),
            ("{ max-rate = \"off\" }", "{ max-rate = \"0/s\" }"),
            ("{ max-rate = \"5\" }", "{ max-rate = \"+5\" }"),
            ("{ max-connections = \"5\" }", "{ max-connections = \"+5\" }"),
            ("{ max-bytes-in = \".5GiB\" }", "{ max-bytes-in = \"5.GiB\" }"),
            ("{ max-bytes-in = \"64\" }", "{ max-bytes-in = \"+64\" }"),
            ("{ max-memory = \"1.5 GiB\" }", "{ max-memory = \"lots\" }"),
            ("{ max-memory = \"65536\" }", "{ max-memory = \"off\" }"),
            ("{ max-memory = \"64KiB\" }", "{ max-memory = \"0\" }"),
            ("{ cpu-slice = \"1ms\" }", "{ cpu-slice = \"off\" }"),
            ("{ idle-timeout = \"off\" }", "{ idle-timeout = \"0ms\" }"),
            ("{ max-bytes-in = \"10MB\" }", "{ max-bytes-in = \"0\" }"),
        ],
    );
    of_service(
        "isolation = \"service\"\ninstances",
        &[("\"cores\"", "0"), ("1024", "1025")],
    );
    for (good, bad) in [
        ("[fe80::1%lo]:80", "localhost:80"),
        ("[fe80::1%1]:80", "[fe80::1]:80"),
        ("[fec0::1]:80", "[FEBF::1]:80"),
        ("unix:a", "unix:"),
        ("unix:@a", "inherited:"),
        ("[fe80::1%1]:0", "127.0.0.1"),
        ("127.0.0.1:65535", "127.0.0.1:65536"),
        ("127.0.0.1:00080", "127.0.0.1:+80"),
        ("0.0.0.0:0", "255.255.255.255:0"),
        ("223.0.0.1:1", "239.0.0.1:1"),
        ("[::1]:1", "[ff02::1]:1"),
        ("[::1.2.3.4]:1", "[::1%lo]:1"),
        ("[1:2:3:4:5:6:7:8]:1", "[1:2:3:4:5:6:7:8:9]:1"),
        ("[::ffff:127.0.0.1]:1", "[::ffff:224.0.0.1]:1"),
        ("[::ffff:7f00:1]:1", "[::ffff:e000:1]:1"),
        ("[0::ffff:127.0.0.1]:1", "[0:0:0:0:0:ffff:224.0.0.1]:1"),
        ("[::ffff:ffff:fffe]:1", "[::ffff:ffff:ffff]:1"),
        ("[::ffff:e000:1:2]:1", "[0::ffff:efff:1]:1"),
        ("[::]:1", "[:::]:1"),
        ("[::1]:1", "[127.0.0.1]:1"),
        ("127.0.0.1:1", "127.0.0.256:1"),
        ("unix:a b", "unix:a\\nb"),
        ("unix:@a b", "unix:@a\\nb"),
        ("inherited:a", "inherited:a\\nb"),
        ("unix:@a", "unix:@"),
        (
            &*format!("unix:/{}", "a".repeat(106)),
            &*format!("unix:{}", "a".repeat(108)),
        ),
        (
            &*format!("unix:@{}", "a".repeat(107)),
            &*format!("unix:@{}", "a".repeat(108)),
        ),
    ] {
        let text = |address: &str| format!("[[service]]\nname = \"a\"\nlisten = [\"{address}\"]\n");
        assert!(check(&text(good)), "{good}");
        assert!(!check(&text(bad)), "{bad}");
    }
    let table = |more: &str| {
        format!("[[service]]\nname = \"a\"\n[[service.listen]]\naddress = \"127.0.0.1:9\"\n{more}\n")
    };
    for (good, bad) in [
        ("proxy-protocol.from = [\"::1\"]", "proxy-protocol.from = []"),
        (
            "tls = { certificate = \"a\", key = \"b\", client-ca = \"c\", client-optional = true }",
            "tls = { certificate = \"a\", key = \"b\", client-optional = true }",
        ),
        (
            "tls = { certificate = \"a\", key = \"b\", alpn = [\"h2\"] }",
            "tls = { certificate = \"a\", key = \"b\", alpn = [\"\"] }",
        ),
        (
            "tls = { certificate = \"a\", key = \"b\", alpn = [\"h2\", \"http/1.1\"] }",
            "tls = { certificate = \"a\", key = \"b\", alpn = [\"h2\", \"h2\"] }",
        ),
        (
            "tls = { certificate = \"a\", key = \"b\", alpn = [\"http/1.1\", \"é =\"] }",
            "tls = { certificate = \"a\", key = \"b\", alpn = [\"x\\u0000A=b\"] }",
        ),
        (
            "tls = { certificate = \"a\", key = \"b\" }",
            "tls = { certificate = \"a\", key = \"b\", alpn = [\"h2\\n\"] }",
        ),
        (
            "tls = { certificate = \"a\", key = \"b\" }",
            "tls = { certificate = \"a\", key = \"b\", alpn = [\"\\u0085\"] }",
        ),
        (
            "tls = { certificate = \"a\", key = \"b\", timeout = \"1s\" }",
            "tls = { certificate = \"a\", key = \"b\", timeout = \"0s\" }",
        ),
    ] {
        assert!(check(&table(good)), "{good}");
        assert!(!check(&table(bad)), "{bad}");
    }
    for (good, bad) in [("a-b_c.9", "a b"), ("x", "")] {
        assert!(check(&table(&format!("name = \"{good}\""))), "{good}");
        assert!(!check(&table(&format!("name = \"{bad}\""))), "{bad}");
        assert!(check(&service.replace("\"a\"", &format!("\"{good}\""))), "{good}");
        assert!(!check(&service.replace("\"a\"", &format!("\"{bad}\""))), "{bad}");
    }
}

#[test]
fn the_schema_has_the_ranges_of_values_with_units() {
    let schema = validator();
    let service = "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:9\"]\n";
    let mut refused = 0;
    for (key, values) in [
        (
            "limits.max-memory",
            "0 4294967296 4294967297 4GiB 04GiB 5GiB 4.0GiB 4.5GiB 3.9GiB .5gi 4096Mi 4097MiB 4294MB 4295MB \
             4GB 5GB 4.2GB 4194304k 4294967k 4294968k 1TiB 0.001T 4294967296B 4294967297B 1E",
        ),
        (
            "socket.receive-buffer",
            "off 4095 4096 4KiB 3KiB 4kB 5kB 1GiB 2GiB 1.0GiB 1.5GiB 1GB 2GB 1024MiB 1025MiB 1073741824 \
             1073741825 0.5MiB 1T 100B",
        ),
        (
            "socket.keepalive",
            "off 1s 0s 32767s 32768s 1sec 999ms 1000ms 32767000ms 32767001ms 546m 547m 9h 10h 1day 1w 1M \
             1y 1000000us 999999us 1000000000ns 1ns",
        ),
        (
            "limits.cpu-slice",
            "1ms 999us 1000us 1s 2s 1000ms 1001ms 1m 1000000ns 999999ns 0s 1h30m 1m1ms 2s1ms 500ms1us \
             1001ms1us 1.5s 1.0s 0.5s 2.5s 1.5ms 1s0ms 0m1s 1.5m 1d1ns",
        ),
        (
            "limits.max-bytes-in",
            "off 0 1 18446744073709551615 18446744073709551616 18446744073709551616B 0B 00 0.5KiB 1.5KiB 0KiB \
             16EiB 99EiB 1E 0.0KiB 007 20000000000000000000 1.0B",
        ),
        (
            "limits.max-call-time",
            "off 1ms 999us 1000us 1s 1d 1y 999999ns 1000000ns 0s 00001ms",
        ),
        (
            "access.allow",
            "192.0.2.0/24 192.0.2.1/24 192.0.2.1/32 192.0.2.1 192.0.2.128/25 192.0.2.64/25 10.0.0.0/8 \
             10.1.0.0/8 0.0.0.0/0 1.0.0.0/0 172.16.0.0/12 172.24.0.0/12 192.0.2.254/31 192.0.2.255/31 \
             255.255.255.255/32 128.0.0.0/1 64.0.0.0/1 192.0.2.0/024 192.0.2.0/33 ::/0 2001:db8::/32",
        ),
    ] {
        for value in values.split_whitespace() {
            let value = match key {
                "access.allow" => format!("[\"{value}\"]"),
                _ => format!("\"{value}\""),
            };
            let text = format!("{service}{key} = {value}\n");
            let accepted = parse(&text, Path::new("/etc"));
            assert_eq!(is_valid(&schema, &text), accepted.is_ok(), "{text}\n{accepted:?}");
            refused += usize::from(accepted.is_err());
        }
    }
    // Spaces in numbers have no meaning.
    for (key, values) in [
        (
            "limits.max-call-time",
            &[
                "1 2s",
                " 1 0 0 ms ",
                "9 9 9us",
                "1 0 0 0us",
                "0 0s",
                "0 1ms",
                "1 . 5 s",
            ][..],
        ),
        (
            "limits.cpu-slice",
            &[
                "1 0 ms",
                "1 0 0 0 ms",
                "1 0 0 1 ms",
                "0 1 s",
                "1 . 0 s",
                "1 . 0 1 s",
                "0 . 5 s",
                "2 ms 1 0 0 1 ms",
            ],
        ),
        (
            "socket.keepalive",
            &[
                "1 0s",
                "3 2767s",
                "3 2 7 6 8 s",
                "0 s",
                "1m 3 0s",
                "1 1 h 1s",
                "9 9 9ms",
                "1 0 0 0 ms",
            ],
        ),
    ] {
        for value in values {
            let text = format!("{service}{key} = \"{value}\"\n");
            let accepted = parse(&text, Path::new("/etc"));
            assert_eq!(is_valid(&schema, &text), accepted.is_ok(), "{text}\n{accepted:?}");
            refused += usize::from(accepted.is_err());
        }
    }
    assert!(refused > 50, "{refused}");
    for value in "off 0 1 64KiB 1MiB 63MiB 64MiB 67108863 67108864 0067108864 66MB 67MB 68MB 0.5MiB 63.9MiB 64.5MiB \
                  0.5GiB 1GiB 1.5GiB 0.0GiB 18446744073709551615 18446744073709551616 99EiB 65535k 65536Ki 65535Ki"
        .split_whitespace()
    {
        let text = format!("max-compile-memory = \"{value}\"\n{service}");
        let accepted = parse(&text, Path::new("/etc"));
        assert_eq!(is_valid(&schema, &text), accepted.is_ok(), "{text}\n{accepted:?}");
    }
    // What is beyond a pattern is accepted, and left to the host.
    for (key, value) in [
        ("limits.cpu-slice", "\"1s 500ms\""),
        ("limits.idle-timeout", "\"0.001h\""),
        ("socket.keepalive", "\"9h 30m\""),
        ("access.allow", "[\"2001:db8::1/32\"]"),
    ] {
        let text = format!("{service}{key} = {value}\n");
        assert!(
            is_valid(&schema, &text) && parse(&text, Path::new("/etc")).is_err(),
            "{text}"
        );
    }
}

#[test]
fn the_interface_of_an_address_is_printed_by_its_name() {
    for (address, printed) in [
        ("[fe80::1%lo]:80", "[fe80::1%lo]:80"),
        ("[fe80::1%1]:80", "[fe80::1%lo]:80"),
        // There is no such interface.
        ("[fe80::1%999999]:80", "[fe80::1%999999]:80"),
        ("[::1]:80", "[::1]:80"),
    ] {
        let text = format!(
            "[admin]\nlisten = \"{address}\"\n[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:1\"]\n"
        );
        let config = parse(&text, Path::new("/")).unwrap();
        let file = print(&config).unwrap();
        assert!(file.contains(&format!("listen = \"{printed}\"")), "{file}");
        let service = text.replace(address, "1").replace("127.0.0.1:1", address);
        let file = print(&parse(&service, Path::new("/")).unwrap()).unwrap();
        assert!(file.contains(&format!("address = \"{printed}\"")), "{file}");
    }
}

#[test]
fn the_schema_takes_what_the_parser_takes() {
    let schema = validator();
    let config = parse(WHOLE, Path::new("/etc")).unwrap();
    let printed = print(&config).unwrap();
    let mut tried = 0;
    for whole in [WHOLE, &printed] {
        assert!(is_valid(&schema, whole));
        let value: toml::Value = toml::from_str(whole).unwrap();
        let mut found = Vec::new();
        keys(&value, &[], &mut found);
        for path in found {
            // In an environment every key is one.
            if path.iter().any(|key| key == "env") {
                continue;
            }
            let (key, parent) = path.split_last().unwrap();
            // Without the key, with it under another name, and with a value of another type.
            let without = |table: &mut toml::Table| table.remove(key);
            let changes: [&dyn Fn(&mut toml::Table); 3] = [
                &|table| drop(without(table)),
                &|table| {
                    let value = without(table).unwrap();
                    table.insert(format!("{key}x"), value);
                },
                &|table| drop(table.insert(key.clone(), toml::Value::Float(0.5))),
            ];
            for change in changes {
                let mut changed = value.clone();
                change(at(&mut changed, parent).as_table_mut().unwrap());
                let text = toml::to_string(&changed).unwrap();
                let is_read = toml::from_str::<File>(&text).is_ok();
                let is_refused = parse(&text, Path::new("/etc")).is_err();
                // The schema knows some keys that require others, which are checked after reading.
                match is_valid(&schema, &text) {
                    true => assert!(is_read, "{path:?}\n{text}"),
                    false => assert!(!is_read || is_refused, "{path:?}\n{text}"),
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 200, "{tried}");
}

#[test]
fn a_key_that_stands_twice_is_named() {
    for (text, expected) in [
        (
            "threads = 1\nthreads = 2\n",
            "2: duplicate key `threads`; remove one",
        ),
        ("[log]\n[admin]\n[log]\n", "3: duplicate key `log`; remove one"),
        (
            "[defaults.grants.env]\n\"A=s3cr3t\" = \"\"\n\"A=s3cr3t\" = \"\"\n",
            "3: duplicate key `A`; remove one",
        ),
        (
            "'A7qEjRWs3cr3t42xs3cr3t' = 1\n'A7qEjRWs3cr3t42xs3cr3t' = 1\n",
            "2: duplicate key (not shown); remove one",
        ),
    ] {
        let problems = parse(text, Path::new("")).unwrap_err().to_string();
        assert_eq!(problems, expected);
    }
}

#[test]
fn a_file_in_another_encoding_than_utf8_is_refused_with_its_name() {
    let path = std::env::temp_dir().join(format!("encoded-{}.toml", std::process::id()));
    let utf16: Vec<u8> = "threads = 1".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (text, encoding) in [
        (&utf16[..], "UTF-16"),
        (b"# \xfc", "Latin-1 or another encoding of 8 bits"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = read(&path).unwrap_err().to_string();
        let expected = format!("the file is encoded as {encoding}; save it as UTF-8");
        assert!(error.ends_with(&expected), "{error}");
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn no_problem_shows_a_secret() {
    let service = "[[service]]\nname = \"s\"\nlisten = [\"127.0.0.1:1\"]\n";
    let key = r#""""
-----BEGIN PRIVATE KEY-----
s3cr3tAQBwYDK2VwBCIEIHs3cr3t
-----END PRIVATE KEY-----
""""#;
    let tls = |key: &str| {
        format!(
            "[[service]]\nname = \"s\"\n[[service.listen]]\naddress = \"127.0.0.1:1\"\ntls = {{ {key} }}\n"
        )
    };
    for text in [
        format!("{service}grants = {{ env = {{ A = 53237 }} }}"),
        format!("{service}grants = {{ env = {{ A = [\"s3cr3t\"] }} }}"),
        format!("{service}grants = {{ env = {{ A = s3cr3t }} }}"),
        format!("{service}grants = {{ env = {{ A = \"s3cr3t }} }}"),
        format!("{service}grants = {{ env = {{ A = 's3cr3t\\n' B }} }}"),
        format!("{service}grants = {{ env = {{ A = \"s3cr3t\\q\" }} }}"),
        format!("{service}grants = {{ env = {{ A = \"\", A = \"s3cr3t\" }} }}"),
        format!("{service}grants = {{ env = \"s3cr3t\" }}"),
        format!("{service}grants = {{ env = [\"A=s3cr3t\"] }}"),
        format!("{service}grants = {{ env = {{ \"A=s3cr3t\" = \"x\" }} }}"),
        format!("{service}grants = {{ env = {{ \"A=s3cr3t\" = 1 }} }}"),
        format!("{service}grants = {{ env = {{ PROTO = \"s3cr3t\" }} }}"),
        format!("{service}grants = {{ env = {{ A = \"s3cr3t\\u0000\" }} }}"),
        format!("{service}args = \"--password=s3cr3t\""),
        format!("{service}args = [53237]"),
        format!("{service}grants = \"A=s3cr3t\""),
        format!("otlp = \"http://user:s3cr3t@127.0.0.1:1\"\n{service}"),
        format!("defaults = {{ grants = \"A=s3cr3t\" }}\n{service}"),
        format!("{service}component = {key}"),
        format!("{service}gate = {key}"),
        format!("{service}record = {key}"),
        format!("{service}migrate = {key}"),
        format!("{service}drain-generations = {key}"),
        format!("cache = {key}\n{service}"),
        format!("admin = {{ listen = 9, token = {key} }}\n{service}"),
        format!("admin = {{ listen = 9, token = \"s3cr3t-in-place-of-a-path\" }}\n{service}"),
        tls("certificate = \"a\", key = \"s3cr3t-in-place-of-a-path\""),
        format!("otlp = {{ endpoint = \"http://user:s3cr3t@127.0.0.1:1\" }}\n{service}"),
        format!("otlp = {{ endpoint = \"https://127.0.0.1:1/s3cr3t\" }}\n{service}"),
        format!("otlp = {{ endpoint = 53237 }}\n{service}"),
        format!("{service}grants = {{ allow-outbound = \"postgres://u:s3cr3t@h:5432/db\" }}"),
        format!("{service}grants = {{ allow-outbound = [\"h:6379?password=s3cr3t\"] }}"),
        format!("{service}grants = {{ allow-outbound = [\"s3cr3t\"] }}"),
        format!("{service}grants = {{ allow-outbound = [53237] }}"),
        format!("{service}grants = {{ allow-outbound = \"x, expected s3cr3t\" }}"),
        format!("{service}grants = {{ dirs = [\"https://u:s3cr3t@h::/a:RO\"] }}"),
        format!("{service}grants = {{ dirs = [\"a::/b:A7qEjRWs3cr3t42xs3cr3t\"] }}"),
        format!("{service}component = \"https://u:s3cr3t@h/a.wasm\""),
        format!("{service}middleware = [\"oci://u:s3cr3t@h/a.wasm\"]"),
        format!("{service}component = \"a\"\ngate = \"https://u:s3cr3t@h/talks\""),
        format!("{service}record = \"https://u:s3cr3t@h/talks\""),
        format!("cache = \"https://u:s3cr3t@h/cache\"\n{service}"),
        format!("{service}log-connections = \"A7qEjRWs3cr3t42xs3cr3t\""),
        format!("{service}A7qEjRWs3cr3t42xs3cr3t = 1"),
        format!("admin = {{ listen = 9, token = 5323753237532375 }}\n{service}"),
        format!("admin = {{ listen = 9, token = 53237.5 }}\n{service}"),
        format!("admin = {{ listen = 5323753237532375 }}\n{service}"),
        format!("admin = {{ listen = \"A7qEjRWs3cr3t42xs3cr3t\" }}\n{service}"),
        format!("admin = {{ listen = \"http://u:s3cr3t@h\" }}\n{service}"),
        "[[service]]\nname = \"a\"\nlisten = [\"http://u:s3cr3t@h:80\"]\n".to_owned(),
        "[[service]]\nname = \"a\"\nlisten = [\"[fe80::1%A7qEjRWs3cr3t42xs3cr3t]:80\"]\n".to_owned(),
        tls("certificate = 53237, key = \"a\""),
        tls("certificate = \"a\", key = 53237"),
        tls("certificate = \"a\", key = [\"s3cr3t\"]"),
        tls("certificate = \"a\", key = \"a\", client-ca = 53237"),
        tls("certificate = \"a\", key = \"a\", alpn = \"s3cr3t\""),
        tls(&format!("certificate = \"a\", key = {key}")),
        tls(&format!("certificate = {key}, key = \"a\"")),
        tls(&format!("certificate = \"a\", key = \"a\", client-ca = {key}")),
        tls(&format!(
            "certificate = \"a\", key = \"a\", more = [{{ certificate = \"b\", key = {key} }}]"
        )),
    ] {
        let problems = parse(&text, Path::new("")).unwrap_err().to_string();
        assert!(
            !problems.contains("s3cr3t") && !problems.contains("53237"),
            "{text}: {problems}"
        );
        assert!(!problems.contains('\n'), "{problems}");
    }
}
