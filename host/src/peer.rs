//! Who is at the other end of a connection.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Who connected, and to what. Guests get it as the `peer` of the contract.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The number of the connection, unique in the life of the process.
    pub connection: u64,
    /// Where the connection came from: an [`End`] as text.
    pub remote: String,
    /// What it reached, likewise.
    pub local: String,
    /// The name of the listener that accepted it.
    pub listener: String,
    /// The process that connected, where it is one of this machine that came by a socket of the file system.
    pub process: Option<Process>,
    /// What TLS says, where the connection is encrypted.
    pub tls: Option<Tls>,
}

/// What TLS says of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The version: `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The name that the client has asked for (SNI, RFC 6066, section 3).
    pub server_name: Option<String>,
    /// The protocol that was agreed upon (ALPN, RFC 7301).
    pub protocol: Option<String>,
    /// Whom the certificate of the client stands for, as text by RFC 4514. It was verified.
    pub subject: Option<String>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// An address of TCP. One of IPv4 is never written as one of IPv6.
    Tcp(SocketAddr),
    /// A process of this machine, by a socket of the file system.
    Process(Process),
    /// A socket of the file system.
    Path(PathBuf),
}

impl End {
    /// The end of TCP at `address`.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

/// Bits of an IPv6 address that identify a client: a site commonly has all the addresses behind
/// them (RFC 6177).
const PREFIX: u32 = 64;

/// The client that a connection counts for, in limits and statistics by source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    /// An IPv4 address, or all IPv6 addresses with one prefix.
    Address(IpAddr),
    /// A user of this machine.
    User(u32),
    /// Every client that cannot be told apart.
    Unknown,
}

impl ClientKey {
    pub(crate) fn of(remote: &End) -> Self {
        match remote {
            End::Tcp(address) => Self::Address(match address.ip().to_canonical() {
                IpAddr::V6(v6) => {
                    let mask = u128::MAX << (Ipv6Addr::BITS - PREFIX);
                    Ipv6Addr::from_bits(v6.to_bits() & mask).into()
                }
                v4 @ IpAddr::V4(_) => v4,
            }),
            End::Process(process) => Self::User(process.uid),
            End::Path(_) => Self::Unknown,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Process(process) => write!(f, "unix:{process}"),
            Self::Path(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A process, as the kernel knows it at the time that it connects (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its number, which another process may have by now.
    pub pid: Option<i32>,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid={},gid={}", self.uid, self.gid)?;
        match self.pid {
            Some(pid) => write!(f, ",pid={pid}"),
            None => Ok(()),
        }
    }
}
