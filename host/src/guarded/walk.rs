//! Walks to a directory, name by name from the root.
//!
//! Each directory on the way is judged by its own descriptor, and the next name is looked up in
//! that descriptor. A change of the path meanwhile therefore cannot bring in another directory.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;

/// Symbolic links that a path may have, as for the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Judges what is on the way.
pub(crate) trait Judge {
    /// Why a walk ends early.
    type Error;

    /// Returns whether directories that are missing are created, with mode 0700.
    fn creates(&self) -> bool {
        false
    }

    /// Makes an error of one of the system about what is at `path`.
    fn error(path: &Path, error: io::Error) -> Self::Error;

    /// Judges a directory that was opened, which is the next on the way or the one above the last.
    ///
    /// # Errors
    ///
    /// The walk ends here.
    fn enter(&mut self, status: &Stat, path: &Path) -> Result<(), Self::Error>;

    /// Judges a symbolic link before it is followed.
    ///
    /// # Errors
    ///
    /// The walk ends here.
    fn follow(&mut self, status: &Stat, path: &Path) -> Result<(), Self::Error>;

    /// Judges a `..` in the path, before it leads out of the directory at `path`.
    ///
    /// # Errors
    ///
    /// The walk ends here.
    fn leave(&mut self, _path: &Path) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Walks to the directory at `path`. Returns it, and its path without links. On Linux, the
/// descriptor only names the directory, which needs no right to read it.
///
/// # Errors
///
/// There is no such directory, or `judge` ends the walk.
pub(crate) fn walk<J: Judge>(path: &Path, judge: &mut J) -> Result<(OwnedFd, PathBuf), J::Error> {
    let absolute = std::path::absolute(path).map_err(|error| J::error(path, error))?;
    let mut rest = parts(&absolute);
    let mut links = 0;
    // Where the walk is: its descriptor, and its path without links.
    let mut at = PathBuf::from("/");
    let mut dir = enter(CWD, OsStr::new("/"), &at, judge)?;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            judge.leave(&at)?;
            at.pop();
            dir = enter(&dir, &name, &at, judge)?;
            continue;
        }
        let next = at.join(&name);
        let cannot = |error: Errno| J::error(&next, error.into());
        let status = status(&dir, &name, judge.creates()).map_err(cannot)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
            dir = enter(&dir, &name, &next, judge)?;
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(cannot(Errno::LOOP));
        }
        judge.follow(&status, &next)?;
        let target = readlinkat(&dir, name.as_bytes(), Vec::new()).map_err(cannot)?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            at = PathBuf::from("/");
            dir = enter(CWD, OsStr::new("/"), &at, judge)?;
        }
        for part in parts(&target).into_iter().rev() {
            rest.push_front(part);
        }
    }
    Ok((dir, at))
}

/// The names in a path, in their order.
fn parts(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

/// Returns the status of what `name` names in `dir`. Creates a directory if there is nothing, if
/// `creates` says so.
fn status(dir: &OwnedFd, name: &OsStr, creates: bool) -> rustix::io::Result<Stat> {
    let status = || statat(dir, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW);
    match status() {
        Err(Errno::NOENT) if creates => match mkdirat(dir, name.as_bytes(), Mode::RWXU) {
            // With EEXIST, another host has created it.
            Ok(()) | Err(Errno::EXIST) => status(),
            Err(error) => Err(error),
        },
        status => status,
    }
}

/// Opens the directory `name` in `dir`, whose path is `path`, and follows no link.
fn enter<J: Judge>(dir: impl AsFd, name: &OsStr, path: &Path, judge: &mut J) -> Result<OwnedFd, J::Error> {
    // A directory on the way may be one that cannot be listed.
    #[cfg(target_os = "linux")]
    let access = OFlags::PATH;
    #[cfg(not(target_os = "linux"))]
    let access = OFlags::RDONLY;
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(dir, name.as_bytes(), flags, Mode::empty());
    let opened = opened.and_then(|opened| Ok((fstat(&opened)?, opened)));
    let (status, opened) = opened.map_err(|error| J::error(path, error.into()))?;
    judge.enter(&status, path)?;
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Notes the directories that it judges, and compares each with what its path names.
    #[derive(Default)]
    struct Notes(Vec<PathBuf>);

    impl Judge for Notes {
        type Error = io::Error;

        fn error(path: &Path, error: io::Error) -> io::Error {
            io::Error::new(error.kind(), path.display().to_string())
        }

        fn enter(&mut self, status: &Stat, path: &Path) -> io::Result<()> {
            self.0.push(path.to_owned());
            assert_eq!(
                fs::metadata(path)?.ino(),
                status.st_ino,
                "judged as `{}`",
                path.display()
            );
            Ok(())
        }

        fn follow(&mut self, _status: &Stat, _path: &Path) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_directory_is_judged_by_its_own_path() {
        let dir = std::env::temp_dir().join(format!("walk-{}", std::process::id()));
        let dir = dir.canonicalize().unwrap_or(dir);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::create_dir(dir.join("c")).unwrap();
        let mut notes = Notes::default();
        let (_, at) = walk(&dir.join("a/b/../../c"), &mut notes).unwrap();
        assert_eq!(at, dir.join("c"));
        let entered = ["a", "a/b", "a", "", "c"].map(|name| dir.join(name).components().collect());
        let last = notes.0.len() - entered.len();
        assert_eq!(notes.0[last..], entered as [PathBuf; 5]);
        walk(Path::new("/../.."), &mut Notes::default()).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }
}
