//! Time that guests use.
//!
//! A call of a guest is charged with the time for which its thread has run it. Time in which it
//! waits for a processor is not its own: the machine has other work, other connections have their
//! turn, or the process was stopped. A call that waits for the host is bounded by the clock.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep};

use crate::config::Setting;
use crate::deadlines::{CATCH_UP, STALL};

/// Time between two ticks of the clock that interrupts guests.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// How many times its limit on the processor a call may wait for the host.
const WAITS: u32 = 10;

thread_local! {
    /// Whether a guest has let others run since this was last cleared.
    static YIELDED: Cell<bool> = const { Cell::new(false) };

    /// The last tick at which the time of this thread was read, and that time.
    static THREAD_TIME: Cell<(u64, Duration)> = const { Cell::new((u64::MAX, Duration::ZERO)) };
}

/// Notes that the guest on this thread lets others run, and does not wait for the host.
pub(super) fn yields() {
    YIELDED.set(true);
}

/// Notes that a turn of a connection begins on this thread at the tick `now`. Reading the time of a
/// thread is a system call, so this does it once in each tick.
pub(super) fn turn_begins(now: u64) {
    if THREAD_TIME.get().0 != now {
        THREAD_TIME.set((now, thread_time()));
    }
}

/// The time of this thread when its turn began, or up to a tick before.
pub(super) fn turn_began() -> Duration {
    THREAD_TIME.get().1
}

/// The time for which this thread has been on a processor.
pub(super) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    time.expect("every thread on Linux has this clock")
}

/// The setting of the limits of a call.
const CALL_TIME: Setting<'_> = Setting::of("limits.max-call-time");

/// Which of its limits a call has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Passed {
    /// On its time on the processor.
    #[error("used more time on the processor than {CALL_TIME}")]
    Processor,
    /// On waiting for the host.
    #[error("waited for the host for more than {WAITS} times {CALL_TIME}")]
    Wait,
}

/// How long a call may wait for the host that may have the processor for `max`.
pub(super) fn longest_wait(max: Duration) -> Duration {
    max.saturating_mul(WAITS)
}

/// Holds one call to its limits.
#[derive(Debug, Default)]
pub(super) struct Meter {
    used: Duration,
    /// Whether the first turn is over.
    begun: bool,
    /// Time in earlier waits for the host.
    waited: Duration,
    /// The wait for the host that the call is in.
    wait: Option<Wait>,
    /// A stall of the process in a wait was allowed for.
    spared: bool,
}

/// The time of the thread at the start of a turn, unless it is the first.
pub(super) struct Start(Option<Duration>);

#[derive(Debug)]
struct Wait {
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Meter {
    /// Takes the call through a turn, by `poll`. Fails if it is not done, and has used more than `max`
    /// of the processor or waited for the host for more than [`WAITS`] times `max` in all.
    pub(super) fn turn<T>(
        &mut self,
        cx: &mut Context<'_>,
        max: Duration,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Passed>> {
        let start = self.start();
        match poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.goes_on(cx, max, &start).map(Err),
        }
    }

    /// A turn begins.
    pub(super) fn start(&self) -> Start {
        YIELDED.set(false);
        Start(self.begun.then(thread_time))
    }

    /// A turn has ended and the call goes on. Waits until the call has passed a limit, as
    /// [`Meter::turn`] does.
    pub(super) fn goes_on(&mut self, cx: &mut Context<'_>, max: Duration, start: &Start) -> Poll<Passed> {
        self.begun = true;
        // The first turn of a call has no start of its own, because most calls have no other turn. It
        // cannot have begun before the turn of the connection.
        self.used += match start.0 {
            Some(before) => thread_time().saturating_sub(before),
            None => thread_time().saturating_sub(turn_began() + TICK),
        };
        if self.used >= max {
            return Poll::Ready(Passed::Processor);
        }
        if YIELDED.get() {
            self.end_wait();
            return Poll::Pending;
        }
        self.wait(cx, max.saturating_mul(WAITS))
    }

    /// Waits for the host, until the call has waited for `max`.
    fn wait(&mut self, cx: &mut Context<'_>, max: Duration) -> Poll<Passed> {
        let left = max.saturating_sub(self.waited);
        let wait = self.wait.get_or_insert_with(|| Wait {
            since: Instant::now(),
            timer: Box::pin(sleep(left)),
        });
        ready!(wait.timer.as_mut().poll(cx));
        if !wait.is_stalled() || self.spared {
            return Poll::Ready(Passed::Wait);
        }
        // What the host has done during the stall reaches the call first.
        self.spared = true;
        wait.timer.as_mut().reset(Instant::now() + CATCH_UP);
        wait.timer.as_mut().poll(cx).map(|()| Passed::Wait)
    }

    /// Counts the wait that is over, unless the process was stalled in it.
    fn end_wait(&mut self) {
        let Some(wait) = self.wait.take() else { return };
        if wait.is_stalled() && !self.spared {
            self.spared = true;
        } else {
            self.waited += wait.since.elapsed();
        }
    }
}

impl Wait {
    /// Whether its timer is so late that the process was stopped, or got no processor.
    fn is_stalled(&self) -> bool {
        Instant::now().saturating_duration_since(self.timer.deadline()) >= STALL
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

    /// Begins a turn at a tick that this thread has not seen.
    fn begin() {
        turn_begins(THREAD_TIME.get().0.wrapping_add(1));
    }

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
        begin();
        assert_eq!(turns(4, works), Poll::Pending);
        begin();
        assert_eq!(turns(6, works), Poll::Ready(Err(Passed::Processor)));
        // So does a thread that the system does not run.
        begin();
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

    #[tokio::test(start_paused = true)]
    async fn waits_add_up_though_the_call_works_between_them() {
        begin();
        let mut meter = Meter::default();
        let mut cx = Context::from_waker(Waker::noop());
        for wait in 0.. {
            let turn = meter.turn::<()>(&mut cx, MAX, |_| Poll::Pending);
            if turn.is_ready() {
                assert_eq!((turn, wait), (Poll::Ready(Err(Passed::Wait)), 5));
                return;
            }
            // Each is a fifth of what it may wait.
            tokio::time::advance(2 * MAX).await;
            let turn = meter.turn::<()>(&mut cx, MAX, |_| {
                yields();
                Poll::Pending
            });
            assert_eq!(turn, Poll::Pending);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_of_the_process_ends_no_call_that_waits() {
        begin();
        let mut meter = Meter::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = || meter.turn::<()>(&mut cx, MAX, |_| Poll::Pending);
        assert_eq!(waits(), Poll::Pending);
        tokio::time::advance(100 * MAX).await;
        assert_eq!(waits(), Poll::Pending);
        tokio::time::advance(CATCH_UP).await;
        assert_eq!(waits(), Poll::Ready(Err(Passed::Wait)));
    }
}
