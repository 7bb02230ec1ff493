//! The server: threads that accept connections, hand each to a generation, and drain.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admission::Admission;
use crate::config::Config;
use crate::connection::{self, Report};
use crate::listener::{self, Accepted, Bound, Listener};
use crate::peer::Peer;
use crate::sandbox::Generation;
use crate::shutdown::Signals;

/// How long connections that were cut at the end of a drain may take to be gone.
const CUT: Duration = Duration::from_secs(1);

/// What the threads of a server share.
#[derive(Debug)]
struct Shared {
    config: Config,
    generation: Arc<Generation>,
    admission: Admission,
    connections: TaskTracker,
    /// Threads that may accept one more connection.
    acceptors: TaskTracker,
    numbers: AtomicU64,
    /// All threads are ready: connections are accepted.
    accepting: CancellationToken,
    /// No more connections are accepted.
    draining: CancellationToken,
    /// Connections that are left are closed.
    cut: CancellationToken,
    /// All connections are gone.
    over: CancellationToken,
}

/// Serves connections of `listeners` with `generation` until told to stop, then drains.
///
/// The first of `signals` begins the drain, the second ends it.
///
/// # Errors
///
/// A thread cannot be started, or fails.
pub async fn serve(
    config: &Config,
    generation: Generation,
    listeners: Vec<Bound>,
    signals: &mut Signals,
) -> anyhow::Result<Drained> {
    let shared = Arc::new(Shared {
        config: config.clone(),
        generation: Arc::new(generation),
        admission: Admission::new(config.limits.max_connections),
        connections: TaskTracker::new(),
        acceptors: TaskTracker::new(),
        numbers: AtomicU64::new(1),
        accepting: CancellationToken::new(),
        draining: CancellationToken::new(),
        cut: CancellationToken::new(),
        over: CancellationToken::new(),
    });
    let addresses: Vec<SocketAddr> = listeners.iter().map(Bound::local).collect();
    let mut workers = start(&shared, listeners).await?;
    shared.accepting.cancel();
    for address in addresses {
        info!(target: READY, "listening on {address}");
    }
    tokio::select! {
        signal = signals.next() => info!(signal, "asked to stop"),
        _ = workers.recv() => bail!("a thread that serves connections has ended; its messages say why"),
    }
    let drained = tokio::select! {
        drained = drain(&shared) => drained,
        signal = signals.next() => {
            warn!(signal, connections = shared.connections.len(), "asked again to stop: not waiting any longer");
            Drained::Quit
        }
    };
    shared.over.cancel();
    Ok(drained)
}

/// How a drain came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every connection that was open has ended or was closed in time.
    Done,
    /// It was told not to go on.
    Quit,
}

/// The target of the log lines that say where the host listens, which are written at every log level.
pub const READY: &str = "ready";

async fn drain(shared: &Shared) -> Drained {
    let limit = shared.config.drain_timeout;
    shared.draining.cancel();
    shared.acceptors.close();
    shared.acceptors.wait().await;
    shared.connections.close();
    info!(
        connections = shared.connections.len(),
        timeout = %humantime::format_duration(limit),
        "draining: no more connections are accepted"
    );
    if tokio::time::timeout(limit, shared.connections.wait())
        .await
        .is_ok()
    {
        info!(closed = 0, "drained");
        return Drained::Done;
    }
    let closed = shared.connections.len();
    shared.cut.cancel();
    if tokio::time::timeout(CUT, shared.connections.wait())
        .await
        .is_err()
    {
        warn!(
            connections = shared.connections.len(),
            "connections are stuck and end with the process"
        );
    }
    info!(closed, "drained: what was left at --drain-timeout was closed");
    Drained::Done
}

/// Starts the threads and waits until each is ready. The receiver hears of one that ends.
async fn start(shared: &Arc<Shared>, listeners: Vec<Bound>) -> anyhow::Result<mpsc::Receiver<()>> {
    let threads = shared.config.threads.get();
    let (ready, mut readied) = mpsc::channel(threads);
    let (ended, workers) = mpsc::channel(1);
    let listeners = Arc::new(listeners);
    for number in 0..threads {
        let shared = Arc::clone(shared);
        let listeners = Arc::clone(&listeners);
        let ready = ready.clone();
        let ended = ended.clone();
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let _ended = OnDrop(ended);
                work(&shared, listeners, &ready);
            })
            .context("cannot start a thread to serve connections; lower --threads")?;
    }
    drop(ready);
    for _ in 0..threads {
        let outcome = readied
            .recv()
            .await
            .unwrap_or_else(|| Err(io::Error::other("it ended")));
        outcome.context("cannot set up a thread to serve connections; lower --threads")?;
    }
    Ok(workers)
}

/// Says that a thread has ended, be it by a panic.
struct OnDrop(mpsc::Sender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// One thread: a runtime of its own, which accepts connections and serves those that it accepted. Nothing moves
/// between threads, so nothing waits for another thread to wake up.
fn work(shared: &Arc<Shared>, bound: Arc<Vec<Bound>>, ready: &mpsc::Sender<io::Result<()>>) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.try_send(Err(error))),
    };
    runtime.block_on(async {
        let registered = bound.iter().map(Bound::register).collect::<io::Result<Vec<_>>>();
        // The last thread to drop them closes the sockets, so that clients are refused during a drain.
        drop(bound);
        let acceptor = shared.acceptors.token();
        let (listeners, outcome) = match registered {
            Ok(listeners) => (listeners, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        // There is room for what every thread has to say.
        let _ = ready.try_send(outcome);
        shared.accepting.cancelled().await;
        tokio::select! {
            () = accept(shared, &listeners) => {}
            () = shared.draining.cancelled() => {}
        }
        drop((listeners, acceptor));
        shared.over.cancelled().await;
    });
}

/// Accepts connections for ever. A permit comes first: who has none waits in the backlog.
async fn accept(shared: &Arc<Shared>, listeners: &[Listener]) {
    let mut first = 0;
    loop {
        let permit = shared.admission.permit().await;
        let (index, accepted) = any(listeners, first).await;
        first = index + 1;
        let Some(listener) = listeners.get(index) else {
            continue;
        };
        let connection = serve_one(Arc::clone(shared), listener.name().to_owned(), accepted);
        shared.connections.spawn(async move {
            connection.await;
            drop(permit);
        });
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
    let Accepted { stream, remote } = accepted;
    let generation = Arc::clone(&shared.generation);
    let peer = Peer {
        connection: shared.numbers.fetch_add(1, Ordering::Relaxed),
        remote: remote.to_string(),
        local: stream
            .local_addr()
            .map_or_else(|_| listener.clone(), |local| local.to_string()),
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
