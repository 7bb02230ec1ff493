//! Is sent a number of kibibytes and answers as many, by the sessions contract.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct HugeAnswer;

impl Guest for HugeAnswer {
    type Session = Session;
}

struct Session;

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let kibibytes = match event {
            Event::Received(bytes) => String::from_utf8_lossy(&bytes).trim().parse().unwrap_or(0),
            _ => 0,
        };
        Answer {
            send: vec![b'x'; kibibytes << 10],
            next: Next::GoOn,
        }
    }
}

export!(HugeAnswer);
