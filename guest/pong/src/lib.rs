//! Answers `PING` with `+PONG`, as Redis does: as much of its protocol (RESP) as it takes for its tools to talk to it.
//!
//! A command is a line of words, or an array of strings: `*` and how many, and then for each `$` and its length, and a line
//! with the string itself. What a command says beyond its first word is of no interest here.

use inet_guest::streams::{Connection, ErrorCode, Lines, Service, export};

/// Bytes that a line may have.
const MAX_LINE: usize = 1024;

/// Strings that an array may have.
const MAX_STRINGS: usize = 64;

struct Pong;

impl Service for Pong {
    async fn serve(connection: Connection) -> Result<(), ErrorCode> {
        let (mut lines, mut outbound) = (connection.inbound.lines(MAX_LINE), connection.outbound);
        while let Some(line) = lines.next().await? {
            let line = line.trim_ascii().to_vec();
            let command = match line.strip_prefix(b"*") {
                Some(count) => array(count, &mut lines).await?,
                None => line
                    .split(u8::is_ascii_whitespace)
                    .next()
                    .unwrap_or_default()
                    .to_vec(),
            };
            if command.eq_ignore_ascii_case(b"ping") {
                outbound.write_all(b"+PONG\r\n".to_vec()).await?;
            } else if !command.is_empty() {
                outbound.write_all(b"-ERR unknown command\r\n".to_vec()).await?;
            }
        }
        Ok(())
    }
}

/// Reads an array of so many strings, and gives the first.
async fn array(count: &[u8], lines: &mut Lines) -> Result<Vec<u8>, ErrorCode> {
    let count = str::from_utf8(count).ok().and_then(|count| count.parse().ok());
    let count: usize = count
        .filter(|count| *count <= MAX_STRINGS)
        .ok_or(ErrorCode::ProtocolError)?;
    let mut first = Vec::new();
    for index in 0..2 * count {
        let line = lines.next().await?.ok_or(ErrorCode::ProtocolError)?;
        if index == 1 {
            first = line.trim_ascii().to_vec();
        }
    }
    Ok(first)
}

export!(Pong);
