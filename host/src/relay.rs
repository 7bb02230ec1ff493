//! Bytes from one half straight to the other, for guests that have nothing to do with them.

use std::pin::pin;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::buffer;
use crate::half::{Failure, Lent};

/// Where a relay has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relayed {
    /// To the end of the input.
    ToTheEnd,
    /// To a writer that failed, and whose half says how.
    Unwritable,
    /// To a point between two bytes.
    SoFar,
}

/// Moves what comes from `reader` to `writer` until the end of the input, or until `stop` is ready.
///
/// # Errors
///
/// The reader failed.
pub(crate) async fn relay<R, W>(
    reader: &mut Lent<R>,
    writer: &mut Lent<W>,
    stop: impl Future<Output = ()>,
) -> Result<Relayed, Failure>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut stop = pin!(stop);
    loop {
        // Only a read may be given up: it loses nothing.
        let chunk = tokio::select! {
            biased;
            () = stop.as_mut() => return Ok(Relayed::SoFar),
            chunk = buffer::read(reader) => chunk.map_err(|error| Failure::from(&error))?,
        };
        if chunk.is_empty() {
            return Ok(Relayed::ToTheEnd);
        }
        if writer.write_all(&chunk).await.is_err() {
            return Ok(Relayed::Unwritable);
        }
    }
}
