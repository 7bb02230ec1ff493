//! The server: the services that run, from the start to the drain.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use futures_util::future::select_all;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::acceptor::Acceptor;
use crate::config::Config;
use crate::generations::Generations;
use crate::listener::{Entrance, Listener};
use crate::record::Recorder;
use crate::reload::Reloader;
use crate::service::{Loaded, Process, Service};
use crate::service_manager;
use crate::shutdown::{Notice, Signals};
use crate::system;

/// How long connections that were cut at the end of a drain may take to be gone.
const CUT: Duration = Duration::from_secs(1);

/// A service with the tasks that run it.
struct Running {
    service: Arc<Service>,
    reloader: Option<JoinHandle<()>>,
    reload: Arc<Notify>,
    entrances: Vec<Arc<Entrance>>,
    acceptor: JoinHandle<Acceptor>,
    stop: CancellationToken,
}

impl Running {
    /// Starts a service that is loaded.
    fn start(loaded: Loaded, acceptor: Acceptor, process: &Arc<Process>) -> anyhow::Result<Self> {
        let Loaded {
            config,
            sandbox,
            generation,
        } = loaded;
        let generations = Generations::new(&config, generation, process.cut.clone());
        let service = Arc::new(Service {
            access: ArcSwap::from_pointee(config.access.clone()),
            generations: Arc::new(generations),
            recorder: config.record.as_deref().map(Recorder::new).transpose()?,
            process: Arc::clone(process),
            config,
        });
        let reload = Arc::new(Notify::new());
        let reloader = service.config.component.clone().map(|path| {
            let generations = Arc::clone(&service.generations);
            let reloader = Reloader::new(sandbox, path, service.config.clone(), generations);
            tokio::spawn(reloader.run(Arc::clone(&reload)))
        });
        let stop = CancellationToken::new();
        let entrances = acceptor.entrances();
        let acceptor = tokio::spawn(acceptor.run(Arc::clone(&service), stop.clone()));
        Ok(Self {
            service,
            reloader,
            reload,
            entrances,
            acceptor,
            stop,
        })
    }

    /// Loads the component again, if it is in a file, and reads certificates again.
    fn reload(&self) {
        for entrance in &self.entrances {
            entrance.reread();
        }
        if self.reloader.is_some() {
            self.reload.notify_one();
        } else {
            info!(
                service = self.service.config.name,
                "asked to load the component again, and there is no file: it is the embedded one"
            );
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(reloader) = &self.reloader {
            reloader.abort();
        }
    }
}

/// Loads what `config` says, listens, and serves connections until told to stop; then drains.
///
/// The first of `signals` that asks to stop begins the drain, the second ends it.
///
/// # Errors
///
/// A component cannot serve, an address cannot be listened at, a task that accepts connections fails, or conversations
/// cannot be recorded.
pub async fn serve(config: &Config) -> anyhow::Result<Drained> {
    system::raise_descriptors(&config.services);
    let mut loaded = Vec::new();
    for service in &config.services {
        let one = Loaded::new(service.clone(), &config.cache).await;
        loaded.push(if config.services.len() > 1 {
            one.with_context(|| format!("service `{}`", service.name))?
        } else {
            one?
        });
    }
    system::check_mappings(
        loaded
            .iter()
            .map(|loaded| (loaded.config.limits.max_connections, loaded.generation.mappings())),
    );
    let mut acceptors = Vec::new();
    for service in &config.services {
        let listeners = service
            .listen
            .iter()
            .map(Listener::bind)
            .collect::<Result<_, _>>()?;
        acceptors.push(Acceptor::new(&service.limits, listeners));
    }
    // Until here a signal ends the host at once, as it does by default.
    let mut signals = Signals::new().context("cannot handle signals")?;
    let process = Arc::new(Process::default());
    let mut running = Vec::new();
    for (loaded, acceptor) in loaded.into_iter().zip(acceptors) {
        let addresses: Vec<_> = acceptor.listeners().iter().map(Listener::local).collect();
        let started = Running::start(loaded, acceptor, &process)?;
        for address in addresses {
            info!(target: READY, service = started.service.config.name, "listening on {address}");
        }
        running.push(started);
    }
    let listeners = config.services.iter().map(|service| service.listen.len()).sum();
    service_manager::ready(running.len(), listeners);
    loop {
        tokio::select! {
            notice = signals.next() => match notice {
                Notice::Stop(signal) => {
                    info!(signal, "asked to stop");
                    service_manager::stopping(process.connections.len());
                    break;
                }
                Notice::Reload => {
                    service_manager::reloading();
                    running.iter().for_each(Running::reload);
                    service_manager::ready(running.len(), listeners);
                }
                Notice::GoBack => {
                    for running in &running {
                        running.service.generations.go_back("asked to by SIGUSR2");
                    }
                }
            },
            _ = select_all(running.iter_mut().map(|running| &mut running.acceptor)) => {
                bail!("no more connections can be accepted; earlier messages say why")
            }
        }
    }
    for mut running in running {
        // With it go the listeners, so that clients are refused during the drain.
        running.stop.cancel();
        let _ = (&mut running.acceptor).await;
    }
    Ok(tokio::select! {
        drained = drain(&process, config.drain_timeout) => drained,
        signal = signals.stop() => {
            warn!(signal, connections = process.connections.len(), "asked again to stop: not waiting any longer");
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

async fn drain(process: &Process, limit: Duration) -> Drained {
    process.connections.close();
    info!(
        connections = process.connections.len(),
        timeout = %humantime::format_duration(limit),
        "draining: no more connections are accepted"
    );
    if tokio::time::timeout(limit, process.connections.wait())
        .await
        .is_ok()
    {
        info!(closed = 0, "drained");
        return Drained::Done;
    }
    let closed = process.connections.len();
    process.cut.cancel();
    if tokio::time::timeout(CUT, process.connections.wait())
        .await
        .is_err()
    {
        warn!(
            connections = process.connections.len(),
            "connections are stuck and end with the process"
        );
    }
    info!(closed, "drained: what was left at --drain-timeout was closed");
    Drained::Done
}
