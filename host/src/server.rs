//! The server: starts the threads that serve connections, and drains.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admission::Admission;
use crate::config::Config;
use crate::listener::Bound;
use crate::sandbox::Generation;
use crate::shutdown::Signals;
use crate::worker::{self, Crew};

/// How long connections that were cut at the end of a drain may take to be gone.
const CUT: Duration = Duration::from_secs(1);

/// What the threads of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) generation: Arc<Generation>,
    pub(crate) admission: Admission,
    pub(crate) connections: TaskTracker,
    /// Threads that may accept one more connection.
    pub(crate) acceptors: TaskTracker,
    pub(crate) numbers: AtomicU64,
    /// No more connections are accepted.
    pub(crate) draining: CancellationToken,
    /// Connections that are left are closed.
    pub(crate) cut: CancellationToken,
    /// All connections are gone.
    pub(crate) over: CancellationToken,
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
        draining: CancellationToken::new(),
        cut: CancellationToken::new(),
        over: CancellationToken::new(),
    });
    let addresses: Vec<SocketAddr> = listeners.iter().map(Bound::local).collect();
    let (crew, mut workers) = start(&shared).await?;
    crew.begin(listeners);
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
async fn start(shared: &Arc<Shared>) -> anyhow::Result<(Arc<Crew>, mpsc::Receiver<()>)> {
    let threads = shared.config.threads.get();
    let (ready, mut readied) = mpsc::channel(threads);
    let (ended, workers) = mpsc::channel(1);
    let (crew, inboxes) = Crew::new(threads);
    for (number, inbox) in inboxes.into_iter().enumerate() {
        let shared = Arc::clone(shared);
        let crew = Arc::clone(&crew);
        let ready = ready.clone();
        let ended = ended.clone();
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let _ended = OnDrop(ended);
                worker::work(&shared, &crew, number, inbox, &ready);
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
    Ok((crew, workers))
}

/// Says that a thread has ended, be it by a panic.
struct OnDrop(mpsc::Sender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}
