//! Memory mappings of the process, which the pools of all services share.
//!
//! The kernel limits the number of mappings of a process (`vm.max_map_count`). A process that has
//! reached the limit can start no thread, and the next allocation of memory may end it. A slot of a
//! pool keeps its mappings once it was used, and a component can have many memories. Therefore each
//! pool gets a number of mappings when it is made, and is no larger than that.
//!
//! The settings of a service entitle it to what an ordinary component takes. A component that takes
//! more gets a part of what no service is entitled to, so that it leaves something for others.
//!
//! A pool counts in full while it serves new connections. After that it counts with the mappings
//! that it has: open connections can keep a pool long after the settings have changed.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use wasmtime::{Engine, EngineWeak};

use super::living::{living, locked};
use crate::system;

/// Mappings of a connection to an ordinary component: 2 for its stack, and 4 for a memory whose
/// image is mapped, or for two memories that are not.
const OF_CONNECTION: u64 = 6;

/// Mappings of a pool that no connection counts for: those of the spare instances and stacks.
const OF_POOL: u64 = 160;

/// The claims of all services. The limit is one of the process, so all count here.
static SHARES: Mutex<Vec<Weak<Share>>> = Mutex::new(Vec::new());

/// Mappings that a service with so many connections is entitled to.
fn entitled(connections: u32) -> u64 {
    u64::from(connections) * OF_CONNECTION + OF_POOL
}

/// Mappings that pools may take where a process may have `limit`. The rest is for threads, code,
/// and the allocator.
fn of_pools(limit: u64) -> u64 {
    limit / 4 * 3
}

/// Mappings that pools without new connections may have beyond that, before they count against the
/// entitlements.
fn of_draining(limit: u64) -> u64 {
    limit / 8
}

/// The claim of one service.
#[derive(Debug, Default)]
pub(super) struct Share {
    claims: Mutex<Vec<Weak<Claim>>>,
    leases: Mutex<Vec<Weak<Lease>>>,
}

/// The number of connections that one version of a service's settings allows.
#[derive(Debug)]
pub(super) struct Claim {
    connections: u32,
}

impl Share {
    /// The claim of one more service, which counts until this is dropped.
    pub(super) fn new() -> Arc<Self> {
        let share = Arc::default();
        locked(&SHARES).push(Arc::downgrade(&share));
        share
    }

    /// Entitles the service to what so many connections take, until the claim is dropped. Of
    /// several claims, the largest counts.
    pub(super) fn claim(&self, connections: u32) -> Arc<Claim> {
        let claim = Arc::new(Claim { connections });
        locked(&self.claims).push(Arc::downgrade(&claim));
        claim
    }

    /// Takes mappings for a pool that `plan` makes out on the present terms. `plan` returns the
    /// pool and what it takes.
    pub(super) fn take<T, E>(
        &self,
        plan: impl FnOnce(Terms) -> Result<(T, Size), E>,
    ) -> Result<(T, Arc<Lease>), E> {
        let mut shares = locked(&SHARES);
        let all = living(&mut shares);
        let limit = system::max_map_count();
        let terms = limit.map_or(Terms::UNLIMITED, |limit| self.terms(limit, &all));
        let (pool, size) = plan(terms)?;
        let lease = Arc::new(Lease {
            size,
            terms,
            engine: OnceLock::new(),
            live: Arc::default(),
            serving: AtomicUsize::new(0),
            is_retired: AtomicBool::new(false),
        });
        locked(&self.leases).push(Arc::downgrade(&lease));
        Ok((pool, lease))
    }

    /// The terms for the next pool of this service, which new connections are to get.
    fn terms(&self, limit: u64, all: &[Arc<Self>]) -> Terms {
        let (mut claimed, mut counted, mut used, mut draining) = (0, 0, 0, 0);
        let is_first = living(&mut locked(&self.leases)).is_empty();
        for share in all {
            let is_own = std::ptr::eq(&**share, self);
            let leases = living(&mut locked(&share.leases));
            // The next pool takes the place of those that serve.
            let has_next = is_own || leases.iter().any(|lease| lease.is_new());
            let is_ending = |lease: &Lease| lease.is_ending(has_next);
            let counts = |lease: &Arc<Lease>| {
                if is_own || is_ending(lease) {
                    lease.used()
                } else {
                    lease.size.most
                }
            };
            let of_share: u64 = leases.iter().map(counts).sum();
            counted += of_share;
            claimed += if is_own {
                of_share
            } else {
                of_share.max(share.entitled())
            };
            used += leases.iter().map(|lease| lease.used()).sum::<u64>();
            let ending = leases.iter().filter(|lease| is_ending(lease));
            // A pool without instances is about to be dropped.
            let ending = ending.filter(|lease| lease.live() > 0);
            draining += ending.map(|lease| lease.used()).sum::<u64>();
        }
        let pools = of_pools(limit);
        let is_bearable = draining <= of_draining(limit);
        Terms(Some(Bounds {
            free: pools.saturating_sub(claimed),
            spare: (pools + of_draining(limit)).saturating_sub(counted),
            unused: match is_bearable {
                // The operator has chosen how many connections there can be, and is warned.
                true if is_first => u64::MAX,
                true => pools.saturating_sub(used),
                false => 0,
            },
            kept: draining,
        }))
    }

    fn entitled(&self) -> u64 {
        let claims = living(&mut locked(&self.claims));
        let claims = claims.iter().map(|claim| entitled(claim.connections));
        claims.max().unwrap_or(0)
    }
}

/// Mappings that a pool takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// When each of its slots was used.
    pub(super) most: u64,
    /// As soon as it is made.
    pub(super) at_once: u64,
    /// For each memory that was used.
    pub(super) of_memory: u64,
    /// For each instance that is allocated on demand, without a pool.
    pub(super) of_instance: u64,
}

/// Mappings of one pool, until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    size: Size,
    terms: Terms,
    /// What has the pool, once it is made.
    engine: OnceLock<Weakly>,
    /// One more reference for each store.
    live: Arc<()>,
    /// Generations that get new connections.
    serving: AtomicUsize,
    /// A generation got new connections, and gets none any more.
    is_retired: AtomicBool,
}

/// A reference to an engine that does not keep its pool.
struct Weakly(EngineWeak);

impl std::fmt::Debug for Weakly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Weakly")
    }
}

impl Lease {
    /// How many there are.
    pub(super) fn mappings(&self) -> u64 {
        self.size.most
    }

    /// The terms on which they were taken.
    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    /// The pool is made, and this engine has it.
    pub(super) fn is_of(&self, engine: &Engine) {
        // There is one engine for each lease.
        let _ = self.engine.set(Weakly(engine.weak()));
    }

    /// What a store keeps while it lives.
    pub(super) fn live_mark(&self) -> Arc<()> {
        Arc::clone(&self.live)
    }

    /// A generation whose instances are in the pool gets new connections from now on, or gets none
    /// any more.
    pub(super) fn serves(&self, serves: bool) {
        if serves {
            self.serving.fetch_add(1, SeqCst);
        } else {
            // In this order, so that it never looks as if it had still to serve.
            self.is_retired.store(true, SeqCst);
            self.serving.fetch_sub(1, SeqCst);
        }
    }

    /// Stores that live.
    fn live(&self) -> u64 {
        (Arc::strong_count(&self.live) - 1) as u64
    }

    /// Whether the pool has still to serve.
    fn is_new(&self) -> bool {
        self.serving.load(SeqCst) == 0 && !self.is_retired.load(SeqCst)
    }

    /// Whether the pool will only serve connections that are open, if the service `has_next`, which
    /// is another pool for new connections.
    fn is_ending(&self, has_next: bool) -> bool {
        let serves = self.serving.load(SeqCst) > 0;
        if serves { has_next } else { !self.is_new() }
    }

    /// Mappings that the pool has now.
    fn used(&self) -> u64 {
        let Some(engine) = self.engine.get() else {
            return self.size.most;
        };
        let Some(engine) = engine.0.upgrade() else {
            return 0;
        };
        let used = match engine.pooling_allocator_metrics() {
            Some(metrics) => {
                let memories = metrics.memories() as u64 + u64::from(metrics.unused_warm_memories());
                self.size.at_once + memories * self.size.of_memory
            }
            None => self.live() * self.size.of_instance,
        };
        used.min(self.size.most)
    }
}

/// What is left for a pool. `None` where the system has no limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms(Option<Bounds>);

#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Mappings that no other service has or is entitled to, and that earlier pools of the service
    /// leave.
    free: u64,
    /// The same, with what other services are entitled to and have not taken, and with the part for
    /// pools that are to end.
    spare: u64,
    /// Mappings that no pool has now, or any number for the first pool of a service; none if pools
    /// that are to end have too many.
    unused: u64,
    /// Mappings that open connections keep in earlier pools.
    kept: u64,
}

impl Terms {
    /// Terms of a system without a limit.
    pub(super) const UNLIMITED: Self = Self(None);

    /// Terms of a service that has no pool, when so many mappings are free.
    #[cfg(test)]
    pub(super) fn with_free(free: u64) -> Self {
        Self(Some(Bounds {
            free,
            spare: free,
            unused: u64::MAX,
            kept: 0,
        }))
    }

    /// Mappings that open connections keep in earlier pools.
    pub(super) fn kept(self) -> u64 {
        self.0.map_or(0, |bounds| bounds.kept)
    }

    /// Mappings that a pool for so many connections may take, if it has a use for those of
    /// `wanted`, and none for fewer than `least`.
    pub(super) fn granted(self, connections: u32, wanted: Size, least: u64) -> u64 {
        let Some(bounds) = self.0 else {
            return wanted.most;
        };
        let entitled = entitled(connections);
        let mut own = wanted.most.min(entitled);
        if wanted.at_once > bounds.unused {
            own = own.min(bounds.spare);
        }
        let free = bounds.free.saturating_sub(entitled);
        // Half of it, so that there is something left for the next.
        let extra = (free / 2).max(least.saturating_sub(own)).min(free);
        own + extra.min(wanted.most - own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTIONS: u32 = 1024;

    /// The default limit of Linux, and the mappings that pools may take by it.
    const LIMIT: u64 = 65_530;
    const FREE: u64 = 49_146;

    /// What pools that are to end may take beyond that.
    const DRAINING: u64 = 8191;

    fn size(most: u64, at_once: u64) -> Size {
        Size {
            most,
            at_once,
            of_memory: 2,
            of_instance: 4,
        }
    }

    fn granted(free: u64, wanted: u64, least: u64) -> u64 {
        Terms::with_free(free).granted(CONNECTIONS, size(wanted, 12), least)
    }

    /// A pool of one service, of which `live` stores keep what it has.
    fn leased(share: &Share, size: Size, live: usize) -> (Arc<Lease>, Engine, Vec<Arc<()>>) {
        let ((), lease) = share.take(|_| Ok::<_, ()>(((), size))).unwrap();
        // It has no pool, so its mappings are those of its stores.
        let engine = Engine::default();
        lease.is_of(&engine);
        let live = (0..live).map(|_| lease.live_mark()).collect();
        (lease, engine, live)
    }

    fn bounds(share: &Arc<Share>, others: &[&Arc<Share>]) -> Bounds {
        let mut all: Vec<_> = others.iter().map(|&other| Arc::clone(other)).collect();
        all.push(Arc::clone(share));
        share.terms(LIMIT, &all).0.unwrap()
    }

    #[test]
    fn a_service_gets_what_it_is_entitled_to_whatever_others_are_entitled_to() {
        let entitled = entitled(CONNECTIONS);
        for free in [0, 1000, FREE] {
            assert_eq!(granted(free, entitled, 12), entitled);
            assert_eq!(granted(free, 100, 12), 100, "no more than it has a use for");
        }
        assert_eq!(
            Terms::UNLIMITED.granted(CONNECTIONS, size(1 << 20, 12), 12),
            1 << 20
        );
    }

    #[test]
    fn a_service_gets_no_more_than_is_left_when_there_are_too_few_at_once() {
        let wanted = size(4232, 2180);
        for (spare, unused, expected) in [(0, 2180, 4232), (0, 2179, 0), (3000, 0, 3000), (FREE, 0, 4232)] {
            let terms = Terms(Some(Bounds {
                free: 0,
                spare,
                unused,
                kept: 0,
            }));
            assert_eq!(terms.granted(CONNECTIONS, wanted, 12), expected, "{terms:?}");
        }
    }

    #[test]
    fn what_is_left_is_enough_for_others() {
        assert_eq!((of_pools(LIMIT), of_draining(LIMIT)), (FREE, DRAINING));
        let entitled = entitled(CONNECTIONS);
        let mut free = FREE;
        let mut grants = Vec::new();
        for _ in 0..3 {
            let granted = granted(free, 100_000, 6000);
            grants.push(granted - entitled);
            free -= granted - entitled;
            assert!(free >= entitled, "{grants:?}");
        }
        assert!(grants.is_sorted_by(|one, next| one > next), "{grants:?}");
        // The least takes more than half, and no more than there is.
        assert_eq!(granted(entitled + 1000, 100_000, entitled + 900), entitled + 900);
        assert_eq!(
            granted(entitled + 1000, 100_000, entitled + 5000),
            entitled + 1000
        );
    }

    #[test]
    fn a_claim_counts_until_it_is_dropped() {
        let (own, other) = (Share::new(), Share::new());
        let small = other.claim(10);
        let large = other.claim(20);
        let free = || bounds(&own, &[&other]).free;
        assert_eq!(free(), FREE - entitled(20), "the larger of two");
        drop(large);
        assert_eq!(free(), FREE - entitled(10));
        drop(small);
        assert_eq!(free(), FREE);
    }

    #[test]
    fn a_pool_counts_in_full_while_it_serves_and_then_with_what_it_has() {
        let (own, other) = (Share::new(), Share::new());
        let (lease, _engine, live) = leased(&other, size(1000, 100), 3);
        let spare = || bounds(&own, &[&other]).spare;
        assert_eq!(spare(), FREE + DRAINING - 1000, "it has still to serve");
        lease.serves(true);
        // As when the generation of new settings shares the pool.
        lease.serves(true);
        lease.serves(false);
        assert_eq!(spare(), FREE + DRAINING - 1000);
        lease.serves(false);
        assert_eq!(spare(), FREE + DRAINING - 12);
        lease.serves(true);
        assert_eq!(spare(), FREE + DRAINING - 1000, "it was rolled back to");
        let (next, ..) = leased(&other, size(500, 100), 0);
        assert_eq!(spare(), FREE + DRAINING - 512, "another is to take its place");
        drop(next);
        lease.serves(false);
        drop(live);
        assert_eq!(spare(), FREE + DRAINING);
    }

    #[test]
    fn earlier_pools_of_a_service_count_with_what_they_have() {
        let own = Share::new();
        let _claim = own.claim(1);
        assert_eq!(
            bounds(&own, &[]).unused,
            u64::MAX,
            "the first always gets what it is entitled to"
        );
        let (lease, _engine, live) = leased(&own, size(40_000, 100), 2000);
        lease.serves(true);
        let found = bounds(&own, &[]);
        assert_eq!((found.free, found.spare), (FREE - 8000, FREE + DRAINING - 8000));
        assert_eq!((found.unused, found.kept), (FREE - 8000, 8000));
        // Beyond an eighth of the limit, a further pool has to fit into what is left.
        let more: Vec<_> = (0..100).map(|_| lease.live_mark()).collect();
        let found = bounds(&own, &[]);
        assert_eq!((found.unused, found.kept), (0, 8400));
        assert_eq!(found.spare, FREE + DRAINING - 8400);
        drop((live, more));
        let found = bounds(&own, &[]);
        assert_eq!((found.unused, found.kept), (FREE, 0));
    }
}
