//! What components need of their engines, as far as can be seen before they are compiled.

use serde::{Deserialize, Serialize};
use wasmparser::{ComponentType, InstanceTypeDeclaration, Parser, Payload, Validator, WasmFeatures};

use super::contract::{Contract, MIGRATION};
use super::extent::{Extent, MAX_PARTS, MAX_PARTS_WITH_STACKS, MAX_TABLE_ELEMENTS, TABLE_ELEMENTS};
use super::wasi::Release;
use crate::system::max_file_size;

/// Bytes of data in a file that each core instance gets a copy of. Of more, what it reads is shared
/// with the others.
const MAX_COPIED: usize = 64 << 10;

/// Pages of memory to which data is copied for one instance of a component without images. Its core
/// instances can be many instances of the same module, and a thread that copies to all of them does
/// nothing else meanwhile: 7 µs for each page that it uses for the first time, on a slow machine.
const MAX_PAGES_WITHOUT_IMAGES: u64 = 512;

/// Bytes of an image of data that lies far apart. Wasmtime makes larger ones only if data is half of
/// them (`memory_guaranteed_dense_image_size`).
const MAX_SPARSE_IMAGE: u64 = 16 << 20;

/// Tables of an instance of most components: one of its own, and one with the adapters of its
/// imports.
const TABLES: u32 = 2;

/// Memories and tables that every connection may have, however many connections there are.
const MAX_MEMORIES: u32 = 16;
const MAX_TABLES: u32 = 32;

/// Memories of a whole pool beyond which large instances get no more than [`MAX_MEMORIES`] each. So
/// many take 64 TiB of address space, half of that of a process.
const MAX_MEMORIES_OF_POOL: u32 = 16_384;

/// The same for tables.
const MAX_TABLES_OF_POOL: u32 = 32_768;

/// Instances that every pool has room for, however large they are: one that serves, and two of
/// components that are tried at the same time.
pub(super) const LEAST_INSTANCES: u32 = 3;

/// Whether an engine knows the concurrency of the component model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Concurrency {
    /// Plain calls only: the faster engine.
    Without,
    /// `async` functions, streams and futures too.
    With,
}

/// How the memories of an instance get what they begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Images {
    /// By copying: each memory takes 2 mappings of the process, and what little there is to copy costs nothing.
    Copied,
    /// By mapping: each memory takes 4 mappings, and only what is used of much data takes memory.
    Mapped,
}

/// How guests are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    /// On the stack of the thread that makes the call, if that is short: the guest serves sessions, and imports nothing that waits.
    Direct,
    /// On fibers, which take 2 mappings for each connection.
    OnFibers,
}

/// The most memories and tables that an instance takes of the pool: powers of two, so that there
/// are few different engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) memories: u32,
    pub(super) tables: u32,
}

impl Room {
    fn of(extent: &Extent) -> Self {
        let at_least = |least: u32, found: u32| found.clamp(least, MAX_PARTS).next_power_of_two();
        Self {
            memories: at_least(1, extent.memories),
            tables: at_least(TABLES, extent.tables),
        }
    }

    /// Memories of a pool for `instances`.
    ///
    /// This is what all of them take together, up to `MAX_MEMORIES_OF_POOL`. For more of large
    /// instances it is less, and enough for `LEAST_INSTANCES`, so that every component that the
    /// host accepts can be tried and served.
    pub(super) fn memories_of_pool(self, instances: u32) -> u32 {
        of_pool(self.memories, instances, MAX_MEMORIES, MAX_MEMORIES_OF_POOL)
    }

    /// Tables of a pool for `instances`, likewise.
    pub(super) fn tables_of_pool(self, instances: u32) -> u32 {
        of_pool(self.tables, instances, MAX_TABLES, MAX_TABLES_OF_POOL)
    }

    /// Memories of the instances that every pool has room for.
    pub(super) fn least_memories(self) -> u32 {
        self.memories.saturating_mul(LEAST_INSTANCES)
    }
}

fn of_pool(each: u32, instances: u32, max_each: u32, max_of_pool: u32) -> u32 {
    let all = instances.saturating_mul(each).min(max_of_pool);
    all.max(instances.saturating_mul(each.min(max_each)))
        .max(each.saturating_mul(LEAST_INSTANCES))
}

/// Elements for which a pool reserves address space in each table: a power of two times those of
/// most components, so that there are few different engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TableSize(u64);

impl TableSize {
    fn of(extent: &Extent) -> Self {
        let times = extent.table_elements.div_ceil(TABLE_ELEMENTS).max(1);
        Self((times.next_power_of_two() * TABLE_ELEMENTS).min(MAX_TABLE_ELEMENTS))
    }

    /// Elements that a table may have, now and when it has grown.
    pub(super) fn elements(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Tables of handles in one instance, relative to those of most guests: a power of two, so that
/// there are few different engines.
///
/// Each component instance has such a table, which never shrinks. A guest could therefore fill one
/// table after another, and hold few handles at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HandleTables(u32);

impl HandleTables {
    /// Those of most guests.
    #[cfg(test)]
    pub(super) const FEW: Self = Self(1);

    /// Component instances of most guests, at most.
    const MOST: u32 = 8;

    pub(super) fn of(component_instances: u32) -> Self {
        let times = component_instances.div_ceil(Self::MOST).max(1);
        Self(times.checked_next_power_of_two().unwrap_or(times))
    }

    pub(super) fn times(self) -> usize {
        self.0 as usize
    }
}

/// How a component passes values, which bounds the bytes that one call may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passing {
    /// Whether two of its parts can exchange values by a stream or a future.
    pub(super) between_parts: bool,
    /// Whether it has strings in another encoding than UTF-8.
    pub(super) wide_strings: bool,
}

/// What a component needs of its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) concurrency: Concurrency,
    pub(super) images: Images,
    /// Whether functions are compiled into their callers.
    pub(super) inlining: bool,
    pub(super) room: Room,
    pub(super) table_size: TableSize,
    /// Stacks that an instance can keep at the same time.
    pub(super) stacks: u32,
    pub(super) handle_tables: HandleTables,
    pub(super) passing: Passing,
    pub(super) calls: Calls,
}

impl Needs {
    /// The same, but with what does not concern the pool from `other`.
    pub(super) fn like(self, other: Self) -> Self {
        Self {
            handle_tables: other.handle_tables,
            passing: other.passing,
            ..self
        }
    }

    /// Whether a pool for these needs can have instances of a component with those of `other`.
    pub(super) fn include(self, other: Self) -> bool {
        let larger = Self {
            room: self.room,
            table_size: self.table_size,
            stacks: self.stacks,
            ..other
        };
        self.like(other) == larger
            && self.room.memories >= other.room.memories
            && self.room.tables >= other.room.tables
            && self.table_size >= other.table_size
            && self.stacks >= other.stacks
    }

    /// The same for a guest whose calls of the host can wait, whatever it imports.
    pub(super) fn waiting(self, extent: &Extent) -> Self {
        match self.concurrency {
            Concurrency::Without => self,
            Concurrency::With => Self {
                stacks: stacks(extent, true),
                ..self
            },
        }
    }

    /// What a component needs of its engine: concurrency, if its contract needs it or if it is
    /// valid only with it, images that are mapped, if an instance begins with much data, room for its
    /// `extent`, and stacks for its calls.
    ///
    /// For a component that is not valid either way, it does not matter which engine refuses it.
    pub(super) fn of(bytes: &[u8], extent: &Extent) -> Self {
        let without = WasmFeatures::all().difference(WasmFeatures::CM_ASYNC);
        let mut validator = Validator::new_with_features(without);
        let mut concurrency = Concurrency::Without;
        let mut data = 0;
        let mut surface = Surface::default();
        for payload in Parser::new(0).parse_all(bytes) {
            let Ok(payload) = payload else { break };
            surface.see(&payload);
            if let Payload::DataSection(section) = &payload {
                data += section.range().len();
            }
            // One that has failed cannot go on.
            if concurrency == Concurrency::Without && validator.payload(&payload).is_err() {
                concurrency = Concurrency::With;
            }
        }
        if surface.is_concurrent() {
            concurrency = Concurrency::With;
        }
        let much_data = data > MAX_COPIED;
        // An image is a file in memory, to which the limit on the size of files applies.
        let can_map = max_file_size().is_none_or(|max| max >= MAX_SPARSE_IMAGE + 2 * data as u64);
        let images = if can_map && (much_data || extent.data_pages > MAX_PAGES_WITHOUT_IMAGES) {
            Images::Mapped
        } else {
            Images::Copied
        };
        Self {
            concurrency,
            images,
            // What begins with much data is an interpreter or the like, of much code that no linker
            // has looked at as a whole. Small guests are no faster for it.
            // A dev build would take minutes for an interpreter.
            inlining: much_data && !cfg!(debug_assertions),
            room: Room::of(extent),
            table_size: TableSize::of(extent),
            stacks: match concurrency {
                Concurrency::Without => 1,
                Concurrency::With => stacks(extent, extent.waits || surface.waits || !surface.streams),
            },
            handle_tables: HandleTables::of(extent.component_instances),
            passing: Passing {
                between_parts: extent.exchanges(),
                wide_strings: extent.wide_strings,
            },
            calls: if concurrency == Concurrency::Without {
                surface.calls()
            } else {
                Calls::OnFibers
            },
        }
    }
}

/// Stacks of an instance with concurrency. If its last call `waits` on its stack, results of the
/// host come on one more.
fn stacks(extent: &Extent, waits: bool) -> u32 {
    extent.parts_with_stacks().clamp(1, MAX_PARTS_WITH_STACKS) + u32::from(waits)
}

/// Imports of which nothing waits, as far as the host has nothing to wait for: without directories no file can be had.
const NEVER_WAIT: [&str; 7] = [
    "inet:service/types@",
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:logging/",
    "wasi:random/",
];

/// What waits of these: for a time to come.
const WAIT: [&str; 4] = [
    "subscribe-duration",
    "subscribe-instant",
    "wait-for",
    "wait-until",
];

/// What can be seen of a component from outside.
#[derive(Default)]
struct Surface {
    /// How deep the parser is in what the component consists of.
    depth: u32,
    /// It serves by sessions.
    sessions: bool,
    /// It serves by streams, so that it has no standard input to wait for.
    streams: bool,
    /// It exports a contract, or imports an interface of WASI, whose functions are asynchronous.
    /// The types alone do not tell: a plain function of such an interface is valid without
    /// concurrency.
    concurrent: bool,
    /// Its sessions can move.
    moves: bool,
    /// It imports something that may wait.
    waits: bool,
}

impl Surface {
    /// Sessions that can move are called on fibers too: moving one takes a call that others wait for, and that may be long.
    fn calls(&self) -> Calls {
        if self.sessions && !self.moves && !self.waits {
            Calls::Direct
        } else {
            Calls::OnFibers
        }
    }

    /// Whether it is called by a contract that needs concurrency. Of several contracts, sessions
    /// count.
    fn is_concurrent(&self) -> bool {
        self.concurrent && !self.sessions
    }

    fn see(&mut self, payload: &Payload) {
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => self.depth += 1,
            Payload::End(_) => self.depth = self.depth.saturating_sub(1),
            _ if self.depth > 0 => {}
            Payload::ComponentExportSection(section) => {
                for export in section.clone().into_iter().flatten() {
                    let name = export.name.name;
                    self.sessions |= Contract::Sessions.is_exported_as(name);
                    self.streams |= Contract::Streams.is_exported_as(name);
                    self.concurrent |= Contract::Streams.is_exported_as(name) || is_of_wasi_3(name);
                    self.moves |= name == MIGRATION;
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section.clone().into_iter().flatten() {
                    let name = import.name.name;
                    self.concurrent |= is_of_wasi_3(name);
                    self.waits |= !NEVER_WAIT.iter().any(|known| name.starts_with(known));
                }
            }
            Payload::ComponentTypeSection(section) => {
                let instances = section.clone().into_iter().flatten().filter_map(|ty| match ty {
                    ComponentType::Instance(declarations) => Some(declarations),
                    _ => None,
                });
                for declaration in instances.flatten() {
                    if let InstanceTypeDeclaration::Export { name, .. } = declaration {
                        self.waits |= WAIT.contains(&name.name);
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_of_wasi_3(interface: &str) -> bool {
    Release::of_interface(interface) == Some(Release::Three)
}

#[cfg(test)]
mod tests {
    use super::super::content::ECHO;
    use super::*;

    fn needs(bytes: &[u8]) -> Needs {
        Needs::of(bytes, &Extent::of(bytes))
    }

    #[test]
    fn a_contract_with_asynchronous_functions_needs_concurrency_whatever_its_types() {
        for (name, expected) in [
            ("inet:service/handler@0.1.0", Concurrency::With),
            ("wasi:cli/run@0.3.0", Concurrency::With),
            ("wasi:cli/run@0.2.6", Concurrency::Without),
            ("inet:service/sessions@0.1.0", Concurrency::Without),
        ] {
            let text = format!("(component (instance $i) (export \"{name}\" (instance $i)))");
            assert_eq!(
                needs(&wat::parse_str(text).unwrap()).concurrency,
                expected,
                "{name}"
            );
        }
        let import = "(component (import \"wasi:random/random@0.3.0\" (instance)))";
        assert_eq!(
            needs(&wat::parse_str(import).unwrap()).concurrency,
            Concurrency::With
        );
    }

    #[test]
    fn only_large_tables_take_a_larger_pool() {
        let elements = |count: u32| {
            let text = format!("(module (table {count} funcref))");
            needs(&wat::parse_str(text).unwrap()).table_size.elements()
        };
        assert_eq!((elements(0), elements(20_000)), (20_000, 20_000));
        assert_eq!((elements(20_001), elements(50_000)), (40_000, 80_000));
        assert_eq!(elements(9_000_000), 1_280_000, "there is an end to it");
    }

    #[test]
    fn only_calls_that_wait_on_their_stack_take_another() {
        let stacks = |text: &str| needs(&wat::parse_str(format!("(component {text})")).unwrap()).stacks;
        let streams = "(instance $s) (export \"inet:service/handler@0.1.0\" (instance $s))";
        assert_eq!(stacks(""), 1);
        assert_eq!(needs(ECHO).stacks, 1);
        assert_eq!(stacks(streams), 1);
        for waits in [
            "(core func (canon waitable-set.wait (memory (core memory $i \"m\"))))",
            "(core func (canon thread.yield))",
            "(type $s (stream)) (core func (canon stream.read $s (memory (core memory $i \"m\"))))",
            "(import \"wasi:clocks/monotonic-clock@0.3.0\" (instance (export \"wait-for\" (func))))",
            "(import \"wasi:sockets/types@0.3.0\" (instance))",
        ] {
            let memory = "(core module $m (memory (export \"m\") 1)) (core instance $i (instantiate $m))";
            assert_eq!(stacks(&format!("{memory} {waits} {streams}")), 2, "{waits}");
        }
        let program = "(instance $r) (export \"wasi:cli/run@0.3.0\" (instance $r))";
        assert_eq!(stacks(program), 2, "it can wait for standard input");
        assert_eq!(needs(ECHO).waiting(&Extent::of(ECHO)).stacks, 2);
    }

    #[test]
    fn only_what_needs_concurrency_pays_for_it() {
        let concurrency = |bytes: &[u8]| needs(bytes).concurrency;
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
            needs(&wat::parse_str(text).unwrap()).images
        };
        assert_eq!(images(100), Images::Copied);
        assert_eq!(images(100_000), Images::Mapped);
        assert_eq!(needs(ECHO).images, Images::Copied);
        // Each core instance gets its data.
        let of_instances = |count: usize, segments: usize| {
            let instances = "(core instance (instantiate $m))".repeat(count);
            let data = "(data (i32.const 0) \"x\")".repeat(segments);
            let text = format!("(component (core module $m (memory 1) {data}) {instances})");
            needs(&wat::parse_str(text).unwrap()).images
        };
        assert_eq!(of_instances(100, 5), Images::Copied);
        assert_eq!(of_instances(900, 1), Images::Mapped);
        assert_eq!(of_instances(100, 6), Images::Mapped);
    }

    #[test]
    fn only_sessions_that_import_nothing_that_waits_are_called_directly() {
        let calls = |text: &str| needs(&wat::parse_str(format!("(component {text})")).unwrap()).calls;
        let sessions = "(instance $s) (export \"inet:service/sessions@0.1.0\" (instance $s))";
        let quiet = "(import \"wasi:cli/exit@0.2.6\" (instance (export \"exit\" (func))))
            (import \"wasi:clocks/monotonic-clock@0.2.6\" (instance (export \"now\" (func (result u64)))))";
        assert_eq!(calls(&format!("{quiet} {sessions}")), Calls::Direct);
        for waits in [
            "(import \"wasi:clocks/monotonic-clock@0.2.6\" (instance (export \"subscribe-duration\" (func))))",
            "(import \"wasi:sockets/tcp@0.2.6\" (instance))",
            "(import \"wasi:http/outgoing-handler@0.2.6\" (instance))",
            // What it may be is not known.
            "(import \"wait\" (func))",
            "(type (stream u8))",
        ] {
            assert_eq!(calls(&format!("{waits} {sessions}")), Calls::OnFibers, "{waits}");
        }
        let moves = "(instance $m) (export \"inet:service/migration@0.1.0\" (instance $m))";
        assert_eq!(calls(&format!("{moves} {sessions}")), Calls::OnFibers);
        let others = "(instance $s) (export \"inet:service/handler@0.1.0\" (instance $s))";
        assert_eq!(calls(others), Calls::OnFibers);
        assert_eq!(
            calls(&format!("(component {sessions})")),
            Calls::OnFibers,
            "it is not its own"
        );
        assert_eq!(needs(ECHO).calls, Calls::OnFibers);
    }

    #[test]
    fn only_many_parts_take_a_larger_pool() {
        let times = |module: &str, count: usize| {
            let instances = "(core instance (instantiate $m))".repeat(count);
            let text = format!("(component (core module $m {module}) {instances})");
            needs(&wat::parse_str(text).unwrap()).room
        };
        let room = |memories, tables| Room { memories, tables };
        assert_eq!(needs(ECHO).room, room(1, 2));
        assert_eq!(
            times("", 999),
            room(1, 2),
            "core instances take no room of the pool"
        );
        for (count, expected) in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (1000, 1024)] {
            assert_eq!(times("(memory 1)", count), room(expected, 2), "{count}");
        }
        assert_eq!(
            times("(table 1 funcref)", 3),
            room(1, 4),
            "tables take no memories"
        );
    }

    #[test]
    fn a_pool_has_room_for_one_instance_at_least() {
        let of_pool = |memories, instances| Room { memories, tables: 2 }.memories_of_pool(instances);
        assert_eq!(of_pool(1, 1026), 1026);
        assert_eq!(of_pool(8, 6), 48);
        assert_eq!(of_pool(64, 66), 64 * 66);
        assert_eq!(of_pool(128, 1026), 16 * 1026);
        for instances in [3, 6, 1026] {
            assert!(of_pool(1024, instances) >= 3 * 1024, "{instances}");
        }
    }
}
