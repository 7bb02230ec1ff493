//! Echoes by the sessions contract until it is sent a `!`, at which it panics.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Panic;

impl Guest for Panic {
    type Session = Session;
}

struct Session;

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let send = match event {
            Event::Received(bytes) => bytes,
            _ => Vec::new(),
        };
        assert!(!send.contains(&b'!'), "the peer asked for a panic");
        Answer {
            send,
            next: Next::GoOn,
        }
    }
}

export!(Panic);
