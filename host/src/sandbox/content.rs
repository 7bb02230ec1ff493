//! Components as they are read, before anything is made of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::extent::check_nested;
use super::generation::look;
use super::hollow::hollow;
use super::load_error::{LoadError, Refusal};
use super::proposals;
use crate::whole_file;

/// Bytes that a file may have.
pub(super) const MAX_FILE: u64 = 256 << 20;

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

/// What a service is made of: a component, and the middlewares that stand before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The component.
    pub component: Origin,
    /// The middlewares, from the one nearest the peer to the one nearest the component.
    pub middleware: Vec<PathBuf>,
}

impl Source {
    /// The component of a file, or the embedded one, behind `middleware`.
    pub fn new(component: Option<PathBuf>, middleware: Vec<PathBuf>) -> Self {
        Self {
            component: component.map_or(Origin::Embedded, Origin::File),
            middleware,
        }
    }

    /// The files that it is read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let component = match &self.component {
            Origin::Embedded => None,
            Origin::File(path) => Some(path),
        };
        component
            .into_iter()
            .chain(&self.middleware)
            .map(PathBuf::as_path)
    }

    /// All of it, whole.
    ///
    /// # Errors
    ///
    /// As of [`Origin::read`].
    pub fn read(&self) -> Result<Content, LoadError> {
        Ok(self.whole(self.read_parts().collect::<Result<_, _>>()?))
    }

    /// Each of its parts: the middlewares, and then the component.
    pub(crate) fn read_parts(&self) -> impl Iterator<Item = Result<Content, LoadError>> {
        let middleware = self.middleware.iter().map(|path| read_as("middleware", path));
        middleware.chain(std::iter::once_with(|| self.component.read()))
    }

    /// All of it, of its parts.
    pub(crate) fn whole(&self, mut parts: Vec<Content>) -> Content {
        match (parts.pop(), parts.is_empty()) {
            (Some(component), true) => component,
            (component, _) => {
                parts.extend(component);
                Content::of_parts(self.to_string(), parts)
            }
        }
    }
}

impl Origin {
    /// The whole component. The file is read, never mapped: somebody may be writing it.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is a named pipe, or is larger than any component should be.
    pub fn read(&self) -> Result<Content, LoadError> {
        match self {
            Self::Embedded => Ok(Content::new(self.to_string(), "echo", ECHO.to_vec())),
            Self::File(path) => read_as("component", path),
        }
    }
}

/// Reads the component in a file. `role` is how the setting that names the file is called.
fn read_as(role: &'static str, path: &Path) -> Result<Content, LoadError> {
    let bytes = whole_file::read(path, MAX_FILE).map_err(|error| LoadError::Read {
        role,
        path: path.to_owned(),
        error,
    })?;
    let program = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(Content::new(format!("`{}`", path.display()), &program, bytes))
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
    /// Empty where there are parts. They are shared with the thread that passes them to a compiler.
    bytes: Arc<Vec<u8>>,
    /// What it is to be composed of: middlewares, from the one nearest the peer on, and then the service. Of what is whole
    /// there are none.
    parts: Vec<Content>,
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
    /// It was composed, and that came to something with this digest.
    Composed(Digest),
    /// It was composed with a snapshot.
    ComposedInitialised(Digest),
}

impl Stage {
    /// A number for it.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::AsRead => Self::number_of_last(false, false),
            Self::Instrumented => 1,
            Self::Initialised(_) => Self::number_of_last(true, false),
            Self::Composed(_) => Self::number_of_last(false, true),
            Self::ComposedInitialised(_) => Self::number_of_last(true, true),
        }
    }

    /// The number of the stage at which a component is compiled to serve, by what happens to it
    /// before.
    fn number_of_last(initialised: bool, composed: bool) -> u8 {
        match (initialised, composed) {
            (false, false) => 0,
            (true, false) => 2,
            (false, true) => 3,
            (true, true) => 4,
        }
    }

    /// What there is to tell it by beside the digest of what was read.
    pub(super) fn digest(&self) -> Option<&Digest> {
        match self {
            Self::AsRead | Self::Instrumented => None,
            Self::Initialised(digest) | Self::Composed(digest) | Self::ComposedInitialised(digest) => {
                Some(digest)
            }
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
            bytes: Arc::new(bytes),
            parts: Vec::new(),
        }
    }

    /// What is to be composed of `parts`, of which the last is the service.
    pub(super) fn of_parts(name: String, parts: Vec<Content>) -> Self {
        let mut digest = Sha256::new();
        for part in &parts {
            digest.update(part.digest);
        }
        Self {
            name,
            program: parts
                .last()
                .map_or_else(|| "".into(), |service| Arc::clone(&service.program)),
            digest: digest.finalize().into(),
            stage: Stage::AsRead,
            bytes: Arc::default(),
            parts,
        }
    }

    /// The same when it shows its state.
    pub(super) fn instrumented(&self, bytes: Vec<u8>) -> Self {
        Self {
            stage: Stage::Instrumented,
            bytes: Arc::new(bytes),
            ..self.renamed()
        }
    }

    /// What it has come to by initialising itself.
    pub(super) fn initialised(&self, bytes: Vec<u8>) -> Self {
        Self {
            stage: Stage::Initialised(Sha256::digest(&bytes).into()),
            bytes: Arc::new(bytes),
            ..self.renamed()
        }
    }

    /// What its parts have come to by being composed, the service possibly initialised.
    pub(super) fn composed(&self, initialised: bool, bytes: Vec<u8>) -> Self {
        let digest = Sha256::digest(&bytes).into();
        Self {
            stage: if initialised {
                Stage::ComposedInitialised(digest)
            } else {
                Stage::Composed(digest)
            },
            bytes: Arc::new(bytes),
            ..self.renamed()
        }
    }

    /// The same without the code of its functions, if it can be left out. A cache tells the two apart
    /// by the digest.
    pub(super) fn hollow(&self) -> Self {
        let bytes = hollow(&self.bytes).unwrap_or_else(|| self.bytes.to_vec());
        Self {
            digest: Sha256::digest(&bytes).into(),
            stage: Stage::AsRead,
            bytes: Arc::new(bytes),
            ..self.renamed()
        }
    }

    /// All but the bytes.
    fn renamed(&self) -> Self {
        Self {
            name: self.name.clone(),
            program: Arc::clone(&self.program),
            bytes: Arc::default(),
            parts: Vec::new(),
            ..*self
        }
    }

    /// The number of the stage at which it is compiled to serve.
    pub(super) fn last_stage(&self, initialised: bool) -> u8 {
        Stage::number_of_last(initialised, !self.parts.is_empty())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same bytes, for another thread.
    pub(super) fn shared_bytes(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.bytes)
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

    /// Reports that it cannot be compiled: because it uses something that the host does not offer,
    /// exceeds a bound, or is damaged.
    pub(super) fn invalid(&self, reason: String) -> LoadError {
        self.refused(proposals::why(&self.bytes, reason))
    }

    /// The middlewares, from the one nearest the peer on, and the service; of what is whole, itself.
    pub(super) fn parts(&self) -> &[Content] {
        match self.parts.as_slice() {
            [] => std::slice::from_ref(self),
            parts => parts,
        }
    }

    /// The number of the middleware that `error` is about; `None` if it is about something else.
    pub(crate) fn middleware_of(&self, error: &LoadError) -> Option<usize> {
        let LoadError::Refused { name, .. } = error else {
            return None;
        };
        let (_, middlewares) = self.parts.split_last()?;
        middlewares.iter().position(|part| part.name == *name)
    }

    /// Checks whether it begins as WebAssembly does.
    ///
    /// # Errors
    ///
    /// It does not.
    pub(crate) fn check_beginning(&self) -> Result<(), LoadError> {
        look(&self.bytes).map_err(|refusal| self.refused(refusal))
    }

    /// Checks each part without compiling it, which finds damaged files and proposals that the host
    /// does not offer.
    ///
    /// # Errors
    ///
    /// A part is not valid, or uses a proposal that the host does not offer.
    pub(crate) fn validate(&self) -> Result<(), LoadError> {
        self.parts().iter().try_for_each(|part| {
            check_nested(&part.bytes).map_err(|refusal| part.refused(refusal))?;
            proposals::validate(&part.bytes).map_err(|error| part.invalid(error.to_string()))
        })
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.parts().iter().map(|part| part.bytes.len() as u64).sum()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.component)?;
        for (index, path) in self.middleware.iter().enumerate() {
            let before = if index == 0 { " behind middleware" } else { "," };
            write!(f, "{before} {}", path.display())?;
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("the embedded echo guest"),
            Self::File(path) => write!(f, "component {}", path.display()),
        }
    }
}
