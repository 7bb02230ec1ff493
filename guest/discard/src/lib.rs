//! Discard (RFC 863) by the sessions contract: whatever comes is thrown away.

use inet_guest::sessions::{Answer, Peer, Session, export};

struct Discard;

impl Session for Discard {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn received(&mut self, _bytes: Vec<u8>) -> Answer {
        Answer::default()
    }
}

export!(Discard);
