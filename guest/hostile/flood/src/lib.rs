//! Sends without end, by the sessions contract: each piece when the one before it was written.
//!
//! Each piece is 64 KiB of its number, as 8 bytes in big-endian order.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use std::cell::Cell;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

const PIECE: usize = 64 * 1024;

struct Flood;

impl Guest for Flood {
    type Session = Session;
}

struct Session {
    pieces: Cell<u64>,
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self { pieces: Cell::new(0) }
    }

    fn handle(&self, _event: Event) -> Answer {
        let number = self.pieces.replace(self.pieces.get() + 1);
        Answer {
            send: number.to_be_bytes().repeat(PIECE / 8),
            next: Next::WhenWritten,
        }
    }
}

export!(Flood);
