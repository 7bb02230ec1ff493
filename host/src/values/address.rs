//! Addresses and networks as text.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use hyper::Uri;
use ipnet::IpNet;

use super::number;
use crate::config::{Address, Endpoint};

/// An address to listen at.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    let expected = "expected ADDRESS:PORT with a numeric address (such as 127.0.0.1:8080 or \
                    [::1]:8080), unix:PATH, unix:@NAME or inherited:NAME";
    address_of_a_form(text).unwrap_or_else(|| Err(expected.to_owned()))
}

/// Parses an address to listen at. Returns `None` if the text has no form of an address, and an error
/// if it has one and names no usable address.
fn address_of_a_form(text: &str) -> Option<Result<Address, String>> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Some(match path.strip_prefix('@') {
            Some(name) => abstract_name(name).map(Address::Abstract),
            None => socket_path(path).map(Address::Unix),
        });
    }
    if let Some(name) = text.strip_prefix("inherited:") {
        let fine = !name.is_empty() && !name.contains('\n');
        return fine.then(|| Ok(Address::Inherited(name.to_owned())));
    }
    let tcp = scoped(text).or_else(|| text.parse().ok().map(Ok))?;
    Some(tcp.and_then(unicast).map(Address::Tcp))
}

/// Refuses an address that no client can connect to.
fn unicast(address: SocketAddr) -> Result<SocketAddr, String> {
    let kind = match address.ip().to_canonical() {
        ip if ip.is_multicast() => "a multicast",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast",
        _ => return with_interface(address),
    };
    Err(format!(
        "{} is {kind} address, to which no client can connect by TCP; expected an address of this machine",
        address.ip()
    ))
}

/// Refuses a link-local address without a network interface, which cannot be bound.
fn with_interface(address: SocketAddr) -> Result<SocketAddr, String> {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => Err(format!(
            "a link-local address requires a network interface, such as [{}%eth0]:{}",
            v6.ip(),
            v6.port()
        )),
        address => Ok(address),
    }
}

/// An IPv6 address with the name or the number of a network interface as its scope, such as
/// `[fe80::1%eth0]:80`; `None` if it is no such address.
fn scoped(text: &str) -> Option<Result<SocketAddr, String>> {
    let (host, port) = text.strip_prefix('[')?.split_once("]:")?;
    let (address, interface) = host.split_once('%')?;
    let (ip, port): (Ipv6Addr, u16) = (address.parse().ok()?, number(port)?);
    if !ip.is_unicast_link_local() {
        return Some(Err(format!(
            "only link-local addresses (fe80::/10) have a network interface after `%`; expected [{ip}]:{port}"
        )));
    }
    // The address is numeric, so that the resolver only looks up the interface.
    let found = (host, port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next());
    Some(found.filter(|_| !interface.is_empty()).ok_or_else(|| {
        format!(
            "there is no network interface {}; expected the name or the number of one after `%`",
            super::quoted(interface, "of this name")
        )
    }))
}

/// Resolves the names of the host or of the network interface in a destination to connect to.
///
/// # Errors
///
/// There is no such host or interface.
pub(crate) fn resolve(destination: &str) -> io::Result<Vec<SocketAddr>> {
    match scoped(destination) {
        Some(address) => Ok(vec![address.map_err(io::Error::other)?]),
        None => Ok(destination.to_socket_addrs()?.collect()),
    }
}

/// Returns the text of an address that [`address`] reads. It has the name of a network interface,
/// whose number can change with a restart of the machine.
pub(crate) fn show_address(address: &Address) -> String {
    if let Address::Tcp(SocketAddr::V6(v6)) = address
        && v6.scope_id() != 0
        && let Some(name) = interface(v6.scope_id())
    {
        return format!("[{}%{name}]:{}", v6.ip(), v6.port());
    }
    address.to_string()
}

/// Returns the name of the network interface with a number.
#[cfg(target_os = "linux")]
fn interface(number: u32) -> Option<String> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let any = socket(AddressFamily::INET6, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(any, number).ok()
}

#[cfg(not(target_os = "linux"))]
fn interface(_: u32) -> Option<String> {
    None
}

/// The name of an abstract Unix socket, as it follows the `@`.
fn abstract_name(name: &str) -> Result<String, String> {
    match name.len() {
        _ if !cfg!(target_os = "linux") => {
            Err("abstract sockets (`unix:@NAME`) exist on Linux only; use unix:PATH".to_owned())
        }
        0 => Err("expected the name of an abstract socket after `unix:@`".to_owned()),
        1..=SOCKET_PATH if name.contains(['\0', '\n']) => {
            Err("the name of an abstract socket cannot contain a NUL byte or a line break".to_owned())
        }
        1..=SOCKET_PATH => Ok(name.to_owned()),
        length => Err(format!(
            "the name of the abstract socket has {length} bytes; the limit is {SOCKET_PATH}; choose a \
             shorter name"
        )),
    }
}

/// An address to be looked at: like one to listen at, but a port alone is one of the loopback, and
/// none is inherited.
pub(crate) fn admin_address(text: &str) -> Result<Address, String> {
    if let Some(port) = number(text) {
        return Ok(Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    }
    match address_of_a_form(text) {
        Some(Ok(address @ (Address::Tcp(_) | Address::Unix(_)))) => Ok(address),
        // Its mode could not keep other users out.
        Some(Ok(Address::Abstract(_))) => {
            Err("every user of the machine can connect to an abstract socket; use unix:PATH".to_owned())
        }
        Some(Err(reason)) => Err(reason),
        Some(Ok(Address::Inherited(_))) | None => {
            Err("expected PORT (on 127.0.0.1), numeric ADDRESS:PORT, or unix:PATH".to_owned())
        }
    }
}

/// Where traces and metrics are sent.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, String> {
    let refused = || "expected a URL such as http://127.0.0.1:4318".to_owned();
    if text
        .get(..6)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
    {
        return Err(
            "TLS is not supported here; expected http:// (for TLS, send to a collector on this \
             machine that forwards over TLS)"
                .to_owned(),
        );
    }
    let url: Uri = text.parse().map_err(|_| refused())?;
    let authority = url.authority().ok_or_else(refused)?;
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    if authority.as_str().contains('@') {
        return Err(
            "credentials in the URL are not supported; set a header with the environment variable \
             OTEL_EXPORTER_OTLP_HEADERS"
                .to_owned(),
        );
    }
    if bare.is_some_and(|host| host.parse::<Ipv6Addr>().is_err()) {
        return Err(refused());
    }
    let odd =
        url.scheme_str() != Some("http") || url.query().is_some() || text.contains('#') || host.is_empty();
    // A port that does not fit is none to the library.
    let port = match &authority.as_str()[authority.host().len()..] {
        "" => Some(80),
        rest => rest
            .strip_prefix(':')
            .and_then(number)
            .filter(|port: &u16| *port > 0),
    };
    let Some(port) = port.filter(|_| !odd) else {
        return Err(refused());
    };
    let path = url.path().trim_end_matches('/');
    if path.ends_with("/v1/traces") || path.ends_with("/v1/metrics") {
        return Err("leave out `/v1/traces` and `/v1/metrics`; the host appends them".to_owned());
    }
    Ok(Endpoint {
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

/// Bytes that the path of a socket may have: the kernel keeps it in 108, with a zero at the end.
pub(crate) const SOCKET_PATH: usize = 107;

/// What is wrong with the path of a socket that has so many bytes.
pub(crate) fn too_long(length: usize) -> String {
    format!("the socket path has {length} bytes; the limit is {SOCKET_PATH}; choose a shorter path")
}

/// The path of a socket.
fn socket_path(path: &str) -> Result<PathBuf, String> {
    super::path(Path::new(path))?;
    match path.len() {
        0 => Err("expected a path after `unix:`".to_owned()),
        1..=SOCKET_PATH if !path.contains(['\0', '\n']) => Ok(PathBuf::from(path)),
        1..=SOCKET_PATH => Err("a socket path cannot contain a NUL byte or a line break".to_owned()),
        length => Err(too_long(length)),
    }
}

/// A network, as `192.0.2.0/24`, or a single address.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let (address, length) = text
        .split_once('/')
        .map_or((text, None), |(address, length)| (address, Some(length)));
    // The library's own parser takes zeros before a number, which others read as octal.
    let parsed = address.parse::<IpAddr>().ok().and_then(|address| match length {
        Some(length) => IpNet::new(address, number(length)?).ok(),
        None => Some(IpNet::from(address)),
    });
    let network = parsed.ok_or_else(|| {
        "expected a network or an address, such as 192.0.2.0/24, 2001:db8::/32 or ::1".to_owned()
    })?;
    if network.addr() == network.network() {
        Ok(canonical(network))
    } else {
        Err(format!(
            "the address has bits set after the prefix; expected the network {} or the address {}",
            network.trunc(),
            network.addr()
        ))
    }
}

/// A network of IPv4 as one, where it is written as one of IPv6.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.addr().to_ipv4_mapped().zip(Some(v6.prefix_len() - 96)),
        _ => None,
    };
    mapped
        .and_then(|(address, length)| IpNet::new(address.into(), length).ok())
        .unwrap_or(network)
}
