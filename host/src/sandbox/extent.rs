//! The size of an instance, as the sections of its component tell before it is compiled.
//!
//! A pool has slots of one size, and memory that is allocated on demand has none. The bounds here
//! are those of the pool or tighter, so that a host takes the same components whether or not it
//! could reserve a pool.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef,
    ElementItems, Encoding, Import, Instance, MemoryType, Parser, Payload, TypeRef,
};

use super::load_error::Refusal;

/// Core instances, memories and tables that an instance of a component may consist of, of each.
pub(super) const MAX_PARTS: u32 = 1000;

/// Elements of one table, in the smallest class of pools and in the largest.
pub(super) const TABLE_ELEMENTS: u64 = 20_000;
pub(super) const MAX_TABLE_ELEMENTS: u64 = TABLE_ELEMENTS << 6;

/// Bytes of one memory: what a 32-bit memory can have.
pub(super) const MAX_MEMORY: u64 = 1 << 32;

/// Bytes that wasmtime keeps for an instance beside its memories and tables: pointers to its
/// functions, globals and imports.
pub(super) const MAX_METADATA: usize = 1 << 20;

/// Bytes of metadata for each core instance, and for each item in it: more than wasmtime takes for
/// any kind of item.
const METADATA_OF_INSTANCE: u64 = 1024;
const METADATA_OF_ITEM: u64 = 40;

/// The size of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) core_instances: u32,
    pub(super) memories: u32,
    pub(super) tables: u32,
    /// Elements that its largest table begins with.
    pub(super) table_elements: u64,
    /// Bytes that its largest memory begins with.
    memory: u64,
    /// Bytes that wasmtime keeps for it beside memories and tables.
    metadata: u64,
    /// Whether a memory is shared between threads.
    shared_memory: bool,
}

impl Extent {
    /// Measures an instance of a component or module.
    ///
    /// A file that is not valid has the size of the part that can be read; compiling it fails
    /// anyway.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut levels = Levels::default();
        for payload in Parser::new(0).parse_all(bytes) {
            let Ok(payload) = payload else { break };
            if levels.see(&payload).is_err() {
                break;
            }
        }
        levels.whole()
    }

    /// Compares the size with what the host offers to an instance.
    ///
    /// # Errors
    ///
    /// It exceeds a bound.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if self.shared_memory {
            return Err(Refusal::Unsupported("shared memory (threads)".to_owned()));
        }
        let parts = u64::from(MAX_PARTS);
        for (what, found, max) in [
            ("core instances", u64::from(self.core_instances), parts),
            ("memories", self.memories.into(), parts),
            ("tables", self.tables.into(), parts),
            ("elements in a table", self.table_elements, MAX_TABLE_ELEMENTS),
            ("bytes in a memory", self.memory, MAX_MEMORY),
            (
                "bytes for its functions, globals and imports",
                self.metadata,
                MAX_METADATA as u64,
            ),
        ] {
            if found > max {
                return Err(Refusal::TooLarge { what, found, max });
            }
        }
        Ok(())
    }

    /// Adds an instance that is part of this one.
    fn add(&mut self, part: &Self) {
        let Self {
            core_instances,
            memories,
            tables,
            table_elements,
            memory,
            metadata,
            shared_memory,
        } = part;
        self.core_instances = self.core_instances.saturating_add(*core_instances);
        self.memories = self.memories.saturating_add(*memories);
        self.tables = self.tables.saturating_add(*tables);
        self.table_elements = self.table_elements.max(*table_elements);
        self.memory = self.memory.max(*memory);
        self.metadata = self.metadata.saturating_add(*metadata);
        self.shared_memory |= shared_memory;
    }

    fn add_items(&mut self, count: u32) {
        self.metadata = self
            .metadata
            .saturating_add(METADATA_OF_ITEM.saturating_mul(count.into()));
    }

    fn add_memory(&mut self, memory: &MemoryType) {
        let page = 1_u64 << memory.page_size_log2.unwrap_or(16).min(16);
        self.memory = self.memory.max(memory.initial.saturating_mul(page));
        self.shared_memory |= memory.shared;
    }

    /// Adds a section of a core module. A function can be called from outside only if an element
    /// segment or an export names it, so that these are counted and not the functions.
    fn see(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::ImportSection(section) => {
                for import in section.clone().into_imports() {
                    let Import { ty, .. } = import?;
                    self.add_items(1);
                    if let TypeRef::Memory(memory) = ty {
                        self.shared_memory |= memory.shared;
                    }
                }
            }
            Payload::MemorySection(section) => {
                self.memories = self.memories.saturating_add(section.count());
                self.add_items(section.count());
                for memory in section.clone() {
                    self.add_memory(&memory?);
                }
            }
            Payload::TableSection(section) => {
                self.tables = self.tables.saturating_add(section.count());
                self.add_items(section.count());
                for table in section.clone() {
                    self.table_elements = self.table_elements.max(table?.ty.initial);
                }
            }
            Payload::ElementSection(section) => {
                for element in section.clone() {
                    self.add_items(match element?.items {
                        ElementItems::Functions(functions) => functions.count(),
                        ElementItems::Expressions(_, expressions) => expressions.count(),
                    });
                }
            }
            Payload::GlobalSection(section) => self.add_items(section.count().saturating_mul(2)),
            Payload::ExportSection(section) => self.add_items(section.count()),
            Payload::TagSection(section) => self.add_items(section.count()),
            Payload::DataCountSection { count, .. } => self.add_items(*count),
            _ => {}
        }
        Ok(())
    }
}

/// The components and modules that the parser is in, from the outermost on.
#[derive(Default)]
struct Levels {
    levels: Vec<Level>,
    whole: Option<Extent>,
}

/// A component or module that the parser is in.
#[derive(Default)]
struct Level {
    is_module: bool,
    /// The size of its instance.
    extent: Extent,
    /// The modules and components of its index spaces, by the sizes of their instances.
    modules: Vec<Extent>,
    components: Vec<Extent>,
}

impl Levels {
    fn whole(self) -> Extent {
        self.whole
            .or_else(|| self.levels.first().map(|level| level.extent))
            .unwrap_or_default()
    }

    fn see(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::Version { encoding, .. } => {
                let is_module = *encoding == Encoding::Module;
                let mut level = Level {
                    is_module,
                    ..Level::default()
                };
                if is_module {
                    level.extent.core_instances = 1;
                    level.extent.metadata = METADATA_OF_INSTANCE;
                }
                self.levels.push(level);
            }
            Payload::End(_) => {
                let Some(done) = self.levels.pop() else {
                    return Ok(());
                };
                match self.levels.last_mut() {
                    Some(outer) if done.is_module => outer.modules.push(done.extent),
                    Some(outer) => outer.components.push(done.extent),
                    None => self.whole = Some(done.extent),
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section.clone() {
                    self.alias(&alias?);
                }
            }
            payload => {
                if let Some(level) = self.levels.last_mut() {
                    level.see(payload)?;
                }
            }
        }
        Ok(())
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>) {
        // What comes out of an instance is unknown here, and is not counted.
        let (outer, kind) = match alias {
            ComponentAlias::Outer { kind, count, index } => {
                let outer = self.levels.len().checked_sub(1 + *count as usize);
                let outer = outer.and_then(|outer| self.levels.get(outer));
                let index = *index as usize;
                let extent = outer.and_then(|outer| match kind {
                    ComponentOuterAliasKind::CoreModule => outer.modules.get(index),
                    ComponentOuterAliasKind::Component => outer.components.get(index),
                    ComponentOuterAliasKind::CoreType | ComponentOuterAliasKind::Type => None,
                });
                (extent.copied().unwrap_or_default(), *kind)
            }
            ComponentAlias::InstanceExport { kind, .. } => {
                let kind = match kind {
                    ComponentExternalKind::Module => ComponentOuterAliasKind::CoreModule,
                    ComponentExternalKind::Component => ComponentOuterAliasKind::Component,
                    _ => return,
                };
                (Extent::default(), kind)
            }
            ComponentAlias::CoreInstanceExport { .. } => return,
        };
        let Some(level) = self.levels.last_mut() else {
            return;
        };
        match kind {
            ComponentOuterAliasKind::CoreModule => level.modules.push(outer),
            ComponentOuterAliasKind::Component => level.components.push(outer),
            ComponentOuterAliasKind::CoreType | ComponentOuterAliasKind::Type => {}
        }
    }
}

impl Level {
    fn see(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        if self.is_module {
            return self.extent.see(payload);
        }
        match payload {
            Payload::ComponentImportSection(section) => {
                for import in section.clone() {
                    match import?.ty {
                        ComponentTypeRef::Module(_) => self.modules.push(Extent::default()),
                        ComponentTypeRef::Component(_) => self.components.push(Extent::default()),
                        _ => {}
                    }
                }
            }
            // An exported module or component has a second place in its index space.
            Payload::ComponentExportSection(section) => {
                for export in section.clone() {
                    let export = export?;
                    let space = match export.kind {
                        ComponentExternalKind::Module => &mut self.modules,
                        ComponentExternalKind::Component => &mut self.components,
                        _ => continue,
                    };
                    let extent = space.get(export.index as usize).copied();
                    space.push(extent.unwrap_or_default());
                }
            }
            Payload::InstanceSection(section) => {
                for instance in section.clone() {
                    if let Instance::Instantiate { module_index, .. } = instance?
                        && let Some(module) = self.modules.get(module_index as usize)
                    {
                        self.extent.add(module);
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section.clone() {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance?
                        && let Some(component) = self.components.get(component_index as usize)
                    {
                        self.extent.add(component);
                    }
                }
            }
            Payload::ComponentCanonicalSection(section) => self.extent.add_items(section.count()),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Extent {
        Extent::of(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn each_instantiation_counts() {
        let extent = of("(component
            (component $c
                (core module $m (memory 1) (table 7 funcref))
                (core instance (instantiate $m))
                (core instance (instantiate $m)))
            (component $d (alias outer 1 $c (component $e)) (instance (instantiate $e)))
            (instance (instantiate $c))
            (instance (instantiate $d))
            (instance (instantiate $d)))");
        let counts = (extent.core_instances, extent.memories, extent.tables);
        assert_eq!(counts, (6, 6, 6));
        assert_eq!(extent.table_elements, 7);
    }

    #[test]
    fn a_module_that_is_not_instantiated_takes_nothing() {
        assert_eq!(of("(component (core module (memory 1)))"), Extent::default());
    }

    #[test]
    fn a_module_is_measured_as_its_only_instance() {
        let extent = of("(module (memory 3) (table 5 funcref) (table 9 funcref))");
        let counts = (extent.core_instances, extent.memories, extent.tables);
        assert_eq!(counts, (1, 1, 2));
        assert_eq!((extent.memory, extent.table_elements), (3 << 16, 9));
    }

    #[test]
    fn growth_by_nesting_ends_at_a_refusal() {
        // Each component instantiates the one before it twice.
        let mut text = "(core module $m (memory 1)) (component $c0
            (alias outer 1 $m (core module $m)) (core instance (instantiate $m)))"
            .to_owned();
        for level in 1..40 {
            let inner = level - 1;
            text += &format!(
                "(component $c{level} (alias outer 1 $c{inner} (component $i))
                    (instance (instantiate $i)) (instance (instantiate $i)))"
            );
        }
        let extent = of(&format!("(component {text} (instance (instantiate $c39)))"));
        assert_eq!(extent.memories, u32::MAX);
        let refusal = extent.check().unwrap_err();
        assert!(matches!(
            refusal,
            Refusal::TooLarge {
                what: "core instances",
                ..
            }
        ));
    }

    #[test]
    fn a_shared_memory_is_refused_by_name() {
        for text in [
            "(module (memory 1 2 shared))",
            "(module (import \"a\" \"b\" (memory 1 2 shared)))",
        ] {
            let refusal = of(text).check().unwrap_err().to_string();
            assert!(refusal.contains("shared memory"), "{refusal}");
        }
    }

    #[test]
    fn what_is_read_before_damage_counts() {
        let mut bytes = wat::parse_str("(module (memory 3) (func))").unwrap();
        bytes.truncate(bytes.len() - 2);
        assert_eq!(Extent::of(&bytes).memories, 1);
        assert_eq!(Extent::of(b"\0asm"), Extent::default());
    }
}
