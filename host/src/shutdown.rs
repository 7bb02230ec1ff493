//! Signals, turned into notices.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

/// Signals that are not blocked. All others, which include the real-time signals, would end or stop
/// the host by default although nothing has asked it to end. They stay pending for ever.
///
/// A call that causes a blocked signal fails instead: a write beyond the limit on the size of a file
/// with `EFBIG`, a write to a closed pipe with `EPIPE`. A write to the terminal from the background
/// succeeds.
const UNBLOCKED: [Number; 17] = [
    // The host acts on them.
    Number::SIGHUP,
    Number::SIGINT,
    Number::SIGTERM,
    Number::SIGUSR2,
    // Wasmtime handles them: they report traps of guests.
    Number::SIGBUS,
    Number::SIGFPE,
    Number::SIGILL,
    Number::SIGSEGV,
    // By default they end the host with a core dump. A process raises the first three itself: it aborts,
    // reaches a breakpoint, or makes a call that a seccomp filter forbids. SIGXCPU enforces a limit
    // on CPU time that the operator has set.
    Number::SIGABRT,
    Number::SIGTRAP,
    Number::SIGSYS,
    Number::SIGXCPU,
    // People send them at a terminal.
    Number::SIGQUIT,
    Number::SIGTSTP,
    Number::SIGCONT,
    // By default nothing happens.
    Number::SIGCHLD,
    Number::SIGWINCH,
];

/// Sets which signals are blocked, whatever the parent process had blocked.
///
/// A parent can leave SIGTERM blocked, so that the host could not be stopped, or SIGSEGV, so that the
/// trap of a guest would end the host. Threads inherit the mask: call this before any is started.
///
/// # Errors
///
/// Fails if the system refuses the mask.
pub fn set_mask() -> io::Result<()> {
    // Real-time signals have no names by which they could be added to an empty set.
    let mut blocked = SigSet::all();
    for signal in UNBLOCKED {
        blocked.remove(signal);
    }
    Ok(blocked.thread_set_mask()?)
}

/// Handles SIGCHLD, which a parent process can have left ignored. The kernel then keeps no status
/// of processes that have ended, and the host could not say why a compiler has.
///
/// # Errors
///
/// Fails if the handler cannot be installed.
///
/// # Panics
///
/// Outside of a runtime.
pub fn hear_of_children() -> io::Result<()> {
    // The handler stays when this is dropped.
    signal(SignalKind::child()).map(drop)
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// SIGINT or SIGTERM, by its name: to stop.
    Stop(&'static str),
    /// SIGHUP: to load the component again.
    Reload,
    /// SIGHUP, because the terminal that the host was started from is gone: to stop.
    Abandoned,
    /// SIGUSR2: to go back to the generation before this one.
    GoBack,
}

/// The signals that ask for a change. One that comes before they are waited for is heard then.
#[derive(Debug)]
pub struct Changes {
    hangup: Signal,
    user: Signal,
    terminal: Option<Terminal>,
    /// Present until [`Signals`] handles SIGINT and SIGTERM.
    stops: Option<StopsByDefault>,
}

/// Ends the process at SIGINT or SIGTERM, as they do by default, until this is dropped.
///
/// The kernel delivers no signal to process 1, such as the host of a container, that the process does
/// not handle.
#[derive(Debug)]
struct StopsByDefault(JoinHandle<()>);

impl StopsByDefault {
    /// Returns `None` unless this is process 1.
    fn of_process_1() -> io::Result<Option<Self>> {
        if std::process::id() != 1 {
            return Ok(None);
        }
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        Ok(Some(Self(tokio::spawn(async move {
            let signal = tokio::select! {
                _ = interrupt.recv() => Number::SIGINT,
                _ = terminate.recv() => Number::SIGTERM,
            };
            // As a shell reports a process that a signal has ended.
            std::process::exit(128 + signal as i32);
        }))))
    }
}

impl Drop for StopsByDefault {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The controlling terminal of the host.
#[derive(Debug)]
struct Terminal;

impl Terminal {
    /// The file that stands for the controlling terminal of the process that opens it.
    const PATH: &str = "/dev/tty";

    /// Looks up the terminal that the host was started from, before a handler for SIGHUP is
    /// installed.
    ///
    /// Returns `None` for a host that is meant to outlive its terminal: one that nohup(1) started,
    /// which ignores SIGHUP, or a service manager, and a daemon, which has no terminal.
    fn of_host() -> Option<Self> {
        let managed = std::env::var_os("NOTIFY_SOCKET").is_some();
        (!managed && !ignores_hangup() && File::open(Self::PATH).is_ok()).then_some(Self)
    }

    /// Whether the terminal was closed. A host that is short of descriptors cannot open it either.
    fn is_gone(&self) -> bool {
        let error = File::open(Self::PATH)
            .err()
            .and_then(|error| error.raw_os_error());
        error.is_some_and(Self::says_gone)
    }

    /// Whether an open of [`Self::PATH`] fails with `errno` since the terminal is gone.
    fn says_gone(errno: i32) -> bool {
        matches!(Errno::from_raw(errno), Errno::ENXIO | Errno::EIO)
    }
}

/// Whether the parent process has left SIGHUP ignored, as nohup(1) does.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit 0 is signal 1.
    ignored.is_some_and(|mask| mask & 1 << (Number::SIGHUP as u32 - 1) != 0)
}

impl Changes {
    /// Takes the signals over from now on.
    ///
    /// # Errors
    ///
    /// The system refuses the handlers.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminal: Terminal::of_host(),
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined2())?,
            stops: StopsByDefault::of_process_1()?,
        })
    }
}

/// Waits for signals.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    changes: Changes,
}

impl Signals {
    /// Takes over those too, from now on, that ask to stop.
    ///
    /// # Errors
    ///
    /// The system refuses the handlers.
    pub fn new(mut changes: Changes) -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        changes.stops = None;
        Ok(Self {
            interrupt,
            terminate,
            changes,
        })
    }

    /// What the next signal asks for. Of signals that have come together, a reload precedes a
    /// rollback, which gives it up: the safer of the two counts.
    pub async fn next(&mut self) -> Notice {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Notice::Stop("SIGINT"),
            _ = self.terminate.recv() => Notice::Stop("SIGTERM"),
            _ = self.changes.hangup.recv() => match &self.changes.terminal {
                Some(terminal) if terminal.is_gone() => Notice::Abandoned,
                _ => Notice::Reload,
            },
            _ = self.changes.user.recv() => Notice::GoBack,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_cannot_open_its_terminal_for_another_reason_has_one() {
        assert!(Terminal::says_gone(Errno::ENXIO as i32));
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EACCES] {
            assert!(!Terminal::says_gone(errno as i32), "{errno}");
        }
    }
}
