//! An echo server as a component that binds its own socket through `wasi:sockets` and waits by `wasi:io/poll`: what
//! one would write for `wasmtime run -S inherit-network`. All connections share its one instance.

#![forbid(unsafe_code)]

use wasip2::io::poll::{self, Pollable};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

/// How much is read at once, in bytes.
const CHUNK: u64 = 64 * 1024;

/// One connection. Its streams have to go before its socket, so they come first.
struct Connection {
    readable: Pollable,
    writable: Pollable,
    input: InputStream,
    output: OutputStream,
    /// What was read and not yet written.
    rest: Vec<u8>,
    _socket: TcpSocket,
}

impl Connection {
    /// What it waits for: to write if there is something to write, else to read.
    fn waits_for(&self) -> &Pollable {
        if self.rest.is_empty() {
            &self.readable
        } else {
            &self.writable
        }
    }

    /// Moves what can be moved without waiting.
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
        // From the last to the first, so that one that is removed moves none that is still to come.
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
