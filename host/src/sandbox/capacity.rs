//! The number of connections that a pool can serve at the same time.

use std::fmt;

use super::extent::Parts;
use super::needs::Needs;
use crate::config::Limits;

/// Instances beyond one for each connection: of a component that is tried while every connection is
/// open.
pub(super) const SPARE_INSTANCES: u32 = 2;

/// What a pool holds for all connections together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    pub(super) memories: u32,
    pub(super) tables: u32,
}

/// A pool has room for fewer instances than there may be connections.
///
/// The text says so, with the number and with advice. A start, a reload and both forms of `check`
/// say it in these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    memories: u32,
    tables: u32,
    /// Connections that the pool serves at the same time. Further ones end with `start-failed`.
    pub served: u32,
    /// `max-connections`.
    pub asked: usize,
    /// The largest `max-connections` for which the host makes a pool that serves as many.
    advised: u32,
}

impl Pool {
    /// A pool for so many connections, as it is made if there is address space for it.
    pub(super) fn full(needs: Needs, connections: u32) -> Self {
        let instances = connections.saturating_add(SPARE_INSTANCES);
        Self {
            memories: needs.room.memories_of_pool(instances),
            tables: needs.room.tables_of_pool(instances),
        }
    }

    /// Instances of `parts` that it has room for.
    pub(super) fn instances(self, parts: Parts) -> u32 {
        let memories = self.memories / parts.memories.max(1);
        memories.min(self.tables / parts.tables.max(1))
    }
}

/// Connections that there may be at once.
pub(super) fn connections(limits: &Limits) -> u32 {
    u32::try_from(limits.max_connections.get()).unwrap_or(u32::MAX)
}

impl Shortage {
    /// Compares `pool`, which was made for `needs`, with the number of connections. Every
    /// connection takes an instance of `parts`.
    pub(super) fn of(needs: Needs, pool: Pool, parts: Parts, limits: &Limits) -> Option<Self> {
        let (served, asked) = (pool.instances(parts), limits.max_connections.get());
        if served as usize >= asked {
            return None;
        }
        // For fewer connections the host makes a smaller pool, which may serve fewer again.
        let mut advised = served;
        loop {
            let fit = Pool::full(needs, advised).instances(parts);
            if fit >= advised {
                break;
            }
            advised = fit;
        }
        Some(Self {
            memories: parts.memories,
            tables: parts.tables,
            served,
            asked,
            advised,
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
        write!(
            f,
            "an instance of the component takes {} and {}, so the pool serves {} connections at the same \
             time, but `max-connections` is {}: lower it to {}",
            plural(self.memories, "memories"),
            plural(self.tables, "tables"),
            self.served,
            self.asked,
            self.advised
        )
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::super::extent::Extent;
    use super::*;

    /// A component of so many core instances with a memory each, and what is said of its pool.
    fn shortage(memories: u32, max_connections: usize) -> Option<Shortage> {
        let instances = "(core instance (instantiate $m))".repeat(memories as usize);
        let text = format!("(component (core module $m (memory 1)) {instances})");
        let bytes = wat::parse_str(text).unwrap();
        let extent = Extent::of(&bytes);
        let (needs, parts) = (Needs::of(&bytes, &extent), extent.parts());
        let limits = Limits {
            max_connections: NonZeroUsize::new(max_connections).unwrap(),
            ..Limits::default()
        };
        let pool = Pool::full(needs, connections(&limits));
        Shortage::of(needs, pool, parts, &limits)
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
}
