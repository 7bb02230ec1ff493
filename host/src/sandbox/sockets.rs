//! Bounds on the sockets that guests hold.

mod streams;

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::network::IpAddressFamily;
use wasmtime_wasi::p2::bindings::sockets::{network, tcp_create_socket};
use wasmtime_wasi::p2::{Network, SocketError, SocketResult, TcpSocket};
use wasmtime_wasi::sockets::TcpSocket as P3Socket;

use super::state::State;
use crate::config::{Limits, MAX_SOCKETS};

/// The sockets that the guests of one service hold.
#[derive(Debug)]
pub(super) struct Sockets {
    open: AtomicUsize,
    max: AtomicUsize,
}

impl Sockets {
    /// Counts the sockets of a service with these limits.
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            max: AtomicUsize::new(limits.max_sockets()),
        })
    }

    /// Allows what `limits` allow from now on. Sockets that are open stay open and count.
    pub(super) fn bound(&self, limits: &Limits) {
        self.max.store(limits.max_sockets(), Relaxed);
    }
}

/// The sockets that one instance holds.
#[derive(Debug)]
pub(super) struct Held {
    of: Arc<Sockets>,
    /// How many of the service's are counted for this instance.
    counted: usize,
    max: usize,
    /// The streams that were taken from sockets of WASI 0.3, by the handles of the sockets.
    streams: HashMap<u32, Streams>,
    /// The streams of sockets that were dropped. They keep the sockets open.
    dropped: Vec<Weak<()>>,
}

/// Stands for the streams of one socket of WASI 0.3: each of them has a copy until it ends.
pub(super) type Streams = Arc<()>;

impl Held {
    /// None yet. An instance that connections share may hold all of its service.
    pub(super) fn new(of: Arc<Sockets>, is_shared: bool) -> Self {
        let max = if is_shared { usize::MAX } else { MAX_SOCKETS };
        Self {
            of,
            counted: 0,
            max,
            streams: HashMap::new(),
            dropped: Vec::new(),
        }
    }

    /// Counts the sockets again that are in `table`, or that streams keep open, if there were any.
    /// Nothing tells when one of WASI 0.2 is dropped.
    pub(super) fn recount(&mut self, table: &mut ResourceTable) {
        if self.counted == 0 {
            return;
        }
        let is_socket = |entry: &&mut (dyn Any + Send)| entry.is::<TcpSocket>() || entry.is::<P3Socket>();
        self.dropped.retain(|streams| streams.strong_count() > 0);
        let now = table.iter_mut().filter(is_socket).count() + self.dropped.len();
        // Each that was created is counted.
        let now = now.min(self.counted);
        self.of.open.fetch_sub(self.counted - now, Relaxed);
        self.counted = now;
    }

    /// Counts one more, unless that is too many.
    pub(super) fn add(&mut self) -> bool {
        let max = self.of.max.load(Relaxed);
        let fits = |open: usize| (open < max).then_some(open + 1);
        let added = self.counted < self.max && self.of.open.fetch_update(Relaxed, Relaxed, fits).is_ok();
        self.counted += usize::from(added);
        added
    }

    /// Notes that a stream was taken from the socket with this handle. The caller drops the result
    /// when the stream has ended.
    pub(super) fn takes_stream(&mut self, socket: u32) -> Streams {
        Arc::clone(self.streams.entry(socket).or_default())
    }

    /// Notes that the guest has dropped the socket with this handle.
    pub(super) fn drops(&mut self, socket: u32) {
        let streams = self.streams.remove(&socket);
        self.dropped.extend(streams.as_ref().map(Arc::downgrade));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.open.fetch_sub(self.counted, Relaxed);
    }
}

/// Has guests create no more sockets than they may, by functions in place of WASI's.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn add_to_linker(linker: &mut Linker<State>, concurrent: bool) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    tcp_create_socket::add_to_linker::<_, Bounded<'static>>(linker, |state| Bounded(state))?;
    if concurrent {
        streams::add_to_linker(linker)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// A store whose guest may hold a bounded number of sockets.
struct Bounded<'a>(&'a mut State);

impl HasData for Bounded<'static> {
    type Data<'a> = Bounded<'a>;
}

impl tcp_create_socket::Host for Bounded<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        if !self.0.may_open_socket() {
            return Err(network::ErrorCode::NewSocketLimit.into());
        }
        self.0.socket_view().create_tcp_socket(family)
    }
}

impl network::Host for Bounded<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<network::ErrorCode> {
        network::Host::convert_error_code(&mut self.0.socket_view(), error)
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<network::ErrorCode>> {
        network::Host::network_error_code(&mut self.0.socket_view(), error)
    }
}

impl network::HostNetwork for Bounded<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut self.0.socket_view(), network)
    }
}
