//! Serving one connection.

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::contract::{self, CpuLimit, End, Fault, Served};
use super::diagnostics::{Logged, Speaker};
use super::meter::thread_time;
use super::seat::{Ending, Seat};
use super::shared;
use crate::half::Half;
use crate::peer::Peer;
use crate::relay::relay;

/// Serves one connection with a fresh instance of its generation, which is gone when this returns or is dropped; or with one
/// that connections share, which has nothing of it any more then. A call that takes long looks at what is `ending` it from outside.
///
/// # Errors
///
/// The instance could not be made, or trapped.
pub async fn serve<S, R, W>(
    seat: &S,
    peer: &Peer,
    inbound: &Half<R>,
    outbound: &Half<W>,
    ending: Arc<dyn Ending>,
) -> Result<End, Fault>
where
    S: Seat,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let generation = seat.generation();
    if let Some(instances) = &generation.shared {
        let shared = shared::serve(seat, &generation, instances, peer, inbound, outbound);
        // In a box, so that what is not shared is not larger for it.
        return finish(Box::pin(shared).await?).await;
    }
    let ticker = Arc::clone(&generation.engine.ticker);
    let max_cpu_time = generation.engine.limits.max_cpu_time;
    let cost = seat.cost();
    let logged = seat.transcript().map(Logged::kept_in);
    let opened = generation.open().await.map_err(Fault::Grant)?;
    let speaker = Speaker::Connection(peer.connection);
    let mut store = generation.store(speaker, logged, Some(&cost), opened);
    store.data_mut().ends_by(ending);
    // It is in a box, so that what a relay holds of it is gone with the instance.
    let guest = contract::serve(seat, &generation.prepared, store, peer, inbound, outbound);
    drop(generation);
    let guest = ticker.run_at(&cost, guest);
    let served = match max_cpu_time {
        None => guest.await?,
        Some(max) => within(max, guest)
            .await
            .unwrap_or(Err(Fault::Cpu(CpuLimit::Total)))?,
    };
    finish(served).await
}

/// Does without an instance what is left to be done.
async fn finish<R, W>(served: Served<R, W>) -> Result<End, Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    match served {
        Served::Ended(end) => Ok(end),
        Served::Returned(mut reader, mut writer) => {
            // Where it fails, the half says how.
            let _ = relay(&mut reader, &mut writer, pending()).await;
            Ok(End::Finished)
        }
    }
}

/// Runs `future` until it has used `max` of this thread's time on the processor; `None` if it is not done by then.
async fn within<F: Future>(max: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut used = Duration::ZERO;
    poll_fn(|cx| {
        let before = thread_time();
        let polled = future.as_mut().poll(cx);
        used += thread_time().saturating_sub(before);
        match polled {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if used > max => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
