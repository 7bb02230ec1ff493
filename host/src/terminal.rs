//! What is shown where somebody looks at the host on a terminal, beside its log: a table at the start, and a line that tells how it
//! goes, below all others.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::config::{Isolation, Service as Config};
use crate::counts::Count;
use crate::logging::escape::in_one_line;
use crate::logging::queue::Queue;
use crate::service::{Process, Service};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// What the log's thread takes for a line to stand below all others, and not for one of the log: no line of that begins so.
const BELOW: u8 = 0;

/// Returns to the beginning of the line and clears it (ECMA-48, `EL`).
const CLEAR: &[u8] = b"\r\x1b[K";

/// Standard error, on which one line stands below all others.
#[derive(Debug)]
pub(crate) struct Screen<W> {
    out: W,
    below: Vec<u8>,
}

impl<W: Write> Screen<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            below: Vec::new(),
        }
    }
}

impl<W: Write> Write for Screen<W> {
    /// Takes a whole line, as the log writes them.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.below.is_empty() {
            self.out.write_all(CLEAR)?;
        }
        match line.split_first() {
            Some((&BELOW, below)) => below.clone_into(&mut self.below),
            _ => self.out.write_all(line)?,
        }
        self.out.write_all(&self.below)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A terminal, as the host shows itself there.
#[derive(Clone, Debug)]
pub struct Terminal(Queue);

impl Terminal {
    pub(crate) fn new(log: Queue) -> Self {
        Self(log)
    }

    /// Shows what is served.
    pub(crate) fn show_services(&mut self, services: &[Arc<Service>]) {
        // What cannot be shown is of no account.
        let _ = self.0.write_all(table(services).as_bytes());
    }

    /// Shows how it goes, for as long as it is polled.
    pub(crate) async fn watch(mut self, process: Arc<Process>) -> ! {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = (Seen::of(&process), looks.tick().await);
        loop {
            let now = looks.tick().await;
            let seen = Seen::of(&process);
            let _ = self.below(&seen.line(&last.0, now - last.1));
            last = (seen, now);
        }
    }

    /// Shows nothing below the others any more.
    pub(crate) fn clear(&mut self) {
        let _ = self.below("");
    }

    fn below(&mut self, line: &str) -> io::Result<()> {
        let mut bytes = vec![BELOW];
        bytes.extend_from_slice(line.as_bytes());
        self.0.write_all(&bytes)
    }
}

/// The status line of a command that may take long. It is cleared when this is dropped.
#[derive(Debug)]
pub struct Progress(Arc<Mutex<Option<Doing>>>);

/// What a command is doing.
#[derive(Debug)]
struct Doing {
    terminal: Terminal,
    what: Cow<'static, str>,
    since: Instant,
}

impl Progress {
    /// Shows on `terminal`, if there is one, what the command does. A command that takes less than
    /// a second shows nothing.
    pub fn start(terminal: Option<Terminal>) -> Self {
        let doing = terminal.map(|terminal| Doing {
            terminal,
            what: Cow::Borrowed(""),
            since: Instant::now(),
        });
        let shows = doing.is_some();
        let progress = Self(Arc::new(Mutex::new(doing)));
        if shows {
            let doing = Arc::clone(&progress.0);
            // The task of the command may be compiling, and not be back for minutes.
            tokio::spawn(async move {
                loop {
                    sleep(LOOK).await;
                    match &mut *locked(&doing) {
                        Some(doing) => doing.show(),
                        None => return,
                    }
                }
            });
        }
        progress
    }

    /// Says what the command does from now on.
    pub fn set(&self, what: impl Into<Cow<'static, str>>) {
        if let Some(doing) = &mut *locked(&self.0) {
            doing.what = what.into();
            doing.since = Instant::now();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(mut doing) = locked(&self.0).take() {
            doing.terminal.clear();
        }
    }
}

impl Doing {
    fn show(&mut self) {
        let line = format!("{}, {} s", self.what, self.since.elapsed().as_secs());
        // What cannot be shown is of no account.
        let _ = self.terminal.below(&line);
    }
}

fn locked(doing: &Mutex<Option<Doing>>) -> MutexGuard<'_, Option<Doing>> {
    // Nothing can panic while it is held.
    doing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is told of all services together.
struct Seen {
    open: u64,
    accepted: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Seen {
    fn of(process: &Process) -> Self {
        let services = process.services.load();
        let sum = |of: fn(&Service) -> &Count| services.iter().map(|service| of(service).get()).sum::<u64>();
        let ended = || {
            (
                sum(|service| &service.counts().bytes_in),
                sum(|service| &service.counts().bytes_out),
            )
        };
        let (open, (mut bytes_in, mut bytes_out)) = process.open(ended);
        for one in &open {
            let (came, went, _) = one.traffic();
            bytes_in += came;
            bytes_out += went;
        }
        Self {
            open: open.len() as u64,
            accepted: sum(|service| &service.counts().accepted),
            bytes_in,
            bytes_out,
        }
    }

    /// How it goes, since it was as `before` so long ago.
    fn line(&self, before: &Self, time: Duration) -> String {
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / time.as_secs_f64();
        let bytes = |now, before| ByteSize::b(rate(now, before) as u64).display().iec();
        format!(
            "{} open, {:.0} new/s, {}/s in, {}/s out",
            self.open,
            rate(self.accepted, before.accepted),
            bytes(self.bytes_in, before.bytes_in),
            bytes(self.bytes_out, before.bytes_out),
        )
    }
}

/// What is served, in a table.
fn table(services: &[Arc<Service>]) -> String {
    let mut rows = vec![["service", "listens on", "component", "contract", "limits"].map(str::to_owned)];
    rows.extend(services.iter().map(|service| {
        [
            service.config.name.clone(),
            service.listeners.load().join(" "),
            match &service.config.component {
                Some(file) => file.display().to_string(),
                None => "embedded echo".to_owned(),
            },
            service
                .generations
                .current()
                .generation
                .contract()
                .as_str()
                .to_owned(),
            limits(&service.config),
        ]
    }));
    let widths: [usize; 5] = std::array::from_fn(|column| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    });
    let mut table = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let cells: Vec<_> = cells.collect();
        // Names may be in it, and terminals obey what they are sent.
        let line = cells.join("  ");
        let _ = writeln!(table, "  {}", in_one_line(line.trim_end()));
    }
    table
}

/// The limits that tell most of a service.
fn limits(config: &Config) -> String {
    let limits = &config.limits;
    let memory = ByteSize::b(limits.max_memory as u64).display().iec();
    let idle = limits.idle_timeout.map_or_else(
        || "no idle timeout".to_owned(),
        |time| format!("idle timeout {}", humantime::format_duration(time)),
    );
    let each = match config.isolation {
        Isolation::Connection => "per connection",
        Isolation::Service { .. } => "per shared instance",
    };
    let max = limits.max_connections;
    let noun = if max.get() == 1 {
        "connection"
    } else {
        "connections"
    };
    format!("{max} {noun}, {memory} {each}, {idle}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_stays_below_the_others() {
        let mut screen = Screen::new(Vec::new());
        for line in [
            &b"one\n"[..],
            b"\0how it goes",
            b"two\n",
            b"\0better",
            b"\0",
            b"three\n",
        ] {
            screen.write_all(line).unwrap();
        }
        let clear = "\r\x1b[K";
        let expected = format!("one\nhow it goes{clear}two\nhow it goes{clear}better{clear}three\n");
        assert_eq!(String::from_utf8(screen.out).unwrap(), expected);
    }

    #[test]
    fn rates_are_those_of_the_time_between() {
        let before = Seen {
            open: 1,
            accepted: 10,
            bytes_in: 0,
            bytes_out: 1 << 20,
        };
        let now = Seen {
            open: 3,
            accepted: 30,
            bytes_in: 4096,
            bytes_out: 3 << 20,
        };
        let line = now.line(&before, Duration::from_secs(2));
        assert_eq!(line, "3 open, 10 new/s, 2.0 KiB/s in, 1.0 MiB/s out");
    }
}
