//! Decodes gzip from the peer, and encodes the bytes of the service as gzip (RFC 1952).
//!
//! The peer sends one or several members, and can send zero bytes behind the last one, which gzip(1)
//! ignores too. A stream without a member is cut off: gzip(1) encodes nothing as a member too. The
//! service's bytes become one member. The encoder is flushed after each chunk, so
//! the peer can decode all bytes that the service has sent so far.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use inet_middleware::{ErrorCode, Half, Middleware, Sees, export};

struct Gzip;

impl Middleware for Gzip {
    const SEES: Sees = Sees::Both;

    async fn inbound(half: &mut Half) -> Result<(), ErrorCode> {
        let mut members = Members::Nothing(Vec::new());
        let mut chunk = Vec::new();
        while half.read(&mut chunk).await? > 0 {
            let mut rest = chunk.as_slice();
            // A few bytes can expand to many. One call produces at most as many bytes as fit into
            // the decoder's buffer.
            while !rest.is_empty() {
                let taken = members.take(rest).map_err(corrupt)?;
                rest = &rest[taken..];
                give(half, members.made()).await?;
            }
            chunk.clear();
            members.flush().map_err(corrupt)?;
            give(half, members.made()).await?;
        }
        members.finish().map_err(corrupt)?;
        give(half, members.made()).await
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

/// The state of the peer's gzip stream, with the decoded bytes that were not passed on yet.
#[allow(clippy::large_enum_variant, reason = "a connection has one")]
enum Members {
    /// No byte has arrived.
    Nothing(Vec<u8>),
    /// A member has begun.
    Member(GzDecoder<Vec<u8>>),
    /// All members so far are complete.
    Whole(Vec<u8>),
    /// All members are complete, and zero bytes follow them.
    Padded(Vec<u8>),
}

impl Members {
    /// Decodes some of `bytes`, of which there is at least one, and returns how many.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self {
                Self::Member(decoder) => match decoder.write(bytes)? {
                    // The member has ended before them.
                    0 => self.finish()?,
                    taken => return Ok(taken),
                },
                Self::Whole(made) if bytes[0] == 0 => *self = Self::Padded(std::mem::take(made)),
                Self::Nothing(made) | Self::Whole(made) => {
                    *self = Self::Member(GzDecoder::new(std::mem::take(made)));
                }
                Self::Padded(_) if bytes.iter().all(|byte| *byte == 0) => return Ok(bytes.len()),
                Self::Padded(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Decodes what it can without further bytes.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Member(decoder) => decoder.flush(),
            _ => Ok(()),
        }
    }

    /// Checks that there is a member, and that the last one is whole.
    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Nothing(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Self::Member(decoder) => {
                decoder.try_finish()?;
                *self = Self::Whole(std::mem::take(decoder.get_mut()));
            }
            Self::Whole(_) | Self::Padded(_) => {}
        }
        Ok(())
    }

    /// The decoded bytes.
    fn made(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Member(decoder) => decoder.get_mut(),
            Self::Nothing(made) | Self::Whole(made) | Self::Padded(made) => made,
        }
    }
}

/// Passes on what has been made so far.
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
