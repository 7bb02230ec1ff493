//! The process that compiles one component and ends.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::ExitCode;
use std::thread;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getppid, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use wasmparser::Parser;

use super::{Answer, Kind, MAX_HEADER, NO_MEMORY, Request, memory};
use crate::sandbox::engine::to_compile;
use crate::sandbox::generation::line;
use crate::sandbox::load_error::Refusal;
use crate::sandbox::proposals;

/// The subcommand by which the host starts its program as a compiler. It is not for users.
pub const COMMAND: &str = "compile-in-child";

/// Bytes of the stack on which components are compiled, whatever the limits of the environment are.
const STACK: usize = 8 << 20;

/// Reads a request from standard input, compiles, and writes the answer to standard output.
///
/// It is the whole program, and runs before it has other threads.
pub fn run() -> ExitCode {
    match prepare().and_then(|request| {
        let thread = thread::Builder::new().stack_size(STACK);
        let thread = thread.spawn(move || serve(&request));
        // The system reports too little memory for its stack as a lack of threads.
        let thread = thread.map_err(|_| io::Error::other(format!("{NO_MEMORY} a stack failed")))?;
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
    let now = rustix::process::getrlimit(resource);
    let most = [now.current, now.maximum]
        .into_iter()
        .flatten()
        .fold(most, u64::min);
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    Ok(setrlimit(resource, limit)?)
}

fn serve(request: &Request) -> io::Result<()> {
    let mut bytes = Vec::new();
    let length = usize::try_from(request.length).map_err(io::Error::other)?;
    let (answer, code) = match bytes.try_reserve_exact(length) {
        Err(_) => (Answer::OutOfMemory, Vec::new()),
        Ok(()) => {
            BufReader::new(io::stdin().lock())
                .take(request.length)
                .read_to_end(&mut bytes)?;
            if bytes.len() != length {
                return Err(io::Error::other("the component is truncated"));
            }
            compile(request, &bytes)
        }
    };
    let mut answer = serde_json::to_vec(&answer)?;
    answer.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&answer)?;
    stdout.write_all(&code)?;
    stdout.flush()
}

fn compile(request: &Request, bytes: &[u8]) -> (Answer, Vec<u8>) {
    let engine = to_compile(request.settings, request.is_parallel);
    let compiled = engine.and_then(|engine| {
        if Parser::is_core_wasm(bytes) {
            engine.precompile_module(bytes)
        } else {
            engine.precompile_component(bytes)
        }
    });
    match compiled {
        Ok(code) => {
            let length = code.len() as u64;
            (Answer::Compiled { length, peak: peak() }, code)
        }
        Err(error) if error.is::<wasmtime::OutOfMemory>() => (Answer::OutOfMemory, Vec::new()),
        Err(error) => (refused(bytes, line(&error)), Vec::new()),
    }
}

fn refused(bytes: &[u8], reason: String) -> Answer {
    match proposals::why(bytes, reason) {
        Refusal::Unsupported(what) => Answer::Refused(Kind::Unsupported, what),
        Refusal::Bound(what) => Answer::Refused(Kind::Bound, what),
        Refusal::NotCompiled(what) => Answer::Refused(Kind::NotCompiled, what),
        Refusal::Invalid(what) => Answer::Refused(Kind::Invalid, what),
        other => Answer::Refused(Kind::NotCompiled, other.to_string()),
    }
}

/// The most memory that this process has used, in bytes. The system counts it from the start of
/// this program, unlike that of getrusage(2), which begins with the memory of the host.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    memory::bytes_of(&status, "VmHWM:").unwrap_or_default()
}
