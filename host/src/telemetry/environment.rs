//! Environment variables of the OpenTelemetry standard.
//!
//! Warnings name a variable and the position of an entry, and never show a value: headers and
//! attributes can contain credentials.

use std::time::Duration;

use hyper::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName, HeaderValue,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use opentelemetry::KeyValue;
use opentelemetry_sdk::trace::{BatchConfig, BatchConfigBuilder};
use percent_encoding::percent_decode_str;
use tracing::warn;

use crate::values;

/// The largest queue of spans. The SDK allocates the whole queue at the start.
const MAX_QUEUE: usize = 100_000;

/// Headers that describe the body and the connection, which only the host knows.
const OWN_HEADERS: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The value of a variable; `None` if it is unset or empty, which the standard does not distinguish,
/// or not UTF-8, which is warned of.
pub(super) fn variable(name: &str) -> Option<String> {
    match std::env::var_os(name)?.into_string() {
        Ok(value) => Some(value).filter(|value| !value.trim().is_empty()),
        Err(_) => {
            warn!("the environment variable {name} is ignored: it is not valid UTF-8");
            None
        }
    }
}

/// A time above zero in milliseconds. Other values are warned of and ignored.
pub(super) fn milliseconds(name: &str) -> Option<Duration> {
    let text = variable(name)?;
    let time = values::number(text.trim()).filter(|time| *time > 0);
    if time.is_none() {
        warn!(
            "the environment variable {name} is ignored: expected a whole number of milliseconds above zero"
        );
    }
    time.map(Duration::from_millis)
}

/// How spans are batched, with the defaults of the standard.
pub(super) fn batches() -> BatchConfig {
    let delay = milliseconds("OTEL_BSP_SCHEDULE_DELAY").unwrap_or(Duration::from_secs(5));
    BatchConfigBuilder::default()
        .with_scheduled_delay(delay)
        .with_max_queue_size(spans("OTEL_BSP_MAX_QUEUE_SIZE").unwrap_or(2048))
        .with_max_export_batch_size(spans("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").unwrap_or(512))
        .build()
}

/// A number of spans. Values that are not from 1 to [`MAX_QUEUE`] are warned of and ignored.
fn spans(name: &str) -> Option<usize> {
    let text = variable(name)?;
    let count = values::number(text.trim());
    let count = count.filter(|count| (1..=MAX_QUEUE).contains(count));
    if count.is_none() {
        warn!("the environment variable {name} is ignored: expected a number from 1 to {MAX_QUEUE}");
    }
    count
}

/// Whether metrics are exported: unless `OTEL_METRICS_EXPORTER` is `none`.
pub(super) fn exports_metrics() -> bool {
    const NAME: &str = "OTEL_METRICS_EXPORTER";
    match variable(NAME).as_deref() {
        Some("none") => false,
        Some("otlp") | None => true,
        Some(_) => {
            warn!("the environment variable {NAME} is ignored: expected `otlp` or `none`");
            true
        }
    }
}

/// The attributes in `OTEL_RESOURCE_ATTRIBUTES`. If one is malformed, none is used, as the standard
/// recommends.
pub(super) fn attributes() -> Vec<KeyValue> {
    const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let text = variable(NAME).unwrap_or_default();
    parse_attributes(&text).unwrap_or_else(|entry| {
        warn!(
            "the environment variable {NAME} is ignored: entry {entry} is not valid; expected KEY=VALUE with \
             percent-encoded values"
        );
        Vec::new()
    })
}

/// Parses `KEY=VALUE,…` with percent-encoded values.
///
/// # Errors
///
/// Returns the position of a malformed entry, counted from 1.
fn parse_attributes(text: &str) -> Result<Vec<KeyValue>, usize> {
    entries(text)
        .map(|(entry, text)| {
            let (key, value) = pair(text).ok_or(entry)?;
            Ok(KeyValue::new(key.to_owned(), value))
        })
        .collect()
}

/// Sets the headers in `OTEL_EXPORTER_OTLP_HEADERS`. They replace those that are set, but not
/// [`OWN_HEADERS`]. Malformed entries are warned of and ignored.
pub(super) fn set_headers(headers: &mut HeaderMap) {
    const NAME: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let text = variable(NAME).unwrap_or_default();
    for (entry, text) in entries(&text) {
        match header(text) {
            Some((name, _)) if OWN_HEADERS.contains(&name) => {
                warn!("the environment variable {NAME} cannot set the header `{name}`; remove it");
            }
            Some((name, value)) => {
                headers.insert(name, value);
            }
            None => warn!(
                "entry {entry} of the environment variable {NAME} is ignored: expected NAME=VALUE with a \
                 percent-encoded value"
            ),
        }
    }
}

fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair(text)?;
    let mut value: HeaderValue = value.parse().ok()?;
    value.set_sensitive(true);
    Some((name.parse().ok()?, value))
}

/// The entries of a list that are not empty, with their positions, counted from 1.
fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let entries = (1..).zip(text.split(','));
    entries.filter(|(_, entry)| !entry.trim().is_empty())
}

/// Parses `KEY=VALUE`, with what would be misunderstood in the value encoded as in URLs.
fn pair(text: &str) -> Option<(&str, String)> {
    let (key, value) = text.split_once('=')?;
    let value = value.trim();
    // The crate leaves an escape as it is that has no two hexadecimal digits.
    let mut escapes = value.split('%').skip(1);
    if !escapes.all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())) {
        return None;
    }
    let value = percent_decode_str(value).decode_utf8().ok()?;
    let key = key.trim();
    (!key.is_empty()).then(|| (key, value.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_decoded_or_refused_together() {
        let parsed = |text| {
            parse_attributes(text).map(|all| {
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
        assert_eq!(parsed("a=b,c"), Err(2));
        assert_eq!(parsed("a=b,,=c"), Err(3));
        for text in ["a=b,c=%ff", "a=b,c=%zz", "a=b,c=%2", "a=b,c=100%", "a=b,c=%%20"] {
            assert_eq!(parsed(text), Err(2), "{text}");
        }
    }

    #[test]
    fn headers_are_decoded() {
        let (name, value) = header(" X-Scope = a%20b ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-scope", "a b"));
        assert_eq!(format!("{value:?}"), "Sensitive");
        for malformed in ["none", "a b=c", "a=%0d", "=c"] {
            assert!(header(malformed).is_none(), "{malformed}");
        }
    }
}
