//! What is counted of a service, from the start of the host on.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::admission::Refused;
use crate::connection::{Outcome, Report};
use crate::cost::Cost;

/// Upper bounds of the histograms' buckets, in microseconds: 1, 2.5 and 5 of each power of ten.
const BOUNDS: [u64; 24] = [
    5,
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    600_000_000,
    3_600_000_000,
];

/// What is counted of one service, under its name. Nothing that a connection counts waits: each is a number of its own.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: Count,
    refused: [Count; Refused::ALL.len()],
    ended: [Count; Outcome::ALL.len()],
    pub(crate) bytes_in: Count,
    pub(crate) bytes_out: Count,
    /// Nanoseconds.
    pub(crate) guest_cpu: Count,
    /// Connections whose instances have asked for more memory than they may have.
    pub(crate) memory_hits: Count,
    pub(crate) duration: Histogram,
    pub(crate) first_byte: Histogram,
    pub(crate) instantiation: Histogram,
    /// Generations that have served, also before the service was removed and added again.
    generations: AtomicU64,
    pub(crate) swaps: Count,
    pub(crate) rollbacks: Count,
    pub(crate) rejected: Count,
    pub(crate) accept_errors: Count,
    /// Locked when a service starts, and when somebody looks.
    shared: Mutex<Shared>,
}

/// What is counted of one connection, besides its cost. The fields are as in [`Report`].
#[derive(Debug)]
pub(crate) struct Totals {
    pub(crate) outcome: Outcome,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) duration: Duration,
    pub(crate) first_byte: Option<Duration>,
}

impl From<&Report> for Totals {
    fn from(report: &Report) -> Self {
        Self {
            outcome: report.outcome,
            bytes_in: report.bytes_in,
            bytes_out: report.bytes_out,
            duration: report.duration,
            first_byte: report.first_byte,
        }
    }
}

/// The cost of instances that connections share.
#[derive(Debug, Default)]
struct Shared {
    /// One for each sandbox that may still have instances.
    costs: Vec<Arc<Cost>>,
    /// The time of those that have none any more.
    ended: Duration,
}

impl Counts {
    /// Returns the number of one more generation. Generations are counted from 1.
    pub(crate) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Relaxed) + 1
    }

    /// Counts `cost`, the cost of shared instances, from now on.
    pub(crate) fn share(&self, cost: Arc<Cost>) {
        let mut shared = self.shared();
        let Shared { costs, ended } = &mut *shared;
        costs.retain(|cost| {
            // Nobody else can add to it any more.
            let over = Arc::strong_count(cost) == 1;
            if over {
                *ended += cost.cpu();
            }
            !over
        });
        costs.push(cost);
    }

    /// The time that shared instances have run, and the memory of those that live.
    pub(crate) fn of_shared(&self) -> (Duration, u64) {
        let shared = self.shared();
        let cpu: Duration = shared.costs.iter().map(|cost| cost.cpu()).sum();
        let memory = shared.costs.iter().map(|cost| cost.live_memory()).sum();
        (shared.ended + cpu, memory)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Nothing can panic while it is held.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refused(&self, reason: Refused) -> &Count {
        &self.refused[reason as usize]
    }

    pub(crate) fn ended(&self, outcome: Outcome) -> &Count {
        &self.ended[outcome as usize]
    }

    /// Counts a connection that has ended.
    pub(crate) fn count(&self, totals: &Totals, cost: &Cost) {
        self.ended(totals.outcome).one_more();
        self.bytes_in.add(totals.bytes_in);
        self.bytes_out.add(totals.bytes_out);
        self.guest_cpu.add(cost.cpu().as_nanos() as u64);
        self.memory_hits.add(u64::from(cost.was_refused_memory()));
        self.duration.observe(totals.duration);
        if let Some(first_byte) = totals.first_byte {
            self.first_byte.observe(first_byte);
        }
        if let Some(instantiation) = cost.instantiation() {
            self.instantiation.observe(instantiation);
        }
    }

    /// Connections that were refused, for whatever reason.
    pub(crate) fn all_refused(&self) -> u64 {
        self.refused.iter().map(Count::get).sum()
    }

    /// Connections that have come in and have ended, and those of them at which the guest failed.
    pub(crate) fn all_ended(&self) -> (u64, u64) {
        let failed = Outcome::ALL
            .into_iter()
            .filter(|outcome| outcome.is_the_guests_fault());
        let failed = failed.map(|outcome| self.ended(outcome).get()).sum();
        (self.ended.iter().map(Count::get).sum(), failed)
    }
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn one_more(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How often something took how long.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// What fell into each bucket, and at the end what took longer than all of them.
    buckets: [Count; BOUNDS.len() + 1],
    /// Nanoseconds.
    sum: Count,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) * 1000 < time.as_nanos());
        self.buckets[bucket].one_more();
        self.sum.add(time.as_nanos() as u64);
    }

    /// What it has come to by now.
    pub(crate) fn seen(&self) -> Seen {
        Seen {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].get()),
            sum: Duration::from_nanos(self.sum.get()),
        }
    }
}

/// A histogram at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    buckets: [u64; BOUNDS.len() + 1],
    pub(crate) sum: Duration,
}

impl Seen {
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The buckets, each with its upper bound in seconds and what fell into it alone.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS
            .iter()
            .map(|bound| *bound as f64 / 1e6)
            .chain([f64::INFINITY]);
        bounds.zip(self.buckets)
    }

    /// What has come since it was as `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            buckets: std::array::from_fn(|bucket| {
                self.buckets[bucket].saturating_sub(before.buckets[bucket])
            }),
            sum: self.sum.saturating_sub(before.sum),
        }
    }

    /// The time that a `part` of what was seen took at most, in seconds, taken evenly within its bucket; `None` where nothing was
    /// seen.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let count = self.count();
        let rank = part * count as f64;
        let mut below = 0;
        let mut lower = 0.0;
        for (upper, in_bucket) in self.buckets() {
            let reached = (below + in_bucket) as f64;
            if in_bucket > 0 && reached >= rank {
                // Nothing is known of what lies beyond the last bound.
                let upper = if upper == f64::INFINITY { lower } else { upper };
                let within = (rank - below as f64) / in_bucket as f64;
                return Some(lower + (upper - lower) * within);
            }
            below += in_bucket;
            lower = upper;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_falls_into_the_first_bucket_that_has_room_for_it() {
        let histogram = Histogram::default();
        for micros in [1, 5, 6, 3_600_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let seen = histogram.seen();
        let buckets: Vec<_> = seen.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(buckets, [(5e-6, 2), (1e-5, 1), (f64::INFINITY, 1)]);
        assert_eq!(seen.count(), 4);
        assert_eq!(seen.sum, Duration::from_micros(3_600_000_013));
    }

    #[test]
    fn the_time_of_shared_instances_counts_on_when_their_sandbox_is_gone() {
        let counts = Counts::default();
        for seconds in 1..=3 {
            let cost = Arc::new(Cost::default());
            counts.share(Arc::clone(&cost));
            cost.add_cpu(Duration::from_secs(seconds));
            cost.has_memory(100, 100);
            assert_eq!(
                counts.of_shared(),
                (Duration::from_secs((1..=seconds).sum()), 100)
            );
            cost.frees_memory(100);
        }
        assert_eq!(counts.shared().costs.len(), 1);
    }

    #[test]
    fn quantiles_lie_within_their_buckets() {
        let histogram = Histogram::default();
        assert_eq!(histogram.seen().quantile(0.5), None);
        for _ in 0..99 {
            histogram.observe(Duration::from_micros(80));
        }
        histogram.observe(Duration::from_millis(800));
        let before = histogram.seen();
        assert_eq!(before.quantile(1.0), Some(1.0));
        let median = before.quantile(0.5).unwrap();
        assert!((50e-6..=100e-6).contains(&median), "{median}");
        assert_eq!(histogram.seen().since(&before).quantile(0.5), None);
    }

    #[test]
    fn reasons_and_outcomes_have_places_of_their_own() {
        let counts = Counts::default();
        for reason in Refused::ALL {
            counts.refused(reason).one_more();
        }
        for outcome in Outcome::ALL {
            counts.ended(outcome).one_more();
        }
        assert!(
            Refused::ALL
                .iter()
                .all(|reason| counts.refused(*reason).get() == 1)
        );
        assert_eq!(counts.all_refused(), Refused::ALL.len() as u64);
        assert_eq!(counts.all_ended(), (Outcome::ALL.len() as u64, 3));
    }
}
