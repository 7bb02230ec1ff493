//! The tasks that wait for one half of a connection.
//!
//! A transport wakes only the last task that polled it, and a program may wait for its half in
//! several places at once. So the transport is polled with one waker, which wakes all tasks.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// The tasks that wait.
pub(super) struct Waiters {
    woken: Arc<Notify>,
    /// Wakes all of them.
    waker: Waker,
}

/// The place of one task among the waiters. Dropping it removes the task, so a task that polls
/// again and again still has one place.
pub(super) type Seat = Option<OwnedNotified>;

/// A task that polls, with its seat.
pub(super) struct Asking<'a> {
    seat: Pin<&'a mut Seat>,
    waker: &'a Waker,
}

impl<'a> Asking<'a> {
    /// Returns the task of `cx` with its seat.
    pub(super) fn new(seat: Pin<&'a mut Seat>, cx: &'a Context<'_>) -> Self {
        let waker = cx.waker();
        Self { seat, waker }
    }

    /// Returns the same task for a shorter time.
    pub(super) fn reborrow(&mut self) -> Asking<'_> {
        Asking {
            seat: self.seat.as_mut(),
            waker: self.waker,
        }
    }
}

impl Waiters {
    pub(super) fn new() -> Self {
        let woken = Arc::<Notify>::default();
        Self {
            waker: Waker::from(Arc::new(All(Arc::clone(&woken)))),
            woken,
        }
    }

    /// Polls the transport by `poll`. If it is pending, the task takes its seat. Without a task, the
    /// poll registers nobody.
    pub(super) fn poll<T>(
        &self,
        asking: Option<Asking<'_>>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let mut all = Context::from_waker(&self.waker);
        let polled = poll(&mut all);
        let Some(Asking { mut seat, waker }) = asking else {
            return polled;
        };
        if polled.is_ready() {
            seat.set(None);
            return polled;
        }
        seat.set(Some(Arc::clone(&self.woken).notified_owned()));
        let woken = seat
            .as_mut()
            .as_pin_mut()
            .map(|woken| woken.poll(&mut Context::from_waker(waker)));
        if woken.is_some_and(|woken| woken.is_ready()) {
            // All were woken before the task had its seat.
            waker.wake_by_ref();
        }
        // The transport may have become ready before the task had its seat.
        poll(&mut all)
    }
}

/// Wakes all tasks that have a seat.
struct All(Arc<Notify>);

impl Wake for All {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::counting_task::counting_task as task;

    /// Polls a pending transport for the task of `waker`, or for none. Returns the waker that the
    /// transport was polled with.
    fn wait(waiters: &Waiters, asking: Option<(Pin<&mut Seat>, &Waker)>) -> Waker {
        let asking = asking.map(|(seat, waker)| Asking { seat, waker });
        let mut asked = Waker::noop().clone();
        let polled = waiters.poll(asking, |cx| {
            asked = cx.waker().clone();
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        asked
    }

    #[test]
    fn all_tasks_that_wait_are_woken_once() {
        let waiters = Waiters::new();
        let (one, first) = task();
        let (two, second) = task();
        let (mut one_seat, mut two_seat) = (pin!(None), pin!(None));
        wait(&waiters, Some((one_seat.as_mut(), &first)));
        wait(&waiters, Some((two_seat.as_mut(), &second)));
        wait(&waiters, Some((one_seat.as_mut(), &first)));
        // A poll without a task registers nobody.
        let asked = wait(&waiters, None);
        asked.wake_by_ref();
        asked.wake();
        assert_eq!((one.wakes(), two.wakes()), (1, 1));
    }

    #[test]
    fn a_task_that_has_given_up_is_not_woken() {
        let waiters = Waiters::new();
        let (one, first) = task();
        let (two, second) = task();
        let mut two_seat = pin!(None);
        let asked = {
            let mut seat = pin!(None);
            wait(&waiters, Some((seat.as_mut(), &first)));
            wait(&waiters, Some((two_seat.as_mut(), &second)))
        };
        asked.wake();
        assert_eq!((one.wakes(), two.wakes()), (0, 1));
    }

    #[test]
    fn a_transport_that_becomes_ready_during_the_poll_is_found() {
        let waiters = Waiters::new();
        let (one, waker) = task();
        let mut polls = 0;
        let (seat, waker) = (pin!(None), &waker);
        let polled = waiters.poll(Some(Asking { seat, waker }), |cx| {
            polls += 1;
            if polls == 1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        });
        assert!(polled.is_ready() && one.wakes() == 0);
    }

    #[test]
    fn no_task_is_woken_without_an_event() {
        let waiters = Waiters::new();
        // As many tasks as a program has handles. Each polls twice.
        let (tasks, wakers): (Vec<_>, Vec<_>) = (0..10_000).map(|_| task()).unzip();
        let mut seats: Vec<Pin<Box<Seat>>> = wakers.iter().map(|_| Box::pin(None)).collect();
        let mut asked = Waker::noop().clone();
        for _ in 0..2 {
            for (waker, seat) in wakers.iter().zip(&mut seats) {
                asked = wait(&waiters, Some((seat.as_mut(), waker)));
            }
        }
        assert!(tasks.iter().all(|task| task.wakes() == 0));
        asked.wake();
        assert!(tasks.iter().all(|task| task.wakes() == 1));
    }
}
