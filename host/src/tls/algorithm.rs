//! Algorithms of keys: names the reason why a key cannot be used.

use std::fmt;
use std::ops::RangeInclusive;

use rustls::pki_types::PrivateKeyDer;
use x509_cert::der::asn1::{AnyRef, ContextSpecific, ObjectIdentifier, OctetStringRef, UintRef};
use x509_cert::der::referenced::OwnedToRef;
use x509_cert::der::{Decode, Reader, Result, SliceReader, Tag, TagNumber, Tagged};
use x509_cert::spki::AlgorithmIdentifierRef;

/// Sizes of RSA keys, in bits, with which ring signs.
pub(super) const SIGNS: RangeInclusive<usize> = 2048..=4096;

/// Sizes of RSA keys, in bits, whose signatures ring verifies.
pub(super) const VERIFIES: RangeInclusive<usize> = 2048..=8192;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Names of what is not supported.
const NAMES: &[(ObjectIdentifier, &str)] = &[
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10"), "RSA-PSS"),
    (ObjectIdentifier::new_unwrap("1.2.840.10040.4.1"), "DSA"),
    (ObjectIdentifier::new_unwrap("1.3.101.110"), "X25519"),
    (ObjectIdentifier::new_unwrap("1.3.101.113"), "Ed448"),
    (ObjectIdentifier::new_unwrap("1.3.132.0.35"), "P-521"),
    (ObjectIdentifier::new_unwrap("1.3.132.0.33"), "P-224"),
    (ObjectIdentifier::new_unwrap("1.3.132.0.10"), "secp256k1"),
];

/// The algorithm of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// RSA, with the size of its modulus in bits.
    Rsa(usize),
    /// ECDSA, with the curve if the key names it.
    Ec(Option<ObjectIdentifier>),
    /// Ed25519.
    Ed25519,
    /// Another one.
    Other(ObjectIdentifier),
}

impl Algorithm {
    /// Determines the algorithm of a private key.
    ///
    /// # Errors
    ///
    /// The key is not encoded as its kind prescribes.
    pub(super) fn of_key(key: &PrivateKeyDer<'_>) -> Result<Self> {
        let mut fields = fields(key.secret_der())?;
        match key {
            // PKCS #1: version, modulus
            PrivateKeyDer::Pkcs1(_) => {
                fields.decode::<UintRef<'_>>()?;
                Ok(Self::Rsa(bits(&fields.decode()?)))
            }
            // RFC 5915: version, private key, curve, public key
            PrivateKeyDer::Sec1(_) => {
                fields.decode::<UintRef<'_>>()?;
                fields.decode::<&OctetStringRef>()?;
                let curve = ContextSpecific::decode_explicit(&mut fields, TagNumber(0))?;
                Ok(Self::Ec(curve.map(|curve| curve.value)))
            }
            // PKCS #8: version, algorithm, private key
            _ => {
                fields.decode::<UintRef<'_>>()?;
                let algorithm = fields.decode()?;
                let key: &OctetStringRef = fields.decode()?;
                Self::new(&algorithm, || {
                    let mut fields = self::fields(key.as_bytes())?;
                    fields.decode::<UintRef<'_>>()?;
                    fields.decode()
                })
            }
        }
    }

    /// Determines the algorithm of the public key in a certificate.
    ///
    /// # Errors
    ///
    /// The certificate is not encoded as RFC 5280 prescribes.
    pub(super) fn of_certificate(certificate: &x509_cert::Certificate) -> Result<Self> {
        let info = certificate.tbs_certificate().subject_public_key_info();
        let algorithm = info.algorithm.owned_to_ref();
        Self::new(&algorithm, || {
            self::fields(info.subject_public_key.raw_bytes())?.decode()
        })
    }

    fn new<'a>(
        algorithm: &AlgorithmIdentifierRef<'_>,
        modulus: impl FnOnce() -> Result<UintRef<'a>>,
    ) -> Result<Self> {
        Ok(match algorithm.oid {
            RSA => Self::Rsa(bits(&modulus()?)),
            EC => {
                let parameters = algorithm.parameters;
                Self::Ec(parameters.and_then(|curve| curve.decode_as().ok()))
            }
            ED25519 => Self::Ed25519,
            other => Self::Other(other),
        })
    }

    /// Says why the host cannot use a key of this algorithm; `None` if it can.
    pub(super) fn unsupported(&self, sizes: &RangeInclusive<usize>) -> Option<String> {
        match self {
            Self::Rsa(bits) if !sizes.contains(bits) => Some(format!(
                "an RSA key of {bits} bits; expected {} to {}",
                sizes.start(),
                sizes.end()
            )),
            Self::Ec(Some(curve)) if ![P256, P384].contains(curve) => Some(format!(
                "an EC key on the curve {}; expected P-256 or P-384",
                Name(curve)
            )),
            Self::Other(algorithm) => Some(format!(
                "a key of the algorithm {}; expected RSA, ECDSA or Ed25519",
                Name(algorithm)
            )),
            _ => None,
        }
    }
}

/// An algorithm or a curve by its name if it has one here, and by its identifier otherwise.
struct Name<'a>(&'a ObjectIdentifier);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(identifier, _)| identifier == self.0) {
            Some((_, name)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// Reads the fields of a sequence.
pub(super) fn fields(der: &[u8]) -> Result<SliceReader<'_>> {
    let sequence = AnyRef::from_der(der)?;
    sequence.tag().assert_eq(Tag::Sequence)?;
    SliceReader::new(sequence.value())
}

fn bits(modulus: &UintRef<'_>) -> usize {
    let bytes = modulus.as_bytes();
    let unused = bytes.first().map_or(0, |byte| byte.leading_zeros() as usize);
    bytes.len() * 8 - unused
}
