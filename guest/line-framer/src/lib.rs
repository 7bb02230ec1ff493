//! Cuts chunks of bytes, as they come from a connection, into lines.
//!
//! A chunk is not a message: a line may come in many chunks, and a chunk may hold many lines. [`Framer`] keeps
//! no more than one unfinished line of bounded length.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;

/// A line was longer than the bound of its [`Framer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Gathers lines out of chunks.
#[derive(Debug)]
pub struct Framer {
    max: usize,
    partial: Vec<u8>,
}

impl Framer {
    /// A framer for lines of at most `max` bytes, not counting the `\n` at their end.
    pub const fn new(max: usize) -> Self {
        Self {
            max,
            partial: Vec::new(),
        }
    }

    /// Adds a chunk and calls `line` with each line that it completes, `\n` included, until there is none left
    /// or `line` breaks; what is left of the chunk is then dropped.
    ///
    /// # Errors
    ///
    /// [`TooLong`] as soon as a line is known to be, after the lines before it were handed out.
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

    /// The bytes after the last `\n`: at the end of the input, a last line without one.
    pub fn rest(&self) -> &[u8] {
        &self.partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that a framer of bound `max` makes of `chunks`, and whether it refused a line.
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
