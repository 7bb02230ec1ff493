//! A transport that does what a case says: reads in chunks, short writes, the end and resets.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use arbitrary::{Arbitrary, Unstructured};
use host::peer::Peer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Clone, Debug)]
pub(crate) enum Read {
    Bytes(Vec<u8>),
    /// So many bytes of one kind, as long lines need them.
    Many(u16),
    Line(u8),
    Quit,
    Wait,
}

impl Read {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Many(count) => vec![b'm'; usize::from(*count) % 6000],
            Self::Line(count) => [vec![b'l'; usize::from(*count)], vec![b'\n']].concat(),
            Self::Quit => b"quit\n".to_vec(),
            Self::Wait => Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
    Silence,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Write {
    Short(u8),
    Wait,
    Reset,
}

impl<'a> Arbitrary<'a> for Read {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=4)? {
            0 => Self::Bytes(u.arbitrary()?),
            1 => Self::Many(u.arbitrary()?),
            2 => Self::Line(u.arbitrary()?),
            3 => Self::Quit,
            _ => Self::Wait,
        })
    }
}

impl<'a> Arbitrary<'a> for End {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(*u.choose(&[Self::Fin, Self::Reset, Self::Silence])?)
    }
}

impl<'a> Arbitrary<'a> for Write {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=2)? {
            0 => Self::Short(u.arbitrary()?),
            1 => Self::Wait,
            _ => Self::Reset,
        })
    }
}

pub(crate) fn peer() -> Peer {
    Peer {
        connection: 1,
        remote: "192.0.2.7:49152".into(),
        local: "192.0.2.1:8080".into(),
        listener: "fuzz".into(),
        ..Peer::default()
    }
}

pub(crate) struct Reader {
    /// The chunks that are left to read. An empty chunk stands for a wait.
    pub(crate) reads: VecDeque<Vec<u8>>,
    pub(crate) end: End,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.reads.pop_front() {
            Some(chunk) if chunk.is_empty() => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(mut chunk) => {
                let rest = chunk.split_off(chunk.len().min(buffer.remaining()));
                buffer.put_slice(&chunk);
                if !rest.is_empty() {
                    self.reads.push_front(rest);
                }
                Poll::Ready(Ok(()))
            }
            None => match self.end {
                End::Fin => Poll::Ready(Ok(())),
                End::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                End::Silence => Poll::Pending,
            },
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) bytes: Vec<u8>,
    pub(crate) finished: bool,
    pub(crate) reset: bool,
}

pub(crate) struct Writer {
    pub(crate) writes: VecDeque<Write>,
    pub(crate) heard: Arc<Mutex<Heard>>,
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let next = self.writes.pop_front();
        let mut heard = self.heard.lock().unwrap();
        assert!(!heard.finished, "written after FIN");
        let count = match next {
            _ if heard.reset => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some(Write::Reset) => {
                heard.reset = true;
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            Some(Write::Wait) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Write::Short(count)) => bytes.len().min(usize::from(count) + 1),
            None => bytes.len(),
        };
        heard.bytes.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut heard = self.heard.lock().unwrap();
        if heard.reset {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        heard.finished = true;
        Poll::Ready(Ok(()))
    }
}
