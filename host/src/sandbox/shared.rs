//! Instances that connections share.
//!
//! Each has a task, which owns its store. A connection sends its halves there, on leashes, and
//! waits in its own task, where all its limits are watched. An instance is started by the first
//! connection that finds none idle, and lives as long as its generation is current; then until its
//! last connection is over. If the generation becomes current again before that, the instance
//! stays. When it fails so do its connections, and the next connection starts a fresh one.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wasmtime::Store;

use super::contract::handler::shared::{Arrival, Visitor, run};
use super::contract::{End, Fault, Served};
use super::diagnostics::{Logged, SharedTail, Speaker, Transcript};
use super::file_threads::on;
use super::generation::Generation;
use super::grants::Opened;
use super::leash::Link;
use super::pulse::Pulse;
use super::seat::{Neighbours, Seat};
use super::state::State;
use crate::bindings::service::ServicePre;
use crate::cost::Cost;
use crate::half::Half;
use crate::peer::Peer;

/// The instances of one generation that connections share.
pub(super) struct Instances {
    pre: ServicePre<State>,
    /// How many there may be.
    max: NonZeroUsize,
    /// How many were started, of all generations.
    started: Arc<AtomicU64>,
    /// What they have cost, of all generations.
    cost: Arc<Cost>,
    /// Locked when a connection begins, and when another generation comes.
    live: Mutex<Live>,
    /// Their connections.
    pub(super) neighbours: Arc<Neighbours>,
}

/// The instances that connections can join.
#[derive(Debug)]
enum Live {
    /// The generation is current.
    Kept(Vec<Arc<Instance>>),
    /// The generation is not current: an instance lives no longer than its connections.
    Left(Vec<Weak<Instance>>),
}

impl Live {
    /// The instance for a new connection, if none is to be started: one that is idle or, if there
    /// are `max`, the one with the fewest.
    fn choose(&mut self, max: usize) -> Option<Arc<Instance>> {
        let works = |instance: &Arc<Instance>| !instance.end.failed.is_cancelled();
        let fewest = |instances: &[Arc<Instance>]| {
            let least = instances.iter().min_by_key(|one| Arc::strong_count(one))?;
            // Only the list has one that is idle.
            let joined = instances.len() >= max || Arc::strong_count(least) == 1;
            joined.then(|| Arc::clone(least))
        };
        match self {
            Self::Kept(instances) => {
                instances.retain(works);
                fewest(instances)
            }
            Self::Left(instances) => {
                let left = instances.iter().filter_map(Weak::upgrade).filter(works);
                let left: Vec<_> = left.collect();
                *instances = left.iter().map(Arc::downgrade).collect();
                fewest(&left)
            }
        }
    }

    fn add(&mut self, instance: &Arc<Instance>) {
        match self {
            Self::Kept(instances) => instances.push(Arc::clone(instance)),
            Self::Left(instances) => instances.push(Arc::downgrade(instance)),
        }
    }
}

/// A running instance. It ends when nobody has this any more.
#[derive(Debug)]
struct Instance {
    number: u64,
    /// Holds no more than one arrival for each connection.
    arrivals: mpsc::UnboundedSender<Arrival>,
    pulse: Arc<Pulse>,
    end: Arc<Ending>,
}

/// How an instance has ended.
#[derive(Debug, Default)]
struct Ending {
    /// It has failed; `failure` says how.
    failed: CancellationToken,
    failure: OnceLock<Failure>,
    /// One of its connections has counted the failure.
    counted: AtomicBool,
}

#[derive(Debug)]
enum Failure {
    Fault(Arc<Fault>),
    Panic,
}

impl Instances {
    pub(super) fn new(
        pre: ServicePre<State>,
        max: NonZeroUsize,
        started: &Arc<AtomicU64>,
        cost: &Arc<Cost>,
    ) -> Self {
        Self {
            pre,
            max,
            started: Arc::clone(started),
            cost: Arc::clone(cost),
            live: Mutex::new(Live::Kept(Vec::new())),
            neighbours: Arc::default(),
        }
    }

    /// The instances that are there end when their connections are over, and others start for those to come.
    pub(super) fn renew(&self) {
        match &mut *self.live() {
            Live::Kept(instances) => instances.clear(),
            Live::Left(instances) => instances.clear(),
        }
    }

    /// The generation is current from now on, or not. Instances that still have connections when it
    /// becomes current again stay.
    pub(super) fn set_current(&self, current: bool) {
        let mut live = self.live();
        match &*live {
            Live::Kept(instances) if !current => {
                *live = Live::Left(instances.iter().map(Arc::downgrade).collect());
            }
            Live::Left(instances) if current => {
                *live = Live::Kept(instances.iter().filter_map(Weak::upgrade).collect());
            }
            _ => {}
        }
    }

    /// The instance for a new connection: one that is idle, a new one if there may be more, or the
    /// one with the fewest. Returns `None` if a new one is needed and nothing was `opened` for it.
    /// The lines of a new one are kept in `transcript`, if there is one.
    fn join(
        &self,
        generation: &Generation,
        opened: &mut Option<Opened>,
        transcript: Option<Transcript>,
    ) -> Option<Arc<Instance>> {
        let mut live = self.live();
        if let Some(instance) = live.choose(self.max.get()) {
            return Some(instance);
        }
        let instance = self.start(generation, opened.take()?, transcript);
        live.add(&instance);
        Some(instance)
    }

    fn start(
        &self,
        generation: &Generation,
        opened: Opened,
        transcript: Option<Transcript>,
    ) -> Arc<Instance> {
        let number = self.started.fetch_add(1, Relaxed) + 1;
        let manner = Manner {
            service: generation.engine.granted.service.clone(),
            replayed: transcript.is_some(),
            backtraces: generation.has_backtraces(),
            tail: Arc::default(),
        };
        let logged = transcript.map(Logged::kept_in).unwrap_or_default();
        let logged = logged.with_tail(&manner.tail);
        let store = generation.store(Speaker::Instance(number), Some(logged), Some(&self.cost), opened);
        let (sender, arrivals) = mpsc::unbounded_channel();
        let max_connections = generation.engine.limits.max_connections.get();
        let pulse = Arc::new(Pulse::new(store.data().ticker(), max_connections));
        let end = Arc::<Ending>::default();
        let guard = Guard {
            number,
            end: Arc::clone(&end),
        };
        let (pre, cost) = (self.pre.clone(), Arc::clone(&self.cost));
        let live = live(pre, cost, store, Arc::clone(&pulse), arrivals, guard, manner);
        tokio::spawn(live);
        Arc::new(Instance {
            number,
            arrivals: sender,
            pulse,
            end,
        })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // What can panic while it is held leaves nothing half-written.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an instance is logged.
struct Manner {
    /// The service that it is of, if it is of one.
    service: Option<Arc<str>>,
    /// It takes part in a conversation that is replayed, and no connection follows.
    replayed: bool,
    /// The operator asked for backtraces.
    backtraces: bool,
    /// What the guest wrote to standard error.
    tail: Arc<SharedTail>,
}

impl Manner {
    /// Logs that an instance failed.
    fn failed(&self, instance: u64, fault: &Fault) {
        let (service, reason, stderr) = (self.service.as_deref(), fault.reason(), self.tail.text());
        if self.replayed {
            debug!(
                service,
                instance, reason, stderr, "shared instance failed in a replay"
            );
        } else {
            warn!(
                service,
                instance,
                reason,
                stderr,
                "shared instance failed, with its connections; the next connection starts another"
            );
        }
        if self.backtraces {
            info!(service, instance, trace = %fault.trace(), "the guest failed");
        } else {
            debug!(service, instance, trace = %fault.trace(), "the guest failed");
        }
    }
}

/// The task of an instance.
async fn live(
    pre: ServicePre<State>,
    cost: Arc<Cost>,
    mut store: Store<State>,
    pulse: Arc<Pulse>,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    guard: Guard,
    manner: Manner,
) {
    let (service, instance) = (manner.service.as_deref(), guard.number);
    debug!(service, instance, "shared instance started");
    let ticker = Arc::clone(store.data().ticker());
    let files = store.data().open_files();
    let running = on(files, run(&pre, &mut store, &pulse, arrivals));
    let ran = ticker.run_at(&cost, running).await;
    match ran {
        Ok(()) => debug!(
            service,
            instance, "shared instance ended: it has no connections and will get no more"
        ),
        Err(fault) => {
            manner.failed(instance, &fault);
            guard.end.fail(Failure::Fault(Arc::new(fault)));
        }
    }
    // Its connections are told before their halves come back to them.
    drop((guard, store));
}

/// Tells the connections of an instance if its task panics.
struct Guard {
    number: u64,
    end: Arc<Ending>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end.fail(Failure::Panic);
        }
    }
}

impl Ending {
    fn fail(&self, failure: Failure) {
        // There is no other.
        let _ = self.failure.set(failure);
        self.failed.cancel();
    }
}

/// Serves one connection with an instance that it shares.
///
/// # Errors
///
/// The instance has failed.
pub(super) async fn serve<S, R, W>(
    seat: &S,
    generation: &Generation,
    instances: &Instances,
    peer: &Peer,
    inbound: &Half<R>,
    outbound: &Half<W>,
) -> Result<Served<R, W>, Fault>
where
    S: Seat,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    loop {
        let mut opened = None;
        let instance = loop {
            match instances.join(generation, &mut opened, seat.transcript()) {
                Some(instance) => break instance,
                None => opened = Some(generation.open().await.map_err(Fault::Grant)?),
            }
        };
        let link = Link::new(&instance.pulse);
        let Some((visitor, arrival)) = Visitor::new(peer, inbound, outbound, &link) else {
            return Ok(Served::Ended(End::Finished));
        };
        let (connection, number) = (peer.connection, instance.number);
        debug!(
            service = generation.service(),
            connection,
            instance = number,
            "connection joined a shared instance"
        );
        // An instance that has ended takes no more, and says so below.
        let _ = instance.arrivals.send(arrival);
        let mut stay = pin!(visitor.stay(|| seat.started()));
        let stayed = poll_fn(|cx| {
            link.register(cx);
            stay.as_mut().poll(cx).map(Some)
        });
        let served = tokio::select! {
            biased;
            () = instance.end.failed.cancelled() => None,
            served = stayed => served,
        };
        let Some(failure) = instance.end.failure.get() else {
            if let Some(served) = served {
                return Ok(served);
            }
            continue;
        };
        match (served, failure) {
            // It was over before, or has left the instance.
            (Some(served @ Served::Returned(..)), _) => return Ok(served),
            (Some(served), _) if outbound.ended() => return Ok(served),
            // The hook for panics has said what happened.
            (_, Failure::Panic) => resume_unwind(Box::new("the task of the shared instance panicked")),
            // Nothing has come of it, and the next instance may do better.
            (_, Failure::Fault(fault)) if !link.taken() && !fault.is_of_start() => {}
            (_, Failure::Fault(fault)) => {
                return Err(Fault::Shared {
                    instance: number,
                    fault: Arc::clone(fault),
                    counts: !instance.end.counted.swap(true, Relaxed),
                });
            }
        }
    }
}

impl std::fmt::Debug for Instances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instances")
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}
