//! What the host was asked to do, checked, and free of how it was asked.

mod absolute;
mod clash;
mod limits;
mod listen;
mod setting;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

pub use clash::{At, Clash, clashes, excludes};
pub use limits::{FILE_THREADS, Limits, MAX_DIRS_OF_PATH, MAX_NAMES, MAX_NAMES_OF_LINK, MAX_SOCKETS, Rate};
pub use listen::{
    Access, Address, ClientCertificates, Identity, Listen, Mode, ProxyProtocol, SocketOptions, Tls,
};
pub use setting::{Names, Setting, name_settings_as_flags};

/// How long a drain may take, where nothing is said of it.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a guest may take for a step of a replayed conversation, where nothing is said of it.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long the header of the PROXY protocol may take, where nothing is said of it.
pub const PROXY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a handshake of TLS may take, where nothing is said of it.
pub const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that one run of the host needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The services, each with a name of its own; at least one.
    pub services: Vec<Service>,
    /// Where compiled components are kept.
    pub cache: CacheDir,
    /// Memory that compiling one component may take.
    pub max_compile_memory: CompileMemory,
    /// Threads that serve connections, if their number is set. [`Config::threads`] has the default.
    pub threads: Option<NonZeroUsize>,
    /// How long a drain may take before what is left is closed.
    pub drain_timeout: Duration,
    /// What is logged, and how.
    pub log: Log,
    /// Where the host can be looked at and told what to do, if it can.
    pub admin: Option<Admin>,
    /// Where traces and metrics are sent, if they are.
    pub otlp: Option<Otlp>,
}

/// The number of cores that this process may use.
pub(crate) fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

impl Config {
    /// Threads that serve connections: by default one for each core that this process may use.
    pub fn threads(&self) -> NonZeroUsize {
        self.threads.unwrap_or_else(cores)
    }
}

/// Where the host can be looked at and told what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens for that.
    pub address: Address,
    /// File of the token that who changes anything has to know, which is made if it is not there; `None` where nothing can be
    /// changed.
    pub token: Option<PathBuf>,
}

/// Where traces and metrics are sent, by OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// Where the collector is.
    pub endpoint: Endpoint,
    /// The part of connections that are traced.
    pub sample: Ratio,
}

/// Where a collector is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address; one of IPv6 without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What comes before `/v1/traces` and `/v1/metrics`: nothing, or a path that does not end in `/`.
    pub path: String,
}

impl Endpoint {
    /// Host and port, as a URL has them.
    pub fn authority(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

/// A part of all, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

// It is never NaN.
impl Eq for Ratio {}

impl Ratio {
    /// All.
    pub const ALL: Self = Self(1.0);

    /// `ratio`, if it is one.
    pub fn new(ratio: f64) -> Option<Self> {
        (0.0..=1.0).contains(&ratio).then_some(Self(ratio))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// One service: where its connections come from, and what serves them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What the log calls it.
    pub name: String,
    /// The component to serve with; `None` stands for the embedded echo guest.
    pub component: Option<PathBuf>,
    /// Components that stand between the peer and that one, from the one nearest the peer on.
    pub middleware: Vec<PathBuf>,
    /// Whether the component is initialised when it is loaded, for all connections.
    pub preinit: bool,
    /// Whether the component is loaded again when its file, or that of a middleware, changes.
    pub watch: bool,
    /// What guests may use beyond their connection.
    pub grants: Grants,
    /// Idle sessions move when another generation replaces theirs.
    pub migrate: bool,
    /// Which connections share an instance.
    pub isolation: Isolation,
    /// How long connections of a generation may go on when another has replaced it; `None` for as long as they like.
    pub drain_generations: Option<Duration>,
    /// Conversations that a component has to pass before it replaces another.
    pub gate: Option<PathBuf>,
    /// How long a guest may take for a step of these conversations.
    pub gate_patience: Duration,
    /// Where conversations are recorded.
    pub record: Option<PathBuf>,
    /// Where its connections come from, at least one.
    pub listen: Vec<Listen>,
    /// Whose connections may come in.
    pub access: Access,
    /// What connections may take.
    pub limits: Limits,
    /// Which of its connections have a line in the log.
    pub log_connections: LogConnections,
}

/// Which connections share an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// None: each has one of its own.
    #[default]
    Connection,
    /// All of a service, or as many as come to one of its instances.
    Service {
        /// How many instances there may be. Each is started when a connection comes and all that there are have some.
        instances: NonZeroUsize,
    },
}

/// On what terms a component is tried, without serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Components that stand between the peer and it, from the one nearest the peer on.
    pub middleware: Vec<PathBuf>,
    /// What connections may take.
    pub limits: Limits,
    /// What it may use beyond its connection.
    pub grants: Grants,
    /// Whether it is initialised first.
    pub preinit: bool,
    /// Memory that compiling it may take.
    pub max_compile_memory: CompileMemory,
}

/// A component that takes part in conversations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The directory of the conversations.
    pub dir: PathBuf,
    /// The component.
    pub file: PathBuf,
    /// How long it may take for a step.
    pub patience: Duration,
    /// On what terms it is tried.
    pub terms: Terms,
}

/// Where compiled components are kept, so that each is compiled once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheDir {
    /// In the user's cache directory, if there is one.
    OfUser,
    /// In this directory.
    At(PathBuf),
    /// Nowhere.
    Off,
}

/// Memory that compiling one component may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompileMemory {
    /// Half of the memory of the control group, or of the machine.
    #[default]
    Default,
    /// So many bytes.
    AtMost(u64),
    /// Any.
    Off,
}

/// What guests may use beyond their connection. Clocks and random numbers are granted to all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Arguments, after the name of the program.
    pub args: Vec<String>,
    /// Variables of the environment, none of them twice.
    pub env: Vec<(String, String)>,
    /// Directories.
    pub dirs: Vec<GrantedDir>,
    /// Destinations that may be connected to by TCP, as `HOST:PORT`. Names are resolved at the start.
    pub outbound: Vec<String>,
    /// Directories that guests of other services may write to, if these guests have any directory.
    pub writable_by_others: Vec<PathBuf>,
}

impl Grants {
    /// Directories that guests may write to, of this service or of others.
    pub fn writable(&self) -> impl Iterator<Item = &Path> {
        let others = self.writable_by_others.iter().map(PathBuf::as_path);
        writable(&self.dirs).chain(others)
    }

    /// Finds names that are granted twice, so that guests could find only one of the two. Returns
    /// the keys of the settings, and a sentence about each.
    pub fn repeated(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        for (index, (name, _)) in self.env.iter().enumerate() {
            if self.env[..index].iter().any(|(before, _)| before == name) {
                let what = format!("the variable `{name}` is given twice; remove one of the two");
                found.push(("grants.env", what));
            }
        }
        for (index, dir) in self.dirs.iter().enumerate() {
            let mut before = self.dirs[..index].iter();
            if let Some(before) = before.find(|before| before.guest_parts().eq(dir.guest_parts())) {
                let (guest, before) = (&dir.guest, &before.guest);
                let what = if guest == before {
                    format!("two directories are called `{guest}` in the guest; rename one of the two")
                } else {
                    format!(
                        "`{before}` and `{guest}` are the same directory in the guest; rename one of the \
                         two"
                    )
                };
                found.push(("grants.dirs", what));
            }
        }
        found
    }
}

/// Directories among these that guests may write to.
pub fn writable(dirs: &[GrantedDir]) -> impl Iterator<Item = &Path> {
    dirs.iter().filter(|dir| dir.writable).map(|dir| &*dir.host)
}

/// Tells each service to which directories guests of the others may write.
pub fn tell_of_writable_directories(services: &mut [Service]) {
    for index in 0..services.len() {
        if services[index].grants.dirs.is_empty() {
            continue;
        }
        let others = services.iter().enumerate().filter(|(other, _)| *other != index);
        let others = others.flat_map(|(_, other)| writable(&other.grants.dirs));
        let others = others.map(Path::to_owned).collect();
        services[index].grants.writable_by_others = others;
    }
}

/// A directory that guests may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedDir {
    /// Where it is.
    pub host: PathBuf,
    /// What guests call it.
    pub guest: String,
    /// Guests may write to it too.
    pub writable: bool,
}

impl GrantedDir {
    /// The parts of its path in the guest. A guest finds the directory by these, whether or not its
    /// path begins or ends with a slash or has parts `.`.
    fn guest_parts(&self) -> impl Iterator<Item = &str> {
        self.guest.split('/').filter(|part| !matches!(*part, "" | "."))
    }
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// Which lines are written.
    pub level: LogLevel,
}

/// The form of a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: time, level, message, `key=value`.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Which lines are written to the log. The line that names a listener is written at every level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// Failures and warnings.
    Warn,
    /// One line for each connection too; the default.
    Info,
    /// The reasons behind outcomes too.
    Debug,
    /// All there is.
    Trace,
}

/// Which connections of a service have a line in the log when they end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogConnections {
    /// Every one.
    #[default]
    All,
    /// Those that did not end in good order, and those that were refused.
    Failed,
    /// None.
    None,
}
