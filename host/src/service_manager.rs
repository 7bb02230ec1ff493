//! What the service manager is told, by the protocol of systemd (sd_notify(3)): through the socket that `NOTIFY_SOCKET`
//! names, if there is one.

use sd_notify::NotifyState::{self, MonotonicUsec, Ready, Reloading, Status, Stopping};
use tracing::debug;

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
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "cannot notify the service manager");
    }
}
