//! Echoes each line that the client sends, with the streams contract.
//!
//! `quit` ends the connection. A line of more than 4,096 bytes also ends it, after an error
//! message.

use inet_guest::streams::{Connection, ErrorCode, Service, export};

/// The maximum length of a line in bytes, without the `\n` at its end.
const MAX_LINE: usize = 4096;

struct Lines;

impl Service for Lines {
    /// Serves one connection. `Ok` ends it with a FIN, and an error resets it.
    async fn serve(connection: Connection) -> Result<(), ErrorCode> {
        let (mut lines, mut outbound) = (connection.inbound.lines(MAX_LINE), connection.outbound);
        loop {
            match lines.next().await {
                Ok(Some(line)) if is_quit(line) => return Ok(()),
                Ok(Some(line)) => outbound.write_all(line).await?,
                Ok(None) => return Ok(()),
                Err(ErrorCode::LimitExceeded) => {
                    let error = format!("error: a line may have at most {MAX_LINE} bytes\n");
                    return outbound.write_all(error).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns whether a line is `quit`, with any whitespace around it. The last line may have no `\n`,
/// and is then not complete.
fn is_quit(line: &[u8]) -> bool {
    line.ends_with(b"\n") && line.trim_ascii() == b"quit"
}

export!(Lines);
