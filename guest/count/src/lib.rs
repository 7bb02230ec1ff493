//! Numbers the lines that it gets, by the sessions contract: `hello` is answered by `1 hello`. Its count outlives a
//! change of the component, to this one again or to `tally`.
//!
//! `quit` ends the connection, and so does a line of more than 4,096 bytes.

wit_bindgen::generate!({ path: "../../wit", world: "movable-session-service" });

use std::cell::RefCell;
use std::ops::ControlFlow;

use exports::inet::service::migration::{Guest as Migration, Refusal, SavedState};
use exports::inet::service::sessions::{
    Answer, Event, Guest, GuestSession, Next, Peer, Session, SessionBorrow,
};
use line_framer::Framer;

/// The longest line, in bytes before its `\n`.
const MAX_LINE: usize = 4096;

/// The version of a state that is the count of lines: 8 bytes, the lowest first.
const LINES: u32 = 1;

struct Count;

impl Guest for Count {
    type Session = Counter;
}

struct Counter(RefCell<State>);

struct State {
    framer: Framer,
    lines: u64,
}

impl Counter {
    fn begin(lines: u64) -> Self {
        Self(RefCell::new(State {
            framer: Framer::new(MAX_LINE),
            lines,
        }))
    }
}

impl GuestSession for Counter {
    fn new(_peer: Peer) -> Self {
        Self::begin(0)
    }

    fn handle(&self, event: Event) -> Answer {
        let mut send = Vec::new();
        let next = match event {
            Event::Received(chunk) => self.0.borrow_mut().take(&chunk, &mut send),
            Event::Ended(_) => Next::Finish,
            Event::Opened | Event::Written | Event::Woken => Next::GoOn,
        };
        Answer { send, next }
    }
}

impl State {
    /// Takes a chunk and adds the answer to its lines to `send`.
    fn take(&mut self, chunk: &[u8], send: &mut Vec<u8>) -> Next {
        let lines = &mut self.lines;
        let fed = self.framer.feed(chunk, |line| {
            if line.trim_ascii() == b"quit" {
                return ControlFlow::Break(());
            }
            *lines += 1;
            send.extend_from_slice(lines.to_string().as_bytes());
            send.push(b' ');
            send.extend_from_slice(line);
            ControlFlow::Continue(())
        });
        match fed {
            Ok(ControlFlow::Continue(())) => Next::GoOn,
            Ok(ControlFlow::Break(())) | Err(_) => Next::Finish,
        }
    }
}

impl Migration for Count {
    fn snapshot(session: SessionBorrow<'_>) -> Option<SavedState> {
        let state = session.get::<Counter>().0.borrow();
        // Not in the middle of a line.
        state.framer.rest().is_empty().then(|| SavedState {
            version: LINES,
            bytes: state.lines.to_le_bytes().to_vec(),
        })
    }

    fn restore(_peer: Peer, state: SavedState) -> Result<Session, Refusal> {
        if state.version != LINES {
            return Err(Refusal::UnknownVersion);
        }
        let lines = state.bytes.try_into().map_err(|_| Refusal::Malformed)?;
        Ok(Session::new(Counter::begin(u64::from_le_bytes(lines))))
    }
}

export!(Count);
