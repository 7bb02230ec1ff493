//! Whether an instance that connections share lets all of them have their turn.
//!
//! One call into a guest at a time has the store. While it computes, or waits for the host in a way that nothing else in the
//! instance can go on beside, all others wait. So a future of the host stands among those that the store polls: whenever
//! the store can turn to it, nobody has been kept waiting. A guest whose reads and writes are done at once, since its peer is
//! fast, has to wait in one of them when its slice is over.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::meter::{Meter, Passed, longest_wait};
use super::ticker::Ticker;
use crate::deadlines::after;

/// Connections that are over and still in an instance, beyond which the next one waits for them.
const LEAVING: usize = 64;

/// Turns of a guest that a connection waits at most for others to leave its instance.
const TURNS: u32 = 16;

/// Calls from which a guest has not returned although their connections are over, at most. The host
/// cannot take a call back, and each keeps up to 9 KiB.
///
/// Clients alone can cause so many, by resets while the guest waits for something else. So with as
/// many, further connections wait until the guest returns from a call.
const CALLS_LEFT: usize = 1024;

/// The pulse of one instance.
#[derive(Debug)]
pub(super) struct Pulse {
    ticker: Arc<Ticker>,
    beats: AtomicBool,
    /// The tick of the last beat.
    last: AtomicU64,
    /// Halves that the guest has, of connections that are open and of others that it has not let go.
    pub(super) halves: AtomicUsize,
    max_halves: usize,
    calls: Arc<Calls>,
    /// How often the task of the instance has polled the store.
    turns: AtomicU32,
}

impl Pulse {
    /// For an instance that serves so many connections at most.
    pub(super) fn new(ticker: &Arc<Ticker>, max_connections: usize) -> Self {
        Self {
            ticker: Arc::clone(ticker),
            beats: AtomicBool::new(false),
            last: AtomicU64::new(ticker.now()),
            halves: AtomicUsize::new(0),
            max_halves: max_connections.saturating_add(LEAVING).saturating_mul(2),
            calls: Arc::new(Calls {
                count: AtomicUsize::new(0),
                // All connections can end at once, before the guest has its turn.
                max: max_connections.saturating_mul(2).saturating_add(CALLS_LEFT),
                returned: Notify::new(),
            }),
            turns: AtomicU32::new(0),
        }
    }

    /// Whether the connection that has the store has had it for its slice, and should let others have their turn.
    pub(super) fn slice_is_over(&self) -> bool {
        self.ticker.slice_is_over(self.last.load(Relaxed))
    }

    /// Waits while the guest has more halves than its connections need, for [`TURNS`] of its turns at
    /// most. In these turns a busy guest lets go of connections that are over. A guest that keeps their
    /// halves, such as one that finds out at its next write, is not waited for.
    ///
    /// To be awaited in [`Pulse::beat`].
    pub(super) async fn room(&self) {
        let start = self.turns.load(Relaxed);
        let mut last = None;
        poll_fn(|cx| {
            let turns = self.turns.load(Relaxed);
            if self.halves.load(Relaxed) <= self.max_halves || turns.wrapping_sub(start) > TURNS {
                return Poll::Ready(());
            }
            // In one turn, the store does all that can be done now, and polls this more than once.
            if last.replace(turns) != Some(turns) {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits while the guest has not returned from as many calls as there may be. Others return
    /// meanwhile, and each return gives the guest the time again that a call may wait for the host
    /// with the limit `max` on its own time.
    ///
    /// # Errors
    ///
    /// The guest has returned from none of them in that time, so it makes no progress.
    pub(super) async fn room_for_call(&self, max: Option<Duration>) -> wasmtime::Result<()> {
        while self.calls.are_most() {
            let returned = self.calls.returned.notified();
            let Some(max) = max else {
                returned.await;
                continue;
            };
            let max = longest_wait(max);
            if timeout(max, returned).await.is_err() && self.calls.are_most() {
                wasmtime::bail!(
                    "the guest has not returned from {} calls of `handle`, most of them for connections that \
                     are over, and from none of them for {max:?}",
                    self.calls.max
                );
            }
        }
        Ok(())
    }

    /// Counts a call until the value is dropped.
    pub(super) fn call(&self) -> Call {
        self.calls.count.fetch_add(1, Relaxed);
        Call(Arc::clone(&self.calls))
    }

    /// Runs `future`, which the store has to poll each time that it can turn to something else.
    pub(super) async fn beat<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            self.beats.store(true, Relaxed);
            self.last.store(self.ticker.now(), Relaxed);
            future.as_mut().poll(cx)
        })
        .await
    }

    /// Runs `instance`, in which [`Pulse::beat`] runs, to its end. Fails if something keeps the store
    /// from `beat` for longer than `max`, as [`Meter`] measures it.
    pub(super) async fn watch<F: Future>(
        &self,
        max: Option<Duration>,
        instance: F,
    ) -> Result<F::Output, Passed> {
        let mut instance = pin!(instance);
        let mut turn = |cx: &mut Context<'_>| {
            self.turns.fetch_add(1, Relaxed);
            instance.as_mut().poll(cx)
        };
        let Some(max) = max else {
            return Ok(poll_fn(turn).await);
        };
        // Since the last beat.
        let mut meter = Meter::default();
        let mut timer = pin!(sleep(max));
        // What is idle has no timer, so that it wakes nobody.
        let mut armed = false;
        poll_fn(|cx| {
            let due = armed && timer.is_elapsed();
            for last in [!due, true] {
                let start = meter.start();
                if let Poll::Ready(output) = turn(cx) {
                    return Poll::Ready(Ok(output));
                }
                if !self.beats.swap(false, Relaxed) {
                    // The meter wakes it from now on.
                    armed = false;
                    return meter.goes_on(cx, max, &start).map(Err);
                }
                meter = Meter::default();
                if last {
                    break;
                }
                // A call that has the store may have begun after the beat: then there is none now.
            }
            if due {
                armed = false;
                return Poll::Pending;
            }
            if !armed {
                armed = true;
                timer.as_mut().reset(after(Instant::now(), max));
            }
            if timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }
}

/// Calls from which a guest has not returned.
#[derive(Debug)]
struct Calls {
    count: AtomicUsize,
    max: usize,
    /// Notified when there is room for one more again.
    returned: Notify,
}

impl Calls {
    fn are_most(&self) -> bool {
        self.count.load(Relaxed) >= self.max
    }
}

/// A call from which the guest has not returned.
#[derive(Debug)]
pub(super) struct Call(Arc<Calls>);

impl Drop for Call {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Relaxed) == self.0.max {
            self.0.returned.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::advance;

    use super::*;

    fn pulse() -> Pulse {
        Pulse::new(&Ticker::start(Duration::from_millis(2)).unwrap(), 1)
    }

    #[tokio::test(start_paused = true)]
    async fn calls_from_which_a_guest_does_not_return_are_few() {
        let pulse = pulse();
        let mut calls = Vec::new();
        let fill = async |calls: &mut Vec<Call>| {
            while calls.len() < CALLS_LEFT + 2 {
                pulse.room_for_call(Some(MAX)).await.unwrap();
                calls.push(pulse.call());
            }
        };
        fill(&mut calls).await;
        // A guest that returns from a call now and then makes progress.
        for _ in 0..3 {
            let mut room = pin!(pulse.room_for_call(Some(MAX)));
            assert!(timeout(9 * MAX, &mut room).await.is_err());
            calls.pop();
            room.await.unwrap();
            fill(&mut calls).await;
        }
        assert!(timeout(1000 * MAX, pulse.room_for_call(None)).await.is_err());
        let start = Instant::now();
        let error = pulse.room_for_call(Some(MAX)).await.unwrap_err().to_string();
        assert!(error.contains("not returned from 1026 calls"), "{error}");
        assert_eq!(start.elapsed().as_secs(), 10 * MAX.as_secs());
        calls.pop();
        pulse.room_for_call(Some(MAX)).await.unwrap();
    }

    const MAX: Duration = Duration::from_secs(1);

    /// Polls `work` until it is done for now, and only then what beats, as a store does with its calls.
    async fn store(pulse: &Pulse, work: impl Future<Output = ()>, polls: &AtomicU32) {
        let mut work = pin!(work);
        let mut beat = pin!(pulse.beat(pending::<()>()));
        let mut done = false;
        poll_fn(|cx| {
            polls.fetch_add(1, Relaxed);
            done = done || work.as_mut().poll(cx).is_ready();
            if done {
                beat.as_mut().poll(cx)
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_the_store_for_too_long_is_ended_on_time() {
        let (pulse, polls) = (pulse(), AtomicU32::new(0));
        let start = Instant::now();
        let watched = pulse.watch(Some(MAX), store(&pulse, pending(), &polls)).await;
        assert_eq!(watched, Err(Passed::Wait));
        assert_eq!(start.elapsed().as_secs(), 10 * MAX.as_secs());
        let watched = pulse.watch(Some(MAX), store(&pulse, sleep(MAX / 2), &polls));
        assert!(timeout(20 * MAX, watched).await.is_err(), "it was done in time");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_is_ended() {
        let (pulse, polls) = (pulse(), AtomicU32::new(0));
        let watched = pulse.watch(None, store(&pulse, pending(), &polls));
        assert!(timeout(10 * MAX, watched).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_idle_is_left_alone() {
        let pulse = Arc::new(pulse());
        let polls = Arc::new(AtomicU32::new(0));
        let wake = Arc::new(Notify::new());
        let (theirs, counted, woken) = (Arc::clone(&pulse), Arc::clone(&polls), Arc::clone(&wake));
        let idle = async move {
            poll_fn(|_| {
                counted.fetch_add(1, Relaxed);
                Poll::Ready(())
            })
            .await;
            loop {
                woken.notified().await;
                counted.fetch_add(1, Relaxed);
            }
        };
        let beating = async move { theirs.watch(Some(MAX), theirs.beat(idle)).await };
        let task = tokio::spawn(beating);
        tokio::task::yield_now().await;
        advance(3 * MAX).await;
        tokio::task::yield_now().await;
        // However long it then is.
        advance(1000 * MAX).await;
        tokio::task::yield_now().await;
        wake.notify_one();
        tokio::task::yield_now().await;
        assert_eq!(polls.load(Relaxed), 2);
        assert!(!task.is_finished());
        task.abort();
    }
}
