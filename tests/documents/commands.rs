//! Runs the commands that documents show, and compares their output with the output shown.
//!
//! A fence with the info string `console` is run; `console no_run` marks one that cannot be, since it
//! needs other machines, privileges or minutes. The fences of one document are one session in one
//! directory. A line that starts with `$ ` is a command, and the lines up to the next command are its
//! output, in which `...` stands for any lines.
//!
//! - A command that serves runs until the document ends or shows another one. The lines that follow
//!   it are lines of its log, in that order, perhaps with others between.
//! - A line of a log behind another command is waited for.
//! - `cargo run -p host` is the program under test. `cargo guests` is not run, since the guests are
//!   built already; its output is not compared.
//! - Ports that documents name are replaced by free ones. Times, sizes and durations may differ.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use regex::Regex;

use super::markdown::Document;
use crate::harness::{DEADLINE, HOST, Host, guest, scratch, with_cache};

/// A command of a fence, with the output shown.
pub struct Shown {
    pub command: String,
    output: Vec<String>,
    /// The line of the document.
    line: usize,
}

/// Splits a `console` fence into its commands.
pub fn commands(text: &str, line: usize) -> Vec<Shown> {
    let mut commands: Vec<Shown> = Vec::new();
    for (index, text) in text.lines().enumerate() {
        if let Some(command) = text.strip_prefix("$ ") {
            commands.push(Shown {
                command: command.to_owned(),
                output: Vec::new(),
                line: line + index,
            });
        } else if let Some(last) = commands.last_mut() {
            if let (Some(begun), []) = (last.command.strip_suffix('\\'), &last.output[..]) {
                last.command = begun.to_owned() + text.trim_start();
            } else {
                last.output.push(text.to_owned());
            }
        }
    }
    commands
}

/// Runs the fences of a document and returns the number of commands that were run.
pub fn run(document: &Document) -> usize {
    let mut session = Session::new(document);
    let mut count = 0;
    for fence in document.fences.iter().filter(|fence| fence.info == "console") {
        for shown in commands(&fence.text, fence.line) {
            session.run(&shown);
            count += 1;
        }
    }
    count
}

/// Returns whether a command that `run` runs uses the program `name`.
pub fn use_tool(document: &Document, name: &str) -> bool {
    let fences = document.fences.iter().filter(|fence| fence.info == "console");
    let mut shown = fences.flat_map(|fence| commands(&fence.text, fence.line));
    shown.any(|shown| {
        let mut words = shown.command.split(|c: char| !c.is_alphanumeric() && c != '-');
        words.any(|word| word == name)
    })
}

/// Ports that documents name.
const SHOWN_PORTS: [&str; 2] = ["8080", "9090"];

/// Returns a free port that contains none of the shown ones: 8080 could become 29090, in which 9090
/// would be replaced again.
fn replacement() -> String {
    std::iter::repeat_with(|| free_port().to_string())
        .take(100)
        .find(|free| SHOWN_PORTS.iter().all(|shown| !free.contains(shown)))
        .expect("few ports contain another one")
}

struct Session<'a> {
    document: &'a Document,
    dir: PathBuf,
    /// Ports that documents name, with the ones that are used in their place.
    ports: Vec<(&'static str, String)>,
    /// Assignments of variables, which hold for later commands.
    assignments: Vec<String>,
    host: Option<Host>,
}

impl<'a> Session<'a> {
    fn new(document: &'a Document) -> Self {
        let dir = scratch(&format!("document-{}", document.path.replace('/', "-")));
        fs::create_dir_all(dir.join("target")).unwrap();
        let guests = guest("echo").parent().unwrap().to_owned();
        symlink(guests, dir.join("target/guests")).unwrap();
        for (name, file) in [("echo", "guest.wasm"), ("lines", "lines.wasm")] {
            fs::copy(guest(name), dir.join(file)).unwrap();
        }
        symlink(guest_builder::workspace().join("docs"), dir.join("docs")).unwrap();
        let ports = SHOWN_PORTS.map(|port| (port, replacement())).into();
        Self {
            document,
            dir,
            ports,
            assignments: Vec::new(),
            host: None,
        }
    }

    fn run(&mut self, shown: &Shown) {
        static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| regex(r"^[A-Za-z_]+=\S+$"));
        let mut command = shown.command.replace("cargo run -p host -- ", "wasm-inetd ");
        if command == "cargo run -p host" {
            "wasm-inetd".clone_into(&mut command);
        }
        for (port, free) in &self.ports {
            command = command.replace(port, free);
        }
        if command == "cargo guests" {
            assert_eq!(shown.output, ["..."], "{}", self.at(shown));
        } else if ASSIGNMENT.is_match(&command) {
            self.assignments.push(command);
        } else if serves(&command) {
            self.serve(&command, shown);
        } else {
            self.finish(&command, shown);
        }
    }

    /// Starts a host in the place of the one before.
    fn serve(&mut self, command: &str, shown: &Shown) {
        if let Some(mut host) = self.host.take() {
            host.stop();
        }
        let mut command = command.to_owned();
        if !command.contains("--listen") && !command.contains("--config") {
            let words = if command.starts_with("wasm-inetd record") {
                2
            } else {
                1
            };
            let at = command
                .match_indices(' ')
                .nth(words - 1)
                .map_or(command.len(), |(at, _)| at);
            command.insert_str(at, &format!(" --listen 127.0.0.1:{}", self.ports[0].1));
        }
        let host = Host::spawn(&mut self.shell("bash", &[], &format!("exec {command}")), &[]);
        let log: Vec<_> = host.log().lines().map(|line| self.comparable(line)).collect();
        let mut rest = log.iter();
        for line in shown.output.iter().filter(|line| *line != "...") {
            let line = self.comparable(line);
            assert!(
                rest.any(|logged| *logged == line),
                "{}: no line `{line}` in the log:\n{}",
                self.at(shown),
                log.join("\n")
            );
        }
        self.host = Some(host);
    }

    /// Runs a command to its end.
    fn finish(&mut self, command: &str, shown: &Shown) {
        static LOGGED: LazyLock<Regex> = LazyLock::new(|| regex(r"^(\S+Z +)?(INFO|WARN|ERROR) "));
        // A client that is never answered must not keep the test for ever.
        let seconds = DEADLINE.as_secs().to_string();
        let mut limited = self.shell("timeout", &[&seconds, "bash"], command);
        let output = limited.stdin(Stdio::null()).output().unwrap();
        let both = [output.stdout, output.stderr].concat();
        let both = String::from_utf8_lossy(&both).into_owned();
        assert!(
            output.status.success(),
            "{}: {}\n{both}",
            self.at(shown),
            output.status
        );
        let (logged, expected): (Vec<_>, Vec<_>) =
            shown.output.iter().partition(|line| LOGGED.is_match(line));
        let expected: Vec<_> = expected.into_iter().map(|line| self.comparable(line)).collect();
        let found: Vec<_> = both.lines().map(|line| self.comparable(line)).collect();
        assert!(
            matches(&expected, &found),
            "{}: expected\n{}\n\nfound\n{}",
            self.at(shown),
            expected.join("\n"),
            found.join("\n")
        );
        for line in logged {
            let line = self.comparable(line);
            let host = self.host.as_ref().expect("a host serves");
            loop {
                // It panics with the log when it has waited too long.
                if self.comparable(&host.line("")) == line {
                    break;
                }
            }
        }
    }

    /// Prepares a shell that runs `command` in the directory of this session. The shell is `program`
    /// with these arguments first.
    fn shell(&self, program: &str, before: &[&str], command: &str) -> Command {
        let script = [&self.assignments.join("\n"), command].join("\n");
        let mut shell = with_cache(Command::new(program));
        let program = Path::new(HOST).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        shell
            .args(before)
            .args(["-o", "pipefail", "-c", &script])
            .current_dir(&self.dir)
            .env("PATH", format!("{}:{path}", program.display()));
        shell
    }

    /// Rewrites a line so that two runs of a command give the same one.
    fn comparable(&self, line: &str) -> String {
        static VARIABLE: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
            [
                (regex(r"^\d{4}-\d\d-\d\dT\S+Z +"), ""),
                (regex(r"\d+(\.\d+)? ?(ns|µs|ms|s|KiB|MiB)\b"), "N $2"),
                (regex(r"(_ms|memory)=\d+(\.\d+)?"), "$1=N"),
                (regex(r"(127\.0\.0\.1):\d{5}\b"), "$1:PORT"),
            ]
        });
        let mut line = line.trim_start().trim_end().to_owned();
        for (shown, free) in &self.ports {
            line = line.replace(free, shown);
        }
        for (variable, with) in &*VARIABLE {
            line = variable.replace_all(&line, *with).into_owned();
        }
        line
    }

    fn at(&self, shown: &Shown) -> String {
        format!("{}:{}: `{}`", self.document.path, shown.line, shown.command)
    }
}

/// Whether a command is the program itself, or its `record`, and so serves until it is stopped.
fn serves(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let program = words.next() == Some("wasm-inetd");
    program
        && match words.next() {
            None | Some("record") => true,
            Some(word) => word.starts_with("--") && !["--help", "--version"].contains(&word),
        }
}

/// Whether `found` is `expected`, in which `...` stands for any lines.
fn matches(expected: &[String], found: &[String]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((any, rest)) if any == "..." => (0..=found.len()).any(|at| matches(rest, &found[at..])),
        Some((line, rest)) => found.first() == Some(line) && matches(rest, &found[1..]),
    }
}

/// Finds a port that nothing uses, below those that the kernel gives to the sockets of other tests.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(process::id() % 10_000).unwrap();
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}
