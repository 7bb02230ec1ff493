//! Echoes by the sessions contract until it is sent a `!`, at which it calls itself for ever.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Recurse;

impl Guest for Recurse {
    type Session = Session;
}

struct Session;

/// Without a bound and without a loop that the compiler could make of it.
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    if depth == u64::MAX {
        return 0;
    }
    1 + std::hint::black_box(recurse as fn(u64) -> u64)(depth + 1)
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let mut send = match event {
            Event::Received(bytes) => bytes,
            _ => Vec::new(),
        };
        if send.contains(&b'!') {
            send = recurse(0).to_string().into_bytes();
        }
        Answer {
            send,
            next: Next::GoOn,
        }
    }
}

export!(Recurse);
