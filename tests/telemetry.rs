//! Traces and metrics, as a collector of OpenTelemetry gets them.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, Metric, NumberDataPoint};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;

use crate::harness::{Client, DEADLINE, Host, TERM, command, file, guest, refused, scratch, until};
use crate::tls;

/// What comes to a collector.
#[derive(Debug)]
enum Export {
    Traces(ExportTraceServiceRequest),
    Metrics(ExportMetricsServiceRequest),
}

/// How a collector answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    Takes,
    /// The first answer of each connection is short. The others are too long for the host.
    TakesAtLength,
    Refuses,
    Never,
}

/// A collector that speaks OTLP by HTTP, as far as a host does.
struct Collector {
    address: SocketAddr,
    exports: Receiver<Export>,
    connections: Arc<AtomicUsize>,
}

impl Collector {
    fn new(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, exports) = mpsc::channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::Relaxed);
                let sender = sender.clone();
                thread::spawn(move || serve(stream, answers, &sender));
            }
        });
        Self {
            address,
            exports,
            connections,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn next(&self) -> Export {
        self.exports.recv_timeout(DEADLINE).unwrap()
    }

    /// All that has come by now.
    fn all(&self) -> Vec<Export> {
        self.exports.try_iter().collect()
    }

    /// The next connection that was traced.
    fn trace(&self) -> Trace {
        let mut children = Vec::new();
        loop {
            let Export::Traces(request) = self.next() else {
                continue;
            };
            let of = request.resource_spans.into_iter();
            for (resource, span) in of.flat_map(|of| {
                let resource = of.resource.unwrap();
                let spans = of.scope_spans.into_iter().flat_map(|of| of.spans);
                spans.map(move |span| (resource.clone(), span))
            }) {
                // It ends after all that it is made of.
                if span.parent_span_id.is_empty() {
                    let trace = Trace {
                        resource,
                        whole: span,
                        children,
                    };
                    trace.check();
                    return trace;
                }
                children.push(span);
            }
        }
    }

    /// Waits until the newest metrics are as they should be.
    fn metrics(&self, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        loop {
            if let Export::Metrics(request) = self.next()
                && let metrics = Metrics::of(request)
                && wanted(&metrics)
            {
                return metrics;
            }
        }
    }
}

/// Takes requests of one connection, and answers them.
fn serve(stream: TcpStream, answers: Answers, exports: &Sender<Export>) {
    let mut reader = BufReader::new(&stream);
    for number in 0.. {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line == "\r\n" => break,
                Ok(_) => lines.push(line.trim_end().to_ascii_lowercase()),
            }
        }
        let header = |name: &str| {
            let header = lines
                .iter()
                .find_map(|line| line.strip_prefix(&format!("{name}: ")));
            header
                .unwrap_or_else(|| panic!("no {name} in {lines:?}"))
                .to_owned()
        };
        let mut body = vec![0; header("content-length").parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        assert_eq!(header("content-type"), "application/x-protobuf");
        header("host");
        let export = match lines[0].as_str() {
            "post /v1/traces http/1.1" | "post /behind/v1/traces http/1.1" => {
                Export::Traces(ExportTraceServiceRequest::decode(&body[..]).unwrap())
            }
            "post /v1/metrics http/1.1" | "post /behind/v1/metrics http/1.1" => {
                Export::Metrics(ExportMetricsServiceRequest::decode(&body[..]).unwrap())
            }
            other => panic!("{other}"),
        };
        // The test may be over.
        let _ = exports.send(export);
        let status = match answers {
            Answers::Takes | Answers::TakesAtLength => "200 OK",
            Answers::Refuses => "503 Service Unavailable",
            Answers::Never => {
                // Until the host gives up.
                let _ = reader.read(&mut [0]);
                return;
            }
        };
        let body = match answers {
            Answers::TakesAtLength if number > 0 => "x".repeat(100_000),
            _ => String::new(),
        };
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        if (&stream).write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// What came of one connection.
#[derive(Debug)]
struct Trace {
    resource: Resource,
    whole: Span,
    children: Vec<Span>,
}

impl Trace {
    /// What is true of every trace.
    fn check(&self) {
        let whole = &self.whole;
        assert_eq!(whole.name, "connection");
        assert_eq!(whole.kind(), SpanKind::Server);
        assert_eq!(whole.trace_id.len(), 16);
        for child in &self.children {
            assert_eq!(child.trace_id, whole.trace_id, "{}", child.name);
            assert_eq!(child.parent_span_id, whole.span_id, "{}", child.name);
            assert_ne!(child.span_id, whole.span_id);
        }
        // One comes after another, and all of them are within the whole.
        let mut last = whole.start_time_unix_nano;
        for child in &self.children {
            assert!(last <= child.start_time_unix_nano, "{} of {self:#?}", child.name);
            last = child.end_time_unix_nano;
            assert!(child.start_time_unix_nano <= last, "{} of {self:#?}", child.name);
            for event in &child.events {
                assert!((child.start_time_unix_nano..=last).contains(&event.time_unix_nano));
            }
        }
        assert!(last <= whole.end_time_unix_nano, "{self:#?}");
    }

    fn names(&self) -> Vec<&str> {
        self.children.iter().map(|child| child.name.as_str()).collect()
    }

    fn child(&self, name: &str) -> &Span {
        let found = self.children.iter().find(|child| child.name == name);
        found.unwrap_or_else(|| panic!("no {name} in {:?}", self.names()))
    }

    /// An attribute of the whole.
    fn says(&self, key: &str) -> String {
        says(&self.whole.attributes, key).unwrap_or_else(|| panic!("no {key} in {self:#?}"))
    }
}

/// An attribute as text.
fn says(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}

fn code(span: &Span) -> StatusCode {
    span.status.as_ref().unwrap().code()
}

/// Metrics of one export, by their names.
struct Metrics(BTreeMap<String, Metric>);

impl Metrics {
    fn of(request: ExportMetricsServiceRequest) -> Self {
        let of = request.resource_metrics.into_iter();
        let of = of.flat_map(|of| of.scope_metrics);
        let metrics = of.flat_map(|of| of.metrics);
        Self(metrics.map(|metric| (metric.name.clone(), metric)).collect())
    }

    /// A number, of a service if it is of one, and with a label if it has one.
    fn number(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        let points: &[NumberDataPoint] = match self.0[name].data.as_ref().unwrap() {
            Data::Gauge(gauge) => &gauge.data_points,
            Data::Sum(sum) => {
                assert!(sum.is_monotonic, "{name}");
                &sum.data_points
            }
            other => panic!("{other:?}"),
        };
        let mut points = points.iter().filter(|point| {
            label.is_none_or(|(key, value)| says(&point.attributes, key).as_deref() == Some(value))
        });
        let point = points.next().unwrap();
        assert!(point.time_unix_nano > point.start_time_unix_nano);
        match point.value.as_ref().unwrap() {
            Number::AsInt(number) => *number as f64,
            Number::AsDouble(number) => *number,
        }
    }

    fn histogram(&self, name: &str) -> &HistogramDataPoint {
        match self.0[name].data.as_ref().unwrap() {
            Data::Histogram(histogram) => &histogram.data_points[0],
            other => panic!("{other:?}"),
        }
    }
}

/// The program, told to send to a collector soon.
fn telling(url: &str) -> Command {
    let mut command = command();
    command
        .env("OTEL_BSP_SCHEDULE_DELAY", "20")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "20")
        .args(["--otlp", url]);
    command
}

/// A host that serves with a guest, and tells a collector.
fn traced(collector: &Collector, name: &str, args: &[&str]) -> Host {
    let component = guest(name);
    let serve = [
        "--listen",
        "127.0.0.1:0",
        "--component",
        component.to_str().unwrap(),
    ];
    let args = [&serve, args].concat();
    Host::spawn(telling(&collector.url()).args(&args), &args)
}

#[test]
fn a_connection_is_a_span_with_what_it_went_through_within() {
    let collector = Collector::new(Answers::Takes);
    for (name, contract) in [
        ("lines", "streams"),
        ("lines-session", "sessions"),
        ("cat", "cli"),
    ] {
        let host = traced(&collector, name, &[]);
        let client = host.connect();
        let peer = client.0.local_addr().unwrap();
        client.echo("hello\n");
        client.finish();
        assert_eq!(client.rest(), b"");
        drop(client);
        let trace = collector.trace();
        assert_eq!(trace.names(), ["instantiate", "serve"], "{name}");
        let port = peer.port().to_string();
        for (key, value) in [
            ("wasm_inetd.service", name),
            ("wasm_inetd.connection", "1"),
            ("wasm_inetd.generation", "1"),
            ("wasm_inetd.contract", contract),
            ("wasm_inetd.listener", &host.address().to_string()),
            ("wasm_inetd.peer", &peer.to_string()),
            ("wasm_inetd.bytes_in", "6"),
            ("wasm_inetd.bytes_out", "6"),
            ("wasm_inetd.outcome", "finished"),
            ("network.transport", "tcp"),
            ("network.peer.address", "127.0.0.1"),
            ("network.peer.port", &port),
            ("client.address", "127.0.0.1"),
            ("client.port", &port),
            ("server.address", "127.0.0.1"),
            ("server.port", &host.address().port().to_string()),
        ] {
            assert_eq!(trace.says(key), value, "{key} of {name}");
        }
        assert!(trace.says("wasm_inetd.guest_cpu").parse::<f64>().unwrap() > 0.0);
        assert!(trace.says("wasm_inetd.guest_memory").parse::<u64>().unwrap() > 0);
        assert_eq!(code(&trace.whole), StatusCode::Unset);
        assert_eq!(says(&trace.whole.attributes, "error.type"), None);
        let events: Vec<_> = trace
            .child("serve")
            .events
            .iter()
            .map(|event| &event.name)
            .collect();
        assert_eq!(events, ["first-byte"], "{name}");
    }
}

#[test]
fn the_environment_says_what_the_host_is_called() {
    let collector = Collector::new(Answers::Takes);
    let args = ["--listen", "127.0.0.1:0"];
    let named = |variables: &[(&str, &str)]| {
        let mut command = telling(&format!("{}/behind/", collector.url()));
        let host = Host::spawn(command.envs(variables.iter().copied()).args(args), &args);
        host.connect().finish();
        let attributes = collector.trace().resource.attributes;
        ["service.name", "service.version", "site"].map(|key| says(&attributes, key).unwrap_or_default())
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(named(&[]), ["wasm-inetd", version, ""]);
    assert_eq!(named(&[("OTEL_SERVICE_NAME", "edge")]), ["edge", version, ""]);
    let more = [("OTEL_RESOURCE_ATTRIBUTES", "site=north,service.name=far")];
    assert_eq!(named(&more), ["far", version, "north"]);
    let both = [
        ("OTEL_SERVICE_NAME", "edge"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=far,site=north%20east"),
    ];
    assert_eq!(named(&both), ["edge", version, "north east"]);
    // One entry that is malformed makes all of them void.
    let malformed = [("OTEL_RESOURCE_ATTRIBUTES", "site=north,service.name")];
    assert_eq!(named(&malformed), ["wasm-inetd", version, ""]);
}

#[test]
fn headers_of_the_environment_replace_those_of_the_host_but_not_its_framing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/path-s3cret", listener.local_addr().unwrap());
    let args = ["--listen", "127.0.0.1:0"];
    let mut command = telling(&url);
    command
        .env(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "host=collector,content-type=text/s3cret,Content-Length=1,transfer-encoding=s3cret,\
             x-a=1,x-a=s3cret%202,s3cret",
        )
        .env("OTEL_RESOURCE_ATTRIBUTES", "s3cret")
        .env("OTEL_METRICS_EXPORTER", "s3cret")
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "s3cret")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "-1")
        .env("OTEL_BSP_SCHEDULE_DELAY", "s3cret")
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "18446744073709551615")
        .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "s3cret");
    let mut host = Host::spawn(command.args(args), &args);
    let log = host.log();
    for (name, times) in [
        ("OTEL_EXPORTER_OTLP_HEADERS", 4),
        ("OTEL_RESOURCE_ATTRIBUTES", 1),
        ("OTEL_METRICS_EXPORTER", 1),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", 1),
        ("OTEL_METRIC_EXPORT_INTERVAL", 1),
        ("OTEL_BSP_SCHEDULE_DELAY", 1),
        ("OTEL_BSP_MAX_QUEUE_SIZE", 1),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1),
    ] {
        assert_eq!(log.matches(name).count(), times, "{name}: {log}");
    }
    assert!(log.contains("entry 7 of"), "{log}");
    host.connect().echo("hello");
    host.line("connection ended");
    host.signal(TERM);
    let (stream, _) = listener.accept().unwrap();
    let head = BufReader::new(stream).lines().map(Result::unwrap);
    let head: Vec<_> = head
        .take_while(|line| !line.is_empty())
        .map(|line| line.to_lowercase())
        .collect();
    let values = |name: &str| -> Vec<String> {
        let fields = head.iter().filter_map(|line| line.split_once(": "));
        fields
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
            .collect()
    };
    assert_eq!(values("host"), ["collector"]);
    assert_eq!(values("content-type"), ["application/x-protobuf"]);
    assert_eq!(values("x-a"), ["s3cret 2"]);
    assert_eq!(values("content-length").len(), 1, "{head:?}");
    assert_ne!(values("content-length"), ["1"]);
    assert_eq!(values("transfer-encoding").len(), 0, "{head:?}");
    host.wait();
    assert!(!host.log().contains("s3cret"), "{}", host.log());
}

#[test]
fn a_handshake_is_a_span_of_its_own() {
    let collector = Collector::new(Answers::Takes);
    let (authority, issued, _) = tls::served("telemetry", "echo", &[]);
    let [certificate, key] = issued.files();
    let host = traced(
        &collector,
        "echo",
        &["--tls-certificate", certificate, "--tls-key", key],
    );
    let mut client = authority.client().connects(&host).unwrap();
    tls::echo(&mut client, b"hello");
    tls::finish(&mut client);
    tls::rest(&mut client);
    drop(client);
    let trace = collector.trace();
    assert_eq!(trace.names(), ["tls", "instantiate", "serve"]);
    let tls = trace.child("tls");
    for (key, value) in [
        ("tls.protocol.name", "tls"),
        ("tls.protocol.version", "1.3"),
        ("tls.client.server_name", "localhost"),
    ] {
        assert_eq!(says(&tls.attributes, key).as_deref(), Some(value));
    }
    assert_eq!(code(tls), StatusCode::Unset);
    // One that fails.
    host.connect().send("this is no handshake\n");
    let trace = collector.trace();
    assert_eq!(trace.names(), ["tls"]);
    assert_eq!(trace.says("wasm_inetd.outcome"), "refused");
    assert_eq!(trace.says("wasm_inetd.reason"), "tls-handshake");
    assert_eq!(code(&trace.whole), StatusCode::Unset);
    let tls = trace.child("tls");
    assert_eq!(code(tls), StatusCode::Error);
    assert_eq!(
        says(&tls.attributes, "error.type").as_deref(),
        Some("tls-handshake")
    );
    assert_ne!(tls.status.as_ref().unwrap().message, "");
}

#[test]
fn the_client_behind_a_balancer_is_told_apart_from_it() {
    let collector = Collector::new(Answers::Takes);
    let host = traced(&collector, "echo", &["--proxy-protocol-from", "127.0.0.1"]);
    let client = host.connect();
    let balancer = client.0.local_addr().unwrap();
    client.send("PROXY TCP4 192.0.2.7 192.0.2.1 49152 80\r\n");
    client.echo("hello");
    client.finish();
    client.rest();
    drop(client);
    let trace = collector.trace();
    assert_eq!(trace.names(), ["proxy-protocol", "instantiate", "serve"]);
    for (key, value) in [
        ("client.address", "192.0.2.7"),
        ("client.port", "49152"),
        ("network.peer.address", "127.0.0.1"),
        ("network.peer.port", &balancer.port().to_string()),
        ("server.address", "192.0.2.1"),
        ("server.port", "80"),
        ("wasm_inetd.peer", "192.0.2.7:49152"),
    ] {
        assert_eq!(trace.says(key), value, "{key}");
    }
    host.connect().send("no header\r\n");
    let trace = collector.trace();
    assert_eq!(trace.names(), ["proxy-protocol"]);
    assert_eq!(code(trace.child("proxy-protocol")), StatusCode::Error);
    assert_eq!(trace.says("wasm_inetd.reason"), "proxy-header");
    assert_eq!(trace.says("error.type"), "proxy-header");
}

#[test]
fn a_connection_that_is_refused_is_a_span_with_the_reason() {
    let collector = Collector::new(Answers::Takes);
    let host = traced(&collector, "echo", &["--max-connections-per-source", "1"]);
    let client = host.connect();
    client.echo("hello");
    host.refuses();
    let trace = collector.trace();
    assert!(trace.children.is_empty(), "{trace:#?}");
    assert_eq!(trace.says("wasm_inetd.outcome"), "refused");
    assert_eq!(trace.says("wasm_inetd.reason"), "source-connections");
    assert_eq!(trace.says("wasm_inetd.service"), "echo");
    assert_eq!(says(&trace.whole.attributes, "wasm_inetd.connection"), None);
    // It is as the operator wants it.
    assert_eq!(code(&trace.whole), StatusCode::Unset);
    drop(client);
    assert_eq!(collector.trace().says("wasm_inetd.connection"), "1");
}

#[test]
fn what_the_guest_or_the_host_does_wrong_is_an_error() {
    let collector = Collector::new(Answers::Takes);
    let host = traced(&collector, "trap", &[]);
    let client = host.connect();
    client.send("!");
    client.expect_reset();
    let trace = collector.trace();
    assert_eq!(trace.names(), ["instantiate", "serve"]);
    assert_eq!(trace.says("wasm_inetd.outcome"), "guest-trap");
    assert_eq!(trace.says("error.type"), "guest-trap");
    for span in [&trace.whole, trace.child("serve")] {
        assert_eq!(code(span), StatusCode::Error);
        let message = &span.status.as_ref().unwrap().message;
        assert_eq!(*message, trace.says("wasm_inetd.reason"), "{}", span.name);
    }
    assert_eq!(code(trace.child("instantiate")), StatusCode::Unset);
    // What the peer does is none.
    let client = host.connect();
    client.echo("hello");
    client.reset();
    let trace = collector.trace();
    assert_eq!(trace.says("wasm_inetd.outcome"), "peer-reset");
    assert_eq!(trace.says("error.type"), "peer-reset");
    assert_eq!(code(&trace.whole), StatusCode::Unset);
    let args = ["--listen", "127.0.0.1:0"];
    let mut panics = telling(&collector.url());
    let host = Host::spawn(panics.env("WASM_INETD_PANIC_AT", "1").args(args), &args);
    host.refuses();
    let trace = collector.trace();
    assert_eq!(trace.says("wasm_inetd.outcome"), "host-panic");
    assert_eq!(code(&trace.whole), StatusCode::Error);
}

#[test]
fn a_client_on_a_socket_of_the_file_system_is_told_of_too() {
    let collector = Collector::new(Answers::Takes);
    let dir = scratch("telemetry-unix");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s").display().to_string();
    let listen = format!("unix:{path}");
    let args = ["--listen", &listen, "--isolation", "service"];
    let _host = Host::spawn(telling(&collector.url()).args(args), &args);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    drop(client);
    let trace = collector.trace();
    // The instance is another's too: who made it, and what it costs, is nobody's alone.
    assert_eq!(trace.names(), ["serve"]);
    assert_eq!(trace.says("network.transport"), "unix");
    assert_eq!(trace.says("server.address"), path);
    assert!(trace.says("wasm_inetd.peer").starts_with("unix:uid="));
    assert_eq!(says(&trace.whole.attributes, "client.address"), None);
    assert_eq!(says(&trace.whole.attributes, "wasm_inetd.guest_cpu"), None);
}

#[test]
fn metrics_are_those_that_can_be_looked_at() {
    let collector = Collector::new(Answers::Takes);
    let host = traced(&collector, "lines", &["--admin", "0"]);
    let line = host.log();
    let (_, admin) = line.split_once("admin interface at http://127.0.0.1:").unwrap();
    let admin: SocketAddr = format!("127.0.0.1:{}", admin.split('/').next().unwrap())
        .parse()
        .unwrap();
    let open = host.connect();
    open.echo("some\n");
    let client = host.connect();
    client.echo("hello\n");
    client.finish();
    client.rest();
    drop(client);
    let finished = Some(("outcome", "finished"));
    let metrics = collector.metrics(|metrics| {
        metrics.0["wasm_inetd.connections_ended"].data.is_some()
            && metrics.number("wasm_inetd.connections_ended", finished) == 1.0
            && metrics.number("wasm_inetd.received", None) == 11.0
    });
    assert_eq!(
        metrics.number("wasm_inetd.connections_accepted", Some(("service", "lines"))),
        2.0
    );
    assert_eq!(metrics.number("wasm_inetd.connections_open", None), 1.0);
    assert_eq!(metrics.number("wasm_inetd.sent", None), 11.0);
    assert_eq!(metrics.0["wasm_inetd.sent"].unit, "By");
    assert!(metrics.number("wasm_inetd.guest_cpu", None) > 0.0);
    assert_eq!(metrics.0["wasm_inetd.guest_cpu"].unit, "s");
    assert!(metrics.number("wasm_inetd.uptime", None) > 0.0);
    let duration = metrics.histogram("wasm_inetd.connection_duration");
    assert_eq!(duration.count, 1);
    assert_eq!(duration.bucket_counts.iter().sum::<u64>(), 1);
    assert_eq!(duration.bucket_counts.len(), duration.explicit_bounds.len() + 1);
    assert!(duration.sum.unwrap() > 0.0);
    // Under the same names, as far as a collector gives them to Prometheus.
    let client = Client::connect(admin).unwrap();
    client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let text = String::from_utf8(client.rest()).unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let looked: Vec<_> = types.filter(|line| !line.ends_with(" info")).collect();
    let told = metrics.0.values().map(|metric| {
        let unit = match metric.unit.as_str() {
            "" => "",
            "s" => "_seconds",
            "By" => "_bytes",
            other => panic!("{other}"),
        };
        let kind = match metric.data.as_ref().unwrap() {
            Data::Gauge(_) => "gauge",
            Data::Sum(_) => "counter",
            Data::Histogram(_) => "histogram",
            other => panic!("{other:?}"),
        };
        format!("{}{unit} {kind}", metric.name.replace('.', "_"))
    });
    let mut told: Vec<_> = told.collect();
    let mut looked: Vec<_> = looked.into_iter().map(str::to_owned).collect();
    told.sort();
    looked.sort();
    assert!(told.len() > 15);
    assert_eq!(told, looked);
}

#[test]
fn what_is_left_is_sent_at_the_end_of_a_drain() {
    let collector = Collector::new(Answers::Takes);
    let mut host = Host::start(&["--listen", "127.0.0.1:0", "--otlp", &collector.url()]);
    for _ in 0..3 {
        host.connect().echo("hello");
        host.line("connection ended");
    }
    // By default it would be seconds until then.
    assert_eq!(host.stop().code(), Some(0));
    let exports = collector.all();
    let spans = exports.iter().filter_map(|export| match export {
        Export::Traces(request) => Some(&request.resource_spans),
        Export::Metrics(_) => None,
    });
    let spans = spans
        .flatten()
        .flat_map(|of| &of.scope_spans)
        .flat_map(|of| &of.spans);
    assert_eq!(spans.filter(|span| span.name == "connection").count(), 3);
    let metrics = exports.into_iter().find_map(|export| match export {
        Export::Metrics(request) => Some(Metrics::of(request)),
        Export::Traces(_) => None,
    });
    assert_eq!(
        metrics.unwrap().number("wasm_inetd.connections_accepted", None),
        3.0
    );
}

#[test]
fn of_a_part_of_connections_there_are_no_traces() {
    let collector = Collector::new(Answers::Takes);
    let mut host = traced(&collector, "echo", &["--otlp-sample", "0"]);
    host.connect().echo("hello");
    host.line("connection ended");
    assert_eq!(host.stop().code(), Some(0));
    let exports = collector.all();
    assert!(exports.iter().any(|export| matches!(export, Export::Metrics(_))));
    assert!(
        exports.iter().all(|export| matches!(export, Export::Metrics(_))),
        "{exports:#?}"
    );
}

#[test]
fn metrics_can_be_left_out() {
    let collector = Collector::new(Answers::Takes);
    let args = ["--listen", "127.0.0.1:0"];
    let mut command = telling(&collector.url());
    let mut host = Host::spawn(command.env("OTEL_METRICS_EXPORTER", "none").args(args), &args);
    host.connect().echo("hello");
    host.line("connection ended");
    assert_eq!(host.stop().code(), Some(0));
    let exports = collector.all();
    assert!(exports.iter().any(|export| matches!(export, Export::Traces(_))));
    assert!(
        exports.iter().all(|export| matches!(export, Export::Traces(_))),
        "{exports:#?}"
    );
}

#[test]
fn a_file_says_where_the_collector_is() {
    let collector = Collector::new(Answers::Takes);
    let text = format!(
        "[otlp]\nendpoint = \"{}\"\nsample = 1.0\n\n[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n",
        collector.url()
    );
    let file = file("telemetry.toml", &text);
    let printed = |arguments: &[&str]| {
        let output = command()
            .args(["config", "--print"])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let print = printed(&["--config", file.to_str().unwrap()]);
    assert!(print.contains(&collector.url()), "{print}");
    let flags = printed(&["--otlp", "http://[::1]:4318/a/", "--otlp-sample", "0.25"]);
    for line in ["endpoint = \"http://[::1]:4318/a\"", "sample = 0.25"] {
        assert!(flags.contains(line), "{flags}");
    }
    let host = Host::with_config(&file, 1);
    host.connect().echo("hello");
    drop(host.line("connection ended"));
    host.signal(TERM);
    assert_eq!(collector.trace().says("wasm_inetd.service"), "a");
}

#[test]
fn nothing_is_sent_without_being_asked_for() {
    let collector = Collector::new(Answers::Takes);
    let args = ["--listen", "127.0.0.1:0"];
    let mut command = command();
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .env("OTEL_BSP_SCHEDULE_DELAY", "1")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "1");
    let mut host = Host::spawn(command.args(args), &args);
    host.connect().echo("hello");
    host.line("connection ended");
    assert_eq!(host.stop().code(), Some(0));
    assert_eq!(collector.connections.load(Ordering::Relaxed), 0);
}

/// Serves with a collector that does not take what is sent, and drains.
fn serves_in_spite_of(url: &str, reason: Option<&str>) {
    let args = ["--listen", "127.0.0.1:0"];
    let start = Instant::now();
    let mut command = telling(url);
    // Otherwise it would give up by itself before the test did.
    command.env("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000");
    let mut host = Host::spawn(command.args(args), &args);
    let open = host.connect();
    for _ in 0..200 {
        host.connect().echo("hello");
        open.echo("hello");
    }
    drop(open);
    for _ in 0..201 {
        assert_eq!(host.outcome(), "finished");
    }
    if let Some(reason) = reason {
        until("a warning", || host.log().contains("traces or metrics lost"));
        assert!(host.log().contains(reason), "{}", host.log());
    }
    assert_eq!(host.stop().code(), Some(0));
    // At most one warning a minute.
    let minutes = start.elapsed().as_secs() as usize / 60;
    let warnings = host.log().matches("traces or metrics lost").count();
    let expected = match reason {
        Some(_) => 1..=1 + minutes,
        None => 0..=0,
    };
    assert!(expected.contains(&warnings), "{}", host.log());
}

#[test]
fn a_collector_that_is_down_holds_nothing_up() {
    // Bound, and nobody listens there.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    serves_in_spite_of(&format!("http://{address}"), Some("refused"));
}

#[test]
fn a_collector_that_refuses_holds_nothing_up() {
    let collector = Collector::new(Answers::Refuses);
    serves_in_spite_of(&collector.url(), Some("503"));
    assert!(collector.all().len() > 1);
}

#[test]
fn what_a_collector_has_taken_is_not_sent_again() {
    let collector = Collector::new(Answers::TakesAtLength);
    let host = traced(&collector, "lines", &[]);
    let mut seen = HashSet::new();
    for _ in 0..5 {
        host.connect().echo("hello\n");
        let span = collector.trace().whole;
        assert!(seen.insert(span.span_id.clone()), "{span:?}");
    }
    host.line("traces or metrics lost");
}

#[test]
fn a_collector_that_never_answers_holds_nothing_up() {
    let collector = Collector::new(Answers::Never);
    serves_in_spite_of(&collector.url(), None);
    assert!(!collector.all().is_empty());
}

#[test]
fn a_collector_that_never_answers_is_given_up() {
    let collector = Collector::new(Answers::Never);
    let args = ["--listen", "127.0.0.1:0"];
    let mut command = telling(&collector.url());
    let host = Host::spawn(command.env("OTEL_EXPORTER_OTLP_TIMEOUT", "50").args(args), &args);
    host.connect().echo("hello");
    assert!(
        host.line("traces or metrics lost")
            .contains("no answer within 50ms")
    );
    // It is tried again.
    until("further connections", || {
        collector.connections.load(Ordering::Relaxed) > 2
    });
}

#[test]
fn what_is_no_collector_is_refused() {
    for (args, message) in [
        (
            &["--otlp", "https://127.0.0.1:4318"][..],
            "TLS is not supported here; expected http://",
        ),
        (
            &["--otlp", "127.0.0.1:4318"],
            "expected a URL such as http://127.0.0.1:4318",
        ),
        (&["--otlp", "http://"], "expected a URL"),
        (
            &["--otlp", "http://user@127.0.0.1:4318"],
            "credentials in the URL",
        ),
        (&["--otlp", "http://127.0.0.1:0"], "expected a URL"),
        (&["--otlp", "http://127.0.0.1:4318/?a"], "expected a URL"),
        (
            &["--otlp", "http://127.0.0.1:4318/v1/traces"],
            "leave out `/v1/traces` and `/v1/metrics`; the host appends them",
        ),
        (&["--otlp-sample", "1"], "--otlp"),
        (
            &["--otlp", "http://127.0.0.1:1", "--otlp-sample", "1.5"],
            "expected a number from 0 to 1",
        ),
    ] {
        let refusal = refused(args);
        assert_eq!(refusal.status, Some(2), "{args:?}");
        assert!(refusal.message.contains(message), "{args:?}: {}", refusal.message);
    }
    let text = "[otlp]\nendpoint = \"https://a\"\n[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n";
    let file = file("telemetry-refused.toml", text);
    let refusal = refused(&["--config", Path::new(&file).to_str().unwrap()]);
    assert_eq!(refusal.status, Some(2));
    assert!(
        refusal.message.contains("TLS is not supported here"),
        "{}",
        refusal.message
    );
}
