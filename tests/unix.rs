//! Sockets of the file system.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::tools;
use crate::harness::tools::is_root;
use crate::harness::{
    Client, DEADLINE, HOST, Host, TERM, command, field, guest, refusal_of, refused, scratch, until,
    with_cache,
};

/// The path of a socket in a directory of its own, and what listens there as a flag has it.
fn place(name: &str) -> (PathBuf, String) {
    let dir = scratch(&format!("unix-{name}"));
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s");
    let listen = format!("unix:{}", path.display());
    (path, listen)
}

fn serving(name: &str, listen: &str, args: &[&str]) -> Host {
    let component = guest(name);
    let component = component.to_str().unwrap();
    Host::start(&[&["--listen", listen, "--component", component], args].concat())
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn echo(mut stream: &UnixStream, bytes: &str) {
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, bytes.as_bytes());
}

fn rest(mut stream: &UnixStream) -> String {
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn a_directory_that_others_can_write_to_is_warned_of() {
    let (path, listen) = place("shared-directory");
    let dir = path.parent().unwrap();
    for (mode, warns) in [(0o755, false), (0o777, true), (0o1777, false)] {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
        let mut host = serving("echo", &listen, &["--socket-mode", "0660"]);
        echo(&connect(&path), "hello");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        host.stop();
        let log = host.log();
        let line = log
            .lines()
            .find(|line| line.contains("another user could put a socket"));
        assert_eq!(line.is_some(), warns, "{mode:o}: {log}");
        if let Some(line) = line {
            for part in [path.to_str().unwrap(), "chmod go-w", "--listen", "WARN"] {
                assert!(line.contains(part), "{part}: {line}");
            }
        }
    }
}

#[test]
fn every_contract_is_served_and_half_closed() {
    for name in ["echo", "lines", "lines-session", "cat", "cat3"] {
        let (path, listen) = place(&format!("serves-{name}"));
        let host = serving(name, &listen, &[]);
        assert_eq!(host.places(), [listen.as_str()]);
        let client = connect(&path);
        (&client).write_all(b"hello\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&client), "hello\n", "{name}");
        let line = host.line("outcome=\"finished\"");
        assert_eq!(field(&line, "listener"), listen);
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let peer = format!(
            "unix:uid={},gid={},pid={}",
            uid.as_raw(),
            gid.as_raw(),
            std::process::id()
        );
        assert_eq!(field(&line, "peer"), peer);
    }
}

#[test]
fn a_program_is_told_who_has_come() {
    let (path, listen) = place("environment");
    let _host = serving("errands", &listen, &[]);
    let client = connect(&path);
    (&client)
        .write_all(b"env PROTO\nenv UNIXLOCALPATH\nenv UNIXREMOTEEUID\nenv UNIXREMOTEPID\nenv TCPREMOTEIP\n")
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let expected = format!(
        "UNIX\n{}\n{}\n{}\nno such variable\n",
        path.display(),
        rustix::process::geteuid().as_raw(),
        std::process::id()
    );
    assert_eq!(rest(&client), expected);
}

#[cfg(target_os = "linux")]
#[test]
fn a_socket_can_have_a_name_and_no_file() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    let name = format!("wasm-inetd-test-{}", std::process::id());
    let listen = format!("unix:@{name}");
    let host = serving("whoami", &listen, &[]);
    assert_eq!(host.places(), [listen.as_str()]);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let client = UnixStream::connect_addr(&address).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let said = rest(&client);
    assert!(said.contains(&format!("local {listen}\n")), "{said}");
    // The name is in use for as long as the host listens.
    let refusal = refused(&["--listen", &listen]);
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    assert!(
        refusal.message.contains("stop the process that uses it"),
        "{}",
        refusal.message
    );
}

#[test]
fn the_socket_goes_with_the_host() {
    let (path, listen) = place("removed");
    let mut host = serving("echo", &listen, &[]);
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    assert!(host.stop().success());
    assert!(!path.exists());
}

#[test]
fn a_socket_in_its_place_stays() {
    let (path, listen) = place("replaced");
    let mut host = serving("echo", &listen, &[]);
    fs::rename(&path, path.with_extension("old")).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    assert!(host.stop().success());
    assert!(path.exists());
    drop(other);
}

#[test]
fn a_socket_that_nobody_listens_at_is_replaced() {
    let (path, listen) = place("stale");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let host = serving("echo", &listen, &[]);
    echo(&connect(&path), "hello");
    // As a host leaves it that is killed.
    drop(host);
    until("the process is gone", || UnixStream::connect(&path).is_err());
    assert!(path.exists());
    let _host = serving("echo", &listen, &[]);
    echo(&connect(&path), "hello");
}

#[test]
fn a_socket_that_is_in_use_is_left_alone() {
    let (path, listen) = place("alive");
    let _host = serving("echo", &listen, &[]);
    let refusal = refused(&["--listen", &listen]);
    assert_eq!(refusal.status, Some(1));
    for text in [listen.as_str(), "another process listens there", "--listen"] {
        assert!(refusal.message.contains(text), "{}", refusal.message);
    }
    echo(&connect(&path), "hello");
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let (path, listen) = place("file");
    fs::write(&path, "precious").unwrap();
    let refusal = refused(&["--listen", &listen]);
    assert_eq!(refusal.status, Some(1));
    assert!(refusal.message.contains("is not a socket"), "{}", refusal.message);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let missing = path.with_file_name("nowhere").join("s");
    let refusal = refused(&["--listen", &format!("unix:{}", missing.display())]);
    assert!(
        refusal.message.contains("No such file or directory"),
        "{}",
        refusal.message
    );
}

#[test]
fn the_mode_is_as_asked_for() {
    let (path, listen) = place("mode");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for asked in ["0600", "0666", "0007"] {
        let mut host = serving("echo", &listen, &["--socket-mode", asked]);
        assert_eq!(format!("{:04o}", mode(&path)), asked);
        assert!(host.stop().success());
    }
    let refusal = refused(&["--listen", &listen, "--socket-owner", "no-such-user-here"]);
    assert!(
        refusal.message.contains("no user `no-such-user-here`"),
        "{}",
        refusal.message
    );
    // A number has no sign.
    let refusal = refused(&["--listen", &listen, "--socket-owner", "+0"]);
    assert!(refusal.message.contains("no user `+0`"), "{}", refusal.message);
    assert!(!path.exists());
}

#[test]
fn the_owner_is_as_asked_for() {
    if !is_root() {
        return;
    }
    let (path, listen) = place("owner");
    let host = serving("echo", &listen, &["--socket-owner", "4711:4712"]);
    let file = fs::metadata(&path).unwrap();
    assert_eq!((file.uid(), file.gid()), (4711, 4712));
    drop(host);
    let _host = serving("echo", &listen, &["--socket-owner", ":root"]);
    assert_eq!(fs::metadata(&path).unwrap().gid(), 0);
}

/// Runs `check` and a start with a file of services as a user without privileges, and returns what
/// they say.
fn refused_unprivileged(file: &Path) -> [String; 2] {
    [&["check"][..], &[]].map(|args| {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut setpriv = with_cache(Command::new("setpriv"));
            setpriv.args(["--bounding-set", "-all"]).arg(HOST);
            setpriv
        } else {
            command()
        };
        let refusal = refusal_of(command.args(args).arg("--config").arg(file));
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        refusal.message
    })
}

#[test]
fn an_owner_that_the_host_may_not_set_is_found_before_the_start() {
    let (path, _) = place("forbidden-owner");
    let file = path.with_file_name("services.toml");
    // A user that the test does not run as.
    let owner = if rustix::process::geteuid().is_root() {
        "4711"
    } else {
        "0"
    };
    let text = format!("[[service]]\nname = \"a\"\nlisten = [\"unix:s\"]\nsocket.owner = \"{owner}\"\n");
    fs::write(&file, text).unwrap();
    for message in refused_unprivileged(&file) {
        let expected = format!("the host may not set the owner of the socket to `{owner}`");
        for text in [
            ":4: service[0].socket.owner: service `a`: ",
            &expected,
            "grant CAP_CHOWN",
        ] {
            assert!(message.contains(text), "{text}: {message}");
        }
    }
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_that_the_host_may_not_replace_is_found_before_the_start() {
    if !is_root() {
        return;
    }
    let (path, _) = place("forbidden-stale");
    let dir = path.parent().unwrap();
    let file = scratch("unix-forbidden-stale.toml");
    let text = format!(
        "admin = {{ listen = \"unix:{0}/a\" }}\n[[service]]\nname = \"a\"\nlisten = [\"unix:{0}/s\"]\n",
        dir.display()
    );
    fs::write(&file, text).unwrap();
    let (own, other) = (0, 4711);
    // The owners of the sockets and of the directory, and the modes of the two.
    for (socket, directory, modes) in [
        (other, own, (0o755, 0o755)),
        (own, other, (0o755, 0o755)),
        // Anybody may write, and nobody but the owners may remove a file.
        (other, other, (0o777, 0o1777)),
    ] {
        for name in ["a", "s"] {
            let path = dir.join(name);
            let _ = fs::remove_file(&path);
            drop(UnixListener::bind(&path).unwrap());
            fs::set_permissions(&path, fs::Permissions::from_mode(modes.0)).unwrap();
            chown(&path, Some(socket), Some(socket)).unwrap();
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(modes.1)).unwrap();
        chown(dir, Some(directory), Some(directory)).unwrap();
        for message in refused_unprivileged(&file) {
            for (place, key) in [
                (":1: admin.listen: ", "`[admin]`"),
                (":4: service[0].listen[0]: ", "`listen`"),
            ] {
                let line = message.lines().find(|line| line.contains(place));
                let line = line.unwrap_or_else(|| panic!("{place} {socket} {directory}: {message}"));
                let expected = "the host may not replace the socket that exists there";
                assert!(line.contains(expected) && line.contains(key), "{line}");
            }
        }
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_user_is_one_source() {
    let (path, listen) = place("source");
    let host = serving("echo", &listen, &["--max-connections-per-source", "1"]);
    let first = connect(&path);
    echo(&first, "hello");
    let second = connect(&path);
    assert_eq!(rest(&second), "");
    let line = host.line("connection refused");
    assert!(
        line.contains("reason=\"source-connections\"") && field(&line, "peer").starts_with("unix:uid="),
        "{line}"
    );
    echo(&first, "still here");
}

#[test]
fn a_drain_waits_for_connections_and_takes_no_more() {
    let (path, listen) = place("drain");
    let mut host = serving("lines", &listen, &["--drain-timeout", "1h"]);
    let client = connect(&path);
    echo(&client, "before\n");
    host.signal(TERM);
    host.line("draining");
    assert!(!path.exists());
    assert!(UnixStream::connect(&path).is_err());
    echo(&client, "meanwhile\n");
    (&client).write_all(b"quit\n").unwrap();
    assert_eq!(rest(&client), "");
    drop(client);
    assert!(host.wait().success());
}

#[test]
fn one_service_listens_at_both_kinds() {
    let (path, listen) = place("both");
    let host = serving(
        "echo",
        &listen,
        &["--listen", "127.0.0.1:0", "--listen", "[::1]:0"],
    );
    for _ in 0..3 {
        echo(&connect(&path), "hello");
        for address in host.addresses() {
            Client::connect(*address).unwrap().echo("hello");
        }
    }
}

#[test]
fn socat_is_served() {
    let Some(socat) = tools::tool("socat") else {
        return;
    };
    let (path, listen) = place("socat");
    let host = serving("upper", &listen, &["--listen", "127.0.0.1:0"]);
    let unix = format!("UNIX-CONNECT:{}", path.display());
    let tcp = format!("TCP:{}", host.address());
    for address in [unix, tcp] {
        let mut client = Command::new(&socat)
            .args(["-t", "60", "-", &address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        client.stdin.take().unwrap().write_all(b"hello\n").unwrap();
        let output = client.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"HELLO\n", "{address}");
        assert_eq!(host.outcome(), "finished");
    }
}
