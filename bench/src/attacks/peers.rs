//! What attackers do.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::stage::{self, Stage};

/// No attack: what the canary and the host are without one.
pub(super) fn nothing(_stage: &Stage) -> Result<()> {
    Ok(())
}

/// Every attacker connects, sends `message` and reads until its connection ends, again and again.
pub(super) fn again(stage: &Stage, message: &[u8]) -> Result<()> {
    each(stage, |_| {
        while stage.goes_on() {
            let Ok(mut socket) = stage.connect() else {
                continue;
            };
            if socket.write_all(message).is_ok() {
                drain(stage, &mut socket);
            }
        }
    });
    Ok(())
}

/// Every attacker connects, sends `message`, and reads nothing.
pub(super) fn hold(stage: &Stage, message: &[u8]) -> Result<()> {
    for _ in 0..stage.connections {
        let mut socket = stage.connect()?;
        socket.write_all(message)?;
        stage.hold(socket);
    }
    Ok(())
}

/// Every attacker sends as much as it can to a guest that does not read.
pub(super) fn fill(stage: &Stage) -> Result<()> {
    for _ in 0..stage.connections {
        let socket = stage.connect()?;
        stage::fill(&socket, &[0; 65536])?;
        stage.hold(socket);
    }
    Ok(())
}

/// Runs `attacker` in a thread for each connection.
pub(super) fn each(stage: &Stage, attacker: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        for number in 0..stage.connections {
            let attacker = &attacker;
            scope.spawn(move || attacker(number));
        }
    });
}

/// Reads until the connection or the attack ends.
pub(super) fn drain(stage: &Stage, socket: &mut TcpStream) {
    let mut buffer = vec![0; 65536];
    while stage.goes_on() {
        match socket.read(&mut buffer) {
            Ok(1..) => {}
            Err(error) if is_timeout(&error) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Every attacker asks for an answer again and again. Notes how many there were.
pub(super) fn ask(stage: &Stage, question: &[u8]) -> Result<()> {
    let answers = AtomicU64::new(0);
    each(stage, |_| {
        while stage.goes_on() {
            let Ok(mut socket) = stage.connect() else {
                continue;
            };
            let sent = socket.write_all(question);
            while sent.is_ok() && stage.goes_on() {
                match socket.read(&mut [0; 64]) {
                    Ok(1..) => {
                        answers.fetch_add(1, Relaxed);
                        break;
                    }
                    Err(error) if is_timeout(&error) => {}
                    Ok(0) | Err(_) => break,
                }
            }
        }
    });
    stage.note("answers", answers.into_inner());
    Ok(())
}

/// Every attacker sends half a line and resets its connection, again and again.
pub(super) fn reset(stage: &Stage) -> Result<()> {
    let resets = AtomicU64::new(0);
    each(stage, |_| {
        while stage.goes_on() {
            if let Ok(mut socket) = stage.connect() {
                let _ = socket.write(b"half a li");
                stage::reset(&socket);
                resets.fetch_add(1, Relaxed);
            }
        }
    });
    stage.note("resets sent", resets.into_inner());
    Ok(())
}

/// Every attacker sends `head` byte by byte, so slowly that it does not end.
pub(super) fn dribble(stage: &Stage, head: &[u8]) -> Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..stage.connections {
        sockets.push(stage.connect()?);
    }
    for byte in head {
        if !stage.goes_on() {
            break;
        }
        for socket in &mut sockets {
            // The host may have closed it.
            let _ = socket.write(&[*byte]);
        }
        thread::sleep(Duration::from_millis(100));
    }
    sockets.into_iter().for_each(|socket| stage.hold(socket));
    Ok(())
}

/// Attackers hold the admin port by every connection that they can, while the operator asks whether
/// the host is alive. Notes how often it was.
pub(super) fn hold_admin(stage: &Stage) -> Result<()> {
    let request = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
    };
    for number in 0..stage.connections {
        let mut socket = stage.connect_to_admin()?;
        let method = if number % 2 == 0 { "HEAD" } else { "GET" };
        let _ = socket.write_all(&request(method, "/events").repeat(100));
        stage.hold(socket);
    }
    let mut alive = 0;
    while stage.goes_on() {
        let mut socket = stage.connect_to_admin()?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(&request("GET", "/healthz"))?;
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        if read.is_ok() && answer.starts_with(b"HTTP/1.1 200") {
            alive += 1;
        }
        thread::sleep(Duration::from_millis(20));
    }
    stage.note("health checks answered", alive);
    Ok(())
}

/// Guests ask for more sockets than they may have. Notes how many they got.
pub(super) fn hold_sockets(stage: &Stage) -> Result<()> {
    let address = stage.sink.local_addr()?;
    hold(stage, format!("hold-sockets 100 {address}\n").as_bytes())?;
    stage.sink.set_nonblocking(true)?;
    let mut taken = Vec::new();
    while stage.goes_on() {
        match stage.sink.accept() {
            Ok((socket, _)) => taken.push(socket),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    stage.note("sockets", taken.len() as u64);
    Ok(())
}

/// Replaces the component every 50 ms. The operator asks for a reload every half second.
pub(super) fn replace(stage: &Stage) -> Result<()> {
    let file = stage.dir.join("guest.wasm");
    let component = fs::read(&file)?;
    for number in 0_u8..=255 {
        if !stage.goes_on() {
            break;
        }
        // A custom section of one byte makes it another component.
        put(&file, &[&component[..], &[0, 3, 1, b'n', number]].concat())?;
        if number % 10 == 9 {
            stage.host.hang_up()?;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Replaces the component by one that takes long to compile, and waits until it was reloaded.
pub(super) fn compile(stage: &Stage) -> Result<()> {
    // Every function has a body that is long and has no common parts.
    let step = |number: usize| format!("(local.set 0 (i64.rotl (local.get 0) (i64.const {number})))");
    let body: String = (0..200).map(step).collect();
    let functions = format!("(func (param i64) {body})").repeat(3000);
    let text = format!("(module (memory (export \"memory\") 1) (func (export \"_start\")) {functions})");
    put(&stage.dir.join("guest.wasm"), &wat::parse_str(text)?)?;
    stage.host.hang_up()?;
    let since = Instant::now();
    while stage.host.count("target", "reloaded") == 0 {
        ensure!(since.elapsed() < COMPILING, "the component is not reloaded");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Replaces the component by one whose state after its initialisation is too large.
pub(super) fn initialise(stage: &Stage) -> Result<()> {
    let text = include_str!("guests/preinit-large.wat");
    put(&stage.dir.join("guest.wasm"), &wat::parse_str(text)?)?;
    stage.host.hang_up()
}

/// The longest that a compile may take.
const COMPILING: Duration = Duration::from_secs(180);

/// Replaces a file at once.
fn put(file: &Path, bytes: &[u8]) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, bytes)?;
    Ok(fs::rename(new, file)?)
}

pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
