//! What a service under load notices of reloads of its component.

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

const RELOADS: usize = 1000;
const CONNECTIONS: usize = 50;

/// The guests that take turns, and what each answers to a line that is `quit`.
const GUESTS: [(&str, &[u8]); 2] = [("echo", b"quit\n"), ("lines-session", b"")];

/// How many times as long as without reloads the 99th percentile of the latency may be.
const MAX_P99_RATIO: f64 = 10.0;

/// How long the load is measured at a time.
const LENGTH: Duration = Duration::from_secs(5);

/// Reloads a component while connections talk without a pause, and prints what they notice.
///
/// # Errors
///
/// A connection or a byte is lost, a new connection does not get the component that the log
/// reports, or the 99th percentile of the latency exceeds its bound.
pub(crate) fn measure(places: &Places) -> Result<()> {
    let component = places.scratch.join("reloaded.wasm");
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
        let reloading = scope.spawn(|| {
            let start = Instant::now();
            let reloaded =
                (1..=RELOADS).try_for_each(|number| reload(&service, places, &component, GUESTS[number % 2]));
            done.store(true, Ordering::Relaxed);
            reloaded.map(|()| start.elapsed())
        });
        let mut with = load()?;
        while !done.load(Ordering::Relaxed) {
            let more = load()?;
            with.count += more.count;
            with.elapsed += more.elapsed;
            with.latency.add(&more.latency)?;
        }
        let took = reloading
            .join()
            .map_err(|_| anyhow::anyhow!("the reloading thread panicked"))??;
        anyhow::Ok((with, took))
    })?;
    println!(
        "{RELOADS} reloads in {:.1} s with {CONNECTIONS} busy connections. No connection and no byte was \
         lost, and every new connection got the new component.\n",
        took.as_secs_f64()
    );
    println!("| | ops/s | p50 µs | p99 µs | p99.9 µs |\n|---|---:|---:|---:|---:|");
    for (name, run) in [("without reloads", &without), ("during reloads", &with)] {
        print_row(name, run);
    }
    let p99 = |run: &Run| run.latency.value_at_quantile(0.99) as f64;
    let ratio = p99(&with) / p99(&without);
    ensure!(
        ratio <= MAX_P99_RATIO,
        "during reloads the p99 latency is {ratio:.1} times as long: expected at most {MAX_P99_RATIO}"
    );
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

/// Has the service reload its component, and checks that a new connection gets it.
fn reload(
    service: &Service,
    places: &Places,
    component: &Path,
    (guest, answer): (&str, &[u8]),
) -> Result<()> {
    put(places, guest, component)?;
    service.hang_up()?;
    service.line("component reloaded")?;
    let mut client = TcpStream::connect(service.address)?;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.write_all(b"quit\n")?;
    client.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    client.read_to_end(&mut heard)?;
    ensure!(
        heard == answer,
        "after a reload to `{guest}`, a new connection received \"{}\"",
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
