//! What guests write to standard error: lines of the log, with the number of the connection or of the instance.

use std::io;
use std::pin::Pin;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tracing::{info, warn};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Bytes of a line that are logged in one piece.
const MAX_LINE: usize = 1024;

/// Lines of one connection that are logged; of an instance that connections share, so many after each that has joined.
const MAX_LINES: u32 = 1000;

/// Bytes that a guest may write at once.
const PERMIT: usize = 64 << 10;

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
pub(super) struct Logged(Arc<AtomicU32>);

impl Logged {
    /// Begins to count again.
    pub(super) fn forget(&self) {
        self.0.store(0, Relaxed);
    }
}

/// The standard error of a guest. Nothing about it waits or fails.
#[derive(Clone)]
pub(super) struct Diagnostics(Arc<Mutex<Lines>>);

struct Lines {
    speaker: Speaker,
    partial: Vec<u8>,
    logged: Logged,
}

impl Diagnostics {
    /// That of this one's guest.
    pub(super) fn of(speaker: Speaker, logged: Logged) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            speaker,
            partial: Vec::new(),
            logged,
        })))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing can panic while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in piece.chunks(MAX_LINE) {
                self.partial.extend_from_slice(piece);
                if piece.ends_with(b"\n") || self.partial.len() >= MAX_LINE {
                    self.log();
                }
            }
        }
    }

    fn log(&mut self) {
        let line = std::mem::take(&mut self.partial);
        let (connection, instance) = match self.speaker {
            Speaker::Nobody => return,
            Speaker::Connection(number) => (Some(number), None),
            Speaker::Instance(number) => (None, Some(number)),
        };
        let Logged(logged) = &self.logged;
        if logged.load(Relaxed) > MAX_LINES {
            return;
        }
        // All guests of a connection are run by its one task, and an instance by its own.
        if logged.fetch_add(1, Relaxed) == MAX_LINES {
            warn!(
                connection,
                instance,
                "the guest writes more than {MAX_LINES} lines to standard error: no more are logged"
            );
            return;
        }
        // As a field, so that control characters are escaped and no line of the host can be forged.
        let line = String::from_utf8_lossy(line.trim_ascii_end());
        info!(connection, instance, stderr = &*line, "the guest says");
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.partial.is_empty() {
            self.log();
        }
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
    async fn ready(&mut self) {}
}

impl OutputStream for Diagnostics {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.lines().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

impl AsyncWrite for Diagnostics {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.lines().write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
