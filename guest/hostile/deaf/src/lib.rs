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
        wit_bindgen::spawn_local(async move {
            std::future::pending::<()>().await;
            drop((inbound, writer));
        });
        (outbound, inbound_end)
    }
}

export!(Deaf);
