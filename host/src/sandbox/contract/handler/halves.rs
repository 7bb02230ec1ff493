//! The ends that the host holds of a guest's streams and futures.

use std::any::{Any, TypeId};
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;
use wasmtime::component::{
    Accessor, AccessorTask, Destination, FutureAny, FutureConsumer, FutureReader, Source, StreamConsumer,
    StreamProducer, StreamReader, StreamResult,
};
use wasmtime::{AsContextMut, StoreContextMut};

use super::ends::Heard;
use crate::bindings::service::inet::service::types::ErrorCode;
use crate::buffer;
use crate::half::Failure;
use crate::sandbox::leash::{Outlet, TakenBack};
use crate::sandbox::state::State;

/// How a half ended, in the terms of the contract.
pub(super) type HalfEnd = Result<(), ErrorCode>;

/// What a guest is given: its inbound stream, and how that ends. The last tells whether the guest gives the future back.
pub(super) fn inbound<R: AsyncRead + Unpin + Send + 'static>(
    mut store: impl AsContextMut<Data = State>,
    producer: Producer<R>,
    end: Heard,
) -> wasmtime::Result<(StreamReader<u8>, FutureReader<HalfEnd>, FutureAny)> {
    let stream = StreamReader::new(&mut store, producer)?;
    let end = FutureReader::new(&mut store, end)?;
    let own_end = end.try_into_future_any(&mut store)?;
    let end = FutureReader::try_from_future_any(own_end.clone())?;
    Ok((stream, end, own_end))
}

/// A task of the host that never ends. wasmtime keeps what it waits for in a `FuturesUnordered`, which wakes its own
/// task for nothing whenever it has polled all that is in it; with this in it, that never comes.
pub(super) struct Never;

impl AccessorTask<State> for Never {
    fn run(self, _accessor: &Accessor<State>) -> impl Future<Output = wasmtime::Result<()>> + Send {
        pending()
    }
}

/// The inbound half: reads from the socket, into the guest's memory, when the guest reads.
pub(super) struct Producer<R> {
    pub(super) reader: R,
    pub(super) ended: Ended,
}

/// Tells the guest, once, how its inbound half ended.
pub(super) struct Ended(pub(super) Option<oneshot::Sender<HalfEnd>>);

impl Ended {
    pub(super) fn tell(&mut self, how: HalfEnd) {
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
                self.ended.tell(Err(how(&error)));
                StreamResult::Dropped
            }
            Poll::Pending if finish => StreamResult::Cancelled,
            Poll::Pending => return Poll::Pending,
        }))
    }
}

/// How a read has failed, in the words of the contract.
fn how(error: &io::Error) -> ErrorCode {
    if TakenBack::is(error) {
        ErrorCode::ConnectionAborted
    } else {
        Failure::from(error).into()
    }
}

/// The outbound half: writes to the socket, from the guest's memory, when the guest writes.
pub(super) struct Consumer<W> {
    pub(super) writer: W,
}

impl<W: Outlet + 'static> StreamConsumer<State> for Consumer<W> {
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
pub(super) struct EndConsumer {
    pub(super) ended: Option<oneshot::Sender<HalfEnd>>,
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
