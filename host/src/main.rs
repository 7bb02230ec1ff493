//! The program: parse, load, bind, run, exit code.

#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Context as _;
use clap::Parser;
use host::cli::Cli;
use host::config::Config;
use host::listener::Listener;
use host::sandbox::{Sandbox, Source};
use host::server::Drained;
use host::shutdown::Signals;
use host::{logging, server, system};
use tokio::runtime::{self, Runtime};
use tracing::{error, info};

fn main() -> ExitCode {
    let config = Config::from(Cli::parse());
    let runtime = runtime(config.threads.get());
    let log = logging::start(config.log);
    let outcome = match (runtime, &log) {
        (Ok(runtime), Ok(_)) => runtime.block_on(run(&config)),
        (Err(error), _) => Err(error).context("cannot start"),
        (_, Err(error)) => Err(anyhow::anyhow!("cannot start the log: {error}")),
    };
    match outcome {
        Ok(Drained::Done) => ExitCode::SUCCESS,
        Ok(Drained::Quit) => ExitCode::FAILURE,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The threads that serve connections.
fn runtime(threads: usize) -> io::Result<Runtime> {
    let started = AtomicUsize::new(0);
    runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name_fn(move || format!("worker-{}", started.fetch_add(1, Relaxed)))
        .enable_all()
        .build()
}

async fn run(config: &Config) -> anyhow::Result<Drained> {
    system::raise_descriptors(config);
    let source = config.component.clone().map_or(Source::Embedded, Source::File);
    let sandbox = Sandbox::new(&config.limits, &config.cache).context("cannot start the sandbox")?;
    let generation = sandbox.load(&source).await?;
    system::check_mappings(config, generation.mappings());
    info!(contract = generation.contract().as_str(), "serving with {source}");
    let listeners = config
        .listen
        .iter()
        .map(|&address| Listener::bind(address))
        .collect::<Result<_, _>>()?;
    // Until here a signal ends the host at once, as it does by default.
    let mut signals = Signals::new().context("cannot handle signals")?;
    server::serve(config, generation, listeners, &mut signals).await
}
