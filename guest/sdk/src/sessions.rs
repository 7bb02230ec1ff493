//! The sessions contract: a state machine that answers the events of a connection.
//!
//! Implement [`Session`] and pass the type to [`export!`](export).

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::Duration;

use bindings::exports::inet::service::sessions::{self, Event, Guest, GuestSession, Next};

pub use bindings::inet::service::types::{ErrorCode, Peer};

/// The bindings that `wit-bindgen` generates for the world `session-service`.
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

/// The state of one connection.
///
/// The host calls one method for each event. The method returns an [`Answer`]: bytes to send, and
/// the event that the session wants next. No method may block or wait.
pub trait Session: 'static {
    /// Creates the session of a new connection.
    fn new(peer: Peer) -> Self;

    /// Answers bytes from the peer: at least one and at most 65,536, as they arrived.
    ///
    /// A chunk is not a message: a message can arrive in several chunks, and a chunk can contain
    /// several messages.
    fn received(&mut self, bytes: Vec<u8>) -> Answer;

    /// Answers the start of the connection. This is always the first event.
    ///
    /// A service that speaks first returns its greeting here. By default, the session sends no
    /// bytes.
    fn opened(&mut self) -> Answer {
        Answer::default()
    }

    /// Answers the end of a write: the transport has taken all bytes of the answer that asked for
    /// this event with [`Answer::when_written`].
    fn written(&mut self) -> Answer {
        Answer::default()
    }

    /// Answers a timer: the time of [`Answer::wake_after`] has passed without another event.
    fn woken(&mut self) -> Answer {
        Answer::default()
    }

    /// Answers the end of the peer's half of the connection.
    ///
    /// After `Ok` (a FIN), the peer still receives the bytes that the session sends. After an
    /// error, the connection is gone and the host ignores the answer. By default, the session ends
    /// the connection.
    fn ended(&mut self, _how: Result<(), ErrorCode>) -> Answer {
        Answer::default().finish()
    }
}

/// Exports a type that implements [`Session`] from the component.
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

/// The answer of a session to an event: bytes to send, and the event that the session wants next.
///
/// An answer has at most 1 MiB of bytes; a larger one is a trap, which resets the connection. Until
/// the transport has taken all bytes, the host delivers no event but the failure of the connection.
///
/// The default answer sends no bytes and waits for the next event.
#[derive(Debug)]
pub struct Answer(sessions::Answer);

impl Default for Answer {
    fn default() -> Self {
        Self::send(Vec::new())
    }
}

impl Answer {
    /// Sends bytes, and waits for the next event.
    pub fn send(bytes: impl Into<Vec<u8>>) -> Self {
        Self(sessions::Answer {
            send: bytes.into(),
            next: Next::GoOn,
        })
    }

    /// Resets the connection at once. Earlier bytes that were not yet delivered may be lost.
    pub fn reset(why: ErrorCode) -> Self {
        Self::default().then(Next::Reset(why))
    }

    /// Ends the connection: the host sends a FIN after the bytes.
    #[must_use]
    pub fn finish(self) -> Self {
        self.then(Next::Finish)
    }

    /// Makes the host call [`Session::written`] as soon as the transport has taken the bytes, and
    /// deliver no other event before.
    ///
    /// Use it to send a long answer in pieces, without a large buffer.
    #[must_use]
    pub fn when_written(self) -> Self {
        self.then(Next::WhenWritten)
    }

    /// Makes the host call [`Session::woken`] if no event occurs for this long after the bytes were
    /// sent.
    ///
    /// Any event cancels the timer. A session that still needs it must ask again.
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

/// The type that [`export`] passes to the bindings.
#[doc(hidden)]
pub struct Exported<S>(PhantomData<S>);

impl<S: Session> Guest for Exported<S> {
    type Session = Running<S>;
}

/// Implements the resource `session` of the bindings.
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
