//! From the text of a file to its tables, with every key and value that is refused.

use std::collections::BTreeSet;
use std::ops::Range;

use serde_path_to_error::{Path, Segment};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::keys::File;
use super::place::{Step, service_of};
use super::problem::{MAX_SHOWN, Problem, Unread, unread};

/// The tables of a file, as far as they can be read.
pub(super) struct Tables {
    /// The tables without what `problems` are about; `None` if that leaves no file.
    pub(super) file: Option<File>,
    /// The number in the text of each service of `file`.
    pub(super) numbers: Vec<usize>,
    pub(super) problems: Vec<Problem>,
    /// There are more problems than that.
    pub(super) further: bool,
    /// The numbers in the text of the services that lack something.
    partial: BTreeSet<usize>,
    /// All services lack something that `defaults` sets.
    lack_defaults: bool,
}

impl Tables {
    /// Reads the tables of `text`. After each problem, this removes the key or the item that it is
    /// about, and reads the rest again.
    pub(super) fn read(text: &str) -> Result<Self, Problem> {
        let whole = DeTable::parse(text).map_err(|error| Problem::syntax(text, &error))?;
        let mut rest = whole.clone();
        let mut tables = Self {
            file: None,
            numbers: Vec::new(),
            problems: Vec::new(),
            further: false,
            partial: BTreeSet::new(),
            lack_defaults: false,
        };
        tables.remove_dates(text, whole.get_ref(), rest.get_mut());
        // Tables with a key that is unknown, by their bytes: it can be a missing one that is misspelt.
        let mut misspelt = Vec::new();
        loop {
            let error = match serde_path_to_error::deserialize(Deserializer::from(rest.clone())) {
                Ok(file) => {
                    tables.file = Some(file);
                    break;
                }
                Err(error) => error,
            };
            let mut path = steps(error.path());
            let unread = unread(error.inner().message());
            if let Unread::Key(key) = unread {
                path.pop_if(|last| *last == Step::Key(key));
            }
            let original = original(whole.get_ref(), rest.get_ref(), &path);
            tables.note(&original);
            let span = value_at(whole.get_ref(), &original).map(Spanned::span);
            let is_known = match unread {
                Unread::Missing(key) => {
                    let path = [&original[..], &[Step::Key(key)]].concat();
                    misspelt.contains(&span) || value_at(whole.get_ref(), &path).is_some()
                }
                Unread::Key(_) | Unread::Value(_) | Unread::Refused => false,
            };
            // Each takes another pass over the file.
            if !is_known && tables.problems.len() >= MAX_SHOWN {
                tables.further = true;
                break;
            }
            if !is_known {
                let value = value_at(whole.get_ref(), &original).map(Spanned::get_ref);
                let problem = Problem::content(text, &original, value, error.inner());
                tables.problems.push(problem);
            }
            if let Unread::Key(key) = unread {
                misspelt.push(span);
                path.push(Step::Key(key));
            }
            if !remove(rest.get_mut(), &path) {
                break;
            }
        }
        tables.numbers = (0..)
            .map_while(|index| {
                let path = [Step::Key("service"), Step::Index(index)];
                value_at(rest.get_ref(), &path)?;
                service_of(&original(whole.get_ref(), rest.get_ref(), &path))
            })
            .collect();
        Ok(tables)
    }

    /// Removes dates and times, which serde would show as tables.
    fn remove_dates(&mut self, text: &str, whole: &DeTable<'_>, rest: &mut DeTable<'_>) {
        let mut dates = Vec::new();
        for (key, value) in whole {
            add_dates(value, &mut vec![Step::Key(key.get_ref())], &mut dates);
        }
        // From the end of each list, so that the numbers of its other items stay.
        for (path, span) in dates.into_iter().rev() {
            self.note(&path);
            self.problems.push(Problem::date(text, &path, span));
            remove(rest, &path);
        }
    }

    /// Whether a service lacks a value that the text gives it, so that checks of the service as a
    /// whole could be wrong.
    pub(super) fn is_partial(&self, number: usize) -> bool {
        self.lack_defaults || self.partial.contains(&number)
    }

    /// Whether all services of the text are complete.
    pub(super) fn are_whole(&self) -> bool {
        !self.lack_defaults && self.partial.is_empty()
    }

    /// Notes which services lack the value at `path`.
    fn note(&mut self, path: &[Step<'_>]) {
        self.partial.extend(service_of(path));
        self.lack_defaults |= path.first() == Some(&Step::Key("defaults"));
    }
}

/// Adds the paths of the dates and times at or below a value, with their bytes.
fn add_dates<'t>(
    value: &'t Spanned<DeValue<'_>>,
    path: &mut Vec<Step<'t>>,
    dates: &mut Vec<(Vec<Step<'t>>, Range<usize>)>,
) {
    let mut below = |step, value| {
        path.push(step);
        add_dates(value, path, dates);
        path.pop();
    };
    match value.get_ref() {
        DeValue::Datetime(_) => dates.push((path.clone(), value.span())),
        DeValue::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                below(Step::Index(number), item);
            }
        }
        DeValue::Table(table) => {
            for (key, value) in table {
                below(Step::Key(key.get_ref()), value);
            }
        }
        _ => {}
    }
}

fn steps(path: &Path) -> Vec<Step<'_>> {
    let steps = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        // What notes where a value stands is no part of the file.
        Segment::Map { key } if key.starts_with("$__") => None,
        Segment::Map { key } | Segment::Enum { variant: key } => Some(Step::Key(key)),
        Segment::Unknown => None,
    });
    steps.collect()
}

/// The path in `whole` of what is at `path` in `rest`, whose lists may lack items.
fn original<'p>(whole: &DeTable<'_>, rest: &DeTable<'_>, path: &[Step<'p>]) -> Vec<Step<'p>> {
    let mut found: Vec<Step<'p>> = Vec::new();
    for (depth, step) in path.iter().enumerate() {
        let step = match step {
            Step::Key(_) => *step,
            Step::Index(_) => {
                let span = value_at(rest, &path[..=depth]).map(Spanned::span);
                let items = value_at(whole, &found).and_then(|list| list.get_ref().as_array());
                let number = items.and_then(|items| items.iter().position(|item| Some(item.span()) == span));
                number.map_or(*step, Step::Index)
            }
        };
        found.push(step);
    }
    found
}

fn value_at<'t, 'i>(root: &'t DeTable<'i>, path: &[Step<'_>]) -> Option<&'t Spanned<DeValue<'i>>> {
    let (first, rest) = path.split_first()?;
    let Step::Key(key) = first else {
        return None;
    };
    rest.iter().try_fold(root.get(*key)?, |value, step| match step {
        Step::Key(key) => value.get_ref().as_table()?.get(*key),
        Step::Index(index) => value.get_ref().as_array()?.get(*index),
    })
}

/// Removes the value at `path`. Returns whether there was one.
fn remove(table: &mut DeTable<'_>, path: &[Step<'_>]) -> bool {
    match path {
        [Step::Key(key)] => table.remove(*key).is_some(),
        [Step::Key(key), rest @ ..] => table
            .get_mut(*key)
            .is_some_and(|value| remove_from(value.get_mut(), rest)),
        _ => false,
    }
}

fn remove_from(value: &mut DeValue<'_>, path: &[Step<'_>]) -> bool {
    match (value, path) {
        (DeValue::Table(table), path) => remove(table, path),
        (DeValue::Array(items), [Step::Index(index)]) if *index < items.len() => {
            let others = items.iter().enumerate().filter(|(number, _)| number != index);
            *items = others.map(|(_, item)| item.clone()).collect();
            true
        }
        (DeValue::Array(items), [Step::Index(index), rest @ ..]) => items
            .get_mut(*index)
            .is_some_and(|item| remove_from(item.get_mut(), rest)),
        _ => false,
    }
}
