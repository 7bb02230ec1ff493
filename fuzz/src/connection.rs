//! A connection, with both contracts' line guests, over a transport that does what the case says: reads in chunks, short
//! writes, the end, resets, and a cut from outside.
//!
//! A case runs on one thread, where time stands still, or on several. Only there does the host call
//! sessions without a fiber.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::Poll;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use host::config::{CacheDir, Grants, Limits};
use host::connection::{self, Outcome};
use host::half::Half;
use host::sandbox::{Compiler, Generation, Sandbox};
use tokio::runtime::{Builder, Runtime};

use crate::guests;
use crate::transport::{End, Heard, Read, Reader, Write, Writer, peer};

/// The longest line that the guests take.
const MAX_LINE: usize = 4096;

/// What the guests say of a longer one.
const TOO_LONG: &[u8] = b"error: a line may have at most 4096 bytes\n";

#[derive(Debug)]
struct Case {
    sessions: bool,
    /// Several threads.
    threads: bool,
    reads: Vec<Read>,
    /// What comes when all has been read.
    end: End,
    writes: Vec<Write>,
    /// How often the connection may be polled before it is cut.
    cut: Option<u16>,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            sessions: u.arbitrary()?,
            reads: u.arbitrary()?,
            end: u.arbitrary()?,
            writes: u.arbitrary()?,
            cut: u.arbitrary()?,
            // Last, so that inputs that were found before mean the same.
            threads: u.arbitrary()?,
        })
    }
}

/// Serves a connection.
///
/// # Panics
///
/// The peer hears what the model does not say, or the connection ends otherwise.
pub fn run(bytes: &[u8]) {
    let Ok(mut case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    // With several threads time passes, and it would be long before the silence was noticed.
    if case.threads && case.end == End::Silence {
        case.end = End::Fin;
    }
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
    let served: &Served = if case.threads { &THREADS } else { &SERVED };
    let generation = if case.sessions {
        &served.sessions
    } else {
        &served.streams
    };
    let generation = Arc::clone(generation);
    let serve = async move {
        // Here, where time is that of the runtime.
        let inbound = Half::new(reader, limits().max_bytes_in);
        let outbound = Half::new(writer, limits().max_bytes_out);
        connection::serve(&generation, &peer(), inbound, outbound, &limits(), cut).await
    };
    // In a task, as in the host: what `block_on` polls itself is on no thread of the runtime.
    let report = served.runtime.block_on(served.runtime.spawn(serve)).unwrap();

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

/// Time stands still, and leaps to the next timer when there is nothing else to wait for.
static SERVED: LazyLock<Served> =
    LazyLock::new(|| Served::on(Builder::new_current_thread().enable_time().start_paused(true)));

static THREADS: LazyLock<Served> =
    LazyLock::new(|| Served::on(Builder::new_multi_thread().worker_threads(2).enable_time()));

impl Served {
    fn on(builder: &mut Builder) -> Self {
        let runtime = builder.build().unwrap();
        let sandbox = Sandbox::new(
            &limits(),
            &Grants::default(),
            &Compiler::in_process(&CacheDir::Off),
        )
        .unwrap();
        let load = |name| runtime.block_on(sandbox.load(&guests::read(name))).unwrap();
        Self {
            sessions: load("lines-session"),
            streams: load("lines"),
            runtime,
        }
    }
}

fn limits() -> Limits {
    Limits {
        max_connections: NonZeroUsize::MIN,
        idle_timeout: Some(Duration::from_secs(300)),
        ..Limits::default()
    }
}
