//! The certificates that a client sends to show who it is.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use thiserror::Error;

/// Certificates between that of a client and an authority. A path has at most six.
const MAX_INTERMEDIATES: usize = 10;

/// Why the host does not try the certificates of a client.
#[derive(Error, PartialEq)]
enum Refusal {
    #[error("the client sent {0} intermediate certificates: expected at most {MAX_INTERMEDIATES}")]
    TooMany(usize),
    #[error("the client sent different intermediate certificates with the same subject: expected one")]
    SameSubject,
}

/// rustls shows it like this.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns the certificates of `intermediates`, each once.
///
/// # Errors
///
/// There are too many, or two have the same subject.
fn distinct<'c>(intermediates: &'c [CertificateDer<'_>]) -> Result<Vec<CertificateDer<'c>>, Refusal> {
    let count = intermediates.len();
    if count > MAX_INTERMEDIATES {
        return Err(Refusal::TooMany(count));
    }
    let mut distinct = Vec::with_capacity(count);
    let mut subjects = Vec::with_capacity(count);
    for certificate in intermediates {
        let certificate = CertificateDer::from(certificate.as_ref());
        if distinct.contains(&certificate) {
            continue;
        }
        if let Some(subject) = subject(&certificate) {
            if subjects.contains(&subject) {
                return Err(Refusal::SameSubject);
            }
            subjects.push(subject);
        }
        distinct.push(certificate);
    }
    Ok(distinct)
}

/// Reads the subject of a certificate, as the verifier does. The verifier tries no certificate that
/// this cannot read.
fn subject(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from(certificate.as_ref())).ok()?;
    let root = store.roots.pop()?;
    Some(root.subject.to_vec())
}

/// Bounds what it takes to verify the certificate of a client.
///
/// A client can send certificates that all could be the issuer of each other, so that a hundred
/// signatures are verified before it is refused. That takes a tenth of a second. With one
/// certificate for each subject, there is one path, and few signatures.
#[derive(Debug)]
pub(super) struct Bounded(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Bounded {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let refused = |refusal| CertificateError::Other(OtherError(Arc::new(refusal)));
        let intermediates = distinct(intermediates).map_err(refused)?;
        self.0.verify_client_cert(end_entity, &intermediates, now)
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName as Name, DnType, IsCa, KeyPair};

    use super::*;

    /// A certificate with a key of its own.
    fn certificate(name: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = Name::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn no_two_certificates_have_one_subject() {
        let [a, b, c] = ["a", "b", "c"].map(certificate);
        let chain = [a.clone(), b.clone(), c.clone()];
        assert_eq!(distinct(&chain).unwrap(), chain);
        // What is not a certificate is left to the verifier.
        let chain = [
            a.clone(),
            CertificateDer::from(&b"x"[..]),
            CertificateDer::from(&b"y"[..]),
        ];
        assert_eq!(distinct(&chain).unwrap(), chain);
        // The same certificate may come again, and another one with its name may not.
        let twice = [a.clone(), b.clone(), a.clone(), b.clone()];
        assert_eq!(distinct(&twice).unwrap(), [a.clone(), b.clone()]);
        let alike = [a.clone(), b, certificate("a")];
        assert_eq!(distinct(&alike), Err(Refusal::SameSubject));
        assert_eq!(distinct(&vec![a; 11]), Err(Refusal::TooMany(11)));
    }
}
