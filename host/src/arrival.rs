//! What a connection has to go through before it comes in.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::admission::{Permit, Refused, Sources};
use crate::buffer;
use crate::config::ProxyProtocol;
use crate::connection::LINGER;
use crate::deadlines::after;
use crate::listener::Entrance;
use crate::peer::{self, End};
use crate::proxy_protocol::{self, Client};
use crate::service::Service;
use crate::socket::{Reader, Stream, Writer};
use crate::telemetry::Trace;
use crate::tls;

/// Bytes that the host drops for a client after a failed handshake. They cost it some milliseconds.
const MAX_DROPPED: u64 = 16 << 20;

/// A connection that was accepted, and may not come in yet.
pub(crate) struct Arrival {
    pub(crate) entrance: Arc<Entrance>,
    /// Where it comes from: the true client, once that is known.
    pub(crate) remote: End,
    pub(crate) local: End,
    pub(crate) sources: Sources,
    /// When it was accepted. All that has to be said first has its time from then on.
    pub(crate) at: Instant,
    /// What is noted of it, where it is traced.
    pub(crate) trace: Option<Box<Trace>>,
}

/// A connection that may not come in.
pub(crate) struct Turned {
    pub(crate) reason: Refused,
    pub(crate) end: Farewell,
}

/// How a connection ends that may not come in, once that is told.
pub(crate) enum Farewell {
    /// By a reset.
    Reset(Stream),
    /// By FIN, after which the host reads and drops what the client sends until `until`. Otherwise
    /// the kernel would send a reset, which can overtake the alert before the FIN. The connection
    /// keeps its permit, so that there are no more sockets than permits.
    Linger {
        stream: Stream,
        until: Instant,
        _permit: Permit,
    },
    /// By nothing: its socket is closed.
    Closed,
}

impl Farewell {
    /// Ends the connection.
    pub(crate) async fn say(self, service: &Service) {
        match self {
            Self::Reset(stream) => stream.reset(),
            // Boxed, so that other connections have no room for it.
            Self::Linger {
                stream,
                until,
                _permit,
            } => {
                let lingering = Box::pin(timeout_at(until, linger(stream)));
                tokio::select! {
                    _ = lingering => {}
                    () = service.process.cut.cancelled() => {}
                }
            }
            Self::Closed => {}
        }
    }
}

/// Sends FIN, and drops what the client sends until its FIN.
async fn linger(mut stream: Stream) {
    if stream.shutdown().await.is_ok() {
        let _ = buffer::discard(&mut stream.take(MAX_DROPPED)).await;
    }
}

impl From<Refused> for Turned {
    fn from(reason: Refused) -> Self {
        Self {
            reason,
            end: Farewell::Closed,
        }
    }
}

/// A connection that may come in.
pub(crate) struct Entered {
    pub(crate) permit: Permit,
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) tls: Option<peer::Tls>,
}

impl Arrival {
    /// Lets the connection come in, or not. A balancer first says for whom it connects; then it is seen whether that one may
    /// come, and how many it has; and only then is there talk of encryption.
    ///
    /// # Errors
    ///
    /// It may not.
    pub(crate) async fn enter(
        &mut self,
        mut stream: Stream,
        permit: Permit,
        service: &Service,
    ) -> Result<Entered, Turned> {
        let entrance = Arc::clone(&self.entrance);
        let told = match &entrance.proxy_protocol {
            None => Ok(()),
            // In a box, as what follows too, so that other connections are not larger for it.
            Some(proxy) => {
                let begun = self.trace.as_ref().map(|_| Instant::now());
                let told = Box::pin(self.hear(proxy, &mut stream, service)).await;
                if let Some((trace, begun)) = self.trace.as_mut().zip(begun) {
                    trace.heard(begun.into_std(), &told);
                }
                told
            }
        };
        let permit = match told.and_then(|()| self.admit(permit, service)) {
            Ok(permit) => permit,
            Err(reason) => {
                self.sources.refuse(reason);
                let end = Farewell::Reset(stream);
                return Err(Turned { reason, end });
            }
        };
        let Some(tls) = &entrance.tls else {
            let (reader, writer) = stream.split();
            return Ok(Entered {
                permit,
                reader,
                writer,
                tls: None,
            });
        };
        let begun = self.trace.as_ref().map(|_| Instant::now());
        let agreed = Box::pin(self.agree(tls, stream, service)).await;
        if let Some((trace, begun)) = self.trace.as_mut().zip(begun) {
            trace.agreed(begun.into_std(), &agreed.as_ref().map_err(|failed| failed.0));
        }
        let (reader, writer, said) = match agreed {
            Ok(agreed) => agreed,
            Err((reason, None)) => return Err(reason.into()),
            Err((reason, Some(stream))) => {
                // No longer than a client can keep its permit by a handshake that does not end.
                let until = after(Instant::now(), LINGER).min(after(self.at, tls.timeout()));
                let end = Farewell::Linger {
                    stream,
                    until,
                    _permit: permit,
                };
                return Err(Turned { reason, end });
            }
        };
        Ok(Entered {
            permit,
            reader: Reader::Tls(reader),
            writer: Writer::tls(writer),
            tls: Some(said),
        })
    }

    /// Has a balancer say for whom it connects.
    async fn hear(
        &mut self,
        proxy: &ProxyProtocol,
        stream: &mut Stream,
        service: &Service,
    ) -> Result<(), Refused> {
        // Who may connect to a socket of the file system is trusted.
        if let End::Tcp(address) = &self.remote
            && !proxy.trusts(address.ip())
        {
            return Err(Refused::Untrusted);
        }
        let reading = timeout_at(after(self.at, proxy.timeout), proxy_protocol::read(stream));
        let read = tokio::select! {
            biased;
            read = reading => read.map_err(|_| Refused::ProxyTimeout)?,
            () = service.process.cut.cancelled() => return Err(Refused::Drained),
        };
        match read {
            Ok(Client::At { source, destination }) => {
                self.remote = End::tcp(source);
                self.local = End::tcp(destination);
                Ok(())
            }
            Ok(Client::Unknown) => Ok(()),
            Err(refusal) => {
                debug!(
                    service = service.config.name,
                    peer = self.remote.to_string(),
                    listener = self.entrance.name,
                    "connection rejected: {refusal}"
                );
                if let Some(trace) = &mut self.trace {
                    trace.fails(refusal.to_string());
                }
                Err(Refused::ProxyHeader)
            }
        }
    }

    /// Whether the client may come, and have one more.
    fn admit(&self, permit: Permit, service: &Service) -> Result<Permit, Refused> {
        if let End::Tcp(address) = &self.remote
            && !service.access.load().admits(address.ip())
        {
            return Err(Refused::Access);
        }
        self.sources.admit(permit, &self.remote)
    }

    /// Agrees with the peer on how the connection is encrypted. After a failed handshake, the
    /// socket comes with the error.
    async fn agree(
        &mut self,
        tls: &tls::Server,
        stream: Stream,
        service: &Service,
    ) -> Result<(tls::Reader, tls::Writer, peer::Tls), (Refused, Option<Stream>)> {
        let handshake = tls.handshake(stream, &service.handshakes);
        let agreeing = timeout_at(after(self.at, tls.timeout()), handshake);
        let agreed = tokio::select! {
            biased;
            agreed = agreeing => agreed.map_err(|_| (Refused::TlsTimeout, None))?,
            () = service.process.cut.cancelled() => return Err((Refused::Drained, None)),
        };
        agreed.map_err(|(error, stream)| {
            debug!(
                service = service.config.name,
                peer = self.remote.to_string(),
                listener = self.entrance.name,
                "TLS handshake failed: {error}"
            );
            if let Some(trace) = &mut self.trace {
                trace.fails(error.to_string());
            }
            (Refused::TlsHandshake, Some(stream))
        })
    }
}
