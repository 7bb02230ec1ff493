//! Gives lines back in capitals, by the streams contract, written with the crate for guests.

use inet_guest::streams::{Connection, ErrorCode, Service, export};

struct Upper;

impl Service for Upper {
    async fn serve(connection: Connection) -> Result<(), ErrorCode> {
        let (mut lines, mut outbound) = (connection.inbound.lines(4096), connection.outbound);
        while let Some(line) = lines.next().await? {
            outbound.write_all(line.to_ascii_uppercase()).await?;
        }
        Ok(())
    }
}

export!(Upper);
