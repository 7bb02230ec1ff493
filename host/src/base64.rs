//! Recognizes DER in base64, such as the content of a key.

/// Digits of the shortest content that is looked for. Digests and identifiers are shorter.
const SHORTEST: usize = 48;

/// Returns the runs of base64 digits in a text that are long enough to be the content of a key.
pub(crate) fn runs(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    text.split(move |byte| !is_digit(byte))
        .filter(|run| run.len() >= SHORTEST)
}

/// Checks whether a run of digits begins with the tag of a sequence, as DER does.
pub(crate) fn is_der(run: &[u8]) -> bool {
    matches!(run, [b'M', b'A'..=b'P', ..])
}
