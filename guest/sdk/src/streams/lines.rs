//! Lines of bounded length.

use super::{CHUNK, ErrorCode, Inbound};

/// Reads the inbound half line by line. It buffers at most one line and one chunk.
pub struct Lines {
    inbound: Inbound,
    max: usize,
    buffer: Vec<u8>,
    /// The start of the next line in `buffer`.
    start: usize,
    /// The end of the part of `buffer` that contains no `\n` after `start`.
    searched: usize,
}

impl Lines {
    pub(super) fn new(inbound: Inbound, max: usize) -> Self {
        Self {
            inbound,
            max,
            buffer: Vec::with_capacity(CHUNK),
            start: 0,
            searched: 0,
        }
    }

    /// Returns the next line, including the `\n` at its end, or `None` after the peer's FIN.
    ///
    /// The last line may have no `\n`.
    ///
    /// # Errors
    ///
    /// Returns why the connection failed, or [`ErrorCode::LimitExceeded`] if a line is too long.
    /// Each later call returns the same error.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, ErrorCode> {
        // If an earlier call was cancelled, the buffer is lost.
        self.searched = self.searched.min(self.buffer.len());
        self.start = self.start.min(self.buffer.len());
        loop {
            let found = memchr::memchr(b'\n', &self.buffer[self.searched..]);
            let end = found.map_or(self.buffer.len(), |at| self.searched + at);
            if end - self.start > self.max {
                return Err(ErrorCode::LimitExceeded);
            }
            if found.is_some() {
                return Ok(Some(self.take(end + 1)));
            }
            self.searched = end;
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
            if self.inbound.read(&mut self.buffer).await? == 0 {
                let end = self.buffer.len();
                return Ok((end > 0).then(|| self.take(end)));
            }
        }
    }

    fn take(&mut self, end: usize) -> &[u8] {
        let line = &self.buffer[self.start..end];
        self.start = end;
        self.searched = end;
        line
    }
}
