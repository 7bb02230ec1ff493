//! The flags that say where connections come from, and who may come in.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::service::{Off, off};
use crate::config::{
    Access, Address, ClientCertificates, Identity, Listen, Mode, ProxyProtocol, SocketOptions, Tls,
};
use crate::values;

/// Where connections come from. What is said here holds for every listener.
#[derive(Debug, Args)]
pub(super) struct ListenFlags {
    /// Address to listen on, as ADDRESS:PORT, unix:PATH or inherited:NAME; may be repeated; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = values::address, help_heading = "Service")]
    listen: Vec<Address>,

    /// Network whose connections may come in; may be repeated; the narrowest that fits counts [default: every one]
    #[arg(long, value_name = "NET", value_parser = values::network, help_heading = "Access")]
    allow: Vec<IpNet>,

    /// Network whose connections are refused; may be repeated
    #[arg(long, value_name = "NET", value_parser = values::network, help_heading = "Access")]
    deny: Vec<IpNet>,

    /// Network of balancers that say for whom they connect, by the PROXY protocol; may be repeated; others are refused
    #[arg(long, value_name = "NET", value_parser = values::network, help_heading = "Access")]
    proxy_protocol_from: Vec<IpNet>,

    /// How long the header of the PROXY protocol may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::deadline, help_heading = "Access")]
    proxy_protocol_timeout: Duration,

    /// Certificate to serve TLS with, and those that lead to its root, in PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "TLS")]
    tls_certificate: Option<PathBuf>,

    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate", help_heading = "TLS")]
    tls_key: Option<PathBuf>,

    /// Protocol to offer by ALPN; may be repeated, the preferred first
    #[arg(long, value_name = "NAME", value_parser = values::protocol, requires = "tls_certificate", help_heading = "TLS")]
    tls_alpn: Vec<String>,

    /// Roots that certificates of clients have to lead to, in PEM; clients without one are refused
    #[arg(long, value_name = "FILE", requires = "tls_certificate", help_heading = "TLS")]
    tls_client_ca: Option<PathBuf>,

    /// Clients without a certificate may come in too
    #[arg(long, requires = "tls_client_ca", help_heading = "TLS")]
    tls_client_optional: bool,

    /// How long a handshake may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::deadline, help_heading = "TLS")]
    tls_timeout: Duration,

    /// Connections that the kernel keeps until they are accepted
    #[arg(long, value_name = "N", default_value = "4096", value_parser = values::backlog, help_heading = "Sockets")]
    backlog: u32,

    /// Whether answers go out at once (TCP_NODELAY)
    #[arg(long, value_name = "ON|OFF", value_enum, default_value_t = Switch::On, help_heading = "Sockets")]
    nodelay: Switch,

    /// Silence after which the kernel asks whether the peer is still there, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = off(values::keepalive), help_heading = "Sockets")]
    keepalive: Off<Duration>,

    /// What the kernel keeps of what a peer sends, or `off` for what it thinks best
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = off(values::buffer), help_heading = "Sockets")]
    receive_buffer: Off<usize>,

    /// What the kernel keeps of what a peer is sent, or `off` for what it thinks best
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = off(values::buffer), help_heading = "Sockets")]
    send_buffer: Off<usize>,

    /// Whether an IPv6 listener takes connections over IPv4 too [default: what the system says]
    #[arg(long, value_name = "ON|OFF", value_enum, help_heading = "Sockets")]
    dual_stack: Option<Switch>,

    /// Mode of sockets in the file system, in octal [default: by the umask]
    #[arg(long, value_name = "MODE", value_parser = values::mode, help_heading = "Sockets")]
    socket_mode: Option<Mode>,

    /// Owner of sockets in the file system, as USER, USER:GROUP or :GROUP
    #[arg(long, value_name = "OWNER", value_parser = values::owner, help_heading = "Sockets")]
    socket_owner: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl ListenFlags {
    pub(super) fn into_config(self) -> (Vec<Listen>, Access) {
        let timeout = self.proxy_protocol_timeout;
        let like = Listen {
            name: None,
            socket: SocketOptions {
                backlog: self.backlog,
                nodelay: self.nodelay == Switch::On,
                keepalive: self.keepalive.0,
                receive_buffer: self.receive_buffer.0,
                send_buffer: self.send_buffer.0,
                dual_stack: self.dual_stack.map(|switch| switch == Switch::On),
                mode: self.socket_mode,
                owner: self.socket_owner,
            },
            proxy_protocol: (!self.proxy_protocol_from.is_empty()).then_some(ProxyProtocol {
                trusted: self.proxy_protocol_from,
                timeout,
            }),
            tls: self
                .tls_certificate
                .zip(self.tls_key)
                .map(|(certificate, key)| Tls {
                    identities: vec![Identity { certificate, key }],
                    alpn: self.tls_alpn,
                    clients: self.tls_client_ca.map(|authorities| ClientCertificates {
                        authorities,
                        required: !self.tls_client_optional,
                    }),
                    timeout: self.tls_timeout,
                }),
            // In place of this.
            address: Address::Inherited(String::new()),
        };
        let listen = self
            .listen
            .into_iter()
            .map(|address| Listen {
                address,
                ..like.clone()
            })
            .collect();
        let access = Access {
            allow: self.allow,
            deny: self.deny,
        };
        (listen, access)
    }
}
