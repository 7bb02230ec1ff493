//! The keys of the file.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::words::{
    AdminAddress, Backlog, Buffer, Bytes, CallTime, Collector, Connections, Count, Deadline, Destination,
    Directory, Instances, Keepalive, ListenAddress, MaxCompileMemory, MaxRate, Name, Network, Owner,
    Protocol, Sample, Size, Slice, SocketMode, Threads, Time, Timeout, Word,
};

use crate::values::HOST_VARIABLES;

/// Reads a table. Refuses a list, because serde would assign its values to the keys in order.
fn table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_map(TableReader(PhantomData))
}

fn some_table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    table(deserializer).map(Some)
}

fn tables<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let tables = Vec::<Table<T>>::deserialize(deserializer)?;
    Ok(tables.into_iter().map(|Table(table)| table).collect())
}

struct Table<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        table(deserializer).map(Self)
    }
}

struct TableReader<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TableReader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Makes a table whose keys may all be left out. What one table leaves out it can take from another.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Default, Deserialize, Serialize, JsonSchema)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub(super) struct $name {
            $(
                $(#[$field_doc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub(super) $field: Option<$ty>,
            )*
        }

        impl $name {
            /// The same, with what is left out taken from `defaults`.
            #[allow(dead_code, reason = "not every table has defaults")]
            pub(super) fn or(self, defaults: Self) -> Self {
                Self { $($field: self.$field.or(defaults.$field),)* }
            }
        }
    };
}

/// The services file of wasm-inetd.
///
/// This schema bounds values as the host does. It cannot express the sum of a time of several
/// units, a fraction at the edge of a range, a fraction of an hour that is no whole second, the
/// longest time, networks of IPv6 with bits behind the prefix, texts with more bytes than
/// characters, and settings that exclude each other. `wasm-inetd check` checks these too.
#[derive(Deserialize, Serialize, JsonSchema)]
#[schemars(extend("allOf" = [shared()]))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct File {
    /// Number of threads that serve connections. Default: one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) threads: Option<Word<Threads>>,
    /// How long open connections may continue after SIGINT or SIGTERM. Default: `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) drain_timeout: Option<Word<Time>>,
    /// Directory for compiled components, or `off`. Default: in the user's cache directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) cache: Option<String>,
    /// Memory for compiling one component, or `off`. Default: half of the memory of the control
    /// group, or of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_compile_memory: Option<Word<MaxCompileMemory>>,
    /// The log on standard error.
    #[serde(default, deserialize_with = "table")]
    pub(super) log: LogTable,
    /// The admin interface. Without this table there is none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_table"
    )]
    pub(super) admin: Option<AdminTable>,
    /// The OpenTelemetry collector that receives traces and metrics.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_table"
    )]
    pub(super) otlp: Option<OtlpTable>,
    /// Defaults for all services; a service overrides them key by key.
    #[serde(default, skip_serializing, deserialize_with = "table")]
    pub(super) defaults: DefaultsTable,
    /// The services; at least one.
    #[serde(rename = "service", deserialize_with = "tables")]
    #[schemars(length(min = 1))]
    pub(super) services: Vec<ServiceTable>,
}

/// The admin interface. Without this table there is none.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct AdminTable {
    /// Address of the interface: a port on 127.0.0.1, `ADDRESS:PORT` or `unix:PATH`.
    pub(super) listen: Word<AdminAddress>,
    /// File with the token that authorises changes. The host creates a missing file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) token: Option<PathBuf>,
}

/// The OpenTelemetry collector that receives traces and metrics as OTLP over HTTP.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct OtlpTable {
    /// URL of the collector, such as `http://127.0.0.1:4318`.
    pub(super) endpoint: Word<Collector>,
    /// Fraction of connections to trace, from 0 to 1. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<Word<Sample>>,
}

table! {
    /// The log on standard error.
    LogTable {
        /// Format of the lines. Default: `text`.
        format: LogFormat,
        /// Level of detail. Default: `info`.
        level: LogLevel,
    }
}

/// Format of the log lines.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// Level of detail of the log, from least to most.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Which connections share an instance: none, or those of the service.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Isolation {
    Connection,
    Service,
}

/// Which connections are logged: all, those that failed or were refused, or none.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LogConnections {
    All,
    Failed,
    None,
}

table! {
    /// Defaults for all services; a service overrides them key by key.
    DefaultsTable {
        /// Initialise the component once, when the host loads it. Default: false.
        preinit: bool,
        /// Reload when the file of the component or of a middleware changes. Default: false.
        watch: bool,
        /// Move idle sessions to a new generation after a reload. Default: false.
        migrate: bool,
        /// Instance per connection, or shared in the service. Default: `connection`.
        isolation: Isolation,
        /// How long a connection may outlive the reload of its component. Default: `off`.
        drain_generations: Word<Timeout>,
        /// Which connections are logged when they end. Default: `all`.
        log_connections: LogConnections,
        /// Resources that guests may use besides their connection.
        #[serde(deserialize_with = "some_table")]
        grants: GrantsTable,
        /// The networks whose connections the service accepts.
        #[serde(deserialize_with = "some_table")]
        access: AccessTable,
        /// Options of the listening sockets.
        #[serde(deserialize_with = "some_table")]
        socket: SocketTable,
        /// Limits on connections and their guests.
        #[serde(deserialize_with = "some_table")]
        limits: LimitsTable,
    }
}

/// What the schema matches paths of components with: they are no references to other places.
const FILE: &str = "^(?![A-Za-z0-9]*://)[\\s\\S]";

/// What the schema matches texts with that guests receive as C strings.
const WITHOUT_NUL: &str = "^[^\\x00]*$";

/// What the schema says of keys that require one of others. An empty list is like none.
fn required(key: &str, value: Value, keys: &[&str]) -> Value {
    let is_set = |key: &str| json!({ "required": [key], "properties": { key: { "minItems": 1 } } });
    let any: Vec<_> = keys.iter().map(|key| is_set(key)).collect();
    json!({ "if": { "required": [key], "properties": { key: value } }, "then": { "anyOf": any } })
}

/// What the schema says of `instances`, which requires shared instances. The defaults of the file can
/// set them too.
fn shared() -> Value {
    let shared = json!({ "required": ["isolation"], "properties": { "isolation": { "const": "service" } } });
    json!({
        "if": { "not": { "required": ["defaults"], "properties": { "defaults": shared } } },
        "then": { "properties": { "service": { "items": {
            "if": { "required": ["instances"] }, "then": { "required": ["isolation"] },
        } } } },
    })
}

/// One service: where it listens, and the component that serves its connections.
#[derive(Deserialize, Serialize, JsonSchema)]
#[schemars(extend("allOf" = [
    required("preinit", json!({ "const": true }), &["component"]),
    required("watch", json!({ "const": true }), &["component", "middleware"]),
    required("migrate", json!({ "const": true }), &["component"]),
    required("gate", json!(true), &["component", "middleware"]),
    required("gate-patience", json!(true), &["gate"]),
    required("drain-generations", json!(true), &["component", "middleware"]),
    json!({
        "if": { "required": ["instances", "isolation"] },
        "then": { "properties": { "isolation": { "const": "service" } } },
    }),
]))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ServiceTable {
    /// Name of the service in the log and in metrics.
    pub(super) name: Word<Name>,
    /// Where the service listens: addresses, or tables with more settings.
    #[schemars(length(min = 1))]
    pub(super) listen: Vec<ListenEntry>,
    /// Component that serves connections. Default: an embedded echo guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = FILE))]
    pub(super) component: Option<PathBuf>,
    /// Middleware between the peer and the component; the first one is nearest the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = { "type": "string", "pattern": FILE }))]
    pub(super) middleware: Vec<PathBuf>,
    /// Arguments for guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = { "type": "string", "pattern": WITHOUT_NUL }))]
    pub(super) args: Vec<String>,
    /// Directory of conversations that a new component must pass before it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) gate: Option<PathBuf>,
    /// How long a guest may take for a step of these conversations. Default: `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gate_patience: Option<Word<Deadline>>,
    /// Directory in which the host records conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) record: Option<PathBuf>,
    /// Initialise the component once, when the host loads it. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) preinit: Option<bool>,
    /// Reload when the file of the component or of a middleware changes. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) watch: Option<bool>,
    /// Move idle sessions to a new generation after a reload. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) migrate: Option<bool>,
    /// Instance per connection, or shared in the service. Default: `connection`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) isolation: Option<Isolation>,
    /// Shared instances (`isolation = "service"`), or `cores` for one per core. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) instances: Option<Word<Instances>>,
    /// How long a connection may outlive the reload of its component. Default: `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) drain_generations: Option<Word<Timeout>>,
    /// Which connections are logged when they end. Default: `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) log_connections: Option<LogConnections>,
    /// Resources that guests may use besides their connection.
    #[serde(default, deserialize_with = "table")]
    pub(super) grants: GrantsTable,
    /// The networks whose connections the service accepts.
    #[serde(default, deserialize_with = "table")]
    pub(super) access: AccessTable,
    /// Options of the sockets of all listeners of the service.
    #[serde(default, skip_serializing, deserialize_with = "table")]
    pub(super) socket: SocketTable,
    /// Limits on connections and their guests.
    #[serde(default, deserialize_with = "table")]
    pub(super) limits: LimitsTable,
}

table! {
    /// Resources that guests may use besides their connection.
    GrantsTable {
        /// Environment variables for guests.
        #[schemars(extend("additionalProperties" = { "type": "string", "pattern": WITHOUT_NUL }))]
        #[schemars(extend("propertyNames" = { "pattern": "^[^=\\x00]+$", "not": { "enum": HOST_VARIABLES } }))]
        env: BTreeMap<String, String>,
        /// Directories for guests: `HOST::GUEST`, or `HOST::GUEST:rw` if they may write.
        #[schemars(extend("uniqueItems" = true))]
        dirs: Vec<Word<Directory>>,
        /// TCP destinations that guests may connect to, as `HOST:PORT`.
        allow_outbound: Vec<Word<Destination>>,
    }
}

table! {
    /// Networks to accept or refuse. The most specific network that contains an address decides.
    AccessTable {
        /// Networks to accept connections from. Default: every network.
        allow: Vec<Word<Network>>,
        /// Networks to refuse connections from.
        deny: Vec<Word<Network>>,
    }
}

table! {
    /// Options of the sockets of a listener.
    SocketTable {
        /// Connections that the kernel queues until the host accepts them. Default: 4096.
        backlog: Word<Backlog>,
        /// Send small answers immediately (`TCP_NODELAY`). Default: true.
        nodelay: bool,
        /// Idle time before the kernel sends keepalive probes, or `off`. Default: `off`.
        keepalive: Word<Keepalive>,
        /// Receive buffer of the kernel for each TCP connection, or `off` for the system default.
        receive_buffer: Word<Buffer>,
        /// Send buffer of the kernel for each TCP connection, or `off` for the system default.
        send_buffer: Word<Buffer>,
        /// Accept IPv4 connections on an IPv6 listener too. Default: the system setting.
        dual_stack: bool,
        /// Mode of the socket file of a Unix listener, in octal. Default: from the umask.
        mode: Word<SocketMode>,
        /// Owner of the socket file of a Unix listener: `USER`, `USER:GROUP` or `:GROUP`.
        owner: Word<Owner>,
    }
}

/// A listener: its address and further settings.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ListenTable {
    /// The address: `ADDRESS:PORT`, `unix:PATH`, `unix:@NAME` or `inherited:NAME`.
    pub(super) address: Word<ListenAddress>,
    /// Name of the listener, for the log and for guests. Default: its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Word<Name>>,
    /// Options of its sockets; they override those of the service.
    #[serde(default, deserialize_with = "table")]
    pub(super) socket: SocketTable,
    /// Expect a PROXY protocol header on each connection.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_table"
    )]
    pub(super) proxy_protocol: Option<ProxyProtocolTable>,
    /// Serve TLS on this listener.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_table"
    )]
    pub(super) tls: Option<TlsTable>,
}

/// A listener: its address, or a table with further settings.
#[derive(Serialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct ListenEntry(#[schemars(with = "AddressOrTable")] pub(super) ListenTable);

/// What the schema says of it.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "it is there for its schema")]
enum AddressOrTable {
    Address(Word<ListenAddress>),
    Table(Box<ListenTable>),
}

impl<'de> Deserialize<'de> for ListenEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListenReader).map(Self)
    }
}

struct ListenReader;

impl<'de> Visitor<'de> for ListenReader {
    type Value = ListenTable;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as \"127.0.0.1:8080\", or a table with the key `address`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ListenTable, E> {
        Ok(ListenTable {
            address: Word::deserialize(serde::de::value::StrDeserializer::new(text))?,
            name: None,
            socket: SocketTable::default(),
            proxy_protocol: None,
            tls: None,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ListenTable, A::Error> {
        ListenTable::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Settings of the PROXY protocol.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ProxyProtocolTable {
    /// Networks of the trusted proxies. Connections from other networks are refused.
    #[schemars(length(min = 1))]
    pub(super) from: Vec<Word<Network>>,
    /// How long the header may take. Default: `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<Word<Deadline>>,
}

/// Settings of TLS.
#[derive(Deserialize, Serialize, JsonSchema)]
#[schemars(extend("allOf" = [required("client-optional", json!({ "const": true }), &["client-ca"])]))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct TlsTable {
    /// File of the certificate chain, in PEM format.
    #[schemars(length(min = 1))]
    pub(super) certificate: PathBuf,
    /// File of the private key of the certificate, in PEM format.
    #[schemars(length(min = 1))]
    pub(super) key: PathBuf,
    /// More certificates. A client gets the first one that matches the server name it requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "tables")]
    pub(super) more: Vec<IdentityTable>,
    /// Application protocols (ALPN) to offer, preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("uniqueItems" = true))]
    pub(super) alpn: Vec<Word<Protocol>>,
    /// File of the root certificates that client certificates must chain to, in PEM format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) client_ca: Option<PathBuf>,
    /// Accept clients without a certificate too. Requires `client-ca`. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) client_optional: bool,
    /// How long a handshake may take. Default: `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<Word<Deadline>>,
}

/// A certificate with its key.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct IdentityTable {
    /// File of the certificate chain, in PEM format.
    #[schemars(length(min = 1))]
    pub(super) certificate: PathBuf,
    /// File of the private key of the certificate, in PEM format.
    #[schemars(length(min = 1))]
    pub(super) key: PathBuf,
}

table! {
    /// Limits on connections and their guests.
    LimitsTable {
        /// Connections served at the same time; others wait in the backlog. Default: 1024.
        max_connections: Word<Connections>,
        /// Connections served at the same time per source; others are refused. Default: `off`.
        max_connections_per_source: Word<Count>,
        /// Connections accepted per second (`N`, `N/m`, `N/h`); others wait. Default: `off`.
        max_rate: Word<MaxRate>,
        /// Connections accepted per second and source; others are refused. Default: `off`.
        max_rate_per_source: Word<MaxRate>,
        /// Memory of one instance: its linear memories and tables together. Default: `64MiB`.
        max_memory: Word<Size>,
        /// How long a guest computes before other connections get its thread. Default: `2ms`.
        cpu_slice: Word<Slice>,
        /// CPU time of the start of a guest, and of one call of a session, or `off`. Default: `1s`.
        max_call_time: Word<CallTime>,
        /// CPU time of one connection's guest in total, or `off`. Default: `off`.
        max_cpu_time: Word<CallTime>,
        /// How long a new connection may stay silent in both directions, or `off`. Default: `1m`.
        first_byte_timeout: Word<Timeout>,
        /// How long a connection may stay silent in both directions, or `off`. Default: `5m`.
        idle_timeout: Word<Timeout>,
        /// How long a peer may accept none of the bytes that wait for it, or `off`. Default: `1m`.
        write_timeout: Word<Timeout>,
        /// Longest duration of a connection, or `off`. Default: `off`.
        max_lifetime: Word<Timeout>,
        /// Bytes that a peer may send on one connection, or `off`. Default: `off`.
        max_bytes_in: Word<Bytes>,
        /// Bytes that a guest may send on one connection, or `off`. Default: `off`.
        max_bytes_out: Word<Bytes>,
    }
}
