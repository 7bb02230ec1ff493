//! The limits of a connection that are watched from outside its guest: times, and bytes.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::config::Limits;
use crate::half::{Half, Traffic};

/// Longer than any connection lives, and short enough to be added to any time.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// How late a deadline is noticed if this process was stopped, or got no processor.
pub(crate) const STALL: Duration = Duration::from_millis(200);

/// Time after a stall for what the kernel has received meanwhile.
pub(crate) const CATCH_UP: Duration = Duration::from_secs(1);

/// The moment that is `time` after `at`, or one far away where there is none.
pub(crate) fn after(at: Instant, time: Duration) -> Instant {
    at.checked_add(time).unwrap_or_else(|| at + FAR)
}

/// The limit that a connection has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// No byte came or went since the connection was admitted, behind its header and handshake.
    FirstByte,
    /// No byte has moved for too long.
    Idle,
    /// The peer does not read what waits to be written.
    Write,
    /// It has lived for too long.
    Lifetime,
    /// Too many bytes have come, or wanted to go.
    Bytes,
}

/// Waits until more bytes have come, or wanted to go, than may. It is woken by nobody: what passes the limit is done by the
/// same task, which looks here each time.
pub(crate) async fn bytes<R, W>(inbound: &Half<R>, outbound: &Half<W>) -> Passed {
    poll_fn(|_| {
        if inbound.exceeded() || outbound.exceeded() {
            Poll::Ready(Passed::Bytes)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Waits until the connection with this traffic, which began at `start`, has come to one of the `limits` on its time. No
/// `async fn`, which would keep all limits twice.
pub(crate) fn time(
    limits: &Limits,
    start: Instant,
    inbound: Arc<dyn Traffic>,
    outbound: Arc<dyn Traffic>,
) -> impl Future<Output = Passed> + Send + 'static {
    let Limits {
        max_lifetime,
        first_byte_timeout,
        idle_timeout,
        write_timeout,
        ..
    } = *limits;
    async move {
        let mut spared = None;
        loop {
            let now = Instant::now();
            let silent = inbound.bytes() == 0 && outbound.bytes() == 0;
            let moved = inbound.moved().max(outbound.moved());
            let deadlines = [
                (Passed::Lifetime, Some(start), max_lifetime),
                (Passed::FirstByte, silent.then_some(start), first_byte_timeout),
                (Passed::Idle, Some(moved), idle_timeout),
                (Passed::Write, outbound.stalled_since(), write_timeout),
            ];
            // One beyond all time never comes.
            let deadlines = deadlines
                .into_iter()
                .filter_map(|(limit, since, length)| Some((since?.checked_add(length?)?, limit)));
            let next = deadlines.min_by_key(|(at, _)| *at);
            // A write that begins to wait while this sleeps is found in time.
            let look = write_timeout.and_then(|length| now.checked_add(length));
            match (next, look) {
                (Some((at, limit)), _) if at <= now => {
                    let stalled = limit != Passed::Lifetime && now - at >= STALL;
                    if !stalled || spared == Some(at) {
                        return limit;
                    }
                    // Bytes that arrived during the stall are handled first.
                    spared = Some(at);
                    sleep(CATCH_UP).await;
                }
                (Some((at, _)), Some(look)) => sleep_until(at.min(look)).await,
                (Some((at, _)), None) | (None, Some(at)) => sleep_until(at).await,
                (None, None) => return pending().await,
            }
        }
    }
}
