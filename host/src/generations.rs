//! Which generation serves, and which did before it.

use std::future::pending;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::breaker::Breaker;
use crate::config::{Grants, Service, Setting};
use crate::counts::{Count, Counts};
use crate::peer::ClientKey;
use crate::sandbox::{Digest, Generation};
use crate::trial::{Failing, Trial, Verdict};

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
    /// Closes its connections some time after another has replaced it.
    draining: Arc<Draining>,
    /// What is counted of the generation, also over a rollback to it.
    pub(crate) tally: Arc<Tally>,
    /// An operator has insisted on it, so it is not rolled back automatically.
    insisted: bool,
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
    /// How its connections have ended.
    connections: Trial,
    /// How moving sessions to it has ended.
    moves: Trial,
    /// The log says that it fails, and why it is not rolled back.
    told: AtomicBool,
}

impl Tally {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Count::default(),
            over: Count::default(),
            failed: Count::default(),
            since: Instant::now(),
            connections: Trial::new(),
            moves: Trial::new(),
            told: AtomicBool::new(false),
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
        insisted: bool,
    ) -> Arc<Self> {
        generation.set_current(true);
        Arc::new(Self {
            number,
            breaker: Arc::new(Breaker::new(service)),
            draining: Arc::new(Draining::new(cut.clone())),
            cut,
            replaced: CancellationToken::new(),
            tally,
            generation,
            insisted,
        })
    }
}

/// The end of the connections of a generation, which comes some time after another has replaced it.
///
/// A rollback to the generation can come at the same moment, on another thread. So the first of the
/// two decides.
#[derive(Debug)]
struct Draining {
    cut: CancellationToken,
    /// Whether the generation was rolled back to; unset until that or the end of the time.
    is_restored: OnceLock<bool>,
    restored: CancellationToken,
}

impl Draining {
    fn new(cut: CancellationToken) -> Self {
        Self {
            cut,
            is_restored: OnceLock::new(),
            restored: CancellationToken::new(),
        }
    }

    /// Closes the connections after `max`, and calls `log` before, unless the generation is restored
    /// within that time.
    async fn end_after(&self, max: Duration, log: impl FnOnce()) {
        if timeout(max, self.restored.cancelled()).await.is_err() && self.is_restored.set(false).is_ok() {
            log();
            self.cut.cancel();
        }
    }

    /// Lets the connections continue. Returns the token that closes them, which further connections
    /// can share; `None` if they are closed or about to be.
    fn restore(&self) -> Option<CancellationToken> {
        let is_first = self.is_restored.set(true).is_ok();
        self.restored.cancel();
        (is_first && !self.cut.is_cancelled()).then(|| self.cut.clone())
    }
}

/// What a generation is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// New connections get it.
    Current,
    /// A rollback makes it current again.
    Previous,
    /// It only serves the connections that it still has.
    Ending,
}

impl State {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
            Self::Ending => "ending",
        }
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
    /// When an operator last requested a rollback. Changes while `past` is locked.
    rollback_requested: watch::Sender<Option<Instant>>,
    /// How long the connections of a generation may go on when another has replaced it.
    drain: Option<Duration>,
    max_connections: u64,
    /// The number of its first generation.
    first: u64,
    /// The first generation has replaced another, of other settings.
    replaces_service: bool,
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
    /// The number of the last generation.
    last_number: u64,
    /// All that still have connections or may get some, in the order in which they came. A
    /// connection of a service that was replaced also keeps the last generation of that service.
    known: Vec<Weak<Serving>>,
    /// What the current one has replaced.
    previous: Option<Arc<Serving>>,
    /// The content that was rolled back, until another component is loaded.
    left: Option<Left>,
    /// Why the current generation stays as it is.
    closed: Option<Closed>,
}

/// Why the component of a service does not change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Closed {
    /// A component that is loaded now would serve no connection.
    #[error("the host drains and accepts no connections; make the change at its next start")]
    Draining,
    /// Another service has taken the place of this one, or none.
    #[error("a reconfiguration has changed or removed the service meanwhile; request the change again")]
    Replaced,
}

/// Why a rollback was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotRolledBack {
    #[error("there is no generation to roll back to")]
    NoPrevious,
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Why a generation that was loaded does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Overtaken {
    /// An operator has requested a rollback since the reload was requested.
    #[error("a rollback was requested meanwhile")]
    ByRequest,
    /// The host has rolled back the same content while it was loaded again.
    #[error("the host rolled back the same content meanwhile")]
    ByRollback,
    /// The component of the service does not change any more.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// How long after a refusal a request insists. Signals that something sends regularly, such as
/// SIGHUP after the renewal of a certificate, have to come without effect.
pub(crate) const INSIST: Duration = Duration::from_secs(600);

/// Content that was rolled back.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    pub(crate) digest: Digest,
    /// When a request to load it again was last refused.
    refused: Arc<Mutex<Option<Instant>>>,
}

impl Left {
    fn new(digest: Digest) -> Self {
        let refused = Arc::default();
        Self { digest, refused }
    }

    /// Decides whether an operator insists on the content by a request that was `asked` for then.
    /// The operator does if the request comes after the refusal of another, and soon. Otherwise the
    /// request is refused `now`.
    pub(crate) fn is_insisted_upon(&self, asked: Instant, now: Instant) -> bool {
        // Nothing can panic while it is held.
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let insists = refused.is_some_and(|refused| asked > refused && asked - refused <= INSIST);
        if !insists {
            *refused = Some(now);
        }
        insists
    }
}

impl Past {
    /// The past of a service that starts with `first`, a generation of this `number`, in place of
    /// the service `before`, if there is one. The rollback of that service stays possible where its
    /// generations would serve on the same terms: a rollback brings back a component, and no
    /// setting.
    fn new(
        number: u64,
        service: &Service,
        first: &Generation,
        before: Option<(&Service, &Generations)>,
    ) -> Self {
        let mut new = Self {
            last_number: number,
            known: Vec::new(),
            previous: None,
            left: None,
            closed: None,
        };
        if let Some((settings, before)) = before {
            let mut past = before.past();
            // A rollback from here on would be lost.
            past.closed = Some(Closed::Replaced);
            let current = before.current();
            let same_content = current.generation.digest() == first.digest();
            if same_content {
                new.left.clone_from(&past.left);
            }
            if runs_alike(settings, service) {
                new.previous = if same_content {
                    past.previous.clone()
                } else {
                    Some(current)
                };
            }
            // They are observed with this service while they have connections.
            new.known.clone_from(&past.known);
        }
        new
    }

    /// The generations that still exist.
    fn alive(&self) -> Vec<Arc<Serving>> {
        let mut alive: Vec<Arc<Serving>> = Vec::new();
        for serving in self.known.iter().filter_map(Weak::upgrade) {
            // A generation that was rolled back to stands there twice, with the same counts.
            if alive.iter().all(|other| other.number != serving.number) {
                alive.push(serving);
            }
        }
        alive
    }

    fn know(&mut self, serving: &Arc<Serving>) {
        self.known.retain(|known| known.strong_count() > 0);
        self.known.push(Arc::downgrade(serving));
    }
}

/// Returns whether something was `requested` at the time of `since` or later.
fn is_since(requested: Option<Instant>, since: Instant) -> bool {
    requested.is_some_and(|requested| requested >= since)
}

/// Returns whether instances have the same start, rights and limits in two services. The other
/// settings hold for a connection, whatever its generation.
fn runs_alike(one: &Service, other: &Service) -> bool {
    let limits = |service: &Service| {
        let limits = &service.limits;
        let calls = (limits.cpu_slice, limits.max_call_time, limits.max_cpu_time);
        (limits.max_connections, limits.max_memory, calls)
    };
    let settings = |service: &Service| {
        let grants = Grants {
            // Not a right of this service.
            writable_by_others: Vec::new(),
            ..service.grants.clone()
        };
        (grants, service.isolation, service.preinit, limits(service))
    };
    settings(one) == settings(other)
}

impl Generations {
    /// The name of the service.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    /// Creates the generations of `service`, which starts with `first`. `before` has the settings
    /// and the generations of the service that it replaces. An operator may have `insisted` on the
    /// first. `counts` gives the numbers.
    pub(crate) fn new(
        service: &Service,
        first: Arc<Generation>,
        insisted: bool,
        before: Option<(&Service, &Self)>,
        cut: CancellationToken,
        counts: Arc<Counts>,
    ) -> Self {
        if before.is_some() {
            counts.swaps.one_more();
        }
        let number = counts.next_generation();
        let mut past = Past::new(number, service, &first, before);
        let first = Serving::new(
            &service.name,
            number,
            first,
            Tally::new(),
            cut.child_token(),
            insisted,
        );
        past.know(&first);
        Self {
            past: Mutex::new(past),
            rollback_requested: watch::Sender::new(None),
            current: ArcSwap::new(first),
            service: service.name.clone(),
            drain: service.drain_generations,
            max_connections: service.limits.max_connections.get() as u64,
            first: number,
            replaces_service: before.is_some(),
            moving: service.migrate.then(|| Semaphore::new(1)),
            successor: OnceLock::new(),
            cut,
            counts,
        }
    }

    /// The generations that take memory, in the order in which they came.
    pub(crate) fn known(&self) -> Vec<Arc<Serving>> {
        self.past().alive()
    }

    /// The generations that have connections or may get some, in the order in which they came.
    pub(crate) fn in_use(&self) -> Vec<(Arc<Serving>, State)> {
        // While it is locked, the current generation stays the same.
        let past = self.past();
        let current = self.current().number;
        let previous = past.previous.as_ref().map(|previous| previous.number);
        let state = |serving: &Serving| match serving.number {
            number if number == current => Some(State::Current),
            number if Some(number) == previous => Some(State::Previous),
            _ => (serving.tally.open() > 0).then_some(State::Ending),
        };
        let alive = past.alive().into_iter();
        alive
            .filter_map(|serving| Some((Arc::clone(&serving), state(&serving)?)))
            .collect()
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

    /// Keeps the current generation from now on: neither a reload nor a rollback, requested or
    /// automatic, changes it.
    pub(crate) fn close(&self, why: Closed) {
        let mut past = self.past();
        past.closed = Some(why);
        past.previous = None;
    }

    /// No more connections come: those that are open may go on as long as where another generation has replaced theirs.
    pub(crate) fn wind_up(&self) {
        self.close(Closed::Replaced);
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
    pub(crate) fn left(&self) -> Option<Left> {
        self.past().left.clone()
    }

    /// Returns whether a session of `serving` may move to this service. A service that has replaced
    /// another can have fewer `max-connections`. It then takes only so many sessions.
    pub(crate) fn has_room_for(&self, serving: &Serving) -> bool {
        if serving.number >= self.first {
            return true;
        }
        let known = self.known();
        // The sessions of the service before have still to move.
        let own = known.iter().filter(|serving| serving.number >= self.first);
        own.map(|serving| serving.tally.open()).sum::<u64>() < self.max_connections
    }

    /// Returns whether an operator has requested a rollback at the time of `since` or later.
    pub(crate) fn is_rollback_requested(&self, since: Instant) -> bool {
        is_since(*self.rollback_requested.borrow(), since)
    }

    /// Waits until an operator requests a rollback, or returns at once if one did at the time of
    /// `since` or later.
    pub(crate) async fn rollback_requested(&self, since: Instant) {
        let mut requested = self.rollback_requested.subscribe();
        // The sender lives as long as this.
        let _ = requested.wait_for(|&requested| is_since(requested, since)).await;
    }

    /// Gives new connections `generation` from now on, which was requested at the time of `asked`.
    /// If an operator has `insisted` on it, it is not rolled back automatically.
    ///
    /// # Errors
    ///
    /// A rollback or the end of the service has overtaken it.
    pub(crate) fn replace(
        &self,
        generation: Arc<Generation>,
        insisted: bool,
        asked: Instant,
    ) -> Result<(), Overtaken> {
        let mut past = self.past();
        if let Some(closed) = past.closed {
            return Err(closed.into());
        }
        if self.is_rollback_requested(asked) {
            return Err(Overtaken::ByRequest);
        }
        let is_left = |left: &Left| left.digest == *generation.digest();
        if past.left.as_ref().is_some_and(is_left) && !insisted {
            return Err(Overtaken::ByRollback);
        }
        past.last_number = self.counts.next_generation();
        let next = Serving::new(
            &self.service,
            past.last_number,
            generation,
            Tally::new(),
            self.cut.child_token(),
            insisted,
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
        drop(past);
        self.report_staying(&self.current());
        Ok(())
    }

    /// Gives new connections the generation that they got before the last change. The content that
    /// is left is not taken again, and reloads requested so far are given up.
    ///
    /// # Errors
    ///
    /// There is no such generation, or the component does not change any more.
    pub(crate) fn go_back(&self, reason: &str) -> Result<(), NotRolledBack> {
        self.go_back_from(None, reason)
    }

    /// Does the same if `from` is current, or whatever is.
    fn go_back_from(&self, from: Option<u64>, reason: &str) -> Result<(), NotRolledBack> {
        let mut past = self.past();
        if let Some(closed) = past.closed {
            return Err(closed.into());
        }
        let current = self.current();
        match from {
            Some(from) if from != current.number => return Ok(()),
            Some(_) => {}
            None => drop(self.rollback_requested.send_replace(Some(Instant::now()))),
        }
        let Some(previous) = past.previous.take() else {
            warn!(
                service = self.service,
                generation = current.number,
                reason,
                "there is no generation to roll back to"
            );
            return Err(NotRolledBack::NoPrevious);
        };
        past.left = Some(Left::new(*current.generation.digest()));
        // Its open connections continue, unless they are closed already.
        let cut = previous.draining.restore();
        let cut = cut.unwrap_or_else(|| self.cut.child_token());
        let again = Serving::new(
            &self.service,
            previous.number,
            Arc::clone(&previous.generation),
            Arc::clone(&previous.tally),
            cut,
            previous.insisted,
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
        Ok(())
    }

    /// Logs how many sessions have not moved to `next` some time after it has replaced their
    /// generations: a session that is busy is logged at debug only, because it can be busy often.
    fn report_staying(&self, next: &Arc<Serving>) {
        if self.moving.is_none() || !next.generation.migrates() {
            return;
        }
        let known = self.known();
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

    /// Counts a connection of `client` that `serving` has served. Rolls back a new generation that
    /// fails too many.
    pub(crate) fn ended(&self, serving: &Serving, client: ClientKey, failed: bool) {
        self.tried(
            serving,
            |tally| &tally.connections,
            client,
            failed,
            |failed, over| format!("the guest failed {failed} of its first {over} connections"),
        );
    }

    /// Counts a session of `client` that has moved to `serving`, or that the guest has failed to
    /// restore. Rolls back a new generation that fails too many. Sessions that move do not make up
    /// for connections that fail.
    pub(crate) fn moved(&self, serving: &Serving, client: ClientKey, failed: bool) {
        self.tried(
            serving,
            |tally| &tally.moves,
            client,
            failed,
            |failed, over| format!("the guest failed to restore {failed} of the first {over} sessions"),
        );
    }

    fn tried(
        &self,
        serving: &Serving,
        trial: fn(&Tally) -> &Trial,
        client: ClientKey,
        failed: bool,
        reason: fn(u64, u64) -> String,
    ) {
        if failed {
            serving.tally.failed.one_more();
        }
        if trial(&serving.tally).add(client, failed) && !serving.insisted {
            self.judge(serving, trial, reason);
        }
    }

    /// Rolls back `serving` if it is current and fails more than the generation before.
    fn judge(&self, serving: &Serving, trial: fn(&Tally) -> &Trial, reason: fn(u64, u64) -> String) {
        let past = self.past();
        let is_original = past.last_number == self.first && !self.replaces_service;
        if is_original || past.closed.is_some() || self.current().number != serving.number {
            return;
        }
        let failing = match &past.previous {
            Some(previous) => {
                let before = &previous.tally;
                trial(&serving.tally).judge(trial(before), &before.connections)
            }
            None => trial(&serving.tally).judge(&Trial::new(), &Trial::new()),
        };
        let has_previous = past.previous.is_some();
        drop(past);
        let Some(Failing {
            failed,
            over,
            verdict,
        }) = failing
        else {
            return;
        };
        let reason = reason(failed, over);
        let kept = match verdict {
            Verdict::Worse if has_previous => {
                // Another rollback or the end of the service may have been faster.
                let _ = self.go_back_from(Some(serving.number), &reason);
                return;
            }
            Verdict::Worse => "there is no generation to roll back to",
            Verdict::FailedBefore => {
                "the guest fails, but the previous generation failed the same clients; no rollback"
            }
            Verdict::FewClients => "the guest fails, but for too few clients; no rollback",
        };
        if !serving.tally.told.swap(true, Relaxed) {
            let generation = serving.number;
            warn!(service = self.service, generation, reason, "{kept}");
        }
    }

    fn retire(&self, replaced: &Serving) {
        replaced.replaced.cancel();
        replaced.generation.set_current(false);
        self.cut_in_time(replaced);
    }

    fn cut_in_time(&self, replaced: &Serving) {
        if let Some(drain) = self.drain {
            let (service, generation) = (self.service.clone(), replaced.number);
            let draining = Arc::clone(&replaced.draining);
            tokio::spawn(async move {
                let log = || {
                    info!(
                        service,
                        generation,
                        "old generation reached {}; its connections are closed",
                        Setting::of("drain-generations")
                    );
                };
                draining.end_after(drain, log).await;
            });
        }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        // Nothing can panic while it is held.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_rollback_needs_the_same_start_rights_and_limits() {
        let service = |more: &str| {
            let text =
                format!("[[service]]\nname = \"a\"\ncomponent = \"c\"\nlisten = [\"[::1]:1\"]\n{more}");
            let config = crate::file::parse(&text, Path::new("/")).unwrap();
            config.services.into_iter().next().unwrap()
        };
        let now = service("");
        for more in [
            "watch = true",
            "drain-generations = \"1h\"",
            "limits.idle-timeout = \"1h\"",
        ] {
            assert!(runs_alike(&now, &service(more)), "{more}");
        }
        for more in [
            "preinit = true",
            "isolation = \"service\"",
            "args = [\"a\"]",
            "limits.max-memory = \"1MiB\"",
            "limits.max-connections = 1",
            "limits.max-call-time = \"2s\"",
        ] {
            assert!(!runs_alike(&now, &service(more)), "{more}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rollback_at_the_end_of_the_time_serves_new_connections() {
        let max = Duration::from_secs(1);
        let draining = || Draining::new(CancellationToken::new());
        // As if another thread rolled back after the time has passed, and before the end.
        let late = draining();
        let mut shared = Some(late.cut.clone());
        late.end_after(max, || shared = late.restore()).await;
        assert!(shared.is_none_or(|cut| !cut.is_cancelled()));
        assert!(late.cut.is_cancelled());

        let in_time = draining();
        let shared = in_time.restore().unwrap();
        in_time.end_after(max, || panic!("it was restored")).await;
        assert!(!shared.is_cancelled());

        let closed = draining();
        closed.cut.cancel();
        assert!(closed.restore().is_none());
    }

    #[test]
    fn only_a_request_soon_after_a_refusal_insists() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let left = Left::new([0; 32]);
        assert!(!left.is_insisted_upon(at(0), at(2)));
        // It was made before anybody could know of the refusal.
        assert!(!left.is_insisted_upon(at(1), at(3)));
        assert!(left.is_insisted_upon(at(4), at(4)));
        // Such as one of every day.
        let late = 3 + INSIST.as_secs() + 1;
        assert!(!left.is_insisted_upon(at(late), at(late)));
        assert!(left.is_insisted_upon(at(late + 1), at(late + 1)));
    }
}
