//! Who may come in: permits, rates, and what one source may have.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::config::{Limits, Rate};
use crate::peer::{ClientKey, End};

/// Sources that are kept before those are looked for that need not be.
const SOURCES: usize = 1024;

/// Sources without a connection that are kept, for what they have used of their rate.
const MAX_IDLE: usize = 1 << 16;

/// How long no connection has to wait for the rate before the log says again that it is reached. A
/// source that is refused gives back what it took of the rate, so others may wait again and again.
const CALM: Duration = Duration::from_secs(60);

/// Why a connection is refused, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its source has as many as `--max-connections-per-source`.
    SourceConnections,
    /// Its source has had as many of late as `--max-rate-per-source`.
    SourceRate,
    /// Instances have failed at their start, again and again.
    Failing,
    /// Connections of its network may not come in.
    Access,
    /// It does not come from a balancer that is trusted.
    Untrusted,
    /// It does not begin with a header of the PROXY protocol.
    ProxyHeader,
    /// The header of the PROXY protocol took too long.
    ProxyTimeout,
    /// The handshake of TLS failed.
    TlsHandshake,
    /// The handshake of TLS took too long.
    TlsTimeout,
    /// The drain was over before it could come in.
    Drained,
}

impl Refused {
    /// Every reason, in the order of their declaration.
    pub const ALL: [Self; 10] = [
        Self::SourceConnections,
        Self::SourceRate,
        Self::Failing,
        Self::Access,
        Self::Untrusted,
        Self::ProxyHeader,
        Self::ProxyTimeout,
        Self::TlsHandshake,
        Self::TlsTimeout,
        Self::Drained,
    ];

    /// Whether a connection that is refused for this reason counts towards `--max-rate`. Otherwise
    /// a source that may not come in, or that has all it may have, would keep out the others.
    fn counts(self) -> bool {
        !matches!(
            self,
            Self::SourceConnections | Self::SourceRate | Self::Access | Self::Untrusted
        )
    }

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SourceConnections => "source-connections",
            Self::SourceRate => "source-rate",
            Self::Failing => "failing",
            Self::Access => "access",
            Self::Untrusted => "untrusted",
            Self::ProxyHeader => "proxy-header",
            Self::ProxyTimeout => "proxy-timeout",
            Self::TlsHandshake => "tls-handshake",
            Self::TlsTimeout => "tls-timeout",
            Self::Drained => "drained",
        }
    }
}

/// The right to hold one connection. It is taken before the connection is accepted, and free again when
/// this is dropped.
#[derive(Debug)]
pub struct Permit {
    permit: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// The permits of a service, as one of its connections sees them.
#[derive(Clone, Debug)]
pub struct Permits(Arc<Semaphore>);

impl Permits {
    /// Returns whether none is left.
    pub fn are_taken(&self) -> bool {
        self.0.available_permits() == 0
    }
}

impl Permit {
    /// The permits of its service.
    pub fn all(&self) -> Permits {
        Permits(Arc::clone(self.permit.semaphore()))
    }
}

/// Admits as many connections as may be open at once, and no more in a time than may come.
#[derive(Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
    /// How many permits there are, given out or not.
    most: usize,
    /// How many of those that are given out are too many, and are not given out again.
    owed: usize,
    /// When a connection last had to wait for the rate.
    waited: Option<Instant>,
    sources: Sources,
}

/// Admits connections within the limits for each source.
///
/// Clones share the limits, so that a reload also applies to connections that were accepted before
/// it and are not admitted yet.
#[derive(Clone, Debug)]
pub struct Sources {
    shares: Arc<Shares>,
    pace: Arc<Pace>,
}

impl Admission {
    /// Admits what `limits` allow.
    pub fn new(limits: &Limits) -> Self {
        let most = most(limits);
        Self {
            permits: Arc::new(Semaphore::new(most)),
            most,
            owed: 0,
            waited: None,
            sources: Sources::new(limits),
        }
    }

    /// Admits what `limits` allow from now on. Connections that are open count; where there are too many, none comes until
    /// enough of them have ended.
    pub fn change(&mut self, limits: &Limits) {
        let most = most(limits);
        if let Some(more) = most.checked_sub(self.most) {
            let paid = more.min(self.owed);
            self.owed -= paid;
            self.permits.add_permits(more - paid);
        } else {
            let fewer = self.most - most;
            self.owed += fewer - self.permits.forget_permits(fewer);
        }
        self.most = most;
        self.sources.change(limits);
    }

    /// Returns whether no connection is open that it has admitted.
    pub(crate) fn is_unused(&self) -> bool {
        self.owed == 0 && self.permits.available_permits() == self.most
    }

    /// Waits until one more connection of `service` may be accepted. Once one is, call
    /// [`Admission::count`].
    ///
    /// Cancel safe: a permit that is dropped unused counts for no limit.
    pub async fn permit(&mut self, service: &str) -> Permit {
        let permit = loop {
            match Arc::clone(&self.permits).acquire_owned().await {
                Ok(permit) if self.owed == 0 => break permit,
                Ok(permit) => {
                    permit.forget();
                    self.owed -= 1;
                }
                // The semaphore is never closed.
                Err(_) => std::future::pending().await,
            }
        };
        while let Err(at) = self.sources.pace.has_one() {
            let now = Instant::now();
            if self.waited.is_none_or(|waited| now - waited >= CALM) {
                info!(
                    service,
                    "max-rate is reached; further connections wait in the backlog"
                );
            }
            self.waited = Some(now);
            tokio::select! {
                () = sleep_until(at) => {}
                () = self.sources.pace.returned.notified() => {}
            }
            self.waited = Some(Instant::now());
        }
        Permit { permit, _share: None }
    }

    /// Counts a connection that was accepted towards the rate. [`Sources::refuse`] takes that back.
    pub fn count(&mut self) {
        self.sources.pace.take();
    }

    /// What admits by source.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }
}

impl Sources {
    fn new(limits: &Limits) -> Self {
        let sources = Self {
            shares: Arc::default(),
            pace: Arc::default(),
        };
        sources.change(limits);
        sources
    }

    /// Applies `limits` to the connections that are admitted from now on.
    fn change(&self, limits: &Limits) {
        let now = Instant::now();
        let mut table = self.shares.table();
        table.max = limits.max_connections_per_source;
        table.rate = limits.max_rate_per_source;
        if let Some(rate) = table.rate {
            let sources = table.sources.values_mut();
            sources.for_each(|has| has.bucket.fill_by(rate, now));
        }
        drop(table);
        let mut pace = self.pace.now();
        pace.rate = limits.max_rate;
        if let Some(rate) = pace.rate {
            pace.bucket.fill_by(rate, now);
        }
    }

    /// Notes that a connection that was counted is refused. If that is for its source, it does not
    /// count towards the rate of the service.
    pub fn refuse(&self, reason: Refused) {
        if !reason.counts() {
            self.pace.put_back();
        }
    }

    /// Lets a connection from `remote` have `permit`, or not. Connections are counted by source even without a limit, since a
    /// reload can set one.
    ///
    /// # Errors
    ///
    /// Its source has as much as one may have.
    pub fn admit(&self, permit: Permit, remote: &End) -> Result<Permit, Refused> {
        Ok(Permit {
            _share: Some(self.share(ClientKey::of(remote), Instant::now())?),
            ..permit
        })
    }

    fn share(&self, source: ClientKey, now: Instant) -> Result<Share, Refused> {
        let mut table = self.shares.table();
        if table.sources.len() >= table.sweep {
            table.sweep(now);
        }
        let (max, rate) = (table.max, table.rate);
        let has = table.sources.entry(source).or_default();
        if max.is_some_and(|max| has.open >= max.get()) {
            return Err(Refused::SourceConnections);
        }
        if let Some(rate) = rate {
            has.bucket.take(rate, now).map_err(|_| Refused::SourceRate)?;
        }
        has.open += 1;
        drop(table);
        Ok(Share {
            shares: Arc::clone(&self.shares),
            source,
        })
    }
}

/// How much of the rate of a service has been used.
#[derive(Debug, Default)]
struct Pace {
    now: Mutex<Paced>,
    /// Notified when a connection that was counted turns out not to count.
    returned: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Paced {
    rate: Option<Rate>,
    bucket: Bucket,
}

impl Pace {
    fn now(&self) -> MutexGuard<'_, Paced> {
        // Nothing can panic while it is held.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks whether one more connection may come. If it may not, this says when it may.
    fn has_one(&self) -> Result<(), Instant> {
        let Paced { rate, bucket } = *self.now();
        match rate {
            Some(rate) => bucket.without_one(rate, Instant::now()).map(drop),
            None => Ok(()),
        }
    }

    /// Counts a connection.
    fn take(&self) {
        let mut now = self.now();
        if let Some(rate) = now.rate {
            // There was room when it was permitted, and only this takes any.
            let _ = now.bucket.take(rate, Instant::now());
        }
    }

    /// Counts a connection no more.
    fn put_back(&self) {
        let mut now = self.now();
        if let Some(rate) = now.rate {
            now.bucket.put_back(rate);
            drop(now);
            self.returned.notify_one();
        }
    }
}

/// How many permits `limits` allow.
fn most(limits: &Limits) -> usize {
    limits.max_connections.get().min(Semaphore::MAX_PERMITS)
}

/// How much of a rate has been used: a bucket that holds as many as the rate allows in its time, and that fills evenly
/// (the generic cell rate algorithm of ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When it will be full.
    full: Option<Instant>,
}

/// The time in which a bucket fills by one.
fn each(rate: Rate) -> Duration {
    rate.per / rate.connections.get()
}

/// The time in which an empty bucket fills. This can be less than that of the rate, since the
/// division has rounded down.
fn whole(rate: Rate) -> Duration {
    each(rate) * rate.connections.get()
}

impl Bucket {
    /// Takes one out. If there is none, this says when there will be.
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Instant> {
        *self = self.without_one(rate, now)?;
        Ok(())
    }

    /// The bucket after one was taken out. If there is none, this says when there will be.
    fn without_one(self, rate: Rate, now: Instant) -> Result<Self, Instant> {
        let full = self.full.unwrap_or(now).max(now) + each(rate);
        let empty = whole(rate);
        if full - now > empty {
            return Err(full - empty);
        }
        Ok(Self { full: Some(full) })
    }

    /// Fills by `rate` from now on. A bucket that the old rate had emptied is empty under this one.
    fn fill_by(&mut self, rate: Rate, now: Instant) {
        self.full = self.full.map(|full| full.min(now + whole(rate)));
    }

    /// Puts one back that was taken out. A bucket that has filled since stays full.
    fn put_back(&mut self, rate: Rate) {
        self.full = self.full.and_then(|full| full.checked_sub(each(rate)));
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full.is_none_or(|full| full <= now)
    }
}

/// What each source has.
#[derive(Debug, Default)]
struct Shares {
    /// Locked when a connection begins and when it ends.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Open connections that one source may have.
    max: Option<NonZeroUsize>,
    /// How often connections of one source are admitted.
    rate: Option<Rate>,
    sources: HashMap<ClientKey, Has>,
    /// Grown to this, it is looked through for sources that need not be kept.
    sweep: usize,
}

impl Table {
    /// Forgets the sources that need not be kept. If too many are left, forgets the half of them
    /// that has used the smallest part of its rate.
    fn sweep(&mut self, now: Instant) {
        self.sources.retain(|_, has| !has.is_nothing(now));
        let idle = self.sources.values().filter(|has| has.open == 0);
        let mut full: Vec<_> = idle.map(|has| has.bucket.full).collect();
        if full.len() > MAX_IDLE / 2 {
            let middle = full.len() / 2;
            let (_, until, _) = full.select_nth_unstable(middle);
            self.sources
                .retain(|_, has| has.open > 0 || has.bucket.full > *until);
        }
        let kept = self.sources.len();
        let open = self.sources.values().filter(|has| has.open > 0).count();
        self.sweep = SOURCES.max(2 * kept).min(open + MAX_IDLE);
    }
}

/// What one source has.
#[derive(Debug, Default)]
struct Has {
    open: usize,
    bucket: Bucket,
}

impl Has {
    /// Whether it is as one that has never been seen.
    fn is_nothing(&self, now: Instant) -> bool {
        self.open == 0 && self.bucket.is_full(now)
    }
}

impl Shares {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing can panic while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of a source.
#[derive(Debug)]
struct Share {
    shares: Arc<Shares>,
    source: ClientKey,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut table = self.shares.table();
        if let Some(has) = table.sources.get_mut(&self.source) {
            has.open -= 1;
            if has.is_nothing(Instant::now()) {
                table.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests;
