//! A middleware that bounds the length of the lines that the peer sends: a longer one resets the connection, and the service
//! never sees the whole of it. What the service says goes past it.
//!
//! The bound is in bytes, without the `\n`: 4,096, or what the variable `LINE_LIMIT` of its environment says.

use inet_middleware::{ErrorCode, Half, Middleware, Sees, export};

/// The bound where none is granted.
const DEFAULT: usize = 4096;

struct LineLimit;

impl Middleware for LineLimit {
    const SEES: Sees = Sees::Inbound;

    async fn inbound(half: &mut Half) -> Result<(), ErrorCode> {
        let max = limit()?;
        let mut chunk = Vec::new();
        // Bytes of a line that has not ended yet.
        let mut begun = 0;
        while half.read(&mut chunk).await? > 0 {
            let mut rest = chunk.as_slice();
            while let Some(end) = memchr::memchr(b'\n', rest) {
                within(begun + end, max)?;
                rest = &rest[end + 1..];
                begun = 0;
            }
            begun += rest.len();
            within(begun, max)?;
            half.write_all(std::mem::take(&mut chunk)).await?;
        }
        Ok(())
    }
}

fn within(length: usize, max: usize) -> Result<(), ErrorCode> {
    if length > max {
        Err(ErrorCode::LimitExceeded)
    } else {
        Ok(())
    }
}

fn limit() -> Result<usize, ErrorCode> {
    let Ok(text) = std::env::var("LINE_LIMIT") else {
        return Ok(DEFAULT);
    };
    text.parse().map_err(|_| {
        eprintln!("LINE_LIMIT is `{text}`: expected a number of bytes, as {DEFAULT}");
        ErrorCode::InternalError
    })
}

export!(LineLimit);
