//! Listeners: where connections come from.

mod bind;
mod inherited;

use std::fmt;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use socket2::Domain;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::config::{Address, Listen, ProxyProtocol};
use crate::counts::Count;
use crate::peer::{End, Process};
use crate::socket::Stream;
use crate::threads::{self, Work};
use crate::tls;
pub(crate) use bind::REMOVAL;
use bind::{FileIdentity, Hold, Owner};
use inherited::Leased;
pub(crate) use inherited::has_any as has_inherited;
pub use inherited::inherit;

/// The pause after an accept that failed for want of something, which doubles from the one to the other.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Time between two warnings that connections cannot be accepted. A host at a limit can accept one
/// whenever another has ended.
const REPEAT: Duration = Duration::from_secs(60);

/// Connections in a row that may be gone before they are accepted. Then it is not the connections: back off.
const MAX_SKIPPED: u32 = 100;

/// A socket that listens. One of the file system goes from there with it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    entrance: Arc<Entrance>,
    /// The last pause, while connections cannot be accepted.
    pause: Option<Duration>,
    /// When the log last had a warning that connections cannot be accepted.
    warned: Option<Instant>,
    /// That warning has not been followed yet by a line that they can be accepted again.
    is_told: bool,
    hold: Hold,
    /// The backlog that was asked for. One connection more than that can wait.
    backlog: u32,
    /// Errors with which the next calls of accept(2) fail, in a test.
    #[cfg(test)]
    failures: std::collections::VecDeque<i32>,
}

/// A listener that has all it takes but its address.
#[derive(Debug)]
pub struct Prepared {
    config: Listen,
    tls: Option<tls::Loaded>,
    owner: Option<Owner>,
    /// The socket, if it is inherited.
    inherited: Option<Leased>,
    /// The flag or key by which another address could be chosen.
    setting: &'static str,
    /// The service that it is for, if it is for one.
    service: Option<String>,
}

impl Prepared {
    /// Returns whether its connections have a source that rules of access can name. An inherited
    /// socket whose kind is unknown has one.
    pub(crate) fn has_sources(&self) -> bool {
        let is_unix = |leased: &Leased| leased.socket.domain().is_ok_and(|domain| domain == Domain::UNIX);
        let has_networks = match &self.inherited {
            Some(leased) => !is_unix(leased),
            None => self.config.address.has_networks(),
        };
        has_networks || self.config.proxy_protocol.is_some()
    }

    /// Binds the address and listens there.
    ///
    /// # Errors
    ///
    /// It is in use, is not of this machine, or may not be bound; or what was asked for cannot be set.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(self) -> anyhow::Result<Listener> {
        let (config, service) = (&self.config, self.service.as_deref());
        let bound = bind::bind(config, self.owner, self.inherited, self.setting, service)?;
        let local = Local {
            address: bound.socket.local().to_string(),
            tcp: bound.socket.tcp(),
            file: bound.hold.file().cloned(),
        };
        Ok(Listener {
            socket: bound.socket,
            entrance: Arc::new(Entrance::made(config, local, self.tls, service)),
            pause: None,
            warned: None,
            is_told: false,
            hold: bound.hold,
            backlog: config.socket.backlog,
            #[cfg(test)]
            failures: Default::default(),
        })
    }
}

/// Logs the warnings that a start logs about a listener of a service: that a certificate is not
/// valid at the moment, and that other users can replace the socket. `setting` names the setting of
/// its address.
pub(crate) fn warn_of(config: &Listen, setting: &str, service: Option<&str>) {
    let address = config.address.to_string();
    if let Address::Unix(path) = &config.address
        && let Ok(path) = std::path::absolute(path)
    {
        bind::warn_of_others(&path, setting, service);
    }
    if let Some(Ok(tls)) = config.tls.as_ref().map(tls::Loaded::new) {
        tls.report(&tls::Label {
            service: service.map(str::to_owned),
            listener: config.name.clone().unwrap_or(address),
        });
    }
}

/// Finds everything that keeps a listener from being prepared, apart from its address. Returns the
/// keys of the settings, and what is wrong with each.
pub(crate) fn faults(config: &Listen) -> Vec<(String, anyhow::Error)> {
    let tls = config.tls.iter().flat_map(tls::faults);
    let tls = tls.map(|(key, error)| {
        let error = anyhow::Error::new(error).context(format!("cannot serve TLS on {}", config.address));
        (format!("tls.{key}"), error)
    });
    let owner = bind::owner(&config.socket).err().map(|error| {
        let error = error.context(format!("cannot listen on {}", config.address));
        ("socket.owner".to_owned(), error)
    });
    tls.chain(owner).collect()
}

/// Returns whether two addresses are the same. An inherited socket has a number, and can have a
/// name.
pub(crate) fn is_same(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Inherited(one), Address::Inherited(other)) => inherited::is_same(one, other),
        (one, other) => one.is_same(other),
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

/// What the connections of one listener have in common.
#[derive(Debug)]
pub struct Entrance {
    /// What guests are told as the listener's name.
    pub name: String,
    /// The service that it belongs to, if it belongs to one.
    service: Option<String>,
    /// Where it listens.
    local: Local,
    /// Answers go out at once.
    nodelay: bool,
    /// Peers say first on whose behalf they connect.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Connections are encrypted.
    pub tls: Option<Arc<tls::Server>>,
}

/// Where a listener listens, which stays the same.
#[derive(Clone, Debug)]
struct Local {
    address: String,
    /// The address and the port, if clients have a network address there.
    tcp: Option<SocketAddr>,
    /// The file of a Unix socket that this host created.
    file: Option<FileIdentity>,
}

impl Entrance {
    /// Returns whether its connections have a source that rules of access can name.
    pub(crate) fn has_sources(&self) -> bool {
        self.local.tcp.is_some() || self.proxy_protocol.is_some()
    }

    /// Where it listens, if that is at a port that the system has chosen for `address`.
    pub(crate) fn chosen(&self, address: &Address) -> Option<Address> {
        self.local.tcp.filter(|_| address.is_any_port()).map(Address::Tcp)
    }

    /// Returns whether clients connect by the file of a Unix socket that this host created.
    pub(crate) fn has_file(&self) -> bool {
        self.local.file.is_some()
    }

    /// Returns whether clients can still connect: the file of a Unix socket may have been removed
    /// or replaced. This looks for the file, which may hang.
    pub(crate) fn is_reachable(&self) -> bool {
        self.local.file.as_ref().is_none_or(FileIdentity::is_in_place)
    }

    /// The same as `config` says for `service`, which has the same address as `before`.
    ///
    /// # Errors
    ///
    /// TLS cannot be served as it says, or there is no such owner.
    pub fn changed(&self, before: &Listen, config: &Listen, service: &str) -> anyhow::Result<Self> {
        bind::owner(&config.socket).with_context(|| format!("cannot listen on {}", config.address))?;
        if before.tls == config.tls {
            let tls = self.tls.clone();
            return Ok(Self::new(config, self.local.clone(), tls, Some(service)));
        }
        let tls = Self::loaded(config, &self.local.address)?;
        Ok(Self::made(config, self.local.clone(), tls, Some(service)))
    }

    /// What `config` takes for TLS at `place`, if that is asked for.
    fn loaded(config: &Listen, place: impl fmt::Display) -> anyhow::Result<Option<tls::Loaded>> {
        let loaded = config.tls.as_ref().map(tls::Loaded::new).transpose();
        loaded.with_context(|| format!("cannot serve TLS on {place}"))
    }

    fn made(config: &Listen, local: Local, tls: Option<tls::Loaded>, service: Option<&str>) -> Self {
        let mut made = Self::new(config, local, None, service);
        made.tls = tls.map(|tls| tls.serve(made.label()));
        made
    }

    /// What the log calls the listener.
    fn label(&self) -> tls::Label {
        tls::Label {
            service: self.service.clone(),
            listener: self.name.clone(),
        }
    }

    fn new(config: &Listen, local: Local, tls: Option<Arc<tls::Server>>, service: Option<&str>) -> Self {
        Self {
            service: service.map(str::to_owned),
            name: config.name.clone().unwrap_or_else(|| local.address.clone()),
            local,
            nodelay: config.socket.nodelay,
            proxy_protocol: config.proxy_protocol.clone(),
            tls,
        }
    }

    /// A connection that was accepted, set as those that come in by this are.
    fn admit(self: &Arc<Self>, (stream, remote, local): (Stream, End, End)) -> Accepted {
        if let Stream::Tcp(stream) = &stream
            && self.nodelay
            && let Err(error) = stream.set_nodelay(true)
        {
            debug!(
                service = self.service,
                listener = self.name,
                %error,
                "cannot set TCP_NODELAY; answers may be delayed"
            );
        }
        Accepted {
            stream,
            remote,
            local,
            entrance: Arc::clone(self),
        }
    }

    /// Reads certificates and keys again.
    pub fn reread(&self) {
        if let Some(tls) = &self.tls {
            tls.reread();
        }
    }
}

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub stream: Stream,
    /// Where it came from.
    pub remote: End,
    /// What it has reached.
    pub local: End,
    /// How it came.
    pub entrance: Arc<Entrance>,
}

/// What to do about an accept that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// One connection died before it was accepted: go on with the next.
    Next,
    /// Something is used up, which takes time to change.
    BackOff,
}

impl Listener {
    /// Looks for all that a listener of a service takes, short of binding its address, so that no
    /// other listens before that is known. Another address could be chosen by `setting`, a flag or a
    /// key.
    ///
    /// # Errors
    ///
    /// Certificates or keys cannot be used, there is no such owner, the file of a socket cannot be
    /// created, or no such socket was inherited.
    pub fn prepare(
        config: &Listen,
        setting: &'static str,
        service: Option<&str>,
    ) -> anyhow::Result<Prepared> {
        let listening = || format!("cannot listen on {}", config.address);
        Ok(Prepared {
            config: config.clone(),
            tls: Entrance::loaded(config, &config.address)?,
            owner: bind::owner(&config.socket).with_context(listening)?,
            inherited: match &config.address {
                Address::Inherited(name) => Some(inherited::lease(name).with_context(listening)?),
                Address::Unix(path) => {
                    bind::check_path(path, setting)?;
                    None
                }
                Address::Tcp(_) | Address::Abstract(_) => None,
            },
            setting,
            service: service.map(str::to_owned),
        })
    }

    /// Binds an address and listens there; port 0 stands for any that is free.
    ///
    /// # Errors
    ///
    /// The address is in use, is not of this machine, or may not be bound; or what was asked for cannot be set.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(config: &Listen) -> anyhow::Result<Self> {
        Self::prepare(config, "--listen", None)?.bind()
    }

    /// Where it listens, with the port that was picked.
    pub fn local(&self) -> End {
        self.socket.local()
    }

    /// What its connections have in common.
    pub fn entrance(&self) -> &Arc<Entrance> {
        &self.entrance
    }

    /// Accepts connections by the settings of `entrance` from now on. If its TLS settings are the
    /// same as before, the certificates are read again.
    pub(crate) fn enter_by(&mut self, entrance: Arc<Entrance>) {
        if let (Some(before), Some(tls)) = (&self.entrance.tls, &entrance.tls)
            && Arc::ptr_eq(before, tls)
        {
            tls.rename(entrance.label());
            tls.reread();
        }
        self.entrance = entrance;
    }

    /// Listens no more, and gives what has connected by now. Closed with those in its backlog a socket would reset them, and they
    /// are connections to their peers. What waits at a socket that was inherited is left to whoever has it next.
    pub(crate) fn close(self, service: &str) -> Closing {
        let socket = match self.socket {
            _ if matches!(self.hold, Hold::Lease { .. }) => None,
            Socket::Tcp(socket, bound) => socket.into_std().ok().map(|socket| Left::Tcp(socket, bound)),
            Socket::Unix(socket, path) => socket.into_std().ok().map(|socket| Left::Unix(socket, path)),
        };
        Closing {
            socket,
            left: self.backlog.saturating_add(1),
            entrance: self.entrance,
            service: service.to_owned(),
            hold: self.hold,
        }
    }

    fn name(&self) -> &str {
        &self.entrance.name
    }

    /// Waits for a connection or an error.
    async fn attempt(&mut self) -> io::Result<(Stream, End, End)> {
        #[cfg(test)]
        if let Some(code) = self.failures.pop_front() {
            return Err(io::Error::from_raw_os_error(code));
        }
        self.socket.accept().await
    }

    /// Waits for a connection, whatever errors come before it, which are counted, and logged for
    /// `service`, if it listens for one.
    pub(crate) async fn accept(&mut self, errors: &Count, service: Option<&str>) -> Accepted {
        let mut skipped = 0;
        loop {
            match self.attempt().await {
                Ok(accepted) => {
                    if self.pause.take().is_some() && mem::take(&mut self.is_told) {
                        info!(service, listener = self.name(), "accepting connections again");
                    }
                    return self.entrance.admit(accepted);
                }
                Err(error) => {
                    errors.one_more();
                    match remedy(&error) {
                        Remedy::Next if skipped < MAX_SKIPPED => {
                            debug!(service, listener = self.name(), %error, "connection closed before accept");
                            skipped += 1;
                        }
                        Remedy::Next | Remedy::BackOff => {
                            let pause = self.pause;
                            let is_due = self.warned.is_none_or(|warned| warned.elapsed() >= REPEAT);
                            if !self.is_told && is_due {
                                self.warned = Some(Instant::now());
                                self.is_told = true;
                                warn!(
                                    service,
                                    listener = self.name(),
                                    %error,
                                    "cannot accept connections at the moment; they wait in the backlog{}",
                                    cause(&error)
                                );
                            }
                            let wait = pause.map_or(BACK_OFF.0, |last: Duration| (last * 2).min(BACK_OFF.1));
                            self.pause = Some(wait);
                            sleep(wait).await;
                        }
                    }
                }
            }
        }
    }
}

/// A listener that closes: it takes the connections that wait in its backlog.
#[derive(Debug)]
pub(crate) struct Closing {
    socket: Option<Left>,
    /// How many connections are still taken. Clients that go on to connect would keep it open for
    /// ever, so these are as many as can have waited when it began to close.
    left: u32,
    entrance: Arc<Entrance>,
    /// The name of the service that it listened for.
    service: String,
    hold: Hold,
}

impl Closing {
    /// Closes the socket, and leaves its file, if there is one, to a thread to remove. Returns the
    /// thread, so that a task can wait for the files of several listeners at once.
    pub(crate) fn end(self) -> Option<Work<()>> {
        let Self { socket, hold, .. } = self;
        drop(socket);
        hold.file()?;
        // Dropping the hold would keep the thread of this task while the file hangs. If there is no
        // other thread, that happens all the same.
        threads::run("socket", move || drop(hold)).ok()
    }
}

/// A socket without the runtime, which alone can be asked whether anything is there at this moment.
#[derive(Debug)]
enum Left {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

impl Left {
    fn accept(&self) -> io::Result<(Stream, End, End)> {
        match self {
            Self::Tcp(socket, bound) => {
                let (stream, remote) = socket.accept()?;
                stream.set_nonblocking(true)?;
                tcp(TcpStream::from_std(stream)?, remote, bound)
            }
            Self::Unix(socket, path) => {
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(true)?;
                unix(UnixStream::from_std(stream)?, path)
            }
        }
    }
}

impl Iterator for Closing {
    type Item = Accepted;

    fn next(&mut self) -> Option<Accepted> {
        let socket = self.socket.as_ref()?;
        self.left = self.left.checked_sub(1)?;
        // As many may be gone already as when it listens.
        for _ in 0..=MAX_SKIPPED {
            match socket.accept() {
                Ok(accepted) => return Some(self.entrance.admit(accepted)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if remedy(&error) == Remedy::Next => {}
                Err(error) => {
                    warn!(
                        service = self.service,
                        listener = self.entrance.name,
                        %error,
                        "cannot accept the rest of the backlog"
                    );
                    return None;
                }
            }
        }
        None
    }
}

impl Socket {
    fn local(&self) -> End {
        match self {
            Self::Tcp(_, local) => End::tcp(*local),
            Self::Unix(_, path) => End::Path(path.clone()),
        }
    }

    fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(_, local) => Some(*local),
            Self::Unix(..) => None,
        }
    }

    /// Accepts a connection, and says where it came from and what it has reached.
    async fn accept(&self) -> io::Result<(Stream, End, End)> {
        match self {
            Self::Tcp(socket, bound) => {
                let (stream, remote) = socket.accept().await?;
                tcp(stream, remote, bound)
            }
            Self::Unix(socket, path) => {
                let (stream, _) = socket.accept().await?;
                unix(stream, path)
            }
        }
    }
}

/// A connection by TCP, where it came from and what it has reached.
fn tcp(stream: TcpStream, remote: SocketAddr, bound: &SocketAddr) -> io::Result<(Stream, End, End)> {
    // It takes asking only where the listener has every address of the machine.
    let local = if bound.ip().is_unspecified() {
        stream.local_addr().unwrap_or(*bound)
    } else {
        *bound
    };
    Ok((Stream::Tcp(stream), End::tcp(remote), End::tcp(local)))
}

/// The same, by a socket of the file system.
fn unix(stream: UnixStream, path: &Path) -> io::Result<(Stream, End, End)> {
    // One that cannot be asked for is not there any more.
    let peer = stream
        .peer_cred()
        .map_err(|_| io::Error::from_raw_os_error(libc::ECONNABORTED))?;
    let process = Process {
        uid: peer.uid(),
        gid: peer.gid(),
        pid: peer.pid(),
    };
    Ok((
        Stream::Unix(stream),
        End::Process(process),
        End::Path(path.to_owned()),
    ))
}

/// Says in parentheses what an accept lacks that failed with `error`, if that is known.
fn cause(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => " (the limit on open files, `ulimit -n`, may be too low for max-connections)",
        Some(libc::ENFILE) => " (the system has too many open files; see fs.file-max)",
        Some(libc::ENOBUFS | libc::ENOMEM) => " (the system has no memory for sockets; see net.ipv4.tcp_mem)",
        _ => "",
    }
}

/// What to do about `error`, by the kinds that accept(2) lists for Linux.
fn remedy(error: &io::Error) -> Remedy {
    match error.raw_os_error() {
        #[cfg(target_os = "linux")]
        Some(libc::ENONET) => Remedy::Next,
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::EPERM
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH,
        ) => Remedy::Next,
        // EMFILE, ENFILE, ENOBUFS, ENOMEM, and what nobody foresaw: never spin on it.
        _ => Remedy::BackOff,
    }
}

#[cfg(test)]
mod tests;
