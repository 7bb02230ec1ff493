//! Checks of everything that the host needs to start, short of compiling components and binding
//! addresses.
//!
//! A start, a reconfiguration and `check --config` all come through here. A start that goes on has
//! what was read here, so that the check cannot differ from it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use thiserror::Error;

use crate::admin;
use crate::config::{Address, Config, Grants, Listen, Service, Setting};
use crate::file::Text;
use crate::granted_dir;
use crate::guarded::{self, Owner};
use crate::listener::{self, Listener, Prepared};
use crate::record;
use crate::reload;
use crate::sandbox::{Compiler, Content, LoadError, Sandbox, Source};
use crate::system::{can_create, check_names_file, directory_of, is_writable};
use crate::values;

/// Something that a start needs and that is missing or unusable.
#[derive(Debug)]
struct Obstacle {
    /// The setting, as a services file has it: `service[0].gate`.
    key: String,
    /// The name of the service that needs it; `None` if the host does.
    service: Option<String>,
    error: anyhow::Error,
}

/// Everything that keeps the host from starting, as far as it was found.
#[derive(Debug, Default)]
pub(crate) struct Obstacles(Vec<Obstacle>);

/// The sentences about the obstacles of a start, at least one.
#[derive(Debug, Error)]
#[error("{}", .0.join("; "))]
pub struct Blocked(pub Vec<String>);

impl Obstacles {
    /// Notes an error in what `key` of a service names.
    pub(crate) fn add(&mut self, key: String, service: Option<&Service>, error: anyhow::Error) {
        self.0.push(Obstacle {
            key,
            service: service.map(|service| service.name.clone()),
            error,
        });
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is in what the service at `index` needs.
    fn has_of_service(&self, index: usize) -> bool {
        let table = format!("service[{index}].");
        self.0.iter().any(|obstacle| obstacle.key.starts_with(&table))
    }

    /// Takes over what others found.
    pub(crate) fn append(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// The names of the services whose component, a middleware or the gate is among the obstacles.
    pub(crate) fn without_component(&self) -> BTreeSet<&str> {
        let keyed = self.0.iter().filter(|obstacle| {
            let key = obstacle.key.split_once("].").map(|(_, key)| key);
            key.is_some_and(decides_component)
        });
        keyed.filter_map(|obstacle| obstacle.service.as_deref()).collect()
    }

    /// Returns an error if there are obstacles. Each is named by its line in `file`, if settings
    /// come from there.
    pub(crate) fn end(self, file: Option<&Text>) -> Result<(), Blocked> {
        if self.0.is_empty() {
            return Ok(());
        }
        let obstacles = self.0.into_iter();
        Err(Blocked(match file {
            None => obstacles
                .map(|obstacle| format!("{:#}", obstacle.error))
                .collect(),
            Some(file) => file.problems(obstacles.map(|Obstacle { key, service, error }| match service {
                None => (key, format!("{error:#}")),
                Some(name) => (key, format!("service `{name}`: {error:#}")),
            })),
        }))
    }

    /// Returns the error of a step of the start that stops it at the first obstacle.
    pub(crate) fn only(
        file: Option<&Text>,
        key: String,
        service: Option<&Service>,
        error: impl Into<anyhow::Error>,
    ) -> anyhow::Error {
        let mut obstacles = Self::default();
        obstacles.add(key, service, error.into());
        match obstacles.end(file) {
            Err(blocked) => blocked.into(),
            Ok(()) => anyhow::Error::msg("the start failed"),
        }
    }

    /// Returns the value of a result, or notes the error in what `key` names.
    pub(crate) fn note<T>(
        &mut self,
        key: impl Into<String>,
        service: Option<&Service>,
        result: Result<T, impl Into<anyhow::Error>>,
    ) -> Option<T> {
        result
            .map_err(|error| self.add(key.into(), service, error.into()))
            .ok()
    }
}

/// A service that has all that it needs, and whose component is not compiled yet.
#[derive(Debug)]
pub(crate) struct Unloaded {
    pub(crate) config: Service,
    pub(crate) sandbox: Sandbox,
    pub(crate) source: Source,
    pub(crate) content: Content,
    /// The operator has insisted on the component, which was rolled back before.
    pub(crate) insisted: bool,
}

/// What a start needs, as it was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// In the order of the configuration, with their numbers; those that lack something are
    /// missing.
    pub(crate) services: Vec<(usize, Unloaded)>,
    /// The listeners of each service, in the same order.
    pub(crate) listeners: Vec<Vec<Prepared>>,
}

/// What the checks are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The host is to listen. Messages name this flag or key as the one that sets the addresses.
    Listen(&'static str),
    /// Somebody wants to know whether the host could start from a services file. The service
    /// manager may open the inherited sockets only then.
    Check,
}

impl Purpose {
    fn setting(self) -> &'static str {
        match self {
            Self::Listen(setting) => setting,
            Self::Check => KEY,
        }
    }

    /// Whether the socket of `listen` is one that cannot be looked for.
    pub(crate) fn leaves_out(self, listen: &Listen) -> bool {
        let is_inherited = matches!(listen.address, Address::Inherited(_));
        self == Self::Check && is_inherited && !listener::has_inherited()
    }
}

/// How messages about a services file name the setting of an address.
pub(crate) const KEY: &str = "the key `listen`";
pub(crate) const ADMIN_KEY: &str = "the key `listen` of `[admin]`";

/// Whether a key of a service sets what decides whether its component serves.
pub(crate) fn decides_component(key: &str) -> bool {
    key == "component" || key == "gate" || key.starts_with("middleware[")
}

/// Checks what the admin interface needs, whose address is set by `setting`. Returns whether it can
/// start.
pub(crate) fn check_admin(config: &Config, setting: &'static str, obstacles: &mut Obstacles) -> bool {
    let Some(admin) = &config.admin else {
        return true;
    };
    let token = admin.token.as_deref();
    let token = token.is_none_or(|token| obstacles.note("admin.token", None, check_token(token)).is_some());
    let listen = Listen::at(admin.address.clone());
    let prepared = Listener::prepare(&listen, setting, None).map(drop);
    obstacles.note("admin.listen", None, prepared).is_some() && token
}

/// The key of a service, such as `middleware[0]`, that names the part of `content` which cannot be
/// loaded.
pub(crate) fn key_of(content: &Content, error: &LoadError) -> String {
    match content.middleware_of(error) {
        Some(number) => format!("middleware[{number}]"),
        None => "component".to_owned(),
    }
}

/// Looks for everything that `services` need, each of which comes with its number in `file`, if
/// they come from there and not from flags.
pub(crate) fn find<'a>(
    services: impl Iterator<Item = (usize, &'a Service)>,
    file: Option<&Text>,
    compiler: &Compiler,
    purpose: Purpose,
    obstacles: &mut Obstacles,
) -> Found {
    let mut found = Found {
        services: Vec::new(),
        listeners: Vec::new(),
    };
    for (index, service) in services {
        let unloaded = find_service(index, service, None, compiler, obstacles);
        found.services.extend(unloaded.map(|unloaded| (index, unloaded)));
        let listeners = service.listen.iter().enumerate();
        let listeners = listeners.filter_map(|(number, listen)| {
            find_listener((index, number), service, listen, purpose, obstacles)
        });
        let listeners: Vec<_> = listeners.collect();
        if listeners.len() == service.listen.len() {
            let has_sources = listeners.iter().any(Prepared::has_sources);
            check_access(index, service, has_sources, file, obstacles);
        }
        found.listeners.push(listeners);
    }
    found
}

/// Checks that rules of access have an effect: that a listener `has_sources` that they can name. This
/// is known only when the inherited sockets are. Rules of `defaults` are for other services too.
pub(crate) fn check_access(
    index: usize,
    service: &Service,
    has_sources: bool,
    file: Option<&Text>,
    obstacles: &mut Obstacles,
) {
    if has_sources {
        return;
    }
    let rules = [("allow", &service.access.allow), ("deny", &service.access.deny)];
    for (name, _) in rules.into_iter().filter(|(_, networks)| !networks.is_empty()) {
        let key = format!("service[{index}].access.{name}");
        // Finding that out reads the whole file.
        if file.is_none_or(|file| file.sets(&key)) {
            let error = anyhow!(
                "rules of access have no effect on Unix sockets without the PROXY protocol: remove them, or \
                 listen on a TCP socket"
            );
            obstacles.add(key, Some(service), error);
        }
    }
}

/// Looks for everything that a service needs beside its listeners. If it runs with other settings,
/// these are those of the `previous` sandbox.
pub(crate) fn find_service(
    index: usize,
    config: &Service,
    previous: Option<&Sandbox>,
    compiler: &Compiler,
    obstacles: &mut Obstacles,
) -> Option<Unloaded> {
    let before = obstacles.0.len();
    let source = Source::new(config.component.clone(), config.middleware.clone());
    let parts = find_parts(index, Some(config), &source, obstacles);
    find_directories(index, config, obstacles);
    let sandbox = Sandbox::succeed(previous, &config.limits, &config.grants, compiler);
    let sandbox = note_sandbox(index, Some(config), &config.grants, sandbox, obstacles)?;
    (obstacles.0.len() == before).then(|| Unloaded {
        config: config.clone(),
        sandbox: sandbox
            .service(&config.name)
            .preinit(config.preinit)
            .isolation(config.isolation),
        content: source.whole(parts),
        source,
        insisted: false,
    })
}

/// Reads the parts of `source`, as far as they can be read and begin as WebAssembly does.
pub(crate) fn find_parts(
    index: usize,
    of: Option<&Service>,
    source: &Source,
    obstacles: &mut Obstacles,
) -> Vec<Content> {
    let mut parts = Vec::new();
    for (number, part) in source.read_parts().enumerate() {
        let name = match number {
            number if number < source.middleware.len() => format!("middleware[{number}]"),
            _ => "component".to_owned(),
        };
        let part = part.and_then(|part| part.check_beginning().map(|()| part));
        parts.extend(obstacles.note(format!("service[{index}].{name}"), of, part));
    }
    parts
}

/// Returns the sandbox with these grants if it could be started, and notes the reason otherwise: a
/// granted destination, or what [`find_granted_dirs`] has noted before.
pub(crate) fn note_sandbox(
    index: usize,
    of: Option<&Service>,
    grants: &Grants,
    started: io::Result<Sandbox>,
    obstacles: &mut Obstacles,
) -> Option<Sandbox> {
    let error = match started {
        Ok(sandbox) => return Some(sandbox),
        Err(error) => error,
    };
    for (number, destination) in grants.outbound.iter().enumerate() {
        let key = format!("service[{index}].grants.allow-outbound[{number}]");
        let resolved = values::resolve(destination)
            .with_context(|| format!("cannot resolve the granted destination `{destination}`"));
        obstacles.note(key, of, resolved);
    }
    if !obstacles.has_of_service(index) {
        let error = anyhow::Error::new(error).context("cannot start the sandbox");
        obstacles.add(format!("service[{index}].name"), of, error);
    }
    None
}

/// Looks for the granted directories.
pub(crate) fn find_granted_dirs(
    index: usize,
    of: Option<&Service>,
    grants: &Grants,
    obstacles: &mut Obstacles,
) {
    for (number, dir) in grants.dirs.iter().enumerate() {
        let key = format!("service[{index}].grants.dirs[{number}]");
        let listed = fs::read_dir(&dir.host)
            .with_context(|| format!("cannot open the granted directory `{}`", dir.host.display()));
        if obstacles.note(key.as_str(), of, listed).is_some() {
            let opened = granted_dir::open(&dir.host, grants.writable());
            obstacles.note(key, of, opened);
        }
    }
}

/// Looks for the directories that a service needs while it runs: the gate, the records, and the
/// granted directories.
pub(crate) fn find_directories(index: usize, config: &Service, obstacles: &mut Obstacles) {
    let of = Some(config);
    let key = |key: &str| format!("service[{index}].{key}");
    if let Some(gate) = &config.gate {
        let read = reload::read_gate(gate)
            .with_context(|| format!("cannot read the conversations of {}", Setting::of("gate")));
        obstacles.note(key("gate"), of, read);
    }
    if let Some(dir) = &config.record {
        let checked = can_create(dir)
            .and_then(|()| guarded::check(dir, Owner::HostOrRoot).map_err(io::Error::other))
            .map_err(|error| record::refused(dir, &error));
        obstacles.note(key("record"), of, checked);
    }
    find_granted_dirs(index, of, &config.grants, obstacles);
}

/// Looks for everything that a listener needs, short of binding its address. The listener is named
/// by the numbers of its service and of itself.
pub(crate) fn find_listener(
    (index, number): (usize, usize),
    service: &Service,
    listen: &Listen,
    purpose: Purpose,
    obstacles: &mut Obstacles,
) -> Option<Prepared> {
    let key = format!("service[{index}].listen[{number}]");
    let prepare = || Listener::prepare(listen, purpose.setting(), Some(&service.name));
    let prepared = (!purpose.leaves_out(listen)).then(prepare);
    match prepared {
        Some(Ok(prepared)) => return Some(prepared),
        Some(Err(error)) => add_faults(&key, service, listen, error, obstacles),
        None => {
            for (of_listener, error) in listener::faults(listen) {
                obstacles.add(format!("{key}.{of_listener}"), Some(service), error);
            }
        }
    }
    None
}

/// Notes why the listener that is set by `key` cannot be prepared, which failed with `error`.
pub(crate) fn add_faults(
    key: &str,
    service: &Service,
    listen: &Listen,
    error: anyhow::Error,
    obstacles: &mut Obstacles,
) {
    let faults = listener::faults(listen);
    if faults.is_empty() {
        obstacles.add(key.to_owned(), Some(service), error);
    }
    for (of_listener, error) in faults {
        obstacles.add(format!("{key}.{of_listener}"), Some(service), error);
    }
}

/// Checks a token file, and that the host can create it if it is missing.
fn check_token(path: &Path) -> anyhow::Result<()> {
    if admin::has_token(path)? {
        return Ok(());
    }
    let cannot = || format!("cannot create the token file {}", admin::named_token(path));
    check_names_file(path).with_context(cannot)?;
    admin::check_token_directories(path)?;
    if path.is_symlink() {
        bail!(
            "cannot create the token file `{}`: it is a link to a file that does not exist; remove the link",
            path.display()
        );
    }
    is_writable(directory_of(path)).with_context(cannot)
}
