//! Time that guests use.
//!
//! A call of a guest is charged with the time for which its thread has run it. Time in which it
//! waits for a processor is not its own: the machine has other work, other connections have their
//! turn, or the process was stopped. A call that waits for the host is bounded by the clock.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use thiserror::Error;
use tokio::time::{Sleep, sleep};

/// How many times its limit on the processor a call may wait for the host.
const WAITS: u32 = 10;

thread_local! {
    /// Whether a guest has let others run since this was last cleared.
    static YIELDED: Cell<bool> = const { Cell::new(false) };
}

/// Notes that the guest on this thread lets others run, and does not wait for the host.
pub(super) fn yields() {
    YIELDED.set(true);
}

/// The time for which this thread has been on a processor.
pub(super) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    time.expect("every thread on Linux has this clock")
}

/// Which of its limits a call has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Passed {
    /// On its time on the processor.
    #[error("used more time on the processor than `max-call-time`")]
    Processor,
    /// On waiting for the host.
    #[error("waited for the host for more than {WAITS} times `max-call-time`")]
    Wait,
}

/// Holds one call to its limits.
///
/// Its first turn is not measured, since most calls need no other: it adds a slice at most.
#[derive(Debug, Default)]
pub(super) struct Meter {
    used: Duration,
    /// Whether the first turn is over.
    begun: bool,
    /// Runs while the call waits for the host.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Meter {
    /// Takes the call through a turn, by `poll`. Fails if it is not done, and has used more than `max`
    /// of the processor or waited for the host for more than [`WAITS`] times `max`.
    pub(super) fn turn<T>(
        &mut self,
        cx: &mut Context<'_>,
        max: Duration,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Passed>> {
        let before = self.begun.then(thread_time);
        YIELDED.set(false);
        if let Poll::Ready(done) = poll(cx) {
            return Poll::Ready(Ok(done));
        }
        self.begun = true;
        if let Some(before) = before {
            self.used += thread_time().saturating_sub(before);
        }
        if self.used >= max {
            return Poll::Ready(Err(Passed::Processor));
        }
        if YIELDED.get() {
            self.timer = None;
            return Poll::Pending;
        }
        self.timer
            .get_or_insert_with(|| Box::pin(sleep(max.saturating_mul(WAITS))))
            .as_mut()
            .poll(cx)
            .map(|()| Err(Passed::Wait))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;
    use std::task::Waker;
    use std::thread;

    use super::*;

    const MAX: Duration = Duration::from_millis(50);
    const TURN: Duration = Duration::from_millis(10);

    /// Takes a call that never ends through so many turns, each of which does `work` and yields.
    fn turns(count: u32, work: impl Fn()) -> Poll<Result<(), Passed>> {
        let mut meter = Meter::default();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..count {
            let turn = meter.turn(&mut cx, MAX, |_| {
                work();
                yields();
                Poll::Pending
            });
            if turn.is_ready() {
                return turn;
            }
        }
        Poll::Pending
    }

    #[test]
    fn a_call_that_works_is_ended_and_one_that_waits_for_the_processor_is_not() {
        let works = || {
            let start = thread_time();
            while thread_time() - start < TURN {}
        };
        // The first turn is not measured.
        assert_eq!(turns(5, works), Poll::Pending);
        assert_eq!(turns(6, works), Poll::Ready(Err(Passed::Processor)));
        // So does a thread that the system does not run.
        assert_eq!(turns(20, || thread::sleep(TURN)), Poll::Pending);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waits_for_the_host_is_ended_by_the_clock() {
        let start = tokio::time::Instant::now();
        let (mut meter, mut call) = (Meter::default(), pin!(pending::<()>()));
        let ended = std::future::poll_fn(|cx| meter.turn(cx, MAX, |cx| call.as_mut().poll(cx))).await;
        assert_eq!(ended, Err(Passed::Wait));
        assert_eq!(start.elapsed(), 10 * MAX);
    }
}
