//! Bounds on the files and directories that guests hold open.

use std::fs::File;
use std::mem::take;
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceTable, ResourceType};
use wasmtime_wasi::filesystem::{
    Descriptor, WasiFilesystemCtx, WasiFilesystemCtxView, WasiFilesystemView as _,
};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;

use super::file_threads::{FileThreads, joined};
use super::paths;
use super::state::State;
use crate::config::Limits;

/// The interface of WASI 0.2 that has the functions below, in the version that wasmtime adds to a
/// linker. `file_calls.rs` has the interface of WASI 0.3.
pub(super) const TYPES: &str = "wasi:filesystem/types@0.2.12";
const OPEN: &str = "[method]descriptor.open-at";
const DESCRIPTOR: &str = "descriptor";

/// How long a file that something still uses after its instance has ended is left open, at least and
/// at most, before the host looks again.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long a guest that may open no further file waits for files that are being closed.
const MAX_CLOSE: Duration = Duration::from_secs(1);

/// Counts the files that the guests of one service hold open.
#[derive(Debug)]
pub(super) struct Files {
    /// Files that are open, being opened, or being closed.
    counted: AtomicUsize,
    /// Those of them that are being closed.
    closing: AtomicUsize,
    /// Notified when one counts no more.
    closed: Notify,
    max: AtomicUsize,
}

impl Files {
    /// Counts the files of a service with these limits.
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            counted: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            closed: Notify::new(),
            max: AtomicUsize::new(limits.max_files()),
        })
    }

    /// Allows what `limits` allow from now on. Files that are open stay open and count.
    pub(super) fn bound(&self, limits: &Limits) {
        self.max.store(limits.max_files(), Relaxed);
    }

    /// Counts one more, unless that is too many.
    fn begin(self: &Arc<Self>) -> Option<Counts> {
        let max = self.max.load(Relaxed);
        let fits = |counted: usize| (counted < max).then_some(counted + 1);
        self.counted.fetch_update(Relaxed, Relaxed, fits).ok()?;
        let of = Arc::clone(self);
        Some(Counts { of, closing: false })
    }

    /// The same, but waits for files that are being closed.
    async fn begin_after_closes(self: &Arc<Self>) -> Option<Counts> {
        loop {
            let mut closed = pin!(self.closed.notified());
            // From here on, it hears of those that are closed.
            closed.as_mut().enable();
            if let Some(counts) = self.begin() {
                return Some(counts);
            }
            if self.closing.load(Relaxed) == 0 {
                // The last one may have been closed meanwhile.
                return self.begin();
            }
            closed.await;
        }
    }
}

/// Counts as an open file.
#[derive(Debug)]
pub(super) struct Counts {
    of: Arc<Files>,
    closing: bool,
}

impl Counts {
    /// Notes that the file is about to be closed.
    pub(super) fn closes(&mut self) {
        if !self.closing {
            self.closing = true;
            self.of.closing.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.of.counted.fetch_sub(1, Relaxed);
        if self.closing {
            self.of.closing.fetch_sub(1, Relaxed);
        }
        self.of.closed.notify_waiters();
    }
}

/// A file that a guest has opened.
#[derive(Debug)]
struct OpenFile {
    file: Arc<File>,
    /// This is dropped after the file, so a file that is being closed counts.
    counts: Counts,
}

impl OpenFile {
    /// Whether nothing else keeps the file open.
    fn is_left(&self) -> bool {
        Arc::strong_count(&self.file) == 1
    }
}

/// The files that one instance has opened.
///
/// To close a file can take long: a network file system sends what was written, and the kernel frees
/// a large file that has no name any more. So the thread that serves a connection must not drop the
/// last reference to a file. A handle, a stream, and a call that waits for a thread keep the same
/// file open. This keeps one reference more, which it hands to a thread for files when all others
/// are gone.
#[derive(Debug)]
pub(super) struct OpenFiles {
    of: Arc<Files>,
    threads: Arc<FileThreads>,
    files: Mutex<Vec<OpenFile>>,
}

impl OpenFiles {
    /// None yet. They are closed on `threads`.
    pub(super) fn new(of: &Arc<Files>, threads: Arc<FileThreads>) -> Arc<Self> {
        Arc::new(Self {
            of: Arc::clone(of),
            threads,
            files: Mutex::default(),
        })
    }

    /// The threads on which the files are used and closed.
    pub(super) fn threads(&self) -> &Arc<FileThreads> {
        &self.threads
    }

    /// Begins to open a file, unless the guests of the service hold too many. Waits for a while if
    /// some of these are being closed.
    pub(super) async fn opens(&self) -> Option<Counts> {
        self.close_left();
        let opens = timeout(MAX_CLOSE, self.of.begin_after_closes()).await;
        opens.ok().flatten()
    }

    /// The same, but does not wait.
    pub(super) fn opens_at_once(&self) -> Option<Counts> {
        self.close_left();
        self.of.begin()
    }

    /// Opens a file for a component.
    ///
    /// If the call is cancelled, or there is no room for a handle, nothing else than this may have
    /// the file. So a task of the threads notes it here before the call gets it.
    ///
    /// # Errors
    ///
    /// WASI does not open the file.
    async fn open(
        self: &Arc<Self>,
        counts: Counts,
        dir: Descriptor,
        request: Request,
    ) -> wasmtime::Result<Result<Descriptor, p2::ErrorCode>> {
        let files = Arc::clone(self);
        let opening = self.threads.handle().spawn(async move {
            let opened = open_at(dir, request).await?;
            if let Ok(descriptor) = &opened {
                files.has_opened(counts, file_of(descriptor));
            }
            Ok(opened)
        });
        joined(opening.await)
    }

    /// Notes the file that was opened.
    pub(super) fn has_opened(&self, counts: Counts, file: &Arc<File>) {
        let file = Arc::clone(file);
        self.files().push(OpenFile { file, counts });
    }

    /// Closes the files that the guest no longer uses.
    pub(super) fn close_left(&self) {
        let mut left: Vec<_> = self.files().extract_if(.., |file| file.is_left()).collect();
        if !left.is_empty() {
            left.iter_mut().for_each(|file| file.counts.closes());
            self.threads.drop_there(left);
        }
    }

    fn files(&self) -> MutexGuard<'_, Vec<OpenFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        self.close_left();
        let mut used = take(&mut *self.files());
        if !used.is_empty() {
            used.iter_mut().for_each(|file| file.counts.closes());
            let handle = self.threads.handle();
            handle.clone().spawn(close_when_left(used, handle));
        }
    }
}

/// Closes files that a thread, or what is left of their instance, may still use.
async fn close_when_left(mut used: Vec<OpenFile>, threads: Handle) {
    let (mut pause, longest) = LOOK_AGAIN;
    while !used.is_empty() {
        sleep(pause).await;
        pause = longest.min(pause * 2);
        let left: Vec<_> = used.extract_if(.., |file| file.is_left()).collect();
        if !left.is_empty() {
            threads.spawn_blocking(move || drop(left));
        }
    }
}

/// The file of a descriptor.
pub(super) fn file_of(descriptor: &Descriptor) -> &Arc<File> {
    match descriptor {
        Descriptor::File(file) => &file.file,
        Descriptor::Dir(dir) => &dir.dir,
    }
}

/// Finds a file in the table of a module that was just opened. [`OpenFiles`] has a reference to each
/// of the others, and WASI holds the granted directories itself.
pub(super) fn new_file(table: &mut ResourceTable) -> Option<Arc<File>> {
    let files = table
        .iter_mut()
        .filter_map(|entry| entry.downcast_ref::<Descriptor>().map(file_of));
    let is_new = |file: &&Arc<File>| Arc::strong_count(file) == 1;
    files.into_iter().find(is_new).map(Arc::clone)
}

/// Has guests open no more files than they may, by functions in place of WASI's.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_async(OPEN, |store, params| Box::new(open(store, params)))?;
    types.resource(
        DESCRIPTOR,
        ResourceType::host::<Descriptor>(),
        |mut store, handle| {
            let state = store.data_mut();
            p2::HostDescriptor::drop(&mut state.filesystem(), Resource::new_own(handle))?;
            state.has_closed_file();
            Ok(())
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

type Params = (
    Resource<Descriptor>,
    p2::PathFlags,
    String,
    p2::OpenFlags,
    p2::DescriptorFlags,
);

/// What a guest wants to open.
pub(super) struct Request {
    pub(super) path_flags: p2::PathFlags,
    pub(super) path: String,
    pub(super) open_flags: p2::OpenFlags,
    pub(super) flags: p2::DescriptorFlags,
}

/// Opens a file for a call of WASI 0.2.
async fn open(
    mut store: StoreContextMut<'_, State>,
    (dir, path_flags, path, open_flags, flags): Params,
) -> wasmtime::Result<(Result<Resource<Descriptor>, p2::ErrorCode>,)> {
    let request = Request {
        path_flags,
        path,
        open_flags,
        flags,
    };
    let opened = begin(store.data(), &dir, request)?.await?;
    Ok((match opened {
        Ok(opened) => Ok(store.data_mut().table().push(opened)?),
        Err(error) => Err(error),
    },))
}

/// Opens a file in `dir` for a component. Its future does not keep the store.
///
/// # Errors
///
/// There is no such handle.
pub(super) fn begin(
    state: &State,
    dir: &Resource<Descriptor>,
    request: Request,
) -> wasmtime::Result<impl Future<Output = wasmtime::Result<Result<Descriptor, p2::ErrorCode>>> + use<>> {
    let dir = state.descriptor(dir)?.clone();
    let files = state.open_files();
    Ok(async move {
        if paths::is_long(&request.path) {
            return Ok(Err(p2::ErrorCode::NameTooLong));
        }
        let Some(files) = files else {
            return Ok(Err(p2::ErrorCode::Quota));
        };
        match files.opens().await {
            Some(counts) => files.open(counts, dir, request).await,
            None => Ok(Err(p2::ErrorCode::Quota)),
        }
    })
}

/// Opens a file with the function of WASI, in a table of its own.
async fn open_at(dir: Descriptor, request: Request) -> wasmtime::Result<Result<Descriptor, p2::ErrorCode>> {
    let Request {
        path_flags,
        path,
        open_flags,
        flags,
    } = request;
    let mut table = ResourceTable::new();
    let dir = table.push(dir)?;
    let mut wasi = WasiFilesystemCtxView {
        ctx: &mut WasiFilesystemCtx::default(),
        table: &mut table,
    };
    let opened = p2::HostDescriptor::open_at(&mut wasi, dir, path_flags, path, open_flags, flags).await;
    Ok(match for_guest(&mut wasi, opened)? {
        Ok(opened) => Ok(table.delete(opened)?),
        Err(error) => Err(error),
    })
}

/// Returns the result of a function of WASI 0.2 with the error as the guest gets it.
///
/// # Errors
///
/// The error is a trap.
pub(super) fn for_guest<T>(
    wasi: &mut impl p2::Host,
    ended: FsResult<T>,
) -> wasmtime::Result<Result<T, p2::ErrorCode>> {
    Ok(match ended {
        Ok(value) => Ok(value),
        Err(error) => Err(wasi.convert_error_code(error)?),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, PipeReader, Read as _, Write as _, pipe};
    use std::os::fd::OwnedFd;
    use std::sync::mpsc;

    use rustix::io::ioctl_fionbio;

    use super::*;
    use crate::config::FILE_THREADS;

    /// Files of a service that may hold three.
    fn files() -> Arc<Files> {
        let files = Files::new(&Limits::default());
        files.max.store(3, Relaxed);
        files
    }

    fn instance(of: &Arc<Files>, threads: &Arc<FileThreads>) -> Arc<OpenFiles> {
        OpenFiles::new(of, Arc::clone(threads))
    }

    /// Opens a file, and returns it with a pipe that ends when it is closed.
    async fn open(files: &OpenFiles) -> Option<(Arc<File>, PipeReader)> {
        let counts = files.opens().await?;
        let (reader, writer) = pipe().unwrap();
        let file = Arc::new(File::from(OwnedFd::from(writer)));
        files.has_opened(counts, &file);
        Some((file, reader))
    }

    fn is_open(pipe: &mut PipeReader) -> bool {
        ioctl_fionbio(&*pipe, true).unwrap();
        let read = pipe.read(&mut [0]);
        ioctl_fionbio(&*pipe, false).unwrap();
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Keeps all threads busy until what this returns is dropped.
    fn busy(threads: &FileThreads) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel();
        let released = Arc::new(Mutex::new(released));
        let (started, has_started) = mpsc::channel();
        for _ in 0..FILE_THREADS {
            let (released, started) = (Arc::clone(&released), started.clone());
            threads.handle().spawn_blocking(move || {
                started.send(()).unwrap();
                // Fails when the sender is dropped.
                let _ = released.lock().unwrap().recv();
            });
        }
        has_started.iter().take(FILE_THREADS).for_each(drop);
        release
    }

    #[tokio::test]
    async fn a_file_counts_until_nothing_keeps_it_open() {
        let (files, threads) = (files(), FileThreads::start().unwrap());
        let (one, other) = (instance(&files, &threads), instance(&files, &threads));
        let _first = open(&one).await.unwrap();
        let (second, _) = open(&one).await.unwrap();
        let (third, mut pipe) = open(&other).await.unwrap();
        assert!(open(&one).await.is_none() && open(&other).await.is_none());
        // As a stream does.
        let stream = Arc::clone(&third);
        drop(third);
        assert!(open(&other).await.is_none());
        drop(stream);
        other.close_left();
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
        // This waits until the file does not count any more.
        let _third = open(&other).await.unwrap();
        assert!(other.opens_at_once().is_none());
        drop(second);
        one.close_left();
        assert!(open(&other).await.is_some());
    }

    #[tokio::test]
    async fn a_file_that_is_being_opened_counts() {
        let (files, threads) = (files(), FileThreads::start().unwrap());
        let one = instance(&files, &threads);
        let opening: Vec<_> = (0..3).map(|_| one.opens_at_once().unwrap()).collect();
        assert!(one.opens().await.is_none());
        // They fail, or the connection ends.
        drop(opening);
        assert!(one.opens_at_once().is_some());
        assert_eq!(files.counted.load(Relaxed), 0);
    }

    /// The thread that drops a handle, or what is left of an instance, closes no file.
    #[tokio::test]
    async fn files_are_closed_on_threads_for_files_and_count_until_then() {
        let (files, threads) = (files(), FileThreads::start().unwrap());
        let (one, other) = (instance(&files, &threads), instance(&files, &threads));
        let (first, mut first_pipe) = open(&one).await.unwrap();
        let (second, mut second_pipe) = open(&one).await.unwrap();
        let _third = open(&other).await.unwrap();
        let busy = busy(&threads);
        drop(first);
        one.close_left();
        drop((second, one));
        assert!(is_open(&mut first_pipe) && is_open(&mut second_pipe));
        assert!(other.opens_at_once().is_none());
        // Closes that hang do not keep a guest waiting for ever.
        assert!(other.opens().await.is_none());
        drop(busy);
        assert_eq!(first_pipe.read(&mut [0]).unwrap(), 0);
        assert_eq!(second_pipe.read(&mut [0]).unwrap(), 0);
        assert!(other.opens().await.is_some());
    }

    #[tokio::test]
    async fn a_file_that_a_thread_uses_counts_after_its_instance_has_ended() {
        let (files, threads) = (files(), FileThreads::start().unwrap());
        let one = instance(&files, &threads);
        let (used, mut pipe) = open(&one).await.unwrap();
        let _others = [one.opens_at_once().unwrap(), one.opens_at_once().unwrap()];
        drop(one);
        let other = instance(&files, &threads);
        assert!(open(&other).await.is_none());
        (&*used).write_all(b"x").unwrap();
        drop(used);
        // Each of them waits for a second.
        while open(&other).await.is_none() {}
        assert_eq!(pipe.read(&mut [0; 2]).unwrap(), 1);
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_new_file_in_a_table_is_told_from_the_others() {
        use wasmtime_wasi::FsPerms;
        use wasmtime_wasi::filesystem::{Dir, File as WasiFile, OpenMode};

        let mut table = ResourceTable::new();
        let dir = File::open("/").unwrap();
        let granted = Dir::new(dir, FsPerms::ReadOnly, OpenMode::READ, false);
        table.push(Descriptor::Dir(granted.clone())).unwrap();
        assert!(new_file(&mut table).is_none());
        let file = || {
            WasiFile::new(
                File::open("/dev/null").unwrap(),
                FsPerms::ReadOnly,
                OpenMode::READ,
                false,
            )
        };
        let followed = instance(&files(), &FileThreads::start().unwrap());
        for _ in 0..2 {
            table.push(Descriptor::File(file())).unwrap();
            let found = new_file(&mut table).unwrap();
            followed.has_opened(followed.opens_at_once().unwrap(), &found);
            drop(found);
            assert!(new_file(&mut table).is_none());
        }
    }
}
