//! Where a guest's time goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytesize::ByteSize;
use serde_json::Value;

use crate::harness::tools::with_own_mounts;
use crate::harness::{HOST, command, guest, scratch};

/// Runs `host profile` for a short time, and gives its exit status and what it says.
fn profile(guest: &Path, dir: &Path, to: &Path) -> (Option<i32>, String) {
    let mut command = command();
    command.arg("profile").arg(dir).arg(guest).arg("--to").arg(to);
    let output = command.args(["--time", "200ms"]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// A command that profiles a guest for a short time, and writes the profile to standard output.
fn to_stdout(name: &str) -> Command {
    let dir = conversation(name, "> \"20000\\n\"\n< \"224737\\n\"\n> end\n< end\n");
    let mut command = command();
    command.arg("profile").arg(dir).arg(guest("primes"));
    command.args(["--to", "/dev/stdout", "--time", "200ms"]);
    command
}

/// A directory with one conversation.
fn conversation(name: &str, text: &str) -> PathBuf {
    let dir = scratch(&format!("profile-{name}"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("one.conversation"), text).unwrap();
    dir
}

#[test]
fn a_profile_names_the_functions_of_the_guest() {
    // The twenty-thousandth prime takes a table that is made by a loop of many milliseconds.
    let dir = conversation("primes", "> \"20000\\n\"\n< \"224737\\n\"\n> end\n< end\n");
    let to = dir.join("profile.json");
    let (status, said) = profile(&guest("primes"), &dir, &to);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.starts_with("1 conversation, "), "{said}");
    // The processed profile format of Firefox: <https://github.com/firefox-devtools/profiler/tree/main/docs-developer>.
    let profile: Value = serde_json::from_slice(&fs::read(to).unwrap()).unwrap();
    let thread = &profile["threads"][0];
    let names: Vec<&str> = thread["stringArray"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(names.iter().any(|name| name.contains("Table")), "{names:?}");
    let looks = thread["samples"]["stack"].as_array().unwrap().len();
    assert!(looks > 0);
    assert!(said.contains(&format!(": {looks} sample")), "{said}");
}

#[test]
fn a_profile_on_standard_output_is_whole_and_has_its_size() {
    let output = to_stdout("stdout").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    serde_json::from_slice::<Value>(&output.stdout).expect("a profile and nothing else");
    let size = ByteSize::b(output.stdout.len() as u64).display().iec();
    assert!(said.contains(&format!("wrote `/dev/stdout` ({size})")), "{said}");
}

#[test]
fn a_profile_that_nobody_reads_ends_silently() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = to_stdout("closed").stdout(writer).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn a_profile_whose_description_cannot_be_written_is_whole() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = to_stdout("full").stderr(full).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    serde_json::from_slice::<Value>(&output.stdout).expect("a profile and nothing else");
}

#[test]
fn a_guest_that_says_something_else_has_no_profile() {
    let dir = conversation("other", "> \"20000\\n\"\n< \"2\\n\"\n> end\n< end\n");
    let to = dir.join("profile.json");
    let (status, said) = profile(&guest("primes"), &dir, &to);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("224737"), "{said}");
    assert!(!to.exists());
}

#[test]
fn a_profile_that_cannot_be_written_is_refused_before_it_takes_its_time() {
    // The guest does something else than the conversation, which is found later.
    let dir = conversation("nowhere", "> \"20000\\n\"\n< \"2\\n\"\n> end\n< end\n");
    for to in ["no/such/profile.json", "", "new/", "new/."] {
        let to = dir.join(to);
        let (status, said) = profile(&guest("primes"), &dir, &to);
        assert_eq!(status, Some(1), "{said}");
        assert!(
            said.contains("cannot write the profile to `") && !said.contains("224737"),
            "{said}"
        );
    }
}

/// Runs the host in a file system of `size` at `dir`, which only it sees, and then lists the files
/// there. Returns the output, or `None` if the test is skipped.
fn on_disk(size: &str, dir: &Path, args: &[&str]) -> Option<String> {
    let script = "mount -t tmpfs -o size=\"$1\" none \"$2\" && cd \"$2\" && echo before >profile.json && \
                  shift 2 && ! \"$@\"; ls -A; cat profile.json";
    let output = with_own_mounts()?
        .args(["sh", "-c", script, "sh", size])
        .arg(dir)
        .arg(HOST)
        .args(args)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some(String::from_utf8(said).unwrap())
}

#[test]
fn a_full_disk_leaves_no_partial_file() {
    let dir = conversation("full-disk", "> \"20000\\n\"\n< \"224737\\n\"\n> end\n< end\n");
    let disk = dir.join("disk");
    fs::create_dir_all(&disk).unwrap();
    let component = guest("primes");
    let (talks, component) = (dir.to_str().unwrap(), component.to_str().unwrap());
    // The file that exists takes the only page.
    let profile = [
        "profile",
        talks,
        component,
        "--to",
        "profile.json",
        "--time",
        "200ms",
    ];
    let Some(said) = on_disk("4k", &disk, &profile) else {
        return;
    };
    for part in [
        "cannot write the profile to `profile.json`",
        "No space left on device",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert!(said.starts_with("profile.json\nbefore\n"), "{said}");
    // A guest is created whole or not at all.
    let said = on_disk("4k", &disk, &["new", "my-guest"]).unwrap();
    assert!(said.contains("cannot write the guest to `my-guest`"), "{said}");
    assert!(said.starts_with("profile.json\nbefore\n"), "{said}");
}
