//! Echoes line by line, by the streams contract.
//!
//! `quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.

wit_bindgen::generate!({ path: "../../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader, StreamResult, StreamWriter};

/// The longest line, in bytes before its `\n`.
const MAX_LINE: usize = 4096;

/// How much is read at once, in bytes.
const CHUNK: usize = 16 * 1024;

struct Lines;

impl Guest for Lines {
    async fn handle(
        _peer: Peer,
        inbound: StreamReader<u8>,
        inbound_end: FutureReader<Result<(), ErrorCode>>,
    ) -> (StreamReader<u8>, FutureReader<Result<(), ErrorCode>>) {
        let (writer, outbound) = wit_stream::new();
        let (end, outbound_end) = wit_future::new(|| Err(ErrorCode::InternalError));
        // Nothing is sent before `handle` returns, so the work goes on beside it.
        wit_bindgen::spawn_local(async move {
            let result = serve(inbound, inbound_end, writer).await;
            // Fails only where the connection is gone, which leaves nobody to tell.
            let _ = end.write(result).await;
        });
        (outbound, outbound_end)
    }
}

async fn serve(
    mut inbound: StreamReader<u8>,
    inbound_end: FutureReader<Result<(), ErrorCode>>,
    mut outbound: StreamWriter<u8>,
) -> Result<(), ErrorCode> {
    // What came behind the last `\n`: at most `MAX_LINE` bytes.
    let mut rest = Vec::new();
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        let status;
        (status, chunk) = inbound.read(chunk).await;
        let (mut reply, done) = answer(&mut rest, &chunk);
        chunk.clear();
        let ended = status == StreamResult::Dropped;
        if ended && !done {
            reply.append(&mut rest);
        }
        if !reply.is_empty() && !outbound.write_all(reply).await.is_empty() {
            return Err(ErrorCode::ConnectionReset);
        }
        if done {
            return Ok(());
        }
        if ended {
            return inbound_end.await;
        }
    }
}

/// What a chunk is answered with, and whether that is the end. A chunk is not a message: a line may come in many chunks, and
/// a chunk may hold many lines.
fn answer(rest: &mut Vec<u8>, chunk: &[u8]) -> (Vec<u8>, bool) {
    let mut reply = Vec::with_capacity(rest.len() + chunk.len());
    for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
        rest.extend_from_slice(piece);
        let line = rest.strip_suffix(b"\n");
        if line.unwrap_or(rest).len() > MAX_LINE {
            reply.extend_from_slice(format!("error: a line may have {MAX_LINE} bytes\n").as_bytes());
            return (reply, true);
        }
        if let Some(line) = line {
            if line.trim_ascii() == b"quit" {
                return (reply, true);
            }
            reply.append(rest);
        }
    }
    (reply, false)
}

export!(Lines);
