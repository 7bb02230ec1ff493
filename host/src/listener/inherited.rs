//! Sockets that whoever started the host has opened, by the protocol of systemd (sd_listen_fds(3)).

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, anyhow, bail};
use listenfd::ListenFd;
use rustix::process::{Resource, getrlimit};
use socket2::{SockAddr, SockRef, Socket};

use crate::config::{Address, Listen, excludes};
use crate::values;

/// What was inherited. It is kept for as long as the process lives, since nothing could open it again.
static INHERITED: OnceLock<Vec<Inherited>> = OnceLock::new();

/// The process that inherits, the number of descriptors, and the first one of them. The last
/// variable is no part of the protocol: the library has it.
const PID: &str = "LISTEN_PID";
const COUNT: &str = "LISTEN_FDS";
const FIRST: &str = "LISTEN_FDS_FIRST_FD";

/// The descriptors of the standard streams, which come before those that are inherited.
const STANDARD: u64 = 3;

/// The greatest number of a process or a descriptor.
const MAX: u64 = i32::MAX as u64;

/// Who gives names to what is inherited, between colons.
const NAMES: &str = "LISTEN_FDNAMES";

/// What systemd calls a descriptor that has no name.
const UNNAMED: &str = "unknown";

#[derive(Debug)]
struct Inherited {
    name: Option<String>,
    /// The socket, or why it is of no use.
    socket: Result<OwnedFd, String>,
    taken: AtomicBool,
}

/// Takes what the process has inherited: the descriptors that `LISTEN_FDS` counts, if `LISTEN_PID` is this process. None of
/// it reaches a process that this one starts.
///
/// It is called at the start of the program, while that has one thread, since it changes the environment. Later calls do
/// nothing.
///
/// # Errors
///
/// A variable has a value that no service manager writes, as the sentence says.
pub fn inherit() -> Result<(), String> {
    let is_told = is_told()?;
    INHERITED.get_or_init(|| {
        if !is_told {
            return Vec::new();
        }
        let names = std::env::var(NAMES).unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut descriptors = ListenFd::from_env();
        (0..descriptors.len())
            .map(|index| Inherited {
                name: names.next().filter(|name| !name.is_empty() && name != UNNAMED),
                socket: take(&mut descriptors, index),
                taken: AtomicBool::new(false),
            })
            .collect()
    });
    Ok(())
}

/// Checks the variables that tell of sockets, since the library takes signs too, and other text for
/// no sockets. Returns whether a process is told of sockets at all.
fn is_told() -> Result<bool, String> {
    let pid = values::number_in_environment(PID, "the number of a process", 1..=MAX)?;
    match pid {
        // The library would take the sockets for those of this process.
        None => return Ok(false),
        Some(pid) if pid != u64::from(process::id()) => return Ok(true),
        Some(_) => {}
    }
    // A process has no descriptors beyond its limit, and the library makes a list of them all.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(MAX).min(MAX);
    let first = values::number_in_environment(FIRST, "the number of a descriptor", STANDARD..=limit)?;
    let most = limit.saturating_sub(first.unwrap_or(STANDARD));
    values::number_in_environment(COUNT, "a number of sockets", 0..=most)?;
    Ok(true)
}

fn take(descriptors: &mut ListenFd, index: usize) -> Result<OwnedFd, String> {
    let tcp = descriptors.take_tcp_listener(index);
    let socket = match tcp {
        Ok(Some(socket)) => Socket::from(socket),
        _ => match descriptors.take_unix_listener(index) {
            Ok(Some(socket)) => Socket::from(socket),
            _ => {
                return Err(
                    "the inherited descriptor is not a stream socket; in a systemd socket unit, name the \
                     address with `ListenStream=`"
                        .to_owned(),
                );
            }
        },
    };
    match socket.is_listener() {
        Ok(true) => Ok(socket.into()),
        // A connection, for example. Once its peer is gone, it cannot be told from other sockets.
        Ok(false) => Err(
            "the inherited socket does not listen; in a systemd socket unit, set `Accept=no`, and in \
             another program, call listen(2) before it starts the host"
                .to_owned(),
        ),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether any socket was inherited.
pub(crate) fn has_any() -> bool {
    INHERITED.get().is_some_and(|inherited| !inherited.is_empty())
}

/// A socket that was inherited, and the right to it.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) socket: Socket,
    pub(super) lease: Lease,
}

/// The right to a socket that was inherited, which one listener at a time has.
#[derive(Debug)]
pub(super) struct Lease(&'static AtomicBool);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// Returns whether two names, or numbers, stand for the same inherited socket.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    match (find(one), find(other)) {
        (Ok(one), Ok(other)) => std::ptr::eq(one, other),
        _ => one == other,
    }
}

/// The socket that was inherited as `name`, or by that number from 0 on.
///
/// # Errors
///
/// There is none, or more than one, it is in use, or it is not a stream socket that listens.
pub(super) fn lease(name: &str) -> anyhow::Result<Leased> {
    let one = find(name)?;
    let socket = one.socket.as_ref().map_err(|why| anyhow!("{why}"))?;
    let socket = socket
        .try_clone()
        .context("cannot duplicate the inherited descriptor")?;
    if one.taken.swap(true, Relaxed) {
        bail!("another listener already uses this socket");
    }
    Ok(Leased {
        socket: Socket::from(socket),
        lease: Lease(&one.taken),
    })
}

/// Finds what was inherited as `name`, or by that number from 0 on.
///
/// # Errors
///
/// There is none, or more than one.
fn find(name: &str) -> anyhow::Result<&'static Inherited> {
    let inherited = INHERITED.get().map_or(&[][..], Vec::as_slice);
    let named: Vec<_> = inherited
        .iter()
        .filter(|one| one.name.as_deref() == Some(name))
        .collect();
    Ok(match (named.as_slice(), values::number::<usize>(name)) {
        ([one], _) => *one,
        ([], Some(index)) => inherited
            .get(index)
            .ok_or_else(|| anyhow!("{}", Found(inherited)))?,
        ([], None) => bail!("{}", Found(inherited)),
        (several, _) => bail!(
            "{} inherited sockets have this name; select one by number, such as inherited:0",
            several.len()
        ),
    })
}

/// What was inherited, in words.
struct Found<'a>(&'a [Inherited]);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(
                "no socket was inherited; start the host from a systemd socket unit, or from a \
                 program that sets LISTEN_FDS and LISTEN_PID",
            );
        }
        f.write_str("no inherited socket has this name or number; the inherited sockets are")?;
        for (index, one) in self.0.iter().enumerate() {
            let name = one.name.as_deref().unwrap_or("unnamed");
            write!(f, "{} {index} ({name})", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Returns how a file names the inherited socket that has `address`, if there is one. The process
/// holds that address whether a service uses the socket or not.
pub(super) fn holder(address: &Address) -> Option<Address> {
    let listen = Listen::at(address.clone());
    let inherited = INHERITED.get()?;
    let holds = |one: &Inherited| {
        let socket = one.socket.as_ref().ok()?;
        let local = local(&SockRef::from(socket).local_addr().ok()?)?;
        Some(excludes(&Listen::at(local), &listen))
    };
    let number = inherited.iter().position(|one| holds(one) == Some(true))?;
    let name = inherited[number].name.as_deref();
    let name = name.filter(|name| find(name).is_ok_and(|one| std::ptr::eq(one, &inherited[number])));
    Some(Address::Inherited(
        name.map_or_else(|| number.to_string(), str::to_owned),
    ))
}

/// The address of a socket, as a file has it.
fn local(address: &SockAddr) -> Option<Address> {
    if let Some(address) = address.as_socket() {
        return Some(Address::Tcp(address));
    }
    #[cfg(target_os = "linux")]
    if let Some(name) = address.as_abstract_namespace() {
        return String::from_utf8(name.to_owned()).ok().map(Address::Abstract);
    }
    address.as_pathname().map(|path| Address::Unix(path.to_owned()))
}

/// The path of a socket of the file system that was inherited. One that has none, as Linux has them, has its name in its place,
/// behind an `@`.
pub(super) fn path(socket: &UnixListener) -> io::Result<PathBuf> {
    let address = socket.local_addr()?;
    #[cfg(target_os = "linux")]
    if let Some(name) = std::os::linux::net::SocketAddrExt::as_abstract_name(&address) {
        return Ok(format!("@{}", name.escape_ascii()).into());
    }
    Ok(address.as_pathname().unwrap_or(Path::new("unnamed")).to_owned())
}
