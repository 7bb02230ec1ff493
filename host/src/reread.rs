//! A configuration file that is read again: what of it is new, and how the services that run come to be those that it names.
//!
//! First all is made that could fail, while everything goes on as before: components are loaded, addresses bound. Only
//! then does anything change, and that cannot fail. A listener that stays is handed on and never closed, so that what
//! connects in between waits in its backlog.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::admin;
use crate::config::{Access, Address, Admin, Config, Grants, Listen, Service, SocketOptions, excludes};
use crate::file::Text;
use crate::file_work::{FileWork, NotDone, READ};
use crate::generations::{INSIST, Left};
use crate::listener::{self, Entrance, Listener, Prepared};
use crate::preflight::{self, Obstacles, Purpose, Unloaded};
use crate::reload::{pass_gate, read_gate, time_to_load};
use crate::running::Running;
use crate::sandbox::{Compiler, Generation, Program, Sandbox};
use crate::service::{Loaded, NotLoaded, Service as Serving};
use crate::system;

/// How long reading all that a service needs may take.
const FIND: Duration = Duration::from_secs(60);

/// How long looking for the directories of a service may take that stays as it is, and working on
/// the files of the listeners of a service.
const LOOK: Duration = Duration::from_secs(10);

/// What runs when a plan is made.
#[derive(Debug)]
pub(crate) struct Now {
    /// When the plan was requested.
    pub(crate) asked: Instant,
    pub(crate) config: Config,
    /// The services, in the order of `config`.
    pub(crate) services: Vec<Runs>,
}

/// A service that runs when a plan is made.
#[derive(Debug)]
pub(crate) struct Runs {
    service: Arc<Serving>,
    entrances: Vec<Arc<Entrance>>,
    sandbox: Arc<Sandbox>,
    /// The content that it was rolled back from.
    left: Option<Left>,
}

impl Runs {
    pub(crate) fn of(running: &Running) -> Self {
        Self {
            service: Arc::clone(&running.service),
            entrances: running.entrances.clone(),
            sandbox: running.sandbox(),
            left: running.service.generations.left(),
        }
    }
}

impl Now {
    /// The service called `name`, with its settings.
    fn service(&self, name: &str) -> Option<(&Service, &Runs)> {
        let mut services = self.config.services.iter().zip(&self.services);
        services.find(|(service, _)| service.name == name)
    }

    /// Counts that a component was refused which the service called `name` was to have, if it runs.
    fn count_rejected(&self, name: &str) {
        if let Some((_, runs)) = self.service(name) {
            runs.service.counts().rejected.one_more();
        }
    }
}

/// What the files of a service come to.
#[derive(Debug, Default)]
struct Found {
    /// A service that is new or has changed.
    unloaded: Option<Unloaded>,
    /// What loads the components of a service that stays as it is, if that changes.
    sandbox: Option<Arc<Sandbox>>,
}

/// Makes plans, one after another, and does their work on files.
///
/// It outlives the plans: what hangs keeps one thread, however often the configuration is read, and
/// whether a plan is given up or not.
#[derive(Debug)]
pub(crate) struct Planner {
    /// The work on the files of each service, by its name.
    services: Mutex<HashMap<String, Arc<WorkMutex>>>,
    /// The work on the files of the listeners of each service, by its name. A directory of a service
    /// that does not answer keeps no listener from being changed.
    listeners: Mutex<HashMap<String, Arc<WorkMutex>>>,
    /// The thread of the last plan, which may still run.
    plans: WorkMutex,
    /// The last step of the last plan, as messages name it, such as "reading the admin token".
    step: Mutex<String>,
}

/// Work on files, locked while it is waited for. Whoever gives up the wait leaves it as it is.
type WorkMutex = tokio::sync::Mutex<FileWork>;

impl Planner {
    pub(crate) fn new() -> Self {
        Self {
            services: Mutex::default(),
            listeners: Mutex::default(),
            plans: WorkMutex::new(FileWork::named("plan")),
            step: Mutex::default(),
        }
    }

    /// Makes a plan by `make` in a thread of its own, for at most `max`.
    ///
    /// # Errors
    ///
    /// The plan fails or takes longer, or the thread of an earlier one that was given up hangs.
    pub(crate) async fn make<T: Send + 'static>(
        &self,
        max: Duration,
        make: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut plans = self.plans.lock().await;
        if !plans.is_free(READ).await {
            bail!(
                "an earlier one has not returned from {}: the file system may not answer; send SIGHUP again \
                 once it does",
                self.step()
            );
        }
        match plans.run(max, make).await {
            Ok(plan) => plan,
            Err(NotDone::Late(_)) => {
                let max = humantime::format_duration(max);
                bail!("it took longer than {max}; its last step was {}", self.step());
            }
            Err(error) => bail!("it {error}"),
        }
    }

    /// Runs `work` on the files of the service called `name`, as [`FileWork::run`] does.
    async fn run<T: Send + 'static>(
        &self,
        name: &str,
        max: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let files = work_of(&self.services, name);
        files.lock().await.run(max, work).await
    }

    /// Runs `work` on the files of the listeners of the service called `name`, for at most
    /// [`LOOK`].
    async fn run_for_listeners<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let files = work_of(&self.listeners, name);
        files.lock().await.run(LOOK, work).await
    }

    /// Notes what the plan does from now on.
    fn begins(&self, step: String) {
        *locked(&self.step) = step;
    }

    fn step(&self) -> String {
        locked(&self.step).clone()
    }

    /// Returns for each listener of a service whether clients can still connect to it. They count
    /// as reachable if the files of their sockets do not answer.
    async fn reachable(&self, name: &str, entrances: &[Arc<Entrance>]) -> Vec<bool> {
        let all = vec![true; entrances.len()];
        if !entrances.iter().any(|entrance| entrance.has_file()) {
            return all;
        }
        self.begins(format!("looking for the sockets of service `{name}`"));
        let entrances = entrances.to_vec();
        let look = move || entrances.iter().map(|entrance| entrance.is_reachable()).collect();
        self.run_for_listeners(name, look).await.unwrap_or_else(|error| {
            warn!(
                service = name,
                "looking for the sockets of the service {error}; its listeners stay as they are"
            );
            all
        })
    }

    /// Prepares the listeners of `service`. Each has its number in the service, and is new or
    /// `Stays`. `index` is the number of the service. Listeners that lack something are missing.
    async fn find_listeners(
        &self,
        index: usize,
        service: &Service,
        places: Vec<(usize, Option<Stays>)>,
        obstacles: &mut Obstacles,
    ) -> Vec<Listening<Prepared>> {
        let name = &service.name;
        self.begins(format!("reading the files of the listeners of service `{name}`"));
        let of = service.clone();
        let found = self.run_for_listeners(name, move || {
            let mut obstacles = Obstacles::default();
            let listeners = places.into_iter().filter_map(|(number, stays)| {
                let listen = &of.listen[number];
                if let Some(stays) = stays {
                    let key = format!("service[{index}].listen[{number}]");
                    return stays.change(&key, &of, listen, &mut obstacles);
                }
                let purpose = Purpose::Listen(preflight::KEY);
                let found = preflight::find_listener((index, number), &of, listen, purpose, &mut obstacles);
                found.map(Listening::New)
            });
            let listeners: Vec<_> = listeners.collect();
            (listeners, obstacles)
        });
        match found.await {
            Ok((listeners, others)) => {
                obstacles.append(others);
                listeners
            }
            Err(error) => {
                let error = anyhow!("reading the files of its listeners {error}");
                obstacles.add(format!("service[{index}].listen"), Some(service), error);
                Vec::new()
            }
        }
    }

    /// Binds a listener of the service called `name`. The file of a Unix socket may hang.
    async fn bind(&self, name: &str, prepared: Prepared) -> anyhow::Result<Listener> {
        let bound = self.run_for_listeners(name, move || prepared.bind()).await;
        bound.unwrap_or_else(|error| bail!("binding the listener {error}"))
    }

    /// Has a component, which messages call `component`, pass the gate of `service`.
    async fn pass_gate(
        &self,
        service: &Service,
        generation: &Arc<Generation>,
        component: &str,
    ) -> anyhow::Result<()> {
        let Some(dir) = service.gate.clone() else {
            return Ok(());
        };
        self.begins(format!("reading the gate of service `{}`", service.name));
        let gate = self.run(&service.name, READ, move || read_gate(&dir)).await;
        let gate = gate.unwrap_or_else(|error| bail!("reading the gate {error}"))?;
        let max = time_to_load(service);
        self.begins(format!("passing the gate of service `{}`", service.name));
        let passed = timeout(max, pass_gate(service, generation, &gate, component)).await;
        passed.with_context(|| format!("the gate took longer than {max:?}"))?
    }

    /// Looks for what `service` needs, whose number is `index`, and which may run `before`. If it
    /// `stays` as it is, this looks for its directories only, and the service keeps its state if
    /// they do not answer. Its later components are compiled by `compiler` if the settings of the
    /// compiler have `changed`.
    async fn find(
        &self,
        index: usize,
        service: &Service,
        (compiler, changed): (&Compiler, bool),
        (before, stays): (Option<&Runs>, bool),
        obstacles: &mut Obstacles,
    ) -> Found {
        self.begins(format!("reading the files of service `{}`", service.name));
        let (of, compiler) = (service.clone(), compiler.clone());
        let max = if stays { LOOK } else { FIND };
        let sandbox = before.map(|runs| Arc::clone(&runs.sandbox));
        let found = self.run(&service.name, max, move || {
            let mut obstacles = Obstacles::default();
            let mut found = Found::default();
            match sandbox {
                Some(sandbox) if stays => {
                    // The reload that follows reads its component and certificates. If they cannot
                    // be used, the service keeps the previous ones.
                    preflight::find_directories(index, &of, &mut obstacles);
                    found.sandbox = changed.then(|| Arc::new(sandbox.compiling_by(&compiler)));
                }
                before => {
                    let before = before.as_deref();
                    found.unloaded = preflight::find_service(index, &of, before, &compiler, &mut obstacles);
                }
            }
            (found, obstacles)
        });
        match found.await {
            Ok((found, others)) => {
                obstacles.append(others);
                found
            }
            // Else it would keep a compiler that no file names any more.
            Err(error) if stays && !changed => {
                warn!(
                    service = service.name,
                    "looking for the directories of the service {error}; it keeps what it has"
                );
                Found::default()
            }
            Err(error) => {
                let error = anyhow!("reading the files of the service {error}");
                obstacles.add(format!("service[{index}].name"), Some(service), error);
                Found::default()
            }
        }
    }
}

/// The work of the service called `name`.
fn work_of(works: &Mutex<HashMap<String, Arc<WorkMutex>>>, name: &str) -> Arc<WorkMutex> {
    Arc::clone(locked(works).entry(name.to_owned()).or_default())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing can panic while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to become of the services.
#[derive(Debug)]
pub(crate) struct Plan {
    /// When it was requested.
    pub(crate) asked: Instant,
    /// What the file says.
    pub(crate) config: Config,
    /// What is to become of each service that it names.
    pub(crate) services: Vec<Planned>,
    /// Services and addresses of Unix sockets whose files were gone and are created again.
    pub(crate) recreated: Vec<(String, Address)>,
}

impl Plan {
    /// The configuration that runs once the plan is carried out, if `now` runs before: what the file says, but for what only a
    /// restart can change.
    pub(crate) fn running(&self, now: &Config) -> Config {
        let mut running = Config {
            threads: now.threads,
            log: now.log,
            admin: now.admin.clone(),
            otlp: now.otlp.clone(),
            ..self.config.clone()
        };
        for (service, planned) in running.services.iter_mut().zip(&self.services) {
            for (listen, listening) in service.listen.iter_mut().zip(&planned.listeners) {
                if let Listening::Kept(of, number, _) = listening {
                    let before = &now.services[*of].listen[*number];
                    listen.socket = kept(before, listen);
                }
            }
        }
        running
    }
}

/// What is to become of one service.
#[derive(Debug)]
pub(crate) struct Planned {
    /// What serves its connections; `None` where that stays as it is.
    pub(crate) loaded: Option<Loaded>,
    /// What loads its components from now on, where that changes and the service stays as it is.
    pub(crate) sandbox: Option<Arc<Sandbox>>,
    /// Where they come from, in the order of the file.
    pub(crate) listeners: Vec<Listening>,
}

/// Where a listener comes from.
#[derive(Debug)]
pub(crate) enum Listening<New = Listener> {
    /// It is there already, in this service at this place, and its connections come in by this.
    Kept(usize, usize, Arc<Entrance>),
    /// It is new.
    New(New),
}

/// Reads the file at `path`, and makes everything that the services in it need. `now` is what runs.
/// `planner` has the work on files of earlier plans. Components are compiled by `program`.
///
/// # Errors
///
/// The file is refused, a component cannot serve or was rolled back, or an address cannot be bound.
/// Nothing has changed.
pub(crate) async fn plan(
    path: &Path,
    now: &Now,
    planner: &Planner,
    program: &Program,
) -> anyhow::Result<Plan> {
    planner.begins(format!("reading the services file `{}`", path.display()));
    let file = Text::read(path)?;
    let config = file.config()?;
    let before = &now.config;
    let fixed = [
        ("`threads`", config.threads != before.threads),
        ("`log`", config.log != before.log),
        ("`admin`", config.admin != before.admin),
        ("`otlp`", config.otlp != before.otlp),
    ];
    let changed: Vec<&str> = fixed
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect();
    if !changed.is_empty() {
        warn!(
            "changing {} requires a restart; the previous value stays in use",
            changed.join(", ")
        );
    }
    system::raise_descriptors(&config, admin::DESCRIPTORS);
    let mut obstacles = Obstacles::default();
    planner.begins("reading the admin token".to_owned());
    preflight::check_admin(&config, preflight::ADMIN_KEY, &mut obstacles);
    let compiles_alike =
        config.cache == before.cache && config.max_compile_memory == before.max_compile_memory;
    let compiler = Compiler::of(&config, program, Some(file.path()));
    let mut unloaded = Vec::new();
    for (index, service) in config.services.iter().enumerate() {
        let runs = now.service(&service.name);
        let stays = runs.is_some_and(|(before, _)| serves_alike(before, service));
        let found = planner.find(
            index,
            service,
            (&compiler, !compiles_alike),
            (runs.map(|(_, runs)| runs), stays),
            &mut obstacles,
        );
        let mut found = found.await;
        let digest = found.unloaded.as_ref().map(|unloaded| unloaded.content.digest);
        let left = runs.and_then(|(_, runs)| runs.left.as_ref());
        let left = left.filter(|left| Some(left.digest) == digest);
        let insists = left.map(|left| left.is_insisted_upon(now.asked, Instant::now()));
        if let Some(found) = &mut found.unloaded {
            found.insisted = insists == Some(true);
        }
        if insists == Some(false) {
            let unloaded = found.unloaded.as_ref();
            let has_files = unloaded.is_some_and(|unloaded| unloaded.source.files().next().is_some());
            let why = if has_files {
                "the component was rolled back, and its file has not changed since; replace the file, \
                 choose another"
            } else {
                "the embedded echo guest was rolled back; choose another component"
            };
            let error = anyhow!(
                "{why}, or send SIGHUP again within {} to load it nevertheless",
                humantime::format_duration(INSIST)
            );
            obstacles.add(format!("service[{index}].component"), Some(service), error);
        }
        unloaded.push(found);
    }
    let mut recreated = Vec::new();
    let prepared = prepare(&config, now, &file, planner, &mut recreated, &mut obstacles).await;
    for name in obstacles.without_component() {
        now.count_rejected(name);
    }
    obstacles.end(Some(&file))?;
    let mut loaded = Vec::new();
    for (index, (service, Found { unloaded, sandbox })) in config.services.iter().zip(unloaded).enumerate() {
        let blocked = |key: &str, error| {
            if preflight::decides_component(key) {
                now.count_rejected(&service.name);
            }
            Obstacles::only(
                Some(&file),
                format!("service[{index}].{key}"),
                Some(service),
                error,
            )
        };
        let one = match unloaded {
            None => None,
            Some(unloaded) => {
                let name = unloaded.content.name.clone();
                planner.begins(format!("loading {name} for service `{}`", service.name));
                let one = Loaded::new(unloaded).await;
                let one = one.map_err(|NotLoaded { key, error }| blocked(&key, error))?;
                // A service that is new starts as it would with the host, without its gate.
                if now.service(&service.name).is_some() {
                    let passed = planner.pass_gate(service, &one.generation, &name).await;
                    passed.map_err(|error| blocked("gate", error))?;
                }
                Some(one)
            }
        };
        if let Some(sandbox) = &sandbox {
            planner.begins("opening the cache of compiled components".to_owned());
            sandbox.open_cache();
        }
        loaded.push((one, sandbox));
    }
    // Only when nothing else can fail, so that nobody is let in by a listener that is given up.
    let mut services = Vec::new();
    for (index, ((loaded, sandbox), prepared)) in loaded.into_iter().zip(prepared).enumerate() {
        let service = &config.services[index];
        planner.begins(format!("binding the listeners of service `{}`", service.name));
        let mut listeners = Vec::new();
        for (number, listening) in prepared.into_iter().enumerate() {
            listeners.push(match listening {
                Listening::New(prepared) => {
                    let bound = planner.bind(&service.name, prepared).await;
                    Listening::New(bound.map_err(|error| {
                        let key = format!("service[{index}].listen[{number}]");
                        Obstacles::only(Some(&file), key, Some(service), error)
                    })?)
                }
                Listening::Kept(of, number, entrance) => Listening::Kept(of, number, entrance),
            });
        }
        services.push(Planned {
            loaded,
            sandbox,
            listeners,
        });
    }
    for (index, planned) in services.iter_mut().enumerate() {
        let Some(loaded) = &mut planned.loaded else {
            continue;
        };
        loaded.record().map_err(|NotLoaded { key, error }| {
            let key = format!("service[{index}].{key}");
            Obstacles::only(Some(&file), key, config.services.get(index), error)
        })?;
    }
    Ok(Plan {
        asked: now.asked,
        config,
        services,
        recreated,
    })
}

/// Prepares the listeners of each service of `config`: keeps those that are there, and looks for
/// all that the others need. A Unix socket whose file is gone is created again, and added to
/// `recreated`. Listeners that lack something are missing.
async fn prepare(
    config: &Config,
    now: &Now,
    file: &Text,
    planner: &Planner,
    recreated: &mut Vec<(String, Address)>,
    obstacles: &mut Obstacles,
) -> Vec<Vec<Listening<Prepared>>> {
    let mut reachable = Vec::new();
    for (service, runs) in now.config.services.iter().zip(&now.services) {
        reachable.push(planner.reachable(&service.name, &runs.entrances).await);
    }
    let mut taken = Vec::new();
    let mut prepared = Vec::new();
    for (index, service) in config.services.iter().enumerate() {
        let mut places = Vec::new();
        for (number, listen) in service.listen.iter().enumerate() {
            let there = find(service, listen, &now.config, &taken);
            let kept_at = there.filter(|&(of, place)| reachable[of][place]);
            if let Some(place) = kept_at {
                taken.push(place);
            } else if there.is_some() {
                recreated.push((service.name.clone(), listen.address.clone()));
            } else if let Some(conflict) = conflict(listen, now) {
                let key = format!("service[{index}].listen[{number}]");
                obstacles.add(key, Some(service), anyhow!(conflict));
                continue;
            }
            places.push((number, kept_at.map(|place| Stays::at(place, now))));
        }
        let listeners = planner.find_listeners(index, service, places, obstacles).await;
        if listeners.len() == service.listen.len() {
            let has_sources = listeners.iter().any(|listening| match listening {
                Listening::Kept(_, _, entrance) => entrance.has_sources(),
                Listening::New(prepared) => prepared.has_sources(),
            });
            preflight::check_access(index, service, has_sources, Some(file), obstacles);
        }
        prepared.push(listeners);
    }
    prepared
}

/// A listener that stays where it is.
#[derive(Debug)]
struct Stays {
    /// The number of the service that it is of, and its own.
    place: (usize, usize),
    before: Listen,
    entrance: Arc<Entrance>,
}

impl Stays {
    fn at(place: (usize, usize), now: &Now) -> Self {
        let (of, number) = place;
        Self {
            place,
            before: now.config.services[of].listen[number].clone(),
            entrance: Arc::clone(&now.services[of].entrances[number]),
        }
    }

    /// Prepares the listener to be as `listen` says, for `service`.
    fn change(
        self,
        key: &str,
        service: &Service,
        listen: &Listen,
        obstacles: &mut Obstacles,
    ) -> Option<Listening<Prepared>> {
        let before = &self.before;
        if kept(before, listen) != listen.socket {
            warn!(
                service = service.name,
                "changing the socket options of {} requires a restart; the previous ones stay in use",
                listen.address
            );
        }
        let (of, number) = self.place;
        match self.entrance.changed(before, listen, &service.name) {
            Ok(entrance) => Some(Listening::Kept(of, number, Arc::new(entrance))),
            Err(error) => {
                preflight::add_faults(key, service, listen, error, obstacles);
                None
            }
        }
    }
}

/// Says which address of the host that runs excludes that of `listen`, which is new.
fn conflict(listen: &Listen, now: &Now) -> Option<String> {
    let address = &listen.address;
    for (service, runs) in now.config.services.iter().zip(&now.services) {
        for (before, entrance) in service.listen.iter().zip(&runs.entrances) {
            let (name, at) = (&service.name, &before.address);
            let chosen = entrance.chosen(at).map(|address| Listen {
                address,
                ..before.clone()
            });
            if let Some(chosen) = chosen.filter(|chosen| excludes(chosen, listen)) {
                return Some(format!(
                    "{address} conflicts with {}, on which service `{name}` listens for {at}; choose \
                     another address",
                    chosen.address
                ));
            }
            if excludes(before, listen) {
                let sentence = "on which this host listens until a restart";
                return Some(format!("{address} conflicts with {at}, {sentence}"));
            }
        }
    }
    let Admin { address: admin, .. } = now.config.admin.as_ref()?;
    excludes(&Listen::at(admin.clone()), listen).then(|| {
        format!(
            "{address} conflicts with {admin}, on which the admin interface listens until a restart; \
             choose another address"
        )
    })
}

/// The socket options of a listener that stays: those of `before`, but for those that hold for each connection, which are as
/// `listen` says.
fn kept(before: &Listen, listen: &Listen) -> SocketOptions {
    SocketOptions {
        nodelay: listen.socket.nodelay,
        ..before.socket.clone()
    }
}

/// Whether all is the same but where connections come from, and which may come in.
fn serves_alike(one: &Service, other: &Service) -> bool {
    let but_for = |service: &Service| Service {
        listen: Vec::new(),
        access: Access::default(),
        grants: Grants {
            writable_by_others: Vec::new(),
            ..service.grants.clone()
        },
        ..service.clone()
    };
    but_for(one) == but_for(other)
}

/// A listener at the address of `listen` that is there and not `taken`. Where that is any free port it is of the same service.
fn find(
    service: &Service,
    listen: &Listen,
    now: &Config,
    taken: &[(usize, usize)],
) -> Option<(usize, usize)> {
    let mut all = now.services.iter().enumerate().flat_map(|(index, before)| {
        let own = before.name == service.name;
        let places = before.listen.iter().enumerate();
        places.map(move |(number, before)| (own, (index, number), before))
    });
    let fits = |(own, place, before): &(bool, _, &Listen)| {
        listener::is_same(&before.address, &listen.address)
            && (*own || !listen.address.is_any_port())
            && !taken.contains(place)
    };
    all.find(fits).map(|(_, place, _)| place)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt as _;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn files_that_hang_keep_one_thread_when_a_plan_is_given_up() {
        let planner = Planner::new();
        let (end, hangs) = mpsc::channel::<()>();
        let first = planner.run("a", LONG, move || hangs.recv());
        assert!(first.now_or_never().is_none());
        let (began, begins) = mpsc::channel();
        let second = planner.run("a", SHORT, move || began.send(())).await;
        assert!(matches!(second, Err(NotDone::Late(_))), "{second:?}");
        assert_eq!(begins.recv(), Err(mpsc::RecvError));
        // Another service has a thread of its own.
        assert_eq!(planner.run("b", LONG, || 7).await, Ok(7));
        drop(end);
        assert_eq!(planner.run("a", LONG, || 7).await, Ok(7));
    }

    #[tokio::test]
    async fn sockets_whose_files_do_not_answer_are_kept() {
        let path = std::env::temp_dir().join(format!("reread-{}", std::process::id()));
        let listen = Listen::at(Address::Unix(path.clone()));
        let listener = Listener::bind(&listen).unwrap();
        let entrances = [Arc::clone(listener.entrance())];
        let planner = Planner::new();
        assert_eq!(planner.reachable("a", &entrances).await, [true]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(planner.reachable("a", &entrances).await, [false]);
        let (end, hangs) = mpsc::channel::<()>();
        let hanging = planner.run("a", LONG, move || hangs.recv());
        assert!(hanging.now_or_never().is_none());
        tokio::time::pause();
        let start = Instant::now();
        assert_eq!(planner.reachable("a", &entrances).await, [true]);
        assert_eq!(start.elapsed().as_secs(), LOOK.as_secs());
        drop(end);
    }

    #[tokio::test(start_paused = true)]
    async fn a_plan_that_hangs_is_named_and_no_other_begins() {
        let planner = Arc::new(Planner::new());
        let (end, hangs) = mpsc::channel::<()>();
        let (began, begins) = mpsc::channel();
        let step = Arc::clone(&planner);
        let late = planner.make(SHORT, move || {
            step.begins("reading the file".to_owned());
            let _ = began.send(());
            let _ = hangs.recv();
            Ok(())
        });
        let late = late.await.unwrap_err().to_string();
        assert!(late.contains("longer than 50ms"), "{late}");
        begins.recv().unwrap();
        let refused = planner.make(LONG, || Ok(7)).await.unwrap_err().to_string();
        assert!(
            refused.contains("has not returned from reading the file"),
            "{refused}"
        );
        drop(end);
        tokio::time::resume();
        assert_eq!(planner.make(LONG, || Ok(7)).await.unwrap(), 7);
    }

    fn config(text: &str) -> Config {
        crate::file::parse(text, Path::new("/")).unwrap()
    }

    #[test]
    fn a_listener_at_the_same_address_is_kept() {
        let now = config(
            "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:1\"]\n\
             [[service]]\nname = \"b\"\nlisten = [\"127.0.0.1:0\"]\n",
        );
        let [a, b] = &now.services[..] else { panic!() };
        let (free, one) = (&a.listen[0], &a.listen[1]);
        // One at any free port stays with its service.
        assert_eq!(find(a, free, &now, &[]), Some((0, 0)));
        assert_eq!(find(b, free, &now, &[]), Some((1, 0)));
        assert_eq!(find(b, free, &now, &[(1, 0)]), None);
        assert_eq!(find(b, one, &now, &[]), Some((0, 1)));
    }

    #[test]
    fn rules_of_access_and_listeners_leave_what_serves_as_it_is() {
        let service = |more: &str| {
            config(&format!(
                "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:1\"]\n{more}"
            ))
            .services
            .remove(0)
        };
        let plain = service("");
        assert!(serves_alike(
            &plain,
            &service("access = { deny = [\"192.0.2.0/24\"] }")
        ));
        assert!(serves_alike(&plain, &service("socket = { backlog = 1 }")));
        assert!(!serves_alike(&plain, &service("args = [\"x\"]")));
        assert!(!serves_alike(
            &plain,
            &service("limits = { max-memory = \"1MiB\" }")
        ));
    }
}
