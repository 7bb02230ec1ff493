//! Taking a component that has changed, if it can serve.

use std::collections::HashSet;
use std::future::pending;
use std::io;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use arc_swap::ArcSwap;
use notify::event::AccessKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, trace, warn};

use crate::config::{Isolation, Service as Config, Setting};
use crate::conversation::Conversation;
use crate::failpoint;
use crate::file_work::{FileWork, NotDone, READ, RESTLESS};
use crate::generations::{Closed, Generations, INSIST, Overtaken};
use crate::guarded::{self, Owner};
use crate::replay::{Rules, replay};
use crate::sandbox::{Content, Digest, Generation, LoadError, MAX_TIME, Refusal, Sandbox, Source, Turn};
use crate::service::{ReloadRequest, ReloadRequests, warn_of_migration};
use crate::stamp::{Stamp, stamp};
use crate::system;
use crate::threads;

/// The setting with the names that are resolved again.
const OUTBOUND: Setting<'_> = Setting::of("grants.allow-outbound");

/// Time between two looks at a file that is watched. Where the system tells of changes they are seen at once; it does not
/// for every way in which what a path stands for can change.
const LOOK: Duration = Duration::from_secs(1);

/// Time after a look before the next one that a notice of the system causes. Notices are about
/// directories, where others can change their own files at any rate.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest time after which what could not be tried is tried again.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// How long compiling a component, and passing the gate, may take.
const LOAD: Duration = MAX_TIME;

/// How much longer it may take where the component is initialised too, and compiled for that.
const INITIALISE: Duration = Duration::from_secs(180);

/// Returns how long compiling the component of a service, and passing its gate, may take.
pub(crate) fn time_to_load(config: &Config) -> Duration {
    if config.preinit { LOAD + INITIALISE } else { LOAD }
}

/// What files are told by.
type Stamps = Vec<Stamp>;

/// The files, with what they were told by before they were read.
type Read = Result<(Option<Stamps>, Result<Content, LoadError>), NotDone>;

/// Loads the component again when it is asked to.
pub(crate) struct Reloader {
    /// Loads components. A reconfiguration can replace it.
    sandbox: Arc<ArcSwap<Sandbox>>,
    source: Source,
    config: Config,
    generations: Arc<Generations>,
    files: FileWork,
    /// Resolves names, which may hang too.
    names: FileWork,
    /// Reads the gate.
    gate: FileWork,
    /// What was found to be unfit, so that it is said once.
    unfit: Option<Unfit>,
    /// When what could not be tried is tried again.
    retry: Option<Retry>,
    /// The files changed all the time when they were last read for a change.
    restless: bool,
    /// A request is carried out, or a component is loaded that has changed.
    reloads: bool,
}

/// When a content that could not be tried is tried again without a change.
#[derive(Clone, Copy, Debug)]
struct Retry {
    digest: Digest,
    /// When the content was first asked for, or noticed.
    asked: Instant,
    after: Instant,
    delay: Duration,
}

impl Retry {
    /// The next time, twice as long after `now` as the last one if that was for the same content.
    /// It was `asked` for then.
    fn next(last: Option<Self>, digest: Digest, asked: Instant, now: Instant) -> Self {
        let last = last.filter(|last| last.digest == digest);
        let delay = last.map_or(LOOK, |last| (last.delay * 2).min(MAX_RETRY));
        Self {
            digest,
            asked,
            after: now + delay,
            delay,
        }
    }

    /// Whether it is too early to try a content again.
    fn is_early(&self, digest: Digest, now: Instant) -> bool {
        self.digest == digest && now < self.after
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfit {
    /// It cannot be read, for a reason of this kind.
    Unreadable(io::ErrorKind),
    /// The host could not try it.
    Untried,
    Content(Digest),
}

/// Why the files are looked at, and since when.
type Reason = (Why, Instant);

/// What is known of the files of a component.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Their stamps when they were last read; `None` if one of them did not exist.
    stamps: Option<Stamps>,
    /// They could not be read or tried, and are tried again without a change.
    again: bool,
}

/// What causes a look at the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The system has told of a change in a directory.
    Notice,
    /// A look is due.
    Time,
}

impl Seen {
    /// Returns whether to read the files again. `now` is their present stamps.
    fn is_outdated(&self, now: Option<&Stamps>, cause: Cause) -> bool {
        let again = self.again && now.is_some() && cause == Cause::Time;
        again || now != self.stamps.as_ref()
    }
}

/// When the files are looked at.
#[derive(Debug)]
struct Looks {
    changed: Arc<Notify>,
    /// The first time at which a notice causes a look.
    after: Instant,
    /// When a look is due without a notice.
    due: Instant,
}

impl Looks {
    fn new(changed: Arc<Notify>) -> Self {
        let now = Instant::now();
        Self {
            changed,
            after: now,
            due: now + LOOK,
        }
    }

    /// Waits until it is time for a look.
    async fn next(&mut self) -> Cause {
        let noticed = async {
            self.changed.notified().await;
            sleep_until(self.after).await;
        };
        tokio::select! {
            biased;
            () = sleep_until(self.due) => Cause::Time,
            () = noticed => Cause::Notice,
        }
    }

    /// Notes that the files were looked at.
    fn done(&mut self, cause: Option<Cause>) {
        let now = Instant::now();
        self.after = now + PAUSE;
        if cause != Some(Cause::Notice) {
            self.due = now + LOOK;
        }
    }
}

/// Why the files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Changed,
    Asked,
    /// An operator wants it even if it was rolled back.
    Insisted,
}

impl Reloader {
    pub(crate) fn new(
        sandbox: Arc<ArcSwap<Sandbox>>,
        source: Source,
        config: Config,
        generations: Arc<Generations>,
    ) -> Self {
        Self {
            sandbox,
            source,
            config,
            generations,
            files: FileWork::default(),
            names: FileWork::default(),
            gate: FileWork::default(),
            unfit: None,
            retry: None,
            restless: false,
            reloads: false,
        }
    }

    /// Loads the component whenever somebody asks, and when one of its files changes if they are
    /// watched. Ends when there can be no further requests.
    pub(crate) async fn run(mut self, requests: Arc<ReloadRequests>) {
        let closed = tokio::select! {
            biased;
            closed = requests.closed() => closed,
            never = self.attend(&requests) => never,
        };
        // If another service takes the place of this one, its component was read for that.
        let is_lost = closed == Closed::Draining && (self.reloads || requests.take().is_some());
        if is_lost {
            let (service, generation) = (&self.config.name, self.generations.current().number);
            warn!(
                service,
                generation,
                "reload given up: the host drains and accepts no connections; its next start loads the \
                 component"
            );
        }
    }

    /// Loads the component whenever somebody asks, and when one of its files changes if they are
    /// watched.
    async fn attend(&mut self, requests: &ReloadRequests) -> ! {
        let changed = Arc::new(Notify::new());
        let watching = if self.config.watch {
            Some(self.watch(&changed).await)
        } else {
            None
        };
        if let Some(Err(error)) = &watching {
            warn!(
                service = self.config.name,
                "cannot watch the component files: {error:#}; polling them every {LOOK:?} instead"
            );
        }
        // It may have changed since it was read at the start.
        let mut seen = Seen::default();
        let mut looks = Looks::new(changed);
        loop {
            self.reloads = false;
            let (mut reason, cause) = tokio::select! {
                biased;
                reason = asked(requests) => (reason, None),
                cause = looks.next(), if self.config.watch => {
                    ((Why::Changed, Instant::now()), Some(cause))
                }
            };
            let mut read = None;
            if let Some(cause) = cause {
                // Who asks does not wait for files that settle or are read for the watch.
                tokio::select! {
                    biased;
                    asked = asked(requests) => reason = asked,
                    changed = self.read_changed(&seen, cause) => match changed {
                        Some(changed) => read = Some(changed),
                        None => {
                            looks.done(Some(cause));
                            continue;
                        }
                    },
                }
            }
            if reason.0 != Why::Changed {
                self.reloads = true;
                self.resolve().await;
                self.open_dirs().await;
            }
            let read = match read {
                Some(read) => read,
                // Who asks knows that the files are whole.
                None => self.read().await,
            };
            seen = self.load(read, reason).await;
            looks.done(None);
        }
    }

    /// Has `changed` notified when the files change.
    async fn watch(&mut self, changed: &Arc<Notify>) -> anyhow::Result<RecommendedWatcher> {
        let (source, changed) = (self.source.clone(), Arc::clone(changed));
        self.files
            .run(READ, move || watch(source.files(), &changed))
            .await
            .context("looking up the directories")?
    }

    /// Resolves the names of granted destinations again.
    async fn resolve(&mut self) {
        let sandbox = self.sandbox.load_full();
        if !sandbox.has_names() {
            return;
        }
        let resolved = self.names.run(READ, move || sandbox.resolve_again()).await;
        let service = &self.config.name;
        let failure = match resolved {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(addresses))) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                info!(
                    service,
                    "the names in {OUTBOUND} have new addresses; guests may connect to {}",
                    addresses.join(", ")
                );
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(NotDone::Late(max)) => {
                format!("resolving the names in {OUTBOUND} took longer than {max:?}")
            }
            Err(error) => format!("resolving the names in {OUTBOUND} {error}"),
        };
        warn!(service, "{failure}; the previous addresses stay in use");
    }

    /// Opens the granted directories again.
    async fn open_dirs(&self) {
        if let Err(error) = self.sandbox.load_full().open_dirs_again(READ).await {
            let service = &self.config.name;
            warn!(service, "{error}; the previous directories stay in use");
        }
    }

    /// Reads the files if they have changed since they were `seen`, once they stay as they are, or if
    /// they are to be tried again. Returns `None` otherwise.
    async fn read_changed(&mut self, seen: &Seen, cause: Cause) -> Option<Read> {
        let source = self.source.clone();
        let look = move || stamps(&source);
        trace!(service = self.config.name, "looking for changes of the component");
        let now = match self.files.run(READ, look.clone()).await {
            Ok(now) if !seen.is_outdated(now.as_ref(), cause) => return None,
            Ok(now) => now,
            Err(error) => return Some(Err(error)),
        };
        let settled = match self.files.settle(now, look).await {
            Ok(settled) => settled,
            Err(error) => return Some(Err(error)),
        };
        if !settled && !self.restless {
            info!(
                service = self.config.name,
                "{} has changed all the time for {RESTLESS:?}; reading it as it is", self.source
            );
        }
        self.restless = !settled;
        Some(self.read().await)
    }

    /// Reads the files.
    async fn read(&mut self) -> Read {
        let source = self.source.clone();
        // What changes from here on is seen.
        self.files
            .run(READ, move || (stamps(&source), source.read()))
            .await
    }

    /// Loads what was read. What could not be read or tried now may be so soon, without another
    /// change.
    async fn load(&mut self, read: Read, reason: Reason) -> Seen {
        let (stamps, kind, error) = match read {
            Ok((stamps, Ok(content))) => {
                let again = !self.consider(content, reason).await;
                return Seen { stamps, again };
            }
            Ok((stamps, Err(error))) => match &error {
                LoadError::Read { error: cause, .. } => (stamps, cause.kind(), anyhow!(error)),
                _ => (stamps, io::ErrorKind::Other, anyhow!(error)),
            },
            Err(error) => {
                let kind = match error {
                    NotDone::Late(_) => io::ErrorKind::TimedOut,
                    _ => io::ErrorKind::Other,
                };
                (None, kind, anyhow!("reading {} {error}", self.source))
            }
        };
        self.refuse(Unfit::Unreadable(kind), reason.0, &error);
        Seen { stamps, again: true }
    }

    /// Has the component serve, if it is another than before and can. Returns whether it could be
    /// tried, or need not be.
    async fn consider(&mut self, content: Content, (why, asked): Reason) -> bool {
        let digest = content.digest;
        // One that is initialised may come to something else now.
        let again = self.config.preinit && why != Why::Changed;
        if digest == *self.generations.current().generation.digest() && !again {
            self.unfit = None;
            self.retry = None;
            if why != Why::Changed {
                info!(
                    service = self.config.name,
                    "component unchanged; nothing to reload"
                );
            }
            return true;
        }
        if self.unfit == Some(Unfit::Content(digest)) && why == Why::Changed {
            return true;
        }
        let retry = self
            .retry
            .filter(|retry| retry.digest == digest && why == Why::Changed);
        if retry.is_some_and(|retry| retry.is_early(digest, Instant::now())) {
            return false;
        }
        // A rollback gives up all further tries too.
        let asked = retry.map_or(asked, |retry| retry.asked);
        if self.generations.is_rollback_requested(asked) {
            self.give_up(&content.name);
            return true;
        }
        let left = self.generations.left().filter(|left| left.digest == digest);
        let insists = match (&left, why) {
            (_, Why::Insisted) => true,
            (Some(left), Why::Asked) => left.is_insisted_upon(asked, Instant::now()),
            _ => false,
        };
        if left.is_some() && !insists {
            // Only a request that was refused counts as the first one.
            let how = match why {
                Why::Changed => "request a reload twice within",
                _ => "request the reload again within",
            };
            // The embedded guest has no file that could change.
            let until = if self.source.files().next().is_some() {
                " until it changes"
            } else {
                ""
            };
            let error = anyhow!(
                "{} was rolled back and is not loaded again{until}; to load it nevertheless, {how} {}",
                content.name,
                humantime::format_duration(INSIST)
            );
            self.refuse(Unfit::Content(digest), why, &error);
            return true;
        }
        self.reloads = true;
        let last = self.retry.take();
        let name = content.name.clone();
        debug!(service = self.config.name, "loading {name}");
        let generations = Arc::clone(&self.generations);
        let taken = tokio::select! {
            biased;
            () = generations.rollback_requested(asked) => Err(Overtaken::ByRequest.into()),
            taken = self.take(content, insists, asked) => taken,
        };
        let Err(error) = taken else {
            self.unfit = None;
            return true;
        };
        match error.downcast_ref() {
            Some(Overtaken::ByRequest) => {
                self.give_up(&name);
                return true;
            }
            // No further requests are taken either, which ends this.
            Some(Overtaken::Closed(_)) => return pending().await,
            Some(Overtaken::ByRollback) | None => {}
        }
        let tried = !may_pass(&error);
        let unfit = if tried {
            Unfit::Content(digest)
        } else {
            self.retry = Some(Retry::next(last, digest, asked, Instant::now()));
            Unfit::Untried
        };
        self.refuse(unfit, why, &error);
        tried
    }

    /// Compiles a component away from the threads that serve, and has it serve. `asked` is when
    /// that was requested.
    async fn take(&mut self, content: Content, insisted: bool, asked: Instant) -> anyhow::Result<()> {
        let gate = Arc::new(self.read_gate().await.map_err(NoGate)?);
        let sandbox = self.sandbox.load_full();
        // Before the deadline begins.
        let turn = sandbox.turn(&content).await;
        let generation = match self.load_in(&sandbox, &content, &gate, turn).await {
            Err(error) if matches!(error.downcast_ref(), Some(LoadError::NoTurn)) => {
                let turn = sandbox.turn_to_compile(&content).await;
                self.load_in(&sandbox, &content, &gate, Some(turn)).await
            }
            loaded => loaded,
        }?;
        if self.config.isolation == Isolation::Connection {
            let mappings = (self.config.limits.max_connections, generation.mappings());
            system::check_mappings(Some(&self.config.name), [mappings]);
        }
        warn_of_migration(&self.config, &self.source, &generation);
        Ok(self.generations.replace(generation, insisted, asked)?)
    }

    /// Reads the gate of the service. Without one, there are no conversations to pass.
    async fn read_gate(&mut self) -> anyhow::Result<Gate> {
        let Some(dir) = self.config.gate.clone() else {
            return Ok(Gate::new());
        };
        let read = self.gate.run(READ, move || read_gate(&dir)).await;
        read.unwrap_or_else(|error| bail!("reading the gate {error}"))
    }

    /// Loads a component in a thread of its own, within the time that this may take, and has it
    /// pass the `gate`. Compiling it needs a `turn`.
    async fn load_in(
        &self,
        sandbox: &Arc<Sandbox>,
        content: &Content,
        gate: &Arc<Gate>,
        turn: Option<Turn>,
    ) -> anyhow::Result<Arc<Generation>> {
        let (runtime, gate) = (Handle::current(), Arc::clone(gate));
        let (config, sandbox, content) = (self.config.clone(), Arc::clone(sandbox), content.clone());
        let name = content.name.clone();
        let load = async move {
            let generation = sandbox.load_in(&content, turn.as_ref()).await?;
            drop(turn);
            pass_gate(&config, &generation, &gate, &content.name).await?;
            anyhow::Ok(generation)
        };
        let given_up = CancellationToken::new();
        // Dropped with this future too, when the service ends: nothing is compiled for nobody.
        let _ended = given_up.clone().drop_guard();
        let max = time_to_load(&self.config);
        let loading = threads::run("reload", move || {
            // What waits is given up in time, and with it the process that compiles.
            runtime.block_on(given_up.run_until_cancelled(timeout(max, load)))
        });
        let loading = loading.map_err(|error| LoadError::Sandbox(error.to_string()))?;
        let late = || format!("loading {name} took longer than {max:?}");
        match timeout(max, loading).await.with_context(late)?? {
            Some(loaded) => loaded.with_context(late)?,
            None => bail!("loading {name} was given up"),
        }
    }

    /// Says that a rollback has overtaken the load of the component called `name`.
    fn give_up(&mut self, name: &str) {
        self.retry = None;
        let (service, generation) = (&self.config.name, self.generations.current().number);
        warn!(
            service,
            generation,
            "reload given up: a rollback was requested meanwhile; the current generation keeps serving; \
             request the reload again to load {name}"
        );
    }

    /// Says, once for each content, that it is not taken.
    fn refuse(&mut self, unfit: Unfit, why: Why, error: &anyhow::Error) {
        let (service, generation) = (&self.config.name, self.generations.current().number);
        if self.unfit == Some(unfit) && why == Why::Changed {
            // It is the same file, looked at again.
            debug!(service, generation, "reload failed again: {error:#}");
        } else {
            self.generations.counts.rejected.one_more();
            warn!(
                service,
                generation, "reload failed: {error:#}; the current generation keeps serving"
            );
        }
        self.unfit = Some(unfit);
    }
}

/// Waits until somebody asks for the component to be loaded again.
async fn asked(requests: &ReloadRequests) -> Reason {
    let ReloadRequest { asked, insists } = requests.next().await;
    (if insists { Why::Insisted } else { Why::Asked }, asked)
}

/// The conversations of a gate, which decide which components serve, with the paths of their files.
pub(crate) type Gate = Vec<(PathBuf, Conversation)>;

/// Reads the conversations of a gate.
///
/// # Errors
///
/// One cannot be read, or other users than the owner of a directory can replace them.
pub(crate) fn read_gate(dir: &Path) -> anyhow::Result<Gate> {
    failpoint::hang("gate");
    guarded::check(dir, Owner::Anybody)?;
    Conversation::read_all(dir)
}

/// Has a component take part in the conversations of the gate of its service.
///
/// # Errors
///
/// The component does something else in one of them.
pub(crate) async fn pass_gate(
    config: &Config,
    generation: &Arc<Generation>,
    gate: &Gate,
    name: &str,
) -> anyhow::Result<()> {
    if gate.is_empty() {
        return Ok(());
    }
    let rules = Rules {
        limits: config.limits,
        patience: config.gate_patience,
    };
    let passed = replay(generation, &rules, gate, |_| ()).await;
    passed.map_err(|difference| {
        let said = difference.in_one_line();
        if difference.is_of_system {
            LoadError::Sandbox(format!("no instance for the gate: {said}")).into()
        } else {
            anyhow!("{name} does not pass the gate: {said}")
        }
    })
}

/// The gate cannot be read, whatever the component.
#[derive(Debug, Error)]
#[error("{0:#}")]
struct NoGate(anyhow::Error);

/// Returns whether the cause of an error may pass without a change of the component, such as a lack
/// of memory.
fn may_pass(error: &anyhow::Error) -> bool {
    let of_host = matches!(
        error.downcast_ref(),
        Some(
            LoadError::Sandbox(_)
                | LoadError::Full(_)
                | LoadError::Refused {
                    refusal: Refusal::CompilerKilled,
                    ..
                }
        )
    );
    of_host || error.is::<NoGate>()
}

/// What the files of `source` are told by; `None` if one of them is not there.
fn stamps(source: &Source) -> Option<Stamps> {
    source.files().map(stamp).collect()
}

/// Watches the directory of each of `files`, since the file itself may be replaced, and the one that it stands for.
fn watch<'a>(
    files: impl Iterator<Item = &'a Path>,
    changed: &Arc<Notify>,
) -> anyhow::Result<RecommendedWatcher> {
    let directories = directories(files)?;
    let changed = Arc::clone(changed);
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // The host itself opens the files to read them.
        let opened = |event: &Event| matches!(event.kind, EventKind::Access(AccessKind::Open(_)));
        if !event.as_ref().is_ok_and(opened) {
            changed.notify_one();
        }
    })?;
    // If the system has given the watcher no thread, each use of it panics, and so does its drop.
    let mut watcher = ManuallyDrop::new(watcher);
    let watched = threads::started(|| {
        let mut directories = directories.iter();
        directories.try_for_each(|directory| watcher.watch(directory, RecursiveMode::NonRecursive))
    })?;
    let watcher = ManuallyDrop::into_inner(watcher);
    watched?;
    Ok(watcher)
}

/// The directories of `files`, and of those that they stand for, at least one.
fn directories<'a>(files: impl Iterator<Item = &'a Path>) -> anyhow::Result<HashSet<PathBuf>> {
    let mut directories = HashSet::new();
    for file in files {
        let target = file.canonicalize().ok();
        for path in [Some(file), target.as_deref()].into_iter().flatten() {
            let directory = system::directory_of(path);
            let directory = directory
                .canonicalize()
                .with_context(|| format!("`{}`", directory.display()))?;
            directories.insert(directory);
        }
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn what_is_not_the_fault_of_a_component_may_pass() {
        let refused = |refusal| LoadError::Refused {
            name: "a.wasm".to_owned(),
            refusal,
        };
        for (error, expected) in [
            (refused(Refusal::CompilerKilled).into(), true),
            (LoadError::Sandbox(String::new()).into(), true),
            (NoGate(anyhow!("cannot list")).into(), true),
            (refused(Refusal::Empty).into(), false),
            (anyhow!("a.wasm does not pass the gate"), false),
        ] {
            assert_eq!(may_pass(&error), expected, "{error:#}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn notices_cause_a_look_at_once_but_only_ten_in_a_second() {
        let changed = Arc::new(Notify::new());
        let mut looks = Looks::new(Arc::clone(&changed));
        let start = Instant::now();
        changed.notify_one();
        assert_eq!(looks.next().await, Cause::Notice);
        assert_eq!(start.elapsed(), Duration::ZERO);
        looks.done(Some(Cause::Notice));
        let mut causes = Vec::new();
        while start.elapsed() < Duration::from_secs(10) {
            changed.notify_one();
            let cause = looks.next().await;
            looks.done(Some(cause));
            causes.push(cause);
            assert!(causes.len() <= 100, "{:?}", start.elapsed());
        }
        assert!(causes.len() >= 90, "{}", causes.len());
        let due = causes.iter().filter(|cause| **cause == Cause::Time).count();
        assert!((9..=10).contains(&due), "{due}");
        // Without notices a look is due after a second.
        changed.notified().now_or_never();
        let last = Instant::now();
        looks.done(None);
        assert_eq!(looks.next().await, Cause::Time);
        assert!(last.elapsed() >= LOOK, "{:?}", last.elapsed());
    }

    #[test]
    fn only_a_look_that_is_due_tries_again_what_has_not_changed() {
        let stamps = |size| Some(vec![(1, 2, size, 3, 4)]);
        let outdated = |seen: &Seen, now: Option<Stamps>| {
            [Cause::Notice, Cause::Time].map(|cause| seen.is_outdated(now.as_ref(), cause))
        };
        let mut seen = Seen {
            stamps: stamps(5),
            again: false,
        };
        assert_eq!(outdated(&seen, stamps(5)), [false, false]);
        assert_eq!(outdated(&seen, stamps(6)), [true, true]);
        seen.again = true;
        assert_eq!(outdated(&seen, stamps(5)), [false, true]);
        seen.stamps = None;
        assert_eq!(outdated(&seen, None), [false, false]);
        assert_eq!(outdated(&seen, stamps(5)), [true, true]);
    }

    #[test]
    fn what_cannot_be_tried_is_tried_ever_more_rarely_until_it_changes() {
        let (one, other) = ([1; 32], [2; 32]);
        let mut now = Instant::now();
        let mut last = None;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let retry = Retry::next(last, one, now, now);
            assert!(retry.is_early(one, now) && !retry.is_early(other, now));
            delays.push((retry.after - now).as_secs());
            now = retry.after;
            assert!(!retry.is_early(one, now));
            last = Some(retry);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(Retry::next(last, other, now, now).after, now + LOOK);
    }
}
