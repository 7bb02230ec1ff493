//! Threads for work that waits for files, processes or guests.
//!
//! The runtime has threads for such work too. If the system gives the process no further thread,
//! however, the runtime panics, or lets the work wait for a thread that may never be free.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread;

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Bytes of the stack of a thread, which the code of the host and of libraries is known to get by
/// with.
pub const STACK: usize = 2 << 20;

/// The system gives the process no further thread.
#[derive(Debug, Error)]
#[error("the system gives the host no further thread: {0}")]
pub(crate) struct NoThread(pub(crate) io::Error);

/// The work has panicked. The hook for panics has said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("its thread panicked")]
pub(crate) struct Panicked;

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
    let thread = thread::Builder::new().name(name.to_owned());
    // Whatever RUST_MIN_STACK is.
    let thread = thread.stack_size(STACK);
    let started = thread.spawn(move || {
        let _current = runtime.enter();
        // Fails if nobody waits any more.
        let _ = sender.send(work());
    });
    started.map(|_| Work(result)).map_err(NoThread)
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
