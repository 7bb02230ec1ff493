//! An echo server as a component for `wasmtime run -S inherit-network`.
//!
//! It binds its own socket through `wasi:sockets` and waits with `wasi:io/poll`. All connections
//! share the single instance.

#![forbid(unsafe_code)]

use wasip2::io::poll::{self, Pollable};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

/// The size of a read, in bytes.
const CHUNK: u64 = 64 * 1024;

/// One connection.
///
/// Fields are dropped in order, and the streams must be dropped before their socket.
struct Connection {
    readable: Pollable,
    writable: Pollable,
    input: InputStream,
    output: OutputStream,
    /// Bytes that were read but not yet written.
    rest: Vec<u8>,
    _socket: TcpSocket,
}

impl Connection {
    /// Returns the event to wait for: writable if bytes remain to be written, otherwise readable.
    fn waits_for(&self) -> &Pollable {
        if self.rest.is_empty() {
            &self.readable
        } else {
            &self.writable
        }
    }

    /// Reads and writes as much as possible without blocking.
    fn advance(&mut self) -> Result<(), StreamError> {
        if self.rest.is_empty() {
            self.rest = self.input.read(CHUNK)?;
        }
        let room = self.output.check_write()?.min(self.rest.len() as u64) as usize;
        if room > 0 {
            self.output.write(&self.rest[..room])?;
            self.output.flush()?;
            self.rest.drain(..room);
        }
        Ok(())
    }
}

fn main() {
    let address = std::env::args().nth(1).expect("the address to listen on");
    let listener = listen(&address).expect("listening");
    let acceptable = listener.subscribe();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let mut waits = vec![&acceptable];
        waits.extend(connections.iter().map(Connection::waits_for));
        let mut ready = poll::poll(&waits);
        // Start with the highest index: `swap_remove` then never moves a connection that is still
        // to be handled.
        ready.sort_unstable_by(|a, b| b.cmp(a));
        for index in ready {
            match index.checked_sub(1) {
                Some(index) => {
                    let index = index as usize;
                    if connections[index].advance().is_err() {
                        connections.swap_remove(index);
                    }
                }
                None => {
                    while let Ok((socket, input, output)) = listener.accept() {
                        connections.push(Connection {
                            readable: input.subscribe(),
                            writable: output.subscribe(),
                            input,
                            output,
                            rest: Vec::new(),
                            _socket: socket,
                        });
                    }
                }
            }
        }
    }
}

fn listen(address: &str) -> Result<TcpSocket, ErrorCode> {
    let address: std::net::SocketAddrV4 = address.parse().map_err(|_| ErrorCode::InvalidArgument)?;
    let [a, b, c, d] = address.ip().octets();
    let local = IpSocketAddress::Ipv4(Ipv4SocketAddress {
        port: address.port(),
        address: (a, b, c, d),
    });
    let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
    let ready = socket.subscribe();
    socket.set_listen_backlog_size(4096)?;
    socket.start_bind(&instance_network(), local)?;
    ready.block();
    socket.finish_bind()?;
    socket.start_listen()?;
    ready.block();
    socket.finish_listen()?;
    drop(ready);
    Ok(socket)
}
