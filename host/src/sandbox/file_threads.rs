//! The threads on which the guests of one service use their files.

use std::io;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::warn;

use crate::config::FILE_THREADS;

/// The nice value of these threads. A guest keeps many of them computing if it lists large
/// directories, which nothing interrupts. So they have a tenth of the weight of the threads that
/// serve connections.
const NICE: i32 = 10;

/// How long the granted directories may take to open before the host logs that connections wait.
const SLOW: Duration = Duration::from_secs(1);

/// The threads on which the guests of one service open, read and write files.
///
/// wasmtime-wasi hands each operation on a file to the blocking threads of the current runtime. A
/// file that hangs, such as a named pipe or one on a lost mount, keeps its thread. On the runtime
/// of the host, such files would take the threads by which the host reloads components of all
/// services. A service with granted directories therefore has a runtime of its own, which [`on`]
/// makes current.
#[derive(Debug)]
pub(super) struct FileThreads {
    /// Present until this is dropped.
    runtime: Option<Runtime>,
    /// Turns for the work of the host itself, so that no more of it is queued than there are
    /// threads.
    turns: Arc<Semaphore>,
    /// The log says that connections wait.
    slow: AtomicBool,
}

impl FileThreads {
    /// Starts the runtime. It begins with one thread, for timers and sockets of guests.
    ///
    /// # Errors
    ///
    /// The thread cannot be started, or there are no descriptors left.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let is_for_files = Arc::new(AtomicBool::new(false));
        let thread_is_for_files = Arc::clone(&is_for_files);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(FILE_THREADS)
            .thread_name("files")
            .on_thread_start(move || {
                if thread_is_for_files.load(Relaxed) {
                    // Lowering it is always permitted.
                    let _ = setpriority_process(Some(gettid()), NICE);
                }
            })
            .enable_all()
            .build()?;
        // Threads that start after the first one are for files.
        let (runs, first) = mpsc::sync_channel(1);
        runtime.spawn(async move { runs.send(()) });
        first.recv().map_err(io::Error::other)?;
        is_for_files.store(true, Relaxed);
        Ok(Arc::new(Self {
            runtime: Some(runtime),
            turns: Arc::new(Semaphore::new(FILE_THREADS)),
            slow: AtomicBool::new(false),
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
                         or files of guests keep all {FILE_THREADS} threads of the service busy, such as named \
                         pipes; new connections of the service wait"
                    );
                }
                opened.await
            }
        };
        self.slow.store(false, Relaxed);
        opened
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        // It is never closed.
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let runtime = self.runtime.as_ref().expect("it is there until the drop");
        let working = runtime.spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        match working.await {
            Ok(done) => done,
            Err(error) => resume_unwind(error.into_panic()),
        }
    }
}

impl Drop for FileThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Files that hang are not waited for.
            runtime.shutdown_background();
        }
    }
}

/// Runs `guest`, whose files are used on `threads`, if there are any.
pub(super) fn on<F: Future>(threads: Option<Arc<FileThreads>>, guest: F) -> On<F> {
    On { threads, guest }
}

pin_project! {
    /// The future of [`on`].
    pub(super) struct On<F> {
        threads: Option<Arc<FileThreads>>,
        #[pin]
        guest: F,
    }
}

impl<F: Future> Future for On<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let runtime = this.threads.as_ref().and_then(|threads| threads.runtime.as_ref());
        let _current = runtime.map(Runtime::enter);
        this.guest.poll(cx)
    }
}
