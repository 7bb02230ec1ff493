//! The place of a connection with a generation, as the sandbox sees it.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use super::contract::Fault;
use super::diagnostics::Transcript;
use super::generation::Generation;
use crate::cost::Cost;

/// Which generation serves a connection, and whether it may change to another.
pub trait Seat: Sync {
    /// A generation that the connection may change to.
    type Offer<'a>: Offer
    where
        Self: 'a;

    /// The generation that serves it.
    fn generation(&self) -> Arc<Generation>;

    /// Where it is noted what the connection costs.
    fn cost(&self) -> Arc<Cost>;

    /// The guest has taken the connection without failing.
    fn started(&self);

    /// The connections that share instances with this one.
    fn neighbours(&self) -> Option<Arc<Neighbours>> {
        None
    }

    /// Returns whether no further connection can be accepted until one ends.
    fn is_crowded(&self) -> bool {
        false
    }

    /// Waits until another generation is on offer; for ever, if the connection has to stay where it is.
    fn offer(&self) -> impl Future<Output = Self::Offer<'_>> + Send;

    /// Waits for the timer of a session: for a time, or for ever if the guest has asked for none.
    /// The future is polled whenever the session waits, and after its peer.
    fn timer(&self, after: Option<Duration>) -> impl Future<Output = ()> + Send {
        real_timer(after)
    }

    /// Where the lines that its guest writes to standard error or logs are kept, instead of in the
    /// log.
    fn transcript(&self) -> Option<Transcript> {
        None
    }
}

/// The connections of a generation that share its instances.
#[derive(Debug, Default)]
pub struct Neighbours {
    /// Connections that have not been judged yet, where a drain ends all of them together.
    pub(crate) unjudged: TaskTracker,
    /// When the host ended some of them: the first and the last, one soon after another.
    disturbed: Mutex<Option<(Instant, Instant)>>,
}

impl Neighbours {
    /// Notes that the host ends one of the connections. The guest may write to the others for
    /// `after`.
    pub(crate) fn disturb(&self, after: Duration) {
        let now = Instant::now();
        let mut disturbed = self.disturbed();
        let first = disturbed.map_or(now, |(first, last)| if now < last + after { first } else { now });
        *disturbed = Some((first, now));
    }

    /// Returns whether the guest may have written at `time` since the host had ended a connection
    /// less than `after` before.
    pub(crate) fn were_disturbed(&self, time: Instant, after: Duration) -> bool {
        self.disturbed()
            .is_some_and(|(first, last)| first <= time && time < last + after)
    }

    fn disturbed(&self) -> MutexGuard<'_, Option<(Instant, Instant)>> {
        // Nothing can panic while it is held.
        self.disturbed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a time, or for ever.
pub(crate) async fn real_timer(after: Option<Duration>) {
    match after {
        Some(time) => sleep(time).await,
        None => pending().await,
    }
}

/// A generation on offer. To drop it is to decline for now.
pub trait Offer: Send {
    /// The generation.
    fn generation(&self) -> &Arc<Generation>;

    /// The connection is served by it from now on.
    fn accept(self);

    /// The connection stays where it is.
    fn decline(self, reason: Stays);
}

/// Why a session does not move.
#[derive(Debug)]
pub enum Stays {
    /// It is in the middle of something, and may move later.
    Busy,
    /// One of the two components does not export what it takes.
    Unable,
    /// The new guest does not take it, for the reason that this word of the contract gives.
    Refused(&'static str),
    /// The new guest failed.
    Failed(Fault),
}

/// Whether a connection is to end, for who has its thread and cannot wait for that.
pub trait Ending: Send + Sync {
    /// Whether it is. Its outcome is then what has ended it, whatever its guest says.
    fn has_come(&self) -> bool;
}

/// A generation from which no connection moves.
impl Seat for Arc<Generation> {
    type Offer<'a> = Infallible;

    fn generation(&self) -> Arc<Generation> {
        Arc::clone(self)
    }

    /// Nobody asks for it.
    fn cost(&self) -> Arc<Cost> {
        Arc::default()
    }

    fn started(&self) {}

    fn offer(&self) -> impl Future<Output = Infallible> + Send {
        pending()
    }
}

impl Offer for Infallible {
    fn generation(&self) -> &Arc<Generation> {
        match *self {}
    }

    fn accept(self) {
        match self {}
    }

    fn decline(self, _reason: Stays) {
        match self {}
    }
}
