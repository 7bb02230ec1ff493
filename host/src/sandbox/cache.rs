//! Compiled components on disk, so that a component is compiled once and not at every start.
//!
//! An entry is named by the digest of the component and of all that its code depends on: the version and settings of
//! wasmtime. It holds its own digest, which is compared before the code is used, and it appears whole or not at all.
//! Nothing here is fatal: what cannot be read is compiled, and what cannot be written is compiled again next time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use etcetera::BaseStrategy as _;
use sha2::{Digest as _, Sha256};
use tracing::{debug, warn};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use super::code::Code;
use super::content::{Content, Digest};
use crate::config::CacheDir;
use crate::failpoint;

/// The directory of this host within the user's cache directory.
const NAME: &str = "wasm-inetd";

/// Bytes of all entries together. Beyond it those go that were not used for the longest time.
const MAX_SIZE: u64 = 1 << 30;

/// How names of entries end, and of what is not an entry yet.
const ENTRY: &str = "cwasm";
const PART: &str = "part";

/// What is not an entry for so long is not written any more: whoever did was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// To be counted up when the same file is compiled to something else than before by the same version of wasmtime.
const FORMAT: u8 = 3;

/// A SHA-256 digest stands before the code.
const DIGEST: usize = 32;

/// Numbers the files that this process writes, so that no two share a name.
static PARTS: AtomicU64 = AtomicU64::new(0);

/// A directory of compiled components, which only its owner may write to.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    /// Whether the user chose the directory, and so expects entries there.
    chosen: bool,
}

impl Cache {
    /// The cache that was asked for, if it can be used.
    pub(super) fn choose(choice: &CacheDir) -> Option<Self> {
        match choice {
            CacheDir::Off => None,
            CacheDir::At(dir) => Self::open(dir)
                .map(|cache| Self {
                    chosen: true,
                    ..cache
                })
                .inspect_err(|error| {
                    warn!(
                        "cannot cache compiled components in `{}`: {error}; set `cache` to a \
                         directory that only you can write to, or to `off`",
                        dir.display()
                    );
                })
                .ok(),
            CacheDir::OfUser => {
                let dir = etcetera::base_strategy::choose_base_strategy()
                    .ok()?
                    .cache_dir()
                    .join(NAME);
                Self::open(&dir)
                    .inspect_err(
                        |error| debug!(dir = %dir.display(), %error, "cannot cache compiled components"),
                    )
                    .ok()
            }
        }
    }

    /// The cache in `dir`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be made, or somebody else could put code into it.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let metadata = fs::metadata(dir)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("the directory belongs to another user"));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(io::Error::other(
                "other users can write to the directory (run `chmod go-w` on it)",
            ));
        }
        Ok(Self {
            dir: dir.to_owned(),
            chosen: false,
        })
    }

    /// The code of a component or module, out of the cache if it is there, compiled and put there if not, and whether it
    /// was compiled.
    ///
    /// # Errors
    ///
    /// It is not a valid one.
    pub(super) fn code(&self, engine: &Engine, content: &Content) -> wasmtime::Result<(Code, bool)> {
        let path = self.dir.join(name(engine, content));
        match find(engine, &path, content) {
            Ok(Some(code)) => return Ok((code, false)),
            Ok(None) => {}
            Err(error) => {
                debug!(path = %path.display(), %error, "cannot use the cache entry; compiling again")
            }
        }
        let code = Code::compile(engine, content)?;
        match self.keep(&path, content, &code) {
            Err(error) if self.chosen => warn!(
                "cannot keep the compiled {} in `{}`: {error}; the next start compiles it again",
                content.name,
                path.display()
            ),
            Err(error) => debug!(path = %path.display(), %error, "cannot write the cache entry"),
            Ok(()) => {}
        }
        Ok((code, true))
    }

    fn keep(&self, path: &Path, content: &Content, code: &Code) -> io::Result<()> {
        let code = code.serialize().map_err(io::Error::other)?;
        let number = PARTS.fetch_add(1, Ordering::Relaxed);
        let part = self.dir.join(format!("{}-{number}.{PART}", process::id()));
        let written = write(&part, &digest(content, &code), &code).and_then(|()| fs::rename(&part, path));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written?;
        self.prune()
    }

    /// Removes what was abandoned, and what was not used for the longest time until the rest is within [`MAX_SIZE`].
    fn prune(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let part = path.extension().is_some_and(|end| end == PART);
            let ours = part || path.extension().is_some_and(|end| end == ENTRY);
            // Another process may prune too, and be faster.
            if let (true, Ok(metadata)) = (ours, fs::metadata(&path)) {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                if part && used.elapsed().is_ok_and(|age| age > ABANDONED) {
                    let _ = fs::remove_file(path);
                } else {
                    files.push((used, metadata.len(), path));
                }
            }
        }
        files.sort();
        let mut size: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if size <= MAX_SIZE {
                break;
            }
            let _ = fs::remove_file(path);
            size -= len;
        }
        Ok(())
    }
}

/// The name of the entry for `content` as `engine` compiles it. What a guest has come to by initialising itself has the
/// name of the guest, so that it replaces what the guest came to the last time.
fn name(engine: &Engine, content: &Content) -> String {
    let mut digest = Hashed(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut digest);
    digest.0.update([FORMAT, content.stage.number()]);
    digest.0.update(content.digest);
    format!("{:x}.{ENTRY}", digest.0.finalize())
}

/// What stands before the code of `content`: only who has both finds it right.
fn digest(content: &Content, code: &[u8]) -> Digest {
    let mut digest = Sha256::new();
    digest.update(content.stage.digest().unwrap_or(&content.digest));
    digest.update(code);
    digest.finalize().into()
}

/// What implements `Hash` is hashed by SHA-256.
struct Hashed(Sha256);

impl Hasher for Hashed {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest
            .iter()
            .take(8)
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// The code of an entry; `None` if there is no such entry.
fn find(engine: &Engine, path: &Path, content: &Content) -> io::Result<Option<Code>> {
    let entry = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entry => entry?,
    };
    let Some((found, code)) = entry.split_at_checked(DIGEST) else {
        return Err(io::Error::other("the entry is truncated"));
    };
    if *found != digest(content, code) {
        return Err(io::Error::other(
            "the entry is damaged, or belongs to another snapshot of the guest",
        ));
    }
    let code = deserialize(engine, code).map_err(io::Error::other)?;
    // For `prune`.
    if let Ok(file) = File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
    Ok(Some(code))
}

/// A component or module from code that this program has compiled.
#[allow(unsafe_code)]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Code> {
    // SAFETY: `code` has to be what `Component::serialize` or `Module::serialize` gave. It stood in a directory to which
    // nobody but the user of this process can write, under a name that nothing else writes to, and its digest says that it
    // is whole. Who can forge that acts as this user already, and needs no cache to run code. It was read into memory, so
    // it cannot change any more, and wasmtime itself refuses what an engine of another version or other settings has made.
    unsafe {
        match Engine::detect_precompiled(code) {
            Some(Precompiled::Module) => Module::deserialize(engine, code).map(Code::Module),
            _ => Component::deserialize(engine, code).map(Code::Component),
        }
    }
}

fn write(path: &Path, digest: &Digest, code: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let (first, rest) = code.split_at(code.len() / 2);
    file.write_all(digest)?;
    file.write_all(first)?;
    failpoint::cache_write();
    file.write_all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is gone with this.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("cache-{name}-{}", process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }

        fn entries(&self) -> Vec<PathBuf> {
            fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn empty() -> Vec<u8> {
        wat::parse_str("(component)").unwrap()
    }

    /// Takes a component out of the cache, and tells whether it was compiled.
    fn component(cache: &Cache, engine: &Engine, bytes: &[u8]) -> wasmtime::Result<bool> {
        let found = cache.code(engine, &content(bytes));
        found.map(|(_, compiled)| compiled)
    }

    fn content(bytes: &[u8]) -> Content {
        Content::new("a test".to_owned(), "test", bytes.to_vec())
    }

    #[test]
    fn what_was_compiled_is_found_again() {
        let dir = Dir::new("found");
        let cache = Cache::open(&dir.0).unwrap();
        let engine = Engine::default();
        assert!(component(&cache, &engine, &empty()).unwrap());
        assert_eq!(dir.entries().len(), 1);
        assert!(!component(&cache, &engine, &empty()).unwrap());
        let other = wat::parse_str("(module)").unwrap();
        assert!(component(&cache, &engine, &other).unwrap());
        assert!(!component(&cache, &engine, &other).unwrap());
        assert_eq!(dir.entries().len(), 2);
    }

    #[test]
    fn what_a_guest_came_to_replaces_what_it_came_to_before() {
        let dir = Dir::new("initialised");
        let cache = Cache::open(&dir.0).unwrap();
        let engine = Engine::default();
        let guest = content(&empty());
        cache.code(&engine, &guest).unwrap();
        let mut compiled = |text: &str| {
            let initialised = guest.initialised(wat::parse_str(text).unwrap());
            cache.code(&engine, &initialised).unwrap().1
        };
        let (one, other) = ("(component (core module))", "(component (component))");
        assert_eq!(
            [one, one, other, one, one].map(&mut compiled),
            [true, false, true, true, false]
        );
        assert_eq!(dir.entries().len(), 2);
        assert!(!component(&cache, &engine, &empty()).unwrap());
    }

    #[test]
    fn a_damaged_entry_is_compiled_again_and_replaced() {
        let dir = Dir::new("damaged");
        let cache = Cache::open(&dir.0).unwrap();
        let engine = Engine::default();
        component(&cache, &engine, &empty()).unwrap();
        let path = dir.entries().remove(0);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&flipped[..], &whole[..whole.len() - 1], &whole[..DIGEST - 1], &[]] {
            fs::write(&path, damaged).unwrap();
            assert!(find(&engine, &path, &content(&empty())).is_err());
            component(&cache, &engine, &empty()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn what_was_abandoned_is_removed() {
        let dir = Dir::new("abandoned");
        let cache = Cache::open(&dir.0).unwrap();
        for (name, age) in [("1-0.part", ABANDONED * 2), ("2-0.part", ABANDONED / 2)] {
            let file = File::create(dir.0.join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        component(&cache, &Engine::default(), &empty()).unwrap();
        let mut left = dir.entries();
        left.retain(|path| path.extension().is_some_and(|end| end == PART));
        assert_eq!(left, [dir.0.join("2-0.part")]);
    }

    #[test]
    fn what_cannot_be_kept_is_compiled_all_the_same() {
        let dir = Dir::new("gone");
        let cache = Cache::open(&dir.0).unwrap();
        fs::remove_dir(&dir.0).unwrap();
        assert!(component(&cache, &Engine::default(), &empty()).is_ok());
        assert!(component(&cache, &Engine::default(), b"\0asm").is_err());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = Dir::new("open");
        fs::create_dir(&dir.0).unwrap();
        fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(&dir.0).unwrap_err().to_string().contains("chmod"));
    }
}
