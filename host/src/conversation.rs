//! Conversations: what a peer and a guest said to each other, as text that people can read and edit.
//!
//! ```text
//! # A line that begins with # says something to people.
//! > "hello\n"
//! < "hello\n"
//! > end
//! < end
//! ```
//!
//! `>` is the peer and `<` the guest. What either says stands in quotes, with the escapes of Rust's byte strings (`\n`, `\r`,
//! `\t`, `\\`, `\"`, `\'`, `\0`, `\x7f`); lines of one side that follow each other are one. `end` is FIN and `reset` a reset. The order
//! is that in which the guest took and gave: what comes behind an answer was read after it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Bytes in one line of a file.
const WIDTH: usize = 1000;

/// How the names of files with conversations end.
const EXTENSION: &str = "conversation";

/// What one side does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It says something.
    Says(Vec<u8>),
    /// It ends its half.
    Ends,
    /// It resets the connection.
    Resets,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The peer.
    Peer,
    /// The guest.
    Guest,
}

/// What was said, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Each step, with the line of the file that it begins in, if it came from one.
    pub steps: Vec<(usize, Side, Step)>,
}

impl Conversation {
    /// Adds a step; what one side says in several is one.
    pub fn add(&mut self, line: usize, side: Side, step: Step) {
        if let (Some((_, last, Step::Says(said))), Step::Says(more)) = (self.steps.last_mut(), &step)
            && *last == side
        {
            said.extend_from_slice(more);
            return;
        }
        self.steps.push((line, side, step));
    }

    /// Reads the text form.
    ///
    /// # Errors
    ///
    /// A line is none of it; the error says which.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut conversation = Self::default();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (side, rest) = match line.split_at_checked(1) {
                Some((">", rest)) => (Side::Peer, rest.trim()),
                Some(("<", rest)) => (Side::Guest, rest.trim()),
                _ => bail!("line {number}: expected `>` (peer), `<` (guest) or `#` (comment) at the start"),
            };
            let step = match rest {
                "end" => Step::Ends,
                "reset" => Step::Resets,
                quoted => Step::Says(unquote(quoted).with_context(|| {
                    format!("line {number}: expected `end`, `reset` or a quoted text after `>` or `<`")
                })?),
            };
            conversation.add(number, side, step);
        }
        Ok(conversation)
    }

    /// Reads every conversation of a directory, by name.
    ///
    /// # Errors
    ///
    /// One cannot be read, or there is none.
    pub fn read_all(dir: &Path) -> anyhow::Result<Vec<(PathBuf, Self)>> {
        let mut paths = Vec::new();
        for entry in dir
            .read_dir()
            .with_context(|| format!("cannot list the directory `{}`", dir.display()))?
        {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
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
            let text = std::fs::read_to_string(&path).map_err(anyhow::Error::from);
            let conversation = text.and_then(|text| Self::parse(&text));
            let conversation =
                conversation.with_context(|| format!("cannot read the conversation `{}`", path.display()))?;
            Ok((path, conversation))
        };
        paths.into_iter().map(read).collect()
    }

    /// The highest number of a conversation in a directory, or 0.
    ///
    /// # Errors
    ///
    /// It cannot be listed.
    pub fn last_number(dir: &Path) -> anyhow::Result<u64> {
        let mut last = 0;
        for entry in dir.read_dir()? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            last = last.max(number.unwrap_or(0));
        }
        Ok(last)
    }

    /// The name of the file for the conversation with a number.
    pub fn file_name(number: u64) -> String {
        format!("{number:08}.{EXTENSION}")
    }
}

impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, side, step) in &self.steps {
            let mark = match side {
                Side::Peer => '>',
                Side::Guest => '<',
            };
            match step {
                Step::Says(said) => {
                    for line in said.split_inclusive(|byte| *byte == b'\n') {
                        for piece in line.chunks(WIDTH) {
                            writeln!(f, "{mark} \"{}\"", piece.escape_ascii())?;
                        }
                    }
                }
                Step::Ends => writeln!(f, "{mark} end")?,
                Step::Resets => writeln!(f, "{mark} reset")?,
            }
        }
        Ok(())
    }
}

/// The bytes that stand in quotes.
fn unquote(text: &str) -> Option<Vec<u8>> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'"' => return None,
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'0' => 0,
                escaped @ (b'\\' | b'"' | b'\'') => escaped,
                b'x' => {
                    let digit = |byte: u8| char::from(byte).to_digit(16);
                    let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                    u8::try_from(high * 16 + low).ok()?
                }
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut conversation = Conversation::default();
        let everything: Vec<u8> = (0..=255).chain(b"\n\n\\\"'".iter().copied()).collect();
        conversation.add(0, Side::Peer, Step::Says(everything.repeat(20)));
        conversation.add(0, Side::Guest, Step::Says(vec![b'x'; 3 * WIDTH]));
        conversation.add(0, Side::Peer, Step::Ends);
        conversation.add(0, Side::Guest, Step::Resets);
        let mut read = Conversation::parse(&conversation.to_string()).unwrap();
        for (line, ..) in &mut read.steps {
            *line = 0;
        }
        assert_eq!(read, conversation);
    }

    #[test]
    fn lines_of_one_side_are_one() {
        let text = "# a comment\n\n> \"one\"\n> \" two\"\n<  \"three\"\n> end\n< reset\n";
        let says = |text: &str| Step::Says(text.into());
        let expected = [
            (3, Side::Peer, says("one two")),
            (5, Side::Guest, says("three")),
            (6, Side::Peer, Step::Ends),
            (7, Side::Guest, Step::Resets),
        ];
        assert_eq!(Conversation::parse(text).unwrap().steps, expected);
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for line in [
            "hello",
            "> hello",
            "> \"a\"b\"",
            "< \"\\x4\"",
            "< \"\\q\"",
            "> \"",
            "\u{e9}",
        ] {
            let error = Conversation::parse(&format!("> end\n{line}\n")).unwrap_err();
            assert!(format!("{error:#}").contains("line 2"), "{line}: {error:#}");
        }
    }
}
