//! The streams contract: an `async` function that reads from a connection and writes to it.
//!
//! Implement [`Service`] and pass the type to [`export!`](export).

use wit_bindgen::{FutureReader, StreamReader, StreamResult, StreamWriter};

use bindings::exports::inet::service::handler::Guest;

pub use bell::{Bell, Ringer, bell};
pub use bindings::inet::service::types::{ErrorCode, Peer};
pub use lines::Lines;

mod bell;
mod lines;

/// The bindings that `wit-bindgen` generates for the world `service`.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "service",
        pub_export_macro: true,
        export_macro_name: "export_service",
        default_bindings_module: "inet_guest::streams::bindings",
        generate_all,
    });
}

/// The size of a read in bytes, if the caller's buffer has no spare capacity.
const CHUNK: usize = 16 * 1024;

/// A service that implements the streams contract.
pub trait Service {
    /// Serves one connection.
    ///
    /// After `Ok`, the host sends a FIN behind the last byte that was written.
    ///
    /// By default, each connection has an instance of its own, and no other connection sees its
    /// static variables. With `--isolation service`, connections share an instance and its static
    /// variables. One connection can then wake another with a [`bell()`].
    ///
    /// # Errors
    ///
    /// An error resets the connection. The service can pass on the errors of [`Inbound`] and
    /// [`Outbound`] with `?`, or return any other [`ErrorCode`].
    fn serve(connection: Connection) -> impl Future<Output = Result<(), ErrorCode>>;
}

/// Exports a type that implements [`Service`] from the component.
#[doc(inline)]
pub use crate::__export_streams as export;

#[doc(hidden)]
#[macro_export]
macro_rules! __export_streams {
    ($service:ty) => {
        #[doc(hidden)]
        type __ExportedService = $crate::streams::Exported<$service>;
        $crate::streams::bindings::export_service!(
            __ExportedService with_types_in $crate::streams::bindings
        );
    };
}

/// One connection.
pub struct Connection {
    /// The remote end of the connection.
    pub peer: Peer,
    /// The bytes that the peer sends.
    pub inbound: Inbound,
    /// The bytes for the peer.
    pub outbound: Outbound,
}

/// The inbound half of a connection.
///
/// If it is dropped, the host discards the bytes that the peer still sends.
pub struct Inbound {
    stream: StreamReader<u8>,
    /// Whether `stream` has ended.
    drained: bool,
    /// Resolves to how the peer's half ended. `None` after it was awaited.
    end: Option<FutureReader<Result<(), ErrorCode>>>,
    /// How the half ended, if it has ended.
    ended: Option<Result<(), ErrorCode>>,
}

impl Inbound {
    /// Appends bytes that have arrived to `buffer`, and waits if there are none.
    ///
    /// Reads at most as many bytes as fit into the spare capacity of `buffer`, or 16 KiB if it has
    /// none. Returns the number of bytes, which is 0 only after the peer's FIN.
    ///
    /// # Errors
    ///
    /// Returns why the connection failed. After a read was cancelled, every read returns
    /// [`ErrorCode::InternalError`].
    ///
    /// # Cancel safety
    ///
    /// This function is not cancel safe. If its future is dropped before it completes, as `select!`
    /// can do, then the contents of `buffer` and the bytes that were read are lost.
    pub async fn read(&mut self, buffer: &mut Vec<u8>) -> Result<usize, ErrorCode> {
        if let Some(how) = self.ended {
            return how.map(|()| 0);
        }
        // Stays if this future is dropped before it completes.
        self.ended = Some(Err(ErrorCode::InternalError));
        if buffer.capacity() == buffer.len() {
            buffer.reserve(CHUNK);
        }
        let before = buffer.len();
        while !self.drained {
            let (status, filled) = self.stream.read(std::mem::take(buffer)).await;
            *buffer = filled;
            self.drained = status == StreamResult::Dropped;
            if buffer.len() > before {
                self.ended = None;
                return Ok(buffer.len() - before);
            }
        }
        let how = match self.end.take() {
            Some(end) => end.await,
            None => Ok(()),
        };
        self.ended = Some(how);
        how.map(|()| 0)
    }

    /// Returns a reader of lines of at most `max` bytes, not counting the `\n` at their end.
    pub fn lines(self, max: usize) -> Lines {
        Lines::new(self, max)
    }
}

/// The outbound half of a connection.
pub struct Outbound(StreamWriter<u8>);

impl Outbound {
    /// Writes all bytes.
    ///
    /// Waits until the transport has taken the bytes, so a peer that does not read holds the guest
    /// back.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorCode::ConnectionReset`] if the host takes no more bytes.
    pub async fn write_all(&mut self, bytes: impl Into<Vec<u8>>) -> Result<(), ErrorCode> {
        let left = self.0.write_all(bytes.into()).await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(ErrorCode::ConnectionReset)
        }
    }
}

/// The type that [`export`] passes to the bindings.
#[doc(hidden)]
pub struct Exported<S>(std::marker::PhantomData<S>);

impl<S: Service + 'static> Guest for Exported<S> {
    async fn handle(
        peer: Peer,
        stream: StreamReader<u8>,
        end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (writer, outbound) = bindings::wit_stream::new();
        let (verdict, outbound_end) = bindings::wit_future::new(|| Err(ErrorCode::InternalError));
        let connection = Connection {
            peer,
            inbound: Inbound {
                stream,
                drained: false,
                end: Some(end),
                ended: None,
            },
            outbound: Outbound(writer),
        };
        // The host sends nothing before `handle` returns, so serve the connection in a task that
        // outlives the call.
        background::spawn(async move {
            let served = S::serve(connection).await;
            // This fails only if the connection is gone. There is nobody left to inform.
            let _ = verdict.write(served).await;
        });
        (outbound, outbound_end)
    }
}
