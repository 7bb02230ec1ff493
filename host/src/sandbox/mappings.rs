//! Memory mappings of the process, which the pools of all services share.
//!
//! The kernel limits the number of mappings of a process (`vm.max_map_count`). A process that has
//! reached the limit can start no thread, and the next allocation of memory may end it. A slot of a
//! pool keeps its mappings once it was used, and a component can have many memories. Therefore each
//! pool gets a number of mappings when it is made, and is no larger than that.
//!
//! The settings of a service entitle it to what an ordinary component takes. A component that takes
//! more gets a part of what no service is entitled to, so that it leaves something for others.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::system;

/// Mappings of a connection to an ordinary component: 2 for its stack, and 4 for a memory whose
/// image is mapped, or for two memories that are not.
const OF_CONNECTION: u64 = 6;

/// Pools that a service may have with what an ordinary component takes: of its generation, of the
/// one before, and of one that is loaded.
const POOLS: u64 = 3;

/// Mappings of a pool that no connection counts for: those of the spare instances and stacks.
const OF_POOL: u64 = 160;

/// What services have a claim to, and have taken.
struct Taken {
    /// What the settings of all services entitle them to.
    entitled: u64,
    /// What pools have taken beyond that.
    extra: u64,
}

/// The limit is one of the process, so all services count here.
static TAKEN: Mutex<Taken> = Mutex::new(Taken {
    entitled: 0,
    extra: 0,
});

fn taken() -> MutexGuard<'static, Taken> {
    // Nothing can panic while it is held.
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Mappings that a service with so many connections is entitled to.
fn entitled(connections: u32) -> u64 {
    u64::from(connections) * OF_CONNECTION + OF_POOL
}

/// Mappings that pools may take where a process may have `limit`. The rest is for threads, code,
/// and the allocator.
fn of_pools(limit: u64) -> u64 {
    limit / 4 * 3
}

/// The claim of one service.
#[derive(Debug)]
pub(super) struct Share {
    connections: u32,
    /// What its pools have taken of what it is entitled to.
    own: AtomicU64,
}

impl Share {
    /// The claim of a service with so many connections, which counts until this is dropped.
    pub(super) fn of(connections: u32) -> Arc<Self> {
        taken().entitled += entitled(connections);
        Arc::new(Self {
            connections,
            own: AtomicU64::new(0),
        })
    }

    /// Takes mappings for a pool that `plan` makes out on the present terms. `plan` returns the
    /// pool and how many mappings it takes.
    pub(super) fn take<T, E>(
        self: &Arc<Self>,
        plan: impl FnOnce(Terms) -> Result<(T, u64), E>,
    ) -> Result<(T, Lease), E> {
        let mut taken = taken();
        let own = self.own.load(Relaxed);
        let terms = Terms {
            free: system::max_map_count().map(|limit| {
                let others = taken.entitled - entitled(self.connections);
                of_pools(limit).saturating_sub(others + taken.extra)
            }),
            own,
        };
        let (pool, mappings) = plan(terms)?;
        let of_own = terms.own(self.connections, mappings);
        let lease = Lease {
            share: Arc::clone(self),
            own: of_own,
            extra: mappings - of_own,
            terms,
        };
        self.own.store(own + lease.own, Relaxed);
        taken.extra += lease.extra;
        Ok((pool, lease))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        taken().entitled -= entitled(self.connections);
    }
}

/// Mappings of one pool, until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    share: Arc<Share>,
    own: u64,
    extra: u64,
    terms: Terms,
}

impl Lease {
    /// How many there are.
    pub(super) fn mappings(&self) -> u64 {
        self.own + self.extra
    }

    /// The terms on which they were taken.
    pub(super) fn terms(&self) -> Terms {
        self.terms
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut taken = taken();
        taken.extra -= self.extra;
        self.share.own.fetch_sub(self.own, Relaxed);
    }
}

/// What is left for a pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Mappings that no other service has or is entitled to; `None` where the system has no limit.
    free: Option<u64>,
    /// What other pools of the service have taken of what it is entitled to.
    own: u64,
}

impl Terms {
    /// Terms of a system without a limit.
    #[cfg(test)]
    pub(super) const UNLIMITED: Self = Self { free: None, own: 0 };

    /// Terms of a service that has no pool, when so many mappings are free.
    #[cfg(test)]
    pub(super) fn with_free(free: u64) -> Self {
        Self {
            free: Some(free),
            own: 0,
        }
    }

    /// Mappings that a pool for so many connections may take, if it has a use for `wanted` and none
    /// for fewer than `least`.
    pub(super) fn granted(self, connections: u32, wanted: u64, least: u64) -> u64 {
        let Some(free) = self.free else {
            return wanted;
        };
        let own = self.own(connections, wanted);
        let free = free.saturating_sub(entitled(connections));
        // Half of it, so that there is something left for the next.
        let extra = (free / 2).max(least.saturating_sub(own)).min(free);
        own + extra.min(wanted - own)
    }

    /// How many of `wanted` mappings a service with so many connections is entitled to.
    fn own(self, connections: u32, wanted: u64) -> u64 {
        let entitled = entitled(connections);
        let left = (POOLS * entitled).saturating_sub(self.own);
        wanted.min(entitled).min(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTIONS: u32 = 1024;

    /// The mappings that pools may take by the default of Linux, 65,530.
    const FREE: u64 = 49_146;

    fn granted(free: u64, own: u64, wanted: u64, least: u64) -> u64 {
        let terms = Terms {
            free: Some(free),
            own,
        };
        terms.granted(CONNECTIONS, wanted, least)
    }

    #[test]
    fn a_service_gets_what_it_is_entitled_to_whatever_others_have() {
        let entitled = entitled(CONNECTIONS);
        for free in [0, 1000, FREE] {
            assert_eq!(granted(free, 0, entitled, 12), entitled);
            assert_eq!(
                granted(free, 2 * entitled, entitled, 12),
                entitled,
                "the third pool"
            );
            assert_eq!(granted(free, 0, 100, 12), 100, "no more than it has a use for");
        }
        assert_eq!(granted(0, 3 * entitled, entitled, 12), 0, "there is an end to it");
        assert_eq!(Terms::UNLIMITED.granted(CONNECTIONS, 1 << 20, 12), 1 << 20);
    }

    #[test]
    fn what_is_left_is_enough_for_others() {
        assert_eq!(of_pools(65_530), FREE - FREE % 3);
        let entitled = entitled(CONNECTIONS);
        let mut free = FREE;
        let mut grants = Vec::new();
        for _ in 0..3 {
            let granted = granted(free, 0, 100_000, 6000);
            grants.push(granted - entitled);
            free -= granted - entitled;
            assert!(free >= entitled, "{grants:?}");
        }
        assert!(grants.is_sorted_by(|one, next| one > next), "{grants:?}");
        // The least takes more than half, and no more than there is.
        assert_eq!(
            granted(entitled + 1000, 0, 100_000, entitled + 900),
            entitled + 900
        );
        assert_eq!(
            granted(entitled + 1000, 0, 100_000, entitled + 5000),
            entitled + 1000
        );
    }

    #[test]
    fn what_a_pool_has_taken_is_given_back() {
        let share = Share::of(10);
        let taken = share.take(|_| Ok::<_, ()>(((), 1000)));
        let ((), lease) = taken.unwrap();
        assert_eq!((lease.mappings(), lease.extra), (1000, 1000 - entitled(10)));
        assert_eq!(share.own.load(Relaxed), entitled(10));
        drop(lease);
        assert_eq!(share.own.load(Relaxed), 0);
        assert!(share.take(|_| Err::<((), u64), _>(())).is_err());
        assert_eq!(share.own.load(Relaxed), 0);
    }
}
