//! The same for an instance that connections share: each is a call of `handle` beside the others.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use wasmtime::component::{Accessor, AccessorTask, Func, Instance, StreamReader};
use wasmtime::{AsContextMut, Store};

use super::ends::{Ends, Heard};
use super::halves::{self, Consumer, EndConsumer, Ended, HalfEnd, Never, Producer};
use super::{drive, relay_beside};
use crate::bindings::service::inet::service::types;
use crate::bindings::service::{Service, ServicePre};
use crate::half::Half;
use crate::peer::Peer;
use crate::sandbox::contract::{Contract, CpuLimit, Fault, Served, within};
use crate::sandbox::leash::{Leash, Link, Outlet, leash};
use crate::sandbox::pulse::{Call, Pulse};
use crate::sandbox::state::State;

/// A connection on its way into an instance.
pub(in crate::sandbox) struct Arrival {
    peer: types::Peer,
    reader: Reader,
    writer: Box<dyn Outlet>,
    link: Arc<Link>,
    ends: Arc<Ends>,
    outbound_ended: oneshot::Sender<HalfEnd>,
    returned: oneshot::Sender<Returned>,
}

impl Arrival {
    /// Returns whether the connection has ended.
    fn is_over(&self) -> bool {
        self.returned.is_closed()
    }
}

type Reader = Box<dyn AsyncRead + Unpin + Send>;

/// What of its own inbound half a guest has returned as its outbound half.
enum Returned {
    /// The stream and the future.
    Both,
    /// The stream.
    Stream(Ended),
    /// Nothing.
    Own,
}

/// Makes an instance in `store` and has it serve all that arrive, until no more can.
///
/// # Errors
///
/// The instance could not be made, trapped, or did not let others have their turn.
pub(in crate::sandbox) async fn run(
    pre: &ServicePre<State>,
    store: &mut Store<State>,
    pulse: &Pulse,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
) -> Result<(), Fault> {
    let max = store.data().max_call_time();
    let instantiated = pre.instance_pre().instantiate_async(&mut *store);
    let instance = within(max, instantiated, Fault::Start).await?;
    let service = Arc::new(Service::new(&mut *store, &instance).map_err(Fault::Start)?);
    let handle = handle_of(&instance, store).map_err(Fault::Start)?;
    let mut waiting = Waiting::new(arrivals);
    let running = store.run_concurrent(async |accessor| {
        accessor.spawn(Never)?;
        pulse
            .beat(async {
                while let Some(arrival) = waiting.next(accessor, handle, pulse.room_for_call(max)).await? {
                    pulse.room().await;
                    let call = pulse.call();
                    accessor.with(|mut store| store.as_context_mut().data_mut().joined());
                    let service = Arc::clone(&service);
                    let (called, is_called) = oneshot::channel();
                    accessor.spawn(Visit {
                        service,
                        arrival,
                        call,
                        called,
                    })?;
                    // The guest may raise its back-pressure in this call, before the next one.
                    let _ = is_called.await;
                }
                Ok(())
            })
            .await
    });
    match pulse.watch(max, running).await {
        Ok(ran) => ran.flatten().map_err(Fault::Trap),
        Err(passed) => Err(Fault::Cpu(CpuLimit::Turn(passed))),
    }
}

/// Returns the function `handle` of an instance.
fn handle_of(instance: &Instance, store: &mut Store<State>) -> wasmtime::Result<Func> {
    let interface = instance.get_export_index(&mut *store, None, Contract::Streams.interface());
    interface
        .and_then(|interface| instance.get_export_index(&mut *store, Some(&interface), "handle"))
        .and_then(|handle| instance.get_func(&mut *store, handle))
        .ok_or_else(|| wasmtime::format_err!("the instance has no `handle`"))
}

/// Connections that the guest has not been called for.
///
/// A guest can raise its back-pressure, so that its calls wait. A call that was made cannot be
/// taken back, and would stay in the store after the end of its connection. So it is made only when
/// the guest is ready for it, and not while many of its calls are for connections that are over.
struct Waiting {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    /// At most as many as were open when the last one came.
    queue: VecDeque<Arrival>,
}

impl Waiting {
    fn new(arrivals: mpsc::UnboundedReceiver<Arrival>) -> Self {
        Self {
            arrivals,
            queue: VecDeque::new(),
        }
    }

    /// Waits for a connection, and until there is `room` for a call and the guest is ready for it.
    /// Returns `None` if no more can come.
    ///
    /// # Errors
    ///
    /// There will be no room.
    async fn next(
        &mut self,
        accessor: &Accessor<State>,
        handle: Func,
        room: impl Future<Output = wasmtime::Result<()>>,
    ) -> wasmtime::Result<Option<Arrival>> {
        // The time without room counts on while others arrive.
        let mut is_ready = pin!(async {
            room.await?;
            poll_fn(|cx| accessor.poll_ready_for_concurrent_call(handle, cx)).await;
            wasmtime::error::Ok(())
        });
        loop {
            tokio::select! {
                biased;
                is_ready = &mut is_ready, if !self.queue.is_empty() => {
                    is_ready?;
                    return Ok(self.queue.pop_front());
                }
                arrival = self.arrivals.recv() => {
                    self.queue.retain(|waiting| !waiting.is_over());
                    // Without senders, the connections in the queue are over as well.
                    let Some(arrival) = arrival else { return Ok(None) };
                    self.queue.push_back(arrival);
                }
            }
        }
    }
}

/// One connection, in its instance.
struct Visit {
    service: Arc<Service>,
    arrival: Arrival,
    call: Call,
    /// Is told, or dropped, when the guest has been called.
    called: oneshot::Sender<()>,
}

impl AccessorTask<State> for Visit {
    async fn run(self, accessor: &Accessor<State>) -> wasmtime::Result<()> {
        let Self {
            service,
            arrival,
            call,
            called,
        } = self;
        if arrival.is_over() {
            // It was over before its turn came.
            return Ok(());
        }
        let Arrival {
            peer,
            reader,
            writer,
            link,
            ends,
            outbound_ended,
            returned,
        } = arrival;
        link.take();
        let (inbound_ended, inbound_end) = oneshot::channel();
        let inbound_end = Heard::by_host(&ends, inbound_end);
        let producer = Producer {
            reader,
            ended: Ended(Some(inbound_ended)),
        };
        let (stream, own_stream, end, own_end) = accessor.with(|mut store| {
            let (stream, end, own_end) = halves::inbound(&mut store, producer, inbound_end)?;
            let own_stream = stream.try_into_stream_any(&mut store)?;
            let stream = StreamReader::try_from_stream_any(own_stream.clone())?;
            wasmtime::error::Ok((stream, own_stream, end, own_end))
        })?;
        let handler = service.inet_service_handler();
        let connection = peer.connection;
        accessor.with(|mut store| store.as_context_mut().data_mut().handles(connection, &ends));
        let mut handling = pin!(handler.call_handle(accessor, peer, stream, end));
        let first = poll_fn(|cx| Poll::Ready(handling.as_mut().poll(cx))).await;
        let _ = called.send(());
        let (stream, end) = match first {
            Poll::Ready(handled) => handled?,
            Poll::Pending => handling.await?,
        };
        drop(call);
        let what = accessor.with(|mut store| {
            store.as_context_mut().data_mut().has_handled(connection);
            let stream = stream.try_into_stream_any(&mut store)?;
            let is_own = stream == own_stream;
            let stream: StreamReader<u8> = stream.try_into_stream_reader()?;
            let mut end = end.try_into_future_any(&mut store)?;
            let end_is_own = end == own_end;
            // Whatever is not closed here stays in the store, which outlives the connection.
            let given_back = if is_own {
                stream.try_into::<Producer<Reader>>(&mut store)
            } else {
                Err(stream)
            };
            wasmtime::error::Ok(match given_back {
                Ok(_) if end_is_own => {
                    end.close(&mut store)?;
                    Returned::Both
                }
                given_back => {
                    let ended = Some(outbound_ended);
                    let end = end.try_into_future_reader::<HalfEnd>()?;
                    end.pipe(&mut store, EndConsumer { ended })?;
                    match given_back {
                        Ok(producer) => Returned::Stream(producer.ended),
                        Err(stream) => {
                            stream.pipe(&mut store, Consumer { writer })?;
                            Returned::Own
                        }
                    }
                }
            })
        })?;
        // Nobody takes it where the connection is over.
        let _ = returned.send(what);
        wasmtime::error::Ok(())
    }
}

/// A connection, as its own task sees it.
pub(in crate::sandbox) struct Visitor<'a, R, W> {
    inbound: &'a Half<R>,
    outbound: &'a Half<W>,
    /// Take the halves back when they are dropped: the outbound half first, so that nothing leaves that
    /// the guest writes when it sees the end of the inbound half.
    _leashes: (Leash<W>, Leash<R>),
    ends: Arc<Ends>,
    outbound_end: oneshot::Receiver<HalfEnd>,
    returned: oneshot::Receiver<Returned>,
}

impl<'a, R, W> Visitor<'a, R, W>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    /// A connection that is to be sent to an instance; `None` while its halves are lent.
    pub(in crate::sandbox) fn new(
        peer: &Peer,
        inbound: &'a Half<R>,
        outbound: &'a Half<W>,
        link: &Arc<Link>,
    ) -> Option<(Self, Arrival)> {
        let (reader, leashed_reader) = leash(inbound.lend()?, link);
        let (writer, leashed_writer) = leash(outbound.lend()?, link);
        let (outbound_ended, outbound_end) = oneshot::channel();
        let (returned_by_guest, returned) = oneshot::channel();
        let ends = Arc::new(Ends::default());
        let arrival = Arrival {
            peer: peer.into(),
            reader: Box::new(leashed_reader),
            writer: Box::new(leashed_writer),
            link: Arc::clone(link),
            ends: Arc::clone(&ends),
            outbound_ended,
            returned: returned_by_guest,
        };
        let visitor = Self {
            inbound,
            outbound,
            _leashes: (writer, reader),
            ends,
            outbound_end,
            returned,
        };
        Some((visitor, arrival))
    }

    /// Waits until the guest is done with the connection; for ever if its instance ends before. When this is dropped the
    /// guest has nothing of the connection any more.
    pub(in crate::sandbox) async fn stay(self, started: impl FnOnce()) -> Served<R, W> {
        let Ok(returned) = self.returned.await else {
            return pending().await;
        };
        started();
        let driving = pin!(drive(
            self.inbound,
            self.outbound,
            self.outbound_end,
            &self.ends,
            // Others may keep the instance busy.
            pending(),
        ));
        let ended = match returned {
            Returned::Own => return Served::Ended(driving.await),
            Returned::Stream(ended) => Some(ended),
            Returned::Both => None,
        };
        // What it has returned is at home again.
        let (Some(reader), Some(writer)) = (self.inbound.lend(), self.outbound.lend()) else {
            return pending().await;
        };
        match ended {
            None => Served::Returned(reader, writer),
            Some(ended) => Served::Ended(relay_beside(driving, reader, writer, ended).await),
        }
    }
}
