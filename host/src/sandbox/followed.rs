//! Values that guests with earlier settings of a service use as well.

use std::sync::{Arc, OnceLock};

/// A value for some settings of a service, in place of which that of later settings can be used.
#[derive(Debug)]
pub(super) struct Followed<T> {
    value: T,
    next: OnceLock<Arc<Self>>,
}

impl<T> Followed<T> {
    pub(super) fn new(value: T) -> Arc<Self> {
        let next = OnceLock::new();
        Arc::new(Self { value, next })
    }

    /// Returns the value for these settings.
    pub(super) fn own(&self) -> &T {
        &self.value
    }

    /// Has `next` used in place of the value from now on. Settings are replaced once, so later calls
    /// do nothing.
    pub(super) fn follow(&self, next: &Arc<Self>) {
        let _ = self.next.set(Arc::clone(next));
    }

    /// Returns the value to use: that of the last settings.
    pub(super) fn newest(&self) -> &T {
        let mut newest = self;
        while let Some(next) = newest.next.get() {
            newest = next;
        }
        &newest.value
    }
}
