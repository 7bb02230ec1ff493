//! Character generator (RFC 864) by the streams contract: lines of 72 printable characters until the peer goes.
//!
//! Whoever reads slowly slows the guest down: a write completes when the transport has taken the bytes.

wit_bindgen::generate!({ path: "../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader, StreamWriter};

/// The printable characters of ASCII, space included.
const FIRST: u8 = b' ';
const COUNT: usize = 95;

/// Characters in a line, not counting its CR LF.
const WIDTH: usize = 72;

struct Chargen;

impl Guest for Chargen {
    async fn handle(
        _peer: Peer,
        _inbound: StreamReader<u8>,
        _inbound_end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (writer, outbound) = wit_stream::new();
        let (end, outbound_end) = wit_future::new(|| Err(ErrorCode::InternalError));
        background::spawn(async move {
            generate(writer).await;
            let _ = end.write(Err(ErrorCode::ConnectionReset)).await;
        });
        (outbound, outbound_end)
    }
}

/// Writes the pattern again and again until nobody takes it.
async fn generate(mut outbound: StreamWriter<u8>) {
    loop {
        if !outbound.write_all(pattern()).await.is_empty() {
            return;
        }
    }
}

/// One period of the pattern: each line starts one character later than the one before.
fn pattern() -> Vec<u8> {
    let mut lines = Vec::with_capacity(COUNT * (WIDTH + 2));
    for start in 0..COUNT {
        let line = (start..start + WIDTH).map(|i| FIRST + (i % COUNT) as u8);
        lines.extend(line);
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

export!(Chargen);
