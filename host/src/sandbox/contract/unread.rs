//! Answers that wait for their peer.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use memmap2::MmapMut;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// Bytes of an answer that wait for the peer in a memory mapping, and not on the heap.
///
/// The heap keeps what a burst of large answers has taken, since a small block that lies behind it
/// holds it back. A mapping goes back to the system. An answer that the peer takes at once stays on
/// the heap, where the next one finds warm memory.
const LARGE: usize = 64 << 10;

/// Writes an answer.
///
/// # Errors
///
/// Those of `writer`.
pub(super) async fn write_all<W: AsyncWrite + Unpin>(writer: &mut W, answer: Vec<u8>) -> io::Result<()> {
    let written = poll_fn(|cx| Poll::Ready(write_at_once(writer, cx, &answer))).await?;
    let rest = answer.get(written..).unwrap_or_default();
    if rest.len() < LARGE {
        return writer.write_all(rest).await;
    }
    // Boxed, since few answers come to it.
    Box::pin(write_later(writer, answer, written)).await
}

/// Writes what `writer` takes without a wait, and returns how many bytes these are.
fn write_at_once<W: AsyncWrite + Unpin>(
    writer: &mut W,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match Pin::new(&mut *writer).poll_write(cx, &bytes[written..]) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(more) => written += more?,
            Poll::Pending => break,
        }
    }
    Ok(written)
}

/// Writes what of an answer has not been `written`, from memory of its own if the system has some.
async fn write_later<W: AsyncWrite + Unpin>(
    writer: &mut W,
    answer: Vec<u8>,
    written: usize,
) -> io::Result<()> {
    let Ok(mut rest) = MmapMut::map_anon(answer.len() - written) else {
        return writer.write_all(&answer[written..]).await;
    };
    rest.copy_from_slice(&answer[written..]);
    drop(answer);
    writer.write_all(&rest).await
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn answers_of_all_sizes_arrive_whole_however_the_peer_reads() {
        for takes in [1, 1000, LARGE, 4 * LARGE] {
            for len in [0, 1, 1000, LARGE - 1, LARGE, LARGE + 1000, 4 * LARGE] {
                let answer: Vec<_> = (0..len).map(|at| (at % 251) as u8).collect();
                let expected = answer.clone();
                let (mut near, mut far) = tokio::io::duplex(takes);
                let writing = async move { write_all(&mut near, answer).await };
                let mut got = Vec::new();
                let (wrote, read) = tokio::join!(writing, far.read_to_end(&mut got));
                wrote.unwrap();
                read.unwrap();
                assert!(got == expected, "{len} bytes, {takes} at once");
            }
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_wherever_it_is_found() {
        let (mut near, far) = tokio::io::duplex(1000);
        let writing = write_all(&mut near, vec![0; 2 * LARGE]);
        let (wrote, ()) = tokio::join!(writing, async move { drop(far) });
        assert_eq!(wrote.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let wrote = write_all(&mut near, vec![0; 10]).await;
        assert_eq!(wrote.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
