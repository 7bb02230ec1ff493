//! Conversations: the bytes that a client and a guest send to each other, as text that people can
//! read and edit.
//!
//! `docs/conversations.md` describes the text form.

mod parse;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytesize::ByteSize;

pub use parse::{ParseError, Problem};

/// Bytes in one line of a file.
const WIDTH: usize = 1000;

/// How the names of files with conversations end.
const EXTENSION: &str = "conversation";

/// Bytes of all files with conversations in one directory. The host reads all of them into memory.
const MAX_SIZE: u64 = 256 << 20;

/// Units of a pause, with their milliseconds.
const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// The longest [`Client::Pause`].
pub const MAX_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// Numbers of files above this one are ignored, so that numbering never runs out.
const MAX_NUMBER: u64 = u64::MAX / 2;

/// One step of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The client does something.
    Client(Client),
    /// The guest does something.
    Guest(Guest),
    /// The host ends the connection here. The guest may have had more to say.
    Cut,
}

/// What a client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// It sends bytes.
    Sends(Vec<u8>),
    /// The bytes that it sends next arrive in a separate read.
    Break,
    /// It does nothing for a time.
    Pause(Duration),
    /// It ends its half (FIN).
    End,
    /// It resets the connection.
    Reset,
}

/// What a guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// It sends bytes.
    Sends(Vec<u8>),
    /// It ends its half (FIN).
    End,
    /// It resets the connection.
    Reset,
    /// It fails, or passes a limit, which resets the connection.
    Fails(Failure),
    /// A program ends the connection with an exit status other than 0.
    Exits(NonZero<i32>),
}

/// Ways in which a connection ends through a fault of its guest, in the words of the host's
/// outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The guest traps, or panics.
    Trap,
    /// The guest takes more time than `max-call-time` or `max-cpu-time`.
    CpuLimit,
    /// More bytes come or go than `max-bytes-in` or `max-bytes-out`.
    ByteLimit,
    /// No instance can be made.
    StartFailed,
    /// A resource that is granted is not available.
    GrantFailed,
}

impl Failure {
    /// Every failure.
    pub const ALL: [Self; 5] = [
        Self::Trap,
        Self::CpuLimit,
        Self::ByteLimit,
        Self::StartFailed,
        Self::GrantFailed,
    ];

    /// The word for it in a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::CpuLimit => "cpu-limit",
            Self::ByteLimit => "byte-limit",
            Self::StartFailed => "start-failed",
            Self::GrantFailed => "grant-failed",
        }
    }
}

impl Step {
    /// Appends the bytes of `later` if the same side sends both. Returns whether it did.
    fn join(&mut self, later: &Self) -> bool {
        match (self, later) {
            (Self::Client(Client::Sends(sent)), Self::Client(Client::Sends(more)))
            | (Self::Guest(Guest::Sends(sent)), Self::Guest(Guest::Sends(more))) => {
                sent.extend_from_slice(more);
                true
            }
            _ => false,
        }
    }
}

/// The steps of one connection, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Each step, with the number of the line in which it begins if it was read from a file.
    pub steps: Vec<(usize, Step)>,
}

impl Conversation {
    /// Returns whether [`add`](Self::add) appends the bytes of a step to the last one.
    pub(crate) fn joins(&self, step: &Step) -> bool {
        matches!(
            (self.steps.last(), step),
            (
                Some((_, Step::Client(Client::Sends(_)))),
                Step::Client(Client::Sends(_))
            ) | (
                Some((_, Step::Guest(Guest::Sends(_)))),
                Step::Guest(Guest::Sends(_))
            )
        )
    }

    /// Adds a step. Bytes of one side that follow each other become one step.
    pub fn add(&mut self, line: usize, step: Step) {
        if let Some((_, last)) = self.steps.last_mut() {
            if last.join(&step) {
                return;
            }
            // It grows no more.
            if let Step::Client(Client::Sends(bytes)) | Step::Guest(Guest::Sends(bytes)) = last {
                bytes.shrink_to_fit();
            }
        }
        self.steps.push((line, step));
    }

    /// Keeps the steps for which `keeps` returns true, which may change them. Bytes of one side
    /// that follow each other then become one step.
    pub fn retain(&mut self, mut keeps: impl FnMut(&mut Step) -> bool) {
        self.steps.retain_mut(|(_, step)| keeps(step));
        self.steps
            .dedup_by(|(_, later), (_, earlier)| earlier.join(later));
    }

    /// Reads every conversation in a directory, sorted by file name.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is not valid, the directory has no conversations, or its
    /// conversations take more than 256 MiB together.
    pub fn read_all(dir: &Path) -> anyhow::Result<Vec<(PathBuf, Self)>> {
        let mut left = MAX_SIZE;
        let mut paths = Vec::new();
        for entry in dir
            .read_dir()
            .with_context(|| format!("cannot list the directory `{}`", dir.display()))?
        {
            let path = entry?.path();
            if is_conversation(&path) {
                // A file that cannot be looked at is named when it is read.
                let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                left = left.checked_sub(size).with_context(|| {
                    format!(
                        "the conversations in `{}` take more than {} together; remove some of them",
                        dir.display(),
                        ByteSize(MAX_SIZE)
                    )
                })?;
                paths.push(path);
            }
        }
        paths.sort();
        if paths.is_empty() {
            bail!(
                "no conversations in `{}`: expected files `*.{EXTENSION}`, such as those that \
                 `wasm-inetd record` writes",
                dir.display()
            );
        }
        let read = |path: PathBuf| {
            let conversation = Self::read(&path)
                .with_context(|| format!("cannot read the conversation `{}`", path.display()))?;
            Ok((path, conversation))
        };
        paths.into_iter().map(read).collect()
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        // Opening a pipe would wait for somebody to write to it.
        if !fs::metadata(path)?.is_file() {
            bail!("expected a regular file");
        }
        let mut text = String::new();
        // The file can have grown since its size was added up.
        File::open(path)?.take(MAX_SIZE).read_to_string(&mut text)?;
        // Editors begin a file with a byte-order mark.
        Ok(Self::parse(text.strip_prefix('\u{feff}').unwrap_or(&text))?)
    }

    /// The highest number that names a conversation in a directory, or 0. Names whose number is too
    /// high to be followed by others are ignored.
    ///
    /// # Errors
    ///
    /// The directory cannot be listed.
    pub fn last_number(dir: &Path) -> io::Result<u64> {
        let mut last = 0;
        for entry in dir.read_dir()? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| number(stem.to_str()?));
            if let Some(number) = number.filter(|number| *number <= MAX_NUMBER && is_conversation(&path)) {
                last = last.max(number);
            }
        }
        Ok(last)
    }

    /// The name of the file for the conversation with a number.
    pub fn file_name(number: u64) -> String {
        format!("{number:08}.{EXTENSION}")
    }
}

/// Parses a whole number. The standard library takes a sign too.
fn number(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn is_conversation(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|(_, step)| writeln!(f, "{step}"))
    }
}

/// Writes a step as a file has it, in one line or more, without the last line feed.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(Client::Sends(bytes)) => quote(f, '>', bytes),
            Self::Client(Client::Break) => f.write_str("> break"),
            Self::Client(Client::Pause(time)) => {
                let fits = |(_, millis): &(&str, u64)| time.as_millis().is_multiple_of(u128::from(*millis));
                let (unit, millis) = UNITS.into_iter().rfind(fits).unwrap_or(UNITS[0]);
                write!(f, "> pause {}{unit}", time.as_millis() / u128::from(millis))
            }
            Self::Client(Client::End) => f.write_str("> end"),
            Self::Client(Client::Reset) => f.write_str("> reset"),
            Self::Guest(Guest::Sends(bytes)) => quote(f, '<', bytes),
            Self::Guest(Guest::End) => f.write_str("< end"),
            Self::Guest(Guest::Reset) => f.write_str("< reset"),
            Self::Guest(Guest::Fails(failure)) => write!(f, "< {}", failure.as_str()),
            Self::Guest(Guest::Exits(status)) => write!(f, "< exit {status}"),
            Self::Cut => f.write_str("cut"),
        }
    }
}

fn quote(f: &mut fmt::Formatter<'_>, mark: char, bytes: &[u8]) -> fmt::Result {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let mut pieces = lines.flat_map(|line| line.chunks(WIDTH));
    write!(
        f,
        "{mark} \"{}\"",
        pieces.next().unwrap_or_default().escape_ascii()
    )?;
    pieces.try_for_each(|piece| write!(f, "\n{mark} \"{}\"", piece.escape_ascii()))
}

#[cfg(test)]
mod tests;
