//! From tables to a checked [`Config`].

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::keys::{
    AccessTable, DefaultsTable, File, GrantsTable, Isolation, LimitsTable, ListenTable, LogConnections,
    LogFormat, LogLevel, ServiceTable, SocketTable, TlsTable,
};
use super::problem::Problem;
use super::words::{Kind, Word};
use crate::config::{self, Access, Address, At, CacheDir, Config, Grants, Limits, Listen, Ratio, Service};
use crate::values;

/// Makes a [`Config`] of a file.
pub(super) struct Builder<'a> {
    /// All that the file says, for the lines of problems.
    pub(super) text: &'a str,
    /// What its paths are meant from.
    pub(super) base: &'a Path,
}

impl Builder<'_> {
    pub(super) fn config(&self, file: File) -> Result<Config, Problem> {
        if file.services.is_empty() {
            return Err(self.problem(
                0..0,
                "service",
                "no service is defined; expected at least one [[service]] table",
            ));
        }
        let mut services = Vec::new();
        let mut places = Vec::new();
        for (index, table) in file.services.into_iter().enumerate() {
            places.push(Place {
                name: table.name.span(),
                listen: table.listen.iter().map(Spanned::span).collect(),
            });
            services.push(self.service(index, table, file.defaults.clone())?);
        }
        self.unclashing(&services, &places)?;
        Ok(Config {
            services,
            cache: match file.cache.as_deref().map(values::cache) {
                None => CacheDir::OfUser,
                Some(CacheDir::At(dir)) => CacheDir::At(self.path(dir)),
                Some(other) => other,
            },
            admin: file.admin.map(|table| config::Admin {
                address: match table.listen.0 {
                    Address::Unix(path) => Address::Unix(self.path(path)),
                    other => other,
                },
                token: table.token.map(|token| self.path(token)),
            }),
            otlp: file.otlp.map(|table| config::Otlp {
                endpoint: table.endpoint.0,
                sample: value(table.sample, Ratio::ALL),
            }),
            threads: value(file.threads, values::cores()),
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
        })
    }

    fn service(
        &self,
        index: usize,
        table: ServiceTable,
        defaults: DefaultsTable,
    ) -> Result<Service, Problem> {
        let key = format!("service[{index}]");
        let at = table.name.span();
        let component = table.component.map(|path| self.path(path));
        let middleware: Vec<_> = table.middleware.into_iter().map(|path| self.path(path)).collect();
        let has_files = component.is_some() || !middleware.is_empty();
        let preinit = table.preinit.or(defaults.preinit).unwrap_or_default();
        let watch = table.watch.or(defaults.watch).unwrap_or_default();
        let migrate = table.migrate.or(defaults.migrate).unwrap_or_default();
        // What the defaults say is for services that it can be said of.
        let takes_a_file = [
            (table.preinit, component.is_some(), "preinit", "`component`"),
            (table.watch, has_files, "watch", "`component` or `middleware`"),
            (table.migrate, component.is_some(), "migrate", "`component`"),
        ];
        for (said, has_one, name, needed) in takes_a_file {
            if said == Some(true) && !has_one {
                let message = format!("requires {needed} to be set");
                return Err(self.problem(at, &format!("{key}.{name}"), &message));
            }
        }
        if table.gate_patience.is_some() && table.gate.is_none() {
            return Err(self.problem(at, &format!("{key}.gate-patience"), "requires `gate` to be set"));
        }
        let has_component = component.is_some();
        if table.listen.is_empty() {
            return Err(self.problem(
                at,
                &format!("{key}.listen"),
                "the list is empty; expected at least one address",
            ));
        }
        let sockets = table.socket.or(defaults.socket.unwrap_or_default());
        let mut listen = Vec::new();
        for (number, entry) in table.listen.into_iter().enumerate() {
            let key = format!("{key}.listen[{number}]");
            let span = entry.span();
            listen.push(self.listen(entry.into_inner().0, &sockets, &key, span)?);
        }
        let grants = table.grants.or(defaults.grants.unwrap_or_default());
        let grants = self.grants(grants, table.args, &format!("{key}.grants.dirs"), &at)?;
        Ok(Service {
            name: table.name.into_inner().0,
            component,
            middleware,
            preinit: preinit && has_component,
            watch: watch && has_files,
            grants,
            migrate: migrate && has_component,
            isolation: match (table.isolation.or(defaults.isolation), table.instances) {
                (None | Some(Isolation::Connection), None) => config::Isolation::Connection,
                (None | Some(Isolation::Connection), Some(_)) => {
                    let message = "requires `isolation = \"service\"`; otherwise each connection \
                                   has its own instance";
                    return Err(self.problem(at, &format!("{key}.instances"), message));
                }
                (Some(Isolation::Service), instances) => config::Isolation::Service {
                    instances: value(instances, NonZeroUsize::MIN),
                },
            },
            drain_generations: value(table.drain_generations.or(defaults.drain_generations), None),
            gate: table.gate.map(|path| self.path(path)),
            gate_patience: value(table.gate_patience, config::PATIENCE),
            record: table.record.map(|path| self.path(path)),
            listen,
            access: access(table.access.or(defaults.access.unwrap_or_default())),
            limits: limits(table.limits.or(defaults.limits.unwrap_or_default())),
            log_connections: match table.log_connections.or(defaults.log_connections) {
                None | Some(LogConnections::All) => config::LogConnections::All,
                Some(LogConnections::Failed) => config::LogConnections::Failed,
                Some(LogConnections::None) => config::LogConnections::None,
            },
        })
    }

    fn listen(
        &self,
        table: ListenTable,
        sockets: &SocketTable,
        key: &str,
        span: Range<usize>,
    ) -> Result<Listen, Problem> {
        let socket = socket(table.socket.or(sockets.clone()));
        let proxy_protocol = match table.proxy_protocol {
            Some(table) if table.from.is_empty() => {
                let key = format!("{key}.proxy-protocol.from");
                let message = "the list is empty; expected the networks of the trusted proxies";
                return Err(self.problem(span, &key, message));
            }
            other => other.map(|table| config::ProxyProtocol {
                trusted: list(table.from),
                timeout: value(table.timeout, config::PROXY_TIMEOUT),
            }),
        };
        if let Some(tls) = &table.tls
            && tls.client_optional
            && tls.client_ca.is_none()
        {
            let message = "requires `client-ca` to be set";
            return Err(self.problem(span, &format!("{key}.tls.client-optional"), message));
        }
        let address = match table.address.0 {
            Address::Unix(path) => {
                let path = self.path(path);
                // It is bound by its whole path, since the directory that the process is in may change.
                let length = std::path::absolute(&path).map_or(0, |path| path.as_os_str().len());
                if length > values::SOCKET_PATH {
                    return Err(self.problem(span, key, &values::too_long(length)));
                }
                Address::Unix(path)
            }
            other => other,
        };
        Ok(Listen {
            address,
            name: table.name,
            socket,
            proxy_protocol,
            tls: table.tls.map(|table| self.tls(table)),
        })
    }

    fn tls(&self, table: TlsTable) -> config::Tls {
        let identity = |certificate, key| config::Identity {
            certificate: self.path(certificate),
            key: self.path(key),
        };
        let mut identities = vec![identity(table.certificate, table.key)];
        identities.extend(
            table
                .more
                .into_iter()
                .map(|more| identity(more.certificate, more.key)),
        );
        config::Tls {
            identities,
            alpn: list(table.alpn),
            clients: table.client_ca.map(|authorities| config::ClientCertificates {
                authorities: self.path(authorities),
                required: !table.client_optional,
            }),
            timeout: value(table.timeout, config::TLS_TIMEOUT),
        }
    }

    fn grants(
        &self,
        table: GrantsTable,
        args: Vec<String>,
        key: &str,
        at: &Range<usize>,
    ) -> Result<Grants, Problem> {
        let mut dirs = list(table.dirs.unwrap_or_default());
        for dir in &mut dirs {
            dir.host = self.path(dir.host.clone());
            if !dir.host.is_dir() {
                let message = format!("`{}` is not a directory", dir.host.display());
                return Err(self.problem(at.clone(), key, &message));
            }
        }
        Ok(Grants {
            args,
            env: table.env.unwrap_or_default().into_iter().collect(),
            dirs,
            outbound: list(table.allow_outbound.unwrap_or_default()),
        })
    }

    /// Finds services of one name, and listeners of which only one could be bound.
    fn unclashing(&self, services: &[Service], places: &[Place]) -> Result<(), Problem> {
        let Err(clash) = config::clash(services) else {
            return Ok(());
        };
        let place = places.get(clash.service);
        let service = clash.service;
        let (key, span) = match clash.at {
            At::Key(key) => (
                format!("service[{service}].{key}"),
                place.map(|place| place.name.clone()),
            ),
            At::Limit(key) => (
                format!("service[{service}].limits.{key}"),
                place.map(|place| place.name.clone()),
            ),
            At::Listener(number) => (
                format!("service[{service}].listen[{number}]"),
                place.and_then(|place| place.listen.get(number).cloned()),
            ),
        };
        Err(self.problem(span.unwrap_or_default(), &key, &clash.to_string()))
    }

    fn path(&self, path: PathBuf) -> PathBuf {
        self.base.join(path)
    }

    fn problem(&self, span: Range<usize>, key: &str, message: &str) -> Problem {
        Problem::at(self.text, span, key.to_owned(), message.to_owned())
    }
}

/// Where in the file a service is.
struct Place {
    name: Range<usize>,
    listen: Vec<Range<usize>>,
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
