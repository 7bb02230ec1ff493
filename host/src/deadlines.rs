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

/// Looks at writes that were given up, in the time that a write may wait.
const LOOKS: u32 = 10;

/// Since when the peer does not read, if bytes wait to be written, or if a guest gave up each write
/// until it was known for as long as `timeout` that the peer does not read.
fn unread_since(outbound: &dyn Traffic, timeout: Option<Duration>) -> Option<Instant> {
    outbound.stalled_since().or_else(|| {
        let (since, length) = outbound.refused()?;
        (length >= timeout?).then_some(since)
    })
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
                (
                    Passed::Write,
                    unread_since(&*outbound, write_timeout),
                    write_timeout,
                ),
            ];
            // One beyond all time never comes.
            let deadlines = deadlines
                .into_iter()
                .filter_map(|(limit, since, length)| Some((since?.checked_add(length?)?, limit)));
            let next = deadlines.min_by_key(|(at, _)| *at);
            // A write that begins to wait while this sleeps is found in time. One that a guest
            // gives up at once can only be found afterwards.
            let look = write_timeout.and_then(|length| match outbound.refused() {
                Some(_) => now.checked_add(length / LOOKS),
                None => now.checked_add(length),
            });
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

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, DuplexStream, empty};
    use tokio::time::timeout;

    use super::*;
    use crate::half::Lent;

    const WRITE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(60 * 60);

    /// A connection to a peer that has read nothing and has no room left.
    struct Full {
        writer: Lent<DuplexStream>,
        peer: DuplexStream,
        passed: Pin<Box<dyn Future<Output = Passed>>>,
    }

    impl Full {
        async fn new() -> Self {
            let (near, peer) = tokio::io::duplex(4);
            let (inbound, outbound) = (Half::new(empty(), None), Half::new(near, None));
            let mut writer = outbound.lend().unwrap();
            writer.write_all(b"full").await.unwrap();
            let limits = Limits {
                first_byte_timeout: None,
                idle_timeout: None,
                write_timeout: Some(WRITE),
                ..Limits::default()
            };
            let passed = time(&limits, Instant::now(), inbound.traffic(), outbound.traffic());
            Self {
                writer,
                peer,
                passed: Box::pin(passed),
            }
        }

        /// Begins a write, and gives it up if it has to wait.
        async fn try_write(&mut self) {
            let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut self.writer).poll_write(cx, b"x"))).await;
            if polled.is_pending() {
                self.writer.give_up();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn writes_that_are_given_up_count_from_the_first_one() {
        let mut full = Full::new().await;
        let start = Instant::now();
        loop {
            full.try_write().await;
            if let Ok(passed) = timeout(Duration::from_secs(1), full.passed.as_mut()).await {
                assert_eq!(passed, Passed::Write);
                break;
            }
            assert!(start.elapsed() < HOUR, "the peer has read nothing");
        }
        // Late by no more than a look and the time after a stall.
        let latest = WRITE + WRITE / LOOKS + 2 * CATCH_UP;
        assert!(
            (WRITE..latest).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_between_writes_that_are_given_up_is_kept() {
        let mut full = Full::new().await;
        let start = Instant::now();
        while start.elapsed() < HOUR {
            for _ in 0..2 {
                full.try_write().await;
            }
            let passed = timeout(WRITE / 2, full.passed.as_mut()).await;
            assert!(passed.is_err(), "after {:?}: {passed:?}", start.elapsed());
            full.peer.read_u8().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_write_that_is_given_up_says_nothing_of_the_time_after_it() {
        let mut full = Full::new().await;
        full.try_write().await;
        assert!(timeout(HOUR, full.passed.as_mut()).await.is_err());
        // The next one does.
        full.try_write().await;
        let start = Instant::now();
        assert_eq!(full.passed.as_mut().await, Passed::Write);
        assert!(
            start.elapsed() < WRITE / LOOKS + 2 * CATCH_UP,
            "{:?}",
            start.elapsed()
        );
    }
}
