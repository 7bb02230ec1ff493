//! The number of connections that a pool can serve at the same time.

use std::fmt;

use thiserror::Error;

use super::extent::Parts;
use super::mappings::{Size, Terms};
use super::needs::{Calls, Images, LEAST_INSTANCES, Needs};
use crate::config::{Limits, Setting};

/// Instances beyond one for each connection: of a component that is tried while every connection is
/// open.
const SPARE_INSTANCES: u32 = 2;

/// Stacks beyond those of connections. Each spare instance has all the stacks that it can keep.
const SPARE_STACKS: u32 = 64;

/// Stacks that connections have together whose guests are mostly called directly.
const MAX_SHARED_STACKS: u32 = 1024;

/// Mappings of a stack: itself, and what guards it.
const MAPPINGS_OF_STACK: u64 = 2;

/// What a pool holds for all connections together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) instances: u32,
    pub(super) memories: u32,
    pub(super) tables: u32,
    /// Stacks for connections, without the spare ones.
    pub(super) stacks: u32,
    /// Connections that have all their stacks at the same time.
    with_stacks: u32,
}

/// A pool has room for fewer instances than there may be connections.
///
/// The text says so, with the number and with advice. A start, a reload and both forms of `check`
/// say it in these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    memories: u32,
    tables: u32,
    stacks: u32,
    /// Connections that the pool serves at the same time. Further ones end with `start-failed`.
    pub served: u32,
    /// `max-connections`.
    pub asked: usize,
    /// The largest `max-connections` for which the host makes a pool that serves as many.
    advised: u32,
    /// The pool is smaller than it would be if the system allowed more memory mappings.
    lacks_mappings: bool,
}

/// There are too few memory mappings for any pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "{LEAST_INSTANCES} instances of the component take {least} memory mappings, but the pools of this host \
     have {left} left for it: raise the system's limit (vm.max_map_count), or lower {} of the services{}",
    Setting::of("limits.max-connections"),
    keeps(*.kept)
)]
pub(super) struct NoMappings {
    least: u64,
    left: u64,
    /// What open connections keep in earlier pools.
    kept: u64,
}

/// Says what keeps so many mappings, and what to do about it.
fn keeps(kept: u64) -> String {
    if kept == 0 {
        return String::new();
    }
    format!(
        "; open connections keep {kept} in the pools of earlier generations: wait until they end, or limit \
         their time by {}",
        Setting::of("drain-generations")
    )
}

impl Pool {
    /// A pool for so many connections, as it is made if there are address space and mappings for
    /// it.
    pub(super) fn full(needs: Needs, connections: u32) -> Self {
        let instances = connections.saturating_add(SPARE_INSTANCES);
        Self::of(needs, instances, needs.room.memories_of_pool(instances))
    }

    /// A pool for so many connections with the mappings that there are for it.
    ///
    /// # Errors
    ///
    /// There are too few.
    pub(super) fn on(terms: Terms, needs: Needs, connections: u32) -> Result<Self, NoMappings> {
        let full = Self::full(needs, connections);
        let with = |memories| Self::of(needs, full.instances, memories);
        let least = with(needs.room.least_memories());
        let left = terms.granted(connections, full.size(needs), least.mappings(needs));
        if least.mappings(needs) > left {
            return Err(NoMappings {
                least: least.mappings(needs),
                left,
                kept: terms.kept(),
            });
        }
        // The first fits, and the last need not.
        let (mut fits, mut most) = (least.memories, full.memories);
        while fits < most {
            let middle = most - (most - fits) / 2;
            if with(middle).mappings(needs) <= left {
                fits = middle;
            } else {
                most = middle - 1;
            }
        }
        Ok(with(fits))
    }

    /// The same with half of the memories; `None` if that would be too few.
    pub(super) fn halved(self, needs: Needs) -> Option<Self> {
        let least = self.instances.max(needs.room.least_memories());
        let memories = self.memories / 2;
        (memories >= least).then(|| Self::of(needs, self.instances, memories))
    }

    fn of(needs: Needs, instances: u32, memories: u32) -> Self {
        // No instance has fewer memories than the next lower room has.
        let at_once = instances.min(memories / (needs.room.memories / 2 + 1));
        Self {
            instances,
            memories,
            tables: needs.room.tables_of_pool(instances),
            stacks: stacks(needs, at_once),
            with_stacks: match needs.calls {
                // These wait for a stack.
                Calls::Direct => instances,
                Calls::OnFibers => at_once,
            },
        }
    }

    /// Instances of components that there may be. Each has all its stacks, so that one beyond fails
    /// before its guest begins.
    pub(super) fn most_instances(self) -> u32 {
        self.instances
            .min(self.with_stacks.saturating_add(SPARE_INSTANCES))
    }

    /// Stacks that it has, with the spare ones.
    pub(super) fn all_stacks(self) -> u32 {
        self.stacks.saturating_add(SPARE_STACKS)
    }

    /// Memory mappings that it takes when each of its memories was used.
    pub(super) fn mappings(self, needs: Needs) -> u64 {
        u64::from(self.memories) * mappings_of_memory(needs)
            + u64::from(self.all_stacks()) * MAPPINGS_OF_STACK
    }

    /// Memory mappings that it takes now and later.
    pub(super) fn size(self, needs: Needs) -> Size {
        let of_memory = mappings_of_memory(needs);
        Size {
            most: self.mappings(needs),
            at_once: u64::from(self.all_stacks()) * MAPPINGS_OF_STACK,
            of_memory,
            of_instance: mappings_of_connection(needs, needs.room.memories, true),
        }
    }

    /// Instances of a component with such needs that it has room for, however large they are.
    pub(super) fn capacity(self, needs: Needs) -> u32 {
        self.most_instances().min(self.memories / needs.room.memories)
    }

    /// Whether it is no smaller than a pool for so many connections would be.
    pub(super) fn is_whole(self, needs: Needs, connections: u32) -> bool {
        let full = Self::full(needs, connections);
        self.instances >= full.instances
            && self.memories >= full.memories
            && self.tables >= full.tables
            && self.stacks >= full.stacks
    }

    /// Memory mappings that as many instances can take without a pool.
    pub(super) fn mappings_on_demand(self, needs: Needs) -> u64 {
        let memories = u64::from(self.instances) * u64::from(needs.room.memories);
        let stacks = stacks(needs, self.instances);
        memories * mappings_of_memory(needs) + u64::from(stacks) * MAPPINGS_OF_STACK
    }

    /// Instances of `parts` that it has room for.
    pub(super) fn instances_of(self, parts: Parts) -> u32 {
        let memories = self.memories / parts.memories.max(1);
        // A pool that was made for fewer connections can have more memories than instances take.
        let connections = self.instances.saturating_sub(SPARE_INSTANCES);
        memories
            .min(self.tables / parts.tables.max(1))
            .min(connections)
            .min(self.with_stacks)
    }
}

/// Stacks for the calls of so many instances.
fn stacks(needs: Needs, instances: u32) -> u32 {
    let stacks = instances.saturating_mul(needs.stacks);
    match needs.calls {
        Calls::Direct => stacks.min(MAX_SHARED_STACKS),
        Calls::OnFibers => stacks,
    }
}

/// Mappings of a memory: what is in use, what is reserved beyond it, and, where images are mapped,
/// the image and what is below it.
fn mappings_of_memory(needs: Needs) -> u64 {
    match needs.images {
        Images::Copied => 2,
        Images::Mapped => 4,
    }
}

/// Mappings of each connection to a component whose instances have so many memories, where each has
/// stacks of its own or not.
pub(super) fn mappings_of_connection(needs: Needs, memories: u32, has_stacks: bool) -> u64 {
    let stacks = if has_stacks { needs.stacks } else { 0 };
    u64::from(memories) * mappings_of_memory(needs) + u64::from(stacks) * MAPPINGS_OF_STACK
}

/// Connections that there may be at once.
pub(super) fn connections(limits: &Limits) -> u32 {
    u32::try_from(limits.max_connections.get()).unwrap_or(u32::MAX)
}

impl Shortage {
    /// Compares `pool`, which was made for `needs` on these terms, with the number of connections.
    /// Every connection takes an instance of `parts`. A pool without terms was made for other needs
    /// or another number of connections.
    pub(super) fn of(
        needs: Needs,
        pool: Pool,
        parts: Parts,
        limits: &Limits,
        terms: Option<Terms>,
    ) -> Option<Self> {
        let (served, asked) = (pool.instances_of(parts), limits.max_connections.get());
        if served as usize >= asked {
            return None;
        }
        let made = |connections| match terms {
            Some(terms) => Pool::on(terms, needs, connections),
            None => Ok(pool),
        };
        // For fewer connections the host makes a smaller pool, which may serve fewer again.
        let mut advised = served;
        loop {
            let fit = made(advised).map_or(0, |pool| pool.instances_of(parts));
            if fit >= advised {
                break;
            }
            advised = fit;
        }
        let connections = connections(limits);
        let full = Pool::full(needs, connections);
        Some(Self {
            memories: parts.memories,
            tables: parts.tables,
            stacks: needs.stacks,
            served,
            asked,
            advised: advised.max(1),
            lacks_mappings: made(connections).is_ok_and(|made| made.memories < full.memories),
        })
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: u32, word: &str| match (count, word) {
            (1, "memories") => "1 memory".to_owned(),
            (1, _) => "1 table".to_owned(),
            _ => format!("{count} {word}"),
        };
        let memories = plural(self.memories, "memories");
        let tables = plural(self.tables, "tables");
        let parts = match self.stacks {
            ..=1 => format!("{memories} and {tables}"),
            stacks => format!("{memories}, {tables} and {stacks} stacks"),
        };
        write!(
            f,
            "an instance of the component takes {parts}, so the pool serves {} connections at the same time, \
             but {} is {}: lower it to {}",
            self.served,
            Setting::of("limits.max-connections"),
            self.asked,
            self.advised
        )?;
        if self.lacks_mappings {
            f.write_str(", or raise the system's limit on memory mappings (vm.max_map_count)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::super::extent::Extent;
    use super::*;

    /// A component of so many core instances with a memory each, and what is said of its pool.
    fn shortage_on(terms: Terms, memories: u32, max_connections: usize) -> Option<Shortage> {
        let instances = "(core instance (instantiate $m))".repeat(memories as usize);
        let text = format!("(component (core module $m (memory 1)) {instances})");
        let bytes = wat::parse_str(text).unwrap();
        let extent = Extent::of(&bytes);
        let (needs, parts) = (Needs::of(&bytes, &extent), extent.parts());
        let limits = Limits {
            max_connections: NonZeroUsize::new(max_connections).unwrap(),
            ..Limits::default()
        };
        let pool = Pool::on(terms, needs, connections(&limits)).unwrap();
        Shortage::of(needs, pool, parts, &limits, Some(terms))
    }

    /// The same on a system without a limit on memory mappings.
    fn shortage(memories: u32, max_connections: usize) -> Option<Shortage> {
        shortage_on(Terms::UNLIMITED, memories, max_connections)
    }

    #[test]
    fn most_components_have_room() {
        for (memories, connections) in [(1, 1), (1, 1024), (2, 1024), (16, 1024), (42, 64), (42, 300)] {
            assert_eq!(
                shortage(memories, connections),
                None,
                "{memories} × {connections}"
            );
        }
    }

    #[test]
    fn who_takes_the_advice_is_not_advised_again() {
        for (memories, connections) in [(42, 1024), (1000, 1024), (1000, 64), (100, 5000), (33, 2000)] {
            let shortage = shortage(memories, connections).unwrap();
            assert!(
                shortage.served >= shortage.advised && shortage.advised >= 3,
                "{shortage:?}"
            );
            assert_eq!(super::tests::shortage(memories, shortage.advised as usize), None);
        }
    }

    #[test]
    fn the_sentence_has_the_numbers() {
        let text = shortage(42, 1024).unwrap().to_string();
        assert!(
            text.contains("takes 42 memories and 0 tables, so the pool serves 390 connections"),
            "{text}"
        );
        assert!(text.contains("is 1024: lower it to 390"), "{text}");
    }

    #[test]
    fn a_refusal_says_what_keeps_mappings() {
        let text = |kept| {
            let (least, left) = (700, 12);
            NoMappings { least, left, kept }.to_string()
        };
        let plain = text(0);
        assert!(
            plain.contains("take 700 memory mappings") && plain.contains("have 12 left"),
            "{plain}"
        );
        assert!(plain.ends_with("of the services"), "{plain}");
        let kept = text(8000);
        assert!(
            kept.contains("; open connections keep 8000 in the pools of earlier generations: wait until"),
            "{kept}"
        );
        assert!(kept.contains("drain-generations"), "{kept}");
    }

    #[test]
    fn a_pool_takes_no_more_mappings_than_there_are_for_it() {
        let component = |memories: usize, data: usize| {
            let instances = "(core instance (instantiate $m))".repeat(memories);
            let data = "x".repeat(data);
            let module = format!("(core module $m (memory 10) (data (i32.const 0) \"{data}\"))");
            wat::parse_str(format!("(component {module} {instances})")).unwrap()
        };
        let mut seen = [0; 3];
        for (memories, data) in [(1, 0), (1, 70_000), (3, 0), (42, 70_000), (250, 0)] {
            let bytes = component(memories, data);
            let needs = Needs::of(&bytes, &Extent::of(&bytes));
            for stacks in [1, 2, 17] {
                let needs = Needs { stacks, ..needs };
                for connections in [1, 64, 1024] {
                    let full = Pool::full(needs, connections);
                    let least = Pool::of(needs, full.instances, needs.room.least_memories());
                    for free in [0, 10_000, 49_146, 1 << 30] {
                        let terms = Terms::with_free(free);
                        let granted = terms.granted(connections, full.size(needs), least.mappings(needs));
                        match Pool::on(terms, needs, connections) {
                            Ok(pool) if pool == full => {
                                assert!(full.mappings(needs) <= granted);
                                seen[0] += 1;
                            }
                            Ok(pool) => {
                                assert!(pool.mappings(needs) <= granted, "{pool:?}");
                                seen[1] += 1;
                                assert!(pool.memories >= needs.room.least_memories(), "{pool:?}");
                                let more = Pool::of(needs, pool.instances, pool.memories + 1);
                                assert!(more.mappings(needs) > granted, "{pool:?}");
                            }
                            Err(NoMappings { least, left, .. }) => {
                                assert!(least > left && free < 49_146);
                                seen[2] += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(!seen.contains(&0), "whole, smaller and none: {seen:?}");
    }

    #[test]
    fn who_takes_the_advice_where_mappings_are_few_is_not_advised_again() {
        for (memories, connections) in [(42, 1024), (1000, 1024), (1000, 64), (100, 5000), (33, 2000)] {
            let terms = Terms::with_free(49_146);
            let shortage = shortage_on(terms, memories, connections).unwrap();
            assert!(shortage.lacks_mappings && shortage.advised >= 3, "{shortage:?}");
            let text = shortage.to_string();
            assert!(
                text.contains("or raise the system's limit on memory mappings"),
                "{text}"
            );
            assert_eq!(shortage_on(terms, memories, shortage.advised as usize), None);
        }
    }

    #[test]
    fn ordinary_components_have_room_although_no_mappings_are_left() {
        for (memories, connections) in [(0, 1024), (1, 1), (1, 1024), (2, 20_000)] {
            let shortage = shortage_on(Terms::with_free(0), memories, connections);
            assert_eq!(shortage, None, "{memories} × {connections}");
        }
    }
}
