//! Where the host can be looked at and told what to do: by HTTP, apart from the services.
//!
//! What is only looked at takes no token. What changes anything takes one, a request that no other site can have a browser make,
//! and `POST`. Nobody who looks can hold up a connection: all that is shown is read from numbers that are kept anyway.

mod answer;
mod exposition;
pub(crate) mod measures;
mod metrics;
mod routes;
mod token;
mod view;

use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::config::{Address, Admin as Config, Listen, Mode};
use crate::counts::Count;
use crate::listener::{Accepted, Listener};
use crate::peer::End;
use crate::server::READY;
use crate::service::Process;
pub(crate) use token::Token;

/// Connections of those who look that may be open at once. Further ones wait.
const CONNECTIONS: usize = 64;

/// Those of them that may be told what there is to see for as long as they like.
const WATCHERS: usize = 32;

/// How long a connection may last otherwise, so that who does not read its answer keeps nobody out.
const LONGEST: Duration = Duration::from_secs(60);

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(5);

/// Who may use a socket of the file system, where all that is there can be seen.
const MODE: Mode = Mode(0o600);

/// What requests are answered from.
#[derive(Debug)]
struct Admin {
    process: Arc<Process>,
    watchers: Arc<Semaphore>,
    token: Option<Token>,
    /// Only who is on this machine gets here, and can be asked to name it so.
    loopback: bool,
}

/// Checks the token file at `path`. Returns whether it is there.
///
/// # Errors
///
/// It cannot be used.
pub(crate) fn has_token(path: &Path) -> anyhow::Result<bool> {
    Ok(Token::read(path)?.is_some())
}

/// Listens as `config` says, and answers until the runtime ends. The address was chosen by `flag`.
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
    token: Option<Token>,
    flag: &'static str,
    process: &Arc<Process>,
) -> anyhow::Result<()> {
    let mut listen = Listen::at(config.address.clone());
    if let Address::Unix(_) = &listen.address {
        listen.socket.mode = Some(MODE);
    }
    let listener = Listener::prepare(&listen, flag)?.bind()?;
    let local = listener.local();
    let loopback = match &local {
        End::Tcp(address) => address.ip().is_loopback(),
        End::Path(_) | End::Process(_) => true,
    };
    if !loopback {
        warn!(
            "{local} is not a loopback address: every machine that can reach it can see the \
             connected clients"
        );
    }
    match &local {
        End::Tcp(address) => info!(target: READY, "admin interface at http://{address}/"),
        other => info!(target: READY, "admin interface at {other}"),
    }
    let admin = Arc::new(Admin {
        process: Arc::clone(process),
        watchers: Arc::new(Semaphore::new(WATCHERS)),
        token,
        loopback,
    });
    tokio::spawn(accept(listener, admin));
    Ok(())
}

async fn accept(mut listener: Listener, admin: Arc<Admin>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    // They are in the log.
    let errors = Count::default();
    // It is never closed.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Accepted { stream, .. } = listener.accept(&errors).await;
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let watches = AtomicBool::new(false);
            let answer = service_fn(|request| routes::answer(&admin, &watches, request));
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), answer);
            let mut serving = pin!(serving);
            let served = match timeout(LONGEST, serving.as_mut()).await {
                Ok(served) => served,
                Err(_) if watches.load(Relaxed) => serving.await,
                Err(_) => Ok(()),
            };
            if let Err(error) = served {
                debug!(%error, "a connection to the admin interface failed");
            }
            drop(permit);
        });
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
