//! Looking up the addresses of the collector.

use std::io;
use std::net::SocketAddr;

use tokio::sync::Mutex;

use crate::threads::{self, Work};

/// Looks up addresses in a thread of its own, one lookup at a time.
///
/// If no name server answers, a lookup takes minutes, and nothing can give it up. On the threads of
/// the runtime, lookups would take those that replace threads in long calls.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// The last one, which may still run.
    last: Mutex<Option<Work<io::Result<Vec<SocketAddr>>>>>,
}

impl Lookup {
    /// Looks up addresses by `look_up`. If an earlier lookup still runs, this waits for its result
    /// instead. A lookup continues if this is dropped.
    ///
    /// # Errors
    ///
    /// The lookup fails, or there is no thread for it.
    pub(super) async fn run(
        &self,
        look_up: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut last = self.last.lock().await;
        let running = match last.take() {
            Some(running) => running,
            None => threads::run("lookup", look_up)?,
        };
        let found = last.insert(running).await;
        *last = None;
        found.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn no_lookup_begins_while_another_hangs() {
        let lookup = Lookup::default();
        let address = |port| Ok(vec![SocketAddr::from(([192, 0, 2, 1], port))]);
        let (end, hangs) = mpsc::channel::<()>();
        let hanging = lookup.run(move || {
            let _ = hangs.recv();
            address(1)
        });
        let short = Duration::from_millis(50);
        assert!(timeout(short, hanging).await.is_err());
        let (began, begins) = mpsc::channel();
        for _ in 0..3 {
            let began = began.clone();
            let next = lookup.run(move || {
                began.send(()).unwrap();
                address(2)
            });
            assert!(timeout(short, next).await.is_err());
        }
        drop(began);
        // They were dropped without a thread.
        assert_eq!(begins.recv(), Err(mpsc::RecvError));
        drop(end);
        assert_eq!(lookup.run(move || address(3)).await.unwrap()[0].port(), 1);
        assert_eq!(lookup.run(move || address(4)).await.unwrap()[0].port(), 4);
        let failed = lookup.run(|| Err(io::ErrorKind::NotFound.into())).await;
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
