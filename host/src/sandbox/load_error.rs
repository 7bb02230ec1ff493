//! Why a component cannot serve.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a component cannot serve: one sentence that names the file, what was found, what was expected, and what
/// to do.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the component `{}`: {error}; give {flag} the path of a readable file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The file was read, and holds nothing that can serve.
    #[error("{name} {refusal}")]
    Refused {
        /// The component, as a message names it.
        name: String,
        /// What is wrong with it.
        refusal: Refusal,
    },
    /// The sandbox could not be set up, whatever the component.
    #[error("cannot set up the sandbox: {0}")]
    Sandbox(String),
}

/// What is wrong with a component.
#[derive(Debug, Error)]
pub enum Refusal {
    /// There is nothing in it.
    #[error("is empty: expected a WebAssembly component; build it again, or copy it whole")]
    Empty,
    /// It is something else altogether.
    #[error(
        "is not WebAssembly (it begins with {found}): expected a component, as `cargo guests` builds them"
    )]
    NotWasm {
        /// Its first bytes.
        found: String,
    },
    /// It is a core module, and no program.
    #[error(
        "is a core WebAssembly module and not a program for WASI preview 1 ({0}): build it for wasm32-wasip2, or turn it \
         into a component with `wasm-tools component new`"
    )]
    NoProgram(String),
    /// It is damaged, or uses what this version of wasmtime does not know.
    #[error("is not a valid component ({0}): build it again, or copy it whole")]
    Invalid(String),
    /// It speaks another version of the contract.
    #[error(
        "exports `{found}`, but this host serves version {expected} of that package: build it against the `wit/` of this host"
    )]
    OtherVersion {
        /// The export that was found.
        found: String,
        /// The version that this host serves.
        expected: &'static str,
    },
    /// It exports no contract.
    #[error(
        "exports {found}: expected `{streams}`, `{sessions}` or `{cli}`; build it against world `service` or `session-service` of `wit/`, or as a program"
    )]
    NoContract {
        /// What it exports.
        found: String,
        /// The streams contract.
        streams: &'static str,
        /// The sessions contract.
        sessions: &'static str,
        /// The contract of programs.
        cli: &'static str,
    },
    /// It is a middleware that nothing was composed with.
    #[error(
        "imports `{0}`, as a middleware does, and nothing stands behind it: give it by --middleware and a service by \
         --component, or compose them first, as with `wac plug middleware.wasm --plug service.wasm -o composed.wasm`"
    )]
    Middleware(&'static str),
    /// It is named as a middleware, and is none.
    #[error(
        "is no middleware, which imports and exports `{handler}` (it {found}): build it against world `middleware` of \
         `wit/`, or give it by --component if it is a service"
    )]
    NoMiddleware {
        /// What it does instead.
        found: String,
        /// What a middleware imports and exports.
        handler: &'static str,
    },
    /// It is named behind middlewares, and serves by another contract than theirs.
    #[error(
        "cannot stand behind a middleware, which calls `{handler}` (it {found}): build it against world `service` of \
         `wit/`, or leave out --middleware"
    )]
    NotCallable {
        /// How it serves.
        found: String,
        /// What a middleware calls.
        handler: &'static str,
    },
    /// It cannot be composed with what stands behind it.
    #[error("cannot be composed with {with} ({error}): build both against the `wit/` of this host")]
    Composition {
        /// What stands behind it.
        with: String,
        /// What does not fit.
        error: String,
    },
    /// It imports what the host does not have.
    #[error(
        "imports what the host does not offer ({0}): only WASI is offered; leave that import out, or compose the component with one that exports it"
    )]
    Import(String),
    /// It exports the contract by name, with other types.
    #[error(
        "exports a contract whose functions have other types than in `wit/`, or than WASI has for a program ({0}): build it against the `wit/` of this host, or for WASI 0.2 or 0.3"
    )]
    Types(String),
    /// It exports nothing to initialise it by.
    #[error(
        "exports no function `{0}`, by which --preinit initialises a guest: export one that takes and gives nothing, or leave \
         out --preinit"
    )]
    NoInitialiser(&'static str),
    /// It could not be initialised.
    #[error(
        "cannot be initialised for --preinit ({0}): mend what it does in that function, or leave out --preinit"
    )]
    Initialise(String),
    /// No snapshot can be made of it.
    #[error(
        "cannot be made a snapshot of for --preinit ({0}): its state has to be in memories and globals alone; build it \
         without what is named there, or leave out --preinit"
    )]
    Snapshot(String),
    /// Its connections cannot share instances.
    #[error(
        "exports `{contract}`, and --isolation service is for `{streams}` alone, by which a guest can serve many connections at \
         once: build it against world `service` of `wit/`, or leave out --isolation"
    )]
    NotShared {
        /// The contract by which it serves.
        contract: &'static str,
        /// The streams contract.
        streams: &'static str,
    },
    /// It could not be instantiated.
    #[error(
        "cannot start ({0}): mend what it does at its start, or raise --max-memory if memory is what it lacks"
    )]
    Start(String),
}
