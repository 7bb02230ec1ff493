//! Which generation serves, and which did before it.

use std::future::pending;
use std::mem;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::breaker::Breaker;
use crate::config::Service;
use crate::counts::{Count, Counts};
use crate::sandbox::{Digest, Generation};

/// How long a generation that has replaced another is watched for connections that it fails.
const PROBATION: Duration = Duration::from_secs(10);

/// Connections that it may fail in that time, if they are fewer than those that it does not.
const FAILURES: u32 = 5;

/// How long sessions may take to move before the log says how many have not moved.
const MOVE: Duration = Duration::from_secs(10);

/// A generation, from when it serves connections.
#[derive(Debug)]
pub(crate) struct Serving {
    /// Generations are counted from 1.
    pub(crate) number: u64,
    pub(crate) generation: Arc<Generation>,
    pub(crate) breaker: Arc<Breaker>,
    /// Its connections are closed.
    pub(crate) cut: CancellationToken,
    /// Another serves new connections.
    pub(crate) replaced: CancellationToken,
    /// It was rolled back to, so `drain-generations` does not close its connections any more.
    restored: CancellationToken,
    /// What is counted of the generation, also over a rollback to it.
    pub(crate) tally: Arc<Tally>,
    /// Its connections, where they share instances.
    pub(crate) neighbours: Option<TaskTracker>,
    /// When it became current.
    since: Instant,
    /// Its connections from then on.
    connections: Trial,
    /// Sessions that it was offered from then on.
    moves: Trial,
}

/// Counts of what a new generation was tried with.
#[derive(Debug, Default)]
struct Trial {
    /// Connections that have ended, or sessions that have moved or failed to.
    over: AtomicU32,
    failed: AtomicU32,
}

impl Trial {
    /// Counts one more. Returns the number of failures and of all if it is time for a rollback.
    fn add(&self, failed: bool) -> Option<(u32, u32)> {
        let over = self.over.fetch_add(1, Relaxed) + 1;
        if !failed {
            return None;
        }
        let failed = self.failed.fetch_add(1, Relaxed) + 1;
        // Another may have been counted in one of the two by now.
        (failed >= FAILURES && failed >= over.saturating_sub(failed)).then_some((failed, over))
    }
}

/// Counts of one generation. A generation that was rolled back to continues the counts that it had.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Connections that have begun to be served by it, and those of them that are over or have moved.
    pub(crate) begun: Count,
    pub(crate) over: Count,
    /// Connections that it has failed.
    pub(crate) failed: Count,
    /// When it first became current.
    pub(crate) since: Instant,
}

impl Tally {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Count::default(),
            over: Count::default(),
            failed: Count::default(),
            since: Instant::now(),
        })
    }

    /// Connections that it serves.
    pub(crate) fn open(&self) -> u64 {
        // Read first: each connection was counted in `begun` before.
        let over = self.over.get();
        self.begun.get().saturating_sub(over)
    }
}

impl Serving {
    fn new(
        service: &str,
        number: u64,
        generation: Arc<Generation>,
        tally: Arc<Tally>,
        cut: CancellationToken,
    ) -> Arc<Self> {
        generation.set_current(true);
        Arc::new(Self {
            number,
            breaker: Arc::new(Breaker::new(service)),
            cut,
            replaced: CancellationToken::new(),
            restored: CancellationToken::new(),
            tally,
            since: Instant::now(),
            neighbours: generation.is_shared().then(TaskTracker::new),
            generation,
            connections: Trial::default(),
            moves: Trial::default(),
        })
    }
}

/// The generation that new connections get, and those that they may get again.
#[derive(Debug)]
pub(crate) struct Generations {
    /// The name of the service.
    service: String,
    current: ArcSwap<Serving>,
    /// Locked when the current generation changes, and never for a connection.
    past: Mutex<Past>,
    /// How long the connections of a generation may go on when another has replaced it.
    drain: Option<Duration>,
    max_connections: u64,
    /// The number of its first generation.
    first: u64,
    /// Has sessions move one after another, so that their new instances take the place of the old ones; `None` where they
    /// do not move.
    moving: Option<Semaphore>,
    /// The generations of the service that has replaced this one, where sessions move to it.
    successor: OnceLock<Arc<Self>>,
    /// All connections are closed.
    cut: CancellationToken,
    /// What is counted of the service.
    pub(crate) counts: Arc<Counts>,
}

#[derive(Debug)]
struct Past {
    last_number: u64,
    /// All that still have connections or may get some, in the order in which they came.
    known: Vec<Weak<Serving>>,
    /// What the current one has replaced.
    previous: Option<Arc<Serving>>,
    /// What was gone back from, until something else is taken.
    left: Option<Digest>,
    /// The log says that the current generation fails, and that none can replace it.
    told_stuck: bool,
}

impl Past {
    /// The past of a service that starts with `first`, in place of the service `before`, if there
    /// is one. The rollback of that service stays possible where its generations would serve on the
    /// same terms: a rollback brings back a component, and no setting.
    fn new(service: &Service, first: &Generation, before: Option<(&Service, &Generations)>) -> Self {
        let mut new = Self {
            last_number: 1,
            known: Vec::new(),
            previous: None,
            left: None,
            told_stuck: false,
        };
        if let Some((settings, before)) = before {
            let past = before.past();
            new.last_number = past.last_number + 1;
            let current = before.current();
            let same_content = current.generation.digest() == first.digest();
            if same_content {
                new.left = past.left;
            }
            if runs_alike(settings, service) {
                new.previous = if same_content {
                    past.previous.clone()
                } else {
                    Some(current)
                };
            }
            new.known.extend(new.previous.iter().map(Arc::downgrade));
        }
        new
    }

    fn know(&mut self, serving: &Arc<Serving>) {
        self.known.retain(|known| known.strong_count() > 0);
        self.known.push(Arc::downgrade(serving));
    }
}

/// Returns whether instances have the same rights and limits in two services. The other settings hold
/// for a connection, whatever its generation.
fn runs_alike(one: &Service, other: &Service) -> bool {
    let limits = |service: &Service| {
        let limits = &service.limits;
        let calls = (limits.cpu_slice, limits.max_call_time, limits.max_cpu_time);
        (limits.max_connections, limits.max_memory, calls)
    };
    one.grants == other.grants && one.isolation == other.isolation && limits(one) == limits(other)
}

impl Generations {
    /// Creates the generations of `service`, which starts with `first`. `before` has the settings and
    /// the generations of the service that it replaces, whose numbers it continues.
    pub(crate) fn new(
        service: &Service,
        first: Arc<Generation>,
        before: Option<(&Service, &Self)>,
        cut: CancellationToken,
        counts: Arc<Counts>,
    ) -> Self {
        let mut past = Past::new(service, &first, before);
        let number = past.last_number;
        let first = Serving::new(&service.name, number, first, Tally::new(), cut.child_token());
        past.know(&first);
        Self {
            past: Mutex::new(past),
            current: ArcSwap::new(first),
            service: service.name.clone(),
            drain: service.drain_generations,
            max_connections: service.limits.max_connections.get() as u64,
            first: number,
            moving: service.migrate.then(|| Semaphore::new(1)),
            successor: OnceLock::new(),
            cut,
            counts,
        }
    }

    /// The generations that still have connections or may get some, in the order in which they came,
    /// and the number of the one that can be rolled back to.
    pub(crate) fn known(&self) -> (Vec<Arc<Serving>>, Option<u64>) {
        let past = self.past();
        let mut known: Vec<Arc<Serving>> = Vec::new();
        for serving in past.known.iter().filter_map(Weak::upgrade) {
            // A generation that was rolled back to stands there twice, with the same counts.
            if known.iter().all(|other| other.number != serving.number) {
                known.push(serving);
            }
        }
        (known, past.previous.as_ref().map(|previous| previous.number))
    }

    /// How many generations serve connections or may serve some again.
    pub(crate) fn alive(&self) -> usize {
        self.known().0.len()
    }

    /// The generation for a new connection.
    pub(crate) fn current(&self) -> Arc<Serving> {
        self.current.load_full()
    }

    /// The generations of the service that connections of this one can move to: its own, or those
    /// of the service that has replaced it.
    pub(crate) fn newest(self: &Arc<Self>) -> &Arc<Self> {
        let mut newest = self;
        while let Some(successor) = newest.successor.get() {
            newest = successor;
        }
        newest
    }

    /// Has the sessions of this service move to the one that has replaced it, if sessions of both
    /// move.
    pub(crate) fn succeed(&self, successor: &Arc<Self>) {
        if self.moving.is_some() && successor.moving.is_some() {
            // A service is replaced once.
            let _ = self.successor.set(Arc::clone(successor));
            self.current().replaced.cancel();
            self.report_staying(&successor.current());
        }
    }

    /// How many there have been.
    pub(crate) fn count(&self) -> u64 {
        self.past().last_number
    }

    /// No more connections come: those that are open may go on as long as where another generation has replaced theirs.
    pub(crate) fn wind_up(&self) {
        // Nothing is served by this service again, so there is nothing to roll back.
        self.past().previous = None;
        let last = self.current();
        last.generation.set_current(false);
        self.cut_in_time(&last);
    }

    /// Waits until a generation is `replaced`, and until it is the turn of one of its sessions to move; for ever, if they do
    /// not move.
    pub(crate) async fn turn_to_move(&self, replaced: CancellationToken) -> SemaphorePermit<'_> {
        if let Some(moving) = &self.moving {
            replaced.cancelled_owned().await;
            if let Ok(turn) = moving.acquire().await {
                return turn;
            }
        }
        pending().await
    }

    /// Returns the content that was rolled back, until another component is loaded.
    pub(crate) fn left(&self) -> Option<Digest> {
        self.past().left
    }

    /// Returns whether a session of `serving` may move to this service. A service that has replaced
    /// another can have fewer `max-connections`. It then takes only so many sessions.
    pub(crate) fn has_room_for(&self, serving: &Serving) -> bool {
        if serving.number >= self.first {
            return true;
        }
        let (known, _) = self.known();
        // The sessions of the service before have still to move.
        let own = known.iter().filter(|serving| serving.number >= self.first);
        own.map(|serving| serving.tally.open()).sum::<u64>() < self.max_connections
    }

    /// Gives new connections `generation` from now on.
    pub(crate) fn replace(&self, generation: Arc<Generation>) {
        let mut past = self.past();
        past.last_number += 1;
        let next = Serving::new(
            &self.service,
            past.last_number,
            generation,
            Tally::new(),
            self.cut.child_token(),
        );
        let (number, contract) = (next.number, next.generation.contract().as_str());
        past.know(&next);
        self.counts.swaps.one_more();
        let replaced = self.current.swap(next);
        info!(
            service = self.service,
            generation = number,
            contract,
            replaces = replaced.number,
            "component reloaded"
        );
        self.retire(&replaced);
        past.previous = Some(replaced);
        past.left = None;
        past.told_stuck = false;
        drop(past);
        self.report_staying(&self.current());
    }

    /// Gives new connections what they got before the last change, and says whether there is such. Its content is not taken again.
    pub(crate) fn go_back(&self, reason: &str) -> bool {
        self.go_back_from(None, reason)
    }

    /// The same if `from` is current, or whatever is.
    fn go_back_from(&self, from: Option<u64>, reason: &str) -> bool {
        let mut past = self.past();
        let current = self.current();
        if from.is_some_and(|from| from != current.number) {
            return false;
        }
        let Some(previous) = past.previous.take() else {
            // The first generation of all has replaced nothing. Others are reported once.
            let is_news = past.last_number > 1 && !mem::replace(&mut past.told_stuck, true);
            if from.is_none() || is_news {
                warn!(
                    service = self.service,
                    generation = current.number,
                    reason,
                    "there is no generation to roll back to"
                );
            }
            return false;
        };
        past.left = Some(*current.generation.digest());
        past.told_stuck = false;
        // Its open connections continue, unless they are closed already.
        previous.restored.cancel();
        let cut = if previous.cut.is_cancelled() {
            self.cut.child_token()
        } else {
            previous.cut.clone()
        };
        let again = Serving::new(
            &self.service,
            previous.number,
            Arc::clone(&previous.generation),
            Arc::clone(&previous.tally),
            cut,
        );
        past.know(&again);
        self.counts.rollbacks.one_more();
        self.current.store(again);
        warn!(
            service = self.service,
            generation = previous.number,
            leaves = current.number,
            reason,
            "rolled back to the previous generation"
        );
        self.retire(&current);
        drop(past);
        self.report_staying(&self.current());
        true
    }

    /// Logs how many sessions have not moved to `next` some time after it has replaced their
    /// generations: a session that is busy is logged at debug only, because it can be busy often.
    fn report_staying(&self, next: &Arc<Serving>) {
        if self.moving.is_none() || !next.generation.migrates() {
            return;
        }
        let (known, _) = self.known();
        let movable = |serving: &Arc<Serving>| {
            !Arc::ptr_eq(&serving.generation, &next.generation) && serving.generation.migrates()
        };
        let earlier: Vec<_> = known
            .iter()
            .filter(|serving| movable(serving))
            .map(|serving| Arc::clone(&serving.tally))
            .collect();
        let (service, generation, replaced) = (self.service.clone(), next.number, next.replaced.clone());
        tokio::spawn(async move {
            // The next generation has a report of its own.
            if timeout(MOVE, replaced.cancelled()).await.is_ok() {
                return;
            }
            let sessions: u64 = earlier.iter().map(|tally| tally.open()).sum();
            if sessions > 0 {
                info!(
                    service,
                    generation,
                    sessions,
                    "sessions stay on earlier generations: a busy session moves after its next answer, others \
                     stay until the next reload"
                );
            }
        });
    }

    /// Notes that a connection of `serving` has ended. Rolls back from a new generation that fails
    /// too many.
    pub(crate) fn ended(&self, serving: &Serving, failed: bool) {
        self.tried(serving, &serving.connections, failed, |failed, over| {
            format!("the guest failed {failed} of its first {over} connections")
        });
    }

    /// Notes that a session has moved to `serving`, or that the guest has failed to take it. Rolls
    /// back from a new generation that fails too many. Sessions that move do not make up for
    /// connections that fail.
    pub(crate) fn moved(&self, serving: &Serving, failed: bool) {
        self.tried(serving, &serving.moves, failed, |failed, over| {
            format!("the guest failed to restore {failed} of the first {over} sessions")
        });
    }

    fn tried(&self, serving: &Serving, trial: &Trial, failed: bool, reason: fn(u32, u32) -> String) {
        if failed {
            serving.tally.failed.one_more();
        }
        if let Some((failed, over)) = trial.add(failed)
            && serving.since.elapsed() < PROBATION
        {
            self.go_back_from(Some(serving.number), &reason(failed, over));
        }
    }

    fn retire(&self, replaced: &Serving) {
        replaced.replaced.cancel();
        replaced.generation.set_current(false);
        self.cut_in_time(replaced);
    }

    fn cut_in_time(&self, replaced: &Serving) {
        if let Some(drain) = self.drain {
            let (service, generation, cut) = (self.service.clone(), replaced.number, replaced.cut.clone());
            let restored = replaced.restored.clone();
            tokio::spawn(async move {
                if timeout(drain, restored.cancelled()).await.is_ok() {
                    return;
                }
                info!(
                    service,
                    generation, "old generation reached `drain-generations`; its connections are closed"
                );
                cut.cancel();
            });
        }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        // Nothing can panic while it is held.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
