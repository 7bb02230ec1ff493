//! The queue of lines that wait for standard error.

use std::io::{self, Write};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for standard error to take them. Further lines are dropped: a reader that does
/// not keep up must not hold up connections.
const LINES: usize = 8192;

/// Lines that wait while guests may add more. The rest is for lines of the host.
const OF_GUESTS: usize = LINES / 2;

/// The queue of the log.
static OF_LOG: OnceLock<Queue> = OnceLock::new();

/// Returns whether so many lines wait for standard error that the rest of the queue is for lines of
/// the host.
pub(crate) fn is_crowded() -> bool {
    OF_LOG.get().is_some_and(|queue| queue.waiting() >= OF_GUESTS)
}

/// The queue of lines that a thread of its own writes. It never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    lines: NonBlocking,
    /// Lines that came, dropped or not.
    came: Arc<AtomicUsize>,
    /// Lines that the thread has taken.
    taken: Arc<AtomicUsize>,
}

impl Queue {
    /// Makes the queue of the log, whose lines are written to `out` until the guard is dropped.
    pub(super) fn new<W: Write + Send + 'static>(out: W) -> (Self, WorkerGuard) {
        let taken = Arc::<AtomicUsize>::default();
        let (lines, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES)
            .thread_name("log")
            .finish(Taker {
                out,
                taken: Arc::clone(&taken),
            });
        let queue = Self {
            lines,
            came: Arc::default(),
            taken,
        };
        // A second log cannot be started.
        let _ = OF_LOG.set(queue.clone());
        (queue, guard)
    }

    /// Returns how many lines wait.
    fn waiting(&self) -> usize {
        let gone = self.taken.load(Relaxed) + self.lines.error_counter().dropped_lines();
        self.came.load(Relaxed).saturating_sub(gone)
    }
}

impl Write for Queue {
    /// Takes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.came.fetch_add(1, Relaxed);
        self.lines.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Counts the lines that the thread takes.
struct Taker<W> {
    out: W,
    taken: Arc<AtomicUsize>,
}

impl<W: Write> Write for Taker<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.taken.fetch_add(1, Relaxed);
        self.out.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Writes each line when the channel says so.
    struct Held(mpsc::Receiver<()>);

    impl Write for Held {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_are_dropped_do_not_wait() {
        let (release, held) = mpsc::channel();
        let (mut queue, guard) = Queue::new(Held(held));
        for _ in 0..2 * LINES {
            queue.write_all(b"line\n").unwrap();
        }
        // The thread may have taken one.
        assert!(
            (LINES - 1..=LINES).contains(&queue.waiting()),
            "{}",
            queue.waiting()
        );
        drop(release);
        while queue.waiting() > 0 {
            std::thread::yield_now();
        }
        drop(guard);
    }
}
