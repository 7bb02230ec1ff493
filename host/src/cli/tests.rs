use std::time::Duration;

use super::*;
use crate::config::{Address, Limits, Listen, LogLevel, Mode, Service};

/// The one service of a command line.
fn service(args: &[&str]) -> Result<Service, clap::Error> {
    config(args).map(|config| config.services.into_iter().next().unwrap())
}

fn config(args: &[&str]) -> Result<Config, clap::Error> {
    match Cli::try_parse_from([&["wasm-inetd"], args].concat())?
        .checked()?
        .into()
    {
        Command::Serve(Given::Flags(config)) => Ok(*config),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn defaults_are_those_of_the_limits() {
    assert_eq!(config(&[]).unwrap().log.level, LogLevel::Info);
    let service = service(&[]).unwrap();
    assert_eq!(service.name, "echo");
    assert_eq!(service.limits, Limits::default());
    let address = Address::Tcp("127.0.0.1:8080".parse().unwrap());
    assert_eq!(service.listen, [Listen::at(address)]);
    assert_eq!(service.component, None);
}

#[test]
fn a_file_stands_in_place_of_all_flags() {
    let parse = |args: &[&str]| Cli::try_parse_from([&["wasm-inetd"], args].concat()).map(Command::from);
    let file = Given::File("services.toml".into());
    assert_eq!(
        parse(&["--config", "services.toml"]).unwrap(),
        Command::Serve(file.clone())
    );
    assert_eq!(
        parse(&["check", "--config", "services.toml"]).unwrap(),
        Command::CheckConfig("services.toml".into())
    );
    for args in [&["config", "--print"][..], &["config"]] {
        assert_eq!(
            parse(&[args, &["--config", "services.toml"]].concat()).unwrap(),
            Command::Print(file.clone())
        );
    }
    assert_eq!(parse(&["config", "--schema"]).unwrap(), Command::Schema);
    let Command::Print(Given::Flags(config)) = parse(&["config", "--print", "--name", "a"]).unwrap() else {
        panic!()
    };
    assert_eq!(config.services[0].name, "a");
    for args in [
        &["--config", "services.toml", "--watch"][..],
        &["check", "--config", "services.toml", "guest.wasm"],
        &["check"],
        &["config", "--config", "services.toml", "--name", "a"],
    ] {
        assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args:?}");
    }
}

#[test]
fn units_are_understood() {
    let config = config(&[
        "--idle-timeout",
        "1500ms",
        "--drain-timeout",
        "1m",
        "--max-memory",
        "1GiB",
    ]);
    let config = config.unwrap();
    assert_eq!(config.drain_timeout, Duration::from_secs(60));
    let limits = config.services[0].limits;
    assert_eq!(limits.idle_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(limits.max_memory, 1 << 30);
    let off = service(&["--idle-timeout", "off"]).unwrap();
    assert_eq!(off.limits.idle_timeout, None);
}

#[test]
fn rates_have_units() {
    for (text, connections, seconds) in [("7", 7, 1), ("7/s", 7, 1), ("30/m", 30, 60), ("500/h", 500, 3600)] {
        let rate = service(&["--max-rate", text]).unwrap().limits.max_rate.unwrap();
        assert_eq!(rate.connections.get(), connections, "{text}");
        assert_eq!(rate.per, Duration::from_secs(seconds), "{text}");
    }
    assert_eq!(service(&["--max-rate", "off"]).unwrap().limits.max_rate, None);
}

#[test]
fn listeners_add_up() {
    let service = service(&["--listen", "127.0.0.1:0", "--listen", "unix:/run/x.sock"]).unwrap();
    let addresses: Vec<String> = service
        .listen
        .iter()
        .map(|listen| listen.address.to_string())
        .collect();
    assert_eq!(addresses, ["127.0.0.1:0", "unix:/run/x.sock"]);
}

#[test]
fn what_is_said_of_listeners_holds_for_each() {
    let service = service(&[
        "--listen",
        "[::]:0",
        "--listen",
        "inherited:web",
        "--backlog",
        "7",
        "--nodelay",
        "off",
        "--dual-stack",
        "on",
        "--socket-mode",
        "0660",
        "--proxy-protocol-from",
        "192.0.2.0/24",
        "--tls-certificate",
        "a.pem",
        "--tls-key",
        "b.pem",
        "--tls-client-ca",
        "c.pem",
    ])
    .unwrap();
    assert_eq!(service.listen.len(), 2);
    for listen in service.listen {
        assert_eq!((listen.socket.backlog, listen.socket.nodelay), (7, false));
        assert_eq!(
            (listen.socket.dual_stack, listen.socket.mode),
            (Some(true), Some(Mode(0o660)))
        );
        let trusted = listen.proxy_protocol.unwrap().trusted;
        assert_eq!(trusted, ["192.0.2.0/24".parse().unwrap()]);
        assert!(listen.tls.unwrap().clients.unwrap().required);
    }
}

#[test]
fn a_service_is_called_after_its_component() {
    let name = |args: &[&str]| service(args).unwrap().name;
    assert_eq!(name(&["--component", "guests/lines.wasm"]), "lines");
    assert_eq!(name(&["--component", "lines.wasm", "--name", "other"]), "other");
    assert_eq!(name(&["--component", "two words.wasm"]), "service");
}

#[test]
fn a_bad_value_is_refused_with_its_flag_and_what_was_expected() {
    for (flag, value, expected) in [
        ("--listen", "localhost", "127.0.0.1:8080"),
        ("--idle-timeout", "5", "30s"),
        ("--idle-timeout", "0s", "off"),
        ("--drain-timeout", "soon", "30s"),
        ("--max-memory", "lots", "64MiB"),
        ("--max-memory", "5GiB", "4GiB"),
        ("--max-connections", "0", "zero"),
        ("--max-connections-per-source", "0", "off"),
        ("--max-rate", "0", "100/s"),
        ("--max-rate", "10/d", "100/s"),
        ("--max-rate-per-source", "1000001", "1000000"),
        ("--threads", "0", "1024"),
        ("--threads", "18446744073709551615", "1024"),
        ("--log-format", "xml", "json"),
        ("--listen", "unix:", "path"),
        ("--allow", "192.0.2.1/24", "192.0.2.0/24"),
        ("--deny", "everyone", "2001:db8::/32"),
        ("--backlog", "0", "65535"),
        ("--keepalive", "1ms", "1s"),
        ("--receive-buffer", "1", "4KiB"),
        ("--socket-mode", "rw", "0660"),
        ("--socket-owner", ":", "GROUP"),
        ("--name", "a b", "letters"),
    ] {
        let error = config(&[flag, value]).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 2, "{text}");
        assert!(
            text.contains(flag) && text.contains(value) && text.contains(expected),
            "{text}"
        );
    }
    let both = config(&["-v", "-q"]).unwrap_err();
    assert_eq!(both.kind(), ErrorKind::ArgumentConflict);
    let instances = config(&["--instances", "2"]).unwrap_err();
    assert_eq!(instances.kind(), ErrorKind::ArgumentConflict);
}
