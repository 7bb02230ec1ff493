//! The connections that are open, as they can be seen and closed from outside.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cost::Cost;
use crate::half::Traffic;
use crate::place::Place;
use crate::service::Service;

/// The connections that are open, where somebody may ask for them.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// Locked when a connection begins and ends, and when somebody looks.
    open: Mutex<BTreeMap<u64, Arc<Open>>>,
}

/// A connection that is open.
pub(crate) struct Open {
    pub(crate) place: Arc<Place>,
    pub(crate) service: Arc<Service>,
    pub(crate) peer: String,
    pub(crate) listener: String,
    pub(crate) since: Instant,
    pub(crate) inbound: Weak<dyn Traffic>,
    pub(crate) outbound: Weak<dyn Traffic>,
    /// Bytes in and out that somebody has seen.
    pub(crate) seen: [AtomicU64; 2],
    /// Tells the task of the connection to close it.
    pub(crate) close: Notify,
}

impl Open {
    pub(crate) fn cost(&self) -> &Cost {
        &self.place.cost
    }

    /// Bytes in and out, and when the last of them passed.
    pub(crate) fn traffic(&self) -> (u64, u64, Instant) {
        let of = |half: &Weak<dyn Traffic>, seen: &AtomicU64| match half.upgrade() {
            Some(half) => {
                let bytes = half.bytes();
                seen.fetch_max(bytes, Relaxed);
                (bytes, half.moved())
            }
            // It has ended and is about to be counted. What was seen once is not taken back.
            None => (seen.load(Relaxed), self.since),
        };
        let [seen_in, seen_out] = &self.seen;
        let (bytes_in, read) = of(&self.inbound, seen_in);
        let (bytes_out, written) = of(&self.outbound, seen_out);
        (bytes_in, bytes_out, read.max(written))
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Roster {
    /// Puts a connection on it, until what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>, open: Open) -> Entry {
        let open = Arc::new(open);
        self.open().insert(open.place.connection, Arc::clone(&open));
        Entry {
            open,
            roster: Arc::clone(self),
        }
    }

    /// The connections that are open now, in the order in which they came, and what is `counted` of others in the same moment: none
    /// of them has left by then.
    pub(crate) fn all<T>(&self, counted: impl FnOnce() -> T) -> (Vec<Arc<Open>>, T) {
        let open = self.open();
        (open.values().cloned().collect(), counted())
    }

    /// Has a connection closed, and returns its service, if the connection is there.
    pub(crate) fn close(&self, connection: u64) -> Option<Arc<Service>> {
        let open = self.open();
        let open = open.get(&connection)?;
        open.close.notify_one();
        Some(Arc::clone(&open.service))
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Open>>> {
        // Nothing can panic while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a connection on the roster.
#[derive(Debug)]
pub(crate) struct Entry {
    open: Arc<Open>,
    roster: Arc<Roster>,
}

impl Entry {
    /// Waits until somebody has the connection closed.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let open = Arc::clone(&self.open);
        async move { open.close.notified().await }
    }

    /// Takes the connection off, and counts what it has cost in the same moment, so that who looks finds that once.
    pub(crate) fn leave(self, count: impl FnOnce()) {
        let mut open = self.roster.open();
        count();
        open.remove(&self.open.place.connection);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roster.open().remove(&self.open.place.connection);
    }
}
