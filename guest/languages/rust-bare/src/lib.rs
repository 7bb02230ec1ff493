//! Echoes each line that the client sends, with the streams contract.
//!
//! `quit` ends the connection. A line of more than 4,096 bytes also ends it, after an error
//! message.

wit_bindgen::generate!({ path: "../../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, StreamReader, StreamResult, StreamWriter};

/// The maximum length of a line in bytes, without the `\n` at its end.
const MAX_LINE: usize = 4096;

/// The capacity of the read buffer, in bytes.
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
        // The host sends nothing before `handle` returns, so serve the connection in a task that
        // outlives the call.
        wit_bindgen::spawn_local(async move {
            let result = serve(inbound, inbound_end, writer).await;
            // This fails only if the connection is gone. There is nobody left to inform.
            let _ = end.write(result).await;
        });
        (outbound, outbound_end)
    }
}

/// Serves one connection. `Ok` ends it with a FIN, and an error resets it.
async fn serve(
    mut inbound: StreamReader<u8>,
    inbound_end: FutureReader<Result<(), ErrorCode>>,
    mut outbound: StreamWriter<u8>,
) -> Result<(), ErrorCode> {
    // The bytes after the last `\n`: the start of an incomplete line, at most `MAX_LINE` bytes.
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

/// Returns the reply to a chunk, and whether the connection ends after it.
///
/// A chunk is not a message: a line can arrive in several chunks, and a chunk can contain several
/// lines.
fn answer(rest: &mut Vec<u8>, chunk: &[u8]) -> (Vec<u8>, bool) {
    let mut reply = Vec::with_capacity(rest.len() + chunk.len());
    for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
        rest.extend_from_slice(piece);
        let line = rest.strip_suffix(b"\n");
        if line.unwrap_or(rest).len() > MAX_LINE {
            let error = format!("error: a line may have at most {MAX_LINE} bytes\n");
            reply.extend_from_slice(error.as_bytes());
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
