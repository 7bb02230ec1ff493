//! The accept loop: takes connections, hands each to the generation, and logs what became of it.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use futures_util::FutureExt;
use tracing::{debug, error, info};

use crate::admission::{Admission, Refused};
use crate::connection::{self, Outcome, Report};
use crate::failpoint;
use crate::generations::Serving;
use crate::listener::{self, Accepted, Listener};
use crate::peer::Peer;
use crate::place::Place;
use crate::record::Tape;
use crate::server::Shared;

/// Accepts connections for ever. A permit comes first: while there is none, connections wait in the backlog.
pub(crate) async fn accept(shared: Arc<Shared>, mut listeners: Vec<Listener>) {
    let mut admission = Admission::new(&shared.config.limits);
    let mut first = 0;
    let mut number = 0;
    loop {
        let permit = admission.permit().await;
        let (index, accepted) = any(&mut listeners, first).await;
        first = index + 1;
        let Some(listener) = listeners.get(index) else {
            continue;
        };
        let admitted = admission.admit(permit, accepted.remote.ip()).and_then(|permit| {
            let place = Place::new(&shared.generations, number + 1)?;
            Ok((permit, place))
        });
        match admitted {
            Ok((permit, place)) => {
                number += 1;
                let listener = listener.name().to_owned();
                let connection = serve_one(Arc::clone(&shared), place, listener, accepted);
                shared.connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(reason) => refuse(listener, accepted, reason),
        }
    }
}

/// Resets a connection that may not come in. Of those that come while the breaker is open it says how many there were.
fn refuse(listener: &Listener, accepted: Accepted, reason: Refused) {
    let (peer, listener, reason, told) = (
        accepted.remote,
        listener.name(),
        reason.as_str(),
        reason != Refused::Failing,
    );
    if told {
        info!(%peer, listener, reason, "connection refused");
    } else {
        debug!(%peer, listener, reason, "connection refused");
    }
    // A writer that was not shut down resets the connection.
    drop(listener::split(accepted.stream));
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
async fn serve_one(shared: Arc<Shared>, place: Place, listener: String, accepted: Accepted) {
    let peer = Peer {
        connection: place.connection,
        remote: accepted.remote.to_string(),
        local: accepted.local.to_string(),
        listener,
    };
    let (reader, writer) = listener::split(accepted.stream);
    let cut = pin!(place.cut());
    let limits = &shared.config.limits;
    let served = async {
        failpoint::serve(peer.connection);
        let Some(recorder) = &shared.recorder else {
            return connection::serve(&place, &peer, reader, writer, limits, cut).await;
        };
        let tape = Tape::default();
        let (reader, writer) = (tape.record(reader), tape.record(writer));
        // In a box, so that what is not recorded is not larger for it.
        let recorded = Box::pin(connection::serve(&place, &peer, reader, writer, limits, cut));
        let report = recorded.await;
        recorder.keep(peer.connection, tape, report.outcome).await;
        report
    };
    match AssertUnwindSafe(served).catch_unwind().await {
        Ok(report) => {
            log(&peer, &place.serving(), &report);
            if report.counts {
                place.ended(report.outcome.is_the_guests_fault(), report.bytes_in);
            }
        }
        // The hook for panics has said what happened.
        Err(_) => error!(
            connection = peer.connection,
            peer = peer.remote,
            listener = peer.listener,
            outcome = Outcome::HostPanic.as_str(),
            panics = shared.panics.fetch_add(1, Relaxed) + 1,
            "connection ended"
        ),
    }
}

fn log(peer: &Peer, serving: &Serving, report: &Report) {
    info!(
        connection = peer.connection,
        peer = peer.remote,
        listener = peer.listener,
        generation = serving.number,
        contract = serving.generation.contract().as_str(),
        bytes_in = report.bytes_in,
        bytes_out = report.bytes_out,
        duration_ms = report.duration.as_micros() as f64 / 1000.0,
        outcome = report.outcome.as_str(),
        reason = report.reason.as_deref(),
        status = report.status,
        "connection ended"
    );
}
