//! Where connections come from, and who may come in.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::Setting;

/// A place where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: Address,
    /// What guests are told as its name, in place of the address.
    pub name: Option<String>,
    /// How its sockets are set.
    pub socket: SocketOptions,
    /// Peers say first on whose behalf they connect.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Connections are encrypted.
    pub tls: Option<Tls>,
}

impl Listen {
    /// Listens at `address`, and nothing else.
    pub fn at(address: Address) -> Self {
        Self {
            address,
            name: None,
            socket: SocketOptions::default(),
            proxy_protocol: None,
            tls: None,
        }
    }

    /// Finds an address of IPv4, written as one of IPv6, that a socket for IPv6 alone is to have.
    /// Returns a sentence about it, for the key `socket.dual-stack`.
    pub(super) fn contradiction(&self) -> Option<String> {
        let Address::Tcp(SocketAddr::V6(address)) = &self.address else {
            return None;
        };
        let mapped = address.ip().to_ipv4_mapped()?;
        (self.socket.dual_stack == Some(false)).then(|| {
            let port = address.port();
            format!(
                "a socket for IPv6 alone cannot have {address}, which is an address of IPv4; choose \
                 {mapped}:{port}, or remove this setting"
            )
        })
    }
}

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP, with a numeric address; port 0 stands for any that is free.
    Tcp(SocketAddr),
    /// A socket of the file system.
    Unix(PathBuf),
    /// A Unix socket with a name and no file, which exists on Linux only.
    Abstract(String),
    /// A socket that whoever started the host has opened, by its name in `LISTEN_FDNAMES` or its number from 0 on.
    Inherited(String),
}

impl Address {
    /// Whether it stands for any port that is free.
    pub fn is_any_port(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port() == 0)
    }

    /// Whether it stands for the same place as `other`, however the path of a socket is written.
    ///
    /// This looks at the directories of sockets, since a symbolic link can lead to each.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(one), Self::Unix(other)) => one == other || place(one) == place(other),
            (one, other) => one == other,
        }
    }
}

/// The path of a socket or another file, which need not exist, with the true path of its directory,
/// if there is one.
pub(super) fn place(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return path;
    };
    match dir.canonicalize() {
        Ok(dir) => dir.join(name),
        Err(_) => path,
    }
}

impl Address {
    /// Whether clients can have a network address there.
    pub fn has_networks(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Inherited(_) => true,
            Self::Unix(_) | Self::Abstract(_) => false,
        }
    }

    /// Why a socket option, by its key, has no effect on a listener at this address; `None` if it
    /// has one.
    pub fn ignores(&self, option: &str) -> Option<&'static str> {
        match (self, option) {
            (Self::Tcp(_), "mode" | "owner") => Some("a TCP socket has no file"),
            (Self::Abstract(_), "mode" | "owner") => Some("an abstract socket has no file"),
            (Self::Inherited(_), "mode" | "owner") => {
                Some("the service manager creates the file of an inherited socket")
            }
            (Self::Tcp(SocketAddr::V4(_)), "dual-stack") => Some("the address is one of IPv4"),
            (Self::Tcp(SocketAddr::V6(address)), "dual-stack") if is_one_of_ipv6(address.ip()) => {
                Some("only `[::]` stands for addresses of IPv4 too")
            }
            (Self::Unix(_) | Self::Abstract(_), "dual-stack" | "nodelay" | "keepalive") => {
                Some("a Unix socket has no TCP options")
            }
            (Self::Unix(_) | Self::Abstract(_), "receive-buffer" | "send-buffer") => {
                Some("connections of a Unix socket have the default buffers of the kernel")
            }
            (Self::Inherited(_), "dual-stack") => Some("the service manager binds an inherited socket"),
            (Self::Inherited(_), "backlog") => {
                Some("the service manager sets the backlog of an inherited socket")
            }
            _ => None,
        }
    }
}

/// Whether a socket at this address can take connections by IPv6 only.
fn is_one_of_ipv6(address: &Ipv6Addr) -> bool {
    !address.is_unspecified() && address.to_ipv4_mapped().is_none()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
            Self::Inherited(name) => write!(f, "inherited:{name}"),
        }
    }
}

/// How the sockets of a listener are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Connections that the kernel keeps until they are accepted. It may allow fewer (`net.core.somaxconn`).
    ///
    /// Default 4,096.
    pub backlog: u32,
    /// Answers go out at once (`TCP_NODELAY`).
    ///
    /// Default on.
    pub nodelay: bool,
    /// How long a connection is silent before the kernel asks whether the peer is still there; `None` for never.
    ///
    /// Default: never.
    pub keepalive: Option<Duration>,
    /// Bytes that the kernel keeps of what a peer sends; `None` for what it thinks best.
    pub receive_buffer: Option<usize>,
    /// Bytes that the kernel keeps of what a peer is sent; `None` for what it thinks best.
    pub send_buffer: Option<usize>,
    /// An IPv6 listener takes connections over IPv4 too; `None` for what the system says (`net.ipv6.bindv6only`).
    pub dual_stack: Option<bool>,
    /// Who may connect to a socket of the file system, as the mode of a file; `None` for what the umask says.
    pub mode: Option<Mode>,
    /// Who owns it, as `USER`, `USER:GROUP` or `:GROUP`, by names or numbers.
    pub owner: Option<String>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            backlog: 4096,
            nodelay: true,
            keepalive: None,
            receive_buffer: None,
            send_buffer: None,
            dual_stack: None,
            mode: None,
            owner: None,
        }
    }
}

impl SocketOptions {
    /// The same, with the default in place of each option that has no effect at `address`.
    #[must_use]
    pub fn at(self, address: &Address) -> Self {
        let default = Self::default();
        let has_effect = |option| address.ignores(option).is_none();
        Self {
            backlog: if has_effect("backlog") {
                self.backlog
            } else {
                default.backlog
            },
            nodelay: if has_effect("nodelay") {
                self.nodelay
            } else {
                default.nodelay
            },
            keepalive: self.keepalive.filter(|_| has_effect("keepalive")),
            receive_buffer: self.receive_buffer.filter(|_| has_effect("receive-buffer")),
            send_buffer: self.send_buffer.filter(|_| has_effect("send-buffer")),
            dual_stack: self.dual_stack.filter(|_| has_effect("dual-stack")),
            mode: self.mode.filter(|_| has_effect("mode")),
            owner: self.owner.filter(|_| has_effect("owner")),
        }
    }
}

/// The mode of a file: its lowest nine bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

/// What the PROXY protocol takes: who may speak it, and how long they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Networks whose word is taken. Connections from elsewhere are refused.
    pub trusted: Vec<IpNet>,
    /// How long the header may take.
    ///
    /// Default 5 seconds.
    pub timeout: Duration,
}

impl ProxyProtocol {
    /// Whether the word of a peer at `address` is taken.
    pub fn trusts(&self, address: IpAddr) -> bool {
        narrowest(&self.trusted, address).is_some()
    }
}

/// What TLS takes. Files are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificates to choose from by the name that a client asks for; the first where none fits. At least one.
    pub identities: Vec<Identity>,
    /// Protocols that are offered by ALPN, the preferred first; with none, none is agreed upon.
    pub alpn: Vec<String>,
    /// Whether clients have to say who they are.
    pub clients: Option<ClientCertificates>,
    /// How long a handshake may take.
    ///
    /// Default 10 seconds.
    pub timeout: Duration,
}

impl Tls {
    /// Finds protocols and certificates that are given twice. The second one is never chosen.
    /// Returns the keys of the settings, and a sentence about each.
    pub(super) fn repeated(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        for (index, protocol) in self.alpn.iter().enumerate() {
            if self.alpn[..index].contains(protocol) {
                let what = format!("the protocol `{protocol}` is given twice; remove one of the two");
                found.push(("tls.alpn", what));
            }
        }
        for (index, Identity { certificate, .. }) in self.identities.iter().enumerate() {
            let mut before = self.identities[..index].iter();
            if before.any(|before| before.certificate == *certificate) {
                let path = certificate.display();
                let what = format!("the certificate `{path}` is given twice; remove one of the two");
                found.push(("tls.more", what));
            }
        }
        found
    }
}

/// A certificate, and the key that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// File of the certificate and those that lead to its root, in PEM.
    pub certificate: PathBuf,
    /// File of the private key, in PEM.
    pub key: PathBuf,
}

/// Which certificates of clients are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// File of the roots that they have to lead to, in PEM.
    pub authorities: PathBuf,
    /// A client without one is refused.
    pub required: bool,
}

/// Whose connections may come in, by the address of the true client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Networks that may; with none, all may that are not denied.
    pub allow: Vec<IpNet>,
    /// Networks that may not. Where an address is in one of each, the narrower counts. No network
    /// is in both.
    pub deny: Vec<IpNet>,
}

impl Access {
    /// Finds networks that are both allowed and denied. Returns a sentence about each, for the key
    /// `deny`.
    pub(super) fn contradictions(&self) -> impl Iterator<Item = String> {
        let both = self.deny.iter().filter(|network| self.allow.contains(network));
        both.map(|network| {
            let allow = Setting::of("access.allow");
            format!("the network {network} is in {allow} too; remove it from one of the two")
        })
    }

    /// Whether a client at `address` may come in. It takes time in proportion to the networks.
    pub fn admits(&self, address: IpAddr) -> bool {
        let (allowed, denied) = (narrowest(&self.allow, address), narrowest(&self.deny, address));
        match (allowed, denied) {
            (Some(allowed), Some(denied)) => allowed > denied,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => self.allow.is_empty(),
        }
    }
}

/// The length of the longest prefix among `networks` that `address` has.
fn narrowest(networks: &[IpNet], address: IpAddr) -> Option<u8> {
    let address = address.to_canonical();
    let fitting = networks.iter().filter(|network| network.contains(&address));
    fitting.map(IpNet::prefix_len).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_narrowest_network_decides() {
        let rules = |allow: &[&str], deny: &[&str]| Access {
            allow: networks(allow),
            deny: networks(deny),
        };
        for (rules, address, expected) in [
            (rules(&[], &[]), "192.0.2.1", true),
            (rules(&[], &["192.0.2.0/24"]), "192.0.2.1", false),
            (rules(&[], &["192.0.2.0/24"]), "192.0.3.1", true),
            (rules(&["192.0.2.0/24"], &[]), "192.0.2.1", true),
            (rules(&["192.0.2.0/24"], &[]), "192.0.3.1", false),
            (rules(&["192.0.2.0/24"], &[]), "2001:db8::1", false),
            (rules(&["192.0.2.7/32"], &["192.0.2.0/24"]), "192.0.2.7", true),
            (rules(&["192.0.2.7/32"], &["192.0.2.0/24"]), "192.0.2.8", false),
            (rules(&["192.0.2.0/24"], &["192.0.2.7/32"]), "192.0.2.7", false),
            (rules(&["192.0.2.0/24"], &["192.0.2.0/24"]), "192.0.2.7", false),
            (rules(&["0.0.0.0/0"], &["192.0.2.0/24"]), "192.0.3.1", true),
            (rules(&["0.0.0.0/0"], &[]), "2001:db8::1", false),
            (rules(&["192.0.2.0/24"], &[]), "::ffff:192.0.2.1", true),
            (
                rules(&["2001:db8::/32"], &["2001:db8:1::/48"]),
                "2001:db8:1::1",
                false,
            ),
            (
                rules(&["2001:db8::/32"], &["2001:db8:1::/48"]),
                "2001:db8:2::1",
                true,
            ),
        ] {
            assert_eq!(
                rules.admits(address.parse().unwrap()),
                expected,
                "{rules:?}: {address}"
            );
        }
    }
}
