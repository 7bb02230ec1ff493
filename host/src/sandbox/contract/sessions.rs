//! The sessions contract: events into the guest, answers out of it.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use wasmtime::Store;

use super::{End, Fault, within};
use crate::bindings::session_service::SessionServicePre;
use crate::bindings::session_service::exports::inet::service::sessions::{Event, Next};
use crate::bindings::session_service::inet::service::types::{self, ErrorCode};
use crate::buffer::{self, Chunk};
use crate::half::{Failure, Half, Lent};
use crate::peer::Peer;
use crate::sandbox::state::State;

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

pub(super) async fn serve<R, W>(
    pre: &SessionServicePre<State>,
    store: &mut Store<State>,
    peer: &Peer,
    inbound: &Half<R>,
    outbound: &Half<W>,
    started: impl FnOnce() + Send,
) -> Result<End, Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (Some(mut reader), Some(mut writer)) = (inbound.lend(), outbound.lend()) else {
        return Ok(End::Finished);
    };
    let max = store.data().max_call_time();
    let instance = within(max, pre.instantiate_async(&mut *store), Fault::Start).await?;
    let sessions = instance.inet_service_sessions().session();
    let peer = types::Peer {
        connection: peer.connection,
        remote: &peer.remote,
        local: &peer.local,
        listener: &peer.listener,
    };
    let session = within(max, sessions.call_constructor(&mut *store, peer), Fault::Trap).await?;

    let ticker = Arc::clone(store.data().ticker());
    let mut started = Some(started);
    let mut ended = false;
    let mut happened = None;
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
        let call = sessions.call_handle(&mut *store, session, event);
        let answer = within(max, call, Fault::Trap).await?;
        if let Some(started) = started.take() {
            started();
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
                next(&mut reader, ended, timer).await
            }
        });
    }
}

/// Waits for the peer, which has nothing more to say once it has `ended`, and for the timer.
async fn next<R: AsyncRead + Unpin>(reader: &mut Lent<R>, ended: bool, timer: Option<Duration>) -> Happened {
    let Some(timer) = timer else {
        return received(buffer::read(reader).await);
    };
    let peer = async {
        if ended {
            pending().await
        } else {
            buffer::read(reader).await
        }
    };
    tokio::select! {
        biased;
        read = peer => received(read),
        () = tokio::time::sleep(timer) => Happened::Woken,
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
