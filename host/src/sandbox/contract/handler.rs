//! The streams contract: the inbound half as a stream into the guest, and the stream that it returns as the
//! outbound half.

pub(in crate::sandbox) mod ends;
mod failed;
mod halves;
pub(in crate::sandbox) mod shared;

use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime::component::FutureReader;

use super::{End, Fault, Served, within};
use crate::bindings::service::ServicePre;
use crate::bindings::service::inet::service::types::{self, ErrorCode};
use crate::buffer;
use crate::half::{Failure, Half, Lent};
use crate::peer::Peer;
use crate::relay::{Relayed, relay};
use crate::sandbox::state::State;
use ends::{Ends, Heard};
use failed::hear_out;
use halves::{Consumer, EndConsumer, Ended, HalfEnd, Never, Producer};

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
    let (max, start) = (store.data().max_call_time(), Instant::now());
    let instance = within(max, pre.instantiate_async(&mut *store), Fault::Start).await?;
    store.data().instantiated(start);
    let ends = Arc::new(Ends::default());
    store.data_mut().handles(peer.connection, &ends);
    let peer = types::Peer::from(peer);
    let (inbound_ended, inbound_end) = oneshot::channel();
    let inbound_end = Heard::by_host(&ends, inbound_end);
    let producer = Producer {
        reader,
        ended: Ended(Some(inbound_ended)),
    };
    let (outbound_ended, outbound_end) = oneshot::channel();
    store
        .run_concurrent(async |accessor| {
            let (stream, end, own_end) =
                accessor.with(|mut store| halves::inbound(&mut store, producer, inbound_end))?;
            let handler = instance.inet_service_handler();
            let (stream, end) = handler.call_handle(accessor, peer, stream, end).await?;
            started();
            let returned = accessor.with(|mut store| {
                let stream = stream.try_into::<Producer<Lent<R>>>(&mut store);
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
            let guest_is_done = || poll_fn(|cx| accessor.poll_no_interesting_tasks(cx));
            let driving = pin!(drive(inbound, outbound, outbound_end, &ends, guest_is_done()));
            wasmtime::error::Ok(match returned {
                Returned::Own => Served::Ended(driving.await),
                Returned::Stream(producer, writer) => {
                    let Producer { reader, ended } = producer;
                    Served::Ended(relay_beside(driving, reader, writer, ended).await)
                }
                Returned::Both(producer, mut writer) => {
                    let Producer {
                        mut reader,
                        ended: _ended,
                    } = producer;
                    // What the guest still does beside its connection may matter to it.
                    match relay(&mut reader, &mut writer, guest_is_done()).await {
                        Ok(Relayed::SoFar) => Served::Returned(reader, writer),
                        // Where it fails, the half says how.
                        Ok(Relayed::ToTheEnd | Relayed::Unwritable) | Err(_) => Served::Ended(End::Finished),
                    }
                }
            })
        })
        .await
        .flatten()
        .map_err(Fault::Trap)
}

/// What of its own inbound half a guest has returned as its outbound half.
enum Returned<R, W> {
    /// The stream and the future: it has said all that there is to say.
    Both(Producer<Lent<R>>, Lent<W>),
    /// The stream. The guest decides how it ends.
    Stream(Producer<Lent<R>>, Lent<W>),
    /// Nothing: it reads and writes.
    Own,
}

/// Waits until the guest is done with both halves, and sends FIN when it is done with its own. Bytes that are on their way
/// through middlewares arrive first, unless `guest_is_done` and nothing can take them.
async fn drive<R, W>(
    inbound: &Half<R>,
    outbound: &Half<W>,
    end: oneshot::Receiver<HalfEnd>,
    ends: &Ends,
    guest_is_done: impl Future<Output = ()>,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    // A peer that has failed is no fault that a middleware has found.
    let counts = || inbound.failure().is_none();
    let driving = async {
        let Some(end) = drive_halves(inbound, outbound, end).await else {
            return End::Finished;
        };
        if end == End::Finished {
            if outbound.failure().or(inbound.failure()).is_some() {
                // Boxed, since few connections come to it.
                Box::pin(hear_out(inbound, ends, guest_is_done)).await;
            } else {
                tokio::select! {
                    biased;
                    () = ends.heard() => {}
                    () = guest_is_done => {}
                }
            }
        }
        // In a shared instance it may have come meanwhile.
        match ends.refusal() {
            Some(code) if counts() => code.into(),
            _ => end,
        }
    };
    tokio::select! {
        biased;
        code = ends.refused(counts) => code.into(),
        end = driving => end,
    }
}

/// Waits until the host has nothing more to read and to write, and the guest with its outbound half
/// if the connection failed; `None` if the peer is found to be gone.
async fn drive_halves<R, W>(
    inbound: &Half<R>,
    outbound: &Half<W>,
    end: oneshot::Receiver<HalfEnd>,
) -> Option<End>
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
            return Some(end);
        }
        () = inbound.returned() => {}
    }
    if inbound.ended() || inbound.failure().is_some() {
        return Some(sending.await);
    }
    // The guest wants no more: what the peer still sends must not hold up what it reads.
    let Some(mut reader) = inbound.lend() else {
        return Some(sending.await);
    };
    tokio::select! {
        biased;
        end = sending.as_mut() => Some(end),
        discarded = buffer::discard(&mut reader) => match discarded {
            Ok(()) => Some(sending.await),
            Err(_) => None,
        }
    }
}

/// Tells the guest that the host ended the connection, unless it was told another end.
struct Relaying(Ended);

impl Drop for Relaying {
    fn drop(&mut self) {
        self.0.tell(Err(ErrorCode::ConnectionAborted));
    }
}

/// Moves the bytes of a guest that has returned its inbound stream, and leaves the end to it, by `driving`.
async fn relay_beside<R, W>(
    mut driving: Pin<&mut impl Future<Output = End>>,
    mut reader: Lent<R>,
    mut writer: Lent<W>,
    ended: Ended,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut ended = Relaying(ended);
    let relaying = async {
        let relayed = relay(&mut reader, &mut writer, pending()).await;
        drop(writer);
        let how = match relayed {
            Ok(Relayed::Unwritable) => {
                // The end of the half comes after what nobody takes any more.
                let discarded = buffer::discard(&mut reader).await;
                discarded.map_err(|error| Failure::from(&error).into())
            }
            relayed => relayed.map(drop).map_err(Into::into),
        };
        ended.0.tell(how);
        drop(reader);
    };
    tokio::select! {
        biased;
        end = driving.as_mut() => end,
        () = relaying => driving.await,
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
