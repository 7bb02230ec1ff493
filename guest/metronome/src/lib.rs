//! Says `tick` and `tock` by turns, ten times a second, by the sessions contract. Whatever it is sent ends it.

wit_bindgen::generate!({ path: "../../wit", world: "session-service" });

use std::cell::Cell;
use std::time::Duration;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

const BEAT: Next = Next::WakeAfter(Duration::from_millis(100).as_nanos() as u64);

struct Metronome;

impl Guest for Metronome {
    type Session = Session;
}

struct Session {
    beats: Cell<u64>,
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self { beats: Cell::new(0) }
    }

    fn handle(&self, event: Event) -> Answer {
        match event {
            Event::Opened | Event::Woken => {
                let beats = self.beats.replace(self.beats.get() + 1);
                let beat = if beats.is_multiple_of(2) {
                    "tick\n"
                } else {
                    "tock\n"
                };
                Answer {
                    send: beat.into(),
                    next: BEAT,
                }
            }
            Event::Received(_) | Event::Written | Event::Ended(_) => Answer {
                send: Vec::new(),
                next: Next::Finish,
            },
        }
    }
}

export!(Metronome);
