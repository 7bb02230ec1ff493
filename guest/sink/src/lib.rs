//! Takes what it is sent, by the streams contract: it greets, ends its own half, and reads on to the peer's end.

wit_bindgen::generate!({ path: "../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader, StreamResult};

struct Sink;

impl Guest for Sink {
    async fn handle(
        _peer: Peer,
        mut inbound: StreamReader<u8>,
        _inbound_end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (mut writer, outbound) = wit_stream::new();
        let (end, outbound_end) = wit_future::new(|| Err(ErrorCode::InternalError));
        background::spawn(async move {
            writer.write_all(b"ready\n".to_vec()).await;
            drop(writer);
            let _ = end.write(Ok(())).await;
            let mut buffer = Vec::with_capacity(16 * 1024);
            loop {
                let (status, chunk) = inbound.read(buffer).await;
                if status == StreamResult::Dropped {
                    return;
                }
                buffer = chunk;
                buffer.clear();
            }
        });
        (outbound, outbound_end)
    }
}

export!(Sink);
