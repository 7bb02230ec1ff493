//! What passes on one connection, as it is recorded.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{MAX, last_step};
use crate::connection::{AtEnd, Outcome};
use crate::conversation::{Client, Conversation, Guest, Step};

/// What passes on one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tape(Arc<Mutex<Kept>>);

/// Bytes of a step beside its text: the step in a list that doubles as it grows, and the least that
/// the allocator takes for a text.
pub(super) const STEP: usize = 2 * size_of::<(usize, Step)>() + 32;

#[derive(Debug, Default)]
struct Kept {
    conversation: Conversation,
    /// Bytes that the conversation takes in memory.
    bytes: usize,
    /// Bytes of the client that are kept.
    bytes_in: u64,
    client_ended: bool,
    guest_ended: bool,
    /// There was too much to keep, before the guest had ended its half.
    is_too_long: bool,
}

impl Kept {
    fn add(&mut self, step: Step) {
        match &step {
            Step::Client(Client::Sends(bytes)) | Step::Guest(Guest::Sends(bytes)) => {
                self.bytes = self.bytes.saturating_add(bytes.len());
                if self.bytes > MAX {
                    // The host reads and drops what comes behind the guest's FIN, which may be
                    // much.
                    if !self.guest_ended {
                        self.is_too_long = true;
                        self.conversation = Conversation::default();
                    }
                    return;
                }
            }
            _ => {}
        }
        match &step {
            Step::Client(Client::Sends(bytes)) => self.bytes_in += bytes.len() as u64,
            Step::Client(Client::End) if std::mem::replace(&mut self.client_ended, true) => return,
            Step::Guest(Guest::End) if std::mem::replace(&mut self.guest_ended, true) => return,
            _ => {}
        }
        let before = self.conversation.steps.len();
        self.conversation.add(0, step);
        self.bytes += STEP * (self.conversation.steps.len() - before);
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

    /// The conversation of a connection that has ended, without what has passed after `at_end`;
    /// `None` if it is too long to be kept.
    pub(super) fn conversation(&self, outcome: Outcome, at_end: AtEnd) -> Option<Conversation> {
        let mut kept = self.kept();
        // A byte beyond the limit is not passed on, but ends the connection.
        let mut bytes_in = match outcome {
            Outcome::ByteLimit => u64::MAX,
            _ => at_end.bytes_in,
        };
        if kept.is_too_long || bytes_in != u64::MAX && kept.bytes_in < bytes_in {
            return None;
        }
        // Where they are, since a copy would double what they take.
        let mut conversation = std::mem::take(&mut kept.conversation);
        conversation.retain(|step| match step {
            Step::Client(Client::Sends(bytes)) => {
                bytes.truncate(usize::try_from(bytes_in).unwrap_or(usize::MAX));
                bytes_in -= bytes.len() as u64;
                !bytes.is_empty()
            }
            Step::Client(Client::End) => at_end.peer_ended,
            Step::Guest(Guest::End) => at_end.guest_ended,
            _ => true,
        });
        let last = last_step(outcome);
        let reset = Step::Client(Client::Reset);
        let is_reset = at_end.peer_failed || last.as_ref() == Some(&reset);
        if is_reset {
            conversation.add(0, reset);
        }
        match last {
            // After a reset by the client, only a failure of the guest can still be seen.
            Some(step @ Step::Guest(Guest::Fails(_))) => conversation.add(0, step),
            Some(step) if !is_reset => conversation.add(0, step),
            _ => {}
        }
        Some(conversation)
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
            let step = Step::Client(Client::Sends(read.to_vec()));
            self.tape.kept().add(step);
        } else if buffer.remaining() > 0 {
            self.tape.kept().add(Step::Client(Client::End));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Recorded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        if count > 0 {
            let step = Step::Guest(Guest::Sends(bytes[..count].to_vec()));
            self.tape.kept().add(step);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        self.tape.kept().add(Step::Guest(Guest::End));
        Poll::Ready(Ok(()))
    }
}
