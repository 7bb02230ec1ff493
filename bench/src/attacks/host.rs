//! A host of several services, whose log is counted.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::contender::Places;
use crate::measure;

/// How long the host may take to listen, and to log the ends of its connections.
const PATIENCE: Duration = Duration::from_secs(60);
const SETTLING: Duration = Duration::from_secs(3);

/// Names of services and of what is counted.
type Counts = BTreeMap<(String, String), u64>;

/// What the log has said so far.
#[derive(Default)]
struct Said {
    addresses: BTreeMap<String, SocketAddr>,
    admin: Option<SocketAddr>,
    counts: Counts,
    /// The last lines, for the message of an error.
    last: Vec<String>,
}

/// A running host. It is killed when this is dropped.
pub(super) struct Host {
    child: Child,
    said: Arc<Mutex<Said>>,
    reader: Option<JoinHandle<()>>,
}

impl Host {
    /// Starts a host with a services file, and waits until its services listen.
    ///
    /// # Errors
    ///
    /// It does not come to listen. The error has the last lines of its log.
    pub(super) fn start(places: &Places, dir: &Path, config: &str) -> Result<Self> {
        let file = dir.join("services.toml");
        fs::write(&file, config)?;
        let mut child = Command::new(places.programs.join("wasm-inetd"))
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the host")?;
        let stderr = child.stderr.take().context("the host has no standard error")?;
        let said = Arc::<Mutex<Said>>::default();
        let reader = thread::spawn({
            let said = Arc::clone(&said);
            move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    lock(&said).hear(&String::from_utf8_lossy(&line));
                }
            }
        });
        let mut host = Self {
            child,
            said,
            reader: Some(reader),
        };
        let since = Instant::now();
        while lock(&host.said).addresses.len() < config.matches("[[service]]").count() {
            if host.child.try_wait()?.is_some() || since.elapsed() > PATIENCE {
                bail!("the host does not listen: {}", lock(&host.said).last.join("\n"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(host)
    }

    /// The address of a service.
    pub(super) fn address(&self, service: &str) -> Result<SocketAddr> {
        let found = lock(&self.said).addresses.get(service).copied();
        found.with_context(|| format!("the service `{service}` does not listen"))
    }

    /// The address of the admin interface, if there is one.
    pub(super) fn admin(&self) -> Option<SocketAddr> {
        lock(&self.said).admin
    }

    /// The number of the process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has the host load its components again.
    pub(super) fn hang_up(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::HUP)?)
    }

    /// How often the log has said this of a service: an outcome, a reason of a refusal, or a
    /// message.
    pub(super) fn count(&self, service: &str, what: &str) -> u64 {
        let key = (service.to_owned(), what.to_owned());
        lock(&self.said).counts.get(&key).copied().unwrap_or(0)
    }

    /// The resident bytes of the host now, from which on the peak counts.
    pub(super) fn resident_from_now(&self) -> Result<u64> {
        let resident = measure::status_bytes(self.pid(), "VmRSS:")?;
        // 5 resets the peak of resident memory (proc_pid_clear_refs(5)).
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?;
        Ok(resident)
    }

    /// The peak of the resident bytes.
    pub(super) fn most_resident(&self) -> Result<u64> {
        measure::status_bytes(self.pid(), "VmHWM:")
    }

    /// What the log says of the connections of a service, once it says no more.
    pub(super) fn outcomes(mut self, service: &str) -> Vec<(String, u64)> {
        let since = Instant::now();
        let mut before = lock(&self.said).counts.clone();
        while since.elapsed() < SETTLING {
            thread::sleep(Duration::from_millis(300));
            let now = lock(&self.said).counts.clone();
            if now == before {
                break;
            }
            before = now;
        }
        self.kill();
        let said = lock(&self.said);
        let of_service = said.counts.iter().filter(|((name, _), _)| name == service);
        of_service
            .map(|((_, what), count)| (what.clone(), *count))
            .collect()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It ends with the pipe.
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Said {
    /// Takes a line of the log in.
    fn hear(&mut self, line: &str) {
        self.last.push(line.to_owned());
        if self.last.len() > 20 {
            self.last.remove(0);
        }
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            return;
        };
        let text = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default();
        let (message, service) = (text("message"), text("service"));
        let address = message.split_whitespace().last().unwrap_or_default();
        if message.starts_with("listening on ") {
            if let Ok(address) = address.parse() {
                self.addresses.insert(service.to_owned(), address);
            }
            return;
        }
        if let Some((_, address)) = message.split_once("http://") {
            let address = address.trim_end_matches('/').parse();
            self.admin = self.admin.or(address.ok());
        }
        let what = match message {
            "connection ended" => text("outcome"),
            "connection refused" => text("reason"),
            "component reloaded" => "reloaded",
            _ if message.starts_with("reload failed") => "reload failed",
            _ if message.starts_with("breaker open") => "breaker open",
            _ if message.contains("panic") => "host-panic",
            _ => return,
        };
        let key = (service.to_owned(), what.to_owned());
        *self.counts.entry(key).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_counted_by_service() {
        let mut said = Said::default();
        for line in [
            r#"{"message":"listening on 127.0.0.1:80","service":"target"}"#,
            r#"{"message":"connection ended","service":"target","outcome":"cpu-limit"}"#,
            r#"{"message":"connection ended","service":"target","outcome":"cpu-limit"}"#,
            r#"{"message":"connection ended","service":"canary","outcome":"finished"}"#,
            r#"{"message":"connection refused","service":"target","reason":"failing"}"#,
            "not a line of the log",
        ] {
            said.hear(line);
        }
        let count = |service: &str, what: &str| said.counts.get(&(service.to_owned(), what.to_owned()));
        assert_eq!(said.addresses["target"].port(), 80);
        assert_eq!(count("target", "cpu-limit"), Some(&2));
        assert_eq!(count("target", "failing"), Some(&1));
        assert_eq!(said.counts.len(), 3);
    }
}
