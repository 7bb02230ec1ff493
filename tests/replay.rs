//! Conversations: recorded, replayed, and as a gate that a component has to pass.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{HUP, Host, command, guest, replace, scratch, until};

/// Runs `host replay`, and gives its exit status and what it says.
fn replay(dir: &Path, guest: &Path) -> (Option<i32>, String) {
    let output = command().arg("replay").arg(dir).arg(guest).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
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
        ("discard", "+ < \"\", then nothing for 5s"),
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
    let dir = scratch("talks-by-hand");
    fs::create_dir_all(&dir).unwrap();
    let write = |text: &str| fs::write(dir.join("1.conversation"), text).unwrap();
    write("# A word resets it.\n> \"hello\"\n< \"hello\"\n> \"!\"\n< reset\n");
    assert_eq!(replay(&dir, &guest("hang-up-session")).0, Some(0));
    assert_eq!(replay(&dir, &guest("trap")).0, Some(0));
    let (status, said) = replay(&dir, &guest("echo"));
    assert_eq!(status, Some(1));
    assert!(said.contains("1.conversation:5\n- < reset\n+ < \"!\""), "{said}");
    write("> hello\n");
    let (status, said) = replay(&dir, &guest("echo"));
    assert_eq!(status, Some(1));
    assert!(
        said.contains("1.conversation") && said.contains("line 1"),
        "{said}"
    );
    fs::remove_file(dir.join("1.conversation")).unwrap();
    let (status, said) = replay(&dir, &guest("echo"));
    assert_eq!(status, Some(1));
    assert!(said.contains("no conversations in"), "{said}");
}

#[test]
fn what_does_not_pass_the_gate_does_not_serve() {
    let (gate, _) = recorded("gate", "lines-session");
    let dir = scratch("talks-gate-service");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("guest.wasm");
    let put = |name: &str| replace(&file, fs::read(guest(name)).unwrap());
    put("lines-session");
    let host = Host::with(
        &file,
        &["--gate", gate.to_str().unwrap(), "--max-connections", "1"],
    );
    // Every connection that there may be is open meanwhile.
    let client = host.connect();
    client.echo("hello\n");
    put("daytime");
    host.signal(HUP);
    let line = host.line("keeps serving");
    assert!(line.contains("does not pass the gate"), "{line}");
    put("lines");
    host.signal(HUP);
    host.line("component reloaded");
    client.echo("still here\n");
    drop(client);
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
        refusal.message.contains("`gate`") && refusal.message.contains(dir.to_str().unwrap()),
        "{}",
        refusal.message
    );
}
