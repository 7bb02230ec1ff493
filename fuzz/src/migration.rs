//! A session that moves to another generation whenever the case says so, against a session that
//! stays.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::Poll;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use host::config::{CacheDir, Grants, Limits};
use host::connection::{self, Outcome};
use host::cost::Cost;
use host::half::Half;
use host::sandbox::{Compiler, Generation, Offer, Sandbox, Seat, Stays};
use tokio::runtime::{Builder, Runtime};

use crate::guests;
use crate::transport::{End, Heard, Read, Reader, Write, Writer, peer};

/// The longest line that the guest takes.
const MAX_LINE: usize = 4096;

#[derive(Debug)]
struct Case {
    threads: bool,
    reads: Vec<Read>,
    writes: Vec<Write>,
    /// How often each offer is polled before it is made.
    offers: Vec<u8>,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            threads: u.arbitrary()?,
            reads: u.arbitrary()?,
            writes: u.arbitrary()?,
            offers: u.arbitrary()?,
        })
    }
}

/// Serves a connection.
///
/// # Panics
///
/// The peer hears what a session that stays would not say, or the connection ends otherwise.
pub fn run(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let reads: VecDeque<Vec<u8>> = case.reads.iter().map(Read::bytes).collect();
    let input: Vec<u8> = reads.iter().flatten().copied().collect();
    let reader = Reader { reads, end: End::Fin };
    let heard = Arc::new(Mutex::new(Heard::default()));
    let writer = Writer {
        writes: case.writes.iter().copied().collect(),
        heard: Arc::clone(&heard),
    };
    let served: &Served = if case.threads { &THREADS } else { &SERVED };
    let places = Arc::new(Places {
        generations: served.generations.clone(),
        place: Mutex::default(),
        offers: Mutex::new(case.offers.iter().copied().collect()),
        cost: Arc::default(),
    });
    let serve = {
        let places = Arc::clone(&places);
        async move {
            let inbound = Half::new(reader, limits().max_bytes_in);
            let outbound = Half::new(writer, limits().max_bytes_out);
            connection::serve(&*places, &peer(), inbound, outbound, &limits(), pending()).await
        }
    };
    let report = served.runtime.block_on(served.runtime.spawn(serve)).unwrap();

    let heard = heard.lock().unwrap();
    let expected = model(&input);
    let place = places.place.lock().unwrap();
    assert_eq!(place.refused, None, "{case:?}");
    match report.outcome {
        Outcome::Finished => assert!(
            heard.bytes == expected && heard.finished,
            "{case:?}: {} after {} moves is not {}",
            heard.bytes.escape_ascii(),
            place.moves,
            expected.escape_ascii()
        ),
        Outcome::PeerReset => {
            assert!(
                heard.reset && expected.starts_with(&heard.bytes),
                "{case:?}: {heard:?}"
            );
        }
        _ => panic!("{case:?}: {report:?}"),
    }
}

/// What the guest says to `input`: whole lines, numbered.
fn model(input: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    for (number, line) in (1..).zip(input.split_inclusive(|byte| *byte == b'\n')) {
        let whole = line.ends_with(b"\n");
        if !whole || line.len() > MAX_LINE + 1 || line.trim_ascii() == b"quit" {
            break;
        }
        said.extend_from_slice(format!("{number} ").as_bytes());
        said.extend_from_slice(line);
    }
    said
}

/// The place of a connection, which changes between two generations.
struct Places {
    generations: [Arc<Generation>; 2],
    place: Mutex<Place>,
    offers: Mutex<VecDeque<u8>>,
    cost: Arc<Cost>,
}

#[derive(Default)]
struct Place {
    moves: usize,
    /// Why the session did not move, unless it was busy.
    refused: Option<String>,
}

impl Places {
    /// The generation after this many moves.
    fn after(&self, moves: usize) -> &Arc<Generation> {
        &self.generations[moves % 2]
    }
}

impl Seat for Places {
    type Offer<'a> = Offered<'a>;

    fn generation(&self) -> Arc<Generation> {
        Arc::clone(self.after(self.place.lock().unwrap().moves))
    }

    fn cost(&self) -> Arc<Cost> {
        Arc::clone(&self.cost)
    }

    fn started(&self) {}

    async fn offer(&self) -> Offered<'_> {
        let next = self.offers.lock().unwrap().pop_front();
        let Some(mut polls) = next else {
            return pending().await;
        };
        poll_fn(|cx| match polls {
            0 => Poll::Ready(()),
            _ => {
                polls -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await;
        Offered(self)
    }
}

struct Offered<'a>(&'a Places);

impl Offer for Offered<'_> {
    fn generation(&self) -> &Arc<Generation> {
        let moves = self.0.place.lock().unwrap().moves;
        self.0.after(moves + 1)
    }

    fn accept(self) {
        self.0.place.lock().unwrap().moves += 1;
    }

    fn decline(self, reason: Stays) {
        if !matches!(reason, Stays::Busy) {
            self.0.place.lock().unwrap().refused = Some(format!("{reason:?}"));
        }
    }
}

struct Served {
    runtime: Runtime,
    generations: [Arc<Generation>; 2],
}

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
        let load = || runtime.block_on(sandbox.load(&guests::read("count"))).unwrap();
        Self {
            generations: [load(), load()],
            runtime,
        }
    }
}

fn limits() -> Limits {
    Limits {
        max_connections: NonZeroUsize::MIN.saturating_add(1),
        idle_timeout: Some(Duration::from_secs(300)),
        ..Limits::default()
    }
}
