//! Who waits for one half of a connection.
//!
//! A transport wakes who has asked it last, and a program may wait for its half in several places at once. So the transport
//! is asked for all of them together, and what it wakes is all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Wakers that are kept beside the first. Beyond it all are woken, and those that still wait ask again.
const MAX: usize = 1000;

/// Those who wait.
pub(super) struct Waiters {
    list: Arc<List>,
    /// Wakes them.
    waker: Waker,
}

#[derive(Default)]
struct List(Mutex<Wakers>);

#[derive(Default)]
struct Wakers {
    /// Mostly there is no more than one, for whom nothing has to be allocated.
    first: Option<Waker>,
    others: Vec<Waker>,
}

impl Waiters {
    pub(super) fn new() -> Self {
        let list = Arc::<List>::default();
        Self {
            waker: Waker::from(Arc::clone(&list)),
            list,
        }
    }

    /// Polls the transport by `poll`. If that has to wait, so does the task of `cx`, unless it is one that cannot be woken.
    pub(super) fn poll<T>(
        &self,
        cx: &Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let mut all = Context::from_waker(&self.waker);
        let polled = poll(&mut all);
        if polled.is_ready() || cx.waker().will_wake(Waker::noop()) {
            return polled;
        }
        self.list.add(cx.waker());
        // It may have become ready before there was somebody to be woken.
        poll(&mut all)
    }
}

impl List {
    fn add(&self, waker: &Waker) {
        let mut wakers = self.wakers();
        let Wakers { first, others } = &mut *wakers;
        match first {
            None => *first = Some(waker.clone()),
            Some(first) if first.will_wake(waker) => {}
            Some(_) if others.iter().any(|other| other.will_wake(waker)) => {}
            Some(_) => {
                let full = others.len() >= MAX;
                let woken = if full { std::mem::take(others) } else { Vec::new() };
                others.push(waker.clone());
                drop(wakers);
                woken.into_iter().for_each(Waker::wake);
            }
        }
    }

    fn wakers(&self) -> MutexGuard<'_, Wakers> {
        // Nothing can panic while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for List {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Wakers { first, others } = std::mem::take(&mut *self.wakers());
        first.into_iter().chain(others).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting_task::counting_task as task;

    /// Has `waker` wait, and gives what the transport wakes.
    fn wait(waiters: &Waiters, waker: &Waker) -> Waker {
        let mut asked = Waker::noop().clone();
        let polled = waiters.poll(&Context::from_waker(waker), |cx| {
            asked = cx.waker().clone();
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        asked
    }

    #[test]
    fn all_who_wait_are_woken_once() {
        let waiters = Waiters::new();
        let (one, first) = task();
        let (two, second) = task();
        wait(&waiters, &first);
        wait(&waiters, &second);
        wait(&waiters, &first);
        // Who only looks takes nobody's place.
        let asked = wait(&waiters, Waker::noop());
        asked.wake_by_ref();
        asked.wake();
        assert_eq!((one.wakes(), two.wakes()), (1, 1));
    }

    #[test]
    fn what_becomes_ready_while_it_is_asked_is_found() {
        let waiters = Waiters::new();
        let (one, waker) = task();
        let mut polls = 0;
        let polled = waiters.poll(&Context::from_waker(&waker), |cx| {
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
    fn there_is_a_bound_on_those_who_are_kept_and_nobody_is_forgotten() {
        let waiters = Waiters::new();
        let tasks: Vec<_> = (0..2 * MAX + 10).map(|_| task()).collect();
        let mut asked = Waker::noop().clone();
        for (_, waker) in &tasks {
            asked = wait(&waiters, waker);
            assert!(waiters.list.wakers().others.len() <= MAX);
        }
        asked.wake();
        assert!(tasks.iter().all(|(task, _)| task.wakes() == 1));
    }
}
