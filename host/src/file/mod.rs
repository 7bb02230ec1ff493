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

use crate::config::Config;
use crate::whole_file;
use build::Builder;
use keys::File;
pub use print::print;
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
        let base = self.path.parent().unwrap_or(Path::new(""));
        parse(&self.text, base).map_err(|problems| FileError::Refused {
            path: self.path.clone(),
            problems,
        })
    }

    /// Whether the file sets `key`, such as `service[0].access.allow`, itself and not by `defaults`.
    pub(crate) fn sets(&self, key: &str) -> bool {
        place::sets(&self.text, key)
    }

    /// Says that something is wrong with `key`, such as `service[0].component`, with the line that
    /// sets it.
    pub fn problem(&self, key: &str, message: String) -> String {
        let problem = Problem::of(&self.text, key, message);
        format!("{}:{problem}", self.path.display())
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
    String::from_utf8(whole_file::read(path, MAX_FILE)?)
        .map_err(|_| io::Error::other("the file is not valid UTF-8"))
}

/// Reads `text` as a file in the directory `base`.
///
/// # Errors
///
/// It says something that is not understood or could not be done.
pub fn parse(text: &str, base: &Path) -> Result<Config, Problems> {
    let tables = Tables::read(text).map_err(|problem| Problems(vec![problem]))?;
    Builder::new(text, base, tables).config()
}

/// A schema of the file by the JSON Schema standard, for editors.
pub fn schema() -> String {
    let schema = schemars::schema_for!(File);
    format!("{:#}\n", schema.to_value())
}

#[cfg(test)]
mod tests;
