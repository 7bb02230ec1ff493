//! Asks for a name and waits one second for it, with the timers of `inet-guest`.

use std::time::Duration;

use inet_guest::streams::{Connection, ErrorCode, Service, export};
use inet_guest::{sleep, timeout};

/// How long the client may take for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pause before the greeting.
const PAUSE: Duration = Duration::from_millis(100);

struct Impatient;

impl Service for Impatient {
    async fn serve(connection: Connection) -> Result<(), ErrorCode> {
        let (mut lines, mut outbound) = (connection.inbound.lines(64), connection.outbound);
        loop {
            outbound.write_all("Your name?\n").await?;
            let Ok(line) = timeout(PATIENCE, lines.next()).await else {
                outbound.write_all("Too late.\n").await?;
                return Ok(());
            };
            let Some(name) = line? else {
                return Ok(());
            };
            let greeting = [b"Hello ", name.trim_ascii(), b"!\n"].concat();
            sleep(PAUSE).await;
            outbound.write_all(greeting).await?;
        }
    }
}

export!(Impatient);
