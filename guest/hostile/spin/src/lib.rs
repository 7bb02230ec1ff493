//! Echoes by the sessions contract until it is sent a `!`, at which it loops for ever.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Spin;

impl Guest for Spin {
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
        while send.contains(&b'!') {
            std::hint::black_box(&send);
        }
        Answer {
            send,
            next: Next::GoOn,
        }
    }
}

export!(Spin);
