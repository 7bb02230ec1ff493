//! For tests: a task that does nothing but count how often it is woken.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Wake, Waker};

/// A task that counts.
#[derive(Default)]
pub(crate) struct CountingTask(AtomicUsize);

impl CountingTask {
    /// How often it was woken.
    pub(crate) fn wakes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Wake for CountingTask {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A task, and what wakes it.
pub(crate) fn counting_task() -> (Arc<CountingTask>, Waker) {
    let task = Arc::<CountingTask>::default();
    (Arc::clone(&task), Waker::from(task))
}
