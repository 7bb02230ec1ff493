//! The tools of Redis as clients: as many requests as they like, from many connections.

use std::process::Command;

use crate::harness::tools::tool;
use crate::harness::{Host, field};

/// Requests of each of the two kinds.
const REQUESTS: usize = 20_000;

#[test]
fn redis_benchmark_is_answered() {
    let Some(benchmark) = tool("redis-benchmark") else {
        return;
    };
    let mut host = Host::serving("pong", &[]);
    let address = host.address();
    let output = Command::new(benchmark)
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(["-t", "ping_inline,ping_mbulk", "-n", &REQUESTS.to_string()])
        .args(["-c", "50", "-P", "4", "--csv"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for test in ["PING_INLINE", "PING_MBULK"] {
        assert!(text.contains(test), "{text}");
    }
    assert!(host.stop().success());
    // A benchmark that is done resets or closes its connections; no guest fails.
    let log = host.log();
    assert!(!log.contains("guest-"), "{log}");
    // Each reply is `+PONG`, but for the error with which the guest answers the question for the
    // configuration. The benchmark stops at the last reply, and may have sent a few requests more.
    let ended = log.lines().filter(|line| line.contains("connection ended"));
    let bytes = ended
        .map(|line| field(line, "bytes_out").parse::<usize>().unwrap())
        .sum::<usize>();
    let replies = bytes / "+PONG\r\n".len();
    let expected = 2 * REQUESTS;
    assert!(
        (expected..=expected + expected / 20).contains(&replies),
        "{replies} replies"
    );
}
