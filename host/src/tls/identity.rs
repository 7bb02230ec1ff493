//! Certificates and keys: reading them, choosing among them, and whom they stand for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tracing::debug;
use x509_cert::der::Decode;

use crate::config::{Identity, Tls as Config};

/// Why files cannot be used for TLS.
#[derive(Debug, Error)]
pub enum Unusable {
    /// One cannot be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Something that should be in it is not.
    #[error("`{}` contains no {what}; expected one in PEM format", path.display())]
    Missing {
        /// What.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// What is in it cannot be used.
    #[error("cannot use the {what} in `{}`: {error}", path.display())]
    Unfit {
        /// What it should be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// A key belongs to another certificate.
    #[error("the key in `{}` does not belong to the certificate in `{}`", key.display(), certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// That of the key.
        key: PathBuf,
    },
    /// Nothing was given to serve with.
    #[error("no certificate was given")]
    None,
}

const CERTIFICATE: &str = "certificate";
const KEY: &str = "private key";

/// The files that `config` names.
pub(super) fn files(config: &Config) -> impl Iterator<Item = &Path> {
    let identities = config
        .identities
        .iter()
        .flat_map(|identity| [identity.certificate.as_path(), identity.key.as_path()]);
    let authorities = config
        .clients
        .as_ref()
        .map(|clients| clients.authorities.as_path());
    identities.chain(authorities)
}

/// Reads all of them.
///
/// # Errors
///
/// One cannot be read, or is not what it should be.
pub(super) fn read(config: &Config) -> Result<ServerConfig, Unusable> {
    let provider = Arc::new(ring::default_provider());
    let identities = config
        .identities
        .iter()
        .map(|identity| certified(identity, &provider).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    if identities.is_empty() {
        return Err(Unusable::None);
    }
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    // There is nothing in it that could fail: the provider has what both versions take.
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(|_| Unusable::None)?;
    let builder = match &config.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let path = &clients.authorities;
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(|error| unfit(CERTIFICATE, path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if clients.required {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            let verifier = verifier
                .build()
                .map_err(|error| unfit(CERTIFICATE, path, error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_cert_resolver(Arc::new(Identities(identities)));
    server.alpn_protocols = config.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(server)
}

fn certified(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, Unusable> {
    let chain = certificates(&identity.certificate)?;
    let path = &identity.key;
    let key = PrivateKeyDer::from_pem_slice(&contents(path)?).map_err(|error| pem(KEY, path, error))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Unusable::Mismatch {
            certificate: identity.certificate.clone(),
            key: path.clone(),
        },
        rustls::Error::InvalidCertificate(_) => unfit(CERTIFICATE, &identity.certificate, error),
        _ => unfit(KEY, path, error),
    })
}

fn contents(path: &Path) -> Result<Vec<u8>, Unusable> {
    fs::read(path).map_err(|error| Unusable::Read {
        path: path.to_owned(),
        error,
    })
}

/// The certificates of a file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let read = CertificateDer::pem_slice_iter(&contents(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem(CERTIFICATE, path, error))?;
    if read.is_empty() {
        return Err(missing(CERTIFICATE, path));
    }
    Ok(read)
}

fn pem(what: &'static str, path: &Path, error: rustls::pki_types::pem::Error) -> Unusable {
    match error {
        rustls::pki_types::pem::Error::NoItemsFound => missing(what, path),
        error => unfit(what, path, error),
    }
}

fn missing(what: &'static str, path: &Path) -> Unusable {
    Unusable::Missing {
        what,
        path: path.to_owned(),
    }
}

fn unfit(what: &'static str, path: &Path, error: impl ToString) -> Unusable {
    Unusable::Unfit {
        what,
        path: path.to_owned(),
        error: error.to_string(),
    }
}

/// What a server can show, each with its key; at least one.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Identities {
    /// The first that is for the name that the client asks for; where none is, or it does not ask, the first of all.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let first = self.0.first();
        if self.0.len() == 1 {
            return first.cloned();
        }
        let name = hello
            .server_name()
            .and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| self.0.iter().find(|identity| is_for(identity, &name)));
        named.or(first).cloned()
    }
}

/// Whether a certificate is for `name`, by the names in it, of which one may begin with `*.`.
fn is_for(identity: &CertifiedKey, name: &ServerName<'_>) -> bool {
    identity
        .end_entity_cert()
        .and_then(|certificate| verify_server_name(&ParsedCertificate::try_from(certificate)?, name))
        .is_ok()
}

/// Whom a certificate stands for, as text by RFC 4514.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    match x509_cert::Certificate::from_der(certificate) {
        Ok(certificate) => Some(certificate.tbs_certificate().subject().to_string()),
        Err(error) => {
            debug!(%error, "cannot read the subject of a client certificate");
            None
        }
    }
}
