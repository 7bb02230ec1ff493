//! What ends a connection from outside its guest: limits on its time, and whoever runs the host.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use super::Outcome;
use crate::deadlines::Passed;
use crate::sandbox::Ending;
use crate::seldom::{Seldom, seldom};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Looked at by the task of the connection whenever that is woken, and by a guest's call that takes long, which has the thread.
pub(super) struct Outside(Mutex<Waited>);

struct Waited {
    time: Seldom<Boxed<Passed>>,
    cut: Seldom<Boxed<Outcome>>,
    /// What has come.
    outcome: Option<Outcome>,
}

impl Outside {
    /// Waits for a limit on `time`, and for a `cut`.
    pub(super) fn new(
        time: impl Future<Output = Passed> + Send + 'static,
        cut: impl Future<Output = Outcome> + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Waited {
            time: seldom(Box::pin(time)),
            cut: seldom(Box::pin(cut)),
            outcome: None,
        })))
    }

    /// What has ended the connection, if something has.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.waited().outcome
    }

    /// Waits until something ends it.
    pub(super) async fn ends(&self) -> Outcome {
        poll_fn(|cx| {
            let mut waited = self.waited();
            if waited.outcome.is_none() {
                waited.poll(cx);
            }
            waited.outcome.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Waits until it is cut, when its work is done and the limits on its time do not count any more.
    pub(super) async fn cut(&self) {
        poll_fn(|cx| {
            let mut waited = self.waited();
            if !matches!(waited.outcome, Some(Outcome::Drained | Outcome::Closed)) {
                waited.poll_cut(cx);
            }
            match waited.outcome {
                Some(Outcome::Drained | Outcome::Closed) => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
    }

    fn waited(&self) -> MutexGuard<'_, Waited> {
        // What panics in there is waited for no more.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waited {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(passed) = Pin::new(&mut self.time).poll(cx) {
            self.outcome = Some(passed.into());
        } else {
            self.poll_cut(cx);
        }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(outcome) = Pin::new(&mut self.cut).poll(cx) {
            self.outcome = Some(outcome);
        }
    }
}

impl Ending for Outside {
    fn has_come(&self) -> bool {
        let mut waited = self.waited();
        if waited.outcome.is_none() {
            if let Poll::Ready(passed) = Pin::new(&mut waited.time).glance() {
                waited.outcome = Some(passed.into());
            } else if let Poll::Ready(outcome) = Pin::new(&mut waited.cut).glance() {
                waited.outcome = Some(outcome);
            }
        }
        waited.outcome.is_some()
    }
}
