//! Is sent a number of mebibytes and tries to take as many, by the sessions contract.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use std::cell::RefCell;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Hoard;

impl Guest for Hoard {
    type Session = Session;
}

struct Session;

thread_local! {
    static HOARD: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn hoard(mebibytes: &str) -> String {
    let Ok(mebibytes) = mebibytes.trim().parse::<usize>() else {
        return "what?\n".to_owned();
    };
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(mebibytes << 20).is_err() {
        return "refused\n".to_owned();
    }
    bytes.resize(mebibytes << 20, 1);
    HOARD.with_borrow_mut(|hoard| hoard.push(bytes));
    "taken\n".to_owned()
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let send = match event {
            Event::Received(bytes) => hoard(&String::from_utf8_lossy(&bytes)),
            _ => String::new(),
        };
        Answer {
            send: send.into(),
            next: Next::GoOn,
        }
    }
}

export!(Hoard);
