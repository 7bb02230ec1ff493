//! The configuration file: TOML, read into the same [`Config`] that the flags make.
//!
//! What it says is checked here as far as that can be done without doing any of it: keys, values, and that no two
//! listeners clash.

mod build;
mod keys;
mod known;
mod patterns;
mod place;
mod print;
mod problem;
mod ranges;
mod tables;
mod words;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::{Config, Service};
use crate::encoding::other_than_utf8;
use crate::whole_file;
use build::Builder;
use keys::File;
use place::Places;
pub use print::print;
use problem::MAX_SHOWN;
pub use problem::{Problem, Problems};
use tables::Tables;

/// Bytes that a file may have. None needs more than a small part of it.
const MAX_FILE: u64 = 16 << 20;

/// Why a file is refused.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the services file `{}`: {error}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// What it says cannot be done.
    #[error("{}:{problems}", path.display())]
    Refused {
        /// Its path.
        path: PathBuf,
        /// What is wrong, and where.
        problems: Problems,
    },
}

impl FileError {
    /// A sentence for each thing that is wrong.
    pub fn sentences(&self) -> Vec<String> {
        match self {
            Self::Read { .. } => vec![self.to_string()],
            Self::Refused { path, problems } => {
                let path = path.display();
                let problems = problems.0.iter();
                problems.map(|problem| format!("{path}:{problem}")).collect()
            }
        }
    }
}

/// The part of a file without errors.
#[derive(Debug)]
pub struct Sound {
    /// What the file says, without the services that have a refused key or value. Another setting
    /// that is refused has its default.
    pub config: Config,
    /// The number in the file of each service of `config`.
    numbers: Vec<usize>,
}

impl Sound {
    /// The services, each with its number in the file.
    pub(crate) fn services(&self) -> impl Iterator<Item = (usize, &Service)> {
        self.numbers.iter().copied().zip(&self.config.services)
    }
}

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct Text {
    path: PathBuf,
    text: String,
}

impl Text {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = read_text(path).map_err(|error| FileError::Read {
            path: path.to_owned(),
            error,
        })?;
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }

    /// The path that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says. Paths in it are meant from the directory that it is in.
    ///
    /// # Errors
    ///
    /// It says something that is not understood or could not be done.
    pub fn config(&self) -> Result<Config, FileError> {
        parse(&self.text, self.base()).map_err(|problems| self.refused(problems))
    }

    /// The part of it without errors, if there is one, and a sentence for each error.
    pub fn sound_part(&self) -> (Option<Sound>, Vec<String>) {
        let (sound, problems) = sound_part(&self.text, self.base());
        (sound, self.refused(problems).sentences())
    }

    fn base(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn refused(&self, problems: Problems) -> FileError {
        FileError::Refused {
            path: self.path.clone(),
            problems,
        }
    }

    /// Whether the file sets `key`, such as `service[0].access.allow`, itself and not by `defaults`.
    pub(crate) fn sets(&self, key: &str) -> bool {
        Places::of(&self.text).sets(key)
    }

    /// Says what is wrong with keys such as `service[0].component`, with the lines that set them.
    /// Each comes with its message. Shows the first hundred.
    pub fn problems(&self, of_keys: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
        let places = Places::of(&self.text);
        let mut of_keys = of_keys.into_iter();
        let shown = of_keys.by_ref().take(MAX_SHOWN);
        let shown = shown.map(|(key, message)| Problem::of(&places, &key, message));
        let problems = Problems::sorted(shown.collect(), of_keys.next().is_some());
        self.refused(problems).sentences()
    }
}

/// Reads the file at `path`. Paths in it are meant from the directory that it is in.
///
/// # Errors
///
/// It cannot be read, or says something that is not understood or could not be done.
pub fn read(path: &Path) -> Result<Config, FileError> {
    Text::read(path)?.config()
}

fn read_text(path: &Path) -> io::Result<String> {
    let text = whole_file::read(path, MAX_FILE)?;
    if let Some(encoding) = other_than_utf8(&text) {
        let sentence = format!("the file is encoded as {encoding}; save it as UTF-8");
        return Err(io::Error::other(sentence));
    }
    String::from_utf8(text).map_err(io::Error::other)
}

/// Reads `text` as a file in the directory `base`.
///
/// # Errors
///
/// It says something that is not understood or could not be done.
pub fn parse(text: &str, base: &Path) -> Result<Config, Problems> {
    match sound_part(text, base) {
        (Some(sound), problems) if problems.0.is_empty() => Ok(sound.config),
        (_, problems) => Err(problems),
    }
}

fn sound_part(text: &str, base: &Path) -> (Option<Sound>, Problems) {
    match Tables::read(text) {
        Ok(tables) => Builder::new(text, base, tables).sound_part(),
        Err(problem) => (None, Problems(vec![problem])),
    }
}

/// A schema of the file by the JSON Schema standard, for editors.
pub fn schema() -> String {
    let schema = schemars::schema_for!(File);
    format!("{:#}\n", schema.to_value())
}

#[cfg(test)]
mod tests;
