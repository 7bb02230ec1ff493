//! A service that runs: the tasks that accept its connections and load its component again.

use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::acceptor::Acceptor;
use crate::file_work::{FileWork, READ};
use crate::generations::{Closed, Generations};
use crate::listener::{Entrance, Listener};
use crate::reload::Reloader;
use crate::sandbox::Sandbox;
use crate::service::{Loaded, Process, ReloadRequest, ReloadRequests, Service};

/// A service with the tasks that run it.
pub(crate) struct Running {
    pub(crate) service: Arc<Service>,
    /// Loads its components.
    sandbox: Arc<ArcSwap<Sandbox>>,
    reloader: JoinHandle<()>,
    pub(crate) entrances: Vec<Arc<Entrance>>,
    /// Accepts its connections, and does not end by itself.
    pub(crate) acceptor: JoinHandle<Acceptor>,
    stop: CancellationToken,
    /// Looks for the files of its sockets. It is locked by the one task that does.
    files: Arc<Mutex<FileWork>>,
}

impl Running {
    /// Starts a service that is loaded, in the place of one of the same name, if there is one.
    pub(crate) fn start(
        loaded: Loaded,
        before: Option<&Service>,
        acceptor: Acceptor,
        process: &Arc<Process>,
    ) -> Self {
        let Loaded {
            config,
            sandbox,
            source,
            generation,
            recorder,
            insisted,
        } = loaded;
        let contract = generation.contract().as_str();
        info!(service = config.name, contract, "serving {source}");
        let counts = process.counts_of(&config.name);
        counts.share(sandbox.shared_cost());
        sandbox.bound_guests();
        let before = before.map(|before| (&before.config, &*before.generations));
        let generations =
            Generations::new(&config, generation, insisted, before, process.cut.clone(), counts);
        let reload = Arc::new(ReloadRequests::default());
        let has_files = source.files().next().is_some();
        let service = Arc::new(Service {
            access: ArcSwap::from_pointee(config.access.clone()),
            handshakes: process.handshakes.of_service(),
            embedded: (!has_files).then_some(*generations.current().generation.digest()),
            generations: Arc::new(generations),
            recorder,
            reload: Arc::clone(&reload),
            listeners: ArcSwap::from_pointee(names(acceptor.listeners())),
            process: Arc::clone(process),
            config,
        });
        let sandbox = Arc::new(ArcSwap::from_pointee(sandbox));
        let generations = Arc::clone(&service.generations);
        let reloader = Reloader::new(Arc::clone(&sandbox), source, service.config.clone(), generations);
        let reloader = tokio::spawn(reloader.run(reload));
        let stop = CancellationToken::new();
        let entrances = acceptor.entrances();
        let acceptor = tokio::spawn(acceptor.run(Arc::clone(&service), stop.clone()));
        Self {
            service,
            sandbox,
            reloader,
            entrances,
            acceptor,
            stop,
            files: Arc::default(),
        }
    }

    /// Loads the component and reads certificates again. `asked` is when that was requested.
    pub(crate) fn reload(&self, asked: Instant) {
        for entrance in &self.entrances {
            entrance.reread();
        }
        self.look_for_files();
        self.reload_component(asked);
    }

    /// Looks for the files of its sockets in a task, unless one does so already: each request would
    /// add a task while a file does not answer.
    fn look_for_files(&self) {
        let with_files = self.entrances.iter().filter(|entrance| entrance.has_file());
        let entrances: Vec<_> = with_files.cloned().collect();
        if !entrances.is_empty()
            && let Ok(mut files) = Arc::clone(&self.files).try_lock_owned()
        {
            let service = self.service.config.name.clone();
            tokio::spawn(async move {
                for entrance in entrances {
                    warn_unless_reachable(entrance, &mut files, &service).await;
                }
            });
        }
    }

    /// Loads the component again. `asked` is when that was requested.
    pub(crate) fn reload_component(&self, asked: Instant) {
        let insists = false;
        if let Err(error) = self.service.reload(ReloadRequest { asked, insists }) {
            info!(service = self.service.config.name, "{error}");
        }
    }

    /// What loads its components.
    pub(crate) fn sandbox(&self) -> Arc<Sandbox> {
        self.sandbox.load_full()
    }

    /// Loads its components by `sandbox` from now on. A load that has begun goes on as it is.
    pub(crate) fn load_by(&self, sandbox: Arc<Sandbox>) {
        self.sandbox.store(sandbox);
    }

    /// Accepts no more connections, until it is told to `accept` again.
    pub(crate) async fn pause(&mut self) -> anyhow::Result<Acceptor> {
        self.stop.cancel();
        (&mut self.acceptor).await.context("an accept loop failed")
    }

    /// Accepts connections again, by `acceptor`.
    pub(crate) fn accept(&mut self, acceptor: Acceptor) {
        self.stop = CancellationToken::new();
        self.entrances = acceptor.entrances();
        self.service
            .listeners
            .store(Arc::new(names(acceptor.listeners())));
        self.acceptor = tokio::spawn(acceptor.run(Arc::clone(&self.service), self.stop.clone()));
    }

    /// Keeps its current generation during a drain. A reload that was accepted is given up, which the
    /// log says.
    pub(crate) fn keep_generation(&self) {
        self.service.reload.close(Closed::Draining);
        self.service.generations.close(Closed::Draining);
    }

    /// Waits until its component is loaded no more, after a call of
    /// [`keep_generation`](Self::keep_generation).
    pub(crate) async fn stop_reloading(&mut self) {
        // The hook for panics has said why it failed.
        let _ = (&mut self.reloader).await;
    }

    /// Ends what it does beside the connections that are open.
    pub(crate) fn end(self) {
        self.service.reload.close(Closed::Replaced);
        self.service.generations.wind_up();
    }
}

/// Warns if clients of a service cannot connect by this entrance any more.
async fn warn_unless_reachable(entrance: Arc<Entrance>, files: &mut FileWork, service: &str) {
    let of = Arc::clone(&entrance);
    match files.run(READ, move || of.is_reachable()).await {
        Ok(true) => {}
        Ok(false) => warn!(
            service,
            "the file of listener {} was removed or replaced, so clients cannot connect; restart the \
             host to create it again",
            entrance.name
        ),
        Err(error) => warn!(
            service,
            "looking for the file of listener {} {error}", entrance.name
        ),
    }
}

/// What listeners are called where they are shown.
fn names(listeners: &[Listener]) -> Vec<String> {
    listeners
        .iter()
        .map(|listener| listener.local().to_string())
        .collect()
}
