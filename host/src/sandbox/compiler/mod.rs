//! Examining and compiling in a process of its own, which is bounded in memory, time and the size
//! of its result.
//!
//! Both take memory and time for a hostile component without end, and neither can be taken back
//! from a thread. The host therefore starts its own program again as a [`child`], passes it the
//! component and the settings of the engine over a pipe, and reads the machine code from another.
//! The parent kills the child when it exceeds a bound, when nobody waits for its result any more,
//! and when the host ends.

pub mod child;
mod memory;
mod parent;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::engine::CodeSettings;
use super::examine::Examination;
use super::load_error::{MAX_COMPILE_MEMORY, Refusal, resource_advice};
use crate::config::{CacheDir, CompileMemory, Config};
use crate::failpoint;

/// How long compiling one component may take.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(180);

/// CPU time that examining one component may take: then the host takes about as long for it. One
/// that is to be initialised is validated with all of its code.
const MAX_EXAMINATION: Duration = Duration::from_secs(20);
const MAX_EXAMINATION_WITH_CODE: Duration = Duration::from_secs(60);

/// Bytes of memory that examining a component may take, and how many more for each of its bytes:
/// the parts, copies of them in a composition, and what they are composed to.
const EXAMINATION_MEMORY: u64 = 64 << 20;
const EXAMINATION_MEMORY_PER_BYTE: u64 = 4;

/// Bytes of machine code that a component may be compiled to.
const MAX_CODE: u64 = 512 << 20;

/// Bytes of machine code that any component may be compiled to. The contents of memories at the
/// start are part of the code, with the gaps between data, so a small file could take as much as a
/// large one.
const MAX_CODE_OF_SMALL: u64 = 32 << 20;

/// Further bytes of machine code for each byte of a component.
const MAX_CODE_PER_BYTE: u64 = 16;

/// Bytes of memory for each thread that compiles functions: its stack, and the function that it
/// compiles.
const MEMORY_PER_THREAD: u64 = 64 << 20;

/// What the standard library writes when an allocation fails.
const NO_MEMORY: &str = "memory allocation of";

/// What the standard library writes when a thread needs more than its stack.
const NO_STACK: &str = "has overflowed its stack";

/// What the child writes when it gets no thread.
const NO_THREAD: &str = "the system gives no further thread";

/// What rayon writes when it gets no thread, or no memory for the stack of one.
const NO_POOL: [&str; 2] = [
    "The global thread pool has not been initialized",
    "ThreadPoolBuildError",
];

/// Bytes of the line that precedes a component or its code on a pipe.
const MAX_HEADER: u64 = 64 << 10;

/// How components are compiled, and where their code is kept.
#[derive(Clone, Debug)]
pub struct Compiler {
    pub(super) cache: CacheDir,
    pub(super) place: Place,
}

/// Where components are compiled.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In this process, without bounds: for tests, and for programs that are not the host.
    InProcess,
    InChild(Bounds),
}

/// What is needed to compile in a child process.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    program: Program,
    /// Bytes of memory that the child may have, if there is a limit.
    memory: Option<u64>,
    /// The setting of that limit, for messages.
    setting: MemorySetting,
    time: Option<Duration>,
}

/// What has set the limit on memory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum MemorySetting {
    /// The default rule, with this description.
    Default(&'static str),
    /// The user, in this services file or by a flag.
    Given(Option<PathBuf>),
}

/// The program of this process, which can be started again even if its file is replaced.
#[derive(Clone, Debug)]
pub struct Program {
    file: Result<Arc<File>, Arc<io::Error>>,
    /// Has one permit, for the component that is compiled.
    turns: Arc<Semaphore>,
}

/// Permits a component to be compiled. No other component has a turn until this one is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` where compilations are not bounded.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Program {
    /// Opens the program of this process. An error is reported when a component has to be compiled.
    pub fn open() -> Self {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = rustix::fs::open("/proc/self/exe", flags, Mode::empty());
        let file = opened.map(|program| Arc::new(File::from(program)));
        Self {
            file: file.map_err(|error| Arc::new(error.into())),
            turns: Arc::new(Semaphore::new(1)),
        }
    }

    /// A command that starts the program for a task with so many threads, and with no more of an
    /// environment than that.
    fn command(&self, task: Task, threads: u64) -> io::Result<Command> {
        let program = self
            .file
            .as_ref()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot open /proc/self/exe: {error}")))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.arg0("wasm-inetd").arg(child::COMMAND).env_clear();
        // For operators who list processes.
        command.arg(match task {
            Task::Compile { .. } => "compile",
            Task::Examine(_) => "examine",
        });
        command.env("RAYON_NUM_THREADS", threads.to_string());
        // A signal that a terminal sends is for the host, which decides about the child.
        command.process_group(0);
        Ok(command)
    }
}

impl Compiler {
    /// Compiles in this process, where nothing bounds time or memory.
    pub fn in_process(cache: &CacheDir) -> Self {
        Self {
            cache: cache.clone(),
            place: Place::InProcess,
        }
    }

    /// Compiles in a child process, which `program` starts. The file of the settings is for
    /// messages; without it they name the flag.
    pub fn in_child(
        program: &Program,
        cache: &CacheDir,
        memory: CompileMemory,
        file: Option<PathBuf>,
    ) -> Self {
        let (memory, setting) = match memory {
            CompileMemory::Off => (None, MemorySetting::Given(file)),
            CompileMemory::AtMost(max) => (Some(max), MemorySetting::Given(file)),
            CompileMemory::Default => {
                let (memory, rule) = memory::default();
                (memory, MemorySetting::Default(rule))
            }
        };
        Self {
            cache: cache.clone(),
            place: Place::InChild(Bounds {
                program: program.clone(),
                memory,
                setting,
                time: Some(failpoint::compile_time().unwrap_or(MAX_TIME)),
            }),
        }
    }

    /// Bytes of memory that compiling may take, if there is a limit.
    pub(super) fn memory(&self) -> Option<u64> {
        match &self.place {
            Place::InProcess => None,
            Place::InChild(bounds) => bounds.memory,
        }
    }

    /// Waits until no other component is compiled for this host. Each compilation may take the whole
    /// of the memory that is permitted. Calls `waits` if there is a wait. Waits are served in order.
    pub(super) async fn turn(&self, waits: impl FnOnce()) -> Turn {
        let Place::InChild(bounds) = &self.place else {
            return Turn { _permit: None };
        };
        let turns = &bounds.program.turns;
        let permit = match Arc::clone(turns).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                waits();
                // Fails if the semaphore is closed, which it never is.
                Arc::clone(turns).acquire_owned().await.ok()
            }
        };
        Turn { _permit: permit }
    }

    /// Compiles what `config` says, which comes from the file at `file` or from flags, in a child
    /// process.
    pub(crate) fn of(config: &Config, program: &Program, file: Option<&Path>) -> Self {
        let file = file.map(Path::to_owned);
        Self::in_child(program, &config.cache, config.max_compile_memory, file)
    }

    /// The same with another cache.
    #[must_use]
    pub(crate) fn with_cache(self, cache: &CacheDir) -> Self {
        let cache = cache.clone();
        Self { cache, ..self }
    }

    /// The same, but compiling may take any time.
    #[must_use]
    pub fn without_deadline(mut self) -> Self {
        if let Place::InChild(bounds) = &mut self.place {
            bounds.time = None;
        }
        self
    }
}

/// What the parent asks for. The bytes of the component follow.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    task: Task,
    /// The process that asks, without which the child ends.
    parent: i32,
    /// Bytes of memory that the child may have.
    memory: Option<u64>,
    /// Seconds of CPU time that it may take.
    cpu_time: Option<u64>,
    /// Bytes of each part of the component.
    lengths: Vec<u64>,
}

/// What a child is to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Task {
    Compile {
        settings: CodeSettings,
        is_parallel: bool,
    },
    Examine(Examination),
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The task is done, and machine code of so many bytes follows. The child has used at most
    /// `peak` bytes of memory.
    Done { length: u64, peak: u64 },
    /// The component cannot be compiled.
    Refused(Kind, String),
    /// Memory was not enough.
    OutOfMemory,
}

/// The refusals that compiling can lead to.
#[derive(Debug, Serialize, Deserialize)]
enum Kind {
    Invalid,
    Unsupported,
    Bound,
    NotCompiled,
}

/// Why a component was not compiled.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Refused(Refusal),
    /// The child could not be started.
    #[error(
        "cannot start the process that compiles components ({0}): {advice}, or compile ahead with \
         `wasm-inetd compile` into the cache that the host uses",
        advice = resource_advice(.0).unwrap_or("allow the host to start processes, mount /proc")
    )]
    Start(io::Error),
    /// The child has not answered as it should.
    #[error(
        "the process that compiles components returned an unusable result ({0}): this is a bug of the host"
    )]
    Answer(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl MemorySetting {
    /// Returns the limit `max`, with its source.
    fn describe(&self, max: u64) -> String {
        let size = ByteSize::b(max).display().iec();
        match self {
            Self::Default(rule) => format!("{size}, {rule}"),
            Self::Given(None) => format!("{size}, as {MAX_COMPILE_MEMORY} says"),
            Self::Given(Some(path)) => {
                format!("{size}, as {MAX_COMPILE_MEMORY} in {} says", path.display())
            }
        }
    }
}
