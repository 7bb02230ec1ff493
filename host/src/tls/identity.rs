//! Certificates and keys: reading them, choosing among them, and whom they stand for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use thiserror::Error;
use webpki::EndEntityCert;
use x509_cert::certificate::Version;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Reader as _, TagMode, TagNumber};

use super::algorithm::{self, Algorithm, Use};
use super::client_chain::Bounded;
use super::pem::{self, Block, Content, Fault, Malformed};
use crate::config::{Identity, Setting, Tls as Config};
use crate::values::named_secret;
use crate::whole_file;

/// Bytes of the largest file of certificates.
const MAX_FILE: u64 = 16 << 20;

/// Why files cannot be used for TLS. No variant shows what a file contains.
#[derive(Debug, Error)]
pub enum Unusable {
    /// A file cannot be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file that should contain a key cannot be read.
    #[error("cannot read {file}: {error}")]
    ReadKey {
        /// The file, as messages name it.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// A file contains no certificate or no key.
    #[error("`{}` contains no {what}; expected one in PEM format", path.display())]
    Missing {
        /// The expected content.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A file is not valid PEM.
    #[error("cannot read line {line} of `{}`: {fault}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Why.
        fault: Fault,
    },
    /// A certificate or a key cannot be used.
    #[error("cannot use the {what} on line {line} of `{}`: {reason}", path.display())]
    Unfit {
        /// Which of the two.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The line on which it begins, counted from 1.
        line: usize,
        /// Why, and what to do.
        reason: String,
    },
    /// A key belongs to another certificate.
    #[error(
        "the key in `{}` does not belong to the certificate in `{}`",
        key.display(),
        certificate.display()
    )]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// That of the key.
        key: PathBuf,
    },
    /// A key belongs to a certificate that is not the first of its file.
    #[error(
        "the key in `{}` belongs to the certificate on line {line} of `{}`; move this certificate to the \
         beginning of the file",
        key.display(),
        certificate.display()
    )]
    Order {
        /// The file of the certificates.
        certificate: PathBuf,
        /// The line on which the certificate of the key begins, counted from 1.
        line: usize,
        /// The file of the key.
        key: PathBuf,
    },
    /// Nothing was given to serve with.
    #[error("no certificate was given")]
    None,
}

const CERTIFICATE: &str = "certificate";
const KEY: &str = "private key";

/// Certificates and keys, read and checked.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) server: ServerConfig,
    pub(super) files: Vec<CertificateFile>,
}

/// A file of certificates, as it is reported in the log.
#[derive(Debug)]
pub(super) struct CertificateFile {
    pub(super) path: PathBuf,
    /// The number of certificates in it.
    pub(super) count: usize,
    /// One sentence for each certificate that is not valid at the moment, or that no client gets.
    pub(super) warnings: Vec<String>,
}

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
pub(super) fn read(config: &Config) -> Result<Read, Unusable> {
    let provider = Arc::new(ring::default_provider());
    let mut files = Vec::new();
    let mut identities = Vec::new();
    for identity in &config.identities {
        let certified = certified(identity, &provider, &mut files)?;
        // The first is for clients that request no name, or one that no certificate has.
        if !identities.is_empty()
            && let Some(file) = files.last_mut()
        {
            file.warnings
                .extend(unused(&certified, &identities, &identity.certificate));
        }
        identities.push(Arc::new(certified));
    }
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
            let roots = Arc::new(authorities(path, &mut files)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = if clients.required {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            // It fails without roots alone.
            let verifier = verifier.build().map_err(|_| missing(CERTIFICATE, path))?;
            builder.with_client_cert_verifier(Arc::new(Bounded(verifier)))
        }
    };
    let mut server = builder.with_cert_resolver(Arc::new(Identities(identities)));
    server.alpn_protocols = config.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(Read { server, files })
}

impl Unusable {
    /// The key, within its table, of the file to change for a certificate and a key that cannot be
    /// used together.
    fn key_of_pair(&self) -> &'static str {
        match self {
            Self::Unfit {
                what: CERTIFICATE, ..
            }
            | Self::Order { .. } => "certificate",
            _ => "key",
        }
    }
}

/// Finds everything that keeps the files of `config` from being used. Returns the keys of the
/// settings, and what is wrong with each.
pub(crate) fn faults(config: &Config) -> Vec<(String, Unusable)> {
    let provider = ring::default_provider();
    let files = &mut Vec::new();
    let mut faults = Vec::new();
    for (index, identity) in config.identities.iter().enumerate() {
        let table = match index {
            0 => String::new(),
            index => format!("more[{}].", index - 1),
        };
        let certificate = certificates(&identity.certificate, files).err();
        let key = key(&identity.key).err();
        let both = match (&certificate, &key) {
            (None, None) => certified(identity, &provider, files).err(),
            _ => None,
        };
        faults.extend(certificate.map(|error| (format!("{table}certificate"), error)));
        faults.extend(key.map(|error| (format!("{table}key"), error)));
        faults.extend(both.map(|error| (format!("{table}{}", error.key_of_pair()), error)));
    }
    let clients = config.clients.as_ref();
    let clients = clients.and_then(|clients| authorities(&clients.authorities, files).err());
    faults.extend(clients.map(|error| ("client-ca".to_owned(), error)));
    faults
}

fn certified(
    identity: &Identity,
    provider: &CryptoProvider,
    files: &mut Vec<CertificateFile>,
) -> Result<CertifiedKey, Unusable> {
    let chain = certificates(&identity.certificate, files)?;
    let path = &identity.key;
    let (line, key) = key(path)?;
    let algorithm = Algorithm::of_key(&key).ok();
    // The library's error does not say more: it has tried one algorithm after the other.
    let loaded = provider.key_provider.load_private_key(key);
    let key = loaded.map_err(|_| {
        let reason = algorithm.and_then(|algorithm| algorithm.unusual_size());
        let reason = reason.map(|reason| unfit(KEY, path, line, unsuitable(&reason)));
        reason.unwrap_or_else(|| damaged(path, line))
    })?;
    let ders = chain.iter().map(|certificate| certificate.der.clone());
    let certified = CertifiedKey::new(ders.collect(), Arc::clone(&key));
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(mismatch(identity, &chain, &key)),
        Err(_) => Err(unusable(&identity.certificate, chain.first())),
    }
}

/// Says which certificate of `chain` belongs to `key`, which does not belong to the first.
fn mismatch(identity: &Identity, chain: &[Certificate], key: &Arc<dyn SigningKey>) -> Unusable {
    let path = &identity.certificate;
    if let Some(first) = chain.first()
        && let Some(reason) = first.algorithm().and_then(|of| of.unreadable_point())
    {
        let reason = format!("it has {reason}; have it issued for an uncompressed one");
        return unfit(CERTIFICATE, path, first.line, reason);
    }
    let is_of_key = |certificate: &&Certificate| {
        let certified = CertifiedKey::new(vec![certificate.der.clone()], Arc::clone(key));
        certified.keys_match().is_ok()
    };
    let (certificate, key) = (path.clone(), identity.key.clone());
    match chain.iter().find(is_of_key) {
        Some(Certificate { line, .. }) => Unusable::Order {
            certificate,
            line: *line,
            key,
        },
        None => Unusable::Mismatch { certificate, key },
    }
}

/// Says why the library does not accept a certificate of its own.
fn unusable(path: &Path, certificate: Option<&Certificate>) -> Unusable {
    let (line, parsed) = certificate.map_or((1, None), |first| (first.line, first.parsed.as_ref()));
    let Some(parsed) = parsed else {
        return invalid(path, line);
    };
    if parsed.tbs_certificate().version() != Version::V3 {
        let reason = "it is not of X.509 version 3, because it has no extensions; issue it with some, for \
                      example by `openssl x509 -req` with `-extfile`";
        return unfit(CERTIFICATE, path, line, reason);
    }
    match algorithm::unsupported_extension(parsed) {
        Some(reason) => unfit(CERTIFICATE, path, line, reason),
        None => invalid(path, line),
    }
}

/// Reads the roots of client certificates.
fn authorities(path: &Path, files: &mut Vec<CertificateFile>) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, files)? {
        let line = certificate.line;
        if !certificate.trusted {
            let reason = "its trust settings exclude client authentication; remove the certificate";
            return Err(unfit(CERTIFICATE, path, line, reason));
        }
        let unsupported = certificate.algorithm().and_then(|algorithm| {
            let point = algorithm.unreadable_point().map(str::to_owned);
            algorithm.unsupported(Use::Verify).or(point)
        });
        if let Some(reason) = unsupported {
            let reason = format!("it has {reason}; remove or replace the certificate");
            return Err(unfit(CERTIFICATE, path, line, reason));
        }
        roots.add(certificate.der).map_err(|_| invalid(path, line))?;
    }
    Ok(roots)
}

/// Reads the only private key of a file, and the line on which it begins.
fn key(path: &Path) -> Result<(usize, PrivateKeyDer<'static>), Unusable> {
    let mut found: Option<(usize, PrivateKeyDer<'static>)> = None;
    let blocks = blocks(path).map_err(|error| match error {
        Unusable::Read { path, error } => Unusable::ReadKey {
            file: named_secret(&path, Setting::of("listen.tls.key")),
            error,
        },
        other => other,
    })?;
    for Block { line, content } in blocks {
        let (kind, der) = match content {
            Content::Key(kind, der) => (kind, der),
            Content::EncryptedKey => {
                let reason = "it is encrypted; decrypt it with `openssl pkey -in FILE -out NEW`";
                return Err(unfit(KEY, path, line, reason));
            }
            _ => continue,
        };
        if let Some((first, _)) = found {
            let reason = format!("line {first} begins another private key; keep the key of the certificate");
            return Err(unfit(KEY, path, line, reason));
        }
        let key = PrivateKeyDer::from_pem(kind, der).ok_or_else(|| damaged(path, line))?;
        let algorithm = Algorithm::of_key(&key).map_err(|_| {
            let label = match key {
                PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
                PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
                _ => "PRIVATE KEY",
            };
            let mislabelled = mislabelled(KEY, path, (line, label), key.secret_der());
            mislabelled.unwrap_or_else(|| damaged(path, line))
        })?;
        if let Some(reason) = algorithm.unsupported(Use::Sign) {
            return Err(unfit(KEY, path, line, unsuitable(&reason)));
        }
        if let Some(reason) = algorithm.unreadable_point() {
            let reason = format!(
                "it is {reason}; convert it with `openssl ec -in FILE -conv_form uncompressed -out NEW`"
            );
            return Err(unfit(KEY, path, line, reason));
        }
        found = Some((line, key));
    }
    found.ok_or_else(|| missing(KEY, path))
}

/// A certificate of a file.
struct Certificate {
    line: usize,
    der: CertificateDer<'static>,
    /// The parsed certificate, if it follows RFC 5280 strictly.
    parsed: Option<x509_cert::Certificate>,
    /// Whether its trust settings, if it has any, permit client authentication.
    trusted: bool,
}

impl Certificate {
    /// Determines the algorithm of its key, if it is a known one.
    fn algorithm(&self) -> Option<Algorithm> {
        self.parsed
            .as_ref()
            .and_then(|parsed| Algorithm::of_certificate(parsed).ok())
    }
}

/// Reads the certificates of a file; at least one.
fn certificates(path: &Path, files: &mut Vec<CertificateFile>) -> Result<Vec<Certificate>, Unusable> {
    let mut certificates = Vec::new();
    let mut warnings = Vec::new();
    for Block { line, content } in blocks(path)? {
        let (mut der, has_settings) = match content {
            Content::Certificate(der) => (der, false),
            Content::Trusted(der) => (der, true),
            _ => continue,
        };
        let mut trusted = true;
        if has_settings {
            let (_, settings) = AnyRef::from_der_partial(&der).map_err(|_| invalid(path, line))?;
            if !settings.is_empty() {
                trusted = trusts_clients(settings).map_err(|_| invalid(path, line))?;
            }
            der.truncate(der.len() - settings.len());
        }
        let der = CertificateDer::from(der);
        let parsed = x509_cert::Certificate::from_der(&der).ok();
        if parsed.is_none() && ParsedCertificate::try_from(&der).is_err() {
            let mislabelled = mislabelled(CERTIFICATE, path, (line, "CERTIFICATE"), &der);
            return Err(mislabelled.unwrap_or_else(|| invalid(path, line)));
        }
        warnings.extend(invalidity(&der, path, line));
        certificates.push(Certificate {
            line,
            der,
            parsed,
            trusted,
        });
    }
    if certificates.is_empty() {
        return Err(missing(CERTIFICATE, path));
    }
    files.push(CertificateFile {
        path: path.to_owned(),
        count: certificates.len(),
        warnings,
    });
    Ok(certificates)
}

/// Checks whether OpenSSL's settings after a certificate trust it for client authentication, as
/// `X509_check_trust` does.
fn trusts_clients(settings: &[u8]) -> x509_cert::der::Result<bool> {
    const CLIENT: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
    const ANY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
    let covers = |uses: Vec<ObjectIdentifier>| uses.contains(&CLIENT) || uses.contains(&ANY);
    let mut fields = algorithm::fields(settings)?;
    let trusted: Option<Vec<_>> = fields.decode()?;
    let rejected: Option<Vec<_>> = fields.context_specific(TagNumber(0), TagMode::Implicit)?;
    Ok(trusted.is_none_or(covers) && !rejected.is_some_and(covers))
}

/// Says that a certificate is not valid at the moment, or that the host cannot tell, if so.
pub(super) fn invalidity(certificate: &[u8], path: &Path, line: usize) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let name = path.display();
    let Ok(validity) = algorithm::validity(certificate) else {
        return Some(format!(
            "cannot read the validity of the certificate on line {line} of `{name}`; check it with \
             `openssl x509 -noout -dates`, or have the certificate issued again"
        ));
    };
    if now > validity.not_after.to_unix_duration() {
        let end = validity.not_after;
        return Some(format!(
            "the certificate on line {line} of `{name}` expired at {end}; replace it"
        ));
    }
    (now < validity.not_before.to_unix_duration()).then(|| {
        let start = validity.not_before;
        format!(
            "the certificate on line {line} of `{name}` is not valid before {start}; replace it, or \
             correct the system clock"
        )
    })
}

/// Warns of a certificate that no client can request: it has no name of a server, or only names
/// that the certificates before it, `earlier`, have too.
fn unused(certified: &CertifiedKey, earlier: &[Arc<CertifiedKey>], path: &Path) -> Option<String> {
    let names = dns_names(certified)?;
    let (why, advice) = if names.is_empty() {
        (
            "its subjectAltName has no DNS name that clients can match",
            "issue it with the names that clients request",
        )
    } else if names
        .iter()
        .all(|name| earlier.iter().any(|identity| is_for_all(identity, name)))
    {
        (
            "all of its DNS names belong to certificates before it",
            "move it before them, or remove it",
        )
    } else {
        return None;
    };
    Some(format!(
        "no client gets the certificate in `{}`, because {why}; {advice}",
        path.display()
    ))
}

/// The names of servers that a certificate is for, of which some may begin with `*.`.
fn dns_names(identity: &CertifiedKey) -> Option<Vec<&str>> {
    let certificate = EndEntityCert::try_from(identity.end_entity_cert().ok()?).ok()?;
    Some(certificate.valid_dns_names().collect())
}

fn blocks(path: &Path) -> Result<Vec<Block>, Unusable> {
    let contents = whole_file::read(path, MAX_FILE).map_err(|error| Unusable::Read {
        path: path.to_owned(),
        error,
    })?;
    pem::blocks(&contents).map_err(|Malformed { line, fault }| Unusable::Malformed {
        path: path.to_owned(),
        line,
        fault,
    })
}

fn missing(what: &'static str, path: &Path) -> Unusable {
    Unusable::Missing {
        what,
        path: path.to_owned(),
    }
}

fn unfit(what: &'static str, path: &Path, line: usize, reason: impl Into<String>) -> Unusable {
    Unusable::Unfit {
        what,
        path: path.to_owned(),
        line,
        reason: reason.into(),
    }
}

fn invalid(path: &Path, line: usize) -> Unusable {
    let reason = "it is not a valid X.509 certificate; replace it";
    unfit(CERTIFICATE, path, line, reason)
}

/// Says that a block which cannot be read as its label promises has the content of another one.
fn mislabelled(
    what: &'static str,
    path: &Path,
    (line, label): (usize, &str),
    der: &[u8],
) -> Option<Unusable> {
    let expected = algorithm::label(der).filter(|expected| *expected != label)?;
    let reason = format!("its label is wrong for its content; write `{expected}` in both of its markers");
    Some(unfit(what, path, line, reason))
}

/// Says what to do about a key that is `what`.
fn unsuitable(what: &str) -> String {
    format!("it is {what}; create another key and have its certificate issued")
}

fn damaged(path: &Path, line: usize) -> Unusable {
    let reason = "it is damaged or of an unsupported kind; expected RSA of 2048, 3072 or 4096 bits, \
                  ECDSA on P-256 or P-384, or Ed25519";
    unfit(KEY, path, line, reason)
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

/// Whether a certificate is for every name that `name` stands for, which may begin with `*.`.
fn is_for_all(identity: &CertifiedKey, name: &str) -> bool {
    match ServerName::try_from(name) {
        Ok(name) => is_for(identity, &name),
        // It is a wildcard, and only the same one covers all of it.
        Err(_) => {
            let names = dns_names(identity).unwrap_or_default();
            names.iter().any(|other| other.eq_ignore_ascii_case(name))
        }
    }
}

/// Whom a certificate stands for, as text by RFC 4514.
///
/// # Errors
///
/// The certificate has another form.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> x509_cert::der::Result<String> {
    let certificate = x509_cert::Certificate::from_der(certificate)?;
    Ok(certificate.tbs_certificate().subject().to_string())
}
