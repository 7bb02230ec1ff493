//! Buffers for reading, shared by the connections of a thread.
//!
//! A connection holds a buffer only while bytes are in it, so that an idle one costs none, and reading
//! allocates nothing once a thread is warm.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes that one read may give, and the size of a buffer.
pub(crate) const SIZE: usize = 64 * 1024;

/// Spare buffers that a thread keeps: as many as calls into guests are usually under way at once.
const SPARE: usize = 8;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read. Its buffer goes back to the thread when it is dropped.
pub(crate) struct Chunk {
    buffer: Box<[u8]>,
    len: usize,
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.buffer));
    }
}

/// Reads what has arrived, waiting for the first byte. The chunk is empty at the end of the input.
///
/// Dropping the future loses no bytes.
///
/// # Errors
///
/// Those of `reader`.
pub(crate) async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Chunk> {
    poll_fn(|cx| poll_read(reader, cx, SIZE)).await
}

/// The same for who polls, and wants `max` bytes at most.
pub(crate) fn poll_read<R: AsyncRead + Unpin>(
    reader: &mut R,
    cx: &mut Context<'_>,
    max: usize,
) -> Poll<io::Result<Chunk>> {
    let mut buffer = take();
    let mut read = ReadBuf::new(&mut buffer[..max.min(SIZE)]);
    let polled = Pin::new(reader).poll_read(cx, &mut read);
    let len = read.filled().len();
    if !matches!(polled, Poll::Ready(Ok(()))) {
        give_back(buffer);
        ready!(polled)?;
        return Poll::Pending;
    }
    Poll::Ready(Ok(Chunk { buffer, len }))
}

/// Reads and drops all that comes, until the end of the input.
///
/// # Errors
///
/// Those of `reader`.
pub(crate) async fn discard<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<()> {
    while !read(reader).await?.is_empty() {}
    Ok(())
}

fn take() -> Box<[u8]> {
    let spare = BUFFERS.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    // A thread that ends has no use for it any more.
    let _ = BUFFERS.try_with(|buffers| {
        let mut buffers = buffers.borrow_mut();
        if buffers.len() < SPARE {
            buffers.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_chunk_holds_what_has_arrived_and_the_end_is_empty() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"hello").await.unwrap();
        assert_eq!(&*read(&mut near).await.unwrap(), b"hello");
        drop(far);
        assert!(read(&mut near).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn buffers_are_used_again() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"a").await.unwrap();
        let first = read(&mut near).await.unwrap().as_ptr();
        far.write_all(b"b").await.unwrap();
        assert_eq!(read(&mut near).await.unwrap().as_ptr(), first);
    }

    #[tokio::test]
    async fn a_waiting_read_holds_no_buffer() {
        let (mut near, _far) = tokio::io::duplex(64);
        let mut reading = std::pin::pin!(read(&mut near));
        assert!(futures_poll(reading.as_mut()).await.is_pending());
        assert_eq!(BUFFERS.with_borrow(Vec::len), 1);
    }

    async fn futures_poll<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
    }
}
