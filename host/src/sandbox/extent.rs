//! The size of an instance, as the sections of its component tell before it is compiled.
//!
//! Whether the host accepts a component depends on its size and on the bounds here. Every pool has
//! room for an instance of a component that keeps to them, so that neither the number of connections
//! nor the address space that the host could reserve matters.

use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentType, ComponentTypeRef, ConstExpr, DataKind, ElementItems, ElementKind,
    Encoding, Import, Instance, MemoryType, Operator, Parser, Payload, TypeRef,
};

use super::load_error::Refusal;

/// Component instances, core instances, memories and tables that an instance of a component may
/// consist of, of each.
pub(super) const MAX_PARTS: u32 = 1000;

/// Elements of one table, in the smallest class of pools and in the largest.
pub(super) const TABLE_ELEMENTS: u64 = 20_000;
pub(super) const MAX_TABLE_ELEMENTS: u64 = TABLE_ELEMENTS << 6;

/// Bytes of one memory: what a 32-bit memory can have.
pub(super) const MAX_MEMORY: u64 = 1 << 32;

/// Components in an instance whose calls run on stacks of their own. Each can keep its stack while
/// it waits.
pub(super) const MAX_PARTS_WITH_STACKS: u32 = 16;

/// Bytes that wasmtime keeps for an instance beside its memories and tables: pointers to its
/// functions, globals, imports and segments, and its types of resources.
const MAX_METADATA: u64 = 1 << 20;

/// Bytes of metadata for each core instance, and for each item in it: more than wasmtime takes for
/// any kind of item that is not below.
const METADATA_OF_INSTANCE: u64 = 1024;
const METADATA_OF_ITEM: u64 = 40;

/// Bytes for a passive data segment, which are a pointer and a length.
const METADATA_OF_DATA: u64 = 16;

/// Active data segments of all core instances. wasmtime keeps 12 bytes for each, unless the memory
/// begins with an image. A module can have 100,000, and the Go compiler makes as many.
pub(super) const MAX_DATA: u64 = 200_000;

/// Bytes of a page of memory.
const PAGE: usize = 4 << 10;

/// Pages of data that wasmtime copies when it makes an instance, all core instances together. One
/// thread copies all of them in one piece. In a dev build on a busy machine, 8,000 pages took 60 ms.
const MAX_COPIED_PAGES: u64 = 4096;

/// Bytes for a passive element segment, and for each element of it beside its function.
const METADATA_OF_ELEMENTS: u64 = 80;
const METADATA_OF_ELEMENT: u64 = 16;

/// Bytes for a type of resources, in a list that doubles as it grows.
const METADATA_OF_RESOURCE: u64 = 80;

/// Bytes for a lowered function, with the adapter that wasmtime makes if a component has it.
const METADATA_OF_LOWERED: u64 = 240;

/// Components and modules in a file, nested ones included. The validator takes time that grows with
/// the square of their number.
const MAX_NESTED: usize = 4000;

/// Compares the number of components and modules in a file with the bound, before anything
/// validates the file.
///
/// # Errors
///
/// There are too many.
pub(super) fn check_nested(bytes: &[u8]) -> Result<(), Refusal> {
    let payloads = Parser::new(0).parse_all(bytes).map_while(Result::ok);
    let starts = payloads.filter(|payload| matches!(payload, Payload::Version { .. }));
    if starts.take(MAX_NESTED + 1).count() > MAX_NESTED {
        return Err(Refusal::Bound(format!(
            "more than {MAX_NESTED} components and modules in one file"
        )));
    }
    Ok(())
}

/// Returns how many bytes of code a component or module has.
pub(super) fn code_size(bytes: &[u8]) -> u64 {
    let payloads = Parser::new(0).parse_all(bytes).map_while(Result::ok);
    payloads
        .map(|payload| match payload {
            Payload::CodeSectionStart { size, .. } => u64::from(size),
            _ => 0,
        })
        .sum()
}

/// Memories and tables of one instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) memories: u32,
    pub(super) tables: u32,
}

/// The size of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Instances of components, itself included. Each has a table of handles.
    pub(super) component_instances: u32,
    pub(super) core_instances: u32,
    pub(super) memories: u32,
    pub(super) tables: u32,
    /// Elements that its largest table begins with.
    pub(super) table_elements: u64,
    /// Bytes that its largest memory begins with.
    memory: u64,
    /// Bytes that wasmtime keeps for it beside memories and tables.
    metadata: u64,
    /// Active data segments.
    data: u64,
    /// Pages of memory that active data segments cover, of 4 KiB.
    pub(super) data_pages: u64,
    /// The part of `data_pages` that no engine can put into an image, because offsets are computed
    /// or memories are imported.
    copied_pages: u64,
    /// Memories that the module imports.
    imported_memories: u32,
    /// Components that have functions.
    callable: u32,
    /// Components that have functions which run on a stack of their own, however they are called.
    lifts_async: u32,
    /// Whether a component calls functions concurrently, so that these run on stacks of their own.
    calls_concurrently: bool,
    /// Components that read or write streams or futures. Two of them can exchange values.
    exchanging: u32,
    /// Whether a function has strings in another encoding than UTF-8.
    pub(super) wide_strings: bool,
    /// Whether a component has a function by which its call waits for events on its stack.
    pub(super) waits: bool,
    /// Instances of modules that are imported, or that come out of an instance.
    unknown_modules: u32,
    /// Something that it uses and that the host does not offer.
    not_offered: Option<&'static str>,
}

const SHARED_MEMORY: &str = "shared memory (threads)";
const UNKNOWN_COMPONENT: &str = "instances of components that are imported, or exported by an instance";

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
        if let Some(what) = self.not_offered {
            return Err(Refusal::Unsupported(what.to_owned()));
        }
        let parts = u64::from(MAX_PARTS);
        for (what, found, max) in [
            ("component instances", self.component_instances.into(), parts),
            ("core instances", self.core_instances.into(), parts),
            ("memories", self.memories.into(), parts),
            ("tables", self.tables.into(), parts),
            (
                "components that each can keep a stack",
                self.parts_with_stacks().into(),
                MAX_PARTS_WITH_STACKS.into(),
            ),
            ("elements in a table", self.table_elements, MAX_TABLE_ELEMENTS),
            ("bytes in a memory", self.memory, MAX_MEMORY),
            (
                "bytes for its functions, globals, imports, segments and resource types",
                self.metadata,
                MAX_METADATA,
            ),
            ("active data segments", self.data, MAX_DATA),
            (
                "pages of 4 KiB that data covers in imported memories or at computed offsets",
                self.copied_pages,
                MAX_COPIED_PAGES,
            ),
        ] {
            if found > max {
                return Err(Refusal::TooLarge { what, found, max });
            }
        }
        Ok(())
    }

    /// Components whose calls run on stacks of their own.
    ///
    /// Wasmtime runs a call on a new stack if its caller or its callee is asynchronous. The caller
    /// keeps its stack until the callee waits, or until it returns if the call is synchronous.
    /// While a component keeps a stack, it gets no other call. Other calls run on the stack of
    /// their caller, and the host calls one of the components.
    pub(super) fn parts_with_stacks(&self) -> u32 {
        if self.calls_concurrently {
            return self.callable;
        }
        let is_called_by_host = self.callable > self.lifts_async;
        self.lifts_async.saturating_add(is_called_by_host.into())
    }

    /// Whether two of its components can exchange values by a stream or a future.
    pub(super) fn exchanges(&self) -> bool {
        self.exchanging > 1
    }

    /// Its memories and tables.
    #[cfg(test)]
    pub(super) fn parts(&self) -> Parts {
        Parts {
            memories: self.memories,
            tables: self.tables,
        }
    }

    /// Adds an instance that is part of this one.
    fn add(&mut self, part: &Self) {
        let Self {
            component_instances,
            core_instances,
            memories,
            tables,
            table_elements,
            memory,
            metadata,
            data,
            data_pages,
            copied_pages,
            imported_memories: _,
            callable,
            lifts_async,
            calls_concurrently,
            exchanging,
            wide_strings,
            waits,
            unknown_modules,
            not_offered,
        } = part;
        self.callable = self.callable.saturating_add(*callable);
        self.lifts_async = self.lifts_async.saturating_add(*lifts_async);
        self.calls_concurrently |= *calls_concurrently;
        self.exchanging = self.exchanging.saturating_add(*exchanging);
        self.wide_strings |= *wide_strings;
        self.waits |= *waits;
        self.component_instances = self.component_instances.saturating_add(*component_instances);
        self.core_instances = self.core_instances.saturating_add(*core_instances);
        self.memories = self.memories.saturating_add(*memories);
        self.tables = self.tables.saturating_add(*tables);
        self.table_elements = self.table_elements.max(*table_elements);
        self.memory = self.memory.max(*memory);
        self.metadata = self.metadata.saturating_add(*metadata);
        self.data = self.data.saturating_add(*data);
        self.data_pages = self.data_pages.saturating_add(*data_pages);
        self.copied_pages = self.copied_pages.saturating_add(*copied_pages);
        self.unknown_modules = self.unknown_modules.saturating_add(*unknown_modules);
        self.not_offered = self.not_offered.or(*not_offered);
    }

    /// Takes the larger of each number. Neither has instances of unknown modules.
    fn or_larger(&self, other: &Self) -> Self {
        Self {
            component_instances: self.component_instances.max(other.component_instances),
            core_instances: self.core_instances.max(other.core_instances),
            memories: self.memories.max(other.memories),
            tables: self.tables.max(other.tables),
            table_elements: self.table_elements.max(other.table_elements),
            memory: self.memory.max(other.memory),
            metadata: self.metadata.max(other.metadata),
            data: self.data.max(other.data),
            data_pages: self.data_pages.max(other.data_pages),
            copied_pages: self.copied_pages.max(other.copied_pages),
            imported_memories: 0,
            callable: self.callable.max(other.callable),
            lifts_async: self.lifts_async.max(other.lifts_async),
            calls_concurrently: self.calls_concurrently || other.calls_concurrently,
            exchanging: self.exchanging.max(other.exchanging),
            wide_strings: self.wide_strings || other.wide_strings,
            waits: self.waits || other.waits,
            unknown_modules: 0,
            not_offered: self.not_offered.or(other.not_offered),
        }
    }

    /// The same, with `largest` in place of each instance of an unknown module.
    fn with_unknown_as(mut self, largest: &Self) -> Self {
        let count = std::mem::take(&mut self.unknown_modules);
        if count > 0 {
            self.add(&Self {
                core_instances: largest.core_instances.saturating_mul(count),
                memories: largest.memories.saturating_mul(count),
                tables: largest.tables.saturating_mul(count),
                metadata: largest.metadata.saturating_mul(count.into()),
                data: largest.data.saturating_mul(count.into()),
                data_pages: largest.data_pages.saturating_mul(count.into()),
                copied_pages: largest.copied_pages.saturating_mul(count.into()),
                ..*largest
            });
        }
        self
    }

    fn refuse_shared(&mut self, memory: &MemoryType) {
        if memory.shared {
            self.not_offered = Some(SHARED_MEMORY);
        }
    }

    fn add_items(&mut self, count: u32) {
        self.add_metadata(METADATA_OF_ITEM, count);
    }

    fn add_metadata(&mut self, each: u64, count: u32) {
        let all = each.saturating_mul(count.into());
        self.metadata = self.metadata.saturating_add(all);
    }

    fn add_memory(&mut self, memory: &MemoryType) {
        let page = 1_u64 << memory.page_size_log2.unwrap_or(16).min(16);
        self.memory = self.memory.max(memory.initial.saturating_mul(page));
        self.refuse_shared(memory);
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
                        self.imported_memories = self.imported_memories.saturating_add(1);
                        self.refuse_shared(&memory);
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
                for segment in section.clone() {
                    let segment = segment?;
                    let elements = match segment.items {
                        ElementItems::Functions(functions) => functions.count(),
                        ElementItems::Expressions(_, expressions) => expressions.count(),
                    };
                    self.add_items(elements);
                    // Of others, only the functions remain.
                    if matches!(segment.kind, ElementKind::Passive) {
                        self.add_metadata(METADATA_OF_ELEMENTS, 1);
                        self.add_metadata(METADATA_OF_ELEMENT, elements);
                    }
                }
            }
            Payload::GlobalSection(section) => self.add_items(section.count().saturating_mul(2)),
            Payload::ExportSection(section) => self.add_items(section.count()),
            Payload::TagSection(section) => self.add_items(section.count()),
            Payload::DataSection(section) => {
                for segment in section.clone() {
                    let segment = segment?;
                    match segment.kind {
                        DataKind::Passive => self.add_metadata(METADATA_OF_DATA, 1),
                        DataKind::Active {
                            memory_index,
                            offset_expr,
                        } => {
                            let pages = segment.data.len().div_ceil(PAGE) as u64;
                            self.data = self.data.saturating_add(1);
                            self.data_pages = self.data_pages.saturating_add(pages);
                            if memory_index < self.imported_memories || !is_constant(&offset_expr) {
                                self.copied_pages = self.copied_pages.saturating_add(pages);
                            }
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Returns whether an offset is a number and not computed.
fn is_constant(offset: &ConstExpr<'_>) -> bool {
    let mut operators = offset.get_operators_reader();
    let is_number = matches!(
        operators.read(),
        Ok(Operator::I32Const { .. } | Operator::I64Const { .. })
    );
    is_number && matches!(operators.read(), Ok(Operator::End))
}

/// The components and modules that the parser is in, from the outermost on.
#[derive(Default)]
struct Levels {
    levels: Vec<Level>,
    whole: Option<Extent>,
    /// The sizes of all components and modules that the parser has left.
    known: Vec<Extent>,
    /// The largest numbers of all modules: an unknown one is one of them.
    largest: Extent,
}

/// A component or module that the parser is in.
#[derive(Default)]
struct Level {
    is_module: bool,
    /// Whether it has functions of its own that can be called, and asynchronous ones.
    lifts: bool,
    lifts_async: bool,
    /// Whether it reads or writes streams or futures.
    exchanges: bool,
    /// The size of its instance.
    extent: Extent,
    /// The modules and components of its index spaces.
    modules: Vec<Item>,
    components: Vec<Item>,
}

/// A module or component in an index space: the number of the size of its instance. It is small,
/// since a file has one for every four of its bytes if it consists of nothing but aliases.
#[derive(Clone, Copy)]
struct Item(u32);

impl Item {
    /// One that is imported, or that comes out of an instance.
    const UNKNOWN: Self = Self(u32::MAX);

    fn extent(self, known: &[Extent]) -> Option<&Extent> {
        known.get(self.0 as usize)
    }
}

impl Levels {
    fn whole(self) -> Extent {
        self.whole
            .or_else(|| self.levels.first().map(|level| level.extent))
            .unwrap_or_default()
            .with_unknown_as(&self.largest)
            // Wasmtime compares every module with the bounds of a pool, also one that is never
            // instantiated.
            .or_larger(&self.largest)
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
                } else {
                    level.extent.component_instances = 1;
                }
                self.levels.push(level);
            }
            Payload::End(_) => {
                let Some(done) = self.levels.pop() else {
                    return Ok(());
                };
                if done.is_module {
                    self.largest = self.largest.or_larger(&done.extent);
                }
                match self.levels.last_mut() {
                    Some(outer) => {
                        let item = u32::try_from(self.known.len()).map_or(Item::UNKNOWN, Item);
                        self.known.push(done.extent);
                        if done.is_module {
                            outer.modules.push(item);
                        } else {
                            outer.components.push(item);
                        }
                    }
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
                    level.see(payload, &self.known)?;
                }
            }
        }
        Ok(())
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>) {
        let (item, kind) = match alias {
            ComponentAlias::Outer { kind, count, index } => {
                let outer = self.levels.len().checked_sub(1 + *count as usize);
                let outer = outer.and_then(|outer| self.levels.get(outer));
                let index = *index as usize;
                let item = outer.and_then(|outer| match kind {
                    ComponentOuterAliasKind::CoreModule => outer.modules.get(index),
                    ComponentOuterAliasKind::Component => outer.components.get(index),
                    ComponentOuterAliasKind::CoreType | ComponentOuterAliasKind::Type => None,
                });
                (item.copied().unwrap_or(Item::UNKNOWN), *kind)
            }
            ComponentAlias::InstanceExport { kind, .. } => {
                let kind = match kind {
                    ComponentExternalKind::Module => ComponentOuterAliasKind::CoreModule,
                    ComponentExternalKind::Component => ComponentOuterAliasKind::Component,
                    _ => return,
                };
                (Item::UNKNOWN, kind)
            }
            ComponentAlias::CoreInstanceExport { .. } => return,
        };
        let Some(level) = self.levels.last_mut() else {
            return;
        };
        match kind {
            ComponentOuterAliasKind::CoreModule => level.modules.push(item),
            ComponentOuterAliasKind::Component => level.components.push(item),
            ComponentOuterAliasKind::CoreType | ComponentOuterAliasKind::Type => {}
        }
    }
}

impl Level {
    fn see(&mut self, payload: &Payload<'_>, known: &[Extent]) -> wasmparser::Result<()> {
        if self.is_module {
            return self.extent.see(payload);
        }
        match payload {
            Payload::ComponentImportSection(section) => {
                for import in section.clone() {
                    match import?.ty {
                        ComponentTypeRef::Module(_) => self.modules.push(Item::UNKNOWN),
                        ComponentTypeRef::Component(_) => self.components.push(Item::UNKNOWN),
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
                    let item = space.get(export.index as usize).copied();
                    space.push(item.unwrap_or(Item::UNKNOWN));
                }
            }
            Payload::InstanceSection(section) => {
                for instance in section.clone() {
                    if let Instance::Instantiate { module_index, .. } = instance?
                        && let Some(module) = self.modules.get(module_index as usize)
                    {
                        match module.extent(known) {
                            Some(module) => self.extent.add(module),
                            None => self.extent.unknown_modules += 1,
                        }
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section.clone() {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance?
                        && let Some(component) = self.components.get(component_index as usize)
                    {
                        match component.extent(known) {
                            Some(component) => self.extent.add(component),
                            None => self.extent.not_offered = Some(UNKNOWN_COMPONENT),
                        }
                    }
                }
            }
            Payload::ComponentTypeSection(section) => {
                for ty in section.clone() {
                    if let ComponentType::Resource { .. } = ty? {
                        self.extent.add_metadata(METADATA_OF_RESOURCE, 1);
                    }
                }
            }
            Payload::ComponentCanonicalSection(section) => {
                self.extent.add_items(section.count());
                for function in section.clone() {
                    self.see_function(&function?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn see_function(&mut self, function: &CanonicalFunction) {
        let is_async = |options: &[CanonicalOption]| {
            options
                .iter()
                .any(|option| matches!(option, CanonicalOption::Async))
        };
        if let CanonicalFunction::Lift { options, .. }
        | CanonicalFunction::Lower { options, .. }
        | CanonicalFunction::StreamRead { options, .. }
        | CanonicalFunction::StreamWrite { options, .. }
        | CanonicalFunction::FutureRead { options, .. }
        | CanonicalFunction::FutureWrite { options, .. } = function
        {
            let is_wide = |option| matches!(option, &CanonicalOption::UTF16 | &CanonicalOption::CompactUTF16);
            self.extent.wide_strings |= options.iter().any(is_wide);
        }
        match function {
            CanonicalFunction::Lift { options, .. } => {
                if !self.lifts {
                    self.lifts = true;
                    self.extent.callable = self.extent.callable.saturating_add(1);
                }
                if !self.lifts_async && is_async(options) {
                    self.lifts_async = true;
                    self.extent.lifts_async = self.extent.lifts_async.saturating_add(1);
                }
            }
            CanonicalFunction::Lower { options, .. } => {
                self.extent.add_metadata(METADATA_OF_LOWERED, 1);
                self.extent.calls_concurrently |= is_async(options);
            }
            CanonicalFunction::WaitableSetWait { .. } | CanonicalFunction::ThreadYield { .. } => {
                self.extent.waits = true;
            }
            CanonicalFunction::StreamRead { options, .. }
            | CanonicalFunction::StreamWrite { options, .. }
            | CanonicalFunction::FutureRead { options, .. }
            | CanonicalFunction::FutureWrite { options, .. } => {
                self.extent.waits |= !is_async(options);
                if !self.exchanges {
                    self.exchanges = true;
                    self.extent.exchanging = self.extent.exchanging.saturating_add(1);
                }
            }
            // A cancellation can wait, too, but most guests import one and never wait in it.
            _ => {}
        }
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
        // The whole, an instance of `$c`, and two of `$d` with one of `$c` in each.
        assert_eq!(extent.component_instances, 6);
        assert_eq!(extent.table_elements, 7);
    }

    #[test]
    fn data_that_is_copied_for_each_core_instance_is_bounded() {
        let data = "x".repeat(16 * PAGE);
        let with = |instances: usize, memory: &str, offset: &str| {
            let instances = "(core instance (instantiate $m (with \"\" (instance $e))))".repeat(instances);
            of(&format!(
                "(component (core module $e (memory (export \"m\") 1)) (core instance $e (instantiate $e))
                    (core module $m {memory} (data {offset} \"{data}\")) {instances})"
            ))
        };
        let (own, imported) = ("(memory 1)", "(import \"\" \"m\" (memory 1))");
        let base = "(global $base i32 (i32.const 0))";
        for (memory, offset, pages) in [
            (own.to_owned(), "(i32.const 0)", 0),
            (imported.to_owned(), "(i32.const 0)", 16),
            (format!("{own} {base}"), "(global.get $base)", 16),
            (own.to_owned(), "(i32.add (i32.const 0) (i32.const 0))", 16),
        ] {
            let most = with(256, &memory, offset);
            assert_eq!(
                (most.data_pages, most.copied_pages),
                (256 * 16, 256 * pages),
                "{memory}"
            );
            assert!(most.check().is_ok(), "{memory} {offset}");
            let more = with(257, &memory, offset).check();
            assert_eq!(more.is_err(), pages > 0, "{memory} {offset}");
        }
    }

    #[test]
    fn what_wasmtime_keeps_for_each_core_instance_is_bounded() {
        let of_instances = |instances: usize, items: &str| {
            let instances = "(core instance (instantiate $m))".repeat(instances);
            of(&format!("(component (core module $m {items}) {instances})"))
        };
        for (item, most, more) in [
            ("(data \"\")", 580, 600),
            ("(elem func)", 100, 140),
            ("(elem funcref (ref.null func) (ref.null func))", 48, 60),
            ("(global i32 (i32.const 0))", 100, 140),
            ("(import \"a\" \"b\" (func))", 200, 270),
        ] {
            let extent = |count: usize| of_instances(100, &item.repeat(count));
            assert!(extent(most).check().is_ok(), "{item}");
            let refusal = extent(more).check().unwrap_err();
            assert!(
                matches!(refusal, Refusal::TooLarge { what, .. } if what.contains("segments")),
                "{item}: {refusal}"
            );
        }
        // The Go compiler makes as many. wizer makes up to 10,000 of the memory of an interpreter.
        let active = "(memory 1) ".to_owned() + &"(data (i32.const 0) \"\")".repeat(100_000);
        assert!(of_instances(2, &active).check().is_ok());
        let refusal = of_instances(3, &active).check().unwrap_err();
        assert!(
            matches!(refusal, Refusal::TooLarge { what, .. } if what == "active data segments"),
            "{refusal}"
        );
    }

    #[test]
    fn types_of_resources_are_bounded() {
        let extent = |count: usize| {
            let types = "(type (resource (rep i32)))".repeat(count);
            of(&format!("(component {types})"))
        };
        assert!(extent(10_000).check().is_ok());
        assert!(extent(20_000).check().is_err());
    }

    #[test]
    fn a_module_that_is_not_instantiated_has_to_fit() {
        let extent = of("(component (core module (memory 3) (table 7 funcref)))");
        assert_eq!((extent.memory, extent.table_elements), (3 << 16, 7));
        for module in [
            "(table 2000000 funcref)",
            "(memory i64 70000)",
            "(memory 1 1 shared)",
        ] {
            let instantiated = of(&format!(
                "(component (core module $m {module}) (core instance (instantiate $m)))"
            ));
            let unused = of(&format!("(component (core module {module}))"));
            let nested = of(&format!("(component (component (core module {module})))"));
            let expected = instantiated.check().unwrap_err().to_string();
            for extent in [unused, nested] {
                assert_eq!(extent.check().unwrap_err().to_string(), expected);
            }
        }
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
                what: "component instances",
                ..
            }
        ));
    }

    #[test]
    fn components_without_a_module_count() {
        let text = |each: &str| {
            let each = each.repeat(10);
            format!(
                "(component
                    (component $one)
                    (component $ten (alias outer 1 $one (component $c)) {each})
                    (component $hundred (alias outer 1 $ten (component $c)) {each})
                    (component $c (alias outer 1 $hundred (component $c)) {each})
                    (instance (instantiate $c)))"
            )
        };
        let extent = of(&text("(instance (instantiate $c))"));
        assert_eq!(extent.component_instances, 1 + 1 + 10 + 100 + 1000);
        let refusal = extent.check().unwrap_err().to_string();
        assert!(refusal.contains("1112 component instances"), "{refusal}");
        assert!(of(&text("")).check().is_ok());
    }

    #[test]
    fn only_components_that_read_or_write_streams_exchange_values() {
        let of_parts = |parts: usize, function: &str| {
            let part = format!(
                "(component $part
                    (type $s (stream string)) (type $f (future string))
                    (core module $m (memory (export \"m\") 1)
                      (func (export \"r\") (param i32 i32 i32 i32) (result i32) (i32.const 0)))
                    (core instance $i (instantiate $m))
                    (core func (canon {function}
                      (memory (core memory $i \"m\")) (realloc (core func $i \"r\"))))
                    (core func (canon stream.new $s)))"
            );
            let parts = "(instance (instantiate $part))".repeat(parts);
            of(&format!("(component {part} {parts})"))
        };
        for function in [
            "stream.read $s async",
            "stream.write $s async",
            "future.read $f async",
            "future.write $f async",
        ] {
            assert!(!of_parts(1, function).exchanges(), "{function}");
            assert!(of_parts(2, function).exchanges(), "{function}");
        }
        assert!(
            !of(
                "(component (component $c (type $s (stream u8)) (core func (canon stream.new $s)))
            (instance (instantiate $c)) (instance (instantiate $c)))"
            )
            .exchanges()
        );
    }

    #[test]
    fn encodings_of_strings_are_seen() {
        let extent = |encoding: &str| {
            of(&format!(
                "(component
                    (import \"f\" (func $f (param \"s\" string)))
                    (component $c (import \"f\" (func $f (param \"s\" string)))
                        (core module $m (memory (export \"m\") 1))
                        (core instance $i (instantiate $m))
                        (core func (canon lower (func $f) (memory (core memory $i \"m\")) {encoding})))
                    (instance (instantiate $c (with \"f\" (func $f)))))"
            ))
        };
        for (encoding, is_wide) in [
            ("", false),
            ("string-encoding=utf8", false),
            ("string-encoding=utf16", true),
            ("string-encoding=latin1+utf16", true),
        ] {
            assert_eq!(extent(encoding).wide_strings, is_wide, "{encoding}");
        }
    }

    #[test]
    fn components_that_keep_stacks_are_few() {
        let of_parts = |parts: usize, call: &str| {
            let waits = format!(
                "(component $waits (import \"f\" (func $f async))
                    (core func $call (canon lower (func $f) {call}))
                    (core module $m (func (export \"g\")))
                    (core instance $i (instantiate $m))
                    (func (export \"g\") async (canon lift (core func $i \"g\")))
                    (func (export \"h\") async (canon lift (core func $i \"g\"))))"
            );
            let parts = "(instance (instantiate $waits (with \"f\" (func $f))))".repeat(parts);
            of(&format!(
                "(component {waits} (import \"f\" (func $f async)) {parts})"
            ))
        };
        assert!(of_parts(16, "async").check().is_ok());
        let refusal = of_parts(17, "async").check().unwrap_err().to_string();
        assert!(
            refusal.contains("17 components that each can keep a stack"),
            "{refusal}"
        );
        // Without concurrent calls, one stack is enough for all of them.
        let on_one_stack = of_parts(17, "");
        assert!(on_one_stack.check().is_ok());
        assert_eq!(on_one_stack.parts_with_stacks(), 1);
    }

    #[test]
    fn a_synchronous_call_of_an_asynchronous_function_keeps_a_stack() {
        let of_parts = |parts: usize| {
            let instances: String = (1..parts)
                .map(|part| {
                    let before = part - 1;
                    format!("(instance $i{part} (instantiate $c (with \"f\" (func $i{before} \"g\"))))")
                })
                .collect();
            let lift = "(core module $m (func (export \"g\") (result i32) unreachable)
                    (func (export \"c\") (param i32 i32 i32) (result i32) unreachable))
                (core instance $i (instantiate $m))
                (func (export \"g\") async
                    (canon lift (core func $i \"g\") async (callback (core func $i \"c\"))))
                (func (export \"h\") async
                    (canon lift (core func $i \"g\") async (callback (core func $i \"c\"))))";
            of(&format!(
                "(component (component $last {lift})
                    (component $c (import \"f\" (func $f async)) (core func (canon lower (func $f))) {lift})
                    (instance $i0 (instantiate $last)) {instances})"
            ))
        };
        assert_eq!(of_parts(1).parts_with_stacks(), 1);
        assert_eq!(of_parts(3).parts_with_stacks(), 3);
        assert!(of_parts(16).check().is_ok());
        let refusal = of_parts(17).check().unwrap_err().to_string();
        assert!(
            refusal.contains("17 components that each can keep a stack"),
            "{refusal}"
        );
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
    fn a_module_from_elsewhere_counts_as_the_largest_in_the_file() {
        let modules = "(core module $n (memory 1) (memory 1) (table 3 funcref))
            (core module $m (memory 5))";
        for text in [
            // Imported by a nested component, and defined after it.
            format!(
                "(component
                    (component $c (import \"m\" (core module $m))
                        (core instance (instantiate $m)) (core instance (instantiate $m)))
                    {modules}
                    (instance (instantiate $c (with \"m\" (core module $m)))))"
            ),
            // Exported by an instance.
            format!(
                "(component
                    (component $c {modules} (export \"m\" (core module $m)))
                    (instance $i (instantiate $c))
                    (alias export $i \"m\" (core module $m))
                    (core instance (instantiate $m)) (core instance (instantiate $m)))"
            ),
        ] {
            let extent = of(&text);
            let counts = (extent.core_instances, extent.memories, extent.tables);
            assert_eq!(counts, (2, 4, 2), "{text}");
            assert_eq!((extent.memory, extent.table_elements), (5 << 16, 3), "{text}");
            assert!(extent.metadata >= 2 * METADATA_OF_INSTANCE, "{text}");
        }
    }

    #[test]
    fn a_component_from_elsewhere_is_refused_where_it_is_instantiated() {
        let inner = "(component $c (import \"d\" (component $d))";
        let refusal = of(&format!(
            "(component {inner} (instance (instantiate $d))) (component $e)
            (instance (instantiate $c (with \"d\" (component $e)))))"
        ));
        let refusal = refusal.check().unwrap_err().to_string();
        assert!(refusal.contains("components that are imported"), "{refusal}");
        assert!(of(&format!("(component {inner}))")).check().is_ok());
    }

    #[test]
    fn an_alias_takes_less_memory_than_it_takes_of_its_file() {
        let outer_alias = 5;
        assert!(size_of::<Item>() < outer_alias);
    }

    #[test]
    fn what_is_read_before_damage_counts() {
        let mut bytes = wat::parse_str("(module (memory 3) (func))").unwrap();
        bytes.truncate(bytes.len() - 2);
        assert_eq!(Extent::of(&bytes).memories, 1);
        assert_eq!(Extent::of(b"\0asm"), Extent::default());
    }
}
