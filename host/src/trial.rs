//! Judging a new generation by the connections that it fails.
//!
//! A peer that knows a bug of the guest can make it fail as often as it likes. So each client has
//! one voice, however many connections it makes, and a new generation is compared with the one
//! before. `docs/decisions/0041-judge-by-clients.md` has the reasons.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::peer::ClientKey;

/// How long a new generation is monitored, at least.
const PROBATION: Duration = Duration::from_secs(10);

/// How many connections of a new generation are monitored, at least.
const CONNECTIONS: u64 = 20;

/// Failures that a rollback requires.
const FAILURES: u32 = 5;

/// Clients that have to fail, if the previous generation has served as many.
const CLIENTS: usize = 3;

/// Clients whose connections are counted. Worst case for a generation: 20 KiB.
const MAX_CLIENTS: usize = 256;

/// Connections of one client after which the earlier ones count half.
const RECENT: u32 = 32;

/// Counts how the connections of one generation end, by client.
#[derive(Debug)]
pub(crate) struct Trial {
    since: Instant,
    over: AtomicU64,
    failed: AtomicU64,
    /// A connection that succeeds changes nothing in the table.
    settled: AtomicBool,
    /// Locked when a connection ends, until the table is settled.
    table: Mutex<Table>,
}

/// Connections of a generation of which many have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failing {
    pub(crate) failed: u64,
    pub(crate) over: u64,
    pub(crate) verdict: Verdict,
}

/// What failures say of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The previous generation fails the same clients.
    FailedBefore,
    /// Most clients are served, or too few have connected to tell.
    FewClients,
    /// The generation is worse than the previous one.
    Worse,
}

impl Trial {
    /// Begins the trial of a generation.
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            over: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            settled: AtomicBool::new(false),
            table: Mutex::default(),
        }
    }

    /// Counts a connection of `client` that has ended. Returns whether it is time for a
    /// [`judgement`](Self::judge).
    pub(crate) fn add(&self, client: ClientKey, failed: bool) -> bool {
        let over = self.over.fetch_add(1, Relaxed) + 1;
        if failed {
            self.failed.fetch_add(1, Relaxed);
        } else if self.settled.load(Relaxed) {
            return false;
        }
        let watched = over <= CONNECTIONS || self.since.elapsed() < PROBATION;
        let mut table = self.table();
        table.add(client, failed, watched);
        self.settled.store(!watched && table.is_settled(), Relaxed);
        failed && watched
    }

    /// Compares the generation with the one before, which failed as `before` says, and has served
    /// the clients of `served`. Returns `None` if too few connections failed, or too few of all.
    pub(crate) fn judge(&self, before: &Self, served: &Self) -> Option<Failing> {
        let (failed, over) = (self.failed.load(Relaxed), self.over.load(Relaxed));
        let scores: Vec<_> = self
            .table()
            .scores
            .iter()
            .map(|(client, score)| (*client, *score))
            .collect();
        let failures =
            |failing: &[(ClientKey, Score)]| -> u32 { failing.iter().map(|(_, score)| score.failed).sum() };
        let mut failing: Vec<_> = scores
            .iter()
            .copied()
            .filter(|(_, score)| score.fails())
            .collect();
        // Another connection may have been counted in one of the two by now.
        if failures(&failing) < FAILURES || failed < over.saturating_sub(failed) {
            return None;
        }
        let before = before.table().scores.clone();
        failing.retain(|(client, _)| !before.get(client).is_some_and(Score::fails));
        let served = served.table().served.len();
        let verdict = if failures(&failing) < FAILURES {
            Verdict::FailedBefore
        } else if failing.len() < served.max(1) || 2 * failing.len() < scores.len() {
            Verdict::FewClients
        } else {
            Verdict::Worse
        };
        Some(Failing {
            failed,
            over,
            verdict,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing can panic while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Table {
    /// While the generation is monitored, the clients that have connected; later those that fail.
    scores: HashMap<ClientKey, Score>,
    /// Clients that were served, up to [`CLIENTS`] of them.
    served: Vec<ClientKey>,
    /// The generation is no longer monitored, and `scores` has only clients that fail.
    swept: bool,
}

impl Table {
    fn add(&mut self, client: ClientKey, failed: bool, watched: bool) {
        if !watched && !self.swept {
            self.scores.retain(|_, score| score.failed > 0);
            self.swept = true;
        }
        if !failed && self.served.len() < CLIENTS && !self.served.contains(&client) {
            self.served.push(client);
        }
        if let Some(score) = self.scores.get_mut(&client) {
            score.add(failed);
            if !watched && score.failed == 0 {
                self.scores.remove(&client);
            }
        } else if failed || watched {
            if self.scores.len() >= MAX_CLIENTS {
                if watched {
                    return;
                }
                self.scores.clear();
            }
            self.scores.entry(client).or_default().add(failed);
        }
    }

    fn is_settled(&self) -> bool {
        self.scores.is_empty() && self.served.len() >= CLIENTS
    }
}

/// The connections of one client.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    over: u32,
    failed: u32,
}

impl Score {
    fn add(&mut self, failed: bool) {
        if self.over >= RECENT {
            self.over /= 2;
            self.failed /= 2;
        }
        self.over += 1;
        self.failed += u32::from(failed);
    }

    /// Returns whether at least half of the connections have failed.
    fn fails(&self) -> bool {
        self.failed > 0 && 2 * self.failed >= self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn client(number: u32) -> ClientKey {
        ClientKey::User(number)
    }

    /// A trial in which these clients had a connection, each of which failed or not.
    fn trial(connections: &[(u32, bool)]) -> Trial {
        let trial = Trial::new();
        for &(number, failed) in connections {
            trial.add(client(number), failed);
        }
        trial
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_worse_if_most_clients_have_them_and_had_none_before() {
        let served = |clients: u32| trial(&(0..clients).map(|number| (number, false)).collect::<Vec<_>>());
        let failed = |clients: u32| {
            let connections: Vec<_> = (0..5.max(clients)).map(|index| (index % clients, true)).collect();
            trial(&connections)
        };
        let verdict = |new: &Trial, before: &Trial| new.judge(before, before);
        let five = (5, 5);
        let failing = |verdict, (failed, over)| {
            Some(Failing {
                failed,
                over,
                verdict,
            })
        };
        let worse = |counts| failing(Verdict::Worse, counts);
        let few = |counts| failing(Verdict::FewClients, counts);
        assert_eq!(verdict(&trial(&[(0, true); 4]), &served(1)), None);
        // Where there is one client, such as a balancer, it speaks for all.
        assert_eq!(verdict(&failed(1), &served(0)), worse(five));
        assert_eq!(verdict(&failed(1), &served(1)), worse(five));
        assert_eq!(verdict(&failed(1), &served(2)), few(five));
        assert_eq!(verdict(&failed(2), &served(2)), worse(five));
        assert_eq!(verdict(&failed(2), &served(100)), few(five));
        assert_eq!(verdict(&failed(3), &served(100)), worse(five));
        // Others are served.
        let others = [(0, true), (1, true), (2, true), (0, true), (1, true)];
        let more: Vec<_> = others
            .into_iter()
            .chain((10..14).map(|number| (number, false)))
            .collect();
        assert_eq!(verdict(&trial(&more), &served(3)), few((5, 9)));
        // The same clients failed before.
        assert_eq!(
            verdict(&failed(3), &failed(3)),
            failing(Verdict::FailedBefore, five)
        );
        // They failed once long ago.
        let long_ago: Vec<_> = [(0, true)].into_iter().chain([(0, false); 40]).collect();
        assert_eq!(verdict(&failed(1), &trial(&long_ago)), worse(five));
    }

    #[tokio::test(start_paused = true)]
    async fn a_generation_is_monitored_for_ten_seconds_and_twenty_connections() {
        let by_time = Trial::new();
        for _ in 0..100 {
            assert!(!by_time.add(client(0), false));
        }
        assert!(by_time.add(client(0), true));
        tokio::time::advance(PROBATION).await;
        assert!(!by_time.add(client(0), true));
        let by_connections = Trial::new();
        tokio::time::advance(100 * PROBATION).await;
        for _ in 0..CONNECTIONS {
            assert!(by_connections.add(client(0), true));
        }
        assert!(!by_connections.add(client(0), true));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_stays_small_and_is_settled_without_failures() {
        let trial = Trial::new();
        for number in 0..10_000 {
            trial.add(client(number), number % 2 == 0);
        }
        assert_eq!(trial.table().scores.len(), MAX_CLIENTS);
        tokio::time::advance(PROBATION).await;
        for number in 0..10_000 {
            trial.add(client(number), true);
            assert!(trial.table().scores.len() <= MAX_CLIENTS);
        }
        assert!(!trial.settled.load(Relaxed));
        let calm = Trial::new();
        for number in 0..100 {
            calm.add(client(number), false);
        }
        tokio::time::advance(PROBATION).await;
        calm.add(client(0), false);
        assert!(calm.settled.load(Relaxed));
        // One client fails now and then.
        calm.add(client(7), true);
        assert!(!calm.settled.load(Relaxed));
        for _ in 0..2 * RECENT {
            calm.add(client(7), false);
        }
        assert!(calm.settled.load(Relaxed));
    }
}
