//! What is compiled: a component, or a core module.

use wasmparser::Parser;
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use super::checkpoints::with_checkpoints;
use super::extent::Parts;

/// Something compiled.
#[derive(Clone)]
pub(super) enum Code {
    Component(Component),
    Module(Module),
}

impl Code {
    /// Compiles a component or a module in this process.
    ///
    /// # Errors
    ///
    /// It is not a valid one.
    pub(super) fn compile(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Self> {
        let bytes = checked(bytes)?;
        if Parser::is_core_wasm(&bytes) {
            Module::from_binary(engine, &bytes).map(Self::Module)
        } else {
            Component::from_binary(engine, &bytes).map(Self::Component)
        }
    }

    /// The bytes that the same can be made of again.
    ///
    /// # Errors
    ///
    /// It is too large.
    pub(super) fn serialize(&self) -> wasmtime::Result<Vec<u8>> {
        match self {
            Self::Component(component) => component.serialize(),
            Self::Module(module) => module.serialize(),
        }
    }

    /// Memories and tables of an instance, and bytes of the largest memory when it has just been made.
    pub(super) fn required(&self) -> Required {
        let required = match self {
            Self::Component(component) => component.resources_required(),
            Self::Module(module) => Some(module.resources_required()),
        };
        required.map_or(
            Required {
                parts: Parts {
                    memories: 1,
                    tables: 1,
                },
                memory: 0,
            },
            |required| Required {
                parts: Parts {
                    memories: required.num_memories,
                    tables: required.num_tables,
                },
                memory: required.max_initial_memory_size.unwrap_or(0) * PAGE,
            },
        )
    }
}

/// Compiles a component or a module to the bytes that [`Code::serialize`] returns.
///
/// # Errors
///
/// It is not a valid one.
pub(super) fn precompile(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let bytes = checked(bytes)?;
    if Parser::is_core_wasm(&bytes) {
        engine.precompile_module(&bytes)
    } else {
        engine.precompile_component(&bytes)
    }
}

/// Returns what is compiled in place of `bytes`: the same with checks of the epoch.
fn checked(bytes: &[u8]) -> wasmtime::Result<Vec<u8>> {
    with_checkpoints(bytes)?
        .ok_or_else(|| wasmtime::Error::msg("components are nested too deep in each other"))
}

/// Bytes in a page of a memory, in which its size is given.
const PAGE: u64 = 64 << 10;

/// What an instance takes.
pub(super) struct Required {
    pub(super) parts: Parts,
    pub(super) memory: u64,
}
