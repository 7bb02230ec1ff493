//! What the system lets this process have and do: descriptors, memory mappings, and files.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::config::{Config, FILE_THREADS, MAX_DIRS_OF_PATH, Setting};
use crate::failpoint;
use crate::guarded;

/// Descriptors for standard streams, the log, signals, the runtime, and files that are read.
const DESCRIPTORS: u64 = 40;

/// Descriptors that the runtime and the signals need, without which libraries panic at the start.
const FIRST: usize = 16;

/// Descriptors for the threads on which the guests of a service use files: those of their runtime,
/// and two that each thread may have open while it works, as for a file that it renames.
const DESCRIPTORS_FOR_FILES: u64 = 8 + 2 * FILE_THREADS as u64;

/// Descriptors for the directories on the way of the paths that these threads look up.
const DIRS_ON_THE_WAY: u64 = (MAX_DIRS_OF_PATH * FILE_THREADS) as u64;

/// Mappings for the program itself, its libraries, heaps, and the stacks of its threads.
const MAPPINGS: u64 = 500;

/// A kind of file system by which the kernel shows itself, a device or another process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelFs {
    /// Its name in `/proc/self/mountinfo` (proc(5)).
    name: &'static str,
    /// Its number (statfs(2)), unless it shares the number of a file system of ordinary files.
    number: Option<u64>,
    /// Whether files can be created in it, if only of a kind of its own.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
    has_new_files: bool,
}

const fn kernel_fs(name: &'static str, number: Option<u64>, has_new_files: bool) -> KernelFs {
    KernelFs {
        name,
        number,
        has_new_files,
    }
}

/// All file systems of the kernel.
const KERNEL_FS: [KernelFs; 28] = [
    kernel_fs("binder", Some(0x6c6f_6f70), true),
    kernel_fs("binfmt_misc", Some(0x4249_4e4d), true),
    kernel_fs("bpf", Some(0xcafe_4a11), true),
    kernel_fs("cgroup", Some(0x0027_e0eb), false),
    kernel_fs("cgroup2", Some(0x6367_7270), false),
    kernel_fs("configfs", Some(0x6265_6570), false),
    kernel_fs("debugfs", Some(0x6462_6720), false),
    kernel_fs("devpts", Some(0x1cd1), false),
    kernel_fs("devtmpfs", None, true),
    kernel_fs("efivarfs", Some(0xde5e_81e4), true),
    kernel_fs("functionfs", Some(0x0a64_7361), true),
    kernel_fs("fusectl", Some(0x6573_5543), true),
    kernel_fs("gadgetfs", Some(0xaee7_1ee7), true),
    kernel_fs("hugetlbfs", Some(0x9584_58f6), true),
    kernel_fs("mqueue", Some(0x1980_0202), true),
    kernel_fs("nfsd", Some(0x6e66_7364), true),
    kernel_fs("nsfs", Some(0x6e73_6673), true),
    kernel_fs("pidfs", Some(0x5049_4446), true),
    kernel_fs("proc", Some(0x9fa0), false),
    kernel_fs("pstore", Some(0x6165_676c), true),
    kernel_fs("resctrl", Some(0x0765_5821), true),
    kernel_fs("rpc_pipefs", Some(0x6759_6969), true),
    kernel_fs("securityfs", Some(0x7363_6673), false),
    kernel_fs("selinuxfs", Some(0xf97c_ff8c), true),
    kernel_fs("smackfs", Some(0x4341_5d53), true),
    kernel_fs("sysfs", Some(0x6265_6572), false),
    kernel_fs("tracefs", Some(0x7472_6163), false),
    kernel_fs("xenfs", Some(0xabba_1974), true),
];

impl KernelFs {
    /// Finds the kind with this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        KERNEL_FS.iter().find(|kind| kind.name == name)
    }

    /// Finds the kind with this number.
    #[cfg(target_os = "linux")]
    fn numbered(number: u64) -> Option<&'static Self> {
        KERNEL_FS.iter().find(|kind| kind.number == Some(number))
    }
}

/// The number of the capability to change and remove files of other users (capabilities(7)).
const CAP_FOWNER: u32 = 3;

/// Returns the directory that the last part of a path is in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Memory mappings that the connections of a service take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mappings {
    /// Each of them.
    pub each: u64,
    /// Whatever there are.
    pub shared: u64,
    /// All of them together take no more.
    pub most: u64,
}

/// Warns where the limit on mappings does not suffice for services that have so many connections
/// each, of which each takes so many mappings. `service` names the service if there is only one.
pub fn check_mappings(service: Option<&str>, services: impl IntoIterator<Item = (NonZeroUsize, Mappings)>) {
    let (mut connections, mut fixed, mut need, mut most) = (0_u64, MAPPINGS, 0_u64, 1);
    let mut of = 0;
    for (count, mappings) in services {
        of += 1;
        let count = count.get() as u64;
        connections = connections.saturating_add(count);
        fixed = fixed.saturating_add(mappings.shared);
        let all = count.saturating_mul(mappings.each);
        need = need.saturating_add(all.min(mappings.most.saturating_sub(mappings.shared)));
        most = most.max(mappings.each);
    }
    need = need.saturating_add(fixed);
    if let Some(limit) = max_map_count()
        && limit < need
    {
        let setting = max_connections(of);
        warn!(
            service,
            "{connections} connections ({setting}) can need {need} memory mappings, but the \
             system allows {limit} per process; raise the limit with \
             `sysctl -w vm.max_map_count={need}`, or lower {setting} to {}",
            limit.saturating_sub(fixed) / most
        );
    }
}

/// Checks that there are descriptors for the runtime and the signals, and raises the limit for them
/// if it may.
///
/// # Errors
///
/// There are too few, as the sentence says.
pub fn provide_descriptors() -> Result<(), String> {
    let are_there = || -> io::Result<()> {
        let opened: io::Result<Vec<_>> = (0..FIRST).map(|_| fs::File::open("/dev/null")).collect();
        opened.map(drop)
    };
    let limit = getrlimit(Resource::Nofile);
    let is_none_left = |error: &io::Error| error.raw_os_error() == Some(Errno::MFILE.raw_os_error());
    match are_there() {
        Err(error) if is_none_left(&error) => {}
        // Another error is about that file.
        _ => return Ok(()),
    }
    let wanted = limit.maximum.map_or(DESCRIPTORS, |hard| hard.min(DESCRIPTORS));
    let raised = Rlimit {
        current: limit.current.map(|soft| soft.max(wanted)),
        maximum: limit.maximum,
    };
    let raised = setrlimit(Resource::Nofile, raised).map_err(io::Error::from);
    raised.and_then(|()| are_there()).map_err(|error| {
        let limit = limit.current.unwrap_or_default();
        format!(
            "cannot start with so few file descriptors ({error}): this process may open {limit}, and expected \
             {DESCRIPTORS} or more; raise the limit (`ulimit -n`, or `LimitNOFILE=` in the systemd unit)"
        )
    })
}

/// Raises this process's limit on descriptors, as far as it may, to the need of the services and of
/// the admin interface, which takes `of_admin`, and warns where that does not suffice. Only hostile
/// guests need those for the directories on the way of paths, so the host does not warn of these.
pub fn raise_descriptors(config: &Config, of_admin: usize) {
    let (mut connections, mut need, mut on_the_way) = (0_u64, DESCRIPTORS, 0_u64);
    if config.admin.is_some() {
        need += of_admin as u64;
    }
    for service in &config.services {
        let count = service.limits.max_connections.get() as u64;
        // A guest keeps the directories that were open when it began, also after the next load.
        let each = 1 + service.grants.dirs.len() as u64;
        if !service.grants.dirs.is_empty() {
            need = need
                .saturating_add(DESCRIPTORS_FOR_FILES)
                .saturating_add(service.limits.max_files() as u64);
            on_the_way = on_the_way.saturating_add(DIRS_ON_THE_WAY);
        }
        if !service.grants.outbound.is_empty() {
            need = need.saturating_add(service.limits.max_sockets() as u64);
        }
        connections = connections.saturating_add(count);
        need = need
            .saturating_add(count.saturating_mul(each))
            .saturating_add(service.listen.len() as u64);
    }
    let most = need.saturating_add(on_the_way);
    let limit = getrlimit(Resource::Nofile);
    let (Some(soft), hard) = (limit.current, limit.maximum) else {
        return;
    };
    if soft >= most {
        return;
    }
    let raised = hard.map_or(most, |hard| hard.min(most));
    let outcome = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(raised),
            maximum: hard,
        },
    );
    let limit = if outcome.is_ok() { raised } else { soft };
    if limit >= need {
        debug!(from = soft, to = limit, "raised the limit on open files");
    } else {
        let setting = max_connections(config.services.len());
        warn!(
            "{connections} connections ({setting}) and what their guests may open need {need} \
             file descriptors, but this process may open {limit}; raise the limit (`ulimit -n {need}`, \
             or `LimitNOFILE={need}` in the systemd unit) or lower {setting}; connections beyond the \
             limit wait in the backlog"
        );
    }
}

/// Names the setting that bounds the connections of so many services together.
fn max_connections(services: usize) -> String {
    let setting = Setting::of("limits.max-connections");
    if services > 1 {
        format!("the sum of {setting}")
    } else {
        setting.to_string()
    }
}

/// Checks whether `dir` is a directory with room for files, or could be created.
pub(crate) fn can_create(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    for dir in dir.ancestors() {
        match is_writable(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.is_symlink() => {
                let missing = format!("`{}` is a link to a directory that does not exist", dir.display());
                return Err(io::Error::new(error.kind(), missing));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            checked => return checked,
        }
    }
    Ok(())
}

/// Checks that a path can be that of a file which does not exist yet. The system takes a path that
/// ends like this for that of a directory (path_resolution(7)).
pub(crate) fn check_names_file(path: &Path) -> io::Result<()> {
    let path = path.as_os_str().as_encoded_bytes();
    let mut endings = ["/", "/.", "/.."].into_iter();
    match endings.find(|ending| path.ends_with(ending.as_bytes())) {
        None => Ok(()),
        Some(ending) => Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            format!("the path ends with `{ending}`; choose the path of a file"),
        )),
    }
}

/// Checks whether `dir` is a directory in which this process may create files.
pub(crate) fn is_writable(dir: &Path) -> io::Result<()> {
    if !fs::metadata(dir)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    access(dir, Access::WRITE_OK | Access::EXEC_OK)?;
    if takes_no_files(dir) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "no file can be created in `{}`, which belongs to the kernel",
                dir.display()
            ),
        ));
    }
    Ok(())
}

/// Returns what to do about a file or directory that cannot be created or written, if the reason is
/// its file system or a limit, and not who may write there.
pub(crate) fn storage_advice(error: &io::Error) -> Option<&'static str> {
    Some(match guarded::errno(error)? {
        Errno::NOSPC => "free some space there",
        Errno::DQUOT => "free some space there, or raise the quota of the user",
        Errno::FBIG => "raise the limit on file sizes (`ulimit -f`, or `LimitFSIZE=` in the systemd unit)",
        Errno::ROFS => "mount the file system with write access",
        _ => return None,
    })
}

/// Returns whether `dir` belongs to a file system of the kernel in which nobody can create files,
/// whatever the mode of a directory says.
pub(crate) fn takes_no_files(dir: &Path) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::statfs(dir)
        .is_ok_and(|found| KernelFs::numbered(found.f_type as u64).is_some_and(|kind| !kind.has_new_files));
    #[cfg(not(target_os = "linux"))]
    return false;
}

/// Returns whether an open directory belongs to a file system of the kernel.
pub(crate) fn is_of_kernel(dir: impl AsFd) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::fstatfs(dir).is_ok_and(|found| KernelFs::numbered(found.f_type as u64).is_some());
    #[cfg(not(target_os = "linux"))]
    return {
        let _ = dir;
        false
    };
}

/// Returns whether this process may remove files of other users from a directory like `/tmp`. Assumes
/// so if the system does not tell.
pub(crate) fn may_remove_files_of_others() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_none_or(|mask| mask & 1 << CAP_FOWNER != 0)
}

/// The limit on the mappings of one process where the kernel does not tell it (Linux,
/// Documentation/admin-guide/sysctl/vm.rst).
const MAX_MAP_COUNT: u64 = 65_530;

/// Returns the most bytes that a file may have which this process writes to, if there is a limit
/// (`ulimit -f`).
pub(crate) fn max_file_size() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

/// The kernel's limit on the mappings of one process, where it has one (`vm.max_map_count` of Linux).
pub(crate) fn max_map_count() -> Option<u64> {
    if let Some(limit) = failpoint::max_map_count() {
        return Some(limit);
    }
    let told = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let told = told.and_then(|told| told.trim().parse().ok());
    // A service manager may hide the file.
    told.or(cfg!(target_os = "linux").then_some(MAX_MAP_COUNT))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::mounts::{Mount, mounts};

    #[test]
    fn each_file_system_of_the_kernel_has_a_name_and_a_number_of_its_own() {
        let names: BTreeSet<_> = KERNEL_FS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KERNEL_FS.len());
        let numbers: BTreeSet<_> = KERNEL_FS.iter().filter_map(|kind| kind.number).collect();
        let without = KERNEL_FS.iter().filter(|kind| kind.number.is_none());
        let without: Vec<_> = without.map(|kind| kind.name).collect();
        // Its number is that of tmpfs.
        assert_eq!(without, ["devtmpfs"]);
        assert_eq!(numbers.len(), KERNEL_FS.len() - without.len());
    }

    /// Compares the list with the file systems that are mounted on this machine.
    #[test]
    #[cfg(target_os = "linux")]
    fn names_and_numbers_of_file_systems_of_the_kernel_are_those_of_the_system() {
        let mounts = mounts();
        let mut seen = BTreeSet::new();
        for Mount {
            kind: name, point, ..
        } in &mounts
        {
            let number = KernelFs::named(name).and_then(|kind| kind.number);
            // Another file system can be mounted over it, or its directory be hidden.
            let Some((number, found)) = number.zip(rustix::fs::statfs(point).ok()) else {
                continue;
            };
            let over = mounts.iter().filter(|other| other.point == *point);
            if over.count() == 1 {
                assert_eq!(found.f_type as u64, number, "{name} at {}", point.display());
                seen.insert(name.as_str());
            }
        }
        assert!(seen.contains("proc"), "{seen:?}");
    }

    #[test]
    fn a_path_with_the_end_of_a_directory_names_no_file() {
        for path in ["a/", "a/.", "a/..", "a//", "/"] {
            assert!(check_names_file(Path::new(path)).is_err(), "{path}");
        }
        for path in ["a", "/a", "a.", "a/..b", "a/b.."] {
            assert!(check_names_file(Path::new(path)).is_ok(), "{path}");
        }
    }

    #[test]
    fn advice_about_a_directory_fits_the_error() {
        let raw = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for (errno, word) in [
            (Errno::NOSPC, Some("space")),
            (Errno::DQUOT, Some("quota")),
            (Errno::FBIG, Some("ulimit -f")),
            (Errno::ROFS, Some("mount")),
            (Errno::ACCESS, None),
        ] {
            // As the system returns it, and as a walk to a directory does.
            let walked = io::Error::other(guarded::Error::Io {
                path: "/a".into(),
                error: raw(errno),
            });
            for error in [raw(errno), walked] {
                let advice = storage_advice(&error);
                assert_eq!(advice.is_some(), word.is_some(), "{error}");
                assert!(
                    advice.unwrap_or_default().contains(word.unwrap_or_default()),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn no_file_can_be_created_in_a_file_system_of_the_kernel() {
        let temporary = std::env::temp_dir();
        for (dir, can) in [
            (Path::new("/proc"), false),
            (Path::new("/proc/not/there"), false),
            (Path::new("/sys/kernel/not-there"), false),
            (&temporary, true),
            (&temporary.join("not/there"), true),
        ] {
            assert_eq!(can_create(dir).is_ok(), can, "{}", dir.display());
        }
    }
}
