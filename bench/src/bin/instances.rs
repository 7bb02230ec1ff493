//! How many microseconds it takes to make an instance of the component FILE and to drop it: `instances FILE`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use host::config::{CacheDir, Grants, Limits};
use host::sandbox::{Origin, Sandbox};

/// Instances of one round, and rounds, of which the best counts: what disturbs only ever adds.
const INSTANCES: u32 = 500;
const ROUNDS: u32 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let file = std::env::args()
        .nth(1)
        .context("the component to make instances of")?;
    let sandbox = Sandbox::new(&Limits::default(), &Grants::default(), &CacheDir::Off)?;
    let generation = sandbox.load(&Origin::File(PathBuf::from(file)).read()?).await?;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..INSTANCES {
            generation.probe().await?;
        }
        best = best.min(start.elapsed() / INSTANCES);
    }
    println!("{:.2}", best.as_secs_f64() * 1e6);
    Ok(())
}
