//! What the documents show is what there is.

use std::fs;

fn document(path: &str) -> String {
    fs::read_to_string(guest_builder::workspace().join(path)).unwrap()
}

#[test]
fn the_guests_in_the_readme_are_those_that_are_built() {
    for guest in ["guest/src/lib.rs", "guest/upper/src/lib.rs"] {
        let source = document(guest);
        let (_, code) = source.split_once("\n\n").unwrap();
        assert!(
            document("README.md").contains(&format!("```rust,ignore\n{code}```")),
            "{code}"
        );
    }
}

#[test]
fn the_readme_lists_every_guest() {
    let readme = document("README.md");
    for guest in guest_builder::all(guest_builder::workspace()).unwrap() {
        let hostile = guest_builder::workspace()
            .join("guest/hostile")
            .join(&guest.name)
            .is_dir();
        assert!(
            hostile || readme.contains(&format!("[`{}`]", guest.name)),
            "{} is missing",
            guest.name
        );
    }
}

#[test]
fn the_readme_lists_every_flag() {
    let help = crate::harness::command().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let readme = document("README.md");
    let flags = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"));
    let flags: Vec<&str> = flags.map(|flag| flag.split(' ').next().unwrap()).collect();
    assert!(flags.len() > 5, "{help}");
    for flag in flags {
        assert!(readme.contains(&format!("--{flag}")), "--{flag} is missing");
    }
}

#[test]
fn the_readme_explains_every_outcome() {
    let readme = document("README.md");
    let source = document("host/src/connection.rs");
    let (_, words) = source.split_once("pub fn as_str").unwrap();
    let (words, _) = words.split_once("\n    }\n").unwrap();
    let words: Vec<&str> = words.split('"').skip(1).step_by(2).collect();
    assert!(words.len() > 5, "{words:?}");
    for word in words {
        assert!(readme.contains(&format!("`{word}`")), "{word} is missing");
    }
}

/// The source of a room, which is a file, or all files of a folder.
fn sources(room: &str) -> Vec<String> {
    let path = guest_builder::workspace().join("host/src").join(room);
    if path.is_file() {
        return vec![fs::read_to_string(path).unwrap()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let sources: Vec<_> = entries.map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(!sources.is_empty(), "{room}");
    sources
}

#[test]
fn rooms_do_not_know_what_they_should_not() {
    let rooms: &[(&str, &[&str])] = &[
        ("main.rs", &["wasmtime"]),
        ("cli", &["tokio", "wasmtime"]),
        ("config", &["tokio::", "wasmtime", "clap"]),
        ("values.rs", &["tokio", "wasmtime", "clap"]),
        ("conversation.rs", &["wasmtime", "tokio", "crate::"]),
        ("record.rs", &["wasmtime", "tokio::net", "crate::sandbox"]),
        ("replay.rs", &["wasmtime", "tokio::net"]),
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
    let names = security.split('`').skip(1).step_by(2);
    let tests: Vec<(&str, &str)> = names.filter_map(|name| name.rsplit_once("::")).collect();
    assert!(tests.len() > 30, "{tests:?}");
    for (file, name) in tests {
        let source = document(&format!("tests/{}.rs", file.replace("::", "/")));
        let found = [format!("fn {name}("), format!("mod {name} {{")]
            .iter()
            .any(|text| source.contains(text));
        assert!(found, "there is no {name} in tests/{file}.rs");
    }
}
