//! A connection, with both contracts' line guests, over a transport that does what the case says: reads in chunks, short
//! writes, the end, resets, and a cut from outside.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use host::config::{CacheDir, Grants, Limits};
use host::connection::{self, Outcome};
use host::half::Half;
use host::peer::Peer;
use host::sandbox::{Generation, Origin, Sandbox};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

/// The longest line that the guests take.
const MAX_LINE: usize = 4096;

/// What the guests say of a longer one.
const TOO_LONG: &[u8] = b"error: a line may have at most 4096 bytes\n";

#[derive(Debug)]
struct Case {
    sessions: bool,
    reads: Vec<Read>,
    /// What comes when all has been read.
    end: End,
    writes: Vec<Write>,
    /// How often the connection may be polled before it is cut.
    cut: Option<u16>,
}

#[derive(Clone, Debug)]
enum Read {
    Bytes(Vec<u8>),
    /// So many bytes of one kind, as long lines need them.
    Many(u16),
    Line(u8),
    Quit,
    Wait,
}

impl Read {
    fn bytes(&self) -> Vec<u8> {
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
enum End {
    Fin,
    Reset,
    Silence,
}

#[derive(Clone, Copy, Debug)]
enum Write {
    Short(u8),
    Wait,
    Reset,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            sessions: u.arbitrary()?,
            reads: u.arbitrary()?,
            end: u.arbitrary()?,
            writes: u.arbitrary()?,
            cut: u.arbitrary()?,
        })
    }
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

/// Serves a connection.
///
/// # Panics
///
/// The peer hears what the model does not say, or the connection ends otherwise.
pub fn run(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let reads: VecDeque<Vec<u8>> = case.reads.iter().map(Read::bytes).collect();
    let input: Vec<u8> = reads.iter().flatten().copied().collect();
    let reader = Reader { reads, end: case.end };
    let heard = Arc::new(Mutex::new(Heard::default()));
    let writer = Writer {
        writes: case.writes.iter().copied().collect(),
        heard: Arc::clone(&heard),
    };
    let mut polls = case.cut;
    let cut = poll_fn(move |cx| match &mut polls {
        None => Poll::Pending,
        Some(0) => Poll::Ready(Outcome::Drained),
        Some(left) => {
            *left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    });
    let served = &*SERVED;
    let generation = if case.sessions {
        &served.sessions
    } else {
        &served.streams
    };
    let report = served.runtime.block_on(async {
        // Here, where time is that of the runtime.
        let inbound = Half::new(reader, limits().max_bytes_in);
        let outbound = Half::new(writer, limits().max_bytes_out);
        connection::serve(generation, &peer(), inbound, outbound, &limits(), cut).await
    });

    let heard = heard.lock().unwrap();
    let (expected, whole) = model(&input, &case);
    assert_eq!(report.bytes_out, heard.bytes.len() as u64, "{case:?}: {report:?}");
    assert!(report.bytes_in <= input.len() as u64, "{case:?}: {report:?}");
    assert!(
        expected.starts_with(&heard.bytes),
        "{case:?}: {} is not the beginning of {}",
        heard.bytes.escape_ascii(),
        expected.escape_ascii()
    );
    match report.outcome {
        // All was said, and FIN sent.
        Outcome::Finished => {
            assert!(
                heard.bytes == expected && heard.finished && whole,
                "{case:?}: {heard:?}"
            );
        }
        // The guest had answered all that had come.
        Outcome::IdleTimeout | Outcome::FirstByteTimeout => {
            assert!(heard.bytes == expected && heard.finished, "{case:?}: {heard:?}");
            assert!(case.end == End::Silence && !whole, "{case:?}: {report:?}");
        }
        Outcome::PeerReset => assert!(case.end == End::Reset || heard.reset, "{case:?}: {report:?}"),
        Outcome::Drained => assert!(case.cut.is_some(), "{case:?}: {report:?}"),
        _ => panic!("{case:?}: {report:?}"),
    }
}

/// What the guests say to `input`, and whether that is all that they will ever say.
fn model(input: &[u8], case: &Case) -> (Vec<u8>, bool) {
    // A stream that was reset ends like any other; how is told beside it, and by then this guest has answered.
    let rest = case.end == End::Fin || case.end == End::Reset && !case.sessions;
    let mut said = Vec::new();
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        let whole = line.ends_with(b"\n");
        if line.len() - usize::from(whole) > MAX_LINE {
            said.extend_from_slice(TOO_LONG);
            return (said, true);
        }
        if whole && line.trim_ascii() == b"quit" {
            return (said, true);
        }
        if whole || rest {
            said.extend_from_slice(line);
        }
    }
    (said, case.end == End::Fin)
}

struct Served {
    runtime: Runtime,
    sessions: Arc<Generation>,
    streams: Arc<Generation>,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let here = std::env::current_exe().unwrap();
    let target_dir = guest_builder::target_dir(&here).unwrap();
    let guests = guest_builder::build_all(guest_builder::workspace(), &target_dir).unwrap();
    // Time stands still, and leaps to the next timer when there is nothing else to wait for.
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let sandbox = Sandbox::new(&limits(), &Grants::default(), &CacheDir::Off).unwrap();
    let load = |name: &str| {
        let path: &PathBuf = guests.iter().find(|path| path.ends_with(name)).unwrap();
        let source = Origin::File(path.clone());
        runtime.block_on(sandbox.load(&source.read().unwrap())).unwrap()
    };
    Served {
        sessions: load("lines-session.wasm"),
        streams: load("lines.wasm"),
        runtime,
    }
});

fn limits() -> Limits {
    Limits {
        max_connections: NonZeroUsize::MIN,
        idle_timeout: Some(Duration::from_secs(300)),
        ..Limits::default()
    }
}

fn peer() -> Peer {
    Peer {
        connection: 1,
        remote: "192.0.2.7:49152".into(),
        local: "192.0.2.1:8080".into(),
        listener: "fuzz".into(),
        ..Peer::default()
    }
}

struct Reader {
    /// What is left to read, in chunks; an empty one is a wait.
    reads: VecDeque<Vec<u8>>,
    end: End,
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
struct Heard {
    bytes: Vec<u8>,
    finished: bool,
    reset: bool,
}

struct Writer {
    writes: VecDeque<Write>,
    heard: Arc<Mutex<Heard>>,
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
