//! The sandbox: everything that knows wasmtime.
//!
//! A [`Sandbox`] is what all connections share. It loads a component into a [`Generation`], which then serves
//! connections, each with an instance of its own.

mod contract;
mod engine;
mod generation;
mod load_error;
mod state;
mod ticker;

use std::sync::{Arc, Mutex, PoisonError};

pub use contract::{Contract, End, Fault};
pub use generation::{Generation, Source};
pub use load_error::{LoadError, Refusal};

use crate::config::Limits;
use engine::{Concurrency, Engine};
use ticker::Ticker;

/// Memory mappings that one connection can take: its instance's memory and tables, and its stack.
pub const MAPPINGS_PER_CONNECTION: u64 = 6;

/// What connections share: engines, linkers, and the clock that interrupts guests.
///
/// There are two engines, each made when a component first needs it. One knows the concurrency of the component
/// model (`async` functions, streams), which costs every call something; the other does without.
#[derive(Debug)]
pub struct Sandbox {
    limits: Limits,
    ticker: Arc<Ticker>,
    plain: Mutex<Option<Engine>>,
    concurrent: Mutex<Option<Engine>>,
}

impl Sandbox {
    /// A sandbox whose instances have to keep to `limits`.
    ///
    /// # Errors
    ///
    /// The thread of its clock cannot be started.
    pub fn new(limits: &Limits) -> std::io::Result<Self> {
        Ok(Self {
            limits: *limits,
            ticker: Ticker::start()?,
            plain: Mutex::new(None),
            concurrent: Mutex::new(None),
        })
    }

    fn engine(&self, concurrency: Concurrency) -> wasmtime::Result<Engine> {
        let slot = match concurrency {
            Concurrency::Without => &self.plain,
            Concurrency::With => &self.concurrent,
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *slot {
            Some(engine) => Ok(engine.clone()),
            empty => Ok(empty
                .insert(Engine::new(concurrency, &self.limits, &self.ticker)?)
                .clone()),
        }
    }
}
