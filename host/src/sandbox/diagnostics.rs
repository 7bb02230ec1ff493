//! What guests write to standard error: lines of the log, with the number of the connection or of the instance.

use std::io;
use std::pin::Pin;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tracing::{debug, error, info, trace, warn};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::log_share::Share;
use super::meter;
use super::state::State;
use crate::cost::{Cost, LastLines, Tail};
use crate::logging::escape::beginning;
use crate::logging::queue::of_guest;

/// Bytes of a line that are logged in one piece, with characters escaped.
const MAX_LINE: usize = 1024;

/// Bytes of [`MAX_LINE`] for the context that a guest gives to `wasi:logging`. The message has the
/// rest.
const MAX_CONTEXT: usize = 256;

/// Lines of one connection that are logged; of an instance that connections share, so many after each that has joined.
const MAX_LINES: u32 = 1000;

/// Bytes that a guest may write at once. They can be as many lines, of which each takes time.
const PERMIT: usize = 16 << 10;

/// Whose guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    /// Nobody's: nothing is logged.
    Nobody,
    /// That of the connection of this number.
    Connection(u64),
    /// That of all connections of the instance of this number.
    Instance(u64),
}

/// How many lines of a connection have been logged, whichever of its guests has written them.
#[derive(Clone, Default)]
pub(super) struct Logged {
    count: Arc<AtomicU32>,
    /// Where the lines are kept instead.
    transcript: Option<Transcript>,
    /// Keeps the last lines of standard error of an instance that connections share.
    tail: Option<Arc<SharedTail>>,
}

impl Logged {
    /// The same for an instance that connections share, whose last lines `tail` keeps.
    pub(super) fn with_tail(self, tail: &Arc<SharedTail>) -> Self {
        Self {
            tail: Some(Arc::clone(tail)),
            ..self
        }
    }

    /// Has the lines kept in `transcript`, and logged with debug messages only.
    pub(super) fn kept_in(transcript: Transcript) -> Self {
        Self {
            transcript: Some(transcript),
            ..Self::default()
        }
    }

    /// Begins to count again.
    pub(super) fn forget(&self) {
        self.count.store(0, Relaxed);
    }
}

/// The last lines of standard error of an instance that connections share.
#[derive(Default)]
pub(super) struct SharedTail {
    lines: Tail,
    /// Has the line that has not ended.
    source: OnceLock<Weak<Mutex<Lines>>>,
}

impl SharedTail {
    /// Ends the line that the guest has begun, and returns the last lines, if there are any.
    pub(super) fn text(&self) -> Option<String> {
        if let Some(lines) = self.source.get().and_then(Weak::upgrade) {
            lock(&lines).end_line();
        }
        self.lines.text()
    }
}

/// Lines that a [`Transcript`] keeps.
const KEPT: usize = 20;

/// Lines that [`in_brief`] shows.
const BRIEF: usize = 5;

/// Returns the last of a guest's `lines`, for a message that has one line.
pub(crate) fn in_brief(lines: &[String]) -> String {
    let last = LastLines::<BRIEF>::default();
    lines.iter().for_each(|line| last.add(line));
    last.lines().join(" | ")
}

/// The last lines that a guest has written to standard error, or logged.
#[derive(Clone, Debug, Default)]
pub struct Transcript(Arc<LastLines<KEPT>>);

impl Transcript {
    /// The lines, as the guest wrote them. Escape them where they are shown.
    pub fn lines(&self) -> Vec<String> {
        self.0.lines()
    }

    /// The last few lines, for a message that has one line; `None` if there are none.
    pub(super) fn in_brief(&self) -> Option<String> {
        let lines = self.lines();
        (!lines.is_empty()).then(|| in_brief(&lines))
    }

    fn add(&self, line: &str) {
        self.0.add(line);
    }
}

/// The source of lines of the log: a guest, the service it is of, and what its connection costs.
#[derive(Clone)]
pub(super) struct Voice {
    pub(super) speaker: Speaker,
    pub(super) service: Option<Arc<str>>,
    /// What the guests of the service may log.
    pub(super) share: Arc<Share>,
    pub(super) logged: Logged,
    /// Keeps the last lines of standard error.
    pub(super) cost: Option<Arc<Cost>>,
}

/// The standard error of a guest. Nothing about it waits or fails.
#[derive(Clone)]
pub(super) struct Diagnostics(Arc<Mutex<Lines>>);

struct Lines {
    voice: Voice,
    partial: Vec<u8>,
    /// Bytes that were written since others last had their turn.
    in_turn: usize,
}

impl Diagnostics {
    /// That of this one's guest.
    pub(super) fn of(voice: Voice) -> Self {
        let tail = voice.logged.tail.clone();
        let lines = Arc::new(Mutex::new(Lines {
            voice,
            partial: Vec::new(),
            in_turn: 0,
        }));
        if let Some(tail) = tail {
            // An instance has one standard error.
            let _ = tail.source.set(Arc::downgrade(&lines));
        }
        Self(lines)
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        lock(&self.0)
    }
}

fn lock(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    // Nothing can panic while it is held.
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in piece.chunks(MAX_LINE) {
                self.partial.extend_from_slice(piece);
                if piece.ends_with(b"\n") {
                    self.log();
                } else if self.partial.len() >= MAX_LINE {
                    // The rest of a character may still come.
                    let whole = self.partial.len() - incomplete(&self.partial);
                    let rest = self.partial.split_off(whole);
                    self.log();
                    self.partial = rest;
                }
            }
        }
    }

    /// Whether the guest has written so much that others are to have their turn, which then begins.
    fn turn_is_over(&mut self) -> bool {
        let over = self.in_turn >= PERMIT;
        if over {
            self.in_turn = 0;
        }
        over
    }

    /// Logs the line that has not ended, if there is one.
    fn end_line(&mut self) {
        if !self.partial.is_empty() {
            self.log();
        }
    }

    fn log(&mut self) {
        let line = std::mem::take(&mut self.partial);
        let line = String::from_utf8_lossy(line.trim_ascii_end());
        let mut rest = &*line;
        loop {
            // Escapes make it longer.
            let piece = beginning(rest, MAX_LINE);
            self.voice.says(piece);
            rest = &rest[piece.len()..];
            if rest.is_empty() {
                return;
            }
        }
    }
}

/// The number of bytes at the end of `bytes` that begin a character of UTF-8 without its end.
fn incomplete(bytes: &[u8]) -> usize {
    let is_begun = |count: &usize| {
        let tail = &bytes[bytes.len().saturating_sub(*count)..];
        str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=3).find(is_begun).unwrap_or(0)
}

/// What happens to a line of a guest.
enum Fate {
    /// It is logged, with the number of its connection or of its instance.
    Logged(Option<u64>, Option<u64>),
    /// It is only kept among the last lines.
    Kept,
    /// The guests of the service have logged as much in this second as they may.
    Dropped,
}

impl Voice {
    /// Logs a line of standard error, as far as the bounds permit.
    fn says(&self, line: &str) {
        let fate = self.one_more();
        if let Some(transcript) = &self.logged.transcript {
            transcript.add(line);
        }
        // The line of a failed connection repeats the last lines, so these are within the bounds
        // too.
        if !matches!(fate, Fate::Dropped) {
            if let (Speaker::Connection(_), Some(cost)) = (self.speaker, &self.cost) {
                cost.says(line);
            }
            if let Some(tail) = &self.logged.tail {
                tail.lines.says(line);
            }
        }
        let Fate::Logged(connection, instance) = fate else {
            return;
        };
        let service = self.service.as_deref();
        // As a field, so that control characters are escaped and no line of the host can be forged.
        of_guest(|| {
            if self.logged.transcript.is_some() {
                debug!(service, connection, instance, stderr = line, "guest output");
            } else {
                info!(service, connection, instance, stderr = line, "guest output");
            }
        });
    }

    /// Counts one more line.
    fn one_more(&self) -> Fate {
        let (connection, instance) = match self.speaker {
            Speaker::Nobody => return Fate::Kept,
            Speaker::Connection(number) => (Some(number), None),
            Speaker::Instance(number) => (None, Some(number)),
        };
        let logged = &self.logged.count;
        if logged.load(Relaxed) > MAX_LINES {
            return Fate::Kept;
        }
        // All guests of a connection are run by its one task, and an instance by its own.
        if logged.fetch_add(1, Relaxed) == MAX_LINES {
            warn!(
                service = self.service.as_deref(),
                connection,
                instance,
                "the guest wrote more than {MAX_LINES} lines; further lines are not logged"
            );
            return Fate::Kept;
        }
        if self.share.one_more() {
            Fate::Logged(connection, instance)
        } else {
            Fate::Dropped
        }
    }
}

/// How much a guest says that it matters, by `wasi:logging`.
#[derive(Clone, Copy, Debug, ComponentType, Lift)]
#[allow(dead_code, reason = "they are made of what guests pass")]
#[component(enum)]
#[repr(u8)]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

/// The names that `wasi:logging` has, which is no standard yet.
pub(super) const LOGGING: [&str; 2] = ["wasi:logging/logging", "wasi:logging/logging@0.1.0-draft"];

/// Has guests log by `wasi:logging` (<https://github.com/WebAssembly/wasi-logging>). What they say is bounded like standard error.
///
/// # Errors
///
/// The linker has it already.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    for name in LOGGING {
        linker.instance(name)?.func_wrap(
            "log",
            |mut store: StoreContextMut<'_, State>, (level, context, message): (Level, String, String)| {
                let voice = store.data_mut().voice();
                let context = beginning(&context, MAX_CONTEXT);
                let message = beginning(&message, MAX_LINE - MAX_CONTEXT);
                let level = match &voice.logged.transcript {
                    Some(transcript) => {
                        transcript.add(&format!("{level:?} {context} {message}"));
                        Level::Debug
                    }
                    None => level,
                };
                if let Fate::Logged(connection, instance) = voice.one_more() {
                    say(level, &voice, (connection, instance), context, message);
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}

fn say(
    level: Level,
    voice: &Voice,
    (connection, instance): (Option<u64>, Option<u64>),
    context: &str,
    message: &str,
) {
    let service = voice.service.as_deref();
    // As fields, so that control characters are escaped and no line of the host can be forged.
    macro_rules! say {
        ($say:ident) => {
            $say!(
                service,
                connection,
                instance,
                context,
                said = message,
                "guest log"
            )
        };
    }
    of_guest(|| match level {
        Level::Trace => say!(trace),
        Level::Debug => say!(debug),
        Level::Info => say!(info),
        Level::Warn => say!(warn),
        Level::Error | Level::Critical => say!(error),
    });
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.end_line();
    }
}

impl IsTerminal for Diagnostics {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Diagnostics {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Diagnostics {
    async fn ready(&mut self) {
        // Whoever writes much at once lets others have their turn.
        if self.lines().turn_is_over() {
            meter::yields();
            tokio::task::yield_now().await;
        }
    }
}

impl OutputStream for Diagnostics {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > PERMIT {
            return Err(StreamError::trap(
                "the guest wrote more to standard error than `check-write` permitted",
            ));
        }
        let mut lines = self.lines();
        lines.write(&bytes);
        lines.in_turn = lines.in_turn.saturating_add(bytes.len());
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        // A guest that has written as much as this waits until others have had their turn.
        Ok(PERMIT.saturating_sub(self.lines().in_turn))
    }
}

impl AsyncWrite for Diagnostics {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut lines = self.lines();
        if lines.turn_is_over() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let count = bytes.len().min(PERMIT - lines.in_turn);
        lines.write(&bytes[..count]);
        lines.in_turn += count;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that are kept of what a guest writes in these pieces.
    fn lines<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let transcript = Transcript::default();
        let diagnostics = Diagnostics::of(Voice {
            speaker: Speaker::Nobody,
            service: None,
            share: Share::of(None),
            logged: Logged::kept_in(transcript.clone()),
            cost: None,
        });
        for piece in pieces {
            diagnostics.lines().write(piece);
        }
        drop(diagnostics);
        transcript.lines()
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        for character in ["x", "é", "€", "🦀"] {
            for before in ["", "x", "xx", "xxx"] {
                let line = before.to_owned() + &character.repeat(2 * MAX_LINE);
                for size in [1, 7, MAX_LINE, 5000, line.len()] {
                    let found = lines(line.as_bytes().chunks(size));
                    assert_eq!(found.concat(), line, "{size}");
                    assert!(found.iter().all(|piece| piece.len() <= MAX_LINE));
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_no_characters_stay_in_their_place() {
        let line = [&b"a\xffb\xe2\x82"[..], &b"\xf0\x9f".repeat(MAX_LINE), b"\n"].concat();
        let expected = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        for size in [1, 7, line.len()] {
            assert_eq!(lines(line.chunks(size)).concat(), expected, "{size}");
        }
        assert_eq!(lines([&b"\xe2\x82"[..]]), ["\u{fffd}"]);
    }
}
