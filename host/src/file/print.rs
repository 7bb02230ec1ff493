//! A [`Config`] as a file, with all that is in force.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::keys::{
    AccessTable, AdminTable, DefaultsTable, File, GrantsTable, IdentityTable, Isolation, LimitsTable,
    ListenEntry, ListenTable, LogConnections, LogFormat, LogLevel, LogTable, OtlpTable, ProxyProtocolTable,
    ServiceTable, SocketTable, TlsTable,
};
use super::words::{Kind, Word};
use crate::config::{self, Address, CacheDir, CompileMemory, Config, Limits, Listen, Service, Setting, Tls};
use crate::values::OFF;

/// The file that says what `config` says, whatever the defaults are.
///
/// # Errors
///
/// A path is not UTF-8, which TOML has to be.
pub fn print(config: &Config) -> anyhow::Result<String> {
    check_paths(config)?;
    let file = File {
        threads: config.threads.map(Word),
        drain_timeout: Some(Word(config.drain_timeout)),
        cache: match &config.cache {
            CacheDir::OfUser => None,
            CacheDir::Off => Some(OFF.to_owned()),
            CacheDir::At(dir) => Some(dir.to_string_lossy().into_owned()),
        },
        max_compile_memory: match config.max_compile_memory {
            CompileMemory::Default => None,
            memory => Some(Word(memory)),
        },
        log: LogTable {
            format: Some(match config.log.format {
                config::LogFormat::Text => LogFormat::Text,
                config::LogFormat::Json => LogFormat::Json,
            }),
            level: Some(match config.log.level {
                config::LogLevel::Error => LogLevel::Error,
                config::LogLevel::Warn => LogLevel::Warn,
                config::LogLevel::Info => LogLevel::Info,
                config::LogLevel::Debug => LogLevel::Debug,
                config::LogLevel::Trace => LogLevel::Trace,
            }),
        },
        admin: config.admin.as_ref().map(|admin| AdminTable {
            listen: Word(admin.address.clone()),
            token: admin.token.clone(),
        }),
        otlp: config.otlp.as_ref().map(|otlp| OtlpTable {
            endpoint: Word(otlp.endpoint.clone()),
            sample: Some(Word(otlp.sample)),
        }),
        defaults: DefaultsTable::default(),
        services: config.services.iter().map(service).collect(),
    };
    toml::to_string(&file).context("cannot write the configuration as TOML")
}

/// Checks that all paths can be written to a services file.
fn check_paths(config: &Config) -> anyhow::Result<()> {
    let mut paths: Vec<(&str, &Path)> = Vec::new();
    if let CacheDir::At(dir) = &config.cache {
        paths.push(("cache", dir));
    }
    let admin = config.admin.as_ref().and_then(|admin| path_of(&admin.address));
    paths.extend(admin.map(|path| ("admin.listen", path)));
    let token = config.admin.as_ref().and_then(|admin| admin.token.as_deref());
    paths.extend(token.map(|path| ("admin.token", path)));
    for service in &config.services {
        paths.extend(service.component.iter().map(|path| ("component", &**path)));
        paths.extend(service.middleware.iter().map(|path| ("middleware", &**path)));
        paths.extend(service.gate.iter().map(|path| ("gate", &**path)));
        paths.extend(service.record.iter().map(|path| ("record", &**path)));
        let dirs = service.grants.dirs.iter();
        paths.extend(dirs.map(|dir| ("grants.dirs", &*dir.host)));
        let addresses = service.listen.iter().map(|listen| &listen.address);
        paths.extend(addresses.filter_map(path_of).map(|path| ("listen", path)));
        for tls in service.listen.iter().filter_map(|listen| listen.tls.as_ref()) {
            for identity in &tls.identities {
                paths.push(("listen.tls.certificate", &identity.certificate));
                paths.push(("listen.tls.key", &identity.key));
            }
            let clients = tls.clients.iter();
            paths.extend(clients.map(|clients| ("listen.tls.client-ca", &*clients.authorities)));
        }
    }
    match paths.into_iter().find(|(_, path)| path.to_str().is_none()) {
        None => Ok(()),
        Some((key, path)) => bail!(
            "the path `{}` of {} is not valid UTF-8, but a services file is; rename the file",
            path.display(),
            Setting::of(key)
        ),
    }
}

/// The path of a Unix socket.
fn path_of(address: &Address) -> Option<&Path> {
    match address {
        Address::Unix(path) => Some(path),
        _ => None,
    }
}

fn service(service: &Service) -> ServiceTable {
    let has_files = service.component.is_some() || !service.middleware.is_empty();
    ServiceTable {
        name: Word(service.name.clone()),
        listen: service
            .listen
            .iter()
            .map(|one| ListenEntry(listen(one)))
            .collect(),
        component: service.component.clone(),
        middleware: service.middleware.clone(),
        args: service.grants.args.clone(),
        gate: service.gate.clone(),
        gate_patience: service.gate.as_ref().map(|_| Word(service.gate_patience)),
        record: service.record.clone(),
        preinit: Some(service.preinit),
        watch: Some(service.watch),
        migrate: Some(service.migrate),
        isolation: Some(match service.isolation {
            config::Isolation::Connection => Isolation::Connection,
            config::Isolation::Service { .. } => Isolation::Service,
        }),
        instances: match service.isolation {
            config::Isolation::Connection => None,
            config::Isolation::Service { instances } => Some(Word(instances)),
        },
        drain_generations: has_files.then_some(Word(service.drain_generations)),
        log_connections: Some(match service.log_connections {
            config::LogConnections::All => LogConnections::All,
            config::LogConnections::Failed => LogConnections::Failed,
            config::LogConnections::None => LogConnections::None,
        }),
        grants: GrantsTable {
            env: Some(service.grants.env.iter().cloned().collect()),
            dirs: Some(words(&service.grants.dirs)),
            allow_outbound: Some(words(&service.grants.outbound)),
        },
        access: AccessTable {
            allow: Some(words(&service.access.allow)),
            deny: Some(words(&service.access.deny)),
        },
        // Each listener says what is in force for it.
        socket: SocketTable::default(),
        limits: limits(&service.limits),
    }
}

fn listen(listen: &Listen) -> ListenTable {
    let socket = &listen.socket;
    let has_effect = |option| listen.address.ignores(option).is_none();
    ListenTable {
        address: Word(listen.address.clone()),
        name: listen.name.clone().map(Word),
        socket: SocketTable {
            backlog: has_effect("backlog").then_some(Word(socket.backlog)),
            nodelay: has_effect("nodelay").then_some(socket.nodelay),
            keepalive: has_effect("keepalive").then_some(Word(socket.keepalive)),
            receive_buffer: has_effect("receive-buffer").then_some(Word(socket.receive_buffer)),
            send_buffer: has_effect("send-buffer").then_some(Word(socket.send_buffer)),
            dual_stack: socket.dual_stack,
            mode: socket.mode.map(Word),
            owner: socket.owner.clone().map(Word),
        },
        proxy_protocol: listen.proxy_protocol.as_ref().map(|proxy| ProxyProtocolTable {
            from: words(&proxy.trusted),
            timeout: Some(Word(proxy.timeout)),
        }),
        tls: listen.tls.as_ref().and_then(tls),
    }
}

fn tls(tls: &Tls) -> Option<TlsTable> {
    let (first, more) = tls.identities.split_first()?;
    Some(TlsTable {
        certificate: first.certificate.clone(),
        key: first.key.clone(),
        more: more
            .iter()
            .map(|identity| IdentityTable {
                certificate: identity.certificate.clone(),
                key: identity.key.clone(),
            })
            .collect(),
        alpn: words(&tls.alpn),
        client_ca: tls.clients.as_ref().map(|clients| clients.authorities.clone()),
        client_optional: tls.clients.as_ref().is_some_and(|clients| !clients.required),
        timeout: Some(Word(tls.timeout)),
    })
}

fn limits(limits: &Limits) -> LimitsTable {
    LimitsTable {
        max_connections: Some(Word(limits.max_connections)),
        max_connections_per_source: Some(Word(limits.max_connections_per_source)),
        max_rate: Some(Word(limits.max_rate)),
        max_rate_per_source: Some(Word(limits.max_rate_per_source)),
        max_memory: Some(Word(limits.max_memory)),
        cpu_slice: Some(Word(limits.cpu_slice)),
        max_call_time: Some(Word(limits.max_call_time)),
        max_cpu_time: Some(Word(limits.max_cpu_time)),
        first_byte_timeout: Some(Word(limits.first_byte_timeout)),
        idle_timeout: Some(Word(limits.idle_timeout)),
        write_timeout: Some(Word(limits.write_timeout)),
        max_lifetime: Some(Word(limits.max_lifetime)),
        max_bytes_in: Some(Word(limits.max_bytes_in)),
        max_bytes_out: Some(Word(limits.max_bytes_out)),
    }
}

fn words<K: Kind<Value: Clone>>(values: &[K::Value]) -> Vec<Word<K>> {
    values.iter().cloned().map(Word).collect()
}
