//! What passes on one connection, as it is recorded.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Bound, MAX, MAX_OF_ALL, last_step};
use crate::connection::{AtEnd, Outcome};
use crate::conversation::{Client, Conversation, Guest, Step};

/// A permit for each byte that the conversations of this process may take.
static OF_ALL: Semaphore = Semaphore::const_new(MAX_OF_ALL);

/// What passes on one connection.
#[derive(Clone, Debug)]
pub(crate) struct Tape(Arc<Mutex<Kept>>);

impl Default for Tape {
    fn default() -> Self {
        Self::within(&OF_ALL)
    }
}

/// Bytes of a step beside its text: the step in a list that doubles as it grows, and the least that
/// the allocator takes for a text.
pub(super) const STEP: usize = 2 * size_of::<(usize, Step)>() + 32;

#[derive(Debug)]
struct Kept {
    conversation: Conversation,
    /// Bytes of memory that all conversations may take together.
    of_all: &'static Semaphore,
    /// Those that this conversation takes, until it is dropped; `None` if there are none.
    taken: Option<SemaphorePermit<'static>>,
    /// Bytes of the client that are kept.
    bytes_in: u64,
    client_ended: bool,
    guest_ended: bool,
    /// The bound for which later bytes are not kept.
    full: Option<Bound>,
    /// There was too much to keep, before the guest had ended its half.
    is_too_long: bool,
}

impl Kept {
    fn add(&mut self, step: Step) {
        if self.full.is_some() {
            return;
        }
        let sent = match &step {
            Step::Client(Client::Sends(bytes)) | Step::Guest(Guest::Sends(bytes)) => bytes.len(),
            Step::Client(Client::End) if std::mem::replace(&mut self.client_ended, true) => return,
            Step::Guest(Guest::End) if std::mem::replace(&mut self.guest_ended, true) => return,
            _ => 0,
        };
        // The few steps without bytes do not count.
        if sent > 0 && !self.has_room(sent, &step) {
            return;
        }
        if let Step::Client(Client::Sends(bytes)) = &step {
            self.bytes_in += bytes.len() as u64;
        }
        self.conversation.add(0, step);
    }

    /// Takes memory for a step that sends so many bytes. Returns whether there is some.
    fn has_room(&mut self, sent: usize, step: &Step) -> bool {
        let own = if self.conversation.joins(step) { 0 } else { STEP };
        let Err(bound) = self.take(sent + own) else {
            return true;
        };
        self.full = Some(bound);
        // The host reads and drops what comes behind the guest's FIN, which may be much.
        if !self.guest_ended {
            self.is_too_long = true;
            self.conversation = Conversation::default();
            self.taken = None;
        }
        false
    }

    /// Takes memory for so many bytes.
    ///
    /// # Errors
    ///
    /// The conversation, or all of them, would take more than they may.
    fn take(&mut self, bytes: usize) -> Result<(), Bound> {
        let taken = self.taken.as_ref().map_or(0, SemaphorePermit::num_permits);
        let count = u32::try_from(bytes).map_err(|_| Bound::Own)?;
        if taken.saturating_add(bytes) > MAX {
            return Err(Bound::Own);
        }
        let more = self.of_all.try_acquire_many(count).map_err(|_| Bound::OfAll)?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        Ok(())
    }
}

impl Tape {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing can panic while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a tape whose conversation takes memory `of_all`.
    pub(super) fn within(of_all: &'static Semaphore) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            conversation: Conversation::default(),
            of_all,
            taken: None,
            bytes_in: 0,
            client_ended: false,
            guest_ended: false,
            full: None,
            is_too_long: false,
        })))
    }

    /// Records what passes through a reader or a writer.
    pub(crate) fn record<T>(&self, io: T) -> Recorded<T> {
        Recorded {
            io,
            tape: self.clone(),
        }
    }

    /// The conversation of a connection that has ended, without what has passed after `at_end`.
    ///
    /// # Errors
    ///
    /// It was too long to be kept.
    pub(super) fn conversation(&self, outcome: Outcome, at_end: AtEnd) -> Result<Conversation, Bound> {
        let mut kept = self.kept();
        // A byte beyond the limit is not passed on, but ends the connection.
        let mut bytes_in = match outcome {
            Outcome::ByteLimit => u64::MAX,
            _ => at_end.bytes_in,
        };
        let lacks_some = kept.is_too_long || bytes_in != u64::MAX && kept.bytes_in < bytes_in;
        if let Some(bound) = kept.full.filter(|_| lacks_some) {
            return Err(bound);
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
        let last = last_step(outcome, at_end);
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
        Ok(conversation)
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
