//! The accept loop: takes connections, hands each to the generation, and logs what became of it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use tracing::info;

use crate::connection::{self, Report};
use crate::listener::{self, Accepted, Listener};
use crate::peer::Peer;
use crate::sandbox::Generation;
use crate::server::Shared;

/// Accepts connections for ever. A permit comes first: while there is none, connections wait in the backlog.
pub(crate) async fn accept(shared: Arc<Shared>, mut listeners: Vec<Listener>) {
    let mut first = 0;
    loop {
        let permit = shared.admission.permit().await;
        let (index, accepted) = any(&mut listeners, first).await;
        first = index + 1;
        let Some(listener) = listeners.get(index) else {
            continue;
        };
        let connection = serve_one(Arc::clone(&shared), listener.name().to_owned(), accepted);
        shared.connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
}

/// The next connection of any listener, asking the one at `first` first so that none is starved.
async fn any(listeners: &mut [Listener], first: usize) -> (usize, Accepted) {
    if let [only] = listeners {
        return (0, only.accept().await);
    }
    let mut accepts: Vec<_> = listeners
        .iter_mut()
        .map(|listener| Box::pin(listener.accept()))
        .collect();
    poll_fn(|cx| {
        for offset in 0..accepts.len() {
            let index = (first + offset) % accepts.len();
            if let Some(accept) = accepts.get_mut(index)
                && let Poll::Ready(accepted) = Pin::new(accept).poll(cx)
            {
                return Poll::Ready((index, accepted));
            }
        }
        Poll::Pending
    })
    .await
}

/// Serves one connection and logs what became of it.
async fn serve_one(shared: Arc<Shared>, listener: String, accepted: Accepted) {
    let Accepted {
        stream,
        remote,
        local,
    } = accepted;
    let generation = Arc::clone(&shared.generation);
    let peer = Peer {
        connection: shared.numbers.fetch_add(1, Relaxed),
        remote: remote.to_string(),
        local: local.to_string(),
        listener,
    };
    let (reader, writer) = listener::split(stream);
    let cut = pin!(shared.cut.cancelled());
    let report = connection::serve(&generation, &peer, reader, writer, &shared.config.limits, cut).await;
    log(&peer, &generation, &report);
}

fn log(peer: &Peer, generation: &Generation, report: &Report) {
    info!(
        connection = peer.connection,
        peer = peer.remote,
        listener = peer.listener,
        contract = generation.contract().as_str(),
        bytes_in = report.bytes_in,
        bytes_out = report.bytes_out,
        duration_ms = report.duration.as_micros() as f64 / 1000.0,
        outcome = report.outcome.as_str(),
        reason = report.reason.as_deref(),
        "connection ended"
    );
}
