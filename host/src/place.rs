//! Where a connection is served: by one generation, and where sessions move, by others after it.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admission::{Permits, Refused};
use crate::breaker::Attempt;
use crate::config::Setting;
use crate::cost::Cost;
use crate::generations::{Generations, Serving};
use crate::peer::ClientKey;
use crate::sandbox::{Fault, Generation, Neighbours, Offer, Seat, Stays};

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its number.
    pub(crate) connection: u64,
    client: ClientKey,
    /// What it costs.
    pub(crate) cost: Arc<Cost>,
    permits: Permits,
    generations: Arc<Generations>,
    attempt: Attempt,
    started: AtomicBool,
    /// Whether the connection has moved to another generation.
    has_moved: AtomicBool,
    /// Locked when the connection begins and ends, and when another generation comes.
    now: Mutex<Now>,
    /// Notified when the connection has moved.
    moved: Notify,
}

#[derive(Debug)]
struct Now {
    serving: Arc<Serving>,
    /// Tells when there is a generation that the connection was not offered yet.
    replaced: CancellationToken,
}

impl Now {
    fn at(serving: &Arc<Serving>) -> Self {
        Self {
            serving: Arc::clone(serving),
            replaced: serving.replaced.clone(),
        }
    }
}

impl Place {
    /// A place with the current generation for a connection that has one of `permits`, and gets a
    /// `number` with it.
    ///
    /// # Errors
    ///
    /// Its breaker is open.
    pub(crate) fn new(
        generations: &Arc<Generations>,
        client: ClientKey,
        permits: Permits,
        number: impl FnOnce() -> u64,
    ) -> Result<Self, Refused> {
        let serving = generations.current();
        let attempt = serving.breaker.attempt()?;
        serving.tally.begun.one_more();
        Ok(Self {
            attempt,
            connection: number(),
            client,
            cost: Arc::default(),
            permits,
            generations: Arc::clone(generations),
            started: AtomicBool::new(false),
            has_moved: AtomicBool::new(false),
            now: Mutex::new(Now::at(&serving)),
            moved: Notify::new(),
        })
    }

    /// The generation that serves the connection.
    pub(crate) fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.now().serving)
    }

    /// Returns whether more than one generation has served the connection.
    pub(crate) fn has_moved(&self) -> bool {
        self.has_moved.load(Relaxed)
    }

    /// Waits until the connections of its generation are closed.
    pub(crate) async fn cut(&self) {
        loop {
            let moved = self.moved.notified();
            let cut = self.now().serving.cut.clone();
            tokio::select! {
                () = cut.cancelled() => {}
                // It is cut with its new generation now.
                () = moved => continue,
            }
            if self.now().serving.cut.is_cancelled() {
                return;
            }
        }
    }

    /// Notes that the connection has ended, because the guest has `failed` or not. `heard` says
    /// whether bytes or an end came from the peer.
    pub(crate) fn ended(&self, failed: bool, heard: bool) {
        // A guest that has heard its peer may have failed at what that said.
        if failed && !self.started.load(Relaxed) && !heard {
            self.attempt.failed();
        }
        self.generations
            .newest()
            .ended(&self.serving(), self.client, failed);
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // Nothing can panic while it is held.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.now().serving.tally.over.one_more();
    }
}

impl Seat for Place {
    type Offer<'a> = Move<'a>;

    fn generation(&self) -> Arc<Generation> {
        Arc::clone(&self.now().serving.generation)
    }

    fn cost(&self) -> Arc<Cost> {
        Arc::clone(&self.cost)
    }

    fn started(&self) {
        self.started.store(true, Relaxed);
        self.attempt.started();
    }

    fn neighbours(&self) -> Option<Arc<Neighbours>> {
        self.now().serving.generation.sharing()
    }

    fn is_crowded(&self) -> bool {
        self.permits.are_taken()
    }

    async fn offer(&self) -> Move<'_> {
        loop {
            let replaced = self.now().replaced.clone();
            let turn = self.generations.turn_to_move(replaced).await;
            let next = self.generations.newest().current();
            let mut now = self.now();
            if Arc::ptr_eq(&now.serving.generation, &next.generation) {
                // It has come back to where the connection is, which is counted there already.
                *now = Now::at(&next);
            } else if !self.generations.newest().has_room_for(&now.serving) {
                let (connection, generation) = (self.connection, now.serving.number);
                debug!(
                    service = self.generations.service(),
                    connection,
                    generation,
                    "session stays on its generation: the service has as many connections as {} allows",
                    Setting::of("limits.max-connections")
                );
                now.replaced = next.replaced.clone();
            } else {
                drop(now);
                return Move {
                    place: self,
                    next,
                    _turn: turn,
                };
            }
        }
    }
}

/// A connection's turn to move.
#[derive(Debug)]
pub(crate) struct Move<'a> {
    place: &'a Place,
    next: Arc<Serving>,
    _turn: SemaphorePermit<'a>,
}

impl Offer for Move<'_> {
    fn generation(&self) -> &Arc<Generation> {
        &self.next.generation
    }

    fn accept(self) {
        let mut now = self.place.now();
        let from = now.serving.number;
        now.serving.tally.over.one_more();
        self.next.tally.begun.one_more();
        *now = Now::at(&self.next);
        drop(now);
        self.place.has_moved.store(true, Relaxed);
        let (connection, generation) = (self.place.connection, self.next.number);
        let service = self.place.generations.service();
        debug!(service, connection, generation, from, "session moved");
        self.place.moved.notify_waiters();
        let place = self.place;
        place.generations.newest().moved(&self.next, place.client, false);
    }

    fn decline(self, reason: Stays) {
        let mut now = self.place.now();
        if !matches!(reason, Stays::Busy) {
            now.replaced = self.next.replaced.clone();
        }
        let (connection, generation, declined) =
            (self.place.connection, now.serving.number, self.next.number);
        drop(now);
        let service = self.place.generations.service();
        match reason {
            Stays::Busy => debug!(
                service,
                connection,
                generation,
                "session stays on its generation: it is busy; retrying after its next event"
            ),
            Stays::Unable => debug!(
                service,
                connection,
                generation,
                "session stays on its generation: a component does not support migration"
            ),
            Stays::Refused(reason) => info!(
                service,
                connection,
                generation,
                declined,
                reason,
                "session stays on its generation: the new guest refused it"
            ),
            // Which is no fault of the guest.
            Stays::Failed(fault @ Fault::Grant(_)) => warn!(
                service,
                connection,
                generation,
                declined,
                reason = fault.reason(),
                "session stays on its generation: the new guest's grants are unavailable"
            ),
            Stays::Failed(fault) if fault.is_of_system() => warn!(
                service,
                connection,
                generation,
                declined,
                reason = fault.reason(),
                "session stays on its generation: the system has no memory for the new guest"
            ),
            Stays::Failed(fault) => {
                warn!(
                    service,
                    connection,
                    generation,
                    declined,
                    reason = fault.reason(),
                    "session stays on its generation: the new guest failed"
                );
                let place = self.place;
                place.generations.newest().moved(&self.next, place.client, true);
            }
        }
    }
}
