//! The host's side: starts the process that compiles, passes it the component, and takes its
//! answer.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, WaitId, WaitIdOptions, getpid, getrlimit, waitid};
use tokio::time::timeout;

use super::{
    Answer, Bounds, EXAMINATION_MEMORY, EXAMINATION_MEMORY_PER_BYTE, Failure, Kind, MAX_CODE,
    MAX_CODE_OF_SMALL, MAX_CODE_PER_BYTE, MAX_EXAMINATION, MAX_EXAMINATION_WITH_CODE, MAX_HEADER, MAX_TIME,
    MEMORY_PER_THREAD, NO_MEMORY, NO_POOL, NO_STACK, NO_THREAD, Request, Task,
};
use crate::failpoint;
use crate::logging::escape::in_one_line;
use crate::sandbox::engine::CodeSettings;
use crate::sandbox::examine::Examination;
use crate::sandbox::load_error::Refusal;
use crate::threads::{self, NoThread};

/// The signal of a process that has used its CPU time (SIGXCPU).
const OUT_OF_TIME: i32 = Signal::XCPU.as_raw();

/// Bytes that are read of what a child writes to standard error.
const MAX_MESSAGE: u64 = 4 << 10;

/// Machine code, and the memory that making it took, in bytes.
#[derive(Debug)]
pub(in crate::sandbox) struct Compiled {
    pub(in crate::sandbox) code: Vec<u8>,
    pub(in crate::sandbox) peak: u64,
}

impl Bounds {
    /// Compiles a component or module in a child process. If the future is dropped, the child is
    /// killed.
    ///
    /// # Errors
    ///
    /// The component cannot be compiled within the bounds, or the child cannot be started.
    pub(in crate::sandbox) async fn compile(
        &self,
        settings: CodeSettings,
        bytes: Arc<Vec<u8>>,
    ) -> Result<Compiled, Failure> {
        let is_parallel = self.threads() > 1;
        let task = Task::Compile {
            settings,
            is_parallel,
        };
        self.have_done(task, vec![bytes], self.memory, None).await
    }

    /// Examines the parts of a component in a child process. Returns the memory that this took, in
    /// bytes. If the future is dropped, the child is killed.
    ///
    /// # Errors
    ///
    /// That takes more than the bounds, or the child cannot be started.
    pub(in crate::sandbox) async fn examine(
        &self,
        examination: Examination,
        parts: Vec<Arc<Vec<u8>>>,
    ) -> Result<u64, Failure> {
        let task = Task::Examine(examination);
        // A process that checks components has no connections to serve meanwhile.
        let (memory, cpu_time) = if examination.validate {
            (self.memory, None)
        } else {
            let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
            let memory = length.saturating_mul(EXAMINATION_MEMORY_PER_BYTE) + EXAMINATION_MEMORY;
            let memory = self.memory.map_or(memory, |most| most.min(memory));
            let time = if examination.preinit {
                MAX_EXAMINATION_WITH_CODE
            } else {
                MAX_EXAMINATION
            };
            (Some(memory), Some(failpoint::examine_time().unwrap_or(time)))
        };
        let done = self.have_done(task, parts, memory, cpu_time).await?;
        Ok(done.peak)
    }

    async fn have_done(
        &self,
        task: Task,
        parts: Vec<Arc<Vec<u8>>>,
        memory: Option<u64>,
        cpu_time: Option<Duration>,
    ) -> Result<Compiled, Failure> {
        let request = Request {
            task,
            parent: getpid().as_raw_nonzero().get(),
            memory,
            cpu_time: cpu_time.map(|time| time.as_secs()),
            lengths: parts.iter().map(|part| part.len() as u64).collect(),
        };
        let running = Arc::new(Running::default());
        let _kill = KillOnDrop(Arc::clone(&running));
        let bounds = self.clone();
        // The system kills the child when the thread that started it ends, so this thread waits for
        // it.
        let work = threads::run("compile", move || bounds.run(&running, &request, &parts));
        let work = work.map_err(|NoThread(error)| Failure::Start(error))?;
        let time = match task {
            Task::Compile { .. } => self.time,
            // Apart from the CPU time, and only where there are deadlines at all.
            Task::Examine(_) => self.time.map(|_| MAX_TIME),
        };
        let done = match time {
            Some(max) => timeout(max, work).await.map_err(|_| match task {
                Task::Compile { .. } => Refusal::CompileTime(max),
                Task::Examine(_) => Refusal::ExaminationTime(max),
            })?,
            None => work.await,
        };
        done.unwrap_or_else(|_| Err(Failure::Answer("its thread panicked".to_owned())))
    }

    /// Threads that compile functions: one for each core, if the memory suffices.
    fn threads(&self) -> u64 {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let most = self.memory.map_or(u64::MAX, |memory| memory / MEMORY_PER_THREAD);
        cores.min(most).max(1)
    }

    fn run(&self, running: &Running, request: &Request, parts: &[Arc<Vec<u8>>]) -> Result<Compiled, Failure> {
        let mut command = self
            .program
            .command(request.task, self.threads())
            .map_err(Failure::Start)?;
        let (stdin, stdout, stderr) = running.start(&mut command).map_err(Failure::Start)?;
        // If the child does not take all of it, its answer or its end says why.
        let _ = send(stdin, request, parts);
        let most = match request.task {
            Task::Compile { .. } => MAX_CODE.min(most_code_of(&request.lengths)),
            Task::Examine(_) => MAX_CODE,
        };
        let answer = receive(stdout, self.memory.map_or(most, |memory| memory.min(most)));
        let mut message = String::new();
        let _ = stderr.take(MAX_MESSAGE).read_to_string(&mut message);
        let ended = running.end();
        match answer {
            Ok((Answer::Done { peak, .. }, code)) => Ok(Compiled { code, peak }),
            Ok((Answer::Refused(kind, reason), _)) => Err(match kind {
                Kind::Invalid => Refusal::Invalid(reason),
                Kind::Unsupported => Refusal::Unsupported(reason),
                Kind::Bound => Refusal::Bound(reason),
                Kind::NotCompiled => Refusal::NotCompiled(reason),
            }
            .into()),
            Ok((Answer::OutOfMemory, _)) => Err(self.out_of_memory(request).into()),
            Err(Unusable::TooLarge(found)) => Err(self.too_large(found, most).into()),
            Err(Unusable::Damaged(reason)) => Err(Failure::Answer(reason)),
            Err(Unusable::Ended) => Err(self.why_ended(request, ended, &message)),
        }
    }

    /// Says which bound `found` bytes of code exceed: `most` for such a component, or the memory of
    /// the compiler if that is less.
    fn too_large(&self, found: u64, most: u64) -> Refusal {
        match self.memory {
            Some(memory) if memory < most => Refusal::CodeMemory {
                found,
                limit: self.setting.describe(memory),
            },
            _ => Refusal::CodeSize { found, max: most },
        }
    }

    fn out_of_memory(&self, request: &Request) -> Refusal {
        // The child has the limits of this process, too.
        let own = |resource| getrlimit(resource).current;
        let own = own_limits(request.memory, own(Resource::Data), own(Resource::As));
        if let Some(limits) = own {
            return Refusal::ProcessMemory(limits);
        }
        match request.memory {
            Some(max) if request.memory != self.memory => Refusal::ExaminationMemory(max),
            Some(max) => Refusal::CompileMemory(self.setting.describe(max)),
            None => Refusal::CompilerFailed("the system gave it no more memory".to_owned()),
        }
    }

    /// Says why the child has ended without an answer.
    fn why_ended(&self, request: &Request, ended: io::Result<Ended>, message: &str) -> Failure {
        if message.contains(NO_THREAD) {
            return Failure::Start(Errno::AGAIN.into());
        }
        if message.contains(NO_MEMORY) {
            return self.out_of_memory(request).into();
        }
        if message.contains(NO_STACK) {
            return Refusal::Bound("it is nested too deeply".to_owned()).into();
        }
        if NO_POOL.iter().any(|sign| message.contains(sign)) {
            return match self.out_of_memory(request) {
                limited @ Refusal::ProcessMemory(_) => limited.into(),
                _ => Failure::Start(Errno::AGAIN.into()),
            };
        }
        let said = message.lines().find(|line| !line.trim().is_empty());
        let said = said
            .map(|line| format!(": {}", in_one_line(line.trim())))
            .unwrap_or_default();
        let Ended { status, cpu_time } = match ended {
            Ok(ended) => ended,
            Err(error) => return Failure::Answer(error.to_string()),
        };
        let limit = getrlimit(Resource::Cpu);
        let by_signal = status
            .signal()
            .and_then(|signal| why_killed(signal, cpu_time, request.cpu_time, &limit));
        by_signal
            .unwrap_or_else(|| Refusal::CompilerFailed(format!("{status}{said}")))
            .into()
    }
}

/// Says why a signal ended a child. `cpu_time` is the time that the child has used, `max` its own
/// limit in seconds, and `own` the limits of this process. Returns `None` for other signals.
fn why_killed(signal: i32, cpu_time: Option<Duration>, max: Option<u64>, own: &Rlimit) -> Option<Refusal> {
    match signal {
        // At the hard limit the kernel sends SIGKILL, at the soft one SIGXCPU.
        libc::SIGKILL if own.maximum.is_some_and(|hard| has_used(cpu_time, hard)) => {
            Some(out_of_time(None, own.maximum))
        }
        libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP => Some(Refusal::CompilerKilled),
        OUT_OF_TIME => Some(out_of_time(max, own.current)),
        _ => None,
    }
}

/// Returns whether a child has used as many seconds of CPU time as a limit allows. For the limit, the
/// kernel counts ticks of its clock. On a busy virtual machine, this was up to 17% too much.
fn has_used(cpu_time: Option<Duration>, limit: u64) -> bool {
    cpu_time.is_some_and(|used| used >= Duration::from_secs(limit) * 3 / 4)
}

/// Says which limit on CPU time has ended a child: `max` seconds of its own, or `own`, which it has
/// from this process.
fn out_of_time(max: Option<u64>, own: Option<u64>) -> Refusal {
    match (max, own) {
        (Some(max), own) if own.is_none_or(|own| max <= own) => {
            Refusal::ExaminationTime(Duration::from_secs(max))
        }
        (_, Some(own)) => Refusal::ProcessTime(Duration::from_secs(own)),
        (_, None) => Refusal::CompilerFailed("its CPU time was limited".to_owned()),
    }
}

/// Bytes of code that a component of parts with such lengths may be compiled to.
fn most_code_of(lengths: &[u64]) -> u64 {
    // A file has 256 MiB at most.
    MAX_CODE_OF_SMALL + lengths.iter().sum::<u64>() * MAX_CODE_PER_BYTE
}

/// Address space that a child may take beside the memory that it uses: its program, and what
/// allocators and stacks reserve.
const ADDRESS_SPACE: u64 = 1 << 30;

/// Describes which limits of this process, on data and on address space, can have kept a child from
/// the use of as much `memory` as it may have. Returns `None` if none can.
fn own_limits(memory: Option<u64>, data: Option<u64>, space: Option<u64>) -> Option<String> {
    let describe = |limit: Option<u64>, most: u64, what, command, unit| {
        let limit = limit.filter(|limit| *limit < most)?;
        let size = ByteSize::b(limit).display().iec();
        Some(format!("{what}: {size}, `{command}` or {unit}="))
    };
    let memory = memory.unwrap_or(u64::MAX);
    let data = describe(data, memory, "data", "ulimit -d", "LimitDATA");
    let most = memory.saturating_add(ADDRESS_SPACE);
    let space = describe(space, most, "address space", "ulimit -v", "LimitAS");
    let limits: Vec<_> = data.into_iter().chain(space).collect();
    (!limits.is_empty()).then(|| limits.join("; "))
}

/// Why an answer cannot be used.
#[derive(Debug)]
enum Unusable {
    /// There is none.
    Ended,
    /// The code has so many bytes.
    TooLarge(u64),
    Damaged(String),
}

fn send(mut stdin: ChildStdin, request: &Request, parts: &[Arc<Vec<u8>>]) -> io::Result<()> {
    let mut header = serde_json::to_vec(request)?;
    header.push(b'\n');
    stdin.write_all(&header)?;
    parts.iter().try_for_each(|part| stdin.write_all(part))
}

/// Reads an answer, and the code of at most `max` bytes that follows it.
fn receive(stdout: impl Read, max: u64) -> Result<(Answer, Vec<u8>), Unusable> {
    let damaged = |error: &dyn std::fmt::Display| Unusable::Damaged(error.to_string());
    let mut stdout = BufReader::new(stdout);
    let mut header = Vec::new();
    stdout
        .by_ref()
        .take(MAX_HEADER)
        .read_until(b'\n', &mut header)
        .map_err(|error| damaged(&error))?;
    if header.is_empty() {
        return Err(Unusable::Ended);
    }
    let answer = serde_json::from_slice(&header).map_err(|error| damaged(&error))?;
    let mut code = Vec::new();
    let length = match &answer {
        Answer::Done { length, .. } => *length,
        Answer::Refused(..) | Answer::OutOfMemory => 0,
    };
    if length > max {
        return Err(Unusable::TooLarge(length));
    }
    code.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))
        .map_err(|error| damaged(&error))?;
    stdout
        .take(length.saturating_add(1))
        .read_to_end(&mut code)
        .map_err(|error| damaged(&error))?;
    if code.len() as u64 != length {
        let found = ByteSize::b(code.len() as u64);
        return Err(damaged(&format_args!(
            "expected {length} bytes of code, found {found}"
        )));
    }
    Ok((answer, code))
}

/// A child that can be killed while another thread talks to it.
#[derive(Debug, Default)]
struct Running(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    NotStarted,
    Started(Child),
    Killed,
}

type Pipes = (ChildStdin, ChildStdout, ChildStderr);

impl Running {
    fn start(&self, command: &mut Command) -> io::Result<Pipes> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Killed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        *state = State::Started(child);
        match pipes {
            (Some(stdin), Some(stdout), Some(stderr)) => Ok((stdin, stdout, stderr)),
            _ => Err(io::Error::other("it has no pipes")),
        }
    }

    /// Kills the child, if it has not ended, and removes it from the table of processes.
    fn end(&self) -> io::Result<Ended> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Killed) {
            State::Started(mut child) => {
                // One that is about to end by itself keeps its status.
                let _ = child.kill();
                let cpu_time = cpu_time_of_ended(&child);
                let status = child.wait()?;
                Ok(Ended { status, cpu_time })
            }
            State::NotStarted | State::Killed => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

/// How a child has ended.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    /// The CPU time that it has used, if the system tells.
    cpu_time: Option<Duration>,
}

/// Waits for the end of a child, and returns the CPU time that it has used. The child stays in the
/// table of processes, since its clock goes with it.
fn cpu_time_of_ended(child: &Child) -> Option<Duration> {
    let process = Pid::from_raw(i32::try_from(child.id()).ok()?);
    let of_child = WaitId::Pid(rustix::process::Pid::from_raw(process.as_raw())?);
    waitid(of_child, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).ok()?;
    let clock = clock_getcpuclockid(process).ok()?;
    clock_gettime(clock).ok().map(Duration::from)
}

/// Kills the child when nobody waits for it any more.
struct KillOnDrop(Arc<Running>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MemorySetting, Program};
    use super::*;

    fn answer(length: u64, code: &[u8]) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(&Answer::Done { length, peak: 7 }).unwrap();
        bytes.push(b'\n');
        bytes.extend(code);
        bytes
    }

    #[test]
    fn a_limit_on_cpu_time_is_named() {
        let examination = Refusal::ExaminationTime(Duration::from_secs(30)).to_string();
        let process = Refusal::ProcessTime(Duration::from_secs(2)).to_string();
        for (max, own, expected) in [
            (Some(30), None, &examination),
            (Some(30), Some(60), &examination),
            (Some(30), Some(2), &process),
            (None, Some(2), &process),
        ] {
            assert_eq!(out_of_time(max, own).to_string(), *expected, "{max:?} {own:?}");
        }
    }

    #[test]
    fn a_killed_child_has_reached_a_limit_only_if_it_has_used_the_time() {
        let process = Refusal::ProcessTime(Duration::from_secs(10)).to_string();
        let killed = Refusal::CompilerKilled.to_string();
        let why = |cpu_time, hard| {
            let own = Rlimit {
                current: hard,
                maximum: hard,
            };
            let cpu_time = Some(Duration::from_millis(cpu_time));
            why_killed(libc::SIGKILL, cpu_time, None, &own)
                .unwrap()
                .to_string()
        };
        assert_eq!(why(9_990, Some(10)), process);
        assert_eq!(why(10_100, Some(10)), process);
        // However long it has waited.
        assert_eq!(why(3_000, Some(10)), killed);
        assert_eq!(why(10_000, None), killed);
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        assert!(why_killed(libc::SIGSEGV, None, None, &unlimited).is_none());
    }

    #[test]
    fn the_processor_time_of_a_child_is_its_own() {
        let ended = |script: &str| {
            let running = Running::default();
            let mut command = Command::new("sh");
            // It reads from standard input until it is killed.
            let (_stdin, mut stdout, _stderr) = running.start(command.args(["-c", script])).unwrap();
            stdout.read_to_end(&mut Vec::new()).unwrap();
            running.end().unwrap()
        };
        let busy = ended("ulimit -t 1; while :; do :; done");
        assert_eq!(busy.status.signal(), Some(libc::SIGKILL));
        // It ends earlier if the kernel counts too much.
        let half = Some(Duration::from_millis(500));
        assert!(busy.cpu_time > half, "{busy:?}");
        let idle = ended("exec >&-; read line");
        assert_eq!(idle.status.signal(), Some(libc::SIGKILL));
        assert!(idle.cpu_time.is_some() && idle.cpu_time < half, "{idle:?}");
    }

    #[test]
    fn the_bound_that_code_exceeds_is_named() {
        const MIB: u64 = 1 << 20;
        let bounds = |memory| Bounds {
            program: Program::open(),
            memory,
            setting: MemorySetting::Given(None),
            time: None,
        };
        for (memory, most, expected) in [
            (Some(16 * MIB), 32 * MIB, "raise `max-compile-memory`"),
            (Some(16 * MIB), 32 * MIB, "16.0 MiB, as `max-compile-memory` says"),
            (Some(64 * MIB), 32 * MIB, "this host allows 33554432 for its size"),
            (None, 32 * MIB, "this host allows 33554432 for its size"),
        ] {
            let said = bounds(memory).too_large(40 * MIB, most).to_string();
            assert!(
                said.contains(expected) && said.contains("41943040 bytes"),
                "{said}"
            );
            assert_eq!(
                said.contains("max-compile-memory"),
                memory == Some(16 * MIB),
                "{said}"
            );
        }
    }

    #[test]
    fn an_answer_is_taken_whole_or_not_at_all() {
        let (taken, code) = receive(&answer(4, b"code")[..], 4).unwrap();
        assert!(matches!(taken, Answer::Done { length: 4, peak: 7 }), "{taken:?}");
        assert_eq!(code, b"code");
        for damaged in [&answer(4, b"cod")[..], &answer(4, b"code!"), b"{}\n", b"\n", b"x"] {
            let received = receive(damaged, 100);
            assert!(matches!(received, Err(Unusable::Damaged(_))), "{received:?}");
        }
        assert!(matches!(receive(&b""[..], 100), Err(Unusable::Ended)));
    }

    #[test]
    fn the_limits_of_this_process_are_named_if_they_are_lower() {
        const MIB: u64 = 1 << 20;
        for (memory, data, space, expected) in [
            (Some(64 * MIB), None, None, None),
            (Some(64 * MIB), Some(64 * MIB), Some(8192 * MIB), None),
            (
                Some(64 * MIB),
                Some(63 * MIB),
                Some(8192 * MIB),
                Some("data: 63.0 MiB, `ulimit -d` or LimitDATA="),
            ),
            (
                Some(8192 * MIB),
                None,
                Some(8192 * MIB),
                Some("address space: 8.0 GiB, `ulimit -v` or LimitAS="),
            ),
            (
                None,
                Some(MIB),
                Some(MIB),
                Some(
                    "data: 1.0 MiB, `ulimit -d` or LimitDATA=; address space: 1.0 MiB, `ulimit -v` or LimitAS=",
                ),
            ),
        ] {
            assert_eq!(own_limits(memory, data, space).as_deref(), expected, "{memory:?}");
        }
    }

    #[test]
    fn code_that_is_too_large_is_not_read() {
        let received = receive(&answer(5, b"")[..], 4);
        assert!(matches!(received, Err(Unusable::TooLarge(5))), "{received:?}");
        let received = receive(&answer(u64::MAX, b"")[..], u64::MAX);
        assert!(matches!(received, Err(Unusable::Damaged(_))), "{received:?}");
    }

    #[test]
    fn a_child_is_killed_before_and_after_it_has_started() {
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            command
        };
        let running = Arc::new(Running::default());
        let guard = KillOnDrop(Arc::clone(&running));
        let (_stdin, mut stdout, _stderr) = running.start(&mut sleep()).unwrap();
        drop(guard);
        // Its pipe is closed, and it is gone from the table of processes.
        assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
        assert!(matches!(*running.0.lock().unwrap(), State::Killed));
        assert!(running.start(&mut sleep()).is_err());
    }
}
