//! The certificates that a client sends to show who it is.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use thiserror::Error;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// Certificates between that of a client and an authority. A path has at most six.
const MAX_INTERMEDIATES: usize = 10;

/// Certificates with which at most four paths can be tried, which takes a few milliseconds.
const FEW: usize = 2;

/// A client has sent more certificates than the host tries.
#[derive(Error)]
#[error("the client sent {0} intermediate certificates: expected at most {MAX_INTERMEDIATES}")]
struct TooMany(usize);

/// rustls shows it like this.
impl fmt::Debug for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bounds what it takes to verify the certificate of a client.
///
/// A client can send certificates that all could be the issuer of each other, so that a hundred
/// signatures are verified before it is refused. That takes a tenth of a second.
#[derive(Debug)]
pub(super) struct Bounded(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Bounded {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let count = intermediates.len();
        if count > MAX_INTERMEDIATES {
            let error = OtherError(Arc::new(TooMany(count)));
            return Err(CertificateError::Other(error).into());
        }
        let verify = || self.0.verify_client_cert(end_entity, intermediates, now);
        let runtime = Handle::try_current().map(|runtime| runtime.runtime_flavor());
        match runtime {
            // Other connections of this thread go on elsewhere.
            Ok(RuntimeFlavor::MultiThread) if count > FEW => block_in_place(verify),
            _ => verify(),
        }
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
