//! The documents say what is true: code, flags, outcomes, links and commands are compared with the
//! program.

mod commands;
mod conversations;
mod markdown;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use markdown::Document;
use regex::Regex;

use crate::harness::tools::{TOOLS, tool};
use crate::harness::{command, scratch, words};

fn document(path: &str) -> String {
    fs::read_to_string(guest_builder::workspace().join(path)).unwrap()
}

#[test]
fn guests_that_documents_show_are_those_that_are_built() {
    for (page, guest) in [
        ("README.md", "guest/upper/src/lib.rs"),
        ("docs/guests.md", "guest/src/lib.rs"),
    ] {
        let source = document(guest);
        let (_, code) = source.split_once("\n\n").unwrap();
        assert!(
            document(page).contains(&format!("```rust,ignore\n{code}```")),
            "{code}"
        );
    }
}

#[test]
fn the_page_of_guests_lists_every_guest() {
    let page = document("docs/guests.md");
    for guest in guest_builder::all(guest_builder::workspace()).unwrap() {
        let hostile = guest_builder::workspace()
            .join("guest/hostile")
            .join(&guest.name)
            .is_dir();
        assert!(
            hostile || page.contains(&format!("[`{}`]", guest.name)),
            "{} is missing",
            guest.name
        );
    }
}

/// Returns the flags that `--help` of a subcommand, or of the program, shows.
fn flags(subcommand: Option<&str>) -> BTreeSet<String> {
    let help = command().args(subcommand).arg("--help").output().unwrap();
    assert!(help.status.success(), "{subcommand:?}");
    let help = String::from_utf8(help.stdout).unwrap();
    let flags: BTreeSet<_> = help
        .lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with('-'))
        .map(|word| word.trim_end_matches([',', '.']).to_owned())
        .collect();
    assert!(flags.contains("--help"), "{help}");
    flags
}

#[test]
fn the_page_of_flags_lists_every_flag() {
    let page = document("docs/flags.md");
    let flags = flags(None);
    assert!(flags.len() > 50, "{flags:?}");
    for flag in flags {
        // Each program has these two.
        assert!(
            ["-h", "--help", "-V", "--version"].contains(&flag.as_str()) || page.contains(&flag),
            "{flag} is missing"
        );
    }
}

#[test]
fn the_page_of_limits_explains_every_outcome_and_refusal() {
    let page = document("docs/limits.md");
    let (_, page) = page.split_once("\n## Outcomes\n").unwrap();
    let (outcomes, refusals) = page.split_once("\n## Refusals\n").unwrap();
    for (section, source) in [
        (outcomes, "host/src/connection.rs"),
        (refusals, "host/src/admission.rs"),
    ] {
        // Each item of a list begins with the words that it explains.
        let explained: BTreeSet<_> = section
            .lines()
            .filter_map(|line| line.strip_prefix("- ")?.split_once(':'))
            .flat_map(|(words, _)| words.split('`').skip(1).step_by(2))
            .collect();
        let words = words(source);
        assert_eq!(explained, words.iter().map(String::as_str).collect());
    }
}

/// Collects the names of properties in a JSON Schema.
fn properties(schema: &serde_json::Value, names: &mut BTreeSet<String>) {
    if let Some(properties) = schema.get("properties").and_then(|value| value.as_object()) {
        names.extend(properties.keys().cloned());
    }
    match schema {
        serde_json::Value::Object(fields) => fields.values().for_each(|value| properties(value, names)),
        serde_json::Value::Array(values) => values.iter().for_each(|value| properties(value, names)),
        _ => {}
    }
}

#[test]
fn the_pages_of_services_and_limits_name_every_key() {
    let schema = command().args(["config", "--schema"]).output().unwrap();
    let schema = serde_json::from_slice(&schema.stdout).unwrap();
    let mut keys = BTreeSet::new();
    properties(&schema, &mut keys);
    assert!(keys.len() > 50, "{keys:?}");
    let (services, limits) = (document("docs/services.md"), document("docs/limits.md"));
    for key in keys {
        assert!(
            services.contains(&format!("`{key}`"))
                || services.contains(&format!("[{key}]"))
                || limits.contains(&format!("`--{key}`")),
            "{key} is missing"
        );
    }
}

/// Checks the text of a services file, which `place` has.
fn is_services_file(text: &str, place: &str) {
    let file = crate::harness::file("shown.toml", text);
    // `check` would look for the components too.
    let checked = command()
        .arg("config")
        .arg("--config")
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{place}: {said}");
}

#[test]
fn services_files_that_are_shown_are_valid() {
    // Documents of other files in TOML show manifests of Cargo.
    for path in ["docs/services.md", "docs/admin.md"] {
        let page = Document::read(path);
        let fences: Vec<_> = page.fences.iter().filter(|fence| fence.info == "toml").collect();
        assert!(!fences.is_empty(), "{path}");
        for fence in fences {
            let mut text = fence.text.clone();
            if !text.contains("[[service]]") {
                text += "\n[[service]]\nname = \"echo\"\nlisten = [\"127.0.0.1:0\"]\n";
            }
            is_services_file(&text, &format!("{path}:{}", fence.line));
        }
    }
}

#[test]
fn deployments_have_valid_services_files_and_flags() {
    for path in ["deploy/systemd/services.toml", "deploy/container/services.toml"] {
        is_services_file(&document(path), path);
    }
    let map = document("deploy/kubernetes/configmap.yaml");
    let (_, text) = map.split_once("  services.toml: |\n").unwrap();
    let text: Vec<_> = text
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line))
        .collect();
    is_services_file(&text.join("\n"), "deploy/kubernetes/configmap.yaml");

    let known = flags(None);
    let mut count = 0;
    for path in [
        "deploy/systemd/wasm-inetd.service",
        "deploy/container/Containerfile",
        "deploy/kubernetes/deployment.yaml",
    ] {
        let text = document(path);
        let lines = text.lines().filter(|line| {
            ["ExecStart=", "CMD [", "args: ["]
                .iter()
                .any(|start| line.trim_start().starts_with(start))
        });
        for word in lines.flat_map(|line| line.split([' ', '"', ','])) {
            if word.starts_with("--") {
                assert!(known.contains(word), "{path}: {word}");
                count += 1;
            }
        }
    }
    assert!(count >= 3, "{count}");
}

#[test]
fn links_lead_somewhere() {
    for document in markdown::all() {
        for link in &document.links {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let at = format!("{}: {link}", document.path);
            let here = guest_builder::workspace().join(&document.path);
            let target = if path.is_empty() {
                here
            } else {
                here.parent().unwrap().join(path)
            };
            assert!(target.exists(), "{at} does not exist");
            if !anchor.is_empty() {
                let target = target.canonicalize().unwrap();
                let target = target.strip_prefix(guest_builder::workspace()).unwrap();
                let target = Document::read(target.to_str().unwrap());
                assert!(target.anchors.contains(anchor), "{at}: no such heading");
            }
        }
    }
}

#[test]
fn lines_of_documents_are_short() {
    let measured = "<!-- what follows is written by";
    for document in markdown::all() {
        let lines = document
            .text
            .lines()
            .take_while(|line| !line.starts_with(measured));
        for (index, line) in lines.enumerate() {
            let unbreakable = line.starts_with('|') || line.contains("://");
            assert!(
                unbreakable || line.chars().count() <= 100,
                "{}:{} has more than 100 columns",
                document.path,
                index + 1
            );
        }
    }
    let readme = document("README.md");
    assert!(readme.lines().count() <= 150, "{} lines", readme.lines().count());
}

/// The documents whose commands are run. In all others each fence of commands is marked `no_run`.
const RUN: [&str; 10] = [
    "README.md",
    "docs/admin.md",
    "docs/guests.md",
    "docs/limits.md",
    "docs/performance.md",
    "docs/programs.md",
    "docs/reloading.md",
    "docs/services.md",
    "docs/tracing.md",
    "docs/transports.md",
];

/// Runs the commands of a document, at least `count` of them.
fn commands_work(path: &str, count: usize) {
    assert!(RUN.contains(&path), "{path}");
    let document = Document::read(path);
    for used in TOOLS
        .iter()
        .filter(|tool| commands::use_tool(&document, tool.name))
    {
        if tool(used.name).is_none() {
            return;
        }
    }
    let ran = commands::run(&document);
    assert!(ran >= count, "{path}: only {ran} commands were run");
}

#[test]
fn commands_of_the_readme_work() {
    commands_work("README.md", 5);
}

#[test]
fn commands_of_the_page_of_guests_work() {
    commands_work("docs/guests.md", 10);
}

#[test]
fn commands_of_the_pages_of_programs_services_and_limits_work() {
    commands_work("docs/programs.md", 2);
    commands_work("docs/services.md", 4);
    commands_work("docs/limits.md", 0);
}

#[test]
fn commands_of_the_page_of_transports_work() {
    commands_work("docs/transports.md", 5);
}

#[test]
fn commands_of_the_page_of_reloading_work() {
    commands_work("docs/reloading.md", 6);
}

#[test]
fn commands_of_the_pages_of_observing_work() {
    commands_work("docs/admin.md", 3);
    commands_work("docs/tracing.md", 0);
    commands_work("docs/performance.md", 0);
}

#[test]
fn commands_can_be_typed() {
    let program = flags(None);
    let mut count = 0;
    for document in markdown::all() {
        let fences = document.fences.iter();
        for fence in fences.filter(|fence| fence.info.starts_with("console")) {
            let known = fence.info == "console no_run"
                || fence.info == "console" && RUN.contains(&document.path.as_str());
            assert!(known, "{}:{}: {}", document.path, fence.line, fence.info);
            for shown in commands::commands(&fence.text, fence.line) {
                let at = format!("{}:{}: {}", document.path, fence.line, shown.command);
                assert!(
                    !shown.command.starts_with("host "),
                    "{at}: the program is wasm-inetd"
                );
                let ours = ["wasm-inetd", "cargo run -p host --"];
                let Some(arguments) = ours.iter().find_map(|name| shown.command.strip_prefix(name)) else {
                    continue;
                };
                let mut words = arguments.split_whitespace().peekable();
                let subcommand = words.next_if(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
                let own = subcommand.map(|subcommand| flags(Some(subcommand)));
                let words = words.take_while(|word| !["--", "#", "|", ">", "&"].contains(word));
                for flag in words.filter(|word| word.starts_with('-')) {
                    let flag = flag.split('=').next().unwrap();
                    assert!(
                        own.as_ref().unwrap_or(&program).contains(flag),
                        "{at}: no flag {flag}"
                    );
                }
                count += 1;
            }
        }
    }
    assert!(count > 30, "only {count} commands were found");
}

#[test]
fn the_guest_of_the_readme_builds_outside_this_repository() {
    let readme = Document::read("README.md");
    let fence = |info: &str| {
        &readme
            .fences
            .iter()
            .find(|fence| fence.info == info)
            .unwrap()
            .text
    };
    let manifest = fence("toml").replace("../wasm-inetd", guest_builder::workspace().to_str().unwrap());
    assert_ne!(manifest, *fence("toml"));
    // Outside the workspace, which would otherwise claim the package.
    let dir = std::env::temp_dir().join(format!("wasm-inetd-outside-{}", std::process::id()));
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    fs::write(dir.join("src/lib.rs"), fence("rust,ignore")).unwrap();
    let kept = scratch("outside");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--target", "wasm32-wasip2"])
        .env("CARGO_TARGET_DIR", &kept)
        .current_dir(&dir)
        .output()
        .unwrap();
    fs::remove_dir_all(&dir).unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let host = crate::harness::Host::with(&kept.join("wasm32-wasip2/release/upper.wasm"), &[]);
    let client = host.connect();
    client.send("hello\n");
    client.expect("HELLO\n");
}

/// The source of a room, which is a file, or all files of a folder and of the folders in it.
fn sources(room: &str) -> Vec<String> {
    fn read(path: &Path) -> Vec<String> {
        if path.is_file() {
            return vec![fs::read_to_string(path).unwrap()];
        }
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| read(&path)).collect()
    }
    let sources = read(&guest_builder::workspace().join("host/src").join(room));
    assert!(!sources.is_empty(), "{room}");
    sources
}

/// The log lines in a source: what stands in the parentheses of their macros.
fn log_lines(source: &str) -> Vec<String> {
    // Tests log too.
    let source = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    let begins = Regex::new(r"\b(error|warn|info|debug|trace)!\(").unwrap();
    let lines = begins.find_iter(source).map(|found| {
        let rest = &source[found.end()..];
        let mut depth = 1;
        let end = rest.find(|c: char| {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            depth == 0
        });
        rest[..end.unwrap()].to_owned()
    });
    lines.collect()
}

/// With several services, an operator has to know which one a line is about.
#[test]
fn lines_of_the_log_name_their_service() {
    // Lines about the whole process, and about a path that nothing else has.
    let of_process = [
        "guests wrote more than",
        "cannot cache compiled components",
        "cannot use the key of the cache",
        "replacing a stale socket",
        "cannot remove the socket",
        "changing {} requires a restart",
    ];
    let mut found = 0;
    for room in [
        "acceptor.rs",
        "admission.rs",
        "arrival.rs",
        "breaker.rs",
        "connection.rs",
        "generations.rs",
        "listener",
        "place.rs",
        "record",
        "reload.rs",
        "replay",
        "reread.rs",
        "running.rs",
        "sandbox",
        "service.rs",
        "socket.rs",
        "tls",
    ] {
        for source in sources(room) {
            for line in log_lines(&source) {
                found += 1;
                let is_exempt = of_process.iter().any(|message| line.contains(message));
                assert!(line.contains("service") || is_exempt, "{room}: {line}");
            }
        }
    }
    assert!(found > 50, "{found}");
}

/// Adds the Rust files below `dir` to `found`, without tests, as paths in host/src.
fn modules(dir: &Path, found: &mut Vec<String>) {
    let root = guest_builder::workspace().join("host/src");
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            modules(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn the_map_has_each_file_of_the_host() {
    let page = document("ARCHITECTURE.md");
    let (_, map) = page.split_once("\n## Map\n").unwrap();
    let (_, map) = map.split_once("```text\n").unwrap();
    let (map, _) = map.split_once("\n```").unwrap();
    let mut listed = BTreeSet::new();
    let mut place = String::new();
    for line in map.lines() {
        if !line.starts_with(' ') {
            let dir = line.split_once(", in ").map_or("", |(_, dir)| dir);
            place = dir.split(' ').next().unwrap().to_owned();
            continue;
        }
        let words = line.split([' ', ',']);
        for word in words.filter(|word| word.ends_with(".rs") || word.ends_with('/')) {
            let path = match word.strip_prefix('/') {
                Some(path) => path.to_owned(),
                None => format!("{place}{word}"),
            };
            assert!(guest_builder::workspace().join(&path).exists(), "{path}");
            listed.insert(path);
        }
    }
    let mut files = Vec::new();
    modules(&guest_builder::workspace().join("host/src"), &mut files);
    assert!(files.len() > 100, "{files:?}");
    for file in files {
        let path = format!("host/src/{file}");
        let ends = path.match_indices('/').map(|(end, _)| &path[..=end]);
        let is_listed = listed.contains(&path) || ends.into_iter().any(|dir| listed.contains(dir));
        assert!(is_listed, "the map of ARCHITECTURE.md lacks {path}");
    }
}

#[test]
fn rooms_do_not_know_what_they_should_not() {
    let rooms: &[(&str, &[&str])] = &[
        ("main.rs", &["wasmtime"]),
        ("cli", &["tokio", "wasmtime"]),
        ("config", &["tokio::", "wasmtime", "clap"]),
        ("values.rs", &["tokio", "wasmtime", "clap"]),
        ("conversation", &["wasmtime", "tokio", "crate::"]),
        ("guarded.rs", &["wasmtime", "tokio", "crate::"]),
        ("record", &["wasmtime", "tokio::net", "crate::sandbox"]),
        ("replay", &["wasmtime", "tokio::net"]),
        ("check.rs", &["wasmtime", "tokio::net"]),
        ("scaffold.rs", &["wasmtime", "tokio", "crate::"]),
        ("generations.rs", &["wasmtime", "tokio::net"]),
        ("reload.rs", &["wasmtime", "tokio::net"]),
        ("place.rs", &["wasmtime", "tokio::net"]),
        ("listener", &["wasmtime", "clap", "crate::connection"]),
        ("socket.rs", &["wasmtime", "clap", "crate::connection"]),
        ("peer.rs", &["wasmtime", "tokio", "crate::"]),
        ("arrival.rs", &["wasmtime", "clap", "tokio::net"]),
        (
            "proxy_protocol.rs",
            &["wasmtime", "clap", "tokio::net", "crate::"],
        ),
        ("tls", &["wasmtime", "clap", "crate::connection"]),
        ("service_manager.rs", &["wasmtime", "tokio", "crate::"]),
        ("admission.rs", &["wasmtime", "TcpStream"]),
        ("breaker.rs", &["wasmtime", "TcpStream"]),
        ("admin", &["wasmtime", "clap", "tokio::net"]),
        ("cost.rs", &["wasmtime", "tokio", "crate::"]),
        ("counts.rs", &["wasmtime", "tokio", "crate::sandbox"]),
        ("roster.rs", &["wasmtime", "tokio::net", "crate::sandbox"]),
        ("terminal.rs", &["wasmtime", "tokio::net", "clap"]),
        ("server.rs", &["wasmtime", "clap"]),
        ("running.rs", &["wasmtime", "clap"]),
        ("acceptor.rs", &["wasmtime", "clap"]),
        ("telemetry", &["wasmtime", "clap", "crate::socket"]),
        ("acceptor.rs", &["opentelemetry"]),
        ("arrival.rs", &["opentelemetry"]),
        ("server.rs", &["opentelemetry"]),
        ("admin", &["opentelemetry"]),
        ("relay.rs", &["tokio::net", "wasmtime", "crate::sandbox"]),
        ("shutdown.rs", &["crate::"]),
        ("connection.rs", &["tokio::net", "wasmtime", "clap"]),
        ("half.rs", &["tokio::net", "wasmtime", "crate::"]),
        ("buffer.rs", &["tokio::net", "wasmtime", "crate::"]),
    ];
    for (room, unknown) in rooms {
        for source in sources(room) {
            for word in *unknown {
                let knows = source
                    .lines()
                    .any(|line| !line.trim_start().starts_with("//") && line.contains(word));
                assert!(!knows, "host/src/{room} must not know {word}");
            }
        }
    }
    let sandbox = guest_builder::workspace().join("host/src/sandbox");
    for dir in [sandbox.clone(), sandbox.join("contract")] {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let source = fs::read_to_string(&path).unwrap();
                assert!(
                    !source.contains("tokio::net") && !source.contains("clap"),
                    "{}",
                    path.display()
                );
            }
        }
    }
    assert!(!document("host/src/sandbox/contract/handler.rs").contains("sessions"));
    assert!(!document("host/src/sandbox/contract/sessions.rs").contains("handler"));
}

#[test]
fn every_test_that_the_threats_are_shown_by_is_there() {
    let security = document("SECURITY.md");
    let (_, threats) = security.split_once("\n## Threats\n").unwrap();
    let (threats, _) = threats.split_once("\n## ").unwrap();
    for threat in threats.split("\n- **").skip(1) {
        let (_, tests) = threat
            .split_once("Tests: ")
            .or_else(|| threat.split_once("Test: "))
            .unwrap_or_else(|| panic!("no test: {threat}"));
        let (tests, _) = tests.split_once("`.").unwrap_or((tests, ""));
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test: {threat}");
        for name in names {
            assert!(is_test(name), "there is no test {name}");
        }
    }
}

/// Returns whether `name` is a test, `FILE::NAME`, a file or module of tests, or a file of the host
/// with unit tests.
fn is_test(name: &str) -> bool {
    let source = |file: &str| {
        let file = format!("tests/{}.rs", file.replace("::", "/"));
        fs::read_to_string(guest_builder::workspace().join(file)).ok()
    };
    let whole = source(name).is_some_and(|source| source.contains("#[test]"));
    let unit = fs::read_to_string(guest_builder::workspace().join("host/src").join(name))
        .is_ok_and(|source| source.contains("#[test]") || source.contains("#[tokio::test"));
    let one = name.rsplit_once("::").is_some_and(|(file, name)| {
        source(file).is_some_and(|source| {
            source.contains(&format!("#[test]\nfn {name}(")) || source.contains(&format!("\nmod {name} {{"))
        })
    });
    whole || unit || one || name == "fuzz"
}
