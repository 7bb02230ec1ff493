//! What is told of the host to a collector of OpenTelemetry: a trace of each connection, and what is counted.
//!
//! Others note here what there is to tell, as plain facts, and nothing of it while nobody asked for it. Spans are made when a
//! connection is over, and sent by a thread of their own. What cannot be sent is lost, and nobody waits for it.

mod collector;
mod environment;
mod lookup;
mod measures;
mod spans;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::info;

use crate::admin::measures::Measure;
use crate::config::Otlp as Config;
use crate::threads::{self, NoThread};
use collector::{Collector, Signal};
use environment::{milliseconds, variable};
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
    /// Metrics are sent too, at this interval.
    metrics: bool,
    interval: Duration,
    /// When it began.
    started: SystemTime,
}

/// Logs what `config` has sent, and where.
pub(crate) fn announce(config: &Config) {
    info!(
        sample = config.sample.get(),
        // The path may contain the key of an account.
        "sending traces and metrics to http://{}",
        config.endpoint.authority()
    );
}

impl Telemetry {
    /// Tells what `config` says.
    ///
    /// # Errors
    ///
    /// There is no thread for it.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub(crate) fn start(config: &Config) -> Result<Self, NoThread> {
        let collector = Arc::new(Collector::new(&config.endpoint));
        let resource = resource();
        let exporter = spans::Exporter::new(Arc::clone(&collector));
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(environment::batches());
        // It starts a thread, or panics.
        let processor = threads::started(|| processor.build())?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                config.sample.get(),
            ))))
            .with_span_processor(processor)
            .build();
        Ok(Self {
            tracer: provider.tracer(NAME),
            collector,
            provider,
            resource,
            metrics: environment::exports_metrics(),
            interval: milliseconds("OTEL_METRIC_EXPORT_INTERVAL").unwrap_or(INTERVAL),
            started: SystemTime::now(),
        })
    }

    /// Sends what `read` finds, again and again, until it is aborted; `None` where the environment has it that no metrics are sent.
    pub(crate) fn measure(&self, read: impl Fn() -> Vec<Measure> + Send + 'static) -> Option<JoinHandle<()>> {
        if !self.metrics {
            return None;
        }
        let collector = Arc::clone(&self.collector);
        let (started, resource) = (self.started, self.resource());
        let mut ticks = interval(self.interval);
        Some(tokio::spawn(async move {
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
        let spans = async {
            if let Ok(spans) = threads::run("telemetry", move || provider.shutdown_with_timeout(LAST)) {
                let _ = spans.await;
            }
        };
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
    let name = variable("OTEL_SERVICE_NAME").unwrap_or_default();
    let named = [KeyValue::new(SERVICE_NAME, name.clone())];
    // Of attributes with the same key, the last is kept.
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attribute(KeyValue::new(SERVICE_NAME, NAME))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(environment::attributes())
        .with_attributes(named.into_iter().filter(|_| !name.is_empty()))
        .build()
}
