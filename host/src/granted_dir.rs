//! Directories that are granted to guests.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};

use crate::file_id::FileId;
use crate::guarded::walk::{Judge, walk};
use crate::mounts::{Mount, containing, mounts};
use crate::system::{KernelFs, is_of_kernel};

/// Directories of the kernel, through which a process reaches its own memory, other processes and
/// devices.
const KERNEL: [&str; 3] = ["/proc", "/sys", DEVICES];

const DEVICES: &str = "/dev";

/// The directory below `/dev` that has ordinary files.
const SHARED_MEMORY: &str = "/dev/shm";

/// The directories that were opened for guests to write to since the host started, also for a
/// component that was only tried.
///
/// A directory stays here, whatever becomes of the grant. A guest that began with the grant can
/// still run, and a link that it made stays. Where another directory gets the number of one that
/// was removed, links below it are refused as well.
static ONCE_WRITABLE: Mutex<Vec<FileId>> = Mutex::new(Vec::new());

fn once_writable() -> MutexGuard<'static, Vec<FileId>> {
    // Nothing can panic while it is held.
    ONCE_WRITABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that guests can write to this directory from now on.
pub(crate) fn becomes_writable(dir: FileId) {
    let mut all = once_writable();
    if !all.contains(&dir) {
        all.push(dir);
    }
}

/// Opens the directory at `path` for guests. Guests can write to the directories in `writable`, and
/// could write to others before. The path may not lead through a link below one of these, which a
/// guest can have made.
///
/// # Errors
///
/// There is no such directory, it is one of the kernel's, or a guest can have replaced it by a
/// link.
pub(crate) fn open<'a>(path: &Path, writable: impl IntoIterator<Item = &'a Path>) -> io::Result<File> {
    let try_open = || {
        let (dir, _) = walk(path, &mut Way::past(writable))?;
        let dir = File::from(dir);
        refuse_kernel_directory(&dir, path)?;
        Ok(dir)
    };
    try_open().map_err(|error: io::Error| {
        let what = match error.kind() {
            io::ErrorKind::Other => "cannot grant the directory",
            _ => "cannot open the granted directory",
        };
        io::Error::new(error.kind(), format!("{what} `{}`: {error}", path.display()))
    })
}

/// The way to a directory past others that guests can write to, or could before.
struct Way {
    writable: Vec<FileId>,
    mounts: Vec<Mount>,
    /// Guests can write to a directory on the way, or could before.
    is_below_writable: bool,
}

impl Way {
    /// Directories that do not exist are left out. They are reported for the services that they are
    /// granted to.
    fn past<'a>(writable: impl IntoIterator<Item = &'a Path>) -> Self {
        let dirs = writable.into_iter().filter_map(|dir| fs::metadata(dir).ok());
        let writable: Vec<_> = dirs
            .map(|dir| FileId::from(&dir))
            .chain(once_writable().iter().copied())
            .collect();
        Self {
            mounts: if writable.is_empty() { Vec::new() } else { mounts() },
            writable,
            is_below_writable: false,
        }
    }

    /// Returns whether a part of a directory that guests can write to is mounted at `point`. The
    /// way to it does not lead through that directory.
    ///
    /// No guest can change the way by which the directory is found here: that ends at the first one
    /// that guests can write to.
    fn is_part_of_writable(&self, point: &Path) -> bool {
        let mut dirs = containing(&self.mounts, point).into_iter();
        dirs.any(|dir| fs::symlink_metadata(dir).is_ok_and(|dir| self.writable.contains(&FileId::from(&dir))))
    }
}

impl Judge for Way {
    type Error = io::Error;

    fn error(_path: &Path, error: io::Error) -> io::Error {
        error
    }

    fn enter(&mut self, status: &Stat, path: &Path) -> io::Result<()> {
        self.is_below_writable = self.is_below_writable
            || self.writable.contains(&FileId::from(status))
            || self.is_part_of_writable(path);
        Ok(())
    }

    fn follow(&mut self, _status: &Stat, path: &Path) -> io::Result<()> {
        if !self.is_below_writable {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "`{}` is a symbolic link below a directory that guests can write to, or could since the host \
             started, so a guest can have made it; remove the link, or grant a directory elsewhere",
            path.file_name().unwrap_or_default().display()
        )))
    }

    fn leave(&mut self, _path: &Path) -> io::Result<()> {
        if !self.is_below_writable {
            return Ok(());
        }
        Err(io::Error::other(
            "the path leads out of a directory that guests can write to, or could since the host started; \
             name the directory without `..`",
        ))
    }
}

/// Refuses a directory for guests that is one of the kernel's, or has one or a device in it.
/// Through `/proc/self/mem`, a guest would reach the memory of the host.
///
/// # Errors
///
/// It is such a directory.
fn refuse_kernel_directory(opened: &File, path: &Path) -> io::Result<()> {
    let relation = match relation_to_kernel(opened, path)? {
        Some(relation) => Some(relation),
        // A container has its devices on a file system for ordinary files.
        None => device_in(opened).map(|name| format!("contains the device `{name}`")),
    };
    let Some(relation) = relation else {
        return Ok(());
    };
    Err(io::Error::other(format!(
        "it {relation}, through which a guest could reach processes, devices or the memory of the host; \
         grant a directory of ordinary files"
    )))
}

/// Returns what an open directory has to do with a file system of the kernel.
fn relation_to_kernel(opened: &File, path: &Path) -> io::Result<Option<String>> {
    let found = path_of(opened, path)?;
    let mut mounts = mounts();
    mounts.retain(|mount| KernelFs::named(&mount.kind).is_some());
    let points = mounts.iter().map(|mount| mount.point.as_path());
    for kernel in KERNEL.into_iter().map(Path::new).chain(points) {
        if found.starts_with(kernel) {
            // Its own file system decides below.
            if kernel != Path::new(DEVICES) || !found.starts_with(SHARED_MEMORY) {
                return Ok(Some(format!("belongs to `{}`", kernel.display())));
            }
        } else if kernel.starts_with(&found) {
            return Ok(Some(format!("contains `{}`", kernel.display())));
        }
    }
    // Its name can lie, as that of a bind mount, or of a directory that was replaced meanwhile.
    let device = opened.metadata()?.dev();
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    let belongs = is_of_kernel(opened) || mounts.iter().any(|mount| mount.device == device);
    Ok(belongs.then(|| "belongs to a file system of the kernel".to_owned()))
}

/// Entries of a directory in which a device is looked for. A directory of devices has fewer. A
/// guest could make one of its own as long as it likes.
const MAX_ENTRIES: usize = 4096;

/// Returns the name of a device file that an open directory has, if it can be read. Devices in the
/// directories below it are not looked for.
fn device_in(opened: &File) -> Option<String> {
    // The directory may be open for nothing but its path.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = openat(opened, ".", flags, Mode::empty()).ok()?;
    let entries = Dir::new(readable).ok()?;
    let mut devices = entries.take(MAX_ENTRIES).flatten().filter(|entry| {
        let kind = match entry.file_type() {
            // Some file systems do not tell it here.
            FileType::Unknown => statat(opened, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |status| {
                    FileType::from_raw_mode(status.st_mode)
                }),
            kind => kind,
        };
        kind == FileType::CharacterDevice || kind == FileType::BlockDevice
    });
    let name = devices.next()?.file_name().to_string_lossy().into_owned();
    Some(name)
}

/// Returns the path of an open directory, without links. Without `/proc`, this is where its `path`
/// leads now.
fn path_of(opened: &File, path: &Path) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).or_else(|_| fs::canonicalize(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: impl AsRef<Path>) -> io::Result<File> {
        super::open(path.as_ref(), [])
    }

    #[test]
    fn directories_of_the_kernel_are_refused_and_others_are_not() {
        for (dir, relation) in [
            ("/", "contains `/proc`"),
            ("/proc", "belongs to `/proc`"),
            ("/proc/self/fd", "belongs to `/proc`"),
            ("/sys", "belongs to `/sys`"),
            ("/dev", "belongs to `/dev`"),
        ] {
            let error = open(dir).unwrap_err().to_string();
            assert!(error.contains(relation), "{dir}: {error}");
        }
        for dir in ["/usr", "/etc", ".", ".."] {
            assert!(open(dir).is_ok(), "{dir}");
        }
        assert_eq!(open("/nowhere").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_directory_of_the_kernel_is_recognized_by_its_descriptor() {
        let held = File::open("/proc/self").unwrap();
        // As if another directory had been there when the path was looked at.
        assert!(is_of_kernel(&held));
        assert!(!is_of_kernel(File::open("/usr").unwrap()));
    }

    #[test]
    fn links_are_followed_that_no_guest_can_have_made() {
        let dir = std::env::temp_dir().join(format!("granted-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("data/up/deep")).unwrap();
        symlink("data", dir.join("relative")).unwrap();
        symlink(dir.join("data"), dir.join("absolute")).unwrap();
        symlink("around", dir.join("around")).unwrap();
        let id = |file: &File| FileId::from(&file.metadata().unwrap());
        let data = dir.join("data");
        for path in [
            "relative/up",
            "absolute/up",
            "relative/../absolute/./up",
            "data/up",
        ] {
            let opened = super::open(&dir.join(path), []).unwrap();
            let up = File::open(data.join("up")).unwrap();
            assert_eq!(id(&opened), id(&up), "{path}");
        }
        assert!(super::open(&dir.join("around"), []).is_err());
        // The links are above the directory that guests can write to.
        for path in ["relative", "relative/up", "absolute/up/deep"] {
            super::open(&dir.join(path), [&*data]).unwrap();
        }

        fs::rename(data.join("up"), data.join("away")).unwrap();
        symlink("../../../../../../../../proc/self", data.join("up")).unwrap();
        for path in ["data/up", "relative/up", "absolute/up/fd"] {
            let error = super::open(&dir.join(path), [&*data]).unwrap_err().to_string();
            assert!(error.contains("`up` is a symbolic link"), "{path}: {error}");
            let error = super::open(&dir.join(path), []).unwrap_err().to_string();
            assert!(error.contains("belongs to `/proc`"), "{path}: {error}");
        }
        let error = super::open(&data.join("away/.."), [&*data]).unwrap_err();
        assert!(error.to_string().contains("without `..`"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }
}
