//! The monotonic clock of guests.

use std::sync::LazyLock;
use std::time::Instant;

use wasmtime_wasi::HostMonotonicClock;

/// The moment from which the clock counts.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A monotonic clock that all guests of the process share.
///
/// A guest can keep a time for longer than its instance lives: in the snapshot that `preinit`
/// makes, or in the state of a session that moves. With a clock for each instance, such a time
/// would lie in the future.
pub(super) struct ProcessClock;

impl HostMonotonicClock for ProcessClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
