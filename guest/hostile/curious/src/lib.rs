//! Looks for everything that it was not granted and says what it found, by the sessions contract.

wit_bindgen::generate!({ path: "../../../wit", world: "session-service" });

use std::collections::hash_map::RandomState;
use std::env;
use std::fs;
use std::hash::BuildHasher;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::SystemTime;

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};

struct Curious;

impl Guest for Curious {
    type Session = Session;
}

struct Session;

/// One line for each thing that was looked for: its name and what was found.
fn findings() -> String {
    let mut input = Vec::new();
    let read = std::io::stdin().read_to_end(&mut input);
    let found = [
        ("arguments", env::args().count().to_string()),
        ("variables", env::vars().count().to_string()),
        ("root", refused(fs::read_dir("/"))),
        ("file", refused(fs::read("/etc/passwd"))),
        ("write", refused(fs::write("found.txt", "me"))),
        ("connect", refused(TcpStream::connect("127.0.0.1:8080"))),
        ("listen", refused(TcpListener::bind("127.0.0.1:0"))),
        (
            "input",
            read.map_or_else(|_| "refused".to_owned(), |_| input.len().to_string()),
        ),
        ("clock", (SystemTime::now() > SystemTime::UNIX_EPOCH).to_string()),
        ("random", RandomState::new().hash_one(0).to_string()),
    ];
    found
        .iter()
        .map(|(what, found)| format!("{what} {found}\n"))
        .collect()
}

fn refused<T>(result: std::io::Result<T>) -> String {
    if result.is_ok() { "granted" } else { "refused" }.to_owned()
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        match event {
            Event::Opened => Answer {
                send: findings().into(),
                next: Next::Finish,
            },
            _ => Answer {
                send: Vec::new(),
                next: Next::GoOn,
            },
        }
    }
}

export!(Curious);
