//! The tools of Redis as clients: as many requests as they like, from many connections.

use std::process::Command;

use crate::harness::Host;
use crate::harness::fetched::or_skip;

#[test]
fn redis_benchmark_is_answered() {
    let mut host = Host::serving("pong", &[]);
    let address = host.address();
    let benchmark = Command::new("redis-benchmark")
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args([
            "-t",
            "ping_inline,ping_mbulk",
            "-n",
            "20000",
            "-c",
            "50",
            "-P",
            "4",
            "--csv",
        ])
        .output();
    let had = benchmark
        .map_err(|error| format!("redis-benchmark cannot be run ({error}): apt-get install redis-tools"));
    let Some(output) = or_skip(had, std::env::var_os("WASM_INETD_CLIENTS").is_some()) else {
        return;
    };
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for test in ["PING_INLINE", "PING_MBULK"] {
        let line = text
            .lines()
            .find(|line| line.contains(test))
            .unwrap_or_else(|| panic!("{text}"));
        let rate: f64 = line.split(',').nth(1).unwrap().trim_matches('"').parse().unwrap();
        assert!(rate > 0.0, "{line}");
    }
    assert!(host.stop().success());
    // A benchmark that is done resets or closes its connections; no guest fails.
    let log = host.log();
    assert!(!log.contains("guest-"), "{log}");
}
