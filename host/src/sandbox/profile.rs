//! Where guests spend their time: what they are in the middle of at each tick of the clock.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use wasmtime::{Engine, GuestProfiler, Store};

use super::code::Code;
use super::meter::TICK;
use super::names;
use super::state::State;

/// Looks at all instances of a component, wherever one of them looks at the epoch after a tick: at its loops and calls.
#[derive(Clone)]
pub(super) struct Profile(Arc<Mutex<Looks>>);

struct Looks {
    /// `None` once it is written.
    profiler: Option<GuestProfiler>,
    count: u64,
}

impl Profile {
    /// Begins to look at what `code` does, which the profile calls `name`.
    ///
    /// # Errors
    ///
    /// wasmtime cannot.
    pub(super) fn new(engine: &Engine, name: &str, code: &Code) -> wasmtime::Result<Self> {
        let profiler = match code {
            Code::Component(component) => {
                GuestProfiler::new_component(engine, name, TICK, component.clone(), [])?
            }
            Code::Module(module) => {
                let modules = [(name.to_owned(), module.clone())];
                GuestProfiler::new(engine, name, TICK, modules)?
            }
        };
        Ok(Self(Arc::new(Mutex::new(Looks {
            profiler: Some(profiler),
            count: 0,
        }))))
    }

    /// Looks at the instance in `store`.
    pub(super) fn watch(&self, store: &mut Store<State>) {
        let profile = self.clone();
        store.epoch_deadline_callback(move |store| {
            let mut looks = profile.looks();
            if let Some(profiler) = &mut looks.profiler {
                profiler.sample(&store, TICK);
                looks.count += 1;
            }
            drop(looks);
            Ok(store.data().ticker().interrupt())
        });
    }

    /// How often it has looked.
    pub(super) fn count(&self) -> u64 {
        self.looks().count
    }

    /// Writes what was seen, once, in the form that the profiler of Firefox reads (its processed profile format). It looks no more
    /// then.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(super) fn write(&self, output: impl Write) -> wasmtime::Result<()> {
        let Some(profiler) = self.looks().profiler.take() else {
            return Ok(());
        };
        let mut profile = Vec::new();
        profiler.finish(&mut profile)?;
        let mut profile = serde_json::from_slice(&profile)?;
        demangle(&mut profile);
        Ok(serde_json::to_writer(output, &profile)?)
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        // A profile with one look less is of use too.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the names of functions as Rust has them.
fn demangle(profile: &mut Value) {
    match profile {
        Value::String(name) => *name = names::demangled(name),
        Value::Array(values) => values.iter_mut().for_each(demangle),
        Value::Object(values) => values.values_mut().for_each(demangle),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
