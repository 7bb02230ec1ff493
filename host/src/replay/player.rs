//! The client of a replayed conversation.

use std::future::pending;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc;

use super::clock::Time;
use super::difference;
use crate::buffer;
use crate::conversation::{Client, Guest, Step};
use crate::record;

/// Bytes of the guest that wait for the client at most.
const PIPE: usize = 64 << 10;

/// How long a guest may take for what no step waits for: for bytes behind the last step, and for
/// its end after a reset by the client.
pub(super) const SETTLE: Duration = Duration::from_millis(100);

/// What a guest does instead of what a step has, in lines such as a conversation has them. If its
/// half has ended, the outcome of the connection tells how.
type Found = Vec<String>;

/// Sends what the client sends, and compares what the guest sends.
pub(super) struct Player {
    /// `None` once the client's half has ended.
    input: Option<mpsc::Sender<Bytes>>,
    /// Tells the guest's end that the client has reset the connection.
    reset: Arc<AtomicBool>,
    /// `None` once the client has reset the connection.
    output: Option<DuplexStream>,
    /// Bytes that the guest has sent and no step has had yet.
    heard: Vec<u8>,
    /// The guest's half has ended.
    ended: bool,
    /// How long the guest may take for a step.
    patience: Duration,
    time: Time,
}

impl Player {
    /// A client, with the reader and the writer of the guest's end of the connection.
    pub(super) fn new(patience: Duration, time: Time) -> (Self, Chunks, DuplexStream) {
        let (input, receiver) = mpsc::channel(1);
        let (near, far) = duplex(PIPE);
        let reset = Arc::new(AtomicBool::new(false));
        let chunks = Chunks {
            receiver,
            reset: Arc::clone(&reset),
            chunk: Bytes::new(),
            ended: false,
            time: time.clone(),
        };
        let player = Self {
            input: Some(input),
            reset,
            output: Some(far),
            heard: Vec::new(),
            ended: false,
            patience,
            time,
        };
        (player, chunks, near)
    }

    /// Whether the guest's half has ended, or the connection.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes a step of the client, or waits for one of the guest.
    pub(super) async fn play(&mut self, step: &Step) -> Result<(), Found> {
        match step {
            Step::Client(Client::Sends(bytes)) => {
                let time = self.time.clone();
                let sent = time.within(self.patience, self.send(bytes)).await;
                sent.ok_or_else(|| self.mismatch(Some("nothing is read")))
            }
            // Each step that sends bytes sends chunks of its own.
            Step::Client(Client::Break) | Step::Cut => Ok(()),
            Step::Client(Client::Pause(time)) => {
                self.pause(*time).await;
                Ok(())
            }
            Step::Client(Client::End) => {
                self.time.sends();
                self.input = None;
                Ok(())
            }
            Step::Client(Client::Reset) => {
                // After its end, the guest reads nothing more and takes no reset.
                if self.input.is_some() {
                    self.time.sends();
                }
                self.reset.store(true, Ordering::Release);
                self.input = None;
                self.output = None;
                Ok(())
            }
            Step::Guest(Guest::Sends(bytes)) => {
                let time = self.time.clone();
                let heard = time.within(self.patience, self.expect(bytes)).await;
                match heard {
                    Some(true) => Ok(()),
                    Some(false) => Err(self.mismatch(None)),
                    None => Err(self.mismatch(Some("nothing more"))),
                }
            }
            Step::Guest(Guest::End | Guest::Reset | Guest::Fails(_)) => {
                let time = self.time.clone();
                let heard = time.within(self.patience, self.expect_end()).await;
                match heard {
                    Some(()) if self.heard.is_empty() => Ok(()),
                    Some(()) => Err(self.mismatch(None)),
                    None => Err(self.mismatch(Some("nothing more"))),
                }
            }
        }
    }

    /// Waits until the guest has ended, or has been silent for a short time. It may send nothing
    /// more.
    pub(super) async fn settle(&mut self) -> Result<(), Found> {
        while self.heard.is_empty() && !self.ended {
            let time = self.time.clone();
            if time.within(SETTLE, self.hear()).await.is_none() {
                return Ok(());
            }
        }
        if self.heard.is_empty() {
            Ok(())
        } else {
            Err(self.mismatch(None))
        }
    }

    /// What the guest has done instead of a step, and what has not happened for as long as the
    /// player waits.
    fn mismatch(&self, missing: Option<&str>) -> Found {
        let mut found = Vec::new();
        if !self.heard.is_empty() {
            found.push(difference::sends(&self.heard));
        }
        if let Some(what) = missing {
            found.push(format!(
                "{what} for {}",
                humantime::format_duration(self.patience)
            ));
        }
        found
    }

    /// Sends bytes, and hears what the guest sends meanwhile. A guest that has stopped reading lets
    /// it return early.
    async fn send(&mut self, bytes: &[u8]) {
        let Some(input) = self.input.clone() else {
            return;
        };
        for chunk in bytes.chunks(buffer::SIZE) {
            loop {
                tokio::select! {
                    biased;
                    room = input.reserve() => match room {
                        Ok(room) => {
                            self.time.sends();
                            room.send(Bytes::copy_from_slice(chunk));
                            break;
                        }
                        Err(_) => return,
                    },
                    () = self.hear(), if self.hears() => {}
                }
            }
        }
    }

    async fn pause(&mut self, time: Duration) {
        let clock = self.time.clone();
        let hearing = async {
            while self.hears() {
                self.hear().await;
            }
            // A guest that has ended waits for nothing, so no clock would show the end of the pause.
            if !self.ended || clock.is_real() {
                pending::<()>().await;
            }
        };
        clock.within(time, hearing).await;
    }

    /// Waits until the guest has sent `bytes`, and takes them; gives `false` as soon as it has sent
    /// others or ended.
    async fn expect(&mut self, bytes: &[u8]) -> bool {
        loop {
            let count = bytes.len().min(self.heard.len());
            if self.heard[..count] != bytes[..count] {
                return false;
            }
            if count == bytes.len() {
                self.heard.drain(..count);
                return true;
            }
            if self.ended {
                return false;
            }
            self.hear().await;
        }
    }

    /// Waits until the guest's half ends, or it sends more. After a reset by the client there is
    /// nothing more to hear.
    async fn expect_end(&mut self) {
        while self.heard.is_empty() && !self.ended && self.output.is_some() {
            self.hear().await;
        }
    }

    /// Whether the guest may send something that no step waits for yet. It may not send without
    /// end.
    fn hears(&self) -> bool {
        !self.ended && self.heard.len() < record::MAX
    }

    /// Waits for more bytes of the guest, or for its end.
    async fn hear(&mut self) {
        match &mut self.output {
            Some(output) => {
                if !matches!(output.read_buf(&mut self.heard).await, Ok(1..)) {
                    self.ended = true;
                }
            }
            None => pending().await,
        }
    }
}

/// What the client sends, as the guest reads it: a read returns bytes of one chunk at most.
pub(super) struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    reset: Arc<AtomicBool>,
    chunk: Bytes,
    /// The guest has seen the end.
    ended: bool,
    time: Time,
}

impl AsyncRead for Chunks {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.chunk.is_empty() {
            match ready!(self.receiver.poll_recv(cx)) {
                Some(chunk) => {
                    self.time.takes();
                    self.chunk = chunk;
                }
                None if !mem::replace(&mut self.ended, true) => self.time.takes(),
                None => {}
            }
        }
        // A reset discards what waits before it.
        if self.reset.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let count = self.chunk.len().min(buffer.remaining());
        buffer.put_slice(&self.chunk[..count]);
        self.chunk.advance(count);
        Poll::Ready(Ok(()))
    }
}
