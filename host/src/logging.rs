//! The log: lines on standard error.

#[cfg(test)]
pub(crate) mod captured;
pub(crate) mod escape;
pub(crate) mod queue;

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{debug, error};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

use crate::config::{Log, LogFormat, LogLevel};
use crate::terminal::{Screen, Terminal};
pub use escape::in_one_line;
use escape::{EscapedFields, EscapedJson};
use queue::{Queue, TellService};

/// The target of the log lines that say where the host listens, which are written at every log
/// level.
pub(crate) const READY: &str = "ready";

/// Set when the runtime is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Set while this thread runs what may panic.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` of a library that panics if the system gives the host no further thread. Returns
/// `None` if it panics, which is logged at debug only.
pub(crate) fn expect_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    EXPECTED.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(false);
    done.ok()
}

/// Logs panics at debug from now on. Work on blocking threads that is given up with the runtime, such
/// as a gate, panics in tokio when it next uses a timer.
pub fn runtime_ends() {
    ENDING.store(true, Ordering::Relaxed);
}

/// Starts the log, which panics come to too. Lines are written by a thread of its own until the guard is dropped, which
/// waits for it. With the guard comes the terminal, if it goes to one and is for people.
///
/// # Errors
///
/// There is a log already.
pub fn start(log: Log) -> Result<(WorkerGuard, Option<Terminal>), TryInitError> {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let (writer, guard) = Queue::new(Screen::new(io::stderr()));
    let terminal = io::stderr().is_terminal();
    let shown = terminal && log.format == LogFormat::Text && log.level >= LogLevel::Info;
    let shown = shown.then(|| Terminal::new(writer.clone()));
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = fmt::layer()
        .with_writer(writer)
        .with_target(false)
        .with_ansi(colours);
    let lines = match log.format {
        LogFormat::Text => lines.fmt_fields(EscapedFields).boxed(),
        // Spans of libraries are objects, which no line holds.
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .map_event_format(EscapedJson)
            .boxed(),
    };
    // Libraries speak up when something is wrong; their own progress is of no interest before `-vv`.
    let library = |most: LevelFilter| {
        if level == LevelFilter::TRACE {
            level
        } else {
            level.min(most)
        }
    };
    let filter = Targets::new()
        .with_default(library(LevelFilter::WARN))
        // It warns of what guests do, as often as they do it.
        .with_target("wasmtime_wasi", library(LevelFilter::ERROR))
        .with_target("host", level)
        .with_target(READY, level.max(LevelFilter::INFO));
    tracing_subscriber::registry()
        .with(filter)
        .with(TellService)
        .with(lines)
        .try_init()?;
    // Written directly, it could wait for standard error.
    panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(tracing::field::display);
        let message = panic.payload_as_str().unwrap_or("(no message)");
        if ENDING.load(Ordering::Relaxed) || EXPECTED.get() {
            debug!(location, "panic: {message}");
        } else {
            error!(location, "panic: {message}");
        }
    }));
    Ok((guard, shown))
}
