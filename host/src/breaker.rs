//! A breaker: what fails at its start again and again is not started at the rate at which connections come.
//!
//! It is closed while instances start. After `FAILURES` in a row that did not it opens: connections are refused without
//! an instance. When a pause is over, one connection is let in to try. If its instance starts, the breaker closes; if it
//! fails, the breaker opens again, for twice as long.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::admission::Refused;

/// Failures in a row that open the breaker.
const FAILURES: u32 = 5;

/// How long it stays open, from the first pause to the longest. Each is twice as long as the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How long a try may take before another is let in beside it: a guest may wait for its peer before it has started.
const TRY: Duration = Duration::from_secs(1);

/// Counts the instances that fail at their start.
#[derive(Debug)]
pub struct Breaker {
    /// The name of the service, for the log.
    service: String,
    /// Locked when a connection begins, and when its instance has started or failed.
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        pause: Duration,
        refused: u64,
    },
    Trying {
        since: Instant,
        pause: Duration,
        refused: u64,
    },
}

impl Breaker {
    /// A closed breaker for a generation of `service`.
    pub fn new(service: &str) -> Self {
        Self {
            service: service.to_owned(),
            state: Mutex::new(State::Closed { failures: 0 }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in to start an instance, or not.
    ///
    /// # Errors
    ///
    /// The breaker is open.
    pub fn attempt(self: &Arc<Self>) -> Result<Attempt, Refused> {
        let mut state = self.state();
        let now = Instant::now();
        let mut tries = false;
        match &mut *state {
            State::Closed { .. } => {}
            State::Open {
                until,
                pause,
                refused,
            } if *until <= now => {
                info!(
                    service = self.service,
                    refused, "breaker half-open: trying one instance"
                );
                tries = true;
                *state = State::Trying {
                    since: now,
                    pause: *pause,
                    refused: *refused,
                };
            }
            State::Trying { since, .. } if *since + TRY <= now => {
                tries = true;
                *since = now;
            }
            State::Open { refused, .. } | State::Trying { refused, .. } => {
                *refused += 1;
                return Err(Refused::Failing);
            }
        }
        Ok(Attempt {
            breaker: Arc::clone(self),
            tries,
        })
    }

    fn started(&self) {
        let mut state = self.state();
        if let State::Open { refused, .. } | State::Trying { refused, .. } = *state {
            info!(
                service = self.service,
                refused, "breaker closed: instances start again"
            );
        }
        *state = State::Closed { failures: 0 };
    }

    fn failed(&self, tried: bool) {
        let mut state = self.state();
        let (pause, refused) = match &mut *state {
            State::Closed { failures } if *failures + 1 < FAILURES => {
                *failures += 1;
                return;
            }
            State::Closed { .. } => (PAUSE.0, 0),
            State::Trying { pause, refused, .. } if tried => ((*pause * 2).min(PAUSE.1), *refused),
            // It began before the breaker opened.
            State::Open { .. } | State::Trying { .. } => return,
        };
        warn!(
            service = self.service,
            pause = %humantime::format_duration(pause),
            refused,
            "breaker open: instances fail at start; connections are refused"
        );
        *state = State::Open {
            until: Instant::now() + pause,
            pause,
            refused,
        };
    }
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Attempt {
    breaker: Arc<Breaker>,
    /// It was let in to try, when the breaker was open.
    tries: bool,
}

impl Attempt {
    /// Its instance has started.
    pub fn started(&self) {
        self.breaker.started();
    }

    /// Its instance has failed before it had started.
    pub fn failed(&self) {
        self.breaker.failed(self.tries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Arc<Breaker>, times: u32) {
        for _ in 0..times {
            breaker.attempt().unwrap().failed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_for_longer_and_longer() {
        let breaker = Arc::new(Breaker::new("test"));
        fail(&breaker, FAILURES - 1);
        breaker.attempt().unwrap().started();
        fail(&breaker, FAILURES);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let start = Instant::now();
            let attempt = loop {
                match breaker.attempt() {
                    Ok(attempt) => break attempt,
                    Err(refused) => assert_eq!(refused, Refused::Failing),
                }
                tokio::time::advance(Duration::from_millis(1)).await;
            };
            assert!(breaker.attempt().is_err(), "one is enough to try");
            pauses.push(start.elapsed());
            attempt.failed();
        }
        assert_eq!(pauses[..3], [100, 200, 400].map(Duration::from_millis));
        assert_eq!(pauses[9..], [PAUSE.1; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_when_an_instance_starts() {
        let breaker = Arc::new(Breaker::new("test"));
        fail(&breaker, FAILURES);
        assert!(breaker.attempt().is_err());
        tokio::time::advance(PAUSE.0).await;
        breaker.attempt().unwrap().started();
        // It has forgotten what was.
        fail(&breaker, FAILURES - 1);
        assert!(breaker.attempt().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_leads_to_nothing_does_not_keep_it_open() {
        let breaker = Arc::new(Breaker::new("test"));
        fail(&breaker, FAILURES);
        tokio::time::advance(PAUSE.0).await;
        let undecided = breaker.attempt().unwrap();
        assert!(breaker.attempt().is_err());
        tokio::time::advance(TRY).await;
        breaker.attempt().unwrap().started();
        drop(undecided);
        assert!(breaker.attempt().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_try_counts_while_one_is_made() {
        let breaker = Arc::new(Breaker::new("test"));
        let late: Vec<_> = (0..3).map(|_| breaker.attempt().unwrap()).collect();
        fail(&breaker, FAILURES);
        tokio::time::advance(PAUSE.0).await;
        let tries = breaker.attempt().unwrap();
        late.iter().for_each(Attempt::failed);
        tries.failed();
        tokio::time::advance(2 * PAUSE.0).await;
        assert!(breaker.attempt().is_ok(), "the pause was doubled once");
    }
}
