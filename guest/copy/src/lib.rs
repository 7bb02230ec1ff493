//! Gives bytes back, by the streams contract, and has each pass through its hands: what a guest does that changes them.

wit_bindgen::generate!({ path: "../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader, StreamResult, StreamWriter};

/// How much is read at once, in bytes.
const CHUNK: usize = 64 * 1024;

struct Copy;

impl Guest for Copy {
    async fn handle(
        _peer: Peer,
        inbound: StreamReader<u8>,
        inbound_end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (writer, outbound) = wit_stream::new();
        let (end, outbound_end) = wit_future::new(|| Err(ErrorCode::InternalError));
        background::spawn(async move {
            let result = copy(inbound, inbound_end, writer).await;
            // Fails only where the connection is gone, which leaves nobody to tell.
            let _ = end.write(result).await;
        });
        (outbound, outbound_end)
    }
}

async fn copy(
    mut inbound: StreamReader<u8>,
    inbound_end: FutureReader<Result<(), ErrorCode>>,
    mut outbound: StreamWriter<u8>,
) -> Result<(), ErrorCode> {
    let mut buffer = Vec::with_capacity(CHUNK);
    loop {
        let (status, chunk) = inbound.read(buffer).await;
        if !chunk.is_empty() {
            buffer = outbound.write_all(chunk).await;
            if !buffer.is_empty() {
                return Err(ErrorCode::ConnectionReset);
            }
        } else {
            buffer = chunk;
        }
        if status == StreamResult::Dropped {
            return inbound_end.await;
        }
        buffer.reserve(CHUNK);
    }
}

export!(Copy);
