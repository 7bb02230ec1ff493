//! What is measured of the host, each under one name, for whoever it is told to: Prometheus, or a collector of OpenTelemetry.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::view;
use crate::admission::Refused;
use crate::connection::Outcome;
use crate::counts::{Counts, Seen};
use crate::sandbox::{Generation, PoolUse};
use crate::service::{Process, Service};

/// Something that is measured.
#[derive(Debug)]
pub(crate) struct Measure {
    /// Its name, to which whoever tells of it adds what stands before, and the unit.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: Option<Unit>,
    pub(crate) values: Values,
}

/// What a number is one of, where it is not simply counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Bytes,
}

/// Names of labels, and what they are. That comes from the configuration or from the program, and never from a peer.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// What it comes to, for each set of labels.
#[derive(Debug)]
pub(crate) enum Values {
    /// Nothing but what the labels say.
    Info(Labels),
    Gauges(Vec<(Labels, Number)>),
    /// Numbers that only rise.
    Counters(Vec<(Labels, Number)>),
    Histograms(Vec<(Labels, Seen)>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

/// All there is to read, at the moment when it is asked for: nothing is kept up to date while nobody asks.
pub(crate) fn read(process: &Process) -> Vec<Measure> {
    let services = process.services.load();
    let (_, sums) = view::look(process, &services);
    let sum = |service: &Service| sums.get(&service.config.name).copied().unwrap_or_default();
    let mut out = Reader {
        services: &services,
        read: Vec::new(),
    };

    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    out.push("build", "Version of the host", None, Values::Info(version));
    let uptime = process.started.elapsed().as_secs_f64();
    out.one_gauge(
        "uptime",
        "Time since the host started",
        Some(Unit::Seconds),
        uptime,
    );
    let draining = u64::from(process.draining.load(Relaxed));
    out.one_gauge("draining", "1 while the host drains, 0 otherwise", None, draining);
    let panics = process.panics.load(Relaxed);
    out.push(
        "host_panics",
        "Connections ended by a panic in the host",
        None,
        Values::Counters(vec![(Vec::new(), panics.into())]),
    );

    out.counter(
        "connections_accepted",
        "Accepted connections, including refused ones",
        None,
        |s| s.counts().accepted.get(),
    );
    out.by(
        "connections_refused",
        "Refused connections, by reason",
        "reason",
        |s| {
            Refused::ALL
                .map(|reason| (reason.as_str(), s.counts().refused(reason).get()))
                .to_vec()
        },
    );
    out.by(
        "connections_ended",
        "Ended connections, by outcome; refused connections are not included",
        "outcome",
        |s| {
            Outcome::ALL
                .map(|outcome| (outcome.as_str(), s.counts().ended(outcome).get()))
                .to_vec()
        },
    );
    out.gauge("connections_open", "Open connections", None, |s| sum(s).open);
    out.counter(
        "received",
        "Bytes received from clients, including open connections",
        Some(Unit::Bytes),
        |s| sum(s).bytes_in,
    );
    out.counter(
        "sent",
        "Bytes handed to the transport, including open connections",
        Some(Unit::Bytes),
        |s| sum(s).bytes_out,
    );

    out.histogram(
        "connection_duration",
        "Time from admission to close, of ended connections",
        |counts| counts.duration.seen(),
    );
    out.histogram(
        "first_byte",
        "Time from admission to the first byte sent, of ended connections",
        |counts| counts.first_byte.seen(),
    );
    out.histogram(
        "instantiation",
        "Time to create the instance, of ended connections with an instance of their own",
        |counts| counts.instantiation.seen(),
    );

    out.counter(
        "guest_cpu",
        "CPU time of guests, including open connections",
        Some(Unit::Seconds),
        |s| view::guests(s, &sum(s)).0.as_secs_f64(),
    );
    out.gauge(
        "guest_memory",
        "Sum of the peak memory of each live instance",
        Some(Unit::Bytes),
        |s| view::guests(s, &sum(s)).1,
    );
    out.counter("guest_traps", "Connections ended by a guest trap", None, |s| {
        s.counts().ended(Outcome::GuestTrap).get()
    });
    out.by(
        "limit_hits",
        "Connections that hit a limit, by limit",
        "limit",
        |s| limits(s.counts()),
    );

    out.gauge(
        "generation",
        "Number of the generation that serves new connections",
        None,
        |s| s.generations.current().number,
    );
    out.gauge(
        "generations_alive",
        "Generations that serve connections or are kept for new ones or a rollback",
        None,
        |s| s.generations.in_use().len() as u64,
    );
    out.counter(
        "reloads",
        "New generations after the first, by reloads and by changes of the service",
        None,
        |s| s.counts().swaps.get(),
    );
    out.counter(
        "rollbacks",
        "Rollbacks to the previous generation, manual or automatic",
        None,
        |s| s.counts().rollbacks.get(),
    );
    out.counter(
        "rejected_components",
        "Components that were refused, after which the current generation kept serving",
        None,
        |s| s.counts().rejected.get(),
    );
    out.counter("accept_errors", "Failed calls of accept", None, |s| {
        s.counts().accept_errors.get()
    });

    out.pool(
        "pool_used",
        "Slots of the instance pool in use, by kind",
        |pool| {
            [
                ("instances", pool.instances),
                ("memories", pool.memories),
                ("tables", pool.tables),
                ("stacks", pool.stacks),
            ]
            .to_vec()
        },
    );
    out.pool("pool_size", "Slots in the instance pool, by kind", |pool| {
        [
            ("instances", pool.most_instances),
            ("memories", pool.most_memories),
            ("tables", pool.most_tables),
        ]
        .to_vec()
    });
    out.read
}

/// What the limits have ended or refused, by their flags; where one outcome stands for two of them, by what they have in common.
fn limits(counts: &Counts) -> Vec<(&'static str, u64)> {
    let ended = |outcome| counts.ended(outcome).get();
    let refused = |reason| counts.refused(reason).get();
    vec![
        ("cpu-time", ended(Outcome::CpuLimit)),
        ("max-memory", counts.memory_hits.get()),
        ("first-byte-timeout", ended(Outcome::FirstByteTimeout)),
        ("idle-timeout", ended(Outcome::IdleTimeout)),
        ("write-timeout", ended(Outcome::WriteTimeout)),
        ("max-lifetime", ended(Outcome::Lifetime)),
        ("max-bytes", ended(Outcome::ByteLimit)),
        ("max-connections-per-source", refused(Refused::SourceConnections)),
        ("max-rate-per-source", refused(Refused::SourceRate)),
    ]
}

struct Reader<'a> {
    services: &'a [Arc<Service>],
    read: Vec<Measure>,
}

impl Reader<'_> {
    fn push(&mut self, name: &'static str, help: &'static str, unit: Option<Unit>, values: Values) {
        self.read.push(Measure {
            name,
            help,
            unit,
            values,
        });
    }

    fn one_gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        value: impl Into<Number>,
    ) {
        self.push(name, help, unit, Values::Gauges(vec![(Vec::new(), value.into())]));
    }

    fn counter<V: Into<Number>>(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        value: impl Fn(&Service) -> V,
    ) {
        let points = self.each(|service| value(service).into());
        self.push(name, help, unit, Values::Counters(points));
    }

    fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        value: impl Fn(&Service) -> u64,
    ) {
        let points = self.each(|service| value(service).into());
        self.push(name, help, unit, Values::Gauges(points));
    }

    fn histogram(&mut self, name: &'static str, help: &'static str, of: impl Fn(&Counts) -> Seen) {
        let points = self.each(|service| of(service.counts()));
        self.push(name, help, Some(Unit::Seconds), Values::Histograms(points));
    }

    /// A counter for each value of a label, of which there is a fixed number.
    fn by(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: impl Fn(&Service) -> Vec<(&'static str, u64)>,
    ) {
        let points = self.all(label, values);
        self.push(name, help, None, Values::Counters(points));
    }

    /// What is in the pools of each service's generations.
    fn pool(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl Fn(&PoolUse) -> Vec<(&'static str, u64)>,
    ) {
        let points = self.all("kind", |service| {
            let known = service.generations.known();
            let pools = Generation::pools(known.iter().map(|serving| &*serving.generation));
            pools.as_ref().map_or_else(Vec::new, &values)
        });
        self.push(name, help, None, Values::Gauges(points));
    }

    fn each<T>(&self, value: impl Fn(&Service) -> T) -> Vec<(Labels, T)> {
        let services = self.services.iter();
        services.map(|service| (of(service), value(service))).collect()
    }

    fn all(
        &self,
        label: &'static str,
        values: impl Fn(&Service) -> Vec<(&'static str, u64)>,
    ) -> Vec<(Labels, Number)> {
        let services = self.services.iter();
        let all = services.flat_map(|service| {
            values(service).into_iter().map(|(value, number)| {
                let mut labels = of(service);
                labels.push((label, value.to_owned()));
                (labels, number.into())
            })
        });
        all.collect()
    }
}

/// The labels of what is measured of one service.
fn of(service: &Service) -> Labels {
    vec![("service", service.config.name.clone())]
}
