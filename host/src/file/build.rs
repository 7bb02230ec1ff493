//! From tables to a checked [`Config`].

use std::cell::{Cell, OnceCell, RefCell};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::Sound;
use super::keys::{
    AccessTable, DefaultsTable, File, GrantsTable, Isolation, LimitsTable, ListenTable, LogConnections,
    LogFormat, LogLevel, ServiceTable, SocketTable, TlsTable,
};
use super::place::{self, Places};
use super::problem::{MAX_SHOWN, Problem, Problems};
use super::tables::Tables;
use super::words::{Kind, Word};
use crate::config::{
    self, Access, Address, At, CacheDir, CompileMemory, Config, Grants, Limits, Listen, Ratio, Service,
};
use crate::values;

/// Makes a [`Config`] of a file.
pub(super) struct Builder<'a> {
    /// All that the file says, for the lines of problems.
    text: &'a str,
    /// What its paths are meant from.
    base: &'a Path,
    /// What it says.
    tables: Tables,
    /// What is wrong with it, as far as it was found.
    problems: RefCell<Vec<Problem>>,
    /// The keys that these are about, apart from what `tables` found.
    refused: RefCell<Vec<String>>,
    /// There are more problems than are shown.
    further: Cell<bool>,
    /// The places of keys, once something is wrong with one.
    places: OnceCell<Places<'a>>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(text: &'a str, base: &'a Path, mut tables: Tables) -> Self {
        Self {
            text,
            base,
            problems: RefCell::new(std::mem::take(&mut tables.problems)),
            refused: RefCell::default(),
            further: Cell::default(),
            places: OnceCell::new(),
            tables,
        }
    }

    /// Checks the tables and makes a [`Config`] of those without an error. Returns all errors with
    /// it.
    pub(super) fn sound_part(mut self) -> (Option<Sound>, Problems) {
        let config = self.tables.file.take().map(|file| self.of_file(file));
        let sound = config.map(|config| self.without_refused(config));
        let further = self.tables.further || self.further.get();
        (sound, Problems::sorted(self.problems.into_inner(), further))
    }

    /// Leaves out the services, and the admin interface, that have a refused key or value.
    fn without_refused(&self, mut config: Config) -> Sound {
        let is_refused = |table: &str| self.refused.borrow().iter().any(|key| key.starts_with(table));
        let services = self.tables.numbers.iter().copied().zip(config.services);
        let sound = services.filter(|(number, _)| {
            !self.tables.is_partial(*number) && !is_refused(&format!("service[{number}]."))
        });
        let (numbers, services) = sound.unzip();
        config.services = services;
        config.admin = config.admin.filter(|_| !is_refused("admin."));
        Sound { config, numbers }
    }

    fn of_file(&self, file: File) -> Config {
        if file.services.is_empty() && self.tables.are_whole() {
            let message = "no service is defined; expected at least one [[service]] table";
            self.refuse("service", message);
        }
        let mut services: Vec<_> = file
            .services
            .into_iter()
            .zip(&self.tables.numbers)
            .map(|(table, number)| self.service(*number, table, file.defaults.clone()))
            .collect();
        config::tell_of_writable_directories(&mut services);
        let admin = file.admin.map(|table| config::Admin {
            address: self.address(table.listen.0, "admin.listen"),
            token: table.token.map(|token| self.secret_file(token, "admin.token")),
        });
        self.refuse_clashes(&services, admin.as_ref());
        Config {
            services,
            cache: match file.cache.as_deref().map(values::cache) {
                None => CacheDir::OfUser,
                Some(Ok(CacheDir::At(dir))) => CacheDir::At(self.path(dir, "cache")),
                Some(Ok(other)) => other,
                Some(Err(message)) => {
                    self.refuse("cache", &message);
                    CacheDir::Off
                }
            },
            max_compile_memory: value(file.max_compile_memory, CompileMemory::Default),
            admin,
            otlp: file.otlp.map(|table| config::Otlp {
                endpoint: table.endpoint.0,
                sample: value(table.sample, Ratio::ALL),
            }),
            threads: file.threads.map(|threads| threads.0),
            drain_timeout: value(file.drain_timeout, config::DRAIN_TIMEOUT),
            log: config::Log {
                format: match file.log.format {
                    None | Some(LogFormat::Text) => config::LogFormat::Text,
                    Some(LogFormat::Json) => config::LogFormat::Json,
                },
                level: match file.log.level {
                    Some(LogLevel::Error) => config::LogLevel::Error,
                    Some(LogLevel::Warn) => config::LogLevel::Warn,
                    None | Some(LogLevel::Info) => config::LogLevel::Info,
                    Some(LogLevel::Debug) => config::LogLevel::Debug,
                    Some(LogLevel::Trace) => config::LogLevel::Trace,
                },
            },
        }
    }

    fn service(&self, index: usize, table: ServiceTable, defaults: DefaultsTable) -> Service {
        let key = format!("service[{index}]");
        let component = table
            .component
            .map(|path| self.component(path, &format!("{key}.component")));
        let middleware: Vec<_> = table
            .middleware
            .into_iter()
            .enumerate()
            .map(|(number, path)| self.component(path, &format!("{key}.middleware[{number}]")))
            .collect();
        let has_files = component.is_some() || !middleware.is_empty();
        let preinit = table.preinit.or(defaults.preinit).unwrap_or_default();
        let watch = table.watch.or(defaults.watch).unwrap_or_default();
        let migrate = table.migrate.or(defaults.migrate).unwrap_or_default();
        // What the defaults say is for services that it can be said of.
        if table.drain_generations.is_some() && !has_files {
            let message = "requires `component` or `middleware` to be set";
            self.refuse(&format!("{key}.drain-generations"), message);
        }
        let takes_a_file = [
            (table.preinit, component.is_some(), "preinit", "`component`"),
            (table.watch, has_files, "watch", "`component` or `middleware`"),
            (table.migrate, component.is_some(), "migrate", "`component`"),
        ];
        if table.gate.is_some() && !has_files {
            let message = "requires `component` or `middleware` to be set";
            self.refuse(&format!("{key}.gate"), message);
        }
        for (said, has_one, name, needed) in takes_a_file {
            if said == Some(true) && !has_one {
                self.refuse(&format!("{key}.{name}"), &format!("requires {needed} to be set"));
            }
        }
        if table.gate_patience.is_some() && table.gate.is_none() {
            self.refuse(&format!("{key}.gate-patience"), "requires `gate` to be set");
        }
        let has_component = component.is_some();
        if table.listen.is_empty() {
            let message = "the list is empty; expected at least one address";
            self.refuse(&format!("{key}.listen"), message);
        }
        let own_options = options(&table.socket);
        let sockets = table.socket.or(defaults.socket.unwrap_or_default());
        let listen: Vec<_> = table
            .listen
            .into_iter()
            .enumerate()
            .map(|(number, entry)| self.listen(entry.0, &sockets, &format!("{key}.listen[{number}]")))
            .collect();
        for option in own_options {
            let ignored: Option<Vec<_>> = listen.iter().map(|one| one.address.ignores(option)).collect();
            if let Some(why) = ignored.as_deref().and_then(<[_]>::first) {
                self.refuse(&format!("{key}.socket.{option}"), &without_effect(why));
            }
        }
        let has_sources = |listen: &Listen| listen.proxy_protocol.is_some() || listen.address.has_networks();
        for (name, networks) in [("allow", &table.access.allow), ("deny", &table.access.deny)] {
            if networks.as_ref().is_some_and(|networks| !networks.is_empty())
                && !listen.is_empty()
                && !listen.iter().any(has_sources)
            {
                let why = "clients of a Unix socket have no network address";
                self.refuse(&format!("{key}.access.{name}"), &without_effect(why));
            }
        }
        for (number, arg) in table.args.iter().enumerate() {
            if let Err(message) = values::without_nul(arg) {
                self.refuse(&format!("{key}.args[{number}]"), &message);
            }
        }
        let grants = table.grants.or(defaults.grants.unwrap_or_default());
        let grants = self.grants(grants, table.args, &format!("{key}.grants"));
        let isolation = table.isolation.or(defaults.isolation);
        if table.instances.is_some() && !matches!(isolation, Some(Isolation::Service)) {
            let message = "requires `isolation = \"service\"`; otherwise each connection has its \
                           own instance";
            self.refuse(&format!("{key}.instances"), message);
        }
        Service {
            name: table.name.0,
            component,
            middleware,
            preinit: preinit && has_component,
            watch: watch && has_files,
            grants,
            migrate: migrate && has_component,
            isolation: match isolation {
                None | Some(Isolation::Connection) => config::Isolation::Connection,
                Some(Isolation::Service) => config::Isolation::Service {
                    instances: value(table.instances, NonZeroUsize::MIN),
                },
            },
            drain_generations: value(table.drain_generations.or(defaults.drain_generations), None)
                .filter(|_| has_files),
            gate: table.gate.map(|path| self.path(path, &format!("{key}.gate"))),
            gate_patience: value(table.gate_patience, config::PATIENCE),
            record: table.record.map(|path| self.path(path, &format!("{key}.record"))),
            // Rules of the defaults are for services that have clients with network addresses.
            access: if listen.iter().any(has_sources) {
                access(table.access.or(defaults.access.unwrap_or_default()))
            } else {
                Access::default()
            },
            listen,
            limits: limits(table.limits.or(defaults.limits.unwrap_or_default())),
            log_connections: match table.log_connections.or(defaults.log_connections) {
                None | Some(LogConnections::All) => config::LogConnections::All,
                Some(LogConnections::Failed) => config::LogConnections::Failed,
                Some(LogConnections::None) => config::LogConnections::None,
            },
        }
    }

    fn listen(&self, table: ListenTable, sockets: &SocketTable, key: &str) -> Listen {
        for option in options(&table.socket) {
            if let Some(why) = table.address.0.ignores(option) {
                self.refuse(&format!("{key}.socket.{option}"), &without_effect(why));
            }
        }
        let socket = socket(table.socket.or(sockets.clone())).at(&table.address.0);
        let proxy_protocol = table.proxy_protocol.map(|table| {
            if table.from.is_empty() {
                let message = "the list is empty; expected the networks of the trusted proxies";
                self.refuse(&format!("{key}.proxy-protocol.from"), message);
            }
            config::ProxyProtocol {
                trusted: list(table.from),
                timeout: value(table.timeout, config::PROXY_TIMEOUT),
            }
        });
        if let Some(tls) = &table.tls
            && tls.client_optional
            && tls.client_ca.is_none()
        {
            let message = "requires `client-ca` to be set";
            self.refuse(&format!("{key}.tls.client-optional"), message);
        }
        Listen {
            address: self.address(table.address.0, key),
            name: table.name.map(|name| name.0),
            socket,
            proxy_protocol,
            tls: table.tls.map(|table| self.tls(table, &format!("{key}.tls"))),
        }
    }

    /// The same address, with a path from the directory of the file.
    fn address(&self, address: Address, key: &str) -> Address {
        let Address::Unix(path) = address else {
            return address;
        };
        let path = self.path(path, key);
        // It is bound by its whole path, since the directory that the process is in may change.
        let length = std::path::absolute(&path).map_or(0, |path| path.as_os_str().len());
        if length > values::SOCKET_PATH {
            self.refuse(key, &values::too_long(length));
        }
        Address::Unix(path)
    }

    /// The path of a component.
    fn component(&self, path: PathBuf, key: &str) -> PathBuf {
        if let Err(message) = values::component(&path) {
            self.refuse(key, &message);
        }
        self.base.join(path)
    }

    fn tls(&self, table: TlsTable, at: &str) -> config::Tls {
        let identity = |certificate, key, at: &str| config::Identity {
            certificate: self.path_in_one_line(certificate, &format!("{at}.certificate")),
            key: self.secret_file(key, &format!("{at}.key")),
        };
        let mut identities = vec![identity(table.certificate, table.key, at)];
        let more = table.more.into_iter().enumerate();
        identities.extend(
            more.map(|(index, more)| identity(more.certificate, more.key, &format!("{at}.more[{index}]"))),
        );
        config::Tls {
            identities,
            alpn: list(table.alpn),
            clients: table.client_ca.map(|authorities| config::ClientCertificates {
                authorities: self.path_in_one_line(authorities, &format!("{at}.client-ca")),
                required: !table.client_optional,
            }),
            timeout: value(table.timeout, config::TLS_TIMEOUT),
        }
    }

    fn grants(&self, table: GrantsTable, args: Vec<String>, key: &str) -> Grants {
        let env = table.env.unwrap_or_default();
        for (name, value) in &env {
            let checked = values::variable_name(name).and_then(|()| values::without_nul(value));
            if let Err(message) = checked {
                self.refuse(&format!("{key}.env.{name}"), &message);
            }
        }
        let mut dirs = list(table.dirs.unwrap_or_default());
        for dir in &mut dirs {
            dir.host = self.base.join(&dir.host);
        }
        Grants {
            args,
            env: env.into_iter().collect(),
            dirs,
            outbound: list(table.allow_outbound.unwrap_or_default()),
            writable_by_others: Vec::new(),
        }
    }

    /// Finds services of one name, and listeners of which only one could be bound.
    fn refuse_clashes(&self, services: &[Service], admin: Option<&config::Admin>) {
        for clash in config::clashes(services, admin) {
            let service = self
                .tables
                .numbers
                .get(clash.service)
                .copied()
                .unwrap_or_default();
            let key = match clash.at {
                At::Key(key) => format!("service[{service}].{key}"),
                At::Limit(key) => format!("service[{service}].limits.{key}"),
                At::Listener(number) => format!("service[{service}].listen[{number}]"),
                At::OfListener(number, key) => format!("service[{service}].listen[{number}].{key}"),
                At::Admin(key) => key.to_owned(),
            };
            self.refuse(&key, &clash.to_string());
        }
    }

    /// The same path of a file with a secret, from the directory of the file.
    fn secret_file(&self, path: PathBuf, key: &str) -> PathBuf {
        self.checked(path, key, |path| values::secret_file(path, self.base))
    }

    /// The same path without line breaks, from the directory of the file.
    fn path_in_one_line(&self, path: PathBuf, key: &str) -> PathBuf {
        self.checked(path, key, values::path_in_one_line)
    }

    /// The same path, from the directory of the file.
    fn path(&self, path: PathBuf, key: &str) -> PathBuf {
        self.checked(path, key, values::path)
    }

    fn checked(&self, path: PathBuf, key: &str, check: impl Fn(&Path) -> Result<(), String>) -> PathBuf {
        if path.as_os_str().is_empty() {
            self.refuse(key, "the path is empty; expected a path, or remove the key");
        } else if let Err(message) = check(&path) {
            self.refuse(key, &message);
        }
        self.base.join(path)
    }

    /// Notes a problem with `key`. What a service lacks can be missing only because its value was
    /// refused, so this ignores services that are partial.
    fn refuse(&self, key: &str, message: &str) {
        let path: Vec<_> = place::steps(key).collect();
        if place::service_of(&path).is_some_and(|number| self.tables.is_partial(number)) {
            return;
        }
        self.refused.borrow_mut().push(key.to_owned());
        let mut problems = self.problems.borrow_mut();
        if problems.len() >= MAX_SHOWN {
            self.further.set(true);
            return;
        }
        let places = self.places.get_or_init(|| Places::of(self.text));
        problems.push(Problem::of(places, key, message.to_owned()));
    }
}

/// The keys that a table of socket options sets.
fn options(table: &SocketTable) -> Vec<&'static str> {
    let SocketTable {
        backlog,
        nodelay,
        keepalive,
        receive_buffer,
        send_buffer,
        dual_stack,
        mode,
        owner,
    } = table;
    let keys = [
        ("backlog", backlog.is_some()),
        ("nodelay", nodelay.is_some()),
        ("keepalive", keepalive.is_some()),
        ("receive-buffer", receive_buffer.is_some()),
        ("send-buffer", send_buffer.is_some()),
        ("dual-stack", dual_stack.is_some()),
        ("mode", mode.is_some()),
        ("owner", owner.is_some()),
    ];
    keys.into_iter()
        .filter_map(|(key, is_set)| is_set.then_some(key))
        .collect()
}

fn without_effect(why: &str) -> String {
    format!("has no effect here: {why}; remove the key")
}

fn value<K: Kind>(word: Option<Word<K>>, default: K::Value) -> K::Value {
    word.map_or(default, |word| word.0)
}

fn list<K: Kind>(words: Vec<Word<K>>) -> Vec<K::Value> {
    words.into_iter().map(|word| word.0).collect()
}

fn access(table: AccessTable) -> Access {
    Access {
        allow: list(table.allow.unwrap_or_default()),
        deny: list(table.deny.unwrap_or_default()),
    }
}

fn socket(table: SocketTable) -> config::SocketOptions {
    let default = config::SocketOptions::default();
    config::SocketOptions {
        backlog: value(table.backlog, default.backlog),
        nodelay: table.nodelay.unwrap_or(default.nodelay),
        keepalive: value(table.keepalive, default.keepalive),
        receive_buffer: value(table.receive_buffer, default.receive_buffer),
        send_buffer: value(table.send_buffer, default.send_buffer),
        dual_stack: table.dual_stack,
        mode: table.mode.map(|mode| mode.0),
        owner: table.owner.map(|owner| owner.0),
    }
}

fn limits(table: LimitsTable) -> Limits {
    let default = Limits::default();
    Limits {
        max_connections: value(table.max_connections, default.max_connections),
        max_connections_per_source: value(
            table.max_connections_per_source,
            default.max_connections_per_source,
        ),
        max_rate: value(table.max_rate, default.max_rate),
        max_rate_per_source: value(table.max_rate_per_source, default.max_rate_per_source),
        max_memory: value(table.max_memory, default.max_memory),
        cpu_slice: value(table.cpu_slice, default.cpu_slice),
        max_call_time: value(table.max_call_time, default.max_call_time),
        max_cpu_time: value(table.max_cpu_time, default.max_cpu_time),
        first_byte_timeout: value(table.first_byte_timeout, default.first_byte_timeout),
        idle_timeout: value(table.idle_timeout, default.idle_timeout),
        write_timeout: value(table.write_timeout, default.write_timeout),
        max_lifetime: value(table.max_lifetime, default.max_lifetime),
        max_bytes_in: value(table.max_bytes_in, default.max_bytes_in),
        max_bytes_out: value(table.max_bytes_out, default.max_bytes_out),
    }
}
