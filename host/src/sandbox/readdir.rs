//! Lists of directories for core modules, in calls of bounded length.
//!
//! The `fd_readdir` of wasmtime-wasi reads the whole directory in each call, whatever the length of
//! the buffer, and moves and frees all entries on a thread that serves connections. This one reads
//! from the position that the module passes, and only what the buffer holds.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, RawDir, RawDirEntry, SeekFrom, seek, statat};
use wasmtime::Caller;
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p1::types::{Errno, Fd, Filetype};
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1 as _;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

use super::file_threads::joined;
use super::listing::{CHUNK, open_again};
use super::preview1::{memory, parts, store};
use super::state::State;

/// Bytes of an entry before its name.
const HEADER: usize = 24;

/// A call of `fd_readdir`.
#[derive(Clone, Copy)]
pub(super) struct Readdir {
    pub(super) fd: i32,
    /// Where in memory the entries go.
    pub(super) buffer: i32,
    pub(super) len: i32,
    /// The position of the first entry: 0, or what an entry said of the next one.
    pub(super) cookie: i64,
    /// Where in memory the number of bytes goes.
    pub(super) size: i32,
}

/// An entry of a directory, as a module reads it.
struct Entry {
    /// The position of the next one.
    next: u64,
    bytes: Vec<u8>,
}

impl Readdir {
    /// Fills the buffer with entries. The last one can be cut off. A buffer that is not full tells
    /// the module that there are no more.
    ///
    /// After each chunk of a directory, other connections have their turn.
    pub(super) async fn run(self, caller: &mut Caller<'_, State>) -> wasmtime::Result<i32> {
        let directory = match self.directory(caller).await? {
            Ok(directory) => directory,
            Err(errno) => return Ok(number(errno)),
        };
        let len = self.len.cast_unsigned();
        let (mut position, mut filled) = (self.cookie.cast_unsigned(), 0);
        while filled < len {
            let directory = Arc::clone(&directory);
            let entries = match on_thread(caller, move || read(&directory, position)).await {
                Ok(entries) if entries.is_empty() => break,
                Ok(entries) => entries,
                Err(errno) => return Ok(number(errno)),
            };
            for entry in entries {
                let room = (len - filled) as usize;
                if room == 0 {
                    break;
                }
                let bytes = &entry.bytes[..entry.bytes.len().min(room)];
                let at = self.buffer.cast_unsigned() as usize + filled as usize;
                if memory(caller)?.write(&mut *caller, at, bytes).is_err() {
                    return Ok(number(Errno::Fault));
                }
                // No more than what is left of the buffer.
                filled += bytes.len() as u32;
                position = entry.next;
            }
        }
        store(caller, self.size, filled)
    }

    /// Finds the directory. Its number is known only to wasmtime-wasi, which tells the identity of
    /// what has it.
    async fn directory(self, caller: &mut Caller<'_, State>) -> wasmtime::Result<Result<Arc<File>, Errno>> {
        let (mut memory, context) = parts(caller)?;
        let status = context
            .fd_filestat_get(&mut memory, Fd::from(self.fd.cast_unsigned()))
            .await;
        let wanted = match status {
            Ok(status) => status.ino,
            Err(error) => return Ok(Err(error.downcast()?)),
        };
        let dirs: Vec<_> = context
            .ctx()
            .table
            .iter_mut()
            .filter_map(|entry| match entry.downcast_ref::<Descriptor>() {
                Some(Descriptor::Dir(dir)) => Some(Arc::clone(&dir.dir)),
                _ => None,
            })
            .collect();
        // Two descriptors of the same directory have the same entries.
        let is_wanted = move |dir: &Arc<File>| {
            let found = dir.metadata();
            found.is_ok_and(|found| identity(found.dev(), found.ino()) == wanted)
        };
        let found = on_thread(caller, move || Ok(dirs.into_iter().find(is_wanted))).await;
        Ok(found.and_then(|found| found.ok_or(Errno::Badf)))
    }
}

/// Does `work` on a thread for files.
async fn on_thread<T: Send + 'static>(
    caller: &mut Caller<'_, State>,
    work: impl FnOnce() -> Result<T, Errno> + Send + 'static,
) -> Result<T, Errno> {
    let threads = caller.data().file_threads().ok_or(Errno::Badf)?;
    joined(threads.spawn(work).await)
}

/// Reads a chunk of a directory from `position` on. It has no entries only at the end.
fn read(directory: &File, position: u64) -> Result<Vec<Entry>, Errno> {
    let listed = open_again(directory).map_err(errno)?;
    if position > 0 {
        seek(&listed, SeekFrom::Start(position)).map_err(|error| errno(error.into()))?;
    }
    let own = directory.metadata().map_err(errno)?;
    let mut buffer = [MaybeUninit::uninit(); CHUNK];
    let mut list = RawDir::new(listed.as_fd(), &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = list.next() {
        let entry = entry.map_err(|error| errno(error.into()))?;
        entries.push(known(directory, &entry, (own.dev(), own.ino()))?);
        if list.is_buffer_empty() {
            break;
        }
    }
    Ok(entries)
}

/// An entry of `directory`, which has the device and the inode `own`.
fn known(directory: &File, entry: &RawDirEntry<'_>, own: (u64, u64)) -> Result<Entry, Errno> {
    let name = entry.file_name();
    if name.to_str().is_err() {
        return Err(Errno::Ilseq);
    }
    let ((device, inode), kind) = match name.to_bytes() {
        // A module learns nothing of the directory above.
        b"." | b".." => (own, FileType::Directory),
        _ => match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => {
                let kind = FileType::from_raw_mode(found.st_mode);
                ((found.st_dev, found.st_ino), kind)
            }
            // It was removed meanwhile.
            Err(_) => ((own.0, entry.ino()), entry.file_type()),
        },
    };
    let kind = match kind {
        FileType::RegularFile => Filetype::RegularFile,
        FileType::Directory => Filetype::Directory,
        FileType::Symlink => Filetype::SymbolicLink,
        FileType::CharacterDevice => Filetype::CharacterDevice,
        FileType::BlockDevice => Filetype::BlockDevice,
        _ => Filetype::Unknown,
    };
    let (next, name) = (entry.next_entry_cookie(), name.to_bytes());
    let mut bytes = Vec::with_capacity(HEADER + name.len());
    bytes.extend(next.to_le_bytes());
    bytes.extend(identity(device, inode).to_le_bytes());
    bytes.extend((name.len() as u32).to_le_bytes());
    bytes.extend((kind as u32).to_le_bytes());
    bytes.extend(name);
    Ok(Entry { next, bytes })
}

/// The number that wasmtime-wasi gives a file in place of its inode.
fn identity(device: u64, inode: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (device, inode).hash(&mut hasher);
    hasher.finish()
}

fn errno(error: io::Error) -> Errno {
    ErrorCode::from(error).into()
}

fn number(errno: Errno) -> i32 {
    i32::from(u16::from(errno))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    /// The name in an entry.
    fn name(entry: &Entry) -> String {
        String::from_utf8(entry.bytes[HEADER..].to_vec()).unwrap()
    }

    #[test]
    fn a_directory_is_read_in_chunks_from_any_position() {
        let dir = std::env::temp_dir().join(format!("readdir-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        (0..1000).for_each(|number| _ = File::create(dir.join(number.to_string())).unwrap());
        let opened = File::open(&dir).unwrap();
        let from = |position| read(&opened, position).unwrap();
        let (mut names, mut position) = (Vec::new(), 0);
        loop {
            let entries = from(position);
            assert!(entries.len() <= CHUNK / HEADER);
            let Some(last) = entries.last() else { break };
            position = last.next;
            // A module can go on behind each of them.
            for (entry, next) in entries.iter().zip(&entries[1..]) {
                assert_eq!(from(entry.next).first().map(name), Some(name(next)));
            }
            names.extend(entries.iter().map(name));
        }
        assert_eq!(names.len(), 1002);
        let names: BTreeSet<_> = names.into_iter().collect();
        assert_eq!(names.len(), 1002);
        assert!(names.contains(".") && names.contains("..") && names.contains("999"));
        assert!(read(&opened, u64::MAX).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
