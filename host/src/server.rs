//! The server: what its tasks share, from the start to the drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::acceptor;
use crate::config::Config;
use crate::generations::Generations;
use crate::listener::Listener;
use crate::record::Recorder;
use crate::reload::Reloader;
use crate::sandbox::{Generation, Sandbox, Source};
use crate::shutdown::{Notice, Signals};

/// How long connections that were cut at the end of a drain may take to be gone.
const CUT: Duration = Duration::from_secs(1);

/// What the tasks of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) generations: Arc<Generations>,
    pub(crate) connections: TaskTracker,
    pub(crate) recorder: Option<Recorder>,
    /// Connections that a panic of the host has ended.
    pub(crate) panics: AtomicU64,
    /// Connections that are left are closed.
    pub(crate) cut: CancellationToken,
}

/// Serves connections of `listeners` with `generation`, and with those that `sandbox` makes of `source` later, until told
/// to stop, then drains.
///
/// The first of `signals` that asks to stop begins the drain, the second ends it.
///
/// # Errors
///
/// The task that accepts connections fails, or conversations cannot be recorded.
pub async fn serve(
    config: &Config,
    sandbox: Sandbox,
    source: Source,
    generation: Arc<Generation>,
    listeners: Vec<Listener>,
    signals: &mut Signals,
) -> anyhow::Result<Drained> {
    let cut = CancellationToken::new();
    let generations = Generations::new(generation, config.drain_generations, config.migrate, cut.clone());
    let shared = Arc::new(Shared {
        config: config.clone(),
        generations: Arc::new(generations),
        connections: TaskTracker::new(),
        recorder: config.record.as_deref().map(Recorder::new).transpose()?,
        panics: AtomicU64::new(0),
        cut,
    });
    let reload = Arc::new(Notify::new());
    let changes = source.files().next().is_some();
    let reloader = changes.then(|| {
        let reloader = Reloader::new(sandbox, source, config.clone(), Arc::clone(&shared.generations));
        tokio::spawn(reloader.run(Arc::clone(&reload)))
    });
    let addresses: Vec<SocketAddr> = listeners.iter().map(Listener::local).collect();
    let mut acceptor = tokio::spawn(acceptor::accept(Arc::clone(&shared), listeners));
    for address in addresses {
        info!(target: READY, "listening on {address}");
    }
    loop {
        tokio::select! {
            notice = signals.next() => match notice {
                Notice::Stop(signal) => {
                    info!(signal, "asked to stop");
                    break;
                }
                Notice::Reload if reloader.is_some() => reload.notify_one(),
                Notice::Reload => info!("asked to load the component again, and there is no file: it is the embedded one"),
                Notice::GoBack => shared.generations.go_back("asked to by SIGUSR2"),
            },
            _ = &mut acceptor => bail!("no more connections can be accepted; earlier messages say why"),
        }
    }
    if let Some(reloader) = reloader {
        reloader.abort();
    }
    // With it go the listeners, so that clients are refused during the drain.
    acceptor.abort();
    let _ = acceptor.await;
    Ok(tokio::select! {
        drained = drain(&shared) => drained,
        signal = signals.stop() => {
            warn!(signal, connections = shared.connections.len(), "asked again to stop: not waiting any longer");
            Drained::Quit
        }
    })
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
