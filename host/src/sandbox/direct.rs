//! Calls on the stack of the thread that makes them.
//!
//! A call that can be put aside has a stack of its own, a fiber. To change to it and back is a twentieth of what a short answer
//! costs, and a stack for each connection takes half of the mappings that the kernel lets a process have. A guest that cannot wait
//! for the host needs none while its calls are short, so it is called directly.
//!
//! A direct call that takes longer than a slice cannot be put aside. Instead its thread offers its
//! other tasks to other threads until one of them works, and goes on with this call alone. The
//! operating system then shares the processor among the threads. The number of such calls is bounded.
//! While there are as many, calls are made on fibers, and so are the next calls of a session that took
//! long. A call that finds no stack either waits for a stack or for the end of a long call. So that it
//! does not wait for the guests of other services, guests of a pool without a long call may begin one
//! beyond that bound. A long call checks whether something ends its connection from outside.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;
use tokio::task::block_in_place;
use wasmtime::{Store, UpdateDeadline};

use super::contract::{CpuLimit, Fault};
use super::meter::{Passed, TICK, thread_time};
use super::seat::Ending;
use super::state::State;
use super::ticker::Ticker;

/// Time for which a long call waits at a tick for another thread to take over.
const HAND_ON: Duration = TICK.saturating_mul(10);

/// Calls of a session that are made on fibers after one that took long.
const CALLS_ASIDE: u32 = 100;

/// Direct calls of this process that have handed on what else their threads had to do.
static LONG: AtomicUsize = AtomicUsize::new(0);

/// Tells when one of them has ended, or a stack is free.
static ROOM: Notify = Notify::const_new();

/// The stacks of a pool that has fewer of them than connections.
pub(super) struct Stacks {
    free: AtomicUsize,
    /// The part of [`LONG`] that guests of this pool make.
    long: AtomicUsize,
}

/// A stack. wasmtime keeps it with the store that has used one, so this goes with the store too.
pub(super) struct Stack(Arc<Stacks>);

impl Stacks {
    pub(super) fn new(count: u32) -> Arc<Self> {
        Arc::new(Self {
            free: AtomicUsize::new(count as usize),
            long: AtomicUsize::new(0),
        })
    }

    /// Takes one, if there is one.
    pub(super) fn take(self: &Arc<Self>) -> Option<Stack> {
        let less = |free: usize| free.checked_sub(1);
        let taken = self.free.fetch_update(Relaxed, Relaxed, less);
        taken.ok().map(|_| Stack(Arc::clone(self)))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Relaxed);
        ROOM.notify_waiters();
    }
}

/// What a store keeps whose guest may be called directly.
pub(super) struct Direct {
    /// The runtime whose threads make calls.
    runtime: Handle,
    /// The number of long calls from which on only pools without one may begin another. From twice
    /// the number on, none may.
    max_long: usize,
    stacks: Arc<Stacks>,
    max_call_time: Duration,
    ending: Arc<dyn Ending>,
    /// How many of the next calls are made on fibers.
    aside: u32,
    /// The call that is under way.
    call: Option<Call>,
}

#[derive(Default)]
struct Call {
    /// Ticks that have met the guest at work. A thread that waits for the processor meets no more than one.
    ticks: u64,
    /// The time of the thread at the first of them.
    since: Option<Duration>,
    long: Option<Long>,
}

/// A long call, until this is dropped.
struct Long {
    stacks: Arc<Stacks>,
    /// Whether other threads do what else its thread had to do.
    handed_on: bool,
}

impl Long {
    fn begin(stacks: &Arc<Stacks>) -> Self {
        LONG.fetch_add(1, Relaxed);
        stacks.long.fetch_add(1, Relaxed);
        Self {
            stacks: Arc::clone(stacks),
            handed_on: false,
        }
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        LONG.fetch_sub(1, Relaxed);
        self.stacks.long.fetch_sub(1, Relaxed);
        ROOM.notify_waiters();
    }
}

/// A call was interrupted since its connection is to end.
#[derive(Debug, Error)]
#[error("interrupted: the connection is being closed")]
struct Ended;

impl Direct {
    /// Creates what the store of a connection needs, in the pool with these stacks. `ending` tells
    /// when the connection is to end. Returns `None` on a current-thread runtime, which has no other
    /// thread to take over tasks.
    pub(super) fn new(
        max_call_time: Duration,
        stacks: &Arc<Stacks>,
        ending: Arc<dyn Ending>,
    ) -> Option<Self> {
        let runtime = Handle::current();
        (runtime.runtime_flavor() == RuntimeFlavor::MultiThread).then(|| Self {
            // Besides, each thread of the runtime may be in a call that becomes long.
            max_long: runtime.metrics().num_workers(),
            runtime,
            stacks: Arc::clone(stacks),
            max_call_time,
            ending,
            aside: 0,
            call: None,
        })
    }

    fn begin(&mut self) -> bool {
        if self.aside > 0 {
            self.aside -= 1;
            return false;
        }
        let direct = self.may_begin();
        if direct {
            self.call = Some(Call::default());
        }
        direct
    }

    fn may_begin(&self) -> bool {
        let long = LONG.load(Relaxed);
        long < self.max_long || long < 2 * self.max_long && self.stacks.long.load(Relaxed) == 0
    }

    fn end(&mut self) {
        if self.call.take().is_some_and(|call| call.long.is_some()) {
            self.aside = CALLS_ASIDE;
        }
    }

    /// What a guest in a direct call has to do at a tick; `None` if it is in none.
    pub(super) fn interrupt(&mut self, ticker: &Ticker) -> Option<wasmtime::Result<UpdateDeadline>> {
        let call = self.call.as_mut()?;
        let now = thread_time();
        if now.saturating_sub(*call.since.get_or_insert(now)) >= self.max_call_time {
            return Some(Err(CpuLimit::Call(Passed::Processor).into()));
        }
        if call.ticks < ticker.slice() {
            call.ticks += 1;
            return Some(Ok(UpdateDeadline::Continue(1)));
        }
        if self.ending.has_come() {
            return Some(Err(Ended.into()));
        }
        let long = call.long.get_or_insert_with(|| Long::begin(&self.stacks));
        if long.handed_on {
            // Other threads that wait for this processor run first, as on a fiber.
            thread::yield_now();
        } else {
            long.handed_on = hand_on(&self.runtime);
        }
        Some(Ok(UpdateDeadline::Continue(1)))
    }
}

/// Offers the other tasks of this thread, and its turn to wait for I/O and timers, to other threads
/// of `runtime`, to which it belongs. Returns false if none has begun to work within [`HAND_ON`],
/// as on a busy machine, or where the system gives the host no further thread.
///
/// A task that runs elsewhere is the evidence: a thread that has run it goes on to the tasks that wait,
/// and waits for I/O and timers when there are none.
fn hand_on(runtime: &Handle) -> bool {
    // In a call that uses files, the runtime for them is current, which would lend its threads.
    let _current = runtime.enter();
    let (ran, others_work) = mpsc::sync_channel(1);
    block_in_place(|| {
        runtime.spawn(async move { ran.send(()) });
        others_work.recv_timeout(HAND_ON).is_ok()
    })
}

/// Makes a call of the guest in `store` directly; `None` if it has to be made on a fiber.
///
/// # Errors
///
/// The call fails, or takes too long.
pub(super) fn call<T>(
    store: &mut Store<State>,
    call: impl FnOnce(&mut Store<State>) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    if !store.data_mut().direct().is_some_and(Direct::begin) {
        return Ok(None);
    }
    let called = call(store);
    if let Some(direct) = store.data_mut().direct() {
        direct.end();
    }
    called.map(Some).map_err(Fault::or_limit)
}

/// Waits until a call that could not be made directly can be made: on a fiber, or directly after all, if this gives `false`.
/// Long calls end in time, so the wait does too; what waits meanwhile is ended from outside as ever.
pub(super) async fn fiber(store: &mut Store<State>) -> bool {
    when_there_is_room(|| {
        if store.data_mut().take_stack() {
            return Some(true);
        }
        let direct = store.data_mut().direct()?;
        direct.may_begin().then(|| {
            direct.aside = 0;
            false
        })
    })
    .await
}

/// Waits until `take` takes something, which it tries again whenever a stack is free or a long call has ended.
async fn when_there_is_room<T>(mut take: impl FnMut() -> Option<T>) -> T {
    loop {
        // From now on, so that none is missed that comes before it is waited for.
        let room = ROOM.notified();
        if let Some(taken) = take() {
            return taken;
        }
        room.await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn a_thread_that_nobody_relieves_at_once_offers_its_tasks_again() {
        // One thread of the pool is the worker, and the only other one is busy at first.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (release, busy) = mpsc::channel::<()>();
        runtime.spawn_blocking(move || busy.recv());
        let (ran, other) = mpsc::channel();
        let long = runtime.spawn(async move {
            tokio::spawn(async move { ran.send(()) });
            let host = Handle::current();
            assert!(!hand_on(&host), "there is no other thread");
            assert!(other.try_recv().is_err(), "nobody runs the other task");
            release.send(()).unwrap();
            while !hand_on(&host) {}
            // This thread does nothing for the runtime any more.
            other.recv().unwrap();
        });
        runtime.block_on(long).unwrap();
    }

    #[test]
    fn a_stack_that_comes_free_while_it_is_looked_for_is_not_missed() {
        let stacks = Stacks::new(1);
        let mut held = stacks.take();
        assert!(held.is_some() && stacks.take().is_none(), "there is only one");
        let taken = when_there_is_room(|| {
            let taken = stacks.take();
            // Too late for this look, and before anybody waits.
            held = None;
            taken
        });
        let polled = pin!(taken).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(_)));
        drop(polled);
        assert!(stacks.take().is_some(), "it is back");
    }
}
