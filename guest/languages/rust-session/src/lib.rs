//! Echoes each line that the client sends, with the sessions contract.
//!
//! The host calls a method of `Lines` for each event of a connection. `quit` ends the connection. A
//! line of more than 4,096 bytes also ends it, after an error message.

use inet_guest::sessions::{Answer, ErrorCode, Peer, Session, export};

/// The maximum length of a line in bytes, without the `\n` at its end.
const MAX_LINE: usize = 4096;

/// The state of one connection.
struct Lines {
    /// The bytes after the last `\n`: the start of an incomplete line, at most `MAX_LINE` bytes.
    rest: Vec<u8>,
}

impl Session for Lines {
    fn new(_peer: Peer) -> Self {
        Self { rest: Vec::new() }
    }

    // A chunk is not a message: a line can arrive in several chunks, and a chunk can contain
    // several lines.
    fn received(&mut self, chunk: Vec<u8>) -> Answer {
        let mut reply = Vec::with_capacity(self.rest.len() + chunk.len());
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            let line = self.rest.strip_suffix(b"\n");
            if line.unwrap_or(&self.rest).len() > MAX_LINE {
                let error = format!("error: a line may have at most {MAX_LINE} bytes\n");
                reply.extend_from_slice(error.as_bytes());
                return Answer::send(reply).finish();
            }
            if let Some(line) = line {
                if line.trim_ascii() == b"quit" {
                    return Answer::send(reply).finish();
                }
                reply.append(&mut self.rest);
            }
        }
        Answer::send(reply)
    }

    fn ended(&mut self, _how: Result<(), ErrorCode>) -> Answer {
        Answer::send(std::mem::take(&mut self.rest)).finish()
    }
}

export!(Lines);
