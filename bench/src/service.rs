//! A host with any component and flags, whose log is followed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::contender::Places;

/// How long a line of the log is waited for: as long as it may take to compile a large component.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running host. It is killed when this is dropped.
pub(crate) struct Service {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    log: Mutex<Receiver<String>>,
}

impl Service {
    /// Starts a host that serves with `component`, and waits until it listens.
    ///
    /// # Errors
    ///
    /// It does not come to listen.
    pub(crate) fn start(places: &Places, component: &Path, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(places.programs.join("wasm-inetd"))
            .args(["--listen", "127.0.0.1:0", "--cache", &places.cache, "--component"])
            .arg(component)
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the host")?;
        let stderr = child.stderr.take().context("the host has no standard error")?;
        let (sender, log) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Those of connections are of no interest here.
                if !line.contains("connection ended") && sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut service = Self {
            child,
            address: SocketAddr::from(([0; 4], 0)),
            log: log.into(),
        };
        let line = service.line("listening on ")?;
        let (_, address) = line
            .split_once("listening on ")
            .context("the log line names no address")?;
        let address = address
            .split_whitespace()
            .next()
            .context("the log line names no address")?;
        service.address = address.parse()?;
        Ok(service)
    }

    /// Waits for a line of the log that holds `text`.
    ///
    /// # Errors
    ///
    /// None comes, or one that warns.
    pub(crate) fn line(&self, text: &str) -> Result<String> {
        let log = self.log.lock().map_err(|_| anyhow!("another thread panicked"))?;
        loop {
            let line = log
                .recv_timeout(PATIENCE)
                .with_context(|| format!("no line with {text:?} in the log of the host"))?;
            ensure!(!line.contains("WARN") && !line.contains("ERROR"), "{line}");
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// Has it load its component again.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub(crate) fn hang_up(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::HUP)?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
