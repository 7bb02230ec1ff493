//! The log, as programs and people read it.

use crate::harness::{Host, field};

#[test]
fn a_connection_leaves_one_line_that_says_everything() {
    let host = Host::serving("lines", &[]);
    let client = host.connect();
    let local = client.0.local_addr().unwrap().to_string();
    client.send("hello\nquit\nrest");
    client.finish();
    assert_eq!(client.rest(), b"hello\n");
    let line = host.line("connection ended");
    assert_eq!(field(&line, "connection"), "1");
    assert_eq!(field(&line, "peer"), local);
    assert_eq!(field(&line, "listener"), host.address().to_string());
    assert_eq!(field(&line, "contract"), "streams");
    assert_eq!(field(&line, "bytes_in"), "15");
    assert_eq!(field(&line, "bytes_out"), "6");
    assert_eq!(field(&line, "outcome"), "finished");
    assert!(field(&line, "duration_ms").parse::<f64>().unwrap() > 0.0);
    host.connect().finish();
    assert_eq!(field(&host.line("connection ended"), "connection"), "2");
}

#[test]
fn json_lines_are_objects_with_the_same_fields() {
    let mut host = Host::serving("echo", &["--log-format", "json"]);
    let client = host.connect();
    client.echo("hello");
    client.finish();
    client.rest();
    let line: serde_json::Value = serde_json::from_str(&host.line("connection ended")).unwrap();
    assert_eq!(line["message"], "connection ended");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["connection"], 1);
    assert_eq!(line["contract"], "streams");
    assert_eq!(line["bytes_in"], 5);
    assert_eq!(line["bytes_out"], 5);
    assert_eq!(line["outcome"], "finished");
    assert!(line["duration_ms"].is_f64());
    assert!(line["timestamp"].is_string());
    host.stop();
    for line in host.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn quiet_leaves_where_it_listens_and_what_is_wrong() {
    for flag in ["-q", "-qq"] {
        let mut host = Host::serving("echo", &[flag]);
        host.connect().echo("hello");
        assert_eq!(host.stop().code(), Some(0));
        let log = host.log();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("listening on"), "{log}");
    }
}

#[test]
fn a_log_that_nobody_can_take_does_not_stop_the_service() {
    for sink in ["2>/dev/full", "2>&-"] {
        // Its own port cannot be read from such a log, so it gets one that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut child = crate::harness::with_cache(std::process::Command::new("sh"))
            .args([
                "-c",
                &format!("exec \"$0\" --listen {free} {sink}"),
                crate::harness::HOST,
            ])
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + crate::harness::DEADLINE;
        let client = loop {
            match crate::harness::Client::connect(free) {
                Ok(client) => break client,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{sink}: {error}"),
            }
            std::thread::yield_now();
        };
        client.echo("hello");
        for _ in 0..20 {
            crate::harness::Client::connect(free).unwrap().echo("hello again");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_log_whose_reader_has_gone_does_not_stop_the_service() {
    log_that_is_not_read(drop);
}

#[test]
fn a_log_whose_reader_does_not_read_does_not_stop_the_service() {
    // The pipe is full and still open.
    log_that_is_not_read(std::mem::forget);
}

/// The first line of the log is read, `then` comes the end of it, and the service goes on.
fn log_that_is_not_read(then: impl FnOnce(std::io::BufReader<std::process::ChildStderr>)) {
    let mut child = crate::harness::command()
        .args(["--listen", "127.0.0.1:0", "-v"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let address = loop {
        line.clear();
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        if let Some((_, address)) = line.split_once("listening on ") {
            break crate::harness::first_word(address).parse().unwrap();
        }
    };
    then(reader);
    for _ in 0..2000 {
        crate::harness::Client::connect(address).unwrap().echo("hello");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
