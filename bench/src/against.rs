//! This host against another build of it: CPU time of the server for each operation.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::contender::{self, Contender, Places};
use crate::workload::Workload;

/// Each comparison: a contender and a workload.
const COMPARED: [(&str, Workload); 3] = [
    ("session", Workload::PingPong(50)),
    ("streams", Workload::PingPong(50)),
    ("session", Workload::Connect),
];

/// The figure that is compared.
const FIGURE: &str = "CPU µs/op";

/// Measures this host and the one at `other` by turns, and prints their ratios.
///
/// Each round measures both, and the next round begins with the other one. A ratio is of one round.
///
/// # Errors
///
/// There is no program at `other`, or a host does not start or answer.
pub(crate) fn measure(places: &Places, other: &Path, rounds: usize, time: Duration) -> Result<()> {
    ensure!(rounds > 0, "`--rounds 0`: expected at least one round to compare");
    let before = places_of(places, other)?;
    println!(
        "CPU time of the server for each operation, {rounds} rounds of {} each after a warm-up, by \
         turns; `other` is {}\n",
        humantime::format_duration(time),
        other.display()
    );
    println!("| workload | other µs | this µs | this ÷ other: median (least–greatest) |");
    println!("|---|---:|---:|---:|");
    let all = contender::all();
    for (name, workload) in COMPARED {
        let contender = all.iter().find(|contender| contender.name == name);
        let contender = contender.with_context(|| format!("there is no contender `{name}`"))?;
        let mut pairs = Vec::new();
        for round in 0..=rounds {
            let pair = if round % 2 == 0 {
                let other = cpu(workload, contender, &before, time)?;
                (other, cpu(workload, contender, places, time)?)
            } else {
                let this = cpu(workload, contender, places, time)?;
                (cpu(workload, contender, &before, time)?, this)
            };
            // The first round is the warm-up.
            if round > 0 {
                pairs.push(pair);
            }
        }
        println!("{}", row(&format!("{name} {}", workload.name()), &pairs));
    }
    Ok(())
}

/// Places in which the host is the program at `other`, with a cache of its own.
fn places_of(places: &Places, other: &Path) -> Result<Places> {
    let other = fs::canonicalize(other)
        .with_context(|| format!("`--against {}`: expected a program", other.display()))?;
    let programs = places.scratch.join("against");
    let _ = fs::remove_dir_all(&programs);
    fs::create_dir_all(&programs)?;
    symlink(other, programs.join("wasm-inetd"))?;
    Ok(Places {
        programs,
        cache: format!("{}-against", places.cache),
        ..places.clone()
    })
}

fn cpu(workload: Workload, contender: &Contender, places: &Places, time: Duration) -> Result<f64> {
    let figures = workload.measure(contender, places, time)?;
    let found = figures.into_iter().find(|(name, _)| *name == FIGURE);
    found
        .map(|(_, value)| value)
        .with_context(|| format!("{} measures no {FIGURE}", workload.name()))
}

/// A row for pairs of the other host's figure and of this one's.
fn row(name: &str, pairs: &[(f64, f64)]) -> String {
    let sorted = |value: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (others, these) = (sorted(|pair| pair.0), sorted(|pair| pair.1));
    let ratios = sorted(|(other, this)| this / other);
    let median = |values: &[f64]| values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
    format!(
        "| {name} | {:.2} | {:.2} | {:.3} ({:.3}–{:.3}) |",
        median(&others),
        median(&these),
        median(&ratios),
        ratios.first().copied().unwrap_or(f64::NAN),
        ratios.last().copied().unwrap_or(f64::NAN),
    )
}

#[cfg(test)]
mod tests {
    use super::row;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let row = row("w", &[(10.0, 11.0), (20.0, 20.0), (10.0, 9.0)]);
        assert_eq!(row, "| w | 10.00 | 11.00 | 1.000 (0.900–1.100) |");
    }
}
