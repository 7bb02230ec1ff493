//! Numbers the lines that it gets and counts their bytes, by the sessions contract: `hello` is answered by `1 (6) hello`.
//! It takes over from `count`, which counts no bytes, and from itself. `count` cannot take over from it.
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

/// The version of one that is the counts of lines and of bytes, in the same form.
const LINES_AND_BYTES: u32 = 2;

struct Tally;

impl Guest for Tally {
    type Session = Counter;
}

struct Counter(RefCell<State>);

struct State {
    framer: Framer,
    lines: u64,
    bytes: u64,
}

impl Counter {
    fn begin(lines: u64, bytes: u64) -> Self {
        Self(RefCell::new(State {
            framer: Framer::new(MAX_LINE),
            lines,
            bytes,
        }))
    }
}

impl GuestSession for Counter {
    fn new(_peer: Peer) -> Self {
        Self::begin(0, 0)
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
        let Self { framer, lines, bytes } = self;
        let fed = framer.feed(chunk, |line| {
            if line.trim_ascii() == b"quit" {
                return ControlFlow::Break(());
            }
            *lines += 1;
            *bytes += line.len() as u64;
            send.extend_from_slice(format!("{lines} ({bytes}) ").as_bytes());
            send.extend_from_slice(line);
            ControlFlow::Continue(())
        });
        match fed {
            Ok(ControlFlow::Continue(())) => Next::GoOn,
            Ok(ControlFlow::Break(())) | Err(_) => Next::Finish,
        }
    }
}

impl Migration for Tally {
    fn snapshot(session: SessionBorrow<'_>) -> Option<SavedState> {
        let state = session.get::<Counter>().0.borrow();
        // Not in the middle of a line.
        state.framer.rest().is_empty().then(|| SavedState {
            version: LINES_AND_BYTES,
            bytes: [state.lines.to_le_bytes(), state.bytes.to_le_bytes()].concat(),
        })
    }

    fn restore(_peer: Peer, state: SavedState) -> Result<Session, Refusal> {
        let (lines, bytes) = match (state.version, state.bytes.as_chunks().0) {
            (LINES, [lines]) => (*lines, [0; 8]),
            (LINES_AND_BYTES, [lines, bytes]) => (*lines, *bytes),
            (LINES | LINES_AND_BYTES, _) => return Err(Refusal::Malformed),
            _ => return Err(Refusal::UnknownVersion),
        };
        let counter = Counter::begin(u64::from_le_bytes(lines), u64::from_le_bytes(bytes));
        Ok(Session::new(counter))
    }
}

export!(Tally);
