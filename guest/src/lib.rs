//! Echo (RFC 862) by the streams contract: the outbound half is the inbound half.

wit_bindgen::generate!({ path: "../wit", world: "service" });
use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader};

type End = FutureReader<Result<(), ErrorCode>>;
struct Echo;
impl Guest for Echo {
    async fn handle(_peer: Peer, inbound: StreamReader<u8>, end: End) -> (StreamReader<u8>, End) {
        (inbound, end)
    }
}
export!(Echo);
