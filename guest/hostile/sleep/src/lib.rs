//! Echoes by the sessions contract until it is sent a `!`, at which it sleeps for ever, in a call to the host.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Sleep;

impl Guest for Sleep {
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
        if send.contains(&b'!') {
            std::thread::sleep(std::time::Duration::MAX);
        }
        Answer {
            send,
            next: Next::GoOn,
        }
    }
}

export!(Sleep);
