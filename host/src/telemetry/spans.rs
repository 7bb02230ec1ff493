//! What is noted of a connection while it lasts, and the spans that are made of it when it is over. `docs/tracing.md` has a table
//! of them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter};
use tokio::runtime::Handle;

use super::Telemetry;
use super::collector::{Collector, Signal};
use crate::admission::Refused;
use crate::connection::{Outcome, Report};
use crate::cost::Cost;
use crate::peer::{End, Peer, Tls};

/// What is noted of one connection that is traced.
#[derive(Debug)]
pub(crate) struct Trace {
    accepted: Instant,
    /// Who has connected: a balancer, where there is one.
    from: End,
    proxy_protocol: Option<Step>,
    tls: Option<Step>,
    /// Why a step has failed, in the words of who failed at it.
    detail: Option<String>,
    client: End,
    local: End,
    entered: Option<Instant>,
}

/// Something that was done before the connection came in.
#[derive(Debug)]
struct Step {
    begun: Instant,
    ended: Instant,
    failure: Option<(Refused, Option<String>)>,
}

impl Trace {
    /// Of a connection that was `accepted` then.
    pub(crate) fn new(accepted: Instant, from: &End, local: &End) -> Box<Self> {
        Box::new(Self {
            accepted,
            from: from.clone(),
            proxy_protocol: None,
            tls: None,
            detail: None,
            client: from.clone(),
            local: local.clone(),
            entered: None,
        })
    }

    /// Notes why what is being done fails.
    pub(crate) fn fails(&mut self, detail: String) {
        self.detail = Some(detail);
    }

    /// Notes that a balancer has said for whom it connects, or not.
    pub(crate) fn heard<T>(&mut self, begun: Instant, told: &Result<T, Refused>) {
        self.proxy_protocol = Some(self.step(begun, told));
    }

    /// Notes that it was agreed how the connection is encrypted, or not.
    pub(crate) fn agreed<T>(&mut self, begun: Instant, agreed: &Result<T, Refused>) {
        self.tls = Some(self.step(begun, agreed));
    }

    /// Notes that the connection has come in, and between whom it is.
    pub(crate) fn comes_in(&mut self, client: &End, local: &End) {
        self.client = client.clone();
        self.local = local.clone();
        self.entered = Some(Instant::now());
    }

    fn step<T>(&mut self, begun: Instant, done: &Result<T, Refused>) -> Step {
        let detail = self.detail.take();
        Step {
            begun,
            ended: Instant::now(),
            failure: done.as_ref().err().map(|reason| (*reason, detail)),
        }
    }
}

/// What there is to tell of a connection that has come in, and is over.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) service: &'a str,
    pub(crate) peer: &'a Peer,
    pub(crate) generation: u64,
    pub(crate) contract: &'static str,
    /// What it has cost alone; `None` where its instance is shared.
    pub(crate) cost: Option<&'a Cost>,
    /// What became of it; `None` where the host has panicked.
    pub(crate) report: Option<&'a Report>,
}

/// Times of this machine's clock, for moments of the other one that only goes on.
#[derive(Clone, Copy)]
struct Clock {
    now: Instant,
    time: SystemTime,
}

impl Clock {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            time: SystemTime::now(),
        }
    }

    fn at(self, moment: Instant) -> SystemTime {
        let ago = self.now.saturating_duration_since(moment);
        self.time.checked_sub(ago).unwrap_or(self.time)
    }
}

/// The spans of one connection that is over.
struct Spans<'a> {
    telemetry: &'a Telemetry,
    clock: Clock,
    whole: Span,
    context: Context,
}

impl Telemetry {
    /// Tells of a connection that may not come in.
    pub(crate) fn refused(
        &self,
        trace: &Trace,
        service: &str,
        listener: &str,
        client: &End,
        local: &End,
        reason: Refused,
    ) {
        let Some(mut spans) = self.spans(trace) else {
            return;
        };
        spans.describe(trace, service, listener, client, local);
        let whole = &mut spans.whole;
        whole.set_attribute(KeyValue::new("wasm_inetd.outcome", "refused"));
        whole.set_attribute(KeyValue::new("wasm_inetd.reason", reason.as_str()));
        whole.set_attribute(KeyValue::new("error.type", reason.as_str()));
        // All others are what somebody has asked for, or the client's doing.
        if reason == Refused::Failing {
            whole.set_status(Status::error(
                "instances of the component repeatedly fail at start",
            ));
        }
        spans.steps(trace, None);
        spans.end();
    }

    /// Tells of a connection that has come in, and is over.
    pub(crate) fn ended(&self, trace: &Trace, ended: &Ended<'_>) {
        let Some(mut spans) = self.spans(trace) else {
            return;
        };
        let Ended { peer, report, .. } = *ended;
        let outcome = report.map_or(Outcome::HostPanic, |report| report.outcome);
        let reason = report.and_then(|report| report.reason.as_deref());
        spans.describe(trace, ended.service, &peer.listener, &trace.client, &trace.local);
        let whole = &mut spans.whole;
        whole.set_attributes([
            KeyValue::new("wasm_inetd.connection", whole_number(peer.connection)),
            KeyValue::new("wasm_inetd.generation", whole_number(ended.generation)),
            KeyValue::new("wasm_inetd.contract", ended.contract),
            KeyValue::new("wasm_inetd.outcome", outcome.as_str()),
        ]);
        if let Some(report) = report {
            whole.set_attributes([
                KeyValue::new("wasm_inetd.bytes_in", whole_number(report.bytes_in)),
                KeyValue::new("wasm_inetd.bytes_out", whole_number(report.bytes_out)),
            ]);
            if let Some(status) = report.at_end.status {
                whole.set_attribute(KeyValue::new("wasm_inetd.status", i64::from(status)));
            }
        }
        if let Some(reason) = reason {
            whole.set_attribute(KeyValue::new("wasm_inetd.reason", reason.to_owned()));
        }
        if let Some(cost) = ended.cost {
            whole.set_attributes([
                KeyValue::new("wasm_inetd.guest_cpu", cost.cpu().as_secs_f64()),
                KeyValue::new("wasm_inetd.guest_memory", whole_number(cost.memory())),
            ]);
        }
        if outcome != Outcome::Finished {
            whole.set_attribute(KeyValue::new("error.type", outcome.as_str()));
        }
        let status = failed(outcome).then(|| Status::error(reason.unwrap_or(outcome.as_str()).to_owned()));
        if let Some(status) = &status {
            whole.set_status(status.clone());
        }
        spans.steps(trace, peer.tls.as_ref());
        spans.serving(trace, ended, outcome, status);
        spans.end();
    }

    /// What the spans of a connection begin with, if it is to be traced.
    fn spans(&self, trace: &Trace) -> Option<Spans<'_>> {
        let clock = Clock::new();
        let builder = self
            .tracer
            .span_builder("connection")
            .with_kind(SpanKind::Server)
            .with_start_time(clock.at(trace.accepted));
        let whole = self.tracer.build_with_context(builder, &Context::new());
        if !whole.is_recording() {
            return None;
        }
        let context = Context::new().with_remote_span_context(whole.span_context().clone());
        Some(Spans {
            telemetry: self,
            clock,
            whole,
            context,
        })
    }
}

impl Spans<'_> {
    /// Says who connected to what.
    fn describe(&mut self, trace: &Trace, service: &str, listener: &str, client: &End, local: &End) {
        let whole = &mut self.whole;
        whole.set_attributes([
            KeyValue::new("wasm_inetd.service", service.to_owned()),
            KeyValue::new("wasm_inetd.listener", listener.to_owned()),
            KeyValue::new("wasm_inetd.peer", client.to_string()),
        ]);
        let transport = match &trace.from {
            End::Tcp(address) => {
                whole.set_attributes([
                    KeyValue::new("network.peer.address", address.ip().to_string()),
                    KeyValue::new("network.peer.port", i64::from(address.port())),
                ]);
                "tcp"
            }
            End::Process(_) | End::Path(_) => "unix",
        };
        whole.set_attribute(KeyValue::new("network.transport", transport));
        if let End::Tcp(address) = client {
            whole.set_attributes([
                KeyValue::new("client.address", address.ip().to_string()),
                KeyValue::new("client.port", i64::from(address.port())),
            ]);
        }
        match local {
            End::Tcp(address) => whole.set_attributes([
                KeyValue::new("server.address", address.ip().to_string()),
                KeyValue::new("server.port", i64::from(address.port())),
            ]),
            End::Path(path) => {
                whole.set_attribute(KeyValue::new("server.address", path.display().to_string()));
            }
            End::Process(_) => {}
        }
    }

    /// What came before the connection came in.
    fn steps(&self, trace: &Trace, said: Option<&Tls>) {
        if let Some(step) = &trace.proxy_protocol {
            self.step("proxy-protocol", step)
                .end_with_timestamp(self.clock.at(step.ended));
        }
        let Some(step) = &trace.tls else {
            return;
        };
        let mut span = self.step("tls", step);
        if let Some(said) = said {
            span.set_attributes([
                KeyValue::new("tls.protocol.name", "tls"),
                KeyValue::new("tls.protocol.version", said.version.trim_start_matches("TLSv")),
            ]);
            let texts = [
                ("tls.client.server_name", &said.server_name),
                ("tls.next_protocol", &said.protocol),
                ("tls.client.subject", &said.subject),
            ];
            for (key, text) in texts {
                if let Some(text) = text {
                    span.set_attribute(KeyValue::new(key, text.clone()));
                }
            }
        }
        span.end_with_timestamp(self.clock.at(step.ended));
    }

    fn step(&self, name: &'static str, step: &Step) -> Span {
        let mut span = self.child(name, step.begun);
        if let Some((reason, detail)) = &step.failure {
            span.set_attribute(KeyValue::new("error.type", reason.as_str()));
            let detail = detail.as_deref().unwrap_or(reason.as_str());
            span.set_status(Status::error(detail.to_owned()));
        }
        span
    }

    /// Making the instance, and serving with it, which has `status` if it has failed.
    fn serving(&self, trace: &Trace, ended: &Ended<'_>, outcome: Outcome, status: Option<Status>) {
        let Some(entered) = trace.entered else {
            return;
        };
        let last = match ended.report {
            Some(report) => (entered + report.duration).min(self.clock.now),
            None => self.clock.now,
        };
        let made = ended.cost.and_then(Cost::made);
        let (name, begun) = match made {
            Some((begun, took)) => {
                self.child("instantiate", begun)
                    .end_with_timestamp(self.clock.at(begun + took));
                ("serve", begun + took)
            }
            // It was over before there was one.
            None if ended.cost.is_some()
                || matches!(outcome, Outcome::StartFailed | Outcome::GrantFailed) =>
            {
                ("instantiate", entered)
            }
            // Connections share it.
            None => ("serve", entered),
        };
        let mut span = self.child(name, begun);
        if let Some(status) = status {
            span.set_attribute(KeyValue::new("error.type", outcome.as_str()));
            span.set_status(status);
        }
        if let Some(first_byte) = ended.report.and_then(|report| report.first_byte) {
            // Its time was measured from a moment after `entered`.
            let at = self.clock.at((entered + first_byte).max(begun).min(last));
            span.add_event_with_timestamp("first-byte", at, Vec::new());
        }
        span.end_with_timestamp(self.clock.at(last));
    }

    fn child(&self, name: &'static str, begun: Instant) -> Span {
        let tracer = &self.telemetry.tracer;
        let builder = tracer
            .span_builder(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(self.clock.at(begun));
        tracer.build_with_context(builder, &self.context)
    }

    fn end(mut self) {
        self.whole.end_with_timestamp(self.clock.time);
    }
}

/// Whether it is the guest's fault, or the host's.
fn failed(outcome: Outcome) -> bool {
    outcome.is_the_guests_fault() || matches!(outcome, Outcome::GrantFailed | Outcome::HostPanic)
}

/// A number as OpenTelemetry has them.
fn whole_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Sends spans, from the thread that gathers them, by a task of the runtime.
#[derive(Debug)]
pub(super) struct Exporter {
    collector: Arc<Collector>,
    resource: Arc<ResourceAttributesWithSchema>,
    runtime: Handle,
}

impl Exporter {
    pub(super) fn new(collector: Arc<Collector>) -> Self {
        Self {
            collector,
            resource: Arc::default(),
            runtime: Handle::current(),
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let collector = Arc::clone(&self.collector);
        let sending = self
            .runtime
            .spawn(async move { collector.send(Signal::Traces, request).await });
        match sending.await {
            Ok(true) => Ok(()),
            // Why is in the log, or the runtime is gone.
            Ok(false) | Err(_) => Err(OTelSdkError::InternalFailure(
                "cannot send the spans to the collector".to_owned(),
            )),
        }
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = Arc::new(resource.into());
    }
}
