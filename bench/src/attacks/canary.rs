//! A client of another service, which shows what an attack takes from others.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;

/// Time between two bytes of the canary.
pub(super) const PERIOD: Duration = Duration::from_millis(10);

/// The longest that the canary waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A thread that sends a byte every [`PERIOD`] and waits for its echo.
pub(super) struct Canary {
    thread: JoinHandle<Result<Histogram<u64>>>,
    recording: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
}

/// Times are recorded until this is dropped.
pub(super) struct Recorded<'a>(&'a AtomicBool);

impl Canary {
    /// Connects to a service that echoes lines, and waits for the first echo.
    pub(super) fn start(address: SocketAddr) -> Result<Self> {
        let mut socket = TcpStream::connect(address).context("the canary cannot connect")?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        round_trip(&mut socket)?;
        let (recording, stopped) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let flags = (Arc::clone(&recording), Arc::clone(&stopped));
        let thread = thread::spawn(move || sing(socket, &flags.0, &flags.1));
        Ok(Self {
            thread,
            recording,
            stopped,
        })
    }

    /// Records the times from now on.
    pub(super) fn record(&self) -> Recorded<'_> {
        self.recording.store(true, Relaxed);
        Recorded(&self.recording)
    }

    /// Returns the times that were recorded, in nanoseconds.
    ///
    /// # Errors
    ///
    /// The canary lost its connection, or was not answered.
    pub(super) fn stop(self) -> Result<Histogram<u64>> {
        self.stopped.store(true, Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the thread of the canary panicked"))?
    }
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

fn sing(mut socket: TcpStream, recording: &AtomicBool, stopped: &AtomicBool) -> Result<Histogram<u64>> {
    let mut times = Histogram::new_with_max(60_000_000_000, 3)?;
    let mut next = Instant::now();
    while !stopped.load(Relaxed) {
        // One that begins in the attack counts, however late it ends.
        let counts = recording.load(Relaxed);
        let time = round_trip(&mut socket)?;
        if counts {
            times.saturating_record(u64::try_from(time.as_nanos())?);
        }
        next += PERIOD;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(times)
}

fn round_trip(socket: &mut TcpStream) -> Result<Duration> {
    let sent = Instant::now();
    socket
        .write_all(b"\n")
        .context("the canary lost its connection")?;
    socket
        .read_exact(&mut [0])
        .context("the canary was not answered")?;
    Ok(sent.elapsed())
}
