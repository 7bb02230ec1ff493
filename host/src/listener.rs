//! Listeners: where connections come from, and their sockets.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::AsyncWrite;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use crate::config::{Address, Listen};

/// Connections that the kernel keeps for a listener until they are accepted. The kernel may allow fewer
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// The pause after an accept that failed for want of something, which doubles from the one to the other.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Connections in a row that may be gone before they are accepted. Then it is not the connections: back off.
const MAX_SKIPPED: u32 = 100;

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    local: SocketAddr,
    name: String,
    /// The last pause, while connections cannot be accepted.
    pause: Option<Duration>,
}

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub stream: TcpStream,
    /// The peer's address.
    pub remote: SocketAddr,
    /// The address that the peer has reached.
    pub local: SocketAddr,
}

/// What to do about an accept that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// One connection died before it was accepted: go on with the next.
    Next,
    /// Something is used up, which takes time to change.
    BackOff,
}

fn listen(address: SocketAddr) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the last connections of the previous process to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let socket = TcpListener::from_std(socket.into())?;
    let local = socket.local_addr()?;
    Ok(Listener {
        name: local.to_string(),
        socket,
        local,
        pause: None,
    })
}

impl Listener {
    /// Binds `address` and listens there; port 0 stands for any that is free.
    ///
    /// # Errors
    ///
    /// The address is in use, is not of this machine, or may not be bound.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(config: &Listen) -> anyhow::Result<Self> {
        let address = match &config.address {
            Address::Tcp(address) => *address,
            other => anyhow::bail!("cannot listen on {other}: not yet"),
        };
        listen(address).with_context(|| {
            format!("cannot listen on {address}; choose another address with --listen, or stop what uses it")
        })
    }

    /// Has it do what `config` says, which has the same address, from now on.
    pub fn configure(&mut self, _config: &Listen) {}

    /// The address, with the port that was picked.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// What guests are told as the listener's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address that was reached. It takes asking only where the listener has every address of the machine.
    fn reached(&self, stream: &TcpStream) -> SocketAddr {
        if self.local.ip().is_unspecified() {
            stream.local_addr().unwrap_or(self.local)
        } else {
            self.local
        }
    }

    /// Waits for a connection, whatever errors come before it.
    pub async fn accept(&mut self) -> Accepted {
        let mut skipped = 0;
        loop {
            match self.socket.accept().await {
                Ok((stream, remote)) => {
                    if self.pause.take().is_some() {
                        info!(listener = self.name, "accepting again");
                    }
                    return Accepted {
                        local: self.reached(&stream),
                        stream,
                        remote,
                    };
                }
                Err(error) => match remedy(&error) {
                    Remedy::Next if skipped < MAX_SKIPPED => {
                        debug!(listener = self.name, %error, "a connection was gone before it was accepted");
                        skipped += 1;
                    }
                    Remedy::Next | Remedy::BackOff => {
                        let pause = self.pause;
                        if pause.is_none() {
                            warn!(
                                listener = self.name,
                                %error,
                                "cannot accept connections for now; they wait in the backlog \
                                 (is the limit on descriptors, ulimit -n, too low for --max-connections?)"
                            );
                        }
                        let wait = pause.map_or(BACK_OFF.0, |last: Duration| (last * 2).min(BACK_OFF.1));
                        self.pause = Some(wait);
                        tokio::time::sleep(wait).await;
                    }
                },
            }
        }
    }
}

/// What to do about `error`, by the kinds that accept(2) lists for Linux.
fn remedy(error: &io::Error) -> Remedy {
    match error.raw_os_error() {
        #[cfg(target_os = "linux")]
        Some(libc::ENONET) => Remedy::Next,
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::EPERM
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH,
        ) => Remedy::Next,
        // EMFILE, ENFILE, ENOBUFS, ENOMEM, and what nobody foresaw: never spin on it.
        _ => Remedy::BackOff,
    }
}

/// Splits a connection's socket into its halves. They must be used as one connection: dropping the writer before
/// it was shut down resets the connection.
pub fn split(stream: TcpStream) -> (OwnedReadHalf, Writer) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY; answers may be delayed");
    }
    let (reader, writer) = stream.into_split();
    let writer = Writer {
        half: Some(writer),
        finished: false,
    };
    (reader, writer)
}

/// The writing half of a TCP connection. Dropped before it was shut down, it makes the close a reset.
#[derive(Debug)]
pub struct Writer {
    half: Option<OwnedWriteHalf>,
    finished: bool,
}

impl Writer {
    fn half(&mut self) -> io::Result<Pin<&mut OwnedWriteHalf>> {
        self.half
            .as_mut()
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Some(half) = self.half.take() else { return };
        if !self.finished {
            // With no time to linger close(2) drops what is unsent and sends RST.
            let socket: &TcpStream = half.as_ref();
            if let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
                debug!(%error, "cannot reset a connection; it is closed instead");
            }
        }
        // Its own drop would send FIN first.
        half.forget();
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.half()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.half()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.half()?.poll_shutdown(cx);
        self.finished |= matches!(polled, Poll::Ready(Ok(())));
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_client_is_skipped_and_exhaustion_is_waited_out() {
        let remedy = |code| remedy(&io::Error::from_raw_os_error(code));
        for code in [libc::ECONNABORTED, libc::EINTR, libc::EPROTO] {
            assert_eq!(remedy(code), Remedy::Next, "{code}");
        }
        for code in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EINVAL,
        ] {
            assert_eq!(remedy(code), Remedy::BackOff, "{code}");
        }
    }

    fn at(address: SocketAddr) -> Listen {
        Listen::at(Address::Tcp(address))
    }

    #[tokio::test]
    async fn a_connection_knows_the_address_that_it_reached() {
        for bound in [[127, 0, 0, 2], [0, 0, 0, 0]] {
            let mut listener = Listener::bind(&at((bound, 0).into())).unwrap();
            let reached = SocketAddr::from(([127, 0, 0, 2], listener.local().port()));
            let (accepted, client) = tokio::join!(listener.accept(), TcpStream::connect(reached));
            assert_eq!(accepted.local, reached);
            assert_eq!(accepted.remote, client.unwrap().local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let first = Listener::bind(&at(([127, 0, 0, 1], 0).into())).unwrap();
        let error = format!("{:#}", Listener::bind(&at(first.local())).unwrap_err());
        assert!(error.contains(&first.local().to_string()), "{error}");
        assert!(error.contains("--listen"), "{error}");
    }
}
