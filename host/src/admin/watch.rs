//! What readers of `/events` get, made once for all of them.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::view::{self, Before};
use crate::service::Process;

/// Time between two events of a reader.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// How long readers share an event. It is shorter than [`LOOK`], so that a reader whose timer is
/// early gets no event twice.
const SHARED: Duration = Duration::from_millis(900);

/// The last event. Making one takes time for each open connection, and readers may be many.
#[derive(Debug, Default)]
pub(super) struct Watch(Mutex<Option<Last>>);

#[derive(Debug)]
struct Last {
    made: Instant,
    event: Bytes,
    /// What the next event compares with.
    before: Before,
}

impl Watch {
    /// Returns the event of another reader if it is less than [`SHARED`] old, and otherwise makes one
    /// with the present status.
    pub(super) async fn event(&self, process: &Process) -> Bytes {
        let mut last = self.0.lock().await;
        let now = Instant::now();
        let made = last.as_ref().map(|last| last.made);
        if let Some(Last { event, made, .. }) = &*last
            && now - *made < SHARED
        {
            return event.clone();
        }
        // An event of long ago is the previous one of no reader.
        let recent = made.is_some_and(|made| now - made < 2 * LOOK);
        let before = last.take().filter(|_| recent).map(|last| last.before);
        let mut before = before.unwrap_or_default();
        let status = serde_json::to_string(&view::status(process, &mut before)).unwrap_or_default();
        let event = Bytes::from(format!("event: status\ndata: {status}\n\n"));
        *last = Some(Last {
            made: now,
            event: event.clone(),
            before,
        });
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readers_share_the_event_of_a_second() {
        let process = Process::new(true, None);
        let watch = Watch::default();
        let first = watch.event(&process).await;
        tokio::time::advance(SHARED - Duration::from_millis(1)).await;
        assert_eq!(watch.event(&process).await, first);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_ne!(watch.event(&process).await, first);
    }
}
