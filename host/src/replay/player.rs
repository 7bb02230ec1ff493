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
use bytesize::ByteSize;
use tokio::io::{AsyncRead, AsyncReadExt as _, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::clock::{Late, Time};
use super::difference;
use crate::buffer;
use crate::conversation::{Client, Conversation, Guest, Step};
use crate::record;

/// Bytes of the guest that wait for the client at most.
const PIPE: usize = 64 << 10;

/// How long a guest may take for what no step waits for: for bytes behind the last step, and for
/// its end after a reset by the client.
pub(super) const SETTLE: Duration = Duration::from_millis(100);

/// A step that the guest does not take.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// The step.
    pub(super) expected: String,
    /// What the guest does instead, in lines such as a conversation has them. If its half has
    /// ended, the outcome of the connection tells how.
    pub(super) found: Vec<String>,
}

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
    /// Bytes of the guest that can wait: more than all texts of the guest have.
    most: usize,
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
            most: record::MAX,
            ended: false,
            patience,
            time,
        };
        (player, chunks, near)
    }

    /// Makes room for all that the guest sends in a conversation, beside what it may send too much.
    pub(super) fn make_room_for(&mut self, conversation: &Conversation) {
        self.most = self.most.saturating_add(bytes_of_guest(conversation));
    }

    /// Whether the guest's half has ended, or the connection.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes a step of the client, or waits for one of the guest.
    ///
    /// # Errors
    ///
    /// The guest does something else.
    pub(super) async fn play(&mut self, step: &Step) -> Result<(), Mismatch> {
        match step {
            Step::Client(Client::Sends(bytes)) => {
                let time = self.time.clone();
                let sent = time.within(self.patience, self.send(bytes)).await;
                match sent {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(Mismatch {
                        expected: difference::expected(step, 0),
                        found: vec![difference::sends(&self.heard, 0), too_much()],
                    }),
                    Err(_) => Err(self.mismatch(step, Some("nothing is read"))),
                }
            }
            // Each step that sends bytes sends chunks of its own.
            Step::Client(Client::Break) | Step::Cut => Ok(()),
            Step::Client(Client::Pause(time)) => {
                let paused = self.pause(*time).await;
                paused.map_err(|_| Mismatch {
                    expected: format!("the guest waits during {step}"),
                    found: vec![format!(
                        "it works or writes for {} without waiting",
                        humantime::format_duration(self.patience)
                    )],
                })
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
                // The client hears nothing more, however much has come before.
                self.heard.clear();
                Ok(())
            }
            Step::Guest(Guest::Sends(bytes)) => {
                let time = self.time.clone();
                let heard = time.within(self.patience, self.expect(bytes)).await;
                match heard {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(self.mismatch(step, None)),
                    Err(_) => Err(self.mismatch(step, Some("nothing more"))),
                }
            }
            Step::Guest(Guest::End | Guest::Reset | Guest::Fails(_) | Guest::Exits(_)) => {
                let time = self.time.clone();
                let heard = time.within(self.patience, self.expect_end()).await;
                match heard {
                    Ok(()) if self.heard.is_empty() => Ok(()),
                    Ok(()) => Err(self.mismatch(step, None)),
                    Err(_) => Err(self.mismatch(step, Some("nothing more"))),
                }
            }
        }
    }

    /// Waits until the guest has ended, or has been silent for a short time. It may send nothing
    /// more.
    ///
    /// # Errors
    ///
    /// The guest sends more. Returns its text.
    pub(super) async fn settle(&mut self) -> Result<(), String> {
        while self.heard.is_empty() && !self.ended {
            let time = self.time.clone();
            if time.within(SETTLE, self.hear()).await.is_err() {
                return Ok(());
            }
        }
        if self.heard.is_empty() {
            Ok(())
        } else {
            Err(difference::sends(&self.heard, 0))
        }
    }

    /// Discards what the guest sends, until it ends, or is silent for a short time. It has as long
    /// as for a step. A guest that fails behind a difference has its failure shown.
    pub(super) async fn hear_out(&mut self) {
        let (time, patience) = (self.time.clone(), self.patience);
        let hearing = async {
            while !self.ended && self.output.is_some() {
                self.heard.clear();
                if time.within(SETTLE, self.hear()).await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout(patience, hearing).await;
    }

    /// What the guest has done instead of `step`, and what has not happened for as long as the
    /// player waits.
    fn mismatch(&self, step: &Step, missing: Option<&str>) -> Mismatch {
        let same = match step {
            Step::Guest(Guest::Sends(bytes)) => difference::first(bytes, &self.heard),
            _ => 0,
        };
        let mut found = Vec::new();
        if !self.heard.is_empty() {
            found.push(difference::sends(&self.heard, same));
        }
        if let Some(what) = missing {
            found.push(format!(
                "{what} for {}",
                humantime::format_duration(self.patience)
            ));
        }
        Mismatch {
            expected: difference::expected(step, same),
            found,
        }
    }

    /// Sends bytes, and hears what the guest sends meanwhile. A guest that has stopped reading lets
    /// it return early. Returns false if the guest sends more meanwhile than it ever may.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let Some(input) = self.input.clone() else {
            return true;
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
                        Err(_) => return true,
                    },
                    () = self.hear(), if self.hears() => {
                        // From here on it would wait for the client, and read nothing.
                        if !self.ended && !self.hears() {
                            return false;
                        }
                    }
                }
            }
        }
        true
    }

    /// Does nothing for a time, but hears what the guest sends.
    ///
    /// # Errors
    ///
    /// The guest works for so long that the clock cannot show it the whole pause.
    async fn pause(&mut self, time: Duration) -> Result<(), Late> {
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
        match clock.within(time, hearing).await {
            Err(Late::Busy) => Err(Late::Busy),
            Ok(()) | Err(Late::Silent) => Ok(()),
        }
    }

    /// Waits until the guest has sent `bytes`, and takes them; gives `false` as soon as it has sent
    /// others or ended.
    async fn expect(&mut self, bytes: &[u8]) -> bool {
        let mut same = 0;
        loop {
            let count = bytes.len().min(self.heard.len());
            if self.heard[same..count] != bytes[same..count] {
                return false;
            }
            same = count;
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
        !self.ended && self.heard.len() < self.most
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

/// Returns how many bytes the guest sends in a conversation.
fn bytes_of_guest(conversation: &Conversation) -> usize {
    let steps = conversation.steps.iter();
    let lengths = steps.filter_map(|(_, step)| match step {
        Step::Guest(Guest::Sends(bytes)) => Some(bytes.len()),
        _ => None,
    });
    lengths.sum()
}

/// Says that a guest sends too much while the client still sends.
fn too_much() -> String {
    let more = ByteSize::b(record::MAX as u64).display().iec();
    format!("it sends {more} more than the conversation has before it reads the whole text")
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
                None => {
                    if !mem::replace(&mut self.ended, true) {
                        self.time.takes();
                    }
                    // As on a socket, the bytes before a reset come first.
                    if self.reset.load(Ordering::Acquire) {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                    }
                }
            }
        }
        let count = self.chunk.len().min(buffer.remaining());
        buffer.put_slice(&self.chunk[..count]);
        self.chunk.advance(count);
        Poll::Ready(Ok(()))
    }
}
