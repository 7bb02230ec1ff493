//! Engines: how components are compiled, and where their instances live.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::warn;
use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Inlining, InstanceAllocationStrategy, InstancePre, Module, PoolingAllocationConfig,
};

use super::capacity::{NoMappings, Pool, Shortage, connections, mappings_of_connection};
use super::contract::handler::ends;
use super::diagnostics;
use super::direct::Stacks;
use super::extent::{MAX_PARTS, Parts};
use super::file_calls;
use super::file_streams;
use super::files;
use super::grants::Granted;
use super::listing;
use super::needs::{Calls, Concurrency, HandleTables, Images, Needs, Passing};
use super::never_waits;
use super::paths;
use super::pools::{Pooled, Pools};
use super::preview1;
use super::sockets;
use super::state::State;
use super::ticker::Ticker;
use crate::config::{Limits, Setting};
use crate::system::Mappings;

/// What stays with the memories of the pool when instances end, and is cleared for the next ones.
///
/// Giving pages back to the kernel instead halts every other thread of the process for a moment,
/// which doubles the cost of a short connection. Where the kernel can tell, only pages that were
/// used are cleared.
const MEMORIES_KEPT: Kept = Kept {
    of_instance: 256 << 10,
    of_pool: 64 << 20,
};

/// The same for tables.
const TABLES_KEPT: Kept = Kept {
    of_instance: 128 << 10,
    of_pool: 32 << 20,
};

/// Bytes of metadata that a pool allows an instance. They are not reserved. `Extent::check` has the
/// bounds, which are lower: one on active data segments, and one on everything else, with the
/// adapters that wasmtime makes between the parts of a component.
const POOL_METADATA: usize = 16 << 20;

/// Stack for WebAssembly, in bytes: what a guest may use before it traps.
const WASM_STACK: usize = 256 << 10;

/// Stack for a guest and the host functions that it calls, in bytes.
///
/// A host function that returns a list calls the allocator of the guest, which wasmtime then lets
/// use as much stack as the guest, below what is in use. The allocator cannot call the host. So
/// this is enough for both, and for the host.
const STACK: usize = 2 * WASM_STACK + (256 << 10);

/// Settings of an engine that its code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CodeSettings {
    concurrency: Concurrency,
    images: Images,
    inlining: bool,
    /// Whether there is address space to reserve for memories.
    reserves: bool,
}

/// What of a pool is in use, and how much there may be.
#[derive(Clone, Copy, Debug)]
pub struct PoolUse {
    /// Instances of components.
    pub instances: u64,
    /// Linear memories.
    pub memories: u64,
    /// Tables.
    pub tables: u64,
    /// Stacks.
    pub stacks: u64,
    /// Instances that there may be.
    pub most_instances: u64,
    /// Linear memories that there may be.
    pub most_memories: u64,
    /// Tables that there may be.
    pub most_tables: u64,
    /// Bytes of memory that are kept for instances to come.
    pub kept_bytes: u64,
}

impl PoolUse {
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            instances: self.instances + other.instances,
            memories: self.memories + other.memories,
            tables: self.tables + other.tables,
            stacks: self.stacks + other.stacks,
            most_instances: self.most_instances + other.most_instances,
            most_memories: self.most_memories + other.most_memories,
            most_tables: self.most_tables + other.most_tables,
            kept_bytes: self.kept_bytes + other.kept_bytes,
        }
    }
}

/// An engine with all that its components may import.
#[derive(Clone)]
pub(super) struct Engine {
    needs: Needs,
    code: CodeSettings,
    pub(super) linker: Linker<State>,
    pub(super) ticker: Arc<Ticker>,
    pub(super) limits: Limits,
    pub(super) granted: Arc<Granted>,
    /// The pool, which other engines of the service may share.
    pub(super) pooled: Arc<Pooled>,
    /// One more reference for each component that is loaded.
    used: Arc<()>,
}

impl Engine {
    pub(super) fn new(
        needs: Needs,
        limits: &Limits,
        granted: &Arc<Granted>,
        ticker: &Arc<Ticker>,
        pools: &Arc<Pools>,
    ) -> wasmtime::Result<Self> {
        let connections = connections(limits);
        let pooled = pools.get_or_make(needs, connections, |nearest| {
            allocate(needs, connections, granted.service(), pools, nearest)
        })?;
        ticker.add(&pooled.engine);
        let mut linker = Linker::new(&pooled.engine);
        match needs.calls {
            Calls::Direct => never_waits::add_to_linker(&mut linker)?,
            Calls::OnFibers => wasmtime_wasi::p2::add_to_linker_async(&mut linker)?,
        }
        diagnostics::add_to_linker(&mut linker)?;
        if needs.concurrency == Concurrency::With {
            wasmtime_wasi::p3::add_to_linker(&mut linker)?;
            ends::add_to_linker(&mut linker)?;
        }
        if granted.has_dirs() {
            files::add_to_linker(&mut linker)?;
            listing::add_to_linker(&mut linker)?;
            if needs.concurrency == Concurrency::With {
                file_calls::add_to_linker(&mut linker)?;
            }
            file_streams::add_to_linker(&mut linker)?;
            paths::add_to_linker(&mut linker)?;
        }
        if granted.has_outbound() {
            sockets::add_to_linker(&mut linker, needs.concurrency == Concurrency::With)?;
        }
        Ok(Self {
            needs,
            code: code_settings(needs, pooled.pool.is_some()),
            linker,
            ticker: Arc::clone(ticker),
            limits: *limits,
            granted: Arc::clone(granted),
            pooled,
            used: Arc::default(),
        })
    }

    /// The settings that its code depends on.
    pub(super) fn code_settings(&self) -> CodeSettings {
        self.code
    }

    /// Links a core module to what WASI preview 1 has.
    ///
    /// # Errors
    ///
    /// It imports something else.
    pub(super) fn link(&self, module: &Module) -> wasmtime::Result<InstancePre<State>> {
        let mut linker = wasmtime::Linker::new(self.engine());
        preview1::add_to_linker(&mut linker)?;
        if self.granted.has_dirs() {
            preview1::bound_files(&mut linker)?;
            paths::add_to_linker_of_module(&mut linker)?;
        }
        linker.instantiate_pre(module)
    }

    /// Memory mappings of connections whose instances have so many memories.
    pub(super) fn mappings(&self, memories: u32) -> Mappings {
        let pool = Pool::full(self.needs, connections(&self.limits));
        let has_stack = pool.stacks >= pool.instances;
        Mappings {
            each: mappings_of_connection(self.needs, memories, has_stack),
            shared: if has_stack { 0 } else { 2 * u64::from(pool.stacks) },
            most: self.pooled.lease.mappings(),
        }
    }

    /// Whether no component is loaded that uses it.
    pub(super) fn is_unused(&self) -> bool {
        Arc::strong_count(&self.used) == 1
    }

    /// Elements that a table of an instance may grow to.
    pub(super) fn max_table_elements(&self) -> usize {
        self.needs.table_size.elements()
    }

    /// What of the pool is in use.
    pub(super) fn pool_use(&self) -> Option<PoolUse> {
        let metrics = self.engine().pooling_allocator_metrics()?;
        let pool = self.pooled.pool?;
        Some(PoolUse {
            instances: metrics.component_instances(),
            memories: metrics.memories() as u64,
            tables: metrics.tables() as u64,
            stacks: metrics.stacks() as u64,
            most_instances: pool.most_instances().into(),
            most_memories: pool.memories.into(),
            most_tables: pool.tables.into(),
            kept_bytes: metrics.unused_memory_bytes_resident() as u64,
        })
    }

    /// How many tables of handles an instance has.
    pub(super) fn handle_tables(&self) -> HandleTables {
        self.needs.handle_tables
    }

    /// How its guests pass values.
    pub(super) fn passing(&self) -> Passing {
        self.needs.passing
    }

    /// Whether its guests may use the concurrency of the component model.
    pub(super) fn concurrency(&self) -> Concurrency {
        self.needs.concurrency
    }

    /// Whether the pool has room for fewer instances of `parts` than there may be connections.
    pub(super) fn shortage(&self, parts: Parts) -> Option<Shortage> {
        let pooled = &self.pooled;
        let is_own = pooled.needs == self.needs && pooled.connections == connections(&self.limits);
        let terms = is_own.then(|| pooled.lease.terms());
        Shortage::of(self.needs, pooled.pool?, parts, &self.limits, terms)
    }

    /// Notes that a generation gets new connections, or gets none any more.
    pub(super) fn serves(&self, serves: bool) {
        self.pooled.lease.serves(serves);
    }

    pub(super) fn engine(&self) -> &wasmtime::Engine {
        self.linker.engine()
    }
}

/// Makes the pool for so many connections, or a smaller one where there are too few memory mappings
/// or too little address space for it. Returns `nearest`, a pool that the service has already, if
/// that serves as many as the smaller one. If there is address space for no pool, instances are
/// allocated on demand.
///
/// # Errors
///
/// There are too few memory mappings for the smallest pool, or for instances on demand, and there is
/// no `nearest`.
fn allocate(
    needs: Needs,
    connections: u32,
    service: Option<&str>,
    pools: &Arc<Pools>,
    nearest: Option<Arc<Pooled>>,
) -> wasmtime::Result<Arc<Pooled>> {
    let taken = pools.share.take(|terms| {
        let pool = Pool::on(terms, needs, connections)?;
        Ok::<_, NoMappings>((pool, pool.size(needs)))
    });
    let (planned, lease) = match taken {
        Ok(taken) => taken,
        Err(error) => return nearest.ok_or_else(|| error.into()),
    };
    let made = |engine: wasmtime::Engine, pool: Option<Pool>| {
        lease.is_of(&engine);
        let stacks = pool.unwrap_or(planned).stacks;
        Arc::new(Pooled {
            needs,
            connections,
            engine,
            pool,
            stacks: (needs.calls == Calls::Direct).then(|| Stacks::new(stacks)),
            lease: Arc::clone(&lease),
            pools: Arc::clone(pools),
        })
    };
    let mut failed = None;
    // Memories take almost all of the address space. Every connection has one at least.
    let mut next = Some(planned);
    while let Some(pool) = next {
        if let Some(nearest) = &nearest
            && !pool.is_whole(needs, connections)
            && nearest.capacity(needs) >= pool.capacity(needs)
        {
            return Ok(Arc::clone(nearest));
        }
        match pooled(needs, pool) {
            Ok(engine) => return Ok(made(engine, Some(pool))),
            Err(error) => failed = failed.or(Some(error)),
        }
        next = pool.halved(needs);
    }
    let reason = failed.map_or_else(String::new, |error| format!("{error:#}"));
    let need = planned.mappings_on_demand(needs);
    match on_demand(needs, connections, service, &reason, (need, lease.mappings())) {
        Ok(engine) => Ok(made(engine, None)),
        Err(error) => nearest.ok_or(error),
    }
}

/// Makes an engine that allocates instances on demand, because of `reason`. They can `need` more
/// mappings than are `left`.
///
/// # Errors
///
/// They do.
fn on_demand(
    needs: Needs,
    connections: u32,
    service: Option<&str>,
    reason: &str,
    (need, left): (u64, u64),
) -> wasmtime::Result<wasmtime::Engine> {
    if need > left {
        return Err(wasmtime::format_err!(
            "cannot reserve address space for {connections} connections ({reason}), and instances on demand \
             could take {need} memory mappings, of which there are {left} for the service; lower {}, or raise \
             the limits on address space and data (ulimit -v, ulimit -d)",
            Setting::of("limits.max-connections")
        ));
    }
    warn!(
        service,
        reason,
        "cannot reserve address space for {connections} connections; instances are allocated on demand, which \
         is slower; lower {}, or raise the limits on address space and data (ulimit -v, ulimit -d)",
        Setting::of("limits.max-connections")
    );
    wasmtime::Engine::new(&config(code_settings(needs, false)))
}

fn pooled(needs: Needs, pool: Pool) -> wasmtime::Result<wasmtime::Engine> {
    let mut pooling = PoolingAllocationConfig::new();
    pooling
        .total_component_instances(pool.most_instances())
        .total_core_instances(pool.instances.saturating_mul(MAX_PARTS))
        .max_core_instance_size(POOL_METADATA)
        .max_component_instance_size(POOL_METADATA)
        .total_memories(pool.memories)
        .max_memories_per_module(MAX_PARTS)
        .total_tables(pool.tables)
        .max_tables_per_module(MAX_PARTS)
        .table_elements(needs.table_size.elements())
        .total_stacks(pool.all_stacks())
        .linear_memory_keep_resident(MEMORIES_KEPT.of_each(needs.room.memories, pool.memories))
        .table_keep_resident(TABLES_KEPT.of_each(needs.room.tables, pool.tables))
        .pagemap_scan(Enabled::Auto);
    let mut config = config(code_settings(needs, true));
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling));
    wasmtime::Engine::new(&config)
}

/// Bytes that stay with a pool.
struct Kept {
    /// Of the memories, or the tables, of one instance.
    of_instance: usize,
    /// Of all in the pool. This applies only where the kernel can tell which pages were used.
    /// Elsewhere less would cost every instance that has more the call that gives pages back.
    of_pool: usize,
}

impl Kept {
    /// Bytes that stay with each of the memories or tables of a pool, of which an instance has so
    /// many: whole pages, and at least one.
    fn of_each(&self, of_instance: u32, of_pool: u32) -> usize {
        const PAGE: usize = 4096;
        let share = |kept: usize, count: u32| kept / (count as usize).max(1);
        let mut bytes = share(self.of_instance, of_instance);
        if PoolingAllocationConfig::is_pagemap_scan_available() {
            bytes = bytes.min(share(self.of_pool, of_pool));
        }
        (bytes / PAGE * PAGE).max(PAGE)
    }
}

/// The settings of code for a component with such needs, whose engine has a pool or not.
pub(super) fn code_settings(needs: Needs, reserves: bool) -> CodeSettings {
    CodeSettings {
        concurrency: needs.concurrency,
        images: needs.images,
        inlining: needs.inlining,
        reserves,
    }
}

/// An engine that only compiles, with the code that an engine with these settings runs.
///
/// # Errors
///
/// The machine is not supported.
pub(super) fn to_compile(settings: CodeSettings, is_parallel: bool) -> wasmtime::Result<wasmtime::Engine> {
    let mut config = config(settings);
    config.parallel_compilation(is_parallel);
    wasmtime::Engine::new(&config)
}

/// All that code depends on is here. What depends on the number of connections is not.
fn config(settings: CodeSettings) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(STACK)
        .memory_init_cow(settings.images == Images::Mapped)
        .concurrency_support(settings.concurrency == Concurrency::With);
    if settings.concurrency == Concurrency::With {
        config.wasm_component_model_async(true);
    }
    if settings.inlining {
        // Saves calls, and what the code does around them. An inlined function still checks the epoch
        // where it begins. Compiling takes three times as long, and several times the memory, once.
        config.compiler_inlining(Inlining::Yes);
    }
    if !settings.reserves {
        // Without a pool's address space there is none for generous reservations either: memories
        // take what they use, and move when they grow.
        config
            .memory_reservation(0)
            .memory_reservation_for_growth(1 << 20)
            .memory_guard_size(64 << 10);
    }
    config
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("pool", &self.pooled.pool)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use super::*;

    fn hash(engine: &wasmtime::Engine) -> u64 {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn what_is_kept_is_bounded_however_many_memories_an_instance_has() {
        let page = 4096;
        for Kept { of_instance, of_pool } in [MEMORIES_KEPT, TABLES_KEPT] {
            let kept = Kept { of_instance, of_pool };
            for each in [1, 2, 16, 1024] {
                for all in [each, 3 * each, 1026 * each, 16_384, 100_000] {
                    let (bytes, each, count) = (kept.of_each(each, all), each as usize, all as usize);
                    assert!(bytes >= page && bytes % page == 0, "{bytes}");
                    assert!(bytes * each <= of_instance.max(page * each), "{each} of {all}");
                    if PoolingAllocationConfig::is_pagemap_scan_available() {
                        assert!(bytes * count <= of_pool.max(page * count), "{each} of {all}");
                    }
                }
            }
            assert_eq!(kept.of_each(1, 3), of_instance);
        }
    }

    #[test]
    fn an_engine_that_only_compiles_makes_the_code_of_one_that_serves() {
        let plain = wat::parse_str("(component)").unwrap();
        let data = format!("(module (memory 2) (data \"{}\"))", "x".repeat(70_000));
        let much_data = wat::parse_str(data).unwrap();
        let mut seen = Vec::new();
        for bytes in [plain, much_data] {
            let needs = Needs::of(&bytes, &super::super::extent::Extent::of(&bytes));
            for concurrency in [Concurrency::Without, Concurrency::With] {
                let needs = Needs { concurrency, ..needs };
                for reserves in [true, false] {
                    let settings = code_settings(needs, reserves);
                    let serving = if reserves {
                        pooled(needs, Pool::full(needs, 1)).unwrap()
                    } else {
                        wasmtime::Engine::new(&config(settings)).unwrap()
                    };
                    for is_parallel in [true, false] {
                        assert_eq!(hash(&to_compile(settings, is_parallel).unwrap()), hash(&serving));
                    }
                    seen.push(hash(&serving));
                }
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 8, "settings are missing in the hash");
    }
}
