//! The echo server that everybody writes first with tokio: its default runtime, a task for each connection, and
//! `io::copy`.

use tokio::io;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).ok_or(io::ErrorKind::InvalidInput)?;
    let listener = TcpListener::bind(address).await?;
    loop {
        let (mut socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            let (mut reader, mut writer) = socket.split();
            let _ = io::copy(&mut reader, &mut writer).await;
        });
    }
}
