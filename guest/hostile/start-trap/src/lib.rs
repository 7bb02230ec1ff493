//! Traps when it is instantiated.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct StartTrap;

impl Guest for StartTrap {
    type Session = Session;
}

struct Session;

/// Run when the component is instantiated, before any export can be called.
#[cfg_attr(target_family = "wasm", unsafe(no_mangle))]
pub extern "C" fn _initialize() {
    std::process::abort();
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, _event: Event) -> Answer {
        Answer {
            send: Vec::new(),
            next: Next::Finish,
        }
    }
}

export!(StartTrap);
