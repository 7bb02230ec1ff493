//! Having a component take part in conversations that were recorded, and seeing whether it says the same.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Limits;
use crate::connection::{self, Outcome};
use crate::conversation::{Conversation, Side, Step};
use crate::half::Half;
use crate::peer::Peer;
use crate::sandbox::Generation;

/// How long a guest may take for a step.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that are under way in each direction at most.
const PIPE: usize = 64 << 10;

/// Where a guest does not do what was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The file of the conversation.
    pub file: PathBuf,
    /// The line of the step.
    pub line: usize,
    /// What was recorded.
    pub expected: String,
    /// What the guest did.
    pub found: String,
}

impl Difference {
    /// The same, for a log.
    pub fn in_one_line(&self) -> String {
        let (file, line) = (self.file.display(), self.line);
        format!("{file}:{line}: expected {}, found {}", self.expected, self.found)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            expected,
            found,
        } = self;
        write!(f, "{}:{line}\n- {expected}\n+ {found}", file.display())
    }
}

impl std::error::Error for Difference {}

/// Has an instance of `generation` take part in each of `conversations`.
///
/// # Errors
///
/// It does something else in one of them.
pub async fn replay(
    generation: &Arc<Generation>,
    limits: &Limits,
    conversations: &[(PathBuf, Conversation)],
) -> Result<(), Difference> {
    for (number, (file, conversation)) in (1..).zip(conversations) {
        let played = one(generation, limits, number, file, conversation).await;
        // No conversation, and no connection after them, finds what one has left.
        generation.renew();
        played?;
    }
    Ok(())
}

async fn one(
    generation: &Arc<Generation>,
    limits: &Limits,
    number: u64,
    file: &Path,
    conversation: &Conversation,
) -> Result<(), Difference> {
    let (near, far) = duplex(PIPE);
    let (reader, writer) = split(near);
    let peer = Peer {
        connection: number,
        remote: "127.0.0.1:1".to_owned(),
        local: "127.0.0.1:2".to_owned(),
        listener: "replay".to_owned(),
        ..Peer::default()
    };
    let over = CancellationToken::new();
    let cut = {
        let over = over.clone();
        async move {
            over.cancelled().await;
            Outcome::Drained
        }
    };
    let inbound = Half::new(reader, limits.max_bytes_in);
    let outbound = Half::new(writer, limits.max_bytes_out);
    let served = connection::serve(generation, &peer, inbound, outbound, limits, cut);
    let (reader, writer) = split(far);
    let mut player = Player {
        reader,
        writer,
        said: Vec::new(),
        ended: false,
    };
    let ending = conversation
        .steps
        .iter()
        .find_map(|(line, side, step)| match step {
            Step::Ends | Step::Resets if *side == Side::Guest => Some((*line, step.clone())),
            _ => None,
        });
    let played = async {
        let mut played = Ok(());
        for (line, side, step) in &conversation.steps {
            // Who has reset takes no part any more.
            if (*side, step) == (Side::Peer, &Step::Resets) {
                break;
            }
            played = match timeout(PATIENCE, player.play(*side, step)).await {
                Ok(played) => played,
                Err(_) => Err(format!("{}, then nothing for {PATIENCE:?}", shown(&player.said))),
            }
            .map_err(|found| (*line, expected(*side, step), found));
            if played.is_err() {
                break;
            }
        }
        drop(player);
        // The guest ends what was heard to end, and what was not is ended here.
        if played.is_err() || ending.is_none() {
            over.cancel();
        }
        played
    };
    let (report, played) = tokio::join!(served, played);
    let difference = |(line, expected, found)| Difference {
        file: file.to_owned(),
        line,
        expected,
        found,
    };
    played.map_err(difference)?;
    let reset = report.outcome == Outcome::GuestReset || report.outcome.is_the_guests_fault();
    match ending {
        Some((line, step)) if reset != (step == Step::Resets) => {
            let found = format!("outcome {}", report.outcome.as_str());
            Err(difference((line, expected(Side::Guest, &step), found)))
        }
        _ => Ok(()),
    }
}

/// The peer of a conversation.
struct Player {
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    /// What the guest has said beyond what was expected so far.
    said: Vec<u8>,
    ended: bool,
}

impl Player {
    /// Does what the peer did, or waits until the guest has done what it did; else this gives what it did.
    async fn play(&mut self, side: Side, step: &Step) -> Result<(), String> {
        match (side, step) {
            (Side::Peer, Step::Says(bytes)) => {
                self.say(bytes).await;
                Ok(())
            }
            (Side::Peer, Step::Ends) => {
                let _ = self.writer.shutdown().await;
                Ok(())
            }
            (Side::Peer, Step::Resets) => Ok(()),
            (Side::Guest, Step::Says(bytes)) => {
                while self.said.len() < bytes.len() && !self.ended {
                    self.hear().await;
                }
                let count = bytes.len().min(self.said.len());
                if self.said[..count] != bytes[..count] || count < bytes.len() {
                    let end = if self.ended && count < bytes.len() {
                        ", then end"
                    } else {
                        ""
                    };
                    return Err(format!("{}{end}", shown(&self.said)));
                }
                self.said.drain(..count);
                Ok(())
            }
            (Side::Guest, Step::Ends | Step::Resets) => {
                self.hear_all().await;
                if self.said.is_empty() {
                    Ok(())
                } else {
                    Err(shown(&self.said))
                }
            }
        }
    }

    /// Sends bytes, and takes what the guest says meanwhile. A guest that does not take them says so by its end.
    async fn say(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            tokio::select! {
                biased;
                written = self.writer.write(bytes) => match written {
                    Ok(count) => bytes = &bytes[count..],
                    Err(_) => return,
                },
                heard = self.reader.read_buf(&mut self.said), if !self.ended => {
                    self.ended |= !matches!(heard, Ok(1..));
                }
            }
        }
    }

    async fn hear(&mut self) {
        match self.reader.read_buf(&mut self.said).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => self.ended = true,
        }
    }

    async fn hear_all(&mut self) {
        while !self.ended {
            self.hear().await;
        }
    }
}

fn expected(side: Side, step: &Step) -> String {
    match (side, step) {
        (Side::Peer, _) => "the guest reads the peer's data".to_owned(),
        (Side::Guest, Step::Says(bytes)) => shown(bytes),
        (Side::Guest, Step::Ends) => "< end".to_owned(),
        (Side::Guest, Step::Resets) => "< reset".to_owned(),
    }
}

/// The beginning of what was said, as a file has it.
fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 200;
    let more = if bytes.len() > SHOWN { " ..." } else { "" };
    format!("< \"{}\"{more}", bytes[..bytes.len().min(SHOWN)].escape_ascii())
}
