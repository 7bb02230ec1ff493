//! The fastest echo server that we can write with tokio: a runtime of its own for each core, sharing one listening
//! socket, and a buffer of 64 KiB that the connections of a thread share while none of them waits.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener as StdListener;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::thread;

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).ok_or(io::ErrorKind::InvalidInput)?;
    let address: std::net::SocketAddr = address.parse().map_err(io::Error::other)?;
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    let listener = StdListener::from(socket);
    let threads: Vec<_> = (0..thread::available_parallelism()?.get())
        .map(|_| {
            let listener = listener.try_clone();
            thread::spawn(move || serve(listener?))
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn serve(listener: StdListener) -> io::Result<()> {
    Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(async {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                tokio::spawn(echo(socket));
            }
        })
}

async fn echo(mut socket: TcpStream) -> io::Result<()> {
    loop {
        let (buffer, count) = read(&mut socket).await?;
        if count == 0 {
            return Ok(());
        }
        socket.write_all(&buffer[..count]).await?;
        BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
    }
}

async fn read(socket: &mut TcpStream) -> io::Result<(Box<[u8]>, usize)> {
    poll_fn(|cx| {
        let spare = BUFFERS.with_borrow_mut(Vec::pop);
        let mut buffer = spare.unwrap_or_else(|| vec![0; 65536].into_boxed_slice());
        let mut read = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut *socket).poll_read(cx, &mut read);
        let count = read.filled().len();
        if polled.is_pending() {
            BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
            return Poll::Pending;
        }
        ready!(polled)?;
        Poll::Ready(Ok((buffer, count)))
    })
    .await
}
