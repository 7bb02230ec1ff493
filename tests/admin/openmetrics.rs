//! The text that Prometheus reads, read by the letter of the standard: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::collections::{BTreeMap, BTreeSet};

/// All that a text says, by families in their order.
#[derive(Debug)]
pub struct Metrics(Vec<Family>);

/// What has one name.
#[derive(Debug, Default)]
pub struct Family {
    /// Without what follows it in samples, as `_total`.
    pub name: String,
    pub kind: String,
    pub unit: Option<String>,
    pub help: Option<String>,
    pub samples: Vec<Sample>,
}

/// A series, and its value.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Sample {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

impl Metrics {
    pub fn families(&self) -> &[Family] {
        &self.0
    }

    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter().flat_map(|family| &family.samples)
    }

    /// The value of the series with this name and exactly these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let is = |sample: &&Sample| {
            sample.name == name
                && sample.labels.len() == labels.len()
                && labels.iter().all(|(key, value)| sample.label(key) == Some(value))
        };
        let found = self.samples().find(is);
        found
            .unwrap_or_else(|| panic!("there is no {name} with {labels:?} in {self:#?}"))
            .value
    }

    /// The names of all series, with their labels.
    pub fn series(&self) -> BTreeSet<(String, BTreeMap<String, String>)> {
        let series = |sample: &Sample| (sample.name.clone(), sample.labels.clone());
        self.samples().map(series).collect()
    }
}

/// Reads a text, and fails on anything that is not as it should be.
pub fn parse(text: &str) -> Metrics {
    let body = text.strip_suffix("# EOF\n").expect("it ends in an EOF");
    assert!(!body.contains("# EOF"), "there is more after the EOF");
    let mut families: Vec<Family> = Vec::new();
    for line in body.lines() {
        assert!(
            !line.is_empty() && line == line.trim() && !line.contains('\r'),
            "{line:?} has blanks around it"
        );
        if let Some(said) = line.strip_prefix("# ") {
            let (what, said) = said.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            let (name, value) = said.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            assert!(is_name(name, true), "{line:?}");
            let family = match families.last_mut() {
                Some(last) if last.name == name => last,
                _ => {
                    // All of a family is in one place.
                    assert!(
                        families.iter().all(|family| family.name != name),
                        "{line:?} comes late"
                    );
                    families.push(Family {
                        name: name.to_owned(),
                        ..Family::default()
                    });
                    families.last_mut().unwrap()
                }
            };
            assert!(family.samples.is_empty(), "{line:?} comes after samples");
            match what {
                "TYPE" => {
                    assert_eq!(family.kind, "", "{line:?} is said twice");
                    assert!(
                        ["counter", "gauge", "histogram", "info"].contains(&value),
                        "{line:?}"
                    );
                    value.clone_into(&mut family.kind);
                }
                "UNIT" => {
                    assert_eq!(
                        family.unit.replace(value.to_owned()),
                        None,
                        "{line:?} is said twice"
                    );
                    assert!(
                        name.ends_with(&format!("_{value}")),
                        "{line:?}: the name ends in another"
                    );
                }
                "HELP" => {
                    assert_eq!(
                        family.help.replace(value.to_owned()),
                        None,
                        "{line:?} is said twice"
                    );
                    // No backslash but that of an escape.
                    unescape(value);
                }
                _ => panic!("{line:?} is no line of metadata"),
            }
        } else {
            assert!(!line.starts_with('#'), "{line:?} is no line of metadata");
            let sample = sample(line);
            let family = families
                .last_mut()
                .unwrap_or_else(|| panic!("{line:?} has no family"));
            let after = sample
                .name
                .strip_prefix(&family.name)
                .unwrap_or_else(|| panic!("{line:?} is not of {}", family.name));
            let may: &[&str] = match family.kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                other => panic!("{line:?} has no type: {other:?}"),
            };
            assert!(may.contains(&after), "{line:?} is not what a {} has", family.kind);
            let bounded = sample.labels.contains_key("le");
            assert_eq!(bounded, after == "_bucket", "{line:?}");
            family.samples.push(sample);
        }
    }
    for family in &families {
        assert!(
            !family.kind.is_empty() && family.help.is_some(),
            "{} says too little",
            family.name
        );
        check(family);
    }
    let metrics = Metrics(families);
    assert_eq!(
        metrics.series().len(),
        metrics.samples().count(),
        "a series is there twice:\n{text}"
    );
    metrics
}

/// What the samples of a histogram with the same labels say.
#[derive(Debug, Default)]
struct Histogram {
    /// Upper bounds, and what lies below each.
    buckets: Vec<(f64, f64)>,
    sum: Option<f64>,
    count: Option<f64>,
}

/// What has to be true of the values of a family.
fn check(family: &Family) {
    for sample in &family.samples {
        let value = sample.value;
        match family.kind.as_str() {
            "counter" | "histogram" => assert!(value >= 0.0 && value.is_finite(), "{sample:?}"),
            "info" => assert_eq!(value, 1.0, "{sample:?}"),
            _ => assert!(!value.is_nan(), "{sample:?}"),
        }
    }
    if family.kind != "histogram" {
        return;
    }
    let mut histograms: BTreeMap<_, Histogram> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le");
        let histogram = histograms.entry(labels).or_default();
        match (bound, sample.name.ends_with("_sum")) {
            (Some(bound), _) => histogram.buckets.push((number(&bound), sample.value)),
            (None, true) => histogram.sum = Some(sample.value),
            (None, false) => histogram.count = Some(sample.value),
        }
    }
    for (labels, Histogram { buckets, sum, count }) in histograms {
        let rises = |(one, other): (&(f64, f64), &(f64, f64))| one.0 < other.0 && one.1 <= other.1;
        assert!(
            buckets.iter().zip(&buckets[1..]).all(rises),
            "{} {labels:?} does not add up: {buckets:?}",
            family.name
        );
        let (bound, most) = *buckets.last().unwrap();
        assert_eq!(
            (bound, Some(most)),
            (f64::INFINITY, count),
            "{} {labels:?}",
            family.name
        );
        assert!(sum.is_some(), "{} {labels:?} has no sum", family.name);
        assert!(
            buckets.iter().all(|(_, value)| value.fract() == 0.0),
            "{buckets:?}"
        );
    }
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line:?}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name, true), "{line:?}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line:?}"));
            assert!(is_name(label, false), "{line:?}");
            let mut escaped = false;
            let end = after.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let end = end.unwrap_or_else(|| panic!("{line:?}"));
            let value = unescape(&after[..end]);
            assert_eq!(labels.insert(label.to_owned(), value), None, "{line:?}");
            rest = &after[end + 1..];
            match rest.split_at(1) {
                (",", after) => rest = after,
                ("}", after) => {
                    rest = after;
                    break;
                }
                _ => panic!("{line:?}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line:?}"));
    Sample {
        name: name.to_owned(),
        labels,
        value: number(value),
    }
}

fn is_name(text: &str, colons: bool) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || colons && c == ':')
}

fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    let mut plain = String::new();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(escaped @ ('\\' | '"')) => escaped,
                other => panic!("{text:?} has an escape of {other:?}"),
            },
            c => c,
        });
    }
    plain
}

fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        // What Rust takes beside that is no number of the standard.
        _ if text.contains(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c)) => {
            panic!("{text:?} is no number")
        }
        _ => text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}")),
    }
}

#[test]
fn what_is_wrong_is_found() {
    let good = "# HELP a_seconds A.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                a_seconds_sum{x=\"y\\\"\"} 0.5\na_seconds_count{x=\"y\\\"\"} 2\n\
                a_seconds_bucket{le=\"0.5\",x=\"y\\\"\"} 1\na_seconds_bucket{le=\"+Inf\",x=\"y\\\"\"} 2\n\
                # HELP b B.\n# TYPE b counter\nb_total 3\n# EOF\n";
    let metrics = parse(good);
    assert_eq!(metrics.value("a_seconds_count", &[("x", "y\"")]), 2.0);
    assert_eq!(metrics.families()[0].unit.as_deref(), Some("seconds"));
    for (from, to) in [
        ("# EOF\n", ""),
        ("# EOF\n", "# EOF\n\n"),
        ("# EOF\n", "# EOF\nb_total 3\n# EOF\n"),
        ("b_total", "b"),
        ("b_total", "c_total"),
        ("b_total 3\n", "b_total 3\nb_total 4\n"),
        ("b_total 3\n", "b_total  3\n"),
        ("b_total 3\n", "b_total 3 \n"),
        ("b_total 3\n", "\nb_total 3\n"),
        ("b_total 3", "b_total -3"),
        ("b_total 3", "b_total NaN"),
        ("b_total 3", "b_total 0x3"),
        ("b_total 3", "b_total"),
        ("b_total 3\n", "b_total 3\n# HELP a_seconds A.\n"),
        ("b_total 3\n", "b_total 3\n# UNIT b bytes\n"),
        ("# TYPE b counter\n", ""),
        ("# TYPE b counter\n", "# TYPE b sum\n"),
        ("# HELP b B.\n", "#HELP b B.\n"),
        ("# UNIT a_seconds seconds", "# UNIT a_seconds bytes"),
        ("_count{x=\"y\\\"\"} 2", "_count{x=\"y\\\"\"} 3"),
        ("le=\"0.5\",x=\"y\\\"\"} 1", "le=\"0.5\",x=\"y\\\"\"} 3"),
        ("le=\"0.5\"", "le=\"half\""),
        ("le=\"+Inf\"", "le=\"1\""),
        ("a_seconds_sum{x=\"y\\\"\"} 0.5\n", ""),
        ("x=\"y\\\"\"} 0.5", "x=\"y\"\"} 0.5"),
        ("x=\"y\\\"\"} 0.5", "1=\"y\\\"\"} 0.5"),
        ("x=\"y\\\"\"} 0.5", "x=\"y\\\"\" 0.5"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from:?}");
        let parsed = std::panic::catch_unwind(|| parse(&bad));
        assert!(parsed.is_err(), "{from:?} is {to:?} and nobody minds");
    }
}
