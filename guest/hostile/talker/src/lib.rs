//! Says on standard error, by the sessions contract, as many lines as the number that it is sent, and echoes that. It can move.

wit_bindgen::generate!({ path: "../../../wit", world: "movable-session-service" });

use exports::inet::service::migration::{Guest as Migration, Refusal, SavedState};
use exports::inet::service::sessions::{
    Answer, Event, Guest, GuestSession, Next, Peer, Session, SessionBorrow,
};

struct Talker;

impl Guest for Talker {
    type Session = Talker;
}

impl GuestSession for Talker {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let (send, next) = match event {
            Event::Received(bytes) => (bytes, Next::GoOn),
            Event::Ended(_) => (Vec::new(), Next::Finish),
            _ => (Vec::new(), Next::GoOn),
        };
        let count: u32 = std::str::from_utf8(&send)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        for number in 0..count {
            eprintln!("{number}");
        }
        Answer { send, next }
    }
}

impl Migration for Talker {
    fn snapshot(_session: SessionBorrow<'_>) -> Option<SavedState> {
        Some(SavedState {
            version: 1,
            bytes: Vec::new(),
        })
    }

    fn restore(_peer: Peer, _state: SavedState) -> Result<Session, Refusal> {
        Ok(Session::new(Talker))
    }
}

export!(Talker);
