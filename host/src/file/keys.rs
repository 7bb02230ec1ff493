//! The keys of the file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::words::{
    AdminAddress, Backlog, Buffer, Bytes, Collector, Connections, Count, Deadline, Destination, Directory,
    Instances, Keepalive, ListenAddress, MaxRate, Name, Network, Owner, Protocol, Sample, Size, Slice,
    SocketMode, Threads, Time, Timeout, Word,
};

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

/// The file.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct File {
    /// Threads that serve connections; one per core, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) threads: Option<Word<Threads>>,
    /// How long connections may go on after SIGINT or SIGTERM before they are closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) drain_timeout: Option<Word<Time>>,
    /// Directory that keeps compiled components, or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cache: Option<String>,
    /// What is logged, and how.
    #[serde(default)]
    pub(super) log: LogTable,
    /// Where the host can be looked at, and told what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) admin: Option<AdminTable>,
    /// Where traces and metrics are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) otlp: Option<OtlpTable>,
    /// What services have that do not say otherwise.
    #[serde(default, skip_serializing)]
    pub(super) defaults: DefaultsTable,
    /// The services.
    #[serde(rename = "service")]
    pub(super) services: Vec<ServiceTable>,
}

/// Where the host can be looked at, and told what to do.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct AdminTable {
    /// A port of the loopback, ADDRESS:PORT, or unix:PATH.
    pub(super) listen: Word<AdminAddress>,
    /// File of the token by which anything can be changed; made if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<PathBuf>,
}

/// Where traces and metrics are sent, by OTLP over HTTP.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct OtlpTable {
    /// The collector, as http://127.0.0.1:4318.
    pub(super) endpoint: Word<Collector>,
    /// Part of all connections that are traced, from 0 to 1; all, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<Word<Sample>>,
}

table! {
    /// The log.
    LogTable {
        /// Form of the lines.
        format: LogFormat,
        /// Which lines are written.
        level: LogLevel,
    }
}

/// The form of a line of the log.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// Which lines are written.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// What has an instance of its own.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Isolation {
    Connection,
    Service,
}

/// Which connections have a line in the log.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LogConnections {
    All,
    Failed,
    None,
}

table! {
    /// What services have that do not say otherwise.
    DefaultsTable {
        /// The component is initialised once, when it is loaded.
        preinit: bool,
        /// The component is loaded again when its file changes.
        watch: bool,
        /// Idle sessions move to a new generation.
        migrate: bool,
        /// What has an instance of its own: each connection, or the service.
        isolation: Isolation,
        /// How long connections may go on when another generation has replaced theirs, or `off`.
        drain_generations: Word<Timeout>,
        /// Connections that have a line in the log when they end.
        log_connections: LogConnections,
        /// What guests may use beyond their connection.
        grants: GrantsTable,
        /// Whose connections may come in.
        access: AccessTable,
        /// How the sockets of listeners are set.
        socket: SocketTable,
        /// What connections may take.
        limits: LimitsTable,
    }
}

/// A service.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ServiceTable {
    /// What the log calls it.
    #[schemars(with = "Word<Name>")]
    pub(super) name: Spanned<Word<Name>>,
    /// Where it listens: addresses, or tables that say more.
    #[schemars(with = "Vec<ListenEntry>")]
    pub(super) listen: Vec<Spanned<ListenEntry>>,
    /// The component to serve with; without it an embedded guest echoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) component: Option<PathBuf>,
    /// Components that stand between the peer and that one; the first is nearest the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) middleware: Vec<PathBuf>,
    /// Arguments for guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) args: Vec<String>,
    /// Directory of conversations that a component has to pass before it replaces another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gate: Option<PathBuf>,
    /// Directory that conversations are recorded in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) record: Option<PathBuf>,
    /// The component is initialised once, when it is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) preinit: Option<bool>,
    /// The component is loaded again when its file changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) watch: Option<bool>,
    /// Idle sessions move to a new generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) migrate: Option<bool>,
    /// What has an instance of its own: each connection, or the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) isolation: Option<Isolation>,
    /// Instances of a service whose connections share them, or `cores` for one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) instances: Option<Word<Instances>>,
    /// How long connections may go on when another generation has replaced theirs, or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) drain_generations: Option<Word<Timeout>>,
    /// Connections that have a line in the log when they end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) log_connections: Option<LogConnections>,
    /// What guests may use beyond their connection.
    #[serde(default)]
    pub(super) grants: GrantsTable,
    /// Whose connections may come in.
    #[serde(default)]
    pub(super) access: AccessTable,
    /// How the sockets of its listeners are set.
    #[serde(default, skip_serializing)]
    pub(super) socket: SocketTable,
    /// What connections may take.
    #[serde(default)]
    pub(super) limits: LimitsTable,
}

table! {
    /// What guests may use beyond their connection.
    GrantsTable {
        /// Variables for the environment of guests.
        env: BTreeMap<String, String>,
        /// Directories for guests, as `HOST::GUEST`, or `HOST::GUEST:rw` to be written too.
        dirs: Vec<Word<Directory>>,
        /// Destinations that guests may connect to by TCP, as `HOST:PORT`.
        allow_outbound: Vec<Word<Destination>>,
    }
}

table! {
    /// Whose connections may come in. The narrowest network that fits counts.
    AccessTable {
        /// Networks that may; if there are any, others may not.
        allow: Vec<Word<Network>>,
        /// Networks that may not.
        deny: Vec<Word<Network>>,
    }
}

table! {
    /// How the sockets of a listener are set.
    SocketTable {
        /// Connections that the kernel keeps until they are accepted.
        backlog: Word<Backlog>,
        /// Answers go out at once (`TCP_NODELAY`).
        nodelay: bool,
        /// Silence after which the kernel asks whether the peer is still there, or `off`.
        keepalive: Word<Keepalive>,
        /// What the kernel keeps of what a peer sends, or `off` for what it thinks best.
        receive_buffer: Word<Buffer>,
        /// What the kernel keeps of what a peer is sent, or `off` for what it thinks best.
        send_buffer: Word<Buffer>,
        /// Whether an IPv6 listener takes connections over IPv4 too.
        dual_stack: bool,
        /// Mode of a socket in the file system, in octal.
        mode: Word<SocketMode>,
        /// Owner of a socket in the file system, as `USER`, `USER:GROUP` or `:GROUP`.
        owner: Word<Owner>,
    }
}

/// A listener that says more than its address.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ListenTable {
    /// The address, as `ADDRESS:PORT`, `unix:PATH` or `inherited:NAME`.
    pub(super) address: Word<ListenAddress>,
    /// What guests are told as its name, in place of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// How its sockets are set.
    #[serde(default)]
    pub(super) socket: SocketTable,
    /// Peers say first on whose behalf they connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) proxy_protocol: Option<ProxyProtocolTable>,
    /// Connections are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<TlsTable>,
}

/// A listener: its address, or a table that says more.
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
        f.write_str("an address, as \"127.0.0.1:8080\", or a table with the key `address`")
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

/// What the PROXY protocol takes.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ProxyProtocolTable {
    /// Networks whose word is taken; connections from elsewhere are refused.
    pub(super) from: Vec<Word<Network>>,
    /// How long the header may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<Word<Deadline>>,
}

/// What TLS takes.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct TlsTable {
    /// The certificate, and those that lead to its root, in PEM.
    pub(super) certificate: PathBuf,
    /// The private key of the certificate, in PEM.
    pub(super) key: PathBuf,
    /// Further certificates, to be chosen from by the name that a client asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) more: Vec<IdentityTable>,
    /// Protocols to offer by ALPN, the preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) alpn: Vec<Word<Protocol>>,
    /// Roots that certificates of clients have to lead to, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client_ca: Option<PathBuf>,
    /// Clients without a certificate may come in too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) client_optional: bool,
    /// How long a handshake may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<Word<Deadline>>,
}

/// A certificate with its key.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct IdentityTable {
    /// The certificate, and those that lead to its root, in PEM.
    pub(super) certificate: PathBuf,
    /// Its private key, in PEM.
    pub(super) key: PathBuf,
}

table! {
    /// What connections may take.
    LimitsTable {
        /// Connections served at once; further ones wait in the backlog.
        max_connections: Word<Connections>,
        /// Connections of one source served at once, or `off`; further ones are refused.
        max_connections_per_source: Word<Count>,
        /// Connections accepted in a second (or `N/m`, `N/h`), or `off`; further ones wait in the backlog.
        max_rate: Word<MaxRate>,
        /// Connections of one source in a second (or `N/m`, `N/h`), or `off`; further ones are refused.
        max_rate_per_source: Word<MaxRate>,
        /// Memory of one connection.
        max_memory: Word<Size>,
        /// How long one connection may keep its thread before others have their turn.
        cpu_slice: Word<Slice>,
        /// How long the start of a guest, and each call of a session, may take, or `off`.
        max_call_time: Word<Timeout>,
        /// Time on the processor that the guest of one connection may take in all, or `off`.
        max_cpu_time: Word<Timeout>,
        /// Silence in both directions from the accept on after which a connection is closed, or `off`.
        first_byte_timeout: Word<Timeout>,
        /// Silence in both directions after which a connection is closed, or `off`.
        idle_timeout: Word<Timeout>,
        /// How long a peer may take no byte of what waits for it before it is reset, or `off`.
        write_timeout: Word<Timeout>,
        /// How long a connection may live, or `off`.
        max_lifetime: Word<Timeout>,
        /// Bytes that a peer may send on one connection, or `off`.
        max_bytes_in: Word<Bytes>,
        /// Bytes that a guest may send on one connection, or `off`.
        max_bytes_out: Word<Bytes>,
    }
}
