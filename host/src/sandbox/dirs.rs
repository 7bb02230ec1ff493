//! The granted directories, which the host holds open.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtx, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use super::files;
use crate::config::{GrantedDir, Grants};
use crate::file_id::FileId;
use crate::granted_dir;

/// The directories that the guests of one service may use.
///
/// They are opened when a component is loaded, and not for each instance: a guest that can write to
/// the directory above one of them could put a link in its place, which would lead out of what is
/// granted.
#[derive(Debug)]
pub(super) struct Dirs {
    granted: Vec<GrantedDir>,
    /// Directories that guests may write to, of this service or of others.
    writable: ArcSwap<Vec<PathBuf>>,
    held: ArcSwap<Held>,
}

impl Dirs {
    /// Opens the directories of `grants`.
    ///
    /// # Errors
    ///
    /// One cannot be opened, or is refused.
    pub(super) fn open(grants: &Grants) -> io::Result<Arc<Self>> {
        let granted = grants.dirs.clone();
        let writable: Vec<_> = grants.writable().map(Path::to_owned).collect();
        Ok(Arc::new(Self {
            held: ArcSwap::from_pointee(Held::open(&granted, &writable)?),
            writable: ArcSwap::from_pointee(writable),
            granted,
        }))
    }

    /// Notes the directories that guests of other services may write to from now on.
    pub(super) fn others_may_write_to(&self, others: Vec<PathBuf>) {
        let grants = Grants {
            dirs: self.granted.clone(),
            writable_by_others: others,
            ..Grants::default()
        };
        let writable = grants.writable().map(Path::to_owned).collect();
        self.writable.store(Arc::new(writable));
    }

    /// Opens them again, for instances that are made from now on.
    ///
    /// # Errors
    ///
    /// One cannot be opened, or is refused. All stay as they are.
    pub(super) fn open_again(&self) -> io::Result<()> {
        let held = Held::open(&self.granted, &self.writable.load())?;
        self.held.store(Arc::new(held));
        Ok(())
    }

    /// Returns what WASI needs of them for one instance.
    ///
    /// # Errors
    ///
    /// One was removed.
    pub(super) fn for_instance(&self) -> io::Result<WasiFilesystemCtx> {
        let held = self.held.load();
        for (file, dir) in held.files.iter().zip(&self.granted) {
            if file.metadata()?.nlink() == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!(
                        "cannot open the granted directory `{}`: it was removed; create it again and send \
                         SIGHUP, with which the host opens it again",
                        dir.host.display()
                    ),
                ));
            }
        }
        Ok(held.wasi.clone())
    }
}

/// Directories that are open.
struct Held {
    /// The same for WASI. All instances share the descriptors.
    wasi: WasiFilesystemCtx,
    files: Vec<Arc<File>>,
}

impl Held {
    fn open(dirs: &[GrantedDir], writable: &[PathBuf]) -> io::Result<Self> {
        let mut builder = WasiCtxBuilder::new();
        let mut found = Vec::new();
        for dir in dirs {
            let writable = writable.iter().map(PathBuf::as_path);
            found.push(granted_dir::open(&dir.host, writable)?);
            add(&mut builder, dir)?;
        }
        let mut wasi = builder.build().filesystem().clone();
        let files = files_of(&mut wasi).map_err(io::Error::other)?;
        // WASI takes paths only, and follows links of guests. So it must have come to the same.
        for ((file, found), dir) in files.iter().zip(&found).zip(dirs) {
            if FileId::from(&file.metadata()?) != FileId::from(&found.metadata()?) {
                return Err(io::Error::other(format!(
                    "cannot grant the directory `{}`: it was replaced while the host opened it; \
                     try again",
                    dir.host.display()
                )));
            }
        }
        Ok(Self { wasi, files })
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// Has WASI open a directory.
fn add(builder: &mut WasiCtxBuilder, dir: &GrantedDir) -> io::Result<()> {
    let perms = if dir.writable {
        FsPerms::ReadWrite
    } else {
        FsPerms::ReadOnly
    };
    let added = builder.preopened_dir(&dir.host, &dir.guest, perms);
    added.map(drop).map_err(|error| {
        let host = dir.host.display();
        io::Error::other(format!("cannot open the granted directory `{host}`: {error:#}"))
    })
}

/// Returns the directories that WASI has opened.
fn files_of(wasi: &mut WasiFilesystemCtx) -> wasmtime::Result<Vec<Arc<File>>> {
    let mut table = ResourceTable::new();
    let mut view = WasiFilesystemCtxView {
        ctx: wasi,
        table: &mut table,
    };
    let dirs = view.get_directories()?;
    let files = dirs.iter().map(|(dir, _)| {
        let dir: &Descriptor = table.get(dir)?;
        Ok(Arc::clone(files::file_of(dir)))
    });
    files.collect()
}
