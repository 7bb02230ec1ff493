//! What guests may use beyond their connection, as WASI has it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::time::timeout;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::sockets::SocketAddrUse;

use super::clock::ProcessClock;
use super::dirs::Dirs;
use super::file_threads::FileThreads;
use super::files::{Files, OpenFiles};
use super::followed::Followed;
use super::log_share::Share;
use super::sockets::Sockets;
use crate::config::{Grants, Limits};
use crate::file_work::FileWork;
use crate::values;

/// Random bytes that a guest may have in one call, which is not interrupted. Beyond it, it traps, or by WASI 0.3 gets so many.
const MAX_RANDOM: u64 = 64 << 10;

/// The granted directories for one instance; `None` if there are none.
pub(super) type Opened = Option<Box<WasiFilesystemCtx>>;

/// The grants, with the names in them resolved.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    /// The name of the service, for the lines that guests log. `None` if there is no service.
    pub(super) service: Option<Arc<str>>,
    /// What the guests of the service may log.
    pub(super) share: Arc<Share>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// `None` if there are none.
    dirs: Option<Arc<Followed<Dirs>>>,
    /// Directories that guests of other services may write to.
    writable_by_others: Arc<ArcSwap<Vec<PathBuf>>>,
    outbound: Arc<Followed<Outbound>>,
    uses: Uses,
}

/// What the guests of one service use together, whatever its settings were when they began.
#[derive(Clone, Debug)]
struct Uses {
    /// The sockets that they hold.
    sockets: Arc<Sockets>,
    /// The files that they hold open.
    files: Arc<Files>,
    /// Where they use files; `None` if they have never had a directory.
    threads: Option<Arc<FileThreads>>,
    /// Opens the directories, which may hang.
    opening: Arc<Mutex<FileWork>>,
}

impl Uses {
    fn new(limits: &Limits) -> Self {
        Self {
            sockets: Sockets::new(limits),
            files: Files::new(limits),
            threads: None,
            opening: Arc::default(),
        }
    }
}

impl Granted {
    /// Resolves the names of destinations, and opens the directories. The guests keep to `limits`
    /// together. If the service was granted other things `before`, those of its guests that still
    /// run count too.
    ///
    /// # Errors
    ///
    /// One has no address, a directory is refused or cannot be opened, or the threads for files
    /// cannot be started.
    pub(super) fn resolve(grants: &Grants, limits: &Limits, before: Option<&Self>) -> io::Result<Self> {
        let has_dirs = !grants.dirs.is_empty();
        let mut uses = before.map_or_else(|| Uses::new(limits), |before| before.uses.clone());
        if has_dirs && uses.threads.is_none() {
            uses.threads = Some(FileThreads::start()?);
        }
        Ok(Self {
            service: None,
            share: Share::of(None),
            args: grants.args.clone(),
            env: grants.env.clone(),
            dirs: match has_dirs {
                true => Some(Followed::new(Dirs::open(grants)?)),
                false => None,
            },
            writable_by_others: Arc::new(ArcSwap::from_pointee(grants.writable_by_others.clone())),
            outbound: Followed::new(Outbound::resolve(&grants.outbound)?),
            uses,
        })
    }

    /// Has guests with these grants use the directories and addresses of `next`, the next grants of
    /// the service, where both name the same.
    pub(super) fn follow(&self, next: &Self) {
        if let Some((dirs, next)) = self.dirs.as_ref().zip(next.dirs.as_ref())
            && dirs.own().is_same(next.own())
        {
            dirs.follow(next);
        }
        if self.outbound.own().destinations == next.outbound.own().destinations {
            self.outbound.follow(&next.outbound);
        }
    }

    /// Holds all guests of the service to `limits` from now on, those that run already included.
    pub(super) fn bound(&self, limits: &Limits) {
        self.uses.sockets.bound(limits);
        self.uses.files.bound(limits);
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

    /// Whether there are directories.
    pub(super) fn has_dirs(&self) -> bool {
        self.dirs.is_some()
    }

    /// Whether there is anything to connect to.
    pub(super) fn has_outbound(&self) -> bool {
        !self.outbound.own().destinations.is_empty()
    }

    /// Whether a destination has a name, whose addresses can change.
    pub(super) fn has_names(&self) -> bool {
        let is_name = |destination: &String| destination.parse::<SocketAddr>().is_err();
        self.outbound.own().destinations.iter().any(is_name)
    }

    /// Resolves the names of destinations again, which may wait for a name server. Returns the
    /// addresses if they differ from those before.
    ///
    /// # Errors
    ///
    /// One has no address. The addresses stay as they are.
    pub(super) fn resolve_again(&self) -> io::Result<Option<Vec<SocketAddr>>> {
        let outbound = self.outbound.own();
        let found = addresses(&outbound.destinations)?;
        if found == **outbound.addresses.load() {
            return Ok(None);
        }
        outbound.addresses.store(Arc::new(found.clone()));
        Ok(Some(found))
    }

    /// Whether there are arguments, before which the name of the program stands.
    pub(super) fn has_args(&self) -> bool {
        !self.args.is_empty()
    }

    /// The sockets that guests hold; `None` if they have no destination.
    pub(super) fn sockets(&self) -> Option<&Arc<Sockets>> {
        self.has_outbound().then_some(&self.uses.sockets)
    }

    /// The files of a new instance, of which there are none; `None` if it has no directory.
    pub(super) fn open_files(&self) -> Option<Arc<OpenFiles>> {
        Some(OpenFiles::new(&self.uses.files, self.file_threads()?))
    }

    /// The threads on which guests use files; `None` if they have no directory.
    pub(super) fn file_threads(&self) -> Option<Arc<FileThreads>> {
        self.dirs.as_ref().and(self.uses.threads.clone())
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
                    SocketAddrUse::TcpConnect => outbound.newest().addresses.load().contains(&address),
                    // What every socket that connects is bound to. Listening there is asked for apart.
                    SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
                    _ => false,
                };
                Box::pin(async move { granted })
            });
        }
        wasi
    }

    /// Notes the directories that guests of other services may write to from now on.
    pub(super) fn others_may_write_to(&self, others: Vec<PathBuf>) {
        self.writable_by_others.store(Arc::new(others));
    }

    /// Opens the granted directories again, for instances that are made from now on. Gives up after
    /// `max`. Files of guests that keep all their threads busy do not hinder this.
    ///
    /// # Errors
    ///
    /// One cannot be opened in that time, or is refused. All stay as they are.
    pub(super) async fn open_again(&self, max: Duration) -> io::Result<()> {
        let Some(dirs) = &self.dirs else {
            return Ok(());
        };
        let mut opening = self.uses.opening.lock().await;
        let writable_by_others = self.writable_by_others.load_full();
        let again = Arc::clone(dirs);
        let opened = opening
            .run(max, move || again.own().open_again(&writable_by_others))
            .await;
        let opened = opened
            .map_err(|error| io::Error::other(format!("opening the granted directories {error}")))??;
        // What comes too late is not used.
        dirs.own().hold(opened);
        Ok(())
    }

    /// Takes the granted directories for one instance, if there are any. While files of other
    /// guests keep all threads busy, this waits, so guests queue no more and more operations.
    ///
    /// # Errors
    ///
    /// A directory was removed.
    pub(super) async fn open(&self) -> wasmtime::Result<Opened> {
        let Some((dirs, threads)) = self.dirs.clone().zip(self.file_threads()) else {
            return Ok(None);
        };
        // In a box, so that connections without directories have no room for it.
        let opened = Box::pin(async move {
            threads
                .open(self.service(), move || dirs.newest().for_instance())
                .await
        });
        Ok(Some(Box::new(opened.await?)))
    }

    /// The same, but gives up after `max`.
    ///
    /// # Errors
    ///
    /// A directory was removed, or the threads are busy for that time.
    pub(super) async fn open_within(&self, max: Duration) -> wasmtime::Result<Opened> {
        let opened = timeout(max, self.open()).await;
        opened.unwrap_or_else(|_| {
            Err(wasmtime::format_err!(
                "opening the granted directories took longer than {max:?}"
            ))
        })
    }
}

/// The destinations that the guests of one service may connect to.
#[derive(Debug)]
struct Outbound {
    /// As the operator names them.
    destinations: Vec<String>,
    /// All guests of a service share them, however old they are.
    addresses: ArcSwap<Vec<SocketAddr>>,
}

impl Outbound {
    fn resolve(destinations: &[String]) -> io::Result<Self> {
        Ok(Self {
            addresses: ArcSwap::from_pointee(addresses(destinations)?),
            destinations: destinations.to_owned(),
        })
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
        let addresses = values::resolve(destination).map_err(|error| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GrantedDir;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_destination_can_have_a_network_interface() {
        let found = |destination: &str| addresses(&[destination.to_owned()]);
        let by_number = found("[fe80::1%1]:80").unwrap();
        assert_eq!(by_number, ["[fe80::1%1]:80".parse().unwrap()]);
        assert_eq!(found("[fe80::1%lo]:80").unwrap(), by_number);
        let error = found("[fe80::1%no-such-one]:80").unwrap_err().to_string();
        assert!(
            error.contains("there is no network interface `no-such-one`"),
            "{error}"
        );
    }

    #[test]
    fn threads_for_files_stay_with_a_service_whatever_its_settings_are() {
        let limits = Limits::default();
        let none = Grants::default();
        let dirs = Grants {
            dirs: vec![GrantedDir {
                host: "/usr".into(),
                guest: "/".to_owned(),
                writable: false,
            }],
            ..Grants::default()
        };
        let first = Granted::resolve(&none, &limits, None).unwrap();
        assert!(first.file_threads().is_none() && first.open_files().is_none());
        let second = Granted::resolve(&dirs, &limits, Some(&first)).unwrap();
        let threads = second.file_threads().unwrap();
        let third = Granted::resolve(&none, &limits, Some(&second)).unwrap();
        assert!(third.file_threads().is_none());
        let fourth = Granted::resolve(&dirs, &limits, Some(&third)).unwrap();
        assert!(Arc::ptr_eq(&threads, &fourth.file_threads().unwrap()));
        assert!(Arc::ptr_eq(&second.uses.files, &fourth.uses.files));
    }
}
