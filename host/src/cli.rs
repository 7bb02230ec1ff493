//! The command line.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{
    CacheDir, Config, GrantedDir, Grants, Isolation, Limits, Log, LogFormat, LogLevel, Rate, Terms,
};
use crate::scaffold;

/// inetd for WebAssembly components.
///
/// Listens on TCP and hands every connection to a fresh, sandboxed instance of a component, which has no socket,
/// no file and no environment of its own.
#[derive(Debug, Parser)]
#[command(name = "host", version, max_term_width = 100, after_help = AFTER, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,

    #[command(flatten)]
    service: ServiceFlags,
}

/// What a service is told.
#[derive(Debug, Args)]
struct ServiceFlags {
    /// Component to serve with; without it an embedded guest echoes
    #[arg(long, value_name = "FILE", help_heading = "Service")]
    component: Option<PathBuf>,

    /// Initialise the component once, when it is loaded, by the function `wizer-initialize` that it exports
    #[arg(long, requires = "component", help_heading = "Service")]
    preinit: bool,

    /// Load the component again when its file changes, as SIGHUP does; connections that are open keep what they have
    #[arg(long, requires = "component", help_heading = "Service")]
    watch: bool,

    /// What has an instance of its own: each connection, or the service, whose connections can meet then
    #[arg(long, value_name = "OF", value_enum, default_value_t = IsolationArg::Connection, help_heading = "Service")]
    isolation: IsolationArg,

    /// Instances of a service by `--isolation service`, or `cores` for one per core
    #[arg(long, value_name = "N", default_value = "1", value_parser = instances, help_heading = "Service")]
    instances: NonZeroUsize,

    /// Have idle sessions move to a new generation, if both components export `migration`; others keep what they have
    #[arg(long, requires = "component", help_heading = "Service")]
    migrate: bool,

    /// Directory that keeps compiled components for the next start, or `off` [default: in the user's cache directory]
    #[arg(long, value_name = "DIR", help_heading = "Service")]
    cache: Option<PathBuf>,

    /// Address to listen on, as ADDRESS:PORT; may be repeated; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address, help_heading = "Service")]
    listen: Vec<SocketAddr>,

    /// Threads that serve connections [default: one per core]
    #[arg(long, value_name = "N", value_parser = threads, help_heading = "Service")]
    threads: Option<NonZeroUsize>,

    /// Directory of conversations that a component has to pass before it replaces another, as `host record` writes them
    #[arg(long, value_name = "DIR", help_heading = "Service")]
    gate: Option<PathBuf>,

    #[command(flatten)]
    grants: GrantFlags,

    #[command(flatten)]
    limits: LimitFlags,

    /// How long connections may go on when another generation has replaced theirs, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = timeout, help_heading = "Limits")]
    drain_generations: Timeout,

    /// How long connections may go on after SIGINT or SIGTERM before they are closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Limits")]
    drain_timeout: Duration,

    /// Form of the lines on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text, help_heading = "Log")]
    log_format: Format,

    /// Log more: reasons (-v), everything (-vv)
    #[arg(short, long, action = ArgAction::Count, help_heading = "Log")]
    verbose: u8,

    /// Log less: warnings and errors (-q), errors only (-qq)
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose", help_heading = "Log")]
    quiet: u8,
}

/// What guests may use beyond their connection.
#[derive(Debug, Args)]
struct GrantFlags {
    /// Variable for the environment of guests; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable, help_heading = "Grants")]
    env: Vec<(String, String)>,

    /// Directory for guests, to be read, or with :rw to be written too; may be repeated
    #[arg(long = "dir", value_name = "HOST::GUEST[:rw]", value_parser = directory, help_heading = "Grants")]
    dirs: Vec<GrantedDir>,

    /// Destination that guests may connect to by TCP; may be repeated; names are resolved at the start
    #[arg(long, value_name = "HOST:PORT", value_parser = destination, help_heading = "Grants")]
    allow_outbound: Vec<String>,

    /// Arguments for guests
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// What connections may take.
#[derive(Debug, Args)]
struct LimitFlags {
    /// Connections served at once; further ones wait in the backlog
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_connections, help_heading = "Limits")]
    max_connections: NonZeroUsize,

    /// Connections of one source served at once, or `off`; further ones are refused; IPv6 sources count by their /64
    #[arg(long, value_name = "N", default_value = "off", value_parser = count, help_heading = "Limits")]
    max_connections_per_source: Count,

    /// Connections accepted in a second (or N/m, N/h), or `off`; further ones wait in the backlog
    #[arg(long, value_name = "RATE", default_value = "off", value_parser = rate, help_heading = "Limits")]
    max_rate: MaxRate,

    /// Connections of one source in a second (or N/m, N/h), or `off`; further ones are refused
    #[arg(long, value_name = "RATE", default_value = "off", value_parser = rate, help_heading = "Limits")]
    max_rate_per_source: MaxRate,

    /// Memory of one connection: all linear memories and tables of its instance together; growth beyond it fails
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size, help_heading = "Limits")]
    max_memory: usize,

    /// How long one connection may keep its thread before others have their turn
    #[arg(long, value_name = "TIME", default_value = "2ms", value_parser = slice, help_heading = "Limits")]
    cpu_slice: Duration,

    /// How long the start of a guest, and each call of a session, may take before the connection is reset, or `off`
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = timeout, help_heading = "Limits")]
    max_call_time: Timeout,

    /// Time on the processor that the guest of one connection may take in all before it is reset, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = timeout, help_heading = "Limits")]
    max_cpu_time: Timeout,

    /// Silence in both directions from the accept on after which a connection is closed, or `off`
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = timeout, help_heading = "Limits")]
    first_byte_timeout: Timeout,

    /// Silence in both directions after which a connection is closed, or `off`
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = timeout, help_heading = "Limits")]
    idle_timeout: Timeout,

    /// How long a peer may take no byte of what waits for it before it is reset, or `off`
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = timeout, help_heading = "Limits")]
    write_timeout: Timeout,

    /// How long a connection may live, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = timeout, help_heading = "Limits")]
    max_lifetime: Timeout,

    /// Bytes that a peer may send on one connection, or `off`
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = bytes, help_heading = "Limits")]
    max_bytes_in: Bytes,

    /// Bytes that a guest may send on one connection, or `off`
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = bytes, help_heading = "Limits")]
    max_bytes_out: Bytes,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what a component is, and whether it could serve
    Check {
        /// The component
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// Initialise the component first, by the function `wizer-initialize` that it exports
        #[arg(long)]
        preinit: bool,

        #[command(flatten)]
        grants: GrantFlags,

        #[command(flatten)]
        limits: LimitFlags,
    },
    /// Serve, and write down what peers and guests say to each other
    Record {
        /// Directory for the conversations, a file for each connection
        #[arg(long, value_name = "DIR")]
        to: PathBuf,

        #[command(flatten)]
        service: Box<ServiceFlags>,
    },
    /// Make a guest to begin with, which builds and passes its conversations as it is
    New {
        /// Directory to make; its last part is the guest's name
        #[arg(value_name = "NAME", value_parser = new_name)]
        dir: PathBuf,

        /// What the guest serves by [default: the first that its language has]
        #[arg(long, value_name = "CONTRACT", value_enum)]
        contract: Option<ContractArg>,

        /// What it is written in
        #[arg(long, value_name = "LANGUAGE", value_enum, default_value_t = Language::Rust)]
        lang: Language,
    },
    /// Have a component take part in recorded conversations, and show where it says something else
    Replay {
        /// Directory of conversations
        #[arg(value_name = "DIR")]
        dir: PathBuf,

        /// The component
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// Initialise the component first, by the function `wizer-initialize` that it exports
        #[arg(long)]
        preinit: bool,

        #[command(flatten)]
        grants: GrantFlags,

        #[command(flatten)]
        limits: LimitFlags,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// To serve.
    Serve(Box<Config>),
    /// To say what a component is.
    Check(PathBuf, Terms),
    /// To make a guest in a directory of this language and, if it is named, this contract.
    New(PathBuf, &'static str, Option<&'static str>),
    /// To have a component take part in the conversations of a directory.
    Replay(PathBuf, PathBuf, Terms),
}

impl Cli {
    /// The same, if its flags can be had together.
    ///
    /// # Errors
    ///
    /// They cannot.
    pub fn checked(self) -> Result<Self, clap::Error> {
        let service = match &self.command {
            None => &self.service,
            Some(Verb::Record { service, .. }) => service,
            Some(Verb::Check { .. } | Verb::New { .. } | Verb::Replay { .. }) => return Ok(self),
        };
        let conflict = match service.isolation {
            IsolationArg::Connection if service.instances > NonZeroUsize::MIN => {
                "--instances is for --isolation service, and each connection has an instance of its own"
            }
            IsolationArg::Service if service.migrate => {
                "--migrate is for sessions, which have instances of their own, and not for --isolation service"
            }
            IsolationArg::Service if service.limits.max_cpu_time.0.is_some() => {
                "--max-cpu-time is for one connection's instance, and not for --isolation service: what one connection takes \
                 of an instance that many share cannot be told"
            }
            IsolationArg::Connection | IsolationArg::Service => return Ok(self),
        };
        Err(Self::command().error(ErrorKind::ArgumentConflict, conflict))
    }
}

impl From<Cli> for Command {
    fn from(cli: Cli) -> Self {
        match cli.command {
            None => Self::Serve(Box::new(cli.service.into())),
            Some(Verb::Record { to, service }) => Self::Serve(Box::new(Config {
                record: Some(to),
                ..(*service).into()
            })),
            Some(Verb::Check {
                file,
                preinit,
                grants,
                limits,
            }) => Self::Check(file, terms(limits, grants, preinit)),
            Some(Verb::New { dir, contract, lang }) => {
                Self::New(dir, lang.as_str(), contract.map(ContractArg::as_str))
            }
            Some(Verb::Replay {
                dir,
                file,
                preinit,
                grants,
                limits,
            }) => Self::Replay(dir, file, terms(limits, grants, preinit)),
        }
    }
}

const AFTER: &str = "\
Times are numbers with a unit (500ms, 30s, 5m, 1h), sizes too (64KiB, 64MiB, 1GiB).
SIGINT and SIGTERM drain: no more connections are accepted and those that are open may finish. A second one ends
the host at once. SIGHUP loads the component again for the connections to come, SIGUSR2 goes back to the one before.

Exit status: 0 after a drain, 1 if something failed, 2 for a command line that cannot be understood.";

/// Far more connections than any machine accepts in a second.
const MAX_RATE: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();

/// Far more threads than any machine has cores.
const MAX_THREADS: usize = 1024;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IsolationArg {
    Connection,
    Service,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ContractArg {
    Streams,
    #[value(alias = "session")]
    Sessions,
    Cli,
}

impl ContractArg {
    fn as_str(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Sessions => "sessions",
            Self::Cli => "cli",
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Language {
    Rust,
    C,
    #[value(alias = "javascript")]
    Js,
    Python,
    Go,
    Zig,
}

impl Language {
    fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
            Self::Js => "js",
            Self::Python => "python",
            Self::Go => "go",
            Self::Zig => "zig",
        }
    }
}

/// `None` stands for `off`. (An `Option` would be taken for an argument that may be left out.)
#[derive(Clone, Copy, Debug)]
struct Timeout(Option<Duration>);

/// The same for a number of bytes.
#[derive(Clone, Copy, Debug)]
struct Bytes(Option<u64>);

/// The same for a number of connections.
#[derive(Clone, Copy, Debug)]
struct Count(Option<NonZeroUsize>);

/// The same for a rate of connections.
#[derive(Clone, Copy, Debug)]
struct MaxRate(Option<Rate>);

fn new_name(text: &str) -> Result<PathBuf, scaffold::BadName> {
    let dir = PathBuf::from(text);
    scaffold::name(&dir)?;
    Ok(dir)
}

fn terms(limits: LimitFlags, grants: GrantFlags, preinit: bool) -> Terms {
    Terms {
        limits: limits.into(),
        grants: grants.into(),
        preinit,
    }
}

impl From<ServiceFlags> for Config {
    fn from(flags: ServiceFlags) -> Self {
        Self {
            component: flags.component,
            preinit: flags.preinit,
            watch: flags.watch,
            migrate: flags.migrate,
            isolation: match flags.isolation {
                IsolationArg::Connection => Isolation::Connection,
                IsolationArg::Service => Isolation::Service {
                    instances: flags.instances,
                },
            },
            grants: flags.grants.into(),
            drain_generations: flags.drain_generations.0,
            gate: flags.gate,
            record: None,
            cache: match flags.cache {
                None => CacheDir::OfUser,
                Some(off) if off == Path::new("off") => CacheDir::Off,
                Some(dir) => CacheDir::At(dir),
            },
            listen: flags.listen,
            threads: flags
                .threads
                .unwrap_or_else(|| thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)),
            drain_timeout: flags.drain_timeout,
            limits: flags.limits.into(),
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

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected ADDRESS:PORT with a numeric address, as 127.0.0.1:8080 or [::1]:8080".to_owned()
    })
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

fn directory(text: &str) -> Result<GrantedDir, String> {
    let (host, guest) = text
        .split_once("::")
        .ok_or("expected HOST::GUEST, as ./data::/data, or HOST::GUEST:rw")?;
    let (guest, writable) = match (guest.strip_suffix(":rw"), guest.strip_suffix(":ro")) {
        (Some(guest), _) => (guest, true),
        (None, Some(guest)) => (guest, false),
        (None, None) => (guest, false),
    };
    if guest.is_empty() {
        return Err("expected the guest's name for the directory after `::`".to_owned());
    }
    let host = PathBuf::from(host);
    if !host.is_dir() {
        return Err(format!("`{}` is not a directory", host.display()));
    }
    Ok(GrantedDir {
        host,
        guest: guest.to_owned(),
        writable,
    })
}

fn destination(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(text.to_owned())
        }
        _ => Err("expected HOST:PORT, as 192.0.2.7:5432 or [2001:db8::7]:5432".to_owned()),
    }
}

fn instances(text: &str) -> Result<NonZeroUsize, String> {
    if text == "cores" {
        return Ok(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
    }
    text.parse()
        .ok()
        .filter(|instances: &NonZeroUsize| instances.get() <= MAX_THREADS)
        .ok_or_else(|| format!("expected a number from 1 to {MAX_THREADS}, or `cores`"))
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .ok()
        .filter(|threads: &NonZeroUsize| threads.get() <= MAX_THREADS)
        .ok_or_else(|| format!("expected a number from 1 to {MAX_THREADS}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; expected a number with a unit, as 500ms, 30s or 5m"))
}

fn timeout(text: &str) -> Result<Timeout, String> {
    if text == "off" {
        return Ok(Timeout(None));
    }
    match duration(text)? {
        Duration::ZERO => {
            Err("nothing would ever be served; expected a time above zero, or `off`".to_owned())
        }
        limit => Ok(Timeout(Some(limit))),
    }
}

fn slice(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(1)..=Duration::from_secs(1);
    let slice = duration(text)?;
    range
        .contains(&slice)
        .then_some(slice)
        .ok_or_else(|| "expected a time from 1ms to 1s".to_owned())
}

fn bytes(text: &str) -> Result<Bytes, String> {
    if text == "off" {
        return Ok(Bytes(None));
    }
    let expected = "expected a number of bytes above zero with a unit, as 512KiB or 10GiB, or `off`";
    let size: ByteSize = text.parse().map_err(|_| expected.to_owned())?;
    match size.as_u64() {
        0 => Err(expected.to_owned()),
        size => Ok(Bytes(Some(size))),
    }
}

fn count(text: &str) -> Result<Count, String> {
    if text == "off" {
        return Ok(Count(None));
    }
    match text.parse() {
        Ok(count) => Ok(Count(Some(count))),
        Err(_) => Err("expected a number above zero, or `off`".to_owned()),
    }
}

fn rate(text: &str) -> Result<MaxRate, String> {
    if text == "off" {
        return Ok(MaxRate(None));
    }
    let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        _ => 0,
    };
    match count.parse() {
        Ok(connections) if seconds > 0 && connections <= MAX_RATE => Ok(MaxRate(Some(Rate {
            connections,
            per: Duration::from_secs(seconds),
        }))),
        _ => Err(format!(
            "expected a number from 1 to {MAX_RATE}, by itself for connections a second or with a unit, as 100/s, 30/m or \
             500/h, or `off`"
        )),
    }
}

fn size(text: &str) -> Result<usize, String> {
    let expected = "expected a number of bytes with a unit, as 512KiB or 64MiB, up to 4GiB";
    let size: ByteSize = text.parse().map_err(|_| expected.to_owned())?;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|&size| size <= 4 << 30)
        .ok_or_else(|| expected.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn config(args: &[&str]) -> Result<Config, clap::Error> {
        match Cli::try_parse_from([&["host"], args].concat())?.into() {
            Command::Serve(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_limits() {
        let config = config(&[]).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.listen, ["127.0.0.1:8080".parse().unwrap()]);
        assert_eq!(config.component, None);
        assert_eq!(config.log.level, LogLevel::Info);
    }

    #[test]
    fn units_are_understood() {
        let config = config(&[
            "--idle-timeout",
            "1500ms",
            "--drain-timeout",
            "1m",
            "--max-memory",
            "1GiB",
        ]);
        let config = config.unwrap();
        assert_eq!(config.limits.idle_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(config.drain_timeout, Duration::from_secs(60));
        assert_eq!(config.limits.max_memory, 1 << 30);
        let off = super::tests::config(&["--idle-timeout", "off"]).unwrap();
        assert_eq!(off.limits.idle_timeout, None);
    }

    #[test]
    fn rates_have_units() {
        for (text, connections, seconds) in
            [("7", 7, 1), ("7/s", 7, 1), ("30/m", 30, 60), ("500/h", 500, 3600)]
        {
            let rate = config(&["--max-rate", text]).unwrap().limits.max_rate.unwrap();
            assert_eq!(rate.connections.get(), connections, "{text}");
            assert_eq!(rate.per, Duration::from_secs(seconds), "{text}");
        }
        assert_eq!(config(&["--max-rate", "off"]).unwrap().limits.max_rate, None);
    }

    #[test]
    fn listeners_add_up() {
        let config = config(&["--listen", "127.0.0.1:0", "--listen", "[::1]:0"]).unwrap();
        assert_eq!(config.listen.len(), 2);
    }

    #[test]
    fn a_bad_value_is_refused_with_its_flag_and_what_was_expected() {
        for (flag, value, expected) in [
            ("--listen", "localhost", "127.0.0.1:8080"),
            ("--idle-timeout", "5", "30s"),
            ("--idle-timeout", "0s", "off"),
            ("--drain-timeout", "soon", "30s"),
            ("--max-memory", "lots", "64MiB"),
            ("--max-memory", "5GiB", "4GiB"),
            ("--max-connections", "0", "zero"),
            ("--max-connections-per-source", "0", "off"),
            ("--max-rate", "0", "100/s"),
            ("--max-rate", "10/d", "100/s"),
            ("--max-rate-per-source", "1000001", "1000000"),
            ("--threads", "0", "1024"),
            ("--threads", "18446744073709551615", "1024"),
            ("--log-format", "xml", "json"),
        ] {
            let error = config(&[flag, value]).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(
                text.contains(flag) && text.contains(value) && text.contains(expected),
                "{text}"
            );
        }
        let both = config(&["-v", "-q"]).unwrap_err();
        assert_eq!(both.kind(), ErrorKind::ArgumentConflict);
    }
}
