//! The contracts: how a connection is handed to an instance.

mod command;
pub(super) mod handler;
mod migration;
mod session;
mod sessions;
mod unread;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use rustix::io::Errno;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Instance, InstancePre};
use wasmtime::{PoolConcurrencyLimitError, Store};

use super::configuration;
use super::file_threads::on;
use super::meter::{Meter, Passed};
use super::names;
use super::seat::Seat;
use super::state::State;
use super::wasi::Release;
use crate::bindings::movable_session_service::inet::service::types as movable_session_service;
use crate::bindings::service::inet::service::types as service;
use crate::bindings::service::{Service, ServicePre};
use crate::bindings::session_service::inet::service::types as session_service;
use crate::config::Setting;
use crate::half::{Failure, Half, Lent};
use crate::peer::Peer;
use command::Command;
pub(super) use migration::INTERFACE as MIGRATION;
use session::Sessions;

/// How long a guest whose connection has failed may take to read the next byte that arrived before.
const PATIENCE: Duration = Duration::from_secs(5);

/// The version of the package `inet:service` that this host serves.
pub(super) const VERSION: &str = "0.1.0";

/// What messages say of a module that is no component.
pub(super) const CORE_MODULE: &str = "is a core module";

/// The package of the contracts.
pub(super) const PACKAGE: &str = "inet:service/";

/// Marks an error about the types of what a component exports.
#[derive(Debug, Error)]
#[error("an export has another type")]
pub(super) struct OtherTypes;

/// A way to serve a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// `inet:service/handler`: the guest maps a stream to a stream.
    Streams,
    /// `inet:service/sessions`: the guest answers events.
    Sessions,
    /// `wasi:cli/run`: a program with standard input and output.
    Cli,
}

impl Contract {
    /// Every contract; where a component exports more than one, the first counts.
    pub(super) const ALL: [Self; 3] = [Self::Sessions, Self::Streams, Self::Cli];

    /// Its name in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Sessions => "sessions",
            Self::Cli => "cli",
        }
    }

    /// The interface that a component exports for it; of WASI's, any version that is compatible.
    pub(super) const fn interface(self) -> &'static str {
        match self {
            Self::Streams => "inet:service/handler@0.1.0",
            Self::Sessions => "inet:service/sessions@0.1.0",
            Self::Cli => "wasi:cli/run",
        }
    }

    /// Whether `export` is that interface.
    pub(super) fn is_exported_as(self, export: &str) -> bool {
        match export.strip_prefix(self.interface()) {
            Some(version) if self == Self::Cli => {
                version.starts_with('@') && Release::of_interface(export).is_some()
            }
            version => version == Some(""),
        }
    }

    /// The one of `exports` that serves by this contract. A program of both releases of WASI is run
    /// by 0.3, since toolchains whose programs are asynchronous export a stub for 0.2 beside it.
    pub(super) fn export<'a>(self, exports: &[&'a str]) -> Option<&'a str> {
        let serves = || {
            exports
                .iter()
                .copied()
                .filter(|export| self.is_exported_as(export))
        };
        let concurrent = |export: &&str| Release::of_interface(export) == Some(Release::Three);
        serves().find(concurrent).or_else(|| serves().next())
    }

    /// How a component that serves by this contract does so, as messages have it.
    pub(super) fn found(self, exports: &[&str]) -> String {
        format!("exports `{}`", self.export(exports).unwrap_or(self.interface()))
    }
}

/// How a guest ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With FIN, after all bytes; or the peer did away with it, and its [`Half`] says how.
    Finished,
    /// With FIN after all bytes, by a program with this exit status.
    Exited(i32),
    /// With a reset, for the reason that this word of the contract gives.
    Reset(&'static str),
}

/// How far an instance has served its connection.
pub(super) enum Served<R, W> {
    /// To its end.
    Ended(End),
    /// It has given its halves back, to be relayed, and has nothing left to do.
    Returned(Lent<R>, Lent<W>),
}

/// The limit on time that a guest has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CpuLimit {
    /// On one call.
    #[error("a guest call {0}")]
    Call(Passed),
    /// On the whole connection.
    #[error("the guest used more time than {}", Setting::of("limits.max-cpu-time"))]
    Total,
    /// On keeping an instance to one connection, while others that share it wait.
    #[error("a guest call {0} while other connections of its instance waited")]
    Turn(Passed),
    /// On one call that moves a session, where there is none on calls.
    #[error("a call that moves the session took longer than {0:?}")]
    Move(Duration),
}

/// How an instance failed.
#[derive(Debug)]
pub enum Fault {
    /// The host could not give it what is granted.
    Grant(wasmtime::Error),
    /// It could not be made.
    Start(wasmtime::Error),
    /// It trapped.
    Trap(wasmtime::Error),
    /// It was interrupted.
    Cpu(CpuLimit),
    /// The instance failed that the connection shared with others.
    Shared {
        /// Its number.
        instance: u64,
        /// How it failed.
        fault: Arc<Self>,
        /// It is to be counted with this connection, and with none of the others.
        counts: bool,
    },
}

impl Fault {
    /// What lies at the bottom of it, in a few words.
    pub fn reason(&self) -> String {
        match self {
            Self::Grant(error) => format!("{error:#}"),
            Self::Start(error) | Self::Trap(error) => error.root_cause().to_string(),
            Self::Cpu(limit) => limit.to_string(),
            Self::Shared { fault, .. } => fault.reason(),
        }
    }

    /// The limit that interrupted the guest, if it was one that made it trap.
    pub(super) fn or_limit(self) -> Self {
        match &self {
            Self::Start(error) | Self::Trap(error) => match error.downcast_ref() {
                Some(limit) => Self::Cpu(*limit),
                None => self,
            },
            _ => self,
        }
    }

    /// Whether a shared instance failed before it could take any connection. Once it takes them, the
    /// limit that it can pass is [`CpuLimit::Turn`].
    pub(super) fn is_of_start(&self) -> bool {
        matches!(self, Self::Start(_) | Self::Cpu(CpuLimit::Call(_)))
    }

    /// Whether it counts against the guest of this connection. It does not if the system had no
    /// memory, or if it counts with another connection that shared the instance.
    pub fn counts(&self) -> bool {
        !matches!(self, Self::Shared { counts: false, .. }) && !self.is_of_system()
    }

    /// Whether the system had no memory or no memory mapping for the instance, or the pool no room
    /// for one more.
    pub fn is_of_system(&self) -> bool {
        match self {
            Self::Start(error) | Self::Trap(error) => lacks_resources(error),
            Self::Shared { fault, .. } => fault.is_of_system(),
            Self::Grant(_) | Self::Cpu(_) => false,
        }
    }

    /// All there is to say, with how the guest came there, in several lines.
    pub fn trace(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match self {
            Self::Grant(error) | Self::Start(error) | Self::Trap(error) => f.write_str(&names::trace(error)),
            Self::Cpu(limit) => write!(f, "{limit}"),
            // Which is said once, when it fails.
            Self::Shared { instance, .. } => write!(f, "in shared instance {instance}"),
        })
    }
}

/// Whether something failed since the system had no memory for it, or the pool no room.
pub(super) fn lacks_resources(error: &wasmtime::Error) -> bool {
    let mut causes = error.chain();
    let lacks = |cause: &(dyn std::error::Error + 'static)| {
        let of_io = cause.downcast_ref().and_then(io::Error::raw_os_error);
        of_io.or_else(|| cause.downcast_ref().map(|errno: &Errno| errno.raw_os_error()))
            == Some(Errno::NOMEM.raw_os_error())
    };
    error.is::<wasmtime::OutOfMemory>() || pool_is_full(error) || causes.any(lacks)
}

/// Whether something failed since instances take all room of the pool.
pub(super) fn pool_is_full(error: &wasmtime::Error) -> bool {
    error.is::<PoolConcurrencyLimitError>()
}

/// Holds a call of a guest to `max`, as [`Meter`] does. `fault` makes a fault of its failure.
fn within<T, F>(max: Option<Duration>, call: F, fault: fn(wasmtime::Error) -> Fault) -> Within<F>
where
    F: Future<Output = wasmtime::Result<T>>,
{
    Within {
        call,
        max,
        meter: Meter::default(),
        fault,
    }
}

pin_project! {
    // Not an `async fn`, which has room for what it is given twice: a call of a guest is large, and each connection has one.
    struct Within<F> {
        #[pin]
        call: F,
        max: Option<Duration>,
        meter: Meter,
        fault: fn(wasmtime::Error) -> Fault,
    }
}

impl<T, F: Future<Output = wasmtime::Result<T>>> Future for Within<F> {
    type Output = Result<T, Fault>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = match *this.max {
            Some(max) => ready!(this.meter.turn(cx, max, |cx| this.call.poll(cx))),
            None => Ok(ready!(this.call.poll(cx))),
        };
        Poll::Ready(match answer {
            Ok(answer) => answer.map_err(|error| (this.fault)(error).or_limit()),
            Err(passed) => Err(Fault::Cpu(CpuLimit::Call(passed))),
        })
    }
}

/// A component that is ready to be instantiated, by its contract.
pub(super) enum Prepared {
    Streams(ServicePre<State>),
    Sessions(Arc<Sessions>),
    Cli(Arc<Command>),
}

impl Prepared {
    /// Looks up what `contract` exports.
    ///
    /// # Errors
    ///
    /// It is not there, or not of the type that the contract has.
    pub(super) fn new(contract: Contract, pre: InstancePre<State>) -> wasmtime::Result<Self> {
        only_plain(pre.component(), contract)?;
        Ok(match contract {
            Contract::Streams => Self::Streams(ServicePre::new(pre)?),
            Contract::Sessions => Self::Sessions(Arc::new(Sessions::new(pre)?)),
            Contract::Cli => Self::Cli(Arc::new(Command::new(pre)?)),
        })
    }

    pub(super) fn contract(&self) -> Contract {
        match self {
            Self::Streams(_) => Contract::Streams,
            Self::Sessions(_) => Contract::Sessions,
            Self::Cli(_) => Contract::Cli,
        }
    }

    /// Takes a core module that was linked.
    ///
    /// # Errors
    ///
    /// It is no program; the error says why.
    pub(super) fn of_module(pre: wasmtime::InstancePre<State>) -> Result<Self, &'static str> {
        Command::of_module(pre).map(Arc::new).map(Self::Cli)
    }

    /// Makes an instance, to see that one can be made. Returns it if it is of a component.
    ///
    /// # Errors
    ///
    /// It traps at its start, wants more than it may have, or its exports have other types than the contract.
    pub(super) async fn probe(&self, store: &mut Store<State>) -> wasmtime::Result<Option<Instance>> {
        match self {
            Self::Streams(pre) => {
                let instance = pre.instance_pre().instantiate_async(&mut *store).await?;
                Service::new(store, &instance).map_err(|error| error.context(OtherTypes))?;
                Ok(Some(instance))
            }
            Self::Sessions(sessions) => sessions.probe(store).await.map(Some),
            Self::Cli(command) => command.probe(store).await,
        }
    }

    /// The component as one whose connections are sessions.
    fn sessions(&self) -> Option<&Arc<Sessions>> {
        match self {
            Self::Streams(_) | Self::Cli(_) => None,
            Self::Sessions(sessions) => Some(sessions),
        }
    }

    /// Whether it exports what a session takes to move.
    pub(super) fn migrates(&self) -> bool {
        self.sessions().is_some_and(|sessions| sessions.migrates())
    }
}

/// Checks that no function is asynchronous which is a plain one in the WIT of `contract`, or of the
/// interfaces beside it. The bindings compare parameters and results only.
///
/// # Errors
///
/// A function is of the type `async func`.
fn only_plain(component: &Component, contract: Contract) -> wasmtime::Result<()> {
    let engine = component.engine();
    let ty = component.component_type();
    let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
    let serves = contract.export(&exports);
    for (interface, export) in ty.exports(engine) {
        let is_plain = match contract {
            Contract::Streams => false,
            Contract::Sessions => Some(interface) == serves || interface == MIGRATION,
            Contract::Cli => {
                Some(interface) == serves && Release::of_interface(interface) == Some(Release::Two)
            }
        };
        let ComponentItem::ComponentInstance(instance) = export.ty else {
            continue;
        };
        if !is_plain && !configuration::is_exported_as(interface) {
            continue;
        }
        for (name, export) in instance.exports(engine) {
            if matches!(export.ty, ComponentItem::ComponentFunc(ty) if ty.async_()) {
                wasmtime::bail!(
                    "`{name}` of `{interface}` is an `async func`, but the contract has a `func`"
                );
            }
        }
    }
    Ok(())
}

/// How a guest serves a connection. It is as large as its contract takes, and no larger for the others.
type Serving<'a, R, W> = Pin<Box<dyn Future<Output = Result<Served<R, W>, Fault>> + Send + 'a>>;

/// Serves one connection with a fresh instance of `prepared` in `store`.
pub(super) fn serve<'a, S, R, W>(
    seat: &'a S,
    prepared: &Prepared,
    mut store: Store<State>,
    peer: &'a Peer,
    inbound: &'a Half<R>,
    outbound: &'a Half<W>,
) -> Serving<'a, R, W>
where
    S: Seat,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let started = || seat.started();
    let files = store.data().open_files();
    match prepared {
        Prepared::Streams(pre) => {
            let pre = pre.clone();
            let serving =
                async move { handler::serve(&pre, &mut store, peer, inbound, outbound, started).await };
            Box::pin(on(files, serving))
        }
        Prepared::Sessions(sessions) => {
            let sessions = Arc::clone(sessions);
            // Each of its calls finds its files, since it may move to another service.
            Box::pin(async move {
                let session = sessions.open(&mut store, peer).await?;
                // The connection may move, and is then to keep nothing of what it came from.
                drop(sessions);
                let end = sessions::serve(seat, session, &mut store, peer, inbound, outbound).await?;
                Ok(Served::Ended(end))
            })
        }
        Prepared::Cli(command) => {
            let command = Arc::clone(command);
            Box::pin(on(files, async move {
                let end = command::serve(&command, &mut store, peer, inbound, outbound, started).await?;
                Ok(Served::Ended(end))
            }))
        }
    }
}

/// The words of the contract for an `error-code`, which each world has a type of its own for.
macro_rules! error_code {
    ($($code:ident = $word:literal,)*) => { error_code! { service: $($code = $word,)* } error_code! { session_service: $($code = $word,)* } };
    ($world:ident: $($code:ident = $word:literal,)*) => {
        impl From<$world::ErrorCode> for End {
            fn from(code: $world::ErrorCode) -> Self {
                Self::Reset(match code {
                    $($world::ErrorCode::$code => $word,)*
                })
            }
        }

        impl From<Failure> for $world::ErrorCode {
            fn from(failure: Failure) -> Self {
                match failure {
                    Failure::Reset => Self::ConnectionReset,
                    Failure::TimedOut => Self::TimedOut,
                    Failure::Unreachable => Self::Unreachable,
                    // `protocol-error` is about the protocol that the guest speaks.
                    Failure::Protocol | Failure::Other => Self::Other,
                }
            }
        }
    };
}

/// The peer of the contract, which each world has a type of its own for.
macro_rules! peer {
    ($($world:ident)*) => { $(
        impl<'a> From<&'a Peer> for $world::Peer<'a> {
            fn from(peer: &'a Peer) -> Self {
                Self {
                    connection: peer.connection,
                    remote: &peer.remote,
                    local: &peer.local,
                    listener: &peer.listener,
                    tls: peer.tls.as_ref().map(|tls| $world::Tls {
                        version: tls.version,
                        server_name: tls.server_name.as_deref(),
                        protocol: tls.protocol.as_deref(),
                        subject: tls.subject.as_deref(),
                    }),
                }
            }
        }
    )* };
}

peer! { session_service movable_session_service }

impl From<&Peer> for service::Peer {
    fn from(peer: &Peer) -> Self {
        Self {
            connection: peer.connection,
            remote: peer.remote.clone(),
            local: peer.local.clone(),
            listener: peer.listener.clone(),
            tls: peer.tls.as_ref().map(|tls| service::Tls {
                version: tls.version.to_owned(),
                server_name: tls.server_name.clone(),
                protocol: tls.protocol.clone(),
                subject: tls.subject.clone(),
            }),
        }
    }
}

error_code! {
    ConnectionReset = "connection-reset",
    ConnectionAborted = "connection-aborted",
    TimedOut = "timed-out",
    Unreachable = "unreachable",
    ProtocolError = "protocol-error",
    LimitExceeded = "limit-exceeded",
    Refused = "refused",
    InternalError = "internal-error",
    Other = "other",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_since_the_system_has_no_memory_counts_against_no_guest() {
        let no_memory = || {
            let error = wasmtime::Error::from(io::Error::from_raw_os_error(Errno::NOMEM.raw_os_error()));
            Fault::Start(error.context("cannot make an instance"))
        };
        let of_pool = Fault::Start(wasmtime::Error::from(Errno::NOMEM));
        let shared = Fault::Shared {
            instance: 1,
            fault: Arc::new(no_memory()),
            counts: true,
        };
        for fault in [no_memory(), of_pool, shared] {
            assert!(fault.is_of_system() && !fault.counts(), "{}", fault.reason());
        }
        let other = wasmtime::Error::from(io::Error::from_raw_os_error(Errno::ACCESS.raw_os_error()));
        for fault in [
            Fault::Start(other),
            Fault::Start(wasmtime::Error::msg("exceeds memory limits")),
            Fault::Trap(wasmtime::Trap::UnreachableCodeReached.into()),
        ] {
            assert!(!fault.is_of_system() && fault.counts(), "{}", fault.reason());
        }
    }
}
