//! Discard (RFC 863) by the sessions contract: whatever comes is thrown away.

wit_bindgen::generate!({ path: "../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Discard;

impl Guest for Discard {
    type Session = Session;
}

struct Session;

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, _event: Event) -> Answer {
        Answer {
            send: Vec::new(),
            next: Next::GoOn, // after the peer's end this finishes
        }
    }
}

export!(Discard);
