//! Generations: loaded components.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Module, Store, UnknownImportError, WasmBacktrace};

use super::Sandbox;
use super::capacity::Shortage;
use super::code::Code;
use super::compiler::Turn;
use super::compose::{HANDLER, compose};
use super::configuration;
use super::content::{Content, Digest};
use super::contract::{self, Contract, OtherTypes, Prepared, lacks_resources, pool_is_full};
use super::diagnostics::{Logged, Speaker, Transcript};
use super::engine::{Engine, PoolUse};
use super::extent::{Extent, check_nested};
use super::file_format;
use super::file_threads::on;
use super::grants::{Granted, Opened};
use super::load_error::{LoadError, Refusal};
use super::mismatch;
use super::names;
use super::needs::{Calls, Needs};
use super::outline::check_outline;
use super::profile::Profile;
use super::seat::Neighbours;
use super::shared::Instances;
use super::state::State;
use super::wasi;
use crate::config::{Isolation, Limits, Setting};
use crate::cost::Cost;
use crate::system::Mappings;

/// What modules import that were built before preview 1 of WASI.
const OLD_PREVIEW: &str = "wasi_unstable";

/// How long making the first instance may take.
const PROBE: Duration = Duration::from_secs(5);

/// How long the first instance waits for room in a pool that connections fill, and how often it
/// looks.
const FULL: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);

/// One loaded component, ready to serve connections. It never changes.
pub struct Generation {
    pub(super) prepared: Prepared,
    pub(super) engine: Engine,
    /// Where connections share instances.
    pub(super) shared: Option<Instances>,
    /// It serves new connections.
    is_current: AtomicBool,
    code: Code,
    /// Where it is seen what its guests do.
    profile: Option<Profile>,
    /// Its name, for itself.
    program: Arc<str>,
    mappings: Mappings,
    digest: Digest,
    /// The parts that have accepted what they are granted.
    configured: Vec<String>,
}

impl Sandbox {
    /// Loads a component: opens the granted directories again, composes it with its middlewares,
    /// compiles it, finds its contract, checks what it imports, makes an instance to see that one
    /// can be made, and has its parts check their configuration there.
    ///
    /// A component that has to be compiled waits until no other one is compiled.
    ///
    /// # Errors
    ///
    /// It cannot serve.
    pub async fn load(&self, content: &Content) -> Result<Arc<Generation>, LoadError> {
        let turn = self.turn(content).await;
        match self.load_in(content, turn.as_ref()).await {
            Err(LoadError::NoTurn) => {
                let turn = self.turn_to_compile(content).await;
                self.load_in(content, Some(&turn)).await
            }
            loaded => loaded,
        }
    }

    /// Does the same in a `turn` that the caller has taken, which is needed to compile.
    ///
    /// # Errors
    ///
    /// It cannot serve, or has to be compiled without a turn.
    pub(crate) async fn load_in(
        &self,
        content: &Content,
        turn: Option<&Turn>,
    ) -> Result<Arc<Generation>, LoadError> {
        let opened = self.granted.open_again(PROBE).await;
        opened.map_err(|error| LoadError::Sandbox(error.to_string()))?;
        let whole = self.whole(content, turn).await?;
        let extent = Extent::of(whole.bytes());
        let (engine, code) = self.compile(&whole, &extent, turn).await?;
        let mut generation = self.link(content, engine, code, turn).await?;
        let took = self.try_start(content, &mut generation, true).await?;
        self.warn_of_slow_start(took);
        generation.warn_of_shortage();
        Ok(Arc::new(generation))
    }

    /// Loads a component without the code of its functions, to check whether it can serve as far as
    /// that can be told without its code. No function of the guest runs, not even with `preinit`.
    ///
    /// The generation takes the same room as that of a start, so that a check of the next service
    /// sees what is left.
    ///
    /// # Errors
    ///
    /// It cannot serve.
    pub(crate) async fn check_without_code(&self, content: &Content) -> Result<Arc<Generation>, LoadError> {
        let turn = self.turn_to_compile(content).await;
        self.examine_to_check(content).await?;
        content.validate()?;
        let parts = content.parts();
        parts.iter().try_for_each(check_outline)?;
        let turn = Some(&turn);
        let service = parts.last().unwrap_or(content);
        if self.preinit {
            self.check_initialiser(service, turn).await?;
        }
        let whole = if parts.len() > 1 {
            Cow::Owned(self.compose(content, service, turn).await?)
        } else {
            Cow::Borrowed(content)
        };
        let (engine, code) = self.compile_hollow(&whole, turn).await?;
        let mut generation = self.link(content, engine, code, turn).await?;
        self.try_start(content, &mut generation, false).await?;
        generation.warn_of_shortage();
        Ok(Arc::new(generation))
    }

    /// Makes a generation of what was compiled: finds its contract, and links what it imports.
    async fn link(
        &self,
        content: &Content,
        engine: Engine,
        code: Code,
        turn: Option<&Turn>,
    ) -> Result<Generation, LoadError> {
        let prepared = match &code {
            Code::Component(component) => {
                contract_of(component).and_then(|contract| prepare(&engine, component, contract))
            }
            Code::Module(module) => prepare_module(&engine, module),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(refusal) => return Err(self.of_part(content, content.refused(refusal), turn).await),
        };
        let shared = self.shared(&prepared, &code);
        let shared = shared.map_err(|refusal| content.refused(refusal))?;
        let profile = self
            .profiling
            .then(|| Profile::new(engine.engine(), content.program(), &code));
        let profile = profile
            .transpose()
            .map_err(|error| LoadError::Sandbox(line(&error)))?;
        Ok(Generation {
            configured: Vec::new(),
            is_current: AtomicBool::new(false),
            profile,
            mappings: engine.mappings(code.required().parts.memories),
            code,
            digest: content.digest,
            program: Arc::clone(content.program()),
            prepared,
            engine,
            shared,
        })
    }

    /// Composes the middlewares of `content` with `service`, which may be initialised.
    async fn compose(
        &self,
        content: &Content,
        service: &Content,
        turn: Option<&Turn>,
    ) -> Result<Content, LoadError> {
        match compose(content, service) {
            Ok(whole) => Ok(whole),
            Err(error) => Err(self.of_part(content, error, turn).await),
        }
    }

    /// Returns the error of the part whose import the host refuses. If there is no such part, returns
    /// `error`, which is about `content`.
    ///
    /// Parts that import the same interface share one import when they are composed. Only each part
    /// alone shows which of them the host refuses.
    async fn of_part(&self, content: &Content, error: LoadError, turn: Option<&Turn>) -> LoadError {
        let parts = content.parts();
        if parts.len() > 1 && error.is_about_an_import() {
            for part in parts {
                if let Err(error) = self.check_imports(part, turn).await {
                    return error;
                }
            }
        }
        error
    }

    /// Checks whether the host has what a part imports, apart from the handler that a middleware
    /// calls.
    async fn check_imports(&self, part: &Content, turn: Option<&Turn>) -> Result<(), LoadError> {
        turn.ok_or(LoadError::NoTurn)?;
        self.examine_part(part).await?;
        part.validate()?;
        let (mut engine, code) = self.compile_hollow(part, turn).await?;
        let Code::Component(component) = &code else {
            return Ok(());
        };
        let handler = engine.linker.instance(HANDLER).and_then(|mut handler| {
            handler.func_new_concurrent("handle", |_, _, _, _| {
                Box::pin(async { wasmtime::bail!("the handler is in another part") })
            })
        });
        if handler.is_err() {
            // The engine has no concurrency, so that nothing can stand for the handler.
            return Ok(());
        }
        link(&engine, component)
            .map(drop)
            .map_err(|refusal| part.refused(refusal))
    }

    /// Makes the first instance, and finds the functions by which its parts check their
    /// configuration. Calls these functions if `calls` is set. Returns how long that took.
    async fn try_start(
        &self,
        content: &Content,
        generation: &mut Generation,
        calls: bool,
    ) -> Result<Duration, LoadError> {
        let deadline = Instant::now() + FULL;
        loop {
            let opened = generation.open_to_try().await;
            let opened = opened.map_err(|error| LoadError::Sandbox(line(&error)))?;
            let transcript = Transcript::default();
            let logged = Some(Logged::kept_in(transcript.clone()));
            let store = generation.store(Speaker::Nobody, logged, None, opened);
            let start = Instant::now();
            match timeout(PROBE, generation.check_in(store, content, calls)).await {
                Ok(Ok(configured)) => {
                    generation.configured = configured?;
                    return Ok(start.elapsed());
                }
                // Whoever fills it, the component does not.
                Ok(Err(error)) if pool_is_full(&error) && Instant::now() < deadline => sleep(AGAIN).await,
                Ok(Err(error)) if pool_is_full(&error) => return Err(LoadError::Full(line(&error))),
                // It may have some the next time.
                Ok(Err(error)) if lacks_resources(&error) => return Err(LoadError::Sandbox(line(&error))),
                Ok(Err(error)) => {
                    let reason = failed(&self.granted, &error, &transcript);
                    let refused = configuration::failed_check(content, &error, &reason);
                    return Err(refused.unwrap_or_else(|| content.refused(not_started(&error, reason))));
                }
                Err(_) => return Err(content.refused(Refusal::Slow(PROBE))),
            }
        }
    }

    /// What is compiled of `content`: its service, initialised if need be, and then composed with its middlewares.
    pub(super) async fn whole<'a>(
        &self,
        content: &'a Content,
        turn: Option<&Turn>,
    ) -> Result<Cow<'a, Content>, LoadError> {
        let parts = content.parts();
        for part in parts {
            look(part.bytes()).map_err(|refusal| part.refused(refusal))?;
        }
        self.examine(content).await?;
        for part in parts {
            check_nested(part.bytes()).map_err(|refusal| part.refused(refusal))?;
            check_outline(part)?;
        }
        let service = parts.last().unwrap_or(content);
        let service = if self.preinit {
            Cow::Owned(self.initialise(service, turn).await?)
        } else {
            Cow::Borrowed(service)
        };
        if parts.len() > 1 {
            Ok(Cow::Owned(self.compose(content, &service, turn).await?))
        } else {
            Ok(service)
        }
    }

    /// Warns that the first instance took longer to start than the guest of a connection may take. That
    /// is no reason to refuse the component: the machine may have been busy.
    fn warn_of_slow_start(&self, took: Duration) {
        if let Some(max) = self.limits.max_call_time
            && took > max
        {
            warn!(
                service = self.granted.service(),
                "the first instance of the component took {} ms to start, but {} is {}: \
                 connections whose guest starts as slowly fail with `cpu-limit`; raise the limit, have the \
                 start-up code do less work, or run it at load with {}",
                took.as_millis(),
                Setting::of("limits.max-call-time"),
                humantime::format_duration(max),
                Setting::of("preinit")
            );
        }
    }

    /// The instances that connections are to share, if they are, and if they can by this contract.
    fn shared(&self, prepared: &Prepared, code: &Code) -> Result<Option<Instances>, Refusal> {
        match (self.isolation, prepared) {
            (Isolation::Connection, _) => Ok(None),
            (Isolation::Service { instances }, Prepared::Streams(pre)) => Ok(Some(Instances::new(
                pre.clone(),
                instances,
                &self.started,
                &self.shared_cost,
            ))),
            (Isolation::Service { .. }, other) => Err(Refusal::NotShared {
                found: match code {
                    Code::Component(component) => {
                        let ty = component.component_type();
                        let exports = ty.exports(component.engine()).map(|(name, _)| name);
                        other.contract().found(&exports.collect::<Vec<_>>())
                    }
                    Code::Module(_) => contract::CORE_MODULE.to_owned(),
                },
                streams: Contract::Streams.interface(),
            }),
        }
    }

    /// What a component needs of its engine. It is called on fibers, whatever it is, where not the guest alone decides what it waits
    /// for and for how long.
    pub(super) fn needs(&self, bytes: &[u8], extent: &Extent) -> Needs {
        let mut needs = Needs::of(bytes, extent);
        let Limits {
            max_call_time,
            max_cpu_time,
            ..
        } = self.limits;
        let bounded = max_call_time.is_some() && max_cpu_time.is_none();
        if !bounded || self.granted.has_dirs() || self.profiling {
            needs.calls = Calls::OnFibers;
        }
        if self.granted.has_dirs() {
            needs = needs.waiting(extent);
        }
        needs
    }

    /// Finds the engine that fits a component, whose size is `extent`.
    ///
    /// # Errors
    ///
    /// The component is too large, or the engine cannot be made. If it is not valid either, that is
    /// the error.
    pub(super) fn engine_for(&self, content: &Content, extent: &Extent) -> Result<Engine, LoadError> {
        extent.check().map_err(|refusal| content.refused(refusal))?;
        let mut needs = self.needs(content.bytes(), extent);
        needs.inlining = self.can_inline(needs, content);
        self.engine(needs).map_err(|error| {
            // One that exceeds a bound of the parser may need more than there can be.
            let invalid = content.validate().err();
            invalid.unwrap_or_else(|| LoadError::Sandbox(line(&error)))
        })
    }

    /// Compiles a component, whose size is `extent`, for the engine that fits it.
    ///
    /// # Errors
    ///
    /// It is too large, not valid, uses a proposal that the host does not offer, or cannot be
    /// compiled within the bounds.
    pub(super) async fn compile(
        &self,
        content: &Content,
        extent: &Extent,
        turn: Option<&Turn>,
    ) -> Result<(Engine, Code), LoadError> {
        let engine = self.engine_for(content, extent)?;
        let start = Instant::now();
        let kept = self
            .cache()
            .and_then(|cache| cache.get(engine.engine(), content, self.granted.service()));
        let compiled = kept.is_none();
        let code = match kept {
            Some(code) => code,
            None => self.compile_anew(&engine, content, turn).await?.code,
        };
        let duration_ms = start.elapsed().as_millis() as u64;
        let service = self.granted.service();
        debug!(service, compiled, duration_ms, "component code ready");
        Ok((engine, code))
    }
}

impl Generation {
    /// The service that it is of, if it is of one.
    pub fn service(&self) -> Option<&str> {
        self.engine.granted.service()
    }

    /// How it serves.
    pub fn contract(&self) -> Contract {
        self.prepared.contract()
    }

    /// The digest of its component.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The parts that have accepted what they are granted, as messages name them.
    pub(super) fn configured(&self) -> &[String] {
        &self.configured
    }

    /// The component or module, compiled.
    pub(super) fn code(&self) -> &Code {
        &self.code
    }

    /// Adds up what is in use of the pools of `generations`; `None` where there is no pool.
    pub(crate) fn pools<'a>(generations: impl Iterator<Item = &'a Self>) -> Option<PoolUse> {
        let mut seen: Vec<&Engine> = Vec::new();
        for Self { engine, .. } in generations {
            if seen
                .iter()
                .all(|other| !wasmtime::Engine::same(other.engine(), engine.engine()))
            {
                seen.push(engine);
            }
        }
        seen.into_iter()
            .filter_map(Engine::pool_use)
            .reduce(|sum, other| sum.plus(&other))
    }

    /// Whether the pool has room for fewer instances than there may be connections. Where
    /// connections share instances, the number of connections is not bounded by the pool.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        match self.shared {
            Some(_) => None,
            None => self.engine.shortage(self.code.required().parts),
        }
    }

    fn warn_of_shortage(&self) {
        if let Some(shortage) = self.shortage() {
            warn!(service = self.service(), "{shortage}");
        }
    }

    /// Memory mappings that its connections take while their instances live.
    pub fn mappings(&self) -> Mappings {
        self.mappings
    }

    /// A store for an instance that writes to standard error as `speaker`, of which so many lines
    /// were `logged` if it is not the first, and that notes there what it costs. The instance has
    /// the directories that were `opened` for it.
    pub(super) fn store(
        &self,
        speaker: Speaker,
        logged: Option<Logged>,
        cost: Option<&Arc<Cost>>,
        opened: Opened,
    ) -> Store<State> {
        let mut store = State::store(&self.engine, &self.program, speaker, logged, cost, opened);
        if let Some(profile) = &self.profile {
            profile.watch(&mut store);
        }
        store
    }

    /// Takes the granted directories for one instance. This may wait for other guests.
    ///
    /// # Errors
    ///
    /// The host cannot give it what is granted.
    pub(super) async fn open(&self) -> wasmtime::Result<Opened> {
        self.engine.granted.open().await
    }

    /// The same, but gives up after `max`.
    ///
    /// # Errors
    ///
    /// As with [`Generation::open`].
    pub(super) async fn open_within(&self, max: Duration) -> wasmtime::Result<Opened> {
        self.engine.granted.open_within(max).await
    }

    /// The same for an instance that is only tried. A program finds its directories when it runs.
    async fn open_to_try(&self) -> wasmtime::Result<Opened> {
        if self.contract() == Contract::Cli {
            Ok(None)
        } else {
            self.open_within(PROBE).await
        }
    }

    /// Whether the log shows the backtrace of each guest that fails, since it is granted
    /// `RUST_BACKTRACE`.
    pub fn has_backtraces(&self) -> bool {
        self.engine.granted.has_backtraces()
    }

    /// How often its guests were looked at, where the sandbox does so.
    pub fn looks(&self) -> u64 {
        self.profile.as_ref().map_or(0, Profile::count)
    }

    /// Writes what was seen of its guests, in the form that the profiler of Firefox reads.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write_profile(&self, output: impl Write) -> anyhow::Result<()> {
        match &self.profile {
            Some(profile) => Ok(profile.write(output)?),
            None => Ok(()),
        }
    }

    /// Makes an instance and drops it.
    ///
    /// # Errors
    ///
    /// It traps at its start, wants more than it may have, or its exports have other types than the contract.
    pub async fn probe(&self) -> wasmtime::Result<()> {
        let opened = self.open_to_try().await?;
        let mut store = self.store(Speaker::Nobody, None, None, opened);
        let files = store.data().open_files();
        let probe = on(files, self.prepared.probe(&mut store));
        self.engine.ticker.run(probe).await.map(drop)
    }

    /// Makes an instance in `store`, and finds the functions by which the parts of `content` check
    /// their configuration. Calls these functions if `calls` is set, and returns the names of the
    /// parts that accept it.
    async fn check_in(
        &self,
        mut store: Store<State>,
        content: &Content,
        calls: bool,
    ) -> wasmtime::Result<Result<Vec<String>, LoadError>> {
        let files = store.data().open_files();
        let checked = on(files, async {
            let Some(instance) = self.prepared.probe(&mut store).await? else {
                return Ok(Ok(Vec::new()));
            };
            match configuration::checks(content, &mut store, &instance) {
                Ok(checks) if calls => configuration::call(checks, &mut store).await,
                checks => Ok(checks.map(|_| Vec::new())),
            }
        });
        self.engine.ticker.run(checked).await
    }

    /// It serves new connections from now on, or not: then instances that connections share end
    /// with the last of these, unless it serves new ones again before.
    pub fn set_current(&self, current: bool) {
        if self.is_current.swap(current, Relaxed) != current {
            self.engine.serves(current);
        }
        if let Some(instances) = &self.shared {
            instances.set_current(current);
        }
    }

    /// Gives the connections to come another instance than those before, where connections share one.
    pub fn renew(&self) {
        if let Some(instances) = &self.shared {
            instances.renew();
        }
    }

    /// Its connections, where they share instances.
    pub(crate) fn sharing(&self) -> Option<Arc<Neighbours>> {
        let shared = self.shared.as_ref()?;
        Some(Arc::clone(&shared.neighbours))
    }

    /// Returns whether the host sees all time that passes for its guests: they are sessions, whose
    /// timers belong to the host, and import no clock.
    pub fn waits_by_timers_alone(&self) -> bool {
        let Code::Component(component) = &self.code else {
            return false;
        };
        let component = component.component_type();
        let mut imports = component.imports(self.engine.engine());
        self.contract() == Contract::Sessions && !imports.any(|(name, _)| name.starts_with("wasi:clocks/"))
    }

    /// Whether its sessions can move to another generation, or be taken from one.
    pub fn migrates(&self) -> bool {
        self.prepared.migrates()
    }
}

#[cfg(test)]
impl Generation {
    /// Takes all memory away, so that no further instance can be made.
    pub(crate) fn starve(&mut self) {
        self.engine.limits.max_memory = 0;
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("contract", &self.contract())
            .finish_non_exhaustive()
    }
}

/// Tells what is no component by its first bytes: magic number, version and layer.
pub(super) fn look(bytes: &[u8]) -> Result<(), Refusal> {
    match bytes {
        [] => Err(Refusal::Empty),
        [b'\0', b'a', b's', b'm', ..] => Ok(()),
        _ => Err(Refusal::NotWasm {
            found: file_format::of(bytes),
        }),
    }
}

/// Finds the contract that a component exports.
pub(super) fn contract_of(component: &Component) -> Result<Contract, Refusal> {
    let engine = component.engine();
    let ty = component.component_type();
    let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
    find_contract(&exports)
}

/// Finds the contract among the names that a component exports.
fn find_contract(exports: &[&str]) -> Result<Contract, Refusal> {
    if let Some(contract) = Contract::ALL
        .into_iter()
        .find(|contract| contract.export(exports).is_some())
    {
        return Ok(contract);
    }
    if let Some(found) = exports
        .iter()
        .find(|name| name.starts_with(Contract::Cli.interface()))
    {
        return Err(Refusal::OtherWasi {
            does: "exports",
            found: (*found).to_owned(),
        });
    }
    if let Some(found) = exports.iter().find(|name| is_other_version(name)) {
        return Err(other_version("exports", found));
    }
    if let Some(found) = exports.iter().find(|name| name.starts_with("wasi:http/")) {
        return Err(Refusal::HttpHandler {
            found: (*found).to_owned(),
            streams: Contract::Streams.interface(),
        });
    }
    let found = match exports {
        [] => "nothing".to_owned(),
        some => some
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", "),
    };
    Err(Refusal::NoContract {
        found,
        streams: Contract::Streams.interface(),
        sessions: Contract::Sessions.interface(),
        cli: Contract::Cli.interface(),
    })
}

/// Checks whether an interface belongs to another version of the package of the contracts.
fn is_other_version(name: &str) -> bool {
    let version = name
        .strip_prefix(contract::PACKAGE)
        .and_then(|name| name.split_once('@'));
    version.is_some_and(|(_, version)| version != contract::VERSION)
}

/// Says that a component `does` import or export an interface of such a version.
fn other_version(does: &'static str, found: &str) -> Refusal {
    Refusal::OtherVersion {
        does,
        found: found.to_owned(),
        expected: contract::VERSION,
    }
}

/// Links a component to what the host offers, and looks up what its contract exports.
fn prepare(engine: &Engine, component: &Component, contract: Contract) -> Result<Prepared, Refusal> {
    let pre = link_whole(engine, component)?;
    Prepared::new(contract, pre).map_err(|error| Refusal::Types(mismatch::difference(&error)))
}

/// Links a component to what the host offers, unless the component is a middleware.
pub(super) fn link_whole(engine: &Engine, component: &Component) -> Result<InstancePre<State>, Refusal> {
    let ty = component.component_type();
    let handler = ty.get_import(component.engine(), HANDLER);
    if handler.is_some_and(|import| matches!(import.ty, ComponentItem::ComponentInstance(_))) {
        return Err(Refusal::Middleware(HANDLER));
    }
    link(engine, component)
}

/// Links a component to what the host offers.
fn link(engine: &Engine, component: &Component) -> Result<InstancePre<State>, Refusal> {
    let ty = component.component_type();
    engine.linker.instantiate_pre(component).map_err(|error| {
        ty.imports(component.engine())
            .find_map(|(name, _)| wasi::not_provided(name))
            .unwrap_or_else(|| refused_import(component, &error))
    })
}

/// Returns why the linker refuses an import: it lacks it, or has it with another type.
fn refused_import(component: &Component, error: &wasmtime::Error) -> Refusal {
    let is_missing = error
        .root_cause()
        .to_string()
        .ends_with("implementation is missing");
    let Some((import, item)) = mismatch::refused_import(error) else {
        return Refusal::Import(line(error));
    };
    let name = match &item {
        Some(item) => format!("`{item}` of `{import}`"),
        None => format!("`{import}`"),
    };
    if is_missing && is_other_version(&import) {
        return other_version("imports", &import);
    }
    if is_missing {
        return Refusal::Import(name);
    }
    let found = mismatch::imported_type(component, &import, item.as_deref());
    Refusal::ImportType {
        name,
        found: found.map_or_else(String::new, |found| format!(" as `{found}`")),
        difference: mismatch::difference(error),
        wit: wasi::wit_of(&import),
    }
}

/// Links a core module to what WASI preview 1 has, and looks up what runs it.
fn prepare_module(engine: &Engine, module: &Module) -> Result<Prepared, Refusal> {
    let pre = link_module(engine, module)?;
    Prepared::of_module(pre).map_err(|reason| Refusal::NoProgram(reason.to_owned()))
}

/// Links a core module to what WASI preview 1 has.
pub(super) fn link_module(engine: &Engine, module: &Module) -> Result<wasmtime::InstancePre<State>, Refusal> {
    if module.imports().any(|import| import.module() == OLD_PREVIEW) {
        return Err(Refusal::OldPreview(OLD_PREVIEW));
    }
    engine.link(module).map_err(|error| not_linked(module, &error))
}

/// Returns why a core module could not be linked.
fn not_linked(module: &Module, error: &wasmtime::Error) -> Refusal {
    if let Some(import) = error.downcast_ref::<UnknownImportError>() {
        return Refusal::NoProgram(format!(
            "it imports `{}` of `{}`, which preview 1 does not have",
            import.name(),
            import.module()
        ));
    }
    match mismatch::in_module(module, error) {
        Some((import, found, expected)) => Refusal::ModuleImport {
            name: format!("`{}` of `{}`", import.name(), import.module()),
            found,
            expected,
        },
        None => Refusal::NoProgram(line(error)),
    }
}

/// Returns why a guest failed at its load: its error, and the last lines of its standard error.
/// Logs its backtrace.
pub(super) fn failed(granted: &Granted, error: &wasmtime::Error, transcript: &Transcript) -> String {
    if error.is::<WasmBacktrace>() {
        let (service, trace) = (granted.service(), names::trace(error));
        if granted.has_backtraces() {
            info!(service, %trace, "the guest failed at its load");
        } else {
            debug!(service, %trace, "the guest failed at its load");
        }
    }
    let reason = line(error);
    match transcript.in_brief() {
        Some(output) => format!("{reason}; standard error: {output}"),
        None => reason,
    }
}

/// Returns why an instance could not be made, with the `reason` of a guest that failed.
fn not_started(error: &wasmtime::Error, reason: String) -> Refusal {
    if error.is::<OtherTypes>() {
        return Refusal::Types(mismatch::difference(error));
    }
    let error = line(error);
    let too_large = ["exceeds memory limits", "exceeds table limits"];
    if too_large.iter().any(|what| error.contains(what)) {
        Refusal::Memory(error)
    } else {
        Refusal::Start(reason)
    }
}

/// An error with its causes in one line, without wasmtime's list of frames.
pub(super) fn line(error: &wasmtime::Error) -> String {
    let text = if error.is::<WasmBacktrace>() {
        error.root_cause().to_string()
    } else {
        format!("{error:#}")
    };
    names::demangled(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::content::ECHO;
    use super::*;

    #[test]
    fn what_is_no_component_is_told_by_its_first_bytes() {
        assert!(matches!(look(b""), Err(Refusal::Empty)));
        assert!(matches!(look(b"\x7fELF"), Err(Refusal::NotWasm { found }) if found == "an ELF file"));
        assert!(look(ECHO).is_ok());
    }

    /// The file may be a key or a list of passwords.
    #[test]
    fn no_byte_of_another_file_is_shown() {
        for bytes in [
            &b"s3cr3t\n"[..],
            b"s3cr3t",
            b"\xffs3cr3t",
            b"#!s3cr3t",
            b"{s3cr3t",
            b"<?xml s3cr3t",
            b"(component s3cr3t",
            b"-----BEGIN s3cr3t",
        ] {
            let message = look(bytes).unwrap_err().to_string();
            assert!(
                message.contains("is not WebAssembly") && !message.contains("s3c"),
                "{message}"
            );
        }
    }

    #[test]
    fn another_version_and_http_have_sentences_of_their_own() {
        let refused = |export| find_contract(&[export]).unwrap_err().to_string();
        for export in ["wasi:http/incoming-handler@0.2.6", "wasi:http/handler@0.3.0"] {
            let message = refused(export);
            assert!(
                message.starts_with(&format!(
                    "exports `{export}`, but this host serves no HTTP components"
                )),
                "{message}"
            );
        }
        let message = refused("inet:service/handler@0.2.0");
        assert!(
            message.starts_with("exports `inet:service/handler@0.2.0`, but this host serves version 0.1.0"),
            "{message}"
        );
    }
}
