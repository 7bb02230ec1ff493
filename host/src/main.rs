//! The program: parse, load, bind, run, exit code.

#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, Write as _};
use std::panic;
use std::path::Path;
use std::process::{self, ExitCode};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Parser;
use host::check::{check, check_services};
use host::cli::{Cli, Command, Given};
use host::compile::{compile, tasks_of_files, tasks_of_services};
use host::config::{At, CacheDir, Config, Log, LogFormat, LogLevel, clashes, name_settings_as_flags};
use host::file::Text;
use host::logging::in_one_line;
use host::preflight::Blocked;
use host::profile::{is_on_stdout, profile};
use host::replay::Replayer;
use host::sandbox::Program;
use host::sandbox::compiler::child;
use host::server::Drained;
use host::system::provide_descriptors;
use host::terminal::{Progress, Terminal};
use host::threads::{KEPT, STACK, check_stack_size, spare, too_few};
use host::{cli, file, listener, logging, scaffold, server, shutdown};
use tokio::runtime::{self, Runtime};
use tracing::error;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == child::COMMAND)
    {
        return child::run();
    }
    let program = Program::open();
    // While there is one thread: other threads inherit the mask, and could read the environment.
    if let Err(error) = shutdown::set_mask() {
        return refuse(FAILURE, [format!("cannot set the signal mask: {error}")]);
    }
    if let Err(sentence) = check_stack_size() {
        return refuse(FAILURE, [sentence]);
    }
    if let Err(sentence) = listener::inherit() {
        return refuse(FAILURE, [sentence]);
    }
    let command = match Cli::try_parse().and_then(Cli::checked) {
        Ok(cli) => Command::from(cli),
        Err(error) if error.use_stderr() => {
            let message = cli::sentence(error, std::env::args_os());
            let (sentence, rest) = message.split_once('\n').unwrap_or((&message, ""));
            let status = refuse(USAGE, [sentence]);
            rest.lines().for_each(complain);
            return status;
        }
        // It is help or the version.
        Err(error) => return print(&error.render().to_string(), ExitCode::SUCCESS),
    };
    if let Some(names) = command.names_of_settings() {
        name_settings_as_flags(names);
    }
    let serve = match &command {
        Command::Serve(given) => match configuration(given) {
            Ok(configuration) => Some(configuration),
            Err(refused) => return refuse(USAGE, refused),
        },
        _ => None,
    };
    let (threads, log) = match &serve {
        Some((config, _)) => (config.threads().get(), config.log),
        None => (1, log_of(&command)),
    };
    if let Err(sentence) = provide_descriptors() {
        return refuse(FAILURE, [sentence]);
    }
    end_at_panics(threads);
    let runtime = runtime(threads);
    let log = logging::start(log);
    let outcome = match (runtime, &log) {
        (Ok(runtime), Ok((_, terminal))) => {
            let outcome = runtime.block_on(run(command, serve, terminal.clone(), program));
            logging::runtime_ends();
            // What hangs in a call to the system, as in reading a file, is not waited for.
            runtime.shutdown_timeout(LAST);
            outcome
        }
        (Err(error), _) => Err(error),
        (_, Err(error)) => Err(anyhow!("cannot set up logging: {error}")),
    };
    match outcome {
        Ok(Done {
            text,
            refused,
            status,
        }) => {
            // The log comes first, and with it the status line of a terminal is gone.
            drop(log);
            complain_of(refused);
            if text.is_empty() {
                status
            } else {
                print(&text, status)
            }
        }
        Err(error) => {
            match error.downcast_ref::<Blocked>() {
                Some(Blocked(sentences)) => sentences.iter().for_each(|sentence| error!("{sentence}")),
                None => error!("{error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// What a command comes to: its text for standard output, a sentence for each thing that is wrong,
/// and its exit status.
struct Done {
    text: String,
    refused: Vec<String>,
    status: ExitCode,
}

impl From<ExitCode> for Done {
    fn from(status: ExitCode) -> Self {
        Self {
            text: String::new(),
            refused: Vec::new(),
            status,
        }
    }
}

/// Reports components that were compiled ahead, and those that were not.
fn compiled(done: host::compile::Done) -> Done {
    let status = if done.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        FAILURE.into()
    };
    Done {
        text: done.text,
        refused: done.failed,
        status,
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
    complain_of(sentences);
    ExitCode::from(status)
}

/// Says what is wrong, a sentence on each line of standard error.
fn complain_of<S: Display>(sentences: impl IntoIterator<Item = S>) {
    for sentence in sentences {
        complain(format_args!("error: {sentence}"));
    }
}

/// Prints `text` on standard output, and returns `status`. A reader that has seen enough, such as
/// head(1), is no failure.
fn print(text: &str, status: ExitCode) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            refuse(FAILURE, [format!("cannot write to standard output: {error}")])
        }
        _ => status,
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
            let clashes = clashes(&config.services, config.admin.as_ref()).into_iter();
            let mut refused: Vec<_> = clashes
                .map(|clash| match clash.at {
                    At::Listener(_) => format!("--listen: {clash}"),
                    At::OfListener(_, key) | At::Key(key) | At::Limit(key) | At::Admin(key) => {
                        format!("{}: {clash}", cli::flag_of(key))
                    }
                })
                .collect();
            // A flag holds for all listeners.
            refused.dedup();
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

/// What a command other than serving logs beside its output.
fn log_of(command: &Command) -> Log {
    let level = match command {
        Command::Replay(_, true) => LogLevel::Debug,
        // A component is compiled, which may take minutes.
        Command::Check(..)
        | Command::CheckConfig { compile: true, .. }
        | Command::Compile { .. }
        | Command::CompileConfig(..)
        | Command::Profile { .. }
        | Command::Replay(..) => LogLevel::Info,
        _ => LogLevel::Warn,
    };
    Log {
        format: LogFormat::Text,
        level,
    }
}

/// Ends the process at the next panic, with a sentence about its threads, until the log takes over.
///
/// Where a thread cannot be started, the runtime and the log panic, and the runtime then waits for
/// its other threads for ever.
fn end_at_panics(threads: usize) {
    panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("(no message)");
        refuse(FAILURE, [too_few(threads, message)]);
        process::exit(FAILURE.into());
    }));
}

/// The threads that serve connections, and a spare one, by which a thread in a long call is
/// replaced.
fn runtime(threads: usize) -> anyhow::Result<Runtime> {
    let started = AtomicUsize::new(0);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        // Long direct calls need up to three times as many. Other long calls share the rest.
        .max_blocking_threads(threads.saturating_mul(4))
        .thread_keep_alive(KEPT)
        // Whatever RUST_MIN_STACK is.
        .thread_stack_size(STACK)
        .thread_name_fn(move || format!("worker-{}", started.fetch_add(1, Relaxed)))
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let spare = runtime.block_on(spare());
    spare.map_err(|error| anyhow!(too_few(threads, error)))?;
    Ok(runtime)
}

/// Does what is asked, with this configuration if it is to serve.
async fn run(
    command: Command,
    serve: Option<(Config, Option<Text>)>,
    terminal: Option<Terminal>,
    program: Program,
) -> anyhow::Result<Done> {
    shutdown::hear_of_children().context("cannot install the signal handlers")?;
    if let Some((config, file)) = serve {
        return Ok(match server::serve(config, file, terminal, program).await? {
            Drained::Done => ExitCode::SUCCESS.into(),
            Drained::Quit => ExitCode::FAILURE.into(),
        });
    }
    let text = match command {
        // It was done above.
        Command::Serve(_) => String::new(),
        Command::CheckConfig { file, compile } => {
            let progress = Progress::start(terminal);
            return Ok(check_file(&file, compile, &progress, &program).await);
        }
        Command::Compile { files, terms, cache } => {
            let tasks = tasks_of_files(files, &terms);
            let memory = terms.max_compile_memory;
            let progress = Progress::start(terminal);
            let done = compile(&tasks, &cache, memory, None, &progress, &program).await;
            return Ok(compiled(done));
        }
        Command::CompileConfig(file, cache) => {
            let (config, text) = match Text::read(&file).and_then(|text| Ok((text.config()?, text))) {
                Ok(read) => read,
                Err(error) => return Ok(refuse(USAGE, error.sentences()).into()),
            };
            let cache = cache.as_ref().unwrap_or(&config.cache);
            if *cache == CacheDir::Off {
                let why = "there is no cache to fill: the services file sets it to `off`; set --cache";
                return Ok(refuse(USAGE, text.problems([("cache".to_owned(), why.to_owned())])).into());
            }
            let tasks = tasks_of_services(&config);
            let memory = config.max_compile_memory;
            let progress = Progress::start(terminal);
            let done = compile(&tasks, cache, memory, Some(&text), &progress, &program).await;
            return Ok(compiled(done));
        }
        Command::Print(given) => match configuration(&given) {
            Ok((mut config, _)) => {
                // The file may be saved in another directory.
                config
                    .make_paths_absolute()
                    .context("cannot make paths absolute")?;
                file::print(&config)?
            }
            Err(refused) => return Ok(refuse(USAGE, refused).into()),
        },
        Command::Schema => file::schema(),
        Command::Completions(shell) => cli::completions(shell),
        Command::Manual(of) => match cli::manual(of.as_deref()) {
            Ok(page) => page,
            Err(sentence) => return Ok(refuse(USAGE, [sentence]).into()),
        },
        Command::Check(file, terms) => {
            let progress = Progress::start(terminal);
            progress.set("loading the component");
            check(&file, &terms, &program).await?
        }
        Command::New {
            dir,
            language,
            contract,
            bare,
        } => match scaffold::template(language, contract, bare) {
            Ok(template) => {
                // The path of the directory is in it.
                let next = scaffold::make(template, &dir)?;
                next.lines()
                    .map(|line| format!("{}\n", in_one_line(line)))
                    .collect()
            }
            Err(error) => return Ok(refuse(USAGE, [format!("{error:#}")]).into()),
        },
        Command::Profile { what, to, time } => {
            let text = profile(&what, &to, time, &Progress::start(terminal), &program).await?;
            if is_on_stdout(&to) {
                // There is no place left to say that this failed.
                let _ = io::stderr().write_all(text.as_bytes());
                String::new()
            } else {
                text
            }
        }
        Command::Replay(what, _) => {
            let progress = Progress::start(terminal);
            let prepared = Replayer::new(&what, false, &progress, &program).await?;
            match (prepared.replay(&progress).await, prepared.count()) {
                (Ok(()), 1) => "1 conversation, no differences\n".to_owned(),
                (Ok(()), count) => format!("{count} conversations, no differences\n"),
                (Err(difference), _) => {
                    return Ok(Done {
                        text: format!("{difference}\n"),
                        ..ExitCode::FAILURE.into()
                    });
                }
            }
        }
    };
    Ok(Done {
        text,
        ..ExitCode::SUCCESS.into()
    })
}

/// Checks a services file, and says all that is wrong with it. What depends on files is checked for
/// the part of it without errors.
async fn check_file(file: &Path, compile: bool, progress: &Progress, program: &Program) -> Done {
    let text = match Text::read(file) {
        Ok(text) => text,
        Err(error) => return refuse(USAGE, error.sentences()).into(),
    };
    let (sound, mut refused) = text.sound_part();
    let checked = match &sound {
        Some(sound) => check_services(&text, sound, compile, progress, program).await,
        None => Ok(String::new()),
    };
    let is_usage = !refused.is_empty();
    let text = match checked {
        Ok(text) if !is_usage => text,
        Ok(_) => String::new(),
        Err(Blocked(sentences)) => {
            refused.extend(sentences);
            String::new()
        }
    };
    let status = match (is_usage, refused.is_empty()) {
        (true, _) => USAGE.into(),
        (false, false) => FAILURE.into(),
        (false, true) => ExitCode::SUCCESS,
    };
    Done {
        text,
        refused,
        status,
    }
}
