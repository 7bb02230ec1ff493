//! The keys and words of the schema, for messages about a key or a value that is not among them.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::keys::File;
use super::place::Step;

/// The schema of the file.
pub(super) struct Known(Value);

/// The names of the tables that lead to a table, such as `service`, `listen`; the root has none.
type Names<'a> = Vec<&'a str>;

impl Known {
    /// The schema, which takes too long to make for each message.
    pub(super) fn new() -> &'static Self {
        static KNOWN: LazyLock<Known> = LazyLock::new(|| Known(schemars::schema_for!(File).to_value()));
        &KNOWN
    }

    /// Says where `key` belongs, which the table at `path` does not have: in the tables that have
    /// it and are nearest. Returns `None` if no table has it.
    pub(super) fn place_of(&self, key: &str, path: &[Step<'_>]) -> Option<String> {
        let here = names(path);
        let mut tables = Vec::new();
        self.add_tables(&self.0, &mut Vec::new(), &mut tables);
        let with_key = tables
            .iter()
            .filter_map(|(names, keys)| Some((distance(&here, names), names, keys.get(key)?)));
        let with_key: Vec<_> = with_key.collect();
        let nearest = with_key.iter().map(|(distance, ..)| *distance).min()?;
        let mut places: Vec<_> = with_key
            .iter()
            .filter(|(distance, ..)| *distance == nearest)
            .map(|(_, names, value)| match names.as_slice() {
                [] => self.at_the_top(key, value),
                names => format!("in {}", relative(&here, names)),
            })
            .collect();
        places.dedup();
        Some(format!("`{key}` belongs {}", places.join(" or ")))
    }

    /// The words that the value at `path` is one of; `None` if it is something else than a word.
    pub(super) fn words(&self, path: &[Step<'_>]) -> Option<Vec<&str>> {
        let values = self.at(path);
        let words = values.iter().find_map(|value| value.get("enum")?.as_array())?;
        Some(words.iter().filter_map(Value::as_str).collect())
    }

    /// An example of the texts in the list at `path`; `None` if its items can be tables.
    pub(super) fn text_in_list(&self, path: &[Step<'_>]) -> Option<&str> {
        let items = self.at(&[path, &[Step::Index(0)]].concat());
        if items.is_empty() || items.iter().any(|item| item.get("properties").is_some()) {
            return None;
        }
        let example = items
            .iter()
            .find_map(|item| item.get("examples")?.get(0)?.as_str());
        Some(example.unwrap_or("TEXT"))
    }

    /// The schemas that the value at `path` may match.
    fn at(&self, path: &[Step<'_>]) -> Vec<&Value> {
        let mut values = self.forms(&self.0);
        for step in path {
            let inner: Vec<_> = values
                .iter()
                .filter_map(|value| match step {
                    Step::Key(key) => value.get("properties")?.get(*key),
                    Step::Index(_) => value.get("items"),
                })
                .collect();
            values = inner.into_iter().flat_map(|value| self.forms(value)).collect();
        }
        values
    }

    fn at_the_top(&self, key: &str, value: &Value) -> String {
        let forms = self.forms(value);
        if forms.iter().any(|form| form.get("properties").is_some()) {
            format!("at the top of the file, as [{key}]")
        } else if forms.iter().any(|form| form.get("items").is_some()) {
            format!("at the top of the file, as [[{key}]]")
        } else {
            "at the top of the file, before the first table".to_owned()
        }
    }

    /// Adds each table at or below a value to `tables`, with its keys.
    fn add_tables<'a>(
        &'a self,
        value: &'a Value,
        names: &mut Names<'a>,
        tables: &mut Vec<(Names<'a>, &'a Map<String, Value>)>,
    ) {
        for form in self.forms(value) {
            if let Some(keys) = form.get("properties").and_then(Value::as_object) {
                tables.push((names.clone(), keys));
                for (key, value) in keys {
                    names.push(key);
                    self.add_tables(value, names, tables);
                    names.pop();
                }
            }
            if let Some(items) = form.get("items") {
                self.add_tables(items, names, tables);
            }
        }
    }

    /// The schemas that a value may match.
    fn forms<'a>(&'a self, value: &'a Value) -> Vec<&'a Value> {
        let reference = value.get("$ref").and_then(Value::as_str);
        let target = reference.and_then(|reference| self.0.pointer(reference.trim_start_matches('#')));
        let alternatives = ["anyOf", "oneOf"]
            .into_iter()
            .filter_map(|key| value.get(key)?.as_array())
            .flatten()
            .chain(target);
        let mut forms = vec![value];
        forms.extend(alternatives.flat_map(|value| self.forms(value)));
        forms
    }
}

fn names<'a>(path: &[Step<'a>]) -> Names<'a> {
    let names = path.iter().filter_map(|step| match step {
        Step::Key(key) => Some(*key),
        Step::Index(_) => None,
    });
    names.collect()
}

/// Returns the number of steps between two tables, up to a common parent and down.
fn distance(one: &[&str], other: &[&str]) -> usize {
    let common = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    one.len() + other.len() - 2 * common
}

/// Names a table as it is seen from the table `here`.
fn relative(here: &[&str], names: &[&str]) -> String {
    if let Some(below) = names.strip_prefix(here)
        && !here.is_empty()
    {
        return format!("`{}`", below.join("."));
    }
    let (first, rest) = names.split_first().unwrap_or((&"", &[]));
    let first = if *first == "service" {
        "[[service]]".to_owned()
    } else {
        format!("[{first}]")
    };
    if rest.is_empty() {
        first
    } else {
        format!("`{}` of {first}", rest.join("."))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The header of a table, alone or as an entry of a list of tables.
    fn header(names: &[&str]) -> String {
        match names {
            [] => String::new(),
            ["service"] => "[[service]]".to_owned(),
            ["service", "listen", rest @ ..] => {
                let rest = if *rest == ["tls", "more"] {
                    "[[service.listen.tls.more]]".to_owned()
                } else if rest.is_empty() {
                    String::new()
                } else {
                    format!("[service.listen.{}]", rest.join("."))
                };
                format!("[[service]]\n[[service.listen]]\n{rest}")
            }
            names => {
                let service = if names[0] == "service" {
                    "[[service]]\n"
                } else {
                    ""
                };
                format!("{service}[{}]", names.join("."))
            }
        }
    }

    /// Whether a schema is one of a value that can be a number.
    fn takes_numbers(schema: &Value) -> bool {
        let types = schema.get("type");
        ["integer", "number"].iter().any(|number| {
            types.is_some_and(|types| {
                types == number
                    || types
                        .as_array()
                        .is_some_and(|types| types.iter().any(|one| one == number))
            })
        })
    }

    #[test]
    fn no_key_shows_a_value_of_the_wrong_type_or_one_that_may_be_a_secret() {
        let known = Known::new();
        let mut tables = Vec::new();
        known.add_tables(&known.0, &mut Vec::new(), &mut tables);
        let texts = [
            "postgres://u:s3cr3t@h:5432/db",
            "https://h/a?key=s3cr3t",
            "A7qEjRWs3cr3t42xs3cr3t",
        ]
        .map(|text| format!("{text:?}"));
        let numbers = ["5323753237532375".to_owned(), "53237.5".to_owned()];
        let mut refused = 0;
        for (here, own) in &tables {
            for (key, schema) in *own {
                let takes_numbers = known.forms(schema).into_iter().any(takes_numbers);
                let scalars: Vec<_> = numbers
                    .iter()
                    .filter(|_| !takes_numbers)
                    .chain(&texts)
                    .cloned()
                    .collect();
                let all: Vec<_> = numbers.iter().chain(&texts).cloned().collect();
                let below = all.iter().flat_map(|value| {
                    [
                        format!("[{value}]"),
                        format!("[[{value}]]"),
                        format!("{{ x = {value} }}"),
                        format!("[{{ x = {value} }}]"),
                        format!("[\"x\", {{ x = [{value}] }}]"),
                    ]
                });
                for value in scalars.into_iter().chain(below) {
                    let text = format!("{}\n{key} = {value}\n", header(here));
                    let Err(problems) = crate::file::parse(&text, Path::new("")) else {
                        continue;
                    };
                    let problems = problems.to_string();
                    assert!(
                        !problems.contains("s3cr3t") && !problems.contains("53237"),
                        "{text}\n{problems}"
                    );
                    refused += 1;
                }
            }
        }
        assert!(refused > 1000, "{refused}");
    }

    #[test]
    fn every_key_in_the_wrong_table_is_told_where_it_belongs() {
        let known = Known::new();
        let mut tables = Vec::new();
        known.add_tables(&known.0, &mut Vec::new(), &mut tables);
        let keys: BTreeSet<_> = tables.iter().flat_map(|(_, keys)| keys.keys()).collect();
        assert!(keys.len() > 50, "{keys:?}");
        let mut wrong = 0;
        for (here, own) in &tables {
            let table = header(here);
            for key in keys.iter().filter(|key| !own.contains_key(**key)) {
                let text = format!("{table}\n{key} = 1\n");
                let problems = crate::file::parse(&text, Path::new("")).unwrap_err().to_string();
                assert!(
                    problems.contains(&format!("`{key}` belongs ")),
                    "{text}\n{problems}"
                );
                wrong += 1;
            }
        }
        assert!(wrong > 500, "{wrong}");
    }

    #[test]
    fn a_table_is_named_as_it_is_seen_from_another() {
        let known = Known::new();
        let service = [Step::Key("service"), Step::Index(0)];
        let limits = [Step::Key("service"), Step::Index(0), Step::Key("limits")];
        for (path, key, place) in [
            (&service[..], "max-connections", "in `limits`"),
            (&service, "address", "in `listen`"),
            (&service, "certificate", "in `listen.tls`"),
            (
                &service,
                "timeout",
                "in `listen.proxy-protocol` or in `listen.tls`",
            ),
            (&service, "env", "in `grants`"),
            (
                &service,
                "threads",
                "at the top of the file, before the first table",
            ),
            (&service, "admin", "at the top of the file, as [admin]"),
            (&service, "token", "in [admin]"),
            (&limits, "service", "at the top of the file, as [[service]]"),
            (&limits, "gate", "in [[service]]"),
            (&limits, "allow", "in `access` of [[service]]"),
            (&[Step::Key("defaults")], "max-rate", "in `limits`"),
            (&[], "listen", "in [admin] or in [[service]]"),
        ] {
            let expected = format!("`{key}` belongs {place}");
            assert_eq!(known.place_of(key, path), Some(expected));
        }
        assert_eq!(known.place_of("path", &service), None);
    }

    #[test]
    fn a_value_that_is_a_word_has_its_words() {
        let known = Known::new();
        let path = [Step::Key("service"), Step::Index(0), Step::Key("log-connections")];
        assert_eq!(known.words(&path), Some(vec!["all", "failed", "none"]));
        assert_eq!(known.words(&path[..2]), None);
        assert_eq!(known.words(&[Step::Key("threads")]), None);
    }
}
