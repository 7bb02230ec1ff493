//! Echoes line by line, by the sessions contract.
//!
//! `quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use std::cell::RefCell;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

/// The longest line, in bytes before its `\n`.
const MAX_LINE: usize = 4096;

struct Lines;

impl Guest for Lines {
    type Session = Session;
}

struct Session {
    /// What came behind the last `\n`: at most `MAX_LINE` bytes.
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

/// A chunk is not a message: a line may come in many chunks, and a chunk may hold many lines.
fn answer(rest: &mut Vec<u8>, chunk: &[u8]) -> Answer {
    let mut send = Vec::with_capacity(rest.len() + chunk.len());
    for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
        rest.extend_from_slice(piece);
        let line = rest.strip_suffix(b"\n");
        if line.unwrap_or(rest).len() > MAX_LINE {
            send.extend_from_slice(format!("error: a line may have {MAX_LINE} bytes\n").as_bytes());
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
