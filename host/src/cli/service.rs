//! The flags that describe one service.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, ArgGroup, Args, Id, ValueEnum};

use super::listen::ListenFlags;
use crate::config::{
    Address, Admin, CacheDir, CompileMemory, Config, Endpoint, GrantedDir, Grants, Isolation, Limits, Log,
    LogConnections, LogFormat, LogLevel, Otlp, Rate, Ratio, Service,
};
use crate::values;

/// What a service is told.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("files").multiple(true)))]
pub(super) struct ServiceFlags {
    /// Name of the service in the log and in metrics [default: the component's file name]
    #[arg(long, value_name = "NAME", value_parser = values::name, help_heading = "Service")]
    pub(super) name: Option<String>,

    /// Component that serves connections [default: an embedded echo guest]
    #[arg(long, value_name = "FILE", group = "files", value_parser = component(), help_heading = "Service")]
    pub(super) component: Option<PathBuf>,

    /// Middleware between the client and the component; repeatable
    ///
    /// The host composes the middlewares with the component when it loads them. The first one is
    /// nearest the client.
    #[arg(long, value_name = "FILE", group = "files", value_parser = component(), help_heading = "Service")]
    pub(super) middleware: Vec<PathBuf>,

    /// Initialise the component once, when the host loads it
    ///
    /// The host calls the function `wizer-initialize` that the component exports. Each connection
    /// starts from the resulting memory.
    #[arg(long, requires = "component", help_heading = "Service")]
    pub(super) preinit: bool,

    /// Reload when the file of the component or of a middleware changes
    ///
    /// New connections use the new component. Open connections keep theirs. SIGHUP reloads too.
    #[arg(long, requires = "files", help_heading = "Service")]
    pub(super) watch: bool,

    /// Give each connection an instance, or share instances in the service
    ///
    /// Connections that share an instance can exchange data, and fail together.
    #[arg(long, value_name = "OF", value_enum, default_value_t = IsolationArg::Connection, help_heading = "Service")]
    pub(super) isolation: IsolationArg,

    /// Number of shared instances, or `cores` for one per core [default: 1]
    ///
    /// Requires `--isolation service`.
    #[arg(long, value_name = "N", value_parser = values::instances, help_heading = "Service")]
    pub(super) instances: Option<NonZeroUsize>,

    /// Move idle sessions to a new component after a reload
    ///
    /// Both components must export the interface `migration`. Other connections keep their
    /// component.
    #[arg(long, requires = "component", help_heading = "Service")]
    pub(super) migrate: bool,

    /// Directory for compiled components, or `off` [default: wasm-inetd in the user's cache
    /// directory]
    #[arg(long, value_name = "DIR", value_parser = values::cache, help_heading = "Service")]
    pub(super) cache: Option<CacheDir>,

    #[command(flatten)]
    pub(super) listeners: ListenFlags,

    /// Number of threads that serve connections [default: one per core]
    #[arg(long, value_name = "N", value_parser = values::threads, help_heading = "Service")]
    pub(super) threads: Option<NonZeroUsize>,

    /// Directory of conversations that a new component must pass
    ///
    /// A reload replays them and keeps the current component if one differs. `wasm-inetd record`
    /// writes such files.
    #[arg(long, value_name = "DIR", requires = "files", value_parser = path(), help_heading = "Service")]
    pub(super) gate: Option<PathBuf>,

    /// How long a guest may take for a step of a conversation of the gate
    #[arg(long, value_name = "TIME", default_value = "5s", requires = "gate", value_parser = values::deadline, help_heading = "Service")]
    pub(super) gate_patience: Duration,

    #[command(flatten)]
    pub(super) grants: GrantFlags,

    #[command(flatten)]
    pub(super) instances_take: InstanceLimitFlags,

    #[command(flatten)]
    pub(super) compiling: CompileFlags,

    #[command(flatten)]
    pub(super) admission: AdmissionFlags,

    #[command(flatten)]
    pub(super) connections_take: ConnectionLimitFlags,

    /// How long a connection may outlive the reload of its component, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", requires = "files", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) drain_generations: Off<Duration>,

    /// How long open connections may continue after SIGINT or SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration, help_heading = "Limits")]
    pub(super) drain_timeout: Duration,

    /// Address of the admin interface: PORT, ADDRESS:PORT or unix:PATH
    ///
    /// Serves a live page at `/` and Prometheus metrics at `/metrics` over HTTP. PORT alone listens
    /// on the loopback address.
    #[arg(long, value_name = "ADDR", value_parser = values::admin_address, help_heading = "Admin")]
    pub(super) admin: Option<Address>,

    /// File with the token that authorises changes over the admin interface
    ///
    /// The token allows a client to close connections, reload, roll back and drain. The host
    /// creates a missing file.
    #[arg(long, value_name = "FILE", requires = "admin", value_parser = secret_file(), help_heading = "Admin")]
    pub(super) admin_token: Option<PathBuf>,

    /// OpenTelemetry collector that receives traces and metrics
    ///
    /// The host sends OTLP over HTTP. Example: `http://127.0.0.1:4318`.
    #[arg(long, value_name = "URL", value_parser = values::endpoint, help_heading = "Telemetry")]
    pub(super) otlp: Option<Endpoint>,

    /// Fraction of connections to trace, from 0 to 1 [default: 1]
    #[arg(long, value_name = "RATIO", value_parser = values::ratio, requires = "otlp", help_heading = "Telemetry")]
    pub(super) otlp_sample: Option<Ratio>,

    /// Which connections are logged when they end
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Connections::All, help_heading = "Log")]
    pub(super) log_connections: Connections,

    /// Format of the log on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text, help_heading = "Log")]
    pub(super) log_format: Format,

    /// Log more: debug messages (-v), everything (-vv)
    #[arg(short, long, action = ArgAction::Count, help_heading = "Log")]
    pub(super) verbose: u8,

    /// Log less: warnings and errors (-q), errors only (-qq)
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose", help_heading = "Log")]
    pub(super) quiet: u8,
}

/// What compiling may take.
#[derive(Debug, Args)]
pub(super) struct CompileFlags {
    /// Memory for compiling one component, or `off` [default: half of the memory of the control
    /// group, or of the machine]
    ///
    /// The host compiles each component in a process of its own. A component that needs more is
    /// refused.
    #[arg(long, value_name = "SIZE", value_parser = values::compile_memory, help_heading = "Limits")]
    pub(super) max_compile_memory: Option<CompileMemory>,
}

/// What guests may use beyond their connection.
#[derive(Debug, Args)]
pub(super) struct GrantFlags {
    /// Environment variable for guests; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::variable, help_heading = "Grants")]
    pub(super) env: Vec<(String, String)>,

    /// Directory for guests, read-only unless :rw is given; repeatable
    #[arg(long = "dir", value_name = "HOST::GUEST[:rw]", value_parser = existing_directory, help_heading = "Grants")]
    pub(super) dirs: Vec<GrantedDir>,

    /// TCP destination that guests may connect to; repeatable
    ///
    /// The host resolves names at start, and again at each reload by SIGHUP or the admin interface.
    #[arg(long, value_name = "HOST:PORT", value_parser = values::destination, help_heading = "Grants")]
    pub(super) allow_outbound: Vec<String>,

    /// Arguments for guests
    #[arg(last = true, value_name = "ARGS")]
    pub(super) args: Vec<String>,
}

/// What instances may take.
#[derive(Debug, Args)]
pub(super) struct InstanceLimitFlags {
    /// Connections served at the same time; others wait in the backlog
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_connections, value_parser = values::connections, help_heading = "Limits")]
    pub(super) max_connections: NonZeroUsize,

    /// Memory of one instance: its linear memories and tables together
    ///
    /// Growth beyond the limit fails, which the guest can handle.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = values::memory, help_heading = "Limits")]
    pub(super) max_memory: usize,

    /// How long a guest computes before other connections get its thread
    #[arg(long, value_name = "TIME", default_value = "2ms", value_parser = values::slice, help_heading = "Limits")]
    pub(super) cpu_slice: Duration,

    /// CPU time of the start of a guest, and of one call of a session, or `off`
    ///
    /// The host resets the connection after that time. A call may wait for the host ten times as
    /// long. In a shared instance both limits apply to a connection that keeps the others waiting.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = off(values::call_time), help_heading = "Limits")]
    pub(super) max_call_time: Off<Duration>,

    /// CPU time of one connection's guest in total, or `off`
    ///
    /// The host resets the connection after that time.
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = off(values::call_time), help_heading = "Limits")]
    pub(super) max_cpu_time: Off<Duration>,
}

/// How long connections may last, and what they may move.
#[derive(Debug, Args)]
pub(super) struct ConnectionLimitFlags {
    /// How long a new connection may stay silent, or `off`
    ///
    /// The host closes a connection on which no byte was sent or received for that time. The time
    /// starts after the PROXY protocol header and the TLS handshake.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) first_byte_timeout: Off<Duration>,

    /// How long a connection may stay silent in both directions, or `off`
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) idle_timeout: Off<Duration>,

    /// How long a client may accept none of the bytes that wait for it, or `off`
    ///
    /// The host resets the connection after that time.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) write_timeout: Off<Duration>,

    /// Longest duration of a connection, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) max_lifetime: Off<Duration>,

    /// Bytes that a client may send on one connection, or `off`
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = off(values::bytes), help_heading = "Limits")]
    pub(super) max_bytes_in: Off<u64>,

    /// Bytes that a guest may send on one connection, or `off`
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = off(values::bytes), help_heading = "Limits")]
    pub(super) max_bytes_out: Off<u64>,
}

/// Which connections are admitted.
#[derive(Debug, Args)]
pub(super) struct AdmissionFlags {
    /// Connections served per source at the same time, or `off`; others are refused
    ///
    /// A source is an IPv4 address, an IPv6 /64 network, or a user on a Unix socket.
    #[arg(long, value_name = "N", default_value = "off", value_parser = off(values::count), help_heading = "Limits")]
    pub(super) max_connections_per_source: Off<NonZeroUsize>,

    /// Connections accepted per second, or `off`; others wait in the backlog
    ///
    /// `30/m` is a rate per minute, `500/h` per hour.
    #[arg(long, value_name = "RATE", default_value = "off", value_parser = off(values::rate), help_heading = "Limits")]
    pub(super) max_rate: Off<Rate>,

    /// Connections accepted per second from one source, or `off`; others are refused
    ///
    /// `30/m` is a rate per minute, `500/h` per hour.
    #[arg(long, value_name = "RATE", default_value = "off", value_parser = off(values::rate), help_heading = "Limits")]
    pub(super) max_rate_per_source: Off<Rate>,
}

impl ServiceFlags {
    /// Says which flags contradict each other or have no effect, in a way that clap does not check.
    pub(super) fn contradiction(&self) -> Option<String> {
        if self.instances.is_some() && self.isolation == IsolationArg::Connection {
            return Some(
                "--instances requires --isolation service: otherwise each connection has its own instance"
                    .to_owned(),
            );
        }
        self.listeners.without_effect().or_else(|| self.grants.repeated())
    }
}

impl GrantFlags {
    /// Says which name is granted twice.
    pub(super) fn repeated(&self) -> Option<String> {
        let grants = Grants {
            env: self.env.clone(),
            dirs: self.dirs.clone(),
            ..Grants::default()
        };
        let (key, what) = grants.repeated().into_iter().next()?;
        Some(format!("{}: {what}", super::flag_of(key)))
    }
}

/// What clap knows the flags of a group by.
pub(super) fn ids<T: Args>() -> Vec<Id> {
    let flags = T::augment_args(clap::Command::new(""));
    flags.get_arguments().map(|flag| flag.get_id().clone()).collect()
}

/// Has clap keep any path. Its own parser of paths reports an empty one as missing.
fn any_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Has clap keep a path.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    any_path().try_map(|path| {
        if path.as_os_str().is_empty() {
            return Err("the path is empty; expected a path".to_owned());
        }
        values::path(&path).map(|()| path)
    })
}

/// Has clap keep a path without line breaks.
pub(super) fn path_in_one_line() -> impl TypedValueParser<Value = PathBuf> {
    path().try_map(|path| values::path_in_one_line(&path).map(|()| path))
}

/// Has clap keep the path of a file that contains a secret.
pub(super) fn secret_file() -> impl TypedValueParser<Value = PathBuf> {
    path().try_map(|path| values::secret_file(&path, Path::new("")).map(|()| path))
}

/// Has clap keep the path of a component.
pub(super) fn component() -> impl TypedValueParser<Value = PathBuf> {
    any_path().try_map(|path| values::component(&path).map(|()| path))
}

fn existing_directory(text: &str) -> Result<GrantedDir, String> {
    let dir = values::directory(text)?;
    if dir.host.is_dir() {
        Ok(dir)
    } else {
        let host = dir.host.to_string_lossy();
        Err(format!("{} is not a directory", values::quoted(&host, "HOST")))
    }
}

/// A value that can be `off`. (An `Option` would be taken for an argument that may be left out.)
#[derive(Clone, Copy, Debug)]
pub(super) struct Off<T>(pub(super) Option<T>);

/// Has clap keep what `parse` makes of a text that may be `off`.
pub(super) fn off<T: 'static>(
    parse: fn(&str) -> Result<Option<T>, String>,
) -> impl Fn(&str) -> Result<Off<T>, String> + Clone + Send + Sync + 'static {
    move |text| parse(text).map(Off)
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum IsolationArg {
    Connection,
    Service,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Connections {
    All,
    Failed,
    None,
}

impl From<ServiceFlags> for Config {
    fn from(flags: ServiceFlags) -> Self {
        let (listen, access) = flags.listeners.into_config();
        let service = Service {
            name: flags
                .name
                .unwrap_or_else(|| values::name_of(flags.component.as_deref())),
            component: flags.component,
            middleware: flags.middleware,
            preinit: flags.preinit,
            watch: flags.watch,
            migrate: flags.migrate,
            isolation: match flags.isolation {
                IsolationArg::Connection => Isolation::Connection,
                IsolationArg::Service => Isolation::Service {
                    instances: flags.instances.unwrap_or(NonZeroUsize::MIN),
                },
            },
            grants: flags.grants.into(),
            drain_generations: flags.drain_generations.0,
            gate: flags.gate,
            gate_patience: flags.gate_patience,
            record: None,
            listen,
            access,
            limits: limits(
                flags.instances_take,
                Some(flags.connections_take),
                Some(flags.admission),
            ),
            log_connections: match flags.log_connections {
                Connections::All => LogConnections::All,
                Connections::Failed => LogConnections::Failed,
                Connections::None => LogConnections::None,
            },
        };
        Self {
            services: vec![service],
            cache: flags.cache.unwrap_or(CacheDir::OfUser),
            max_compile_memory: flags.compiling.max_compile_memory.unwrap_or_default(),
            threads: flags.threads,
            drain_timeout: flags.drain_timeout,
            admin: flags.admin.map(|address| Admin {
                address,
                token: flags.admin_token,
            }),
            otlp: flags.otlp.map(|endpoint| Otlp {
                endpoint,
                sample: flags.otlp_sample.unwrap_or(Ratio::ALL),
            }),
            log: Log {
                format: match flags.log_format {
                    Format::Text => LogFormat::Text,
                    Format::Json => LogFormat::Json,
                },
                level: match (flags.verbose, flags.quiet) {
                    (0, 0) => LogLevel::Info,
                    (0, 1) => LogLevel::Warn,
                    (0, _) => LogLevel::Error,
                    (1, _) => LogLevel::Debug,
                    (_, _) => LogLevel::Trace,
                },
            },
        }
    }
}

impl From<GrantFlags> for Grants {
    fn from(flags: GrantFlags) -> Self {
        Self {
            args: flags.args,
            env: flags.env,
            dirs: flags.dirs,
            outbound: flags.allow_outbound,
            ..Self::default()
        }
    }
}

/// The limits that are set by these flags. A command that has no flags for some of them cannot
/// reach those.
pub(super) fn limits(
    instances: InstanceLimitFlags,
    connections: Option<ConnectionLimitFlags>,
    admission: Option<AdmissionFlags>,
) -> Limits {
    let mut limits = Limits {
        max_connections: instances.max_connections,
        max_memory: instances.max_memory,
        cpu_slice: instances.cpu_slice,
        max_call_time: instances.max_call_time.0,
        max_cpu_time: instances.max_cpu_time.0,
        ..Limits::default()
    };
    if let Some(connections) = connections {
        limits = Limits {
            first_byte_timeout: connections.first_byte_timeout.0,
            idle_timeout: connections.idle_timeout.0,
            write_timeout: connections.write_timeout.0,
            max_lifetime: connections.max_lifetime.0,
            max_bytes_in: connections.max_bytes_in.0,
            max_bytes_out: connections.max_bytes_out.0,
            ..limits
        };
    }
    if let Some(admission) = admission {
        limits = Limits {
            max_connections_per_source: admission.max_connections_per_source.0,
            max_rate: admission.max_rate.0,
            max_rate_per_source: admission.max_rate_per_source.0,
            ..limits
        };
    }
    limits
}
