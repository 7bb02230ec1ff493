//! Echoes, by the sessions contract, and fails at moving: nothing can be restored in it, at a count of two it tries for ever,
//! and after `trap`, `spin` or `huge` it does that in place of giving a snapshot.

wit_bindgen::generate!({ path: "../../../wit", world: "movable-session-service" });

use std::cell::RefCell;

use exports::inet::service::migration::{Guest as Migration, Refusal, SavedState};
use exports::inet::service::sessions::{
    Answer, Event, Guest, GuestSession, Next, Peer, Session, SessionBorrow,
};

struct Stuck;

impl Guest for Stuck {
    type Session = Last;
}

/// What came last.
struct Last(RefCell<Vec<u8>>);

impl GuestSession for Last {
    fn new(_peer: Peer) -> Self {
        Self(RefCell::default())
    }

    fn handle(&self, event: Event) -> Answer {
        let send = match event {
            Event::Received(bytes) => bytes,
            _ => Vec::new(),
        };
        self.0.replace(send.clone());
        Answer {
            send,
            next: Next::GoOn,
        }
    }
}

impl Migration for Stuck {
    fn snapshot(session: SessionBorrow<'_>) -> Option<SavedState> {
        let bytes = match session.get::<Last>().0.borrow().as_slice() {
            b"trap" => std::process::abort(),
            b"spin" => loop {
                std::hint::spin_loop();
            },
            b"huge" => vec![0; 2 << 20],
            _ => 7_u64.to_le_bytes().to_vec(),
        };
        Some(SavedState { version: 1, bytes })
    }

    fn restore(_peer: Peer, state: SavedState) -> Result<Session, Refusal> {
        if state.bytes == 2_u64.to_le_bytes() {
            loop {
                std::hint::spin_loop();
            }
        }
        std::process::abort()
    }
}

export!(Stuck);
