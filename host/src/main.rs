//! The program: parse, load, bind, run, exit code.

#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Parser;
use host::check::{check, check_services};
use host::cli::{Cli, Command, Given};
use host::config::{At, CacheDir, Config, Log, LogFormat, LogLevel, clashes};
use host::conversation::Conversation;
use host::file::Text;
use host::logging::in_one_line;
use host::preflight::Blocked;
use host::profile::profile;
use host::replay::replay;
use host::sandbox::{Sandbox, Source};
use host::server::Drained;
use host::terminal::Terminal;
use host::{cli, file, listener, logging, scaffold, server, shutdown};
use tokio::runtime::{self, Runtime};
use tracing::error;

fn main() -> ExitCode {
    // While there is one thread: other threads inherit the mask, and could read the environment.
    if let Err(error) = shutdown::set_mask() {
        return refuse(FAILURE, [format!("cannot set the signal mask: {error}")]);
    }
    listener::inherit();
    let command = match Cli::try_parse().and_then(Cli::checked) {
        Ok(cli) => Command::from(cli),
        Err(error) if error.use_stderr() => {
            let message = cli::sentence(&error);
            let (sentence, rest) = message.split_once('\n').unwrap_or((&message, ""));
            let status = refuse(USAGE, [sentence]);
            rest.lines().for_each(complain);
            return status;
        }
        // It is help or the version.
        Err(error) => return print(&error.render().to_string()),
    };
    let serve = match &command {
        Command::Serve(given) => match configuration(given) {
            Ok(configuration) => Some(configuration),
            Err(refused) => return refuse(USAGE, refused),
        },
        _ => None,
    };
    let (threads, log) = match &serve {
        Some((config, _)) => (config.threads.get(), config.log),
        // What it has to say goes to standard output.
        None => (1, WARNINGS),
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
        Ok(status) => status,
        Err(error) => {
            match error.downcast_ref::<Blocked>() {
                Some(Blocked(sentences)) => sentences.iter().for_each(|sentence| error!("{sentence}")),
                None => error!("{error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Writes a line to standard error.
fn complain(line: impl Display) {
    // Without standard error, there is nobody to tell.
    let _ = writeln!(io::stderr(), "{}", in_one_line(line));
}

/// Says what is wrong, a sentence on each line of standard error, and ends with `status`. It is for
/// errors before there is a log, and for commands that do not serve.
fn refuse<S: Display>(status: u8, sentences: impl IntoIterator<Item = S>) -> ExitCode {
    for sentence in sentences {
        complain(format_args!("error: {sentence}"));
    }
    ExitCode::from(status)
}

/// Prints `text` on standard output. A reader that has seen enough, such as head(1), is no failure.
fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            refuse(FAILURE, [format!("cannot write to standard output: {error}")])
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The configuration, wherever it is, and the file that it comes from. The error has a sentence for
/// each thing that is wrong.
fn configuration(given: &Given) -> Result<(Config, Option<Text>), Vec<String>> {
    match given {
        Given::File(path) => Text::read(path)
            .and_then(|text| Ok((text.config()?, Some(text))))
            .map_err(|error| error.sentences()),
        Given::Flags(config) => {
            let clashes = clashes(&config.services).into_iter();
            let refused: Vec<_> = clashes
                .map(|clash| match clash.at {
                    At::Listener(_) => format!("--listen: {clash}"),
                    At::OfListener(_, key) | At::Key(key) | At::Limit(key) => {
                        format!("{}: {clash}", cli::flag_of(key))
                    }
                })
                .collect();
            if refused.is_empty() {
                Ok(((**config).clone(), None))
            } else {
                Err(refused)
            }
        }
    }
}

/// How long what is still being done when all connections are gone may take.
const LAST: Duration = Duration::from_secs(1);

/// The exit code for a failure.
const FAILURE: u8 = 1;

/// The exit code for a command line that cannot be understood.
const USAGE: u8 = 2;

/// What is worth a line where the output is for somebody else.
const WARNINGS: Log = Log {
    format: LogFormat::Text,
    level: LogLevel::Warn,
};

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
async fn run(
    command: Command,
    serve: Option<(Config, Option<Text>)>,
    terminal: Option<Terminal>,
) -> anyhow::Result<ExitCode> {
    if let Some((config, file)) = serve {
        return Ok(match server::serve(config, file, terminal).await? {
            Drained::Done => ExitCode::SUCCESS,
            Drained::Quit => ExitCode::FAILURE,
        });
    }
    let text = match command {
        // It was done above.
        Command::Serve(_) => String::new(),
        Command::CheckConfig { file, compile } => {
            let text = match Text::read(&file).and_then(|text| Ok((text.config()?, text))) {
                Ok((config, text)) => check_services(&text, &config, compile).await,
                Err(error) => return Ok(refuse(USAGE, error.sentences())),
            };
            match text {
                Ok(text) => text,
                Err(Blocked(sentences)) => return Ok(refuse(FAILURE, sentences)),
            }
        }
        Command::Print(given) => match configuration(&given) {
            Ok((config, _)) => file::print(&config)?,
            Err(refused) => return Ok(refuse(USAGE, refused)),
        },
        Command::Schema => file::schema(),
        Command::Completions(shell) => cli::completions(shell),
        Command::Manual(of) => match cli::manual(of.as_deref()) {
            Some(page) => page,
            None => {
                let of = of.unwrap_or_default();
                let sentence = format!("there is no command `{of}`; `wasm-inetd --help` lists the commands");
                return Ok(refuse(USAGE, [sentence]));
            }
        },
        Command::Check(file, terms) => check(&file, &terms).await?,
        Command::New {
            dir,
            language,
            contract,
            bare,
        } => match scaffold::template(language, contract, bare) {
            Ok(template) => scaffold::make(template, &dir)?,
            Err(error) => return Ok(refuse(USAGE, [format!("{error:#}")])),
        },
        Command::Profile {
            file,
            dir,
            to,
            time,
            terms,
        } => profile(&file, &dir, &to, time, &terms).await?,
        Command::Replay(dir, file, terms) => {
            let conversations = Conversation::read_all(&dir)?;
            let sandbox = Sandbox::on(&terms, &CacheDir::OfUser).context("cannot start the sandbox")?;
            let source = Source::new(Some(file), terms.middleware);
            let generation = sandbox.load(&source.read()?).await?;
            match replay(&generation, &terms.limits, &conversations).await {
                Ok(()) => match conversations.len() {
                    1 => "1 conversation, no differences\n".to_owned(),
                    count => format!("{count} conversations, no differences\n"),
                },
                Err(difference) => {
                    print(&format!("{difference}\n"));
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
    };
    Ok(print(&text))
}
