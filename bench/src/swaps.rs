//! What a service under load notices of its component being swapped.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::contender::Places;
use crate::load::{self, Run};
use crate::service::Service;

const SWAPS: usize = 1000;
const CONNECTIONS: usize = 50;

/// The guests that take turns, and what each answers to a line that is `quit`.
const GUESTS: [(&str, &[u8]); 2] = [("echo", b"quit\n"), ("lines-session", b"")];

/// How long the load is measured at a time.
const LENGTH: Duration = Duration::from_secs(5);

/// Swaps a component while connections talk without a pause, and prints what they notice.
///
/// # Errors
///
/// A connection is lost, a byte is, or a new connection does not get what the log says.
pub(crate) fn measure(places: &Places) -> Result<()> {
    let component = places.scratch.join("swapped.wasm");
    put(places, GUESTS[0].0, &component)?;
    let service = Service::start(places, &component, &[])?;
    let mut message = vec![b's'; 63];
    message.push(b'\n');
    let load = || {
        load::ping_pong(
            service.address,
            CONNECTIONS,
            std::slice::from_ref(&message),
            LENGTH,
        )
    };
    let without = load()?;
    let done = AtomicBool::new(false);
    let (with, took) = thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            let start = Instant::now();
            let swapped =
                (1..=SWAPS).try_for_each(|number| swap(&service, places, &component, GUESTS[number % 2]));
            done.store(true, Ordering::Relaxed);
            swapped.map(|()| start.elapsed())
        });
        let mut with = load()?;
        while !done.load(Ordering::Relaxed) {
            let more = load()?;
            with.count += more.count;
            with.elapsed += more.elapsed;
            with.latency.add(&more.latency)?;
        }
        let took = swapping.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        anyhow::Ok((with, took))
    })?;
    println!(
        "{SWAPS} swaps in {:.1} s under {CONNECTIONS} connections: no connection lost, no byte lost, every new connection \
         after a swap got the new behaviour\n",
        took.as_secs_f64()
    );
    println!("| | ops/s | p50 µs | p99 µs | p99.9 µs |\n|---|---:|---:|---:|---:|");
    for (name, run) in [("without swaps", &without), ("during swaps", &with)] {
        print_row(name, run);
    }
    Ok(())
}

fn print_row(name: &str, run: &Run) {
    let at = |share| run.latency.value_at_quantile(share) as f64 / 1000.0;
    println!(
        "| {name} | {:.0} | {:.0} | {:.0} | {:.0} |",
        run.rate(),
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

/// Has the service swap its component, and looks whether that shows.
fn swap(service: &Service, places: &Places, component: &Path, (guest, answer): (&str, &[u8])) -> Result<()> {
    put(places, guest, component)?;
    service.hang_up()?;
    service.line("a new generation serves")?;
    let mut client = TcpStream::connect(service.address)?;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.write_all(b"quit\n")?;
    client.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    client.read_to_end(&mut heard)?;
    ensure!(
        heard == answer,
        "after a swap to {guest} a new connection hears {}",
        heard.escape_ascii()
    );
    Ok(())
}

/// Has `component` replaced by a guest.
fn put(places: &Places, guest: &str, component: &Path) -> Result<()> {
    let other = component.with_extension("new");
    fs::copy(places.guests.join(guest).with_extension("wasm"), &other)?;
    fs::rename(other, component)?;
    Ok(())
}
