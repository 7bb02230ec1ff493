//! Who may come in: permits.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The right to hold one connection. It is taken before the connection is accepted, and free again when
/// this is dropped.
#[derive(Debug)]
pub struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// Hands out as many permits as connections may be open at once.
#[derive(Clone, Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
}

impl Admission {
    /// Admits `max_connections` at once.
    pub fn new(max_connections: NonZeroUsize) -> Self {
        let permits = max_connections.get().min(Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(permits)),
        }
    }

    /// Waits for a permit, first come, first served.
    pub async fn permit(&self) -> Permit {
        match Arc::clone(&self.permits).acquire_owned().await {
            Ok(permit) => Permit { _permit: permit },
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn a_permit_that_is_dropped_lets_the_next_one_in() {
        let admission = Admission::new(NonZeroUsize::MIN);
        let first = admission.permit().await;
        let mut second = pin!(admission.permit());
        tokio::select! {
            biased;
            _ = second.as_mut() => panic!("two permits where there is one"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        second.await;
    }
}
