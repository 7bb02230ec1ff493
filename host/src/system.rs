//! What the system lets this process have: descriptors and memory mappings.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::config::{Config, Isolation};

/// Descriptors for standard streams, the log, signals, the runtime, and files that are read.
const DESCRIPTORS: u64 = 40;

/// Mappings for the program itself, its libraries, heaps, and the stacks of its threads.
const MAPPINGS: u64 = 500;

/// Warns where the limit on mappings does not suffice for `config` with a component of which each connection takes
/// `mappings`.
pub fn check_mappings(config: &Config, mappings: u64) {
    if config.isolation != Isolation::Connection {
        // There are never so many instances.
        return;
    }
    let connections = config.limits.max_connections.get() as u64;
    let need = connections.saturating_mul(mappings).saturating_add(MAPPINGS);
    if let Some(limit) = max_map_count()
        && limit < need
    {
        warn!(
            "--max-connections {connections} can need {need} memory mappings and this system allows {limit}: \
             raise the limit (sysctl vm.max_map_count={need}) or lower --max-connections to {}",
            limit.saturating_sub(MAPPINGS) / mappings.max(1)
        );
    }
}

/// Raises this process's limit on descriptors, as far as it may, to what `config` needs, and warns where that does not
/// suffice.
pub fn raise_descriptors(config: &Config) {
    let connections = config.limits.max_connections.get() as u64;
    let listeners = config.listen.len() as u64;
    // A guest holds the directories that are granted to it open.
    let each = 1 + config.grants.dirs.len() as u64;
    let need = connections
        .saturating_mul(each)
        .saturating_add(DESCRIPTORS + listeners);
    let limit = getrlimit(Resource::Nofile);
    let (Some(soft), hard) = (limit.current, limit.maximum) else {
        return;
    };
    if soft >= need {
        return;
    }
    let raised = hard.map_or(need, |hard| hard.min(need));
    let outcome = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(raised),
            maximum: hard,
        },
    );
    match outcome {
        Ok(()) if raised >= need => debug!(from = soft, to = raised, "raised the limit on descriptors"),
        _ => warn!(
            "--max-connections {connections} needs {need} descriptors and this process may have {}: raise the \
             limit (ulimit -n {need}, or LimitNOFILE= of the service) or lower --max-connections; what has no \
             descriptor waits in the backlog",
            if outcome.is_ok() { raised } else { soft }
        ),
    }
}

/// The kernel's limit on the mappings of one process, where it has one (`vm.max_map_count` of Linux).
fn max_map_count() -> Option<u64> {
    fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()?
        .trim()
        .parse()
        .ok()
}
