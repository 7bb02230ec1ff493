//! Names the format of a file that is not WebAssembly.

/// Bytes of a file that are looked at to tell text from other data.
const LOOKED_AT: usize = 4096;

/// What files of a format begin with, and how messages name the format.
const BEGINNINGS: [(&[u8], &str); 17] = [
    (b"\x7fELF", "an ELF file"),
    (b"\x1f\x8b", "gzip data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (b"\xfd7zXZ\0", "xz data"),
    (b"BZh", "bzip2 data"),
    (b"!<arch>\n", "an ar archive, such as a static library"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O file"),
    (b"\xca\xfe\xba\xbe", "a Mach-O file or a Java class"),
    (b"MZ", "a Windows program"),
    (b"BC\xc0\xde", "LLVM bitcode"),
    (b"\x30\x82", "a DER file, such as a certificate or a key"),
    (b"%PDF-", "a PDF file"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
];

/// What texts of a format begin with, in lower case and without spaces before, and how messages
/// name the format.
const TEXTS: [(&str, &str); 8] = [
    ("#!", "a script"),
    ("<!doctype html", "HTML"),
    ("<html", "HTML"),
    ("<", "XML"),
    ("{", "JSON"),
    ("(component", WAT),
    ("(module", WAT),
    (
        "version https://git-lfs",
        "a pointer of Git LFS; `git lfs pull` fetches the file",
    ),
];

const WAT: &str = "WebAssembly text, which `wasm-tools parse` converts";

/// Names the format of a file by its `bytes`, as in "it is HTML". The name contains none of these
/// bytes: the file may be a key.
pub(super) fn of(bytes: &[u8]) -> &'static str {
    if let Some((_, name)) = BEGINNINGS.iter().find(|(begin, _)| bytes.starts_with(begin)) {
        return name;
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return "a file of zeros";
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return "a tar archive";
    }
    let Some(text) = text(&bytes[..bytes.len().min(LOOKED_AT)]) else {
        return "of no known format";
    };
    if text.contains("-----BEGIN") {
        return "a PEM file, such as a certificate or a key";
    }
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let begins = |begin: &str| {
        let beginning = text.get(..begin.len());
        beginning.is_some_and(|text| text.eq_ignore_ascii_case(begin))
    };
    let format = TEXTS.iter().find(|(begin, _)| begins(begin));
    format.map_or("text", |(_, name)| name)
}

/// Returns the text that the bytes are, without a character that is cut off at their end.
fn text(bytes: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = |c: char| !c.is_control() || c.is_ascii_whitespace() || c == '\u{1b}';
    text.chars().all(is_text).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_named() {
        let tar = [&[b'a'; 257][..], b"ustar\0"].concat();
        let cut_off = [&[b'a'; LOOKED_AT - 1][..], "é".as_bytes()].concat();
        for (bytes, name) in [
            (&b"\x7fELF\x02"[..], "an ELF file"),
            (b"\x1f\x8b\x08", "gzip data"),
            (b"#!/bin/sh\n", "a script"),
            (b"\n <!doctype HTML><title>", "HTML"),
            (b"<?xml version", "XML"),
            (b"{ \"a\": 1 }", "JSON"),
            (b"  (module)", WAT),
            (
                b"subject=a\n-----BEGIN CERTIFICATE-----\n",
                "a PEM file, such as a certificate or a key",
            ),
            (
                "\u{feff}-----BEGIN".as_bytes(),
                "a PEM file, such as a certificate or a key",
            ),
            (b"\x30\x82\x01", "a DER file, such as a certificate or a key"),
            (&tar, "a tar archive"),
            (&cut_off, "text"),
            (b"\0\0\0", "a file of zeros"),
            (b"password", "text"),
            (b"\xff\x01", "of no known format"),
            (b"a\0b", "of no known format"),
        ] {
            assert_eq!(of(bytes), name, "{}", bytes.escape_ascii());
        }
    }
}
