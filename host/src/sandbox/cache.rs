//! Compiled components on disk, so that a component is compiled once and not at every start.
//!
//! An entry is named by the digest of the component and of all that its code depends on: the
//! version and settings of wasmtime. It is signed with a key of this cache, which is compared
//! before the code is used, and it appears whole or not at all. The directory is held open, so that
//! none that is put in its place later is used. Nothing here is fatal: what cannot be read is
//! compiled, and what cannot be written is compiled again next time.

use std::fmt;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use etcetera::BaseStrategy as _;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::fs::{linkat, openat, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tracing::{debug, warn};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use super::code::Code;
use super::content::{Content, Digest};
use crate::config::{CacheDir, Setting};
use crate::failpoint;
use crate::guarded::{self, Owner};
use crate::system::{can_create, is_writable, storage_advice};

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
const FORMAT: u8 = 7;

/// Bytes of the signature before the code: HMAC with SHA-256.
const SIGNATURE: usize = 32;

/// The file of the key by which entries are signed, and its length in bytes.
const KEY: &str = "key";
const KEY_LENGTH: usize = 32;

/// Numbers the files that this process writes, so that no two share a name.
static PARTS: AtomicU64 = AtomicU64::new(0);

/// A directory of compiled components, which only its owner may write to.
#[derive(Debug)]
pub(super) struct Cache {
    dir: OwnedFd,
    /// Where the directory was when it was opened, for messages.
    path: PathBuf,
    /// Signs entries, so that only those are used which a host with this cache has written.
    key: hmac::Key,
    /// Whether the user chose the directory, and so expects entries there.
    chosen: bool,
}

/// A directory that cannot be used as a cache. It is displayed with the reason, and what to do.
#[derive(Debug)]
pub(super) struct Unusable {
    dir: PathBuf,
    error: io::Error,
    /// Whether the user chose the directory, and so expects entries there.
    chosen: bool,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, error, .. } = self;
        write!(f, "`{}`: {error}", dir.display())?;
        let cache = Setting::of("cache");
        if let Some(advice) = storage_advice(error) {
            return write!(f, "; {advice}, or set {cache} to another directory");
        }
        let reason = error.get_ref().and_then(|error| error.downcast_ref());
        // Two ways to mend it are alternatives.
        let before = if reason.is_some_and(guarded::Error::has_advice) {
            ", or"
        } else {
            ";"
        };
        write!(
            f,
            "{before} set {cache} to a directory that only the user of the host can change"
        )
    }
}

impl Unusable {
    /// Logs that the host goes on without a cache.
    pub(super) fn log(&self) {
        if self.chosen {
            warn!("cannot cache compiled components in {self}, or to `off`");
        } else {
            debug!("cannot cache compiled components in {self}, or to `off`");
        }
    }
}

impl Cache {
    /// Opens the cache that was asked for; `None` if there is to be none.
    ///
    /// # Errors
    ///
    /// Its directory cannot be used.
    pub(super) fn choose(choice: &CacheDir) -> Result<Option<Self>, Unusable> {
        let (dir, chosen) = match choice {
            CacheDir::Off => return Ok(None),
            CacheDir::At(dir) => (dir.clone(), true),
            CacheDir::OfUser => match etcetera::base_strategy::choose_base_strategy() {
                Ok(strategy) => (strategy.cache_dir().join(NAME), false),
                Err(_) => return Ok(None),
            },
        };
        match Self::open(&dir) {
            Ok(cache) => Ok(Some(Self { chosen, ..cache })),
            Err(error) => Err(Unusable { dir, error, chosen }),
        }
    }

    /// Warns that the directory that the user chose cannot be used, as a start does, without
    /// creating it.
    pub(super) fn check(choice: &CacheDir) {
        let CacheDir::At(dir) = choice else { return };
        // The directories above one that does not exist yet count, too.
        let guarded = guarded::check(dir, Owner::Host).map_err(io::Error::other);
        let checked = guarded.and_then(|()| match fs::metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => can_create(dir),
            Err(error) => Err(error),
            // One that was filled ahead is read only.
            Ok(_) if dir.join(KEY).exists() => Ok(()),
            Ok(_) => is_writable(dir),
        });
        if let Err(error) = checked {
            let (dir, chosen) = (dir.clone(), true);
            Unusable { dir, error, chosen }.log();
        }
    }

    /// The cache in `dir`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be made, or somebody else could put code into it, or another directory in its
    /// place.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let dir = guarded::open(path, true, Owner::Host).map_err(io::Error::other)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key(&dir)?);
        Ok(Self {
            dir,
            path: path.to_owned(),
            key,
            chosen: false,
        })
    }

    /// The code of a component or module, if it is there.
    pub(super) fn get(&self, engine: &Engine, content: &Content, service: Option<&str>) -> Option<Code> {
        let name = name(engine, content);
        self.find(engine, &name, content).unwrap_or_else(|error| {
            let path = self.path.join(&name);
            debug!(service, path = %path.display(), %error, "cannot use the cache entry; compiling again");
            None
        })
    }

    /// Returns whether there is an entry for a component or module that can be used. Reads the whole
    /// entry.
    pub(super) fn has(&self, engine: &Engine, content: &Content) -> bool {
        matches!(self.read(&name(engine, content), content), Ok(Some(_)))
    }

    /// Returns whether there is an entry for `content` as it serves, `initialised` or not, whatever
    /// the engine and whether it can be used or not. Only what was examined is compiled.
    pub(super) fn has_any(&self, content: &Content, initialised: bool) -> bool {
        let start = start_of_name(content, content.last_stage(initialised));
        let entries = Dir::read_from(&self.dir).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_owned());
        names.any(|name| name.to_bytes().starts_with(start.as_bytes()))
    }

    /// The path of the entry for a component or module, whether it is there or not.
    pub(super) fn entry(&self, engine: &Engine, content: &Content) -> PathBuf {
        self.path.join(name(engine, content))
    }

    /// Keeps the machine code of a component or module for the next start. Returns the path of its
    /// entry.
    ///
    /// # Errors
    ///
    /// It cannot be written. The log has said so.
    pub(super) fn put(
        &self,
        engine: &Engine,
        content: &Content,
        code: &[u8],
        service: Option<&str>,
    ) -> io::Result<PathBuf> {
        let name = name(engine, content);
        let path = self.path.join(&name);
        let kept = self.keep(&name, content, code);
        match &kept {
            Err(error) if self.chosen => warn!(
                service,
                "cannot keep the compiled {} in `{}`: {error}; the next start compiles it again",
                content.name,
                path.display()
            ),
            Err(error) => debug!(service, path = %path.display(), %error, "cannot write the cache entry"),
            Ok(()) => {}
        }
        kept.map(|()| path)
    }

    /// Reads an entry, and compares its signature. Returns `None` if there is no such entry.
    fn read(&self, name: &str, content: &Content) -> io::Result<Option<(File, Vec<u8>)>> {
        let Some(mut file) = open(&self.dir, name)? else {
            return Ok(None);
        };
        let mut entry = Vec::new();
        file.read_to_end(&mut entry)?;
        let Some((signature, code)) = entry.split_at_checked(SIGNATURE) else {
            return Err(io::Error::other("the entry is truncated"));
        };
        let digest = digest(name, content, code);
        hmac::verify(&self.key, &digest, signature).map_err(|_| {
            io::Error::other(
                "the entry is damaged, belongs to another snapshot of the guest, or was not written by this \
                 user's host",
            )
        })?;
        Ok(Some((file, entry)))
    }

    /// The code of an entry; `None` if there is no such entry.
    fn find(&self, engine: &Engine, name: &str, content: &Content) -> io::Result<Option<Code>> {
        let Some((file, entry)) = self.read(name, content)? else {
            return Ok(None);
        };
        let code = deserialize(engine, &entry[SIGNATURE..]).map_err(io::Error::other)?;
        // For `prune`.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(code))
    }

    fn keep(&self, name: &str, content: &Content, code: &[u8]) -> io::Result<()> {
        let signature = hmac::sign(&self.key, &digest(name, content, code));
        let part = part();
        let written = write(&self.dir, &part, signature.as_ref(), code)
            .and_then(|()| Ok(renameat(&self.dir, &part, &self.dir, name)?));
        if written.is_err() {
            let _ = unlinkat(&self.dir, &part, AtFlags::empty());
        }
        written?;
        self.prune()
    }

    /// Removes what was abandoned, and what was not used for the longest time until the rest is within [`MAX_SIZE`].
    fn prune(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_owned();
            let end = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())).extension();
            let part = end.is_some_and(|end| end == PART);
            let ours = part || end.is_some_and(|end| end == ENTRY);
            // Another process may prune too, and be faster. A link is removed, and not followed.
            if let (true, Ok(status)) = (ours, statat(&self.dir, &name, AtFlags::SYMLINK_NOFOLLOW)) {
                let used = u64::try_from(status.st_mtime).unwrap_or_default();
                let age = SystemTime::UNIX_EPOCH + Duration::from_secs(used);
                if part && age.elapsed().is_ok_and(|age| age > ABANDONED) {
                    let _ = unlinkat(&self.dir, &name, AtFlags::empty());
                } else {
                    files.push((used, u64::try_from(status.st_size).unwrap_or_default(), name));
                }
            }
        }
        files.sort();
        let mut size: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, name) in files {
            if size <= MAX_SIZE {
                break;
            }
            let _ = unlinkat(&self.dir, &name, AtFlags::empty());
            size -= len;
        }
        Ok(())
    }
}

/// A name for a file that is being written, which no other file of this process has.
fn part() -> String {
    format!(
        "{}-{}.{PART}",
        process::id(),
        PARTS.fetch_add(1, Ordering::Relaxed)
    )
}

/// Opens a regular file of this user in `dir`; `None` if there is none. Follows no link.
fn open(dir: &OwnedFd, name: &str) -> io::Result<Option<File>> {
    // A named pipe is opened without waiting for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => File::from(opened?),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it is not a file of the user who runs the host"));
    }
    Ok(Some(file))
}

/// The key in `dir`. One that is missing or damaged, or that others could have read, is replaced.
fn key(dir: &OwnedFd) -> io::Result<[u8; KEY_LENGTH]> {
    let found = || -> io::Result<Option<[u8; KEY_LENGTH]>> {
        let Some(file) = open(dir, KEY)? else {
            return Ok(None);
        };
        let metadata = file.metadata()?;
        let mut key = Vec::new();
        file.take(KEY_LENGTH as u64 + 1).read_to_end(&mut key)?;
        match key.try_into() {
            Ok(key) if metadata.mode() & 0o077 == 0 => Ok(Some(key)),
            _ => Err(io::Error::other(
                "the key is damaged, or other users could read it",
            )),
        }
    };
    match found() {
        Ok(Some(key)) => return Ok(key),
        Ok(None) => {}
        Err(error) => {
            debug!(%error, "cannot use the key of the cache; creating another");
            unlinkat(dir, KEY, AtFlags::empty())?;
        }
    }
    let mut key = [0; KEY_LENGTH];
    SystemRandom::new()
        .fill(&mut key)
        .map_err(|_| io::Error::other("the system provides no random numbers"))?;
    match create_key(dir, &key) {
        // Another host has been faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            found()?.ok_or_else(|| Errno::NOENT.into())
        }
        created => created.map(|()| key),
    }
}

/// Writes the file of the key, which appears whole or not at all, and replaces no other.
fn create_key(dir: &OwnedFd, key: &[u8]) -> io::Result<()> {
    let part = part();
    let put = create(dir, &part).and_then(|mut file| {
        file.write_all(key)?;
        match renameat_with(dir, &part, dir, KEY, RenameFlags::NOREPLACE) {
            // Some file systems, such as NFS, cannot do that, but have links.
            Err(Errno::INVAL | Errno::NOSYS) => Ok(linkat(dir, &part, dir, KEY, AtFlags::empty())?),
            renamed => Ok(renamed?),
        }
    });
    // It is gone if it was renamed.
    let _ = unlinkat(dir, &part, AtFlags::empty());
    put
}

/// Creates a file in `dir` that only its owner can read.
fn create(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// The name of the entry for `content` as `engine` compiles it. What a guest has come to by initialising itself has the
/// name of the guest, so that it replaces what the guest came to the last time.
fn name(engine: &Engine, content: &Content) -> String {
    let mut settings = Hashed(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut settings);
    let start = start_of_name(content, content.stage.number());
    format!("{start}{:x}.{ENTRY}", settings.0.finalize())
}

/// What the names of entries for `content` at a stage begin with, whatever the engine.
fn start_of_name(content: &Content, stage: u8) -> String {
    let mut digest = Sha256::new();
    digest.update([FORMAT, stage]);
    digest.update(content.digest);
    format!("{:x}-", digest.finalize())
}

/// What is signed: the name of the entry, the content that it was compiled from, and the code.
fn digest(name: &str, content: &Content, code: &[u8]) -> Digest {
    let mut digest = Sha256::new();
    // All names have the same length.
    digest.update(name);
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

/// A component or module from code that this program has compiled.
///
/// # Errors
///
/// An engine of another version or other settings has made the code, or it is none.
#[allow(unsafe_code)]
pub(super) fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Code> {
    // SAFETY: `code` has to be what `Component::serialize` or `Module::serialize` gave. It is in
    // memory, so it cannot change any more, and wasmtime itself refuses what an engine of another
    // version or other settings has made. It comes from one of two places:
    //
    // - From the cache, with a signature that says that a host has written it as code for this
    //   content, with the key of this cache. Only this user and root can read the key: its file has
    //   mode 0600, and lies in a directory that they alone can write to or replace. Who can forge
    //   that acts as this user already, and needs no cache to run code.
    // - From a pipe to which only a child of this process can write, which runs the program that
    //   this process runs and returns what `Engine::precompile_component` or `precompile_module`
    //   gave. If the compiler has a fault that a component can use, the code is as dangerous as if
    //   this process had compiled it.
    unsafe {
        match Engine::detect_precompiled(code) {
            Some(Precompiled::Module) => Module::deserialize(engine, code).map(Code::Module),
            _ => Component::deserialize(engine, code).map(Code::Component),
        }
    }
}

fn write(dir: &OwnedFd, name: &str, signature: &[u8], code: &[u8]) -> io::Result<()> {
    let mut file = create(dir, name)?;
    let (first, rest) = code.split_at(code.len() / 2);
    file.write_all(signature)?;
    file.write_all(first)?;
    failpoint::cache_write();
    file.write_all(rest)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A directory that is gone with this.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("cache-{name}-{}", process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }

        /// The files in it, without the key.
        fn entries(&self) -> Vec<PathBuf> {
            let mut entries: Vec<_> = fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            entries.retain(|path| !path.ends_with(KEY));
            entries
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
        code(cache, engine, &content(bytes))
    }

    /// Takes content out of the cache, or compiles it and puts it there. Tells whether it was
    /// compiled.
    fn code(cache: &Cache, engine: &Engine, content: &Content) -> wasmtime::Result<bool> {
        if cache.get(engine, content, None).is_some() {
            return Ok(false);
        }
        let code = Code::compile(engine, content.bytes())?.serialize()?;
        deserialize(engine, &code)?;
        let _ = cache.put(engine, content, &code, None);
        Ok(true)
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
        code(&cache, &engine, &guest).unwrap();
        let mut compiled = |text: &str| {
            let initialised = guest.initialised(wat::parse_str(text).unwrap());
            code(&cache, &engine, &initialised).unwrap()
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
    fn an_entry_says_that_its_component_was_examined_as_it_serves() {
        let dir = Dir::new("any");
        let cache = Cache::open(&dir.0).unwrap();
        let guest = content(&empty());
        assert!(!cache.has_any(&guest, false));
        // Whatever the settings of the engine.
        let settings = wasmtime::Config::new().epoch_interruption(true).clone();
        code(&cache, &Engine::new(&settings).unwrap(), &guest).unwrap();
        assert!(cache.has_any(&guest, false));
        // It was not instrumented, and is not that of another.
        assert!(!cache.has_any(&guest, true));
        assert!(!cache.has_any(&content(b"other"), false));
        code(&cache, &Engine::default(), &guest.initialised(empty())).unwrap();
        assert!(cache.has_any(&guest, true));
        let parts = || Content::of_parts("both".to_owned(), vec![guest.clone(), guest.clone()]);
        assert!(!cache.has_any(&parts(), false));
        code(&cache, &Engine::default(), &parts().composed(false, empty())).unwrap();
        assert!(cache.has_any(&parts(), false) && !cache.has_any(&parts(), true));
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
        for damaged in [
            &flipped[..],
            &whole[..whole.len() - 1],
            &whole[..SIGNATURE - 1],
            &[],
        ] {
            fs::write(&path, damaged).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(cache.find(&engine, name, &content(&empty())).is_err());
            assert!(!cache.has(&engine, &content(&empty())));
            component(&cache, &engine, &empty()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
            assert!(cache.has(&engine, &content(&empty())));
        }
    }

    #[test]
    fn code_of_another_engine_and_what_is_no_code_are_not_used() {
        let engine = Engine::default();
        let compiled = |engine: &Engine| Code::compile(engine, &empty()).unwrap().serialize().unwrap();
        let code = compiled(&engine);
        assert!(deserialize(&engine, &code).is_ok());
        let other = Engine::new(wasmtime::Config::new().epoch_interruption(true)).unwrap();
        for unusable in [&compiled(&other)[..], &code[..100], b"no code", b""] {
            assert!(deserialize(&engine, unusable).is_err());
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
        fs::remove_dir_all(&dir.0).unwrap();
        assert!(component(&cache, &Engine::default(), &empty()).is_ok());
        assert!(component(&cache, &Engine::default(), b"\0asm").is_err());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = Dir::new("open");
        fs::create_dir(&dir.0).unwrap();
        fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(&dir.0).unwrap_err().to_string().contains("chmod"));
    }

    /// Signs code for `content` as a host would that has `key`.
    fn forged(key: &hmac::Key, name: &str, content: &Content, code: &[u8]) -> Vec<u8> {
        let signature = hmac::sign(key, &digest(name, content, code));
        [signature.as_ref(), code].concat()
    }

    #[test]
    fn an_entry_that_another_key_has_signed_is_not_used() {
        let (dir, other) = (Dir::new("signed"), Dir::new("signed-elsewhere"));
        let (cache, elsewhere) = (Cache::open(&dir.0).unwrap(), Cache::open(&other.0).unwrap());
        let engine = Engine::default();
        component(&cache, &engine, &empty()).unwrap();
        component(&elsewhere, &engine, &empty()).unwrap();
        let (path, foreign) = (dir.entries().remove(0), other.entries().remove(0));
        assert_eq!(path.file_name(), foreign.file_name());
        fs::copy(&foreign, &path).unwrap();
        assert!(component(&cache, &engine, &empty()).unwrap(), "it was used");
        // Nor is one with no key at all, or one of this cache under another name.
        let name = path.file_name().unwrap().to_str().unwrap();
        let whole = fs::read(&path).unwrap();
        let unsigned = [&Sha256::digest(&whole[SIGNATURE..])[..], &whole[SIGNATURE..]].concat();
        fs::write(&path, unsigned).unwrap();
        assert!(component(&cache, &engine, &empty()).unwrap(), "it was used");
        let moved = forged(
            &cache.key,
            "another name",
            &content(&empty()),
            &whole[SIGNATURE..],
        );
        fs::write(&path, moved).unwrap();
        assert!(component(&cache, &engine, &empty()).unwrap(), "it was used");
        let right = forged(&cache.key, name, &content(&empty()), &whole[SIGNATURE..]);
        fs::write(&path, right).unwrap();
        assert!(
            !component(&cache, &engine, &empty()).unwrap(),
            "the test forges nothing"
        );
    }

    #[test]
    fn a_directory_that_takes_the_place_of_the_cache_is_not_used() {
        let dir = Dir::new("replaced");
        let cache = Cache::open(&dir.0).unwrap();
        let engine = Engine::default();
        component(&cache, &engine, &empty()).unwrap();
        let (moved, path) = (Dir::new("replaced-moved"), dir.entries().remove(0));
        fs::rename(&dir.0, &moved.0).unwrap();
        fs::create_dir(&dir.0).unwrap();
        fs::write(&path, "anything").unwrap();
        assert!(!component(&cache, &engine, &empty()).unwrap());
        let other = wat::parse_str("(module)").unwrap();
        component(&cache, &engine, &other).unwrap();
        assert_eq!((dir.entries().len(), moved.entries().len()), (1, 2));
    }

    #[test]
    fn the_key_is_kept_unless_others_can_read_it_or_it_is_none() {
        let dir = Dir::new("key");
        let path = dir.0.join(KEY);
        let open = || {
            Cache::open(&dir.0).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
            let key = fs::read(&path).unwrap();
            assert_eq!(key.len(), KEY_LENGTH);
            key
        };
        let first = open();
        assert_eq!(open(), first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let second = open();
        assert_ne!(second, first);
        for damaged in [&second[1..], &[&second[..], b"x"].concat(), b""] {
            fs::write(&path, damaged).unwrap();
            assert_ne!(open(), second);
        }
        // A link is replaced, and what it leads to stays.
        let elsewhere = dir.0.join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let before = fs::read(&elsewhere).unwrap();
        assert_ne!(open(), before);
        assert!(!path.is_symlink());
        assert_eq!(fs::read(&elsewhere).unwrap(), before);
        assert!(
            dir.entries().iter().all(|path| path.extension().is_none()),
            "parts are left"
        );
    }

    #[test]
    fn links_in_the_directory_are_neither_read_nor_followed() {
        let (dir, other) = (Dir::new("links"), Dir::new("links-elsewhere"));
        let (cache, engine) = (Cache::open(&dir.0).unwrap(), Engine::default());
        component(&cache, &engine, &empty()).unwrap();
        let path = dir.entries().remove(0);
        // The same entry, behind a link.
        fs::create_dir(&other.0).unwrap();
        let target = other.0.join("target");
        fs::rename(&path, &target).unwrap();
        symlink(&target, &path).unwrap();
        let whole = fs::read(&target).unwrap();
        assert!(
            component(&cache, &engine, &empty()).unwrap(),
            "a link was followed"
        );
        assert!(!path.is_symlink());
        assert!(fs::read(&target).unwrap() == whole);
        // An old link to an old file is not what it leads to.
        let abandoned = File::options().append(true).open(&target).unwrap();
        abandoned.set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();
        symlink(&target, dir.0.join("1-0.part")).unwrap();
        let other = wat::parse_str("(module)").unwrap();
        component(&cache, &engine, &other).unwrap();
        assert!(dir.0.join("1-0.part").is_symlink() && target.exists());
    }
}
