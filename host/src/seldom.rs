//! Futures that are seldom ready, beside one that is polled for every byte that moves.
//!
//! Whoever polls a `select!` polls all that stands in it. For each answer of a guest that was a timer, and locks that the connections of
//! a service share, whose memory threads had to fetch from each other. A [`Seldom`] is asked only after something has woken it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use pin_project_lite::pin_project;
use tokio::task::unconstrained;

/// Polls `future` only when it has been woken, and once at first.
pub(crate) fn seldom<F: Future>(future: F) -> Seldom<F> {
    let bell = Arc::new(Bell {
        rung: AtomicBool::new(true),
        task: Mutex::new(Waker::noop().clone()),
    });
    Seldom {
        future,
        waker: Waker::from(Arc::clone(&bell)),
        bell,
        task: None,
        polls: 0,
    }
}

pin_project! {
    /// What [`seldom`] makes.
    pub(crate) struct Seldom<F> {
        #[pin]
        future: F,
        bell: Arc<Bell>,
        // The bell, as the future knows it.
        waker: Waker,
        // Whom the bell wakes: here too, so that to look takes no lock.
        task: Option<Waker>,
        polls: u32,
    }
}

/// What a future rings when it can go on.
struct Bell {
    rung: AtomicBool,
    /// Whom it wakes. Locked when that is another, and when it rings. An `AtomicWaker` would forget it at the first ring.
    task: Mutex<Waker>,
}

impl Bell {
    fn task(&self) -> MutexGuard<'_, Waker> {
        // A waker is never half-written.
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Release);
        let task = self.task().clone();
        task.wake();
    }
}

impl<F> Seldom<F> {
    /// Whether something has woken the future: it may be half way.
    pub(crate) fn was_woken(&self) -> bool {
        self.polls > 1 || self.polls == 1 && self.bell.rung.load(Relaxed)
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.as_mut().project();
        if this.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            // Before the bell is looked at: who has rung it for another task has done so by then.
            this.bell.task().clone_from(cx.waker());
            *this.task = Some(cx.waker().clone());
        }
        self.poll_if_rung()
    }
}

impl<F: Future> Seldom<F> {
    /// Polls it from the midst of something else that its task does. Whom it wakes is who has polled it last, and it does not
    /// matter how much of what tokio lets a task do in one turn is left.
    pub(crate) fn glance(mut self: Pin<&mut Self>) -> Poll<F::Output> {
        let future = unconstrained(poll_fn(|_| self.as_mut().poll_if_rung()));
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn poll_if_rung(self: Pin<&mut Self>) -> Poll<F::Output> {
        let this = self.project();
        if !this.bell.rung.load(Relaxed) || !this.bell.rung.swap(false, AcqRel) {
            return Poll::Pending;
        }
        *this.polls = this.polls.saturating_add(1);
        this.future.poll(&mut Context::from_waker(this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use tokio::sync::Notify;

    use super::*;
    use crate::counting_task::counting_task as task;

    #[test]
    fn it_is_polled_once_and_then_only_when_it_was_woken() {
        let (polls, notify) = (AtomicU32::new(0), Notify::new());
        let mut notified = pin!(notify.notified());
        let mut future = pin!(seldom(poll_fn(|cx| {
            polls.fetch_add(1, Relaxed);
            notified.as_mut().poll(cx)
        })));
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        for _ in 0..3 {
            assert!(future.as_mut().poll(&mut cx).is_pending());
        }
        assert_eq!(polls.load(Relaxed), 1);
        assert!(!future.was_woken());
        notify.notify_one();
        assert_eq!(woken.wakes(), 1);
        assert!(future.was_woken());
        assert!(future.as_mut().poll(&mut cx).is_ready());
        assert_eq!(polls.load(Relaxed), 2);
    }

    #[test]
    fn it_wakes_the_task_that_has_polled_it_last() {
        let notify = Notify::new();
        let mut future = pin!(seldom(notify.notified()));
        let ((first, first_waker), (second, second_waker)) = (task(), task());
        for waker in [&first_waker, &second_waker] {
            assert!(future.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        notify.notify_one();
        assert_eq!((first.wakes(), second.wakes()), (0, 1));
    }

    #[test]
    fn a_glance_finds_it_ready_and_changes_not_whom_it_wakes() {
        let notify = Notify::new();
        let mut future = pin!(seldom(notify.notified()));
        let (woken, waker) = task();
        assert!(future.as_mut().glance().is_pending());
        assert!(
            future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        assert!(future.as_mut().glance().is_pending());
        notify.notify_one();
        assert_eq!(woken.wakes(), 1);
        assert!(future.as_mut().glance().is_ready());
    }

    #[test]
    fn what_wakes_itself_is_polled_again() {
        let mut polls = 0;
        let mut future = pin!(seldom(poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls == 3 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })));
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        for _ in 0..2 {
            assert!(future.as_mut().poll(&mut cx).is_pending());
        }
        assert!(future.as_mut().poll(&mut cx).is_ready());
        assert_eq!(woken.wakes(), 3);
    }

    #[test]
    fn it_can_be_woken_again_and_again() {
        let notify = Notify::new();
        let mut future = pin!(seldom(async {
            for _ in 0..3 {
                notify.notified().await;
            }
        }));
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        for rings in 0..3 {
            assert!(future.as_mut().poll(&mut cx).is_pending());
            assert!(future.as_mut().poll(&mut cx).is_pending());
            assert_eq!(woken.wakes(), rings);
            notify.notify_one();
        }
        assert!(future.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn no_wake_is_lost_between_threads() {
        const RINGS: usize = if cfg!(miri) { 50 } else { 10_000 };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (there, back) = (Notify::new(), Notify::new());
        let waiting = async {
            for _ in 0..RINGS {
                there.notified().await;
                back.notify_one();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    for _ in 0..RINGS {
                        there.notify_one();
                        back.notified().await;
                    }
                });
            });
            // It ends only if every ring was heard.
            runtime.block_on(seldom(waiting));
        });
    }
}
