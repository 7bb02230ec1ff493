//! The command line.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use crate::harness::tools::with_own_network;
use crate::harness::{Client, HOST, Host, command, first_word, guest, refusal_of, refused, scratch};

fn output(args: &[&str]) -> (Option<i32>, String) {
    let output = command().args(args).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// Returns the names of all subcommands, as `--help` lists them.
fn subcommands() -> Vec<String> {
    let (status, help) = output(&["--help"]);
    assert_eq!(status, Some(0));
    let (_, list) = help.split_once("\nCommands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    // Further lines of a description are indented by more.
    let names = list.lines().filter_map(|line| line.strip_prefix("  "));
    let names = names.filter(|line| !line.starts_with(' ')).map(first_word);
    let names: Vec<_> = names.filter(|name| *name != "help").map(str::to_owned).collect();
    assert!(names.len() > 5, "{help}");
    names
}

/// Checks that `help` shows the flags that a section of docs/flags.md lists, with their defaults.
/// Returns how many flags and defaults there are.
fn shows(help: &str, section: &str) -> (usize, usize) {
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let (mut flags, mut defaults) = (0, 0);
    for entry in section.split("\n- **`").skip(1) {
        let entry = entry.split_whitespace().collect::<Vec<_>>().join(" ");
        let Some((flag, text)) = entry.split_once("`**: ") else {
            continue;
        };
        let Some(flag) = flag.split([' ', ',']).find(|word| word.starts_with("--")) else {
            continue;
        };
        let (_, after) = [format!(" {flag} "), format!(" {flag}... ")]
            .iter()
            .find_map(|flag| help.split_once(flag))
            .unwrap_or_else(|| panic!("{flag} is missing in\n{help}"));
        flags += 1;
        let Some((_, default)) = text.split_once("Default: `") else {
            continue;
        };
        let (default, _) = default.split_once('`').unwrap();
        // Up to the next flag.
        let own = after.split(" --").next().unwrap();
        assert!(
            own.contains(&format!("[default: {default}]")),
            "the default {default} of {flag} is missing in\n{own}"
        );
        defaults += 1;
    }
    (flags, defaults)
}

#[test]
fn help_shows_every_flag_with_its_default() {
    let (status, help) = output(&["--help"]);
    assert_eq!(status, Some(0));
    for heading in ["Service:", "Limits:", "Log:", "Examples:"] {
        assert!(help.contains(heading), "{heading} is missing in\n{help}");
    }
    let page = std::fs::read_to_string(guest_builder::workspace().join("docs/flags.md")).unwrap();
    let (page, of_subcommands) = page.split_once("\n## Subcommands\n").unwrap();
    let (flags, defaults) = shows(&help, page);
    assert!(flags > 50 && defaults > 15, "{flags} flags, {defaults} defaults");
    let (mut names, mut flags, mut defaults) = (Vec::new(), 0, 0);
    for section in of_subcommands.split("\n### `").skip(1) {
        let (name, section) = section.split_once('`').unwrap();
        let (status, help) = output(&[name, "--help"]);
        assert_eq!(status, Some(0), "{name}");
        let shown = shows(&help, section);
        flags += shown.0;
        defaults += shown.1;
        if let Some((_, headings)) = section.split_once("\nAlso takes the flags under: ") {
            let headings = headings.replace('\n', " ");
            for heading in headings.trim_end().trim_end_matches('.').split(", ") {
                assert!(
                    help.contains(&format!("\n{heading}:\n")),
                    "{name}: {heading} is missing in\n{help}"
                );
            }
        }
        names.push(name);
    }
    assert_eq!(names, subcommands());
    assert!(flags > 8 && defaults > 3, "{flags} flags, {defaults} defaults");
}

#[test]
fn shells_complete_and_the_manual_has_a_page_for_each_command() {
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef wasm-inetd"),
        ("fish", "complete -c wasm-inetd"),
    ] {
        let (status, script) = output(&["completions", shell]);
        assert_eq!(status, Some(0), "{shell}");
        assert!(
            script.contains(mark) && script.contains("max-connections"),
            "{shell}: {script}"
        );
    }
    // Bash completes the flags of subcommands.
    let (_, script) = output(&["completions", "bash"]);
    for (words, expected) in [
        ("wasm-inetd --gate-", "--gate-patience"),
        ("wasm-inetd check --comp", "--compile"),
        ("wasm-inetd new --la", "--lang"),
    ] {
        let last = words.rsplit(' ').next().unwrap();
        let script = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _wasm__inetd wasm-inetd {last} \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let bash = Command::new("bash").args(["-c", &script]).output().unwrap();
        let completed = String::from_utf8_lossy(&bash.stdout);
        assert!(
            completed.split_whitespace().any(|flag| flag == expected),
            "{words}: {completed} {}",
            String::from_utf8_lossy(&bash.stderr)
        );
    }
    for command in &subcommands() {
        let (status, page) = output(&["man", command]);
        assert_eq!(status, Some(0), "{command}");
        assert!(
            page.contains(".TH") && page.contains(&format!("wasm\\-inetd\\-{command}")),
            "{page}"
        );
    }
    let (status, page) = output(&["man"]);
    assert_eq!(status, Some(0));
    assert!(page.contains("SIGHUP") && page.contains("Exit status"), "{page}");
    assert_eq!(refused(&["man", "no-such-command"]).status, Some(2));
    assert_eq!(refused(&["completions", "no-such-shell"]).status, Some(2));
}

#[test]
fn version_is_that_of_the_package() {
    let (status, version) = output(&["--version"]);
    assert_eq!(status, Some(0));
    assert_eq!(version, concat!("wasm-inetd ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn what_cannot_be_understood_ends_with_2() {
    for args in [
        &["--no-such-flag"][..],
        &["--listen", "nowhere"],
        &["--idle-timeout", "soon"],
        &["stray"],
    ] {
        let refusal = refused(args);
        assert_eq!(refusal.status, Some(2), "{args:?}: {}", refusal.message);
        assert!(
            refusal.message.contains(args[args.len() - 1]),
            "{}",
            refusal.message
        );
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for args in [
        &["man"][..],
        &["config", "--schema"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        // Nobody reads.
        drop(reader);
        let output = command()
            .args(args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(
            (output.status.code(), output.stderr.as_slice()),
            (Some(0), &b""[..]),
            "{args:?}"
        );
    }
}

#[test]
fn messages_before_there_is_a_log_are_lines_of_their_own() {
    for (args, expected) in [
        (
            &["--config", "no\n\u{1b}[31msuch"][..],
            "error: cannot read the services file `no\\n\\u{1b}[31msuch`: ",
        ),
        (
            &["--config", "a", "--watch"],
            "error: --config cannot be combined with --watch",
        ),
        (&["man", "nothing"], "error: there is no command `nothing`"),
        (&["new", "a", "--lang", "c", "--contract", "streams"], "error: "),
        (
            &["--name", "a b"],
            "error: invalid value 'a b' for '--name <NAME>'",
        ),
    ] {
        let refusal = refused(args);
        assert_eq!(refusal.status, Some(2), "{args:?}: {}", refusal.message);
        assert!(refusal.message.starts_with(expected), "{}", refusal.message);
    }
}

#[test]
fn an_address_that_cannot_be_bound_comes_with_advice() {
    let dir = crate::harness::scratch("bind-advice");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("file"), "").unwrap();
    let dir = dir.display();
    for (address, advice) in [
        ("192.0.2.1:0".to_owned(), "choose an address of this machine"),
        (
            "[fe80::1%999999]:0".to_owned(),
            "no network interface with the number 999999",
        ),
        (
            format!("unix:{dir}/nowhere/s"),
            "nowhere` does not exist; create it",
        ),
        (format!("unix:{dir}/file/s"), "file` is not a directory"),
        (format!("unix:{dir}/s/"), "the path ends with `/`"),
        (format!("unix:{dir}/s/."), "the path ends with `/.`"),
        ("unix:/proc/s".to_owned(), "no socket can be created in `/proc`"),
    ] {
        let refusal = refused(&["--listen", &address]);
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        assert!(
            refusal.message.contains(&format!("cannot listen on {address}: "))
                && refusal.message.contains(advice)
                && refusal.message.contains("--listen"),
            "{}",
            refusal.message
        );
    }
}

#[test]
fn a_port_that_the_settings_of_the_kernel_refuse_comes_with_advice() {
    let Some(settings) = with_own_network().map(|_| "/proc/sys/net/ipv4") else {
        return;
    };
    // Without a network interface, a socket can be bound to every address only.
    for (setting, run, listen, advice) in [
        (
            "3000 >ip_unprivileged_port_start",
            "unshare --user",
            &["0.0.0.0:2000"][..],
            "cannot listen on 0.0.0.0:2000: Permission denied (os error 13); a port below 3000 may need \
             CAP_NET_BIND_SERVICE",
        ),
        (
            "40000 40000 >ip_local_port_range",
            "",
            &["0.0.0.0:40000", "0.0.0.0:0"],
            "cannot listen on 0.0.0.0:0: Address already in use (os error 98); the system has no free port",
        ),
    ] {
        let mut command = with_own_network().unwrap();
        let script = format!("(cd {settings} && echo {setting}) && exec {run} \"$0\" \"$@\"");
        command.args(["sh", "-c", &script, HOST]);
        for address in listen {
            command.args(["--listen", address]);
        }
        let refusal = refusal_of(&mut command);
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        assert!(refusal.message.contains(advice), "{}", refusal.message);
    }
}

#[test]
fn a_mapped_address_without_dual_stack_is_refused_with_its_cause() {
    let refusal = refused(&["--listen", "[::ffff:127.0.0.1]:0", "--dual-stack", "off"]);
    assert_eq!(refusal.status, Some(2), "{}", refusal.message);
    let expected = "--dual-stack: a socket for IPv6 alone cannot have [::ffff:127.0.0.1]:0, which is an \
                    address of IPv4; choose 127.0.0.1:0, or remove this setting";
    assert!(refusal.message.contains(expected), "{}", refusal.message);
}

#[test]
fn with_no_component_it_echoes() {
    let host = Host::start(&["--listen", "127.0.0.1:0"]);
    host.connect().echo("hello");
    assert!(host.log().contains("embedded echo guest"), "{}", host.log());
}

#[test]
fn it_listens_where_it_was_told_to() {
    let host = Host::start(&[
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "127.0.0.2:0",
        "--listen",
        "[::1]:0",
    ]);
    assert_eq!(host.addresses().len(), 3);
    for address in host.addresses() {
        Client::connect(*address).unwrap().echo("hello");
        let line = host.line("connection ended");
        assert!(line.contains(&format!("listener=\"{address}\"")), "{line}");
    }
}

/// Variables of the environment often have the URL of a database.
#[test]
fn a_url_in_place_of_a_destination_is_not_shown() {
    let dir = crate::harness::scratch("url-for-destination");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("services.toml");
    for url in ["postgres://user:s3cr3t@db:5432", "user:s3cr3t@db:5432"] {
        let by_flag = refused(&["--listen", "127.0.0.1:0", "--allow-outbound", url]);
        let text = format!(
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n\
             grants = {{ allow-outbound = [\"{url}\"] }}\n"
        );
        std::fs::write(&file, text).unwrap();
        let by_key = refused(&["--config", file.to_str().unwrap()]);
        for refusal in [by_flag, by_key] {
            assert_eq!(refusal.status, Some(2), "{}", refusal.message);
            assert!(
                refusal.message.contains("expected HOST:PORT"),
                "{}",
                refusal.message
            );
            assert!(!refusal.message.contains("s3cr3t"), "{}", refusal.message);
        }
    }
}

/// A command line is in the log of the service manager, and a URL in it may have a password.
#[test]
fn a_url_with_a_password_is_shown_in_no_place() {
    let url = "https://user:s3cr3t@host/x";
    for args in [
        &["check", url][..],
        &["--component", url],
        &["--config", url],
        &["check", "--config", url],
        &["replay", url, "a.wasm"],
        &["--component", "a", "--gate", url],
        &["man", "q83v/EjRWs3cr3t+Zk42LmNo/abc="],
        &["--env", "PASSWORD", "s3cr3t"],
    ] {
        let refusal = refused(args);
        assert_eq!(refusal.status, Some(2), "{args:?}: {}", refusal.message);
        assert!(
            !refusal.message.contains("s3cr3t"),
            "{args:?}: {}",
            refusal.message
        );
    }
}

#[test]
fn a_secret_in_place_of_its_file_is_not_shown() {
    let secret = "5f4dcc3b5aa765d61d8327deb882cf99";
    let expected = "no file has this name; expected the path of a file that contains the secret";
    let hidden = |said: &str| {
        assert!(said.contains(expected) && !said.contains(secret), "{said}");
    };
    let service = "--listen 127.0.0.1:0";
    for flags in [
        format!("--admin 127.0.0.1:0 --admin-token {secret}"),
        format!("--tls-certificate a.pem --tls-key {secret}"),
    ] {
        let args: Vec<&str> = service.split(' ').chain(flags.split(' ')).collect();
        hidden(&refused(&args).message);
    }
    let dir = crate::harness::scratch("secret-for-file");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("services.toml");
    let service = |more: &str| format!("[[service]]\nname = \"a\"\nlisten = [{more}]\n");
    let path = file.to_str().unwrap();
    let tls = |key: &str| {
        format!("{{ address = \"127.0.0.1:0\", tls = {{ certificate = \"a.pem\", key = \"{key}\" }} }}")
    };
    // The secret in a services file, of which `part` must not be shown.
    let is_hidden_in_file = |secret: &str, part: &str, hidden: &dyn Fn(&str)| {
        let admin = format!("[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{secret}\"\n");
        for text in [service(&tls(secret)), admin + &service("\"127.0.0.1:0\"")] {
            std::fs::write(&file, &text).unwrap();
            hidden(&refused(&["--config", path]).message);
            hidden(&refused(&["check", "--config", path]).message);
            std::fs::write(&file, service("\"127.0.0.1:0\"")).unwrap();
            let host = Host::with_config(&file, 1);
            std::fs::write(&file, &text).unwrap();
            host.signal(crate::harness::HUP);
            hidden(&host.line("nothing changed"));
            assert!(!host.log().contains(part), "{}", host.log());
        }
    };
    is_hidden_in_file(secret, secret, &hidden);
    // A JWT has dots, as names of files have.
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzM2NyM3QifQ.s3cr3tAZ09-_s3cr3t";
    let hidden_jwt = |said: &str| assert!(said.contains(expected) && !said.contains("s3cr3t"), "{said}");
    for flag in [
        ["--admin", "0", "--admin-token", jwt],
        ["--tls-certificate", "a", "--tls-key", jwt],
    ] {
        hidden_jwt(&refused(&[&["--listen", "127.0.0.1:0"], &flag[..]].concat()).message);
    }
    is_hidden_in_file(jwt, "s3cr3t", &hidden_jwt);
    assert!(
        !std::path::Path::new(jwt).exists(),
        "no file has the token as its name"
    );
    // Base64 looks like a path.
    let secret = "q83v/EjRWs3cr3t5f4dcc3b5aa765d61d8327deb882c=";
    let hidden = |said: &str| {
        assert!(
            said.contains("expected the path of a file") && !said.contains("s3cr3t"),
            "{said}"
        );
    };
    let message = refused(&["--listen", "127.0.0.1:0", "--admin", "0", "--admin-token", secret]).message;
    assert!(
        message.contains("cannot create the token file of `--admin-token` (not shown"),
        "{message}"
    );
    hidden(&message);
    is_hidden_in_file(secret, "s3cr3t", &hidden);
    // The path of a missing file in a directory that exists is shown.
    std::fs::write(&file, service(&tls("./missing-key-of-the-host"))).unwrap();
    assert!(
        refused(&["--config", path])
            .message
            .contains("missing-key-of-the-host")
    );
    // A file that exists is a file, whatever its name.
    let secret = "5f4dcc3b5aa765d61d8327deb882cf99";
    let tls =
        format!("{{ address = \"127.0.0.1:0\", tls = {{ certificate = \"a.pem\", key = \"{secret}\" }} }}");
    std::fs::write(dir.join(secret), "not a key").unwrap();
    std::fs::write(&file, service(&tls)).unwrap();
    assert!(refused(&["--config", path]).message.contains(secret));
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refusal = refused(&["--listen", &address]);
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    assert!(
        refusal.message.contains(&format!("cannot listen on {address}")),
        "{}",
        refusal.message
    );
    assert!(refusal.message.contains("in use"), "{}", refusal.message);
}

#[test]
fn a_start_that_cannot_listen_announces_and_creates_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = scratch("in-use-records");
    let records = dir.join("records");
    fs::create_dir_all(&dir).unwrap();
    let refusal = refused(&[
        "record",
        "--to",
        records.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &address,
        "--admin",
        "0",
        "--otlp",
        "http://127.0.0.1:1",
    ]);
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    for line in ["admin interface at", "sending traces", "serving", "listening on"] {
        assert!(!refusal.message.contains(line), "{}", refusal.message);
    }
    assert!(!records.exists());
}

#[test]
fn values_neither_add_lines_to_the_output_nor_control_a_terminal() {
    let dir = crate::harness::scratch("output-lines");
    std::fs::create_dir_all(&dir).unwrap();
    let odd = dir.join("it's\u{1b}[31m\u{202e}");
    std::fs::create_dir_all(&odd).unwrap();
    let (status, text) = output(&["new", odd.join("guest").to_str().unwrap(), "--lang", "c"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    assert!(text.contains(r"/it'\''s\u{1b}[31m\u{202e}/guest'"), "{text}");
    for args in [
        &["--name", "a\nINFO listening on 127.0.0.1:8080"][..],
        &["a\nINFO"],
        &["--listen\nINFO"],
        &["new", "a\nINFO/b"],
        &["--admin", "0", "--admin-token", "a\nINFO"],
        &["--tls-key=a\nINFO", "--tls-certificate", "a"],
        &["--config", "a\nINFO"],
        &["--env", "A\nINFO=b", "--env", "A\nINFO=c"],
    ] {
        let refusal = refused(args);
        assert_eq!(refusal.status, Some(2), "{args:?}: {}", refusal.message);
        assert!(!refusal.message.contains("\nINFO"), "{}", refusal.message);
    }
}

/// Messages that name settings by keys of a services file, where there is none.
#[test]
fn settings_of_flags_are_named_as_flags() {
    let path = |name| guest(name).to_str().unwrap().to_owned();
    let [echo, gzip, lines] = ["echo", "gzip", "lines-session"].map(path);
    let listen = ["--listen", "127.0.0.1:0"];
    for (args, status, expected) in [
        (
            &["--component", &lines, "--isolation", "service"][..],
            1,
            &["`--isolation service` requires", "or omit `--isolation`"][..],
        ),
        (&["--middleware", &echo], 1, &["or name it as `--component` if"]),
        (
            &["--component", &gzip],
            1,
            &["name it as `--middleware` and a service as `--component`"],
        ),
        (
            &["--component", &lines, "--middleware", &gzip],
            1,
            &["or omit `--middleware`"],
        ),
        (
            &["--isolation", "service", "--max-cpu-time", "1s"],
            2,
            &["--max-cpu-time: ", "or `--isolation service`"],
        ),
        (
            &["--component", &lines, "--preinit"],
            1,
            &["which `--preinit` calls", "or omit `--preinit`"],
        ),
        (&["--component", &lines, "--gate", "/nowhere"], 1, &["`--gate`"]),
    ] {
        let refusal = refused(&[&listen, args].concat());
        assert_eq!(refusal.status, Some(status), "{args:?}: {}", refusal.message);
        for words in expected {
            assert!(refusal.message.contains(words), "{words}: {}", refusal.message);
        }
    }
    let record = ["record", "--to", "/tmp/never", "--isolation", "service"];
    let refusal = refused(&record);
    assert!(
        refusal.message.contains("--to: ") && refusal.message.contains("`--isolation service`"),
        "{}",
        refusal.message
    );
    // The component of `check` is no flag.
    let refusal = refused(&["check", &gzip]);
    let expected = "name it as `--middleware` and a service as `FILE`";
    assert!(refusal.message.contains(expected), "{}", refusal.message);
    // What cannot be cached is a warning.
    let host = Host::start(&["--listen", "127.0.0.1:0", "--cache", "/dev/null/cache"]);
    let log = host.log();
    assert!(log.contains("; set `--cache` to a directory"), "{log}");
}

#[test]
fn paths_that_are_not_utf8_cannot_be_printed_and_are_named() {
    let path = OsStr::from_bytes(b"/nowhere/\xff.wasm");
    for (flag, more) in [
        ("--component", &[][..]),
        ("--middleware", &[]),
        ("--gate", &["--component", "a"]),
        ("--tls-certificate", &["--tls-key", "a"]),
        ("--admin-token", &["--admin", "1"]),
    ] {
        let args = ["config", "--print", flag].map(OsStr::new);
        let refusal = refusal_of(command().args(args).arg(path).args(more));
        let expected = format!("of `{flag}` is not valid UTF-8");
        assert!(
            refusal.message.contains(&expected) && refusal.message.contains("/nowhere/"),
            "{}",
            refusal.message
        );
    }
    // A relative path is one below the directory in which the program runs.
    let dir = scratch("not-utf-8").join(OsStr::from_bytes(b"\xff"));
    fs::create_dir_all(&dir).unwrap();
    for (flag, value) in [
        ("--listen", "unix:s"),
        ("--dir", ".::/data"),
        ("--admin", "unix:s"),
    ] {
        let args = ["config", "--print", flag, value];
        let refusal = refusal_of(command().current_dir(&dir).args(args));
        let expected = format!("of `{flag}` is not valid UTF-8");
        assert!(refusal.message.contains(&expected), "{}", refusal.message);
    }
    let refusal = refusal_of(command().arg("--env").arg(path));
    assert_eq!(refusal.status, Some(2));
    assert!(refusal.message.contains("the value of --env is not valid UTF-8"));
}
