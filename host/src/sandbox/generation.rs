//! Generations: loaded components.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::warn;
use wasmparser::{Parser, Validator, WasmFeatures};
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use super::Sandbox;
use super::contract::{self, Contract, End, Fault, Prepared};
use super::engine::{Concurrency, Engine};
use super::load_error::{LoadError, Refusal};
use super::state::State;
use crate::half::Half;
use crate::peer::Peer;

/// How long making the first instance may take.
const PROBE: Duration = Duration::from_secs(5);

/// The component that the host serves with when it is given none.
static ECHO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.wasm"));

/// Where a component comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The echo guest inside this program.
    Embedded,
    /// A file.
    File(PathBuf),
}

impl Source {
    /// The whole component. The file is read, never mapped: somebody may be writing it.
    fn read(&self) -> Result<Vec<u8>, LoadError> {
        match self {
            Self::Embedded => Ok(ECHO.to_vec()),
            Self::File(path) => std::fs::read(path).map_err(|error| LoadError::Read {
                path: path.clone(),
                error,
            }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("the embedded echo guest"),
            Self::File(path) => write!(f, "`{}`", path.display()),
        }
    }
}

/// One loaded component, ready to serve connections. It never changes.
pub struct Generation {
    prepared: Prepared,
    engine: Engine,
}

impl Sandbox {
    /// Loads a component: compiles it, finds its contract, checks what it imports, and makes an instance to see
    /// that one can be made.
    ///
    /// # Errors
    ///
    /// It cannot be read, or cannot serve.
    pub async fn load(&self, source: &Source) -> Result<Generation, LoadError> {
        let bytes = source.read()?;
        let refused = |refusal| LoadError::Refused {
            name: source.to_string(),
            refusal,
        };
        look(&bytes).map_err(refused)?;
        let (engine, component) = self.compile(&bytes)?.map_err(refused)?;
        let contract = find_contract(&component).map_err(refused)?;
        let prepared = prepare(&engine, &component, contract).map_err(refused)?;
        let mut store = State::store(&engine);
        match timeout(PROBE, engine.ticker.run(prepared.probe(&mut store))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(refused(Refusal::Start(line(&error)))),
            Err(_) => return Err(refused(Refusal::Start(format!("it takes longer than {PROBE:?}")))),
        }
        warn_of_small_pool(&engine, &component);
        Ok(Generation { prepared, engine })
    }

    /// Compiles a component for the engine that fits it: the faster one unless it needs concurrency.
    fn compile(&self, bytes: &[u8]) -> Result<Result<(Engine, Component), Refusal>, LoadError> {
        let concurrency = if needs_concurrency(bytes) {
            Concurrency::With
        } else {
            Concurrency::Without
        };
        let engine = self
            .engine(concurrency)
            .map_err(|error| LoadError::Sandbox(line(&error)))?;
        Ok(match Component::new(engine.engine(), bytes) {
            Ok(component) => Ok((engine, component)),
            Err(error) => Err(Refusal::Invalid(line(&error))),
        })
    }
}

impl Generation {
    /// How it serves.
    pub fn contract(&self) -> Contract {
        self.prepared.contract()
    }

    /// Serves one connection with a fresh instance, which is gone when this returns or is dropped.
    ///
    /// # Errors
    ///
    /// The instance could not be made, or trapped.
    pub async fn serve<R, W>(&self, peer: &Peer, inbound: &Half<R>, outbound: &Half<W>) -> Result<End, Fault>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let serve = async {
            let mut store = State::store(&self.engine);
            self.prepared.serve(&mut store, peer, inbound, outbound).await
        };
        self.engine.ticker.run(serve).await
    }
}

#[cfg(test)]
impl Generation {
    /// Takes all memory away, so that no further instance can be made.
    pub(crate) fn starve(&mut self) {
        self.engine.limits.max_memory = 0;
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("contract", &self.contract())
            .finish_non_exhaustive()
    }
}

/// Tells what is no component by its first bytes: magic number, version and layer.
fn look(bytes: &[u8]) -> Result<(), Refusal> {
    match bytes {
        [] => Err(Refusal::Empty),
        [b'\0', b'a', b's', b'm', _, _, 1, 0, ..] => Ok(()),
        [b'\0', b'a', b's', b'm', _, _, 0, 0, ..] => Err(Refusal::CoreModule),
        [b'\0', b'a', b's', b'm', ..] => Ok(()),
        _ => {
            let found = bytes[..bytes.len().min(8)].escape_ascii().to_string();
            Err(Refusal::NotWasm { found })
        }
    }
}

/// Whether a component is valid only with the concurrency of the component model. This looks at types and leaves
/// out code; for what is not valid either way it does not matter which engine says so.
fn needs_concurrency(bytes: &[u8]) -> bool {
    let without = WasmFeatures::all().difference(WasmFeatures::CM_ASYNC);
    let mut validator = Validator::new_with_features(without);
    Parser::new(0).parse_all(bytes).any(|payload| {
        payload
            .and_then(|payload| validator.payload(&payload).map(drop))
            .is_err()
    })
}

/// The contract that a component exports.
fn find_contract(component: &Component) -> Result<Contract, Refusal> {
    let engine = component.engine();
    let ty = component.component_type();
    let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
    if let Some(contract) = Contract::ALL
        .into_iter()
        .find(|c| exports.contains(&c.interface()))
    {
        return Ok(contract);
    }
    if let Some(found) = exports.iter().find(|name| name.starts_with(contract::PACKAGE)) {
        return Err(Refusal::OtherVersion {
            found: (*found).to_owned(),
            expected: contract::VERSION,
        });
    }
    let found = match exports.as_slice() {
        [] => "nothing".to_owned(),
        some => some
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", "),
    };
    Err(Refusal::NoContract {
        found,
        streams: Contract::Streams.interface(),
        sessions: Contract::Sessions.interface(),
    })
}

/// Links a component to what the host offers.
fn prepare(engine: &Engine, component: &Component, contract: Contract) -> Result<Prepared, Refusal> {
    let handler = Contract::Streams.interface();
    let ty = component.component_type();
    let imports_handler = ty
        .imports(component.engine())
        .any(|(name, import)| name == handler && matches!(import.ty, ComponentItem::ComponentInstance(_)));
    if imports_handler {
        return Err(Refusal::Middleware(handler));
    }
    let pre = engine
        .linker
        .instantiate_pre(component)
        .map_err(|error| Refusal::Import(line(&error)))?;
    Prepared::new(contract, pre).map_err(|error| Refusal::Types(line(&error)))
}

fn warn_of_small_pool(engine: &Engine, component: &Component) {
    let (Some(pool), Some(required)) = (engine.pool, component.resources_required()) else {
        return;
    };
    let memories = pool.memories / required.num_memories.max(1);
    let tables = pool.tables / required.num_tables.max(1);
    let fit = memories.min(tables);
    let connections = engine.limits.max_connections.get();
    if (fit as usize) < connections {
        warn!(
            "each instance of the component takes {} memories and {} tables, so that {fit} fit into the pool at \
             once, and --max-connections is {connections}: lower it to {fit}",
            required.num_memories, required.num_tables
        );
    }
}

/// An error with its causes in one line, without wasmtime's list of frames.
fn line(error: &wasmtime::Error) -> String {
    let text = format!("{error:#}");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_component_is_told_by_its_first_bytes() {
        assert!(matches!(look(b""), Err(Refusal::Empty)));
        assert!(matches!(look(b"\0asm\x01\0\0\0"), Err(Refusal::CoreModule)));
        assert!(matches!(look(b"\x7fELF"), Err(Refusal::NotWasm { found }) if found == "\\x7fELF"));
        assert!(look(ECHO).is_ok());
    }

    #[test]
    fn only_what_needs_concurrency_pays_for_it() {
        assert!(needs_concurrency(ECHO));
        assert!(!needs_concurrency(&wat::parse_str("(component)").unwrap()));
        assert!(needs_concurrency(
            &wat::parse_str("(component (type (stream u8)))").unwrap()
        ));
    }
}
