//! What components need of their engines, as far as can be seen before they are compiled.

use wasmparser::{ComponentType, InstanceTypeDeclaration, Parser, Payload, Validator, WasmFeatures};

use super::contract::{Contract, MIGRATION};

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

/// How guests are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    /// On the stack of the thread that makes the call, if that is short: the guest serves sessions, and imports nothing that waits.
    Direct,
    /// On fibers, which take 2 mappings for each connection.
    OnFibers,
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
    pub(super) calls: Calls,
}

impl Needs {
    /// What a component needs of its engine: concurrency, if it is valid only with it, images that are mapped, if it
    /// begins with much data, room for its memories and tables, and stacks for its calls. This looks at types and sections and leaves out code; for what is not valid either way it does
    /// not matter which engine says so.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let without = WasmFeatures::all().difference(WasmFeatures::CM_ASYNC);
        let mut validator = Validator::new_with_features(without);
        let mut concurrency = Concurrency::Without;
        let (mut data, mut memories, mut tables) = (0, 0, 0);
        let mut surface = Surface::default();
        for payload in Parser::new(0).parse_all(bytes) {
            let Ok(payload) = payload else { break };
            surface.see(&payload);
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
            calls: if concurrency == Concurrency::Without {
                surface.calls()
            } else {
                Calls::OnFibers
            },
        }
    }
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
const WAIT: [&str; 2] = ["subscribe-duration", "subscribe-instant"];

/// What can be seen of a component from outside.
#[derive(Default)]
struct Surface {
    /// How deep the parser is in what the component consists of.
    depth: u32,
    /// It serves by sessions.
    sessions: bool,
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

    fn see(&mut self, payload: &Payload) {
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => self.depth += 1,
            Payload::End(_) => self.depth = self.depth.saturating_sub(1),
            _ if self.depth > 0 => {}
            Payload::ComponentExportSection(section) => {
                for export in section.clone().into_iter().flatten() {
                    self.sessions |= Contract::Sessions.is_exported_as(export.name.name);
                    self.moves |= export.name.name == MIGRATION;
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section.clone().into_iter().flatten() {
                    let name = import.name.name;
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
    fn only_sessions_that_import_nothing_that_waits_are_called_directly() {
        let calls = |text: &str| Needs::of(&wat::parse_str(format!("(component {text})")).unwrap()).calls;
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
        assert_eq!(Needs::of(ECHO).calls, Calls::OnFibers);
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
