//! Lists of directories for components, which the host reads in pieces.
//!
//! wasmtime-wasi reads a directory in one piece. A guest could make a large directory, and its list
//! would keep a thread that serves connections while the host moves and frees the entries.

use std::fs::File;
use std::io;
use std::iter;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RawDirEntry, openat, statat};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Destination, FutureReader, Linker, Resource, ResourceType, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p3::bindings::filesystem::types as p3;

use super::file_threads::{FileThreads, joined};
use super::files::{Counts, TYPES};
use super::state::State;

/// Bytes of entries that a thread takes from the kernel at once. In the memory of the host, they
/// are 20 KiB at most, when all names are short.
pub(super) const CHUNK: usize = 4 << 10;

/// How a stream ended, for the guest.
pub(super) type Ended = FutureReader<Result<(), p3::ErrorCode>>;

/// Has guests of WASI 0.2 list directories by functions in place of WASI's.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.resource(
        "directory-entry-stream",
        ResourceType::host::<List>(),
        |mut store, handle| {
            let table = store.data_mut().table();
            table.delete(Resource::<List>::new_own(handle))?;
            Ok(())
        },
    )?;
    types.func_wrap_async("[method]descriptor.read-directory", |store, (descriptor,)| {
        Box::new(async move { Ok((list(store, &descriptor).await?,)) })
    })?;
    types.func_wrap_async(
        "[method]directory-entry-stream.read-directory-entry",
        |store, (list,)| Box::new(async move { Ok((next(store, &list).await?,)) }),
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Lists a directory for a call of WASI 0.2.
async fn list(
    mut store: StoreContextMut<'_, State>,
    descriptor: &Resource<Descriptor>,
) -> wasmtime::Result<Result<Resource<List>, p2::ErrorCode>> {
    let counts = match store.data().open_files() {
        Some(files) => files.opens().await,
        None => None,
    };
    let state = store.data_mut();
    let (threads, directory) = match begin(state, descriptor, counts)? {
        Ok(begun) => begun,
        Err(refused) => return Ok(Err(refused.into())),
    };
    let list = List {
        threads,
        directory: Some(directory),
        entries: Vec::new().into_iter(),
        end: None,
    };
    Ok(Ok(state.table().push(list)?))
}

/// Takes the next entry of a list for a call of WASI 0.2.
async fn next(
    mut store: StoreContextMut<'_, State>,
    handle: &Resource<List>,
) -> wasmtime::Result<Result<Option<p2::DirectoryEntry>, p2::ErrorCode>> {
    loop {
        let list = store.data_mut().table().get_mut(handle)?;
        if let Some(entry) = list.entries.next() {
            return Ok(Ok(Some(entry.into())));
        }
        let Some(directory) = list.directory.take() else {
            let end = list.end.take().unwrap_or(Ok(()));
            return Ok(end.map(|()| None).map_err(p2::ErrorCode::from));
        };
        let reading = list.threads.spawn(move || directory.read());
        let chunk = joined(reading.await);
        // Nothing else uses the store meanwhile.
        let list = store.data_mut().table().get_mut(handle)?;
        list.entries = chunk.entries.into_iter();
        list.directory = chunk.end.is_none().then_some(chunk.directory);
        list.end = chunk.end;
    }
}

/// A list of WASI 0.2. A guest takes one entry at a time.
struct List {
    threads: Arc<FileThreads>,
    /// `None` while a thread reads it, and after the end.
    directory: Option<Directory>,
    /// Entries that the guest has yet to take.
    entries: vec::IntoIter<Entry>,
    end: Option<Result<(), Failure>>,
}

/// Lists a directory for a call of WASI 0.3: the entries, and whether that failed.
///
/// # Errors
///
/// There is no such descriptor, or the guest has too many handles.
pub(super) fn read(
    mut store: StoreContextMut<'_, State>,
    descriptor: &Resource<Descriptor>,
) -> wasmtime::Result<(StreamReader<p3::DirectoryEntry>, Ended)> {
    let (ended, end) = oneshot::channel();
    let files = store.data().open_files();
    // This function of WASI 0.3 cannot wait.
    let counts = files.and_then(|files| files.opens_at_once());
    let entries = match begin(store.data(), descriptor, counts)? {
        Ok((threads, directory)) => {
            let listing = Listing {
                threads,
                directory: Some(directory),
                reading: None,
                end: None,
                ended: Some(ended),
            };
            StreamReader::new(&mut store, listing)?
        }
        Err(refused) => {
            let _ = ended.send(Err(refused.into()));
            StreamReader::new(&mut store, iter::empty())?
        }
    };
    Ok((entries, FutureReader::new(&mut store, end)?))
}

/// Finds the directory to list, which counts as one more open file.
fn begin(
    state: &State,
    descriptor: &Resource<Descriptor>,
    counts: Option<Counts>,
) -> wasmtime::Result<Result<(Arc<FileThreads>, Directory), Refused>> {
    let Descriptor::Dir(dir) = state.descriptor(descriptor)? else {
        return Ok(Err(Refused::NotDirectory));
    };
    let granted = Arc::clone(&dir.dir);
    let Some((threads, counts)) = state.file_threads().zip(counts) else {
        return Ok(Err(Refused::TooManyFiles));
    };
    let directory = Directory {
        granted,
        listed: None,
        counts: Some(counts),
        threads: Arc::clone(&threads),
    };
    Ok(Ok((threads, directory)))
}

/// A directory that is being listed.
struct Directory {
    granted: Arc<File>,
    /// The same directory, with its own position. It is opened by the first read.
    listed: Option<OwnedFd>,
    counts: Option<Counts>,
    /// Where it is closed.
    threads: Arc<FileThreads>,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(listed) = self.listed.take() {
            let mut counts = self.counts.take();
            if let Some(counts) = &mut counts {
                counts.closes();
            }
            // It counts until it is closed.
            self.threads.drop_there((listed, counts));
        }
    }
}

/// Why a directory is not listed.
enum Refused {
    NotDirectory,
    TooManyFiles,
}

/// Why a list ends before the last entry.
#[derive(Debug)]
enum Failure {
    System(io::Error),
    /// A name is not UTF-8.
    Name,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// An entry of a directory.
#[derive(Clone, Debug)]
struct Entry {
    kind: FileType,
    name: String,
}

/// Some entries of a directory.
struct Chunk {
    directory: Directory,
    entries: Vec<Entry>,
    /// `None` while the directory may have more.
    end: Option<Result<(), Failure>>,
}

/// Makes conversions for one version of WASI. `$other` is its type of files that it has no type for.
macro_rules! convert {
    ($wasi:ident, $other:expr) => {
        impl From<Refused> for $wasi::ErrorCode {
            fn from(refused: Refused) -> Self {
                match refused {
                    Refused::NotDirectory => Self::NotDirectory,
                    Refused::TooManyFiles => Self::Quota,
                }
            }
        }

        impl From<Failure> for $wasi::ErrorCode {
            fn from(failure: Failure) -> Self {
                match failure {
                    Failure::System(error) => error.into(),
                    Failure::Name => Self::IllegalByteSequence,
                }
            }
        }

        impl From<Entry> for $wasi::DirectoryEntry {
            fn from(Entry { kind, name }: Entry) -> Self {
                let type_ = match kind {
                    FileType::RegularFile => $wasi::DescriptorType::RegularFile,
                    FileType::Directory => $wasi::DescriptorType::Directory,
                    FileType::Symlink => $wasi::DescriptorType::SymbolicLink,
                    FileType::Fifo => $wasi::DescriptorType::Fifo,
                    FileType::Socket => $wasi::DescriptorType::Socket,
                    FileType::CharacterDevice => $wasi::DescriptorType::CharacterDevice,
                    FileType::BlockDevice => $wasi::DescriptorType::BlockDevice,
                    _ => $other,
                };
                Self { type_, name }
            }
        }
    };
}

convert!(p2, p2::DescriptorType::Unknown);
convert!(p3, p3::DescriptorType::Other(None));

impl Directory {
    /// Reads some entries, which waits for the disk.
    fn read(mut self) -> Chunk {
        let mut entries = Vec::new();
        let end = match self.fill(&mut entries) {
            Ok(true) => None,
            Ok(false) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        };
        if end.is_some() {
            // This thread may wait.
            self.listed = None;
        }
        Chunk {
            directory: self,
            entries,
            end,
        }
    }

    /// Adds entries until the buffer has no more. Returns whether the directory may have more.
    fn fill(&mut self, entries: &mut Vec<Entry>) -> Result<bool, Failure> {
        let listed = match self.listed.take() {
            Some(listed) => listed,
            None => open_again(&self.granted)?,
        };
        let listed = self.listed.insert(listed);
        let mut buffer = [MaybeUninit::uninit(); CHUNK];
        let mut list = RawDir::new(listed.as_fd(), &mut buffer);
        while let Some(entry) = list.next() {
            let entry = entry.map_err(io::Error::from)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                entries.push(known(&self.granted, &entry)?);
            }
            if list.is_buffer_empty() && !entries.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Opens the same directory with a position of its own.
pub(super) fn open_again(directory: &File) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(directory, c".", flags, Mode::empty())?)
}

/// An entry of `directory` for the guest.
fn known(directory: &File, entry: &RawDirEntry<'_>) -> Result<Entry, Failure> {
    let name = entry.file_name();
    let kind = match entry.file_type() {
        // Some file systems tell only if one asks.
        FileType::Unknown => {
            let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)?;
            FileType::from_raw_mode(found.st_mode)
        }
        kind => kind,
    };
    let name = name.to_str().map_err(|_| Failure::Name)?.to_owned();
    Ok(Entry { kind, name })
}

/// A stream of the entries of a directory.
///
/// WASI's own keeps a thread until the guest has read all entries. This one has a thread only while
/// it reads a chunk, and begins to read when the guest does.
struct Listing {
    /// `None` while a thread reads it, and after the end.
    directory: Option<Directory>,
    reading: Option<AbortOnDropHandle<Chunk>>,
    /// These stay until nothing is read any more.
    threads: Arc<FileThreads>,
    /// The end, after entries that the guest has yet to read.
    end: Option<Result<(), Failure>>,
    /// `None` once the guest was told of the end.
    ended: Option<oneshot::Sender<Result<(), p3::ErrorCode>>>,
}

impl Listing {
    fn close(&mut self, end: Result<(), Failure>) {
        if let Some(ended) = self.ended.take() {
            // The guest may not want to know.
            let _ = ended.send(end.map_err(p3::ErrorCode::from));
        }
    }

    /// The next entries; none at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Vec<Entry>> {
        if let Some(directory) = self.directory.take() {
            self.reading = Some(self.threads.spawn(move || directory.read()));
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(Vec::new());
        };
        let read = match Pin::new(reading).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(read) => read,
        };
        self.reading = None;
        let Chunk {
            directory,
            entries,
            end,
        } = joined(read);
        if end.is_none() {
            self.directory = Some(directory);
        }
        self.end = end;
        Poll::Ready(entries)
    }
}

impl StreamProducer<State> for Listing {
    type Item = p3::DirectoryEntry;
    type Buffer = VecBuffer<p3::DirectoryEntry>;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, State>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // Nothing is read for a guest that only asks whether there is something to read.
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let this = self.get_mut();
        let entries = match this.poll_chunk(cx) {
            Poll::Ready(entries) => entries,
            // What the thread reads is for the next read.
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => return Poll::Pending,
        };
        if entries.is_empty() {
            let end = this.end.take().unwrap_or(Ok(()));
            this.close(end);
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let entries: Vec<_> = entries.into_iter().map(p3::DirectoryEntry::from).collect();
        destination.set_buffer(entries.into());
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.close(Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::config::Limits;
    use crate::sandbox::files::{Files, OpenFiles};

    /// An empty directory.
    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("wasm-inetd-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Reads a directory to the end, in chunks.
    fn list(dir: &Path) -> (Vec<Vec<Entry>>, Result<(), Failure>) {
        let threads = FileThreads::start().unwrap();
        let files = OpenFiles::new(&Files::new(&Limits::default()), Arc::clone(&threads));
        let mut directory = Directory {
            granted: Arc::new(File::open(dir).unwrap()),
            listed: None,
            counts: files.opens_at_once(),
            threads,
        };
        let mut chunks = Vec::new();
        loop {
            let chunk = directory.read();
            chunks.push(chunk.entries);
            if let Some(end) = chunk.end {
                fs::remove_dir_all(dir).unwrap();
                return (chunks, end);
            }
            directory = chunk.directory;
        }
    }

    #[test]
    fn each_chunk_of_a_directory_is_small() {
        let dir = scratch("chunks");
        (0..1000).for_each(|number| _ = File::create(dir.join(number.to_string())).unwrap());
        let (chunks, end) = list(&dir);
        assert!(end.is_ok());
        // An entry of the kernel has at least 24 bytes.
        assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK / 24));
        let names: HashSet<_> = chunks.iter().flatten().map(|entry| &entry.name).collect();
        assert_eq!(names.len(), 1000);
        assert_eq!(chunks.iter().flatten().count(), 1000);
    }

    #[test]
    fn entries_have_their_types() {
        let dir = scratch("types");
        File::create(dir.join("file")).unwrap();
        fs::create_dir(dir.join("directory")).unwrap();
        symlink("nowhere", dir.join("link")).unwrap();
        let _listener = UnixListener::bind(dir.join("socket")).unwrap();
        let (chunks, end) = list(&dir);
        assert!(end.is_ok());
        let types = chunks.into_iter().flatten();
        let mut types: Vec<_> = types
            .map(p3::DirectoryEntry::from)
            .map(|entry| format!("{} {:?}", entry.name, entry.type_))
            .collect();
        types.sort_unstable();
        let expected = [
            "directory Directory",
            "file RegularFile",
            "link SymbolicLink",
            "socket Socket",
        ];
        for (found, expected) in types.iter().zip(expected) {
            let (name, kind) = expected.split_once(' ').unwrap();
            assert!(found.starts_with(name) && found.ends_with(kind), "{found}");
        }
        assert_eq!(types.len(), expected.len());
    }

    #[test]
    fn a_name_that_is_no_text_ends_the_list() {
        let dir = scratch("names");
        File::create(dir.join(OsStr::from_bytes(b"\xff"))).unwrap();
        let (chunks, end) = list(&dir);
        assert_eq!(chunks.concat().len(), 0);
        assert!(matches!(end, Err(Failure::Name)), "{end:?}");
    }
}
