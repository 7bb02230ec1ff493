//! Lists of weak references.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Locks a list. If a thread has panicked meanwhile, the list is still whole: nothing that is done
/// under the lock can leave it half changed.
pub(super) fn locked<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets what no longer exists, and returns the rest.
pub(super) fn living<T>(list: &mut Vec<Weak<T>>) -> Vec<Arc<T>> {
    list.retain(|one| one.strong_count() > 0);
    list.iter().filter_map(Weak::upgrade).collect()
}
