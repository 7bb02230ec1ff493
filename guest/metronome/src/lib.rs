//! Says `tick` and `tock` by turns, ten times a second, by the sessions contract. Whatever it is sent ends it. A change of the
//! component does not put it out of step.

wit_bindgen::generate!({ path: "../../wit", world: "movable-session-service" });

use std::cell::Cell;
use std::time::Duration;

use exports::inet::service::migration::{Guest as Migration, Refusal, SavedState};
use exports::inet::service::sessions::{
    Answer, Event, Guest, GuestSession, Next, Peer, Session, SessionBorrow,
};

const BEAT: Next = Next::WakeAfter(Duration::from_millis(100).as_nanos() as u64);

struct Metronome;

impl Guest for Metronome {
    type Session = Beats;
}

struct Beats {
    beats: Cell<u64>,
}

impl GuestSession for Beats {
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

impl Migration for Metronome {
    fn snapshot(session: SessionBorrow<'_>) -> Option<SavedState> {
        let beats = session.get::<Beats>().beats.get();
        Some(SavedState {
            version: 1,
            bytes: beats.to_le_bytes().to_vec(),
        })
    }

    fn restore(_peer: Peer, state: SavedState) -> Result<Session, Refusal> {
        if state.version != 1 {
            return Err(Refusal::UnknownVersion);
        }
        let beats = state.bytes.try_into().map_err(|_| Refusal::Malformed)?;
        Ok(Session::new(Beats {
            beats: Cell::new(u64::from_le_bytes(beats)),
        }))
    }
}

export!(Metronome);
