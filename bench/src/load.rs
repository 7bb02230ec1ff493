//! Clients: load on an echo server, from one thread with an event loop of its own.
//!
//! All of it is bounded in connections and time, and goes to the loopback interface only.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// What one run of a workload gave.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Operations (round trips, or connections) or, of bulk, bytes that came back.
    pub(crate) count: u64,
    /// From the first to the last.
    pub(crate) elapsed: Duration,
    /// Time of each operation in nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Run {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            count: 0,
            elapsed: Duration::ZERO,
            latency: Histogram::new_with_max(60_000_000_000, 3)?,
        })
    }

    /// Operations, or bytes, a second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }
}

/// The longest that a server may leave a client without an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at once when each does one operation and ends.
const CONNECTING: usize = 8;

struct Client {
    socket: TcpStream,
    message: usize,
    sent: usize,
    received: usize,
    since: Instant,
}

/// Each of `connections` sends a message and waits for it to come back, again and again, for `time`. Messages are
/// taken from `messages` by turns.
pub(crate) fn ping_pong(
    address: SocketAddr,
    connections: usize,
    messages: &[Vec<u8>],
    time: Duration,
) -> anyhow::Result<Run> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut clients = Vec::with_capacity(connections);
    for index in 0..connections {
        let mut socket = TcpStream::from_std(connect(address)?);
        let token = Token(index);
        poll.registry().register(&mut socket, token, Interest::READABLE)?;
        clients.push(Client {
            socket,
            message: index % messages.len(),
            sent: 0,
            received: 0,
            since: Instant::now(),
        });
    }
    let mut run = Run::new()?;
    let mut buffer = vec![0; 65536];
    let start = Instant::now();
    let end = start + time;
    for client in &mut clients {
        client.since = Instant::now();
        client.send(messages)?;
    }
    let mut last = start;
    while last < end {
        poll.poll(&mut events, Some(PATIENCE))?;
        ensure!(!events.is_empty(), "the server sent nothing for {PATIENCE:?}");
        for event in &events {
            let Some(client) = clients.get_mut(event.token().0) else {
                continue;
            };
            let message = &messages[client.message];
            while client.received < message.len() {
                match client.socket.read(&mut buffer) {
                    Ok(0) => bail!("the server closed a connection"),
                    Ok(count) => client.received += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("cannot read from the server"),
                }
            }
            if client.received == message.len() {
                let now = Instant::now();
                run.latency
                    .saturating_record((now - client.since).as_nanos() as u64);
                run.count += 1;
                client.since = now;
                client.message = (client.message + 1) % messages.len();
                client.sent = 0;
                client.received = 0;
                client.send(messages)?;
            }
        }
        last = Instant::now();
    }
    run.elapsed = last - start;
    Ok(run)
}

impl Client {
    /// Messages of a ping-pong are smaller than any socket's buffer, so each goes out at once.
    fn send(&mut self, messages: &[Vec<u8>]) -> io::Result<()> {
        let message = &messages[self.message];
        while self.sent < message.len() {
            self.sent += self.socket.write(&message[self.sent..])?;
        }
        Ok(())
    }
}

/// Each of `connections` sends and receives as fast as it can for `time`. `chunk` is what is sent.
pub(crate) fn bulk(
    address: SocketAddr,
    connections: usize,
    chunk: &[u8],
    time: Duration,
) -> anyhow::Result<Run> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut sockets = Vec::with_capacity(connections);
    for index in 0..connections {
        let mut socket = TcpStream::from_std(connect(address)?);
        poll.registry()
            .register(&mut socket, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        sockets.push((socket, 0));
    }
    let mut run = Run::new()?;
    let mut buffer = vec![0; 256 << 10];
    let start = Instant::now();
    let end = start + time;
    let mut last = start;
    while last < end {
        poll.poll(&mut events, Some(PATIENCE))?;
        ensure!(!events.is_empty(), "the server sent nothing for {PATIENCE:?}");
        for event in &events {
            let Some((socket, at)) = sockets.get_mut(event.token().0) else {
                continue;
            };
            // Readiness is told once: each side goes on until it would block.
            loop {
                let mut blocked = 0;
                match socket.write(&chunk[*at..]) {
                    Ok(count) => *at = (*at + count) % chunk.len(),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => blocked += 1,
                    Err(error) => return Err(error).context("cannot write to the server"),
                }
                match socket.read(&mut buffer) {
                    Ok(0) => bail!("the server closed a connection"),
                    Ok(count) => run.count += count as u64,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => blocked += 1,
                    Err(error) => return Err(error).context("cannot read from the server"),
                }
                if blocked == 2 || Instant::now() >= end {
                    break;
                }
            }
        }
        last = Instant::now();
    }
    run.elapsed = last - start;
    Ok(run)
}

/// Connects, sends `message`, waits for it to come back and closes, again and again, for `time`.
pub(crate) fn connect_and_close(address: SocketAddr, message: &[u8], time: Duration) -> anyhow::Result<Run> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(64);
    let mut run = Run::new()?;
    let mut buffer = vec![0; message.len()];
    let start = Instant::now();
    let end = start + time;
    let mut clients: Vec<Option<Client>> = Vec::new();
    for index in 0..CONNECTING {
        clients.push(Some(open(&poll, index, address, message)?));
    }
    let mut last = start;
    while last < end {
        poll.poll(&mut events, Some(PATIENCE))?;
        ensure!(!events.is_empty(), "the server sent nothing for {PATIENCE:?}");
        for event in &events {
            let index = event.token().0;
            let Some(slot) = clients.get_mut(index) else {
                continue;
            };
            let Some(client) = slot else { continue };
            match client.socket.read(&mut buffer[client.received..]) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(count) => client.received += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("cannot read from the server"),
            }
            if client.received == message.len() {
                run.latency
                    .saturating_record(client.since.elapsed().as_nanos() as u64);
                run.count += 1;
                // Closed before the next is opened, so that there are never more.
                *slot = None;
                *slot = Some(open(&poll, index, address, message)?);
            }
        }
        last = Instant::now();
    }
    run.elapsed = last - start;
    Ok(run)
}

fn open(poll: &Poll, index: usize, address: SocketAddr, message: &[u8]) -> anyhow::Result<Client> {
    let since = Instant::now();
    let mut socket = TcpStream::from_std(connect(address)?);
    socket.write_all(message)?;
    poll.registry()
        .register(&mut socket, Token(index), Interest::READABLE)?;
    Ok(Client {
        socket,
        message: 0,
        sent: message.len(),
        received: 0,
        since,
    })
}

/// Opens up to `connections` that have each been answered once, and keeps them; fewer if the server, or this process, can
/// take no more.
pub(crate) fn idle(address: SocketAddr, connections: usize, message: &[u8]) -> Vec<std::net::TcpStream> {
    (0..connections)
        .map_while(|_| spoken_once(address, message).ok())
        .collect()
}

fn spoken_once(address: SocketAddr, message: &[u8]) -> anyhow::Result<std::net::TcpStream> {
    let mut socket = connect(address)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(message)?;
    socket.read_exact(&mut vec![0; message.len()])?;
    Ok(socket)
}

/// Connects. Ports of connections that were closed a moment ago are used again, as Linux allows on the loopback
/// interface (`net.ipv4.tcp_tw_reuse`).
fn connect(address: SocketAddr) -> anyhow::Result<std::net::TcpStream> {
    let socket =
        std::net::TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
