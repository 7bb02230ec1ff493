//! A library for middleware in Rust: components between a peer and a service that change bytes.
//!
//! A middleware is a component of the world `middleware`. It serves connections by calling the
//! service behind it, and changes the bytes from the peer, the bytes from the service, or both.
//! Implement [`Middleware`] and pass the type to [`export!`]:
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
//! A middleware is a crate of type `cdylib`, built for the target `wasm32-wasip2`.
//!
//! This crate is separate from `inet-guest`, because a component that links it imports a handler.

#![warn(missing_docs)]

use std::cell::Cell;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use futures_channel::oneshot;
use wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter};

use bindings::exports::inet::service::configuration;
use bindings::inet::service::{ends, handler};
use inet_guest::streams::Peer;
use inet_guest::streams::bindings::exports::inet::service::handler::Guest;
use inet_guest::streams::bindings::{wit_future, wit_stream};

pub use inet_guest::streams::ErrorCode;

#[doc(hidden)]
pub use inet_guest;

/// The bindings that `wit-bindgen` generates for what a middleware imports and for its check of its
/// configuration.
///
/// A middleware exports a handler too, like a service. Its bindings are those of
/// [`inet_guest::streams`].
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit",
        inline: "package inet:sdk; world caller {
            import inet:service/handler@0.1.0;
            import inet:service/ends@0.1.0;
            export inet:service/configuration@0.1.0;
        }",
        world: "inet:sdk/caller",
        pub_export_macro: true,
        export_macro_name: "export_configuration",
        default_bindings_module: "inet_middleware::bindings",
        with: { "inet:service/types@0.1.0": inet_guest::streams::bindings::inet::service::types },
        generate_all,
    });
}

/// The size of a read in bytes, if the caller's buffer has no spare capacity.
const CHUNK: usize = 16 * 1024;

/// How a half ended.
type End = Result<(), ErrorCode>;

/// The directions that a middleware processes.
///
/// Bytes in the other direction bypass the middleware at no cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// Bytes from the peer to the service.
    Inbound,
    /// Bytes from the service to the peer.
    Outbound,
    /// Bytes in both directions.
    Both,
}

/// A middleware, with one function for each direction.
///
/// The crate does the rest:
///
/// - It passes on the end of each half, and each reset.
/// - Back-pressure works in both directions: a side that does not read holds back the side that
///   writes.
/// - When the service has finished, the middleware stops waiting for bytes from the peer.
pub trait Middleware {
    /// The directions that the middleware processes.
    const SEES: Sees;

    /// Checks the grants of the operator. The host calls it at each load.
    ///
    /// # Errors
    ///
    /// An error makes the host refuse the component. It is one sentence that names the grant, what
    /// was found, and what was expected.
    fn check() -> Result<(), String> {
        Ok(())
    }

    /// Carries bytes from the peer to the service. By default, it passes them unchanged.
    ///
    /// After `Ok`, the stream that the service reads ends, and the service learns how the peer's half
    /// ended. After an error, the half ends for the service with that error, and the connection is
    /// reset, even if the service has ended its own half.
    ///
    /// # Errors
    ///
    /// An error resets the connection, with two exceptions: the service takes no more bytes, or it
    /// has already ended its outbound half and only continues to read. The function can pass on the
    /// errors of `half` with `?`, or return any other [`ErrorCode`].
    fn inbound(half: &mut Half) -> impl Future<Output = End> {
        half.pass()
    }

    /// Carries bytes from the service to the peer. By default, it passes them unchanged.
    ///
    /// After `Ok`, the stream to the peer ends. If the function has read all bytes of the service,
    /// the service decides whether the host then sends a FIN or resets the connection. Otherwise,
    /// the host sends a FIN at once.
    ///
    /// If the service resets the connection, the host resets it at once, even if this function is
    /// still running.
    ///
    /// # Errors
    ///
    /// An error resets the connection, as for [`inbound`](Self::inbound).
    fn outbound(half: &mut Half) -> impl Future<Output = End> {
        half.pass()
    }
}

/// Exports a type that implements [`Middleware`] from the component.
#[macro_export]
macro_rules! export {
    ($middleware:ty) => {
        #[doc(hidden)]
        type __ExportedMiddleware = $crate::Exported<$middleware>;
        $crate::inet_guest::streams::bindings::export_service!(
            __ExportedMiddleware with_types_in $crate::inet_guest::streams::bindings
        );
        $crate::bindings::export_configuration!(
            __ExportedMiddleware with_types_in $crate::bindings
        );
    };
}

/// One direction of a connection through a middleware: bytes are read from one side and written to
/// the other.
pub struct Half {
    from: StreamReader<u8>,
    to: StreamWriter<u8>,
    /// Whether `from` has ended.
    drained: bool,
    /// Whether the reader of `to` is gone.
    unwanted: bool,
    /// Whether to read from `from` only while the other side is reading from `to`.
    asks: bool,
    /// Resolves when the service has ended its outbound half. It may then need no more bytes of
    /// this half.
    service_ended: Option<oneshot::Receiver<()>>,
    /// How `from` ends; `None` once that is known.
    end: Option<Pin<Box<dyn Future<Output = End>>>>,
    /// How it has ended, if it has.
    ended: End,
}

impl Half {
    fn new(
        from: StreamReader<u8>,
        to: StreamWriter<u8>,
        service_ended: Option<oneshot::Receiver<()>>,
        end: impl Future<Output = End> + 'static,
    ) -> Self {
        Self {
            from,
            to,
            drained: false,
            unwanted: false,
            asks: service_ended.is_some(),
            service_ended,
            end: Some(Box::pin(end)),
            ended: Ok(()),
        }
    }

    /// Appends bytes that have arrived to `buffer`, and waits if there are none.
    ///
    /// Reads at most as many bytes as fit into the spare capacity of `buffer`, or 16 KiB if it has
    /// none. Returns the number of bytes, which is 0 only after FIN.
    ///
    /// # Errors
    ///
    /// Returns the error code of a half that failed, and [`ErrorCode::ConnectionReset`] if the other
    /// side takes no more bytes.
    pub async fn read(&mut self, buffer: &mut Vec<u8>) -> Result<usize, ErrorCode> {
        if buffer.capacity() == buffer.len() {
            buffer.reserve(CHUNK);
        }
        let before = buffer.len();
        while !self.drained && buffer.len() == before {
            if self.asks {
                // A write of zero bytes completes when the other side reads or has dropped its end.
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
                    // Check again whether the other side still reads.
                    self.service_ended = None;
                    read.as_mut().cancel()
                }
            };
            *buffer = filled;
            self.drained = status == StreamResult::Dropped;
        }
        if buffer.len() == before {
            self.hear().await?;
        }
        Ok(buffer.len() - before)
    }

    /// Waits until it is known how the half ended.
    async fn hear(&mut self) -> End {
        if let Some(end) = &mut self.end {
            self.ended = end.await;
            self.end = None;
        }
        self.ended
    }

    /// Ends both sides after all written bytes, and waits until it is known how the half ended.
    async fn close(mut self) -> End {
        // To the host, a dropped half has ended with FIN.
        drop((self.from, self.to));
        match self.end.take() {
            Some(end) => end.await,
            None => self.ended,
        }
    }

    /// Writes all bytes.
    ///
    /// Waits until the other side has taken the bytes, so a side that does not read holds the
    /// middleware back.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorCode::ConnectionReset`] if the other side takes no more bytes.
    pub async fn write_all(&mut self, bytes: impl Into<Vec<u8>>) -> Result<(), ErrorCode> {
        let left = self.to.write_all(bytes.into()).await;
        self.wanted(left.is_empty())
    }

    /// Copies all remaining bytes unchanged.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorCode::ConnectionReset`] if the other side takes no more bytes.
    pub async fn pass(&mut self) -> Result<(), ErrorCode> {
        let mut buffer = Vec::new();
        while self.read(&mut buffer).await? > 0 {
            buffer = self.to.write_all(buffer).await;
            self.wanted(buffer.is_empty())?;
        }
        Ok(())
    }

    /// Fails if the reader of `to` is gone, and remembers it.
    fn wanted(&mut self, wanted: bool) -> Result<(), ErrorCode> {
        self.unwanted |= !wanted;
        if wanted {
            Ok(())
        } else {
            Err(ErrorCode::ConnectionReset)
        }
    }
}

/// The result of the connection. Only the first value counts.
#[derive(Clone)]
struct Verdict(Rc<Cell<Option<FutureWriter<End>>>>);

impl Verdict {
    async fn give(&self, how: End) {
        if let Some(verdict) = self.0.take() {
            // This fails only if the connection is gone. There is nobody left to inform.
            let _ = verdict.write(how).await;
        }
    }
}

/// The type that [`export!`] passes to the bindings.
#[doc(hidden)]
pub struct Exported<M>(PhantomData<M>);

impl<M: Middleware + 'static> Guest for Exported<M> {
    async fn handle(
        peer: Peer,
        mut inbound: StreamReader<u8>,
        mut inbound_end: FutureReader<End>,
    ) -> (StreamReader<u8>, FutureReader<End>) {
        let (verdict, end) = wit_future::new(|| Err(ErrorCode::InternalError));
        let verdict = Verdict(Rc::new(Cell::new(Some(verdict))));
        let (ending, service_ended) = oneshot::channel();
        if M::SEES != Sees::Outbound {
            let (to, reader) = wit_stream::new();
            let from = std::mem::replace(&mut inbound, reader);
            // The host passes the end on to the next part. The service can return the future that it
            // gets, as an echo service does. So it must not be a future of this component: a component
            // must not read a future if it holds the writing end.
            let (told, forwarded) = wit_future::new(|| Err(ErrorCode::InternalError));
            let forwarded = ends::forward(peer.connection, forwarded);
            let inbound_end = std::mem::replace(&mut inbound_end, forwarded);
            let mut half = Half::new(from, to, Some(service_ended), inbound_end.into_future());
            let verdict = verdict.clone();
            // The service may read before its `handle` returns, so start this task now.
            background::spawn(async move {
                let refusal = match M::inbound(&mut half).await {
                    // It is for the service to say what follows from a half that has failed or that it does not want.
                    Err(code) if !half.unwanted && half.ended.is_ok() => Some(code),
                    _ => None,
                };
                if let Some(code) = refusal {
                    // Before the stream ends, which would be taken for FIN.
                    let _ = told.write(Err(code)).await;
                    drop(half);
                    verdict.give(Err(code)).await;
                } else {
                    let wanted = !half.unwanted;
                    if wanted {
                        // It is done when the last bytes were looked at. Nothing may be written to who wants no more.
                        let _ = half.to.write(Vec::new()).await;
                    }
                    let how = half.close().await;
                    // The host may end the connection when it is told. A part that does not want to hear how the half has
                    // ended has its turn now to see that it has. An asynchronous yield would not leave this component.
                    if wanted {
                        wit_bindgen::yield_blocking();
                    }
                    let _ = told.write(how).await;
                }
            });
        }
        let (mut outbound, outbound_end) = handler::handle(peer, inbound, inbound_end).await;
        let (hear, heard) = oneshot::channel();
        let (written, all_written) = oneshot::channel();
        if M::SEES != Sees::Inbound {
            let (to, reader) = wit_stream::new();
            let from = std::mem::replace(&mut outbound, reader);
            let heard = async { heard.await.unwrap_or(Err(ErrorCode::InternalError)) };
            let mut half = Half::new(from, to, None, heard);
            let verdict = verdict.clone();
            background::spawn(async move {
                let how = M::outbound(&mut half).await;
                let whole = half.drained && how.is_ok();
                drop(half);
                if whole {
                    // The service decides how the connection ends.
                    let _ = written.send(());
                } else {
                    verdict.give(how).await;
                }
            });
        } else {
            let _ = written.send(());
        }
        background::spawn(async move {
            let how = outbound_end.await;
            // Fails where the middleware does not want to see outbound bytes, or no more of them.
            let _ = hear.send(how);
            if how.is_ok() {
                let _ = ending.send(());
                let _ = all_written.await;
            }
            verdict.give(how).await;
        });
        (outbound, end)
    }
}

impl<M: Middleware + 'static> configuration::Guest for Exported<M> {
    fn check() -> Result<(), String> {
        M::check()
    }
}
