//! Keys and certificates in DER: names the reason why a key cannot be used, and what is critical in
//! a certificate.

use std::fmt;

use rustls::pki_types::PrivateKeyDer;
use x509_cert::der::asn1::{
    AnyRef, BitStringRef, ContextSpecific, ObjectIdentifier, OctetStringRef, UintRef,
};
use x509_cert::der::referenced::OwnedToRef;
use x509_cert::der::{Decode, Reader, Result, SliceReader, Tag, TagNumber, Tagged};
use x509_cert::spki::AlgorithmIdentifierRef;
use x509_cert::time::Validity;

/// What the host does with a key. It determines the RSA keys that ring supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Sign with a private key.
    Sign,
    /// Verify signatures with a public key.
    Verify,
}

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Public exponents of RSA keys with which ring signs.
const EXPONENTS: std::ops::Range<u64> = 65537..1 << 33;

/// Names of what is not supported.
const NAMES: &[(ObjectIdentifier, &str)] = &[
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10"), "RSA-PSS"),
    (ObjectIdentifier::new_unwrap("1.2.840.10040.4.1"), "DSA"),
    (ObjectIdentifier::new_unwrap("1.3.101.110"), "X25519"),
    (ObjectIdentifier::new_unwrap("1.3.101.113"), "Ed448"),
    (ObjectIdentifier::new_unwrap("1.3.132.0.35"), "P-521"),
    (ObjectIdentifier::new_unwrap("1.3.132.0.33"), "P-224"),
    (ObjectIdentifier::new_unwrap("1.3.132.0.10"), "secp256k1"),
    (
        ObjectIdentifier::new_unwrap("2.5.29.18"),
        "Issuer Alternative Name",
    ),
    (ObjectIdentifier::new_unwrap("2.5.29.32"), "Certificate Policies"),
    (ObjectIdentifier::new_unwrap("2.5.29.33"), "Policy Mappings"),
    (ObjectIdentifier::new_unwrap("2.5.29.36"), "Policy Constraints"),
    (ObjectIdentifier::new_unwrap("2.5.29.54"), "Inhibit Any Policy"),
    (
        ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.24"),
        "TLS Feature (must-staple)",
    ),
];

/// The algorithm of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// RSA.
    Rsa {
        /// The size of the modulus, in bits.
        bits: usize,
        /// The public exponent; `None` if it is larger than any that is used.
        exponent: Option<u64>,
        /// Whether the key has more than two primes.
        is_multi_prime: bool,
    },
    /// ECDSA.
    Ec {
        /// The curve.
        curve: Curve,
        /// The form of the public key.
        point: Point,
    },
    /// Ed25519.
    Ed25519,
    /// Another one.
    Other(ObjectIdentifier),
}

/// How a key gives its curve.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Curve {
    /// By its identifier.
    Named(ObjectIdentifier),
    /// By its equation and its base point.
    Explicit,
    /// Not at all.
    Missing,
}

/// The form of the public key in an EC key. ring reads uncompressed points only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// Both coordinates.
    Uncompressed,
    /// Compressed or hybrid (SEC 1, section 2.3.3).
    Other,
    /// None: the key does not contain its public part.
    Missing,
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
            // PKCS #1: version, modulus, public exponent
            PrivateKeyDer::Pkcs1(_) => {
                let version: UintRef<'_> = fields.decode()?;
                Self::rsa(&mut fields, version.as_bytes() != [0])
            }
            // RFC 5915: version, private key, curve, public key
            PrivateKeyDer::Sec1(_) => {
                let (curve, point) = ec(&mut fields)?;
                Ok(Self::Ec { curve, point })
            }
            // PKCS #8: version, algorithm, private key
            _ => {
                fields.decode::<UintRef<'_>>()?;
                let algorithm: AlgorithmIdentifierRef<'_> = fields.decode()?;
                let key: &OctetStringRef = fields.decode()?;
                let rsa = || {
                    let mut fields = self::fields(key.as_bytes())?;
                    let version: UintRef<'_> = fields.decode()?;
                    Self::rsa(&mut fields, version.as_bytes() != [0])
                };
                let point = || Ok(ec(&mut self::fields(key.as_bytes())?)?.1);
                Self::new(&algorithm, rsa, point)
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
        let key = info.subject_public_key.raw_bytes();
        let rsa = || Self::rsa(&mut self::fields(key)?, false);
        Self::new(&algorithm, rsa, || Ok(Point::new(key)))
    }

    fn new(
        algorithm: &AlgorithmIdentifierRef<'_>,
        rsa: impl FnOnce() -> Result<Self>,
        point: impl FnOnce() -> Result<Point>,
    ) -> Result<Self> {
        match algorithm.oid {
            RSA => rsa(),
            EC => {
                let curve = Curve::new(algorithm.parameters);
                // The key may be encoded in its own way, if it is on a curve that is not supported.
                let point = match curve {
                    Curve::Named(P256 | P384) => point()?,
                    _ => Point::Uncompressed,
                };
                Ok(Self::Ec { curve, point })
            }
            ED25519 => Ok(Self::Ed25519),
            other => Ok(Self::Other(other)),
        }
    }

    /// Reads an RSA key whose next fields are the modulus and the public exponent.
    fn rsa<'a>(fields: &mut impl Reader<'a>, is_multi_prime: bool) -> Result<Self> {
        let bits = bits(&fields.decode()?);
        let exponent: UintRef<'_> = fields.decode()?;
        let wide = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        Ok(Self::Rsa {
            bits,
            exponent: (exponent.as_bytes().len() <= 8).then(|| wide(exponent.as_bytes())),
            is_multi_prime,
        })
    }

    /// Says that a modulus is a bit shorter than its size, which the host can use only if both
    /// primes have their full size.
    pub(super) fn unusual_size(&self) -> Option<String> {
        match self {
            Self::Rsa { bits, .. } if bits % 2 == 1 => {
                Some(format!("an RSA key of {bits} bits; expected 2048, 3072 or 4096"))
            }
            _ => None,
        }
    }

    /// Says why the host cannot use a key of this algorithm; `None` if it can.
    pub(super) fn unsupported(&self, purpose: Use) -> Option<String> {
        match self {
            Self::Rsa {
                is_multi_prime: true, ..
            } => Some("an RSA key of more than two primes; expected two".to_owned()),
            // A modulus may be a bit shorter than its size.
            Self::Rsa { bits, .. }
                if purpose == Use::Sign && ![2048, 3072, 4096].contains(&(bits + bits % 2)) =>
            {
                Some(format!("an RSA key of {bits} bits; expected 2048, 3072 or 4096"))
            }
            Self::Rsa { bits, .. } if !(2041..=8192).contains(bits) => {
                Some(format!("an RSA key of {bits} bits; expected 2048 to 8192"))
            }
            Self::Rsa { exponent, .. }
                if purpose == Use::Sign && exponent.is_none_or(|value| !EXPONENTS.contains(&value)) =>
            {
                let value = exponent.map_or_else(|| "too large".to_owned(), |value| value.to_string());
                Some(format!(
                    "an RSA key whose public exponent is {value}; expected 65537"
                ))
            }
            Self::Ec {
                curve: Curve::Explicit,
                ..
            } => Some(
                "an EC key with explicit parameters of its curve; expected a key that names P-256 or P-384"
                    .to_owned(),
            ),
            Self::Ec {
                curve: Curve::Named(curve),
                ..
            } if ![P256, P384].contains(curve) => Some(format!(
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

    /// Says why the host cannot use the public part of an EC key; `None` if it can.
    pub(super) fn unreadable_point(&self) -> Option<&'static str> {
        match self {
            Self::Ec {
                point: Point::Other, ..
            } => Some("an EC key whose public key is not an uncompressed point"),
            Self::Ec {
                point: Point::Missing,
                ..
            } => Some("an EC key without its public key"),
            _ => None,
        }
    }
}

impl Point {
    /// Determines the form of a point from its encoding.
    fn new(encoded: &[u8]) -> Self {
        match encoded.first() {
            Some(4) => Self::Uncompressed,
            Some(_) => Self::Other,
            None => Self::Missing,
        }
    }
}

/// Reads an EC key by RFC 5915: version, private key, curve, public key.
fn ec<'a>(fields: &mut SliceReader<'a>) -> Result<(Curve, Point)> {
    fields.decode::<UintRef<'_>>()?;
    fields.decode::<&OctetStringRef>()?;
    let curve = ContextSpecific::<AnyRef<'a>>::decode_explicit(fields, TagNumber(0))?;
    let point = ContextSpecific::<BitStringRef<'a>>::decode_explicit(fields, TagNumber(1))?;
    let point = point.map_or(Point::Missing, |point| Point::new(point.value.raw_bytes()));
    Ok((Curve::new(curve.map(|curve| curve.value)), point))
}

impl Curve {
    /// Determines how a key gives its curve from the parameters in it.
    fn new(parameters: Option<AnyRef<'_>>) -> Self {
        match parameters {
            Some(parameters) if parameters.tag() == Tag::Sequence => Self::Explicit,
            Some(parameters) => parameters.decode_as().map_or(Self::Missing, Self::Named),
            None => Self::Missing,
        }
    }
}

/// An algorithm, a curve or an extension by its name if it has one here, and by its identifier
/// otherwise.
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

/// Reads the validity of a certificate (RFC 5280, section 4.1). The other fields need not follow
/// RFC 5280.
///
/// # Errors
///
/// The validity does not follow RFC 5280, or is not where it should be.
pub(super) fn validity(certificate: &[u8]) -> Result<Validity> {
    let signed: AnyRef<'_> = fields(certificate)?.decode()?;
    signed.tag().assert_eq(Tag::Sequence)?;
    let mut fields = SliceReader::new(signed.value())?;
    let first: AnyRef<'_> = fields.decode()?;
    // The version may be missing.
    if first.tag().is_context_specific() {
        let _serial_number: AnyRef<'_> = fields.decode()?;
    }
    let _signature_algorithm: AnyRef<'_> = fields.decode()?;
    let _issuer: AnyRef<'_> = fields.decode()?;
    fields.decode()
}

fn bits(modulus: &UintRef<'_>) -> usize {
    let bytes = modulus.as_bytes();
    let unused = bytes.first().map_or(0, |byte| byte.leading_zeros() as usize);
    bytes.len() * 8 - unused
}

/// Returns the PEM label that the content of a block calls for, if that can be told.
pub(super) fn label(der: &[u8]) -> Option<&'static str> {
    let mut fields = fields(der).ok()?;
    let first: AnyRef<'_> = fields.decode().ok()?;
    let second: AnyRef<'_> = fields.decode().ok()?;
    Some(match (first.tag(), second.tag()) {
        (Tag::Integer, Tag::Sequence) => "PRIVATE KEY",
        (Tag::Integer, Tag::OctetString) => "EC PRIVATE KEY",
        (Tag::Integer, Tag::Integer) => "RSA PRIVATE KEY",
        (Tag::Sequence, Tag::OctetString) => "ENCRYPTED PRIVATE KEY",
        (Tag::Sequence, Tag::BitString) => "PUBLIC KEY",
        (Tag::Sequence, Tag::Sequence) if x509_cert::Certificate::from_der(der).is_ok() => "CERTIFICATE",
        _ => return None,
    })
}

/// Extensions of a certificate that webpki accepts as critical.
const KNOWN_EXTENSIONS: &[ObjectIdentifier] = &[
    // Signed certificate timestamps.
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11129.2.4.2"),
    // Key usage, alternative names, basic constraints, name constraints, distribution points of
    // revocation lists, extended key usage.
    ObjectIdentifier::new_unwrap("2.5.29.15"),
    ObjectIdentifier::new_unwrap("2.5.29.17"),
    ObjectIdentifier::new_unwrap("2.5.29.19"),
    ObjectIdentifier::new_unwrap("2.5.29.30"),
    ObjectIdentifier::new_unwrap("2.5.29.31"),
    ObjectIdentifier::new_unwrap("2.5.29.37"),
];

/// The extension that makes a certificate one for logs only (RFC 6962, section 3.1).
const POISON: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11129.2.4.3");

/// Says which critical extension keeps the host from using a certificate, and what to do.
pub(super) fn unsupported_extension(certificate: &x509_cert::Certificate) -> Option<String> {
    let extensions = certificate.tbs_certificate().extensions()?;
    let unknown = extensions
        .iter()
        .find(|extension| extension.critical && !KNOWN_EXTENSIONS.contains(&extension.extn_id))?;
    if unknown.extn_id == POISON {
        return Some("it is a precertificate; expected the certificate that was issued for it".to_owned());
    }
    Some(format!(
        "the host does not support its critical extension {}; have it issued without this extension, or \
         with the extension not critical",
        Name(&unknown.extn_id)
    ))
}
