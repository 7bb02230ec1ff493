//! Character generator (RFC 864) by the streams contract: lines of 72 printable characters until the peer goes.
//!
//! Whoever reads slowly slows the guest down: a write completes when the transport has taken the bytes.

use inet_guest::streams::{Connection, ErrorCode, Service, export};

/// The printable characters of ASCII, space included.
const FIRST: u8 = b' ';
const COUNT: usize = 95;

/// Characters in a line, not counting its CR LF.
const WIDTH: usize = 72;

struct Chargen;

impl Service for Chargen {
    async fn serve(mut connection: Connection) -> Result<(), ErrorCode> {
        // What the peer sends is thrown away.
        drop(connection.inbound);
        // Ends when nobody takes it any more.
        loop {
            connection.outbound.write_all(pattern()).await?;
        }
    }
}

/// One period of the pattern: each line starts one character later than the one before.
fn pattern() -> Vec<u8> {
    let mut lines = Vec::with_capacity(COUNT * (WIDTH + 2));
    for start in 0..COUNT {
        let line = (start..start + WIDTH).map(|i| FIRST + (i % COUNT) as u8);
        lines.extend(line);
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

export!(Chargen);
