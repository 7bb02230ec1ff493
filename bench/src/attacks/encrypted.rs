//! What attackers do by TLS, and the certificates for it.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::peers::{drain, each, is_timeout};
use super::stage::Stage;

/// Intermediate certificates in a client's chain. rustls accepts a path with at most one more.
const INTERMEDIATES: usize = 5;

/// Changes of keys in one write. rustls refuses more than 32 of them in a row.
const UPDATES: usize = 30;

/// Writes a certificate of the host into `dir`, and a chain of certificates of a client with its
/// authority.
pub(super) fn prepare(dir: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
    fs::write(dir.join("tls.pem"), certificate.pem())?;
    let file = dir.join("tls.key");
    fs::write(&file, key.serialize_pem())?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let (params, key) = (authority("authority")?, KeyPair::generate()?);
    fs::write(dir.join("authority.pem"), params.self_signed(&key)?.pem())?;
    let mut issuer = Issuer::new(params, key);
    let mut chain = String::new();
    for number in 0..INTERMEDIATES {
        let (params, key) = (authority(&format!("authority {number}"))?, KeyPair::generate()?);
        chain.insert_str(0, &params.signed_by(&key, &issuer)?.pem());
        issuer = Issuer::new(params, key);
    }
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["mallory".to_owned()])?.signed_by(&key, &issuer)?;
    fs::write(dir.join("client.pem"), certificate.pem() + &chain)?;
    fs::write(dir.join("client.key"), key.serialize_pem())?;
    Ok(())
}

fn authority(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params)
}

/// Every attacker shows a chain of certificates in a handshake, and leaves, again and again.
pub(super) fn show_certificates(stage: &Stage) -> Result<()> {
    let config = Arc::new(config(&stage.dir)?);
    each(stage, |_| {
        while stage.goes_on() {
            if let Some((mut connection, mut socket)) = connect(stage, &config) {
                connection.send_close_notify();
                let _ = write(&mut connection, &mut socket);
                drain(stage, &mut socket);
            }
        }
    });
    Ok(())
}

/// Every attacker changes its keys again and again, and sends as little as it can in between.
pub(super) fn change_keys(stage: &Stage) -> Result<()> {
    let config = Arc::new(config(&stage.dir)?);
    each(stage, |_| {
        while stage.goes_on() {
            if let Some((mut connection, mut socket)) = connect(stage, &config) {
                while stage.goes_on() && update_keys(&mut connection, &mut socket).is_ok() {}
            }
        }
    });
    Ok(())
}

fn update_keys(connection: &mut ClientConnection, socket: &mut TcpStream) -> Result<()> {
    for _ in 0..UPDATES {
        connection.refresh_traffic_keys()?;
    }
    connection.writer().write_all(b"x")?;
    write(connection, socket)
}

/// A client that trusts the host of this attack, shows its certificates, and resumes no session.
fn config(dir: &Path) -> Result<ClientConfig> {
    let mut trusted = RootCertStore::empty();
    trusted.add(CertificateDer::from_pem_file(dir.join("tls.pem"))?)?;
    let chain: Result<_, _> = CertificateDer::pem_file_iter(dir.join("client.pem"))?.collect();
    let key = PrivateKeyDer::from_pem_file(dir.join("client.key"))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(trusted)
        .with_client_auth_cert(chain?, key)
        .context("the certificates of the client")?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Connects and performs a handshake. Returns `None` if the host ends it or the attack is over.
fn connect(stage: &Stage, config: &Arc<ClientConfig>) -> Option<(ClientConnection, TcpStream)> {
    let mut socket = stage.connect().ok()?;
    let name = ServerName::try_from("localhost").ok()?;
    let mut connection = ClientConnection::new(Arc::clone(config), name).ok()?;
    while connection.is_handshaking() {
        match connection.complete_io(&mut socket) {
            Err(error) if is_timeout(&error) && stage.goes_on() => {}
            done => drop(done.ok()?),
        }
    }
    write(&mut connection, &mut socket).ok()?;
    Some((connection, socket))
}

fn write(connection: &mut ClientConnection, socket: &mut TcpStream) -> Result<()> {
    while connection.wants_write() {
        connection.write_tls(socket)?;
    }
    Ok(())
}
