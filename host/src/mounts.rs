//! The mounts that this process sees.

use std::fs;
use std::path::{Path, PathBuf};

/// A mount, as a line of `/proc/self/mountinfo` describes it (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The major and the minor number of the device of its file system.
    pub(crate) device: (u32, u32),
    /// The directory of the file system that is mounted: `/`, or a part of it for a bind mount.
    root: PathBuf,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// The type of its file system.
    pub(crate) kind: String,
}

/// Returns all mounts, in the order in which they came; none without `/proc`.
pub(crate) fn mounts() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(Mount::parse).collect()
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        Some(Self {
            device: (major.parse().ok()?, minor.parse().ok()?),
            root: unescaped(fields.next()?).into(),
            point: unescaped(fields.next()?).into(),
            kind: kind.split(' ').next()?.to_owned(),
        })
    }

    /// Returns the path of this mount's root by way of `whole`, from where `whole` is mounted on:
    /// names, each in the one before. Returns `None` if `whole` does not contain it, or has the same
    /// root.
    fn path_in(&self, whole: &Self) -> Option<&Path> {
        let below = self.root.strip_prefix(&whole.root).ok()?;
        (self.device == whole.device && below != Path::new("")).then_some(below)
    }
}

/// Returns the directories that contain what is mounted at `point`, by way of the other `mounts` of
/// its file system: its path names none of them if only a part of the file system is mounted there.
pub(crate) fn containing(mounts: &[Mount], point: &Path) -> Vec<PathBuf> {
    // Of several mounts in one place, the last one is seen.
    let Some(part) = mounts.iter().rev().find(|mount| mount.point == point) else {
        return Vec::new();
    };
    let mut dirs = Vec::new();
    for whole in mounts {
        let Some(below) = part.path_in(whole) else {
            continue;
        };
        let ancestors = below.ancestors().skip(1);
        dirs.extend(ancestors.map(|ancestor| whole.point.join(ancestor)));
    }
    dirs
}

/// Returns a path without the escapes that the kernel writes for some characters.
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(path.to_owned(), |path, (escape, character)| {
            path.replace(escape, character)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> Mount {
        Mount::parse(line).unwrap()
    }

    #[test]
    fn mounts_are_found_wherever_they_are() {
        for (line, device, root, point, kind) in [
            (
                "22 28 0:20 / /proc rw,nosuid - proc proc rw",
                (0, 20),
                "/",
                "/proc",
                "proc",
            ),
            (
                "22 28 0:20 / /srv/a\\040b/proc rw shared:5 - proc proc rw",
                (0, 20),
                "/",
                "/srv/a b/proc",
                "proc",
            ),
            (
                "28 1 8:1 /srv/data\\134 /mnt/x rw - ext4 /dev/sda1 rw",
                (8, 1),
                "/srv/data\\",
                "/mnt/x",
                "ext4",
            ),
        ] {
            let expected = Mount {
                device,
                root: root.into(),
                point: point.into(),
                kind: kind.to_owned(),
            };
            assert_eq!(mount(line), expected);
        }
        assert_eq!(Mount::parse(""), None);
        assert_eq!(Mount::parse("22 28 0:20 / /proc rw"), None);
        assert!(mounts().iter().any(|mount| mount.point == Path::new("/proc")));
    }

    #[test]
    fn directories_that_contain_a_bind_mount_are_found() {
        let mounts = [
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
            "2 1 8:2 /vol /data rw - ext4 /dev/sda2 rw",
            "3 1 8:2 /vol/a/b /mnt/x rw - ext4 /dev/sda2 rw",
            "4 1 8:1 /srv/data/sub /mnt/y rw - ext4 /dev/sda1 rw",
            "5 1 0:9 / /mnt/y rw - tmpfs none rw",
            "6 1 8:2 /volume /mnt/z rw - ext4 /dev/sda2 rw",
        ]
        .map(mount);
        let of = |mounts: &[Mount], point: &str| containing(mounts, Path::new(point));
        assert_eq!(of(&mounts, "/mnt/x"), ["/data/a", "/data/"].map(PathBuf::from));
        assert_eq!(
            of(&mounts[..4], "/mnt/y"),
            ["/srv/data", "/srv", "/"].map(PathBuf::from)
        );
        // Another file system is mounted over it.
        assert!(of(&mounts, "/mnt/y").is_empty());
        for point in ["/", "/data", "/mnt/z", "/mnt"] {
            assert!(of(&mounts, point).is_empty(), "{point}");
        }
    }
}
