//! Granted directories: what a guest cannot put in their place, and when the host opens them again.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::harness::tools::with_own_mounts;
use crate::harness::{Client, HOST, HUP, Host, USR2, again, file, guest, refused, replace, scratch};

/// Renames `up` in the first directory to `old` and puts a link to `../secret` in its place. Then
/// it answers with the content of `file` in the second directory, or of `old/file` in the first one
/// if it has no other.
const SWAPS: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_rename" (func $rename
        (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_symlink" (func $symlink
        (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func $open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 64) "upold../secretold/file")
    (func (export "_start")
        (drop (call $rename (i32.const 3) (i32.const 64) (i32.const 2)
            (i32.const 3) (i32.const 66) (i32.const 3)))
        (drop (call $symlink (i32.const 69) (i32.const 9) (i32.const 3) (i32.const 64) (i32.const 2)))
        (if (call $open (i32.const 4) (i32.const 0) (i32.const 82) (i32.const 4) (i32.const 0)
                (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 32))
            (then (if (call $open (i32.const 3) (i32.const 0) (i32.const 78) (i32.const 8) (i32.const 0)
                    (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 32))
                (then unreachable))))
        (i32.store (i32.const 0) (i32.const 128))
        (i32.store (i32.const 4) (i32.const 64))
        (drop (call $read (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 4)))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))"#;

/// A directory `data` with `up` in it, and `secret` beside it, each with a file that names it.
fn place(name: &str) -> PathBuf {
    let dir = scratch(&format!("grants-{name}"));
    for (of, text) in [("data/up", "granted"), ("secret", "secret")] {
        fs::create_dir_all(dir.join(of)).unwrap();
        fs::write(dir.join(of).join("file"), text).unwrap();
    }
    dir
}

/// A service of a services file, with this component and this grant.
fn service(name: &str, component: &Path, dir: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"{}\"\n\
         grants = {{ dirs = [\"{dir}\"] }}\n",
        component.display()
    )
}

fn grant(dir: &Path, guest: &str) -> String {
    format!("{}::/{guest}", dir.display())
}

#[test]
fn a_guest_cannot_put_a_link_in_the_place_of_a_directory_that_is_granted() {
    let dir = place("link");
    let (data, up) = (dir.join("data"), dir.join("data/up"));
    let module = file("swaps.wasm", wat::parse_str(SWAPS).unwrap());
    let (above, nested) = (grant(&data, "data:rw"), grant(&up, "up"));
    let flags = ["--dir", &above, "--dir", &nested];
    let host = Host::with(&module, &flags);
    for _ in 0..3 {
        assert_eq!(host.connect().rest(), b"granted");
        assert!(up.is_symlink());
    }
    host.signal(HUP);
    let line = host.line("the previous directories stay in use");
    assert!(
        line.contains("`up` is a symbolic link below a directory"),
        "{line}"
    );
    assert_eq!(host.connect().rest(), b"granted");
    // Nor does the next start follow it.
    let component = module.to_str().unwrap();
    let start = [&["--listen", "127.0.0.1:0", "--component", component], &flags[..]].concat();
    let refusal = refused(&start);
    assert!(
        refusal
            .message
            .contains("`up` is a symbolic link below a directory"),
        "{}",
        refusal.message
    );
}

#[test]
fn a_guest_cannot_put_a_link_in_the_place_of_a_directory_of_another_service() {
    let dir = place("other-service");
    let (data, up) = (dir.join("data"), dir.join("data/up"));
    let module = file("swaps-for-another.wasm", wat::parse_str(SWAPS).unwrap());
    let config = dir.join("services.toml");
    let writer = service("writer", &module, &grant(&data, "data:rw"));
    let reader = service("reader", &guest("errands"), &grant(&up, "up"));
    replace(&config, format!("{writer}{reader}"));
    let host = Host::with_config(&config, 2);
    let [writes, reads] = host.addresses() else {
        panic!()
    };
    let reading = || Client::connect(*reads).unwrap().asks("read /up/file");
    assert_eq!(reading(), "granted");
    assert_eq!(Client::connect(*writes).unwrap().rest(), b"granted");
    assert!(up.is_symlink());
    assert_eq!(reading(), "granted");
    let refuses = |host: &Host| {
        host.signal(HUP);
        let line = host.line("reconfiguration failed");
        assert!(
            line.contains("service `reader`: cannot grant the directory"),
            "{line}"
        );
        assert!(
            line.contains("`up` is a symbolic link below a directory"),
            "{line}"
        );
        assert_eq!(reading(), "granted");
    };
    refuses(&host);
    // A service that has changed opens its directories anew.
    replace(
        &config,
        format!("{writer}{reader}limits = {{ max-memory = \"32MiB\" }}\n"),
    );
    refuses(&host);
}

/// The grant ends with the service, becomes one to read, or leads to another directory.
#[test]
fn a_link_of_a_guest_is_not_followed_after_the_end_of_its_grant() {
    for how in ["removed", "read-only", "elsewhere"] {
        let dir = place(&format!("ended-{how}"));
        let (data, up) = (dir.join("data"), dir.join("data/up"));
        let elsewhere = dir.join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let current = dir.join("current");
        symlink(&data, &current).unwrap();
        let module = file(&format!("swaps-{how}.wasm"), wat::parse_str(SWAPS).unwrap());
        let config = dir.join("services.toml");
        let writer = |may: &str| service("writer", &module, &grant(&current, may));
        let reader = service("reader", &guest("errands"), &grant(&up, "up"));
        replace(&config, format!("{}{reader}", writer("data:rw")));
        let host = Host::with_config(&config, 2);
        let [writes, reads] = host.addresses() else {
            panic!()
        };
        let reading = || Client::connect(*reads).unwrap().asks("read /up/file");
        assert_eq!(Client::connect(*writes).unwrap().rest(), b"granted");
        assert!(up.is_symlink());
        match how {
            "removed" => replace(&config, &reader),
            "read-only" => replace(&config, format!("{}{reader}", writer("data"))),
            _ => {
                fs::remove_file(&current).unwrap();
                symlink(&elsewhere, &current).unwrap();
            }
        }
        for _ in 0..2 {
            host.signal(HUP);
            let line = host.line("reconfiguration failed");
            assert!(
                line.contains("`up` is a symbolic link below a directory"),
                "{how}: {line}"
            );
            assert_eq!(reading(), "granted", "{how}");
        }
    }
}

/// Guests can write to `data`, and a part of it is mounted elsewhere.
#[test]
fn a_link_of_a_guest_is_not_followed_in_a_bind_mount_of_a_part() {
    let errands = guest("errands").display().to_string();
    let setup = "mount -t tmpfs none /mnt && cd /mnt && mkdir whole && mount -t tmpfs none whole && \
                 mkdir -p whole/data/sub/deep whole/secret data part && \
                 ln -s ../whole/secret whole/data/sub/up && ln -s ../whole/secret whole/data/sub/deep/up && \
                 ln -s whole/secret secret && \
                 mount --bind whole/data data && mount --bind \"$2\" part && \
                 if [ \"$3\" = hidden ]; then umount -l whole && mkdir whole/secret; fi && \
                 exec \"$0\" check \"$1\" --dir /mnt/data::/data:rw --dir \"$4::/up\"";
    for (part, how, dir, is_refused) in [
        ("whole/data/sub", "visible", "/mnt/part/up", true),
        ("whole/data/sub/deep", "visible", "/mnt/part/up", true),
        ("whole/data/sub", "hidden", "/mnt/part/up", true),
        ("whole/data/sub", "visible", "/mnt/part/deep", false),
        ("whole/data/sub", "visible", "/mnt/secret", false),
    ] {
        let Some(mut command) = with_own_mounts() else {
            return;
        };
        let checked = command
            .args(["sh", "-c", setup, HOST, &errands, part, how, dir])
            .output()
            .unwrap();
        let said = String::from_utf8(checked.stderr).unwrap();
        let status = Some(i32::from(is_refused));
        assert_eq!(checked.status.code(), status, "{part} {how} {dir}: {said}");
        let refusal = "`up` is a symbolic link below a directory that guests can write to";
        assert_eq!(said.contains(refusal), is_refused, "{part} {how} {dir}: {said}");
    }
}

#[test]
fn a_directory_that_is_replaced_is_used_after_a_hangup() {
    let dir = scratch("grants-replaced");
    let (granted, next) = (dir.join("granted"), dir.join("next"));
    for (of, text) in [(&granted, "first"), (&next, "second")] {
        fs::create_dir_all(of).unwrap();
        fs::write(of.join("file"), text).unwrap();
    }
    let host = Host::serving("errands", &["--dir", &grant(&granted, "data")]);
    let before = host.connect();
    assert_eq!(before.asks("read /data/file"), "first");
    fs::rename(&granted, dir.join("previous")).unwrap();
    // The operator may use links where guests cannot write.
    symlink(&next, &granted).unwrap();
    assert_eq!(host.connect().asks("read /data/file"), "first");
    host.signal(HUP);
    host.line("component unchanged");
    assert_eq!(host.connect().asks("read /data/file"), "second");
    // A guest keeps the directory with which it began.
    assert_eq!(before.asks("read /data/file"), "first");
}

#[test]
fn a_reconfiguration_that_fails_opens_no_directory_for_guests() {
    let dir = scratch("grants-failed");
    let granted = dir.join("granted");
    let fill = |text: &str| {
        fs::create_dir_all(&granted).unwrap();
        fs::write(granted.join("file"), text).unwrap();
    };
    fill("first");
    let broken = dir.join("guest.wasm");
    fs::copy(guest("echo"), &broken).unwrap();
    let config = dir.join("services.toml");
    let put = |more: &str| {
        let service = |name: &str, component: &Path, more: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = {component:?}\n\
                 {more}\n"
            )
        };
        let grants = format!("grants = {{ dirs = [\"{}\"] }}", grant(&granted, "data"));
        let reads = service("a", &guest("errands"), &format!("{grants}\n{more}"));
        replace(&config, reads + &service("b", &broken, more));
    };
    put("");
    let host = Host::with_config(&config, 2);
    let reading = || host.connect().asks("read /data/file");
    assert_eq!(reading(), "first");
    fs::rename(&granted, dir.join("previous")).unwrap();
    fill("second");
    replace(&broken, "not WebAssembly");
    put("limits = { idle-timeout = \"1h\" }");
    host.signal(HUP);
    host.line("nothing changed");
    assert_eq!(reading(), "first");
    fs::copy(guest("echo"), &broken).unwrap();
    host.signal(HUP);
    host.line("services reconfigured");
    assert_eq!(reading(), "second");
}

/// The generation that is restored began with the settings of another one.
#[test]
fn a_directory_that_is_replaced_is_used_after_a_rollback_too() {
    let dir = scratch("grants-rolled-back");
    let (granted, component) = (dir.join("granted"), dir.join("guest.wasm"));
    let fill = |text: &str| {
        fs::create_dir_all(&granted).unwrap();
        fs::write(granted.join("file"), text).unwrap();
    };
    fill("first");
    fs::copy(guest("errands"), &component).unwrap();
    let config = dir.join("services.toml");
    let put = |more: &str| {
        let text = format!(
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"guest.wasm\"\n\
             grants = {{ dirs = [\"{}\"] }}\n{more}",
            grant(&granted, "data")
        );
        replace(&config, text);
    };
    put("");
    let host = Host::with_config(&config, 1);
    replace(&component, again("errands", 1));
    put("limits = { idle-timeout = \"1h\" }\n");
    host.signal(HUP);
    host.line("service changed");
    host.line("services reconfigured");
    host.signal(USR2);
    host.line("rolled back to the previous generation");
    fs::remove_dir_all(&granted).unwrap();
    fill("second");
    host.signal(HUP);
    host.line("was rolled back");
    assert_eq!(host.connect().asks("read /data/file"), "second");
}

/// With three connections, the guests of a service hold 256 files and 16 sockets together, and with
/// 100 it is 400 files.
#[test]
fn what_guests_hold_counts_for_their_service_whatever_its_settings_were() {
    let dir = scratch("grants-reconfigured");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "a file").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = dir.join("services.toml");
    let put = |limits: &str| {
        let text = format!(
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = \"{}\"\n\
             grants = {{ dirs = [\"{}\"], allow-outbound = [\"{address}\"] }}\nlimits = {{ {limits} }}\n",
            guest("errands").display(),
            grant(&dir, "data")
        );
        replace(&config, text);
    };
    let hold_files = |client: &Client, count: usize| client.asks(&format!("hold-files {count} /data/file"));
    let hold_sockets = |client: &Client| client.asks(&format!("hold-sockets 16 {address}"));
    put("max-connections = 3");
    let host = Host::with_config(&config, 1);
    let change = |limits: &str| {
        put(limits);
        host.signal(HUP);
        host.line("services reconfigured");
    };
    // Files and sockets of one connection would be too many handles.
    let (first, other) = (host.connect(), host.connect());
    assert_eq!(hold_files(&first, 200), "200");
    assert_eq!(hold_sockets(&other), "16");
    change("max-connections = 3, max-memory = \"32MiB\"");
    let second = host.connect();
    assert_eq!(hold_files(&second, 100), "56");
    assert_eq!(hold_sockets(&second), "0");
    // The bounds are those of the newest settings, for older guests too.
    change("max-connections = 100");
    assert_eq!(hold_files(&second, 100), "100");
    assert_eq!(hold_files(&host.connect(), 100), "44");
    assert_eq!(hold_sockets(&host.connect()), "16");
}
