//! Echoes each line that the client sends, with the sessions contract.
//!
//! The host calls `handle` once for each event of a connection. `quit` ends the connection. A line
//! of more than 4,096 bytes also ends it, after an error message.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use std::cell::RefCell;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

/// The maximum length of a line in bytes, without the `\n` at its end.
const MAX_LINE: usize = 4096;

struct Lines;

impl Guest for Lines {
    type Session = Session;
}

/// The state of one connection.
struct Session {
    /// The bytes after the last `\n`: the start of an incomplete line, at most `MAX_LINE` bytes.
    rest: RefCell<Vec<u8>>,
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self {
            rest: RefCell::new(Vec::new()),
        }
    }

    fn handle(&self, event: Event) -> Answer {
        match event {
            Event::Received(chunk) => answer(&mut self.rest.borrow_mut(), &chunk),
            Event::Ended(_) => Answer {
                send: self.rest.take(),
                next: Next::Finish,
            },
            Event::Opened | Event::Written | Event::Woken => Answer {
                send: Vec::new(),
                next: Next::GoOn,
            },
        }
    }
}

/// Answers the bytes that have arrived.
///
/// A chunk is not a message: a line can arrive in several chunks, and a chunk can contain several
/// lines.
fn answer(rest: &mut Vec<u8>, chunk: &[u8]) -> Answer {
    let mut send = Vec::with_capacity(rest.len() + chunk.len());
    for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
        rest.extend_from_slice(piece);
        let line = rest.strip_suffix(b"\n");
        if line.unwrap_or(rest).len() > MAX_LINE {
            let error = format!("error: a line may have at most {MAX_LINE} bytes\n");
            send.extend_from_slice(error.as_bytes());
            return Answer {
                send,
                next: Next::Finish,
            };
        }
        if let Some(line) = line {
            if line.trim_ascii() == b"quit" {
                return Answer {
                    send,
                    next: Next::Finish,
                };
            }
            send.append(rest);
        }
    }
    Answer {
        send,
        next: Next::GoOn,
    }
}

export!(Lines);
