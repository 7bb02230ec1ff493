//! Never reads, never writes and never ends, by the streams contract.

wit_bindgen::generate!({ path: "../../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader};

struct Deaf;

impl Guest for Deaf {
    async fn handle(
        _peer: Peer,
        inbound: StreamReader<u8>,
        inbound_end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (writer, outbound) = wit_stream::new();
        let (end, outbound_end) = wit_future::new(|| Err(ErrorCode::InternalError));
        wit_bindgen::spawn_local(async move {
            // How `inbound` ended is never known, since it is never read to its end.
            let result = inbound_end.await;
            drop((inbound, writer));
            let _ = end.write(result).await;
        });
        (outbound, outbound_end)
    }
}

export!(Deaf);
