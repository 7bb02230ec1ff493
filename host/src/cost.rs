//! What one connection costs: the time that its guest works, the memory that it takes, and how long its instance took to make.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The number of lines of standard error that are kept.
const MAX_LAST: usize = 4;

/// How lines begin that follow a Rust guest's message when it panics. They say nothing about the
/// panic: a guest cannot walk its stack, so its backtrace is empty.
const SAY_NOTHING: [&str; 3] = [
    "note: run with `RUST_BACKTRACE=1`",
    "note: Some details are omitted",
    "stack backtrace:",
];

/// What the line of a Rust guest has that names the place of a panic.
const PANIC: &str = "panicked at ";

/// What a connection has cost so far, or instances that connections share. It can be read while that goes on.
#[derive(Debug, Default)]
pub struct Cost {
    /// Nanoseconds.
    cpu: AtomicU64,
    /// Bytes, at their peak.
    memory: AtomicU64,
    /// Bytes of instances that live.
    live: AtomicU64,
    /// When making the instance began, and how long it took; of a session that has moved, the first.
    made: OnceLock<(Instant, Duration)>,
    refused: AtomicBool,
    /// The last lines that the guest wrote to standard error.
    last: Tail,
}

impl Cost {
    /// The time for which threads have run the guest, with what the host does for it meanwhile. Each
    /// turn is measured to within a millisecond.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu.load(Relaxed))
    }

    /// The most memory that the instance has had, in bytes: linear memories and tables.
    pub fn memory(&self) -> u64 {
        self.memory.load(Relaxed)
    }

    /// The memory of instances that live now, in bytes: linear memories and tables. It is 0 once they are dropped.
    pub fn live_memory(&self) -> u64 {
        self.live.load(Relaxed)
    }

    /// How long it took to make the instance, once there is one.
    pub fn instantiation(&self) -> Option<Duration> {
        self.made().map(|(_, took)| took)
    }

    /// When making the instance began, and how long it took, once there is one.
    pub fn made(&self) -> Option<(Instant, Duration)> {
        self.made.get().copied()
    }

    /// Whether the instance has asked for more memory than it may have.
    pub fn was_refused_memory(&self) -> bool {
        self.refused.load(Relaxed)
    }

    pub(crate) fn refused_memory(&self) {
        self.refused.store(true, Relaxed);
    }

    /// Keeps a line that the guest wrote to standard error.
    pub(crate) fn says(&self, line: &str) {
        self.last.says(line);
    }

    /// Returns the last lines that the guest wrote to standard error, if there are any.
    pub(crate) fn last_lines(&self) -> Option<String> {
        self.last.text()
    }

    pub(crate) fn add_cpu(&self, time: Duration) {
        self.cpu.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// An instance has grown `by` as many bytes, and has `bytes` now. When a session moves, the larger of its two instances
    /// is the peak.
    pub(crate) fn has_memory(&self, bytes: usize, by: usize) {
        self.memory.fetch_max(bytes as u64, Relaxed);
        self.live.fetch_add(by as u64, Relaxed);
    }

    /// An instance is gone, which had as many bytes.
    pub(crate) fn frees_memory(&self, bytes: usize) {
        self.live.fetch_sub(bytes as u64, Relaxed);
    }

    pub(crate) fn instantiated(&self, start: Instant) {
        self.made.get_or_init(|| (start, start.elapsed()));
    }
}

/// The last lines that a guest wrote to standard error.
#[derive(Debug, Default)]
pub(crate) struct Tail(LastLines<MAX_LAST>);

impl Tail {
    /// Keeps a line.
    pub(crate) fn says(&self, line: &str) {
        self.0.add(line);
    }

    /// Returns the lines, if there are any.
    pub(crate) fn text(&self) -> Option<String> {
        let lines = self.0.lines();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

/// Keeps the last `MAX` lines that say something. The line with the place of the last panic stays,
/// however many lines follow it.
#[derive(Debug, Default)]
pub(crate) struct LastLines<const MAX: usize>(Mutex<VecDeque<String>>);

impl<const MAX: usize> LastLines<MAX> {
    /// Adds a line. If there are `MAX` already, the first one goes that may.
    pub(crate) fn add(&self, line: &str) {
        if line.is_empty() || SAY_NOTHING.iter().any(|beginning| line.starts_with(beginning)) {
            return;
        }
        let is_panic = |line: &str| line.contains(PANIC);
        let mut kept = self.kept();
        if kept.len() == MAX {
            let last_panic = kept.iter().rposition(|line| is_panic(line));
            let first_stays = last_panic == Some(0) && !is_panic(line);
            kept.remove(usize::from(first_stays));
        }
        kept.push_back(line.to_owned());
    }

    /// The lines, as they were written.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.kept().iter().cloned().collect()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<String>> {
        // Nothing can panic while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_without_those_that_say_nothing() {
        let cost = Cost::default();
        assert_eq!(cost.last_lines(), None);
        for line in ["one", "", "two", "three", "four", "five"] {
            cost.says(line);
        }
        cost.says("note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace");
        cost.says("stack backtrace:");
        cost.says("note: Some details are omitted, run with `RUST_BACKTRACE=full`");
        assert_eq!(cost.last_lines().as_deref(), Some("two\nthree\nfour\nfive"));
    }

    #[test]
    fn the_place_of_the_last_panic_stays() {
        let cost = Cost::default();
        let says = |lines: &[&str]| lines.iter().for_each(|line| cost.says(line));
        let kept = || cost.last_lines().unwrap();
        says(&["thread 'a' panicked at src/lib.rs:1:1:", "1", "2", "3", "4", "5"]);
        assert_eq!(kept(), "thread 'a' panicked at src/lib.rs:1:1:\n3\n4\n5");
        says(&["thread 'a' panicked at src/lib.rs:2:2:", "6", "7", "8", "9"]);
        assert_eq!(kept(), "thread 'a' panicked at src/lib.rs:2:2:\n7\n8\n9");
    }
}
