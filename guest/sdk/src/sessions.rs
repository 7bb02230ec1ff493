//! The sessions contract: a session answers what happens on its connection.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::Duration;

use bindings::exports::inet::service::sessions::{self, Event, Guest, GuestSession, Next};

pub use bindings::inet::service::types::{ErrorCode, Peer};

/// What `wit-bindgen` makes of world `session-service`.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "session-service",
        pub_export_macro: true,
        export_macro_name: "export_session_service",
        default_bindings_module: "inet_guest::sessions::bindings",
        generate_all,
    });
}

/// One connection, as a state machine. Nothing in it waits: it answers each event with bytes to send and with what it wants
/// next.
pub trait Session: 'static {
    /// Begins a session when a connection is accepted.
    fn new(peer: Peer) -> Self;

    /// Answers the peer's bytes: at least one and at most 65,536, as they came. A chunk is not a message.
    fn received(&mut self, bytes: Vec<u8>) -> Answer;

    /// The first event: what a service that speaks first says.
    fn opened(&mut self) -> Answer {
        Answer::default()
    }

    /// The bytes of the answer that asked for it by [`Answer::when_written`] are with the transport.
    fn written(&mut self) -> Answer {
        Answer::default()
    }

    /// The time has passed that [`Answer::wake_after`] asked for.
    fn woken(&mut self) -> Answer {
        Answer::default()
    }

    /// The peer is done. After `Ok`, its FIN, it still gets what is sent; after an error it is gone.
    fn ended(&mut self, _how: Result<(), ErrorCode>) -> Answer {
        Answer::default().finish()
    }
}

/// Makes a type that is a [`Session`] what the component exports.
#[doc(inline)]
pub use crate::__export_sessions as export;

#[doc(hidden)]
#[macro_export]
macro_rules! __export_sessions {
    ($session:ty) => {
        #[doc(hidden)]
        type __ExportedSessions = $crate::sessions::Exported<$session>;
        $crate::sessions::bindings::export_session_service!(
            __ExportedSessions with_types_in $crate::sessions::bindings
        );
    };
}

/// What a session answers: bytes, at most 1 MiB of them, and what comes next. The default sends nothing and goes on.
#[derive(Debug)]
pub struct Answer(sessions::Answer);

impl Default for Answer {
    fn default() -> Self {
        Self::send(Vec::new())
    }
}

impl Answer {
    /// Sends these bytes, and goes on with the next thing that happens.
    pub fn send(bytes: impl Into<Vec<u8>>) -> Self {
        Self(sessions::Answer {
            send: bytes.into(),
            next: Next::GoOn,
        })
    }

    /// Resets the connection at once.
    pub fn reset(why: ErrorCode) -> Self {
        Self::default().then(Next::Reset(why))
    }

    /// Ends the connection: FIN after the bytes.
    #[must_use]
    pub fn finish(self) -> Self {
        self.then(Next::Finish)
    }

    /// Has [`Session::written`] called as soon as the bytes are with the transport, and nothing else before. A long answer
    /// is sent in pieces this way.
    #[must_use]
    pub fn when_written(self) -> Self {
        self.then(Next::WhenWritten)
    }

    /// Has [`Session::woken`] called if nothing happens for this long after the bytes were sent.
    #[must_use]
    pub fn wake_after(self, time: Duration) -> Self {
        self.then(Next::WakeAfter(
            u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
        ))
    }

    fn then(mut self, next: Next) -> Self {
        self.0.next = next;
        self
    }
}

/// What [`export`] hands to the bindings.
#[doc(hidden)]
pub struct Exported<S>(PhantomData<S>);

impl<S: Session> Guest for Exported<S> {
    type Session = Running<S>;
}

/// A session, as the bindings see it.
#[doc(hidden)]
pub struct Running<S>(RefCell<S>);

impl<S: Session> GuestSession for Running<S> {
    fn new(peer: Peer) -> Self {
        Self(RefCell::new(S::new(peer)))
    }

    fn handle(&self, event: Event) -> sessions::Answer {
        let mut session = self.0.borrow_mut();
        let answer = match event {
            Event::Opened => session.opened(),
            Event::Received(bytes) => session.received(bytes),
            Event::Written => session.written(),
            Event::Woken => session.woken(),
            Event::Ended(how) => session.ended(how),
        };
        answer.0
    }
}
