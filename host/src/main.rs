//! The program: parse, load, bind, run, exit code.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Parser;
use host::check::check;
use host::cli::{Cli, Command, Given};
use host::config::{At, Config, Log, LogFormat, LogLevel, clash};
use host::profile::profile;
use host::replay::Prepared;
use host::server::Drained;
use host::terminal::{Progress, Terminal};
use host::{cli, file, listener, logging, scaffold, server, shutdown};
use tokio::runtime::{self, Runtime};
use tracing::error;

fn main() -> ExitCode {
    // While there is one thread: other threads inherit the mask, and could read the environment.
    if let Err(error) = shutdown::set_mask() {
        eprintln!("error: cannot set the signal mask: {error}");
        return ExitCode::FAILURE;
    }
    listener::inherit();
    let command = Command::from(Cli::parse().checked().unwrap_or_else(|error| error.exit()));
    let serve = match &command {
        Command::Serve(given) => match configuration(given) {
            Ok(config) => Some(config),
            Err(refused) => return refused,
        },
        _ => None,
    };
    let (threads, log) = match &serve {
        Some(config) => (config.threads.get(), config.log),
        None => (1, log_of(&command)),
    };
    let runtime = runtime(threads);
    let log = logging::start(log);
    let outcome = match (runtime, &log) {
        (Ok(runtime), Ok((_, terminal))) => {
            let outcome = runtime.block_on(run(command, serve, terminal.clone()));
            // What hangs in a call to the system, as in reading a file, is not waited for.
            runtime.shutdown_timeout(LAST);
            outcome
        }
        (Err(error), _) => Err(error).context("cannot start the async runtime"),
        (_, Err(error)) => Err(anyhow!("cannot set up logging: {error}")),
    };
    match outcome {
        Ok(Done { text, status }) => {
            // The log comes first, and with it the status line of a terminal is gone.
            drop(log);
            match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => status,
                Err(error) => {
                    eprintln!("error: cannot write to standard output: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a command comes to: its text for standard output, and its exit status.
struct Done {
    text: String,
    status: ExitCode,
}

impl From<ExitCode> for Done {
    fn from(status: ExitCode) -> Self {
        let text = String::new();
        Self { text, status }
    }
}

/// The configuration, wherever it is. What is refused is said before there is a log, as clap does.
fn configuration(given: &Given) -> Result<Config, ExitCode> {
    let config = match given {
        Given::File(path) => file::read(path).map_err(|error| error.to_string()),
        Given::Flags(config) => match clash(&config.services) {
            Ok(()) => Ok((**config).clone()),
            Err(clash) => Err(match clash.at {
                At::Listener(_) => format!("--listen: {clash}"),
                At::Key("record") => format!("--to: {clash}"),
                At::Key(key) | At::Limit(key) => format!("--{key}: {clash}"),
            }),
        },
    };
    config.map_err(|error| {
        eprintln!("error: {error}");
        ExitCode::from(USAGE)
    })
}

/// How long what is still being done when all connections are gone may take.
const LAST: Duration = Duration::from_secs(1);

/// The exit code for a command line that cannot be understood.
const USAGE: u8 = 2;

/// What a command other than serving logs beside its output.
fn log_of(command: &Command) -> Log {
    let level = match command {
        Command::Replay(_, true) => LogLevel::Debug,
        // A component is compiled, which may take minutes.
        Command::Check(..) | Command::Profile { .. } | Command::Replay(..) => LogLevel::Info,
        _ => LogLevel::Warn,
    };
    Log {
        format: LogFormat::Text,
        level,
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

/// Does what is asked, with this configuration if it is to serve.
async fn run(command: Command, serve: Option<Config>, terminal: Option<Terminal>) -> anyhow::Result<Done> {
    if let (Command::Serve(given), Some(config)) = (&command, serve) {
        let file = match given {
            Given::File(path) => Some(path.clone()),
            Given::Flags(_) => None,
        };
        return Ok(match server::serve(config, file, terminal).await? {
            Drained::Done => ExitCode::SUCCESS.into(),
            Drained::Quit => ExitCode::FAILURE.into(),
        });
    }
    let text = match command {
        // It was done above.
        Command::Serve(_) => String::new(),
        Command::CheckConfig(path) => match configuration(&Given::File(path)) {
            Ok(config) => match config.services.len() {
                1 => "1 service, no errors\n".to_owned(),
                count => format!("{count} services, no errors\n"),
            },
            Err(refused) => return Ok(refused.into()),
        },
        Command::Print(given) => match configuration(&given) {
            Ok(config) => file::print(&config)?,
            Err(refused) => return Ok(refused.into()),
        },
        Command::Schema => file::schema(),
        Command::Completions(shell) => cli::completions(shell),
        Command::Manual(of) => match cli::manual(of.as_deref()) {
            Some(page) => page,
            None => {
                error!(
                    "there is no command `{}`; `wasm-inetd --help` lists the commands",
                    of.unwrap_or_default()
                );
                return Ok(ExitCode::from(USAGE).into());
            }
        },
        Command::Check(file, terms) => {
            let progress = Progress::start(terminal);
            progress.set("loading the component");
            check(&file, &terms).await?
        }
        Command::New(dir, language, contract) => match scaffold::template(language, contract) {
            Ok(template) => scaffold::make(template, &dir)?,
            Err(error) => {
                error!("{error:#}");
                return Ok(ExitCode::from(USAGE).into());
            }
        },
        Command::Profile { what, to, time } => profile(&what, &to, time, &Progress::start(terminal)).await?,
        Command::Replay(what, _) => {
            let progress = Progress::start(terminal);
            let prepared = Prepared::new(&what, false, &progress).await?;
            match (prepared.replay(&progress).await, prepared.count()) {
                (Ok(()), 1) => "1 conversation, no differences\n".to_owned(),
                (Ok(()), count) => format!("{count} conversations, no differences\n"),
                (Err(difference), _) => {
                    return Ok(Done {
                        text: format!("{difference}\n"),
                        status: ExitCode::FAILURE,
                    });
                }
            }
        }
    };
    let status = ExitCode::SUCCESS;
    Ok(Done { text, status })
}
