//! How long a connection waits for its echo while others loop for ever.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::contender::{self, Places};

/// Time between two requests of the connection that is measured.
const PERIOD: Duration = Duration::from_millis(10);

/// How long each of the two measurements takes.
const LENGTH: Duration = Duration::from_secs(10);

/// Measures without and with twice as many looping connections as there are cores, and prints both.
///
/// # Errors
///
/// The host does not start, or does not answer.
pub(crate) fn measure(places: &Places) -> Result<()> {
    let loops = 2 * thread::available_parallelism()?.get();
    println!(
        "64-byte round trips every {PERIOD:?} for {LENGTH:?}, while guests of other connections loop \
         forever:\n"
    );
    println!("| looping connections | p50 ms | p99 ms | max ms |\n|---:|---:|---:|---:|");
    for loops in [0, loops] {
        let server = contender::looping().start(places, 100, false)?;
        let attackers = (0..loops)
            .map(|_| attack(server.address))
            .collect::<Result<Vec<_>>>()?;
        let mut times = canary(server.address)?;
        drop(attackers);
        times.sort();
        let at = |share: f64| {
            let index = (times.len() as f64 * share) as usize;
            let time = times.get(index.min(times.len() - 1)).copied().unwrap_or_default();
            time.as_secs_f64() * 1000.0
        };
        println!("| {loops} | {:.2} | {:.2} | {:.2} |", at(0.5), at(0.99), at(1.0));
    }
    Ok(())
}

/// A connection whose guest loops for ever, and has begun to.
fn attack(address: SocketAddr) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.write_all(b"hello")?;
    socket.read_exact(&mut [0; 5])?;
    socket.write_all(b"!")?;
    Ok(socket)
}

fn canary(address: SocketAddr) -> Result<Vec<Duration>> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (message, mut answer) = ([b'c'; 64], [0; 64]);
    let mut times = Vec::new();
    let start = Instant::now();
    let mut next = start;
    while start.elapsed() < LENGTH {
        let sent = Instant::now();
        socket.write_all(&message)?;
        socket.read_exact(&mut answer)?;
        times.push(sent.elapsed());
        next += PERIOD;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(times)
}
