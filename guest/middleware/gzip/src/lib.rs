//! Decodes gzip from the peer, and encodes the bytes of the service as gzip (RFC 1952).
//!
//! The peer can send one or several members. The service's bytes become one member. The encoder is
//! flushed after each chunk, so the peer can decode all bytes that the service has sent so far.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};
use inet_middleware::{ErrorCode, Half, Middleware, Sees, export};

struct Gzip;

impl Middleware for Gzip {
    const SEES: Sees = Sees::Both;

    async fn inbound(half: &mut Half) -> Result<(), ErrorCode> {
        let mut decoder = MultiGzDecoder::new(Vec::new());
        let mut chunk = Vec::new();
        let mut began = false;
        while half.read(&mut chunk).await? > 0 {
            began = true;
            let mut rest = chunk.as_slice();
            // A few bytes can expand to many. One call produces at most as many bytes as fit into
            // the decoder's buffer.
            while !rest.is_empty() {
                let taken = decoder.write(rest).map_err(corrupt)?;
                rest = &rest[taken..];
                give(half, decoder.get_mut()).await?;
            }
            chunk.clear();
            decoder.flush().map_err(corrupt)?;
            give(half, decoder.get_mut()).await?;
        }
        // A peer that sends no bytes need not send an empty member.
        if began {
            decoder.try_finish().map_err(corrupt)?;
            give(half, decoder.get_mut()).await?;
        }
        Ok(())
    }

    async fn outbound(half: &mut Half) -> Result<(), ErrorCode> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let mut chunk = Vec::new();
        while half.read(&mut chunk).await? > 0 {
            encoder.write_all(&chunk).map_err(impossible)?;
            chunk.clear();
            // The peer may wait for these bytes before it sends more.
            encoder.flush().map_err(impossible)?;
            give(half, encoder.get_mut()).await?;
        }
        half.write_all(encoder.finish().map_err(impossible)?).await
    }
}

/// Passes on the bytes that were produced so far.
async fn give(half: &mut Half, made: &mut Vec<u8>) -> Result<(), ErrorCode> {
    if made.is_empty() {
        return Ok(());
    }
    half.write_all(std::mem::take(made)).await
}

/// Maps an error of the decoder: the peer's bytes are not valid gzip, or are incomplete.
fn corrupt(_: io::Error) -> ErrorCode {
    ErrorCode::ProtocolError
}

/// Maps an error of the encoder. None occurs, because writing to a vector cannot fail.
fn impossible(_: io::Error) -> ErrorCode {
    ErrorCode::InternalError
}

export!(Gzip);
