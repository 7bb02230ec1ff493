//! Shares of the log: how many lines the guests of each service may log in a second, and how many of
//! them may wait for a slow reader of the log.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::sleep;
use tracing::warn;

use super::living::{living, locked};
use crate::logging::queue::{Level, SHARED, set_services};

/// Lines of all guests together that are logged in a second.
const MAX_RATE: u32 = 4000;

/// Lines of [`MAX_RATE`] that any service may use. The services have equal shares of the rest.
const COMMON: u32 = MAX_RATE / 2;

const SECOND: Duration = Duration::from_secs(1);

/// The bounds for the guests of this process. It has one log.
static PACE: Pace = Pace::new();

/// The share of one service in the log.
///
/// There is one for all sandboxes of the same service, so that a reload does not change what the
/// guests may log.
#[derive(Debug)]
pub(super) struct Share {
    /// `None` for guests of no service.
    service: Option<Arc<str>>,
    /// Lines that came in this second. It changes under the lock of the pace only.
    lines: AtomicU32,
    /// The places in the queue of the log that its lines took while the queue was crowded, as counts
    /// of all lines up to them. It is locked under the lock of the pace only.
    waiting: Mutex<VecDeque<usize>>,
    /// Those of them that were not logged.
    left_out: AtomicU32,
    /// A task is to report them.
    reports: AtomicBool,
}

impl Share {
    /// Returns the share of a service.
    pub(super) fn of(service: Option<&Arc<str>>) -> Arc<Self> {
        let share = PACE.share(service);
        set_services(PACE.services());
        share
    }

    /// Counts a line, and returns whether it may be logged.
    pub(super) fn one_more(self: &Arc<Self>) -> bool {
        let logs = PACE.one_more(self, Instant::now(), Level::of_log());
        if !logs
            && let Ok(runtime) = Handle::try_current()
            && !self.reports.swap(true, Relaxed)
        {
            let report = Report(Arc::clone(self));
            runtime.spawn(async move {
                sleep(SECOND).await;
                drop(report);
            });
        }
        logs
    }

    /// Begins another second.
    fn renew(&self) {
        self.lines.store(0, Relaxed);
        self.report();
    }

    /// Returns whether the queue of the log has room for one more line: while the queue is crowded,
    /// fewer than `most` lines of the service may wait there.
    fn has_room(&self, level: Level, most: usize) -> bool {
        if !level.is_crowded() {
            return true;
        }
        let mut waiting = locked(&self.waiting);
        while waiting.pop_front_if(|place| *place <= level.taken).is_some() {}
        waiting.len() < most && !level.is_full()
    }

    /// Notes that a line is about to be added to the queue of the log.
    fn adds(&self, level: Level) {
        if level.is_crowded() {
            locked(&self.waiting).push_back(level.came + 1);
        }
    }

    /// Logs how many lines were left out since the last call.
    fn report(&self) {
        let left_out = self.left_out.swap(0, Relaxed);
        if left_out > 0 {
            warn!(
                service = self.service.as_deref(),
                "guests wrote more lines in a second than the log takes from their service; \
                 {left_out} lines were not logged"
            );
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.report();
    }
}

/// Reports lines that were left out when it is dropped: after a second, whether another line comes
/// or not, or at the end of the runtime.
struct Report(Arc<Share>);

impl Drop for Report {
    fn drop(&mut self) {
        // Before the report, so that a line that comes meanwhile has another one.
        self.0.reports.store(false, Relaxed);
        self.0.report();
    }
}

/// The lines that all services have logged in a second.
struct Pace(Mutex<Second>);

struct Second {
    start: Option<Instant>,
    /// Lines that exceeded the share of their service and were logged.
    common: u32,
    shares: Vec<Weak<Share>>,
}

impl Pace {
    const fn new() -> Self {
        Self(Mutex::new(Second {
            start: None,
            common: 0,
            shares: Vec::new(),
        }))
    }

    fn share(&self, service: Option<&Arc<str>>) -> Arc<Share> {
        let mut second = self.second();
        let known = living(&mut second.shares);
        let same = |share: &Arc<Share>| share.service.as_ref() == service;
        if let Some(share) = known.into_iter().find(same) {
            return share;
        }
        let share = Arc::new(Share {
            service: service.cloned(),
            lines: AtomicU32::new(0),
            waiting: Mutex::default(),
            left_out: AtomicU32::new(0),
            reports: AtomicBool::new(false),
        });
        second.shares.push(Arc::downgrade(&share));
        share
    }

    /// Returns the number of services.
    fn services(&self) -> usize {
        let shares = living(&mut self.second().shares);
        shares.iter().filter(|share| share.service.is_some()).count()
    }

    /// Counts a line, and returns whether it may be logged. `level` is that of the queue of the log.
    fn one_more(&self, share: &Share, now: Instant, level: Level) -> bool {
        let mut second = self.second();
        if second.is_over(now) {
            second.renew(now);
        }
        let lines = share.lines.load(Relaxed).saturating_add(1);
        share.lines.store(lines, Relaxed);
        let has_room = share.has_room(level, second.room());
        let logs = has_room && (lines <= second.each() || second.takes_common());
        if logs {
            share.adds(level);
        } else {
            share.left_out.fetch_add(1, Relaxed);
        }
        logs
    }

    fn second(&self) -> MutexGuard<'_, Second> {
        locked(&self.0)
    }
}

impl Second {
    fn is_over(&self, now: Instant) -> bool {
        self.start
            .is_none_or(|start| now.saturating_duration_since(start) >= SECOND)
    }

    fn renew(&mut self, now: Instant) {
        self.start = Some(now);
        self.common = 0;
        self.shares.retain(|share| {
            let share = share.upgrade();
            if let Some(share) = &share {
                share.renew();
            }
            share.is_some()
        });
    }

    /// Returns the lines that no other service can take from a service.
    fn each(&self) -> u32 {
        let services = u32::try_from(self.shares.len().max(1)).unwrap_or(u32::MAX);
        ((MAX_RATE - COMMON) / services).max(1)
    }

    /// Returns the lines of a service that may wait in a crowded queue of the log.
    fn room(&self) -> usize {
        (SHARED / self.shares.len().max(1)).max(1)
    }

    /// Takes one of the lines that any service may use, if there is one.
    fn takes_common(&mut self) -> bool {
        let takes = self.common < COMMON;
        self.common += u32::from(takes);
        takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a pace with the shares of so many services.
    fn services(count: usize) -> (Pace, Vec<Arc<Share>>) {
        let pace = Pace::new();
        let shares = (0..count)
            .map(|number| pace.share(Some(&number.to_string().into())))
            .collect();
        (pace, shares)
    }

    /// Returns how many of so many lines are logged.
    fn logged(pace: &Pace, share: &Share, now: Instant, lines: u32) -> u32 {
        (0..lines)
            .map(|_| u32::from(pace.one_more(share, now, Level::default())))
            .sum()
    }

    #[test]
    fn one_service_takes_no_lines_of_another() {
        let (pace, shares) = services(4);
        let now = Instant::now();
        assert_eq!(logged(&pace, &shares[0], now, 100_000), 500 + COMMON);
        for share in &shares[1..] {
            assert_eq!(logged(&pace, share, now, 100_000), 500);
        }
        let later = now + SECOND;
        assert_eq!(logged(&pace, &shares[3], later, 100_000), 500 + COMMON);
        assert_eq!(logged(&pace, &shares[0], later, 100_000), 500);
    }

    #[test]
    fn a_service_alone_may_use_the_whole_rate() {
        let (pace, shares) = services(1);
        assert_eq!(logged(&pace, &shares[0], Instant::now(), 100_000), MAX_RATE);
    }

    #[test]
    fn sandboxes_of_a_service_have_one_share() {
        let (pace, shares) = services(2);
        let again = pace.share(Some(&"0".into()));
        assert!(Arc::ptr_eq(&again, &shares[0]));
        drop((again, shares));
        let (pace, alone) = (&pace, pace.share(None));
        assert_eq!(logged(pace, &alone, Instant::now(), 100_000), MAX_RATE);
    }

    #[test]
    fn each_service_keeps_its_share_of_a_crowded_log() {
        let (pace, shares) = services(4);
        let now = Instant::now();
        let mut level = Level {
            came: SHARED,
            taken: 0,
        };
        assert!(level.is_crowded());
        let logged = |share: &Share, level: &mut Level, lines: u32| {
            let logs = |_| {
                let logs = pace.one_more(share, now, *level);
                level.came += usize::from(logs);
                u32::from(logs)
            };
            (0..lines).map(logs).sum::<u32>()
        };
        assert_eq!(logged(&shares[0], &mut level, 2000), 512);
        assert_eq!(shares[0].left_out.load(Relaxed), 2000 - 512);
        assert_eq!(logged(&shares[1], &mut level, 400), 400);
        // Others keep the queue crowded, and some lines are taken.
        level.taken = SHARED + 100;
        level.came += SHARED;
        assert_eq!(logged(&shares[0], &mut level, 2000), 100);
        assert_eq!(logged(&shares[1], &mut level, 100), 100);
        // In a queue that is full, the line would be dropped without being counted.
        level.taken = level.came;
        level.came += 4 * SHARED;
        assert_eq!(logged(&shares[2], &mut level, 1), 0);
        assert_eq!(shares[2].left_out.load(Relaxed), 1);
    }
}
