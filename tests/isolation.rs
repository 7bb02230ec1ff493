//! What the host keeps to itself.

use std::fs;

use crate::harness::Host;

#[test]
fn threads_are_named_and_few() {
    let host = Host::serving("echo", &["--threads", "2"]);
    host.connect().echo("hello");
    let mut names: Vec<String> = fs::read_dir(format!("/proc/{}/task", host.pid()))
        .unwrap()
        .map(|task| {
            fs::read_to_string(task.unwrap().path().join("comm"))
                .unwrap()
                .trim()
                .to_owned()
        })
        .collect();
    names.sort();
    for name in ["worker-0", "worker-1", "ticker", "log"] {
        assert_eq!(
            names.iter().filter(|other| *other == name).count(),
            1,
            "{name} in {names:?}"
        );
    }
}

#[test]
fn an_idle_host_uses_no_processor() {
    let host = Host::serving("echo", &[]);
    host.connect().echo("hello");
    host.line("connection ended");
    let switches = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
        tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
            .map(|status| {
                let line = status
                    .lines()
                    .find(|line| line.starts_with("voluntary_ctxt_switches"))
                    .unwrap();
                line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
            })
            .sum::<u64>()
    };
    // With no connection open nothing wakes up, where the clock alone would a thousand times a
    // second. A thread that is still on its way to sleep gets further seconds.
    let quiet = || {
        let before = switches();
        std::thread::sleep(std::time::Duration::from_secs(1));
        switches() - before
    };
    assert!(
        (0..10).any(|_| quiet() < 3),
        "threads wake up while there is nothing to do"
    );
}
