//! Measures the host beside what its users would pick instead: `cargo run --release -p bench`.
//!
//! Every contender runs as a process of its own, one at a time, and the rounds are interleaved (A B C A B C …), so
//! that whatever the machine does besides falls on all of them. Read the ratios, which are taken round by round, and
//! the server's CPU time for each operation, which depends least on the client.

#![forbid(unsafe_code)]

mod contender;
mod load;
mod measure;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use contender::{Contender, Places};
use load::Run;

/// Measures the host beside what its users would pick instead.
#[derive(Debug, Parser)]
struct Cli {
    /// Rounds after the warm-up
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Length of one measurement
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    time: Duration,

    /// Contenders to measure, by name; all that are installed if not given
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    contenders: Vec<String>,

    /// Workloads to measure, by name; all if not given
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    workloads: Vec<String>,
}

/// What a server is put to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Workload {
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
    /// From the start of the process to its first connection.
    Start,
}

const WORKLOADS: &[Workload] = &[
    Workload::PingPong(1),
    Workload::PingPong(50),
    Workload::PingPong(500),
    Workload::Lines(50),
    Workload::Bulk(1),
    Workload::Bulk(8),
    Workload::Connect,
    Workload::Idle(1000),
    Workload::Idle(5000),
    Workload::Start,
];

impl Workload {
    fn name(self) -> String {
        match self {
            Self::PingPong(connections) => format!("ping-pong-{connections}"),
            Self::Lines(connections) => format!("lines-{connections}"),
            Self::Bulk(connections) => format!("bulk-{connections}"),
            Self::Connect => "connect".to_owned(),
            Self::Idle(connections) => format!("idle-{connections}"),
            Self::Start => "start".to_owned(),
        }
    }

    /// Whether `contender` can take part.
    fn suits(self, contender: &Contender) -> bool {
        match self {
            // A process for each connection is not for thousands.
            Self::PingPong(500) | Self::Idle(_) => contender.name != "socat",
            // Its service answers whole lines one by one, which is no way to move bulk.
            Self::Bulk(_) => contender.name != "haproxy",
            _ => true,
        }
    }
}

/// One measurement: named figures.
type Figures = Vec<(&'static str, f64)>;

fn main() -> Result<()> {
    let cli = Cli::parse();
    let program = std::env::current_exe()?;
    let target_dir = guest_builder::target_dir(&program)?;
    let programs = program.parent().context("a program is in a directory")?;
    build_servers(&target_dir, programs.ends_with("release"))?;
    guest_builder::build_all(guest_builder::workspace(), &target_dir)?;
    let places = Places {
        programs: programs.to_owned(),
        guests: target_dir.join("guests"),
        sources: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("contenders"),
    };
    let chosen = |names: &[String], name: &str| names.is_empty() || names.iter().any(|other| other == name);
    let mut contenders = Vec::new();
    for contender in contender::all(&places) {
        if !chosen(&cli.contenders, contender.name) {
            continue;
        }
        match contender.missing() {
            Some(install) => eprintln!("{} is absent: {install}", contender.name),
            None => contenders.push(contender),
        }
    }
    for &workload in WORKLOADS {
        if !chosen(&cli.workloads, &workload.name()) {
            continue;
        }
        let takers: Vec<&Contender> = contenders
            .iter()
            .filter(|contender| workload.suits(contender))
            .collect();
        let mut results: Vec<Vec<Figures>> = vec![Vec::new(); takers.len()];
        for round in 0..=cli.rounds {
            for (contender, results) in takers.iter().zip(&mut results) {
                eprint!(
                    "\r{} {round}/{} {:<12}",
                    workload.name(),
                    cli.rounds,
                    contender.name
                );
                let figures = measure_one(workload, contender, &places, cli.time)
                    .with_context(|| format!("{} under {}", contender.name, workload.name()))?;
                // The first round is the warm-up.
                if round > 0 {
                    results.push(figures);
                }
            }
        }
        eprint!("\r{:60}\r", "");
        println!("{}", table::markdown(&workload.name(), &takers, &results));
    }
    Ok(())
}

/// Builds our own servers in the profile of this program, so that what is measured is what the sources say.
fn build_servers(target_dir: &Path, release: bool) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(guest_builder::workspace())
        .args([
            "build",
            "--quiet",
            "--bins",
            "--package",
            "host",
            "--package",
            "bench",
        ])
        .arg("--target-dir")
        .arg(target_dir);
    if release {
        cargo.arg("--release");
    } else {
        eprintln!("this is no release build: its figures say little");
    }
    let status = cargo.status().context("running cargo to build the servers")?;
    ensure!(status.success(), "building the servers failed ({status})");
    Ok(())
}

fn measure_one(
    workload: Workload,
    contender: &Contender,
    places: &Places,
    time: Duration,
) -> Result<Figures> {
    let server = contender.start(places)?;
    let before = measure::usage(server.pid())?;
    let message = || vec![line(64)];
    let run = match workload {
        Workload::PingPong(connections) => load::ping_pong(server.address, connections, &message(), time)?,
        Workload::Lines(connections) => {
            let lengths = [1, 7, 20, 33, 64, 80, 120, 250, 500, 1000];
            load::ping_pong(server.address, connections, &lengths.map(line), time)?
        }
        Workload::Bulk(connections) => {
            load::bulk(server.address, connections, &line(128).repeat(2048), time)?
        }
        Workload::Connect => load::connect_and_close(server.address, &line(64), time)?,
        Workload::Idle(connections) => {
            let _open = load::idle(server.address, connections, &line(64))?;
            let after = measure::usage(server.pid())?;
            let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / connections as f64;
            return Ok(vec![
                ("KiB each", each(before.resident, after.resident) / 1024.0),
                ("mappings each", each(before.mappings, after.mappings)),
            ]);
        }
        Workload::Start => return Ok(vec![("ms", server.listened_after.as_secs_f64() * 1e3)]),
    };
    let cpu = measure::usage(server.pid())?.cpu.saturating_sub(before.cpu);
    Ok(figures(workload, &run, cpu))
}

fn figures(workload: Workload, run: &Run, cpu: Duration) -> Figures {
    if let Workload::Bulk(_) = workload {
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

/// A line of `length` bytes.
fn line(length: usize) -> Vec<u8> {
    let mut line = vec![b'x'; length.saturating_sub(1)];
    line.push(b'\n');
    line
}
