//! Conversations: recorded, replayed, and as a gate that a component has to pass.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::{Client, HUP, Host, Place, command, guest, noise, refused, replace, scratch, until};

/// Runs `wasm-inetd replay`, and gives its exit status and its output.
fn replay(dir: &Path, guest: &Path) -> (Option<i32>, String) {
    replay_with(dir, guest, &[])
}

fn replay_with(dir: &Path, guest: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = command();
    let output = command
        .arg("replay")
        .args(flags)
        .arg(dir)
        .arg(guest)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// A directory with one conversation, `1.conversation`.
fn written(name: &str, text: &str) -> PathBuf {
    let dir = scratch(&format!("talks-{name}"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("1.conversation"), text).unwrap();
    dir
}

/// A conversation in which `guest` has echoed lines, as it was recorded.
fn recorded(name: &str, guest_name: &str) -> (PathBuf, String) {
    let dir = scratch(&format!("talks-{name}"));
    let component = guest(guest_name);
    let (dir_text, component) = (dir.to_str().unwrap(), component.to_str().unwrap());
    let host = Host::start(&[
        "record",
        "--to",
        dir_text,
        "--listen",
        "127.0.0.1:0",
        "--component",
        component,
    ]);
    let client = host.connect();
    client.echo("one\n");
    client.echo("two \x01\\\"\n");
    client.finish();
    assert_eq!(client.rest(), b"");
    host.line("connection ended");
    let file = dir.join("00000001.conversation");
    until("the conversation is written", || {
        fs::read_to_string(&file).is_ok_and(|text| text.ends_with("< end\n"))
    });
    let text = fs::read_to_string(file).unwrap();
    (dir, text)
}

#[test]
fn what_is_said_is_written_down() {
    for guest in ["lines-session", "lines", "echo"] {
        let (_, text) = recorded(&format!("written-{guest}"), guest);
        let expected = "# connection 1, finished\n> \"one\\n\"\n< \"one\\n\"\n> \"two \\x01\\\\\\\"\\n\"\n\
                        < \"two \\x01\\\\\\\"\\n\"\n> end\n< end\n";
        assert_eq!(text, expected, "{guest}");
    }
}

#[test]
fn a_component_that_says_the_same_passes_and_another_is_shown_where_it_does_not() {
    let (dir, _) = recorded("replayed", "lines-session");
    for same in ["lines-session", "lines", "echo", "arbiter", "copy"] {
        let (status, said) = replay(&dir, &guest(same));
        assert_eq!(
            (status, said.as_str()),
            (Some(0), "1 conversation, no differences\n"),
            "{same}"
        );
    }
    for (other, found) in [
        ("daytime", "+ < \""),
        ("discard", "+ nothing more for 5s"),
        ("sink", "+ < \"ready\\n\""),
    ] {
        let (status, said) = replay(&dir, &guest(other));
        assert_eq!(status, Some(1), "{other}: {said}");
        for part in ["00000001.conversation:3\n", "- < \"one\\n\"\n", found] {
            assert!(said.contains(part), "{other}: no {part:?} in {said}");
        }
    }
}

#[test]
fn a_conversation_can_be_written_by_hand() {
    let dir = written(
        "by-hand",
        "# A word resets it.\n> \"hello\"\n< \"hello\"\n> \"!\"\n< reset\n",
    );
    assert_eq!(replay(&dir, &guest("hang-up-session")).0, Some(0));
    let (status, said) = replay(&dir, &guest("echo"));
    assert_eq!(status, Some(1));
    assert!(said.contains("1.conversation:5\n- < reset\n+ < \"!\""), "{said}");
    fs::remove_file(dir.join("1.conversation")).unwrap();
    let (status, said) = replay(&dir, &guest("echo"));
    assert_eq!(status, Some(1));
    assert!(said.contains("no conversations in"), "{said}");
}

#[test]
fn what_is_no_conversation_is_refused_with_its_file_line_and_problem() {
    for (text, expected) in [
        ("> hello\n", "line 1: expected a text in quotes"),
        ("> \"a\"\n< \"\\q\"\n", "line 2: `\\q` is not a valid escape"),
        (
            "> \"a\"\n> end\n> \"b\"\n",
            "line 3: `> \"...\"` cannot follow `> end` in line 2",
        ),
        (
            "> \"a\"\n> reset\n< \"a\"\n",
            "line 3: `< \"...\"` cannot follow `> reset` in line 2",
        ),
        ("", "the file has no steps"),
        ("# connection 1, finished\n", "the file has no steps"),
    ] {
        let (status, said) = replay(&written("none", text), &guest("echo"));
        assert_eq!(status, Some(1), "{text}: {said}");
        assert!(
            said.contains("1.conversation`") && said.contains(expected),
            "{text}: {said}"
        );
    }
}

#[test]
fn a_conversation_may_begin_with_a_byte_order_mark() {
    let text = "\u{feff}> \"a\"\n> end\n< \"a\"\n< end\n";
    let (status, said) = replay(&written("mark", text), &guest("echo"));
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn a_guest_that_does_more_than_the_conversation_has_differs() {
    for (text, name, expected) in [
        (
            "> \"hello\"\n< \"hel\"\n",
            "echo",
            "1.conversation:2\n- nothing more\n+ < \"lo\"\n",
        ),
        (
            "> \"hello\"\n< \"hel\"\n> end\n",
            "echo",
            "1.conversation:3\n- nothing more\n+ < \"lo\"\n",
        ),
        (
            "> \"a\"\n< \"a\"\n> end\n< end\n< reset\n",
            "echo",
            "1.conversation:5\n- < reset\n+ < end\n",
        ),
        (
            "> \"!\"\n",
            "panic",
            "1.conversation:1\n- nothing more\n+ < trap\n",
        ),
        (
            "> \"!\"\n",
            "hang-up",
            "1.conversation:1\n- nothing more\n+ < reset\n",
        ),
    ] {
        let (status, said) = replay(&written("more", text), &guest(name));
        assert_eq!(status, Some(1), "{text}: {said}");
        assert!(said.contains(expected), "{text}: {said}");
        // The guest is not told that the client ends, unless the conversation says so.
        assert!(
            text.contains("end") || !said.contains("+ < end"),
            "{text}: {said}"
        );
    }
    // What a client that resets does not hear is not compared.
    let (status, said) = replay(
        &written("more", "> \"hello\"\n< \"hel\"\n> reset\n"),
        &guest("echo"),
    );
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn a_program_ends_with_the_exit_status_of_the_conversation() {
    // A component says no more than whether its status is 0.
    for (status, end, found) in [
        (0, "< end", None),
        (2, "< end\n< exit 1", None),
        (2, "< exit 1", None),
        (2, "< end", Some("4\n- nothing more\n+ < end\n+ < exit 1\n")),
        (2, "", Some("3\n- nothing more\n+ < end\n+ < exit 1\n")),
        (2, "< end\n< exit 2", Some("5\n- < exit 2\n+ < end\n+ < exit 1\n")),
        (0, "< end\n< exit 1", Some("5\n- < exit 1\n+ < end\n")),
        // It may not be able to read what came before.
        (2, "> reset", None),
    ] {
        let text = format!("> \"exit {status}\\n\"\n> \"args\\n\"\n< \"leaving\"\n{end}\n");
        let (code, said) = replay(&written("status", &text), &guest("errands"));
        assert_eq!(code, Some(i32::from(found.is_some())), "{text}{said}");
        let found = found.unwrap_or_default();
        assert!(said.contains(found), "{text}{said}");
    }
}

#[test]
fn an_exit_status_is_recorded() {
    let dir = scratch("talks-exit-recorded");
    let component = guest("errands");
    let (dir_text, component) = (dir.to_str().unwrap(), component.to_str().unwrap());
    let listen = ["--listen", "127.0.0.1:0", "--component", component];
    let host = Host::start(&[&["record", "--to", dir_text][..], &listen].concat());
    let client = host.connect();
    client.send("exit 3\nargs\n");
    assert_eq!(client.rest(), b"leaving");
    host.line("connection ended");
    let file = dir.join("00000001.conversation");
    until("the conversation is written", || {
        fs::read_to_string(&file).is_ok_and(|text| text.ends_with("< end\n< exit 1\n"))
    });
    let (code, said) = replay(&dir, Path::new(component));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_guest_that_fails_is_shown_with_how_it_failed_and_what_it_wrote() {
    let dir = written("fails", "> \"!\"\n< \"!\"\n");
    let (status, said) = replay(&dir, &guest("panic"));
    assert_eq!(status, Some(1));
    for part in [
        "1.conversation:2\n- < \"!\"\n+ < trap\n  wasm ",
        "\n  standard error:\n",
        "the peer asked for a panic",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!said.contains("INFO") && !said.contains("DEBUG"), "{said}");
    let (status, said) = replay_with(&dir, &guest("panic"), &["-v"]);
    assert_eq!(status, Some(1));
    for part in ["guest output", "conversation replayed", "outcome=\"guest-trap\""] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn resets_traps_and_limits_are_told_apart() {
    let endings = ["< reset", "< trap", "< cpu-limit", "< byte-limit", "< end"];
    for (name, flags, ending) in [
        ("hang-up", &[][..], "< reset"),
        ("hang-up-session", &[], "< reset"),
        ("trap", &[], "< trap"),
        ("panic", &[], "< trap"),
        ("spin", &["--max-call-time", "300ms"], "< cpu-limit"),
        ("echo", &["--max-bytes-in", "1"], "< byte-limit"),
    ] {
        for expected in endings {
            let text = format!("> \"a\"\n< \"a\"\n> \"!!!\"\n{expected}\n");
            let (status, said) = replay_with(&written("endings", &text), &guest(name), flags);
            if expected == ending {
                assert_eq!(status, Some(0), "{name}: {said}");
            } else {
                let shown = format!("1.conversation:4\n- {expected}\n+ {ending}\n");
                assert_eq!(status, Some(1), "{name}: {said}");
                assert!(said.contains(&shown), "{name}: {said}");
            }
        }
    }
}

#[test]
fn a_failure_behind_a_long_text_that_differs_is_shown() {
    // More than what waits for the client at most, so that the guest is at work when it differs.
    let long = format!("> \"{}\\n\"\n", "a".repeat(60_000)).repeat(5);
    let text = format!("{long}> \"say\\ntrap\\n\"\n< \"b\"\n");
    let (status, said) = replay(&written("long", &text), &guest("moody"));
    assert_eq!(status, Some(1), "{said}");
    for part in ["\n- < \"b\"\n+ < \"aaa", "\n+ < trap\n", "as it was told"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

#[test]
fn a_replay_says_that_it_compiles_a_large_component() {
    // A custom section of 5 MiB, which no cache has seen.
    let mut component = fs::read(guest("echo")).unwrap();
    component.extend([0, 0x82, 0x80, 0xc0, 0x02, 1, b'#']);
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    component.extend(noise(seed.as_nanos() as u64, 5 << 20));
    let dir = written("large", "> end\n< end\n");
    let file = crate::harness::file("large.wasm", component);
    let (status, said) = replay(&dir, &file);
    assert_eq!(status, Some(0), "{said}");
    for part in [
        "INFO compiling `",
        "INFO compiled `",
        "1 conversation, no differences\n",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

#[test]
fn a_break_splits_what_the_client_sends() {
    // It answers whole chunks, and fails at one with `!`.
    let text = "> \"ab\"\n> break\n> \"!\"\n< \"ab\"\n< trap\n";
    assert_eq!(replay(&written("break", text), &guest("panic")).0, Some(0));
    let text = text.replace("> break\n", "");
    let (status, said) = replay(&written("break", &text), &guest("panic"));
    assert_eq!(status, Some(1), "{said}");
}

#[test]
fn a_pause_takes_its_time_and_patience_is_as_long_as_it_is_asked_to_be() {
    let text = "> \"a\"\n< \"a\"\n> pause 300ms\n> \"b\"\n< \"b\"\n> end\n< end\n";
    let start = Instant::now();
    assert_eq!(replay(&written("pause", text), &guest("echo")).0, Some(0));
    assert!(start.elapsed() >= Duration::from_millis(300));
    // There is a tenth of a second between the two words.
    let dir = written("patience", "< \"tick\\n\"\n< \"tock\\n\"\ncut\n");
    assert_eq!(replay(&dir, &guest("metronome")).0, Some(0));
    let (status, said) = replay_with(&dir, &guest("metronome"), &["--patience", "1ms"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("nothing more for 1ms"), "{said}");
    // No clock counts as far.
    let (status, said) = replay_with(&dir, &guest("metronome"), &["--patience", "400000000000y"]);
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = replay_with(&dir, &guest("metronome"), &["--patience", "0s"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("--patience"), "{said}");
}

/// A conversation that was recorded is replayed without a difference by the same guest on the same
/// terms.
fn is_the_same_again(
    name: &str,
    guest_name: &str,
    flags: &[&str],
    ending: &str,
    talk: impl FnOnce(&mut Host),
) {
    let dir = scratch(&format!("talks-again-{name}"));
    let component = guest(guest_name);
    let (to, file) = (dir.to_str().unwrap(), component.to_str().unwrap());
    let args = [
        "record",
        "--to",
        to,
        "--listen",
        "127.0.0.1:0",
        "--component",
        file,
    ];
    let mut host = Host::start(&[&args, flags].concat());
    talk(&mut host);
    let file = dir.join("00000001.conversation");
    until("the conversation is written", || file.exists());
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.ends_with(&format!("\n{ending}\n")), "{name}: {text}");
    // Neither the time of a host nor a drain is part of what is replayed.
    let flags = match flags {
        ["--max-call-time" | "--max-bytes-out", _] => flags,
        _ => &[],
    };
    let (status, said) = replay_with(&dir, &component, flags);
    assert_eq!(status, Some(0), "{name}: {text}{said}");
}

#[test]
fn what_is_recorded_is_replayed_by_the_same_guest_however_it_ended() {
    let idle = ["--idle-timeout", "100ms"];
    let waits = |host: &mut Host| {
        let client = host.connect();
        client.echo("hi\n");
        client.rest();
        host.line("connection ended");
    };
    let asks = |host: &mut Host| {
        let client = host.connect();
        client.send("!");
        client.expect_reset();
        host.line("connection ended");
    };
    is_the_same_again("idle", "echo", &idle, "cut", waits);
    is_the_same_again("idle-session", "lines-session", &idle, "cut", waits);
    is_the_same_again("lifetime", "echo", &["--max-lifetime", "100ms"], "cut", waits);
    is_the_same_again(
        "silent",
        "echo",
        &["--first-byte-timeout", "100ms"],
        "cut",
        |host| {
            assert_eq!(host.connect().rest(), b"");
        },
    );
    is_the_same_again("drained", "echo", &["--drain-timeout", "100ms"], "cut", |host| {
        let client = host.connect();
        client.echo("hi\n");
        assert!(host.stop().success());
    });
    // It would go on for ever, and has sent more than the client has read.
    is_the_same_again(
        "chargen",
        "chargen",
        &["--max-lifetime", "100ms"],
        "cut",
        |host| {
            let client = host.connect();
            client.line();
            host.line("connection ended");
        },
    );
    is_the_same_again("client-resets", "chargen", &[], "> reset", |host| {
        let client = host.connect();
        client.line();
        client.reset();
    });
    is_the_same_again(
        "too-much",
        "chargen",
        &["--max-bytes-out", "1000"],
        "< byte-limit",
        |host| {
            host.connect().expect_reset();
        },
    );
    is_the_same_again("reset", "hang-up", &[], "< reset", asks);
    is_the_same_again("trap", "trap", &[], "< trap", asks);
    is_the_same_again("cpu", "spin", &["--max-call-time", "100ms"], "< cpu-limit", asks);
    // It ends its half first and reads on.
    is_the_same_again("ends-first", "sink", &[], "> end", |host| {
        let client = host.connect();
        client.send("one");
        client.expect("ready\n");
        assert_eq!(client.half(), b"");
        client.send("two");
        client.finish();
        host.line("connection ended");
    });
}

#[test]
fn hosts_that_record_to_one_directory_replace_nothing() {
    let dir = scratch("talks-two-hosts");
    let hosts =
        [(); 2].map(|()| Host::start(&["record", "--to", dir.to_str().unwrap(), "--listen", "127.0.0.1:0"]));
    for number in 0..3 {
        for (name, host) in ["a", "b"].iter().zip(&hosts) {
            let client = host.connect();
            client.echo(format!("{name}{number}"));
            client.finish();
            assert_eq!(client.rest(), b"");
            host.line("connection ended");
        }
    }
    let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let texts: Vec<_> = entries.map(|path| fs::read_to_string(path).unwrap()).collect();
    assert_eq!(texts.len(), 6, "{texts:?}");
    for said in ["a0", "a1", "a2", "b0", "b1", "b2"] {
        assert_eq!(
            texts.iter().filter(|text| text.contains(said)).count(),
            1,
            "{said}"
        );
    }
}

#[test]
fn a_service_that_comes_later_records_beside_another() {
    let dir = scratch("talks-services");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("services.toml");
    let table = |name: &str| {
        format!("[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\nrecord = \"talks\"\n")
    };
    fs::write(&file, table("a")).unwrap();
    let mut host = Host::with_config(&file, 1);
    let talk = |host: &Host, address, said: &str| {
        let client = Client::connect(address).unwrap();
        client.echo(said);
        client.finish();
        assert_eq!(client.rest(), b"");
        host.line("connection ended");
    };
    let a = host.address();
    talk(&host, a, "one");
    fs::write(&file, table("a") + &table("b")).unwrap();
    host.signal(HUP);
    host.listens(1);
    let b = *host.addresses().last().unwrap();
    for (address, said) in [(b, "two"), (a, "three"), (a, "four")] {
        talk(&host, address, said);
    }
    let entries = fs::read_dir(dir.join("talks")).unwrap();
    let texts: Vec<_> = entries
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    for said in ["one", "two", "three", "four"] {
        assert_eq!(
            texts.iter().filter(|text| text.contains(said)).count(),
            1,
            "{said}: {texts:?}"
        );
    }
}

#[test]
fn a_reconfiguration_that_cannot_listen_creates_no_directory() {
    let dir = scratch("talks-not-reconfigured");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("services.toml");
    let service = "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n";
    fs::write(&file, service).unwrap();
    let host = Host::with_config(&file, 1);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let other = format!("[[service]]\nname = \"b\"\nlisten = [\"{address}\"]\nrecord = \"talks\"\n");
    fs::write(&file, service.to_owned() + &other).unwrap();
    host.signal(HUP);
    let line = host.line("reconfiguration failed");
    assert!(line.contains(&format!("cannot listen on {address}")), "{line}");
    assert!(!dir.join("talks").exists());
}

#[test]
fn conversations_of_shared_instances_are_not_recorded() {
    let refusal = crate::harness::refused(&["record", "--to", "talks", "--isolation", "service"]);
    assert_eq!(refusal.status, Some(2), "{}", refusal.message);
    assert!(
        refusal.message.contains("--to: ") && refusal.message.contains("shared instance"),
        "{}",
        refusal.message
    );
    let text =
        "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\nisolation = \"service\"\nrecord = \"r\"\n";
    let file = crate::harness::file("shared-record.toml", text);
    let refusal = crate::harness::refused(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(refusal.status, Some(2), "{}", refusal.message);
    assert!(
        refusal.message.contains("service[0].record: ") && refusal.message.contains("shared instance"),
        "{}",
        refusal.message
    );
}

#[test]
fn what_does_not_pass_the_gate_does_not_serve() {
    let (gate, _) = recorded("gate", "lines-session");
    let dir = scratch("talks-gate-service");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("guest.wasm");
    let put = |name: &str| replace(&file, fs::read(guest(name)).unwrap());
    put("lines-session");
    let gate_flag = ["--gate", gate.to_str().unwrap()];
    let more = ["--gate-patience", "400000000000y", "--max-connections", "1"];
    let host = Host::with(
        &file,
        &[gate_flag, [more[0], more[1]], [more[2], more[3]]].concat(),
    );
    // Every connection that there may be is open meanwhile.
    let client = host.connect();
    client.echo("hello\n");
    put("daytime");
    host.signal(HUP);
    let line = host.line("keeps serving");
    assert!(line.contains("does not pass the gate"), "{line}");
    // In the same line is how the guest failed and what it wrote.
    put("panic");
    fs::write(gate.join("2.conversation"), "> \"!\"\n< \"!\"\n").unwrap();
    host.signal(HUP);
    let line = host.line("keeps serving");
    for part in [
        "2.conversation:2: expected < ",
        "found < trap (wasm ",
        "the peer asked for a panic",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert!(!host.log().contains("guest output"), "{}", host.log());
    fs::remove_file(gate.join("2.conversation")).unwrap();
    put("lines");
    host.signal(HUP);
    host.line("component reloaded");
    client.echo("still here\n");
    drop(client);
    host.connect().echo("hello\n");
}

#[test]
fn a_component_whose_gate_could_not_be_read_is_tried_again() {
    let (gate, _) = recorded("gate-away", "lines-session");
    let place = Place::new("gate-away", "lines-session");
    let host = place.serve(&["--gate", gate.to_str().unwrap(), "--watch"]);
    let away = gate.with_extension("away");
    fs::rename(&gate, &away).unwrap();
    place.put("lines");
    host.line("keeps serving");
    fs::rename(&away, &gate).unwrap();
    host.line("component reloaded");
    host.connect().echo("hello\n");
}

#[test]
fn a_directory_of_conversations_that_others_can_replace_is_refused() {
    let shared = scratch("replay-shared");
    let talks = shared.join("talks");
    fs::create_dir_all(&talks).unwrap();
    fs::write(talks.join("1.conversation"), "> \"a\\n\"\n< \"a\\n\"\n> end\n").unwrap();
    let (talks, component) = (talks.to_str().unwrap(), guest("lines"));
    let listen = [
        "--listen",
        "127.0.0.1:0",
        "--component",
        component.to_str().unwrap(),
    ];
    let uses = [
        [&listen[..], &["--gate", talks]].concat(),
        [&["record", "--to", talks], &listen[..]].concat(),
    ];
    let dir = shared.to_str().unwrap();
    let mode = |mode| fs::set_permissions(&shared, fs::Permissions::from_mode(mode)).unwrap();
    for arguments in &uses {
        mode(0o777);
        let refusal = refused(arguments);
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        for part in [dir, "0777", "chmod go-w"] {
            assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
        }
        mode(0o1777);
        drop(Host::start(arguments));
    }
}

#[test]
fn a_changed_service_passes_its_gate_too() {
    let (gate, _) = recorded("gate-config", "lines-session");
    let dir = scratch("gate-of-a-changed-service");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("services.toml");
    let names = |component: &str| {
        let text = format!(
            "[[service]]\nname = \"s\"\nlisten = [\"127.0.0.1:0\"]\ngate = \"{}\"\ncomponent = \"{}\"\n",
            gate.display(),
            guest(component).display()
        );
        replace(&file, text);
    };
    names("lines-session");
    let host = Host::with_config(&file, 1);
    names("daytime");
    host.signal(HUP);
    let line = host.line("reconfiguration failed");
    assert!(line.contains("does not pass the gate"), "{line}");
    host.connect().echo("hello\n");
    names("lines");
    host.signal(HUP);
    host.line("services reconfigured");
    host.connect().echo("hello\n");
}

#[test]
fn a_gate_that_nothing_could_pass_is_refused_at_the_start() {
    let dir = scratch("talks-no-gate");
    let refusal = crate::harness::refused(&[
        "--gate",
        dir.to_str().unwrap(),
        "--component",
        guest("lines").to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_eq!(refusal.status, Some(1));
    assert!(
        refusal.message.contains("`--gate`") && refusal.message.contains(dir.to_str().unwrap()),
        "{}",
        refusal.message
    );
}

#[test]
fn a_file_name_stays_one_field_of_a_line() {
    let dir = scratch("talks-forged");
    fs::create_dir_all(&dir).unwrap();
    let name = "a connection=99 outcome=\"guest-trap\" x.conversation";
    fs::write(dir.join(name), "> \"a\"\n< \"a\"\n").unwrap();
    let (status, said) = replay_with(&dir, &guest("echo"), &["--verbose"]);
    assert_eq!(status, Some(0), "{said}");
    let path = dir.join(name).display().to_string();
    assert!(said.contains(&format!("file={path:?} connection=1 ")), "{said}");
}

#[test]
fn a_guest_that_fails_at_bytes_before_a_reset_does_not_pass() {
    for (guest_name, bytes, failure) in [
        ("moody", "trap\\n", "< trap"),
        ("hang-up-session", "a!", "< reset"),
        ("hang-up", "a!", "< reset"),
    ] {
        let text = format!("> \"{bytes}\"\n> reset\n");
        let dir = written(&format!("before-reset-{guest_name}"), &text);
        let (status, said) = replay(&dir, &guest(guest_name));
        assert_eq!(status, Some(1), "{guest_name}: {said}");
        let expected = format!("1.conversation:2\n- nothing more\n+ {failure}\n");
        assert!(said.contains(&expected), "{guest_name}: {said}");
    }
    let recorded = written("before-reset-recorded", "> \"trap\\n\"\n> reset\n< trap\n");
    let (status, said) = replay(&recorded, &guest("moody"));
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn a_client_that_resets_has_heard_nothing() {
    let dir = written("reset", "> \"haunt\\n\"\n> pause 200ms\n> reset\n< cpu-limit\n");
    let (status, said) = replay_with(&dir, &guest("moody"), &["--max-cpu-time", "300ms"]);
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn a_session_without_clocks_has_the_clock_of_the_conversation() {
    // A beat every 100 ms. Everything that is due within the pause is heard, and nothing else.
    let text = "< \"tick\\n\"\n> pause 1s\n< \"tock\\ntick\\ntock\\ntick\\ntock\\ntick\\ntock\\ntick\\n\"\n\
                < \"tock\\ntick\\n\"\n> pause 99ms\n> end\n< end\n";
    let dir = written("clock", text);
    let (status, said) = replay(&dir, &guest("metronome"));
    assert_eq!(
        (status, said.as_str()),
        (Some(0), "1 conversation, no differences\n")
    );

    // A pause lasts as long as it says, however long the guest works in it altogether.
    let beats = "< \"tick\\n\"\n< \"tock\\n\"\n".repeat(18_000);
    let dir = written("hour", &format!("> pause 3599950ms\n{beats}cut\n"));
    let (status, said) = replay_with(&dir, &guest("metronome"), &["--patience", "100ms"]);
    assert_eq!(status, Some(0), "{said}");

    // A guest that ends in a pause ends it.
    let dir = written("ends", "< \"tick\\n\"\n> \"x\"\n> pause 24h\n< end\n");
    assert_eq!(replay(&dir, &guest("metronome")).0, Some(0));

    // Hours pass while a session waits. A guest that can read clocks would really wait.
    let dir = written("hours", "> \"a\\n\"\n< \"a\\n\"\n> pause 24h\n> end\n< end\n");
    assert_eq!(replay(&dir, &guest("lines-session")).0, Some(0));
    let (status, said) = replay(&dir, &guest("echo"));
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("1.conversation:3\n- > pause 24h\n+ a pause of at most 1m, since this component is replayed in real time"),
        "{said}"
    );
}

#[test]
fn a_guest_may_answer_a_large_text_before_it_has_read_it() {
    let text = "x".repeat(17 << 20);
    let dir = written(
        "large-text",
        &format!("> \"{text}\"\n< \"{text}\"\n> end\n< end\n"),
    );
    let (status, said) = replay(&dir, &guest("echo"));
    assert_eq!(status, Some(0), "{said}");
    // The guest may not send without end what the conversation does not have.
    fs::write(
        dir.join("1.conversation"),
        format!("> \"{text}\"\n< \"x\"\n> end\n< end\n"),
    )
    .unwrap();
    let (status, said) = replay(&dir, &guest("echo"));
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("it sends 16.0 MiB more than the conversation has")
            && !said.contains("nothing is read"),
        "{said}"
    );
}
