//! A bound on the handshakes that compute at the same time.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Turns of handshakes, which all listeners of the host share.
///
/// A poll of a handshake can compute for milliseconds. With more handshakes than threads, every
/// thread would be in one while other connections wait. So at most half of the threads are in
/// handshakes at the same time, and the other handshakes wait here.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Turns {
    /// Creates as many turns as half of `threads`, and at least one.
    pub fn new(threads: usize) -> Self {
        Self(Semaphore::new((threads / 2).max(1)))
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
            // The semaphore is never closed.
            let turn = self.0.acquire().await;
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
    use std::cell::Cell;
    use std::future::pending;
    use std::task::{Context, Waker};

    use tokio::sync::Notify;

    use super::*;
    use crate::counting_task::counting_task as task;

    #[test]
    fn half_of_the_threads_may_be_in_handshakes() {
        for (threads, turns) in [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32)] {
            assert_eq!(Turns::new(threads).0.available_permits(), turns, "{threads}");
        }
    }

    #[test]
    fn a_handshake_is_polled_with_a_turn_alone() {
        let turns = Turns::new(1);
        let polls = Cell::new(0);
        let mut handshake = pin!(turns.take(poll_fn(|_| {
            assert_eq!(turns.0.available_permits(), 0);
            polls.set(polls.get() + 1);
            if polls.get() == 2 {
                Poll::Ready("done")
            } else {
                Poll::Pending
            }
        })));
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        let taken = turns.0.try_acquire().unwrap();
        assert!(handshake.as_mut().poll(&mut cx).is_pending());
        assert_eq!(polls.get(), 0);
        drop(taken);
        assert_eq!(woken.wakes(), 1);
        assert!(handshake.as_mut().poll(&mut cx).is_pending());
        assert_eq!((polls.get(), turns.0.available_permits()), (1, 1));
        assert_eq!(handshake.as_mut().poll(&mut cx), Poll::Ready("done"));
        assert_eq!(turns.0.available_permits(), 1);
    }

    #[test]
    fn a_handshake_that_waits_for_its_peer_is_woken_and_keeps_no_turn() {
        let turns = Turns::new(1);
        let notify = Notify::new();
        let mut handshake = pin!(turns.take(notify.notified()));
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        assert!(handshake.as_mut().poll(&mut cx).is_pending());
        assert_eq!(turns.0.available_permits(), 1);
        notify.notify_one();
        assert_eq!(woken.wakes(), 1);
        assert!(handshake.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_handshake_that_is_dropped_returns_its_turn() {
        let turns = Turns::new(1);
        let mut cx = Context::from_waker(Waker::noop());
        let taken = turns.0.try_acquire().unwrap();
        {
            let mut dropped = pin!(turns.take(pending::<()>()));
            assert!(dropped.as_mut().poll(&mut cx).is_pending());
            // The turn is now for the handshake, which is dropped before it is polled.
            drop(taken);
            assert_eq!(turns.0.available_permits(), 0);
        }
        assert_eq!(turns.0.available_permits(), 1);
        let mut dropped = Box::pin(turns.take(pending::<()>()));
        assert!(dropped.as_mut().poll(&mut cx).is_pending());
        drop(dropped);
        assert_eq!(turns.0.available_permits(), 1);
    }
}
