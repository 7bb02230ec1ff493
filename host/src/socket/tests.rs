//! Halves of real sockets whose peer is gone.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use super::*;

/// The halves of a TCP connection, and its client.
async fn tcp() -> (Reader, Writer, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpSocket::new_v4().unwrap();
    let connecting = client.connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(connecting, listener.accept());
    let (reader, writer) = Stream::Tcp(accepted.unwrap().0).split();
    (reader, writer, client.unwrap())
}

/// Writes until that fails.
async fn fail(writer: &mut Writer) -> io::Error {
    loop {
        if let Err(error) = writer.write_all(b"answer").await {
            return error;
        }
    }
}

async fn read(reader: &mut Reader) -> (Vec<u8>, Option<io::ErrorKind>) {
    let mut bytes = Vec::new();
    let read = reader.read_to_end(&mut bytes).await;
    (bytes, read.err().map(|error| error.kind()))
}

#[tokio::test]
async fn a_reset_that_a_write_has_taken_ends_what_is_read() {
    let (mut reader, mut writer, mut client) = tcp().await;
    client.write_all(b"upload").await.unwrap();
    to_be_reset(&client);
    drop(client);
    // The second write would fail with `EPIPE`.
    for _ in 0..2 {
        assert_eq!(fail(&mut writer).await.kind(), io::ErrorKind::ConnectionReset);
    }
    let reset = Some(io::ErrorKind::ConnectionReset);
    assert_eq!(read(&mut reader).await, (b"upload".to_vec(), reset));
    assert_eq!(read(&mut reader).await, (Vec::new(), reset));
}

#[tokio::test]
async fn a_reset_after_fin_leaves_the_end_of_what_is_read() {
    let (mut reader, mut writer, mut client) = tcp().await;
    client.write_all(b"upload").await.unwrap();
    client.shutdown().await.unwrap();
    to_be_reset(&client);
    drop(client);
    assert_eq!(fail(&mut writer).await.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(read(&mut reader).await, (b"upload".to_vec(), None));
}

#[tokio::test]
async fn a_unix_socket_that_is_closed_ends_what_is_read() {
    for unread in [false, true] {
        let (accepted, mut client) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = Stream::Unix(accepted).split();
        if unread {
            writer.write_all(b"unread").await.unwrap();
        }
        client.write_all(b"upload").await.unwrap();
        drop(client);
        assert_eq!(fail(&mut writer).await.kind(), io::ErrorKind::BrokenPipe);
        let end = unread.then_some(io::ErrorKind::ConnectionReset);
        assert_eq!(read(&mut reader).await, (b"upload".to_vec(), end));
    }
}
