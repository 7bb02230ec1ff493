//! Echoes by the streams contract until it is sent a `!`, at which it resets the connection.

wit_bindgen::generate!({ path: "../../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader, StreamResult};

struct HangUp;

impl Guest for HangUp {
    async fn handle(
        _peer: Peer,
        mut inbound: StreamReader<u8>,
        inbound_end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (mut writer, outbound) = wit_stream::new();
        let (end, outbound_end) = wit_future::new(|| Err(ErrorCode::InternalError));
        wit_bindgen::spawn_local(async move {
            let result = loop {
                let (status, chunk) = inbound.read(Vec::with_capacity(1024)).await;
                if chunk.contains(&b'!') {
                    break Err(ErrorCode::Refused);
                }
                if !writer.write_all(chunk).await.is_empty() || status == StreamResult::Dropped {
                    break inbound_end.await;
                }
            };
            // The writer is open still: a reset does not wait for the end of the stream.
            let _ = end.write(result).await;
            drop(writer);
        });
        (outbound, outbound_end)
    }
}

export!(HangUp);
