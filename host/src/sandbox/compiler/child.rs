//! The process that examines or compiles one component and ends.

use std::fs;
use std::hint;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::process::ExitCode;
use std::thread;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getppid, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};

use super::{Answer, Kind, MAX_HEADER, NO_MEMORY, NO_THREAD, Request, Task, memory};
use crate::sandbox::code::precompile;
use crate::sandbox::content::Content;
use crate::sandbox::engine::{CodeSettings, to_compile};
use crate::sandbox::examine::examine;
use crate::sandbox::generation::line;
use crate::sandbox::load_error::Refusal;
use crate::sandbox::{names, proposals};
use crate::threads;

/// The subcommand by which the host starts its program as a compiler. It is not for users.
pub const COMMAND: &str = "compile-in-child";

/// Bytes of the stack on which components are compiled, whatever the limits of the environment are.
const STACK: usize = 8 << 20;

/// Bytes of the stack on which components are examined: half of what a thread of the host has.
const EXAMINATION_STACK: usize = threads::STACK / 2;

/// Reads a request from standard input, does what it asks for, and writes the answer to standard
/// output.
///
/// It is the whole program, and runs before it has other threads.
pub fn run() -> ExitCode {
    match prepare().and_then(|request| {
        let stack = match request.task {
            Task::Compile { .. } => STACK,
            Task::Examine(_) => EXAMINATION_STACK,
        };
        let thread = thread::Builder::new().stack_size(stack);
        let thread = thread.spawn(move || serve(&request));
        let thread = thread.map_err(|error| why_no_thread(stack, &error))?;
        // The panic has been written to standard error.
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("panicked")))
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Says why a thread with a stack of so many bytes could not be started. The system reports too
/// little memory for the stack as a lack of threads.
fn why_no_thread(stack: usize, error: &io::Error) -> io::Error {
    let mut memory = Vec::<u8>::new();
    // A thread takes some memory beside its stack.
    let reserved = memory.try_reserve_exact(stack + stack / 4);
    // Otherwise the compiler may leave out what is not used.
    hint::black_box(&memory);
    match reserved {
        Ok(()) => io::Error::other(format!("{NO_THREAD} ({error})")),
        Err(_) => io::Error::other(format!("{NO_MEMORY} a stack failed")),
    }
}

/// Gives up all that compiling does not need, and reads the request.
fn prepare() -> io::Result<Request> {
    close_inherited();
    // A dump would contain the component.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    limit(Resource::Core, 0)?;
    // It writes to pipes only.
    limit(Resource::Fsize, 0)?;
    // If memory runs out all the same, the system ends this process and not the host.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let mut header = Vec::new();
    // All bytes of the component stay in the buffer of standard input, which is one for the
    // process.
    io::stdin()
        .lock()
        .take(MAX_HEADER)
        .read_until(b'\n', &mut header)?;
    let request: Request = serde_json::from_slice(&header)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map_or(0, |parent| parent.as_raw_nonzero().get()) != request.parent {
        return Err(io::Error::other("the host has ended"));
    }
    if let Some(memory) = request.memory {
        // What is written to counts, and not address space: allocators reserve far more of that
        // than they use.
        limit(Resource::Data, memory)?;
    }
    if let Some(time) = request.cpu_time {
        // At the first limit comes a signal of its own, and at the second one that may mean
        // anything.
        limit_to(Resource::Cpu, time, time + 1)?;
    }
    Ok(request)
}

/// Closes all descriptors but the standard streams: whoever started the host may have left some
/// open.
fn close_inherited() {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let numbers: Vec<_> = numbers.filter(|number| *number > 2).collect();
    for number in numbers {
        // The descriptor that listed them is closed already.
        let _ = nix::unistd::close(number);
    }
}

/// Lowers a limit, if it is not lower already.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    limit_to(resource, most, most)
}

/// Lowers a soft limit and its hard limit, if they are not lower already.
fn limit_to(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let lowest = |most: u64| {
        [now.current, now.maximum]
            .into_iter()
            .flatten()
            .fold(most, u64::min)
    };
    let limit = Rlimit {
        current: Some(lowest(soft)),
        maximum: Some(lowest(hard)),
    };
    Ok(setrlimit(resource, limit)?)
}

/// Bytes of a reason, which contains names from the component. The header has room for it however
/// many of its characters are escaped.
const MAX_REASON: usize = 4 << 10;

fn serve(request: &Request) -> io::Result<()> {
    let mut stdin = BufReader::new(io::stdin().lock());
    let mut parts = Vec::new();
    for length in &request.lengths {
        parts.extend(read(&mut stdin, *length)?);
    }
    let (answer, code) = if parts.len() < request.lengths.len() {
        (Answer::OutOfMemory, Vec::new())
    } else {
        match request.task {
            Task::Compile {
                settings,
                is_parallel,
            } => compile(settings, is_parallel, parts.first().map_or(&[], Vec::as_slice)),
            Task::Examine(examination) => {
                examine(&content(parts), examination);
                let (length, peak) = (0, peak());
                (Answer::Done { length, peak }, Vec::new())
            }
        }
    };
    let mut answer = serde_json::to_vec(&answer)?;
    answer.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&answer)?;
    stdout.write_all(&code)?;
    stdout.flush()
}

/// Reads a part of the component. Returns `None` if there is no memory for it.
fn read(stdin: &mut impl Read, length: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let capacity = usize::try_from(length).map_err(io::Error::other)?;
    if bytes.try_reserve_exact(capacity).is_err() {
        return Ok(None);
    }
    stdin.take(length).read_to_end(&mut bytes)?;
    if bytes.len() != capacity {
        return Err(io::Error::other("the component is truncated"));
    }
    Ok(Some(bytes))
}

/// The component of these parts. No message from here names it.
fn content(parts: Vec<Vec<u8>>) -> Content {
    let parts = parts.into_iter();
    let mut parts: Vec<_> = parts.map(|part| Content::new(String::new(), "", part)).collect();
    match (parts.pop(), parts.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            parts.extend(last);
            Content::of_parts(String::new(), parts)
        }
    }
}

fn compile(settings: CodeSettings, is_parallel: bool, bytes: &[u8]) -> (Answer, Vec<u8>) {
    let engine = to_compile(settings, is_parallel);
    match engine.and_then(|engine| precompile(&engine, bytes)) {
        Ok(code) => {
            let (length, peak) = (code.len() as u64, peak());
            (Answer::Done { length, peak }, code)
        }
        Err(error) if error.is::<wasmtime::OutOfMemory>() => (Answer::OutOfMemory, Vec::new()),
        Err(error) => (refused(bytes, line(&error)), Vec::new()),
    }
}

fn refused(bytes: &[u8], reason: String) -> Answer {
    let (kind, what) = match proposals::why(bytes, reason) {
        Refusal::Unsupported(what) => (Kind::Unsupported, what),
        Refusal::Bound(what) => (Kind::Bound, what),
        Refusal::NotCompiled(what) => (Kind::NotCompiled, what),
        Refusal::Invalid(what) => (Kind::Invalid, what),
        other => (Kind::NotCompiled, other.to_string()),
    };
    Answer::Refused(kind, names::bounded(MAX_REASON, format_args!("{what}")))
}

/// The most memory that this process has used, in bytes. The system counts it from the start of
/// this program, unlike that of getrusage(2), which begins with the memory of the host.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    memory::bytes_of(&status, "VmHWM:").unwrap_or_default()
}
