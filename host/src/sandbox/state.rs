//! What the host keeps in a store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{Resource, ResourceTable};
use wasmtime::{ResourceLimiter, Store, UpdateDeadline};
use wasmtime_wasi::cli::{StdinStream, StdoutStream};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::sockets::{TcpSocket as P3Socket, WasiSocketsCtxView};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::contract::handler::ends::Ends;
use super::diagnostics::{Diagnostics, Logged, Speaker, Voice};
use super::direct::{Direct, Stack, Stacks};
use super::engine::Engine;
use super::extent::{MAX_MEMORY, MAX_PARTS};
use super::file_streams::LargeStreams;
use super::file_threads::FileThreads;
use super::files::{self, Counts, OpenFiles};
use super::grants::{Granted, Opened};
use super::handles::Handles;
use super::seat::Ending;
use super::sockets::{Held, Streams};
use super::ticker::Ticker;
use crate::cost::Cost;

/// What the host keeps for one instance: what WASI needs, and how much memory the instance has taken.
pub(super) struct State {
    ticker: Arc<Ticker>,
    max_call_time: Option<Duration>,
    granted: Arc<Granted>,
    program: Arc<str>,
    speaker: Speaker,
    /// `None` until a guest may have something to log.
    logged: Option<Logged>,
    /// The granted directories, until WASI is made.
    opened: Opened,
    wasi: Option<WasiCtx>,
    /// The same for a core module.
    preview1: Option<Box<WasiP1Ctx>>,
    table: ResourceTable,
    /// The guest's sockets in there, if it may have any.
    sockets: Option<Held>,
    /// Connections that are being handled by the streams contract, by their numbers.
    handled: HashMap<u64, Arc<Ends>>,
    memory: Memory,
    /// `None` where calls are made on fibers.
    direct: Option<Direct>,
    /// Where there are fewer stacks than connections.
    stacks: Option<Arc<Stacks>>,
    stack: Option<Stack>,
    /// Counts the store as one of its pool.
    _live: Arc<()>,
    /// The files that the guest has opened, if it may have any. This is dropped after the tables.
    files: Option<Arc<OpenFiles>>,
    /// The streams of files that keep much, once the guest has such streams.
    large_streams: Option<LargeStreams>,
}

/// What a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProgramKind {
    Component,
    Module,
}

impl State {
    /// A store for one instance of `program`, which writes to standard error as `speaker`, of which so many lines were `logged`
    /// if it is not the first. It has the directories that were `opened` for it.
    pub(super) fn store(
        engine: &Engine,
        program: &Arc<str>,
        speaker: Speaker,
        logged: Option<Logged>,
        cost: Option<&Arc<Cost>>,
        opened: Opened,
    ) -> Store<Self> {
        let granted = Arc::clone(&engine.granted);
        let is_shared = matches!(speaker, Speaker::Instance(_));
        let share = if is_shared {
            engine.limits.max_connections.get()
        } else {
            0
        };
        let handles = Handles::of(
            engine.limits.max_memory,
            share,
            granted.has_dirs() || granted.has_outbound(),
            engine.concurrency(),
            engine.handle_tables(),
            engine.passing(),
        );
        let mut table = ResourceTable::new();
        table.set_max_capacity(handles.of_wasi);
        let sockets = granted
            .sockets()
            .map(|sockets| Held::new(Arc::clone(sockets), is_shared));
        let files = granted.open_files();
        let state = Self {
            ticker: Arc::clone(&engine.ticker),
            max_call_time: engine.limits.max_call_time,
            logged,
            // Few guests ask WASI for anything, so it is made when one does.
            opened,
            wasi: None,
            preview1: None,
            granted,
            sockets,
            program: Arc::clone(program),
            speaker,
            table,
            handled: HashMap::new(),
            memory: Memory {
                used: 0,
                max: engine.limits.max_memory,
                max_table_elements: engine.max_table_elements(),
                cost: cost.cloned(),
            },
            direct: None,
            stacks: engine.pooled.stacks.clone(),
            _live: engine.pooled.lease.live_mark(),
            stack: None,
            files,
            large_streams: None,
        };
        let mut store = Store::new(engine.engine(), state);
        store.limiter(|state| &mut state.memory);
        store.set_max_component_handles(handles.all);
        if let Some(table) = store.concurrent_resource_table() {
            table.set_max_capacity(handles.concurrent);
        }
        store.set_hostcall_fuel(handles.call_bytes);
        store.epoch_deadline_callback(|mut store| store.data_mut().interrupt());
        store.set_epoch_deadline(1);
        store
    }

    /// Serves a connection that `ending` may end, by direct calls where they can be made.
    pub(super) fn ends_by(&mut self, ending: Arc<dyn Ending>) {
        // Without a limit on calls, long ones might have all the stacks.
        if let Some(max) = self.max_call_time
            && let Some(stacks) = &self.stacks
        {
            self.direct = Direct::new(max, stacks, ending);
        }
    }

    /// What there is to direct calls.
    pub(super) fn direct(&mut self) -> Option<&mut Direct> {
        self.direct.as_mut()
    }

    /// Takes a stack for a fiber, if it has none yet, and says whether it has one now.
    pub(super) fn take_stack(&mut self) -> bool {
        if let (None, Some(stacks)) = (&self.stack, &self.stacks) {
            self.stack = stacks.take();
        }
        self.stack.is_some() || self.stacks.is_none()
    }

    fn interrupt(&mut self) -> wasmtime::Result<UpdateDeadline> {
        let Self { direct, ticker, .. } = self;
        let interrupted = direct.as_mut().and_then(|direct| direct.interrupt(ticker));
        interrupted.unwrap_or_else(|| Ok(ticker.interrupt()))
    }

    /// Gives a program what it finds when it starts: its environment, its standard input and its standard output.
    pub(super) fn make_program(
        &mut self,
        kind: ProgramKind,
        env: &[(&'static str, String)],
        stdin: impl StdinStream + 'static,
        stdout: impl StdoutStream + 'static,
    ) {
        let mut wasi = self.builder();
        if !self.granted.has_args() {
            // Of a program it is expected.
            wasi.arg(&self.program);
        }
        wasi.envs(env).stdin(stdin).stdout(stdout);
        match kind {
            ProgramKind::Component => self.wasi = Some(self.build(wasi)),
            ProgramKind::Module => self.preview1 = Some(self.build_for_module(wasi)),
        }
    }

    /// What WASI is made of, with standard error in the log.
    fn builder(&mut self) -> WasiCtxBuilder {
        let mut wasi = self.granted.without_dirs(&self.program);
        wasi.stderr(self.diagnostics());
        wasi
    }

    /// WASI with the granted directories.
    fn build(&mut self, mut wasi: WasiCtxBuilder) -> WasiCtx {
        let mut wasi = wasi.build();
        self.grant_dirs(&mut wasi);
        wasi
    }

    /// The same for a core module, whose handles are in a table of its own.
    fn build_for_module(&mut self, mut wasi: WasiCtxBuilder) -> Box<WasiP1Ctx> {
        let mut preview1 = Box::new(wasi.build_p1());
        let WasiCtxView { ctx, table } = preview1.ctx();
        self.grant_dirs(ctx);
        table.set_max_capacity(self.table.max_capacity());
        preview1
    }

    fn grant_dirs(&mut self, wasi: &mut WasiCtx) {
        if let Some(opened) = self.opened.take() {
            *wasi.filesystem() = *opened;
        }
    }

    fn view(&mut self) -> WasiCtxView<'_> {
        if self.wasi.is_none() {
            let wasi = self.builder();
            self.wasi = Some(self.build(wasi));
        }
        WasiCtxView {
            ctx: self.wasi.as_mut().expect("it was made above"),
            table: &mut self.table,
        }
    }

    /// What sockets are made of. Unlike with [`WasiView::ctx`], one that counts may still have to
    /// be created.
    pub(super) fn socket_view(&mut self) -> WasiSocketsCtxView<'_> {
        let WasiCtxView { ctx, table } = self.view();
        let ctx = ctx.sockets();
        WasiSocketsCtxView { ctx, table }
    }

    /// Whether the guest may have one more socket, which then counts.
    pub(super) fn may_open_socket(&mut self) -> bool {
        self.sockets.as_mut().is_none_or(|sockets| {
            sockets.recount(&mut self.table);
            sockets.add()
        })
    }

    /// Notes that the guest takes a stream from a socket, if sockets are counted.
    pub(super) fn takes_socket_stream(&mut self, socket: &Resource<P3Socket>) -> Option<Streams> {
        let sockets = self.sockets.as_mut()?;
        Some(sockets.takes_stream(socket.rep()))
    }

    /// Notes that the guest drops the socket with this handle.
    pub(super) fn drops_socket(&mut self, handle: u32) {
        if let Some(sockets) = &mut self.sockets {
            sockets.drops(handle);
        }
    }

    /// The handles of a component.
    pub(super) fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }

    /// A file or directory of a component.
    ///
    /// # Errors
    ///
    /// There is no such handle.
    pub(super) fn descriptor(&self, handle: &Resource<Descriptor>) -> wasmtime::Result<&Descriptor> {
        Ok(self.table.get(handle)?)
    }

    /// Whether the table of a core module has room for one more file.
    pub(super) fn has_room_in_preview1(&mut self) -> bool {
        let table = self.preview1().ctx().table;
        table.push(()).is_ok_and(|probe| table.delete(probe).is_ok())
    }

    /// Notes the file that a core module has opened, if there is one.
    pub(super) fn has_opened_file_by_preview1(&mut self, counts: Counts) {
        let Some(file) = files::new_file(self.preview1().ctx().table) else {
            return;
        };
        if let Some(files) = &self.files {
            files.has_opened(counts, &file);
        }
    }

    /// Notes that the guest may have closed a file.
    pub(super) fn has_closed_file(&self) {
        if let Some(files) = &self.files {
            files.close_left();
        }
    }

    /// Replaces a stream of a file in WASI 0.2 by the one that `bounds` makes of it.
    ///
    /// # Errors
    ///
    /// There is no such handle.
    pub(super) fn bound_stream<T: Send + 'static>(
        &mut self,
        opened: Resource<T>,
        bounds: impl FnOnce(T, LargeStreams) -> T,
    ) -> wasmtime::Result<Resource<T>> {
        let streams = self.large_streams.get_or_insert_default().clone();
        let stream = bounds(self.table.delete(opened)?, streams);
        Ok(self.table.push(stream)?)
    }

    /// The files that the guest has opened, if it may have any.
    pub(super) fn open_files(&self) -> Option<Arc<OpenFiles>> {
        self.files.clone()
    }

    /// The threads on which the guest uses files.
    pub(super) fn file_threads(&self) -> Option<Arc<FileThreads>> {
        Some(Arc::clone(self.files.as_ref()?.threads()))
    }

    /// What WASI preview 1 works with.
    pub(super) fn preview1(&mut self) -> &mut WasiP1Ctx {
        // A module that is only tried has none.
        if self.preview1.is_none() {
            let wasi = self.builder();
            self.preview1 = Some(self.build_for_module(wasi));
        }
        self.preview1.as_mut().expect("it was made above")
    }

    /// Another connection has joined the instance.
    pub(super) fn joined(&mut self) {
        if let Some(logged) = &self.logged {
            logged.forget();
        }
    }

    /// Notes that the instance is being called to handle a connection.
    pub(super) fn handles(&mut self, connection: u64, ends: &Arc<Ends>) {
        self.handled.insert(connection, Arc::clone(ends));
    }

    /// Notes that the call to handle a connection has returned.
    pub(super) fn has_handled(&mut self, connection: u64) {
        self.handled.remove(&connection);
    }

    /// The ends of a connection that is being handled.
    pub(super) fn ends_of(&self, connection: u64) -> Option<Arc<Ends>> {
        self.handled.get(&connection).cloned()
    }

    /// How many lines of the connection have been logged, to be counted on.
    pub(super) fn logged(&mut self) -> Logged {
        self.logged.get_or_insert_default().clone()
    }

    /// The source of the lines that the guest logs.
    pub(super) fn voice(&mut self) -> Voice {
        Voice {
            speaker: self.speaker,
            service: self.granted.service.clone(),
            share: Arc::clone(&self.granted.share),
            logged: self.logged(),
            cost: self.memory.cost.clone(),
        }
    }

    /// Standard error for the guest.
    fn diagnostics(&mut self) -> Diagnostics {
        Diagnostics::of(self.voice())
    }

    /// Whether a component holds handles of what the host made for it.
    pub(super) fn holds_handles(&self) -> bool {
        !self.table.is_empty()
    }

    /// Lets the instance take whatever memory it asks for, when it does nothing of its own any more.
    pub(super) fn take_any_memory(&mut self) {
        self.memory.max = usize::MAX;
    }

    /// Notes that the instance was made, which began at `start`.
    pub(super) fn instantiated(&self, start: Instant) {
        if let Some(cost) = &self.memory.cost {
            cost.instantiated(start);
        }
    }

    /// How long a call may take.
    pub(super) fn max_call_time(&self) -> Option<Duration> {
        self.max_call_time
    }

    /// The clock of this store's engine.
    pub(super) fn ticker(&self) -> &Arc<Ticker> {
        &self.ticker
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        if let Some(sockets) = &mut self.sockets {
            // Some may have been dropped since.
            sockets.recount(&mut self.table);
        }
        self.view()
    }
}

/// Counts the bytes of all linear memories and tables of an instance together.
struct Memory {
    used: usize,
    max: usize,
    /// Elements that one table may have, in a pool or on demand.
    max_table_elements: usize,
    cost: Option<Arc<Cost>>,
}

impl Memory {
    fn grow(&mut self, by: usize) -> bool {
        let used = self.used.saturating_add(by);
        let allowed = used <= self.max;
        match &self.cost {
            Some(cost) if allowed => cost.has_memory(used, by),
            Some(cost) => cost.refused_memory(),
            None => {}
        }
        if allowed {
            self.used = used;
        }
        allowed
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(cost) = &self.cost {
            cost.frees_memory(self.used);
        }
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired as u64 <= MAX_MEMORY && self.grow(desired.saturating_sub(current)))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let elements = desired.saturating_sub(current);
        let bytes = elements.saturating_mul(size_of::<usize>());
        Ok(desired <= self.max_table_elements && self.grow(bytes))
    }

    fn instances(&self) -> usize {
        MAX_PARTS as usize
    }

    fn tables(&self) -> usize {
        MAX_PARTS as usize
    }

    fn memories(&self) -> usize {
        MAX_PARTS as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_gone_is_no_live_memory_and_still_the_peak() {
        let cost = Arc::new(Cost::default());
        let memory = |bytes| {
            let mut memory = Memory {
                used: 0,
                max: 1000,
                max_table_elements: 100,
                cost: Some(Arc::clone(&cost)),
            };
            assert!(memory.memory_growing(0, bytes, None).unwrap());
            memory
        };
        // As when a session moves: the new instance is there before the old one goes.
        let (old, new) = (memory(600), memory(400));
        assert_eq!((cost.live_memory(), cost.memory()), (1000, 600));
        drop(old);
        assert_eq!((cost.live_memory(), cost.memory()), (400, 600));
        drop(new);
        assert_eq!((cost.live_memory(), cost.memory()), (0, 600));
    }

    #[test]
    fn memories_and_tables_count_together() {
        let mut memory = Memory {
            used: 0,
            max: 1000,
            max_table_elements: 12,
            cost: None,
        };
        assert!(memory.memory_growing(0, 600, None).unwrap());
        assert!(
            !memory.memory_growing(0, 600, None).unwrap(),
            "a second memory beyond the bound"
        );
        assert!(memory.memory_growing(600, 920, None).unwrap());
        assert!(memory.table_growing(0, 10, None).unwrap());
        assert!(!memory.table_growing(10, 11, None).unwrap());
        memory.max = 2000;
        assert!(memory.table_growing(10, 12, None).unwrap());
        assert!(
            !memory.table_growing(12, 13, None).unwrap(),
            "beyond the elements of a table"
        );
    }
}
