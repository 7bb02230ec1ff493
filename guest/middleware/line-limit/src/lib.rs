//! Limits the length of the lines that the peer sends. Bytes from the service pass unchanged.
//!
//! A line that is too long resets the connection, and the service never receives all of it. The
//! limit is 4,096 bytes, without the `\n`. The environment variable `LINE_LIMIT` can set another.

use std::env::VarError;

use inet_middleware::{ErrorCode, Half, Middleware, Sees, export};

/// The limit in bytes, if `LINE_LIMIT` is not set.
const DEFAULT: usize = 4096;

struct LineLimit;

impl Middleware for LineLimit {
    const SEES: Sees = Sees::Inbound;

    fn check() -> Result<(), String> {
        limit().map(drop)
    }

    async fn inbound(half: &mut Half) -> Result<(), ErrorCode> {
        let max = limit().map_err(|_| ErrorCode::InternalError)?;
        let mut chunk = Vec::new();
        // The number of bytes after the last `\n`.
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

/// Fails if a line is too long.
fn within(length: usize, max: usize) -> Result<(), ErrorCode> {
    if length > max {
        Err(ErrorCode::LimitExceeded)
    } else {
        Ok(())
    }
}

/// Returns the maximum length of a line.
///
/// # Errors
///
/// Fails if the variable `LINE_LIMIT` is not a whole number of at least 1, in digits only.
fn limit() -> Result<usize, String> {
    let text = match std::env::var("LINE_LIMIT") {
        Ok(text) => text,
        Err(VarError::NotPresent) => return Ok(DEFAULT),
        Err(VarError::NotUnicode(text)) => text.to_string_lossy().into_owned(),
    };
    // `parse` would take a sign.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(limit) if is_number && limit > 0 => Ok(limit),
        _ => Err(format!(
            "LINE_LIMIT is `{text}`; expected a number of bytes from 1 to {}, such as {DEFAULT}",
            usize::MAX
        )),
    }
}

export!(LineLimit);
