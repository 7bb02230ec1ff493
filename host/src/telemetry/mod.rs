//! What is told of the host to a collector of OpenTelemetry: a trace of each connection, and what is counted.
//!
//! Others note here what there is to tell, as plain facts, and nothing of it while nobody asked for it. Spans are made when a
//! connection is over, and sent by a thread of their own. What cannot be sent is lost, and nobody waits for it.

mod collector;
mod measures;
mod spans;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use percent_encoding::percent_decode_str;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::admin::measures::Measure;
use crate::config::Otlp as Config;
use collector::{Collector, Signal};
pub(crate) use spans::{Ended, Trace};

/// What the host is called where nothing else is in the environment.
const NAME: &str = "wasm-inetd";

/// The attribute with the name of the host.
const SERVICE_NAME: &str = "service.name";

/// How long what is still to be sent may take at the end of a drain.
const LAST: Duration = Duration::from_secs(2);

/// The time between two exports of metrics, where nothing else is in the environment.
const INTERVAL: Duration = Duration::from_secs(60);

/// What is told to a collector.
#[derive(Debug)]
pub(crate) struct Telemetry {
    collector: Arc<Collector>,
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    resource: Resource,
    /// Metrics are sent too.
    metrics: bool,
    /// When it began.
    started: SystemTime,
}

impl Telemetry {
    /// Tells what `config` says.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub(crate) fn start(config: &Config) -> Self {
        let collector = Arc::new(Collector::new(&config.endpoint));
        let resource = resource();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                config.sample.get(),
            ))))
            .with_batch_exporter(spans::Exporter::new(Arc::clone(&collector)))
            .build();
        info!(
            sample = config.sample.get(),
            "sending traces and metrics to {}", config.endpoint
        );
        Self {
            tracer: provider.tracer(NAME),
            collector,
            provider,
            resource,
            metrics: std::env::var_os("OTEL_METRICS_EXPORTER").is_none_or(|chosen| chosen != "none"),
            started: SystemTime::now(),
        }
    }

    /// Sends what `read` finds, again and again, until it is aborted; `None` where the environment has it that no metrics are sent.
    pub(crate) fn measure(&self, read: impl Fn() -> Vec<Measure> + Send + 'static) -> Option<JoinHandle<()>> {
        if !self.metrics {
            return None;
        }
        let collector = Arc::clone(&self.collector);
        let (started, resource) = (self.started, self.resource());
        Some(tokio::spawn(async move {
            let mut ticks = interval(milliseconds("OTEL_METRIC_EXPORT_INTERVAL").unwrap_or(INTERVAL));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first comes at once, when there is nothing to tell.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let request = measures::request(&read(), started, &resource);
                collector.send(Signal::Metrics, request).await;
            }
        }))
    }

    /// Sends what is left, with `last` measures, as far as that goes in a short time. After that nothing is told.
    pub(crate) async fn end(&self, last: &[Measure]) {
        let metrics = async {
            if self.metrics {
                let request = measures::request(last, self.started, &self.resource());
                self.collector.send(Signal::Metrics, request).await;
            }
        };
        let provider = self.provider.clone();
        let spans = spawn_blocking(move || provider.shutdown_with_timeout(LAST));
        let all = async { tokio::join!(metrics, spans) };
        // What has failed is in the log, and what takes too long is lost.
        let _ = timeout(LAST, all).await;
    }

    /// Tells nothing from now on, and waits for nothing.
    pub(crate) fn quit(&self) {
        // Otherwise the last to drop it would wait.
        let _ = self.provider.shutdown_with_timeout(Duration::ZERO);
    }

    fn resource(&self) -> ResourceAttributesWithSchema {
        (&self.resource).into()
    }
}

/// What the environment says of the host, and what the host says itself.
fn resource() -> Resource {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let attributes = attributes(&variable("OTEL_RESOURCE_ATTRIBUTES")).unwrap_or_else(|entry| {
        warn!(
            "OTEL_RESOURCE_ATTRIBUTES is ignored: `{entry}` is not valid; expected KEY=VALUE with \
             percent-encoded values"
        );
        Vec::new()
    });
    let name = variable("OTEL_SERVICE_NAME");
    let named = [KeyValue::new(SERVICE_NAME, name.clone())];
    // Of attributes with the same key, the last is kept.
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attribute(KeyValue::new(SERVICE_NAME, NAME))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes)
        .with_attributes(named.into_iter().filter(|_| !name.is_empty()))
        .build()
}

/// Parses `KEY=VALUE,…` with percent-encoded values, as OpenTelemetry specifies it for
/// `OTEL_RESOURCE_ATTRIBUTES`.
///
/// # Errors
///
/// An entry is malformed, and is returned.
fn attributes(text: &str) -> Result<Vec<KeyValue>, &str> {
    let entries = text.split(',').filter(|entry| !entry.trim().is_empty());
    entries
        .map(|entry| {
            let (key, value) = entry.split_once('=').ok_or(entry)?;
            let value = percent_decode_str(value.trim())
                .decode_utf8()
                .map_err(|_| entry)?;
            match key.trim() {
                "" => Err(entry),
                key => Ok(KeyValue::new(key.to_owned(), value.into_owned())),
            }
        })
        .collect()
}

/// A time above zero that is in the environment in milliseconds, as the standard has it.
fn milliseconds(variable: &str) -> Option<Duration> {
    let text = std::env::var(variable).ok()?;
    let milliseconds = text
        .trim()
        .parse()
        .ok()
        .filter(|milliseconds| *milliseconds > 0)?;
    Some(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_decoded_or_refused_together() {
        let parsed = |text| {
            attributes(text).map(|all| {
                let pairs = all.iter().map(|one| (one.key.to_string(), one.value.to_string()));
                pairs.collect::<Vec<_>>()
            })
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(parsed(""), Ok(Vec::new()));
        assert_eq!(
            parsed(" a = b%20c ,d=e=f%2Cg,h=,"),
            Ok(vec![pair("a", "b c"), pair("d", "e=f,g"), pair("h", "")])
        );
        assert_eq!(parsed("a=b,c"), Err("c"));
        assert_eq!(parsed("a=b,=c"), Err("=c"));
        assert_eq!(parsed("a=%ff"), Err("a=%ff"));
    }
}
