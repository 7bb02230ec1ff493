//! Measures the host beside what its users would pick instead: `cargo run --release -p bench`.
//!
//! Every contender runs as a process of its own, one at a time, and the rounds are interleaved (A B C A B C …), so
//! that whatever the machine does besides falls on all of them. Read the ratios, which are taken round by round, and
//! the server's CPU time for each operation, which depends least on the client.

#![forbid(unsafe_code)]

mod against;
mod attacks;
mod contender;
mod fairness;
mod load;
mod machine;
mod measure;
mod plot;
mod reloads;
mod report;
mod restarts;
mod service;
mod starts;
mod summary;
mod table;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use guest_builder::Guest;

use contender::{Contender, Places};
use report::Report;
use summary::Measured;
use workload::{Figures, Workload};

/// Benchmarks the host against the servers that its users would otherwise choose
#[derive(Debug, Parser)]
struct Cli {
    /// Number of rounds after the warm-up
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Duration of one measurement
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    time: Duration,

    /// Names of the contenders to measure, separated by commas [default: all that are installed]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    contenders: Vec<String>,

    /// Names of the workloads to measure, separated by commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    workloads: Vec<String>,

    /// Only measure how long a connection waits while guests of other connections loop forever
    #[arg(long)]
    fairness: bool,

    /// Only measure how a thousand component reloads affect a service under load
    #[arg(long)]
    reloads: bool,

    /// Only measure the time to the first answer of a connection, with and without `--preinit`
    #[arg(long)]
    starts: bool,

    /// Only measure how long the first and the second start with a large component take
    #[arg(long)]
    restarts: bool,

    /// Only measure how attacks on one service affect another service and the memory of the host
    /// [default: all attacks]
    #[arg(long, value_name = "NAME", num_args = 0.., value_delimiter = ',')]
    attacks: Option<Vec<String>>,

    /// Only compare the CPU time per operation with another build of the host
    #[arg(long, value_name = "PROGRAM", conflicts_with = "attacks")]
    against: Option<PathBuf>,

    /// Also write the tables and a plot into the documentation; with `--attacks`, into SECURITY.md
    #[arg(long)]
    publish: bool,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    attacks::check(cli.attacks.as_deref().unwrap_or_default())?;
    let program = std::env::current_exe()?;
    let target_dir = guest_builder::target_dir(&program)?;
    let places = places(&program, &target_dir)?;
    build_servers(&target_dir, places.programs.ends_with("release"))?;
    build_guests(&target_dir)?;
    if cli.fairness {
        return fairness::measure(&places);
    }
    if cli.reloads {
        return reloads::measure(&places);
    }
    if cli.starts {
        return starts::measure(&places);
    }
    if cli.restarts {
        return restarts::measure(&places);
    }
    if let Some(names) = &cli.attacks {
        return attacks::measure(&places, names, cli.publish);
    }
    if let Some(other) = &cli.against {
        return against::measure(&places, other, cli.rounds, cli.time);
    }
    let named = |contender: &Contender| cli.contenders.iter().any(|name| name == contender.name);
    let watched = contender::watched().into_iter().filter(named);
    let everything: Vec<_> = contender::all().into_iter().chain(watched).collect();
    let mut contenders = Vec::new();
    for contender in &everything {
        if !chosen(&cli.contenders, contender.name) {
            continue;
        }
        match contender.missing(&places) {
            Some(install) => eprintln!("{} is not installed; install it with: {install}", contender.name),
            None => contenders.push(contender),
        }
    }
    let mut all = Vec::new();
    for &workload in workload::ALL {
        if chosen(&cli.workloads, &workload.name()) {
            let measured = measure(workload, &contenders, &places, &cli);
            println!("{}", table::of(&measured));
            all.push(measured);
        }
    }
    let how = format!(
        "{} interleaved rounds after a warm-up, {} per measurement; client and server on one machine",
        cli.rounds,
        humantime::format_duration(cli.time)
    );
    let dir = target_dir.join("bench");
    let report = Report::new(&contenders, &all, how);
    report.write(&dir)?;
    if cli.publish {
        report.publish(guest_builder::workspace())?;
    }
    eprintln!("plots: {}", dir.join("report.html").display());
    Ok(())
}

/// Whether `name` is among `names`, or everything is.
fn chosen(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|other| other == name)
}

fn places(program: &Path, target_dir: &Path) -> Result<Places> {
    let scratch = target_dir.join("bench/scratch");
    fs::create_dir_all(&scratch)?;
    Ok(Places {
        programs: program
            .parent()
            .context("the directory of this program is unknown")?
            .to_owned(),
        guests: target_dir.join("guests"),
        sources: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("contenders"),
        scratch,
        cache: target_dir.join("bench/cache").display().to_string(),
    })
}

/// All rounds of one workload. A contender that fails is left out of it, and said to have failed.
fn measure<'a>(workload: Workload, contenders: &[&'a Contender], places: &Places, cli: &Cli) -> Measured<'a> {
    let mut takers: Vec<(&Contender, Vec<Figures>)> = contenders
        .iter()
        .filter(|contender| workload.suits(contender))
        .map(|contender| (*contender, Vec::new()))
        .collect();
    for round in 0..=cli.rounds {
        takers.retain_mut(|(contender, rounds)| {
            eprint!(
                "\r{} {round}/{} {:<12}",
                workload.name(),
                cli.rounds,
                contender.name
            );
            match workload.measure(contender, places, cli.time) {
                // The first round is the warm-up.
                Ok(figures) if round > 0 => rounds.push(figures),
                Ok(_) => {}
                Err(error) => {
                    eprintln!(
                        "\r{} failed in {} and is left out: {error:#}",
                        contender.name,
                        workload.name()
                    );
                    return false;
                }
            }
            true
        });
    }
    eprint!("\r{:60}\r", "");
    let (contenders, rounds) = takers.into_iter().unzip();
    Measured {
        workload,
        contenders,
        rounds,
    }
}

/// Builds every guest, and the component that binds its own socket.
fn build_guests(target_dir: &Path) -> Result<()> {
    let workspace = guest_builder::workspace();
    guest_builder::build_all(workspace, target_dir)?;
    let sockets = Guest {
        name: "wasi-sockets".to_owned(),
        package: "wasi-sockets".to_owned(),
    };
    for built in guest_builder::build(workspace, target_dir, &[sockets])? {
        guest_builder::place(&built, &target_dir.join("guests/wasi-sockets.wasm"))?;
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
    // `cargo run` sets variables for its program. The build script of `ring` depends on them, so
    // everything above `ring` would be built anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    if release {
        cargo.arg("--release");
    } else {
        eprintln!("warning: this is not a release build; its figures mean little");
    }
    let status = cargo.status().context("cannot run cargo to build the servers")?;
    ensure!(status.success(), "building the servers failed ({status})");
    Ok(())
}
