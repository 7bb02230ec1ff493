//! The program: parse, load, bind, run, exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use host::cli::Cli;
use host::config::Config;
use host::listener::Bound;
use host::sandbox::{Sandbox, Source};
use host::server::Drained;
use host::shutdown::Signals;
use host::{logging, server, system};
use tracing::{error, info};

fn main() -> ExitCode {
    let config = Config::from(Cli::parse());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
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
        .map(|&address| Bound::bind(address))
        .collect::<Result<_, _>>()?;
    // Until here a signal ends the host at once, as it does by default.
    let mut signals = Signals::new().context("cannot handle signals")?;
    server::serve(config, generation, listeners, &mut signals).await
}
