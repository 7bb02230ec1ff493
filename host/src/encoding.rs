//! Recognizes the encodings of text files that are not UTF-8.

/// What editors of Windows begin a text in UTF-8 with, as they begin other encodings.
pub(crate) const UTF8_MARK: &[u8] = "\u{feff}".as_bytes();

/// Returns the name of the encoding of a text that is not in UTF-8, as in "it is encoded as UTF-16".
/// The name contains nothing of the text.
pub(crate) fn other_than_utf8(text: &[u8]) -> Option<&'static str> {
    Some(match text {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-32",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        // ASCII without a byte-order mark.
        [0, 0, 0, _, ..] | [_, 0, 0, 0, ..] => "UTF-32",
        [0, _, ..] | [_, 0, ..] => "UTF-16",
        text if std::str::from_utf8(text).is_err() => "Latin-1 or another encoding of 8 bits",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_named() {
        let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let utf32 =
            |text: &str| -> Vec<u8> { text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect() };
        for (text, encoding) in [
            (b"token".to_vec(), None),
            ("Schlüssel".into(), None),
            (Vec::new(), None),
            ("\u{feff}token".into(), None),
            (utf16("\u{feff}token"), Some("UTF-16")),
            (utf16("token"), Some("UTF-16")),
            (utf32("\u{feff}token"), Some("UTF-32")),
            (utf32("token"), Some("UTF-32")),
            (
                b"Schl\xfcssel".to_vec(),
                Some("Latin-1 or another encoding of 8 bits"),
            ),
        ] {
            assert_eq!(other_than_utf8(&text), encoding, "{}", text.escape_ascii());
        }
    }
}
