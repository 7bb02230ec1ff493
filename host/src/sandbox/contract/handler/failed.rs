//! The time of a guest whose connection has failed.

use tokio::time::{Instant, sleep_until};

use super::ends::Ends;
use crate::deadlines::STALL;
use crate::half::Half;
use crate::sandbox::contract::PATIENCE;

/// Waits until the guest has read what arrived before its connection failed, and each part has
/// heard how the half ended. A guest that takes no byte for [`PATIENCE`] has no more time.
pub(super) async fn hear_out<R>(inbound: &Half<R>, ends: &Ends, guest_is_done: impl Future<Output = ()>) {
    let heard = async {
        inbound.returned().await;
        ends.heard_by_all().await;
    };
    tokio::select! {
        biased;
        () = heard => {}
        () = guest_is_done => {}
        () = takes_nothing(inbound) => {}
    }
}

/// Waits until no byte has passed for [`PATIENCE`] from now.
async fn takes_nothing<R>(inbound: &Half<R>) {
    let mut since = Instant::now();
    loop {
        let at = since + PATIENCE;
        sleep_until(at).await;
        if at.elapsed() >= STALL {
            // This process was stopped, or got no processor.
            since = Instant::now();
        } else if inbound.moved() > since {
            since = inbound.moved();
        } else {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_guest_has_time_as_long_as_it_reads() {
        let (near, mut far) = tokio::io::duplex(64);
        let half = Half::new(near, None);
        let mut lent = half.lend().unwrap();
        let ends = Ends::default();
        let mut hearing = pin!(hear_out(&half, &ends, pending()));
        for _ in 0..3 {
            assert!(timeout(PATIENCE * 3 / 4, hearing.as_mut()).await.is_err());
            far.write_all(b"1").await.unwrap();
            lent.read_exact(&mut [0]).await.unwrap();
        }
        timeout(PATIENCE * 5 / 4, hearing.as_mut()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_reads_nothing_more_has_no_more_time() {
        let half = Half::new(tokio::io::empty(), None);
        let ends = Ends::default();
        let (lent, start) = (half.lend().unwrap(), Instant::now());
        hear_out(&half, &ends, pending()).await;
        assert!(start.elapsed() >= PATIENCE);
        drop(lent);
        let start = Instant::now();
        hear_out(&half, &ends, pending()).await;
        assert!(start.elapsed() < PATIENCE);
    }
}
