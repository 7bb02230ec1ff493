//! Echoes by the streams contract until it is sent a `!`, at which it makes streams and never lets go of them.

wit_bindgen::generate!({ path: "../../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader, StreamResult};

struct Handles;

impl Guest for Handles {
    async fn handle(
        _peer: Peer,
        mut inbound: StreamReader<u8>,
        inbound_end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (mut writer, outbound) = wit_stream::new();
        wit_bindgen::spawn_local(async move {
            loop {
                let (status, chunk) = inbound.read(Vec::with_capacity(1024)).await;
                while chunk.contains(&b'!') {
                    std::mem::forget(wit_stream::new::<u8>());
                }
                if !writer.write_all(chunk).await.is_empty() || status == StreamResult::Dropped {
                    return;
                }
            }
        });
        (outbound, inbound_end)
    }
}

export!(Handles);
