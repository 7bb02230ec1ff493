//! PEM files: locates their blocks, and leaves the decoding of each block to rustls-pki-types.
//!
//! The parser accepts PEM as tools write it: with a byte-order mark, CRLF, indentation, text
//! between the blocks, and the labels of OpenSSL. It skips no certificate or key silently: outside
//! of blocks it refuses lines that resemble a marker, and base64 that starts like DER. A line that
//! begins with `#` is a comment. No error shows what a file contains, because the file may contain a
//! private key.

use rustls::pki_types::pem::{PemObject, SectionKind};
use thiserror::Error;

mod suspect;

use suspect::{is_comment, other_format, resembles_marker, without_content};

/// A decoded block.
pub(super) struct Block {
    /// The line of its `BEGIN` marker, counted from 1.
    pub(super) line: usize,
    pub(super) content: Content,
}

/// The content of a block, by its label.
pub(super) enum Content {
    /// A certificate, in DER.
    Certificate(Vec<u8>),
    /// A certificate of OpenSSL, in DER, which trust settings may follow.
    Trusted(Vec<u8>),
    /// A private key in one of the encodings that rustls reads, in DER.
    Key(SectionKind, Vec<u8>),
    /// A private key that takes a passphrase to read.
    EncryptedKey,
    /// Something that neither a certificate nor a key depends on.
    Irrelevant,
}

/// A syntax error and the line on which it was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) line: usize,
    pub(super) fault: Fault,
}

/// A syntax error.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// The file has 16-bit characters.
    #[error("the file is encoded as UTF-16; save it as UTF-8")]
    Utf16,
    /// The file is a certificate in DER.
    #[error("the file is a certificate in DER; convert it with `openssl x509 -inform DER -in FILE -out NEW`")]
    DerCertificate,
    /// The file is a private key in DER.
    #[error("the file is a key in DER; convert it with `openssl pkey -inform DER -in FILE -out NEW`")]
    DerKey,
    /// The file is a PKCS#12 archive.
    #[error("the file is a PKCS#12 archive; convert it with `openssl pkcs12 -in FILE -nodes -out NEW`")]
    Pkcs12,
    /// Base64 of DER is outside of a block.
    #[error(
        "found base64 without a BEGIN marker; restore the markers, or convert a file that is all \
         base64 with `base64 -d FILE | openssl x509 -inform DER -out NEW` (`openssl pkey` for a key)"
    )]
    Bare,
    /// PEM was encoded as base64 once more, as in manifests of Kubernetes.
    #[error("found PEM that is encoded as base64; decode it with `base64 -d`")]
    Encoded,
    /// A marker is misspelt, or shares its line with something else.
    #[error(
        "expected a PEM marker in capitals, with five ASCII hyphens on either side and a line of its \
         own; restore newlines that were lost or replaced, or begin a comment with `#`"
    )]
    Marker,
    /// The file or another block begins before the block ends.
    #[error("the PEM block that begins here has no matching END marker; copy the whole block")]
    Unclosed,
    /// An `END` marker has no block.
    #[error("this END marker has no matching BEGIN marker; copy the whole block")]
    Unopened,
    /// The content of a block is not base64.
    #[error("the PEM block that begins here is not valid base64; copy the block again")]
    Base64,
    /// A block has a label that is not in `LABELS`.
    #[error(
        "the PEM block that begins here has an unsupported label; expected CERTIFICATE, \
         PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY"
    )]
    Label,
}

/// The kinds of blocks that may be in a file.
#[derive(Clone, Copy)]
enum Label {
    Certificate,
    Trusted,
    Key,
    EncryptedKey,
    Irrelevant,
}

/// The supported labels. Those that hold certificates or keys are either decoded or refused, and
/// OpenSSL writes the irrelevant ones beside them.
const LABELS: &[(&[u8], Label)] = &[
    (b"CERTIFICATE", Label::Certificate),
    (b"X509 CERTIFICATE", Label::Certificate),
    (b"TRUSTED CERTIFICATE", Label::Trusted),
    (b"PRIVATE KEY", Label::Key),
    (b"RSA PRIVATE KEY", Label::Key),
    (b"EC PRIVATE KEY", Label::Key),
    (b"ENCRYPTED PRIVATE KEY", Label::EncryptedKey),
    (b"EC PARAMETERS", Label::Irrelevant),
    (b"DH PARAMETERS", Label::Irrelevant),
    (b"X9.42 DH PARAMETERS", Label::Irrelevant),
    (b"PUBLIC KEY", Label::Irrelevant),
    (b"RSA PUBLIC KEY", Label::Irrelevant),
    (b"CERTIFICATE REQUEST", Label::Irrelevant),
    (b"NEW CERTIFICATE REQUEST", Label::Irrelevant),
];

/// Reads every block of a file.
///
/// # Errors
///
/// A block, or something that was meant to be one, cannot be parsed.
pub(super) fn blocks(contents: &[u8]) -> Result<Vec<Block>, Malformed> {
    if let Some(fault) = other_format(contents) {
        return Err(fault.at(1));
    }
    let mut blocks = Vec::new();
    let mut open: Option<Open> = None;
    for (line, text) in lines(contents) {
        match (marker(text).map_err(|fault| fault.at(line))?, &mut open) {
            (None, None) => without_content(text).map_err(|fault| fault.at(line))?,
            (None, Some(block)) => block.lines.push(text),
            (Some(Marker::Begin(label)), None) => {
                open = Some(Open {
                    line,
                    label,
                    lines: Vec::new(),
                });
            }
            (Some(Marker::Begin(_)), Some(block)) => return Err(Fault::Unclosed.at(block.line)),
            (Some(Marker::End(_)), None) => return Err(Fault::Unopened.at(line)),
            (Some(Marker::End(label)), Some(block)) if label != block.label => {
                return Err(Fault::Unclosed.at(block.line));
            }
            (Some(Marker::End(_)), Some(block)) => {
                let content = block.decode().map_err(|fault| fault.at(block.line))?;
                blocks.push(Block {
                    line: block.line,
                    content,
                });
                open = None;
            }
        }
    }
    match open {
        Some(block) => Err(Fault::Unclosed.at(block.line)),
        None => Ok(blocks),
    }
}

impl Fault {
    fn at(self, line: usize) -> Malformed {
        Malformed { line, fault: self }
    }
}

/// The numbered lines of a file, without indentation, byte-order marks and line ends.
fn lines(contents: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let ends_by_cr = !contents.contains(&b'\n');
    contents
        .split(move |byte| *byte == b'\n' || ends_by_cr && *byte == b'\r')
        .enumerate()
        .map(|(index, text)| {
            // A file that was made of several may have a mark in the middle.
            let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            (index + 1, text.trim_ascii())
        })
}

enum Marker<'a> {
    Begin(&'a [u8]),
    End(&'a [u8]),
}

/// Parses a marker; `None` if the line is not meant as one.
fn marker(text: &[u8]) -> Result<Option<Marker<'_>>, Fault> {
    let label = text
        .strip_prefix(b"-----")
        .and_then(|text| text.strip_suffix(b"-----"))
        .filter(|label| !label.windows(2).any(|pair| pair == b"--"));
    if let Some(label) = label {
        if let Some(label) = label.strip_prefix(b"BEGIN ") {
            return Ok(Some(Marker::Begin(label)));
        }
        if let Some(label) = label.strip_prefix(b"END ") {
            return Ok(Some(Marker::End(label)));
        }
    }
    if is_comment(text) || !resembles_marker(&String::from_utf8_lossy(text)) {
        Ok(None)
    } else {
        Err(Fault::Marker)
    }
}

/// A block whose `END` marker has not been read yet.
struct Open<'a> {
    line: usize,
    label: &'a [u8],
    lines: Vec<&'a [u8]>,
}

impl Open<'_> {
    fn decode(&self) -> Result<Content, Fault> {
        let known = LABELS.iter().find(|(label, _)| *label == self.label);
        let (_, label) = known.ok_or(Fault::Label)?;
        let (headers, body) = self.parts();
        // A key by RFC 1421, as `openssl rsa -aes256 -traditional` writes it.
        let is_encrypted = headers
            .iter()
            .any(|header| header.starts_with(b"Proc-Type:") && header.ends_with(b"ENCRYPTED"));
        Ok(match label {
            Label::Certificate => Content::Certificate(decode(b"CERTIFICATE", body)?.1),
            Label::Trusted => Content::Trusted(decode(b"CERTIFICATE", body)?.1),
            Label::EncryptedKey => Content::EncryptedKey,
            Label::Key if is_encrypted => Content::EncryptedKey,
            Label::Key => {
                let (kind, der) = decode(self.label, body)?;
                Content::Key(kind, der)
            }
            Label::Irrelevant => Content::Irrelevant,
        })
    }

    /// Splits the lines into headers, which end at an empty line, and base64.
    fn parts(&self) -> (&[&[u8]], &[&[u8]]) {
        let has_headers = self.lines.first().is_some_and(|line| line.contains(&b':'));
        let end = self.lines.iter().position(|line| line.is_empty());
        match end {
            Some(end) if has_headers => self.lines.split_at(end),
            _ => (&[], &self.lines),
        }
    }
}

/// Decodes base64, by way of a block as the library expects it.
fn decode(label: &[u8], body: &[&[u8]]) -> Result<(SectionKind, Vec<u8>), Fault> {
    let body = body.concat();
    let parts: [&[u8]; 7] = [
        b"-----BEGIN ",
        label,
        b"-----\n",
        &body,
        b"\n-----END ",
        label,
        b"-----\n",
    ];
    // The library's errors quote lines of the file.
    PemObject::from_pem_slice(&parts.concat()).map_err(|_| Fault::Base64)
}

#[cfg(test)]
mod tests;
