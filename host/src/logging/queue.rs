//! The queue of lines that wait for standard error.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::io::{self, Write};
use std::iter::repeat_n;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;

/// Lines that wait for standard error to take them. Further lines are dropped: a reader that does
/// not keep up must not hold up connections.
const LINES: usize = 8192;

/// Bytes of a message that count as one line. So the lines that wait take at most 16 MiB.
const LINE: usize = 2 << 10;

/// Lines that wait while anybody may add more.
const COMMON: usize = LINES / 4;

/// Lines that guests may add to a crowded queue, and lines about services that the host may add.
/// The services have equal shares of both. The rest, at least a quarter of the queue, is for lines
/// that name no service.
pub(crate) const SHARED: usize = LINES / 4;

/// The queue of the log.
static OF_LOG: OnceLock<Queue> = OnceLock::new();

thread_local! {
    /// Set while this thread logs a line of a guest.
    static OF_GUEST: Cell<bool> = const { Cell::new(false) };

    /// The service that the line names which this thread writes next, if the queue is crowded and
    /// the line is none of a guest.
    static ABOUT: Cell<Option<String>> = const { Cell::new(None) };
}

/// Calls `log`, which logs a line of a guest.
pub(crate) fn of_guest(log: impl FnOnce()) {
    OF_GUEST.set(true);
    log();
    OF_GUEST.set(false);
}

/// Sets the number of services that have shares of the queue of the log.
pub(crate) fn set_services(count: usize) {
    if let Some(queue) = OF_LOG.get() {
        queue.services.store(count, Relaxed);
    }
}

/// Tells the queue which service an event names. The layer that writes lines comes after this one.
#[derive(Debug)]
pub(super) struct TellService;

impl<S: Subscriber> Layer<S> for TellService {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut service = ServiceOf(None);
        // Otherwise nobody asks.
        if Level::of_log().is_crowded() && !OF_GUEST.get() {
            event.record(&mut service);
        }
        ABOUT.set(service.0);
    }
}

/// The value of the field `service`.
struct ServiceOf(Option<String>);

impl Visit for ServiceOf {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "service" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "service" {
            self.0 = Some(format!("{value:?}"));
        }
    }
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
    /// The number of services.
    services: Arc<AtomicUsize>,
    /// For each service, the places of the lines about it that were added while the queue was
    /// crowded and still wait. A place is the count of all lines up to it.
    about: Arc<Mutex<HashMap<String, VecDeque<usize>>>>,
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
            services: Arc::default(),
            about: Arc::default(),
        };
        (queue, guard)
    }

    fn level(&self) -> Level {
        Level {
            came: self.came.load(Relaxed),
            taken: self.taken.load(Relaxed),
        }
    }

    /// Adds so many lines, if there is room. Returns the count of all lines up to them.
    fn add(&self, lines: usize) -> Option<usize> {
        let added = self.came.fetch_update(Relaxed, Relaxed, |came| {
            let waiting = came.saturating_sub(self.taken.load(Relaxed));
            (waiting + lines <= LINES).then_some(came + lines)
        });
        added.ok().map(|came| came + lines)
    }

    /// Adds so many lines about a service to a crowded queue, if the service has room in its share.
    fn add_to_share(&self, service: String, lines: usize) -> Option<usize> {
        let share = SHARED / self.services.load(Relaxed).max(1);
        // Nothing can panic while it is held.
        let mut about = self.about.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.taken.load(Relaxed);
        about.retain(|_, waiting| {
            while waiting.pop_front_if(|place| *place <= taken).is_some() {}
            !waiting.is_empty()
        });
        let waiting = about.entry(service).or_default();
        // One message fits, however many lines it has.
        if !waiting.is_empty() && waiting.len() + lines > share {
            return None;
        }
        let place = self.add(lines)?;
        waiting.extend(repeat_n(place, lines));
        Some(place)
    }
}

/// Returns as how many lines a message counts in the queue: the number of its lines, or one for each
/// [`LINE`] bytes if that is more.
fn lines(message: &[u8]) -> usize {
    let lines = message.iter().filter(|byte| **byte == b'\n').count();
    let lines = lines.max(message.len().div_ceil(LINE));
    // A message with more lines than the queue takes is added when the queue is empty.
    lines.clamp(1, LINES)
}

impl Write for Queue {
    /// Adds a message of one or more whole lines, or drops it if there is no room.
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let lines = lines(message);
        let added = match ABOUT.take() {
            Some(service) if self.level().is_crowded() => self.add_to_share(service, lines),
            _ => self.add(lines),
        };
        match added {
            Some(_) => self.messages.write(message),
            None => Ok(message.len()),
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
        for _ in 0..2 {
            for _ in 0..2 * LINES {
                queue.write_all(b"line\n").unwrap();
            }
            assert_eq!(queue.level().waiting(), LINES);
        }
        drop(release);
        until_waiting(&queue, 0);
        drop(guard);
    }

    #[test]
    fn lines_about_each_service_have_their_share() {
        let (mut queue, guard, release) = held(usize::MAX);
        queue.services.store(2, Relaxed);
        queue.write_all(b"first\n").unwrap();
        until_waiting(&queue, 0);
        let mut fill = |service: Option<&str>, message: &str| {
            for _ in 0..2 * LINES {
                ABOUT.set(service.map(str::to_owned));
                queue.write_all(message.as_bytes()).unwrap();
            }
            queue.level().waiting()
        };
        let line = "line\n";
        let share = SHARED / 2;
        assert_eq!(fill(Some("busy"), line), COMMON + share);
        assert_eq!(fill(Some("calm"), &line.repeat(2)), COMMON + 2 * share);
        assert_eq!(fill(Some("busy"), line), COMMON + 2 * share);
        // A service that is not counted yet, whose message has more lines than its share.
        let many = 2 * share;
        assert_eq!(fill(Some("new"), &line.repeat(many)), COMMON + 2 * share + many);
        assert_eq!(fill(None, line), LINES);
        for _ in 0..COMMON {
            release.send(()).unwrap();
        }
        until_waiting(&queue, LINES - COMMON);
        let mut fill = |service: &str| {
            for _ in 0..LINES {
                ABOUT.set(Some(service.to_owned()));
                queue.write_all(line.as_bytes()).unwrap();
            }
            queue.level().waiting()
        };
        // Those that wait are behind the lines that were taken.
        assert_eq!(fill("busy"), LINES - COMMON);
        assert_eq!(fill("other"), LINES - COMMON + share);
        drop(release);
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
    fn a_long_line_counts_as_several() {
        let (mut queue, guard, release) = held(usize::MAX);
        queue.write_all(b"first\n").unwrap();
        until_waiting(&queue, 0);
        for (length, waiting) in [(LINE, 1), (LINE + 1, 3), (8 * LINE, 11)] {
            let line = format!("{}\n", "x".repeat(length - 1));
            queue.write_all(line.as_bytes()).unwrap();
            assert_eq!(queue.level().waiting(), waiting, "{length}");
        }
        drop(release);
        until_waiting(&queue, 0);
        drop(guard);
    }

    #[test]
    fn a_message_with_more_lines_than_the_queue_is_added_to_an_empty_one() {
        let (mut queue, guard, release) = held(usize::MAX);
        queue.write_all(&b"line\n".repeat(2 * LINES)).unwrap();
        until_waiting(&queue, 0);
        assert_eq!(queue.level().came, LINES);
        drop(release);
        drop(guard);
    }
}
