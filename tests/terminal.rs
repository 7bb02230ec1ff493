//! What is shown to who looks at the host on a terminal.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::compile::program;
use crate::harness::tools::tool;
use crate::harness::{Client, DEADLINE, HOST, Host, first_word, guest, scratch, until, with_cache};

/// What clears the line below the others.
const CLEAR: &str = "\r\x1b[K";

/// A host on a terminal of its own, by script(1).
struct Terminal {
    script: Child,
    /// What is typed.
    keys: ChildStdin,
    chunks: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    fn start(args: &str) -> Option<Self> {
        Self::run(&format!("--listen 127.0.0.1:0 {args}"))
    }

    /// Runs the program with these arguments.
    fn run(args: &str) -> Option<Self> {
        let program = tool("script")?;
        let mut command = with_cache(Command::new(program));
        let mut script = command
            .args(["-qefc", &format!("exec {HOST} {args}"), "/dev/null"])
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = script.stdout.take().unwrap();
        let (sender, chunks) = mpsc::channel();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut chunk) {
                let _ = sender.send(chunk[..count].to_vec());
            }
        });
        Some(Self {
            keys: script.stdin.take().unwrap(),
            script,
            chunks,
            shown: String::new(),
        })
    }

    /// Waits until `text` is shown, and gives all that is.
    fn shows(&mut self, text: &str) -> &str {
        let deadline = Instant::now() + DEADLINE;
        while !self.shown.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let chunk = self.chunks.recv_timeout(left);
            let chunk = chunk.unwrap_or_else(|_| panic!("`{text}` is not shown in\n{}", self.shown));
            self.shown.push_str(&String::from_utf8(chunk).unwrap());
        }
        &self.shown
    }

    /// Types ^C, and gives the exit status and all that was shown.
    fn interrupt(mut self) -> (Option<i32>, String) {
        self.keys.write_all(b"\x03").unwrap();
        self.end()
    }

    /// Waits for the end of the program, and gives the exit status and all that was shown.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.script.wait().unwrap();
        while let Ok(chunk) = self.chunks.recv() {
            self.shown.push_str(&String::from_utf8(chunk).unwrap());
        }
        (status.code(), std::mem::take(&mut self.shown))
    }
}

#[test]
fn a_host_whose_terminal_is_closed_drains() {
    let Some(mut terminal) = Terminal::start("--name left") else {
        return;
    };
    let shown = terminal.shows(" open, ");
    let (_, address) = shown.split_once("127.0.0.1:").unwrap();
    let port = address.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let client = Client::connect(address).unwrap();
    client.echo("served");
    // The terminal goes with the program that made it.
    terminal.script.kill().unwrap();
    terminal.script.wait().unwrap();
    // The listener is closed, and the connection goes on.
    until("the host refuses connections", || {
        Client::connect(address).is_err()
    });
    client.echo("served during the drain");
    client.finish();
    assert_eq!(client.rest(), b"");
}

#[test]
fn the_first_signal_after_the_end_of_the_terminal_goes_on_draining() {
    let dir = scratch("terminal-closed");
    fs::create_dir_all(&dir).unwrap();
    let log = dir.join("log");
    let Some(mut terminal) = Terminal::start(&format!("--drain-timeout 1h 2>{}", log.display())) else {
        return;
    };
    let logged = |text: &str| {
        until(text, || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains(text))
        });
        fs::read_to_string(&log).unwrap()
    };
    let log = logged("listening on");
    let (_, address) = log.split_once("listening on ").unwrap();
    let client = Client::connect(first_word(address).parse().unwrap()).unwrap();
    client.echo("served");
    let script = terminal.script.id();
    let host = fs::read_to_string(format!("/proc/{script}/task/{script}/children")).unwrap();
    let host = Pid::from_raw(host.trim().parse().unwrap()).unwrap();
    terminal.script.kill().unwrap();
    terminal.script.wait().unwrap();
    logged("draining: ");
    kill_process(host, Signal::TERM).unwrap();
    logged("draining already");
    client.echo("served during the drain");
    client.finish();
    assert_eq!(client.rest(), b"");
    drop(client);
    logged("drained closed=0");
}

#[test]
fn a_table_tells_what_is_served_and_a_line_below_the_log_how_it_goes() {
    let Some(mut terminal) = Terminal::start("--name front --max-connections 77 --idle-timeout 9s") else {
        return;
    };
    let shown = terminal.shows(" open, ");
    let row = shown
        .lines()
        .find(|line| line.contains("77 connections"))
        .unwrap();
    let columns: Vec<&str> = row
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect();
    let [service, address, component, contract, limits] = columns.as_slice() else {
        panic!("{row}");
    };
    assert_eq!(
        (*service, *component, *contract),
        ("front", "embedded echo", "streams")
    );
    assert_eq!(
        *limits,
        "77 connections, 64.0 MiB per connection, idle timeout 9s"
    );
    let client = Client::connect(address.parse().unwrap()).unwrap();
    client.echo("hello\n");
    terminal.shows(&format!("{CLEAR}1 open, "));
    client.finish();
    assert_eq!(client.rest(), b"");
    // A line of the log takes the place of the line below, which comes again.
    let shown = terminal.shows("connection ended");
    let (before, _) = shown.split_once("connection ended").unwrap();
    let (_, line) = before.rsplit_once(CLEAR).unwrap();
    assert!(!line.contains('\n'), "{line:?}");
    terminal.shows(&format!("{CLEAR}0 open, "));
    let (status, shown) = terminal.interrupt();
    assert_eq!(status, Some(0), "{shown}");
    assert!(
        shown.ends_with(CLEAR) || shown.ends_with(&format!("{CLEAR}\r\n")),
        "{:?}",
        &shown[shown.len() - 80..]
    );
    assert!(
        !shown.replace(CLEAR, "").contains('\x1b'),
        "colours in spite of NO_COLOR: {shown:?}"
    );
}

#[test]
fn a_line_tells_how_a_replay_goes_and_is_gone_before_its_result() {
    let dir = scratch("talks-on-a-terminal");
    fs::create_dir_all(&dir).unwrap();
    let text = "> pause 1500ms\n> \"a\"\n< \"a\"\n> end\n< end\n";
    fs::write(dir.join("1.conversation"), text).unwrap();
    let args = format!("replay {} {}", dir.display(), guest("echo").display());
    let Some(mut terminal) = Terminal::run(&args) else {
        return;
    };
    terminal.shows("replaying conversation 1 of 1, ");
    let (status, shown) = terminal.end();
    assert_eq!(status, Some(0), "{shown}");
    let expected = format!("{CLEAR}1 conversation, no differences\r\n");
    assert!(shown.ends_with(&expected), "{shown:?}");
}

#[test]
fn a_line_tells_that_components_are_compiled_and_is_gone_before_the_result() {
    let dir = scratch("compile-on-a-terminal");
    fs::create_dir_all(&dir).unwrap();
    // Compiling it takes seconds.
    fs::write(dir.join("long.wasm"), program(300_000)).unwrap();
    let services = dir.join("services.toml");
    let text = "cache = \"kept\"\n[[service]]\nname = \"a\"\ncomponent = \"long.wasm\"\n\
                listen = [\"127.0.0.1:0\"]\n";
    fs::write(&services, text).unwrap();
    let services = services.display();
    for (args, result) in [
        (
            format!("check --config {services} --compile"),
            "1 service, no errors",
        ),
        (format!("compile --config {services}"), "component "),
    ] {
        let Some(mut terminal) = Terminal::run(&args) else {
            return;
        };
        terminal.shows("compiling component 1 of 1, ");
        let (ended, shown) = terminal.end();
        assert_eq!(ended, Some(0), "{args}: {shown}");
        let (_, last) = shown.rsplit_once(CLEAR).unwrap();
        assert!(last.starts_with(result), "{args}: {shown:?}");
    }
}

#[test]
fn what_is_quiet_or_for_programs_shows_the_log_alone() {
    for args in ["-q", "--log-format json"] {
        let Some(mut terminal) = Terminal::start(args) else {
            return;
        };
        terminal.shows("listening on");
        let (status, shown) = terminal.interrupt();
        assert_eq!(status, Some(0), "{args}: {shown}");
        assert!(
            !shown.contains("listens on") && !shown.contains(" open, "),
            "{args}: {shown}"
        );
    }
}

#[test]
fn where_there_is_no_terminal_there_is_the_log_alone() {
    let mut host = Host::serving("echo", &[]);
    host.connect().echo("hello");
    host.stop();
    let log = host.log();
    assert!(
        !log.contains("listens on") && !log.contains(" open, ") && !log.contains('\x1b'),
        "{log}"
    );
}
