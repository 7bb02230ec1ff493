//! What is wrong with a file, and where.

use std::fmt;
use std::ops::Range;

use toml::de::DeValue;

use super::known::Known;
use super::place::{Places, Step};
use crate::values;

/// How alike two words have to be for the one to be suggested for the other, from 0 to 1: if few
/// letters differ, and otherwise.
const ALIKE: f64 = 0.75;
const VERY_ALIKE: f64 = 0.9;

/// What the parser of TOML says of a key that a table has twice.
const DUPLICATE: &str = "duplicate key";

/// Problems with a file that are shown at most.
pub(super) const MAX_SHOWN: usize = 100;

/// What is wrong with a file: line, key, and what was found, what was expected and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    line: usize,
    key: String,
    message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, key, message } = self;
        if key.is_empty() {
            write!(f, "{line}: {message}")
        } else {
            write!(f, "{line}: {key}: {message}")
        }
    }
}

/// All that is wrong with a file, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let before = if index == 0 { "" } else { "; " };
            write!(f, "{before}{problem}")?;
        }
        Ok(())
    }
}

impl Problems {
    /// Sorts problems by their lines. There can be `further` ones, which are not shown.
    pub(super) fn sorted(mut problems: Vec<Problem>, further: bool) -> Self {
        problems.sort_by_key(|problem| problem.line);
        if further {
            problems.push(Problem::further(&problems));
        }
        Self(problems)
    }
}

impl Problem {
    /// A problem with `key`, such as `service[0].limits.max-memory`, of a file with these `places`.
    pub(super) fn of(places: &Places<'_>, key: &str, message: String) -> Self {
        let (key, span) = places.find(key);
        Self::at(places.text, span, key, message)
    }

    /// A problem with the key at `span` of `text`.
    fn at(text: &str, span: Range<usize>, key: String, message: String) -> Self {
        let before = text.get(..span.start.min(text.len())).unwrap_or(text);
        let key = match key.split_once("env.") {
            Some((table, name)) => format!("{table}env.{}", before_value(name)),
            None => key,
        };
        Self {
            line: 1 + before.matches('\n').count(),
            key,
            message,
        }
    }

    /// There are more problems than the `shown` ones. This one comes after them.
    pub(super) fn further(shown: &[Self]) -> Self {
        Self {
            line: shown.iter().map(|problem| problem.line).max().unwrap_or(1),
            key: String::new(),
            message: "further errors are not shown; correct those above first".to_owned(),
        }
    }

    /// The file is no TOML.
    pub(super) fn syntax(text: &str, error: &toml::de::Error) -> Self {
        let span = error.span().unwrap_or_default();
        let message = in_one_line(error.message());
        // The parser names neither the key nor its table.
        let message = match text.get(span.clone()) {
            Some(key) if message == DUPLICATE => {
                let name = in_one_line(before_value(key.trim_matches(['"', '\''])));
                format!("{DUPLICATE} {}; remove one", values::quoted(&name, "(not shown)"))
            }
            _ => message,
        };
        Self::at(text, span, String::new(), message)
    }

    /// The value at `path`, whose bytes are `span`, is a date or a time, which no key takes.
    pub(super) fn date(text: &str, path: &[Step<'_>], span: Range<usize>) -> Self {
        let expected = match Known::new().words(path) {
            Some(words) => format!("expected one of {}", list(&words)),
            None => "which no key takes; put text in quotes".to_owned(),
        };
        let message = format!("invalid type: date or time, {expected}");
        Self::at(text, span, keys_of(path).join("."), message)
    }

    /// A key is unknown, missing, or has a `value` that is refused. `path` leads to the value, or
    /// to the table of the key.
    pub(super) fn content(
        text: &str,
        path: &[Step<'_>],
        value: Option<&DeValue<'_>>,
        error: &toml::de::Error,
    ) -> Self {
        let found = value.map_or("nothing", type_of);
        let keys = keys_of(path);
        let message = match unread(error.message()) {
            Unread::Key(word) => match Known::new().place_of(word, path) {
                Some(place) => place,
                None => unknown_word("key", word, &known(error.message())),
            },
            Unread::Value(word) => unknown_word("value", word, &known(error.message())),
            Unread::Missing(_) | Unread::Refused => match Known::new().words(path) {
                // What the parser says of such a value has no words.
                Some(words) => format!("invalid type: {found}, expected one of {}", list(&words)),
                None => {
                    let message = error.message().replacen("missing field", "missing key", 1);
                    in_one_line(&in_words_of_toml(
                        &message,
                        &keys,
                        Known::new().text_in_list(path),
                    ))
                }
            },
        };
        Self::at(text, error.span().unwrap_or_default(), keys.join("."), message)
    }
}

/// Returns the name of a variable up to `=`. What follows can be its value.
fn before_value(name: &str) -> &str {
    name.split('=').next().unwrap_or_default()
}

/// The keys on a path, each with the indices that follow it.
fn keys_of(path: &[Step<'_>]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for step in path {
        match (step, keys.last_mut()) {
            (Step::Index(index), Some(last)) => *last = format!("{last}[{index}]"),
            (Step::Index(index), None) => keys.push(format!("[{index}]")),
            (Step::Key(key), _) => keys.push((*key).to_owned()),
        }
    }
    keys
}

/// The type of a value, in the words of TOML.
fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "string",
        DeValue::Integer(_) => "integer",
        DeValue::Float(_) => "float",
        DeValue::Boolean(_) => "boolean",
        DeValue::Datetime(_) => "date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// What serde says of something that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread<'a> {
    /// An unknown key.
    Key(&'a str),
    /// An unknown value, where serde lists the known ones.
    Value(&'a str),
    /// A table lacks this key.
    Missing(&'a str),
    /// A value is refused.
    Refused,
}

/// Parses serde's message about something that cannot be read.
pub(super) fn unread(message: &str) -> Unread<'_> {
    let word = message.split('`').nth(1).unwrap_or_default();
    if message.starts_with("unknown field `") {
        Unread::Key(word)
    } else if message.starts_with("unknown variant `") {
        Unread::Value(word)
    } else if message.starts_with("missing field `") {
        Unread::Missing(word)
    } else {
        Unread::Refused
    }
}

/// The words that serde's message about an unknown key or value lists.
fn known(message: &str) -> Vec<&str> {
    message.split('`').skip(3).step_by(2).collect()
}

/// Rewrites serde's message about a value of the wrong type in the words of TOML. `path` leads to
/// the value. If that is a list of texts, `text` is an example of one.
///
/// The message names the type that was found and not the value: any key can have been given a
/// secret, such as the URL of a database in place of a list of destinations.
fn in_words_of_toml(message: &str, path: &[String], text: Option<&str>) -> String {
    let types = message.strip_prefix("invalid type: ");
    // The value can contain any text.
    let Some((found, expected)) = types.and_then(|types| types.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let found = found.split(['`', '"']).next().unwrap_or_default().trim_end();
    let of_toml = |word: &str| match word {
        "a sequence" | "sequence" => "a list".to_owned(),
        "a map" | "map" => "a table".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "floating point" => "float".to_owned(),
        "path string" => "a path in quotes".to_owned(),
        word if word.starts_with("struct ") => "a table".to_owned(),
        word => word.to_owned(),
    };
    let names = || -> Vec<_> {
        let name = |part: &'_ String| part.split('[').next().unwrap_or_default().to_owned();
        path.iter().map(name).collect()
    };
    let advice = match (found, expected) {
        (found, "a sequence" | "a table") if found != "map" && names() == ["service"] => {
            "; write [[service]]".to_owned()
        }
        ("sequence", "a table") if path.last().is_some_and(|last| last.ends_with(']')) => {
            "; write { KEY = VALUE }".to_owned()
        }
        ("sequence", "a table") => {
            let names = names();
            let last = names.last().map(String::as_str).unwrap_or_default();
            format!("; write [{}] or {last} = {{ KEY = VALUE }}", names.join("."))
        }
        ("map", "a sequence") => match text {
            Some(text) => format!("; write a list of texts, such as [\"{text}\"]"),
            // A table with single brackets does not begin a list of tables.
            None => format!("; write [[{0}]] instead of [{0}]", names().join(".")),
        },
        ("string", "a sequence") => "; write [VALUE]".to_owned(),
        _ => String::new(),
    };
    format!(
        "invalid type: {}, expected {}{advice}",
        of_toml(found),
        of_toml(expected)
    )
}

fn unknown_word(kind: &str, found: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|known| (strsim::jaro_winkler(found, known), known))
        .filter(|(alike, known)| *alike >= VERY_ALIKE || *alike >= ALIKE && few_slips(found, known))
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    let found = values::quoted(found, "(not shown)");
    match near {
        Some((_, near)) => format!("unknown {kind} {found}; did you mean `{near}`?"),
        None => format!("unknown {kind} {found}; expected one of {}", list(known)),
    }
}

/// Whether at most a third of the letters of a word differ from those of another.
fn few_slips(found: &str, known: &str) -> bool {
    strsim::osa_distance(found, known) <= known.len() / 3
}

fn list(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

fn in_one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
