//! Halves that can be taken back.
//!
//! An instance of its own is dropped to take a connection's halves back from it. One that connections share lives on, so
//! each half is on a [`Leash`]: whoever holds that takes the half back at any moment, and the guest finds its stream ended.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use atomic_waker::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pulse::Pulse;
use crate::half::Lent;

/// What a connection's task and its instance's task tell each other beside the bytes.
#[derive(Debug)]
pub(super) struct Link {
    /// Wakes the task of the connection, which looks at its limits then.
    owner: AtomicWaker,
    taken: AtomicBool,
    pulse: Arc<Pulse>,
}

impl Link {
    /// Between a connection and the instance with this pulse.
    pub(super) fn new(pulse: &Arc<Pulse>) -> Arc<Self> {
        Arc::new(Self {
            owner: AtomicWaker::new(),
            taken: AtomicBool::new(false),
            pulse: Arc::clone(pulse),
        })
    }

    /// Wakes the task of `cx` when a limit on bytes is passed.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.owner.register(cx.waker());
    }

    /// The instance has begun to serve the connection.
    pub(super) fn take(&self) {
        self.taken.store(true, Release);
    }

    /// Whether it has.
    pub(super) fn taken(&self) -> bool {
        self.taken.load(Acquire)
    }
}

/// The owner's end. To drop it is to take the half back.
#[derive(Debug)]
pub(super) struct Leash<T>(Arc<Slot<T>>);

/// The guest's end.
#[derive(Debug)]
pub(super) struct Leashed<T>(Arc<Slot<T>>);

#[derive(Debug)]
struct Slot<T> {
    /// Locked for each read or write, by the one task that makes it; by another only to take the half back.
    held: Mutex<Held<T>>,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Held<T> {
    io: Option<Lent<T>>,
    /// Who waits to read or write.
    user: Option<Waker>,
}

/// Puts a half on a leash.
pub(super) fn leash<T>(io: Lent<T>, link: &Arc<Link>) -> (Leash<T>, Leashed<T>) {
    link.pulse.halves.fetch_add(1, Relaxed);
    let slot = Arc::new(Slot {
        held: Mutex::new(Held {
            io: Some(io),
            user: None,
        }),
        link: Arc::clone(link),
    });
    (Leash(Arc::clone(&slot)), Leashed(slot))
}

impl<T> Slot<T> {
    fn held(&self) -> MutexGuard<'_, Held<T>> {
        // What panics while it is held is the transport, and leaves nothing half-written.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls what is held, and remembers who waits.
    fn poll<O>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut Lent<T>>, &mut Context<'_>) -> Poll<io::Result<O>>,
    ) -> Poll<io::Result<O>>
    where
        T: Unpin,
    {
        let mut held = self.held();
        let Held { io, user } = &mut *held;
        let Some(io) = io else {
            return Poll::Ready(Err(io::Error::other(TakenBack)));
        };
        if self.link.pulse.slice_is_over() {
            // It goes on when the others of its instance have had their turn.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = poll(Pin::new(&mut *io), cx);
        if polled.is_pending() {
            if !user.as_ref().is_some_and(|user| user.will_wake(cx.waker())) {
                *user = Some(cx.waker().clone());
            }
            if io.exceeded() {
                self.link.owner.wake();
            }
        }
        polled
    }
}

impl<T> Drop for Leash<T> {
    fn drop(&mut self) {
        let mut held = self.0.held();
        let user = held.user.take();
        // Nobody has it if the guest has given it back.
        held.io = None;
        drop(held);
        if let Some(user) = user {
            user.wake();
        }
    }
}

impl<T> Drop for Leashed<T> {
    fn drop(&mut self) {
        // It is at home before the lock is released, so that the owner finds it in one of the two places.
        self.0.held().io = None;
        self.0.link.pulse.halves.fetch_sub(1, Relaxed);
    }
}

/// A writer that can be told that nobody waits for what it was to write.
pub(super) trait Outlet: AsyncWrite + Unpin + Send {
    /// The write that had to wait was given up.
    fn give_up(&self);
}

impl<T: AsyncWrite + Unpin + Send> Outlet for Lent<T> {
    fn give_up(&self) {
        Lent::give_up(self);
    }
}

impl<T: AsyncWrite + Unpin + Send> Outlet for Leashed<T> {
    fn give_up(&self) {
        if let Some(io) = &self.0.held().io {
            io.give_up();
        }
    }
}

impl Outlet for Box<dyn Outlet> {
    fn give_up(&self) {
        (**self).give_up();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Leashed<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll(cx, |io, cx| io.poll_read(cx, buffer))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Leashed<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll(cx, |io, cx| io.poll_shutdown(cx))
    }
}

/// The host has taken the half back from the guest, which hears `connection-aborted`.
#[derive(Debug)]
pub(super) struct TakenBack;

impl TakenBack {
    /// Whether that is what `error` says.
    pub(super) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|error| error.is::<Self>())
    }
}

impl fmt::Display for TakenBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was closed by the host")
    }
}

impl Error for TakenBack {}
