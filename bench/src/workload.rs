//! Workloads: what a server is put to, and what is read off it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::contender::{Contender, Places, Server};
use crate::load::{self, Run};
use crate::measure;

/// What a server is put to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Workload {
    /// Messages of 64 bytes to and fro on so many connections.
    PingPong(usize),
    /// Lines of 1 to 1,000 bytes to and fro on so many connections.
    Lines(usize),
    /// As many bytes as go through so many connections, both ways at once.
    Bulk(usize),
    /// Connect, one message to and fro, close.
    Connect,
    /// So many connections that have each spoken once.
    Idle(usize),
    /// As many of them as the limit on descriptors allows.
    IdleMax,
    /// From the start of the process to its first connection, with nothing kept from an earlier one.
    StartCold,
    /// The same with what an earlier start has kept.
    StartCached,
    /// An instance is made and dropped, without a connection.
    Instance,
}

/// All of them, in the order of tables.
pub(crate) const ALL: &[Workload] = &[
    Workload::PingPong(1),
    Workload::PingPong(50),
    Workload::PingPong(500),
    Workload::Lines(50),
    Workload::Bulk(1),
    Workload::Bulk(8),
    Workload::Connect,
    Workload::Idle(1000),
    Workload::Idle(5000),
    Workload::IdleMax,
    Workload::StartCold,
    Workload::StartCached,
    Workload::Instance,
];

/// Descriptors of a server, and of the client, that are no connections: those of the figure to reach, "the limit
/// less 200".
const OTHER_DESCRIPTORS: u64 = 200;

/// The default of `--max-connections`.
const DEFAULT_CONNECTIONS: u64 = 1024;

/// Memory mappings that the host takes for a connection, a memory and a stack with what guards them, and for itself.
const MAPPINGS: (u64, u64) = (4, 500);

/// The same for sessions, whose stacks are shared.
const MAPPINGS_OF_SESSIONS: (u64, u64) = (2, 3000);

/// One measurement: named figures, of which the first is what contenders are compared by.
pub(crate) type Figures = Vec<(&'static str, f64)>;

impl Workload {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        match self {
            Self::PingPong(connections) => format!("ping-pong-{connections}"),
            Self::Lines(connections) => format!("lines-{connections}"),
            Self::Bulk(connections) => format!("bulk-{connections}"),
            Self::Connect => "connect".to_owned(),
            Self::Idle(connections) => format!("idle-{connections}"),
            Self::IdleMax => "idle-max".to_owned(),
            Self::StartCold => "start-cold".to_owned(),
            Self::StartCached => "start-cached".to_owned(),
            Self::Instance => "instance".to_owned(),
        }
    }

    /// What it is, for people.
    pub(crate) fn title(self) -> String {
        match self {
            Self::PingPong(1) => "64-byte round trips, 1 connection".to_owned(),
            Self::PingPong(connections) => format!("64-byte round trips, {connections} connections"),
            Self::Lines(connections) => {
                format!("Round trips of lines of 1 to 1,000 bytes, {connections} connections")
            }
            Self::Bulk(1) => "Bulk in both directions, 1 connection".to_owned(),
            Self::Bulk(connections) => format!("Bulk in both directions, {connections} connections"),
            Self::Connect => "Connect, one 64-byte round trip, close; 8 at a time".to_owned(),
            Self::Idle(connections) => format!("{connections} idle connections after one round trip each"),
            Self::IdleMax => "Idle connections up to the descriptor limit".to_owned(),
            Self::StartCold => "Start to first connection, without a cache".to_owned(),
            Self::StartCached => "Start to first connection, with the cache".to_owned(),
            Self::Instance => "Create and drop one instance".to_owned(),
        }
    }

    /// Whether less of the first figure is better.
    pub(crate) fn less_is_better(self) -> bool {
        matches!(
            self,
            Self::Idle(_) | Self::StartCold | Self::StartCached | Self::Instance
        )
    }

    /// Whether `contender` can take part.
    pub(crate) fn suits(self, contender: &Contender) -> bool {
        let name = contender.name;
        match self {
            // A process for each connection is not for thousands.
            Self::PingPong(500) | Self::Idle(_) => name != "socat",
            // nginx takes four descriptors for each, and Lua's and CPython's limits are lower.
            Self::IdleMax => contender.ours() || ["native", "textbook", "threads"].contains(&name),
            // Its service answers whole lines one by one, which is no way to move bulk.
            Self::Bulk(_) => name != "haproxy",
            Self::StartCold | Self::Instance => contender.ours(),
            _ => true,
        }
    }

    /// Connections that a server has to be ready for: what the host is by default, where that is enough.
    fn connections(self, contender: &Contender) -> Result<u64> {
        Ok(match self {
            Self::Idle(connections) => (connections as u64 + 24).max(DEFAULT_CONNECTIONS),
            Self::IdleMax => {
                let (each, own) = if contender.name == "session" {
                    MAPPINGS_OF_SESSIONS
                } else {
                    MAPPINGS
                };
                let mappings = measure::mapping_limit()?.saturating_sub(own);
                measure::descriptor_limit()?.min(mappings / each)
            }
            _ => DEFAULT_CONNECTIONS,
        })
    }

    /// Measures `contender` once.
    ///
    /// # Errors
    ///
    /// It does not start, or does not answer.
    pub(crate) fn measure(self, contender: &Contender, places: &Places, time: Duration) -> Result<Figures> {
        if self == Self::Instance {
            return Ok(vec![("µs", instance(contender, places)?)]);
        }
        let server = contender.start(places, self.connections(contender)?, self == Self::StartCold)?;
        if let Self::StartCold | Self::StartCached = self {
            return Ok(vec![("ms", server.listened_after.as_secs_f64() * 1e3)]);
        }
        let before = measure::usage(server.pid())?;
        let message = || vec![line(64)];
        let run = match self {
            Self::PingPong(connections) => load::ping_pong(server.address, connections, &message(), time)?,
            Self::Lines(connections) => {
                let lengths = [1, 7, 20, 33, 64, 80, 120, 250, 500, 1000];
                load::ping_pong(server.address, connections, &lengths.map(line), time)?
            }
            Self::Bulk(connections) => {
                load::bulk(server.address, connections, &line(128).repeat(2048), time)?
            }
            Self::Connect => load::connect_and_close(server.address, &line(64), time)?,
            Self::Idle(connections) => return idle(&server, before, connections),
            Self::IdleMax => {
                let limit = measure::descriptor_limit()?.saturating_sub(OTHER_DESCRIPTORS);
                return idle_max(&server, before, limit as usize);
            }
            Self::StartCold | Self::StartCached | Self::Instance => return Ok(Vec::new()),
        };
        let cpu = measure::usage(server.pid())?.cpu.saturating_sub(before.cpu);
        Ok(self.figures(&run, cpu))
    }

    fn figures(self, run: &Run, cpu: Duration) -> Figures {
        if let Self::Bulk(_) = self {
            let gigabytes = run.count as f64 / 1e9;
            return vec![
                ("GB/s", run.rate() / 1e9),
                ("CPU s/GB", cpu.as_secs_f64() / gigabytes),
            ];
        }
        let micros = |quantile| run.latency.value_at_quantile(quantile) as f64 / 1e3;
        vec![
            ("ops/s", run.rate()),
            ("CPU µs/op", cpu.as_secs_f64() * 1e6 / run.count.max(1) as f64),
            ("p50 µs", micros(0.5)),
            ("p99 µs", micros(0.99)),
            ("p99.9 µs", micros(0.999)),
        ]
    }
}

fn idle(server: &Server, before: measure::Usage, connections: usize) -> Result<Figures> {
    let open = load::idle(server.address, connections, &line(64));
    ensure!(
        open.len() == connections,
        "only {} connections were answered",
        open.len()
    );
    each(server, before, connections)
}

fn idle_max(server: &Server, before: measure::Usage, limit: usize) -> Result<Figures> {
    let open = load::idle(server.address, limit, &line(64));
    let mut figures = vec![("connections", open.len() as f64)];
    figures.extend(each(server, before, open.len())?);
    Ok(figures)
}

fn each(server: &Server, before: measure::Usage, connections: usize) -> Result<Figures> {
    let after = measure::usage(server.pid())?;
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / connections.max(1) as f64;
    Ok(vec![
        ("KiB each", each(before.resident, after.resident) / 1024.0),
        ("mappings each", each(before.mappings, after.mappings)),
    ])
}

/// Microseconds for an instance, measured inside a program of its own: from outside it cannot be seen.
fn instance(contender: &Contender, places: &Places) -> Result<f64> {
    let guest = contender.guest().context("the contender has no guest")?;
    let output = Command::new(places.programs.join("instances"))
        .arg(places.guests.join(guest).with_extension("wasm"))
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.trim()
        .parse()
        .with_context(|| format!("expected a number of microseconds, got {text:?}"))
}

/// A line of `length` bytes.
fn line(length: usize) -> Vec<u8> {
    let mut line = vec![b'x'; length.saturating_sub(1)];
    line.push(b'\n');
    line
}
