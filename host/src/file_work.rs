//! Work on files that may hang.

use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::threads::{self, NoThread, Work};

/// How long files may take to be read, or to be looked at.
pub(crate) const READ: Duration = Duration::from_secs(10);

/// How long files must have stayed the same to be read: whoever writes them is done, as far as can
/// be known.
const SETTLED: Duration = Duration::from_millis(100);

/// How long files may keep changing before they are read all the same. Something may touch them for
/// ever.
pub(crate) const RESTLESS: Duration = Duration::from_secs(10);

/// Runs work on files in a thread, one piece at a time.
///
/// The system cannot be told to give up a call that hangs, as on a lost mount, so the call keeps
/// its thread. Repeated tries would take one thread after another.
#[derive(Debug)]
pub(crate) struct FileWork {
    /// The name of its threads.
    name: &'static str,
    /// The last piece, which may still run.
    last: Option<Work<()>>,
}

impl Default for FileWork {
    fn default() -> Self {
        Self::named("files")
    }
}

/// Why work was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotDone {
    /// It, or the piece before it, has not returned in time.
    #[error(
        "took longer than {0:?}: the file system may not answer; the host does not try again before the \
         call has returned"
    )]
    Late(Duration),
    /// It panicked.
    #[error("failed in the host")]
    Panicked,
    /// There is no thread for it.
    #[error(
        "failed: the system gives the host no further thread; raise the limit (`ulimit -u`, or `TasksMax=` in \
         the systemd unit)"
    )]
    NoThread,
}

impl FileWork {
    /// Creates work in threads of this name.
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, last: None }
    }

    /// Waits until the last piece of work has returned, for at most `max`. Returns whether it has.
    pub(crate) async fn is_free(&mut self, max: Duration) -> bool {
        if let Some(last) = &mut self.last {
            if timeout(max, last).await.is_err() {
                return false;
            }
            self.last = None;
        }
        true
    }

    /// Runs `work` once the piece before it has returned. Gives up after `max`; the work then
    /// continues, and its result is dropped.
    ///
    /// # Errors
    ///
    /// The work is not done in time, or panics, or there is no thread for it.
    pub(crate) async fn run<T: Send + 'static>(
        &mut self,
        max: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let done = timeout(max, async {
            if let Some(last) = &mut self.last {
                // Whoever asked for it has heard of a panic.
                let _ = last.await;
            }
            let (sender, done) = oneshot::channel();
            self.last = None;
            let work = threads::run(self.name, move || {
                // Fails if nobody waits any more.
                let _ = sender.send(work());
            });
            self.last = Some(work.map_err(|NoThread(_)| NotDone::NoThread)?);
            done.await.map_err(|_| NotDone::Panicked)
        });
        match done.await {
            Ok(done) => done,
            Err(_) => Err(NotDone::Late(max)),
        }
    }

    /// Looks at files until they stay as they are, beginning with what they were at the `last`
    /// look. Returns whether they do: after [`RESTLESS`] it gives up.
    ///
    /// # Errors
    ///
    /// A look takes longer than [`READ`], or panics, or there is no thread for it.
    pub(crate) async fn settle<T: PartialEq + Send + 'static>(
        &mut self,
        mut last: T,
        look: impl Fn() -> T + Clone + Send + 'static,
    ) -> Result<bool, NotDone> {
        let start = Instant::now();
        loop {
            sleep(SETTLED).await;
            let now = self.run(READ, look.clone()).await?;
            if now == last {
                return Ok(true);
            }
            if start.elapsed() >= RESTLESS {
                return Ok(false);
            }
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn no_work_begins_while_the_one_before_hangs() {
        let mut files = FileWork::default();
        let (end, hangs) = mpsc::channel::<()>();
        let late = files.run(SHORT, move || hangs.recv()).await;
        assert!(matches!(late, Err(NotDone::Late(_))), "{late:?}");
        let (began, begins) = mpsc::channel();
        let late = files.run(SHORT, move || began.send(())).await;
        assert!(matches!(late, Err(NotDone::Late(_))), "{late:?}");
        // It was dropped without a thread.
        assert_eq!(begins.recv(), Err(mpsc::RecvError));
        drop(end);
        assert_eq!(files.run(LONG, || 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_work_alone() {
        let mut files = FileWork::default();
        let failed: Result<(), _> = files.run(LONG, || panic!("expected by this test")).await;
        assert_eq!(failed, Err(NotDone::Panicked));
        assert_eq!(files.run(LONG, || 7).await, Ok(7));
    }
}
