//! Daytime (RFC 867) by the sessions contract: says the time and ends.
//!
//! The RFC leaves the format open; this is RFC 3339 in UTC.

use std::time::SystemTime;

use inet_guest::sessions::{Answer, Peer, Session, export};

struct Daytime;

impl Session for Daytime {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn opened(&mut self) -> Answer {
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        Answer::send(format!("{now}\r\n")).finish()
    }

    fn received(&mut self, _bytes: Vec<u8>) -> Answer {
        // Nothing is asked for once the time is said.
        Answer::default().finish()
    }
}

export!(Daytime);
