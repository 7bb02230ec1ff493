//! What one connection costs: the time that its guest works, the memory that it takes, and how long its instance took to make.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

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
}

impl Cost {
    /// The time of the guest's turns on a thread, with what the host does for it within them. It is told by the clock, which also
    /// counts what else the machine does in between.
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
