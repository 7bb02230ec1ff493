//! Gives bytes back, by the streams contract, and decides by itself how the connection ends.
//!
//! The bytes pass without this guest, as those of `echo` do, but it stays to hear how the peer has ended.

wit_bindgen::generate!({ path: "../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader};

struct Arbiter;

impl Guest for Arbiter {
    async fn handle(
        _peer: Peer,
        inbound: StreamReader<u8>,
        inbound_end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (end, outbound_end) = wit_future::new(|| Err(ErrorCode::InternalError));
        background::spawn(async move {
            let verdict = inbound_end.await;
            // Fails only where the connection is gone, which leaves nobody to tell.
            let _ = end.write(verdict).await;
        });
        (inbound, outbound_end)
    }
}

export!(Arbiter);
