//! PEM files as tools write them, and as they get damaged.

use super::*;

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAQID\nBAUG\n-----END CERTIFICATE-----\n";

/// The content of each certificate and its line.
fn certificates(text: impl AsRef<[u8]>) -> Vec<(usize, Vec<u8>)> {
    let blocks = blocks(text.as_ref()).unwrap();
    let certificates = blocks.into_iter().map(|block| match block.content {
        Content::Certificate(der) | Content::Trusted(der) => (block.line, der),
        _ => panic!("not a certificate"),
    });
    certificates.collect()
}

fn fault(text: impl AsRef<[u8]>) -> (usize, Fault) {
    match blocks(text.as_ref()) {
        Ok(_) => panic!("accepted {:?}", String::from_utf8_lossy(text.as_ref())),
        Err(Malformed { line, fault }) => (line, fault),
    }
}

#[test]
fn blocks_are_read_as_tools_write_them() {
    let expected = [vec![1, 2, 3, 4, 5, 6]];
    let indented: String = CERTIFICATE.lines().map(|line| format!("    {line} \n")).collect();
    for text in [
        CERTIFICATE.to_owned(),
        CERTIFICATE.trim_end().to_owned(),
        CERTIFICATE.replace('\n', "\r\n"),
        CERTIFICATE.replace('\n', "\r"),
        CERTIFICATE.replace('\n', "\n\n"),
        indented.replace("    ", "\t"),
        indented,
        format!("\u{feff}{CERTIFICATE}"),
        CERTIFICATE.replace("CERTIFICATE", "X509 CERTIFICATE"),
        CERTIFICATE.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
    ] {
        let read: Vec<_> = certificates(&text).into_iter().map(|(_, der)| der).collect();
        assert_eq!(read, expected, "{text:?}");
    }
    let commented = CERTIFICATE.replace("-----BEGIN", "#-----BEGIN");
    let commented = commented.replace("-----END", "#-----END");
    let between = format!("subject=CN = a\n{CERTIFICATE}\u{feff}{CERTIFICATE}{commented}{CERTIFICATE}");
    let lines: Vec<_> = certificates(between).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [2, 6, 14]);
}

#[test]
fn whatever_looks_like_a_block_is_read_or_refused() {
    let utf16: Vec<u8> = "\u{feff}-----"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    assert_eq!(fault(&utf16[2..]), (1, Fault::Utf16));
    assert_eq!(fault(utf16), (1, Fault::Utf16));
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    for (begin, end) in [
        (begin.to_lowercase(), end.to_lowercase()),
        (
            "-----Begin Certificate-----".to_owned(),
            "-----End Certificate-----".to_owned(),
        ),
        (begin.replace(' ', "\t"), end.to_owned()),
        (begin.replace(' ', "\u{a0}"), end.replace(' ', "\u{a0}")),
        (begin.replace(' ', ""), end.replace(' ', "")),
        (begin.replace('-', "\u{2010}"), end.replace('-', "\u{2010}")),
        (begin.replace('-', "\u{2212}"), end.replace('-', "\u{2212}")),
        (begin.replace('-', "="), end.replace('-', "=")),
        (begin.replace('-', "- "), end.replace('-', "- ")),
        (begin.replace('-', ""), end.replace('-', "")),
        (begin.replace(['-', ' '], ""), end.replace(['-', ' '], "")),
        (
            begin.replace('-', "").to_lowercase(),
            end.replace('-', "").to_lowercase(),
        ),
        (begin.replace("BEGIN ", "BEGIN X.509 "), end.to_owned()),
        (format!("key: \"{begin}"), end.to_owned()),
        (begin.replace("-----B", "-B"), end.to_owned()),
        (
            begin.replace("CERTIFICATE", "SOMETHING").replace("-----", "---"),
            end.to_owned(),
        ),
    ] {
        // Before another block and after it.
        for (before, line) in [("", 1), (CERTIFICATE, 5)] {
            let text = format!("{before}{begin}\nAQID\n{end}\n{CERTIFICATE}");
            let (found, fault) = fault(&text);
            let is_label = begin.contains("X.509");
            let expected = if is_label { Fault::Unclosed } else { Fault::Marker };
            assert_eq!((found, fault), (line, expected), "{text}");
        }
        let text = CERTIFICATE.replace("-----END CERTIFICATE-----", &end);
        if end != "-----END CERTIFICATE-----" {
            assert_eq!(fault(&text), (4, Fault::Marker), "{text}");
        }
    }
    let windows = CERTIFICATE.replace("-----", "%").into_bytes();
    let windows: Vec<u8> = windows
        .into_iter()
        .flat_map(|byte| if byte == b'%' { vec![0x96; 5] } else { vec![byte] })
        .collect();
    assert_eq!(fault(windows), (1, Fault::Marker));
    for (text, expected) in [
        (CERTIFICATE.replace('\n', " "), (1, Fault::Marker)),
        (CERTIFICATE.replace('\n', "\\n"), (1, Fault::Marker)),
        (format!("key: \"{CERTIFICATE}"), (1, Fault::Marker)),
        (CERTIFICATE.replace("-----BEGIN", "----BEGIN"), (1, Fault::Marker)),
        (CERTIFICATE.replace("-----BEGIN", "—-BEGIN"), (1, Fault::Marker)),
        (CERTIFICATE.replace("-----END", "---- END"), (4, Fault::Marker)),
        (CERTIFICATE.trim_end().repeat(2), (4, Fault::Marker)),
        (
            CERTIFICATE.replace("END CERTIFICATE", "END X"),
            (1, Fault::Unclosed),
        ),
        (
            format!("\n{}", &CERTIFICATE[..CERTIFICATE.len() - 26]),
            (2, Fault::Unclosed),
        ),
        (
            format!("{}{CERTIFICATE}", &CERTIFICATE[..CERTIFICATE.len() - 26]),
            (1, Fault::Unclosed),
        ),
        (CERTIFICATE[28..].to_owned(), (3, Fault::Unopened)),
        (CERTIFICATE.replace("AQID", "AQ!D"), (1, Fault::Base64)),
        (
            format!("{CERTIFICATE}{}", CERTIFICATE.replace("CERTIFICATE", "PKCS7")),
            (5, Fault::Label),
        ),
    ] {
        assert_eq!(fault(&text), expected, "{text:?}");
    }
}

#[test]
fn content_without_markers_is_refused_by_its_encoding() {
    let length = 60;
    let der = |inner: &[u8]| {
        let mut der = vec![0x30, length];
        der.extend(inner);
        der.resize(usize::from(length) + 2, 0);
        der
    };
    for (der, expected) in [
        (der(&[0x30, 3, 0xa0, 1, 0]), Fault::DerCertificate),
        (der(&[0x02, 1, 0]), Fault::DerKey),
        (der(&[0x30, 3, 0x06, 1, 0x2a]), Fault::DerKey),
        (der(&[0x02, 1, 3]), Fault::Pkcs12),
    ] {
        assert_eq!(fault(der), (1, expected));
    }
    for base64 in ["MDwwA6AB", "MDwCAQAA"] {
        let base64 = format!("{base64}{}", "A".repeat(72));
        assert_eq!(fault(&base64), (1, Fault::Bare));
        let folded = format!("{}\n{}\n", &base64[..64], &base64[64..]);
        assert_eq!(fault(format!("{CERTIFICATE}\n{folded}")), (6, Fault::Bare));
        assert_eq!(fault(format!("{{\"key\": \"{base64}\"}}")), (1, Fault::Bare));
    }
    let encoded = "tls.crt: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCkFRSUQKQkFVRgotLS0tLUVORCBD";
    assert_eq!(fault(encoded), (1, Fault::Encoded));
}

#[test]
fn explanatory_text_is_skipped() {
    for text in [
        // OpenSSL.
        "subject=CN = Front-End CA, O = \"Acme, Inc.\", OU = End Users",
        "subject=CN = FRONT-END CA",
        "    CN = END USER CA",
        "O = ACME - END USER CA",
        "        Issuer: O = Weekend Certificates, CN = Begin Key Services",
        "                Explicit Text: for the end certificate holder, whose key begins here",
        "            X509v3 Subject Key Identifier: ",
        "    localKeyID: 1B 2C 3D ",
        "Key Attributes: <No Attributes>",
        "Modulus=C2ABB0F1C2ABB0F1C2ABB0F1C2ABB0F1C2ABB0F1C2ABB0F1C2ABB0F1C2ABB0F1",
        // curl.
        "## Certificate data from Mozilla as of: Tue Sep  9 03:12:01 2025 GMT",
        "## -----BEGIN CERTIFICATE-----",
        "Begin Trust Root\n================",
        // GnuTLS and keytool.
        "\t\tpin-sha256:MAkUN0Pa0YmmgWEXbyqLQdvFQqvCJwoDyG5u0A5xBgE=",
        "Entry type: trustedCertEntry",
        "*******************************************",
        "--- end of list ---",
    ] {
        let text = format!("{text}\n{CERTIFICATE}{text}\n");
        assert_eq!(certificates(&text).len(), 1, "{text}");
    }
}

#[test]
fn encrypted_keys_are_told_from_others() {
    let key = |label: &str, headers: &str| {
        let text = format!("-----BEGIN {label}-----\n{headers}AQID\n-----END {label}-----\n");
        blocks(text.as_bytes()).unwrap().remove(0).content
    };
    let header = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n";
    for (label, headers) in [("ENCRYPTED PRIVATE KEY", ""), ("RSA PRIVATE KEY", header)] {
        assert!(matches!(key(label, headers), Content::EncryptedKey), "{label}");
    }
    for (label, expected) in [
        ("PRIVATE KEY", SectionKind::PrivateKey),
        ("RSA PRIVATE KEY", SectionKind::RsaPrivateKey),
        ("EC PRIVATE KEY", SectionKind::EcPrivateKey),
    ] {
        for headers in ["", "Comment: mine\n\n"] {
            let Content::Key(kind, der) = key(label, headers) else {
                panic!("{label}")
            };
            assert_eq!((kind, der), (expected, vec![1, 2, 3]));
        }
    }
    assert!(matches!(key("EC PARAMETERS", ""), Content::Irrelevant));
}
