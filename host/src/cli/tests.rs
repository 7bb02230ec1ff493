use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::iter;
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
        Command::CheckConfig {
            file: "services.toml".into(),
            compile: false
        }
    );
    assert_eq!(
        parse(&["check", "--config", "services.toml", "--compile"]).unwrap(),
        Command::CheckConfig {
            file: "services.toml".into(),
            compile: true
        }
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
        &["check", "--config", "services.toml", "--max-memory", "1MiB"],
        &["check", "guest.wasm", "--compile"],
        &["config", "--config", "services.toml", "--name", "a"],
    ] {
        assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args:?}");
    }
}

#[test]
fn a_conflict_names_both_flags() {
    for (args, expected) in [
        (
            &["--config", "a.toml", "--watch"][..],
            "--config cannot be combined with --watch: the services file replaces the other flags",
        ),
        (
            &["--name", "a", "--config", "a.toml"],
            "--config cannot be combined with --name: the services file replaces the other flags",
        ),
        (
            &["config", "--print", "--schema"],
            "--print cannot be combined with --schema; remove one of the two",
        ),
        (
            &["--name", "a", "--name", "b"],
            "--name is given more than once; give it once",
        ),
        (
            &["-v", "-q"],
            "--verbose cannot be combined with --quiet; remove one of the two",
        ),
    ] {
        let error = Cli::try_parse_from([&["wasm-inetd"], args].concat()).unwrap_err();
        assert_eq!(sentence(error, []), expected);
    }
}

/// The message that refuses a command line.
fn refused(args: &[&str]) -> String {
    let parsed = Cli::try_parse_from([&["wasm-inetd"], args].concat()).and_then(Cli::checked);
    sentence(parsed.unwrap_err(), args.iter().map(|arg| arg.into()))
}

#[test]
fn an_argument_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStrExt as _;
    let bad = |text: &str| OsStr::from_bytes(&[text.as_bytes(), b"\xff"].concat()).to_owned();
    for (args, expected) in [
        (vec!["--env".into(), bad("A=s3cr3t")], "the value of --env is"),
        (vec![bad("--env=A=s3cr3t")], "the value of --env is"),
        (vec!["--dir".into(), bad("/::/a")], "the value of --dir is"),
        (
            vec!["--listen".into(), bad("unix:/a")],
            "the value of --listen is",
        ),
        (vec!["--name".into(), bad("a")], "the value of --name is"),
        (vec!["new".into(), bad("a")], "the argument `a"),
        (vec!["--".into(), bad("s3cr3t")], "an argument after `--` is"),
        // The path of a component can have any bytes.
        (
            vec!["--component".into(), bad("a"), "--env".into(), bad("A=")],
            "the value of --env is",
        ),
    ] {
        let args = [vec!["wasm-inetd".into()], args].concat();
        let error = Cli::try_parse_from(&args).unwrap_err();
        let message = sentence(error, args.clone());
        assert!(message.starts_with(expected), "{args:?}: {message}");
        assert!(!message.contains("s3cr3t"), "{args:?}: {message}");
    }
}

#[test]
fn an_empty_path_is_called_empty() {
    for args in [
        &["check", ""][..],
        &["check", "--config", ""],
        &["--config", ""],
        &["--component", ""],
        &["--component="],
        &["--gate", "", "--component", "a"],
        &["replay", "", "a"],
        &["record", "--to", ""],
    ] {
        let message = refused(args);
        assert!(
            message.contains("the path is empty; expected"),
            "{args:?}: {message}"
        );
    }
    let message = refused(&["--component"]);
    assert!(message.contains("none was supplied"), "{message}");
}

#[test]
fn what_is_missing_or_below_zero_is_explained() {
    let nothing = "nothing to check; expected FILE, a component, or --config FILE, a services file";
    assert!(
        refused(&["check"]).starts_with(nothing),
        "{}",
        refused(&["check"])
    );
    for (args, usage) in [
        (&["check"][..], "Usage: wasm-inetd check [OPTIONS] [FILE]"),
        (
            &["check", "a", "--env", "A=1", "--env", "A=2"],
            "Usage: wasm-inetd check [OPTIONS] [FILE]",
        ),
        (
            &["config", "--env", "A=1", "--env", "A=2"],
            "Usage: wasm-inetd config [OPTIONS]",
        ),
    ] {
        let message = refused(args);
        assert!(message.contains(usage), "{args:?}: {message}");
    }
    let compile = refused(&["check", "--compile"]);
    assert!(compile.contains("--config <FILE>"), "{compile}");
    assert_eq!(
        refused(&["--max-memory", "-1MiB"]),
        "unexpected `-1MiB`: no flag takes a value below zero; arguments for guests come after `--`"
    );
    assert_eq!(
        refused(&["--idle-timeout", "-5s"]),
        "unexpected `-5s`: no flag takes a value below zero; arguments for guests come after `--`"
    );
    for (args, instead) in [
        (
            &["record", "--to", "d", "--config", "s.toml"][..],
            "set the key `record` of a service",
        ),
        (
            &["record", "--config=s.toml", "--to", "d"],
            "set the key `record`",
        ),
        (
            &["replay", "talks", "a.wasm", "--config", "s.toml"],
            "give the settings of the service as flags",
        ),
        (&["profile", "--config", "s.toml"], "give the settings"),
    ] {
        let message = refused(args);
        assert!(
            message.contains("has no flag --config") && message.contains(instead),
            "{args:?}: {message}"
        );
        assert!(!message.contains("-- --config"), "{message}");
    }
    let oci = refused(&["profile", "talks", "oci://example.org/a:1"]);
    assert!(oci.contains("`oci://` references are not supported"), "{oci}");
}

#[test]
fn a_flag_of_other_commands_is_named_with_them() {
    let commands: [&[&str]; 10] = [
        &[],
        &["check", "a.wasm"],
        &["compile", "a.wasm"],
        &["config"],
        &["record", "--to", "d"],
        &["new", "a"],
        &["completions", "bash"],
        &["man"],
        &["profile", "d", "a.wasm"],
        &["replay", "d", "a.wasm"],
    ];
    let mut program = Cli::command();
    program.build();
    let flags = |command: &clap::Command| -> BTreeSet<String> {
        command
            .get_arguments()
            .filter_map(|flag| flag.get_long())
            .map(|flag| format!("--{flag}"))
            .collect()
    };
    let subcommands = program.get_subcommands().filter(|of| of.get_name() != "help");
    let all: Vec<_> = iter::once(&program).chain(subcommands).collect();
    let every: BTreeSet<_> = all.iter().copied().flat_map(flags).collect();
    assert_eq!(all.len(), commands.len());
    let mut tried = 0;
    for args in commands {
        let name = args.first().copied();
        let own = name.map_or(&program, |name| program.find_subcommand(name).unwrap());
        for flag in every.difference(&flags(own)) {
            let message = refused(&[args, &[flag]].concat());
            let is_special = flag == "--config" && message.contains("has no flag --config");
            assert!(
                is_special || message.contains("this flag\n"),
                "{args:?}: {message}"
            );
            assert!(!message.contains("tip:"), "{args:?}: {message}");
            tried += 1;
        }
    }
    assert!(tried > 200, "{tried}");
    for (args, expected) in [
        (
            &["--schema"][..],
            "'--schema': only `wasm-inetd config` takes this flag",
        ),
        (
            &["check", "a.wasm", "--watch"],
            "'--watch': only `wasm-inetd`, `wasm-inetd config` and `wasm-inetd record` take this flag",
        ),
        (&["check", "a.wasm", "-q"], "'-q': only `wasm-inetd`"),
        (
            &["new", "a", "--version"],
            "'--version': only `wasm-inetd` takes this flag",
        ),
    ] {
        let message = refused(args);
        assert!(
            message.starts_with(&format!("unexpected argument {expected}")),
            "{message}"
        );
    }
    // An unknown flag can be meant for a guest if the command takes arguments for guests.
    for (args, is_for_guest) in [
        (&["check", "a.wasm", "--zzz"][..], true),
        (&["replay", "d", "a.wasm", "-z"], true),
        (&["new", "a", "--zzz"], false),
        (&["completions", "bash", "--zzz"], false),
        (&["man", "-z"], false),
    ] {
        assert_eq!(
            refused(args).contains("use '-- "),
            is_for_guest,
            "{}",
            refused(args)
        );
    }
}

#[test]
fn limits_without_effect_are_refused() {
    for (command, flag) in [
        (&["check", "a.wasm"][..], "--idle-timeout"),
        (&["check", "a.wasm"], "--max-bytes-in"),
        (&["check", "a.wasm"], "--max-rate"),
        (&["replay", "talks", "a.wasm"], "--max-rate"),
        (&["profile", "talks", "a.wasm"], "--max-connections-per-source"),
    ] {
        let message = refused(&[command, &[flag, "1m"]].concat());
        assert!(
            message.contains(&format!("unexpected argument '{flag}'")),
            "{message}"
        );
    }
    let replay = [
        "wasm-inetd",
        "replay",
        "talks",
        "a.wasm",
        "--max-bytes-in",
        "1KiB",
    ];
    let Command::Replay(replay, _) = Cli::try_parse_from(replay).unwrap().into() else {
        panic!()
    };
    assert_eq!(replay.terms.limits.max_bytes_in, Some(1024));
    for flag in ["--max-call-time", "--max-cpu-time"] {
        let message = refused(&[flag, "1ns"]);
        assert!(message.contains("at least 1ms"), "{message}");
    }
    let backlog = refused(&["--listen", "inherited:a", "--backlog", "4096"]);
    assert!(
        backlog.starts_with("--backlog has no effect here: the service manager sets the backlog"),
        "{backlog}"
    );
}

#[test]
fn keys_have_flags() {
    for (key, flag) in [
        ("service[0].component", "--component"),
        ("service[0].middleware[1]", "--middleware"),
        ("service[10].limits.max-rate", "--max-rate"),
        ("service[0].listen[2].tls.client-ca", "--tls-client-ca"),
        ("service[0].grants.dirs[0]", "--dir"),
        ("grants.env", "--env"),
        ("record", "--to"),
        ("tls.alpn", "--tls-alpn"),
        ("admin.token", "--admin-token"),
        ("max-cpu-time", "--max-cpu-time"),
    ] {
        assert_eq!(flag_of(key), flag, "{key}");
    }
}

#[test]
fn an_interface_can_be_the_scope_of_an_address() {
    let address = |text: &str| service(&["--listen", text]).unwrap().listen.remove(0).address;
    assert_eq!(address("[fe80::1%lo]:80"), address("[fe80::1%1]:80"));
    assert_eq!(address("unix:@a b"), Address::Abstract("a b".to_owned()));
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
        "unix:/run/x.sock",
        "--backlog",
        "7",
        "--nodelay",
        "off",
        "--send-buffer",
        "64KiB",
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
    // An option that has no effect on a listener stays at its default there.
    let options = |listen: &Listen| {
        (
            listen.socket.nodelay,
            listen.socket.send_buffer,
            listen.socket.dual_stack,
            listen.socket.mode,
        )
    };
    let size = Some(64 << 10);
    assert_eq!(options(&service.listen[0]), (false, size, Some(true), None));
    assert_eq!(options(&service.listen[1]), (true, None, None, Some(Mode(0o660))));
    for listen in service.listen {
        assert_eq!(listen.socket.backlog, 7);
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
        (
            "--drain-timeout",
            "584554049253855y",
            "too long; expected at most 584542046090y",
        ),
        ("--idle-timeout", "99999999999999999999s", "too long"),
        ("--max-call-time", "584554049253y", "too long"),
        ("--idle-timeout", "0.1ns", "whole nanoseconds"),
        ("--idle-timeout", "0.001h", "use a smaller unit"),
        ("--idle-timeout", "584554049253855.5y", "too long"),
        ("--cpu-slice", "0.1ns", "from 1ms to 1s"),
        ("--keepalive", "584554049253855y", "from 1s to 32767s"),
        ("--cpu-slice", "584554049253855y", "from 1ms to 1s"),
        ("--max-memory", "lots", "64MiB"),
        ("--max-memory", "5GiB", "4GiB"),
        ("--max-memory", "0", "64KiB"),
        ("--max-memory", "1", "64KiB"),
        ("--max-memory", "63KiB", "64KiB"),
        ("--max-connections", "0", "zero"),
        ("--max-connections", "1e3", "whole number"),
        ("--env", "A", "KEY=VALUE"),
        ("--env", "=x", "empty"),
        ("--env", "TCPREMOTEIP=192.0.2.1", "the host sets"),
        ("--env", "SSL_CLIENT_S_DN=", "the host sets"),
        ("--dir", "/::/x:RW", "`:rw`"),
        ("--dir", "/::/x:rw:ro", "once"),
        ("--dir", "/::/x:w", "`:rw`, `:ro` or nothing"),
        ("--dir", "/::/x:readonly", "`:rw`, `:ro` or nothing"),
        ("--dir", "/::/a::rw", "`:rw`, `:ro` or nothing"),
        ("--dir", "/::/a/../b", "without `..`"),
        ("--dir", "/::", "after `::`"),
        ("--dir", "/:::rw", "after `::`"),
        ("--dir", "/::rw", "after `::`"),
        ("--dir", "::/x", "before `::`"),
        ("--listen", "unix:@", "name"),
        (
            "--listen",
            "[fe80::1%no-such-one]:80",
            "no network interface `no-such-one`",
        ),
        ("--listen", "[fe80::1]:80", "such as [fe80::1%eth0]:80"),
        ("--listen", "[fe80::1%0]:80", "such as [fe80::1%eth0]:80"),
        ("--admin", "[fe80::1]:80", "such as [fe80::1%eth0]:80"),
        ("--listen", "[::1%lo]:80", "only link-local addresses"),
        ("--listen", "[::1%99]:80", "expected [::1]:80"),
        (
            "--admin",
            "[fe80::1%no-such-one]:80",
            "no network interface `no-such-one`",
        ),
        ("--admin", "unix:@admin", "unix:PATH"),
        ("--component", "oci://example.org/a:1", "not supported"),
        ("--middleware", "https://example.org/a.wasm", "not supported"),
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
        ("--socket-owner", "4294967295", "at most 4294967294"),
        ("--socket-owner", "root:4294967295", "at most 4294967294"),
        ("--socket-owner", ":99999999999", "at most 4294967294"),
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
    for (args, expected) in [
        (&["--cache", ""][..], "empty"),
        (
            &["--env", "A=x", "--env", "A=y"],
            "--env: the variable `A` is given twice",
        ),
        (
            &["--dir", "/::/x", "--dir", "/tmp::/x:rw"],
            "--dir: two directories are called `/x` in the guest",
        ),
        (
            &["--socket-mode", "0600"],
            "--socket-mode has no effect here: a TCP socket has no file",
        ),
        (
            &["--dual-stack", "on"],
            "--dual-stack has no effect here: the address is one of IPv4",
        ),
        (
            &["--listen", "[::1]:0", "--dual-stack", "on"],
            "--dual-stack has no effect here: only `[::]` stands for addresses of IPv4 too",
        ),
        (
            &["--listen", "unix:a", "--send-buffer", "64KiB"],
            "--send-buffer has no effect here: connections of a Unix socket have the default buffers",
        ),
        (
            &["--listen", "unix:@a", "--receive-buffer", "64KiB"],
            "--receive-buffer has no effect here: connections of a Unix socket have the default buffers",
        ),
        (
            &["--listen", "unix:@a", "--socket-owner", "me"],
            "--socket-owner has no effect here: an abstract socket has no file",
        ),
        (
            &["--listen", "unix:a", "--nodelay", "off"],
            "--nodelay has no effect here: a Unix socket has no TCP options",
        ),
        (
            &["--listen", "unix:a", "--deny", "192.0.2.1"],
            "--deny has no effect here: clients of a Unix socket have no network address",
        ),
        (&["--proxy-protocol-timeout", "1s"], "--proxy-protocol-from"),
        (&["--tls-timeout", "1s"], "--tls-certificate"),
        (&["--gate", "a"], "--component"),
        (&["--drain-generations", "1s"], "--component"),
    ] {
        let error = config(args).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        let text = sentence(error, []);
        assert!(text.contains(expected), "{text}");
    }
    let both = config(&["-v", "-q"]).unwrap_err();
    assert_eq!(both.kind(), ErrorKind::ArgumentConflict);
    let instances = config(&["--instances", "2"]).unwrap_err();
    assert_eq!(instances.kind(), ErrorKind::ArgumentConflict);
}

#[test]
fn no_message_shows_a_secret_or_has_a_line_that_a_value_added() {
    let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHs3cr3t\n-----END PRIVATE KEY-----";
    let flat = pem.replace('\n', "");
    let base64 = "MC4CAQAwBQYDK2VwBCIEIHs3cr3tHs3cr3tHs3cr3tHs3cr3tHs3cr3tAAAAAAAA";
    let lines = "s3cr3t\nINFO listening on";
    let (mut refused, mut accepted) = (0, Vec::new());
    for value in [pem, &flat, base64, lines] {
        for flag in [
            "--tls-key",
            "--tls-certificate",
            "--tls-client-ca",
            "--admin-token",
            "--component",
            "--middleware",
            "--gate",
            "--config",
            "--cache",
            "--name",
            "--listen",
            "--dir",
            "--idle-timeout",
            "--isolation",
            "--log-format",
            "--admin",
            "--otlp",
            "--allow-outbound",
            "--max-memory",
            "--s3cr3t\n",
            "stray",
        ] {
            for args in [
                vec![flag.to_owned(), value.to_owned()],
                vec![format!("{flag}={value}")],
            ] {
                let args = [vec!["wasm-inetd".to_owned()], args].concat();
                let parsed = Cli::try_parse_from(&args).and_then(Cli::checked);
                let Err(error) = parsed else {
                    accepted.push(flag);
                    continue;
                };
                refused += 1;
                check(error, &args);
            }
        }
    }
    assert!(refused > 100, "{refused}");
    // A path may have line breaks, which messages escape, and the digits are a name.
    let paths = ["--component", "--middleware", "--config", "--cache"].map(|flag| [flag; 2]);
    assert_eq!(accepted, [&["--name"; 2], paths.as_flattened()].concat());
    for args in [
        &["--env", "s3cr3t"][..],
        &["--env", "=s3cr3t"],
        &["--env", "PROTO=s3cr3t"],
        &["--env", "A=s3cr3t", "--env", "A=s3cr3t"],
        &["--env", "A\nINFO=1", "--env", "A\nINFO=s3cr3t"],
        &["--otlp", "http://user:s3cr3t@127.0.0.1:4318"],
        &["--otlp", "http://127.0.0.1:4318/?key=s3cr3t"],
        &["--otlp", "https://127.0.0.1/s3cr3t"],
        &["--env", "A=1", "B=s3cr3t"],
        &["B=s3cr3t"],
        &["help", "B=s3cr3t"],
        &["--admin", "0", "q83v/EjRWs3cr3t="],
        &["check", lines, lines],
        &["new", lines],
        &["record", "--to", pem],
        &["profile", pem, "a"],
        &["replay", "a", pem],
        &["no-s3cr3t\nINFO"],
    ] {
        let args = [&["wasm-inetd"], args].concat();
        let error = Cli::try_parse_from(&args).and_then(Cli::checked).unwrap_err();
        check(error, &args);
    }
    fn check(error: clap::Error, args: &[impl std::fmt::Debug]) {
        let text = sentence(error, []);
        assert!(!text.to_lowercase().contains("s3cr3t"), "{args:?}: {text}");
        for line in text.lines() {
            assert!(!line.starts_with("INFO"), "{args:?}: {text}");
        }
    }
}

/// A URL with a password, or a token, can be given to any flag.
#[test]
fn no_flag_shows_a_value_that_may_be_a_secret() {
    let tokens = ["https://user:s3cr3t@host/x.wasm", "A7qEjRWs3cr3t42xs3cr3t"];
    let command = Cli::command();
    let (mut refused_count, mut flags) = (0, 0);
    let commands = std::iter::once(&command).chain(command.get_subcommands());
    for of in commands {
        let name = (of.get_name() != "wasm-inetd").then(|| of.get_name());
        for argument in of.get_arguments() {
            flags += 1;
            for token in tokens {
                let given = match argument.get_long() {
                    Some(flag) => vec![format!("--{flag}={token}")],
                    None => vec![token.to_owned()],
                };
                let args: Vec<_> = name.into_iter().map(str::to_owned).chain(given).collect();
                let args: Vec<_> = args.iter().map(String::as_str).collect();
                let words = [&["wasm-inetd"], &args[..]].concat();
                let Err(error) = Cli::try_parse_from(words).and_then(Cli::checked) else {
                    continue;
                };
                let message = sentence(error, args.iter().map(|arg| arg.into()));
                assert!(!message.contains("s3cr3t"), "{args:?}: {message}");
                refused_count += 1;
            }
        }
    }
    assert!(flags > 100 && refused_count > 200, "{flags} {refused_count}");
    for args in [
        &["--listen", "http://user:s3cr3t@host:80"][..],
        &["--listen", "https://host/x?token=s3cr3t"],
        &["--admin", "q83v/EjRWs3cr3t+Zk42LmNo/abc="],
        &["--admin", "s3cr3t-5f4dcc3b5aa765d61d8327deb882cf99"],
        &["--component", "oci://user:s3cr3t@host/x:1"],
        &["check", "https://user:s3cr3t@host/x.wasm"],
        &["compile", "https://user:s3cr3t@host/x.wasm"],
        &["replay", "https://user:s3cr3t@host/talks", "a.wasm"],
        &["replay", "talks", "https://user:s3cr3t@host/x.wasm"],
        &["--component", "a", "--gate", "https://user:s3cr3t@host/talks"],
        &["--config", "https://user:s3cr3t@host/services.toml"],
        &["record", "--to", "https://user:s3cr3t@host/talks"],
        &["--cache", "https://user:s3cr3t@host/cache"],
        &["--dir", "https://user:s3cr3t@host::/x"],
        &["--dir", "/A7qEjRWs3cr3t42xs3cr3t::/x"],
        &["new", "https://user:s3cr3t@host/guest"],
        &["new", "A7qEjRWs3cr3t42xs3cr3t"],
        &["completions", "A7qEjRWs3cr3t42xs3cr3t"],
        &["A7qEjRWs3cr3t42xs3cr3t"],
        &["--A7qEjRWs3cr3t42xs3cr3t"],
        &["--allow-outbound", "h:6379?password=s3cr3t"],
        &["--allow-outbound", "s3cr3t"],
        &["--listen", "[fe80::1%A7qEjRWs3cr3t42xs3cr3t]:80"],
        &["--env", "PASSWORD", "s3cr3t"],
        &["--env", "PASSWORD", "s3cr3t", "--quiet"],
        &["--env=PASSWORD", "s3cr3t"],
        &["--quiet", "--env", "s3cr3t", "="],
        &["check", "a.wasm", "--env", "PASSWORD", "s3cr3t"],
        &["record", "--to", "d", "--env", "PASSWORD", "s3cr3t"],
    ] {
        let message = refused(args);
        assert!(!message.contains("s3cr3t"), "{args:?}: {message}");
    }
    let message = refused(&["--env", "PASSWORD", "s3cr3t"]);
    assert!(message.contains("KEY=VALUE"), "{message}");
    // Other values are shown.
    for (args, shown) in [
        (
            &["--listen", "my-host.example.org:8080"][..],
            "my-host.example.org:8080",
        ),
        (
            &["--dir", "./no-such-directory/x86_64-unknown-linux-gnu::/x"],
            "no-such-directory",
        ),
        (&["--dir", "/::/x:readonly"], "`:readonly`"),
        (
            &["--component", "https://example.org/a.wasm"],
            "https://example.org/a.wasm",
        ),
        (&["--idle-timeout", "5"], "'5'"),
    ] {
        let message = refused(args);
        assert!(message.contains(shown), "{args:?}: {message}");
    }
}

#[test]
fn a_command_after_flags_is_told_to_come_first() {
    for args in [
        &["--config", "s.toml", "check", "a.wasm"][..],
        &["--config", "s.toml", "check"],
        &["--listen", "127.0.0.1:0", "check", "a.wasm"],
        &["--quiet", "check"],
    ] {
        let message = refused(args);
        assert!(
            message.contains("a command comes before all flags; write `wasm-inetd check`"),
            "{args:?}: {message}"
        );
    }
    assert!(!refused(&["stray"]).contains("comes before"));
}

#[test]
fn a_protocol_has_no_control_characters() {
    for name in ["x\0A=b", "h2\n", "\u{7f}", "\u{85}"] {
        let flag = format!("--tls-alpn={name}");
        let message = refused(&["--tls-certificate", "a", "--tls-key", "b", &flag]);
        assert!(message.contains("without control characters"), "{message}");
    }
}

#[test]
fn a_variable_without_its_flag_is_named_without_its_value() {
    for command in [
        &[][..],
        &["record", "--to", "d"],
        &["config"],
        &["check", "a.wasm"],
        &["check"],
        &["compile", "a.wasm"],
        &["compile"],
        &["replay", "talks", "a.wasm"],
        &["replay", "talks"],
        &["replay"],
        &["profile", "talks"],
    ] {
        let message = refused(&[command, &["--env", "A=1", "DB_PASSWORD=s3cr3t"]].concat());
        assert!(!message.contains("s3cr3t"), "{command:?}: {message}");
        assert!(
            message.contains("each `--env` takes one variable"),
            "{command:?}: {message}"
        );
    }
    let message = refused(&["--env", "A=1", "DB_PASSWORD=s3cr3t"]);
    assert!(
        message.starts_with("unexpected argument `DB_PASSWORD=...` (its value is not shown): each `--env`"),
        "{message}"
    );
    let message = refused(&["DB_PASSWORD=s3cr3t"]);
    assert!(
        message.contains("`DB_PASSWORD=...`") && message.contains("come after `--env`"),
        "{message}"
    );
    // A file of such a name is a file.
    assert_eq!(operand("./A=1".into()), Ok("./A=1".into()));
}

#[test]
fn what_no_client_can_reach_is_no_address() {
    for (flag, address) in [
        ("--listen", "224.0.0.1:8080"),
        ("--listen", "255.255.255.255:8080"),
        ("--listen", "[ff02::1]:8080"),
        ("--listen", "[::ffff:239.1.2.3]:8080"),
        ("--admin", "224.0.0.1:8080"),
    ] {
        let message = refused(&[flag, address]);
        assert!(message.contains("to which no client can connect"), "{message}");
    }
}

#[test]
fn a_port_of_a_collector_is_a_port() {
    for url in [
        "http://a:0",
        "http://a:99999",
        "http://a:",
        "http://a:+4318",
        "http://[::1]:65536",
    ] {
        let message = refused(&["--otlp", url]);
        assert!(message.contains("expected a URL such as"), "{url}: {message}");
    }
    for url in ["http://a", "http://a:4318", "HTTP://a", "http://[::1]:65535/b"] {
        assert!(
            Cli::try_parse_from(["wasm-inetd", "--otlp", url]).is_ok(),
            "{url}"
        );
    }
}

#[test]
fn no_number_has_a_sign() {
    for args in [
        ["--max-rate", "+5"],
        ["--max-connections", "+5"],
        ["--max-connections-per-source", "+5"],
        ["--max-memory", "+64MiB"],
        ["--max-bytes-in", "+5"],
        ["--threads", "+1"],
        ["--backlog", "+1"],
        ["--instances", "+1"],
        ["--otlp-sample", "+0.5"],
        ["--allow-outbound", "a:+1"],
        ["--admin", "+9090"],
        ["--idle-timeout", "+5s"],
        ["--max-bytes-in", "5.GiB"],
    ] {
        let message = refused(&args);
        assert!(message.contains("expected"), "{args:?}: {message}");
    }
}
