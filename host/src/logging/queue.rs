//! The queue of lines that wait for standard error.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for standard error to take them. Further lines are dropped: a reader that does
/// not keep up must not hold up connections.
const LINES: usize = 8192;

/// Lines that wait while any guest may add more.
const COMMON: usize = LINES / 4;

/// Lines that guests may add to a crowded queue. The services have equal shares of them, which lines
/// of the host do not take. At least half of the queue is for those.
pub(crate) const SHARED: usize = LINES / 4;

/// The queue of the log.
static OF_LOG: OnceLock<Queue> = OnceLock::new();

thread_local! {
    /// Set while this thread logs a line of a guest.
    static OF_GUEST: Cell<bool> = const { Cell::new(false) };
}

/// Calls `log`, which logs a line of a guest.
pub(crate) fn of_guest(log: impl FnOnce()) {
    OF_GUEST.set(true);
    log();
    OF_GUEST.set(false);
}

/// The lines of a queue since the start, dropped ones left out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Level {
    /// Lines that were added.
    pub(crate) came: usize,
    /// Lines that the thread has taken. It takes them in the order in which they were added.
    pub(crate) taken: usize,
}

impl Level {
    /// Returns the level of the queue of the log.
    pub(crate) fn of_log() -> Self {
        OF_LOG.get().map(Queue::level).unwrap_or_default()
    }

    /// Returns how many lines wait.
    fn waiting(self) -> usize {
        self.came.saturating_sub(self.taken)
    }

    /// Returns whether so many lines wait that each service may add only to its share.
    pub(crate) fn is_crowded(self) -> bool {
        self.waiting() >= COMMON
    }

    /// Returns whether a line would be dropped.
    pub(crate) fn is_full(self) -> bool {
        self.waiting() >= LINES
    }
}

/// The queue of lines that a thread of its own writes. It never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    messages: NonBlocking,
    came: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

impl Queue {
    /// Makes the queue of the log, whose lines are written to `out` until the guard is dropped.
    pub(super) fn new<W: Write + Send + 'static>(out: W) -> (Self, WorkerGuard) {
        let (queue, guard) = Self::to(out);
        // A second log cannot be started.
        let _ = OF_LOG.set(queue.clone());
        (queue, guard)
    }

    /// Makes a queue whose lines are written to `out` until the guard is dropped.
    fn to<W: Write + Send + 'static>(out: W) -> (Self, WorkerGuard) {
        let taken = Arc::<AtomicUsize>::default();
        let (messages, guard) = NonBlockingBuilder::default()
            .lossy(true)
            // A message has a line at least. The guard adds a message that is no line.
            .buffered_lines_limit(LINES + 1)
            .thread_name("log")
            .finish(Taker {
                out,
                taken: Arc::clone(&taken),
            });
        let queue = Self {
            messages,
            came: Arc::default(),
            taken,
        };
        (queue, guard)
    }

    fn level(&self) -> Level {
        Level {
            came: self.came.load(Relaxed),
            taken: self.taken.load(Relaxed),
        }
    }
}

/// Returns how many lines a message takes in the queue.
fn lines(message: &[u8]) -> usize {
    let lines = message.iter().filter(|byte| **byte == b'\n').count();
    // A message with more lines than the host may add is added when the queue is empty.
    lines.clamp(1, LINES - SHARED)
}

impl Write for Queue {
    /// Adds a message of one or more whole lines, or drops it if there is no room.
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let lines = lines(message);
        let most = if OF_GUEST.get() { LINES } else { LINES - SHARED };
        let added = self.came.fetch_update(Relaxed, Relaxed, |came| {
            let waiting = came.saturating_sub(self.taken.load(Relaxed));
            (waiting + lines <= most).then_some(came + lines)
        });
        match added {
            Ok(_) => self.messages.write(message),
            Err(_) => Ok(message.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.messages.flush()
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
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.write_all(message).map(|()| message.len())
    }

    /// Writes a message. It is counted once, whether it takes several writes or fails.
    fn write_all(&mut self, message: &[u8]) -> io::Result<()> {
        self.taken.fetch_add(lines(message), Relaxed);
        self.out.write_all(message)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Writes `most` bytes, at most, each time the channel says so.
    struct Held {
        release: mpsc::Receiver<()>,
        most: usize,
    }

    impl Write for Held {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.release.recv();
            Ok(line.len().min(self.most))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue whose thread waits for the channel before each write of at most `most` bytes.
    fn held(most: usize) -> (Queue, WorkerGuard, mpsc::Sender<()>) {
        let (sender, release) = mpsc::channel();
        let (queue, guard) = Queue::to(Held { release, most });
        (queue, guard, sender)
    }

    /// Waits until the thread has taken all lines but `count`.
    fn until_waiting(queue: &Queue, count: usize) {
        while queue.level().waiting() > count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn lines_that_are_dropped_do_not_wait() {
        let (mut queue, guard, release) = held(usize::MAX);
        queue.write_all(b"first\n").unwrap();
        until_waiting(&queue, 0);
        let mut fill = || {
            for _ in 0..2 * LINES {
                queue.write_all(b"line\n").unwrap();
            }
            queue.level().waiting()
        };
        assert_eq!(fill(), LINES - SHARED);
        // The rest is for lines of guests.
        of_guest(|| assert_eq!(fill(), LINES));
        assert_eq!(fill(), LINES);
        drop(release);
        until_waiting(&queue, 0);
        drop(guard);
    }

    #[test]
    fn a_message_counts_as_its_lines_however_it_is_written() {
        let (mut queue, guard, release) = held(1);
        queue.write_all(b"first\n").unwrap();
        until_waiting(&queue, 0);
        for message in ["one\n", "one\n    two\n    three\n", "no line"] {
            queue.write_all(message.as_bytes()).unwrap();
        }
        assert_eq!(queue.level().waiting(), 5);
        // The thread takes the next message after six writes of the first.
        for _ in 0..6 {
            release.send(()).unwrap();
        }
        until_waiting(&queue, 4);
        assert_eq!(queue.level().waiting(), 4);
        for _ in 0..4 {
            release.send(()).unwrap();
        }
        until_waiting(&queue, 1);
        assert_eq!(queue.level().waiting(), 1);
        drop(release);
        until_waiting(&queue, 0);
        drop(guard);
    }

    #[test]
    fn a_message_with_more_lines_than_the_queue_is_added_to_an_empty_one() {
        let (mut queue, guard, release) = held(usize::MAX);
        queue.write_all(&b"line\n".repeat(2 * LINES)).unwrap();
        until_waiting(&queue, 0);
        assert_eq!(queue.level().came, LINES - SHARED);
        drop(release);
        drop(guard);
    }
}
