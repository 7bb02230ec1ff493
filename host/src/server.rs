//! The server: the services that run, from the start to the drain.

use std::future::pending;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::{join_all, select_all};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::acceptor::{self, Acceptor};
use crate::admin::{self, CurrentToken, measures};
use crate::admission::Admission;
use crate::config::{Config, Service};
use crate::file::Text;
use crate::generations::{Closed, Overtaken};
use crate::listener::Listener;
use crate::logging::READY;
use crate::peer::End;
use crate::preflight::{self, Obstacles, Purpose};
use crate::reread::{self, Listening, Now, Plan, Planner, Runs};
use crate::running::Running;
use crate::sandbox::{Compiler, Program};
use crate::service::{Loaded, NotLoaded, Process};
use crate::service_manager;
use crate::shutdown::{Changes, Notice, Signals};
use crate::system;
use crate::telemetry::{self, Telemetry};
use crate::terminal::Terminal;

/// How long connections that were cut at the end of a drain may take to be gone.
const CUT: Duration = Duration::from_secs(1);

/// How long it may take to prepare a change of the services.
const PLAN: Duration = Duration::from_secs(600);

/// A request for a change of the services, by SIGHUP.
#[derive(Debug)]
struct Request {
    asked: Instant,
    /// Loads the admin token again, if there is one.
    token: Option<JoinHandle<()>>,
}

/// The services that run.
struct Server {
    /// What runs: what was asked for last, but for what takes a restart.
    config: Config,
    process: Arc<Process>,
    /// In the order of `config`.
    running: Vec<Running>,
    /// What has admitted the connections of services that were removed, by name, while some are
    /// open.
    removed: Vec<(String, Admission)>,
    /// Makes the plans.
    planner: Arc<Planner>,
    /// Compiles components.
    program: Program,
    /// Accepted by the admin interface, if it accepts one.
    token: Option<CurrentToken>,
}

/// Loads what `config` says, which comes from `file` or from flags, listens, and serves connections until told to stop; then
/// drains.
///
/// The first signal that asks to stop begins the drain, unless it has begun, and the second ends
/// it.
///
/// # Errors
///
/// A component cannot serve, an address cannot be listened at, a task that accepts connections fails, or conversations
/// cannot be recorded.
pub async fn serve(
    config: Config,
    file: Option<Text>,
    terminal: Option<Terminal>,
    program: Program,
) -> anyhow::Result<Drained> {
    let (mut server, mut signals) = Server::start(config, terminal.is_some(), file.as_ref(), program).await?;
    let file = file.map(|file| file.path().to_owned());
    server.ready();
    let process = Arc::clone(&server.process);
    let measuring = process.telemetry.as_ref().and_then(|telemetry| {
        let process = Arc::clone(&process);
        telemetry.measure(move || measures::read(&process))
    });
    let drained = match terminal {
        None => server.run(file, &mut signals).await,
        Some(mut terminal) => {
            terminal.show_services(&process.services.load());
            let watch = terminal.clone().watch(Arc::clone(&process));
            let drained = tokio::select! {
                drained = server.run(file, &mut signals) => drained,
                never = watch => never,
            };
            terminal.clear();
            drained
        }
    };
    if let Some(measuring) = measuring {
        measuring.abort();
    }
    if let Some(telemetry) = &process.telemetry {
        match drained {
            Ok(Drained::Quit) => telemetry.quit(),
            Ok(Drained::Done) | Err(_) => telemetry.end(&measures::read(&process)).await,
        }
    }
    drained
}

impl Server {
    /// Serves until told to stop, and then drains.
    async fn run(&mut self, file: Option<PathBuf>, signals: &mut Signals) -> anyhow::Result<Drained> {
        // A plan is made while all goes on, one at a time.
        let mut planning: Option<JoinHandle<anyhow::Result<Plan>>> = None;
        let mut again = None;
        let process = Arc::clone(&self.process);
        // Whether a signal that asks to stop begins the drain.
        let signalled = loop {
            let planned = async {
                match &mut planning {
                    Some(planning) => planning
                        .await
                        .context("the task that reads the services file failed")
                        .flatten(),
                    None => pending().await,
                }
            };
            tokio::select! {
                notice = signals.next() => match (notice, &file) {
                    (Notice::Stop(signal), _) => {
                        info!(signal, "stop requested");
                        service_manager::stopping(self.process.connections.len());
                        break true;
                    }
                    (Notice::Abandoned, _) => {
                        info!("stop requested: the terminal of the host was closed");
                        break false;
                    }
                    (Notice::Reload, Some(_)) if planning.is_some() => again = Some(self.request()),
                    (Notice::Reload, Some(file)) => planning = Some(self.plan(file, self.request())),
                    (Notice::Reload, None) => {
                        service_manager::reloading();
                        let Request { asked, .. } = self.request();
                        self.running.iter().for_each(|running| running.reload(asked));
                        self.ready();
                    }
                    (Notice::GoBack, _) => {
                        // Of a reload and a rollback, the one that was requested last counts.
                        again = None;
                        if let Some(planning) = planning.take() {
                            planning.abort();
                            warn!(
                                "reconfiguration given up: SIGUSR2 requested a rollback meanwhile; nothing \
                                 changed; send SIGHUP again to apply the services file"
                            );
                            self.ready();
                        }
                        self.go_back();
                    }
                },
                () = process.drain.notified() => {
                    service_manager::stopping(process.connections.len());
                    break false;
                }
                plan = planned => {
                    match plan.and_then(|plan| self.still_holds(plan)) {
                        Ok(plan) => self.change(plan).await?,
                        Err(error) => warn!("reconfiguration failed: {error:#}; nothing changed"),
                    }
                    self.ready();
                    let request = file.as_ref().zip(again.take());
                    planning = request.map(|(file, request)| self.plan(file, request));
                }
                () = self.failed() => bail!(
                    "an accept loop failed and the host stops; earlier log lines show the cause"
                ),
            }
        };
        self.process.draining.store(true, Relaxed);
        // A component that is loaded now would serve no connection.
        self.running.iter().for_each(Running::keep_generation);
        let reloading = self.running.iter_mut().map(Running::stop_reloading);
        // The process may end soon. Before that, the log says which reloads are given up.
        let _ = timeout(CUT, join_all(reloading)).await;
        if let Some(planning) = planning {
            planning.abort();
            warn!("reconfiguration given up: the host drains; nothing changed");
        }
        // With them go the listeners, so that clients are refused during the drain.
        for running in &mut self.running {
            if let Ok(acceptor) = running.pause().await {
                let (mut admission, listeners) = acceptor.into_parts();
                acceptor::close(listeners, &mut admission, &running.service).await;
            }
        }
        let drained = tokio::select! {
            // First, so that the log says what becomes of signals that came before.
            biased;
            signal = second_signal(signals, signalled) => {
                let connections = self.process.connections.len();
                warn!(signal, connections, "second signal: stopping at once");
                Drained::Quit
            }
            drained = drain(&self.process, self.config.drain_timeout) => drained,
        };
        Ok(drained)
    }

    /// Loads, binds and starts the services of `config`, which comes from `file` or from flags.
    async fn start(
        config: Config,
        watched: bool,
        file: Option<&Text>,
        program: Program,
    ) -> anyhow::Result<(Self, Signals)> {
        let (listen, admin_listen) = if file.is_some() {
            (preflight::KEY, preflight::ADMIN_KEY)
        } else {
            ("--listen", "--admin")
        };
        // They are no reason to end, whatever is being loaded.
        let changes = Changes::new().context("cannot install the signal handlers")?;
        system::raise_descriptors(&config, admin::DESCRIPTORS);
        let telemetry = config.otlp.as_ref().map(Telemetry::start).transpose()?;
        // Metrics are of connections that are open too.
        let observed = watched || config.admin.is_some() || telemetry.is_some();
        let process = Arc::new(Process::new(observed, telemetry));
        let mut obstacles = Obstacles::default();
        let mut current_token = None;
        let mut admin_started = None;
        // First, so that it can be asked whether the host is ready.
        if preflight::check_admin(&config, admin_listen, &mut obstacles)
            && let Some(admin) = &config.admin
        {
            let token = admin.token.as_deref().map(CurrentToken::load).transpose();
            if let Some(token) = obstacles.note("admin.token", None, token) {
                current_token = token;
                let token = current_token.clone();
                let started = admin::start(admin, token, admin_listen, &process);
                admin_started = obstacles.note("admin.listen", None, started);
            }
        }
        let compiler = Compiler::of(&config, &program, file.map(Text::path));
        let purpose = Purpose::Listen(listen);
        let found = preflight::find(
            config.services.iter().enumerate(),
            file,
            &compiler,
            purpose,
            &mut obstacles,
        );
        obstacles.end(file)?;
        // Of what follows, the first obstacle ends the start.
        let not_loaded = |index, service, NotLoaded { key, error }| {
            Obstacles::only(file, format!("service[{index}].{key}"), Some(service), error)
        };
        let mut loaded = Vec::new();
        for ((index, unloaded), service) in found.services.into_iter().zip(&config.services) {
            let one = Loaded::new(unloaded).await;
            loaded.push(one.map_err(|error| not_loaded(index, service, error))?);
        }
        system::check_mappings(None, loaded.iter().filter_map(Loaded::mappings));
        let mut acceptors = Vec::new();
        for (index, (service, prepared)) in config.services.iter().zip(found.listeners).enumerate() {
            let listeners = prepared.into_iter().enumerate().map(|(number, prepared)| {
                let key = format!("service[{index}].listen[{number}]");
                prepared
                    .bind()
                    .map_err(|error| Obstacles::only(file, key, Some(service), error))
            });
            let admission = Admission::new(&service.limits);
            acceptors.push(Acceptor::new(admission, listeners.collect::<Result<_, _>>()?));
        }
        for (index, (one, service)) in loaded.iter_mut().zip(&config.services).enumerate() {
            one.record().map_err(|error| not_loaded(index, service, error))?;
        }
        // Until here a signal to stop ends the host at once, as it does by default.
        let signals = Signals::new(changes).context("cannot install the signal handlers")?;
        if let Some(admin) = admin_started {
            admin.announce();
        }
        if let Some(otlp) = &config.otlp {
            telemetry::announce(otlp);
        }
        let started = loaded.into_iter().zip(acceptors).map(|(loaded, acceptor)| {
            let listeners = addresses(acceptor.listeners());
            (Running::start(loaded, None, acceptor, &process), listeners)
        });
        let (running, listeners): (_, Vec<_>) = started.unzip();
        let server = Self {
            config,
            process,
            running,
            removed: Vec::new(),
            planner: Arc::new(Planner::new()),
            program,
            token: current_token,
        };
        // Who reads that it listens finds it ready.
        server.show();
        for (service, listeners) in server.config.services.iter().zip(listeners) {
            say_where(&service.name, &listeners);
        }
        Ok((server, signals))
    }

    /// Has others see the services that run.
    fn show(&self) {
        let services = self.running.iter().map(|running| Arc::clone(&running.service));
        self.process.services.store(Arc::new(services.collect()));
    }

    /// Waits until a task that accepts connections has failed: none ends by itself.
    async fn failed(&mut self) {
        let acceptors = self.running.iter_mut().map(|running| &mut running.acceptor);
        // What it has to say of that is in the log.
        let _ = select_all(acceptors).await;
    }

    /// Makes the plan that `request` asks for, from what `file` says.
    fn plan(&self, file: &Path, request: Request) -> JoinHandle<anyhow::Result<Plan>> {
        service_manager::reloading();
        let file = file.to_owned();
        let now = Now {
            asked: request.asked,
            config: self.config.clone(),
            services: self.running.iter().map(Runs::of).collect(),
        };
        for running in &self.running {
            running.service.reload.forget();
        }
        let (runtime, program) = (Handle::current(), self.program.clone());
        let planner = Arc::clone(&self.planner);
        // Compiling takes a thread for as long as it takes.
        let given_up = CancellationToken::new();
        let ended = given_up.clone().drop_guard();
        tokio::spawn(async move {
            if let Some(token) = request.token {
                // The plan checks the file, which may be missing until it is loaded.
                let _ = token.await;
            }
            let _ended = ended;
            let plan = {
                let planner = Arc::clone(&planner);
                move || {
                    let plan = reread::plan(&file, &now, &planner, &program);
                    let plan = runtime.block_on(given_up.run_until_cancelled(plan));
                    plan.unwrap_or_else(|| bail!("it was given up"))
                }
            };
            planner.make(PLAN, plan).await
        })
    }

    /// Tells the service manager that all is in order.
    fn ready(&self) {
        let listeners = self.running.iter().map(|running| running.entrances.len()).sum();
        service_manager::ready(self.running.len(), listeners);
    }

    /// Starts what SIGHUP does first, whatever the services file says: loads the admin token again.
    fn request(&self) -> Request {
        let token = self.token.clone();
        Request {
            asked: Instant::now(),
            token: token.map(|token| tokio::spawn(async move { token.reload().await })),
        }
    }

    fn go_back(&self) {
        for running in &self.running {
            // The log says if there is none.
            let _ = running.service.generations.go_back("requested by SIGUSR2");
        }
    }

    /// Checks that no rollback was requested since `plan` was, and that no component of it was
    /// rolled back since the planning began.
    ///
    /// # Errors
    ///
    /// One was. To carry the plan out would undo the rollback.
    fn still_holds(&self, plan: Plan) -> anyhow::Result<Plan> {
        let mut services = self.running.iter().map(|running| &running.service);
        let overtaken = services.find(|service| service.generations.is_rollback_requested(plan.asked));
        if let Some(service) = overtaken {
            bail!("service `{}`: {}", service.config.name, Overtaken::ByRequest);
        }
        for (service, planned) in plan.config.services.iter().zip(&plan.services) {
            // An operator who insists knows of a rollback.
            let loaded = planned.loaded.as_ref().filter(|loaded| !loaded.insisted);
            let digest = loaded.map(|loaded| *loaded.generation.digest());
            let mut running = self.running.iter().map(|running| &running.service);
            let running = running.find(|running| running.config.name == service.name);
            let left = running.and_then(|running| running.generations.left());
            if let Some(running) = running
                && left.is_some_and(|left| Some(left.digest) == digest)
            {
                running.counts().rejected.one_more();
                bail!("service `{}`: {}", service.name, Overtaken::ByRollback);
            }
        }
        Ok(plan)
    }

    /// Comes to what `plan` says. Connections that are open go on with what they have.
    async fn change(&mut self, plan: Plan) -> anyhow::Result<()> {
        let config = plan.running(&self.config);
        for (service, address) in &plan.recreated {
            info!(
                service,
                "the file of {address} was removed or replaced; the host created it again"
            );
        }
        let mut admissions = Vec::new();
        let mut listeners = Vec::new();
        for running in &mut self.running {
            let (admission, of_service) = running.pause().await?.into_parts();
            admissions.push(Some(admission));
            listeners.push(of_service.into_iter().map(Some).collect::<Vec<_>>());
        }
        let mut planned = Vec::new();
        for service in plan.services {
            let mut own = Vec::new();
            let mut bound = Vec::new();
            for listening in service.listeners {
                own.extend(match listening {
                    Listening::New(listener) => {
                        bound.push(listener.local());
                        Some(listener)
                    }
                    Listening::Kept(of, number, entrance) => {
                        let kept = listeners.get_mut(of).and_then(|of| of.get_mut(number)?.take());
                        kept.map(|mut listener| {
                            listener.enter_by(entrance);
                            listener
                        })
                    }
                });
            }
            planned.push((service.loaded, service.sandbox, own, bound));
        }
        // Listeners that are no more are closed for the services that had them, within their limits.
        for ((running, listeners), admission) in self.running.iter().zip(listeners).zip(&mut admissions) {
            if let Some(admission) = admission {
                acceptor::close(listeners.into_iter().flatten(), admission, &running.service).await;
            }
        }
        let mut before: Vec<Option<Running>> = mem::take(&mut self.running).into_iter().map(Some).collect();
        for (service, (loaded, sandbox, own, bound)) in plan.config.services.iter().zip(planned) {
            let index = self
                .config
                .services
                .iter()
                .position(|before| before.name == service.name);
            let old = index.and_then(|index| before.get_mut(index)?.take());
            let admission = match index.and_then(|index| admissions.get_mut(index)?.take()) {
                Some(mut admission) => {
                    admission.change(&service.limits);
                    admission
                }
                None => self.admission_of(service),
            };
            let acceptor = Acceptor::new(admission, own);
            let running = match (loaded, old) {
                (None, Some(mut running)) => {
                    running.service.access.store(Arc::new(service.access.clone()));
                    let others = service.grants.writable_by_others.clone();
                    running.sandbox().others_may_write_to(others);
                    running.accept(acceptor);
                    if let Some(sandbox) = sandbox {
                        running.load_by(sandbox);
                    }
                    // Listeners that stay have been told to read their certificates.
                    running.reload_component(plan.asked);
                    running
                }
                (Some(loaded), old) => {
                    let before = old.as_ref().map(|old| &*old.service);
                    let running = Running::start(loaded, before, acceptor, &self.process);
                    let service = &service.name;
                    let generation = running.service.generations.current().number;
                    match old {
                        Some(old) => {
                            // Its connections that still send a PROXY header or shake hands.
                            let access = &running.service.config.access;
                            old.service.access.store(Arc::new(access.clone()));
                            // Further requests are refused until others see the new service.
                            old.service.reload.close(Closed::Replaced);
                            if old.service.reload.is_new() {
                                // The file may have changed since it was read for this change.
                                running.reload_component(Instant::now());
                            }
                            old.sandbox().follow(&running.sandbox());
                            old.service.generations.succeed(&running.service.generations);
                            old.end();
                            info!(
                                service,
                                generation, "service changed; new connections use the new settings"
                            );
                        }
                        None => info!(service, "service added"),
                    }
                    running
                }
                // Only what runs is not loaded.
                (None, None) => continue,
            };
            say_where(&service.name, &bound);
            self.running.push(running);
        }
        for (service, admission) in self.config.services.iter().zip(admissions) {
            let left = admission.filter(|admission| !admission.is_unused());
            self.removed
                .extend(left.map(|admission| (service.name.clone(), admission)));
        }
        for gone in before.into_iter().flatten() {
            let service = &gone.service.config.name;
            info!(service, "service removed; its open connections continue");
            gone.end();
        }
        self.config = config;
        self.show();
        info!(services = self.running.len(), "services reconfigured");
        Ok(())
    }

    /// Returns what admits the connections of a new service. Connections of a service of that name
    /// which was removed, and which are still open, count.
    fn admission_of(&mut self, service: &Service) -> Admission {
        self.removed.retain(|(_, admission)| !admission.is_unused());
        let removed = self.removed.iter().position(|(name, _)| *name == service.name);
        match removed.map(|removed| self.removed.swap_remove(removed)) {
            Some((_, mut admission)) => {
                admission.change(&service.limits);
                admission
            }
            None => Admission::new(&service.limits),
        }
    }
}

fn addresses(listeners: &[Listener]) -> Vec<End> {
    listeners.iter().map(Listener::local).collect()
}

fn say_where(service: &str, addresses: &[End]) {
    for address in addresses {
        info!(target: READY, service, "listening on {address}");
    }
}

/// How a drain came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every connection that was open has ended or was closed in time.
    Done,
    /// It was told not to go on.
    Quit,
}

/// Waits during a drain for the second signal that asks to stop, and returns its name. The first
/// one has begun the drain if the host was `signalled`, and otherwise changes nothing: a service
/// manager sends it to a host that drains because of a request.
async fn second_signal(signals: &mut Signals, mut signalled: bool) -> &'static str {
    loop {
        match signals.next().await {
            Notice::Stop(signal) if signalled => return signal,
            Notice::Stop(signal) => {
                signalled = true;
                info!(
                    signal,
                    "stop requested: the host is draining already; a second signal stops it at once"
                );
            }
            Notice::Reload => warn!("SIGHUP reloads nothing: the host drains and accepts no connections"),
            Notice::GoBack => warn!("SIGUSR2 rolls nothing back: the host drains and accepts no connections"),
            // A terminal that is closed can send several SIGHUPs.
            Notice::Abandoned => {}
        }
    }
}

async fn drain(process: &Process, limit: Duration) -> Drained {
    process.connections.close();
    info!(
        connections = process.connections.len(),
        timeout = %humantime::format_duration(limit),
        "draining: the listeners are closed"
    );
    if tokio::time::timeout(limit, process.connections.wait())
        .await
        .is_ok()
    {
        info!(closed = 0, "drained");
        return Drained::Done;
    }
    let closed = process.connections.len();
    process.cut.cancel();
    if tokio::time::timeout(CUT, process.connections.wait())
        .await
        .is_err()
    {
        warn!(
            connections = process.connections.len(),
            "connections that do not close end with the process"
        );
    }
    info!(
        closed,
        "drained: the drain timeout ended the remaining connections"
    );
    Drained::Done
}
