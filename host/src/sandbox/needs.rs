//! What components need of their engines, as far as can be seen before they are compiled.

use wasmparser::{Parser, Payload, Validator, WasmFeatures};

/// Bytes of data that each instance of a component gets a copy of. Of more, what it reads is shared with the others.
const MAX_COPIED: usize = 64 << 10;

/// Memories and tables for each connection in the pool, where the component has not more. A component has one memory, and two
/// tables (one holds the adapters of its imports); a composed one has as many for each of its parts.
pub(super) const MEMORIES_PER_CONNECTION: u32 = 2;
pub(super) const TABLES_PER_CONNECTION: u32 = 4;

/// How many times as much a connection may have at most, before fewer connections fit into the pool.
const MAX_ROOM: u32 = 8;

/// Whether an engine knows the concurrency of the component model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Concurrency {
    /// Plain calls only: the faster engine.
    Without,
    /// `async` functions, streams and futures too.
    With,
}

/// How the memories of an instance get what they begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Images {
    /// By copying: each memory takes 2 mappings of the process, and what little there is to copy costs nothing.
    Copied,
    /// By mapping: each memory takes 4 mappings, and only what is used of much data takes memory.
    Mapped,
}

/// How many times as much as most components take an instance takes of the pool: a power of two, so that there are few
/// different engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room(u32);

impl Room {
    /// Room for instances of so many memories and tables.
    fn of(memories: u32, tables: u32) -> Self {
        let memories = memories.div_ceil(MEMORIES_PER_CONNECTION);
        let tables = tables.div_ceil(TABLES_PER_CONNECTION);
        Self(memories.max(tables).clamp(1, MAX_ROOM).next_power_of_two())
    }

    /// `count`, so many times.
    pub(super) fn times(self, count: u32) -> u32 {
        count.saturating_mul(self.0)
    }
}

/// What a component needs of its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) concurrency: Concurrency,
    pub(super) images: Images,
    pub(super) room: Room,
}

impl Needs {
    /// What a component needs of its engine: concurrency, if it is valid only with it, images that are mapped, if it
    /// begins with much data, and room for its memories and tables. This looks at types and sections and leaves out code; for what is not valid either way it does
    /// not matter which engine says so.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let without = WasmFeatures::all().difference(WasmFeatures::CM_ASYNC);
        let mut validator = Validator::new_with_features(without);
        let mut concurrency = Concurrency::Without;
        let (mut data, mut memories, mut tables) = (0, 0, 0);
        for payload in Parser::new(0).parse_all(bytes) {
            let Ok(payload) = payload else { break };
            match &payload {
                Payload::DataSection(section) => data += section.range().len(),
                Payload::MemorySection(section) => memories += section.count(),
                Payload::TableSection(section) => tables += section.count(),
                _ => {}
            }
            // One that has failed cannot go on.
            if concurrency == Concurrency::Without && validator.payload(&payload).is_err() {
                concurrency = Concurrency::With;
            }
        }
        let images = if data > MAX_COPIED {
            Images::Mapped
        } else {
            Images::Copied
        };
        Self {
            concurrency,
            images,
            room: Room::of(memories, tables),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::ECHO;
    use super::*;

    #[test]
    fn only_what_needs_concurrency_pays_for_it() {
        let concurrency = |bytes: &[u8]| Needs::of(bytes).concurrency;
        assert_eq!(concurrency(ECHO), Concurrency::With);
        let empty = wat::parse_str("(component)").unwrap();
        assert_eq!(concurrency(&empty), Concurrency::Without);
        let stream = wat::parse_str("(component (type (stream u8)))").unwrap();
        assert_eq!(concurrency(&stream), Concurrency::With);
    }

    #[test]
    fn only_much_data_is_mapped() {
        let images = |length| {
            let data = "x".repeat(length);
            let text = format!("(component (core module (memory 10) (data (i32.const 0) \"{data}\")))");
            Needs::of(&wat::parse_str(text).unwrap()).images
        };
        assert_eq!(images(100), Images::Copied);
        assert_eq!(images(100_000), Images::Mapped);
        assert_eq!(Needs::of(ECHO).images, Images::Copied);
    }

    #[test]
    fn only_many_memories_take_a_larger_pool() {
        let room = |count: usize| {
            let text = format!("(component {})", "(core module (memory 1))".repeat(count));
            Needs::of(&wat::parse_str(text).unwrap()).room
        };
        assert_eq!(Needs::of(ECHO).room, Room::of(1, 1));
        assert_eq!(room(2), room(0));
        assert_eq!(room(3), room(4));
        assert_ne!(room(3), room(2));
        assert_eq!(room(999), room(16), "there is an end to it");
    }
}
