//! What guests may use beyond their connection, as WASI has it.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::timeout;
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use super::clock::ProcessClock;
use super::file_threads::FileThreads;
use super::files::Files;
use super::log_share::Share;
use super::sockets::Sockets;
use crate::config::{GrantedDir, Grants, Limits};
use crate::system::refuse_kernel_directory;

/// Random bytes that a guest may have in one call, which is not interrupted. Beyond it, it traps, or by WASI 0.3 gets so many.
const MAX_RANDOM: u64 = 64 << 10;

/// What WASI is made of for one instance, with the granted directories open; `None` if there are
/// none.
pub(super) type Opened = Option<Box<WasiCtxBuilder>>;

/// The grants, with the names in them resolved.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    /// The name of the service, for the lines that guests log. `None` if there is no service.
    pub(super) service: Option<Arc<str>>,
    /// What the guests of the service may log.
    pub(super) share: Arc<Share>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    dirs: Vec<GrantedDir>,
    /// Destinations, as the operator names them.
    destinations: Vec<String>,
    /// The addresses of the destinations. All guests of a service share them, however old they are.
    outbound: Arc<ArcSwap<Vec<SocketAddr>>>,
    /// The sockets that guests hold; `None` if they have no destination.
    sockets: Option<Arc<Sockets>>,
    /// The files that guests hold open; `None` if they have no directory.
    files: Option<Arc<Files>>,
    /// Where guests use files; `None` if they have no directory.
    threads: Option<Arc<FileThreads>>,
}

impl Granted {
    /// Resolves the names of destinations. The guests keep to `limits` together.
    ///
    /// # Errors
    ///
    /// One has no address, a directory is one of the kernel's, or the threads for files cannot be
    /// started.
    pub(super) fn resolve(grants: &Grants, limits: &Limits) -> io::Result<Self> {
        for dir in &grants.dirs {
            refuse_kernel_directory(&dir.host)?;
        }
        let outbound = addresses(&grants.outbound)?;
        Ok(Self {
            service: None,
            share: Share::of(None),
            args: grants.args.clone(),
            env: grants.env.clone(),
            dirs: grants.dirs.clone(),
            sockets: (!outbound.is_empty()).then(|| Sockets::new(limits)),
            files: (!grants.dirs.is_empty()).then(|| Files::new(limits)),
            destinations: grants.outbound.clone(),
            outbound: Arc::new(ArcSwap::from_pointee(outbound)),
            threads: (!grants.dirs.is_empty()).then(FileThreads::start).transpose()?,
        })
    }

    /// The same for the service of this name.
    pub(super) fn of_service(&self, name: &str) -> Self {
        let name = name.into();
        Self {
            share: Share::of(Some(&name)),
            service: Some(name),
            ..self.clone()
        }
    }

    /// The name of the service, for lines of the log.
    pub(super) fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    /// Whether the guest is granted `RUST_BACKTRACE`, and so asks for a backtrace if it panics.
    ///
    /// A Rust guest prints an empty one, because the standard library cannot walk the stack of
    /// WebAssembly. The host can.
    pub(super) fn has_backtraces(&self) -> bool {
        let mut env = self.env.iter().rev();
        let value = env.find(|(name, _)| name == "RUST_BACKTRACE");
        value.is_some_and(|(_, value)| value != "0")
    }

    /// Whether what is granted has to be opened for each instance.
    pub(super) fn has_dirs(&self) -> bool {
        !self.dirs.is_empty()
    }

    /// Whether there is anything to connect to.
    pub(super) fn has_outbound(&self) -> bool {
        !self.destinations.is_empty()
    }

    /// Whether a destination has a name, whose addresses can change.
    pub(super) fn has_names(&self) -> bool {
        let is_name = |destination: &String| destination.parse::<SocketAddr>().is_err();
        self.destinations.iter().any(is_name)
    }

    /// Resolves the names of destinations again, which may wait for a name server. Returns the
    /// addresses if they differ from those before.
    ///
    /// # Errors
    ///
    /// One has no address. The addresses stay as they are.
    pub(super) fn resolve_again(&self) -> io::Result<Option<Vec<SocketAddr>>> {
        let found = addresses(&self.destinations)?;
        if found == **self.outbound.load() {
            return Ok(None);
        }
        self.outbound.store(Arc::new(found.clone()));
        Ok(Some(found))
    }

    /// Whether there are arguments, before which the name of the program stands.
    pub(super) fn has_args(&self) -> bool {
        !self.args.is_empty()
    }

    /// The sockets that guests hold.
    pub(super) fn sockets(&self) -> Option<&Arc<Sockets>> {
        self.sockets.as_ref()
    }

    /// The files that guests hold open.
    pub(super) fn files(&self) -> Option<&Arc<Files>> {
        self.files.as_ref()
    }

    /// The threads on which guests use files.
    pub(super) fn file_threads(&self) -> Option<Arc<FileThreads>> {
        self.threads.clone()
    }

    /// All of it, but for the directories. There is no standard input, and standard output and
    /// standard error go nowhere.
    pub(super) fn without_dirs(&self, program: &str) -> WasiCtxBuilder {
        let mut wasi = WasiCtxBuilder::new();
        if self.has_args() {
            wasi.arg(program);
        }
        wasi.args(&self.args)
            .envs(&self.env)
            .monotonic_clock(ProcessClock)
            .max_random_size(MAX_RANDOM)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .allow_tcp(self.has_outbound());
        if self.has_outbound() {
            let outbound = Arc::clone(&self.outbound);
            wasi.socket_addr_check(move |address, purpose| {
                let granted = match purpose {
                    SocketAddrUse::TcpConnect => outbound.load().contains(&address),
                    // What every socket that connects is bound to. Listening there is asked for apart.
                    SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
                    _ => false,
                };
                Box::pin(async move { granted })
            });
        }
        wasi
    }

    /// Opens the granted directories for one instance, if there are any. This may wait for a disk.
    ///
    /// # Errors
    ///
    /// A directory cannot be opened.
    pub(super) async fn open(self: &Arc<Self>, program: &Arc<str>) -> wasmtime::Result<Opened> {
        let Some(threads) = &self.threads else {
            return Ok(None);
        };
        let (granted, program) = (Arc::clone(self), Arc::clone(program));
        // In a box, so that connections without directories have no room for it.
        let opened = Box::pin(threads.open(self.service.as_deref(), move || granted.all(&program)));
        Ok(Some(Box::new(opened.await?)))
    }

    /// The same, but gives up after `max`.
    ///
    /// # Errors
    ///
    /// A directory cannot be opened in that time.
    pub(super) async fn open_within(
        self: &Arc<Self>,
        max: Duration,
        program: &Arc<str>,
    ) -> wasmtime::Result<Opened> {
        let opened = timeout(max, self.open(program)).await;
        opened.unwrap_or_else(|_| {
            Err(wasmtime::format_err!(
                "opening the granted directories took longer than {max:?}"
            ))
        })
    }

    /// All of it.
    ///
    /// # Errors
    ///
    /// A directory cannot be opened.
    fn all(&self, program: &str) -> wasmtime::Result<WasiCtxBuilder> {
        let mut wasi = self.without_dirs(program);
        for GrantedDir {
            host,
            guest,
            writable,
        } in &self.dirs
        {
            let perms = if *writable {
                FsPerms::ReadWrite
            } else {
                FsPerms::ReadOnly
            };
            wasi.preopened_dir(host, guest, perms).map_err(|error| {
                error.context(format!("cannot open the granted directory `{}`", host.display()))
            })?;
        }
        Ok(wasi)
    }
}

/// Resolves destinations. Sorts their addresses, because name servers change the order.
///
/// # Errors
///
/// One has no address.
fn addresses(destinations: &[String]) -> io::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for destination in destinations {
        let addresses = destination.to_socket_addrs().map_err(|error| {
            io::Error::other(format!(
                "cannot resolve the granted destination `{destination}`: {error}"
            ))
        })?;
        found.extend(addresses);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
