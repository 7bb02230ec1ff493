//! The granted directories, which the host holds open.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtx, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use super::files;
use crate::config::{self, GrantedDir, Grants};
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
    held: ArcSwap<Held>,
}

impl Dirs {
    /// Opens the directories of `grants`.
    ///
    /// # Errors
    ///
    /// One cannot be opened, or is refused.
    pub(super) fn open(grants: &Grants) -> io::Result<Self> {
        Ok(Self {
            held: ArcSwap::from_pointee(Held::open(&grants.dirs, &grants.writable_by_others)?),
            granted: grants.dirs.clone(),
        })
    }

    /// Whether both are granted as the same directories.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.granted == other.granted
    }

    /// Opens them again, for [`hold`](Self::hold). Guests of other services may write to
    /// `writable_by_others`.
    ///
    /// # Errors
    ///
    /// One cannot be opened, or is refused.
    pub(super) fn open_again(&self, writable_by_others: &[PathBuf]) -> io::Result<Held> {
        Held::open(&self.granted, writable_by_others)
    }

    /// Uses these for instances that are made from now on.
    pub(super) fn hold(&self, opened: Held) {
        self.held.store(Arc::new(opened));
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
pub(super) struct Held {
    /// The same for WASI. All instances share the descriptors.
    wasi: WasiFilesystemCtx,
    files: Vec<Arc<File>>,
}

impl Held {
    fn open(dirs: &[GrantedDir], writable_by_others: &[PathBuf]) -> io::Result<Self> {
        let others = writable_by_others.iter().map(PathBuf::as_path);
        let mut builder = WasiCtxBuilder::new();
        let mut found = Vec::new();
        for dir in dirs {
            let writable = config::writable(dirs).chain(others.clone());
            found.push(granted_dir::open(&dir.host, writable)?);
            add(&mut builder, dir)?;
        }
        let mut wasi = builder.build().filesystem().clone();
        let files = files_of(&mut wasi).map_err(io::Error::other)?;
        // WASI takes paths only, and follows links of guests. So it must have come to the same.
        for ((file, found), dir) in files.iter().zip(&found).zip(dirs) {
            let id = FileId::from(&file.metadata()?);
            if id != FileId::from(&found.metadata()?) {
                return Err(io::Error::other(format!(
                    "cannot grant the directory `{}`: it was replaced while the host opened it; \
                     try again",
                    dir.host.display()
                )));
            }
            if dir.writable {
                granted_dir::becomes_writable(id);
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
