//! Binding addresses, with the options of their sockets.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nix::unistd::{Group, User, geteuid};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tracing::{debug, warn};

use super::inherited::{self, Lease, Leased};
use crate::config::{Address, Listen, Mode, Setting, SocketOptions};
use crate::failpoint;
use crate::file_id::FileId;
use crate::guarded::{self, STICKY};
use crate::system::{
    check_names_file, directory_of, may_remove_files_of_others, storage_advice, takes_no_files,
};
use crate::threads;
use crate::values;

/// Bytes that the kernel keeps unsent on one TCP connection before a write has to wait. `docs/decisions/0032-bound-unsent-bytes.md`
/// has the reason and the measurements.
const UNSENT: u32 = 128 << 10;

/// A socket that listens.
pub(super) struct Bound {
    pub(super) socket: super::Socket,
    pub(super) hold: Hold,
}

/// What goes with a listener when it goes.
#[derive(Debug)]
pub(super) enum Hold {
    Nothing,
    /// The file of a socket that is ours.
    File(SocketFile),
    /// The right to a socket that was inherited.
    Lease {
        _lease: Lease,
    },
}

impl Hold {
    /// Returns the file of the socket, if this host created it.
    pub(super) fn file(&self) -> Option<&FileIdentity> {
        match self {
            Self::File(SocketFile(file)) => Some(file),
            Self::Nothing | Self::Lease { .. } => None,
        }
    }
}

/// Binds the address of `config`, or takes the socket in `leased`, and listens there for `service`.
/// Another address could be chosen by `flag`.
///
/// # Errors
///
/// It cannot be bound, or not as asked for.
pub(super) fn bind(
    config: &Listen,
    owner: Option<Owner>,
    leased: Option<Leased>,
    flag: &str,
    service: Option<&str>,
) -> anyhow::Result<Bound> {
    let options = &config.socket;
    match &config.address {
        Address::Tcp(address) => {
            let (socket, local) =
                tcp(*address, options, service).map_err(|error| refused(&error, &config.address, flag))?;
            Ok(Bound {
                socket: super::Socket::Tcp(socket, local),
                hold: Hold::Nothing,
            })
        }
        Address::Unix(path) => {
            unix(path, options, owner, (flag, service)).map_err(|error| match error.downcast() {
                Ok(Unbound(error)) => refused(&error, &config.address, flag),
                Err(error) => error.context(format!("cannot listen on {}", config.address)),
            })
        }
        Address::Abstract(name) => {
            let socket = abstract_socket(name, options);
            let socket = socket.map_err(|error| refused(&error, &config.address, flag))?;
            Ok(Bound {
                socket: super::Socket::Unix(socket, format!("@{name}").into()),
                hold: Hold::Nothing,
            })
        }
        Address::Inherited(name) => {
            let leased = leased.map_or_else(|| inherited::lease(name), Ok);
            leased
                .and_then(|leased| inherited(leased, options, service))
                .with_context(|| format!("cannot listen on {}", config.address))
        }
    }
}

/// The system has not let a socket be made or bound.
#[derive(Debug, Error)]
#[error(transparent)]
struct Unbound(#[from] io::Error);

/// Says that an address cannot be bound, and what to do about it. Another could be chosen by
/// `flag`.
fn refused(error: &io::Error, address: &Address, flag: &str) -> anyhow::Error {
    let advice = advice(error, address, flag);
    anyhow!("cannot listen on {address}: {error}; {advice}")
}

/// What to do about an address that cannot be bound. Another could be chosen by `flag`.
fn advice(error: &io::Error, address: &Address, flag: &str) -> String {
    let parent = match address {
        Address::Unix(path) => Some(directory_of(path)),
        _ => None,
    };
    let another = match parent {
        Some(_) => format!("choose another path with {flag}"),
        None => format!("choose another address with {flag}"),
    };
    match (error.raw_os_error(), address, parent) {
        (Some(libc::EADDRINUSE), Address::Tcp(address), _) if address.port() == 0 => format!(
            "the system has no free port; widen `sysctl net.ipv4.ip_local_port_range`, or choose a port \
             with {flag}"
        ),
        (Some(libc::EADDRINUSE), ..) => match inherited::holder(address) {
            Some(own) => format!("{}, or {another}", is_inherited(&own)),
            None => format!("stop the process that uses it, or {another}"),
        },
        (Some(libc::EADDRNOTAVAIL), ..) => format!("choose an address of this machine with {flag}"),
        (Some(libc::EMFILE), ..) => format!(
            "the process has too many files open; raise the limit (`ulimit -n`, or `LimitNOFILE=` in \
             the systemd unit), or remove listeners from {flag}"
        ),
        (Some(libc::ENFILE), ..) => {
            "the system has too many files open; raise the limit with `sysctl fs.file-max`".to_owned()
        }
        (Some(libc::EAFNOSUPPORT), Address::Tcp(SocketAddr::V6(_)), _) => {
            format!("IPv6 is disabled on this machine; enable it, or choose an IPv4 address with {flag}")
        }
        (Some(libc::EAFNOSUPPORT), ..) => {
            format!("the system does not support this kind of address; {another}")
        }
        (Some(libc::EINVAL), Address::Tcp(SocketAddr::V6(address)), _)
            if let Some(mapped) = address.ip().to_ipv4_mapped() =>
        {
            format!(
                "an IPv6 socket with {} off cannot have an IPv4 address; choose {mapped}:{} with {flag}",
                Setting::of("socket.dual-stack"),
                address.port()
            )
        }
        (Some(libc::ENODEV), Address::Tcp(SocketAddr::V6(address)), _) => format!(
            "there is no network interface with the number {}; name an interface of this machine with {flag}",
            address.scope_id()
        ),
        (Some(libc::EACCES | libc::EPERM), Address::Tcp(address), _)
            if (1..unprivileged_ports()).contains(&address.port()) =>
        {
            format!(
                "a port below {} may need CAP_NET_BIND_SERVICE; grant it, or choose another port with \
                 {flag}",
                unprivileged_ports()
            )
        }
        (Some(libc::EACCES | libc::EPERM), _, Some(dir)) => format!(
            "the host must be permitted to create files in `{}`; permit it, or {another}",
            dir.display()
        ),
        (Some(libc::EACCES | libc::EPERM), ..) => {
            format!("a security policy of the system forbids it; change the policy, or {another}")
        }
        (Some(libc::ENOENT), _, Some(dir)) if dir.is_dir() => {
            format!("no socket can be created in `{}`; {another}", dir.display())
        }
        (Some(libc::ENOENT), _, Some(dir)) => format!(
            "the directory `{}` does not exist; create it, or {another}",
            dir.display()
        ),
        (Some(libc::ENOTDIR), _, Some(dir)) => {
            format!("`{}` is not a directory; {another}", dir.display())
        }
        (_, Address::Unix(_), _) if let Some(advice) = storage_advice(error) => {
            format!("{advice}, or {another}")
        }
        (Some(libc::ENOBUFS | libc::ENOMEM), ..) => {
            "the system has no memory for another socket; free some".to_owned()
        }
        _ => another,
    }
}

/// The first port that every process may bind (ip(7)).
fn unprivileged_ports() -> u16 {
    let set = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    set.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// Says that an address is taken by the socket `own` that the process itself has inherited.
fn is_inherited(own: &Address) -> String {
    format!("the host has inherited this address as {own}: serve that socket")
}

fn tcp(
    address: SocketAddr,
    options: &SocketOptions,
    service: Option<&str>,
) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the last connections of the previous process to be forgotten.
    socket.set_reuse_address(true)?;
    if let (SocketAddr::V6(_), Some(dual_stack)) = (address, options.dual_stack) {
        socket.set_only_v6(!dual_stack)?;
    }
    set(&socket, options, service)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog(options))?;
    let socket = TcpListener::from_std(socket.into())?;
    let local = socket.local_addr()?;
    Ok((socket, local))
}

/// Sets what the TCP sockets of connections take over from the one that listens. The size of the
/// receive buffer has to be known before the first connection comes, since its handshake says how
/// the window is scaled (RFC 7323, section 2.2).
fn set(socket: &Socket, options: &SocketOptions, service: Option<&str>) -> io::Result<()> {
    if let Some(size) = options.receive_buffer {
        socket.set_recv_buffer_size(size)?;
    }
    if let Some(size) = options.send_buffer {
        socket.set_send_buffer_size(size)?;
    }
    if let Some(time) = options.keepalive {
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(time);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    bound_unsent(socket, service);
    Ok(())
}

/// Makes writes go on as soon as the peer has acknowledged some bytes. By default a socket becomes writable only when a third of its
/// send buffer is free, which can be megabytes, and a slow peer would seem to take nothing until then.
fn bound_unsent(socket: &Socket, service: Option<&str>) {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket.set_tcp_notsent_lowat(UNSENT) {
        debug!(service, %error, "cannot set TCP_NOTSENT_LOWAT; `write-timeout` may reset slow peers");
    }
}

fn backlog(options: &SocketOptions) -> i32 {
    i32::try_from(options.backlog).unwrap_or(i32::MAX)
}

fn unix(
    path: &Path,
    options: &SocketOptions,
    owner: Option<Owner>,
    (flag, service): (&str, Option<&str>),
) -> anyhow::Result<Bound> {
    // The directory that the process is in may be another one when the file is removed.
    let path = std::path::absolute(path)?;
    let (socket, file) = unix_socket(&path, flag)?;
    warn_of_others(&path, flag, service);
    if owner.is_some() || options.mode.is_some() {
        file.0
            .check_is_own()
            .context("cannot set the owner or the mode of the socket")?;
    }
    // No client can connect before the socket listens. By then it has its owner and its mode.
    if let Some((user, group)) = owner {
        file.0.set_owner(user, group).with_context(|| {
            format!(
                "cannot set the owner of the socket to `{}`",
                options.owner.as_deref().unwrap_or_default()
            )
        })?;
    }
    if let Some(Mode(mode)) = options.mode {
        file.0
            .set_mode(mode)
            .with_context(|| format!("cannot set the mode of the socket to {mode:04o}"))?;
    }
    socket.set_nonblocking(true)?;
    socket.listen(backlog(options))?;
    let socket = UnixListener::from_std(socket.into())?;
    Ok(Bound {
        socket: super::Socket::Unix(socket, path),
        hold: Hold::File(file),
    })
}

/// Warns that other users can replace the socket at `path`. If its directory cannot be opened, the
/// socket cannot be bound either, which is an error of its own.
pub(super) fn warn_of_others(path: &Path, flag: &str, service: Option<&str>) {
    let checked = guarded::check(directory_of(path), guarded::Owner::Anybody);
    if let Err(error) = checked
        && !matches!(error, guarded::Error::Io { .. })
    {
        warn!(
            service,
            "another user could put a socket in the place of `{}`: {error}, or choose another directory \
             with {flag}",
            path.display()
        );
    }
}

/// Takes over a socket that listens already. Its backlog is that with which it was opened.
fn inherited(
    Leased { socket, lease }: Leased,
    options: &SocketOptions,
    service: Option<&str>,
) -> anyhow::Result<Bound> {
    socket.set_nonblocking(true)?;
    let socket = if socket.domain()? == Domain::UNIX {
        warn_of_tcp_options(options, service);
        let socket = std::os::unix::net::UnixListener::from(socket);
        let path = inherited::path(&socket)?;
        super::Socket::Unix(UnixListener::from_std(socket)?, path)
    } else {
        set(&socket, options, service)?;
        let socket = TcpListener::from_std(socket.into())?;
        let local = socket.local_addr()?;
        super::Socket::Tcp(socket, local)
    };
    Ok(Bound {
        socket,
        hold: Hold::Lease { _lease: lease },
    })
}

/// Warns of options that have no effect, because an inherited socket has turned out to be a Unix
/// socket. For other addresses they are refused before.
fn warn_of_tcp_options(options: &SocketOptions, service: Option<&str>) {
    let set = [
        ("socket.nodelay", !options.nodelay),
        ("socket.keepalive", options.keepalive.is_some()),
        ("socket.receive-buffer", options.receive_buffer.is_some()),
        ("socket.send-buffer", options.send_buffer.is_some()),
    ];
    for (key, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
        warn!(
            service,
            "{} has no effect on an inherited Unix socket; remove it",
            Setting::of(key)
        );
    }
}

/// Checks whether a socket could be bound to `path`: its directory has to be there and writable, and
/// what stands there, if anything, has to be a socket that this process may remove.
///
/// # Errors
///
/// The socket could not be bound. The error is the one that binding it returns.
pub(super) fn check_path(path: &Path, flag: &str) -> anyhow::Result<()> {
    let address = Address::Unix(path.to_owned());
    check_names_file(path).map_err(|error| anyhow!("cannot listen on {address}: {error} with {flag}"))?;
    let cannot = |error: io::Error| refused(&error, &address, flag);
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dir = directory_of(path);
            fs::metadata(dir).map_err(cannot)?;
            access(dir, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| cannot(errno.into()))?;
            if takes_no_files(dir) {
                return Err(cannot(Errno::NOENT.into()));
            }
            return Ok(());
        }
        found => found.map_err(cannot)?,
    };
    if !found.file_type().is_socket() {
        return Err(not_a_socket(flag).context(format!("cannot listen on {address}")));
    }
    // A process may listen there, which only a start may find out.
    let replaceable = access(path, Access::WRITE_OK)
        .and_then(|()| access(directory_of(path), Access::WRITE_OK | Access::EXEC_OK))
        .map_err(io::Error::from)
        .and_then(|()| check_sticky(path, &found));
    replaceable
        .map_err(|error| cannot_replace(&error, path, flag).context(format!("cannot listen on {address}")))
}

/// Checks that this process may remove `path`, if it stands in a directory like `/tmp`, where only
/// the owners of a file and of the directory may (the sticky bit).
fn check_sticky(path: &Path, file: &fs::Metadata) -> io::Result<()> {
    let dir = fs::metadata(directory_of(path))?;
    let is_sticky = dir.mode() & STICKY != 0;
    let is_owner = [file.uid(), dir.uid()].contains(&geteuid().as_raw());
    if is_sticky && !is_owner && !may_remove_files_of_others() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}

/// Says that the host cannot take the place of the socket at `path`.
fn cannot_replace(error: &io::Error, path: &Path, flag: &str) -> anyhow::Error {
    anyhow!(
        "the host may not replace the socket that exists there ({error}): remove the socket and let \
         the host create files in `{}`, or choose another path with {flag}",
        directory_of(path).display()
    )
}

fn not_a_socket(flag: &str) -> anyhow::Error {
    anyhow!("the path is not a socket; remove the file, or choose another path with {flag}")
}

/// A socket that is bound to `path`, in place of one that nobody listens at any more.
fn unix_socket(path: &Path, flag: &str) -> anyhow::Result<(Socket, SocketFile)> {
    let length = path.as_os_str().len();
    if length > values::SOCKET_PATH {
        bail!("{} with {flag}", values::too_long(length));
    }
    let address = SockAddr::unix(path).map_err(Unbound)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(Unbound)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(Unbound(error).into());
        }
        remove_stale(path, &address, flag)?;
        socket.bind(&address).map_err(Unbound)?;
    }
    let file = SocketFile(FileIdentity::of(path)?);
    Ok((socket, file))
}

/// A listening socket with a name and no file.
fn abstract_socket(name: &str, options: &SocketOptions) -> io::Result<UnixListener> {
    // Such a name begins with a NUL byte (unix(7)).
    let address = SockAddr::unix(format!("\0{name}"))?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address)?;
    socket.listen(backlog(options))?;
    UnixListener::from_std(socket.into())
}

/// Removes a socket that a process has left behind. Of two hosts that find the same one at the same moment, one has its file
/// replaced; it is the same as if it had been told to.
fn remove_stale(path: &Path, address: &SockAddr, flag: &str) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Err(not_a_socket(flag));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One whose backlog is full would have this wait.
    client.set_nonblocking(true)?;
    match client.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            debug!(path = %path.display(), "replacing a stale socket");
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(cannot_replace(&error, path, flag))
                }
                _ => Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(cannot_replace(&error, path, flag)),
        // Somebody listens, also if the backlog is full.
        _ => match inherited::holder(&Address::Unix(path.to_owned())) {
            Some(own) => bail!("{}, or choose another path with {flag}", is_inherited(&own)),
            None => bail!("another process listens there; stop it, or choose another path with {flag}"),
        },
    }
}

/// A file, by its path and by what tells it from another file at that path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity {
    path: PathBuf,
    id: FileId,
}

impl FileIdentity {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            id: FileId::from(&file),
        })
    }

    /// Returns whether the file is still at its path.
    pub(super) fn is_in_place(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }

    /// Removes the file, if it is still at its path.
    fn remove(&self) {
        failpoint::hang("socket");
        if self.is_in_place()
            && let Err(error) = fs::remove_file(&self.path)
        {
            debug!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }

    /// Checks that the file is a socket of the user of this process.
    ///
    /// The system does not say which file a socket is bound to: fstat(2) describes the socket. So
    /// the file is looked up by its path, and a user who may rename files there can have put
    /// another one in its place by then. After this check, that can only be another socket of this
    /// process's user.
    ///
    /// # Errors
    ///
    /// Another file is there.
    #[cfg(target_os = "linux")]
    fn check_is_own(&self) -> io::Result<()> {
        let metadata = self.open()?.metadata()?;
        if metadata.file_type().is_socket() && metadata.uid() == geteuid().as_raw() {
            Ok(())
        } else {
            Err(io::Error::other("another file has taken the place of the socket"))
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn check_is_own(&self) -> io::Result<()> {
        Ok(())
    }

    /// Opens the file for [`FileIdentity::set_mode`] and [`FileIdentity::set_owner`].
    ///
    /// # Errors
    ///
    /// Another file has taken its place.
    #[cfg(target_os = "linux")]
    fn open(&self) -> io::Result<fs::File> {
        use rustix::fs::{CWD, OFlags};

        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, &self.path, flags, rustix::fs::Mode::empty())?;
        let opened = fs::File::from(opened);
        let metadata = opened.metadata()?;
        if FileId::from(&metadata) != self.id {
            return Err(io::Error::other("another file has taken the place of the socket"));
        }
        Ok(opened)
    }

    /// Sets the owner of this file, and of no other that has taken its place.
    #[cfg(target_os = "linux")]
    fn set_owner(&self, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
        use rustix::fs::{AtFlags, Gid, Uid, chownat};

        let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
        Ok(chownat(self.open()?, "", user, group, AtFlags::EMPTY_PATH)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn set_owner(&self, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
        std::os::unix::fs::lchown(&self.path, user, group)
    }

    /// Sets the mode of this file, and of no other that has taken its place.
    #[cfg(target_os = "linux")]
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;

        let opened = self.open()?;
        // A descriptor of this kind has no fchmod(2) before Linux 6.6.
        let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
        fs::set_permissions(link, fs::Permissions::from_mode(mode))
    }

    #[cfg(not(target_os = "linux"))]
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))
    }
}

/// The file of a socket. It is removed when this is dropped, unless another has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile(FileIdentity);

/// How long the removal of the file of a socket is waited for. The file system may not answer.
pub(crate) const REMOVAL: Duration = Duration::from_secs(1);

impl Drop for SocketFile {
    /// Removes the file in a thread, and waits for it for at most [`REMOVAL`].
    fn drop(&mut self) {
        let file = self.0.clone();
        let (sender, removed) = mpsc::channel();
        let removal = move || {
            file.remove();
            // Fails if nobody waits any more.
            let _ = sender.send(());
        };
        match threads::start("socket", removal) {
            Ok(_) => drop(removed.recv_timeout(REMOVAL)),
            Err(_) => self.0.remove(),
        }
    }
}

/// The numbers of a user and of a group.
pub(super) type Owner = (Option<u32>, Option<u32>);

/// Who is to own a socket, if that is said: `USER`, `USER:GROUP` or `:GROUP`.
///
/// # Errors
///
/// There is no such user or group, or this process may not give files to them.
pub(super) fn owner(options: &SocketOptions) -> anyhow::Result<Option<Owner>> {
    let Some(text) = options.owner.as_deref() else {
        return Ok(None);
    };
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let user = match user {
        "" => None,
        name => Some(match values::number(name) {
            Some(number) => number,
            None => User::from_name(name)?
                .with_context(|| format!("there is no user `{name}` to own the socket"))?
                .uid
                .as_raw(),
        }),
    };
    let group = match group {
        None => None,
        Some(name) => Some(match values::number(name) {
            Some(number) => number,
            None => Group::from_name(name)?
                .with_context(|| format!("there is no group `{name}` to own the socket"))?
                .gid
                .as_raw(),
        }),
    };
    check_owner((user, group)).map_err(|error| {
        anyhow!(
            "the host may not set the owner of the socket to `{text}` ({error}): choose the user that the \
             host runs as and one of its groups, or grant CAP_CHOWN"
        )
    })?;
    Ok(Some((user, group)))
}

/// Checks that this process may give files to a user and a group, with a file that has no path.
#[cfg(target_os = "linux")]
fn check_owner((user, group): Owner) -> io::Result<()> {
    use rustix::fs::{MemfdFlags, memfd_create};
    match memfd_create("owner", MemfdFlags::CLOEXEC) {
        Ok(file) => std::os::unix::fs::fchown(file, user, group),
        // Only the start can tell.
        Err(_) => Ok(()),
    }
}

/// Does nothing where every file has a path.
#[cfg(not(target_os = "linux"))]
fn check_owner(_: Owner) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn advice_about_a_socket_without_a_file_names_its_file_system() {
        let address = Address::Unix("/run/a".into());
        for (errno, word) in [
            (libc::ENOSPC, "free some space"),
            (libc::EDQUOT, "quota"),
            (libc::EROFS, "mount the file system"),
        ] {
            let advice = advice(&io::Error::from_raw_os_error(errno), &address, "--listen");
            assert!(
                advice.contains(word) && advice.ends_with(", or choose another path with --listen"),
                "{advice}"
            );
        }
    }

    #[test]
    fn only_an_own_socket_gets_another_owner_or_mode() {
        let dir = std::env::temp_dir().join(format!("wasm-inetd-own-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (socket, file) = (dir.join("socket"), dir.join("file"));
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::write(&file, "").unwrap();
        FileIdentity::of(&socket).unwrap().check_is_own().unwrap();
        assert!(FileIdentity::of(&file).unwrap().check_is_own().is_err());
        let replaced = FileIdentity::of(&socket).unwrap();
        fs::rename(&file, &socket).unwrap();
        assert!(replaced.check_is_own().is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
