//! Recording conversations as they pass.

mod tape;

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::anyhow;
use arc_swap::ArcSwap;
use bytesize::ByteSize;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, fstat, linkat, openat, renameat_with, stat, unlinkat};
use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::warn;

use crate::config::Setting;
use crate::connection::{AtEnd, Outcome};
use crate::conversation::{Client, Conversation, Failure, Guest, Step};
use crate::failpoint;
use crate::file_id::FileId;
use crate::guarded::{self, Owner};
use crate::system::storage_advice;
use crate::threads;
pub(crate) use tape::Tape;

/// Bytes of memory that a conversation may take while it is recorded. A larger one is not written.
pub(crate) const MAX: usize = 16 << 20;

/// Bytes of memory that all conversations of this process may take, while they are recorded and
/// written. One that would exceed it is not written.
const MAX_OF_ALL: usize = 256 << 20;

/// The bound for which a conversation is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// [`MAX`].
    Own,
    /// [`MAX_OF_ALL`].
    OfAll,
}

impl Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => write!(f, "it takes more than {}", ByteSize::b(MAX as u64)),
            Self::OfAll => write!(
                f,
                "the conversations of all connections take more than {}",
                ByteSize::b(MAX_OF_ALL as u64)
            ),
        }
    }
}

/// Conversations that are written to one directory at the same time. Each takes a thread, and a
/// directory on a slow disk must leave threads for other work.
const WRITERS: usize = 4;

/// How long a conversation waits for its turn to be written, and how long a connection waits for the
/// file after that.
const WAIT: Duration = Duration::from_secs(10);

/// How the names of files end that are still being written.
const PART: &str = "part";

/// The step that ends a conversation whose connection has this outcome, besides what its two sides
/// have done.
pub(crate) fn last_step(outcome: Outcome, at_end: AtEnd) -> Option<Step> {
    let fails = |failure| Some(Step::Guest(Guest::Fails(failure)));
    match outcome {
        Outcome::Finished => {
            let status = at_end.status.and_then(NonZero::new);
            status.map(|status| Step::Guest(Guest::Exits(status)))
        }
        Outcome::GuestReset => Some(Step::Guest(Guest::Reset)),
        Outcome::GuestTrap => fails(Failure::Trap),
        Outcome::CpuLimit => fails(Failure::CpuLimit),
        Outcome::ByteLimit => fails(Failure::ByteLimit),
        Outcome::StartFailed => fails(Failure::StartFailed),
        Outcome::GrantFailed => fails(Failure::GrantFailed),
        Outcome::PeerReset | Outcome::PeerLost => Some(Step::Client(Client::Reset)),
        Outcome::FirstByteTimeout
        | Outcome::IdleTimeout
        | Outcome::WriteTimeout
        | Outcome::Lifetime
        | Outcome::Drained
        | Outcome::Closed
        | Outcome::HostPanic => Some(Step::Cut),
    }
}

/// Returns the error about a directory that cannot be recorded to.
pub(crate) fn refused(dir: &Path, error: &io::Error) -> anyhow::Error {
    let cannot = format!("cannot record to `{}` ({error})", dir.display());
    match storage_advice(error) {
        Some(advice) => anyhow!(
            "{cannot}: {advice}, or choose another directory with {}",
            Setting::of("record")
        ),
        None => anyhow!("{cannot}: expected a directory that the host, and no other user, can write to"),
    }
}

/// Where conversations are recorded.
#[derive(Clone, Debug)]
pub(crate) struct Recorder(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    /// Held open, so that no file goes to a directory that is put in its place. It changes only
    /// when the directory was removed.
    dir: ArcSwap<OwnedFd>,
    /// Where the directory was when it was opened, for messages.
    path: PathBuf,
    /// The number of a file is at least this much higher than that of its connection.
    ahead: AtomicU64,
    /// Numbers the files that are being written.
    parts: AtomicU64,
    /// Permits to write a file.
    writers: Arc<Semaphore>,
}

impl Recorder {
    /// Records into `dir`, which is created if it does not exist, beside the files that it has.
    ///
    /// # Errors
    ///
    /// The directory cannot be created or listed, or another user could put one in its place.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let (open, before) = guarded::open(dir, true, Owner::HostOrRoot)
            .map_err(io::Error::other)
            .and_then(|open| Ok((open, Conversation::last_number(dir)?)))
            .map_err(|error| refused(dir, &error))?;
        Ok(Self(Arc::new(Directory {
            dir: ArcSwap::from_pointee(open),
            path: dir.to_owned(),
            ahead: AtomicU64::new(before),
            parts: AtomicU64::new(0),
            writers: Arc::new(Semaphore::new(WRITERS)),
        })))
    }

    /// Writes the conversation of connection `number` of a service to a file, and waits until it is
    /// written, for at most 20 seconds. A conversation that is not being written after 10 of them is
    /// lost.
    pub(crate) async fn keep(&self, service: &str, number: u64, tape: Tape, outcome: Outcome, at_end: AtEnd) {
        let permit = Arc::clone(&self.0.writers).acquire_owned();
        let Ok(permit) = timeout(WAIT, permit).await else {
            let late = format!("others have been written for {WAIT:?}; the file system may not answer");
            return self.0.lost(service, number, &late);
        };
        let (of, directory) = (service.to_owned(), Arc::clone(&self.0));
        let writing = threads::run("record", move || {
            // The semaphore is never closed.
            let _permit = permit;
            failpoint::hang("record");
            directory.keep(&of, number, tape, outcome, at_end);
        });
        match writing {
            // It does not panic.
            Ok(writing) => {
                if timeout(WAIT, writing).await.is_err() {
                    warn!(
                        service,
                        connection = number,
                        "the recorded conversation is being written to `{}` for {WAIT:?}; the file system may \
                         not answer",
                        self.0.path.display()
                    );
                }
            }
            Err(error) => self.0.lost(service, number, &error),
        }
    }
}

impl Directory {
    /// Writes the file of a connection, or says in the log why there is none.
    fn keep(&self, service: &str, number: u64, tape: Tape, outcome: Outcome, at_end: AtEnd) {
        let conversation = match tape.conversation(outcome, at_end) {
            Ok(conversation) => conversation,
            Err(bound) => {
                warn!(service, connection = number, "conversation not recorded: {bound}");
                return;
            }
        };
        if let Err(error) = self.write(number, outcome.as_str(), conversation) {
            self.lost(service, number, &error);
        }
    }

    fn lost(&self, service: &str, number: u64, error: &dyn Display) {
        warn!(
            service,
            connection = number,
            "cannot write the recorded conversation to `{}`: {error}; the conversation is lost",
            self.path.display()
        );
    }

    /// Writes the file of a connection that ended with `outcome`. The file has the number of the
    /// connection, as far as other files permit. The file appears whole or not at all, and replaces
    /// no other.
    ///
    /// # Errors
    ///
    /// The file cannot be written. Nothing is left of it then.
    fn write(&self, connection: u64, outcome: &str, conversation: Conversation) -> io::Result<()> {
        let mut part = self.part(self.current()?)?;
        let mut file = BufWriter::new(&part.file);
        writeln!(file, "# connection {connection}, {outcome}")?;
        // As text, a conversation can be four times as long, so it is never in memory as a whole.
        for (_, step) in conversation.steps {
            writeln!(file, "{step}")?;
        }
        file.flush()?;
        drop(file);
        let mut number = self.ahead.load(Relaxed).saturating_add(connection);
        while let Err(error) = part.put(Path::new(&Conversation::file_name(number))) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            // Another service or host records to the same directory.
            number = number.checked_add(1).ok_or(error)?;
        }
        self.ahead.fetch_max(number - connection, Relaxed);
        Ok(())
    }

    /// Returns the directory. Opens or creates it again after somebody has moved or removed it, for
    /// example to archive what was recorded.
    fn current(&self) -> io::Result<Arc<OwnedFd>> {
        let held = self.dir.load_full();
        let named = stat(&self.path).map(|named| FileId::from(&named));
        if named.is_ok_and(|named| fstat(&*held).is_ok_and(|held| named == FileId::from(&held))) {
            return Ok(held);
        }
        let dir = guarded::open(&self.path, true, Owner::HostOrRoot).map_err(io::Error::other)?;
        let dir = Arc::new(dir);
        self.dir.store(Arc::clone(&dir));
        Ok(dir)
    }

    /// Creates a file in `dir` that is not a conversation yet.
    fn part(&self, dir: Arc<OwnedFd>) -> io::Result<Part> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let number = self.parts.fetch_add(1, Relaxed);
            let name = format!("{}-{number}.{PART}", process::id());
            // What clients have sent, decrypted, is for the user of the host alone.
            match openat(&*dir, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    return Ok(Part {
                        file: file.into(),
                        dir,
                        name,
                        renamed: false,
                    });
                }
                // A process of another container may have the same number.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A file that is being written. It is removed when this is dropped, unless it was put in place.
struct Part {
    file: File,
    dir: Arc<OwnedFd>,
    name: String,
    renamed: bool,
}

impl Part {
    /// Gives the file its name in the directory, if no other file has it.
    fn put(&mut self, name: &Path) -> io::Result<()> {
        match renameat_with(&*self.dir, &self.name, &*self.dir, name, RenameFlags::NOREPLACE) {
            Ok(()) => self.renamed = true,
            // Some file systems, such as NFS, cannot do that, but have links.
            Err(Errno::INVAL | Errno::NOSYS) => {
                linkat(&*self.dir, &self.name, &*self.dir, name, AtFlags::empty())?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = unlinkat(&*self.dir, &self.name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests;
