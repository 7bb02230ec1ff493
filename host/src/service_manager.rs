//! What the service manager is told, by the protocol of systemd (sd_notify(3)): through the socket that `NOTIFY_SOCKET`
//! names, if there is one.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use sd_notify::NotifyState::{self, MonotonicUsec, Ready, Reloading, Status, Stopping};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::{debug, warn};

/// How long a notification may wait for a service manager that has not read the ones before it.
const WAIT: Duration = Duration::from_millis(500);

/// Set while notifications do not reach the service manager.
static LOST: AtomicBool = AtomicBool::new(false);

/// All services listen.
pub fn ready(services: usize, listeners: usize) {
    let status = format!("serving; services: {services}, listeners: {listeners}");
    tell(&[Ready, Status(&status)]);
}

/// What is asked for by SIGHUP begins. [`ready`] follows when it is done, whatever has come of it.
pub fn reloading() {
    let now = NotifyState::monotonic_usec_now().unwrap_or(MonotonicUsec(0));
    tell(&[Reloading, now, Status("reloading")]);
}

/// The drain begins, with so many connections.
pub fn stopping(connections: usize) {
    let status = format!("draining; connections: {connections}");
    tell(&[Stopping, Status(&status)]);
}

/// Says it, if anybody listens. Whom it does not reach has no say in whether connections are served.
fn tell(state: &[NotifyState<'_>]) {
    match send(state) {
        Ok(()) => LOST.store(false, Relaxed),
        Err(error) if LOST.swap(true, Relaxed) => debug!(%error, "cannot notify the service manager"),
        Err(error) => warn!(
            %error,
            "cannot notify the service manager, which may take the host for hung: expected it to read the \
             socket in NOTIFY_SOCKET; the host continues"
        ),
    }
}

/// Sends a notification. The function of the library waits for as long as the service manager does
/// not read.
fn send(state: &[NotifyState<'_>]) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let message: String = state.iter().map(|one| format!("{one}\n")).collect();
    let mut path = path.into_vec();
    // An abstract address is written with `@` for its first byte, which is NUL (sd_notify(3)).
    if let Some(first @ b'@') = path.first_mut() {
        *first = 0;
    }
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.connect(&SockAddr::unix(OsString::from_vec(path))?)?;
    socket.set_write_timeout(Some(WAIT))?;
    socket.send(message.as_bytes()).map(drop)
}
