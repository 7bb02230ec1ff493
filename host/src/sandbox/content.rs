//! Components as they are read, before anything is made of them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use sha2::{Digest as _, Sha256};

use super::load_error::{LoadError, Refusal};

/// Bytes that a file may have.
const MAX_FILE: u64 = 256 << 20;

/// The component that the host serves with when it is given none.
pub(super) static ECHO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.wasm"));

/// Where a component comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The echo guest inside this program.
    Embedded,
    /// A file.
    File(PathBuf),
}

impl Origin {
    /// The whole component. The file is read, never mapped: somebody may be writing it.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is larger than any component should be.
    pub fn read(&self) -> Result<Content, LoadError> {
        let bytes = match self {
            Self::Embedded => ECHO.to_vec(),
            Self::File(path) => read(path).map_err(|error| LoadError::Read {
                path: path.clone(),
                error,
            })?,
        };
        let program = match self {
            Self::Embedded => "echo".into(),
            Self::File(path) => path.file_name().unwrap_or_default().to_string_lossy(),
        };
        Ok(Content::new(self.to_string(), &program, bytes))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    // It may be growing, or have no size.
    let mut size = file.metadata()?.len();
    if size <= MAX_FILE {
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        size = bytes.len() as u64;
    }
    if size > MAX_FILE {
        let limit = ByteSize(MAX_FILE);
        return Err(io::Error::other(format!("it is larger than {limit}")));
    }
    Ok(bytes)
}

/// The SHA-256 digest of a component.
pub type Digest = [u8; 32];

/// A component as it was read.
#[derive(Clone, Debug)]
pub struct Content {
    /// How messages name it.
    pub name: String,
    /// What it is told by from others.
    pub digest: Digest,
    /// What has become of it since.
    pub(super) stage: Stage,
    /// How it is named to itself.
    program: Arc<str>,
    bytes: Vec<u8>,
}

/// What has become of a component since it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing.
    AsRead,
    /// It shows all of its state, so that a snapshot can be made of it.
    Instrumented,
    /// It was initialised, and is a snapshot with this digest.
    Initialised(Digest),
}

impl Stage {
    /// A number for it.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::AsRead => 0,
            Self::Instrumented => 1,
            Self::Initialised(_) => 2,
        }
    }

    /// What there is to tell it by beside the digest of what was read.
    pub(super) fn digest(&self) -> Option<&Digest> {
        match self {
            Self::AsRead | Self::Instrumented => None,
            Self::Initialised(digest) => Some(digest),
        }
    }
}

impl Content {
    pub(super) fn new(name: String, program: &str, bytes: Vec<u8>) -> Self {
        Self {
            name,
            program: program.into(),
            digest: Sha256::digest(&bytes).into(),
            stage: Stage::AsRead,
            bytes,
        }
    }

    /// The same when it shows its state.
    pub(super) fn instrumented(&self, bytes: Vec<u8>) -> Self {
        Self {
            stage: Stage::Instrumented,
            bytes,
            ..self.renamed()
        }
    }

    /// What it has come to by initialising itself.
    pub(super) fn initialised(&self, bytes: Vec<u8>) -> Self {
        Self {
            stage: Stage::Initialised(Sha256::digest(&bytes).into()),
            bytes,
            ..self.renamed()
        }
    }

    /// All but the bytes.
    fn renamed(&self) -> Self {
        Self {
            name: self.name.clone(),
            program: Arc::clone(&self.program),
            bytes: Vec::new(),
            ..*self
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How it is named to itself.
    pub(super) fn program(&self) -> &Arc<str> {
        &self.program
    }

    /// Says that it cannot serve.
    pub(super) fn refused(&self, refusal: Refusal) -> LoadError {
        LoadError::Refused {
            name: self.name.clone(),
            refusal,
        }
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("the embedded echo guest"),
            Self::File(path) => write!(f, "`{}`", path.display()),
        }
    }
}
