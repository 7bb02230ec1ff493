//! TLS: handshakes, and certificates that are read again when they change.

mod algorithm;
mod client_chain;
mod identity;
mod pem;
mod records;
mod stream;
mod turns;

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

pub use identity::Unusable;
pub(crate) use identity::faults;
pub use pem::Fault;
pub use stream::{Reader, Writer};
pub use turns::Turns;

use crate::config::Tls as Config;
use crate::file_work::{FileWork, NotDone, READ};
use crate::peer;
use crate::socket::Stream;
use crate::stamp::{Stamp, stamp};
use identity::CertificateFile;
use stream::Transport;

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// What the log calls a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// The service that it belongs to, if it belongs to one.
    pub(crate) service: Option<String>,
    pub(crate) listener: String,
}

/// The side of TLS that a listener is.
#[derive(Debug)]
pub struct Server {
    config: Config,
    /// What new connections begin with.
    current: ArcSwap<ServerConfig>,
    label: ArcSwap<Label>,
    asked: Arc<Notify>,
}

/// What a listener takes for TLS, read and not used yet.
#[derive(Debug)]
pub(crate) struct Loaded {
    config: Config,
    read: identity::Read,
    seen: Vec<Option<Stamp>>,
}

impl Loaded {
    /// Reads what `config` names.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or is not what it should be.
    pub(crate) fn new(config: &Config) -> Result<Self, Unusable> {
        // By now, so that what changes from here on is seen.
        let seen = stamps(config);
        Ok(Self {
            read: identity::read(config)?,
            config: config.clone(),
            seen,
        })
    }

    /// Logs how many certificates were read, and warns of those that are not valid at the moment.
    pub(crate) fn report(&self, label: &Label) {
        report(&self.read.files, label);
    }

    /// Serves with it, and reads it again when it changes, for as long as what is returned is there.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub(crate) fn serve(self, label: Label) -> Arc<Server> {
        self.report(&label);
        let server = Arc::new(Server {
            current: ArcSwap::from_pointee(self.read.server),
            config: self.config,
            label: ArcSwap::from_pointee(label),
            asked: Arc::new(Notify::new()),
        });
        let asked = Arc::clone(&server.asked);
        tokio::spawn(watch(Arc::downgrade(&server), asked, self.seen));
        server
    }
}

impl Server {
    /// Reads what `config` names, and reads it again when it changes, for as long as this is there.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or is not what it should be.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn new(config: &Config, listener: &str) -> Result<Arc<Self>, Unusable> {
        Ok(Loaded::new(config)?.serve(Label {
            service: None,
            listener: listener.to_owned(),
        }))
    }

    /// Has the files read again, whether they have changed or not.
    pub fn reread(&self) {
        self.asked.notify_one();
    }

    /// Changes what the lines of the log that follow call its listener.
    pub(crate) fn rename(&self, label: Label) {
        if **self.label.load() != label {
            self.label.store(Arc::new(label));
        }
    }

    /// How long a handshake may take, from the accept on.
    pub fn timeout(&self) -> Duration {
        self.config.timeout
    }

    /// Agrees with the peer on how the connection is encrypted. Computes only with one of `turns`.
    ///
    /// # Errors
    ///
    /// They cannot agree, the peer cannot show who it is, or it is gone. The alert for the peer was
    /// sent. The socket comes with the error.
    pub async fn handshake(
        &self,
        stream: Stream,
        turns: &Turns,
    ) -> Result<(Reader, Writer, peer::Tls), (io::Error, Stream)> {
        let acceptor = TlsAcceptor::from(self.current.load_full());
        let accept = acceptor.accept(Transport::new(stream)).into_fallible();
        let stream = turns
            .take(accept)
            .await
            .map_err(|(error, transport)| (error, transport.into_stream()))?;
        let said = said(stream.get_ref().1, &self.label.load());
        let (reader, writer) = stream::split(stream);
        Ok((reader, writer, said))
    }
}

/// Logs how many certificates were read, and which of them are not valid at the moment.
fn report(files: &[CertificateFile], label: &Label) {
    let Label { service, listener } = label;
    for file in files {
        let path = file.path.display();
        debug!(service, listener, file = %path, certificates = file.count, "certificates read");
        for warning in &file.warnings {
            warn!(service, listener, "{warning}");
        }
    }
}

/// What TLS says of a connection.
fn said(connection: &ServerConnection, label: &Label) -> peer::Tls {
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    let subject = certificate.and_then(|certificate| {
        let Label { service, listener } = label;
        let subject = identity::subject(certificate).inspect_err(|error| {
            debug!(service, listener, %error, "cannot read the subject of a client certificate");
        });
        subject.ok()
    });
    peer::Tls {
        version: match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            // There is no other.
            _ => "TLSv1.3",
        },
        server_name: connection.server_name().map(str::to_owned),
        protocol: connection
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        subject,
    }
}

fn stamps(config: &Config) -> Vec<Option<Stamp>> {
    identity::files(config).map(stamp).collect()
}

/// The files, with what they were told by before they were read.
type Found = Result<(Vec<Option<Stamp>>, Result<identity::Read, Unusable>), NotDone>;

/// Reads the files of a server.
async fn read(files: &mut FileWork, config: &Config) -> Found {
    let config = config.clone();
    files
        .run(READ, move || (stamps(&config), identity::read(&config)))
        .await
}

/// Reads the files of a server once they have changed from what was `seen` and stay as they are, or
/// at once for a `retry`. Returns `None` if nothing calls for that, and otherwise says whether it
/// is a retry too.
async fn read_changed(
    files: &mut FileWork,
    config: &Config,
    seen: &[Option<Stamp>],
    retry: bool,
) -> Option<(bool, Found)> {
    let looked_at = config.clone();
    let look = move || stamps(&looked_at);
    let now = match files.run(READ, look.clone()).await {
        Ok(now) => now,
        Err(error) => return Some((retry, Err(error))),
    };
    if now == seen {
        return if retry {
            Some((true, read(files, config).await))
        } else {
            None
        };
    }
    if let Err(error) = files.settle(now, look).await {
        return Some((retry, Err(error)));
    }
    Some((false, read(files, config).await))
}

/// Reads the files of a server again when they have changed, and whenever `asked`, until the server is
/// gone. If they cannot be used, the previous ones stay in use, which is logged once.
///
/// Files that cannot be used are read again and again: what kept the host from reading them, such as a
/// lack of descriptors, passes without a change of the files.
async fn watch(server: Weak<Server>, asked: Arc<Notify>, mut seen: Vec<Option<Stamp>>) {
    let mut files = FileWork::default();
    let mut failure = None;
    loop {
        let was_asked = tokio::select! {
            biased;
            () = asked.notified() => true,
            () = sleep(LOOK) => false,
        };
        let Some(server) = server.upgrade() else { return };
        let mut found = None;
        if !was_asked {
            // Who asks does not wait for files that settle or are read for a change.
            tokio::select! {
                biased;
                () = asked.notified() => {}
                changed = read_changed(&mut files, &server.config, &seen, failure.is_some()) => match changed {
                    Some(changed) => found = Some(changed),
                    None => continue,
                },
            }
        }
        let (is_retry, read) = match found {
            Some(found) => found,
            // Files that somebody asks to read are complete.
            None => (false, read(&mut files, &server.config).await),
        };
        let label = server.label.load();
        let Label { service, listener } = &**label;
        let error = match read {
            Ok((stamps, Ok(read))) => {
                seen = stamps;
                failure = None;
                server.current.store(Arc::new(read.server));
                info!(service, listener, "certificates reloaded");
                report(&read.files, &label);
                continue;
            }
            Ok((stamps, Err(error))) => {
                seen = stamps;
                error.to_string()
            }
            Err(error) => format!("reading the files {error}"),
        };
        if !is_retry || failure.as_ref() != Some(&error) {
            warn!(
                service,
                listener, "certificate reload failed: {error}; the previous certificates stay in use"
            );
        }
        failure = Some(error);
    }
}

#[cfg(test)]
mod tests;
