//! Splits chunks of bytes, as they arrive on a connection, into lines of bounded length.
//!
//! A chunk is not a message: a line can arrive in several chunks, and a chunk can contain several
//! lines. [`Framer`] buffers at most one incomplete line.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;

/// The error for a line that is longer than the limit of its [`Framer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Assembles lines from chunks.
#[derive(Debug)]
pub struct Framer {
    max: usize,
    partial: Vec<u8>,
}

impl Framer {
    /// Creates a framer for lines of at most `max` bytes, not counting the `\n` at their end.
    pub const fn new(max: usize) -> Self {
        Self {
            max,
            partial: Vec::new(),
        }
    }

    /// Adds a chunk, and calls `line` with each line that it completes, including the `\n`.
    ///
    /// If `line` breaks, the rest of the chunk is dropped.
    ///
    /// # Errors
    ///
    /// Returns [`TooLong`] as soon as a line exceeds the limit. The lines before it have then been
    /// passed to `line`.
    pub fn feed<B>(
        &mut self,
        mut chunk: &[u8],
        mut line: impl FnMut(&[u8]) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, TooLong> {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            if self.partial.len() + end > self.max {
                return Err(TooLong);
            }
            let (head, tail) = chunk.split_at(end + 1);
            chunk = tail;
            let flow = if self.partial.is_empty() {
                line(head)
            } else {
                self.partial.extend_from_slice(head);
                let flow = line(&self.partial);
                self.partial.clear();
                flow
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        if self.partial.len() + chunk.len() > self.max {
            return Err(TooLong);
        }
        self.partial.extend_from_slice(chunk);
        Ok(ControlFlow::Continue(()))
    }

    /// Returns the bytes after the last `\n`. At the end of the input, they are a last line without
    /// `\n`.
    pub fn rest(&self) -> &[u8] {
        &self.partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines in `chunks`, the rest, and whether a line had more than `max` bytes.
    fn lines(max: usize, chunks: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<u8>, bool) {
        let mut framer = Framer::new(max);
        let mut lines = Vec::new();
        for chunk in chunks {
            let fed = framer.feed(chunk, |line| {
                lines.push(line.to_vec());
                ControlFlow::<()>::Continue(())
            });
            if fed.is_err() {
                return (lines, Vec::new(), true);
            }
        }
        (lines, framer.rest().to_vec(), false)
    }

    #[test]
    fn a_line_is_the_same_however_it_is_cut_into_chunks() {
        let text = b"one\n\ntwo\r\nthree";
        let whole = lines(16, &[text]);
        assert_eq!(whole.0, [&b"one\n"[..], b"\n", b"two\r\n"]);
        assert_eq!(whole.1, b"three");
        for size in 1..text.len() {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(lines(16, &chunks), whole, "chunks of {size}");
        }
    }

    #[test]
    fn the_bound_is_on_the_bytes_before_the_line_feed() {
        assert!(!lines(4, &[b"four\n"]).2);
        assert!(lines(4, &[b"fives\n"]).2);
        assert!(!lines(4, &[b"fo", b"ur", b"\n"]).2);
        assert!(lines(4, &[b"fi", b"ve", b"s\n"]).2);
    }

    #[test]
    fn a_line_that_never_ends_is_refused_at_the_bound() {
        assert!(!lines(4, &[b"four"]).2);
        assert!(lines(4, &[b"fives"]).2);
    }

    #[test]
    fn lines_before_an_over_long_one_are_handed_out() {
        let (before, _, refused) = lines(4, &[b"one\nfives\n"]);
        assert!(refused);
        assert_eq!(before, [b"one\n"]);
    }

    #[test]
    fn a_break_drops_what_is_left_of_the_chunk() {
        let mut framer = Framer::new(8);
        let mut seen = 0;
        let flow = framer.feed(b"a\nb\nc\n", |line| {
            seen += 1;
            if line == b"b\n" {
                ControlFlow::Break("stop")
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(flow, Ok(ControlFlow::Break("stop")));
        assert_eq!(seen, 2);
        assert_eq!(framer.rest(), b"");
    }
}
