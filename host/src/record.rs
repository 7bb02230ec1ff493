//! Recording conversations as they pass.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use anyhow::anyhow;
use bytesize::ByteSize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::connection::Outcome;
use crate::conversation::{Conversation, Side, Step};

/// Bytes of a conversation that are kept. Of a longer one nothing is written.
const MAX: usize = 16 << 20;

/// Where conversations are recorded.
#[derive(Debug)]
pub(crate) struct Recorder {
    dir: PathBuf,
    /// The highest number of a conversation that was there before.
    before: u64,
}

impl Recorder {
    /// Records into `dir`, which is made if it is not there, beside what is in it.
    ///
    /// # Errors
    ///
    /// It cannot be made, or listed.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let before = std::fs::create_dir_all(dir)
            .map_err(anyhow::Error::from)
            .and_then(|()| Conversation::last_number(dir))
            .map_err(|error| {
                anyhow!(
                    "cannot record to `{}` ({error:#}): expected a directory that the host can write to",
                    dir.display()
                )
            })?;
        Ok(Self {
            dir: dir.to_owned(),
            before,
        })
    }

    /// Writes down what was said on connection `number`, and waits until it is written.
    pub(crate) async fn keep(&self, number: u64, tape: Tape, outcome: Outcome) {
        let path = self.dir.join(Conversation::file_name(self.before + number));
        let writing = spawn_blocking(move || {
            let mut kept = tape.kept();
            if kept.bytes > MAX {
                warn!(
                    connection = number,
                    "conversation not recorded: it has more than {}",
                    ByteSize::b(MAX as u64)
                );
                return;
            }
            match outcome {
                Outcome::GuestReset | Outcome::GuestTrap => kept.add(Side::Guest, Step::Resets),
                Outcome::PeerReset | Outcome::PeerLost => kept.add(Side::Peer, Step::Resets),
                _ => {}
            }
            let text = format!(
                "# connection {number}, {}\n{}",
                outcome.as_str(),
                kept.conversation
            );
            if let Err(error) = std::fs::write(&path, text) {
                warn!(
                    connection = number,
                    "cannot write the recorded conversation `{}`: {error}",
                    path.display()
                );
            }
        });
        // It does not panic, and is only given up with the process.
        let _ = writing.await;
    }
}

/// What is being said on one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tape(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    conversation: Conversation,
    bytes: usize,
    /// The guest has ended its half by now. What it does not read any more is not of the conversation.
    ended: bool,
}

impl Kept {
    fn add(&mut self, side: Side, step: Step) {
        if self.ended && side == Side::Peer {
            return;
        }
        self.ended |= side == Side::Guest && step == Step::Ends;
        if let Step::Says(said) = &step {
            self.bytes += said.len();
        }
        if self.bytes > MAX {
            self.conversation = Conversation::default();
        } else {
            self.conversation.add(0, side, step);
        }
    }
}

impl Tape {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing can panic while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what passes through a reader or a writer.
    pub(crate) fn record<T>(&self, io: T) -> Recorded<T> {
        Recorded {
            io,
            tape: self.clone(),
        }
    }
}

/// A reader or writer of which is recorded what passes.
#[derive(Debug)]
pub(crate) struct Recorded<T> {
    io: T,
    tape: Tape,
}

impl<T: AsyncRead + Unpin> AsyncRead for Recorded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            self.tape.kept().add(Side::Peer, Step::Says(read.to_vec()));
        } else if buffer.remaining() > 0 {
            self.tape.kept().add(Side::Peer, Step::Ends);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Recorded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.tape
            .kept()
            .add(Side::Guest, Step::Says(bytes[..count].to_vec()));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        self.tape.kept().add(Side::Guest, Step::Ends);
        Poll::Ready(Ok(()))
    }
}
