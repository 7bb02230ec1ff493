//! The configuration file: TOML, read into the same [`Config`] that the flags make.
//!
//! What it says is checked here as far as that can be done without doing any of it: keys, values, and that no two
//! listeners clash.

mod build;
mod keys;
mod print;
mod problem;
mod words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::Config;
use build::Builder;
use keys::File;
pub use print::print;
use problem::Problem;

/// Bytes that a file may have. None needs more than a small part of it.
const MAX_FILE: u64 = 16 << 20;

/// Why a file is refused.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// What it says cannot be done.
    #[error("{}:{problem}", path.display())]
    Refused {
        /// Its path.
        path: PathBuf,
        /// What is wrong, and where.
        problem: Problem,
    },
}

/// Reads the file at `path`. Paths in it are meant from the directory that it is in.
///
/// # Errors
///
/// It cannot be read, or says something that is not understood or could not be done.
pub fn read(path: &Path) -> Result<Config, FileError> {
    let refused = |problem| FileError::Refused {
        path: path.to_owned(),
        problem,
    };
    let text = read_text(path).map_err(|error| FileError::Read {
        path: path.to_owned(),
        error,
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    parse(&text, base).map_err(refused)
}

fn read_text(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(io::Error::other("the file is larger than 16 MiB"));
    }
    fs::read_to_string(path)
}

/// Reads `text` as a file in the directory `base`.
///
/// # Errors
///
/// It says something that is not understood or could not be done.
pub fn parse(text: &str, base: &Path) -> Result<Config, Problem> {
    let deserializer = toml::Deserializer::parse(text).map_err(|error| Problem::syntax(text, &error))?;
    let file: File =
        serde_path_to_error::deserialize(deserializer).map_err(|error| Problem::content(text, &error))?;
    Builder { text, base }.config(file)
}

/// A schema of the file by the JSON Schema standard, for editors.
pub fn schema() -> String {
    let schema = schemars::schema_for!(File);
    format!("{:#}\n", schema.to_value())
}

#[cfg(test)]
mod tests;
