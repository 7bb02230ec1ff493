//! The limit on file descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Descriptors for anything but connections: listeners, runtimes, standard streams, files that are read.
const RESERVE: u64 = 100;

/// Raises this process's limit on descriptors, as far as it may, to hold `connections` at once, and warns where
/// that does not suffice.
pub fn ensure(connections: usize) {
    let need = (connections as u64).saturating_add(RESERVE);
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
