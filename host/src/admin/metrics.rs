//! What is counted, in the text that Prometheus reads. `docs/admin.md` has a table of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::view;
use crate::admission::Refused;
use crate::connection::Outcome;
use crate::counts::{Counts, Histogram};
use crate::service::{Process, Service};

/// What all names begin with.
const PREFIX: &str = "wasm_inetd";

/// What the text is, by the standard that Prometheus reads.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All there is to read.
///
/// # Errors
///
/// None: it is written to memory.
pub(super) fn encode(process: &Arc<Process>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(All(Arc::clone(process))));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Reads everything at the moment when it is asked for: nothing is kept up to date while nobody asks.
#[derive(Debug)]
struct All(Arc<Process>);

impl Collector for All {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let process = &*self.0;
        let services = process.services.load();
        let (_, sums) = view::look(process, &services);
        let sum = |service: &Service| sums.get(&service.config.name).copied().unwrap_or_default();
        let mut out = Writer {
            encoder,
            services: &services,
        };

        let mut build = out.describe("build", "The version of the host", None, MetricType::Info)?;
        build.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let uptime = process.started.elapsed().as_secs_f64();
        out.gauge(
            "uptime",
            "Time since the host was started",
            Some(Unit::Seconds),
            uptime,
        )?;
        let draining = i64::from(process.draining.load(Relaxed));
        out.gauge("draining", "1 while the host drains", None, draining)?;
        let panics = process.panics.load(Relaxed);
        out.one_counter(
            "host_panics",
            "Connections that a panic of the host has ended",
            panics,
        )?;

        out.counter(
            "connections_accepted",
            "Connections that were accepted",
            None,
            |s| s.counts().accepted.get(),
        )?;
        out.by(
            "connections_refused",
            "Connections that may not come in",
            "reason",
            |s| {
                Refused::ALL
                    .map(|reason| (reason.as_str(), s.counts().refused(reason).get()))
                    .to_vec()
            },
        )?;
        out.by(
            "connections_ended",
            "Connections that have come in and have ended",
            "outcome",
            |s| {
                Outcome::ALL
                    .map(|outcome| (outcome.as_str(), s.counts().ended(outcome).get()))
                    .to_vec()
            },
        )?;
        out.gauges("connections_open", "Connections that are open", None, |s| {
            sum(s).open
        })?;
        out.counter("received", "Bytes that peers have sent", Some(Unit::Bytes), |s| {
            sum(s).bytes_in
        })?;
        out.counter(
            "sent",
            "Bytes that were handed to the transport",
            Some(Unit::Bytes),
            |s| sum(s).bytes_out,
        )?;

        out.histogram(
            "connection_duration",
            "From when a connection has come in to its close",
            |counts| &counts.duration,
        )?;
        out.histogram(
            "first_byte",
            "From when a connection has come in to the first byte sent",
            |counts| &counts.first_byte,
        )?;
        out.histogram("instantiation", "Making an instance", |counts| {
            &counts.instantiation
        })?;

        out.counter(
            "guest_cpu",
            "Time of the guests' turns",
            Some(Unit::Seconds),
            |s| view::guests(s, &sum(s)).0.as_secs_f64(),
        )?;
        out.gauges(
            "guest_memory",
            "Most memory of the instances that live",
            Some(Unit::Bytes),
            |s| view::guests(s, &sum(s)).1,
        )?;
        out.counter("guest_traps", "Connections whose guest has trapped", None, |s| {
            s.counts().ended(Outcome::GuestTrap).get()
        })?;
        out.by(
            "limit_hits",
            "Connections that a limit has ended or refused",
            "limit",
            |s| limits(s.counts()),
        )?;

        out.gauges("generation", "The generation in service", None, |s| {
            s.generations.current().number
        })?;
        out.gauges(
            "generations_alive",
            "Generations that have connections or may get some",
            None,
            |s| s.generations.known().0.len() as u64,
        )?;
        out.counter("swaps", "Generations that have replaced another", None, |s| {
            s.counts().swaps.get()
        })?;
        out.counter("rollbacks", "Generations that were gone back from", None, |s| {
            s.counts().rollbacks.get()
        })?;
        out.counter(
            "rejected_components",
            "Components that were not taken",
            None,
            |s| s.counts().rejected.get(),
        )?;
        out.counter("accept_errors", "Errors of accept", None, |s| {
            s.counts().accept_errors.get()
        })?;

        out.pool("pool_used", "What of the pool of instances is in use", |pool| {
            [
                ("instances", pool.instances),
                ("memories", pool.memories),
                ("tables", pool.tables),
                ("stacks", pool.stacks),
            ]
            .to_vec()
        })?;
        out.pool("pool_size", "What the pool of instances has room for", |pool| {
            [
                ("instances", pool.most_instances),
                ("memories", pool.most_memories),
                ("tables", pool.most_tables),
            ]
            .to_vec()
        })
    }
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

struct Writer<'a, 's> {
    encoder: DescriptorEncoder<'a>,
    services: &'s [Arc<Service>],
}

impl Writer<'_, '_> {
    fn describe<'b>(
        &'b mut self,
        name: &'b str,
        help: &str,
        unit: Option<&'b Unit>,
        of: MetricType,
    ) -> Result<MetricEncoder<'b>, fmt::Error> {
        self.encoder.encode_descriptor(name, help, unit, of)
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: impl EncodeGaugeValue,
    ) -> fmt::Result {
        self.describe(name, help, unit.as_ref(), MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn one_counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.describe(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counter<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: impl Fn(&Service) -> V,
    ) -> fmt::Result {
        let services = self.services;
        let mut metric = self.describe(name, help, unit.as_ref(), MetricType::Counter)?;
        for service in services {
            metric
                .encode_family(&[("service", service.config.name.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(&value(service), None)?;
        }
        Ok(())
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: impl Fn(&Service) -> u64,
    ) -> fmt::Result {
        let services = self.services;
        let mut metric = self.describe(name, help, unit.as_ref(), MetricType::Gauge)?;
        for service in services {
            let labels = [("service", service.config.name.as_str())];
            metric.encode_family(&labels)?.encode_gauge(&value(service))?;
        }
        Ok(())
    }

    /// A counter for each value of a label, of which there is a fixed number.
    fn by(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Fn(&Service) -> Vec<(&'static str, u64)>,
    ) -> fmt::Result {
        let services = self.services;
        let mut metric = self.describe(name, help, None, MetricType::Counter)?;
        for service in services {
            for (value, count) in values(service) {
                metric
                    .encode_family(&[("service", service.config.name.as_str()), (label, value)])?
                    .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, of: impl Fn(&Counts) -> &Histogram) -> fmt::Result {
        let services = self.services;
        let mut metric = self.describe(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for service in services {
            let seen = of(service.counts()).seen();
            let buckets: Vec<_> = seen.buckets().collect();
            metric
                .encode_family(&[("service", service.config.name.as_str())])?
                .encode_histogram::<NoLabelSet>(seen.sum.as_secs_f64(), seen.count(), &buckets, None)?;
        }
        Ok(())
    }

    /// What is in the pool of each service's engine.
    fn pool(
        &mut self,
        name: &str,
        help: &str,
        values: impl Fn(&crate::sandbox::PoolUse) -> Vec<(&'static str, u64)>,
    ) -> fmt::Result {
        let services = self.services;
        let mut metric = self.describe(name, help, None, MetricType::Gauge)?;
        for service in services {
            let Some(pool) = service.generations.current().generation.pool() else {
                continue;
            };
            for (kind, count) in values(&pool) {
                metric
                    .encode_family(&[("service", service.config.name.as_str()), ("kind", kind)])?
                    .encode_gauge(&count)?;
            }
        }
        Ok(())
    }
}
