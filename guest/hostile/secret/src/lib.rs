//! Keeps what it is sent in a static and gives it to whoever sends a `?`, by the sessions contract.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use std::cell::RefCell;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Secret;

impl Guest for Secret {
    type Session = Session;
}

struct Session;

thread_local! {
    static SECRET: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let send = match event {
            Event::Received(bytes) if bytes == b"?" => SECRET.take(),
            Event::Received(bytes) => {
                SECRET.set(bytes);
                b"kept".to_vec()
            }
            _ => Vec::new(),
        };
        Answer {
            send,
            next: Next::GoOn,
        }
    }
}

export!(Secret);
