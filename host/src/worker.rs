//! One thread of the server: accepts connections, hands each to the generation, and logs what became of it.
//!
//! One thread at a time accepts. Were all of them to wait for connections, each connection would wake them all, to
//! be had by one. The thread that has the listeners keeps them while that is fair, and gives them to the thread with the
//! fewest connections when it has [`SLACK`] more than that, or when a guest has kept it busy.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::connection::{self, Report};
use crate::listener::{self, Accepted, Bound, Listener};
use crate::peer::Peer;
use crate::sandbox::Generation;
use crate::server::Shared;

/// Connections that the thread which accepts may have beyond those of another thread. Few threads that are busy do the same
/// work for less than many that are often woken; but connections stay where they are, whatever comes of them.
const SLACK: usize = 16;

/// A turn of one connection that lasts longer keeps others waiting.
const LONG_TURN: Duration = Duration::from_millis(1);

/// Long turns between two accepts that mean a busy thread, and not just one that the system has interrupted.
const STRAIN: usize = 4;

/// The pause before listeners that could not be registered are tried again.
const RETRY: Duration = Duration::from_millis(50);

/// All threads, as they see each other.
#[derive(Debug)]
pub(crate) struct Crew {
    workers: Vec<Worker>,
}

/// One thread, as others see it.
#[derive(Debug)]
struct Worker {
    /// Takes the listeners: who has them accepts.
    inbox: mpsc::UnboundedSender<Vec<Bound>>,
    /// Its connections.
    open: AtomicUsize,
    /// Long turns that they have had since its last accept.
    long_turns: AtomicUsize,
}

/// Where a thread receives the listeners.
pub(crate) type Inbox = mpsc::UnboundedReceiver<Vec<Bound>>;

impl Crew {
    pub(crate) fn new(threads: usize) -> (Arc<Self>, Vec<Inbox>) {
        let (workers, inboxes) = (0..threads)
            .map(|_| {
                let (inbox, received) = mpsc::unbounded_channel();
                let worker = Worker {
                    inbox,
                    open: AtomicUsize::new(0),
                    long_turns: AtomicUsize::new(0),
                };
                (worker, received)
            })
            .unzip();
        (Arc::new(Self { workers }), inboxes)
    }

    /// Begins to accept connections.
    pub(crate) fn begin(&self, listeners: Vec<Bound>) {
        self.give(0, listeners);
    }

    fn give(&self, to: usize, listeners: Vec<Bound>) {
        if let Some(worker) = self.workers.get(to) {
            // One that has ended takes the server with it.
            let _ = worker.inbox.send(listeners);
        }
    }

    /// Who accepts the next connection, if it is not the thread `number`, which has just accepted one.
    fn next(&self, number: usize) -> Option<usize> {
        let own = self.workers.get(number)?;
        let strained = own.long_turns.swap(0, Relaxed) >= STRAIN;
        let others = (1..self.workers.len()).map(|offset| (number + offset) % self.workers.len());
        let (other, open) = others
            .filter_map(|other| Some((other, self.workers.get(other)?.open.load(Relaxed))))
            .min_by_key(|(_, open)| *open)?;
        (strained || own.open.load(Relaxed) > open + SLACK).then_some(other)
    }
}

/// One connection of a thread.
struct Open {
    crew: Arc<Crew>,
    number: usize,
}

impl Open {
    fn new(crew: &Arc<Crew>, number: usize) -> Self {
        let open = Self {
            crew: Arc::clone(crew),
            number,
        };
        if let Some(worker) = open.worker() {
            worker.open.fetch_add(1, Relaxed);
        }
        open
    }

    fn worker(&self) -> Option<&Worker> {
        self.crew.workers.get(self.number)
    }

    /// Runs `connection`, noting its long turns.
    async fn run<F: Future>(&self, connection: F) -> F::Output {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            let start = Instant::now();
            let polled = connection.as_mut().poll(cx);
            if start.elapsed() > LONG_TURN
                && let Some(worker) = self.worker()
            {
                worker.long_turns.fetch_add(1, Relaxed);
            }
            polled
        })
        .await
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(worker) = self.worker() {
            worker.open.fetch_sub(1, Relaxed);
        }
    }
}

/// The life of the thread `number`: a runtime of its own, which serves the connections that it accepts.
pub(crate) fn work(
    shared: &Arc<Shared>,
    crew: &Arc<Crew>,
    number: usize,
    inbox: Inbox,
    ready: &mpsc::Sender<io::Result<()>>,
) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.try_send(Err(error))),
    };
    // There is room for what every thread has to say.
    let _ = ready.try_send(Ok(()));
    runtime.block_on(async {
        let acceptor = shared.acceptors.token();
        tokio::select! {
            // It closes the listeners when it is dropped, so that clients are refused during a drain.
            () = take_turns(shared, crew, number, inbox) => {}
            () = shared.draining.cancelled() => {}
        }
        drop(acceptor);
        shared.over.cancelled().await;
    });
}

/// Accepts connections whenever this thread has the listeners.
async fn take_turns(shared: &Arc<Shared>, crew: &Arc<Crew>, number: usize, mut inbox: Inbox) {
    while let Some(bound) = inbox.recv().await {
        let listeners = register(&bound).await;
        let next = accept(shared, crew, number, &listeners).await;
        drop(listeners);
        crew.give(next, bound);
    }
}

/// The listeners for the runtime of this thread.
async fn register(bound: &[Bound]) -> Vec<Listener> {
    let mut failed = false;
    loop {
        match bound.iter().map(Bound::register).collect::<io::Result<_>>() {
            Ok(listeners) => return listeners,
            Err(error) => {
                if !failed {
                    warn!(%error, "cannot accept connections for now: listeners cannot be registered");
                }
                failed = true;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Accepts connections until it is another thread's turn, which it returns. A permit comes first: while there is none,
/// connections wait in the backlog.
async fn accept(shared: &Arc<Shared>, crew: &Arc<Crew>, number: usize, listeners: &[Listener]) -> usize {
    let mut first = 0;
    loop {
        let permit = shared.admission.permit().await;
        let (index, accepted) = any(listeners, first).await;
        first = index + 1;
        let Some(listener) = listeners.get(index) else {
            continue;
        };
        let open = Open::new(crew, number);
        let connection = serve_one(Arc::clone(shared), listener.name().to_owned(), accepted);
        shared.connections.spawn(async move {
            open.run(connection).await;
            drop(permit);
        });
        if let Some(next) = crew.next(number) {
            return next;
        }
    }
}

/// The next connection of any listener, asking the one at `first` first so that none is starved.
async fn any(listeners: &[Listener], first: usize) -> (usize, Accepted) {
    if let [only] = listeners {
        return (0, only.accept().await);
    }
    let mut accepts: Vec<_> = listeners
        .iter()
        .map(|listener| Box::pin(listener.accept()))
        .collect();
    poll_fn(|cx| {
        for offset in 0..accepts.len() {
            let index = (first + offset) % accepts.len();
            if let Some(accept) = accepts.get_mut(index)
                && let Poll::Ready(accepted) = Pin::new(accept).poll(cx)
            {
                return Poll::Ready((index, accepted));
            }
        }
        Poll::Pending
    })
    .await
}

/// Serves one connection and logs what became of it.
async fn serve_one(shared: Arc<Shared>, listener: String, accepted: Accepted) {
    let Accepted {
        stream,
        remote,
        local,
    } = accepted;
    let generation = Arc::clone(&shared.generation);
    let peer = Peer {
        connection: shared.numbers.fetch_add(1, Relaxed),
        remote: remote.to_string(),
        local: local.to_string(),
        listener,
    };
    let (reader, writer) = listener::split(stream);
    let cut = pin!(shared.cut.cancelled());
    let report = connection::serve(&generation, &peer, reader, writer, &shared.config.limits, cut).await;
    log(&peer, &generation, &report);
}

fn log(peer: &Peer, generation: &Generation, report: &Report) {
    info!(
        connection = peer.connection,
        peer = peer.remote,
        listener = peer.listener,
        contract = generation.contract().as_str(),
        bytes_in = report.bytes_in,
        bytes_out = report.bytes_out,
        duration_ms = report.duration.as_micros() as f64 / 1000.0,
        outcome = report.outcome.as_str(),
        reason = report.reason.as_deref(),
        "connection ended"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(crew: &Arc<Crew>, number: usize, count: usize) -> Vec<Open> {
        (0..count).map(|_| Open::new(crew, number)).collect()
    }

    #[test]
    fn a_thread_alone_keeps_the_listeners() {
        let (crew, _inboxes) = Crew::new(1);
        let _open = open(&crew, 0, 10 * SLACK);
        assert_eq!(crew.next(0), None);
    }

    #[test]
    fn the_listeners_go_to_the_thread_with_the_fewest_connections() {
        let (crew, _inboxes) = Crew::new(3);
        let _others = open(&crew, 1, 2);
        let mut own = open(&crew, 0, SLACK);
        assert_eq!(crew.next(0), None);
        own.extend(open(&crew, 0, 1));
        assert_eq!(crew.next(0), Some(2));
        own.pop();
        assert_eq!(crew.next(0), None);
    }

    #[tokio::test]
    async fn a_thread_that_is_kept_busy_gives_the_listeners_on() {
        let (crew, _inboxes) = Crew::new(2);
        let own = Open::new(&crew, 0);
        for turn in 1..=STRAIN {
            assert_eq!(crew.next(0), None, "{turn}");
            for _ in 0..turn {
                own.run(async { std::thread::sleep(2 * LONG_TURN) }).await;
            }
        }
        assert_eq!(crew.next(0), Some(1));
        assert_eq!(crew.next(0), None, "it is forgotten");
    }
}
