//! The halves of an encrypted connection.

use std::future::poll_fn;
use std::io::{self, BufRead as _, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use atomic_waker::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio_rustls::server::TlsStream;

use super::records::Records;
use crate::socket::{Stream, Taken};

/// The socket under TLS. It counts the records that arrive. During the handshake it delays failures
/// until what the peer has sent is processed.
///
/// A peer may reset the connection right after its last message of the handshake. tokio-rustls
/// reads and writes on after that message, so the handshake would fail although it is complete.
#[derive(Debug)]
pub(super) struct Transport {
    stream: Stream,
    is_handshaking: bool,
    /// The first failure, which has not been returned yet.
    failure: Option<io::Error>,
    taken: Taken,
    records: Records,
}

impl Transport {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            is_handshaking: true,
            failure: None,
            taken: Taken::default(),
            records: Records::default(),
        }
    }

    /// Ends the handshake.
    fn begin(&mut self) {
        self.is_handshaking = false;
        self.records.forget();
    }

    /// Returns the socket.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Keeps the failure of an operation of the handshake, or passes on its result.
    fn delay<T>(&mut self, polled: Poll<io::Result<T>>) -> Option<Poll<io::Result<T>>> {
        match polled {
            Poll::Ready(Err(error)) if self.is_handshaking => {
                self.failure = Some(error);
                None
            }
            polled => Some(polled),
        }
    }

    /// Writes by `write`, or pretends to after a failure, which the next read returns.
    fn write(
        &mut self,
        count: usize,
        write: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match self.failure.take() {
            Some(failure) if self.is_handshaking => self.failure = Some(failure),
            Some(failure) => return Poll::Ready(Err(failure)),
            None => {
                let polled = self.taken.write(write(Pin::new(&mut self.stream)));
                if let Some(polled) = self.delay(polled) {
                    return polled;
                }
            }
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // After the handshake, bytes that arrived before the failure come first.
        if this.is_handshaking
            && let Some(failure) = this.failure.take()
        {
            return Poll::Ready(Err(failure));
        }
        if !this.is_handshaking {
            // In a handshake, rustls bounds what a peer may send.
            let checked = this.records.check();
            checked.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        if this.records.is_turn_over() {
            this.records.begin_turn();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Self { stream, taken, .. } = &mut *this;
        let before = buffer.filled().len();
        let polled = taken.read(buffer, |buffer| Pin::new(stream).poll_read(cx, buffer));
        if polled.is_pending() {
            this.records.begin_turn();
        }
        this.records.arrive(&buffer.filled()[before..]);
        this.delay(polled).unwrap_or_else(|| {
            // An incomplete handshake reads again, and then fails.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut()
            .write(bytes.len(), |stream| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = slices.iter().map(|slice| slice.len()).sum();
        self.get_mut()
            .write(count, |stream| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Splits a connection into its halves. They must be used as one connection, as those of any [`Stream`].
pub(super) fn split(mut stream: TlsStream<Transport>) -> (Reader, Writer) {
    stream.get_mut().0.begin();
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            stream,
            flushing: None,
            failure: None,
        }),
        flushed: AtomicWaker::new(),
    });
    (Reader(Arc::clone(&shared)), Writer(shared))
}

#[derive(Debug)]
struct Shared {
    /// Both halves are used by one task, so that none waits for it.
    state: Mutex<State>,
    flushed: AtomicWaker,
}

#[derive(Debug)]
struct State {
    stream: TlsStream<Transport>,
    /// The task that sends what was encrypted and the socket has not taken. It is the only one to do so while it runs.
    flushing: Option<AbortHandle>,
    /// How reading has failed, which the reader returns after the bytes before it.
    failure: Option<io::Error>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // What is left of a connection in which something has panicked is only dropped.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all that was encrypted is with the socket.
    fn poll_flushed(&self, state: &State, cx: &Context<'_>) -> Poll<()> {
        if state.flushing.is_none() {
            return Poll::Ready(());
        }
        // It takes the lock before it wakes.
        self.flushed.register(cx.waker());
        Poll::Pending
    }

    async fn flush(self: Arc<Self>) {
        let flushing = poll_fn(|cx| Pin::new(&mut self.state().stream).poll_flush(cx));
        // How it fails is found by who writes next.
        let _ = flushing.await;
        self.state().flushing = None;
        self.flushed.wake();
    }
}

/// The half that reads.
#[derive(Debug)]
pub struct Reader(Arc<Shared>);

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let State { stream, failure, .. } = &mut *self.0.state();
        if failure.is_none() {
            let before = buffer.filled().len();
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, buffer));
            match read {
                Ok(()) => {
                    let count = buffer.filled().len() - before;
                    stream.get_mut().0.records.content(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) => *failure = Some(by_peer(error)),
            }
        }
        // tokio-rustls returns the failure of a record before the content of the records before it.
        let mut reader = stream.get_mut().1.reader();
        match reader.fill_buf() {
            Ok(bytes) if !bytes.is_empty() => {
                let count = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..count]);
                reader.consume(count);
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(failure.take().map_or(Ok(()), Err)),
        }
    }
}

/// Marks a failure to read as a reset, if the peer has aborted the connection in the terms of TLS.
fn by_peer(error: io::Error) -> io::Error {
    let is_aborted = match error.kind() {
        // A FIN without a `close_notify`, which anybody on the way could have sent (RFC 8446,
        // section 6.1).
        io::ErrorKind::UnexpectedEof => true,
        // A fatal alert (RFC 8446, section 6.2).
        io::ErrorKind::InvalidData => {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
            matches!(cause, Some(rustls::Error::AlertReceived(_)))
        }
        _ => false,
    };
    if is_aborted {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    } else {
        error
    }
}

/// The half that writes. What it has taken is sent whether it is asked to or not, as by a socket.
#[derive(Debug)]
pub struct Writer(Arc<Shared>);

impl Writer {
    /// Has the connection end with a reset, once both halves are gone.
    pub(crate) fn reset(&self) {
        let state = self.0.state();
        if let Some(task) = &state.flushing {
            task.abort();
        }
        state.stream.get_ref().0.stream.to_be_reset();
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let shared = &self.0;
        let mut state = shared.state();
        ready!(shared.poll_flushed(&state, cx));
        let polled = Pin::new(&mut state.stream).poll_write(cx, bytes);
        if matches!(polled, Poll::Ready(Ok(_))) && state.stream.get_ref().1.wants_write() {
            // Who writes may have nothing more to say, or be gone by the time that the socket takes it.
            let task = tokio::spawn(Arc::clone(shared).flush());
            state.flushing = Some(task.abort_handle());
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        ready!(self.0.poll_flushed(&state, cx));
        Pin::new(&mut state.stream).poll_flush(cx)
    }

    /// Ends this half by `close_notify` and FIN, once all before it is with the socket.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        ready!(self.0.poll_flushed(&state, cx));
        Pin::new(&mut state.stream).poll_shutdown(cx)
    }
}
