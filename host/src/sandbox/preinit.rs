//! Initialising a guest once for all of its connections: the guest does at its load what it would do at the start of each
//! connection, and what its memories and globals hold then is what every instance begins with.
//!
//! The convention is that of Wizer, whose crate does the work on the guest's code: what is initialised exports a function
//! `wizer-initialize`, and a program that goes on elsewhere than at `_start` exports `wizer.resume`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::io::empty;
use tokio::time::timeout;
use tracing::debug;
use wasmparser::{Parser, ValType};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Instance as ComponentInstance, Lift, WasmList};
use wasmtime::{ExternType, Instance, Module, Store, Val};
use wasmtime_wizer::{ComponentInstanceState, InstanceState, SnapshotVal, Wizer};

use super::Sandbox;
use super::code::Code;
use super::compiler::Turn;
use super::content::{Content, MAX_FILE};
use super::contract::Contract;
use super::diagnostics::Speaker;
use super::engine::Engine;
use super::extent::Extent;
use super::file_threads::on;
use super::generation::{contract_of, line, not_linked};
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
        let impossible = |error| content.refused(Refusal::Snapshot(line(&error)));
        let mut wizer = Wizer::new();
        let (context, instrumented) = wizer.instrument(content.bytes()).map_err(impossible)?;
        let instrumented = content.instrumented(instrumented);
        let extent = Extent::of(instrumented.bytes());
        let (engine, code) = self.compile(&instrumented, &extent, turn).await?;
        let Code::Module(module) = &code else {
            return Err(content.refused(Refusal::NoInitialiser(INITIALISE)));
        };
        let exports = |name| {
            module
                .get_export(name)
                .is_some_and(|export| export.func().is_some())
        };
        if !exports(INITIALISE) {
            return Err(content.refused(Refusal::NoInitialiser(INITIALISE)));
        }
        if exports(RESUME) {
            if !is_plain(module, RESUME) {
                return Err(content.refused(Refusal::Resume(RESUME)));
            }
            wizer.func_rename("_start", RESUME);
        }
        let pre = engine
            .link(module)
            .map_err(|error| content.refused(not_linked(&error)))?;
        let mut store = store(&engine, content, Some(ProgramKind::Module)).await?;
        let threads = store.data().file_threads();
        let initialised = engine.ticker.run(on(threads, async {
            let instance = pre.instantiate_async(&mut store).await?;
            for name in [REACTOR, INITIALISE] {
                if let Some(function) = instance.get_func(&mut store, name) {
                    let function = function.typed::<(), ()>(&store)?;
                    function.call_async(&mut store, ()).await?;
                }
            }
            Ok(instance)
        }));
        let instance = in_time(content, initialised).await?;
        let mut initialised = Initialised::new(store, instance);
        let snapshot = wizer.snapshot(&context, &mut initialised).await;
        initialised.or_why_not(snapshot).map_err(impossible)
    }

    async fn snapshot_of_component(
        &self,
        content: &Content,
        turn: Option<&Turn>,
    ) -> Result<Vec<u8>, LoadError> {
        let impossible = |error| content.refused(Refusal::Snapshot(line(&error)));
        let mut wizer = Wizer::new();
        // What is exported by this name would be taken away from the module within too, where the component looks for it.
        wizer.keep_init_func(true);
        let instrumented = wizer.instrument_component(content.bytes());
        let (context, instrumented) = instrumented.map_err(impossible)?;
        let instrumented = content.instrumented(instrumented);
        let extent = Extent::of(instrumented.bytes());
        let (engine, code) = self.compile(&instrumented, &extent, turn).await?;
        let Code::Component(component) = &code else {
            return Err(content.refused(Refusal::NoInitialiser(INITIALISE)));
        };
        let Some((item, function)) = component.get_export(None, INITIALISE) else {
            return Err(content.refused(Refusal::NoInitialiser(INITIALISE)));
        };
        if matches!(item, ComponentItem::ComponentFunc(ty) if ty.async_()) {
            let reason = "it is an `async func`, but the convention has a `func`";
            return Err(content.refused(Refusal::Initialise(reason.to_owned())));
        }
        let kind = match contract_of(component).map_err(|refusal| content.refused(refusal))? {
            Contract::Cli => Some(ProgramKind::Component),
            Contract::Streams | Contract::Sessions => None,
        };
        let mut store = store(&engine, content, kind).await?;
        let threads = store.data().file_threads();
        let initialised = engine.ticker.run(on(threads, async {
            let instance = engine.linker.instantiate_async(&mut store, component).await?;
            let function = instance.get_typed_func::<(), ()>(&mut store, function)?;
            function.call_async(&mut store, ()).await?;
            Ok(instance)
        }));
        let instance = in_time(content, initialised).await?;
        if store.data().holds_handles() {
            return Err(content.refused(Refusal::Snapshot(HANDLES.to_owned())));
        }
        // A memory comes as one list, for which it grows by two pages.
        store.set_hostcall_fuel(usize::MAX);
        store.data_mut().take_any_memory();
        let mut initialised = Initialised::new(store, instance);
        let snapshot = engine
            .ticker
            .run(wizer.snapshot_component(&context, &mut initialised))
            .await;
        initialised.or_why_not(snapshot).map_err(impossible)
    }
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

/// Waits for the guest of `content` to be initialised.
///
/// # Errors
///
/// The guest fails, or takes longer than [`MAX`].
async fn in_time<T>(
    content: &Content,
    initialised: impl Future<Output = wasmtime::Result<T>>,
) -> Result<T, LoadError> {
    let failed = |reason| content.refused(Refusal::Initialise(reason));
    match timeout(MAX, initialised).await {
        Ok(Ok(instance)) => Ok(instance),
        Ok(Err(error)) => Err(failed(line(&error))),
        Err(_) => Err(failed(format!("it took longer than {MAX:?}"))),
    }
}

/// Whether the exported function `name` has neither parameters nor results.
fn is_plain(module: &Module, name: &str) -> bool {
    let ty = module.get_export(name);
    ty.as_ref()
        .and_then(ExternType::func)
        .is_some_and(|ty| ty.params().len() == 0 && ty.results().len() == 0)
}

/// A store for an instance that is initialised: it has what every connection is granted, and no connection.
async fn store(
    engine: &Engine,
    content: &Content,
    program: Option<ProgramKind>,
) -> Result<Store<State>, LoadError> {
    let name = content.program();
    let opened = engine.granted.open_within(MAX).await;
    let opened = opened.map_err(|error| LoadError::Sandbox(line(&error)))?;
    let mut store = State::store(engine, name, Speaker::Nobody, None, None, opened);
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
    /// Why what was told of its state was not the truth.
    why_not: Option<&'static str>,
}

/// What is said of a guest or an instance that no snapshot can be made of.
const STRUCTURE: &str = "its structure is not supported";
const HANDLES: &str =
    "it holds handles of the host, such as a file or standard output, which a snapshot cannot keep";
const PIECES: &str = "its memory has too many separate regions of non-zero bytes";
const NO_ROOM: &str = "its memory cannot grow by two pages";

const TOO_LARGE: &str = "its memory has more bytes other than 0 than a component file may have";

/// Stretches of bytes other than 0 that memories may have. Each is noted by itself before those with little between become one.
const MAX_STRETCHES: usize = 8 << 20;

impl<I> Initialised<I> {
    fn new(store: Store<State>, instance: I) -> Self {
        Self {
            store,
            instance,
            room: Room {
                bytes: MAX_FILE,
                stretches: MAX_STRETCHES,
            },
            why_not: None,
        }
    }

    /// The snapshot, if it is of what there is.
    fn or_why_not(self, snapshot: wasmtime::Result<Vec<u8>>) -> wasmtime::Result<Vec<u8>> {
        match self.why_not {
            Some(why) => Err(wasmtime::format_err!("{why}")),
            None => snapshot,
        }
    }
}

/// What the memories of an instance may have of bytes other than 0. The host holds these bytes three
/// times while it makes the snapshot, and 32 bytes for each stretch.
struct Room {
    bytes: u64,
    stretches: usize,
}

impl Room {
    /// Shows a memory to `contents`, which makes the snapshot, or returns why it is not shown.
    fn show(&mut self, memory: &[u8], contents: impl FnOnce(&[u8])) -> Option<&'static str> {
        let (mut bytes, mut stretches) = (0, 0);
        let mut before = 0;
        for byte in memory {
            bytes += u64::from(*byte != 0);
            stretches += usize::from(before == 0 && *byte != 0);
            before = *byte;
        }
        let left = self.bytes.checked_sub(bytes).ok_or(TOO_LARGE).and_then(|bytes| {
            let stretches = self.stretches.checked_sub(stretches).ok_or(PIECES)?;
            Ok(Self { bytes, stretches })
        });
        match left {
            Ok(left) => {
                *self = left;
                contents(memory);
                None
            }
            Err(why) => {
                contents(&[]);
                Some(why)
            }
        }
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
        self.why_not = self.room.show(memory, contents).or(self.why_not);
    }
}

impl Initialised<ComponentInstance> {
    /// Calls a function that was added to the component to show its state, and gives what it answers.
    async fn ask<T: Lift + Send + Sync + 'static>(&mut self, instance: &str, function: &str) -> Option<T> {
        let added = self.instance.get_export_index(&mut self.store, None, instance)?;
        let index = self
            .instance
            .get_export_index(&mut self.store, Some(&added), function)?;
        let function = self
            .instance
            .get_typed_func::<(), (T,)>(&mut self.store, index)
            .ok()?;
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
            self.why_not = Some(NO_ROOM);
            T::default()
        })
    }
}

impl ComponentInstanceState for Initialised<ComponentInstance> {
    async fn call_func_ret_list_u8(
        &mut self,
        instance: &str,
        func: &str,
        contents: impl FnOnce(&[u8]) + Send,
    ) {
        let Some(list) = self.ask::<WasmList<u8>>(instance, func).await else {
            contents(&[]);
            self.why_not = Some(NO_ROOM);
            return;
        };
        let memory = list.as_le_slice(&self.store);
        self.why_not = self.room.show(memory, contents).or(self.why_not);
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
    use super::*;

    #[test]
    fn memories_have_together_what_a_snapshot_may_hold() {
        let room = || Room {
            bytes: 4,
            stretches: 3,
        };
        // Returns the bytes that were shown of each memory, and why the last one was not shown.
        let show = |memories: &[&[u8]]| {
            let (mut room, mut shown, mut why) = (room(), Vec::new(), None);
            for memory in memories {
                why = room.show(memory, |contents| shown.push(contents.len()));
            }
            (shown, why)
        };
        assert_eq!(show(&[&[0, 1, 1, 0], &[1, 0, 1]]), (vec![4, 3], None));
        assert_eq!(show(&[&[1, 1, 1], &[1, 1]]), (vec![3, 0], Some(TOO_LARGE)));
        assert_eq!(show(&[&[1, 0, 1, 0], &[1, 0, 1]]), (vec![4, 0], Some(PIECES)));
        assert_eq!(show(&[&[0; 100]]), (vec![100], None));
    }
}
