//! A service that runs: what the tasks that serve its connections share.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config::{Access, Isolation, Service as Config, Setting};
use crate::cost::Cost;
use crate::counts::Counts;
use crate::generations::{Closed, Generations};
use crate::place::Place;
use crate::preflight::{Unloaded, key_of};
use crate::record::Recorder;
use crate::roster::{Open, Roster};
use crate::sandbox::{Digest, Generation, Sandbox, Source};
use crate::system::Mappings;
use crate::telemetry::Telemetry;
use crate::tls;

/// What the connections of all services share.
#[derive(Debug)]
pub(crate) struct Process {
    /// The services that run, as others see them.
    pub(crate) services: ArcSwap<Vec<Arc<Service>>>,
    /// What is counted of each service that has run, by its name. Connections can outlive a service that is removed, and the
    /// counters of a name never fall, even if a service of that name comes back.
    counts: Mutex<HashMap<String, Arc<Counts>>>,
    /// The connections that are open, where somebody may ask for them.
    pub(crate) roster: Option<Arc<Roster>>,
    /// What is told to a collector, where there is one.
    pub(crate) telemetry: Option<Telemetry>,
    pub(crate) started: Instant,
    /// The drain has begun.
    pub(crate) draining: AtomicBool,
    /// Asks for the drain.
    pub(crate) drain: Notify,
    pub(crate) connections: TaskTracker,
    /// Connections that a panic of the host has ended.
    pub(crate) panics: AtomicU64,
    /// Connections that are left are closed.
    pub(crate) cut: CancellationToken,
    /// Turns of TLS handshakes, of which each service has its own share.
    pub(crate) handshakes: tls::Turns,
    last_connection: AtomicU64,
}

impl Process {
    /// What it is before there are services. Connections can be seen from outside if it is `observed`, and are told of to `telemetry`.
    pub(crate) fn new(observed: bool, telemetry: Option<Telemetry>) -> Self {
        Self {
            services: ArcSwap::default(),
            counts: Mutex::default(),
            roster: observed.then(Arc::default),
            telemetry,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            drain: Notify::new(),
            connections: TaskTracker::new(),
            panics: AtomicU64::new(0),
            cut: CancellationToken::new(),
            handshakes: tls::Turns::of_runtime(),
            last_connection: AtomicU64::new(0),
        }
    }

    /// What is counted of the services called `name`, one after another.
    pub(crate) fn counts_of(&self, name: &str) -> Arc<Counts> {
        // Nothing can panic while it is held.
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counts.entry(name.to_owned()).or_default())
    }

    /// The connections that are open, as far as they can be seen, and what is `counted` of others in the same moment.
    pub(crate) fn open<T>(&self, counted: impl FnOnce() -> T) -> (Vec<Arc<Open>>, T) {
        match &self.roster {
            Some(roster) => roster.all(counted),
            None => (Vec::new(), counted()),
        }
    }

    /// The number of one more connection.
    pub(crate) fn next_connection(&self) -> u64 {
        self.last_connection.fetch_add(1, Relaxed) + 1
    }
}

/// A service whose component is loaded, and that could be started.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) sandbox: Sandbox,
    pub(crate) source: Source,
    pub(crate) generation: Arc<Generation>,
    pub(crate) recorder: Option<Recorder>,
    /// The operator has insisted on its component, which was rolled back before.
    pub(crate) insisted: bool,
}

/// Why a service could not be loaded.
#[derive(Debug)]
pub(crate) struct NotLoaded {
    /// The key of the service that is to blame, such as `component`.
    pub(crate) key: String,
    pub(crate) error: anyhow::Error,
}

impl Loaded {
    /// How many connections there can be, and the mappings that they take.
    pub(crate) fn mappings(&self) -> Option<(NonZeroUsize, Mappings)> {
        mappings(&self.config, &self.generation)
    }

    /// Loads the component of a service. [`record`](Self::record) prepares the rest.
    ///
    /// # Errors
    ///
    /// The component cannot serve.
    pub(crate) async fn new(unloaded: Unloaded) -> Result<Self, NotLoaded> {
        let Unloaded {
            config,
            sandbox,
            source,
            content,
            insisted,
        } = unloaded;
        let generation = sandbox.load(&content).await.map_err(|error| NotLoaded {
            key: key_of(&content, &error),
            error: error.into(),
        })?;
        warn_of_migration(&config, &source, &generation);
        Ok(Self {
            recorder: None,
            config,
            sandbox,
            source,
            generation,
            insisted,
        })
    }

    /// Opens the directory for records, if the service has one, and creates it if it does not
    /// exist. The listeners are bound before, so that a start that fails leaves no directory.
    ///
    /// # Errors
    ///
    /// Conversations cannot be recorded.
    pub(crate) fn record(&mut self) -> Result<(), NotLoaded> {
        let recorder = self.config.record.as_deref().map(Recorder::new).transpose();
        self.recorder = recorder.map_err(|error| NotLoaded {
            key: "record".to_owned(),
            error,
        })?;
        Ok(())
    }
}

/// How many connections of a service there can be, and the mappings that they take. Instances that
/// connections share never take so many.
pub(crate) fn mappings(config: &Config, generation: &Generation) -> Option<(NonZeroUsize, Mappings)> {
    let own = config.isolation == Isolation::Connection;
    own.then(|| (config.limits.max_connections, generation.mappings()))
}

/// Warns where sessions are to move, and the component does not offer it.
pub(crate) fn warn_of_migration(config: &Config, source: &Source, generation: &Generation) {
    if config.migrate && !generation.migrates() {
        let migrate = Setting::of("migrate");
        warn!(
            service = config.name,
            "{migrate} is set, but {source} does not export `sessions` and `migration` of \
             `inet:service`, so its connections stay on their generation; build it for the world \
             `movable-session-service`, or omit {migrate}"
        );
    }
}

/// A request to load the component of a service again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReloadRequest {
    /// When it was made. A rollback that is requested later gives it up.
    pub(crate) asked: Instant,
    /// The component is loaded also if it was rolled back.
    pub(crate) insists: bool,
}

/// Why a request to load a component again was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotReloaded {
    /// The service serves the component that is embedded in the host.
    #[error("nothing to reload: the embedded echo guest has no file")]
    Embedded,
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Requests to load the component of a service again.
#[derive(Debug, Default)]
pub(crate) struct ReloadRequests {
    asked: Notify,
    /// Cancelled when there can be no further requests.
    end: CancellationToken,
    state: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    /// What was asked for since the last call of [`ReloadRequests::next`].
    waiting: Option<ReloadRequest>,
    /// There was a request since the last call of [`ReloadRequests::forget`].
    is_new: bool,
    /// Why there can be no further requests.
    closed: Option<Closed>,
}

impl ReloadRequests {
    /// Asks for the component to be loaded again.
    ///
    /// # Errors
    ///
    /// There can be no further requests.
    pub(crate) fn ask(&self, mut request: ReloadRequest) -> Result<(), Closed> {
        let mut state = self.state();
        if let Some(closed) = state.closed {
            return Err(closed);
        }
        request.insists |= state.waiting.is_some_and(|waiting| waiting.insists);
        state.waiting = Some(request);
        state.is_new = true;
        drop(state);
        self.asked.notify_one();
        Ok(())
    }

    /// Waits until somebody asks, and returns the last request.
    pub(crate) async fn next(&self) -> ReloadRequest {
        loop {
            self.asked.notified().await;
            if let Some(request) = self.take() {
                return request;
            }
        }
    }

    /// Returns the last request, if nobody has taken it yet.
    pub(crate) fn take(&self) -> Option<ReloadRequest> {
        self.state().waiting.take()
    }

    /// Refuses further requests.
    pub(crate) fn close(&self, why: Closed) {
        self.state().closed.get_or_insert(why);
        self.end.cancel();
    }

    /// Waits until there can be no further requests, and returns why.
    pub(crate) async fn closed(&self) -> Closed {
        self.end.cancelled().await;
        self.state().closed.unwrap_or(Closed::Replaced)
    }

    fn state(&self) -> MutexGuard<'_, Requests> {
        // Nothing can panic while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets that there were requests so far.
    pub(crate) fn forget(&self) {
        self.state().is_new = false;
    }

    /// Returns whether there was a request since the last call of [`forget`](Self::forget).
    pub(crate) fn is_new(&self) -> bool {
        self.state().is_new
    }
}

/// What the tasks of one service share.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) config: Config,
    /// Whose connections may come in: what is in force, whatever `config` says.
    pub(crate) access: ArcSwap<Access>,
    /// Turns of TLS handshakes.
    pub(crate) handshakes: tls::Turns,
    pub(crate) generations: Arc<Generations>,
    pub(crate) recorder: Option<Recorder>,
    /// Asks for its component to be loaded again.
    pub(crate) reload: Arc<ReloadRequests>,
    /// Its component, if that is embedded in the host and so never changes.
    pub(crate) embedded: Option<Digest>,
    /// Where it listens.
    pub(crate) listeners: ArcSwap<Vec<String>>,
    pub(crate) process: Arc<Process>,
}

impl Service {
    /// What is counted of it.
    pub(crate) fn counts(&self) -> &Counts {
        &self.generations.counts
    }

    /// Requests that its component is loaded again.
    ///
    /// # Errors
    ///
    /// There is nothing to load, or the component does not change any more.
    pub(crate) fn reload(&self, request: ReloadRequest) -> Result<(), NotReloaded> {
        // After a rollback, another component than that of the settings serves.
        if self.embedded.as_ref() == Some(self.generations.current().generation.digest()) {
            return Err(NotReloaded::Embedded);
        }
        Ok(self.reload.ask(request)?)
    }

    /// What the connection at `place` has cost; `None` where it shares an instance, whose cost is not its own alone.
    pub(crate) fn own_cost<'a>(&self, place: &'a Place) -> Option<&'a Cost> {
        (self.config.isolation == Isolation::Connection).then_some(&*place.cost)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_request_is_carried_out_or_refused_or_can_be_said_to_be_lost() {
        let requests = ReloadRequests::default();
        let request = |insists| ReloadRequest {
            asked: Instant::now(),
            insists,
        };
        assert_eq!(requests.ask(request(true)), Ok(()));
        assert_eq!(requests.ask(request(false)), Ok(()));
        let next = requests.next().now_or_never();
        assert!(next.is_some_and(|next| next.insists), "{next:?}");
        assert!(requests.next().now_or_never().is_none());
        assert_eq!(requests.ask(request(false)), Ok(()));
        assert_eq!(requests.closed().now_or_never(), None);
        requests.close(Closed::Draining);
        assert_eq!(requests.ask(request(false)), Err(Closed::Draining));
        assert_eq!(requests.closed().now_or_never(), Some(Closed::Draining));
        assert!(requests.take().is_some());
        assert!(requests.take().is_none());
    }
}
