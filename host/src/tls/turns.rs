//! A bound on the handshakes that compute at the same time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Turns of handshakes, which all listeners of the host share.
///
/// A poll of a handshake can compute for milliseconds. With more handshakes than threads, every
/// thread would be in one while other connections wait. So at most half of the threads are in
/// handshakes at the same time, and the other handshakes wait here.
///
/// Only the first handshake of each service waits for a turn. The others wait behind it, so that
/// the services have their turns one after another, however many handshakes each has.
#[derive(Debug)]
pub struct Turns {
    all: Arc<Semaphore>,
    /// The right to wait for a turn.
    first: Semaphore,
}

impl Turns {
    /// Creates as many turns as half of `threads`, and at least one.
    pub fn new(threads: usize) -> Self {
        Self::sharing(Arc::new(Semaphore::new((threads / 2).max(1))))
    }

    fn sharing(all: Arc<Semaphore>) -> Self {
        Self {
            all,
            first: Semaphore::new(1),
        }
    }

    /// Returns the same turns for another service.
    pub(crate) fn of_service(&self) -> Self {
        Self::sharing(Arc::clone(&self.all))
    }

    /// Creates turns for the threads of the current runtime, or one without a runtime.
    pub(crate) fn of_runtime() -> Self {
        let runtime = Handle::try_current();
        Self::new(runtime.map_or(1, |runtime| runtime.metrics().num_workers()))
    }

    /// Awaits `handshake`, with a turn for each of its polls. It holds no turn while it waits for
    /// its peer, or after it was dropped.
    pub(super) async fn take<F: Future>(&self, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        loop {
            // The semaphores are never closed.
            let first = self.first.acquire().await;
            let turn = self.all.acquire().await;
            drop(first);
            let polled = poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
            drop(turn);
            if let Poll::Ready(output) = polled {
                return output;
            }
            woken().await;
        }
    }
}

/// Waits until the task is polled again.
async fn woken() {
    let mut is_first = true;
    poll_fn(|_| {
        if is_first {
            is_first = false;
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::pending;
    use std::task::{Context, Waker};

    use futures_util::future::Either;
    use futures_util::stream::FuturesUnordered;
    use futures_util::{FutureExt as _, StreamExt as _};
    use tokio::sync::Notify;

    use super::*;
    use crate::counting_task::counting_task as task;

    #[test]
    fn half_of_the_threads_may_be_in_handshakes() {
        for (threads, turns) in [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32)] {
            assert_eq!(Turns::new(threads).all.available_permits(), turns, "{threads}");
        }
    }

    #[test]
    fn a_handshake_is_polled_with_a_turn_alone() {
        let turns = Turns::new(1);
        let polls = Cell::new(0);
        let mut handshake = pin!(turns.take(poll_fn(|_| {
            assert_eq!(turns.all.available_permits(), 0);
            polls.set(polls.get() + 1);
            if polls.get() == 2 {
                Poll::Ready("done")
            } else {
                Poll::Pending
            }
        })));
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        let taken = turns.all.try_acquire().unwrap();
        assert!(handshake.as_mut().poll(&mut cx).is_pending());
        assert_eq!(polls.get(), 0);
        drop(taken);
        assert_eq!(woken.wakes(), 1);
        assert!(handshake.as_mut().poll(&mut cx).is_pending());
        assert_eq!((polls.get(), turns.all.available_permits()), (1, 1));
        assert_eq!(handshake.as_mut().poll(&mut cx), Poll::Ready("done"));
        assert_eq!(turns.all.available_permits(), 1);
    }

    #[test]
    fn a_handshake_that_waits_for_its_peer_is_woken_and_keeps_no_turn() {
        let turns = Turns::new(1);
        let notify = Notify::new();
        let mut handshake = pin!(turns.take(notify.notified()));
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        assert!(handshake.as_mut().poll(&mut cx).is_pending());
        assert_eq!(turns.all.available_permits(), 1);
        notify.notify_one();
        assert_eq!(woken.wakes(), 1);
        assert!(handshake.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_handshake_that_is_dropped_returns_its_turn() {
        let turns = Turns::new(1);
        let mut cx = Context::from_waker(Waker::noop());
        let taken = turns.all.try_acquire().unwrap();
        {
            let mut dropped = pin!(turns.take(pending::<()>()));
            assert!(dropped.as_mut().poll(&mut cx).is_pending());
            // The turn is now for the handshake, which is dropped before it is polled.
            drop(taken);
            assert_eq!(turns.all.available_permits(), 0);
        }
        assert_eq!(turns.all.available_permits(), 1);
        let mut dropped = Box::pin(turns.take(pending::<()>()));
        assert!(dropped.as_mut().poll(&mut cx).is_pending());
        drop(dropped);
        assert_eq!(turns.all.available_permits(), 1);
    }
    #[test]
    fn services_have_their_turns_one_after_another() {
        let turns = Turns::new(1);
        let other = turns.of_service();
        let order = RefCell::new(Vec::new());
        let handshake = |of: &'static str| {
            let order = &order;
            poll_fn(move |_| {
                order.borrow_mut().push(of);
                Poll::Ready(())
            })
        };
        let taken = turns.all.try_acquire().unwrap();
        let mut waiting = FuturesUnordered::new();
        let mut cx = Context::from_waker(Waker::noop());
        // The crowd of one service came before the other service's handshake.
        for _ in 0..3 {
            waiting.push(Either::Left(turns.take(handshake("crowd"))));
            assert!(waiting.poll_next_unpin(&mut cx).is_pending());
        }
        waiting.push(Either::Right(other.take(handshake("other"))));
        assert!(waiting.poll_next_unpin(&mut cx).is_pending());
        drop(taken);
        while let Some(()) = waiting.next().now_or_never().expect("a turn is free") {}
        assert_eq!(*order.borrow(), ["crowd", "other", "crowd", "crowd"]);
        assert_eq!(turns.all.available_permits(), 1);
    }
}
