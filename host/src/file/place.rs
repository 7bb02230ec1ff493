//! Where the keys of a file are.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A step of the path to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// The places of the keys in the text of a file, which is parsed once.
#[derive(Debug)]
pub(super) struct Places<'a> {
    pub(super) text: &'a str,
    /// `None` if the text is no TOML.
    root: Option<Spanned<DeTable<'a>>>,
}

impl<'a> Places<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let root = DeTable::parse(text).ok();
        Self { text, root }
    }

    /// Finds `key`, such as `service[0].limits.max-memory`. Returns the key by which the file sets
    /// it, and its bytes.
    ///
    /// A service takes settings from `defaults`, and a listener from its service. If the file does
    /// not set the key at all, this returns the bytes of the nearest table around it.
    pub(super) fn find(&self, key: &str) -> (String, Range<usize>) {
        let Some(root) = &self.root else {
            return (key.to_owned(), 0..0);
        };
        for key in sources(key) {
            if let (span, true) = walk(root, &key) {
                return (key, span);
            }
        }
        (key.to_owned(), walk(root, key).0)
    }

    /// Whether the text sets `key` itself.
    pub(super) fn sets(&self, key: &str) -> bool {
        self.root.as_ref().is_some_and(|root| walk(root, key).1)
    }
}

/// The number of the service that a path leads to, or into.
pub(super) fn service_of(path: &[Step<'_>]) -> Option<usize> {
    match path {
        [Step::Key("service"), Step::Index(number), ..] => Some(*number),
        _ => None,
    }
}

/// The keys that can set `key`, in the order in which they apply.
fn sources(key: &str) -> Vec<String> {
    let mut sources = vec![key.to_owned()];
    let of_service = |key: &str| {
        let (service, rest) = key.split_once('.')?;
        service.starts_with("service[").then(|| rest.to_owned())
    };
    if let Some(rest) = of_service(key) {
        let of_listener = rest
            .split_once('.')
            .filter(|(listener, _)| listener.starts_with("listen["));
        let rest = match of_listener {
            None => rest.clone(),
            Some((_, rest)) => {
                let (service, _) = key.split_once('.').unwrap_or_default();
                sources.push(format!("{service}.{rest}"));
                rest.to_owned()
            }
        };
        sources.push(format!("defaults.{rest}"));
    }
    sources
}

/// The bytes of the last value on the path to `key`, and whether that is the whole path.
fn walk(root: &Spanned<DeTable<'_>>, key: &str) -> (Range<usize>, bool) {
    let mut span = 0..0;
    let mut table = Some(root.get_ref());
    let mut value: Option<&DeValue<'_>> = None;
    for step in steps(key) {
        let found = match step {
            Step::Key(key) => table
                .and_then(|table| table.get_key_value(key))
                // What is behind the name of a table is all that it holds.
                .map(|(key, value)| (key.span(), value)),
            Step::Index(index) => value
                .and_then(|value| value.as_array()?.get(index))
                .map(|value| (value.span(), value)),
        };
        let Some((at, found)) = found else {
            return (span, false);
        };
        span = at;
        table = found.get_ref().as_table();
        value = Some(found.get_ref());
    }
    (span, true)
}

/// The path that a key such as `service[0].name` stands for.
pub(super) fn steps(key: &str) -> impl Iterator<Item = Step<'_>> {
    // The name of a variable can have any character.
    let (path, variable) = match key.split_once(".grants.env.") {
        Some((table, name)) => (table, Some(["grants", "env", name])),
        None => (key, None),
    };
    let parts = path.split('.').flat_map(|part| {
        let (name, indices) = part.split_once('[').unwrap_or((part, ""));
        let indices = indices
            .split('[')
            .filter_map(|index| index.strip_suffix(']')?.parse().ok());
        std::iter::once(Step::Key(name)).chain(indices.map(Step::Index))
    });
    parts.chain(variable.into_iter().flatten().map(Step::Key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"threads = 1
[defaults]
watch = true
grants = { dirs = ["a::/a"] }
[defaults.socket]
mode = "0600"

[[service]]
name = "one"
listen = [
  "127.0.0.1:1",
  { address = "127.0.0.1:2", socket = { owner = "me" } },
]
[service.limits]
max-memory = "1MiB"
[service.grants.env]
A = "a"
"B.C[0]=D" = "b"

[[service]]
name = "two"
socket.backlog = 7
[[service.listen]]
address = "127.0.0.1:3"
tls = { certificate = "a", key = "b" }
"#;

    #[test]
    fn a_key_is_found_where_the_file_sets_it() {
        let places = Places::of(TEXT);
        for (key, expected, line) in [
            ("threads", "threads", 1),
            ("service[0].watch", "defaults.watch", 3),
            ("service[1].grants.dirs[0]", "defaults.grants.dirs[0]", 4),
            ("service[0].listen[0]", "service[0].listen[0]", 11),
            (
                "service[0].listen[1].socket.owner",
                "service[0].listen[1].socket.owner",
                12,
            ),
            ("service[0].listen[1].socket.mode", "defaults.socket.mode", 6),
            (
                "service[1].listen[0].socket.backlog",
                "service[1].socket.backlog",
                22,
            ),
            ("service[0].limits.max-memory", "service[0].limits.max-memory", 15),
            ("service[1].listen[0].tls.key", "service[1].listen[0].tls.key", 25),
            // They are not set: the nearest table has the line.
            (
                "service[1].listen[0].tls.client-ca",
                "service[1].listen[0].tls.client-ca",
                25,
            ),
            ("service[0].limits.max-rate", "service[0].limits.max-rate", 14),
            ("service[1].gate", "service[1].gate", 20),
            (
                "service[0].grants.env.B.C[0]=D",
                "service[0].grants.env.B.C[0]=D",
                18,
            ),
            ("admin.listen", "admin.listen", 1),
        ] {
            let (found, span) = places.find(key);
            let at = 1 + TEXT[..span.start].matches('\n').count();
            assert_eq!((found.as_str(), at), (expected, line), "{key}");
        }
    }
}
