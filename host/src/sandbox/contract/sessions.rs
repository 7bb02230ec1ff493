//! The sessions contract: events into the guest, answers out of it.

use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Sleep, sleep};
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre, ResourceAny};

use super::migration::{self, Migration};
use super::{End, Fault, within};
use crate::bindings::session_service::exports::inet::service::sessions::{Event, Next};
use crate::bindings::session_service::inet::service::types::{self, ErrorCode};
use crate::bindings::session_service::{SessionService, SessionServiceIndices};
use crate::buffer::{self, Chunk};
use crate::half::{Failure, Half, Lent};
use crate::peer::Peer;
use crate::sandbox::seat::Seat;
use crate::sandbox::state::State;
use crate::seldom::seldom;

/// A component that serves by sessions, ready to be instantiated.
pub(in crate::sandbox) struct Sessions {
    pre: InstancePre<State>,
    indices: SessionServiceIndices,
    migration: Option<Migration>,
}

/// One session, in its store.
pub(super) struct Session {
    pub(super) instance: Instance,
    pub(super) service: SessionService,
    pub(super) session: ResourceAny,
}

impl Sessions {
    pub(super) fn new(pre: InstancePre<State>) -> wasmtime::Result<Self> {
        Ok(Self {
            indices: SessionServiceIndices::new(&pre)?,
            migration: Migration::find(&pre)?,
            pre,
        })
    }

    pub(super) fn migrates(&self) -> bool {
        self.migration.is_some()
    }

    pub(super) fn migration(&self) -> Option<&Migration> {
        self.migration.as_ref()
    }

    /// Makes an instance and drops it.
    pub(super) async fn probe(&self, store: &mut Store<State>) -> wasmtime::Result<()> {
        let (instance, _) = self.instantiate(&mut *store).await?;
        if let Some(migration) = &self.migration {
            migration.load(store, &instance)?;
        }
        Ok(())
    }

    /// Makes an instance.
    pub(super) async fn instantiate(
        &self,
        store: &mut Store<State>,
    ) -> wasmtime::Result<(Instance, SessionService)> {
        let instance = self.pre.instantiate_async(&mut *store).await?;
        let service = self.indices.load(store, &instance)?;
        Ok((instance, service))
    }

    /// Makes an instance, and a session in it.
    pub(super) async fn open(&self, store: &mut Store<State>, peer: &Peer) -> Result<Session, Fault> {
        let (max, start) = (store.data().max_call_time(), Instant::now());
        let (instance, service) = within(max, self.instantiate(&mut *store), Fault::Start).await?;
        store.data().instantiated(start);
        let peer = types::Peer::from(peer);
        let sessions = service.inet_service_sessions().session();
        let session = within(max, sessions.call_constructor(store, peer), Fault::Trap).await?;
        Ok(Session {
            instance,
            service,
            session,
        })
    }
}

/// What the host waits for between two calls.
enum Wait {
    /// The peer, or the timer if there is one.
    Event(Option<Duration>),
    /// Nothing: the guest has more to say.
    Nothing,
}

/// What has happened, with the bytes that [`Event`] borrows.
enum Happened {
    Received(Chunk),
    Written,
    Woken,
    Ended(Result<(), ErrorCode>),
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
    let max = store.data().max_call_time();
    let ticker = Arc::clone(store.data().ticker());
    let mut started = false;
    let mut ended = false;
    let mut happened = None;
    let mut offer = pin!(seldom(seat.offer()));
    loop {
        let event = match &happened {
            None => Event::Opened,
            Some(Happened::Received(chunk)) => Event::Received(chunk),
            Some(Happened::Written) => Event::Written,
            Some(Happened::Woken) => Event::Woken,
            Some(Happened::Ended(result)) => Event::Ended(*result),
        };
        ticker.take_turns().await;
        store.set_epoch_deadline(1);
        outbound.owe(true);
        let sessions = session.service.inet_service_sessions().session();
        let call = sessions.call_handle(&mut *store, session.session, event);
        let answer = within(max, call, Fault::Trap).await?;
        if !started {
            started = true;
            seat.started();
        }
        match happened.take() {
            Some(Happened::Ended(Err(_))) => return Ok(End::Finished),
            Some(Happened::Ended(Ok(()))) => ended = true,
            _ => {}
        }
        if let Next::Reset(code) = answer.next {
            return Ok(code.into());
        }
        let wrote = writer.write_all(&answer.send).await;
        drop(answer.send);
        let wait = match answer.next {
            _ if wrote.is_err() => Wait::Nothing,
            Next::Finish => return Ok(End::Finished),
            Next::GoOn if ended => return Ok(End::Finished),
            Next::GoOn | Next::Reset(_) => Wait::Event(None),
            Next::WhenWritten => Wait::Nothing,
            Next::WakeAfter(nanoseconds) => Wait::Event(Some(Duration::from_nanos(nanoseconds))),
        };
        happened = Some(match (wrote, wait) {
            (Err(error), _) => failed(&error),
            (Ok(()), Wait::Nothing) => Happened::Written,
            (Ok(()), Wait::Event(timer)) => {
                outbound.owe(false);
                let mut timer = pin!(timer.map(sleep));
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
        });
    }
}

/// Waits for the peer, which has nothing more to say once it has `ended`, for the timer, and for another generation.
async fn next<R: AsyncRead + Unpin, O>(
    reader: &mut Lent<R>,
    ended: bool,
    timer: Pin<&mut Option<Sleep>>,
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
    let timer = async {
        match timer.as_pin_mut() {
            Some(timer) => timer.await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        read = peer => Awaited::Happened(received(read)),
        () = timer => Awaited::Happened(Happened::Woken),
        offer = offer, if movable => Awaited::Offer(offer),
    }
}

fn received(read: io::Result<Chunk>) -> Happened {
    match read {
        Ok(chunk) if chunk.is_empty() => Happened::Ended(Ok(())),
        Ok(chunk) => Happened::Received(chunk),
        Err(error) => failed(&error),
    }
}

fn failed(error: &io::Error) -> Happened {
    Happened::Ended(Err(Failure::from(error).into()))
}
