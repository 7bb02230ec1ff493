//! Logs each line that it is sent by `wasi:logging`, once at each level, and echoes it. What begins with a number is logged so often.

wit_bindgen::generate!({
    path: "../../../wit",
    inline: "package guest:herald;
        package wasi:logging {
            interface logging {
                enum level { trace, debug, info, warn, error, critical }
                log: func(level: level, context: string, message: string);
            }
        }
        world herald {
            include inet:service/session-service@0.1.0;
            import wasi:logging/logging;
        }",
    world: "guest:herald/herald",
    generate_all,
});

use exports::inet::service::sessions::{Answer, Event, Guest, GuestSession, Next, Peer};
use wasi::logging::logging::{Level, log};

const LEVELS: [Level; 6] = [
    Level::Trace,
    Level::Debug,
    Level::Info,
    Level::Warn,
    Level::Error,
    Level::Critical,
];

struct Herald;

impl Guest for Herald {
    type Session = Herald;
}

impl GuestSession for Herald {
    fn new(_peer: Peer) -> Self {
        Self
    }

    fn handle(&self, event: Event) -> Answer {
        let (send, next) = match event {
            Event::Received(bytes) => (bytes, Next::GoOn),
            Event::Ended(_) => (Vec::new(), Next::Finish),
            _ => (Vec::new(), Next::GoOn),
        };
        let text = String::from_utf8_lossy(&send);
        match text.trim().parse() {
            Ok(count) => {
                for number in 0..count {
                    log(Level::Info, "herald", &format!("{number}"));
                }
            }
            Err(_) if !text.is_empty() => {
                for level in LEVELS {
                    log(level, "herald", text.trim_end());
                }
            }
            Err(_) => {}
        }
        Answer { send, next }
    }
}

export!(Herald);
