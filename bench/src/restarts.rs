//! How long the first and the second start with a large component take.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::contender::Places;
use crate::service::Service;

/// Functions of the component. Each has about 500 bytes of WebAssembly.
const FUNCTIONS: usize = 20_000;

/// Pairs of starts, each with an empty cache.
const ROUNDS: usize = 5;

/// How many times as long as the second start the first one has to take.
const MIN_RATIO: f64 = 5.0;

/// Starts a host with a large component and an empty cache, then again, and prints both times.
///
/// # Errors
///
/// The host does not start, or the cache does not make the second start faster by [`MIN_RATIO`].
pub(crate) fn measure(places: &Places) -> Result<()> {
    let component = places.scratch.join("large.wasm");
    fs::write(&component, large()?)?;
    let cache = places.scratch.join("restarts");
    let places = Places {
        cache: cache.display().to_string(),
        ..places.clone()
    };
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        if cache.exists() {
            fs::remove_dir_all(&cache)?;
        }
        firsts.push(start(&places, &component)?);
        seconds.push(start(&places, &component)?);
    }
    let (first, second) = (median(&mut firsts), median(&mut seconds));
    let ratio = first.as_secs_f64() / second.as_secs_f64();
    println!(
        "A component of {:.1} MB, medians of {ROUNDS} pairs of starts: the first listens after \
         {first:.0?}, the second, with the cache, after {second:.0?} (ratio {ratio:.1}).",
        fs::metadata(&component)?.len() as f64 / 1e6
    );
    ensure!(
        ratio >= MIN_RATIO,
        "the first start takes {ratio:.1} times as long as the second: expected at least {MIN_RATIO}"
    );
    Ok(())
}

/// Returns the time from starting the host until it listens.
fn start(places: &Places, component: &Path) -> Result<Duration> {
    let start = Instant::now();
    let _service = Service::start(places, component, &[])?;
    Ok(start.elapsed())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Returns a program that does nothing, with many functions that it does not call.
fn large() -> Result<Vec<u8>> {
    let mut text = String::from("(module (memory (export \"memory\") 1) (func (export \"_start\"))");
    for number in 0..FUNCTIONS {
        write!(text, "(func (param i32) (result i32) (local i32) (loop $more")?;
        for step in 1..20 {
            let constant = number * step + 1;
            write!(
                text,
                "(local.set 1 (i32.xor (i32.mul (local.get 0) (i32.const {constant}))
                    (i32.rotl (local.get 1) (local.get 0))))
                 (i32.store offset={step} (i32.and (local.get 1) (i32.const 0xfff)) (local.get 0))"
            )?;
        }
        text.push_str("(br_if $more (i32.eqz (local.get 1)))) (local.get 1))");
    }
    text.push(')');
    Ok(wat::parse_str(text)?)
}
