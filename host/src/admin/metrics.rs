//! What is measured, in the text that Prometheus reads. `docs/admin.md` has a table of it.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::exposition::{self, Exposition};
use super::measures::{self, Labels, Measure, Number, Values};
use crate::service::Process;

/// What all names begin with.
const PREFIX: &str = "wasm_inetd";

/// Encodes all metrics.
///
/// # Errors
///
/// None: the text is written to memory.
pub(super) fn encode(process: &Arc<Process>, exposition: Exposition) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(All(Arc::clone(process))));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(match exposition {
        Exposition::OpenMetrics => text,
        Exposition::Text => exposition::to_text(&text),
    })
}

/// Reads everything at the moment when it is asked for.
#[derive(Debug)]
struct All(Arc<Process>);

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for measure in measures::read(&self.0) {
            write(&mut encoder, &measure)?;
        }
        Ok(())
    }
}

fn write(encoder: &mut DescriptorEncoder, measure: &Measure) -> fmt::Result {
    let unit = measure.unit.map(|unit| match unit {
        measures::Unit::Seconds => Unit::Seconds,
        measures::Unit::Bytes => Unit::Bytes,
    });
    let of = match &measure.values {
        Values::Info(_) => MetricType::Info,
        Values::Gauges(_) => MetricType::Gauge,
        Values::Counters(_) => MetricType::Counter,
        Values::Histograms(_) => MetricType::Histogram,
    };
    let mut metric = encoder.encode_descriptor(measure.name, measure.help, unit.as_ref(), of)?;
    match &measure.values {
        Values::Info(labels) => metric.encode_info(labels),
        Values::Gauges(points) => each(&mut metric, points, |metric, number| match number {
            Number::Whole(number) => metric.encode_gauge(number),
            Number::Real(number) => metric.encode_gauge(number),
        }),
        Values::Counters(points) => each(&mut metric, points, |metric, number| match number {
            Number::Whole(number) => metric.encode_counter::<NoLabelSet, _, u64>(number, None),
            Number::Real(number) => metric.encode_counter::<NoLabelSet, _, u64>(number, None),
        }),
        Values::Histograms(points) => each(&mut metric, points, |metric, seen| {
            let buckets: Vec<_> = seen.buckets().collect();
            metric.encode_histogram::<NoLabelSet>(seen.sum.as_secs_f64(), seen.count(), &buckets, None)
        }),
    }
}

fn each<T>(
    metric: &mut MetricEncoder<'_>,
    points: &[(Labels, T)],
    encode: impl Fn(&mut MetricEncoder<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (labels, value) in points {
        if labels.is_empty() {
            encode(metric, value)?;
        } else {
            encode(&mut metric.encode_family(labels)?, value)?;
        }
    }
    Ok(())
}
