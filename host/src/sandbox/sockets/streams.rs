//! Sockets of WASI 0.3, whose streams keep them open when their handles are dropped.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use wasmtime::component::{
    Access, FutureConsumer, FutureReader, Linker, Resource, ResourceType, Source, StreamReader,
};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, Host as _, HostTcpSocket, HostTcpSocketWithStore, IpAddressFamily,
};
use wasmtime_wasi::sockets::{TcpSocket, WasiSockets};

use super::Streams;
use crate::sandbox::state::State;

/// The interface of WASI 0.3 that has the functions below.
const TYPES: &str = "wasi:sockets/types@0.3.0";

type Store<'a> = StoreContextMut<'a, State>;

/// How a stream has ended.
type End = Result<(), ErrorCode>;

/// Replaces those functions of WASI that create a socket, take a stream from it, or drop it.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    types.resource(
        "tcp-socket",
        ResourceType::host::<TcpSocket>(),
        |mut store: Store<'_>, handle| {
            let state = store.data_mut();
            state.drops_socket(handle);
            HostTcpSocket::drop(&mut state.socket_view(), Resource::new_own(handle))
        },
    )?;
    types.func_wrap(
        "[static]tcp-socket.create",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| Ok((create(store.data_mut(), family)?,)),
    )?;
    types.func_wrap(
        "[method]tcp-socket.send",
        |mut store: Store<'_>, (socket, data): (Resource<TcpSocket>, StreamReader<u8>)| {
            let streams = store.data_mut().takes_socket_stream(&socket);
            let access = Access::<_, WasiSockets>::new(store.as_context_mut(), State::socket_view);
            let end = WasiSockets::send(access, socket, data)?;
            Ok((until_end(&mut store, end, streams)?,))
        },
    )?;
    types.func_wrap(
        "[method]tcp-socket.receive",
        |mut store: Store<'_>, (socket,): (Resource<TcpSocket>,)| {
            let streams = store.data_mut().takes_socket_stream(&socket);
            let access = Access::<_, WasiSockets>::new(store.as_context_mut(), State::socket_view);
            let (data, end) = WasiSockets::receive(access, socket)?;
            Ok(((data, until_end(&mut store, end, streams)?),))
        },
    )
}

fn create(
    state: &mut State,
    family: IpAddressFamily,
) -> wasmtime::Result<Result<Resource<TcpSocket>, ErrorCode>> {
    if !state.may_open_socket() {
        return Ok(Err(ErrorCode::Other(Some("too many sockets".to_owned()))));
    }
    let mut sockets = state.socket_view();
    match HostTcpSocket::create(&mut sockets, family) {
        Ok(socket) => Ok(Ok(socket)),
        Err(error) => Ok(Err(sockets.convert_error_code(error)?)),
    }
}

/// Passes on how a stream ends, and keeps `streams` until then.
fn until_end(
    store: &mut Store<'_>,
    end: FutureReader<End>,
    streams: Option<Streams>,
) -> wasmtime::Result<FutureReader<End>> {
    let Some(streams) = streams else {
        return Ok(end);
    };
    let (told, tells) = oneshot::channel();
    let passing = PassOn(Some((told, streams)));
    end.pipe(&mut *store, passing)?;
    FutureReader::new(store, tells)
}

/// Passes on how a stream has ended, to the guest.
struct PassOn(Option<(oneshot::Sender<End>, Streams)>);

impl FutureConsumer<State> for PassOn {
    type Item = End;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        store: Store<'_>,
        mut source: Source<'_, End>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut end = None;
        source.read(store, &mut end)?;
        if let (Some((told, _streams)), Some(end)) = (self.0.take(), end) {
            // Fails if the guest does not want to know it.
            let _ = told.send(end);
        }
        Poll::Ready(Ok(()))
    }
}
