//! Initialising a guest once for all of its connections: the guest does at its load what it would do at the start of each
//! connection, and what its memories and globals hold then is what every instance begins with.
//!
//! The convention is that of Wizer, whose crate does the work on the guest's code: what is initialised exports a function
//! `wizer-initialize`, and a program that goes on elsewhere than at `_start` exports `wizer.resume`.

use std::collections::{HashMap, HashSet};
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::io::empty;
use tokio::time::timeout;
use tracing::debug;
use wasmparser::{Parser, ValType};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{
    Component, ComponentExportIndex, Instance as ComponentInstance, InstancePre as ComponentInstancePre,
    Lift, WasmList,
};
use wasmtime::{Instance, InstancePre, Module, Store, Val};
use wasmtime_wizer::{ComponentInstanceState, InstanceState, SnapshotVal, Wizer};

use super::Sandbox;
use super::code::Code;
use super::compiler::Turn;
use super::content::{Content, MAX_FILE};
use super::contract::Contract;
use super::diagnostics::{Logged, Speaker, Transcript};
use super::engine::Engine;
use super::extent::{Extent, MAX_DATA};
use super::file_threads::on;
use super::generation::{contract_of, failed, line, link_module, link_whole};
use super::load_error::{LoadError, Refusal};
use super::state::{ProgramKind, State};

/// The function that a guest is initialised by.
pub(super) const INITIALISE: &str = "wizer-initialize";

/// What a program exports to be run by in place of `_start` once it is initialised.
const RESUME: &str = "wizer.resume";

/// What a reactor has called before anything else.
const REACTOR: &str = "_initialize";

/// How long the guest's own code may run. The time to compile the guest, which depends on its size
/// and on the machine, does not count.
const MAX: Duration = Duration::from_secs(60);

impl Sandbox {
    /// Initialises a guest, and returns the guest with the state that it reached.
    ///
    /// # Errors
    ///
    /// The guest exports no function to initialise it, the function fails or runs longer than
    /// [`MAX`], the guest has state that a snapshot cannot keep, or it has to be compiled without a
    /// `turn`.
    pub(super) async fn initialise(
        &self,
        content: &Content,
        turn: Option<&Turn>,
    ) -> Result<Content, LoadError> {
        let start = Instant::now();
        let snapshot = async {
            if Parser::is_core_wasm(content.bytes()) {
                self.snapshot_of_module(content, turn).await
            } else {
                self.snapshot_of_component(content, turn).await
            }
        };
        // The crate panics where it meets what it does not know.
        let Ok(snapshot) = AssertUnwindSafe(snapshot).catch_unwind().await else {
            return Err(content.refused(Refusal::Snapshot(STRUCTURE.to_owned())));
        };
        let snapshot = snapshot?;
        if snapshot.len() as u64 > MAX_FILE {
            return Err(content.refused(Refusal::Snapshot(TOO_LARGE.to_owned())));
        }
        let duration_ms = start.elapsed().as_millis() as u64;
        let service = self.granted.service();
        debug!(
            service,
            duration_ms,
            size = snapshot.len(),
            "component initialised"
        );
        Ok(content.initialised(snapshot))
    }

    async fn snapshot_of_module(&self, content: &Content, turn: Option<&Turn>) -> Result<Vec<u8>, LoadError> {
        let mut wizer = Wizer::new();
        let instrumented = wizer.instrument(content.bytes());
        let (context, instrumented) = instrumented.map_err(|error| not_instrumented(content, &error))?;
        let instrumented = content.instrumented(instrumented);
        let extent = Extent::of(instrumented.bytes());
        let (engine, code) = self.compile(&instrumented, &extent, turn).await?;
        let Code::Module(module) = &code else {
            return Err(content.refused(Refusal::NoInitialiser(INITIALISE)));
        };
        let pre = prepare_module(&engine, module).map_err(|refusal| content.refused(refusal))?;
        if is_plain(module, RESUME).is_some() {
            wizer.func_rename("_start", RESUME);
        }
        let transcript = Transcript::default();
        let mut store = store(&engine, content, Some(ProgramKind::Module), &transcript).await?;
        let files = store.data().open_files();
        let initialised = engine.ticker.run(on(files, async {
            let instance = pre.instantiate_async(&mut store).await?;
            for name in [REACTOR, INITIALISE] {
                if let Some(function) = instance.get_func(&mut store, name) {
                    let function = function.typed::<(), ()>(&store)?;
                    function.call_async(&mut store, ()).await?;
                }
            }
            Ok(instance)
        }));
        let instance = match in_time(initialised).await {
            Ok(instance) => instance,
            Err(error) => return Err(self.not_initialised(content, &error, store, &transcript)),
        };
        let mut initialised = Initialised::new(store, instance);
        let snapshot = wizer.snapshot(&context, &mut initialised).await;
        let snapshot = initialised.or_why_not(snapshot);
        snapshot.map_err(|error| no_snapshot(content, &error))
    }

    async fn snapshot_of_component(
        &self,
        content: &Content,
        turn: Option<&Turn>,
    ) -> Result<Vec<u8>, LoadError> {
        let mut wizer = Wizer::new();
        // What is exported by this name would be taken away from the module within too, where the component looks for it.
        wizer.keep_init_func(true);
        let instrumented = wizer.instrument_component(content.bytes());
        let (context, instrumented) = instrumented.map_err(|error| not_instrumented(content, &error))?;
        let instrumented = content.instrumented(instrumented);
        let extent = Extent::of(instrumented.bytes());
        let (engine, code) = self.compile(&instrumented, &extent, turn).await?;
        let Code::Component(component) = &code else {
            return Err(content.refused(Refusal::NoInitialiser(INITIALISE)));
        };
        let prepared = prepare_component(&engine, component);
        let Prepared { pre, function, kind } = prepared.map_err(|refusal| content.refused(refusal))?;
        let transcript = Transcript::default();
        let mut store = store(&engine, content, kind, &transcript).await?;
        let files = store.data().open_files();
        let initialised = engine.ticker.run(on(files, async {
            let instance = pre.instantiate_async(&mut store).await?;
            let function = instance.get_typed_func::<(), ()>(&mut store, function)?;
            function.call_async(&mut store, ()).await?;
            Ok(instance)
        }));
        let instance = match in_time(initialised).await {
            Ok(instance) => instance,
            Err(error) => return Err(self.not_initialised(content, &error, store, &transcript)),
        };
        if store.data().holds_handles() {
            return Err(content.refused(Refusal::Snapshot(HANDLES.to_owned())));
        }
        // A memory comes as one list, for which it grows by a page.
        store.set_hostcall_fuel(usize::MAX);
        store.data_mut().take_any_memory();
        let mut initialised = Initialised::new(store, Shown::of(instance));
        let snapshot = engine
            .ticker
            .run(wizer.snapshot_component(&context, &mut initialised))
            .await;
        let snapshot = initialised.or_why_not(snapshot);
        snapshot.map_err(|error| no_snapshot(content, &error))
    }

    /// Returns why the guest of `content` was not initialised in its `store`, with what is in its
    /// `transcript`.
    fn not_initialised(
        &self,
        content: &Content,
        error: &wasmtime::Error,
        store: Store<State>,
        transcript: &Transcript,
    ) -> LoadError {
        // The last line of standard error ends with the store.
        drop(store);
        content.refused(Refusal::Initialise(failed(&self.granted, error, transcript)))
    }

    /// Checks whether a valid guest can be initialised, as far as that can be told without its
    /// code.
    ///
    /// # Errors
    ///
    /// Its structure is not supported, or a function that initialises or resumes it is missing or
    /// cannot be called.
    pub(super) async fn check_initialiser(
        &self,
        content: &Content,
        turn: Option<&Turn>,
    ) -> Result<(), LoadError> {
        let instrumented = instrument(content.bytes()).map_err(|error| not_instrumented(content, &error))?;
        let (engine, code) = self
            .compile_hollow(&content.instrumented(instrumented), turn)
            .await?;
        match &code {
            Code::Module(module) => prepare_module(&engine, module).map(drop),
            Code::Component(component) => prepare_component(&engine, component).map(drop),
        }
        .map_err(|refusal| content.refused(refusal))
    }
}

/// A component that is ready to be initialised.
struct Prepared {
    pre: ComponentInstancePre<State>,
    /// The function that initialises it.
    function: ComponentExportIndex,
    /// How its program is run; `None` if it is none.
    kind: Option<ProgramKind>,
}

/// Looks up the function that initialises a component, and links what the component imports.
///
/// # Errors
///
/// The function is missing or cannot be called, or the component cannot serve.
fn prepare_component(engine: &Engine, component: &Component) -> Result<Prepared, Refusal> {
    let function = match component.get_export(None, INITIALISE) {
        Some((ComponentItem::ComponentFunc(ty), _)) if ty.async_() => {
            let reason = "it is an `async func`, but the convention has a `func`";
            return Err(Refusal::Initialise(reason.to_owned()));
        }
        Some((ComponentItem::ComponentFunc(ty), function)) => {
            if ty.params().len() > 0 || ty.results().len() > 0 {
                return Err(Refusal::Initialiser(INITIALISE));
            }
            function
        }
        _ => return Err(Refusal::NoInitialiser(INITIALISE)),
    };
    let kind = match contract_of(component)? {
        Contract::Cli => Some(ProgramKind::Component),
        Contract::Streams | Contract::Sessions => None,
    };
    let pre = link_whole(engine, component)?;
    Ok(Prepared { pre, function, kind })
}

/// Checks the functions that initialise and resume a module, and links what the module imports.
///
/// # Errors
///
/// A function is missing or cannot be called, or the module cannot be linked.
fn prepare_module(engine: &Engine, module: &Module) -> Result<InstancePre<State>, Refusal> {
    if is_plain(module, INITIALISE).is_none() {
        return Err(Refusal::NoInitialiser(INITIALISE));
    }
    for name in [REACTOR, INITIALISE] {
        if is_plain(module, name) == Some(false) {
            return Err(Refusal::Initialiser(name));
        }
    }
    if is_plain(module, RESUME) == Some(false) {
        return Err(Refusal::Resume(RESUME));
    }
    link_module(engine, module)
}

/// Returns a guest that shows its state, as it is compiled to be initialised.
///
/// # Errors
///
/// Its structure is not supported.
pub(super) fn instrument(bytes: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let instrument = || {
        if Parser::is_core_wasm(bytes) {
            Ok(Wizer::new().instrument(bytes)?.1)
        } else {
            Ok(Wizer::new().instrument_component(bytes)?.1)
        }
    };
    // The crate panics where it meets what it does not know.
    catch_unwind(instrument).unwrap_or_else(|_| Err(wasmtime::format_err!("{STRUCTURE}")))
}

/// Returns why `content` cannot be compiled so that it shows its state. If it is not valid, that is
/// why.
fn not_instrumented(content: &Content, error: &wasmtime::Error) -> LoadError {
    let invalid = content.validate().err();
    invalid.unwrap_or_else(|| no_snapshot(content, error))
}

/// Returns why there is no snapshot of `content`.
fn no_snapshot(content: &Content, error: &wasmtime::Error) -> LoadError {
    content.refused(Refusal::Snapshot(line(error)))
}

/// Waits for a guest to be initialised.
///
/// # Errors
///
/// The guest fails, or takes longer than [`MAX`].
async fn in_time<T>(initialised: impl Future<Output = wasmtime::Result<T>>) -> wasmtime::Result<T> {
    let initialised = timeout(MAX, initialised).await;
    initialised.unwrap_or_else(|_| Err(wasmtime::format_err!("it took longer than {MAX:?}")))
}

/// Whether the exported function `name` has neither parameters nor results; `None` if there is no
/// such function.
fn is_plain(module: &Module, name: &str) -> Option<bool> {
    let export = module.get_export(name)?;
    let ty = export.func()?;
    Some(ty.params().len() == 0 && ty.results().len() == 0)
}

/// A store for an instance that is initialised: it has what every connection is granted, and no
/// connection. Its standard error goes to `transcript`.
async fn store(
    engine: &Engine,
    content: &Content,
    program: Option<ProgramKind>,
    transcript: &Transcript,
) -> Result<Store<State>, LoadError> {
    let name = content.program();
    let opened = engine.granted.open_within(MAX).await;
    let opened = opened.map_err(|error| LoadError::Sandbox(line(&error)))?;
    let logged = Some(Logged::kept_in(transcript.clone()));
    let mut store = State::store(engine, name, Speaker::Nobody, logged, None, opened);
    if let Some(kind) = program {
        store.data_mut().make_program(kind, &[], empty(), empty());
    }
    Ok(store)
}

/// An instance that was initialised.
struct Initialised<I> {
    store: Store<State>,
    instance: I,
    room: Room,
}

/// What is said of a guest or an instance that no snapshot can be made of.
const STRUCTURE: &str = "its structure is not supported";
const HANDLES: &str =
    "it holds handles of the host, such as a file or standard output, which a snapshot cannot keep";
const PIECES: &str = "its memory has too many separate regions of non-zero bytes";
const NO_ROOM: &str = "its memory cannot grow by a page";
const TOO_LARGE: &str = "a snapshot of its memory would be larger than a component file may be";

/// Stretches of bytes other than 0 that memories may have. Wizer notes each by itself before it
/// joins those with little between them.
const MAX_STRETCHES: usize = 8 << 20;

/// The data segments that Wizer makes of the memories of one module. If there are more, it fills the
/// smallest gaps between them.
const MAX_SEGMENTS: usize = 10_000;

/// Bytes of a gap that Wizer fills in any case.
const SMALL_GAP: usize = 4;

impl<I> Initialised<I> {
    fn new(store: Store<State>, instance: I) -> Self {
        Self {
            store,
            instance,
            room: Room {
                bytes: MAX_FILE,
                stretches: MAX_STRETCHES,
                segments: MAX_DATA,
                ..Room::default()
            },
        }
    }

    /// The snapshot, if it is of what there is.
    fn or_why_not(self, snapshot: wasmtime::Result<Vec<u8>>) -> wasmtime::Result<Vec<u8>> {
        match self.room.why_not {
            Some(why) => Err(wasmtime::format_err!("{why}")),
            None => snapshot,
        }
    }
}

/// What a snapshot may still take, for memories that are not counted yet.
///
/// Wizer asks for the memories of a module twice: first to find the segments of all of them, and
/// then to copy these segments. A memory counts the first time.
#[derive(Default)]
struct Room {
    bytes: u64,
    stretches: usize,
    segments: u64,
    /// The segments of the module whose memories are being counted.
    module: Segments,
    /// The names of the memories that have been counted.
    counted: HashSet<String>,
    /// Why the snapshot is not of what there is.
    why_not: Option<&'static str>,
}

impl Room {
    /// Shows the memory of this name to `contents`, which makes the snapshot. A memory for which
    /// there is no room is shown as empty.
    fn show(&mut self, name: &str, memory: &[u8], contents: impl FnOnce(&[u8])) {
        if self.counted.contains(name) {
            self.end_module();
            contents(memory);
            return;
        }
        self.counted.insert(name.to_owned());
        if self.why_not.is_none() {
            self.why_not = self.count(memory).err();
        }
        contents(if self.why_not.is_none() { memory } else { &[] });
    }

    /// # Errors
    ///
    /// There is no room for the memory.
    fn count(&mut self, memory: &[u8]) -> Result<(), &'static str> {
        self.module.add(memory, self.stretches)?;
        let (segments, bytes) = self.module.filled();
        if segments > self.segments {
            return Err(PIECES);
        }
        if bytes > self.bytes {
            return Err(TOO_LARGE);
        }
        Ok(())
    }

    /// Takes the room of a module whose memories have all been counted.
    fn end_module(&mut self) {
        let mut module = take(&mut self.module);
        let (segments, bytes) = module.filled();
        self.segments = self.segments.saturating_sub(segments);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.stretches = self.stretches.saturating_sub(module.stretches);
    }
}

/// The data segments that Wizer makes of the memories of one module.
#[derive(Default)]
struct Segments {
    stretches: usize,
    /// What is left of the stretches when small gaps are filled.
    count: usize,
    bytes: u64,
    /// The bytes of each gap between two of them in one memory.
    gaps: Vec<u32>,
}

impl Segments {
    /// Adds the stretches of one memory.
    ///
    /// # Errors
    ///
    /// The memories have more than `max` stretches.
    fn add(&mut self, memory: &[u8], max: usize) -> Result<(), &'static str> {
        let mut gap = None;
        for run in memory.chunk_by(|byte, next| (*byte == 0) == (*next == 0)) {
            if run.first() == Some(&0) {
                gap = gap.map(|_: usize| run.len());
                continue;
            }
            self.stretches += 1;
            if self.stretches > max {
                return Err(PIECES);
            }
            self.bytes += run.len() as u64;
            match gap {
                Some(gap) if gap <= SMALL_GAP => self.bytes += gap as u64,
                Some(gap) => {
                    self.count += 1;
                    self.gaps.push(u32::try_from(gap).unwrap_or(u32::MAX));
                }
                None => self.count += 1,
            }
            gap = Some(0);
        }
        Ok(())
    }

    /// Returns how many there are in the snapshot, and their bytes.
    fn filled(&mut self) -> (u64, u64) {
        let more = self.count.saturating_sub(MAX_SEGMENTS);
        if (1..self.gaps.len()).contains(&more) {
            self.gaps.select_nth_unstable(more);
        }
        let filled = self.gaps.iter().take(more).map(|gap| u64::from(*gap));
        ((self.count - more) as u64, self.bytes + filled.sum::<u64>())
    }
}

impl InstanceState for Initialised<Instance> {
    async fn global_get(&mut self, name: &str, _type: ValType) -> SnapshotVal {
        let global = self.instance.get_global(&mut self.store, name);
        let value = global.map(|global| global.get(&mut self.store));
        match value {
            Some(Val::I32(value)) => SnapshotVal::I32(value),
            Some(Val::I64(value)) => SnapshotVal::I64(value),
            Some(Val::F32(value)) => SnapshotVal::F32(value),
            Some(Val::F64(value)) => SnapshotVal::F64(value),
            Some(Val::V128(value)) => SnapshotVal::V128(value.as_u128()),
            other => panic!("the global `{name}` has the unexpected value {other:?}"),
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.instance.get_memory(&mut self.store, name);
        let memory = memory.expect("a memory of this name").data(&self.store);
        self.room.show(name, memory, contents);
    }
}

/// A component instance with the memories that it has shown. For each it had to grow the memory.
struct Shown {
    instance: ComponentInstance,
    memories: HashMap<String, WasmList<u8>>,
}

impl Shown {
    fn of(instance: ComponentInstance) -> Self {
        Self {
            instance,
            memories: HashMap::new(),
        }
    }
}

impl Initialised<Shown> {
    /// Calls a function that was added to the component to show its state, and gives what it answers.
    async fn ask<T: Lift + Send + Sync + 'static>(&mut self, instance: &str, function: &str) -> Option<T> {
        let shown = self.instance.instance;
        let added = shown.get_export_index(&mut self.store, None, instance)?;
        let index = shown.get_export_index(&mut self.store, Some(&added), function)?;
        let function = shown.get_typed_func::<(), (T,)>(&mut self.store, index).ok()?;
        let answer = function.call_async(&mut self.store, ()).await;
        answer.ok().map(|(answer,)| answer)
    }

    /// The same for a number.
    async fn number<T: Lift + Default + Send + Sync + 'static>(
        &mut self,
        instance: &str,
        function: &str,
    ) -> T {
        let answer = self.ask(instance, function).await;
        answer.unwrap_or_else(|| {
            self.room.why_not = Some(NO_ROOM);
            T::default()
        })
    }
}

impl ComponentInstanceState for Initialised<Shown> {
    async fn call_func_ret_list_u8(
        &mut self,
        instance: &str,
        func: &str,
        contents: impl FnOnce(&[u8]) + Send,
    ) {
        let list = match self.instance.memories.remove(func) {
            Some(list) => Some(list),
            None => self.ask::<WasmList<u8>>(instance, func).await,
        };
        let Some(list) = list else {
            contents(&[]);
            self.room.why_not = Some(NO_ROOM);
            return;
        };
        self.room.show(func, list.as_le_slice(&self.store), contents);
        self.instance.memories.insert(func.to_owned(), list);
    }

    async fn call_func_ret_s32(&mut self, instance: &str, func: &str) -> i32 {
        self.number(instance, func).await
    }

    async fn call_func_ret_s64(&mut self, instance: &str, func: &str) -> i64 {
        self.number(instance, func).await
    }

    async fn call_func_ret_f32(&mut self, instance: &str, func: &str) -> u32 {
        self.number::<f32>(instance, func).await.to_bits()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, func: &str) -> u64 {
        self.number::<f64>(instance, func).await.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use wasmparser::Payload;

    use super::*;

    /// Memories of a module, in place of an instance.
    struct Memories<'a> {
        contents: &'a [Vec<u8>],
        room: Room,
    }

    impl InstanceState for Memories<'_> {
        async fn global_get(&mut self, _: &str, _: ValType) -> SnapshotVal {
            unreachable!("the module has no global")
        }

        async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
            let index: usize = name
                .rsplit(|at: char| !at.is_ascii_digit())
                .next()
                .unwrap()
                .parse()
                .unwrap();
            self.room.show(name, &self.contents[index], contents);
        }
    }

    /// Has Wizer make a snapshot of a module with these memories. Returns the number and the bytes
    /// of its data segments, and why the memories were not shown.
    fn snapshot(contents: &[Vec<u8>], room: Room) -> ((u64, u64), Option<&'static str>) {
        let memories = "(memory 1)".repeat(contents.len());
        let module = format!(r#"(module {memories} (func (export "initialise")))"#);
        let module = wat::parse_str(module).unwrap();
        let wizer = Wizer::new();
        let (context, _) = wizer.instrument(&module).unwrap();
        let mut memories = Memories { contents, room };
        let made = wizer.snapshot(&context, &mut memories).now_or_never().unwrap();
        let (mut count, mut bytes) = (0, 0);
        for payload in Parser::new(0).parse_all(&made.unwrap()) {
            if let Payload::DataSection(segments) = payload.unwrap() {
                for segment in segments {
                    count += 1;
                    bytes += segment.unwrap().data.len() as u64;
                }
            }
        }
        ((count, bytes), memories.room.why_not)
    }

    fn room(bytes: u64, stretches: usize, segments: u64) -> Room {
        Room {
            bytes,
            stretches,
            segments,
            ..Room::default()
        }
    }

    /// A memory of one page that begins with these bytes.
    fn page(bytes: &[u8]) -> Vec<u8> {
        let mut page = bytes.to_vec();
        page.resize(1 << 16, 0);
        page
    }

    #[test]
    fn memories_have_together_what_a_snapshot_may_hold() {
        // 3 bytes with a small gap, and 1 byte after a gap that stays.
        let memories = [page(&[1, 0, 1, 0, 0, 0, 0, 0, 1]), page(&[1])];
        let exact = || room(5, 4, 3);
        assert_eq!(snapshot(&memories, exact()), ((3, 5), None));
        for (less, why) in [
            (room(4, 4, 3), TOO_LARGE),
            (room(5, 3, 3), PIECES),
            (room(5, 4, 2), PIECES),
        ] {
            // The memory for which there is no room is not in the snapshot.
            assert_eq!(snapshot(&memories, less), ((2, 4), Some(why)));
        }
        let empty = [page(&[]), page(&[])];
        assert_eq!(snapshot(&empty, room(0, 0, 0)), ((0, 0), None));
    }

    /// Wizer fills gaps where segments are too many. The snapshot then has more bytes than the
    /// memory has of other values than 0.
    #[test]
    fn the_gaps_that_a_snapshot_fills_count() {
        let every = |distance: usize| -> Vec<u8> {
            let byte = |at| u8::from(at % distance == 0);
            (0..15_000 * distance).map(byte).collect()
        };
        // Whole pages of single bytes, with 7 between them in one memory and 15 in the other.
        let memories = [8, 16].map(|distance| {
            let mut memory = every(distance);
            memory.resize(memory.len().next_multiple_of(1 << 16), 0);
            memory
        });
        // All 14,999 gaps of the one, and 5,001 gaps of the other.
        let bytes = 30_000 + 14_999 * 7 + 5_001 * 15;
        let most = MAX_SEGMENTS as u64;
        assert_eq!(
            snapshot(&memories, room(bytes, 30_000, most)),
            ((most, bytes), None)
        );
        let (_, why) = snapshot(&memories, room(bytes - 1, 30_000, most));
        assert_eq!(why, Some(TOO_LARGE));
    }

    #[test]
    fn modules_take_room_one_after_the_other() {
        let mut room = room(5, 9, 9);
        let mut show = |name: &str, memory: &[u8]| {
            let mut bytes = 0;
            room.show(name, memory, |contents| bytes = contents.len());
            (bytes, room.why_not)
        };
        assert_eq!(show("a", &[1, 0, 1]), (3, None));
        assert_eq!(show("a", &[1, 0, 1]), (3, None));
        assert_eq!(show("b", &[1, 1]), (2, None));
        assert_eq!(show("b", &[1, 1]), (2, None));
        assert_eq!(show("c", &[1]), (0, Some(TOO_LARGE)));
        assert_eq!(show("c", &[1]), (1, Some(TOO_LARGE)));
    }
}
