//! What attackers know of the host, and what they hold.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::SockRef;

use super::host::Host;
use super::{Attack, LENGTH};

/// The longest that an attack is given to have its effect.
const PATIENCE: Duration = Duration::from_secs(30);

/// An attack under way.
pub(super) struct Stage<'a> {
    pub(super) host: &'a Host,
    target: SocketAddr,
    /// Connections that the attackers may have open at the same time.
    pub(super) connections: u64,
    /// The directory of this attack.
    pub(super) dir: PathBuf,
    /// Takes connections of guests.
    pub(super) sink: TcpListener,
    since: Instant,
    expect: &'static [&'static str],
    held: Mutex<Vec<TcpStream>>,
    notes: Mutex<Vec<(String, u64)>>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(host: &'a Host, attack: &Attack, dir: PathBuf, sink: TcpListener) -> Result<Self> {
        Ok(Self {
            host,
            target: host.address("target")?,
            connections: attack.connections,
            expect: attack.expect,
            dir,
            sink,
            since: Instant::now(),
            held: Mutex::default(),
            notes: Mutex::default(),
        })
    }

    /// Whether the attack goes on: for [`LENGTH`], and until it has had its effect.
    pub(super) fn goes_on(&self) -> bool {
        let elapsed = self.since.elapsed();
        let has_happened = |what: &&str| self.host.count("target", what) > 0;
        elapsed < LENGTH || elapsed < PATIENCE && !self.expect.iter().all(has_happened)
    }

    /// Waits until the attack is over.
    pub(super) fn wait(&self) {
        while self.goes_on() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Connects to the service under attack.
    pub(super) fn connect(&self) -> Result<TcpStream> {
        connect(self.target)
    }

    /// Connects to the admin interface.
    pub(super) fn connect_to_admin(&self) -> Result<TcpStream> {
        connect(self.host.admin().context("the host has no admin interface")?)
    }

    /// Keeps a connection open until the attack is over.
    pub(super) fn hold(&self, socket: TcpStream) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(socket);
    }

    /// Notes `count` of `what` for the table.
    pub(super) fn note(&self, what: &str, count: u64) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push((what.to_owned(), count));
    }

    /// Closes what is held, and returns the notes.
    pub(super) fn close(self) -> Vec<(String, u64)> {
        self.notes.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, with a timeout after which attackers look whether the attack goes on.
fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.set_write_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// Closes a connection with a reset.
pub(super) fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Sends as much of `bytes` as the kernel takes, again and again.
pub(super) fn fill(mut socket: &TcpStream, bytes: &[u8]) -> Result<()> {
    socket.set_nonblocking(true)?;
    while matches!(socket.write(bytes), Ok(1..)) {}
    Ok(socket.set_nonblocking(false)?)
}
