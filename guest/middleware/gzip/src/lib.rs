//! A middleware for peers that speak gzip (RFC 1952): it decodes what they send, one member or several, and encodes what
//! the service says as one member, which the peer can decode as far as the service has spoken.

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
            // However much a few bytes stand for, one step makes no more of them than fits into the decoder's buffer.
            while !rest.is_empty() {
                let taken = decoder.write(rest).map_err(corrupt)?;
                rest = &rest[taken..];
                give(half, decoder.get_mut()).await?;
            }
            chunk.clear();
            decoder.flush().map_err(corrupt)?;
            give(half, decoder.get_mut()).await?;
        }
        // Who has nothing to say needs no member for it.
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
            // The peer may wait for this before it says more.
            encoder.flush().map_err(impossible)?;
            give(half, encoder.get_mut()).await?;
        }
        half.write_all(encoder.finish().map_err(impossible)?).await
    }
}

/// Passes on what has been made so far.
async fn give(half: &mut Half, made: &mut Vec<u8>) -> Result<(), ErrorCode> {
    if made.is_empty() {
        return Ok(());
    }
    half.write_all(std::mem::take(made)).await
}

/// The peer sent what is no gzip, or broke off.
fn corrupt(_: io::Error) -> ErrorCode {
    ErrorCode::ProtocolError
}

/// A vector takes all that is written to it.
fn impossible(_: io::Error) -> ErrorCode {
    ErrorCode::InternalError
}

export!(Gzip);
