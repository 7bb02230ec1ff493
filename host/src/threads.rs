//! Threads for work that waits for files, processes or guests, and checks for a lack of threads.
//!
//! A runtime has threads for such work too. If the system gives the process no further thread,
//! however, the runtime panics if it has none of them, and lets the work wait for one if it has
//! any. So each runtime starts with a [`spare`] one, which it keeps for [`KEPT`].

use std::fmt::Display;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::config::Setting;
use crate::logging::expect_panic;
use crate::values;

/// Bytes of the stack of a thread, which the code of the host and of libraries is known to get by
/// with.
pub const STACK: usize = 2 << 20;

/// The largest stack that each thread may have.
const MAX_STACK: usize = 1 << 30;

/// How long runtimes keep threads that have nothing to do: as long as the process lives. A runtime
/// that let its only thread go could get no other when it needs one.
pub const KEPT: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Checks the stack size that the environment sets for threads that libraries start. Such a thread
/// would overflow a small stack, and could not be started with a large one. Either ends the
/// process.
///
/// # Errors
///
/// The size cannot work, or is no number, as the sentence says.
pub fn check_stack_size() -> Result<(), String> {
    let range = STACK as u64..=MAX_STACK as u64;
    values::number_in_environment("RUST_MIN_STACK", "a number of bytes", range).map(drop)
}

/// Threads that the host has beside those that serve connections: the first one, the one that
/// writes the log, a spare one, the clock, and one for work that waits.
const BESIDE: usize = 5;

/// Threads that a process has which only checks settings: the first one, the one that writes the
/// log, a spare one, and one that would serve connections.
const OF_CHECK: usize = 4;

/// Says that the `threads` that serve connections, or those beside them, cannot be started.
pub fn too_few(threads: usize, error: impl Display) -> String {
    let fewer = match threads {
        1 => String::new(),
        _ => format!(", or lower {} from {threads}", Setting::of("threads")),
    };
    format!(
        "cannot start the threads of the host ({error}): expected a system that lets it have {} threads or \
         more; raise the limit (`ulimit -u`, or `TasksMax=` in the systemd unit){fewer}",
        threads + BESIDE,
    )
}

/// Checks that a host could start which serves connections by so many `threads`: starts as many as
/// this process lacks, and ends them.
///
/// # Errors
///
/// The system gives the process fewer threads. The error is the sentence of [`too_few`].
pub(crate) fn check(threads: usize) -> Result<(), String> {
    // Each thread stays until all are there.
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let _closed = gate.lock();
        (OF_CHECK..threads + BESIDE).try_for_each(|_| {
            let waits = || drop(gate.lock());
            let thread = thread::Builder::new().stack_size(STACK);
            thread.spawn_scoped(scope, waits).map(drop)
        })
    })
    .map_err(|error| too_few(threads, error))
}

/// Starts the first thread for work that waits of the current runtime, which has to keep it.
///
/// # Errors
///
/// There is no thread. The runtime cannot be used for such work.
pub async fn spare() -> io::Result<()> {
    // The runtime reports a lack of threads to work on its output, and panics with all other work.
    let started = tokio::io::stdout().write(&[]).await;
    started.map(drop).map_err(|_| Errno::AGAIN.into())
}

/// The system gives the process no further thread.
#[derive(Debug, Error)]
#[error(
    "the system gives the host no further thread ({0}): raise the limit (`ulimit -u`, or `TasksMax=` in the \
     systemd unit)"
)]
pub(crate) struct NoThread(pub(crate) io::Error);

impl From<NoThread> for io::Error {
    fn from(error: NoThread) -> Self {
        Self::new(error.0.kind(), error)
    }
}

/// The work has panicked. The hook for panics has said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("its thread panicked")]
pub(crate) struct Panicked;

/// Runs `start`, a function of a library that panics if the system gives it no thread.
///
/// # Errors
///
/// It panics.
pub(crate) fn started<T>(start: impl FnOnce() -> T) -> Result<T, NoThread> {
    expect_panic(start).ok_or_else(|| NoThread(Errno::AGAIN.into()))
}

/// Work in a thread of its own, as a future of its result. If this is dropped, the work continues.
#[derive(Debug)]
pub(crate) struct Work<T>(oneshot::Receiver<T>);

/// Does `work` in a thread of its own, within the current runtime.
///
/// # Errors
///
/// There is no thread.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Work<T>, NoThread> {
    let runtime = Handle::current();
    let (sender, result) = oneshot::channel();
    let started = start(name, move || {
        let _current = runtime.enter();
        // Fails if nobody waits any more.
        let _ = sender.send(work());
    });
    started.map(|_| Work(result))
}

/// Starts a thread of this name, which ends after `work`.
///
/// # Errors
///
/// There is no thread.
pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, NoThread> {
    let thread = thread::Builder::new().name(name.to_owned());
    // Whatever RUST_MIN_STACK is.
    thread.stack_size(STACK).spawn(work).map_err(NoThread)
}

impl<T> Future for Work<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(result.map_err(|_| Panicked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_within_the_runtime_and_a_panic_is_its_own() {
        let here = Handle::current().id();
        let work = run("test", move || Handle::current().id() == here);
        assert_eq!(work.unwrap().await, Ok(true));
        let work = run("test", || panic!("expected by this test"));
        assert_eq!(work.unwrap().await, Err::<(), _>(Panicked));
    }
}
