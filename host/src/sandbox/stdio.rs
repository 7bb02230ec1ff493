//! Standard input and output of a program: the halves of its connection.
//!
//! A program may have several handles of each, by one version of WASI or by two, which share the half. Bytes pass through as
//! they come, in the order in which they were written: what is read is what was asked for. What is written goes to the
//! transport when the program waits for anything, when it has had its slice, when it ends, or when there is much of it:
//! libraries of C write at most 4 KiB in a call, and each of these would be a call of the system. Who only asks whether there is something to read has that answered by
//! reading it, up to [`buffer::SIZE`], since a transport does not tell otherwise.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::waiters::{Asking, Seat, Waiters};
use crate::buffer;
use crate::half::Lent;

/// Bytes that may wait for the transport, where several handles were permitted to write at once.
const MAX_WAITING: usize = 1 << 20;

/// Streams of WASI 0.3 that a program may have to its standard input at once. One that leads to its
/// standard output or error keeps a buffer of 8 KiB, and the program holds no handle for it.
const MAX_STREAMS: usize = 64;

/// Waits until `poll` is ready.
async fn wait<T>(mut poll: impl FnMut(Option<Asking<'_>>) -> Poll<T>) -> T {
    let mut seat: Pin<&mut Seat> = pin!(None);
    std::future::poll_fn(|cx| poll(Some(Asking::new(seat.as_mut(), cx)))).await
}

/// Whether a program has turned to its connection yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Turned(Arc<AtomicBool>);

impl Turned {
    fn set(&self) {
        self.0.store(true, Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// Standard input.
pub(super) struct Stdin<R>(Arc<Mutex<Input<R>>>);

struct Input<R> {
    reader: Lent<R>,
    waiters: Waiters,
    turned: Turned,
    /// What was read to see whether there is something to read.
    read: Bytes,
    end: Option<End>,
    /// Streams of WASI 0.3 that read from it.
    streams: usize,
}

/// How a half ended, until the program has been told.
enum End {
    Closed,
    Failed(io::Error),
}

impl End {
    /// Tells the program, once how it failed, and from then on that it is closed.
    fn tell(&mut self) -> StreamError {
        match std::mem::replace(self, Self::Closed) {
            Self::Closed => StreamError::Closed,
            Self::Failed(error) => StreamError::LastOperationFailed(error.into()),
        }
    }

    /// The same for who takes errors of the system, of which that of a half that is closed is `closed`.
    fn tell_or(&mut self, closed: io::Result<()>) -> io::Result<()> {
        match std::mem::replace(self, Self::Closed) {
            Self::Closed => closed,
            Self::Failed(error) => Err(error),
        }
    }
}

impl<R> Clone for Stdin<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> Stdin<R> {
    pub(super) fn new(reader: Lent<R>, turned: Turned) -> Self {
        Self(Arc::new(Mutex::new(Input {
            reader,
            waiters: Waiters::new(),
            turned,
            read: Bytes::new(),
            end: None,
            streams: 0,
        })))
    }

    fn input(&self) -> MutexGuard<'_, Input<R>> {
        // Nothing can panic while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: AsyncRead + Unpin> Input<R> {
    /// Has something that can be told, reading at most `max` bytes for it.
    fn poll_fill(&mut self, asking: Option<Asking<'_>>, max: usize) -> Poll<()> {
        self.turned.set();
        if !self.read.is_empty() || self.end.is_some() {
            return Poll::Ready(());
        }
        let reader = &mut self.reader;
        match ready!(self.waiters.poll(asking, |cx| buffer::poll_read(reader, cx, max))) {
            Ok(chunk) if chunk.is_empty() => self.end = Some(End::Closed),
            Ok(chunk) => self.read = Bytes::copy_from_slice(&chunk),
            Err(error) => self.end = Some(End::Failed(error)),
        }
        Poll::Ready(())
    }

    /// Reads what there is.
    fn poll_read(&mut self, asking: Asking<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.turned.set();
        if self.read.is_empty() {
            if let Some(end) = &mut self.end {
                return Poll::Ready(end.tell_or(Ok(())));
            }
            let Self { reader, waiters, .. } = self;
            let poll = |cx: &mut Context<'_>| Pin::new(&mut *reader).poll_read(cx, buffer);
            let result = ready!(waiters.poll(Some(asking), poll));
            if result.is_err() {
                // Those who have not been told find it closed.
                self.end = Some(End::Closed);
            }
            return Poll::Ready(result);
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, max: usize) -> StreamResult<Bytes> {
        if self.read.is_empty()
            && let Some(end) = &mut self.end
        {
            return Err(end.tell());
        }
        let count = self.read.len().min(max);
        Ok(self.read.split_to(count))
    }
}

impl<R> IsTerminal for Stdin<R> {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl<R: AsyncRead + Unpin + Send + 'static> StdinStream for Stdin<R> {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(Stream::new(self))
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl<R: AsyncRead + Unpin + Send + 'static> Pollable for Stdin<R> {
    async fn ready(&mut self) {
        wait(|asking| self.input().poll_fill(asking, buffer::SIZE)).await;
    }
}

#[wasmtime_wasi::async_trait]
impl<R: AsyncRead + Unpin + Send + 'static> InputStream for Stdin<R> {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut input = self.input();
        if size > 0 {
            // Who finds nothing waits by `ready`.
            let _ = input.poll_fill(None, size);
        }
        input.take(size)
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size > 0 {
            wait(|asking| self.input().poll_fill(asking, size)).await;
        }
        self.input().take(size)
    }
}

/// A stream of WASI 0.3 from standard input.
struct Stream<R> {
    /// `None` is one too many, which fails.
    stdin: Option<Stdin<R>>,
    seat: Pin<Box<Seat>>,
}

impl<R> Stream<R> {
    fn new(stdin: &Stdin<R>) -> Self {
        let mut input = stdin.input();
        let fits = input.streams < MAX_STREAMS;
        input.streams += usize::from(fits);
        Self {
            stdin: fits.then(|| stdin.clone()),
            seat: Box::pin(None),
        }
    }
}

impl<R> Drop for Stream<R> {
    fn drop(&mut self) {
        if let Some(stdin) = &self.stdin {
            stdin.input().streams -= 1;
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Stream<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stdin, seat } = &mut *self;
        match stdin {
            Some(stdin) => stdin.input().poll_read(Asking::new(seat.as_mut(), cx), buffer),
            // Of the errors that WASI has, this is the one that is not logged.
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

/// A handle of standard output.
pub(super) struct Stdout<W> {
    output: Arc<Mutex<Output<W>>>,
    /// Bytes that may be written by it before it asks again.
    permit: usize,
}

struct Output<W> {
    writer: Lent<W>,
    waiters: Waiters,
    turned: Turned,
    /// What the transport has not taken yet.
    waiting: BytesMut,
    end: Option<End>,
}

impl<W> Clone for Stdout<W> {
    fn clone(&self) -> Self {
        Self {
            output: Arc::clone(&self.output),
            permit: 0,
        }
    }
}

impl<W> Stdout<W> {
    pub(super) fn new(writer: Lent<W>, turned: Turned) -> Self {
        let output = Output {
            writer,
            waiters: Waiters::new(),
            turned,
            waiting: BytesMut::new(),
            end: None,
        };
        Self {
            output: Arc::new(Mutex::new(output)),
            permit: 0,
        }
    }

    fn output(&self) -> MutexGuard<'_, Output<W>> {
        // Nothing can panic while it is held.
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: AsyncWrite + Unpin> Stdout<W> {
    /// Hands what waits to the transport, as far as that takes it, and wakes the one who asks when
    /// it takes more.
    pub(super) fn drain(&self, asking: Asking<'_>) {
        let _ = self.output().poll_drain(Some(asking));
    }

    /// Waits until nothing waits for the transport any more.
    pub(super) async fn drained(&self) {
        wait(|asking| self.output().poll_drain(asking)).await;
    }
}

impl<W: AsyncWrite + Unpin> Output<W> {
    /// Hands what waits to the transport, and is ready when that has taken it.
    fn poll_drain(&mut self, mut asking: Option<Asking<'_>>) -> Poll<()> {
        while !self.waiting.is_empty() {
            let Self {
                writer,
                waiters,
                waiting,
                ..
            } = self;
            let asking = asking.as_mut().map(Asking::reborrow);
            match ready!(waiters.poll(asking, |cx| Pin::new(&mut *writer).poll_write(cx, waiting))) {
                Ok(count) if count > 0 => self.waiting.advance(count),
                Ok(_) => self.fail(io::ErrorKind::WriteZero.into()),
                Err(error) => self.fail(error),
            }
        }
        // A program that waits holds no memory for it.
        self.waiting = BytesMut::new();
        Poll::Ready(())
    }

    /// Is ready when there is room for more behind what waits.
    fn poll_room(&mut self, asking: Option<Asking<'_>>) -> Poll<()> {
        if self.waiting.len() < buffer::SIZE {
            return Poll::Ready(());
        }
        self.poll_drain(asking)
    }

    /// Puts bytes behind those that wait.
    fn put(&mut self, bytes: Bytes) -> StreamResult<()> {
        if self.waiting.is_empty() {
            self.waiting = bytes.into();
        } else if self.waiting.len() + bytes.len() <= MAX_WAITING {
            self.waiting.extend_from_slice(&bytes);
        } else {
            return Err(StreamError::trap(
                "the guest writes through too many handles of standard output at once",
            ));
        }
        let _ = self.poll_room(None);
        Ok(())
    }

    fn fail(&mut self, error: io::Error) {
        self.waiting.clear();
        self.end = Some(match error.kind() {
            // What WASI says of a pipe that nobody reads from.
            io::ErrorKind::BrokenPipe => End::Closed,
            _ => End::Failed(error),
        });
    }

    fn check(&mut self) -> StreamResult<()> {
        self.end.as_mut().map_or(Ok(()), |end| Err(end.tell()))
    }

    /// The same for who takes errors of the system.
    fn check_io(&mut self) -> io::Result<()> {
        let closed = Err(io::ErrorKind::BrokenPipe.into());
        self.end.as_mut().map_or(Ok(()), |end| end.tell_or(closed))
    }
}

impl<W> IsTerminal for Stdout<W> {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl<W: AsyncWrite + Unpin + Send + 'static> StdoutStream for Stdout<W> {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Writer {
            stdout: self.clone(),
            seat: Box::pin(None),
        })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl<W: AsyncWrite + Unpin + Send + 'static> Pollable for Stdout<W> {
    async fn ready(&mut self) {
        wait(|asking| self.output().poll_room(asking)).await;
    }
}

impl<W: AsyncWrite + Unpin + Send + 'static> OutputStream for Stdout<W> {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let Some(left) = self.permit.checked_sub(bytes.len()) else {
            return Err(StreamError::trap(
                "the guest wrote more than `check-write` permitted",
            ));
        };
        self.permit = left;
        let mut output = self.output();
        output.turned.set();
        output.check()?;
        // Who has to wait does so by `ready`.
        output.put(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.output().check()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let mut output = self.output();
        let room = output.poll_room(None);
        output.check()?;
        let permit = if room.is_ready() {
            // Others may have written more than that.
            buffer::SIZE.saturating_sub(output.waiting.len())
        } else {
            0
        };
        drop(output);
        self.permit = permit;
        Ok(permit)
    }
}

/// A stream of WASI 0.3 to standard output.
struct Writer<W> {
    stdout: Stdout<W>,
    seat: Pin<Box<Seat>>,
}

impl<W: AsyncWrite + Unpin + Send + 'static> AsyncWrite for Writer<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stdout, seat } = &mut *self;
        let mut output = stdout.output();
        output.turned.set();
        // What was written by another handle comes first.
        ready!(output.poll_drain(Some(Asking::new(seat.as_mut(), cx))));
        output.check_io()?;
        let Output { writer, waiters, .. } = &mut *output;
        match waiters.poll(None, |cx| Pin::new(&mut *writer).poll_write(cx, bytes)) {
            Poll::Ready(Ok(count)) => Poll::Ready(Ok(count)),
            Poll::Ready(Err(error)) => {
                output.fail(error);
                Poll::Ready(output.check_io().map(|()| 0))
            }
            // The bytes are taken, so that a program that gives up the write knows what is sent. Tasks
            // wait for the transport in `poll_flush`.
            Poll::Pending => {
                let count = bytes.len().min(buffer::SIZE);
                output.waiting = BytesMut::from(&bytes[..count]);
                Poll::Ready(Ok(count))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stdout, seat } = &mut *self;
        let mut output = stdout.output();
        ready!(output.poll_drain(Some(Asking::new(seat.as_mut(), cx))));
        Poll::Ready(output.check_io())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The program may have other handles, and the end of its output is its own end.
        self.poll_flush(cx)
    }
}
