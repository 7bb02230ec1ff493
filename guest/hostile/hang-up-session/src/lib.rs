//! Echoes by the sessions contract until it is sent a `!`, at which it resets the connection.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, ErrorCode, Event, Guest, GuestSession, Next, Peer};

struct HangUp;

impl Guest for HangUp {
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
        let next = if send.contains(&b'!') {
            Next::Reset(ErrorCode::Refused)
        } else {
            Next::GoOn
        };
        Answer { send, next }
    }
}

export!(HangUp);
