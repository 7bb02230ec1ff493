//! Where the host can be looked at and told what to do: by HTTP, apart from the services.
//!
//! What is only looked at takes no token. What changes anything takes one, a request that no other site can have a browser make,
//! and `POST`. Nobody who looks can hold up a connection: all that is shown is read from numbers that are kept anyway.

mod answer;
mod exposition;
pub(crate) mod measures;
mod metrics;
mod routes;
mod slots;
mod token;
mod view;
mod watch;

use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::config::{Address, Admin as Config, Limits, Listen, Mode};
use crate::counts::Count;
use crate::deadlines;
use crate::half::Half;
use crate::listener::{self, Accepted, Listener};
use crate::logging::READY;
use crate::peer::End;
use crate::service::Process;
use crate::socket::{Reader, Stream, Writer};
use slots::{Slot, Slots};
pub(crate) use token::{CurrentToken, check_directories as check_token_directories, named as named_token};
use watch::Watch;

/// Descriptors that the connections to the admin interface may take.
pub(crate) const DESCRIPTORS: usize = slots::CONNECTIONS + CLOSING;

/// How long an answer may take in all, unless it has no end.
const LONGEST: Duration = Duration::from_secs(30);

/// How long a peer may accept none of the bytes of its answer.
const WRITE: Duration = Duration::from_secs(10);

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(5);

/// Bytes of a request's head, and of an answer that are taken before they can be written.
const BUFFER: usize = 16 << 10;

/// How long, and for how many bytes, the host reads what follows a request after it was answered.
/// Closing a socket with unread bytes resets the connection, which can overtake the answer.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 64 << 10);

/// Connections that have made room for others and are not closed yet.
const CLOSING: usize = 64;

/// Who may use a socket of the file system, where all that is there can be seen.
const MODE: Mode = Mode(0o600);

/// What requests are answered from.
#[derive(Debug)]
struct Admin {
    process: Arc<Process>,
    slots: Arc<Slots>,
    watch: Watch,
    token: Option<CurrentToken>,
    /// Only who is on this machine gets here, and can be asked to name it so.
    loopback: bool,
}

/// Checks the token file at `path`. Returns whether it is there.
///
/// # Errors
///
/// It cannot be used.
pub(crate) fn has_token(path: &Path) -> anyhow::Result<bool> {
    Ok(token::Token::read(path)?.is_some())
}

/// Warns of an address that other machines can reach.
fn warn_of_exposure(address: &SocketAddr) {
    if !address.ip().is_loopback() {
        warn!(
            "{address} is not a loopback address: every machine that can reach it can see the \
             connected clients"
        );
    }
}

/// Logs the warnings that a start logs about the admin interface, whose address is set by
/// `setting`.
pub(crate) fn warn_of(config: &Config, setting: &str) {
    if let Address::Tcp(address) = &config.address {
        warn_of_exposure(address);
    }
    listener::warn_of(&Listen::at(config.address.clone()), setting, None);
}

/// The address on which the admin interface listens.
#[derive(Debug)]
pub(crate) struct Started(End);

impl Started {
    /// Logs the address.
    pub(crate) fn announce(&self) {
        match &self.0 {
            End::Tcp(address) => info!(target: READY, "admin interface at http://{address}/"),
            other => info!(target: READY, "admin interface at {other}"),
        }
    }
}

/// Listens as `config` says, and answers until the runtime ends. The address was chosen by `flag`.
/// The caller announces it once nothing else can keep the host from starting.
///
/// # Errors
///
/// The address cannot be bound.
///
/// # Panics
///
/// Outside of a runtime.
pub(crate) fn start(
    config: &Config,
    token: Option<CurrentToken>,
    flag: &'static str,
    process: &Arc<Process>,
) -> anyhow::Result<Started> {
    let mut listen = Listen::at(config.address.clone());
    if let Address::Unix(_) = &listen.address {
        listen.socket.mode = Some(MODE);
    }
    let listener = Listener::prepare(&listen, flag, None)?.bind()?;
    let local = listener.local();
    let loopback = match &local {
        End::Tcp(address) => address.ip().is_loopback(),
        End::Path(_) | End::Process(_) => true,
    };
    if let End::Tcp(address) = &local {
        warn_of_exposure(address);
    }
    let admin = Arc::new(Admin {
        process: Arc::clone(process),
        slots: Arc::default(),
        watch: Watch::default(),
        token,
        loopback,
    });
    tokio::spawn(accept(listener, admin));
    Ok(Started(local))
}

async fn accept(mut listener: Listener, admin: Arc<Admin>) {
    // They are in the log.
    let errors = Count::default();
    let permits = Arc::new(Semaphore::new(DESCRIPTORS));
    // It is never closed. Nobody can hold the permits: beyond the slots, connections are about to
    // close.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Accepted { stream, remote, .. } = listener.accept(&errors, None).await;
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            serve(&admin, stream, &remote).await;
            drop(permit);
        });
    }
}

/// Answers the request of one connection, until a limit ends it.
async fn serve(admin: &Arc<Admin>, stream: Stream, remote: &End) {
    let (reader, writer) = stream.split();
    let (inbound, outbound) = (Half::new(reader, None), Half::new(writer, None));
    let slot = admin.slots.enter(remote, outbound.traffic());
    let limits = Limits {
        first_byte_timeout: None,
        idle_timeout: None,
        write_timeout: Some(WRITE),
        max_lifetime: None,
        ..Limits::default()
    };
    let start = tokio::time::Instant::now();
    let stalled = deadlines::time(&limits, start, inbound.traffic(), outbound.traffic());
    let longest = async {
        sleep(LONGEST).await;
        if slot.watches() {
            pending().await
        }
    };
    let ended = tokio::select! {
        biased;
        () = slot.evicted() => "it has made room for another",
        _ = stalled => "the peer does not read",
        () = longest => "it has taken too long",
        () = exchange(admin, &slot, &inbound, &outbound) => return,
    };
    debug!(%remote, "closed a connection to the admin interface: {ended}");
}

/// Answers one request. There is no second one on the same connection, which could come before the
/// answer to the first is read.
async fn exchange(admin: &Arc<Admin>, slot: &Slot, inbound: &Half<Reader>, outbound: &Half<Writer>) {
    let (Some(reader), Some(writer)) = (inbound.lend(), outbound.lend()) else {
        return;
    };
    let answer = service_fn(|request| routes::answer(admin, slot, request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(tokio::io::join(reader, writer)), answer)
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection to the admin interface failed");
    }
    if outbound.ended() {
        slot.leave();
        linger(inbound).await;
    }
}

/// Reads what the peer still sends, within limits, until its FIN.
async fn linger(inbound: &Half<Reader>) {
    let (limit, bytes) = LINGER;
    if let Some(reader) = inbound.lend() {
        // Whatever it is, or fails with, the connection is closed after it.
        let _ = timeout(
            limit,
            tokio::io::copy(&mut reader.take(bytes), &mut tokio::io::sink()),
        )
        .await;
    }
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `host`, as a request names it, is this machine or an address: no name that somebody else could have pointed here.
fn is_no_name(host: &str) -> bool {
    let bare = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    let bare = bare
        .strip_prefix('[')
        .and_then(|bare| bare.strip_suffix(']'))
        .unwrap_or(bare);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_no_name;

    #[test]
    fn only_addresses_and_localhost_are_no_names() {
        for host in [
            "localhost",
            "LOCALHOST:9090",
            "127.0.0.1",
            "127.0.0.1:9090",
            "[::1]",
            "[::1]:9090",
        ] {
            assert!(is_no_name(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "example.org:9090",
            "localhost.example.org",
            "127.0.0.1.example.org",
            ":9090",
        ] {
            assert!(!is_no_name(host), "{host}");
        }
    }
}
