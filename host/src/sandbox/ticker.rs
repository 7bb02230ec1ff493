//! The clock that interrupts guests.
//!
//! Code compiled for the sandbox looks at its engine's epoch at every loop and call. A thread of the operating
//! system moves the epoch on (a task would be starved by the very guest that it has to interrupt), and sleeps
//! while no connection is open.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::{EngineWeak, UpdateDeadline};

/// Time between two ticks.
const TICK: Duration = Duration::from_millis(1);

thread_local! {
    /// The tick at which the turn that this thread is in began.
    static TURN: Cell<u64> = const { Cell::new(0) };
}

/// Moves the epochs of engines on while a connection is open.
pub(super) struct Ticker {
    now: AtomicU64,
    /// Ticks that a connection may see in one turn before it has to let others run. The first may come at once, so that it
    /// is interrupted up to a tick early.
    slice: u64,
    open: AtomicUsize,
    engines: Mutex<Vec<EngineWeak>>,
    thread: OnceLock<Thread>,
}

impl Ticker {
    /// Starts the thread. It ends some time after the ticker is dropped.
    pub(super) fn start(slice: Duration) -> io::Result<Arc<Self>> {
        let ticker = Arc::new(Self {
            now: AtomicU64::new(0),
            slice: ticks(slice),
            open: AtomicUsize::new(0),
            engines: Mutex::new(Vec::new()),
            thread: OnceLock::new(),
        });
        let weak = Arc::downgrade(&ticker);
        let handle = thread::Builder::new().name("ticker".into()).spawn(move || {
            while let Some(ticker) = weak.upgrade() {
                let open = ticker.open.load(Ordering::Acquire) > 0;
                if open {
                    ticker.tick();
                }
                drop(ticker);
                if open {
                    thread::sleep(TICK);
                } else {
                    thread::park();
                }
            }
        })?;
        let _ = ticker.thread.set(handle.thread().clone());
        Ok(ticker)
    }

    /// Moves the epoch of `engine` too, until that is dropped.
    pub(super) fn add(&self, engine: EngineWeak) {
        self.engines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(engine);
    }

    fn tick(&self) {
        self.now.fetch_add(1, Ordering::Relaxed);
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

    /// Ticks since the ticker was started, while a connection was open.
    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Runs `future` with the clock ticking, noting when each of its turns begins.
    pub(super) async fn run<F: Future>(&self, future: F) -> F::Output {
        let _open = self.open();
        let mut future = pin!(future);
        poll_fn(|cx| {
            TURN.set(self.now());
            future.as_mut().poll(cx)
        })
        .await
    }

    fn open(&self) -> Open<'_> {
        if self.open.fetch_add(1, Ordering::AcqRel) == 0 {
            self.wake();
        }
        Open(self)
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

    fn turn_is_over(&self) -> bool {
        self.now().saturating_sub(TURN.get()) >= self.slice
    }

    /// What a guest that met the deadline of its epoch has to do: go on while its turn lasts, else let others
    /// run. Waiting is left to tokio's `yield_now`, which looks for I/O before the guest's next turn.
    pub(super) fn interrupt(&self) -> UpdateDeadline {
        if self.turn_is_over() {
            UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now()))
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

/// As many ticks as `time` takes, rounded up.
pub(super) fn ticks(time: Duration) -> u64 {
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
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

/// Keeps the clock ticking.
struct Open<'a>(&'a Ticker);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}
