//! Bounds on the files and directories that guests hold open.

use std::fs::File;
use std::mem::take;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceTable, ResourceType};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;

use super::paths;
use super::state::State;
use crate::config::Limits;

/// The interface of WASI 0.2 that has the functions below, in the version that wasmtime adds to a
/// linker. `file_calls.rs` has the interface of WASI 0.3.
pub(super) const TYPES: &str = "wasi:filesystem/types@0.2.12";
const OPEN: &str = "[method]descriptor.open-at";
const DESCRIPTOR: &str = "descriptor";

/// Counts the files that the guests of one service hold open.
#[derive(Debug)]
pub(super) struct Files {
    /// Files that are open or being opened.
    counted: AtomicUsize,
    max: AtomicUsize,
    /// Counted files of instances that have ended. A thread may still use them.
    left: Mutex<Vec<Weak<File>>>,
}

impl Files {
    /// Counts the files of a service with these limits.
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            counted: AtomicUsize::new(0),
            max: AtomicUsize::new(limits.max_files()),
            left: Mutex::default(),
        })
    }

    /// Allows what `limits` allow from now on. Files that are open stay open and count.
    pub(super) fn bound(&self, limits: &Limits) {
        self.max.store(limits.max_files(), Relaxed);
    }

    /// Counts one more, unless that is too many.
    fn begin(self: &Arc<Self>) -> Option<Opening> {
        if !self.add() {
            self.drop_closed(&mut self.left.lock().unwrap_or_else(PoisonError::into_inner));
            if !self.add() {
                return None;
            }
        }
        Some(Opening {
            of: Some(Arc::clone(self)),
        })
    }

    fn add(&self) -> bool {
        let max = self.max.load(Relaxed);
        let fits = |counted: usize| (counted < max).then_some(counted + 1);
        self.counted.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// Removes the files of `list` that are closed, and does not count them any more.
    fn drop_closed(&self, list: &mut Vec<Weak<File>>) {
        let before = list.len();
        list.retain(|file| file.strong_count() > 0);
        self.counted.fetch_sub(before - list.len(), Relaxed);
    }
}

/// A file that is being opened, and counts.
#[derive(Debug)]
pub(super) struct Opening {
    /// `None` once it counts as open.
    of: Option<Arc<Files>>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(files) = &self.of {
            files.counted.fetch_sub(1, Relaxed);
        }
    }
}

/// The files that one instance has opened.
///
/// A handle, a stream, and a call that waits for a thread keep the same file open, so the file
/// itself is followed.
#[derive(Debug)]
pub(super) struct OpenFiles {
    of: Arc<Files>,
    counted: Vec<Weak<File>>,
}

impl OpenFiles {
    /// None yet.
    pub(super) fn new(of: &Arc<Files>) -> Self {
        Self {
            of: Arc::clone(of),
            counted: Vec::new(),
        }
    }

    /// Begins to open a file, unless the guests of the service hold too many.
    pub(super) fn opens(&mut self) -> Option<Opening> {
        self.recount();
        self.of.begin()
    }

    /// Notes the file that was opened.
    pub(super) fn has_opened(&mut self, mut opening: Opening, file: &Arc<File>) {
        opening.of = None;
        self.counted.push(Arc::downgrade(file));
    }

    /// Counts the files again, when one may have been closed. A file that a stream kept open
    /// without a handle counts until the instance next opens or closes a file, or ends.
    pub(super) fn recount(&mut self) {
        self.of.drop_closed(&mut self.counted);
    }
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        self.recount();
        if !self.counted.is_empty() {
            let left = self.of.left.lock();
            left.unwrap_or_else(PoisonError::into_inner)
                .append(&mut take(&mut self.counted));
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

/// Finds a file in the table of a module that was just opened. Files that count are followed, and
/// WASI holds the granted directories itself.
pub(super) fn new_file(table: &mut ResourceTable) -> Option<Arc<File>> {
    let files = table
        .iter_mut()
        .filter_map(|entry| entry.downcast_ref::<Descriptor>().map(file_of));
    let is_new = |file: &&Arc<File>| Arc::strong_count(file) == 1 && Arc::weak_count(file) == 0;
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

/// Opens a file for a call of WASI 0.2.
async fn open(
    mut store: StoreContextMut<'_, State>,
    (dir, path_flags, path, open_flags, flags): Params,
) -> wasmtime::Result<(Result<Resource<Descriptor>, p2::ErrorCode>,)> {
    if paths::is_long(&path) {
        return Ok((Err(p2::ErrorCode::NameTooLong),));
    }
    let state = store.data_mut();
    let Some(opening) = state.opens_file() else {
        return Ok((Err(p2::ErrorCode::Quota),));
    };
    let mut wasi = state.filesystem();
    let opened = p2::HostDescriptor::open_at(&mut wasi, dir, path_flags, path, open_flags, flags).await;
    let opened = for_guest(&mut wasi, opened)?;
    if let Ok(opened) = &opened {
        state.has_opened_file(opening, opened)?;
    }
    Ok((opened,))
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
    use super::*;

    /// Files of a service that may hold three.
    fn files() -> Arc<Files> {
        Arc::new(Files {
            counted: AtomicUsize::new(0),
            max: AtomicUsize::new(3),
            left: Mutex::default(),
        })
    }

    fn open(files: &mut OpenFiles) -> Option<Arc<File>> {
        let opening = files.opens()?;
        let file = Arc::new(File::open("/dev/null").unwrap());
        files.has_opened(opening, &file);
        Some(file)
    }

    #[test]
    fn a_file_counts_until_nothing_keeps_it_open() {
        let files = files();
        let (mut one, mut other) = (OpenFiles::new(&files), OpenFiles::new(&files));
        let held: Vec<_> = (0..2).map(|_| open(&mut one).unwrap()).collect();
        let last = open(&mut other).unwrap();
        assert!(open(&mut one).is_none() && open(&mut other).is_none());
        // As a stream does.
        let stream = Arc::clone(&last);
        drop(last);
        assert!(open(&mut other).is_none());
        drop(stream);
        let _last = open(&mut other).unwrap();
        drop(held);
        one.recount();
        assert_eq!(files.counted.load(Relaxed), 1);
    }

    #[test]
    fn a_file_that_is_being_opened_counts() {
        let files = files();
        let mut one = OpenFiles::new(&files);
        let opening: Vec<_> = (0..3).map(|_| one.opens().unwrap()).collect();
        assert!(one.opens().is_none());
        // They fail, or the connection ends.
        drop(opening);
        assert!(one.opens().is_some());
        assert_eq!(files.counted.load(Relaxed), 0);
    }

    #[test]
    fn a_file_that_a_thread_uses_counts_after_its_instance_has_ended() {
        let files = files();
        let mut one = OpenFiles::new(&files);
        let used: Vec<_> = (0..3).map(|_| open(&mut one).unwrap()).collect();
        drop(one);
        let mut other = OpenFiles::new(&files);
        assert!(open(&mut other).is_none());
        drop(used);
        assert!(open(&mut other).is_some());
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
        for _ in 0..2 {
            table.push(Descriptor::File(file())).unwrap();
            let found = new_file(&mut table).unwrap();
            let mut followed = OpenFiles::new(&files());
            let opening = followed.opens().unwrap();
            followed.has_opened(opening, &found);
            drop(found);
            assert!(new_file(&mut table).is_none());
            std::mem::forget(followed);
        }
    }
}
