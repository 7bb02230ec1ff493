//! Echoes each line that the peer sends, with the streams contract.
//!
//! `quit` ends the connection. A line of more than 4,096 bytes also ends it, after an error
//! message.

wit_bindgen::generate!({ path: "../../wit", world: "service" });

use std::ops::ControlFlow;

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use line_framer::Framer;
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
        background::spawn(async move {
            let result = serve(inbound, inbound_end, writer).await;
            // This fails only if the connection is gone. There is nobody left to inform.
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
    let mut framer = Framer::new(MAX_LINE);
    let mut buffer = Vec::with_capacity(CHUNK);
    let mut reply = Vec::new();
    loop {
        let (status, chunk) = inbound.read(buffer).await;
        let fed = framer.feed(&chunk, |line| {
            if line.trim_ascii() == b"quit" {
                return ControlFlow::Break(());
            }
            reply.extend_from_slice(line);
            ControlFlow::Continue(())
        });
        if fed.is_err() {
            let error = format!("error: a line may have at most {MAX_LINE} bytes\n");
            reply.extend_from_slice(error.as_bytes());
        }
        let ended = status == StreamResult::Dropped;
        if ended {
            reply.extend_from_slice(framer.rest());
        }
        if !reply.is_empty() {
            reply = outbound.write_all(reply).await;
            if !reply.is_empty() {
                return Err(ErrorCode::ConnectionReset);
            }
        }
        match fed {
            Ok(ControlFlow::Continue(())) if ended => return inbound_end.await,
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) | Err(_) => return Ok(()),
        }
        buffer = chunk;
        buffer.clear();
    }
}

export!(Lines);
