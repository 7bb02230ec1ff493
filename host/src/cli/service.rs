//! The flags that describe one service.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args, Id, ValueEnum};

use super::listen::ListenFlags;
use crate::config::{
    Address, Admin, CacheDir, Config, Endpoint, GrantedDir, Grants, Isolation, Limits, Log, LogConnections,
    LogFormat, LogLevel, Otlp, Rate, Ratio, Service,
};
use crate::values;

/// What a service is told.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("files").multiple(true)))]
pub(super) struct ServiceFlags {
    /// What the log calls the service [default: the name of the component's file]
    #[arg(long, value_name = "NAME", value_parser = values::name, help_heading = "Service")]
    pub(super) name: Option<String>,

    /// Component to serve with; without it an embedded guest echoes
    #[arg(long, value_name = "FILE", group = "files", help_heading = "Service")]
    pub(super) component: Option<PathBuf>,

    /// Component that stands between the peer and the one that serves; may be repeated, the first is nearest the peer
    #[arg(long, value_name = "FILE", group = "files", help_heading = "Service")]
    pub(super) middleware: Vec<PathBuf>,

    /// Initialise the component once, when it is loaded, by the function `wizer-initialize` that it exports
    #[arg(long, requires = "component", help_heading = "Service")]
    pub(super) preinit: bool,

    /// Load the component again when its file or that of a middleware changes, as SIGHUP does; connections that are open keep what they have
    #[arg(long, requires = "files", help_heading = "Service")]
    pub(super) watch: bool,

    /// What has an instance of its own: each connection, or the service, whose connections can meet then
    #[arg(long, value_name = "OF", value_enum, default_value_t = IsolationArg::Connection, help_heading = "Service")]
    pub(super) isolation: IsolationArg,

    /// Instances of a service by `--isolation service`, or `cores` for one per core [default: 1]
    #[arg(long, value_name = "N", value_parser = values::instances, help_heading = "Service")]
    pub(super) instances: Option<NonZeroUsize>,

    /// Have idle sessions move to a new generation, if both components export `migration`; others keep what they have
    #[arg(long, requires = "component", help_heading = "Service")]
    pub(super) migrate: bool,

    /// Directory that keeps compiled components for the next start, or `off` [default: in the user's cache directory]
    #[arg(long, value_name = "DIR", help_heading = "Service")]
    pub(super) cache: Option<String>,

    #[command(flatten)]
    pub(super) listeners: ListenFlags,

    /// Threads that serve connections [default: one per core]
    #[arg(long, value_name = "N", value_parser = values::threads, help_heading = "Service")]
    pub(super) threads: Option<NonZeroUsize>,

    /// Directory of conversations that a component has to pass before it replaces another, as `host record` writes them
    #[arg(long, value_name = "DIR", help_heading = "Service")]
    pub(super) gate: Option<PathBuf>,

    #[command(flatten)]
    pub(super) grants: GrantFlags,

    #[command(flatten)]
    pub(super) limits: LimitFlags,

    /// How long connections may go on when another generation has replaced theirs, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) drain_generations: Off<Duration>,

    /// How long connections may go on after SIGINT or SIGTERM before they are closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration, help_heading = "Limits")]
    pub(super) drain_timeout: Duration,

    /// Address at which the host can be looked at by HTTP, as PORT of the loopback, ADDRESS:PORT or unix:PATH: /metrics, a page at /
    #[arg(long, value_name = "ADDR", value_parser = values::admin_address, help_heading = "Admin")]
    pub(super) admin: Option<Address>,

    /// File of the token by which connections can be closed, components swapped, and a drain begun; made if it is not there
    #[arg(long, value_name = "FILE", requires = "admin", help_heading = "Admin")]
    pub(super) admin_token: Option<PathBuf>,

    /// Collector that traces and metrics are sent to by OTLP over HTTP, as http://127.0.0.1:4318
    #[arg(long, value_name = "URL", value_parser = values::endpoint, help_heading = "Telemetry")]
    pub(super) otlp: Option<Endpoint>,

    /// Part of all connections that are traced, from 0 to 1 [default: 1]
    #[arg(long, value_name = "RATIO", value_parser = values::ratio, requires = "otlp", help_heading = "Telemetry")]
    pub(super) otlp_sample: Option<Ratio>,

    /// Connections that have a line in the log when they end: all, those that failed, or none
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Connections::All, help_heading = "Log")]
    pub(super) log_connections: Connections,

    /// Form of the lines on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text, help_heading = "Log")]
    pub(super) log_format: Format,

    /// Log more: reasons (-v), everything (-vv)
    #[arg(short, long, action = ArgAction::Count, help_heading = "Log")]
    pub(super) verbose: u8,

    /// Log less: warnings and errors (-q), errors only (-qq)
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose", help_heading = "Log")]
    pub(super) quiet: u8,
}

/// What guests may use beyond their connection.
#[derive(Debug, Args)]
pub(super) struct GrantFlags {
    /// Variable for the environment of guests; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::variable, help_heading = "Grants")]
    pub(super) env: Vec<(String, String)>,

    /// Directory for guests, to be read, or with :rw to be written too; may be repeated
    #[arg(long = "dir", value_name = "HOST::GUEST[:rw]", value_parser = existing_directory, help_heading = "Grants")]
    pub(super) dirs: Vec<GrantedDir>,

    /// Destination that guests may connect to by TCP; may be repeated; names are resolved at the start
    #[arg(long, value_name = "HOST:PORT", value_parser = values::destination, help_heading = "Grants")]
    pub(super) allow_outbound: Vec<String>,

    /// Arguments for guests
    #[arg(last = true, value_name = "ARGS")]
    pub(super) args: Vec<String>,
}

/// What connections may take.
#[derive(Debug, Args)]
pub(super) struct LimitFlags {
    /// Connections served at once; further ones wait in the backlog
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_connections, help_heading = "Limits")]
    pub(super) max_connections: NonZeroUsize,

    /// Connections of one source served at once, or `off`; further ones are refused; IPv6 sources count by their /64
    #[arg(long, value_name = "N", default_value = "off", value_parser = off(values::count), help_heading = "Limits")]
    pub(super) max_connections_per_source: Off<NonZeroUsize>,

    /// Connections accepted in a second (or N/m, N/h), or `off`; further ones wait in the backlog
    #[arg(long, value_name = "RATE", default_value = "off", value_parser = off(values::rate), help_heading = "Limits")]
    pub(super) max_rate: Off<Rate>,

    /// Connections of one source in a second (or N/m, N/h), or `off`; further ones are refused
    #[arg(long, value_name = "RATE", default_value = "off", value_parser = off(values::rate), help_heading = "Limits")]
    pub(super) max_rate_per_source: Off<Rate>,

    /// Memory of one connection: all linear memories and tables of its instance together; growth beyond it fails
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = values::size, help_heading = "Limits")]
    pub(super) max_memory: usize,

    /// How long one connection may keep its thread before others have their turn
    #[arg(long, value_name = "TIME", default_value = "2ms", value_parser = values::slice, help_heading = "Limits")]
    pub(super) cpu_slice: Duration,

    /// How long the start of a guest, and each call of a session, may take before the connection is reset, or `off`
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) max_call_time: Off<Duration>,

    /// Time on the processor that the guest of one connection may take in all before it is reset, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) max_cpu_time: Off<Duration>,

    /// Silence in both directions from the accept on after which a connection is closed, or `off`
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) first_byte_timeout: Off<Duration>,

    /// Silence in both directions after which a connection is closed, or `off`
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) idle_timeout: Off<Duration>,

    /// How long a peer may take no byte of what waits for it before it is reset, or `off`
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) write_timeout: Off<Duration>,

    /// How long a connection may live, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = off(values::timeout), help_heading = "Limits")]
    pub(super) max_lifetime: Off<Duration>,

    /// Bytes that a peer may send on one connection, or `off`
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = off(values::bytes), help_heading = "Limits")]
    pub(super) max_bytes_in: Off<u64>,

    /// Bytes that a guest may send on one connection, or `off`
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = off(values::bytes), help_heading = "Limits")]
    pub(super) max_bytes_out: Off<u64>,
}

impl ServiceFlags {
    /// Whether it is said how many instances connections share that share none.
    pub(super) fn has_instances_for_nothing(&self) -> bool {
        self.instances.is_some() && self.isolation == IsolationArg::Connection
    }
}

/// What clap knows the flags by.
pub(super) fn ids() -> Vec<Id> {
    let flags = ServiceFlags::augment_args(clap::Command::new(""));
    flags.get_arguments().map(|flag| flag.get_id().clone()).collect()
}

fn existing_directory(text: &str) -> Result<GrantedDir, String> {
    let dir = values::directory(text)?;
    if dir.host.is_dir() {
        Ok(dir)
    } else {
        Err(format!("`{}` is not a directory", dir.host.display()))
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
            record: None,
            listen,
            access,
            limits: flags.limits.into(),
            log_connections: match flags.log_connections {
                Connections::All => LogConnections::All,
                Connections::Failed => LogConnections::Failed,
                Connections::None => LogConnections::None,
            },
        };
        Self {
            services: vec![service],
            cache: flags.cache.as_deref().map_or(CacheDir::OfUser, values::cache),
            threads: flags.threads.unwrap_or_else(values::cores),
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
        }
    }
}

impl From<LimitFlags> for Limits {
    fn from(flags: LimitFlags) -> Self {
        Self {
            max_connections: flags.max_connections,
            max_connections_per_source: flags.max_connections_per_source.0,
            max_rate: flags.max_rate.0,
            max_rate_per_source: flags.max_rate_per_source.0,
            max_memory: flags.max_memory,
            cpu_slice: flags.cpu_slice,
            max_call_time: flags.max_call_time.0,
            max_cpu_time: flags.max_cpu_time.0,
            first_byte_timeout: flags.first_byte_timeout.0,
            idle_timeout: flags.idle_timeout.0,
            write_timeout: flags.write_timeout.0,
            max_lifetime: flags.max_lifetime.0,
            max_bytes_in: flags.max_bytes_in.0,
            max_bytes_out: flags.max_bytes_out.0,
        }
    }
}
