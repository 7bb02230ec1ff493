//! Why a component cannot serve.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use thiserror::Error;

use crate::config::Setting;

/// The setting that limits the memory of the compiler.
pub(super) const MAX_COMPILE_MEMORY: Setting<'_> = Setting::of("max-compile-memory");

/// The settings that messages about components name.
const COMPONENT: Setting<'_> = Setting::of("component");
const MIDDLEWARE: Setting<'_> = Setting::of("middleware");
const PREINIT: Setting<'_> = Setting::of("preinit");
const MEMORY: Setting<'_> = Setting::of("limits.max-memory");
const CONNECTIONS: Setting<'_> = Setting::of("limits.max-connections");
const OUTBOUND: Setting<'_> = Setting::of("grants.allow-outbound");

/// Why a component cannot serve: one sentence that names the file, what was found, what was expected, and what
/// to do.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the {role} `{}`: {error}; {advice}", path.display(), advice = advice(error))]
    Read {
        /// `component` or `middleware`, as the setting is named.
        role: &'static str,
        /// The file.
        path: PathBuf,
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
    /// The component cannot be compiled into the cache, whatever it is.
    #[error("cannot compile {name} ahead: {reason}")]
    Ahead {
        /// The component, as a message names it.
        name: String,
        /// What is wrong with the cache, and what to do.
        reason: String,
    },
    /// The component has to be compiled, and the load has no turn for that. With one, it may succeed.
    #[error("the component has to be compiled, and other components may be compiled at the same time")]
    NoTurn,
    /// Connections leave no room in the pool for an instance, whatever the component.
    #[error(
        "cannot try the component while instances of open connections fill the pool ({0}): reload again when \
         some have ended, or lower {CONNECTIONS} to what the warning about the pool says"
    )]
    Full(String),
}

impl LoadError {
    /// Whether the host refuses an import, which may be that of a part.
    pub(super) fn is_about_an_import(&self) -> bool {
        let Self::Refused { refusal, .. } = self else {
            return false;
        };
        match refusal {
            Refusal::Import(_)
            | Refusal::ImportType { .. }
            | Refusal::ImportConflict { .. }
            | Refusal::Http(_)
            | Refusal::OtherLogging { .. } => true,
            Refusal::OtherWasi { does, .. } | Refusal::OtherVersion { does, .. } => *does == "imports",
            _ => false,
        }
    }
}

/// What to do about a file that cannot be read: its path need not be at fault.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::FileTooLarge => "expected a smaller file",
        _ => resource_advice(error).unwrap_or("expected the path of a readable file"),
    }
}

/// What to do about an error that means a lack of something, whatever the host was about to do.
pub(super) fn resource_advice(error: &io::Error) -> Option<&'static str> {
    Some(match error.raw_os_error()? {
        libc::EMFILE => "raise the limit on open files (`ulimit -n`), or lower the number of connections",
        libc::ENFILE => "the system has too many open files; close some, or raise its limit (fs.file-max)",
        libc::ENOMEM => "free memory, or give the host more",
        libc::EAGAIN => {
            "the system gives the host no further thread or process; raise the limit (`ulimit -u`, or \
             `TasksMax=` in the systemd unit)"
        }
        _ => return None,
    })
}

/// What is wrong with a component.
#[derive(Debug, Error)]
pub enum Refusal {
    /// There is nothing in it.
    #[error("is empty: expected a WebAssembly component; rebuild it, or copy the complete file")]
    Empty,
    /// It is something else altogether.
    #[error(
        "is not WebAssembly (it is {found}): expected a component, for example a Rust \
         guest built for wasm32-wasip2"
    )]
    NotWasm {
        /// Its format.
        found: &'static str,
    },
    /// It is a core module, and no program.
    #[error(
        "is a core WebAssembly module, but not a WASI preview 1 program ({0}): build it for \
         wasm32-wasip2, or convert it to a component with `wasm-tools component new`"
    )]
    NoProgram(String),
    /// It is a core module, and imports a function of WASI preview 1 with another type.
    #[error(
        "imports {name} as {found}, and WASI preview 1 has it as {expected}: build it with a toolchain for \
         WASI preview 1"
    )]
    ModuleImport {
        /// The function and its module.
        name: String,
        /// Its type in the module, or its kind.
        found: String,
        /// Its type in the host, or its kind.
        expected: String,
    },
    /// It imports or exports a component.
    #[error(
        "{does} the component `{name}`, but this host links functions, instances and types only: build it \
         without that, for example with an instance of that component inside"
    )]
    ComponentItem {
        /// `imports` or `exports`.
        does: &'static str,
        /// The name of the import or export.
        name: String,
    },
    /// It is damaged.
    #[error("is not a valid component ({0}): rebuild it, or copy the complete file")]
    Invalid(String),
    /// It is valid, but uses proposals that the engine does not offer.
    #[error(
        "is valid, but uses what this host does not offer ({0}): build it without that; a compiler usually \
         has an option for each proposal"
    )]
    Unsupported(String),
    /// It has more of something than this host allows.
    #[error("exceeds a bound of this host ({0}): build a smaller component, or split it")]
    Bound(String),
    /// It is valid and uses no other proposals, but cannot be compiled.
    #[error("is valid, but this host cannot serve it ({0}): build it without that")]
    NotCompiled(String),
    /// Looking at it takes more memory than the host allows, in bytes.
    #[error(
        "needs more than {size} of memory to be examined: build it with fewer types and instances, or split it",
        size = ByteSize::b(*.0).display().iec()
    )]
    ExaminationMemory(u64),
    /// Looking at it takes longer than it may.
    #[error("takes longer than {0:?} to be examined: build it with fewer types and instances, or split it")]
    ExaminationTime(Duration),
    /// Compiling it takes more memory than the compiler may have: the limit, with its source.
    #[error(
        "needs more memory to be compiled than the limit allows ({0}): raise {MAX_COMPILE_MEMORY}, compile it \
         ahead with `wasm-inetd compile` where there is more memory, or build a smaller component"
    )]
    CompileMemory(String),
    /// Memory ran out while it was examined or compiled, and these limits of the process are lower
    /// than what that may take.
    #[error(
        "cannot be examined or compiled, since memory ran out, most likely because of a limit of this process \
         ({0}): raise the limit, compile the component ahead with `wasm-inetd compile` where there is none, \
         or build a smaller component"
    )]
    ProcessMemory(String),
    /// The limit on the CPU time of the process was reached while it was examined or compiled.
    #[error(
        "cannot be examined or compiled, since a process may use {0:?} of CPU time (`ulimit -t` or LimitCPU=): \
         raise the limit, or compile the component ahead with `wasm-inetd compile` where there is none"
    )]
    ProcessTime(Duration),
    /// Compiling it takes longer than it may.
    #[error(
        "takes longer than {0:?} to compile: compile it ahead with `wasm-inetd compile`, which has no time limit, \
         or build a smaller component"
    )]
    CompileTime(Duration),
    /// It is compiled to more code than the host takes for its size.
    #[error(
        "is compiled to {found} bytes, and this host allows {max} for its size: build a smaller component, \
         split it, or leave fewer gaps between the data in its memories"
    )]
    CodeSize {
        /// Bytes of its code, with what its memories contain at the start.
        found: u64,
        /// How many there may be.
        max: u64,
    },
    /// It is compiled to more code than the memory of the compiler holds.
    #[error(
        "is compiled to {found} bytes, which is more than the limit on memory for compiling allows \
         ({limit}): raise {MAX_COMPILE_MEMORY}, compile it ahead with `wasm-inetd compile` where there is \
         more memory, or build a smaller component"
    )]
    CodeMemory {
        /// Bytes of its code, with what its memories contain at the start.
        found: u64,
        /// The limit, with its source.
        limit: String,
    },
    /// The system, or a user, has ended the process that compiled it.
    #[error(
        "was not compiled, since a signal ended the compiler, most likely from the system because \
         memory ran out: give the host more memory, lower {MAX_COMPILE_MEMORY}, or compile it ahead \
         with `wasm-inetd compile`"
    )]
    CompilerKilled,
    /// The process that compiled it has failed.
    #[error(
        "cannot be compiled, since the compiler failed ({0}): report it as a bug, and build it differently"
    )]
    CompilerFailed(String),
    /// It is valid, but its instances are larger than any that the host makes.
    #[error(
        "is valid, but too large: each instance has {found} {what}, and this host allows {max}: \
         build a smaller component, or split it"
    )]
    TooLarge {
        /// The items that are counted.
        what: &'static str,
        /// How many an instance has.
        found: u64,
        /// How many it may have.
        max: u64,
    },
    /// It belongs to a version of WASI that the host does not provide.
    #[error(
        "{does} `{found}`, but this host provides the released versions of WASI 0.2 and 0.3: build it \
         with a toolchain for one of these"
    )]
    OtherWasi {
        /// `imports` or `exports`.
        does: &'static str,
        /// The interface.
        found: String,
    },
    /// It logs by another version of WASI's logging.
    #[error("imports `{found}`, but this host provides `{expected}`: build it with one of these")]
    OtherLogging {
        /// The interface.
        found: String,
        /// The interfaces that this host provides.
        expected: String,
    },
    /// It imports HTTP.
    #[error(
        "imports `{0}`, but this host has no HTTP interfaces, since it hands the bytes of connections to \
         components: serve HTTP from these bytes, or connect by `wasi:sockets` and {outbound}",
        outbound = OUTBOUND
    )]
    Http(String),
    /// It speaks another version of the contract.
    #[error(
        "{does} `{found}`, but this host serves version {expected} of that package: build it \
         against the `wit/` of this host"
    )]
    OtherVersion {
        /// `imports` or `exports`.
        does: &'static str,
        /// The interface.
        found: String,
        /// The version that this host serves.
        expected: &'static str,
    },
    /// It serves HTTP requests, and exports no contract.
    #[error(
        "exports `{found}`, but this host serves no HTTP components, since it hands the bytes of connections \
         to components: run it with an HTTP server such as `wasmtime serve`, or export `{streams}` and serve \
         HTTP from these bytes"
    )]
    HttpHandler {
        /// The interface.
        found: String,
        /// The streams contract.
        streams: &'static str,
    },
    /// It exports no contract.
    #[error(
        "exports {found}: expected `{streams}`, `{sessions}` or `{cli}`; build it against the \
         world `service` or `session-service` in `wit/`, or as a WASI program"
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
        "imports `{0}`, so it is a middleware, and there is no service behind it: name it as \
         {middleware} and a service as {component}, or compose the two first with \
         `wac plug middleware.wasm --plug service.wasm -o composed.wasm`",
        middleware = MIDDLEWARE,
        component = COMPONENT
    )]
    Middleware(&'static str),
    /// It is named as a middleware, and is none.
    #[error(
        "is not a middleware (it {found}; a middleware imports and exports `{handler}`): build it \
         against the world `middleware` in `wit/`, or name it as {component} if it is a service",
        component = COMPONENT
    )]
    NoMiddleware {
        /// What it does instead.
        found: String,
        /// What a middleware imports and exports.
        handler: &'static str,
    },
    /// It is named behind middlewares, and serves by another contract than theirs.
    #[error(
        "cannot serve behind a middleware (it {found}; a middleware calls `{handler}`): build it \
         against the world `service` in `wit/`, or omit {middleware}",
        middleware = MIDDLEWARE
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
    /// It imports an interface with another type than a part behind it, and the host refuses the
    /// imports of neither.
    #[error("imports `{import}` with another type than a part behind it ({error}): build both against {wit}")]
    ImportConflict {
        /// The interface.
        import: String,
        /// The first difference.
        error: String,
        /// The WIT that both are to be built against.
        wit: String,
    },
    /// It imports what the host does not have.
    #[error(
        "has an import that the host does not provide ({0}): it provides `wasi:logging`, and the stable \
         interfaces of WASI's cli, clocks, filesystem, io, random and sockets up to 0.2.12 and 0.3.0; \
         remove the import, or compose the component with one that exports it"
    )]
    Import(String),
    /// It imports what the host has with another type.
    #[error(
        "imports {name}{found}, and this host has another type for it ({difference}): build it against {wit}"
    )]
    ImportType {
        /// The import, and in an instance the item.
        name: String,
        /// Its type in the component; empty if it is not a function.
        found: String,
        /// The first difference.
        difference: String,
        /// The WIT that the host was built against.
        wit: String,
    },
    /// It is a module of an early form of WASI preview 1.
    #[error(
        "imports `{0}`, an early form of WASI preview 1, but this host provides `wasi_snapshot_preview1`: \
         build it with a current toolchain"
    )]
    OldPreview(&'static str),
    /// It exports the contract by name, with other types.
    #[error(
        "exports a contract whose function types differ from those in `wit/`, or, for a program, \
         from those of WASI ({0}): build it against the `wit/` of this host, or for WASI 0.2 or 0.3"
    )]
    Types(String),
    /// It exports nothing to initialise it by.
    #[error(
        "exports no function `{0}`, which {preinit} calls to initialise a guest: export it without \
         parameters or results, or omit {preinit}",
        preinit = PREINIT
    )]
    NoInitialiser(&'static str),
    /// The function that initialises it cannot be called.
    #[error(
        "exports `{0}` with parameters or results: export it without any, as the function that initialises \
         a guest for {preinit}, or omit {preinit}",
        preinit = PREINIT
    )]
    Initialiser(&'static str),
    /// A program is to go on by a function that cannot be called.
    #[error(
        "exports `{0}` with parameters or results: export it without any, as the function that runs \
         the program after {preinit}, or omit {preinit}",
        preinit = PREINIT
    )]
    Resume(&'static str),
    /// It could not be initialised.
    #[error(
        "cannot be initialised for {preinit} ({0}): fix its function `wizer-initialize`, or omit \
         {preinit}",
        preinit = PREINIT
    )]
    Initialise(String),
    /// No snapshot can be made of it.
    #[error(
        "cannot be snapshotted for {preinit} ({0}): a snapshot holds memories and globals only; \
         keep all state there, or omit {preinit}",
        preinit = PREINIT
    )]
    Snapshot(String),
    /// Its connections cannot share instances.
    #[error(
        "{found}, but {shared} requires `{streams}`, with which one instance can serve many \
         connections: build it against the world `service` in `wit/`, or omit {isolation}",
        shared = Setting::to("isolation", "service"),
        isolation = Setting::of("isolation")
    )]
    NotShared {
        /// How it serves.
        found: String,
        /// The streams contract.
        streams: &'static str,
    },
    /// It has checked what it is granted, and rejects it.
    #[error(
        "rejects its configuration ({0}): change the variables, arguments, directories or \
         destinations that are granted to it"
    )]
    Configuration(String),
    /// It has failed while it checked what it is granted.
    #[error(
        "cannot check its configuration, since its function `check` failed ({0}): have `check` return \
         an error in place of a panic, or raise {memory} if it ran out of memory",
        memory = MEMORY
    )]
    Check(String),
    /// It could not be instantiated in time.
    #[error("cannot start: it took longer than {0:?}; have its start-up code do less work")]
    Slow(Duration),
    /// It begins with more memory than it may have.
    #[error("cannot start ({0}): raise {memory}", memory = MEMORY)]
    Memory(String),
    /// It could not be instantiated.
    #[error(
        "cannot start ({0}): fix its start-up code, or raise {memory} if it ran out of memory",
        memory = MEMORY
    )]
    Start(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_about_a_file_fits_the_error() {
        let message = |code| {
            let error = io::Error::from_raw_os_error(code);
            let (role, path) = ("component", PathBuf::from("a.wasm"));
            LoadError::Read { role, path, error }.to_string()
        };
        let missing = message(libc::ENOENT);
        assert!(
            missing.ends_with("; expected the path of a readable file"),
            "{missing}"
        );
        for (code, advice) in [
            (libc::EMFILE, "(`ulimit -n`)"),
            (libc::ENFILE, "(fs.file-max)"),
            (libc::ENOMEM, "free memory"),
            (libc::EAGAIN, "(`ulimit -u`"),
        ] {
            let message = message(code);
            assert!(
                message.contains(advice) && !message.contains("expected the path"),
                "{message}"
            );
        }
    }
}
