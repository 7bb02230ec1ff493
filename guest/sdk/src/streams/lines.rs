//! Lines of bounded length.

use super::{CHUNK, ErrorCode, Inbound};

/// Reads the inbound half line by line, and keeps no more than one line and one chunk.
pub struct Lines {
    inbound: Inbound,
    max: usize,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where there is no end of it.
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

    /// The next line, with the `\n` at its end; a last one may have none. `None` after the peer's FIN.
    ///
    /// # Errors
    ///
    /// How the connection failed, or `limit-exceeded` for a line that is longer than it may be; the same from then on.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, ErrorCode> {
        // A read that was given up has lost the buffer.
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
