//! The echo server without any runtime: a thread for each connection.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::thread;

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).ok_or(io::ErrorKind::InvalidInput)?;
    let listener = TcpListener::bind(address)?;
    loop {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        thread::Builder::new().stack_size(256 << 10).spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(count) = socket.read(&mut buffer) {
                if count == 0 || socket.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        })?;
    }
}
