//! Telling whether a file has changed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a file is told by from what was in its place before: device, inode, size, and the time of its last change, be it of
/// its content or of who may read it.
pub(crate) type Stamp = (u64, u64, u64, i64, i64);

/// The stamp of what is at `path`; `None` where nothing is.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.size(),
        file.ctime(),
        file.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_copy_that_keeps_size_and_time_is_told_from_what_was_there() {
        let path = std::env::temp_dir().join(format!("wasm-inetd-stamp-{}", std::process::id()));
        fs::write(&path, "one").unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        let before = stamp(&path);
        fs::write(&path, "two").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(written).unwrap();
        let after = stamp(&path);
        fs::remove_file(&path).unwrap();
        assert!(before.is_some() && before != after, "{before:?}, {after:?}");
    }
}
