//! The limits of a connection that are watched from outside its guest: times, and bytes.

use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::config::Limits;
use crate::half::Half;
use crate::seldom::seldom;

/// Longer than any connection lives, and short enough to be added to any time.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The moment that is `time` after `at`, or one far away where there is none.
pub(crate) fn after(at: Instant, time: Duration) -> Instant {
    at.checked_add(time).unwrap_or_else(|| at + FAR)
}

/// The limit that a connection has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// No byte came or went since the connection was accepted.
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

/// Waits until the connection that these halves are of, and that began at `start`, has come to one of `limits`.
pub(crate) async fn passed<R, W>(
    limits: &Limits,
    start: Instant,
    inbound: &Half<R>,
    outbound: &Half<W>,
) -> Passed {
    // What passes a limit on bytes is done by the same task, which looks here each time.
    let bytes = poll_fn(|_| {
        if inbound.exceeded() || outbound.exceeded() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    tokio::select! {
        biased;
        () = bytes => Passed::Bytes,
        passed = seldom(time(limits, start, inbound, outbound)) => passed,
    }
}

async fn time<R, W>(limits: &Limits, start: Instant, inbound: &Half<R>, outbound: &Half<W>) -> Passed {
    loop {
        let now = Instant::now();
        let silent = inbound.bytes() == 0 && outbound.bytes() == 0;
        let deadlines = [
            (Passed::Lifetime, Some(start), limits.max_lifetime),
            (
                Passed::FirstByte,
                silent.then_some(start),
                limits.first_byte_timeout,
            ),
            (Passed::Idle, Some(moved(inbound, outbound)), limits.idle_timeout),
            (Passed::Write, outbound.stalled_since(), limits.write_timeout),
        ];
        // One beyond all time never comes.
        let deadlines = deadlines
            .into_iter()
            .filter_map(|(limit, since, length)| Some((since?.checked_add(length?)?, limit)));
        let next = deadlines.min_by_key(|(at, _)| *at);
        // A write that begins to wait while this sleeps is found in time.
        let look = limits.write_timeout.and_then(|length| now.checked_add(length));
        match (next, look) {
            (Some((at, limit)), _) if at <= now => return limit,
            (Some((at, _)), Some(look)) => sleep_until(at.min(look)).await,
            (Some((at, _)), None) | (None, Some(at)) => sleep_until(at).await,
            (None, None) => return pending().await,
        }
    }
}

/// When a byte moved last.
pub(crate) fn moved<R, W>(inbound: &Half<R>, outbound: &Half<W>) -> Instant {
    inbound.moved().max(outbound.moved())
}
