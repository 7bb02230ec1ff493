//! Compiled components are kept for the next start, and nothing about that can stop a start.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::harness::{Host, command, guest, scratch};

/// Serves one connection with compiled components in `dir`, and returns what is then there.
fn serve(dir: &Path) -> (Vec<PathBuf>, String) {
    let mut host = Host::serving("lines-session", &["-v", "--cache", dir.to_str().unwrap()]);
    host.connect().echo("hello\n");
    host.stop();
    let entries = fs::read_dir(dir).map_or_else(
        |_| Vec::new(),
        |entries| entries.map(|entry| entry.unwrap().path()).collect(),
    );
    (entries, host.log())
}

#[test]
fn a_component_is_compiled_once() {
    let dir = scratch("cache-once");
    let (entries, log) = serve(&dir);
    assert_eq!(entries.len(), 1);
    assert!(log.contains("compiled=true"), "{log}");
    let (again, log) = serve(&dir);
    assert_eq!(entries, again);
    assert!(log.contains("compiled=false"), "{log}");
}

#[test]
fn a_damaged_entry_is_not_used() {
    let dir = scratch("cache-damaged");
    let (entries, _) = serve(&dir);
    let whole = fs::read(&entries[0]).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 7) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        for damaged in [&flipped[..], &whole[..at]] {
            fs::write(&entries[0], damaged).unwrap();
            let (_, log) = serve(&dir);
            assert!(log.contains("compiled=true"), "{at}: {log}");
            assert!(
                fs::read(&entries[0]).unwrap() == whole,
                "{at}: it was not replaced"
            );
        }
    }
}

#[test]
fn a_process_that_is_killed_while_it_writes_leaves_a_cache_that_works() {
    let dir = scratch("cache-killed");
    let component = guest("lines-session");
    let args = ["--listen", "127.0.0.1:0", "--cache", dir.to_str().unwrap()];
    let status = command()
        .args(args)
        .arg("--component")
        .arg(component)
        .env("WASM_INETD_DIE_IN_CACHE", "1")
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
    let left: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(
        left.len() == 1 && left[0].metadata().unwrap().len() > 1000,
        "{left:?}"
    );
    let (_, log) = serve(&dir);
    assert!(log.contains("compiled=true"), "{log}");
    let (_, log) = serve(&dir);
    assert!(log.contains("compiled=false"), "{log}");
}

#[test]
fn a_directory_that_cannot_be_used_is_named_and_does_not_matter() {
    let file = scratch("cache-file");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let _ = fs::remove_file(&file);
    fs::write(&file, "no directory").unwrap();
    let (_, log) = serve(&file);
    assert!(
        log.contains("WARN") && log.contains(file.to_str().unwrap()),
        "{log}"
    );
}

#[test]
fn off_keeps_nothing() {
    let host = Host::serving("lines-session", &["-v", "--cache", "off"]);
    host.connect().echo("hello\n");
    assert!(host.log().contains("compiled=true"), "{}", host.log());
    assert!(!Path::new("off").exists());
}
