//! What connections may take.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

/// What connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at once. Further ones wait in the backlog of the listener.
    ///
    /// Default 1,024. Each open connection holds an instance; the address space for all of them is reserved at
    /// start-up.
    pub max_connections: NonZeroUsize,
    /// Connections of one source that are served at once, IPv6 addresses counting by their first 64 bits; `None` for any
    /// number. Further ones are refused.
    ///
    /// Default: any number. Worst case, with this or `max_rate_per_source`: 100 bytes for each source that has a
    /// connection or had one while its rate was being counted.
    pub max_connections_per_source: Option<NonZeroUsize>,
    /// Connections that are accepted in a time; `None` for as many as come. Further ones wait in the backlog.
    ///
    /// Default: as many as come.
    pub max_rate: Option<Rate>,
    /// The same for one source. Further ones are refused.
    ///
    /// Default: as many as come.
    pub max_rate_per_source: Option<Rate>,
    /// Bytes of all linear memories and tables of one instance together, be it that of one connection or of many.
    ///
    /// Default 64 MiB. Growth beyond it fails, which the guest sees; an instance that would start above it is
    /// not made. Worst case in all: this times `max_connections`, or times the instances that connections share.
    pub max_memory: usize,
    /// How long one connection may keep its thread before others have their turn, on that thread or on another.
    ///
    /// Default 2 ms, and no finer than 1 ms.
    pub cpu_slice: Duration,
    /// CPU time of the start of an instance and of each call of a session, and of an instance that
    /// connections share while it keeps all but one of them waiting; `None` for any.
    ///
    /// A call may also wait for the host, for ten times as long in total. Default: 1 second.
    pub max_call_time: Option<Duration>,
    /// Time on the processor that one connection's instance may take in all; `None` for any.
    ///
    /// Default: any. It is exceeded by at most one slice. Measuring it costs two system calls for each turn of the
    /// connection.
    pub max_cpu_time: Option<Duration>,
    /// How long a new connection may move no byte in either direction; `None` for as long as
    /// `idle_timeout` allows.
    ///
    /// It counts from when the connection is admitted, behind the header of the PROXY protocol and
    /// the TLS handshake. Default: 1 minute.
    pub first_byte_timeout: Option<Duration>,
    /// How long a connection may move no byte in either direction before it is closed; `None` for ever.
    ///
    /// Default 5 minutes.
    pub idle_timeout: Option<Duration>,
    /// How long the peer may leave what is owed to it unread, not taking a byte; `None` for as long as `idle_timeout`
    /// allows.
    ///
    /// Default 1 minute. Worst case for each connection that stalls: the buffer of 64 KiB or the answer of at most 1 MiB
    /// that waits, beside the memory of its instance.
    pub write_timeout: Option<Duration>,
    /// How long a connection may live; `None` for ever.
    ///
    /// Default: for ever.
    pub max_lifetime: Option<Duration>,
    /// Bytes that a peer may send. The guest gets no more.
    ///
    /// Default: any number.
    pub max_bytes_in: Option<u64>,
    /// Bytes that a guest may send. The peer gets no more.
    ///
    /// Default: any number.
    pub max_bytes_out: Option<u64>,
}

/// Sockets that the guest of one connection may hold.
pub const MAX_SOCKETS: usize = 16;

/// Files that the guests of a service may hold together, at least.
const MIN_FILES: usize = 256;

/// Files that the guests of a service may hold together, for each of their connections.
const FILES_PER_CONNECTION: usize = 4;

/// Threads of one service that use files of guests at the same time.
pub const FILE_THREADS: usize = 64;

/// Names in a path of a guest. `.` and `..` do not count: they open nothing.
pub const MAX_NAMES: usize = 64;

/// Names in the target of a symbolic link that a guest makes.
pub const MAX_NAMES_OF_LINK: usize = 16;

/// Symbolic links that a path of a guest can lead through, as WASI has it.
const MAX_LINKS: usize = 40;

/// Directories on the way of a path that WASI holds open at the same time. Each link stands for the
/// names in its target.
pub const MAX_DIRS_OF_PATH: usize = MAX_NAMES + MAX_LINKS * (MAX_NAMES_OF_LINK - 1);

impl Limits {
    /// Files and directories that the guests of a service may hold open together, beside the
    /// granted directories.
    pub fn max_files(&self) -> usize {
        let share = self.max_connections.get().saturating_mul(FILES_PER_CONNECTION);
        share.max(MIN_FILES)
    }

    /// Sockets that the guests of a service may hold together: two for each connection, and never
    /// less than one of them may hold.
    pub fn max_sockets(&self) -> usize {
        self.max_connections.get().saturating_mul(2).max(MAX_SOCKETS)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: NonZeroUsize::new(1024).unwrap_or(NonZeroUsize::MIN),
            max_connections_per_source: None,
            max_rate: None,
            max_rate_per_source: None,
            max_memory: 64 << 20,
            cpu_slice: Duration::from_millis(2),
            max_call_time: Some(Duration::from_secs(1)),
            max_cpu_time: None,
            first_byte_timeout: Some(Duration::from_secs(60)),
            idle_timeout: Some(Duration::from_secs(300)),
            write_timeout: Some(Duration::from_secs(60)),
            max_lifetime: None,
            max_bytes_in: None,
            max_bytes_out: None,
        }
    }
}

/// So many connections in so much time: as many at once if none have come for that long, and then evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub connections: NonZeroU32,
    /// In how much time; a second at least.
    pub per: Duration,
}
