//! An entry of the cache of compiled code that the case damages: the component must be served all
//! the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use host::config::{CacheDir, Grants, Limits};
use host::sandbox::{Compiler, Generation, Origin, Sandbox};
use tokio::runtime::{Builder, Runtime};

/// A module for WASI preview 1 that does nothing. It is small, so that it compiles in no time.
const MODULE: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x04\x01\x60\0\0\
    \x03\x02\x01\0\
    \x05\x03\x01\0\x01\
    \x07\x13\x02\x06memory\x02\0\x06_start\0\0\
    \x0a\x04\x01\x02\0\x0b";

#[derive(Clone, Copy, Debug)]
enum Damage {
    /// The byte at this place has another value.
    Change(u32, u8),
    /// The entry ends at this place.
    Cut(u32),
    /// A byte is added at this place.
    Insert(u32, u8),
    /// This many zeros follow the entry.
    Append(u16),
}

impl<'a> Arbitrary<'a> for Damage {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=3)? {
            0 => Self::Change(u.arbitrary()?, u.arbitrary()?),
            1 => Self::Cut(u.arbitrary()?),
            2 => Self::Insert(u.arbitrary()?, u.arbitrary()?),
            _ => Self::Append(u.arbitrary()?),
        })
    }
}

impl Damage {
    fn apply(self, entry: &mut Vec<u8>) {
        let at = |place: u32| place as usize % (entry.len() + 1);
        match self {
            Self::Change(place, byte) => {
                let at = at(place);
                if let Some(changed) = entry.get_mut(at) {
                    *changed = byte;
                }
            }
            Self::Cut(place) => entry.truncate(at(place)),
            Self::Insert(place, byte) => entry.insert(at(place), byte),
            Self::Append(count) => entry.resize(entry.len() + usize::from(count), 0),
        }
    }
}

/// Loads a component whose entry in the cache is damaged.
///
/// # Panics
///
/// The component cannot be loaded, or an entry that was damaged is not replaced.
pub fn run(bytes: &[u8]) {
    let Ok(damage) = Vec::<Damage>::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    // A panic in another case leaves nothing half-written.
    let cached = CACHED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut entry = cached.entry.clone();
    damage.iter().for_each(|damage| damage.apply(&mut entry));
    let path = cached.path();
    fs::write(&path, &entry).unwrap();
    cached.load();
    // It was read, or compiled and written again.
    assert!(fs::read(&path).unwrap() == cached.entry, "{damage:?}");
}

struct Cached {
    dir: PathBuf,
    module: PathBuf,
    /// The entry that the host wrote.
    entry: Vec<u8>,
    sandbox: Sandbox,
    runtime: Runtime,
}

static CACHED: LazyLock<Mutex<Cached>> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("wasm-inetd-fuzz-{}", process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let (module, dir) = (dir.join("module.wasm"), dir.join("cache"));
    fs::write(&module, MODULE).unwrap();
    let cache = CacheDir::At(dir.clone());
    let mut cached = Cached {
        dir,
        module,
        entry: Vec::new(),
        sandbox: Sandbox::new(
            &Limits::default(),
            &Grants::default(),
            &Compiler::in_process(&cache),
        )
        .unwrap(),
        runtime: Builder::new_current_thread().enable_time().build().unwrap(),
    };
    cached.load();
    cached.entry = fs::read(cached.path()).unwrap();
    Mutex::new(cached)
});

impl Cached {
    fn load(&self) -> Arc<Generation> {
        let content = Origin::File(self.module.clone()).read().unwrap();
        self.runtime.block_on(self.sandbox.load(&content)).unwrap()
    }

    /// The path of the only entry.
    fn path(&self) -> PathBuf {
        let files = fs::read_dir(&self.dir).unwrap();
        let mut entries = files
            .map(|file| file.unwrap().path())
            .filter(|path: &PathBuf| path.extension() == Some(Path::new("cwasm").as_os_str()));
        let entry = entries.next().unwrap();
        assert_eq!(entries.next(), None);
        entry
    }
}
