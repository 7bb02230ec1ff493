//! Echoes by the sessions contract until it is sent a `!`, from when on it asks to be called again and again.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use std::cell::Cell;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Restless;

impl Guest for Restless {
    type Session = Session;
}

struct Session {
    calls: Cell<u64>,
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self { calls: Cell::new(0) }
    }

    fn handle(&self, event: Event) -> Answer {
        let calls = self.calls.get();
        match event {
            Event::Received(bytes) if calls == 0 && !bytes.contains(&b'!') => Answer {
                send: bytes,
                next: Next::GoOn,
            },
            Event::Opened => Answer {
                send: Vec::new(),
                next: Next::GoOn,
            },
            _ => {
                self.calls.set(calls + 1);
                Answer {
                    send: Vec::new(),
                    // Each has its own way back into the guest.
                    next: if calls.is_multiple_of(2) {
                        Next::WhenWritten
                    } else {
                        Next::WakeAfter(0)
                    },
                }
            }
        }
    }
}

export!(Restless);
