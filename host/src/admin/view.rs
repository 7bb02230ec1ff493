//! What there is to see, as JSON. `docs/admin.md` describes it for those who read it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::hex;
use crate::cost::Cost;
use crate::counts::Seen;
use crate::roster::Open;
use crate::sandbox::Contract;
use crate::service::{Process, Service};

/// Connections that the page is told of each time.
const SHOWN: usize = 1000;

/// What the page shows.
#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    uptime_seconds: f64,
    state: &'static str,
    services: Vec<ServiceView>,
    generations: Vec<GenerationView>,
    connections: Vec<ConnectionView>,
    connections_total: usize,
}

#[derive(Serialize)]
struct ServiceView {
    name: String,
    open: u64,
    accepted: u64,
    refused: u64,
    ended: u64,
    failed: u64,
    bytes_in: u64,
    bytes_out: u64,
    guest_cpu_seconds: f64,
    guest_memory_bytes: u64,
    first_byte_seconds: Option<Quantiles>,
    reloads: u64,
    rollbacks: u64,
    rejected: u64,
    generation: u64,
    listeners: Vec<String>,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

/// A generation that has connections or may get some.
#[derive(Serialize)]
pub(super) struct GenerationView {
    service: String,
    generation: u64,
    digest: String,
    contract: &'static str,
    state: &'static str,
    open: u64,
    started: u64,
    failed: u64,
    seconds: f64,
}

/// A connection that is open.
#[derive(Serialize)]
pub(super) struct ConnectionView {
    connection: u64,
    service: String,
    generation: u64,
    contract: &'static str,
    peer: String,
    listener: String,
    seconds: f64,
    idle_seconds: f64,
    bytes_in: u64,
    bytes_out: u64,
    guest_cpu_seconds: Option<f64>,
    guest_memory_bytes: Option<u64>,
}

/// The state of a host that is ready.
pub(super) const SERVING: &str = "serving";

/// What the state of the host is called.
pub(super) fn state(process: &Process) -> &'static str {
    if process.draining.load(Relaxed) {
        "draining"
    } else if process.services.load().is_empty() {
        "starting"
    } else {
        SERVING
    }
}

/// What the connections of a service come to: those that are open, and of bytes and time also those that have ended.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    pub(super) open: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) cpu: Duration,
    pub(super) memory: u64,
}

/// The connections that are open, and what those of each service come to, by its name. Each is counted once, though it may end just
/// now, so that no sum is ever smaller than the one before it.
pub(super) fn look(process: &Process, services: &[Arc<Service>]) -> (Vec<Arc<Open>>, BTreeMap<String, Sum>) {
    let ended = || {
        let of = |service: &Arc<Service>| {
            let counts = service.counts();
            let sum = Sum {
                bytes_in: counts.bytes_in.get(),
                bytes_out: counts.bytes_out.get(),
                cpu: Duration::from_nanos(counts.guest_cpu.get()),
                ..Sum::default()
            };
            (service.config.name.clone(), sum)
        };
        services.iter().map(of).collect::<BTreeMap<_, _>>()
    };
    let (open, mut sums) = process.open(ended);
    for open in &open {
        // Of a service that is gone nothing is told.
        if let Some(sum) = sums.get_mut(&open.service.config.name) {
            let (bytes_in, bytes_out, _) = open.traffic();
            sum.open += 1;
            sum.bytes_in += bytes_in;
            sum.bytes_out += bytes_out;
            sum.cpu += open.cost().cpu();
            sum.memory += open.cost().live_memory();
        }
    }
    (open, sums)
}

/// All of the guests' time and memory of a service, with what its connections share.
pub(super) fn guests(service: &Service, sum: &Sum) -> (Duration, u64) {
    let (cpu, memory) = service.counts().of_shared();
    (sum.cpu + cpu, sum.memory + memory)
}

pub(super) fn connection(open: &Open, now: Instant) -> ConnectionView {
    let serving = open.place.serving();
    let (bytes_in, bytes_out, moved) = open.traffic();
    let cost = open.service.own_cost(&open.place);
    ConnectionView {
        connection: open.place.connection,
        service: open.service.config.name.clone(),
        generation: serving.number,
        contract: serving.generation.contract().as_str(),
        peer: open.peer.clone(),
        listener: open.listener.clone(),
        seconds: (now - open.since).as_secs_f64(),
        idle_seconds: now.saturating_duration_since(moved).as_secs_f64(),
        bytes_in,
        bytes_out,
        guest_cpu_seconds: cost.map(|cost| cost.cpu().as_secs_f64()),
        guest_memory_bytes: cost.map(Cost::memory),
    }
}

/// The generations of all services.
pub(super) fn generations(process: &Process) -> Vec<GenerationView> {
    let services = process.services.load();
    services
        .iter()
        .flat_map(|service| generations_of(service))
        .collect()
}

fn generations_of(service: &Service) -> Vec<GenerationView> {
    let mut views: Vec<GenerationView> = Vec::new();
    for (serving, state) in service.generations.in_use() {
        let tally = &serving.tally;
        let contract: Contract = serving.generation.contract();
        views.push(GenerationView {
            service: service.config.name.clone(),
            generation: serving.number,
            digest: hex(serving.generation.digest()),
            contract: contract.as_str(),
            state: state.as_str(),
            open: tally.open(),
            started: tally.begun.get(),
            failed: tally.failed.get(),
            seconds: tally.since.elapsed().as_secs_f64(),
        });
    }
    views
}

/// What has been seen of each service's first bytes, for what has come since.
#[derive(Debug, Default)]
pub(super) struct Before(BTreeMap<String, Seen>);

/// All that the page shows, with how long first bytes have taken since `before`.
pub(super) fn status(process: &Process, before: &mut Before) -> Status {
    let now = Instant::now();
    let services = process.services.load();
    let (open, sums) = look(process, &services);
    let services = services.iter().map(|service| {
        let counts = service.counts();
        let sum = sums.get(&service.config.name).copied().unwrap_or_default();
        let (cpu, memory) = guests(service, &sum);
        let (ended, failed) = counts.all_ended();
        let seen = counts.first_byte.seen();
        let last = before.0.insert(service.config.name.clone(), seen).unwrap_or(seen);
        let lately = seen.since(&last);
        ServiceView {
            name: service.config.name.clone(),
            open: sum.open,
            accepted: counts.accepted.get(),
            refused: counts.all_refused(),
            ended,
            failed,
            bytes_in: sum.bytes_in,
            bytes_out: sum.bytes_out,
            guest_cpu_seconds: cpu.as_secs_f64(),
            guest_memory_bytes: memory,
            first_byte_seconds: lately
                .quantile(0.5)
                .zip(lately.quantile(0.99))
                .map(|(p50, p99)| Quantiles { p50, p99 }),
            reloads: counts.swaps.get(),
            rollbacks: counts.rollbacks.get(),
            rejected: counts.rejected.get(),
            generation: service.generations.current().number,
            listeners: service.listeners.load().to_vec(),
        }
    });
    Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: (now - process.started).as_secs_f64(),
        state: state(process),
        services: services.collect(),
        generations: generations(process),
        // Those that came last are what somebody looks for, most likely.
        connections: open
            .iter()
            .rev()
            .take(SHOWN)
            .map(|open| connection(open, now))
            .collect(),
        connections_total: open.len(),
    }
}
