//! Recognizes what was meant as a PEM file or as a part of one.

use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Decode as _, Tag, Tagged as _};

use super::{Fault, LABELS};
use crate::base64;

/// Checks whether a line is a comment, which may contain anything.
pub(super) fn is_comment(text: &[u8]) -> bool {
    text.starts_with(b"#")
}

/// Checks whether a line was meant as a marker: a person, an editor or a script may have changed its
/// case, hyphens and spaces.
///
/// Explanatory text is not to be taken for one. Subjects of certificates such as `CN=Front-End CA`
/// are arbitrary text.
pub(super) fn resembles_marker(text: &str) -> bool {
    let capitals = text.to_ascii_uppercase();
    ["BEGIN", "END"].into_iter().any(|word| {
        capitals.match_indices(word).any(|(at, _)| {
            let (before, after) = (&capitals[..at], &capitals[at + word.len()..]);
            is_set_apart(before, after, text[at..].starts_with(word))
        })
    })
}

/// Checks whether `BEGIN` or `END` between two parts of a line, both in capitals, is that of a
/// marker.
fn is_set_apart(before: &str, after: &str, was_in_capitals: bool) -> bool {
    if before.ends_with(char::is_alphanumeric) {
        return false;
    }
    let words = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let label = words(after);
    let has_label = LABELS
        .iter()
        .any(|(known, _)| label.starts_with(&words(&String::from_utf8_lossy(known))));
    if has_label && words(before).is_empty() {
        return true;
    }
    let rest = before.trim_end().trim_end_matches(is_rule);
    let rule = before.trim_end()[rest.len()..].chars().count();
    let is_word = !after.starts_with(char::is_alphanumeric);
    match rule {
        0 => false,
        // A single hyphen, but not that of a compound.
        1 => has_label && before.trim_end().ends_with(is_dash) && !rest.ends_with(char::is_alphanumeric),
        _ => {
            let names_content = label.contains("CERTIFICATE") || label.contains("KEY");
            has_label || is_word && (was_in_capitals || names_content)
        }
    }
}

/// Checks for hyphens and the characters that replace them.
fn is_dash(c: char) -> bool {
    matches!(
        c,
        '-' | '\u{ad}' | '\u{2010}'
            ..='\u{2015}'
            | '\u{2043}'
            | '\u{2212}'
            | '\u{2500}'
            | '\u{2501}'
            | '\u{fe58}'
            | '\u{fe63}'
            | '\u{ff0d}'
            // A dash in an encoding of 8 bits.
            | char::REPLACEMENT_CHARACTER
    )
}

/// Checks for characters that rules are drawn with. None of them is within base64, as `+` is.
fn is_rule(c: char) -> bool {
    is_dash(c) || matches!(c, '=' | '_' | '~' | '*')
}

/// The base64 digits that PEM begins with, if it is encoded once more.
const PEM_IN_BASE64: &[u8] = b"LS0tLS1CRUdJTi";

/// Checks that a line outside of blocks contains nothing that belongs into one.
pub(super) fn without_content(text: &[u8]) -> Result<(), Fault> {
    if is_comment(text) {
        return Ok(());
    }
    for run in base64::runs(text) {
        if run.starts_with(PEM_IN_BASE64) {
            return Err(Fault::Encoded);
        }
        if base64::is_der(run) {
            return Err(Fault::Bare);
        }
    }
    Ok(())
}

/// Recognizes files that are not text in UTF-8 or ASCII.
pub(super) fn other_format(contents: &[u8]) -> Option<Fault> {
    if matches!(contents, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
        return Some(Fault::Utf16);
    }
    let Ok((outer, _)) = AnyRef::from_der_partial(contents) else {
        // Without a byte-order mark.
        return matches!(contents, [0, _, ..] | [_, 0, ..]).then_some(Fault::Utf16);
    };
    if outer.tag() != Tag::Sequence {
        return None;
    }
    match outer.value() {
        [0x02, 1, 3, ..] => Some(Fault::Pkcs12),
        // The version of a key.
        [0x02, ..] => Some(Fault::DerKey),
        [0x30, ..] => {
            // An encrypted key begins with an algorithm.
            let inner = AnyRef::from_der_partial(outer.value()).map(|(inner, _)| inner.value());
            let is_key = inner.is_ok_and(|inner| inner.starts_with(&[0x06]));
            Some(if is_key {
                Fault::DerKey
            } else {
                Fault::DerCertificate
            })
        }
        _ => None,
    }
}
