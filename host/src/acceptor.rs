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
use crate::breaker::Attempt;
use crate::connection::{self, Outcome, Report};
use crate::failpoint;
use crate::generations::Serving;
use crate::listener::{self, Accepted, Listener};
use crate::peer::Peer;
use crate::record::Tape;
use crate::server::Shared;

/// Accepts connections for ever. A permit comes first: while there is none, connections wait in the backlog.
pub(crate) async fn accept(shared: Arc<Shared>, mut listeners: Vec<Listener>) {
    let mut admission = Admission::new(&shared.config.limits);
    let mut first = 0;
    loop {
        let permit = admission.permit().await;
        let (index, accepted) = any(&mut listeners, first).await;
        first = index + 1;
        let Some(listener) = listeners.get(index) else {
            continue;
        };
        let admitted = admission.admit(permit, accepted.remote.ip()).and_then(|permit| {
            let serving = shared.generations.current();
            let attempt = serving.breaker.attempt()?;
            Ok((permit, serving, attempt))
        });
        match admitted {
            Ok((permit, serving, attempt)) => {
                let listener = listener.name().to_owned();
                let connection = serve_one(Arc::clone(&shared), serving, attempt, listener, accepted);
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
async fn serve_one(
    shared: Arc<Shared>,
    serving: Arc<Serving>,
    attempt: Attempt,
    listener: String,
    accepted: Accepted,
) {
    let Accepted {
        stream,
        remote,
        local,
    } = accepted;
    let peer = Peer {
        connection: shared.numbers.fetch_add(1, Relaxed),
        remote: remote.to_string(),
        local: local.to_string(),
        listener,
    };
    let (reader, writer) = listener::split(stream);
    let mut started = false;
    let start = || {
        started = true;
        attempt.started();
    };
    let cut = pin!(serving.cut.cancelled());
    let (generation, limits) = (&serving.generation, &shared.config.limits);
    let served = async {
        failpoint::serve(peer.connection);
        let Some(recorder) = &shared.recorder else {
            return connection::serve(generation, &peer, reader, writer, limits, start, cut).await;
        };
        let tape = Tape::default();
        let (reader, writer) = (tape.record(reader), tape.record(writer));
        // In a box, so that what is not recorded is not larger for it.
        let recorded = Box::pin(connection::serve(
            generation, &peer, reader, writer, limits, start, cut,
        ));
        let report = recorded.await;
        recorder.keep(peer.connection, tape, report.outcome).await;
        report
    };
    match AssertUnwindSafe(served).catch_unwind().await {
        Ok(report) => {
            let failed = report.outcome.is_the_guests_fault();
            // A guest that has heard its peer may have failed at what that said.
            if failed && !started && report.bytes_in == 0 {
                attempt.failed();
            }
            log(&peer, &serving, &report);
            shared.generations.ended(&serving, failed);
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
        "connection ended"
    );
}
