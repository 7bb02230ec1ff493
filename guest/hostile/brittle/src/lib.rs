//! Traps at its start for connections 2 to 8, as one does for a while whose surroundings are not right; else it echoes, by
//! the sessions contract.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Brittle;

impl Guest for Brittle {
    type Session = Session;
}

struct Session;

impl GuestSession for Session {
    fn new(peer: Peer) -> Self {
        if (2..=8).contains(&peer.connection) {
            std::process::abort();
        }
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let send = match event {
            Event::Received(bytes) => bytes,
            _ => Vec::new(),
        };
        Answer {
            send,
            next: Next::GoOn,
        }
    }
}

export!(Brittle);
