//! What is counted, in the form that OTLP has for it. `docs/tracing.md` has a table of it.

use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Text;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;

use super::NAME;
use crate::admin::measures::{Labels, Measure, Number, Unit, Values};

/// A request that tells of `measures`, which are counted since the host was `started`.
pub(super) fn request(
    measures: &[Measure],
    started: SystemTime,
    resource: &ResourceAttributesWithSchema,
) -> ExportMetricsServiceRequest {
    let times = [started, SystemTime::now()].map(nanoseconds);
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: resource.attributes.0.clone(),
                ..Resource::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: NAME.to_owned(),
                    ..InstrumentationScope::default()
                }),
                metrics: measures
                    .iter()
                    .filter_map(|measure| metric(measure, times))
                    .collect(),
                schema_url: String::new(),
            }],
            schema_url: resource.schema_url.clone().unwrap_or_default(),
        }],
    }
}

/// A measure from one time to the other; `None` where the resource says it.
fn metric(measure: &Measure, [started, now]: [u64; 2]) -> Option<Metric> {
    let point = |(labels, number): &(Labels, Number)| NumberDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: started,
        time_unix_nano: now,
        value: Some(match *number {
            Number::Whole(number) => Value::AsInt(i64::try_from(number).unwrap_or(i64::MAX)),
            Number::Real(number) => Value::AsDouble(number),
        }),
        ..NumberDataPoint::default()
    };
    let cumulative = i32::from(AggregationTemporality::Cumulative);
    let data = match &measure.values {
        Values::Info(_) => return None,
        Values::Gauges(points) => Data::Gauge(Gauge {
            data_points: points.iter().map(point).collect(),
        }),
        Values::Counters(points) => Data::Sum(Sum {
            data_points: points.iter().map(point).collect(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Values::Histograms(points) => {
            let points = points.iter().map(|(labels, seen)| HistogramDataPoint {
                attributes: attributes(labels),
                start_time_unix_nano: started,
                time_unix_nano: now,
                count: seen.count(),
                sum: Some(seen.sum.as_secs_f64()),
                bucket_counts: seen.buckets().map(|(_, count)| count).collect(),
                // What lies beyond all of them has no bound here.
                explicit_bounds: seen
                    .buckets()
                    .map(|(bound, _)| bound)
                    .filter(|bound| bound.is_finite())
                    .collect(),
                ..HistogramDataPoint::default()
            });
            Data::Histogram(Histogram {
                data_points: points.collect(),
                aggregation_temporality: cumulative,
            })
        }
    };
    Some(Metric {
        name: format!("wasm_inetd.{}", measure.name),
        description: measure.help.to_owned(),
        unit: match measure.unit {
            None => String::new(),
            Some(Unit::Seconds) => "s".to_owned(),
            Some(Unit::Bytes) => "By".to_owned(),
        },
        data: Some(data),
        ..Metric::default()
    })
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    let labels = labels.iter().map(|(key, value)| KeyValue {
        key: (*key).to_owned(),
        value: Some(AnyValue {
            value: Some(Text::StringValue(value.clone())),
        }),
        ..KeyValue::default()
    });
    labels.collect()
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(Duration::ZERO, |since| since).as_nanos() as u64
}
