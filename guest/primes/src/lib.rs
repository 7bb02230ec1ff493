//! Answers each number `n` with the `n`th prime, by the sessions contract, from a table that takes a while to make.
//!
//! The table is made when it is first needed. With `--preinit` that is when the host loads the guest, once for all
//! connections, since the guest exports `wizer-initialize`. `?` tells how it was.

wit_bindgen::generate!({
    path: "../../wit",
    inline: "package guest:primes;
        world primes {
            include inet:service/session-service@0.1.0;
            /// Called once, before a snapshot is taken with which every connection begins.
            export wizer-initialize: func();
        }",
    world: "guest:primes/primes",
    generate_all,
});

use std::cell::{OnceCell, RefCell};
use std::ops::ControlFlow;

use exports::inet::service::sessions::{Answer, Event, Guest as Sessions, GuestSession, Next, Peer};
use line_framer::Framer;

/// The longest line, in bytes before its `\n`.
const MAX_LINE: usize = 20;

/// Primes up to this number are known.
const LIMIT: usize = 5_000_000;

thread_local! {
    static PRIMES: OnceCell<Table> = const { OnceCell::new() };
}

struct Table {
    primes: Vec<u32>,
    made: &'static str,
}

impl Table {
    /// Sieves, as Eratosthenes did.
    fn new(made: &'static str) -> Self {
        let mut composite = vec![false; LIMIT + 1];
        let mut primes = Vec::new();
        for number in 2..=LIMIT {
            if composite[number] {
                continue;
            }
            primes.push(number as u32);
            // Its multiples by what is less than itself are known. Their square may be too large to be told.
            let first = number.saturating_mul(number);
            for multiple in (first..=LIMIT).step_by(number) {
                composite[multiple] = true;
            }
        }
        Self { primes, made }
    }

    fn answer(&self, line: &[u8]) -> String {
        let line = String::from_utf8_lossy(line.trim_ascii());
        if line == "?" {
            return format!("{} primes, found {}\n", self.primes.len(), self.made);
        }
        let prime = line
            .parse::<usize>()
            .ok()
            .and_then(|n| self.primes.get(n.checked_sub(1)?));
        match prime {
            Some(prime) => format!("{prime}\n"),
            None => format!("error: a number from 1 to {} is expected\n", self.primes.len()),
        }
    }
}

struct Primes;

impl Guest for Primes {
    fn wizer_initialize() {
        PRIMES.with(|primes| {
            primes.get_or_init(|| Table::new("before the connection"));
        });
    }
}

impl Sessions for Primes {
    type Session = Session;
}

struct Session {
    framer: RefCell<Framer>,
}

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self {
            framer: RefCell::new(Framer::new(MAX_LINE)),
        }
    }

    fn handle(&self, event: Event) -> Answer {
        let Event::Received(chunk) = event else {
            return Answer {
                send: Vec::new(),
                next: Next::GoOn,
            };
        };
        let mut send = String::new();
        let fed = PRIMES.with(|primes| {
            let table = primes.get_or_init(|| Table::new("for this connection"));
            self.framer.borrow_mut().feed(&chunk, |line| {
                send += &table.answer(line);
                ControlFlow::<()>::Continue(())
            })
        });
        let next = if fed.is_ok() {
            Next::GoOn
        } else {
            send += &format!("error: a line may have at most {MAX_LINE} bytes\n");
            Next::Finish
        };
        Answer {
            send: send.into_bytes(),
            next,
        }
    }
}

export!(Primes);
