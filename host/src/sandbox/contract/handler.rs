//! The streams contract: the inbound half as a stream into the guest, and the stream that it returns as the
//! outbound half.

use std::any::{Any, TypeId};
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;
use wasmtime::component::{
    Accessor, AccessorTask, Destination, FutureConsumer, FutureReader, Source, StreamConsumer,
    StreamProducer, StreamReader, StreamResult,
};
use wasmtime::{AsContextMut, Store, StoreContextMut};

use super::{End, Fault, Served, within};
use crate::bindings::service::ServicePre;
use crate::bindings::service::inet::service::types::{self, ErrorCode};
use crate::buffer;
use crate::half::{Failure, Half, Lent};
use crate::peer::Peer;
use crate::relay::{Relayed, relay};
use crate::sandbox::state::State;

/// How a half ended, in the terms of the contract.
type HalfEnd = Result<(), ErrorCode>;

pub(super) async fn serve<R, W>(
    pre: &ServicePre<State>,
    store: &mut Store<State>,
    peer: &Peer,
    inbound: &Half<R>,
    outbound: &Half<W>,
    started: impl FnOnce() + Send,
) -> Result<Served<R, W>, Fault>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (Some(reader), Some(writer)) = (inbound.lend(), outbound.lend()) else {
        return Ok(Served::Ended(End::Finished));
    };
    let max = store.data().max_call_time();
    let instance = within(max, pre.instantiate_async(&mut *store), Fault::Start).await?;
    let peer = types::Peer::from(peer);
    let (inbound_ended, inbound_end) = oneshot::channel();
    let producer = Producer {
        reader,
        ended: Ended(Some(inbound_ended)),
    };
    let (outbound_ended, outbound_end) = oneshot::channel();
    store
        .run_concurrent(async |accessor| {
            let (stream, end, own_end) = accessor.with(|mut store| {
                let stream = StreamReader::new(&mut store, producer)?;
                let end = FutureReader::new(&mut store, inbound_end)?;
                let own_end = end.try_into_future_any(&mut store)?;
                let end = FutureReader::try_from_future_any(own_end.clone())?;
                wasmtime::error::Ok((stream, end, own_end))
            })?;
            let handler = instance.inet_service_handler();
            let (stream, end) = handler.call_handle(accessor, peer, stream, end).await?;
            started();
            let returned = accessor.with(|mut store| {
                let stream = stream.try_into::<Producer<R>>(&mut store);
                let end = end.try_into_future_any(&mut store)?;
                wasmtime::error::Ok(match stream {
                    Ok(producer) if end == own_end => Returned::Both(producer, writer),
                    stream => {
                        let end: FutureReader<HalfEnd> = end.try_into_future_reader()?;
                        end.pipe(
                            &mut store,
                            EndConsumer {
                                ended: Some(outbound_ended),
                            },
                        )?;
                        match stream {
                            Ok(producer) => Returned::Stream(producer, writer),
                            Err(stream) => {
                                stream.pipe(&mut store, Consumer { writer })?;
                                Returned::Own
                            }
                        }
                    }
                })
            })?;
            if let Returned::Own = returned {
                accessor.spawn(Never)?;
            }
            let mut driving = pin!(drive(inbound, outbound, outbound_end));
            wasmtime::error::Ok(match returned {
                Returned::Own => Served::Ended(driving.await),
                Returned::Stream(producer, mut writer) => {
                    let Producer {
                        mut reader,
                        mut ended,
                    } = producer;
                    let relaying = async {
                        let relayed = relay(&mut reader, &mut writer, pending()).await;
                        ended.tell(relayed.map(drop).map_err(Into::into));
                        drop((reader, writer));
                    };
                    tokio::select! {
                        biased;
                        end = driving.as_mut() => Served::Ended(end),
                        () = relaying => Served::Ended(driving.await),
                    }
                }
                Returned::Both(producer, mut writer) => {
                    let Producer {
                        mut reader,
                        ended: _ended,
                    } = producer;
                    // What the guest still does beside its connection may matter to it.
                    let guest_is_done = poll_fn(|cx| accessor.poll_no_interesting_tasks(cx));
                    match relay(&mut reader, &mut writer, guest_is_done).await {
                        Ok(Relayed::SoFar) => Served::Returned(reader, writer),
                        // Where it fails, the half says how.
                        Ok(Relayed::ToTheEnd) | Err(_) => Served::Ended(End::Finished),
                    }
                }
            })
        })
        .await
        .flatten()
        .map_err(Fault::Trap)
}

/// A task of the host that never ends. wasmtime keeps what it waits for in a `FuturesUnordered`, which wakes its own
/// task for nothing whenever it has polled all that is in it; with this in it, that never comes.
struct Never;

impl AccessorTask<State> for Never {
    fn run(self, _accessor: &Accessor<State>) -> impl Future<Output = wasmtime::Result<()>> + Send {
        pending()
    }
}

/// What of its own inbound half a guest has returned as its outbound half.
enum Returned<R, W> {
    /// The stream and the future: it has said all that there is to say.
    Both(Producer<R>, Lent<W>),
    /// The stream. The guest decides how it ends.
    Stream(Producer<R>, Lent<W>),
    /// Nothing: it reads and writes.
    Own,
}

/// Waits until the guest is done with both halves, and sends FIN when it is done with its own.
async fn drive<R, W>(inbound: &Half<R>, outbound: &Half<W>, end: oneshot::Receiver<HalfEnd>) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut sending = pin!(send(outbound, end));
    tokio::select! {
        biased;
        end = sending.as_mut() => {
            if end == End::Finished && outbound.failure().is_none() {
                // The guest may go on reading after its own FIN.
                inbound.returned().await;
            }
            return end;
        }
        () = inbound.returned() => {}
    }
    if inbound.ended() || inbound.failure().is_some() {
        return sending.await;
    }
    // The guest wants no more: what the peer still sends must not hold up what it reads.
    let Some(mut reader) = inbound.lend() else {
        return sending.await;
    };
    tokio::select! {
        biased;
        end = sending.as_mut() => end,
        discarded = buffer::discard(&mut reader) => match discarded {
            Ok(()) => sending.await,
            Err(_) => End::Finished,
        }
    }
}

/// Waits until all that the guest has to say is written, or cannot be, and sends FIN if that is how it ends.
async fn send<W>(outbound: &Half<W>, mut end: oneshot::Receiver<HalfEnd>) -> End
where
    W: AsyncWrite + Unpin,
{
    let mut resolved = false;
    let mut written = false;
    while !(resolved && written) {
        tokio::select! {
            biased;
            () = outbound.returned(), if !written => {
                if outbound.failure().is_some() {
                    return End::Finished;
                }
                written = true;
            }
            end = &mut end, if !resolved => match end {
                Ok(Ok(())) => resolved = true,
                Ok(Err(code)) => return code.into(),
                Err(_) => return ErrorCode::InternalError.into(),
            }
        }
    }
    if let Some(mut writer) = outbound.lend() {
        // Where this fails the half has kept the reason.
        let _ = writer.shutdown().await;
    }
    End::Finished
}

/// The inbound half: reads from the socket, into the guest's memory, when the guest reads.
struct Producer<R> {
    reader: Lent<R>,
    ended: Ended,
}

/// Tells the guest, once, how its inbound half ended.
struct Ended(Option<oneshot::Sender<HalfEnd>>);

impl Ended {
    fn tell(&mut self, how: HalfEnd) {
        if let Some(guest) = self.0.take() {
            // A guest that has dropped the future does not want to know.
            let _ = guest.send(how);
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.tell(Ok(()));
    }
}

impl<R: AsyncRead + Unpin + Send + 'static> StreamProducer<State> for Producer<R> {
    type Item = u8;
    type Buffer = bytes::BytesMut;

    fn try_into(me: Pin<Box<Self>>, ty: TypeId) -> Result<Box<dyn Any>, Pin<Box<Self>>> {
        if ty == TypeId::of::<Self>() {
            let me: Box<Self> = Pin::into_inner(me);
            Ok(me)
        } else {
            Err(me)
        }
    }

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, State>,
        destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if destination.remaining(store.as_context_mut()) == Some(0) {
            // Whether a reader is ready cannot be asked without reading from it.
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut destination = destination.as_direct(store, buffer::SIZE);
        let mut read = ReadBuf::new(destination.remaining());
        let polled = Pin::new(&mut self.reader).poll_read(cx, &mut read);
        let count = read.filled().len();
        Poll::Ready(Ok(match polled {
            Poll::Ready(Ok(())) if count > 0 => {
                destination.mark_written(count);
                StreamResult::Completed
            }
            Poll::Ready(Ok(())) => {
                self.ended.tell(Ok(()));
                StreamResult::Dropped
            }
            Poll::Ready(Err(error)) => {
                self.ended.tell(Err(Failure::from(&error).into()));
                StreamResult::Dropped
            }
            Poll::Pending if finish => StreamResult::Cancelled,
            Poll::Pending => return Poll::Pending,
        }))
    }
}

/// The outbound half: writes to the socket, from the guest's memory, when the guest writes.
struct Consumer<W> {
    writer: Lent<W>,
}

impl<W: AsyncWrite + Unpin + Send + 'static> StreamConsumer<State> for Consumer<W> {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, State>,
        source: Source<'_, Self::Item>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut source = source.as_direct(store);
        if source.remaining().is_empty() {
            // Whether a writer is ready cannot be asked without writing to it.
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let polled = Pin::new(&mut self.writer).poll_write(cx, source.remaining());
        Poll::Ready(Ok(match polled {
            Poll::Ready(Ok(count)) if count > 0 => {
                source.mark_read(count);
                StreamResult::Completed
            }
            Poll::Ready(_) => StreamResult::Dropped,
            Poll::Pending if finish => {
                self.writer.give_up();
                StreamResult::Cancelled
            }
            Poll::Pending => return Poll::Pending,
        }))
    }
}

/// Takes the value of the future that the guest returned.
struct EndConsumer {
    ended: Option<oneshot::Sender<HalfEnd>>,
}

impl FutureConsumer<State> for EndConsumer {
    type Item = HalfEnd;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        store: StoreContextMut<'_, State>,
        mut source: Source<'_, Self::Item>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut value = None;
        source.read(store, &mut value)?;
        if let (Some(ended), Some(value)) = (self.ended.take(), value) {
            let _ = ended.send(value);
        }
        Poll::Ready(Ok(()))
    }
}
