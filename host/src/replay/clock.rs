//! The clock of a replayed conversation.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::poll;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep, timeout};

use crate::deadlines::after;
use crate::sandbox::real_timer;

/// Why an event has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The time has passed.
    Silent,
    /// The guest has worked for too long in real time. The clock has skipped the rest of the time.
    Busy,
}

/// Clock that stands still while the guest works, and jumps while it waits.
///
/// It knows that the guest waits when the guest has taken everything that the client did, and polls
/// its [`Timer`]. The next thing to happen is then the timer, or the client's next step.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Time since the conversation began.
    now: Duration,
    /// Chunks, ends and resets of the client.
    sent: u64,
    /// Chunks, ends and resets that the guest has read. A client that goes without an end counts too.
    taken: u64,
    /// Set while the guest waits.
    wait: Option<Wait>,
    /// The client, while it waits for the guest to wait.
    client: Option<Waker>,
}

#[derive(Debug)]
struct Wait {
    /// When the timer is due; never without one.
    due: Option<Duration>,
    waker: Waker,
}

impl State {
    /// Moves the time on to `now`, if it is not later yet.
    fn pass(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }
}

impl Clock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the client is about to send something to the guest.
    fn sends(&self) {
        self.state().sent += 1;
    }

    /// Notes that the guest has taken something that the client sent.
    fn takes(&self) {
        let mut state = self.state();
        state.taken += 1;
        state.wait = None;
    }

    /// Returns a timer that is due in `after`, or never.
    fn timer(&self, after: Option<Duration>) -> Timer {
        let due = after.and_then(|after| self.state().now.checked_add(after));
        Timer {
            clock: self.clone(),
            due,
        }
    }

    /// Waits until the guest waits.
    async fn guest_waits(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.state();
            if state.wait.is_some() && state.sent <= state.taken {
                return Poll::Ready(());
            }
            state.client = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Moves the time on to when the timer is due, if that is not after `end`. Otherwise moves it
    /// on to `end`, and returns `false`.
    fn jump(&self, end: Duration) -> bool {
        let mut state = self.state();
        let due = state.wait.as_ref().and_then(|wait| wait.due);
        match due.filter(|due| *due <= end) {
            Some(due) => {
                state.pass(due);
                if let Some(wait) = state.wait.take() {
                    wait.waker.wake();
                }
                true
            }
            None => {
                state.pass(end);
                false
            }
        }
    }

    /// Waits for `event`, which the guest causes, for as long as `limit` by this clock.
    ///
    /// A guest that works or writes without waiting has as much real time as `patience`. The real
    /// time starts again when the guest waits, if this clock has gone faster than the real one.
    /// Otherwise a guest with timers of a nanosecond would never reach `limit`.
    ///
    /// # Errors
    ///
    /// The event has not come.
    async fn within<T>(
        &self,
        limit: Duration,
        patience: Duration,
        event: impl Future<Output = T>,
    ) -> Result<T, Late> {
        let mut began = (self.state().now, Instant::now());
        let end = began.0.saturating_add(limit);
        let mut event = pin!(unconstrained(event));
        let mut real = pin!(sleep(patience));
        loop {
            tokio::select! {
                biased;
                outcome = event.as_mut() => return Ok(outcome),
                () = self.guest_waits() => {}
                () = real.as_mut() => {
                    self.state().pass(end);
                    return Err(Late::Busy);
                }
            }
            // The guest may have caused it just before it began to wait.
            if let Poll::Ready(outcome) = poll!(event.as_mut()) {
                return Ok(outcome);
            }
            if !self.jump(end) {
                return Err(Late::Silent);
            }
            let now = (self.state().now, Instant::now());
            if now.0 - began.0 > now.1 - began.1 {
                began = now;
                real.as_mut().reset(after(now.1, patience));
            }
        }
    }
}

/// The time of a conversation: of its own clock, or real if there is none.
#[derive(Clone, Debug)]
pub(super) struct Time {
    clock: Option<Clock>,
    /// How long a guest may really work for a step.
    patience: Duration,
}

impl Time {
    /// The time of a new conversation. It is real, unless `is_virtual`.
    pub(super) fn new(is_virtual: bool, patience: Duration) -> Self {
        Self {
            clock: is_virtual.then(Clock::default),
            patience,
        }
    }

    /// Whether time passes as for a connection.
    pub(super) fn is_real(&self) -> bool {
        self.clock.is_none()
    }

    /// Returns a timer of the guest that is due in `after`, or never.
    pub(super) async fn timer(&self, after: Option<Duration>) {
        match &self.clock {
            Some(clock) => clock.timer(after).await,
            None => real_timer(after).await,
        }
    }

    /// Waits for `event` for as long as `limit`.
    ///
    /// # Errors
    ///
    /// It has not come by then, or the guest has worked for too long.
    pub(super) async fn within<T>(&self, limit: Duration, event: impl Future<Output = T>) -> Result<T, Late> {
        match &self.clock {
            Some(clock) => clock.within(limit, self.patience, event).await,
            None => timeout(limit, event).await.map_err(|_| Late::Silent),
        }
    }

    /// Notes that the client is about to send something to the guest.
    pub(super) fn sends(&self) {
        if let Some(clock) = &self.clock {
            clock.sends();
        }
    }

    /// Notes that the guest has taken something that the client sent.
    pub(super) fn takes(&self) {
        if let Some(clock) = &self.clock {
            clock.takes();
        }
    }
}

/// A timer of the guest. It completes when the clock has reached its time.
#[derive(Debug)]
struct Timer {
    clock: Clock,
    due: Option<Duration>,
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.clock.state();
        if self.due.is_some_and(|due| due <= state.now) {
            state.wait = None;
            return Poll::Ready(());
        }
        state.wait = Some(Wait {
            due: self.due,
            waker: cx.waker().clone(),
        });
        if let Some(client) = state.client.take() {
            client.wake();
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.clock.state().wait = None;
    }
}

#[cfg(test)]
impl Time {
    /// The time by the clock of the conversation.
    pub(super) fn now(&self) -> Duration {
        self.clock.as_ref().unwrap().state().now
    }
}
