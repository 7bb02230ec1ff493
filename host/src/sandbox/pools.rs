//! Pools of a service, which outlive its settings.
//!
//! The open connections of an earlier generation keep its pool. Most settings do not concern the
//! pool, so generations before and after a change of those share it.

use std::sync::{Arc, Mutex, Weak};

use super::capacity::Pool;
use super::direct::Stacks;
use super::living::{living, locked};
use super::mappings::{Lease, Share};
use super::needs::{LEAST_INSTANCES, Needs};
use super::ticker::Ticker;

/// The services that have a name. A service that is removed and comes back has the pools that its
/// connections have kept.
static NAMED: Mutex<Vec<(String, Weak<Pools>)>> = Mutex::new(Vec::new());

/// The pools of one service, and what else its generations share.
#[derive(Debug)]
pub(super) struct Pools {
    pub(super) share: Arc<Share>,
    made: Mutex<Vec<Weak<Pooled>>>,
    tickers: Mutex<Vec<Weak<Ticker>>>,
}

/// A pool, and the engine that has it.
pub(super) struct Pooled {
    /// What it was made for.
    pub(super) needs: Needs,
    pub(super) connections: u32,
    pub(super) engine: wasmtime::Engine,
    /// `None` where instances are allocated on demand.
    pub(super) pool: Option<Pool>,
    /// The stacks, where there are fewer than connections.
    pub(super) stacks: Option<Arc<Stacks>>,
    pub(super) lease: Arc<Lease>,
    /// The pools of the service, which are known as long as there is one of them.
    #[expect(dead_code, reason = "it keeps them known")]
    pub(super) pools: Arc<Pools>,
}

impl Pools {
    /// The pools of a service without a name, which nothing else shares.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            share: Share::new(),
            made: Mutex::default(),
            tickers: Mutex::default(),
        })
    }

    /// The pools of the service called `name`.
    pub(super) fn of(name: &str) -> Arc<Self> {
        let mut named = locked(&NAMED);
        named.retain(|(_, pools)| pools.strong_count() > 0);
        let found = named.iter().find(|(other, _)| other == name);
        if let Some(pools) = found.and_then(|(_, pools)| pools.upgrade()) {
            return pools;
        }
        let pools = Self::new();
        named.push((name.to_owned(), Arc::downgrade(&pools)));
        pools
    }

    /// Returns a clock of the service with the slice of `ticker`, which is `ticker` if there is no
    /// other.
    pub(super) fn ticker(&self, ticker: Arc<Ticker>) -> Arc<Ticker> {
        let mut tickers = locked(&self.tickers);
        let others = living(&mut tickers);
        if let Some(other) = others.into_iter().find(|other| other.slice() == ticker.slice()) {
            return other;
        }
        tickers.push(Arc::downgrade(&ticker));
        ticker
    }

    /// Returns a pool that has room for so many connections to a component with such needs, and
    /// has one made if there is none. `make` gets the pool that comes nearest.
    pub(super) fn get_or_make<E>(
        self: &Arc<Self>,
        needs: Needs,
        connections: u32,
        make: impl FnOnce(Option<Arc<Pooled>>) -> Result<Arc<Pooled>, E>,
    ) -> Result<Arc<Pooled>, E> {
        // Locked until it is made, so that no other is made meanwhile.
        let mut made = locked(&self.made);
        let pools = living(&mut made);
        if let Some(whole) = pools.iter().find(|pooled| pooled.is_whole(needs, connections)) {
            return Ok(Arc::clone(whole));
        }
        let fit = pools.into_iter().filter(|pooled| pooled.fits(needs));
        let nearest = fit.max_by_key(|pooled| pooled.capacity(needs));
        let pooled = make(nearest)?;
        if made
            .iter()
            .all(|other| !std::ptr::eq(other.as_ptr(), &raw const *pooled))
        {
            made.push(Arc::downgrade(&pooled));
        }
        Ok(pooled)
    }
}

impl std::fmt::Debug for Pooled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pooled")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Pooled {
    /// Instances of a component with such needs that it has room for.
    pub(super) fn capacity(&self, needs: Needs) -> u32 {
        self.pool.map_or(0, |pool| pool.capacity(needs))
    }

    /// Whether it is no smaller than a new pool for such needs and so many connections, and not
    /// made for larger instances.
    fn is_whole(&self, needs: Needs, connections: u32) -> bool {
        let is_alike = self.needs.like(needs) == needs;
        is_alike && self.pool.is_some_and(|pool| pool.is_whole(needs, connections))
    }

    /// Whether it can have instances of a component with such needs.
    fn fits(&self, needs: Needs) -> bool {
        self.needs.include(needs) && self.capacity(needs) >= LEAST_INSTANCES
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use super::super::Sandbox;
    use super::super::compiler::Compiler;
    use super::super::content::ECHO;
    use super::super::extent::Extent;
    use super::*;
    use crate::config::{CacheDir, Grants, Limits};

    fn sandbox(service: &str, connections: usize, max_memory: usize) -> Sandbox {
        let limits = Limits {
            max_connections: NonZeroUsize::new(connections).unwrap(),
            max_memory,
            ..Limits::default()
        };
        let sandbox = Sandbox::new(&limits, &Grants::default(), &Compiler::in_process(&CacheDir::Off));
        sandbox.unwrap().service(service)
    }

    fn needs() -> Needs {
        Needs::of(ECHO, &Extent::of(ECHO))
    }

    #[test]
    fn settings_that_do_not_concern_the_pool_keep_it() {
        let engine = |sandbox: &Sandbox| sandbox.engine(needs()).unwrap();
        let first = sandbox("pools-a", 4, 1 << 20);
        let before = engine(&first);
        let is_kept = |sandbox: &Sandbox| Arc::ptr_eq(&before.pooled, &engine(sandbox).pooled);
        assert!(is_kept(&sandbox("pools-a", 4, 2 << 20)));
        assert!(is_kept(&sandbox("pools-a", 3, 1 << 20)), "it is large enough");
        assert!(!is_kept(&sandbox("pools-a", 5, 1 << 20)), "it is too small");
        assert!(
            !is_kept(&sandbox("pools-b", 4, 1 << 20)),
            "it is another service's"
        );
        // A connection that is open keeps the pool, and the service comes back.
        drop(first);
        assert!(is_kept(&sandbox("pools-a", 4, 1 << 20)));
    }

    #[test]
    fn a_pool_of_larger_instances_is_taken_where_no_other_can_be_had() {
        let pools = Pools::new();
        let large = sandbox("pools-c", 4, 1 << 20);
        let mut of_large = needs();
        of_large.room.memories = 2;
        let large = large.engine(of_large).unwrap().pooled;
        let refuse = |nearest: Option<Arc<Pooled>>| nearest.ok_or(());
        let made = pools.get_or_make(of_large, 4, |_| Ok::<_, ()>(Arc::clone(&large)));
        assert!(Arc::ptr_eq(&made.unwrap(), &large));
        let found = pools.get_or_make(needs(), 4, refuse).unwrap();
        assert!(Arc::ptr_eq(&found, &large));
        let mut larger = of_large;
        larger.room.memories = 4;
        assert!(pools.get_or_make(larger, 4, refuse).is_err(), "it does not fit");
        // With more connections than there is room for, it is still the nearest.
        let found = pools.get_or_make(of_large, 9, refuse).unwrap();
        assert_eq!(found.capacity(of_large), 6);
    }

    #[test]
    fn a_clock_is_kept_while_the_slice_stays() {
        let pools = Pools::new();
        let start = |ms| Ticker::start(Duration::from_millis(ms)).unwrap();
        let first = pools.ticker(start(2));
        assert!(Arc::ptr_eq(&first, &pools.ticker(start(2))));
        assert!(!Arc::ptr_eq(&first, &pools.ticker(start(4))));
    }
}
