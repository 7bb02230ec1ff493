//! The streams contract: a service reads from one half of its connection and writes to the other.

use wit_bindgen::{FutureReader, StreamReader, StreamResult, StreamWriter};

use bindings::exports::inet::service::handler::Guest;

pub use bell::{Bell, Ringer, bell};
pub use bindings::inet::service::types::{ErrorCode, Peer};
pub use lines::Lines;

mod bell;
mod lines;

/// What `wit-bindgen` makes of world `service`.
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

/// How much is read at once, in bytes, unless the reader says otherwise.
const CHUNK: usize = 16 * 1024;

/// A service by the streams contract.
pub trait Service {
    /// Serves one connection. `Ok` ends it with FIN, after all that was written; an error resets it.
    ///
    /// Each connection has an instance of its own, so what is kept in statics is seen by no other; unless the operator has
    /// connections share an instance, by `--isolation service`. Then statics are where they meet, and a [`bell`] is how one wakes
    /// another.
    ///
    /// # Errors
    ///
    /// Whatever the service wants to reset the connection for; the errors of its halves are passed on by `?`.
    fn serve(connection: Connection) -> impl Future<Output = Result<(), ErrorCode>>;
}

/// Makes a type that is a [`Service`] what the component exports.
#[doc(inline)]
pub use crate::__export_streams as export;

#[doc(hidden)]
#[macro_export]
macro_rules! __export_streams {
    ($service:ty) => {
        #[doc(hidden)]
        type __ExportedService = $crate::streams::Exported<$service>;
        $crate::streams::bindings::export_service!(__ExportedService with_types_in $crate::streams::bindings);
    };
}

/// One connection.
pub struct Connection {
    /// Who is there.
    pub peer: Peer,
    /// What comes from the peer.
    pub inbound: Inbound,
    /// What goes to the peer.
    pub outbound: Outbound,
}

/// The inbound half. When it is dropped, what the peer still sends is thrown away.
pub struct Inbound {
    stream: StreamReader<u8>,
    /// Nothing more comes by `stream`.
    drained: bool,
    /// `None` once it has been asked.
    end: Option<FutureReader<Result<(), ErrorCode>>>,
    /// How it ended, if it has.
    ended: Option<Result<(), ErrorCode>>,
}

impl Inbound {
    /// Reads what has arrived, waiting for it if need be, and appends it to `buffer`: as many bytes as that has room for
    /// without growing, or 16 KiB if it has none. Gives how many bytes came, which is 0 only after the peer's FIN.
    ///
    /// It is to be waited for to its end. Who gives it up before, as by a `select`, loses what it had taken, `buffer` included,
    /// and the half fails from then on.
    ///
    /// # Errors
    ///
    /// How the connection failed; `internal-error` where a read was given up.
    pub async fn read(&mut self, buffer: &mut Vec<u8>) -> Result<usize, ErrorCode> {
        if let Some(how) = self.ended {
            return how.map(|()| 0);
        }
        // Unless this comes to its end.
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

    /// Reads lines of at most `max` bytes, not counting the `\n` at their end.
    pub fn lines(self, max: usize) -> Lines {
        Lines::new(self, max)
    }
}

/// The outbound half.
pub struct Outbound(StreamWriter<u8>);

impl Outbound {
    /// Writes all of `bytes`. It is done when the transport has taken them, so a peer that does not read holds the guest
    /// back.
    ///
    /// # Errors
    ///
    /// `connection-reset`: nobody takes what is written any more.
    pub async fn write_all(&mut self, bytes: impl Into<Vec<u8>>) -> Result<(), ErrorCode> {
        let left = self.0.write_all(bytes.into()).await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(ErrorCode::ConnectionReset)
        }
    }
}

/// What [`export`] hands to the bindings.
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
        // Nothing is sent before `handle` returns, so the work goes on beside it.
        background::spawn(async move {
            let served = S::serve(connection).await;
            // Fails only where the connection is gone, which leaves nobody to tell.
            let _ = verdict.write(served).await;
        });
        (outbound, outbound_end)
    }
}
