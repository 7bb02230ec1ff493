//! What the host was asked to do, checked, and free of how it was asked.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that one run of the host needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The component to serve with; `None` stands for the embedded echo guest.
    pub component: Option<PathBuf>,
    /// Where compiled components are kept.
    pub cache: CacheDir,
    /// The addresses to listen on, at least one.
    pub listen: Vec<SocketAddr>,
    /// Threads that serve connections.
    pub threads: NonZeroUsize,
    /// How long a drain may take before what is left is closed.
    pub drain_timeout: Duration,
    /// What connections may take.
    pub limits: Limits,
    /// What is logged, and how.
    pub log: Log,
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

/// What connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at once. Further ones wait in the backlog of the listener.
    ///
    /// Default 1,024. Each open connection holds an instance; the address space for all of them is reserved at
    /// start-up.
    pub max_connections: NonZeroUsize,
    /// Bytes of all linear memories and tables of one connection's instance together.
    ///
    /// Default 64 MiB. Growth beyond it fails, which the guest sees; an instance that would start above it is
    /// not made. Worst case in all: this times `max_connections`.
    pub max_memory: usize,
    /// How long a connection may move no byte in either direction before it is closed; `None` for ever.
    ///
    /// Default 5 minutes.
    pub idle_timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: NonZeroUsize::new(1024).unwrap_or(NonZeroUsize::MIN),
            max_memory: 64 << 20,
            idle_timeout: Some(Duration::from_secs(300)),
        }
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
