//! The sockets of connections, and their halves.
//!
//! One type stands for all transports, so that what moves bytes is compiled once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use crate::tls;

/// The socket of a connection that was accepted.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A socket of the file system.
    Unix(UnixStream),
}

impl Stream {
    /// Splits it into its halves. They must be used as one connection: dropping the writer before it was shut down resets
    /// the connection.
    pub fn split(self) -> (Reader, Writer) {
        let taken = Arc::<Taken>::default();
        let (reader, half) = match self {
            Self::Tcp(stream) => {
                let (reader, half) = stream.into_split();
                (Reader::Tcp(reader, Arc::clone(&taken)), Half::Tcp(half, taken))
            }
            Self::Unix(stream) => {
                let (reader, half) = stream.into_split();
                (Reader::Unix(reader, Arc::clone(&taken)), Half::Unix(half, taken))
            }
        };
        (reader, Writer::new(half))
    }

    /// Has its close be a reset.
    pub(crate) fn to_be_reset(&self) {
        match self {
            Self::Tcp(stream) => to_be_reset(stream),
            Self::Unix(_) => {}
        }
    }

    /// Resets the connection.
    pub fn reset(self) {
        self.to_be_reset();
    }
}

/// Has the close of a socket be a reset. Sockets of the file system know none: their peer finds the end, or a reset where
/// bytes of its own were not read.
fn to_be_reset(socket: &TcpStream) {
    // With no time to linger close(2) drops what is unsent and sends RST. This fails for no open
    // socket of TCP.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// Writes several records at once. After a failed handshake, tokio-rustls writes only once, and
    /// the alert may follow other records.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The failure of a connection that one operation has taken from its socket.
///
/// Linux reports a failure once. If a write takes it, later reads return the bytes that arrived
/// before, and then 0, as after FIN.
#[derive(Debug, Default)]
pub struct Taken(
    /// The error number; 0 if there is none.
    AtomicI32,
);

impl Taken {
    /// Keeps the failure of an operation, if the connection failed with it.
    ///
    /// `EPIPE` is not kept. The kernel returns it for a reset that came after FIN, and on a Unix
    /// socket whose peer is closed. In both cases a read of 0 bytes is the peer's end.
    pub(crate) fn keep(&self, error: &io::Error) {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut,
        };
        if let Some(code) = error.raw_os_error()
            && matches!(
                error.kind(),
                ConnectionReset
                    | ConnectionAborted
                    | TimedOut
                    | HostUnreachable
                    | NetworkUnreachable
                    | NetworkDown
            )
        {
            // The first failure is the cause of the others.
            let _ = self.0.compare_exchange(0, code, Release, Acquire);
        }
    }

    /// Keeps the failure of a write. Returns the failure of the connection in place of `EPIPE`,
    /// with which each later write fails.
    pub(crate) fn write<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        polled.map_err(|error| {
            self.keep(&error);
            match self.0.load(Acquire) {
                code if code != 0 && error.kind() == io::ErrorKind::BrokenPipe => {
                    io::Error::from_raw_os_error(code)
                }
                _ => error,
            }
        })
    }

    /// Reads by `read`, and returns the failure of the connection in place of its end.
    pub(crate) fn read(
        &self,
        buffer: &mut ReadBuf<'_>,
        read: impl FnOnce(&mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(read(buffer));
        match &result {
            Ok(()) if buffer.filled().len() == before && buffer.remaining() > 0 => match self.0.load(Acquire)
            {
                0 => {}
                code => return Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            },
            Ok(()) => {}
            Err(error) => self.keep(error),
        }
        Poll::Ready(result)
    }
}

/// The reading half of a connection.
#[derive(Debug)]
pub enum Reader {
    /// Of TCP.
    Tcp(tcp::OwnedReadHalf, Arc<Taken>),
    /// Of a socket of the file system.
    Unix(unix::OwnedReadHalf, Arc<Taken>),
    /// Of either, encrypted.
    Tls(tls::Reader),
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half, taken) => taken.read(buffer, |buffer| Pin::new(half).poll_read(cx, buffer)),
            Self::Unix(half, taken) => taken.read(buffer, |buffer| Pin::new(half).poll_read(cx, buffer)),
            Self::Tls(half) => Pin::new(half).poll_read(cx, buffer),
        }
    }
}

/// The writing half of a connection. Dropped before it was shut down, it makes the close a reset.
#[derive(Debug)]
pub struct Writer {
    half: Option<Half>,
    finished: bool,
}

#[derive(Debug)]
enum Half {
    Tcp(tcp::OwnedWriteHalf, Arc<Taken>),
    Unix(unix::OwnedWriteHalf, Arc<Taken>),
    Tls(tls::Writer),
}

impl Writer {
    fn new(half: Half) -> Self {
        Self {
            half: Some(half),
            finished: false,
        }
    }

    /// The writing half of an encrypted connection.
    pub(crate) fn tls(half: tls::Writer) -> Self {
        Self::new(Half::Tls(half))
    }

    fn half(&mut self) -> io::Result<&mut Half> {
        self.half
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        match self.half.take() {
            Some(Half::Tcp(half, _)) => {
                if !self.finished {
                    to_be_reset(half.as_ref());
                }
                // Its own drop would send FIN first.
                half.forget();
            }
            Some(Half::Unix(half, _)) => half.forget(),
            Some(Half::Tls(half)) if !self.finished => half.reset(),
            Some(Half::Tls(_)) => {}
            None => {}
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.half()? {
            Half::Tcp(half, taken) => taken.write(Pin::new(half).poll_write(cx, bytes)),
            Half::Unix(half, taken) => taken.write(Pin::new(half).poll_write(cx, bytes)),
            Half::Tls(half) => Pin::new(half).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.half()? {
            Half::Tcp(half, _) => Pin::new(half).poll_flush(cx),
            Half::Unix(half, _) => Pin::new(half).poll_flush(cx),
            Half::Tls(half) => Pin::new(half).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = match self.half()? {
            Half::Tcp(half, _) => Pin::new(half).poll_shutdown(cx),
            Half::Unix(half, _) => Pin::new(half).poll_shutdown(cx),
            Half::Tls(half) => Pin::new(half).poll_shutdown(cx),
        };
        self.finished |= matches!(polled, Poll::Ready(Ok(())));
        polled
    }
}

#[cfg(test)]
mod tests;
