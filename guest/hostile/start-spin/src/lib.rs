//! Loops for ever when it is instantiated.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct StartSpin;

impl Guest for StartSpin {
    type Session = Session;
}

struct Session;

/// Run when the component is instantiated, before any export can be called.
#[cfg_attr(target_family = "wasm", unsafe(no_mangle))]
pub extern "C" fn _initialize() {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
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

export!(StartSpin);
