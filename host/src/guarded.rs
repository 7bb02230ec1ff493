//! Directories that nobody but the host's user and root can change or replace.

pub(crate) mod walk;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, User};
use rustix::fs::{Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;
use thiserror::Error;

use walk::{Judge, walk};

/// Bits of a mode that let the group or everybody write.
const WRITABLE: u32 = 0o022;
const GROUP_WRITABLE: u32 = 0o020;

/// The bit of a directory's mode that lets only the owner of an entry replace it (inode(7)).
pub(crate) const STICKY: u32 = 0o1000;

/// Why a directory is not used.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// Another user owns a directory or a link.
    #[error(
        "`{}` belongs to the user with the number {uid}, who could replace what is in it",
        path.display()
    )]
    Owner {
        /// The directory or link.
        path: PathBuf,
        /// Its user.
        uid: u32,
    },
    /// Other users can write to a directory.
    #[error(
        "other users can write to `{0}` (mode {mode:04o}) and replace what is in it; run `chmod go-w {0}`",
        path.display()
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The system does not open it.
    #[error("cannot open `{}`: {error}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
}

impl Error {
    /// Whether the message says how the directory itself can be mended.
    pub(crate) fn has_advice(&self) -> bool {
        matches!(self, Self::Writable { .. })
    }
}

/// Returns the error of the system behind an error, which can be one of this module.
pub(crate) fn errno(error: &io::Error) -> Option<Errno> {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(Error::Io { error, .. }) => Errno::from_io_error(error),
        _ => Errno::from_io_error(error),
    }
}

/// Who may own the directories of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The user of this process or root, and the last directory only the user of this process.
    Host,
    /// The user of this process or root.
    HostOrRoot,
    /// Everybody. Only directories that other users than their owners can write to are refused.
    Anybody,
}

impl Owner {
    /// Refuses a directory or link of another user.
    fn judge(self, status: &Stat, path: &Path) -> Result<(), Error> {
        if self == Self::Anybody || is_trusted(status.st_uid) {
            return Ok(());
        }
        Err(Error::Owner {
            path: path.to_owned(),
            uid: status.st_uid,
        })
    }
}

/// Returns whether `uid` is the user of this process, or root.
pub(crate) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Checks the directory at `path`, as far as it exists, as [`open`] does.
///
/// # Errors
///
/// Those of [`open`], except that it does not exist.
pub(crate) fn check(path: &Path, owner: Owner) -> Result<(), Error> {
    match open(path, false, owner) {
        Err(Error::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => opened.map(drop),
    }
}

/// Opens the directory at `path`. Creates what is missing of it with mode 0700, if `create` says
/// so.
///
/// # Errors
///
/// It cannot be opened or created, or a user other than its `owner` and root could change it, or
/// could put another directory in its place.
pub(crate) fn open(path: &Path, create: bool, owner: Owner) -> Result<OwnedFd, Error> {
    let (dir, at) = walk(path, &mut Guard { create, owner })?;
    // The entries of a directory that was opened with O_PATH cannot be listed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let last = openat(&dir, ".", flags, Mode::empty()).and_then(|dir| Ok((fstat(&dir)?, dir)));
    let (status, dir) = last.map_err(|error| Guard::error(&at, error.into()))?;
    let (uid, mode) = (status.st_uid, mode(&status));
    if owner == Owner::Host && uid != geteuid().as_raw() {
        return Err(Error::Owner { path: at, uid });
    }
    // Nobody else may add an entry either.
    if owner == Owner::Host && mode & WRITABLE != 0 {
        return Err(Error::Writable { path: at, mode });
    }
    Ok(dir)
}

/// Refuses what another user than the owner could change.
struct Guard {
    create: bool,
    owner: Owner,
}

impl Judge for Guard {
    type Error = Error;

    fn creates(&self) -> bool {
        self.create
    }

    fn error(path: &Path, error: io::Error) -> Error {
        Error::Io {
            path: path.to_owned(),
            error,
        }
    }

    /// Refuses a directory if another user could replace entries in it that are not their own.
    fn enter(&mut self, status: &Stat, path: &Path) -> Result<(), Error> {
        self.owner.judge(status, path)?;
        let mode = mode(status);
        let others = if mode & WRITABLE == GROUP_WRITABLE && is_private(status.st_gid) {
            0
        } else {
            mode & WRITABLE
        };
        if others != 0 && mode & STICKY == 0 {
            return Err(Error::Writable {
                path: path.to_owned(),
                mode,
            });
        }
        Ok(())
    }

    /// Refuses a link of another user: anybody can put one into a directory with the sticky bit.
    fn follow(&mut self, status: &Stat, path: &Path) -> Result<(), Error> {
        self.owner.judge(status, path)
    }
}

/// Returns whether a group consists of the user of this process alone. Many systems give each user
/// such a group, and let it write to what the user creates (`umask 002`).
fn is_private(gid: u32) -> bool {
    let user = User::from_uid(nix::unistd::geteuid());
    let group = Group::from_gid(Gid::from_raw(gid));
    let (Ok(Some(user)), Ok(Some(group))) = (user, group) else {
        return false;
    };
    user.gid == group.gid && user.name == group.name && group.mem.iter().all(|member| *member == user.name)
}

/// The bits of a mode without the type of the file.
#[allow(clippy::useless_conversion, reason = "a mode has 16 bits on some systems")]
fn mode(status: &Stat) -> u32 {
    u32::from(status.st_mode) & 0o7777
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    /// A directory that only its owner can use, and that is gone with this.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("guarded-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            Self(path)
        }

        fn dir(&self, name: &str, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn refusal(path: &Path) -> String {
        open(path, true, Owner::Host).unwrap_err().to_string()
    }

    #[test]
    fn what_is_missing_is_created_for_its_owner() {
        let scratch = Scratch::new("created");
        let path = scratch.0.join("a/b/c");
        assert!(open(&path, false, Owner::Host).is_err());
        open(&path, true, Owner::Host).unwrap();
        for dir in [&path, path.parent().unwrap()] {
            assert_eq!(fs::metadata(dir).unwrap().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn a_parent_that_others_can_write_to_is_named() {
        let scratch = Scratch::new("parent");
        for mode in [0o777, 0o702] {
            let parent = scratch.dir(&format!("{mode:o}"), mode);
            let refusal = refusal(&parent.join("below/cache"));
            assert!(
                refusal.contains(&format!("`{}`", parent.display())) && refusal.contains("chmod go-w"),
                "{refusal}"
            );
            assert!(!parent.join("below").exists());
        }
        let sticky = scratch.dir("sticky", 0o1777);
        open(&sticky.join("cache"), true, Owner::Host).unwrap();
        assert!(
            refusal(&sticky).contains("chmod go-w"),
            "the last one is for its owner alone"
        );
    }

    #[test]
    fn links_are_followed_to_where_they_lead_and_judged_there() {
        let scratch = Scratch::new("links");
        let target = scratch.dir("target", 0o700);
        let open_to_all = scratch.dir("open", 0o777);
        fs::create_dir(open_to_all.join("inner")).unwrap();
        symlink("../target", scratch.dir("in", 0o700).join("relative")).unwrap();
        symlink(open_to_all.join("inner"), scratch.0.join("absolute")).unwrap();
        symlink("loop", scratch.0.join("loop")).unwrap();
        let found = open(&scratch.0.join("in/relative"), false, Owner::Host).unwrap();
        assert_eq!(
            fstat(&found).unwrap().st_ino,
            fs::metadata(&target).unwrap().ino()
        );
        open(&scratch.0.join("in/../target/."), false, Owner::Host).unwrap();
        assert!(refusal(&scratch.0.join("absolute")).contains("open"));
        assert!(open(&scratch.0.join("loop"), false, Owner::Host).is_err());
        fs::write(scratch.0.join("file"), "").unwrap();
        assert!(open(&scratch.0.join("file"), true, Owner::Host).is_err());
    }
}
