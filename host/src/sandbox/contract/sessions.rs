//! The sessions contract: events into the guest, answers out of it.

use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::poll;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use wasmtime::Store;

use super::migration;
use super::session::{Happened, Next, Session};
use super::{End, Fault, PATIENCE, unread};
use crate::buffer::{self, Chunk};
use crate::half::{Failure, Half, Lent};
use crate::peer::Peer;
use crate::sandbox::seat::Seat;
use crate::sandbox::state::State;
use crate::seldom::seldom;

/// What the host waits for between two calls.
enum Wait {
    /// The peer, or the timer if there is one.
    Event(Option<Duration>),
    /// Nothing: the guest has more to say.
    Nothing,
}

/// What the wait for the next event may come to.
enum Awaited<O> {
    Happened(Happened),
    /// Another generation, to which the session may move.
    Offer(O),
}

/// Takes `session`, which is in `store`, through the events of its connection.
pub(super) async fn serve<S, R, W>(
    seat: &S,
    mut session: Session,
    store: &mut Store<State>,
    peer: &Peer,
    inbound: &Half<R>,
    outbound: &Half<W>,
) -> Result<End, Fault>
where
    S: Seat,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (Some(mut reader), Some(mut writer)) = (inbound.lend(), outbound.lend()) else {
        return Ok(End::Finished);
    };
    let ticker = Arc::clone(store.data().ticker());
    let mut started = false;
    let mut ended = false;
    // How a write has failed. No answer is written after that.
    let mut gone = None;
    let mut happened = Happened::Opened;
    let mut offer = pin!(seldom(seat.offer()));
    loop {
        ticker.take_turns().await;
        store.set_epoch_deadline(1);
        outbound.owe(true);
        let answer = {
            let handling = pin!(session.handle(store, &happened));
            out_of_turn(handling, || offer.set(seldom(seat.offer()))).await?
        };
        if !started {
            started = true;
            seat.started();
        }
        match &happened {
            Happened::Ended(Err(_)) => return Ok(End::Finished),
            Happened::Ended(Ok(())) if gone.is_some() => return Ok(End::Finished),
            Happened::Ended(Ok(())) => ended = true,
            _ => {}
        }
        drop(happened);
        if let Next::Reset(end) = answer.next {
            return Ok(end);
        }
        let was_gone = gone.is_some();
        if was_gone {
            drop(answer.send);
        } else {
            let writing = pin!(unread::write_all(&mut writer, answer.send));
            let wrote = out_of_turn(writing, || offer.set(seldom(seat.offer()))).await;
            gone = wrote.err().map(|error| Failure::from(&error));
        }
        if let Some(failure) = gone {
            happened = match answer.next {
                Next::Finish if was_gone => return Ok(End::Finished),
                // It wants no more bytes, or there are none.
                Next::Finish => Happened::Ended(Err(failure)),
                _ if ended => Happened::Ended(Err(failure)),
                // Boxed, since few connections come to it.
                _ => Box::pin(remainder(&mut reader, failure)).await,
            };
            continue;
        }
        let wait = match answer.next {
            Next::Finish => return Ok(End::Finished),
            Next::GoOn if ended => return Ok(End::Finished),
            Next::GoOn | Next::Reset(_) => Wait::Event(None),
            Next::WhenWritten => Wait::Nothing,
            Next::WakeAfter(time) => Wait::Event(Some(time)),
        };
        happened = match wait {
            Wait::Nothing => Happened::Written,
            Wait::Event(timer) => {
                outbound.owe(false);
                let mut timer = pin!(seat.timer(timer));
                let mut movable = true;
                loop {
                    let offered = offer.as_mut();
                    match next(&mut reader, ended, timer.as_mut(), offered, movable).await {
                        Awaited::Happened(happened) => {
                            // It is not to hold the turn of others while the guest is at work.
                            if offer.was_woken() {
                                offer.set(seldom(seat.offer()));
                            }
                            break happened;
                        }
                        Awaited::Offer(offered) => {
                            offer.set(seldom(seat.offer()));
                            // In a box, since it is large and seldom. One that is busy is asked again after the next event.
                            let attempt = migration::attempt(seat, offered, &mut session, store, peer);
                            movable = Box::pin(attempt).await?;
                        }
                    }
                }
            }
        };
    }
}

/// Waits for `work`. If it is not done at once, calls `give_up`, which has the session wait anew for
/// its turn to move. Other sessions move meanwhile.
async fn out_of_turn<F: Future>(mut work: Pin<&mut F>, give_up: impl FnOnce()) -> F::Output {
    match poll!(work.as_mut()) {
        Poll::Ready(output) => output,
        Poll::Pending => {
            give_up();
            work.await
        }
    }
}

/// Waits for the peer, which has nothing more to say once it has `ended`, for the timer, and for another generation.
async fn next<R: AsyncRead + Unpin, O>(
    reader: &mut Lent<R>,
    ended: bool,
    timer: impl Future<Output = ()>,
    offer: impl Future<Output = O>,
    movable: bool,
) -> Awaited<O> {
    let peer = async {
        if ended {
            pending().await
        } else {
            buffer::read(reader).await
        }
    };
    tokio::select! {
        biased;
        read = peer => Awaited::Happened(received(read)),
        () = timer => Awaited::Happened(Happened::Woken),
        offer = offer, if movable => Awaited::Offer(offer),
    }
}

/// Reads the next bytes that arrived before a write failed with `failure`, or the end of the half.
async fn remainder<R: AsyncRead + Unpin>(reader: &mut Lent<R>, failure: Failure) -> Happened {
    let read = timeout(PATIENCE, buffer::read(reader)).await;
    read.map_or(Happened::Ended(Err(failure)), received)
}

fn received(read: io::Result<Chunk>) -> Happened {
    match read {
        Ok(chunk) if chunk.is_empty() => Happened::Ended(Ok(())),
        Ok(chunk) => Happened::Received(chunk),
        Err(error) => Happened::Ended(Err(Failure::from(&error))),
    }
}
