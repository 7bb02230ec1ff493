//! Values as text, as flags and the configuration file have them. Each comes with what was expected, where it is refused.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use hyper::Uri;
use ipnet::IpNet;

use crate::config::{Address, CacheDir, Endpoint, GrantedDir, Mode, Rate, Ratio};

/// What there is none of where a value is `off`.
pub(crate) const OFF: &str = "off";

/// Far more connections than any machine accepts in a second.
const MAX_RATE: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();

/// Far more threads than any machine has cores.
const MAX_THREADS: usize = 1024;

/// What the kernel's own limit on a backlog can be set to.
const MAX_BACKLOG: u32 = 65_535;

/// Bytes that a buffer of the kernel's may have.
const MIN_BUFFER: usize = 4 << 10;
const MAX_BUFFER: usize = 1 << 30;

/// An address to listen at.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    let expected = "expected ADDRESS:PORT with a numeric address (such as 127.0.0.1:8080 or \
                    [::1]:8080), unix:PATH or inherited:NAME";
    let refused = || expected.to_owned();
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(Address::Unix);
    }
    if let Some(name) = text.strip_prefix("inherited:") {
        let name = Some(name).filter(|name| !name.is_empty()).ok_or_else(refused)?;
        return Ok(Address::Inherited(name.to_owned()));
    }
    text.parse::<SocketAddr>()
        .map(Address::Tcp)
        .map_err(|_| refused())
}

/// An address to be looked at: like one to listen at, but a port alone is one of the loopback, and none is inherited.
pub(crate) fn admin_address(text: &str) -> Result<Address, String> {
    if let Ok(port) = text.parse() {
        return Ok(Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    }
    match address(text) {
        Ok(address @ (Address::Tcp(_) | Address::Unix(_))) => Ok(address),
        Ok(Address::Inherited(_)) | Err(_) => {
            Err("expected PORT (on 127.0.0.1), numeric ADDRESS:PORT, or unix:PATH".to_owned())
        }
    }
}

/// Where traces and metrics are sent.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, String> {
    let refused = || "expected a URL such as http://127.0.0.1:4318".to_owned();
    if text.starts_with("https:") {
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
    let odd = url.scheme_str() != Some("http")
        || url.query().is_some()
        || text.contains('#')
        || host.is_empty()
        || authority.as_str().contains('@')
        // A port that is none is told by nothing else.
        || authority.as_str().ends_with(':')
        || url.port().is_some() && url.port_u16().is_none_or(|port| port == 0);
    if odd {
        return Err(refused());
    }
    let path = url.path().trim_end_matches('/');
    if path.ends_with("/v1/traces") || path.ends_with("/v1/metrics") {
        return Err("leave out `/v1/traces` and `/v1/metrics`; the host appends them".to_owned());
    }
    Ok(Endpoint {
        host: host.to_owned(),
        port: url.port_u16().unwrap_or(80),
        path: path.to_owned(),
    })
}

/// A part of all.
pub(crate) fn ratio(text: &str) -> Result<Ratio, String> {
    let ratio = text.parse().ok().and_then(Ratio::new);
    ratio.ok_or_else(|| "expected a number from 0 to 1, such as 0.01".to_owned())
}

/// Bytes that the path of a socket may have: the kernel keeps it in 108, with a zero at the end.
pub(crate) const SOCKET_PATH: usize = 107;

/// What is wrong with the path of a socket that has so many bytes.
pub(crate) fn too_long(length: usize) -> String {
    format!("the socket path has {length} bytes; the limit is {SOCKET_PATH}; choose a shorter path")
}

/// The path of a socket.
fn socket_path(path: &str) -> Result<PathBuf, String> {
    match path.len() {
        0 => Err("expected a path after `unix:`".to_owned()),
        1..=SOCKET_PATH if !path.contains('\0') => Ok(PathBuf::from(path)),
        1..=SOCKET_PATH => Err("a socket path cannot contain a NUL byte".to_owned()),
        length => Err(too_long(length)),
    }
}

/// A network, as `192.0.2.0/24`, or a single address.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let parsed = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = parsed.map_err(|_| {
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

/// The mode of a socket of the file system, in octal digits.
pub(crate) fn mode(text: &str) -> Result<Mode, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && text.bytes().all(|digit| digit.is_ascii_digit()) => Ok(Mode(mode)),
        _ => Err("expected an octal file mode, such as 0660".to_owned()),
    }
}

/// Who is to own a file: not yet looked up.
pub(crate) fn owner(text: &str) -> Result<String, String> {
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let fine = group != Some("")
        && !group.is_some_and(|group| group.contains(':'))
        && !(user.is_empty() && group.is_none());
    if fine {
        Ok(text.to_owned())
    } else {
        Err("expected USER, USER:GROUP or :GROUP, as names or numbers".to_owned())
    }
}

/// Instances that connections share.
pub(crate) fn instances(text: &str) -> Result<NonZeroUsize, String> {
    if text == "cores" {
        return Ok(cores());
    }
    text.parse()
        .ok()
        .filter(|instances: &NonZeroUsize| instances.get() <= MAX_THREADS)
        .ok_or_else(|| format!("expected a number from 1 to {MAX_THREADS}, or `cores`"))
}

/// A number of connections.
pub(crate) fn connections(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "expected a number above zero".to_owned())
}

/// Connections that wait to be accepted.
pub(crate) fn backlog(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|backlog| (1..=MAX_BACKLOG).contains(backlog))
        .ok_or_else(|| format!("expected a number from 1 to {MAX_BACKLOG}"))
}

/// A time above zero.
pub(crate) fn deadline(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("expected a time above zero".to_owned()),
        time => Ok(time),
    }
}

/// How long the kernel waits before it asks for a silent peer: it counts in seconds.
pub(crate) fn keepalive(text: &str) -> Result<Option<Duration>, String> {
    match timeout(text)? {
        Some(time) if !(Duration::from_secs(1)..=Duration::from_secs(32767)).contains(&time) => {
            Err("expected a time from 1s to 32767s, or `off`".to_owned())
        }
        time => Ok(time),
    }
}

/// The size of a buffer of the kernel's; `off` leaves it to the kernel.
pub(crate) fn buffer(text: &str) -> Result<Option<usize>, String> {
    match bytes(text)? {
        None => Ok(None),
        Some(size) => usize::try_from(size)
            .ok()
            .filter(|size| (MIN_BUFFER..=MAX_BUFFER).contains(size))
            .map(Some)
            .ok_or_else(|| "expected a size from 4KiB to 1GiB, or `off` for the default".to_owned()),
    }
}

/// A protocol that is agreed upon by ALPN (RFC 7301, section 3.1).
pub(crate) fn protocol(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        _ => Err("expected a protocol name of 1 to 255 bytes".to_owned()),
    }
}

/// The name of a service, as it stands in the log.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&text.len()) && text.chars().all(letter) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits, `-`, `_` or `.`".to_owned())
    }
}

/// Where compiled components are kept.
pub(crate) fn cache(text: &str) -> CacheDir {
    if text == OFF {
        CacheDir::Off
    } else {
        CacheDir::At(Path::new(text).to_owned())
    }
}

pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

pub(crate) fn directory(text: &str) -> Result<GrantedDir, String> {
    let (host, guest) = text
        .split_once("::")
        .ok_or("expected HOST::GUEST or HOST::GUEST:rw, such as ./data::/data")?;
    let (guest, writable) = match (guest.strip_suffix(":rw"), guest.strip_suffix(":ro")) {
        (Some(guest), _) => (guest, true),
        (None, Some(guest)) => (guest, false),
        (None, None) => (guest, false),
    };
    if guest.is_empty() {
        return Err("expected the path of the directory in the guest after `::`".to_owned());
    }
    Ok(GrantedDir {
        host: PathBuf::from(host),
        guest: guest.to_owned(),
        writable,
    })
}

pub(crate) fn destination(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(text.to_owned())
        }
        _ => Err("expected HOST:PORT, such as 192.0.2.7:5432 or [2001:db8::7]:5432".to_owned()),
    }
}

pub(crate) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .ok()
        .filter(|threads: &NonZeroUsize| threads.get() <= MAX_THREADS)
        .ok_or_else(|| format!("expected a number from 1 to {MAX_THREADS}"))
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a number with a unit, such as 500ms, 30s or 5m".to_owned())
}

pub(crate) fn timeout(text: &str) -> Result<Option<Duration>, String> {
    if text == OFF {
        return Ok(None);
    }
    match duration(text)? {
        Duration::ZERO => Err("expected a time above zero, or `off`".to_owned()),
        limit => Ok(Some(limit)),
    }
}

pub(crate) fn slice(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(1)..=Duration::from_secs(1);
    let slice = duration(text)?;
    range
        .contains(&slice)
        .then_some(slice)
        .ok_or_else(|| "expected a time from 1ms to 1s".to_owned())
}

pub(crate) fn bytes(text: &str) -> Result<Option<u64>, String> {
    if text == OFF {
        return Ok(None);
    }
    let expected = "expected a size above zero with a unit, such as 512KiB or 10GiB, or `off`";
    let size: ByteSize = text.parse().map_err(|_| expected.to_owned())?;
    match size.as_u64() {
        0 => Err(expected.to_owned()),
        size => Ok(Some(size)),
    }
}

pub(crate) fn count(text: &str) -> Result<Option<NonZeroUsize>, String> {
    if text == OFF {
        return Ok(None);
    }
    match text.parse() {
        Ok(count) => Ok(Some(count)),
        Err(_) => Err("expected a number above zero, or `off`".to_owned()),
    }
}

pub(crate) fn rate(text: &str) -> Result<Option<Rate>, String> {
    if text == OFF {
        return Ok(None);
    }
    let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        _ => 0,
    };
    match count.parse() {
        Ok(connections) if seconds > 0 && connections <= MAX_RATE => Ok(Some(Rate {
            connections,
            per: Duration::from_secs(seconds),
        })),
        _ => Err(format!(
            "expected N, N/s, N/m or N/h with N from 1 to {MAX_RATE}, such as 100/s (N alone means \
             per second), or `off`"
        )),
    }
}

pub(crate) fn size(text: &str) -> Result<usize, String> {
    let expected = "expected a size with a unit, such as 512KiB or 64MiB, up to 4GiB";
    let size: ByteSize = text.parse().map_err(|_| expected.to_owned())?;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|&size| size <= 4 << 30)
        .ok_or_else(|| expected.to_owned())
}

/// What a service is called that was not given a name: after the file of its component.
pub(crate) fn name_of(component: Option<&Path>) -> String {
    let stem = component.map_or(Some("echo".as_ref()), Path::file_stem);
    stem.and_then(|stem| stem.to_str())
        .and_then(|stem| name(stem).ok())
        .unwrap_or_else(|| "service".to_owned())
}

/// A thread for each core.
pub(crate) fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
