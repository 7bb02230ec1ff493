//! Files of certificates and keys: what tools write, what cannot be used, and what the log shows.

use std::path::Path;

use rcgen::date_time_ymd;

use super::*;

/// Refuses to start with these files, and gives the message.
fn refusal(certificate: &Path, key: &Path, roots: Option<&Path>) -> String {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let mut args = vec!["--listen".to_owned(), "127.0.0.1:0".to_owned()];
    args.extend(["--tls-certificate".to_owned(), path(certificate)]);
    args.push(format!("--tls-key={}", path(key)));
    if let Some(roots) = roots {
        args.extend(["--tls-client-ca".to_owned(), path(roots)]);
    }
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let refusal = refused(&args);
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    refusal.message
}

/// Asserts that a message shows nothing of a PEM file, neither as text nor as the bytes of text.
fn shows_nothing(message: &str, pem: &str) {
    let lines = pem.lines().filter(|line| !line.starts_with('-'));
    for part in lines.flat_map(|line| line.as_bytes().chunks_exact(8)) {
        let text = std::str::from_utf8(part).unwrap();
        let bytes = format!("{part:?}");
        let bytes = bytes.trim_matches(['[', ']']);
        assert!(!message.contains(text) && !message.contains(bytes), "{message}");
    }
}

#[test]
fn certificates_are_read_again_when_their_service_changes_and_lines_have_the_new_name() {
    let authority = Authority::new("changed");
    let issued = authority.issues(&["localhost"], &[]);
    let file = authority.dir.join("services.toml");
    let put = |name: &str, time: &str| {
        let (certificate, key) = (issued.certificate.display(), issued.key.display());
        replace(
            &file,
            format!(
                "[[service]]\nname = \"s\"\nlimits = {{ idle-timeout = \"{time}\" }}\n\
                 [[service.listen]]\naddress = \"127.0.0.1:0\"\nname = \"{name}\"\n\
                 tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n"
            ),
        );
    };
    put("before", "1m");
    let host = Host::with_config(&file, 1);
    for (name, time) in [("before", "2m"), ("after", "2m"), ("later", "3m")] {
        put(name, time);
        host.signal(HUP);
        let line = host.line("certificates reloaded");
        assert_eq!(field(&line, "listener"), name, "{line}");
        assert_eq!(field(&line, "service"), "s", "{line}");
    }
}

#[test]
fn no_message_shows_the_content_of_a_key() {
    let authority = Authority::new("secret");
    let issued = authority.issues(&["localhost"], &[]);
    let pem = fs::read_to_string(&issued.key).unwrap();
    let file = authority.dir.join("damaged");
    let end = pem.find("-----END").unwrap();
    for damaged in [
        pem.replace('\n', " "),
        pem.replace('\n', "\\n"),
        pem.replace("-----\nM", "-----M"),
        pem.replace("-----\nM", "-----\n!M"),
        pem.replace("-----\nM", "-----\nA"),
        pem.replace("PRIVATE KEY", "SECRET KEY"),
        pem[..end].to_owned(),
        format!("key = '{pem}'"),
    ] {
        fs::write(&file, &damaged).unwrap();
        for (certificate, key, roots) in [
            (&issued.certificate, &file, None),
            (&file, &issued.key, None),
            (&issued.certificate, &issued.key, Some(file.as_path())),
        ] {
            let message = refusal(certificate, key, roots);
            assert!(message.contains(file.to_str().unwrap()), "{message}");
            shows_nothing(&message, &pem);
        }
    }
    // The key itself where its path is expected.
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    for key in [&pem, &pem.replace('\n', " "), &base64] {
        let certificate = issued.certificate.to_str().unwrap();
        for args in [
            &["--tls-certificate", certificate, &format!("--tls-key={key}")][..],
            &["--tls-certificate", certificate, "--tls-key", key],
            &["--config", key],
            &["--admin", "0", "--admin-token", key],
            &["check", key],
        ] {
            let refusal = refused(args);
            assert_eq!(refusal.status, Some(2), "{}", refusal.message);
            shows_nothing(&refusal.message, &pem);
        }
    }
}

#[test]
fn a_reload_does_not_show_the_content_of_a_key() {
    let (_, issued, host) = served("secret-reload", "echo", &["-v"]);
    let pem = fs::read_to_string(&issued.key).unwrap();
    for damaged in [pem.replace('\n', " "), pem.replace('\n', "\\n")] {
        replace(&issued.key, damaged);
        let line = host.line("certificate reload failed");
        assert!(line.contains("cannot read line 1 of"), "{line}");
    }
    shows_nothing(&host.log(), &pem);
}

#[test]
fn a_token_file_is_not_shown() {
    for (name, token) in [
        ("short", &b"t0ken-15-chars"[..]),
        ("binary", b"t0ken-15-chars\xff\xff\xff"),
    ] {
        let path = crate::harness::file(&format!("shown-{name}.token"), token);
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let refusal = refused(&[
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "0",
            "--admin-token",
            path.to_str().unwrap(),
        ]);
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        assert!(refusal.message.contains(path.to_str().unwrap()));
        assert!(!refusal.message.contains("t0ken"), "{}", refusal.message);
    }
}

#[test]
fn every_authority_of_a_file_is_trusted_however_it_is_written() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let clients = [&first, &second].map(|authority| authority.issues(&["client"], &[]));
    let [one, two] = [&first, &second].map(|authority| authority.issuer.pem());
    let roots = first.dir.join("roots.pem");
    let indented: String = one.lines().map(|line| format!("  {line}\n")).collect();
    let put = |text: &str| replace(&roots, text);
    put(&format!("{one}{two}"));
    let args = ["--tls-client-ca", roots.to_str().unwrap(), "-v"];
    let (authority, _, host) = served("written", "echo", &args);
    let count = |line: &str| line.contains("roots.pem") && field(line, "certificates") == "2";
    let log = host.log();
    assert!(
        log.lines()
            .any(|line| line.contains("certificates read") && count(line)),
        "{log}"
    );
    for text in [
        format!("\u{feff}{one}{two}"),
        format!("{one}\u{feff}{two}"),
        format!("{indented}{two}"),
        format!("{one}{two}").replace('\n', "\r\n"),
        format!("{}{two}", one.replace("CERTIFICATE", "X509 CERTIFICATE")),
        format!("{}{two}", one.replace("CERTIFICATE", "TRUSTED CERTIFICATE")),
        format!("subject=CN = one\n{one}# the other\n{two}"),
    ] {
        put(&text);
        host.line("certificates reloaded");
        let line = host.line("roots.pem");
        assert!(count(&line), "{line}");
        for identity in &clients {
            let client = ClientBuilder {
                identity: Some(identity.clone()),
                ..authority.client()
            };
            echo(&mut client.connects(&host).unwrap(), b"hello");
        }
    }
    // Rather than lose one of them, the host keeps those from before.
    put(&format!("{one}{}", two.replace("-----BEGIN", "---BEGIN")));
    let line = host.line("certificate reload failed");
    let place = format!(
        "cannot read line {} of `{}`",
        one.lines().count() + 1,
        roots.display()
    );
    assert!(line.contains(&place), "{line}");
}

#[test]
fn a_chain_keeps_its_first_certificate_however_it_is_written() {
    let authority = Authority::new("chain");
    let issued = authority.issues(&["localhost"], &[]);
    let text = fs::read_to_string(&issued.certificate).unwrap();
    let chain = format!("\u{feff}{text}{}", authority.issuer.pem());
    replace(&issued.certificate, chain);
    let host = serving("echo", &issued, &[]);
    let client = authority.client().connects(&host).unwrap();
    assert_eq!(client.conn.peer_certificates().unwrap().len(), 2);
}

#[test]
fn certificates_that_are_not_valid_now_are_warned_of() {
    let authority = Authority::new("validity");
    let issue = |from: i32, to: i32| {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 2);
        params.not_after = date_time_ymd(to, 1, 2);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let issued = Issued {
        certificate: authority.dir.join("localhost.crt"),
        key: authority.dir.join("localhost.key"),
    };
    let put = |(certificate, key): (String, String)| {
        replace(&issued.certificate, certificate);
        replace(&issued.key, key);
    };
    put(issue(2001, 2002));
    let host = serving("echo", &issued, &[]);
    let expired = "expired at 2002-01-02T00:00:00Z";
    let warning = format!(
        "certificate on line 1 of `{}` {expired}",
        issued.certificate.display()
    );
    assert!(host.log().contains(&warning), "{}", host.log());
    assert!(host.log().contains("WARN"), "{}", host.log());
    put(issue(2101, 2102));
    host.line("certificates reloaded");
    host.line("is not valid before 2101-01-02T00:00:00Z");
    host.signal(HUP);
    host.line("is not valid before 2101-01-02T00:00:00Z");
    put(issue(2001, 2102));
    host.line("certificates reloaded");
    // A warning would come before the next of these.
    host.signal(HUP);
    host.line("certificates reloaded");
    assert_eq!(
        host.log().matches("is not valid before").count(),
        2,
        "{}",
        host.log()
    );
    assert_eq!(host.log().matches("expired at").count(), 1, "{}", host.log());
}

#[test]
fn certificates_that_break_rfc_5280_are_warned_of_too() {
    let authority = Authority::new("lenient");
    let issued = Issued {
        certificate: authority.dir.join("localhost.crt"),
        key: authority.dir.join("localhost.key"),
    };
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2001, 1, 2);
    params.not_after = date_time_ymd(2002, 1, 2);
    // RFC 5280, section 4.1.2.2 permits 20 bytes.
    params.serial_number = Some(vec![0x7f; 25].into());
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    replace(&issued.certificate, certificate.pem());
    replace(&issued.key, key.serialize_pem());
    let host = serving("echo", &issued, &[]);
    let warning = format!(
        "certificate on line 1 of `{}` expired at 2002-01-02T00:00:00Z",
        issued.certificate.display()
    );
    assert!(host.log().contains(&warning), "{}", host.log());
}

/// Runs OpenSSL in a directory.
fn run(openssl: &Path, dir: &Path, args: &str) {
    let output = Command::new(openssl)
        .args(args.split(' '))
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{args}: {output:?}");
}

#[test]
fn keys_that_cannot_be_used_are_named_by_their_kind() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let authority = Authority::new("kinds");
    let issued = authority.issues(&["localhost"], &[]);
    let run = |args: &str| run(&openssl, &authority.dir, args);
    let make = "req -x509 -nodes -subj /CN=a -keyout k -out c -newkey";
    for (kind, expected) in [
        ("rsa:1024", "an RSA key of 1024 bits"),
        ("rsa:3000", "an RSA key of 3000 bits; expected 2048, 3072 or 4096"),
        ("rsa:2047", "an RSA key of 2047 bits; expected 2048, 3072 or 4096"),
        ("rsa:4608", "an RSA key of 4608 bits"),
        (
            "rsa:2048 -pkeyopt rsa_keygen_pubexp:3",
            "an RSA key whose public exponent is 3; expected 65537",
        ),
        (
            "rsa:3072 -pkeyopt rsa_keygen_primes:3",
            "an RSA key of more than two primes; expected two",
        ),
        (
            "ec -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit",
            "an EC key with explicit parameters",
        ),
        ("ec -pkeyopt ec_paramgen_curve:P-521", "the curve P-521"),
        ("ec -pkeyopt ec_paramgen_curve:secp256k1", "the curve secp256k1"),
        (
            "ec -pkeyopt ec_paramgen_curve:brainpoolP256r1",
            "the curve 1.3.36.3",
        ),
        ("ed448", "the algorithm Ed448"),
    ] {
        run(&format!("{make} {kind}"));
        let [certificate, key] = ["c", "k"].map(|name| authority.dir.join(name));
        let message = refusal(&certificate, &key, None);
        assert!(
            message.contains(expected) && message.contains("private key on line 1"),
            "{message}"
        );
        // As an authority it cannot be verified, except for other keys of RSA.
        if !kind.starts_with("rsa") || kind == "rsa:1024" {
            let message = refusal(&issued.certificate, &issued.key, Some(&certificate));
            assert!(
                message.contains(expected) && message.contains("certificate on line 1"),
                "{message}"
            );
        }
    }
    // By PKCS #1 and SEC 1, the latter behind a block of parameters.
    for (make, expected) in [
        ("ecparam -name secp521r1 -genkey -out k", "the curve P-521"),
        (
            "ecparam -name prime256v1 -genkey -param_enc explicit -out k",
            "an EC key with explicit parameters",
        ),
        ("genrsa -traditional -out k 2056", "an RSA key of 2056 bits"),
        ("genrsa -traditional -3 -out k 2048", "public exponent is 3"),
        (
            "genrsa -traditional -primes 3 -out k 3072",
            "more than two primes",
        ),
    ] {
        run(make);
        let message = refusal(&issued.certificate, &authority.dir.join("k"), None);
        assert!(message.contains(expected), "{message}");
    }
    for encrypt in [
        "pkey -in localhost.key -aes256 -passout pass:secret -out k",
        "ec -in localhost.key -aes256 -passout pass:secret -out k",
    ] {
        run(encrypt);
        let message = refusal(&issued.certificate, &authority.dir.join("k"), None);
        assert!(
            message.contains("encrypted") && message.contains("openssl pkey"),
            "{message}"
        );
    }
}

#[test]
fn a_certificate_of_version_1_is_named_as_such() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let authority = Authority::new("version-1");
    let run = |args: &str| run(&openssl, &authority.dir, args);
    run("req -new -nodes -newkey rsa:2048 -subj /CN=localhost -keyout k -out r");
    run("x509 -req -in r -signkey k -out c");
    let [certificate, key] = ["c", "k"].map(|name| authority.dir.join(name));
    let text = Command::new(&openssl)
        .args(["x509", "-noout", "-text", "-in"])
        .arg(&certificate)
        .output();
    if String::from_utf8(text.unwrap().stdout)
        .unwrap()
        .contains("Version: 3")
    {
        // OpenSSL 3.2 and later add extensions, unless they are asked for version 1.
        fs::write(
            authority.dir.join("no-extensions"),
            "[req]\ndistinguished_name = name\n[name]\n",
        )
        .unwrap();
        run("req -x509 -x509v1 -config no-extensions -subj /CN=localhost -key k -out c");
    }
    let message = refusal(&certificate, &key, None);
    assert!(
        message.contains("certificate on line 1") && message.contains("not of X.509 version 3"),
        "{message}"
    );
    // A root of clients may have it.
    let issued = authority.issues(&["localhost"], &[]);
    let roots = ["--tls-client-ca", certificate.to_str().unwrap()];
    let mut host = Host::start(&[&["--listen", "127.0.0.1:0"][..], &flags(&issued), &roots].concat());
    host.stop();
}

#[test]
fn keys_in_every_supported_encoding_are_used() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let authority = Authority::new("encodings");
    let run = |args: &str| run(&openssl, &authority.dir, args);
    let issued = Issued {
        certificate: authority.dir.join("c"),
        key: authority.dir.join("k"),
    };
    for kind in ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:P-384", "ed25519"] {
        run(&format!(
            "req -x509 -nodes -subj /CN=a -keyout k -out c -newkey {kind}"
        ));
        serving("echo", &issued, &[]);
        if kind != "ed25519" {
            run("pkey -in k -traditional -out traditional");
            fs::rename(authority.dir.join("traditional"), &issued.key).unwrap();
            serving("echo", &issued, &[]);
        }
    }
}

#[test]
fn files_that_openssl_writes_are_read_or_named_by_their_format() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let authority = Authority::new("formats");
    let issued = authority.issues(&["localhost"], &[]);
    let file = |name: &str| authority.dir.join(name);
    let run = |args: &str| run(&openssl, &authority.dir, args);
    // With explanatory text.
    run("x509 -in localhost.crt -text -fingerprint -sha256 -subject -issuer -serial -modulus -out text");
    run("pkey -in localhost.key -text -out key-text");
    run("pkcs12 -export -in localhost.crt -inkey localhost.key -name front-end -passout pass:a -out p12");
    run("pkcs12 -in p12 -passin pass:a -noenc -info -out bag");
    for (certificate, key) in [("text", "key-text"), ("bag", "bag")] {
        let host = serving(
            "echo",
            &Issued {
                certificate: file(certificate),
                key: file(key),
            },
            &[],
        );
        let client = authority.client().connects(&host).unwrap();
        assert_eq!(client.conn.peer_certificates().unwrap().len(), 1);
    }
    // In other formats.
    run("x509 -in localhost.crt -outform DER -out der");
    run("pkey -in localhost.key -outform DER -out key-der");
    run("base64 -in key-der -out key-base64");
    run("base64 -in localhost.key -out key-twice");
    let [key, certificate] = [&issued.key, &issued.certificate].map(|path| fs::read_to_string(path).unwrap());
    fs::write(file("two"), format!("{key}{key}")).unwrap();
    fs::write(file("lower"), key.to_lowercase()).unwrap();
    let (key_path, certificate_path) = (issued.key.as_path(), issued.certificate.as_path());
    for (name, is_key, expected) in [
        ("der", false, "openssl x509 -inform DER"),
        ("p12", false, "openssl pkcs12 -in FILE"),
        ("key-der", true, "openssl pkey -inform DER"),
        ("p12", true, "openssl pkcs12 -in FILE"),
        ("key-base64", true, "cannot read line 1 of"),
        ("key-base64", true, "base64 -d FILE | openssl"),
        ("key-twice", true, "decode it with `base64 -d`"),
        ("two", true, "keep the key of the certificate"),
        ("lower", true, "expected a PEM marker in capitals"),
    ] {
        let path = file(name);
        let message = if is_key {
            refusal(certificate_path, &path, None)
        } else {
            refusal(&path, key_path, None)
        };
        assert!(
            message.contains(expected) && message.contains(path.to_str().unwrap()),
            "{message}"
        );
        shows_nothing(&message, &key);
        shows_nothing(&message, &certificate);
    }
}

#[test]
fn trust_settings_of_openssl_are_obeyed() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let clients = Authority::new("settings");
    let alice = clients.issues(&["alice"], &[]);
    let roots = clients.dir.join("trusted.pem");
    let (authority, issued, _) = served("settings-server", "echo", &[]);
    for (settings, is_trusted) in [
        ("-addtrust clientAuth", true),
        ("-addtrust anyExtendedKeyUsage", true),
        ("-addreject serverAuth", true),
        ("-setalias other", true),
        ("-addtrust serverAuth", false),
        ("-addreject clientAuth", false),
    ] {
        run(
            &openssl,
            &clients.dir,
            &format!("x509 -in ca.pem -trustout {settings} -out trusted.pem"),
        );
        assert!(fs::read_to_string(&roots).unwrap().contains("TRUSTED"));
        if is_trusted {
            let host = serving("echo", &issued, &["--tls-client-ca", roots.to_str().unwrap()]);
            let client = ClientBuilder {
                identity: Some(alice.clone()),
                ..authority.client()
            };
            echo(&mut client.connects(&host).unwrap(), b"hello");
        } else {
            let message = refusal(&issued.certificate, &issued.key, Some(&roots));
            assert!(message.contains("exclude client authentication"), "{message}");
        }
    }
}

#[test]
fn ec_keys_without_an_uncompressed_point_are_named() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let authority = Authority::new("points");
    let issued = authority.issues(&["localhost"], &[]);
    let run = |args: &str| run(&openssl, &authority.dir, args);
    for curve in ["prime256v1", "secp384r1"] {
        run(&format!("ecparam -name {curve} -genkey -noout -out whole"));
        run("req -x509 -new -key whole -subj /CN=a -out c");
        for (convert, expected) in [
            (
                "ec -in whole -conv_form compressed -out k",
                "is not an uncompressed point",
            ),
            (
                "ec -in whole -conv_form hybrid -out k",
                "is not an uncompressed point",
            ),
            ("ec -in whole -no_public -out k", "without its public key"),
        ] {
            run(convert);
            for pkcs8 in [false, true] {
                if pkcs8 {
                    run(&format!("{} -outform DER", convert.replace("-out k", "-out der")));
                    run("pkcs8 -topk8 -nocrypt -inform DER -in der -out k");
                }
                let [certificate, key] = ["c", "k"].map(|name| authority.dir.join(name));
                let message = refusal(&certificate, &key, None);
                let advice = "openssl ec -in FILE -conv_form uncompressed -out NEW";
                assert!(
                    message.contains(expected) && message.contains(advice),
                    "{convert}: {message}"
                );
                if pkcs8 {
                    // The advice helps.
                    run("ec -in k -conv_form uncompressed -out NEW");
                    let key = authority.dir.join("NEW");
                    serving("echo", &Issued { certificate, key }, &[]);
                }
            }
        }
        run("ec -in whole -conv_form compressed -out k");
        run("req -x509 -new -key k -subj /CN=a -out c");
        let [certificate, whole] = ["c", "whole"].map(|name| authority.dir.join(name));
        for message in [
            refusal(&certificate, &whole, None),
            refusal(&issued.certificate, &issued.key, Some(&certificate)),
        ] {
            let expected = "it has an EC key whose public key is not an uncompressed point";
            assert!(
                message.contains("certificate on line 1") && message.contains(expected),
                "{message}"
            );
        }
    }
}

#[test]
fn critical_extensions_that_are_not_supported_are_named() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let authority = Authority::new("extensions");
    let run = |args: &str| run(&openssl, &authority.dir, args);
    let make = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=a -keyout k -out c";
    for (extension, expected) in [
        (
            "certificatePolicies=critical,1.2.3.4",
            "its critical extension Certificate Policies",
        ),
        (
            "tlsfeature=critical,status_request",
            "its critical extension TLS Feature",
        ),
        (
            "1.3.6.1.4.1.99999.1=critical,DER:0500",
            "its critical extension 1.3.6.1.4.1.99999.1",
        ),
        (
            "1.3.6.1.4.1.11129.2.4.3=critical,DER:0500",
            "it is a precertificate",
        ),
    ] {
        run(&format!("{make} -addext {extension}"));
        let [certificate, key] = ["c", "k"].map(|name| authority.dir.join(name));
        let message = refusal(&certificate, &key, None);
        assert!(
            message.contains("certificate on line 1") && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn a_chain_in_the_wrong_order_is_named_as_such() {
    let authority = Authority::new("order");
    let issued = authority.issues(&["localhost"], &[]);
    let leaf = fs::read_to_string(&issued.certificate).unwrap();
    let root = authority.issuer.pem();
    replace(&issued.certificate, format!("{root}{leaf}"));
    let message = refusal(&issued.certificate, &issued.key, None);
    let place = format!(
        "belongs to the certificate on line {} of `{}`; move this certificate to the beginning",
        root.lines().count() + 1,
        issued.certificate.display()
    );
    assert!(message.contains(&place), "{message}");
}

#[test]
fn wrong_labels_are_named_with_the_right_ones() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let authority = Authority::new("labels");
    let issued = authority.issues(&["localhost"], &[]);
    let file = |name: &str| authority.dir.join(name);
    let run = |args: &str| run(&openssl, &authority.dir, args);
    run("ec -in localhost.key -out EC");
    run("genrsa -traditional -out RSA 2048");
    run("pkcs8 -topk8 -in localhost.key -passout pass:secret -out encrypted");
    run("pkey -in localhost.key -pubout -out public");
    for (content, label) in [
        ("localhost.key", "PRIVATE KEY"),
        ("EC", "EC PRIVATE KEY"),
        ("RSA", "RSA PRIVATE KEY"),
        ("encrypted", "ENCRYPTED PRIVATE KEY"),
        ("public", "PUBLIC KEY"),
        ("localhost.crt", "CERTIFICATE"),
    ] {
        let text = fs::read_to_string(file(content)).unwrap();
        for wrong in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "CERTIFICATE"] {
            if wrong == label {
                continue;
            }
            let text = text.replace(&format!(" {label}-"), &format!(" {wrong}-"));
            assert!(text.contains(&format!("BEGIN {wrong}-")));
            fs::write(file("wrong"), text).unwrap();
            let message = if wrong == "CERTIFICATE" {
                refusal(&file("wrong"), &issued.key, None)
            } else {
                refusal(&issued.certificate, &file("wrong"), None)
            };
            let expected = format!("its label is wrong for its content; write `{label}` in both");
            assert!(message.contains(&expected), "{content} as {wrong}: {message}");
        }
    }
}

#[test]
fn a_check_warns_as_a_start_does() {
    let authority = Authority::new("check-warns");
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2101, 1, 2);
    params.not_after = date_time_ymd(2102, 1, 2);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    fs::write(authority.dir.join("late.crt"), certificate.pem()).unwrap();
    fs::write(authority.dir.join("late.key"), key.serialize_pem()).unwrap();
    let cache = authority.dir.join("cache");
    fs::create_dir(&cache).unwrap();
    fs::set_permissions(&cache, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let file = authority.dir.join("services.toml");
    let put = |address: &str| {
        let tls = "tls = { certificate = \"late.crt\", key = \"late.key\" }";
        let text = format!(
            "cache = \"cache\"\n[[service]]\nname = \"a\"\nmigrate = true\ncomponent = \"{}\"\n\
             listen = [{{ address = \"{address}\", {tls} }}]\n",
            crate::harness::guest("echo").display()
        );
        fs::write(&file, text).unwrap();
    };
    let warnings = [
        "is not valid before 2101-01-02T00:00:00Z",
        "cannot cache compiled components",
        "`migrate` is set, but component",
    ];
    put("127.0.0.1:0");
    let host = Host::with_config(&file, 1);
    for warning in warnings {
        assert!(host.log().contains(warning), "{warning}: {}", host.log());
    }
    for (address, args, expected) in [
        ("127.0.0.1:0", &["--compile"][..], &warnings[..]),
        ("127.0.0.1:0", &[], &warnings[..2]),
        // A socket that is not open yet.
        ("inherited:web", &[], &warnings[..2]),
    ] {
        put(address);
        let mut command = crate::harness::command();
        command
            .args(["check", "--config", file.to_str().unwrap()])
            .args(args);
        let checked = command.output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        assert!(
            checked.stdout.starts_with(b"1 service, no errors\n"),
            "{checked:?}"
        );
        let log = String::from_utf8(checked.stderr).unwrap();
        for warning in expected {
            assert_eq!(log.matches(warning).count(), 1, "{warning}: {log}");
        }
    }
}

#[test]
fn names_of_files_are_quoted_in_the_log() {
    let authority = Authority::new("quoted");
    let issued = authority.issues(&["localhost"], &[]);
    let named = Issued {
        certificate: authority.dir.join("a outcome=\"finished\" b.crt"),
        ..issued.clone()
    };
    fs::rename(&issued.certificate, &named.certificate).unwrap();
    let host = serving("echo", &named, &["-v"]);
    let expected = "/a outcome=\\\"finished\\\" b.crt\" certificates=1";
    assert!(host.log().contains(expected), "{}", host.log());
}
