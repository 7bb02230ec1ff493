//! Echoes each line that the peer sends, with the sessions contract: the same service as `lines`.
//!
//! `quit` ends the connection. A line of more than 4,096 bytes also ends it, after an error
//! message.

wit_bindgen::generate!({ path: "../../wit", world: "session-service" });

use std::cell::RefCell;
use std::ops::ControlFlow;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};
use line_framer::Framer;

/// The maximum length of a line in bytes, without the `\n` at its end.
const MAX_LINE: usize = 4096;

struct Lines;

impl Guest for Lines {
    type Session = Session;
}

struct Session {
    framer: RefCell<Framer>,
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self {
            framer: RefCell::new(Framer::new(MAX_LINE)),
        }
    }

    fn handle(&self, event: Event) -> Answer {
        let mut framer = self.framer.borrow_mut();
        match event {
            Event::Received(chunk) => answer(&mut framer, &chunk),
            Event::Ended(_) => Answer {
                send: framer.rest().to_vec(),
                next: Next::Finish,
            },
            Event::Opened | Event::Written | Event::Woken => Answer {
                send: Vec::new(),
                next: Next::GoOn,
            },
        }
    }
}

fn answer(framer: &mut Framer, chunk: &[u8]) -> Answer {
    let mut send = Vec::with_capacity(chunk.len());
    let fed = framer.feed(chunk, |line| {
        if line.trim_ascii() == b"quit" {
            return ControlFlow::Break(());
        }
        send.extend_from_slice(line);
        ControlFlow::Continue(())
    });
    if fed.is_err() {
        let error = format!("error: a line may have at most {MAX_LINE} bytes\n");
        send.extend_from_slice(error.as_bytes());
    }
    let next = match fed {
        Ok(ControlFlow::Continue(())) => Next::GoOn,
        Ok(ControlFlow::Break(())) | Err(_) => Next::Finish,
    };
    Answer { send, next }
}

export!(Lines);
