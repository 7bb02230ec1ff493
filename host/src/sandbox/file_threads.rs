//! The threads on which the guests of one service use their files.

use std::future::pending;
use std::io;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinError;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::files::OpenFiles;
use crate::config::FILE_THREADS;
use crate::threads::{self, KEPT, NoThread, STACK, spare};

/// The nice value of these threads. A guest keeps many of them computing if it lists large
/// directories, which nothing interrupts. With this value, all of them together weigh about as much
/// as one of the threads that serve connections.
const NICE: i32 = 19;

/// Cancelled operations that may be queued before others have to wait. Each keeps its arguments, up
/// to 68 KiB.
const MAX_CANCELLED: usize = 64;

/// How long the granted directories may take to open before the host logs that connections wait.
const SLOW: Duration = Duration::from_secs(1);

/// The threads on which the guests of one service open, read and write files.
///
/// wasmtime-wasi hands each operation on a file to the blocking threads of the current runtime. A
/// file that hangs, such as a named pipe or one on a lost mount, keeps its thread. On the runtime
/// of the host, such files would take the threads that replace those in long calls. A service with
/// granted directories therefore has a runtime of its own, which [`on`] makes current.
///
/// Its threads stay once they are started. If the system gives the host no further thread, work
/// waits for one of them.
///
/// An instance that ends leaves its operations in the queue, with up to 64 KiB each, until a thread
/// takes them out. A guest begins only after [`open`](Self::open) has passed the same queue, so the
/// queue never has operations of more guests than may be connected at once.
#[derive(Debug)]
pub(super) struct FileThreads {
    runtime: Handle,
    /// Turns for the work of the host itself, so that no more of it is queued than there are
    /// threads.
    turns: Arc<Semaphore>,
    cancelled: Arc<Cancelled>,
    /// The log says that connections wait.
    slow: AtomicBool,
    /// Ends the runtime.
    _end: DropGuard,
}

impl FileThreads {
    /// Starts the runtime. It begins with one thread for timers and sockets of guests, and one for
    /// files.
    ///
    /// # Errors
    ///
    /// A thread cannot be started, or there are no descriptors left.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(FILE_THREADS)
            .thread_keep_alive(KEPT)
            .thread_stack_size(STACK)
            .thread_name("files")
            .on_thread_start(|| {
                // Lowering it is always permitted.
                let _ = setpriority_process(Some(gettid()), NICE);
            })
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ends = end.clone();
        let (tell, has_started) = mpsc::sync_channel(1);
        // A runtime that has to start this thread itself panics if it cannot.
        threads::start("files", move || {
            run_until(runtime, &ends, |started| tell.send(started));
        })?;
        has_started.recv().map_err(io::Error::other)?.map_err(NoThread)?;
        Ok(Arc::new(Self {
            runtime: handle,
            turns: Arc::new(Semaphore::new(FILE_THREADS)),
            cancelled: Arc::default(),
            slow: AtomicBool::new(false),
            _end: end.drop_guard(),
        }))
    }

    /// Opens what a guest of `service` needs before it starts. While files of other guests keep all
    /// threads busy, this waits, and the log says so once.
    pub(super) async fn open<T: Send + 'static>(
        &self,
        service: Option<&str>,
        open: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let mut opened = pin!(self.run(open));
        let opened = match timeout(SLOW, &mut opened).await {
            Ok(opened) => opened,
            Err(_) => {
                if !self.slow.swap(true, Relaxed) {
                    warn!(
                        service,
                        "the granted directories have not opened for {SLOW:?}: a directory does not answer, \
                         or files of guests, such as named pipes, keep all {FILE_THREADS} threads of the \
                         service busy, or as many as the system gives the host; new connections of the service \
                         wait"
                    );
                }
                opened.await
            }
        };
        self.slow.store(false, Relaxed);
        opened
    }

    /// Waits until an operation of a guest may begin. While no thread is free, the queue keeps
    /// every operation that was cancelled. With many of them, this waits until they have left it.
    ///
    /// There is no permit for each operation: a guest that does not poll its calls could keep the
    /// permits of operations that have long ended.
    pub(super) async fn begin(self: Arc<Self>) -> Call {
        self.cancelled.are_few().await;
        Call { threads: Some(self) }
    }

    /// Notes that an operation was cancelled, which may still be queued.
    fn cancel(&self) {
        self.cancelled.queued.fetch_add(1, SeqCst);
        let cancelled = Arc::clone(&self.cancelled);
        // The queue is first in, first out, so the operation has left it when this runs.
        self.runtime.spawn_blocking(move || cancelled.has_left());
    }

    /// Begins `work`, which takes its turn even if the result is not polled. If the result is
    /// dropped before the turn comes, the work is too.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> AbortOnDropHandle<T> {
        AbortOnDropHandle::new(self.runtime.spawn(self.run(work)))
    }

    /// Drops `value` on one of these threads. To close the files in it can take long.
    ///
    /// It takes no turn: as many files as are open can wait to be closed.
    pub(super) fn drop_there(&self, value: impl Send + 'static) {
        self.runtime.spawn_blocking(move || drop(value));
    }

    /// The runtime of these threads.
    pub(super) fn handle(&self) -> Handle {
        self.runtime.clone()
    }

    /// Does `work` when its turn has come.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        let (runtime, turns) = (self.runtime.clone(), Arc::clone(&self.turns));
        async move {
            // It is never closed.
            let turn = turns.acquire_owned().await;
            let working = runtime.spawn_blocking(move || {
                let _turn = turn;
                work()
            });
            match working.await.map_err(JoinError::try_into_panic) {
                Ok(done) => done,
                Err(Ok(panic)) => resume_unwind(panic),
                // The runtime ends, and with it every task that waits for the result.
                Err(Err(_)) => pending().await,
            }
        }
    }
}

/// Returns the result of work that [`FileThreads::spawn`] has begun. A panic of the work continues
/// here.
pub(super) fn joined<T>(done: Result<T, JoinError>) -> T {
    done.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// Runs the tasks of `runtime` in this thread until `end`, and tells whether it has a thread for
/// files.
fn run_until<E>(
    runtime: Runtime,
    end: &CancellationToken,
    tell: impl FnOnce(io::Result<()>) -> Result<(), E>,
) {
    runtime.block_on(async {
        // Fails if nobody waits any more.
        let _ = tell(spare().await);
        end.cancelled().await;
    });
    // Files that hang are not waited for.
    runtime.shutdown_background();
}

/// Operations of guests that were cancelled, and may still be queued.
#[derive(Debug, Default)]
struct Cancelled {
    queued: AtomicUsize,
    /// Notified when they have become few.
    few: Notify,
}

impl Cancelled {
    /// Waits until there are fewer than [`MAX_CANCELLED`].
    async fn are_few(&self) {
        while self.queued.load(SeqCst) >= MAX_CANCELLED {
            // From here on, it hears of those that leave.
            let few = self.few.notified();
            if self.queued.load(SeqCst) >= MAX_CANCELLED {
                few.await;
            }
        }
    }

    fn has_left(&self) {
        if self.queued.fetch_sub(1, SeqCst) == MAX_CANCELLED {
            self.few.notify_waiters();
        }
    }
}

/// An operation of a guest. Unless it ends, it is cancelled by its drop.
#[derive(Debug)]
pub(super) struct Call {
    /// `None` once it has ended.
    threads: Option<Arc<FileThreads>>,
}

impl Call {
    /// Notes that the operation has ended.
    pub(super) fn end(call: Option<Self>) {
        if let Some(mut call) = call {
            call.threads = None;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(threads) = &self.threads {
            threads.cancel();
        }
    }
}

/// Runs `guest`, whose `files` are used and closed on threads for files, if it may have any.
pub(super) fn on<F: Future>(files: Option<Arc<OpenFiles>>, guest: F) -> On<F> {
    On { guest, files }
}

pin_project! {
    /// The future of [`on`].
    pub(super) struct On<F> {
        #[pin]
        guest: F,
        files: Option<Arc<OpenFiles>>,
    }
}

impl<F: Future> Future for On<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(files) = this.files else {
            return this.guest.poll(cx);
        };
        let current = files.threads().runtime.enter();
        let polled = this.guest.poll(cx);
        drop(current);
        // Whatever the guest has closed, such as the last stream of a file.
        files.close_left();
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Notes its drop.
    struct Queued(Arc<Mutex<Vec<&'static str>>>);

    impl Drop for Queued {
        fn drop(&mut self) {
            self.0.lock().unwrap().push("left the queue");
        }
    }

    /// While operations of guests that have ended are in the queue, no other guest begins. So the
    /// queue never has operations of more guests than may be connected at once.
    #[tokio::test]
    async fn a_guest_begins_when_the_operations_before_it_have_left_the_queue() {
        let threads = FileThreads::start().unwrap();
        let (release, released) = mpsc::channel();
        let (started, has_started) = mpsc::channel();
        let released = Arc::new(Mutex::new(released));
        for _ in 0..FILE_THREADS {
            let (released, started) = (Arc::clone(&released), started.clone());
            threads.runtime.spawn_blocking(move || {
                started.send(()).unwrap();
                // Fails at the end of the test.
                let _ = released.lock().unwrap().recv();
            });
        }
        has_started.iter().take(FILE_THREADS).for_each(drop);
        let order = Arc::new(Mutex::new(Vec::new()));
        // wasmtime-wasi does the same when an instance ends.
        let operation = Queued(Arc::clone(&order));
        threads.runtime.spawn_blocking(move || drop(operation)).abort();
        let begins = threads.spawn({
            let order = Arc::clone(&order);
            move || order.lock().unwrap().push("begins")
        });
        assert!(order.lock().unwrap().is_empty());
        release.send(()).unwrap();
        begins.await.unwrap();
        assert_eq!(*order.lock().unwrap(), ["left the queue", "begins"]);
    }
}
