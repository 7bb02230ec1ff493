//! Middleware in Rust: a component of world `middleware` serves connections by the service that stands behind it, and changes
//! the bytes on their way in, on their way out, or both.
//!
//! ```ignore
//! use inet_middleware::{ErrorCode, Half, Middleware, Sees, export};
//!
//! struct UpperCase;
//!
//! impl Middleware for UpperCase {
//!     const SEES: Sees = Sees::Outbound;
//!
//!     async fn outbound(half: &mut Half) -> Result<(), ErrorCode> {
//!         let mut buffer = Vec::new();
//!         while half.read(&mut buffer).await? > 0 {
//!             half.write_all(buffer.to_ascii_uppercase()).await?;
//!             buffer.clear();
//!         }
//!         Ok(())
//!     }
//! }
//!
//! export!(UpperCase);
//! ```
//!
//! It stands in a crate of type `cdylib`, built for `wasm32-wasip2`. This crate is one of its own, beside `inet-guest`, since who
//! links it imports a handler.

#![warn(missing_docs)]

use std::cell::Cell;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use futures_channel::oneshot;
use wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter};

use bindings::inet::service::handler;
use inet_guest::streams::Peer;
use inet_guest::streams::bindings::exports::inet::service::handler::Guest;
use inet_guest::streams::bindings::{wit_future, wit_stream};

pub use inet_guest::streams::ErrorCode;

#[doc(hidden)]
pub use inet_guest;

/// What `wit-bindgen` makes of the handler that a middleware calls. The one that it exports is that of
/// [`inet_guest::streams`], since a middleware is a service too.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit",
        inline: "package inet:sdk; world caller { import inet:service/handler@0.1.0; }",
        world: "inet:sdk/caller",
        with: { "inet:service/types@0.1.0": inet_guest::streams::bindings::inet::service::types },
        generate_all,
    });
}

/// How much is read at once, in bytes, unless the reader says otherwise.
const CHUNK: usize = 16 * 1024;

/// How a half ended.
type End = Result<(), ErrorCode>;

/// Which bytes a middleware wants to see. The others go past it, at no cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// What the peer sends.
    Inbound,
    /// What the service sends.
    Outbound,
    /// Both.
    Both,
}

/// A middleware. What it does not do is done for it: the halves end as the peer and the service end them, who does not
/// read holds up who writes, and a service that is done leaves nothing waiting.
pub trait Middleware {
    /// What it wants to see.
    const SEES: Sees;

    /// Takes what the peer sends to the service. `Ok` ends what the service reads, and the service hears from the host how the
    /// peer has ended; an error resets the connection, unless the service has ended its half by then and just reads on.
    ///
    /// # Errors
    ///
    /// Whatever the middleware wants to reset the connection for; the errors of the half are passed on by `?`.
    fn inbound(half: &mut Half) -> impl Future<Output = End> {
        half.pass()
    }

    /// Takes what the service sends to the peer. `Ok` ends what the peer reads, as soon as the service has said how: where it
    /// resets, the connection is reset at once, whatever this does.
    ///
    /// # Errors
    ///
    /// As of [`inbound`](Self::inbound).
    fn outbound(half: &mut Half) -> impl Future<Output = End> {
        half.pass()
    }
}

/// Makes a type that is a [`Middleware`] what the component exports.
#[macro_export]
macro_rules! export {
    ($middleware:ty) => {
        #[doc(hidden)]
        type __ExportedMiddleware = $crate::Exported<$middleware>;
        $crate::inet_guest::streams::bindings::export_service!(__ExportedMiddleware with_types_in $crate::inet_guest::streams::bindings);
    };
}

/// One half of a connection where it passes through a middleware: bytes are read from one side and written to the other.
pub struct Half {
    from: StreamReader<u8>,
    to: StreamWriter<u8>,
    /// Nothing more comes.
    drained: bool,
    /// Nobody takes what is written.
    unwanted: bool,
    /// Nothing is read that nobody has asked for.
    asks: bool,
    /// Resolves when the service has ended its own half, and may want nothing of this one any more.
    service_ended: Option<oneshot::Receiver<()>>,
}

impl Half {
    fn new(
        from: StreamReader<u8>,
        to: StreamWriter<u8>,
        service_ended: Option<oneshot::Receiver<()>>,
    ) -> Self {
        Self {
            from,
            to,
            drained: false,
            unwanted: false,
            asks: service_ended.is_some(),
            service_ended,
        }
    }

    /// Reads what has arrived, waiting for it if need be, and appends it to `buffer`: as many bytes as that has room for
    /// without growing, or 16 KiB if it has none. Gives how many bytes came, which is 0 only at the end.
    ///
    /// # Errors
    ///
    /// `connection-reset`: nobody would take what is read.
    pub async fn read(&mut self, buffer: &mut Vec<u8>) -> Result<usize, ErrorCode> {
        if buffer.capacity() == buffer.len() {
            buffer.reserve(CHUNK);
        }
        let before = buffer.len();
        while !self.drained && buffer.len() == before {
            if self.asks {
                // A write of nothing is done when somebody reads, or never will again.
                let (status, _) = self.to.write(Vec::new()).await;
                self.wanted(status != StreamResult::Dropped)?;
            }
            let mut read = pin!(self.from.read(std::mem::take(buffer)));
            let done = poll_fn(|cx| {
                if let Poll::Ready(done) = read.as_mut().poll(cx) {
                    return Poll::Ready(Some(done));
                }
                match &mut self.service_ended {
                    Some(ended) => pin!(ended).poll(cx).map(|_| None),
                    None => Poll::Pending,
                }
            });
            let (status, filled) = match done.await {
                Some(done) => done,
                None => {
                    // It is to be asked again.
                    self.service_ended = None;
                    read.as_mut().cancel()
                }
            };
            *buffer = filled;
            self.drained = status == StreamResult::Dropped;
        }
        Ok(buffer.len() - before)
    }

    /// Writes all of `bytes`. It is done when they are taken, so who does not read holds the middleware back.
    ///
    /// # Errors
    ///
    /// `connection-reset`: nobody takes what is written any more.
    pub async fn write_all(&mut self, bytes: impl Into<Vec<u8>>) -> Result<(), ErrorCode> {
        let left = self.to.write_all(bytes.into()).await;
        self.wanted(left.is_empty())
    }

    /// Takes what comes from one side to the other as it is.
    ///
    /// # Errors
    ///
    /// As of [`write_all`](Self::write_all).
    pub async fn pass(&mut self) -> Result<(), ErrorCode> {
        let mut buffer = Vec::new();
        while self.read(&mut buffer).await? > 0 {
            buffer = self.to.write_all(buffer).await;
            self.wanted(buffer.is_empty())?;
        }
        Ok(())
    }

    fn wanted(&mut self, wanted: bool) -> Result<(), ErrorCode> {
        self.unwanted |= !wanted;
        if wanted {
            Ok(())
        } else {
            Err(ErrorCode::ConnectionReset)
        }
    }
}

/// How the connection ends: what is said first counts.
#[derive(Clone)]
struct Verdict(Rc<Cell<Option<FutureWriter<End>>>>);

impl Verdict {
    async fn give(&self, how: End) {
        if let Some(verdict) = self.0.take() {
            // Fails only where the connection is gone, which leaves nobody to tell.
            let _ = verdict.write(how).await;
        }
    }
}

/// What [`export`] hands to the bindings.
#[doc(hidden)]
pub struct Exported<M>(PhantomData<M>);

impl<M: Middleware + 'static> Guest for Exported<M> {
    async fn handle(
        peer: Peer,
        mut inbound: StreamReader<u8>,
        inbound_end: FutureReader<End>,
    ) -> (StreamReader<u8>, FutureReader<End>) {
        let (verdict, end) = wit_future::new(|| Err(ErrorCode::InternalError));
        let verdict = Verdict(Rc::new(Cell::new(Some(verdict))));
        let (ending, service_ended) = oneshot::channel();
        if M::SEES != Sees::Outbound {
            let (to, reader) = wit_stream::new();
            let mut half = Half::new(std::mem::replace(&mut inbound, reader), to, Some(service_ended));
            let verdict = verdict.clone();
            // The service may read before it returns, so this cannot wait for that.
            background::spawn(async move {
                if let Err(code) = M::inbound(&mut half).await
                    && !half.unwanted
                {
                    verdict.give(Err(code)).await;
                }
            });
        }
        // The service hears from the host itself how the peer's half has ended. A service that returns that future, as one
        // that echoes does, could not be given one of this component's own: nobody may read a future that is his to write.
        let (mut outbound, outbound_end) = handler::handle(peer, inbound, inbound_end).await;
        let (written, all_written) = oneshot::channel();
        if M::SEES != Sees::Inbound {
            let (to, reader) = wit_stream::new();
            let mut half = Half::new(std::mem::replace(&mut outbound, reader), to, None);
            let verdict = verdict.clone();
            background::spawn(async move {
                let how = M::outbound(&mut half).await;
                if half.drained && how.is_ok() {
                    drop(half);
                    // It is up to the service.
                    let _ = written.send(());
                } else {
                    drop(half);
                    verdict.give(how).await;
                }
            });
        } else {
            let _ = written.send(());
        }
        background::spawn(async move {
            let how = outbound_end.await;
            if how.is_ok() {
                let _ = ending.send(());
                let _ = all_written.await;
            }
            verdict.give(how).await;
        });
        (outbound, end)
    }
}
