//! The flags that say where connections come from, and who may come in.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::service::{Off, off, path_in_one_line, secret_file};
use crate::config::{
    Access, Address, ClientCertificates, Identity, Listen, Mode, ProxyProtocol, SocketOptions, Tls,
};
use crate::values;

/// Where connections come from. What is said here holds for every listener.
#[derive(Debug, Args)]
pub(super) struct ListenFlags {
    /// Address to listen on: ADDRESS:PORT, unix:PATH, unix:@NAME or inherited:NAME; repeatable
    ///
    /// Port 0 picks a free port. `inherited:NAME` uses a socket that the service manager opened.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = values::address, help_heading = "Service")]
    listen: Vec<Address>,

    /// Network to accept connections from; repeatable [default: every network]
    ///
    /// The most specific network in `--allow` and `--deny` decides. No network can be in both.
    #[arg(long, value_name = "NET", value_parser = values::network, help_heading = "Access")]
    allow: Vec<IpNet>,

    /// Network to refuse connections from; repeatable
    #[arg(long, value_name = "NET", value_parser = values::network, help_heading = "Access")]
    deny: Vec<IpNet>,

    /// Network of load balancers that send the PROXY protocol; repeatable
    ///
    /// The listener refuses connections from other networks.
    #[arg(long, value_name = "NET", value_parser = values::network, help_heading = "Access")]
    proxy_protocol_from: Vec<IpNet>,

    /// How long the PROXY protocol header may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::deadline, requires = "proxy_protocol_from", help_heading = "Access")]
    proxy_protocol_timeout: Duration,

    /// TLS certificate chain, in PEM
    ///
    /// The host reloads the file when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key", value_parser = path_in_one_line(), help_heading = "TLS")]
    tls_certificate: Option<PathBuf>,

    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate", value_parser = secret_file(), help_heading = "TLS")]
    tls_key: Option<PathBuf>,

    /// Application protocol (ALPN) to offer; repeatable, preferred first
    #[arg(long, value_name = "NAME", value_parser = values::protocol, requires = "tls_certificate", help_heading = "TLS")]
    tls_alpn: Vec<String>,

    /// Root certificates that client certificates must chain to, in PEM
    ///
    /// The host refuses clients without a certificate unless `--tls-client-optional` is given.
    #[arg(long, value_name = "FILE", requires = "tls_certificate", value_parser = path_in_one_line(), help_heading = "TLS")]
    tls_client_ca: Option<PathBuf>,

    /// Accept clients without a certificate too
    #[arg(long, requires = "tls_client_ca", help_heading = "TLS")]
    tls_client_optional: bool,

    /// How long a TLS handshake may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::deadline, requires = "tls_certificate", help_heading = "TLS")]
    tls_timeout: Duration,

    /// Connections that the kernel queues until the host accepts them [default: 4096]
    #[arg(long, value_name = "N", value_parser = values::backlog, help_heading = "Sockets")]
    backlog: Option<u32>,

    /// Send small answers immediately (TCP_NODELAY)
    #[arg(long, value_name = "ON|OFF", value_enum, default_value_t = Switch::On, help_heading = "Sockets")]
    nodelay: Switch,

    /// Idle time before the kernel sends keepalive probes, or `off`
    #[arg(long, value_name = "TIME", default_value = "off", value_parser = off(values::keepalive), help_heading = "Sockets")]
    keepalive: Off<Duration>,

    /// Receive buffer of the kernel for each TCP connection, or `off` for its default
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = off(values::buffer), help_heading = "Sockets")]
    receive_buffer: Off<usize>,

    /// Send buffer of the kernel for each TCP connection, or `off` for its default
    #[arg(long, value_name = "SIZE", default_value = "off", value_parser = off(values::buffer), help_heading = "Sockets")]
    send_buffer: Off<usize>,

    /// Accept IPv4 connections on IPv6 listeners too [default: system setting]
    #[arg(long, value_name = "ON|OFF", value_enum, help_heading = "Sockets")]
    dual_stack: Option<Switch>,

    /// Mode of Unix socket files, in octal [default: from the umask]
    #[arg(long, value_name = "MODE", value_parser = values::mode, help_heading = "Sockets")]
    socket_mode: Option<Mode>,

    /// Owner of Unix socket files: USER, USER:GROUP or :GROUP
    #[arg(long, value_name = "OWNER", value_parser = values::owner, help_heading = "Sockets")]
    socket_owner: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl ListenFlags {
    /// Says which flag has no effect on any of the listeners.
    pub(super) fn without_effect(&self) -> Option<String> {
        let options = [
            ("socket-mode", "mode", self.socket_mode.is_some()),
            ("socket-owner", "owner", self.socket_owner.is_some()),
            ("dual-stack", "dual-stack", self.dual_stack.is_some()),
            ("backlog", "backlog", self.backlog.is_some()),
            ("nodelay", "nodelay", self.nodelay == Switch::Off),
            ("keepalive", "keepalive", self.keepalive.0.is_some()),
            (
                "receive-buffer",
                "receive-buffer",
                self.receive_buffer.0.is_some(),
            ),
            ("send-buffer", "send-buffer", self.send_buffer.0.is_some()),
        ];
        for (flag, option, is_set) in options {
            let ignored: Option<Vec<_>> = self.listen.iter().map(|at| at.ignores(option)).collect();
            if is_set && let Some(why) = ignored.as_deref().and_then(<[_]>::first) {
                return Some(format!("--{flag} has no effect here: {why}; remove the flag"));
            }
        }
        let has_sources =
            !self.proxy_protocol_from.is_empty() || self.listen.iter().any(Address::has_networks);
        let rules = [("allow", &self.allow), ("deny", &self.deny)];
        let (flag, _) = rules
            .into_iter()
            .find(|(_, networks)| !networks.is_empty() && !has_sources)?;
        Some(format!(
            "--{flag} has no effect here: clients of a Unix socket have no network address; remove \
             the flag"
        ))
    }

    pub(super) fn into_config(self) -> (Vec<Listen>, Access) {
        let timeout = self.proxy_protocol_timeout;
        let like = Listen {
            name: None,
            socket: SocketOptions {
                backlog: self.backlog.unwrap_or(SocketOptions::default().backlog),
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
                socket: like.socket.clone().at(&address),
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
