//! One connection, from its first byte to its last: deadlines, the close, and the outcome.
//!
//! It knows nothing of sockets. A writer that is dropped before it was shut down resets the connection;
//! that is the transport's part of the bargain.

mod outside;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::buffer;
use crate::config::Limits;
use crate::deadlines::{self, Passed};
use crate::half::{Failure, Half};
use crate::peer::Peer;
use crate::sandbox::{self, End, Fault, Generation, Neighbours, Seat};
use outside::Outside;

/// How long a connection whose work is done waits for the peer's FIN, reading and dropping what comes.
///
/// Closing a socket that holds unread bytes makes the kernel send a reset, which can overtake the last
/// bytes that were sent (RFC 9293, section 3.10.4; RFC 1122, section 4.2.2.13). Waiting first prevents that.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// The same at the end of a drain, when there is less time.
const LINGER_DRAINED: Duration = Duration::from_millis(500);

/// The same at least, while the service has no permit left for another connection.
const LINGER_CROWDED: Duration = Duration::from_millis(500);

/// A connection on which no byte has moved for this long is taken to be between two answers, so that a drain which
/// cuts it ends it with FIN. One that is cut in the middle of something is reset, for the peer to know.
const QUIET: Duration = Duration::from_millis(500);

/// What became of a connection, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest ended it with FIN.
    Finished,
    /// The guest reset it.
    GuestReset,
    /// The guest trapped, or panicked.
    GuestTrap,
    /// The host could not give it what is granted.
    GrantFailed,
    /// No instance could be made for it.
    StartFailed,
    /// The guest took more time than `--max-call-time` or `--max-cpu-time`.
    CpuLimit,
    /// The peer reset it, or aborted it by an alert of TLS.
    PeerReset,
    /// The transport gave up on the peer, which vanished or broke TLS.
    PeerLost,
    /// No byte came or went for as long as `--first-byte-timeout` after it was admitted.
    FirstByteTimeout,
    /// No byte moved for as long as `--idle-timeout`.
    IdleTimeout,
    /// The peer took no byte of what waited for it for as long as `--write-timeout`.
    WriteTimeout,
    /// It lived for as long as `--max-lifetime`.
    Lifetime,
    /// More bytes came, or wanted to go, than `--max-bytes-in` or `--max-bytes-out`.
    ByteLimit,
    /// It was still open at the end of a drain, of the host or of its generation.
    Drained,
    /// It was closed by who runs the host.
    Closed,
    /// The host panicked while serving it.
    HostPanic,
}

impl Outcome {
    /// Every outcome, in the order of their declaration.
    pub const ALL: [Self; 16] = [
        Self::Finished,
        Self::GuestReset,
        Self::GuestTrap,
        Self::GrantFailed,
        Self::StartFailed,
        Self::CpuLimit,
        Self::PeerReset,
        Self::PeerLost,
        Self::FirstByteTimeout,
        Self::IdleTimeout,
        Self::WriteTimeout,
        Self::Lifetime,
        Self::ByteLimit,
        Self::Drained,
        Self::Closed,
        Self::HostPanic,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::GuestReset => "guest-reset",
            Self::GuestTrap => "guest-trap",
            Self::GrantFailed => "grant-failed",
            Self::StartFailed => "start-failed",
            Self::CpuLimit => "cpu-limit",
            Self::PeerReset => "peer-reset",
            Self::PeerLost => "peer-lost",
            Self::FirstByteTimeout => "first-byte-timeout",
            Self::IdleTimeout => "idle-timeout",
            Self::WriteTimeout => "write-timeout",
            Self::Lifetime => "lifetime",
            Self::ByteLimit => "byte-limit",
            Self::Drained => "drained",
            Self::Closed => "closed",
            Self::HostPanic => "host-panic",
        }
    }

    /// Whether the guest failed.
    pub fn is_the_guests_fault(self) -> bool {
        matches!(self, Self::StartFailed | Self::GuestTrap | Self::CpuLimit)
    }
}

/// What there is to say of a connection that is over.
#[derive(Debug)]
pub struct Report {
    /// What became of it.
    pub outcome: Outcome,
    /// Why, where the outcome alone does not say.
    pub reason: Option<String>,
    /// A failure of the guest counts with this connection, and not with another that shared its instance.
    pub counts: bool,
    /// Bytes that came from the peer.
    pub bytes_in: u64,
    /// Bytes that were handed to the transport.
    pub bytes_out: u64,
    /// From when it has come in, which is the accept where there is no header and no handshake, to the close.
    pub duration: Duration,
    /// From when it has come in to the first byte that was handed to the transport.
    pub first_byte: Option<Duration>,
    /// What had passed when it ended, before the host closed it.
    pub at_end: AtEnd,
}

impl Report {
    /// Returns whether the guest failed of itself. A trap after the peer reset the connection is
    /// none: programs commonly end by a panic when they cannot write, as by `println!` of Rust.
    pub(crate) fn is_the_guests_fault(&self) -> bool {
        let by_peer = self.outcome == Outcome::GuestTrap && self.at_end.peer_failed;
        self.outcome.is_the_guests_fault() && !by_peer
    }

    /// Returns whether bytes or an end came from the peer before the guest ended.
    pub(crate) fn has_heard_peer(&self) -> bool {
        let AtEnd {
            peer_ended,
            peer_failed,
            ..
        } = self.at_end;
        self.bytes_in > 0 || peer_ended || peer_failed
    }
}

/// What had passed on a connection when its guest ended, or was ended. What the host reads and
/// writes to close the connection comes after it.
#[derive(Clone, Copy, Debug)]
pub struct AtEnd {
    /// Bytes that came from the peer.
    pub bytes_in: u64,
    /// The peer's FIN was read.
    pub peer_ended: bool,
    /// The peer had reset the connection, or was lost.
    pub peer_failed: bool,
    /// The guest had ended its half with FIN.
    pub guest_ended: bool,
    /// The exit status of a program that has ended the connection.
    pub status: Option<i32>,
}

/// Serves one connection with an instance of its own and returns when it is over. `cut` ends it from outside, as at the
/// end of a drain, and says what its outcome is then: [`Outcome::Drained`] or [`Outcome::Closed`]. It counts from now on.
pub fn serve<S, R, W>(
    seat: &S,
    peer: &Peer,
    inbound: Half<R>,
    outbound: Half<W>,
    limits: &Limits,
    cut: impl Future<Output = Outcome> + Send + 'static,
) -> impl Future<Output = Report>
where
    S: Seat,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let start = Instant::now();
    let time = deadlines::time(limits, start, inbound.traffic(), outbound.traffic());
    // Not in an `async fn`, which would keep it twice.
    let outside = Outside::new(time, cut);
    serve_until(seat, peer, inbound, outbound, start, outside)
}

/// Serves a connection that began at `start`, until it ends, or something ends it from `outside`.
async fn serve_until<S, R, W>(
    seat: &S,
    peer: &Peer,
    inbound: Half<R>,
    outbound: Half<W>,
    start: Instant,
    outside: Arc<Outside>,
) -> Report
where
    S: Seat,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let mut status = None;
    let mut counts = true;
    let mut was_quiet = None;
    // The future of the guest, and with it its instance, is dropped at the end of this statement.
    let (mut outcome, mut reason) = tokio::select! {
        biased;
        ended = sandbox::serve(seat, peer, &inbound, &outbound, outside.clone()) => {
            if let Ok(End::Exited(with)) = ended {
                status = Some(with);
            }
            counts = ended.as_ref().err().is_none_or(Fault::counts);
            match outside.outcome() {
                // The guest was interrupted by it.
                Some(outcome) => (outcome, None),
                None => {
                    if let Err(fault) = &ended {
                        show(fault, peer, &seat.generation());
                    }
                    judge(ended, inbound.failure().or(outbound.failure()))
                }
            }
        }
        passed = deadlines::bytes(&inbound, &outbound) => {
            if let Some(neighbours) = seat.neighbours() {
                neighbours.disturb(QUIET);
            }
            (passed.into(), None)
        }
        (outcome, quiet) = ends_from_outside(&outside, seat, &inbound, &outbound) => {
            was_quiet = quiet;
            (outcome, None)
        }
    };
    let at_end = AtEnd {
        bytes_in: inbound.bytes(),
        peer_ended: inbound.ended(),
        peer_failed: inbound.failure().or(outbound.failure()).is_some(),
        guest_ended: outcome == Outcome::Finished || outbound.ended(),
        status,
    };
    if outcome == Outcome::Finished {
        // TLS may still hold bytes for a peer that reads slowly. Until they are sent, the limits on time hold as before.
        tokio::select! {
            biased;
            () = finish(&outbound) => {}
            ended = outside.ends() => outcome = ended,
        }
    }
    let at_rest = outcome == Outcome::Finished || outbound.at_rest();
    match outcome {
        Outcome::Finished | Outcome::FirstByteTimeout | Outcome::IdleTimeout | Outcome::Lifetime
            if at_rest =>
        {
            let _ = timeout(LINGER, finish(&outbound)).await;
            if outcome == Outcome::Finished {
                (outcome, reason) = judge(Ok(End::Finished), outbound.failure());
            }
            tokio::select! {
                biased;
                () = linger(&inbound, LINGER) => {}
                () = outside.cut() => {}
                // Boxed, since few connections come to it.
                () = async { Box::pin(crowded(seat)).await } => {}
            }
        }
        Outcome::Drained | Outcome::Closed
            if was_quiet.unwrap_or_else(|| is_quiet(&inbound, &outbound, None)) =>
        {
            let _ = timeout(LINGER, finish(&outbound)).await;
            linger(&inbound, LINGER_DRAINED).await;
        }
        // The writer is dropped without a FIN, which resets the connection.
        _ => {}
    }
    Report {
        outcome,
        reason,
        counts,
        bytes_in: inbound.bytes(),
        bytes_out: outbound.bytes(),
        duration: start.elapsed(),
        first_byte: outbound.first(),
        at_end,
    }
}

/// Returns whether a connection is between two answers. What the guest wrote right after the host
/// had ended one of the `neighbours` does not count.
fn is_quiet<R, W>(inbound: &Half<R>, outbound: &Half<W>, neighbours: Option<&Neighbours>) -> bool {
    let written = outbound.moved();
    let is_reaction = neighbours.is_some_and(|neighbours| neighbours.were_disturbed(written, QUIET));
    let moved = if is_reaction {
        inbound.moved()
    } else {
        inbound.moved().max(written)
    };
    outbound.at_rest() && moved.elapsed() >= QUIET
}

/// Waits until something ends the connection from `outside`. Returns whether the connection was
/// quiet, if it shares an instance.
///
/// A shared instance may write to each of its connections when one of them ends. A drain ends all
/// of them, so each is judged before the first of them ends. For other ends the host notes when
/// they happen.
async fn ends_from_outside<S: Seat, R, W>(
    outside: &Outside,
    seat: &S,
    inbound: &Half<R>,
    outbound: &Half<W>,
) -> (Outcome, Option<bool>) {
    match seat.neighbours() {
        // Boxed, so that connections with instances of their own have no room for it.
        Some(neighbours) => Box::pin(judged_together(outside, neighbours, inbound, outbound)).await,
        None => (outside.ends().await, None),
    }
}

async fn judged_together<R, W>(
    outside: &Outside,
    neighbours: Arc<Neighbours>,
    inbound: &Half<R>,
    outbound: &Half<W>,
) -> (Outcome, Option<bool>) {
    let unjudged = neighbours.unjudged.token();
    let outcome = outside.ends().await;
    let quiet = is_quiet(inbound, outbound, Some(&neighbours));
    drop(unjudged);
    if outcome == Outcome::Drained {
        neighbours.unjudged.close();
        // The wait is bounded, since a neighbour may be held up by a thread that is busy.
        let _ = timeout(QUIET, neighbours.unjudged.wait()).await;
    }
    neighbours.disturb(QUIET);
    (outcome, Some(quiet))
}

/// Logs how a guest of `generation` failed, with its backtrace.
fn show(fault: &Fault, peer: &Peer, generation: &Generation) {
    let (service, connection, trace) = (generation.service(), peer.connection, fault.trace());
    if generation.has_backtraces() {
        info!(service, connection, %trace, "the guest failed");
    } else {
        debug!(service, connection, %trace, "the guest failed");
    }
}

/// The outcome of a connection whose guest came to an end, and the reason behind it.
fn judge(ended: Result<End, Fault>, failure: Option<Failure>) -> (Outcome, Option<String>) {
    match (ended, failure) {
        (Err(fault), _) => (Outcome::from(&fault), Some(fault.reason())),
        (Ok(_), Some(Failure::Reset)) => (Outcome::PeerReset, None),
        (Ok(_), Some(failure)) => (Outcome::PeerLost, Some(format!("{failure:?}"))),
        (Ok(End::Reset(code)), None) => (Outcome::GuestReset, Some(code.to_owned())),
        (Ok(End::Finished | End::Exited(_)), None) => (Outcome::Finished, None),
    }
}

impl From<&Fault> for Outcome {
    fn from(fault: &Fault) -> Self {
        match fault {
            Fault::Grant(_) => Self::GrantFailed,
            Fault::Start(_) => Self::StartFailed,
            Fault::Cpu(_) => Self::CpuLimit,
            Fault::Trap(_) => Self::GuestTrap,
            Fault::Shared { fault, .. } => (&**fault).into(),
        }
    }
}

impl From<Passed> for Outcome {
    fn from(passed: Passed) -> Self {
        match passed {
            Passed::FirstByte => Self::FirstByteTimeout,
            Passed::Idle => Self::IdleTimeout,
            Passed::Write => Self::WriteTimeout,
            Passed::Lifetime => Self::Lifetime,
            Passed::Bytes => Self::ByteLimit,
        }
    }
}

/// Sends FIN, if it was not sent, once the transport has taken all bytes before it.
async fn finish<W: AsyncWrite + Unpin>(outbound: &Half<W>) {
    if outbound.ended() {
        return;
    }
    if let Some(mut writer) = outbound.lend() {
        // A peer that is gone has no use for a FIN.
        let _ = writer.shutdown().await;
    }
}

/// Waits until a connection has lingered long enough for a service that has no permit left.
async fn crowded<S: Seat>(seat: &S) {
    loop {
        sleep(LINGER_CROWDED).await;
        if seat.is_crowded() {
            return;
        }
    }
}

/// Waits for the peer's FIN, for `limit` at most.
async fn linger<R: AsyncRead + Unpin>(inbound: &Half<R>, limit: Duration) {
    if inbound.ended() || inbound.failure().is_some() {
        return;
    }
    if let Some(mut reader) = inbound.lend() {
        let _ = timeout(limit, buffer::discard(&mut reader)).await;
    }
}

#[cfg(test)]
mod tests;
