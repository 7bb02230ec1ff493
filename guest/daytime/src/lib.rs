//! Daytime (RFC 867) by the sessions contract: says the time and ends.
//!
//! The RFC leaves the format open; this is RFC 3339 in UTC.

wit_bindgen::generate!({ path: "../../wit", world: "session-service" });

use std::time::SystemTime;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Daytime;

impl Guest for Daytime {
    type Session = Session;
}

struct Session;

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let send = match event {
            Event::Opened => format!("{}\r\n", humantime::format_rfc3339_seconds(SystemTime::now())).into(),
            _ => Vec::new(),
        };
        Answer {
            send,
            next: Next::Finish,
        }
    }
}

export!(Daytime);
