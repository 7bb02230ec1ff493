//! Contenders: the servers that are measured, each a process of its own.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    /// Its name in tables.
    pub(crate) name: &'static str,
    /// What it is, in a few words, for tables.
    pub(crate) about: &'static str,
    /// How it is started; `{address}` stands for where it has to listen.
    command: Vec<String>,
    /// The Debian package that it comes with, if it is not ours.
    package: Option<&'static str>,
}

/// Where the programs of this workspace are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The directory of our own programs.
    pub(crate) programs: PathBuf,
    /// The directory of guests.
    pub(crate) guests: PathBuf,
    /// The directory of the sources of contenders in other languages.
    pub(crate) sources: PathBuf,
}

/// Every contender, in the order of tables.
pub(crate) fn all(places: &Places) -> Vec<Contender> {
    let host = |name, guest: &str, about| {
        let component = places.guests.join(guest).with_extension("wasm");
        let command = [
            &places.programs.join("host").display().to_string(),
            "--quiet",
            "--listen",
            "{address}",
            "--max-connections",
            "10000",
            "--component",
            &component.display().to_string(),
        ];
        Contender {
            name,
            about,
            command: command.map(str::to_owned).to_vec(),
            package: None,
        }
    };
    let own = |name, about| Contender {
        name,
        about,
        command: vec![
            places.programs.join(name).display().to_string(),
            "{address}".to_owned(),
        ],
        package: None,
    };
    let foreign = |name, package, command: &[&str], about| Contender {
        name,
        about,
        command: command
            .iter()
            .map(|word| word.replace("{sources}", &places.sources.display().to_string()))
            .collect(),
        package: Some(package),
    };
    vec![
        host("session", "lines-session", "this host, `lines-session`"),
        host(
            "streams",
            "lines",
            "this host, `lines`: streams, copied through the guest",
        ),
        host(
            "echo",
            "echo",
            "this host, `echo`: streams, returned by the guest",
        ),
        own("native", "tokio, a runtime for each core, 64 KiB buffers"),
        own("textbook", "tokio, `#[tokio::main]`, spawn, `io::copy`"),
        own("threads", "a thread for each connection"),
        foreign(
            "haproxy",
            "haproxy",
            &["haproxy", "-f", "{sources}/haproxy.cfg", "-q"],
            "HAProxy, a Lua service",
        ),
        foreign(
            "node",
            "nodejs",
            &["node", "{sources}/echo.mjs", "{address}"],
            "Node.js, `pipe`",
        ),
        foreign(
            "erlang",
            "erlang-base",
            &["escript", "-c", "{sources}/echo.erl", "{address}"],
            "Erlang, a process for each connection",
        ),
        foreign(
            "asyncio",
            "python3",
            &["python3", "{sources}/echo.py", "{address}"],
            "Python, asyncio protocol",
        ),
        foreign(
            "socat",
            "socat",
            &[
                "socat",
                "TCP-LISTEN:{port},bind={host},reuseaddr,fork,backlog=1024,nodelay",
                "EXEC:cat",
            ],
            "socat, `fork` and `EXEC:cat`",
        ),
    ]
}

impl Contender {
    /// The command that installs it, if it is not there.
    pub(crate) fn missing(&self) -> Option<String> {
        let program = self.command.first()?;
        let found = if program.contains('/') {
            Path::new(program).is_file()
        } else {
            std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        };
        if found {
            return None;
        }
        Some(match self.package {
            Some(package) => format!("apt-get install {package}"),
            None => "cargo build --release -p host -p bench".to_owned(),
        })
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    ///
    /// It does not start, or does not listen in time. What it said is in the error.
    pub(crate) fn start(&self, places: &Places) -> Result<Server> {
        let address = free_address()?;
        let words: Vec<String> = self
            .command
            .iter()
            .map(|word| {
                word.replace("{address}", &address.to_string())
                    .replace("{host}", &address.ip().to_string())
                    .replace("{port}", &address.port().to_string())
            })
            .collect();
        let (program, args) = words.split_first().context("no command")?;
        let log = std::env::temp_dir().join(format!("bench-{}-{}.log", self.name, std::process::id()));
        let output = File::create(&log)?;
        let since = Instant::now();
        let child = Command::new(program)
            .args(args)
            .env("ADDRESS", address.to_string())
            .env("CONTENDERS", &places.sources)
            .env("THREADS", thread::available_parallelism()?.to_string())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let mut server = Server {
            child,
            address,
            log,
            listened_after: Duration::ZERO,
        };
        loop {
            if TcpStream::connect(address).is_ok() {
                server.listened_after = since.elapsed();
                return Ok(server);
            }
            let ended = server.child.try_wait()?;
            ensure!(
                ended.is_none() && since.elapsed() < PATIENCE,
                "{} does not listen: {}",
                self.name,
                fs::read_to_string(&server.log).unwrap_or_default()
            );
            thread::sleep(Duration::from_micros(500));
        }
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A contender that runs. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
    /// From its start to its first connection.
    pub(crate) listened_after: Duration,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}
