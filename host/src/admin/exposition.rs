//! The two formats of `/metrics`, and the choice between them by the header `Accept`.

use std::fmt::Write as _;

use hyper::HeaderMap;
use hyper::header::ACCEPT;

/// The format of an answer to `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Text,
}

impl Exposition {
    /// Chooses the text format if the client prefers it, and OpenMetrics otherwise.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT).iter();
        let ranges: Vec<Range<'_>> = lines
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .filter_map(Range::parse)
            .collect();
        let quality = |of: Self| {
            let matches = ranges
                .iter()
                .filter_map(|range| Some((range.fits(of)?, range.quality)));
            // The most specific range decides (RFC 9110, section 12.5.1).
            let best = matches.max_by(|(one, a), (other, b)| one.cmp(other).then(a.total_cmp(b)));
            best.map_or(0.0, |(_, quality)| quality)
        };
        if quality(Self::Text) > quality(Self::OpenMetrics) {
            Self::Text
        } else {
            Self::OpenMetrics
        }
    }

    /// The value of `Content-Type`.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The names of type and subtype, and the version.
    fn media(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::OpenMetrics => ("application", "openmetrics-text", "1.0.0"),
            Self::Text => ("text", "plain", "0.0.4"),
        }
    }
}

/// A media range of `Accept`.
struct Range<'a> {
    ty: &'a str,
    subtype: &'a str,
    version: Option<&'a str>,
    quality: f64,
}

impl<'a> Range<'a> {
    /// Parses a range; `None` if it is malformed.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (ty, subtype) = parts.next()?.split_once('/')?;
        let mut range = Self {
            ty,
            subtype,
            version: None,
            quality: 1.0,
        };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            if key.eq_ignore_ascii_case("q") {
                range.quality = value
                    .parse()
                    .ok()
                    .filter(|quality| (0.0..=1.0).contains(quality))?;
            } else if key.eq_ignore_ascii_case("version") {
                range.version = Some(value.trim_matches('"'));
            }
        }
        Some(range)
    }

    /// How specifically the range matches a format; `None` if it does not.
    fn fits(&self, format: Exposition) -> Option<u8> {
        let (ty, subtype, version) = format.media();
        match (self.ty, self.subtype) {
            ("*", "*") => Some(1),
            (of, "*") if of.eq_ignore_ascii_case(ty) => Some(2),
            (of, sub) if of.eq_ignore_ascii_case(ty) && sub.eq_ignore_ascii_case(subtype) => {
                match self.version {
                    None => Some(3),
                    Some(found) if found == version => Some(4),
                    // Only 0.0.4 is offered, and it is nearer to any version than OpenMetrics is.
                    Some(_) => (format == Exposition::Text).then_some(0),
                }
            }
            _ => None,
        }
    }
}

/// Rewrites OpenMetrics, as `prometheus-client` encodes it, in the text format of Prometheus. There
/// a family has the name of its samples, and neither a unit nor the type `info`
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
pub(super) fn to_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // Of a family the help comes before the type.
    let mut help = None;
    for line in openmetrics.lines() {
        // Text takes all that is written to it.
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = typed.split_once(' ') else {
                continue;
            };
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_format_is_chosen() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let old_prometheus = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (accept, expected) in [
            (&[][..], Exposition::OpenMetrics),
            (&["*/*"], Exposition::OpenMetrics),
            (&[prometheus], Exposition::OpenMetrics),
            (&[old_prometheus], Exposition::Text),
            (&[browser], Exposition::OpenMetrics),
            (&["text/plain"], Exposition::Text),
            (&["Text/Plain; Version=0.0.4"], Exposition::Text),
            (&["text/*, application/*;q=0.5"], Exposition::Text),
            (
                &["text/plain;q=0.5, application/openmetrics-text"],
                Exposition::OpenMetrics,
            ),
            (
                &["text/plain, application/openmetrics-text"],
                Exposition::OpenMetrics,
            ),
            (&["text/plain;q=0, */*"], Exposition::OpenMetrics),
            (&["application/openmetrics-text;q=0, */*"], Exposition::Text),
            (&["text/plain;version=1.0.0"], Exposition::Text),
            (&["text/plain;version=1.0.0;q=0.5, */*"], Exposition::OpenMetrics),
            (
                &["text/plain;version=1.0.0, application/openmetrics-text"],
                Exposition::OpenMetrics,
            ),
            (&["text/html", "text/plain"], Exposition::Text),
            (&["text/plain;q=2"], Exposition::OpenMetrics),
            (&["text", "", ";", "/"], Exposition::OpenMetrics),
        ] {
            let mut headers = HeaderMap::new();
            for line in accept {
                headers.append(ACCEPT, line.parse().unwrap());
            }
            assert_eq!(Exposition::accepted(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn families_have_the_names_of_their_samples() {
        let openmetrics = "# HELP a_build Version.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                           # HELP a_seen Seen \\\\ all.\n# TYPE a_seen counter\na_seen_total{b=\"# TYPE\"} 7\n\
                           # HELP a_time_seconds Time.\n# TYPE a_time_seconds gauge\n\
                           # UNIT a_time_seconds seconds\na_time_seconds 0.5\n# EOF\n";
        let text = "# HELP a_build_info Version.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                    # HELP a_seen_total Seen \\\\ all.\n# TYPE a_seen_total counter\n\
                    a_seen_total{b=\"# TYPE\"} 7\n# HELP a_time_seconds Time.\n\
                    # TYPE a_time_seconds gauge\na_time_seconds 0.5\n";
        assert_eq!(to_text(openmetrics), text);
    }
}
