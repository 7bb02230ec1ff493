//! The two halves of a connection, as they are lent to a guest.
//!
//! A guest's instance owns the half it reads or writes while it does so, and may be dropped at any moment. A
//! [`Half`] lends its reader or writer out as [`Lent`], which comes back when it is dropped, wherever that
//! happens. So a connection can always say goodbye properly, whatever became of its guest. What passes through
//! is counted on the way.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// How a half failed, in the words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The peer reset the connection.
    Reset,
    /// The transport gave up on a silent peer.
    TimedOut,
    /// The network or the peer's host cannot be reached any more.
    Unreachable,
    /// The peer broke the protocol of the transport, which is TLS.
    Protocol,
    /// Anything else.
    Other,
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => Self::Reset,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable,
            io::ErrorKind::InvalidData => Self::Protocol,
            _ => Self::Other,
        }
    }
}

/// One half of a connection: the owner of its reader or writer.
#[derive(Debug)]
pub struct Half<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    /// Locked when the half is lent and when it comes back, never to move bytes.
    home: Mutex<Option<T>>,
    /// Whether it is lent, for who waits until it is back and would not lock for that.
    lent: AtomicBool,
    returned: AtomicWaker,
    start: Instant,
    bytes: AtomicU64,
    /// When bytes moved last, in nanoseconds since `start`.
    moved: AtomicU64,
    /// When they moved first, by the same count; 0 where none have.
    first: AtomicU64,
    /// A write waits.
    stalled: AtomicBool,
    /// When a write first had to wait since the peer last took a byte, in nanoseconds since
    /// `start`; 0 if none had to.
    stalled_at: AtomicU64,
    /// How long after `stalled_at` a write last had to wait, in nanoseconds.
    refused_for: AtomicU64,
    /// Bytes that may pass.
    max: u64,
    exceeded: AtomicBool,
    owing: AtomicBool,
    ended: AtomicBool,
    failure: OnceLock<Failure>,
}

impl<T> Half<T> {
    /// The half that reads from or writes to `io`, through which `max` bytes may pass, or any number.
    pub fn new(io: T, max: Option<u64>) -> Self {
        Self {
            shared: Arc::new(Shared {
                home: Mutex::new(Some(io)),
                lent: AtomicBool::new(false),
                returned: AtomicWaker::new(),
                start: Instant::now(),
                bytes: AtomicU64::new(0),
                moved: AtomicU64::new(0),
                first: AtomicU64::new(0),
                stalled: AtomicBool::new(false),
                stalled_at: AtomicU64::new(0),
                refused_for: AtomicU64::new(0),
                max: max.unwrap_or(u64::MAX),
                exceeded: AtomicBool::new(false),
                owing: AtomicBool::new(false),
                ended: AtomicBool::new(false),
                failure: OnceLock::new(),
            }),
        }
    }

    /// Lends the reader or writer out; `None` while it is lent already.
    pub fn lend(&self) -> Option<Lent<T>> {
        let io = self.shared.home().take()?;
        self.shared.lent.store(true, Release);
        Some(Lent {
            io: Some(io),
            shared: Arc::clone(&self.shared),
        })
    }

    /// Waits until the reader or writer is back. For one task at a time.
    pub async fn returned(&self) {
        poll_fn(|cx| {
            self.shared.returned.register(cx.waker());
            if self.shared.lent.load(Acquire) {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    /// Bytes that have passed.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Relaxed)
    }

    /// When bytes passed last, or when the half was made.
    pub fn moved(&self) -> Instant {
        self.shared.last()
    }

    /// How long it took until the first bytes passed, from when the half was made.
    pub fn first(&self) -> Option<Duration> {
        self.shared.until_first()
    }

    /// Whether bytes wait to be written since the peer does not read.
    pub fn stalled(&self) -> bool {
        self.shared.stalled.load(Relaxed)
    }

    /// Whether more bytes wanted to pass than may.
    pub fn exceeded(&self) -> bool {
        self.shared.exceeded.load(Relaxed)
    }

    /// Notes whether the guest owes the peer something: it was called and has not answered yet.
    pub fn owe(&self, owing: bool) {
        self.shared.owing.store(owing, Relaxed);
    }

    /// Whether all that there is to say for now is written, as far as the host can know. A guest that writes
    /// when it likes may be about to say more.
    pub fn at_rest(&self) -> bool {
        !self.stalled() && !self.shared.owing.load(Relaxed)
    }

    /// Whether the half ended in good order: the peer's FIN was read, or FIN was sent.
    pub fn ended(&self) -> bool {
        self.shared.ended.load(Relaxed)
    }

    /// How the half failed, if it did.
    pub fn failure(&self) -> Option<Failure> {
        self.shared.failure.get().copied()
    }
}

/// What has passed through a half, for who looks at it from elsewhere.
pub trait Traffic: Send + Sync {
    /// Bytes that have passed.
    fn bytes(&self) -> u64;

    /// When bytes passed last, or when the half was made.
    fn moved(&self) -> Instant;

    /// How long it took until the first bytes passed, from when the half was made.
    fn first(&self) -> Option<Duration>;

    /// Since when the peer has not taken a byte, if a write waits. Writes that were given up before
    /// it count.
    fn stalled_since(&self) -> Option<Instant>;

    /// Since when the peer has not taken a byte, and for how long that is known, if the writes of
    /// this time were given up. Without a write, nobody knows whether the peer reads.
    fn refused(&self) -> Option<(Instant, Duration)>;
}

impl<T: Send> Traffic for Shared<T> {
    fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn moved(&self) -> Instant {
        self.last()
    }

    fn first(&self) -> Option<Duration> {
        self.until_first()
    }

    fn stalled_since(&self) -> Option<Instant> {
        self.untaken_since().filter(|_| self.stalled.load(Relaxed))
    }

    fn refused(&self) -> Option<(Instant, Duration)> {
        let since = self.untaken_since().filter(|_| !self.stalled.load(Relaxed))?;
        Some((since, Duration::from_nanos(self.refused_for.load(Relaxed))))
    }
}

impl<T: Send + 'static> Half<T> {
    /// What passes through it.
    pub fn traffic(&self) -> Arc<dyn Traffic> {
        Arc::clone(&self.shared) as _
    }
}

impl<T> Shared<T> {
    fn home(&self) -> std::sync::MutexGuard<'_, Option<T>> {
        // Nothing can panic while it is held, and an `Option` is never half-written.
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When bytes passed last, or when the half was made.
    fn last(&self) -> Instant {
        self.start + Duration::from_nanos(self.moved.load(Relaxed))
    }

    /// How long it took until the first bytes passed, from when the half was made.
    fn until_first(&self) -> Option<Duration> {
        let first = self.first.load(Relaxed);
        (first > 0).then(|| Duration::from_nanos(first))
    }

    fn passed(&self, bytes: usize) {
        let before = self.bytes.fetch_add(bytes as u64, Relaxed);
        let now = self.start.elapsed().as_nanos() as u64;
        self.moved.store(now, Relaxed);
        if before == 0 {
            self.first.store(now.max(1), Relaxed);
        }
    }

    /// Bytes that may still pass.
    fn room(&self) -> usize {
        let room = self.max - self.bytes.load(Relaxed).min(self.max);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// When a write first had to wait since the peer last took a byte, if one had to.
    fn untaken_since(&self) -> Option<Instant> {
        let at = self.stalled_at.load(Relaxed);
        (at > 0).then(|| self.start + Duration::from_nanos(at))
    }

    /// Notes that a write has to wait, or has not. A guest can give up a write and begin another,
    /// so only the end of a write begins the time anew.
    fn stall(&self, stalled: bool) {
        let at = self.stalled_at.load(Relaxed);
        if stalled {
            let now = (self.start.elapsed().as_nanos() as u64).max(1);
            if at == 0 {
                self.stalled_at.store(now, Relaxed);
            } else {
                self.refused_for.store(now.saturating_sub(at), Relaxed);
            }
        } else if at > 0 {
            self.refused_for.store(0, Relaxed);
            self.stalled_at.store(0, Relaxed);
        }
        self.stalled.store(stalled, Relaxed);
    }

    fn failed(&self, error: &io::Error) {
        // The first failure is the one that counts.
        let _ = self.failure.set(Failure::from(error));
    }
}

/// A reader or writer on loan from its [`Half`]; it goes back when this is dropped.
#[derive(Debug)]
pub struct Lent<T> {
    io: Option<T>,
    shared: Arc<Shared<T>>,
}

impl<T> Lent<T> {
    /// Notes that the write which had to wait was given up.
    pub fn give_up(&self) {
        self.shared.stalled.store(false, Relaxed);
    }

    /// Whether more bytes wanted to pass than may.
    pub fn exceeded(&self) -> bool {
        self.shared.exceeded.load(Relaxed)
    }

    fn split(&mut self) -> io::Result<(&mut T, &Shared<T>)> {
        match &mut self.io {
            Some(io) => Ok((io, &self.shared)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        *self.shared.home() = self.io.take();
        self.shared.lent.store(false, Release);
        self.shared.returned.wake();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lent<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (io, shared) = self.split()?;
        let room = shared.room();
        if room < buffer.remaining() {
            return read_within(io, shared, cx, buffer, room);
        }
        let before = buffer.filled().len();
        let result = ready!(Pin::new(io).poll_read(cx, buffer));
        match &result {
            Ok(()) if buffer.filled().len() > before => shared.passed(buffer.filled().len() - before),
            Ok(()) if buffer.remaining() > 0 => shared.ended.store(true, Relaxed),
            Ok(()) => {}
            Err(error) => shared.failed(error),
        }
        Poll::Ready(result)
    }
}

/// Reads when there is less room for bytes than in `buffer`. Whether the peer sends more than it may is seen by reading
/// one byte more.
fn read_within<T: AsyncRead + Unpin>(
    io: &mut T,
    shared: &Shared<T>,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
    room: usize,
) -> Poll<io::Result<()>> {
    // Nothing behind the byte too many is read. Above all, the guest must not see the end.
    if room == 0 && shared.exceeded.load(Relaxed) {
        return Poll::Pending;
    }
    let mut one = [0];
    let mut within = if room == 0 {
        ReadBuf::new(&mut one)
    } else {
        ReadBuf::new(buffer.initialize_unfilled_to(room))
    };
    let result = ready!(Pin::new(io).poll_read(cx, &mut within));
    let count = within.filled().len();
    match &result {
        Ok(()) if count == 0 => shared.ended.store(true, Relaxed),
        Ok(()) if room == 0 => {
            shared.exceeded.store(true, Relaxed);
            return Poll::Pending;
        }
        Ok(()) => {
            buffer.advance(count);
            shared.passed(count);
        }
        Err(error) => shared.failed(error),
    }
    Poll::Ready(result)
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Lent<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (io, shared) = self.split()?;
        let room = shared.room();
        if room == 0 && !bytes.is_empty() {
            shared.exceeded.store(true, Relaxed);
            return Poll::Pending;
        }
        let polled = Pin::new(io).poll_write(cx, &bytes[..bytes.len().min(room)]);
        // A write of nothing says nothing about the peer.
        if !bytes.is_empty() {
            shared.stall(polled.is_pending());
        }
        let result = ready!(polled);
        match &result {
            Ok(0) => {}
            Ok(written) => shared.passed(*written),
            Err(error) => shared.failed(error),
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (io, shared) = self.split()?;
        let result = ready!(Pin::new(io).poll_flush(cx));
        if let Err(error) = &result {
            shared.failed(error);
        }
        Poll::Ready(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (io, shared) = self.split()?;
        let polled = Pin::new(io).poll_shutdown(cx);
        shared.stall(polled.is_pending());
        let result = ready!(polled);
        match &result {
            Ok(()) => shared.ended.store(true, Relaxed),
            Err(error) => shared.failed(error),
        }
        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests;
