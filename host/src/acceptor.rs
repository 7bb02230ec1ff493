//! The accept loop: takes connections, hands each to the generation, and logs what became of it.

use std::future::{pending, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::{unconstrained, yield_now};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::admission::{Admission, Permit, Refused};
use crate::arrival::{Arrival, Entered, Turned};
use crate::config::LogConnections;
use crate::connection::{self, Outcome, Report};
use crate::cost::Cost;
use crate::counts::Totals;
use crate::failpoint;
use crate::half::{Half, Traffic};
use crate::listener::{Accepted, Entrance, Listener, REMOVAL};
use crate::peer::{ClientKey, End, Peer};
use crate::place::Place;
use crate::record::Tape;
use crate::roster::{Entry, Open};
use crate::service::Service;
use crate::socket::Stream;
use crate::telemetry::{Ended, Trace};

/// Accepts the connections of one service.
#[derive(Debug)]
pub(crate) struct Acceptor {
    admission: Admission,
    listeners: Vec<Listener>,
}

impl Acceptor {
    /// Accepts from `listeners` what `admission` allows.
    pub(crate) fn new(admission: Admission, listeners: Vec<Listener>) -> Self {
        Self { admission, listeners }
    }

    /// What it was made of.
    pub(crate) fn into_parts(self) -> (Admission, Vec<Listener>) {
        (self.admission, self.listeners)
    }

    /// What its connections come in by.
    pub(crate) fn entrances(&self) -> Vec<Arc<Entrance>> {
        self.listeners
            .iter()
            .map(|listener| Arc::clone(listener.entrance()))
            .collect()
    }

    /// The listeners.
    pub(crate) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Accepts connections until told to stop. A permit comes first: while there is none, connections wait in the backlog.
    pub(crate) async fn run(mut self, service: Arc<Service>, stop: CancellationToken) -> Self {
        let mut stop = pin!(stop.cancelled_owned());
        let mut first = 0;
        loop {
            let next = async {
                let permit = self.admission.permit(&service.config.name).await;
                (permit, any(&mut self.listeners, first, &service).await)
            };
            let (permit, (index, accepted)) = tokio::select! {
                biased;
                () = stop.as_mut() => return self,
                next = next => next,
            };
            first = index + 1;
            hand_over(&service, &mut self.admission, permit, accepted);
        }
    }
}

/// Closes `listeners` of a service. Serves the clients that have connected by now as far as
/// `admission` has room, and resets the others. Takes a second longer at most if the files of Unix
/// sockets hang.
pub(crate) async fn close(
    listeners: impl IntoIterator<Item = Listener>,
    admission: &mut Admission,
    service: &Arc<Service>,
) {
    let mut removals = Vec::new();
    for listener in listeners {
        let mut waiting = listener.close(&service.config.name);
        // Whether there is room is not to depend on what else this task has done in its turn.
        while let Some(permit) = unconstrained(admission.permit(&service.config.name)).now_or_never()
            && let Some(accepted) = waiting.next()
        {
            hand_over(service, admission, permit, accepted);
            // Thousands can wait.
            yield_now().await;
        }
        removals.extend(waiting.end());
    }
    let _ = timeout(REMOVAL, join_all(removals)).await;
}

/// Hands a connection to a task of its own.
fn hand_over(service: &Arc<Service>, admission: &mut Admission, permit: Permit, accepted: Accepted) {
    let at = Instant::now();
    admission.count();
    let telemetry = service.process.telemetry.as_ref();
    let arrival = Arrival {
        trace: telemetry.map(|_| Trace::new(at.into_std(), &accepted.remote, &accepted.local)),
        entrance: accepted.entrance,
        remote: accepted.remote,
        local: accepted.local,
        sources: admission.sources().clone(),
        at,
    };
    service.counts().accepted.one_more();
    let connections = &service.process.connections;
    connections.spawn(arrive(Arc::clone(service), permit, arrival, accepted.stream));
}

/// Lets a connection come in, or not, and serves it.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` has room for all that it is given a second time, in every connection"
)]
fn arrive(
    service: Arc<Service>,
    permit: Permit,
    mut arrival: Arrival,
    stream: Stream,
) -> impl Future<Output = ()> + Send {
    async move {
        let entered = match arrival.enter(stream, permit, &service).await {
            Ok(entered) => entered,
            Err(Turned { reason, end }) => {
                tell_refused(&service, &arrival, reason);
                end.say(&service).await;
                return;
            }
        };
        let client = ClientKey::of(&arrival.remote);
        let permits = entered.permit.all();
        let number = || service.process.next_connection();
        let place = match Place::new(&service.generations, client, permits, number) {
            Ok(place) => Arc::new(place),
            Err(reason) => {
                tell_refused(&service, &arrival, reason);
                // Its writer is dropped after that, which resets it.
                return;
            }
        };
        serve_one(service, place, arrival, entered).await;
    }
}

/// Tells of a connection that may not come in. Of those that come while the breaker is open it is told elsewhere how many there
/// were.
fn tell_refused(service: &Service, arrival: &Arrival, reason: Refused) {
    service.counts().refused(reason).one_more();
    if let Some((telemetry, trace)) = service.process.telemetry.as_ref().zip(arrival.trace.as_deref()) {
        let (name, listener) = (&service.config.name, &arrival.entrance.name);
        telemetry.refused(trace, name, listener, &arrival.remote, &arrival.local, reason);
    }
    let told = reason != Refused::Failing && service.config.log_connections != LogConnections::None;
    let (service, peer, listener) = (&service.config.name, &arrival.remote, &arrival.entrance.name);
    let reason = reason.as_str();
    if told {
        info!(
            service,
            peer = peer.to_string(),
            listener,
            reason,
            "connection refused"
        );
    } else {
        debug!(
            service,
            peer = peer.to_string(),
            listener,
            reason,
            "connection refused"
        );
    }
}

/// The next connection of any listener, asking the one at `first` first so that none is starved.
async fn any(listeners: &mut [Listener], first: usize, service: &Service) -> (usize, Accepted) {
    let (errors, name) = (&service.counts().accept_errors, Some(&*service.config.name));
    if let [only] = listeners {
        return (0, only.accept(errors, name).await);
    }
    let mut accepts: Vec<_> = listeners
        .iter_mut()
        .map(|listener| Box::pin(listener.accept(errors, name)))
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

/// Serves one connection and logs what became of it. As `arrive` it is no `async fn`.
fn serve_one(
    service: Arc<Service>,
    place: Arc<Place>,
    arrival: Arrival,
    entered: Entered,
) -> impl Future<Output = ()> + Send {
    let Entered {
        permit,
        reader,
        writer,
        tls,
    } = entered;
    // The rest of it goes: certificates that are replaced are not to be kept for as long as a connection lasts.
    let Arrival {
        entrance,
        remote,
        local,
        mut trace,
        ..
    } = arrival;
    if let Some(trace) = &mut trace {
        trace.comes_in(&remote, &local);
    }
    let listener = entrance.name.clone();
    drop(entrance);
    let peer = Peer {
        connection: place.connection,
        remote: remote.to_string(),
        local: local.to_string(),
        listener,
        process: match remote {
            End::Process(process) => Some(process),
            End::Tcp(_) | End::Path(_) => None,
        },
        tls,
    };
    async move {
        let served = async {
            let Some(recorder) = &service.recorder else {
                return converse(&service, &place, &peer, reader, writer).await;
            };
            let tape = Tape::default();
            let (reader, writer) = (tape.record(reader), tape.record(writer));
            // In a box, so that what is not recorded is not larger for it.
            let report = Box::pin(converse(&service, &place, &peer, reader, writer)).await;
            if place.has_moved() {
                // No single component gives these answers, so a replay would differ with each.
                info!(
                    service = service.config.name,
                    connection = peer.connection,
                    "conversation not recorded: the session moved to another generation"
                );
            } else {
                recorder
                    .keep(
                        &service.config.name,
                        peer.connection,
                        tape,
                        report.outcome,
                        report.at_end,
                    )
                    .await;
            }
            report
        };
        let served = AssertUnwindSafe(served).catch_unwind().await;
        if let Some(trace) = &trace {
            tell(&service, &peer, &place, trace, served.as_ref().ok());
        }
        match served {
            Ok(report) => {
                log(&service, &peer, &place, &report);
                if report.counts {
                    place.ended(report.is_the_guests_fault(), report.has_heard_peer());
                }
            }
            // The hook for panics has said what happened.
            Err(_) => {
                error!(
                    service = service.config.name,
                    connection = peer.connection,
                    peer = peer.remote,
                    listener = peer.listener,
                    outcome = Outcome::HostPanic.as_str(),
                    panics = service.process.panics.fetch_add(1, Relaxed) + 1,
                    "connection ended"
                );
            }
        }
        drop(permit);
    }
}

/// Serves one connection, where it can be seen meanwhile by who asks, and counts it.
async fn converse<R, W>(
    service: &Arc<Service>,
    place: &Arc<Place>,
    peer: &Peer,
    reader: R,
    writer: W,
) -> Report
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let limits = &service.config.limits;
    let inbound = Half::new(reader, limits.max_bytes_in);
    let outbound = Half::new(writer, limits.max_bytes_out);
    let since = Instant::now();
    let entry = service.process.roster.as_ref().map(|roster| {
        roster.enter(Open {
            place: Arc::clone(place),
            service: Arc::clone(service),
            peer: peer.remote.clone(),
            listener: peer.listener.clone(),
            since,
            inbound: Arc::downgrade(&inbound.traffic()),
            outbound: Arc::downgrade(&outbound.traffic()),
            seen: Default::default(),
            close: Notify::new(),
        })
    });
    let cut = cut(Arc::clone(place), entry.as_ref().map(Entry::closed));
    let uncounted = Uncounted {
        service,
        place,
        since,
        inbound: inbound.traffic(),
        outbound: outbound.traffic(),
        entry,
        is_counted: false,
    };
    failpoint::serve(peer.connection);
    let report = connection::serve(&**place, peer, inbound, outbound, limits, cut).await;
    failpoint::served(peer.connection);
    uncounted.end(&report);
    report
}

/// A connection that is open, and counted when it ends. A panic of the host while it is served
/// drops this, and is an end too.
struct Uncounted<'a> {
    service: &'a Service,
    place: &'a Place,
    since: Instant,
    /// With the halves in it, so that there is something to count after a panic.
    inbound: Arc<dyn Traffic>,
    outbound: Arc<dyn Traffic>,
    entry: Option<Entry>,
    is_counted: bool,
}

impl Uncounted<'_> {
    /// Counts the connection, which has ended as `report` says.
    fn end(mut self, report: &Report) {
        self.count(&report.into());
    }

    /// Counts the connection, and takes it off the connection table in the same moment.
    fn count(&mut self, totals: &Totals) {
        self.is_counted = true;
        let count = || self.service.counts().count(totals, &self.place.cost);
        match self.entry.take() {
            Some(entry) => entry.leave(count),
            None => count(),
        }
    }
}

impl Drop for Uncounted<'_> {
    fn drop(&mut self) {
        // At its end the runtime drops this without a panic, and no counter is read any more.
        if !self.is_counted && thread::panicking() {
            self.count(&Totals {
                outcome: Outcome::HostPanic,
                bytes_in: self.inbound.bytes(),
                bytes_out: self.outbound.bytes(),
                duration: self.since.elapsed(),
                first_byte: self.outbound.first(),
            });
        }
    }
}

/// Waits until a connection is ended by whoever runs the host: with all of its generation, or as one that is `closed`.
async fn cut(place: Arc<Place>, closed: Option<impl Future<Output = ()>>) -> Outcome {
    let closed = async {
        match closed {
            Some(closed) => closed.await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = place.cut() => Outcome::Drained,
        () = closed => Outcome::Closed,
    }
}

/// Tells a collector of a connection that has ended, by a panic of the host where there is no report.
fn tell(service: &Service, peer: &Peer, place: &Place, trace: &Trace, report: Option<&Report>) {
    let Some(telemetry) = &service.process.telemetry else {
        return;
    };
    let serving = place.serving();
    let ended = Ended {
        service: &service.config.name,
        peer,
        generation: serving.number,
        contract: serving.generation.contract().as_str(),
        cost: service.own_cost(place),
        report,
    };
    telemetry.ended(trace, &ended);
}

fn log(service: &Service, peer: &Peer, place: &Place, report: &Report) {
    match service.config.log_connections {
        LogConnections::All => {}
        LogConnections::Failed if report.outcome != Outcome::Finished => {}
        LogConnections::Failed | LogConnections::None => return,
    }
    let serving = place.serving();
    let cost = service.own_cost(place);
    macro_rules! log {
        ($log:ident $(, $field:ident = $value:expr)?) => {
            $log!(
                service = service.config.name,
                connection = peer.connection,
                peer = peer.remote,
                listener = peer.listener,
                generation = serving.number,
                contract = serving.generation.contract().as_str(),
                bytes_in = report.bytes_in,
                bytes_out = report.bytes_out,
                duration_ms = milliseconds(report.duration),
                first_byte_ms = report.first_byte.map(milliseconds),
                guest_cpu_ms = cost.map(|cost| milliseconds(cost.cpu())),
                guest_memory = cost.map(Cost::memory),
                outcome = report.outcome.as_str(),
                reason = report.reason.as_deref(),
                status = report.at_end.status,
                $($field = $value,)?
                "connection ended"
            )
        };
    }
    if report.is_the_guests_fault() {
        let stderr = cost.and_then(Cost::last_lines);
        log!(warn, stderr = stderr.as_deref());
    } else {
        log!(info);
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
