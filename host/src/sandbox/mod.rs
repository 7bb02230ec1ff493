//! The sandbox: everything that knows wasmtime.
//!
//! A [`Sandbox`] is what all connections share. It loads a component into a [`Generation`], which then serves
//! connections, each with an instance of its own or, where that is asked for, several with one.

mod cache;
mod capacity;
mod checkpoints;
mod clock;
mod code;
mod compile;
pub mod compiler;
mod compose;
mod configuration;
mod content;
mod contract;
mod diagnostics;
mod direct;
mod dirs;
mod engine;
mod examine;
mod extent;
mod facts;
mod file_calls;
mod file_format;
mod file_streams;
mod file_threads;
mod files;
mod followed;
mod generation;
mod grants;
mod handles;
mod hollow;
mod leash;
mod listing;
mod living;
mod load_error;
mod log_share;
mod mappings;
mod meter;
mod mismatch;
mod names;
mod needs;
mod never_waits;
mod outline;
mod paths;
mod pools;
mod preinit;
mod preview1;
mod profile;
mod proposals;
mod pulse;
mod readdir;
mod rewrite;
mod seat;
mod serve;
mod shared;
mod sockets;
mod state;
mod stdio;
mod ticker;
mod waiters;
mod wasi;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub use capacity::Shortage;
pub use compile::Ahead;
pub use compiler::{Compiler, Program};
pub(crate) use compiler::{MAX_TIME, Turn};
pub use content::{Content, Digest, Origin, Source};
pub use contract::{Contract, CpuLimit, End, Fault};
pub use diagnostics::Transcript;
pub(crate) use diagnostics::in_brief;
pub use engine::PoolUse;
pub use facts::{Facts, Import};
pub use generation::Generation;
pub use load_error::{LoadError, Refusal};
pub(crate) use seat::real_timer;
pub use seat::{Ending, Neighbours, Offer, Seat, Stays};
pub use serve::serve;

use crate::config::{CacheDir, Grants, Isolation, Limits, Terms};
use crate::cost::Cost;
use cache::{Cache, Unusable};
use capacity::connections;
use engine::Engine;
use grants::Granted;
use mappings::Claim;
use needs::Needs;
use pools::Pools;
use ticker::Ticker;

/// What connections share: engines, linkers, and the clock that interrupts guests.
///
/// There is an engine for each set of needs, made when a component first has them: the concurrency of the component model
/// (`async` functions, streams) costs every call something, and mapping what little data a small component begins with
/// costs every connection something.
#[derive(Debug)]
pub struct Sandbox {
    limits: Limits,
    granted: Arc<Granted>,
    /// Opened when it is first needed: until then, a start that fails creates no directory.
    cache: OnceLock<Result<Option<Cache>, Unusable>>,
    compiler: Compiler,
    preinit: bool,
    profiling: bool,
    isolation: Isolation,
    /// Instances that connections of the service share, and that were started.
    started: Arc<AtomicU64>,
    /// What these have cost.
    shared_cost: Arc<Cost>,
    ticker: Arc<Ticker>,
    /// The pools of the service, which other sandboxes of it share.
    pools: Arc<Pools>,
    /// Entitles its pools to memory mappings of the process.
    claim: Arc<Claim>,
    engines: Arc<Mutex<Vec<(Needs, Engine)>>>,
}

impl Sandbox {
    /// A sandbox whose instances have to keep to `limits` and may use what is granted, and whose
    /// components `compiler` compiles and keeps.
    ///
    /// # Errors
    ///
    /// The thread of its clock or the threads for files cannot be started, a destination that is
    /// granted has no address, or a directory is refused or cannot be opened.
    pub fn new(limits: &Limits, grants: &Grants, compiler: &Compiler) -> std::io::Result<Self> {
        Self::succeed(None, limits, grants, compiler)
    }

    /// The same for a service that ran with other settings `before`. Guests that still run count
    /// towards its bounds, which [`Sandbox::bound_guests`] changes.
    pub(crate) fn succeed(
        before: Option<&Self>,
        limits: &Limits,
        grants: &Grants,
        compiler: &Compiler,
    ) -> std::io::Result<Self> {
        let (granted, started) = before
            .map(|before| (&*before.granted, Arc::clone(&before.started)))
            .unzip();
        // Calls are held to their limits at the end of each slice.
        let calls = [limits.max_call_time, limits.max_cpu_time];
        let slice = calls.into_iter().flatten().fold(limits.cpu_slice, Ord::min);
        let pools = Pools::new();
        Ok(Self {
            limits: *limits,
            granted: Arc::new(Granted::resolve(grants, limits, granted)?),
            cache: OnceLock::new(),
            compiler: compiler.clone(),
            preinit: false,
            profiling: false,
            isolation: Isolation::Connection,
            started: started.unwrap_or_default(),
            shared_cost: Arc::default(),
            ticker: Ticker::start(slice)?,
            claim: pools.share.claim(connections(limits)),
            pools,
            engines: Arc::default(),
        })
    }

    /// The same for components that are loaded from now on: `compiler` compiles and keeps them.
    /// Both have the same engines, rights and counts, so generations of both can serve one service.
    pub(crate) fn compiling_by(&self, compiler: &Compiler) -> Self {
        Self {
            limits: self.limits,
            granted: Arc::clone(&self.granted),
            cache: OnceLock::new(),
            compiler: compiler.clone(),
            preinit: self.preinit,
            profiling: self.profiling,
            isolation: self.isolation,
            started: Arc::clone(&self.started),
            shared_cost: Arc::clone(&self.shared_cost),
            ticker: Arc::clone(&self.ticker),
            pools: Arc::clone(&self.pools),
            claim: Arc::clone(&self.claim),
            engines: Arc::clone(&self.engines),
        }
    }

    /// The cache that was asked for. If its directory cannot be used, the log says so once.
    fn cache(&self) -> Option<&Cache> {
        let open = || Cache::choose(&self.compiler.cache).inspect_err(Unusable::log);
        self.cache.get_or_init(open).as_ref().ok()?.as_ref()
    }

    /// Opens the cache now, since components of a service that runs may be loaded much later.
    pub(crate) fn open_cache(&self) {
        self.cache();
    }

    /// Warns of a directory for compiled components that a start could not use.
    pub(crate) fn check_cache(cache: &CacheDir) {
        Cache::check(cache);
    }

    /// A sandbox in which a component is tried on these terms.
    ///
    /// # Errors
    ///
    /// As with [`Sandbox::new`].
    pub fn on(terms: &Terms, compiler: &Compiler) -> std::io::Result<Self> {
        Ok(Self::new(&terms.limits, &terms.grants, compiler)?.preinit(terms.preinit))
    }

    /// Holds all guests of the service to its limits from now on, also those that began with other
    /// settings.
    pub(crate) fn bound_guests(&self) {
        self.granted.bound(&self.limits);
    }

    /// Has guests of this sandbox use the granted directories and addresses of `next`, which takes
    /// its place, where the grants are the same. A rollback can bring back such guests.
    pub(crate) fn follow(&self, next: &Self) {
        self.granted.follow(&next.granted);
    }

    /// Notes the directories that guests of other services may write to from now on.
    pub(crate) fn others_may_write_to(&self, dirs: Vec<std::path::PathBuf>) {
        self.granted.others_may_write_to(dirs);
    }

    /// Opens the granted directories again. Guests that run keep those that they have. Gives up
    /// after `max`.
    ///
    /// # Errors
    ///
    /// One cannot be opened in that time, or is refused. All stay as they are.
    pub(crate) async fn open_dirs_again(&self, max: Duration) -> std::io::Result<()> {
        self.granted.open_again(max).await
    }

    /// Whether a granted destination has a name, whose addresses can change.
    pub(crate) fn has_names(&self) -> bool {
        self.granted.has_names()
    }

    /// Resolves the names of granted destinations again, which may wait for a name server. Guests
    /// that run can use the addresses, too. Returns the addresses if they differ from those before.
    ///
    /// # Errors
    ///
    /// One has no address. The addresses stay as they are.
    pub(crate) fn resolve_again(&self) -> std::io::Result<Option<Vec<std::net::SocketAddr>>> {
        self.granted.resolve_again()
    }

    /// Sets the name of the service, which the lines that guests log contain. All sandboxes of the
    /// service share its pools.
    #[must_use]
    pub fn service(self, name: &str) -> Self {
        let pools = Pools::of(name);
        Self {
            granted: Arc::new(self.granted.of_service(name)),
            claim: pools.share.claim(connections(&self.limits)),
            ticker: pools.ticker(self.ticker),
            engines: Arc::default(),
            pools,
            ..self
        }
    }

    /// The same, but each component is initialised when it is loaded, if `preinit` is set.
    #[must_use]
    pub fn preinit(self, preinit: bool) -> Self {
        Self { preinit, ..self }
    }

    /// The same, but it is seen where guests spend their time, if `profiling` is set.
    #[must_use]
    pub fn profiling(self, profiling: bool) -> Self {
        Self { profiling, ..self }
    }

    /// The cost of all instances that connections share.
    pub(crate) fn shared_cost(&self) -> Arc<Cost> {
        Arc::clone(&self.shared_cost)
    }

    /// The same, but connections are kept apart, or share instances, as `isolation` says.
    #[must_use]
    pub fn isolation(self, isolation: Isolation) -> Self {
        Self { isolation, ..self }
    }

    fn engine(&self, needs: Needs) -> wasmtime::Result<Engine> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, engine)) = engines.iter().find(|(has, _)| *has == needs) {
            return Ok(engine.clone());
        }
        // Pools that nobody needs any more make room for the next.
        engines.retain(|(_, engine)| !engine.is_unused());
        let engine = Engine::new(needs, &self.limits, &self.granted, &self.ticker, &self.pools)?;
        engines.push((needs, engine.clone()));
        Ok(engine)
    }
}
