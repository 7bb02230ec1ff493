//! Compiled components are kept for the next start, and nothing about that can stop a start.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sha2::{Digest as _, Sha256};

use crate::harness::tools::is_root;
use crate::harness::{HUP, Host, NEW, Place, Refusal, command, guest, refused, scratch};

/// Serves one connection with compiled components in `dir`, and returns what is then there.
fn serve(dir: &Path) -> (Vec<PathBuf>, String) {
    let mut host = Host::serving("lines-session", &["-v", "--cache", dir.to_str().unwrap()]);
    host.connect().echo("hello\n");
    host.stop();
    (entries(dir), host.log())
}

/// The files in `dir`, without the key by which they are signed.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let entries = entries.map(|entry| entry.unwrap().path());
    entries.filter(|path| !path.ends_with("key")).collect()
}

/// The user `nobody` on most systems, who is neither root nor runs the test.
const OTHER: u32 = 65_534;

/// A directory with this mode, in which nothing is yet.
fn dir(name: &str, mode: u32) -> PathBuf {
    let dir = scratch(name);
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    dir
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
    let left = entries(&dir);
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
fn a_start_that_fails_creates_no_directory_and_a_check_says_the_same() {
    let dir = scratch("cache-and-socket");
    fs::create_dir_all(&dir).unwrap();
    let services = dir.join("services.toml");
    let text = "cache = \"new\"\n[[service]]\nname = \"a\"\nlisten = [\"unix:new/s\"]\n";
    fs::write(&services, text).unwrap();
    let services = services.to_str().unwrap();
    for args in [&["check", "--config", services][..], &["--config", services]] {
        let Refusal { status, message } = refused(args);
        assert_eq!(status, Some(1), "{message}");
        assert!(
            message.contains("new` does not exist; create it, or choose another path"),
            "{message}"
        );
        assert!(!dir.join("new").exists(), "{args:?}");
    }
}

/// The log names `dir` and the directory because of which nothing is cached, and nothing is there.
fn is_refused(dir: &Path, because_of: &Path, advice: &str) {
    let (entries, log) = serve(dir);
    assert!(entries.is_empty() && log.contains("compiled=true"), "{log}");
    let line = log
        .lines()
        .find(|line| line.contains("cannot cache"))
        .expect(&log);
    assert!(line.contains("WARN"), "{line}");
    for part in [dir, because_of].map(|path| format!("`{}`", path.display())) {
        assert!(line.contains(&part), "{part}: {line}");
    }
    assert!(line.contains(advice), "{advice}: {line}");
}

#[test]
fn a_directory_below_one_that_others_can_write_to_is_refused() {
    for (name, mode) in [("cache-below-777", 0o777), ("cache-below-702", 0o702)] {
        let parent = dir(name, mode);
        is_refused(&parent.join("a/cache"), &parent, "chmod go-w");
        assert!(!parent.join("a").exists());
    }
    // With the sticky bit, others cannot replace what is there.
    let sticky = dir("cache-below-sticky", 0o1777);
    let (entries, log) = serve(&sticky.join("cache"));
    assert_eq!(entries.len(), 1, "{log}");
}

#[test]
fn a_directory_or_link_of_another_user_on_the_way_is_refused() {
    if !is_root() {
        return;
    }
    let parent = dir("cache-other", 0o755);
    chown(&parent, Some(OTHER), None).unwrap();
    is_refused(
        &parent.join("cache"),
        &parent,
        "belongs to the user with the number 65534",
    );
    // A group with other members, or that this process does not know.
    let shared = dir("cache-group", 0o770);
    chown(&shared, None, Some(OTHER)).unwrap();
    is_refused(&shared.join("cache"), &shared, "chmod go-w");
    let target = dir("cache-link-target", 0o700);
    let sticky = dir("cache-link", 0o1777);
    let link = sticky.join("cache");
    symlink(&target, &link).unwrap();
    let (entries, log) = serve(&link);
    assert_eq!(entries.len(), 1, "{log}");
    fs::remove_dir_all(&target).unwrap();
    fs::create_dir(&target).unwrap();
    lchown(&link, Some(OTHER), None).unwrap();
    is_refused(&link, &link, "belongs to the user with the number 65534");
}

#[test]
fn another_directory_in_the_place_of_the_cache_runs_no_code() {
    // The entry of one component, with the code of another.
    let (mine, other) = (dir("cache-mine", 0o700), dir("cache-forged", 0o700));
    let parent = dir("cache-swapped", 0o700);
    let cache = parent.join("cache");
    let place = Place::new("cache-swapped", "lines");
    let serve = |dir: &Path, guest: &str| {
        place.put(guest);
        place.serve(&["--cache", dir.to_str().unwrap()])
    };
    drop(serve(&mine, "lines"));
    drop(serve(&other, "upper"));
    let name = entries(&mine)[0].file_name().unwrap().to_owned();
    let code = &fs::read(&entries(&other)[0]).unwrap()[32..];
    let component = Sha256::digest(fs::read(guest("lines")).unwrap());
    let digest = Sha256::digest([&component[..], code].concat());
    let host = serve(&cache, "copy");
    fs::rename(&cache, parent.join("old")).unwrap();
    fs::create_dir(&cache).unwrap();
    // Neither with a digest, nor signed by the key of another cache.
    fs::write(cache.join(&name), [&digest[..], code].concat()).unwrap();
    place.put("lines");
    host.signal(HUP);
    host.line(NEW);
    host.connect().echo("abc\n");
    assert_eq!(entries(&parent.join("old")).len(), 2);
    drop(host);
    fs::write(cache.join(&name), fs::read(&entries(&mine)[0]).unwrap()).unwrap();
    let host = Host::with(&guest("lines"), &["-v", "--cache", cache.to_str().unwrap()]);
    assert!(host.log().contains("compiled=true"), "{}", host.log());
}

#[test]
fn the_key_is_for_its_owner_alone() {
    let dir = scratch("cache-key");
    serve(&dir);
    let key = fs::metadata(dir.join("key")).unwrap();
    assert_eq!((key.mode() & 0o7777, key.len()), (0o600, 32));
}

#[test]
fn off_keeps_nothing() {
    let host = Host::serving("lines-session", &["-v", "--cache", "off"]);
    host.connect().echo("hello\n");
    assert!(host.log().contains("compiled=true"), "{}", host.log());
    assert!(!Path::new("off").exists());
}
