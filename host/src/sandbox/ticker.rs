//! The clock that interrupts guests.
//!
//! Code compiled for the sandbox looks at its engine's epoch in every loop and function. A thread
//! of the operating system moves the epoch on (a task would be starved by the very guest that it
//! has to interrupt), and sleeps while no guest runs.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::Ordering::{self, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use wasmtime::{Engine, EngineWeak, UpdateDeadline};

use super::meter::{self, TICK, thread_time};
use crate::cost::Cost;
use crate::threads;

thread_local! {
    /// The tick at which the turn that this thread is in began.
    static TURN: Cell<u64> = const { Cell::new(0) };

    /// Which counter of turns this thread uses.
    static COUNTER: usize = THREADS.fetch_add(1, Relaxed) % COUNTERS;
}

/// Counters of turns.
const COUNTERS: usize = 32;

/// Threads that have begun a turn.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Turns of a thread that are under way. It has a cache line for itself (and the one that is fetched with it), since
/// threads that count at one place wait for each other at each turn.
#[repr(align(128))]
struct Turns(AtomicUsize);

/// Ticks in a row that find no connection in a turn, after which the clock stops. Starting it again takes longer than a turn
/// should, so it does not stop between two turns of a connection that has much to do.
const STILL: u32 = 50;

/// Moves the epochs of engines on while guests run.
pub(super) struct Ticker {
    now: AtomicU64,
    /// Ticks that a connection may see in one turn before it has to let others run. The first may come at once, so that it
    /// is interrupted up to a tick early.
    slice: u64,
    /// Turns that are under way, by counters of which few threads use the same.
    turns: [Turns; COUNTERS],
    /// Whether the clock stands still.
    stopped: AtomicBool,
    engines: Mutex<Vec<EngineWeak>>,
    thread: OnceLock<Thread>,
}

impl Ticker {
    /// Starts the thread. It ends some time after the ticker is dropped.
    pub(super) fn start(slice: Duration) -> io::Result<Arc<Self>> {
        let ticker = Arc::new(Self {
            now: AtomicU64::new(0),
            slice: ticks(slice),
            turns: [const { Turns(AtomicUsize::new(0)) }; COUNTERS],
            stopped: AtomicBool::new(false),
            engines: Mutex::new(Vec::new()),
            thread: OnceLock::new(),
        });
        let weak = Arc::downgrade(&ticker);
        let handle = threads::start("ticker", move || {
            let mut quiet = 0;
            while let Some(ticker) = weak.upgrade() {
                ticker.tick();
                quiet = if ticker.quiet(Relaxed) { quiet + 1 } else { 0 };
                let stop = quiet >= STILL && ticker.stop();
                drop(ticker);
                if stop {
                    thread::park();
                    quiet = 0;
                } else {
                    thread::sleep(TICK);
                }
            }
        })?;
        let _ = ticker.thread.set(handle.thread().clone());
        Ok(ticker)
    }

    /// Moves the epoch of `engine` too, until that is dropped.
    pub(super) fn add(&self, engine: &Engine) {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |known: &EngineWeak| known.upgrade().is_some_and(|known| Engine::same(&known, engine));
        // Settings before and after a change can share an engine.
        if !engines.iter().any(is_known) {
            engines.push(engine.weak());
        }
    }

    fn tick(&self) {
        self.now.fetch_add(1, Relaxed);
        self.engines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|engine| {
                let engine = engine.upgrade();
                if let Some(engine) = &engine {
                    engine.increment_epoch();
                }
                engine.is_some()
            });
    }

    /// Stops the clock, unless a turn has begun in this moment.
    fn stop(&self) -> bool {
        self.stopped.store(true, SeqCst);
        // Whoever begins the first turn after this sees that the clock is stopped, and starts it.
        let stop = self.quiet(SeqCst);
        if stop {
            // What a thread has read at this tick is of no use when the clock starts again.
            self.now.fetch_add(1, Relaxed);
        } else {
            self.stopped.store(false, SeqCst);
        }
        stop
    }

    /// Whether no turn is under way.
    fn quiet(&self, ordering: Ordering) -> bool {
        self.turns.iter().all(|turns| turns.0.load(ordering) == 0)
    }

    /// Begins a turn, and starts the clock if it is stopped.
    fn turn(&self) -> Turn<'_> {
        let now = self.now();
        TURN.set(now);
        meter::turn_begins(now);
        let turns = &self.turns[COUNTER.with(|counter| *counter)].0;
        if turns.fetch_add(1, SeqCst) == 0 && self.stopped.load(SeqCst) && self.stopped.swap(false, SeqCst) {
            self.wake();
        }
        Turn(turns)
    }

    /// Ticks since the ticker was started, while guests ran.
    pub(super) fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    /// Runs `future` with the clock ticking, noting when each of its turns begins.
    pub(super) async fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let _turn = self.turn();
            future.as_mut().poll(cx)
        })
        .await
    }

    /// The same, and adds the time of its turns to what `cost` has.
    ///
    /// A turn that is shorter than a tick is charged by the clock, which is cheaper to read. A longer one is charged with the time for which its thread ran, to within a tick.
    pub(super) async fn run_at<F: Future>(&self, cost: &Cost, future: F) -> F::Output {
        let mut future = pin!(future);
        self.run(poll_fn(|cx| {
            let before = meter::turn_began();
            let start = Instant::now();
            let polled = future.as_mut().poll(cx);
            let mut time = start.elapsed();
            if time >= TICK {
                time = time.min(thread_time().saturating_sub(before));
            }
            cost.add_cpu(time);
            polled
        }))
        .await
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Lets others run if the turn has lasted for its slice. Loops of the host that a guest can keep going call it,
    /// since a guest whose calls are short is not interrupted in them.
    pub(super) async fn take_turns(&self) {
        if self.turn_is_over() {
            tokio::task::yield_now().await;
        }
    }

    /// Whether the turn on this thread has lasted for its slice.
    pub(super) fn turn_is_over(&self) -> bool {
        self.slice_is_over(TURN.get())
    }

    /// Ticks of a slice.
    pub(super) fn slice(&self) -> u64 {
        self.slice
    }

    /// Whether a slice that began at the tick `since` is over.
    pub(super) fn slice_is_over(&self, since: u64) -> bool {
        self.now().saturating_sub(since) >= self.slice
    }

    /// What a guest that met the deadline of its epoch has to do: go on while its turn lasts, else let others
    /// run. Waiting is left to tokio's `yield_now`, which looks for I/O before the guest's next turn.
    pub(super) fn interrupt(&self) -> UpdateDeadline {
        if self.turn_is_over() {
            meter::yields();
            UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now()))
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

/// As many ticks as `time` takes, rounded up.
fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX)
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.wake();
    }
}

impl fmt::Debug for Ticker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticker")
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

/// A turn of a connection, which ends when this is dropped.
struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Release);
    }
}
