//! What a server costs, by `/proc`.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// What a process and its descendants have taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Time on the processor, in user mode and in the kernel.
    pub(crate) cpu: Duration,
    /// Resident memory in bytes.
    pub(crate) resident: u64,
    /// Memory mappings.
    pub(crate) mappings: u64,
}

/// How many descriptors a process may have at most.
///
/// # Errors
///
/// The kernel does not say.
pub(crate) fn descriptor_limit() -> Result<u64> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.and_then(|soft| soft.parse().ok())
        .context("/proc/self/limits shows no limit on open files")
}

/// How many memory mappings a process may have.
///
/// # Errors
///
/// The kernel does not say.
pub(crate) fn mapping_limit() -> Result<u64> {
    Ok(fs::read_to_string("/proc/sys/vm/max_map_count")?.trim().parse()?)
}

/// The usage of process `pid` and of its descendants together.
///
/// # Errors
///
/// The process is gone.
pub(crate) fn usage(pid: u32) -> Result<Usage> {
    let mut total = Usage::default();
    for pid in family(pid)? {
        // A descendant may end at any time.
        let Ok(usage) = of_one(pid) else { continue };
        total.cpu += usage.cpu;
        total.resident += usage.resident;
        total.mappings += usage.mappings;
    }
    Ok(total)
}

/// `root` and its descendants.
fn family(root: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = stat(pid).ok().and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![root];
    let mut at = 0;
    while let Some(pid) = family.get(at) {
        family.extend(children.get(pid).into_iter().flatten());
        at += 1;
    }
    Ok(family)
}

fn of_one(pid: u32) -> Result<Usage> {
    let fields = stat(pid)?;
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let resident = status_bytes(pid, "VmRSS:")?;
    let mappings = fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().count();
    Ok(Usage {
        // utime and stime, and those of children that have ended and were waited for. The kernel counts 100 a second in
        // /proc (USER_HZ).
        cpu: Duration::from_millis((11..=14).map(ticks).sum::<u64>() * 10),
        resident,
        mappings: mappings as u64,
    })
}

/// The bytes that `/proc/PID/status` shows after `key`; 0 of a process that has ended.
///
/// # Errors
///
/// The process is gone.
pub(crate) fn status_bytes(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes = kibibytes.and_then(|line| line.split_whitespace().next());
    Ok(kibibytes.unwrap_or("0").parse::<u64>()? << 10)
}

/// The fields of `/proc/PID/stat` from the third on; the second may hold anything.
fn stat(pid: u32) -> Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat
        .rsplit_once(')')
        .context("/proc/PID/stat has an unexpected format")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}
