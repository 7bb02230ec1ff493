//! The collector, and what is sent to it: protobuf by HTTP, as OTLP has it.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::environment::{self, milliseconds};
use super::lookup::Lookup;
use crate::config::Endpoint;

/// How long one request may take, where nothing else is in the environment.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The time between two warnings that something could not be sent.
const SILENCE: Duration = Duration::from_secs(60);

/// Bytes of an answer that are read.
const ANSWER: usize = 64 << 10;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }

    /// What a collector that has taken a request did not take of it, and why.
    fn rejected(self, answer: Bytes) -> Option<(i64, String)> {
        // An answer of another form is none of those that say so.
        match self {
            Self::Traces => {
                let part = ExportTraceServiceResponse::decode(answer).ok()?.partial_success?;
                Some((part.rejected_spans, part.error_message))
            }
            Self::Metrics => {
                let part = ExportMetricsServiceResponse::decode(answer)
                    .ok()?
                    .partial_success?;
                Some((part.rejected_data_points, part.error_message))
            }
        }
    }
}

/// Why something could not be sent.
#[derive(Debug, Error)]
enum Unsent {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("the connection failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("cannot build the request: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("cannot read the answer: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
    #[error("the collector answered {0}")]
    Status(StatusCode),
    #[error("the collector rejected {0} spans or data points: {1}")]
    Rejected(i64, String),
}

type Sender = SendRequest<Full<Bytes>>;

/// A collector. It is sent one thing after another, each by the connection of the one before it, if that is there.
#[derive(Debug)]
pub(super) struct Collector {
    endpoint: Endpoint,
    headers: HeaderMap,
    timeout: Duration,
    lookup: Lookup,
    /// Connections that are not in use: one for each signal at most, since each is sent by one task.
    idle: Mutex<Vec<Sender>>,
    trouble: Mutex<Trouble>,
}

/// What has failed of late.
#[derive(Debug, Default)]
struct Trouble {
    warned: Option<Instant>,
    /// What has failed since then.
    failed: u64,
}

impl Collector {
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        let mut headers = HeaderMap::new();
        if let Ok(host) = HeaderValue::from_str(&endpoint.authority()) {
            headers.insert(HOST, host);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!("wasm-inetd/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        environment::set_headers(&mut headers);
        Self {
            endpoint: endpoint.clone(),
            headers,
            timeout: milliseconds("OTEL_EXPORTER_OTLP_TIMEOUT").unwrap_or(TIMEOUT),
            lookup: Lookup::default(),
            idle: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// Sends one request, and says whether the collector has taken it. What it has not taken is lost, and that is in the log.
    pub(super) async fn send(&self, signal: Signal, request: impl Message) -> bool {
        let body = Bytes::from(request.encode_to_vec());
        let sent = match timeout(self.timeout, self.post(signal, body)).await {
            Ok(sent) => sent,
            Err(_) => Err(Unsent::Timeout(self.timeout)),
        };
        if let Err(unsent) = &sent {
            self.tell(unsent);
        }
        sent.is_ok()
    }

    async fn post(&self, signal: Signal, body: Bytes) -> Result<(), Unsent> {
        let kept = self.idle().pop();
        let answered = match kept {
            Some(kept) => match self.exchange(kept, signal, body.clone()).await {
                // The collector has closed it in the meantime.
                Err(Unsent::Http(error)) if error.is_closed() || error.is_canceled() => None,
                Err(Unsent::Http(error)) if error.is_incomplete_message() => None,
                answered => Some(answered?),
            },
            None => None,
        };
        let answer = match answered {
            Some(answer) => answer,
            None => self.exchange(self.connect().await?, signal, body).await?,
        };
        match signal.rejected(answer) {
            Some((count, why)) if count > 0 => Err(Unsent::Rejected(count, why)),
            _ => Ok(()),
        }
    }

    async fn connect(&self) -> Result<Sender, Unsent> {
        let addresses = self.addresses().await.map_err(Unsent::Connect)?;
        let stream = TcpStream::connect(&*addresses).await.map_err(Unsent::Connect)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to the collector failed");
            }
        });
        Ok(sender)
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let Endpoint { host, port, .. } = self.endpoint.clone();
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        self.lookup
            .run(move || Ok((host, port).to_socket_addrs()?.collect()))
            .await
    }

    async fn exchange(&self, mut sender: Sender, signal: Signal, body: Bytes) -> Result<Bytes, Unsent> {
        sender.ready().await?;
        let mut request =
            Request::post(format!("{}{}", self.endpoint.path, signal.path())).body(Full::new(body))?;
        *request.headers_mut() = self.headers.clone();
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER).collect().await;
        let body = body.map_err(Unsent::Answer)?.to_bytes();
        self.idle().push(sender);
        if status.is_success() {
            Ok(body)
        } else {
            Err(Unsent::Status(status))
        }
    }

    /// Warns of what was not sent, unless that was done of late.
    fn tell(&self, unsent: &Unsent) {
        let mut trouble = self.trouble();
        trouble.failed += 1;
        if trouble.warned.is_some_and(|warned| warned.elapsed() < SILENCE) {
            return;
        }
        trouble.warned = Some(Instant::now());
        let failed = std::mem::take(&mut trouble.failed);
        drop(trouble);
        let authority = self.endpoint.authority();
        warn!(
            failed,
            "traces or metrics lost: cannot send them to http://{authority}: {unsent}"
        );
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Sender>> {
        // Nothing can panic while it is held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        // Likewise.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
