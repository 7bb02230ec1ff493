//! The memory that a compiler may have where nothing is said of it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::sysinfo::sysinfo;

/// The least limit that the rule gives: what every small component is compiled within.
const LEAST: u64 = 128 << 20;

/// Returns the limit, and how a message describes it: half of the memory of the control group, or
/// of the machine if that is less.
///
/// The other half is for the host, whose connections go on meanwhile, and for the code that it
/// takes over.
pub(super) fn default() -> (Option<u64>, &'static str) {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(|text| bytes_of(text, "MemTotal:"));
    // A container may show another size in the file. A service manager may hide the file.
    let machine = machine.or_else(|| Some(sysinfo().ok()?.ram_total()));
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = of_groups(&group, Path::new("/sys/fs/cgroup"));
    rule(machine, group)
}

fn rule(machine: Option<u64>, group: Option<u64>) -> (Option<u64>, &'static str) {
    let half = |memory: u64| Some((memory / 2).max(LEAST));
    match (machine, group) {
        (machine, Some(group)) if machine.is_none_or(|machine| group < machine) => {
            (half(group), "half of the memory limit of the control group")
        }
        (Some(machine), _) => (half(machine), "half of the memory of the machine"),
        (None, _) => (None, ""),
    }
}

/// Returns the bytes of the line that begins with `name`, in a text of the form of `/proc/meminfo`
/// and `/proc/PID/status` (proc(5)).
pub(super) fn bytes_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The lowest memory limit of the control groups that this process is in, which `groups` lists as
/// `/proc/self/cgroup` does (cgroups(7)), below `root`.
///
/// In a container, its own group is often mounted at the root, and its path is one of the machine.
/// So each directory on the way to the root counts, as far as it is there.
fn of_groups(groups: &str, root: &Path) -> Option<u64> {
    let paths = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = Path::new(path.strip_prefix('/')?);
        match controllers {
            "" => Some((root.to_owned(), path, "memory.max")),
            controllers if controllers.split(',').any(|one| one == "memory") => {
                Some((root.join("memory"), path, "memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    let files = paths.flat_map(|(base, path, file)| {
        let ancestors = path.ancestors();
        let files = ancestors.map(move |path| base.join(path).join(file));
        files.collect::<Vec<PathBuf>>()
    });
    let limits = files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_limit_is_half_of_the_group_or_of_the_machine() {
        for (machine, group, expected) in [
            (Some(8 * GIB), None, Some(4 * GIB)),
            (Some(8 * GIB), Some(GIB), Some(GIB / 2)),
            // Without a limit, version 1 has a number that no machine reaches.
            (Some(8 * GIB), Some(1 << 62), Some(4 * GIB)),
            (None, Some(GIB), Some(GIB / 2)),
            (Some(8 * GIB), Some(64 << 20), Some(LEAST)),
            (None, None, None),
        ] {
            assert_eq!(rule(machine, group).0, expected, "{machine:?} {group:?}");
        }
    }

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(
            bytes_of("MemFree: 1 kB\nMemTotal:       24683680 kB\n", "MemTotal:"),
            Some(24_683_680 << 10)
        );
        assert_eq!(bytes_of("MemTotal: much", "MemTotal:"), None);
        assert!(default().0.is_some_and(|memory| memory >= LEAST));
    }

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let root = std::env::temp_dir().join(format!("groups-{}", std::process::id()));
        let put = |file: &str, text: &str| {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        put("pods/one/memory.max", "max\n");
        put("pods/memory.max", "2000\n");
        put("memory/old/memory.limit_in_bytes", "1000\n");
        assert_eq!(of_groups("0::/pods/one\n", &root), Some(2000));
        assert_eq!(
            of_groups("5:cpu,memory:/old\n4:cpu:/\n0::/pods\n", &root),
            Some(1000)
        );
        assert_eq!(of_groups("0::/elsewhere\n", &root), None);
        // The group of a container, whose path is that of the machine.
        put("memory.max", "3000\n");
        assert_eq!(of_groups("0::/kubepods/abc\n", &root), Some(3000));
        fs::remove_dir_all(root).unwrap();
    }
}
