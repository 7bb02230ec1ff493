//! Forwards the end of its inbound half as often as its first byte says, each time the end that it
//! got the time before. Then it echoes.

wit_bindgen::generate!({
    path: "../../../wit",
    inline: "
        package hostile:chain;
        world chain {
            import inet:service/ends@0.1.0;
            export inet:service/handler@0.1.0;
        }
    ",
    world: "hostile:chain/chain",
    generate_all,
});
use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use inet::service::ends::forward;
use wit_bindgen::{FutureReader, StreamReader};

type End = FutureReader<Result<(), ErrorCode>>;

struct Chain;

impl Guest for Chain {
    async fn handle(peer: Peer, mut inbound: StreamReader<u8>, mut end: End) -> (StreamReader<u8>, End) {
        let times = inbound.next().await.unwrap_or_default();
        for _ in 0..times {
            end = forward(peer.connection, end);
        }
        (inbound, end)
    }
}

export!(Chain);
