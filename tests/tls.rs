//! TLS, by clients of rustls, OpenSSL and socat.

mod files;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::harness::tools;
use crate::harness::{
    CONT, Client, DEADLINE, Done, HUP, Host, field, file, guest, noise, refused, replace, scratch, until,
};

/// An authority with a directory for what it issues.
pub struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as files.
#[derive(Clone)]
pub struct Issued {
    certificate: PathBuf,
    key: PathBuf,
}

impl Issued {
    /// The certificate, and its key.
    pub fn files(&self) -> [&str; 2] {
        [&self.certificate, &self.key].map(|path| path.to_str().unwrap())
    }
}

impl Authority {
    fn new(name: &str) -> Self {
        let dir = scratch(&format!("tls-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let issuer = issuer(name);
        fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Issues a certificate for names, in files that begin with the first of these, with a subject.
    fn issues(&self, names: &[&str], subject: &[(DnType, &str)]) -> Issued {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let stem = names[0].replace('*', "any");
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = of(subject);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let issued = Issued {
            certificate: self.dir.join(format!("{stem}.crt")),
            key: self.dir.join(format!("{stem}.key")),
        };
        replace(&issued.certificate, certificate.pem());
        replace(&issued.key, key.serialize_pem());
        issued
    }

    /// What a client has to know of it.
    pub fn client(&self) -> ClientBuilder {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        ClientBuilder {
            roots,
            alpn: Vec::new(),
            identity: None,
            versions: rustls::ALL_VERSIONS,
        }
    }
}

/// Creates a certificate that can issue others, with a key of its own.
fn issuer(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = of(&[(DnType::CommonName, name)]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn of(subject: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (key, value) in subject {
        name.push(key.clone(), *value);
    }
    name
}

/// What a client may be kept to.
const OLDER: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
const NEWER: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// How a client of rustls connects.
pub struct ClientBuilder {
    roots: RootCertStore,
    alpn: Vec<&'static str>,
    identity: Option<Issued>,
    versions: &'static [&'static rustls::SupportedProtocolVersion],
}

pub type TlsClient = StreamOwned<ClientConnection, TcpStream>;

impl ClientBuilder {
    fn config(&self) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let chain = CertificateDer::pem_file_iter(&issued.certificate).unwrap();
                let key = PrivateKeyDer::from_pem_file(&issued.key).unwrap();
                builder
                    .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                    .unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Performs the handshake over `stream`, as with a host called `name`.
    pub fn over<S: Read + Write>(
        &self,
        stream: S,
        name: &str,
    ) -> io::Result<StreamOwned<ClientConnection, S>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection = ClientConnection::new(self.config(), name).unwrap();
        let mut client = StreamOwned::new(connection, stream);
        while client.conn.is_handshaking() {
            client.conn.complete_io(&mut client.sock)?;
        }
        Ok(client)
    }

    pub fn connects(&self, host: &Host) -> io::Result<TlsClient> {
        self.over(Client::connect(host.address())?.0, "localhost")
    }
}

pub fn echo(client: &mut TlsClient, bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer).unwrap();
    assert!(answer == bytes);
}

/// Says that there is no more to come.
pub fn finish(client: &mut TlsClient) {
    client.conn.send_close_notify();
    while client.conn.wants_write() {
        client.conn.write_tls(&mut client.sock).unwrap();
    }
    client.sock.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end that TLS tells of.
pub fn rest(client: &mut TlsClient) -> String {
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    rest
}

fn serving(name: &str, issued: &Issued, args: &[&str]) -> Host {
    Host::serving(name, &[&flags(issued), args].concat())
}

/// The flags for a certificate and its key.
fn flags(issued: &Issued) -> [&str; 4] {
    [
        "--tls-certificate",
        issued.certificate.to_str().unwrap(),
        "--tls-key",
        issued.key.to_str().unwrap(),
    ]
}

/// An authority, what it has issued for `localhost`, and a host that serves with that.
pub fn served(test: &str, guest: &str, args: &[&str]) -> (Authority, Issued, Host) {
    let authority = Authority::new(test);
    let issued = authority.issues(&["localhost"], &[]);
    let host = serving(guest, &issued, args);
    (authority, issued, host)
}

#[test]
fn every_contract_is_served_and_half_closed() {
    for guest in ["echo", "arbiter", "lines", "lines-session", "cat", "cat3"] {
        let (authority, _, host) = served(&format!("serves-{guest}"), guest, &[]);
        for versions in [OLDER, NEWER] {
            let client = ClientBuilder {
                versions,
                ..authority.client()
            };
            let mut client = client.connects(&host).unwrap();
            client.write_all(b"hello\n").unwrap();
            finish(&mut client);
            assert_eq!(rest(&mut client), "hello\n", "{guest}");
            assert_eq!(host.outcome(), "finished", "{guest}");
        }
    }
}

#[test]
fn much_is_moved_both_ways() {
    for guest in ["echo", "copy", "lines-session", "cat"] {
        let (authority, _, host) = served(&format!("much-{guest}"), guest, &[]);
        let mut client = authority.client().connects(&host).unwrap();
        let mut bytes = noise(3, 4_000_000);
        for line in bytes.chunks_exact_mut(1000) {
            line[999] = b'\n';
        }
        // What the host has taken it sends, though nothing more comes, and nobody reads for now.
        for part in bytes.chunks(125_000) {
            client.write_all(part).unwrap();
            let mut answer = vec![0; part.len()];
            client.read_exact(&mut answer[..part.len() / 2]).unwrap();
            client.read_exact(&mut answer[part.len() / 2..]).unwrap();
            assert!(answer == part, "{guest}");
        }
        finish(&mut client);
        assert_eq!(rest(&mut client), "");
        assert_eq!(host.outcome(), "finished");
    }
}

#[test]
fn what_the_socket_cannot_take_is_sent_when_it_can() {
    let (authority, _, host) = served(
        "slow",
        "echo",
        &["--send-buffer", "16KiB", "--write-timeout", "off"],
    );
    let mut client = authority.client().connects(&host).unwrap();
    let bytes = noise(5, 200 << 10);
    // The host reads until neither it nor the kernel can hold more, and this much they can.
    client.write_all(&bytes).unwrap();
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer).unwrap();
    assert!(answer == bytes);
}

#[test]
fn a_peer_that_does_not_read_is_reset() {
    let (authority, _, host) = served("deaf", "chargen", &["--write-timeout", "300ms"]);
    let _client = authority.client().connects(&host).unwrap();
    assert_eq!(host.outcome(), "write-timeout");
}

#[test]
fn a_guest_that_traps_resets_and_does_not_end_well() {
    let (authority, _, host) = served("trap", "trap", &[]);
    let mut client = authority.client().connects(&host).unwrap();
    client.write_all(b"!").unwrap();
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert_eq!(host.outcome(), "guest-trap");
}

#[test]
fn a_peer_that_ends_without_a_word_of_tls_is_cut_off() {
    let (authority, _, host) = served("truncated", "lines-session", &[]);
    let mut client = authority.client().connects(&host).unwrap();
    echo(&mut client, b"hello\n");
    client.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(host.outcome(), "peer-reset");
}

#[test]
fn the_guest_is_told_what_tls_says() {
    let (authority, _, host) = served("told", "whoami", &["--tls-alpn", "h2", "--tls-alpn", "echo/1"]);
    let mut client = ClientBuilder {
        alpn: vec!["other", "echo/1"],
        ..authority.client()
    };
    let said = rest(&mut client.connects(&host).unwrap());
    assert!(
        said.ends_with("version TLSv1.3\nserver-name localhost\nprotocol echo/1\n"),
        "{said}"
    );
    client.alpn.clear();
    client.versions = OLDER;
    let said = rest(&mut client.connects(&host).unwrap());
    assert!(
        said.ends_with("version TLSv1.2\nserver-name localhost\n"),
        "{said}"
    );
    // They have none in common.
    client.alpn = vec!["other"];
    assert!(client.connects(&host).is_err());
    host.line("reason=\"tls-handshake\"");
}

#[test]
fn a_program_is_told_what_tls_says() {
    let (authority, _, host) = served("environment", "errands", &[]);
    let mut client = authority.client().connects(&host).unwrap();
    client
        .write_all(b"env SSL_PROTOCOL\nenv SSL_TLS_SNI\nenv SSL_CLIENT_S_DN\nenv PROTO\n")
        .unwrap();
    finish(&mut client);
    assert_eq!(rest(&mut client), "TLSv1.3\nlocalhost\nno such variable\nTCP\n");
}

#[test]
fn clients_show_who_they_are() {
    let clients = Authority::new("clients");
    let others = Authority::new("others");
    let roots = clients.file();
    let subject = [
        (DnType::CommonName, "Alice, the \"first\""),
        (DnType::OrganizationName, "Example"),
    ];
    let alice = clients.issues(&["alice"], &subject);
    let mallory = others.issues(&["mallory"], &subject);
    let args = ["--tls-client-ca", roots.to_str().unwrap()];
    let (authority, issued, host) = served("required", "whoami", &args);
    let mut client = ClientBuilder {
        identity: Some(alice),
        ..authority.client()
    };
    let known = "subject O=Example,CN=Alice\\, the \\\"first\\\"\n";
    let said = rest(&mut client.connects(&host).unwrap());
    assert!(said.ends_with(known), "{said}");
    let fails = |client: &ClientBuilder, host: &Host| {
        // By TLS 1.3 a client is done before it can be refused.
        let failed = client
            .connects(host)
            .and_then(|mut client| client.read_to_end(&mut Vec::new()));
        assert!(failed.is_err(), "{failed:?}");
        host.line("reason=\"tls-handshake\"");
    };
    client.identity = Some(mallory.clone());
    fails(&client, &host);
    client.identity = None;
    fails(&client, &host);
    drop(host);

    let host = serving(
        "whoami",
        &issued,
        &[&args[..], &["--tls-client-optional"]].concat(),
    );
    let said = rest(&mut client.connects(&host).unwrap());
    assert!(!said.contains("subject"), "{said}");
    client.identity = Some(mallory);
    fails(&client, &host);
}

#[test]
fn a_client_shows_a_bounded_number_of_certificates() {
    let clients = Authority::new("long-chain");
    let roots = clients.file();
    let args = ["--tls-client-ca", roots.to_str().unwrap(), "-v"];
    let (authority, _, host) = served("long-chain-server", "echo", &args);
    let mut alice = clients.issues(&["alice"], &[]);
    let own = fs::read_to_string(&alice.certificate).unwrap();
    let issuer_pem = fs::read_to_string(&roots).unwrap();
    alice.certificate.set_extension("chain");
    for (count, served) in [(2, true), (10, true), (11, false)] {
        replace(&alice.certificate, own.clone() + &issuer_pem.repeat(count));
        let client = ClientBuilder {
            identity: Some(alice.clone()),
            ..authority.client()
        };
        if served {
            echo(&mut client.connects(&host).unwrap(), b"hello");
        } else {
            assert_eq!(alert(&client, &host), AlertDescription::CertificateUnknown);
            let log = host.log();
            assert!(log.contains("11 intermediate certificates"), "{log}");
        }
    }
    // Another certificate with the name of the authority.
    replace(
        &alice.certificate,
        own + &issuer_pem + &issuer("long-chain").pem(),
    );
    let client = ClientBuilder {
        identity: Some(alice),
        ..authority.client()
    };
    assert_eq!(alert(&client, &host), AlertDescription::CertificateUnknown);
    let log = host.log();
    assert!(log.contains("certificates with the same subject"), "{log}");
}

/// Clients that connect at the same time.
const CROWD: usize = 32;

#[test]
fn a_crowd_with_certificates_of_one_subject_takes_no_threads() {
    let name = "one-subject";
    let clients = Authority::new(name);
    let impostor = Authority {
        dir: clients.dir.clone(),
        issuer: issuer(name),
    };
    let mut mallory = impostor.issues(&["mallory"], &[]);
    let mut chain = fs::read_to_string(&mallory.certificate).unwrap();
    // Each of them could be the issuer of each other.
    chain.extend((0..10).map(|_| issuer(name).pem()));
    mallory.certificate.set_extension("chain");
    replace(&mallory.certificate, chain);
    let authority = Authority::new("one-subject-server");
    let issued = authority.issues(&["localhost"], &[]);
    let [certificate, key] = issued.files();
    let config = format!(
        "[[service]]\nname = \"encrypted\"\nlisten = [{{ address = \"127.0.0.1:0\", tls = {{ \
         certificate = \"{certificate}\", key = \"{key}\", client-ca = \"{}\" }} }}]\n\
         [[service]]\nname = \"plain\"\nlisten = [\"127.0.0.1:0\"]\n",
        clients.file().display()
    );
    let host = Host::with_config(&file("one-subject.toml", config), 2);
    let [encrypted, plain] = [0, 1].map(|listener| host.addresses()[listener]);
    Client::connect(plain).unwrap().echo("hello\n");
    let threads = host.entries("task");
    let client = ClientBuilder {
        identity: Some(mallory),
        ..authority.client()
    };
    thread::scope(|scope| {
        let crowd = [(); CROWD].map(|()| {
            scope.spawn(|| alert_of(client.over(Client::connect(encrypted).unwrap().0, "localhost")))
        });
        Client::connect(plain).unwrap().echo("hello\n");
        for refused in crowd {
            assert_eq!(refused.join().unwrap(), AlertDescription::CertificateUnknown);
        }
    });
    let now = host.entries("task");
    // Other work of the host may have started a few.
    assert!(now <= threads + 3, "{threads} threads became {now}");
    Client::connect(plain).unwrap().echo("hello\n");
    for _ in 0..CROWD {
        host.line("reason=\"tls-handshake\"");
    }
}

/// The alert with which a host refuses a client.
fn alert(client: &ClientBuilder, host: &Host) -> AlertDescription {
    let alert = alert_of(client.connects(host));
    host.line("reason=\"tls-handshake\"");
    alert
}

/// Reads the alert with which a host refuses a client that has tried to connect.
fn alert_of(connected: io::Result<TlsClient>) -> AlertDescription {
    // A client of TLS 1.3 finishes its handshake before the host can refuse its certificate.
    let error = connected
        .and_then(|mut client| client.read_to_end(&mut Vec::new()))
        .unwrap_err();
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("{error:?} is not an alert"),
    }
}

#[test]
fn each_refusal_sends_its_alert() {
    let clients = Authority::new("alert-clients");
    let alice = clients.issues(&["alice"], &[]);
    let mallory = Authority::new("alert-others").issues(&["mallory"], &[]);
    let roots = clients.file();
    let args = ["--tls-alpn", "echo/1", "--tls-client-ca", roots.to_str().unwrap()];
    let (authority, _, host) = served("alerts", "echo", &args);
    for versions in [OLDER, NEWER] {
        let mut client = ClientBuilder {
            versions,
            alpn: vec!["other"],
            identity: Some(alice.clone()),
            ..authority.client()
        };
        assert_eq!(alert(&client, &host), AlertDescription::NoApplicationProtocol);
        client.alpn = vec!["echo/1"];
        echo(&mut client.connects(&host).unwrap(), b"hello");
        client.identity = None;
        assert_eq!(alert(&client, &host), AlertDescription::CertificateRequired);
        client.identity = Some(mallory.clone());
        assert_eq!(alert(&client, &host), AlertDescription::UnknownCA);
    }
    // A ClientHello of TLS 1.1, with one cipher suite and one signature algorithm.
    let mut hello = vec![0x16, 3, 1, 0, 55, 1, 0, 0, 51, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    let client = host.connect();
    client.send(&hello);
    let answer = client.rest();
    assert_eq!(answer.len(), 7, "{answer:?}");
    assert_eq!(answer[0], 0x15, "{answer:?}");
    assert_eq!(answer[5..], [2, u8::from(AlertDescription::ProtocolVersion)]);
}

/// The certificate that a host shows.
fn shown(client: &ClientBuilder, host: &Host) -> Vec<u8> {
    let client = client.connects(host).unwrap();
    client.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn certificates_are_read_again_when_they_change() {
    let (authority, issued, host) = served("reread", "echo", &[]);
    let client = authority.client();
    let mut old = client.connects(&host).unwrap();
    let first = shown(&client, &host);
    authority.issues(&["localhost"], &[]);
    host.line("certificates reloaded");
    let second = shown(&client, &host);
    assert_ne!(first, second);
    echo(&mut old, b"still here");

    // A key of another one.
    let other = authority.issues(&["other"], &[]);
    replace(&issued.key, fs::read(&other.key).unwrap());
    let line = host.line("does not belong");
    assert!(line.contains("stay in use"), "{line}");
    assert_eq!(shown(&client, &host), second);
    replace(&issued.certificate, fs::read(&other.certificate).unwrap());
    host.line("certificates reloaded");
    assert!(client.connects(&host).is_err(), "it is for another name");
    assert_eq!(host.log().matches("does not belong").count(), 1, "{}", host.log());
}

#[test]
fn certificates_that_cannot_be_read_at_the_moment_are_read_later() {
    let authority = Authority::new("later");
    let issued = authority.issues(&["localhost"], &[]);
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--tls-timeout",
        "10m",
        "--threads",
        "1",
    ];
    let args = [&args[..], &flags(&issued)].concat();
    let host = Host::below_shell("ulimit -n 40", &args);
    let clients: Vec<_> = (0..60).map(|_| host.connect()).collect();
    host.line("cannot accept connections at the moment");
    authority.issues(&["localhost"], &[]);
    host.line("certificate reload failed");
    drop(clients);
    host.line("certificates reloaded");
    assert_eq!(
        host.log().matches("certificate reload failed").count(),
        1,
        "{}",
        host.log()
    );
}

#[test]
fn certificates_are_read_again_when_that_is_asked_for() {
    let (authority, issued, host) = served("asked", "echo", &[]);
    host.signal(HUP);
    host.line("certificates reloaded");
    let (kept, gone) = (fs::read(&issued.key).unwrap(), issued.key.with_extension("gone"));
    fs::rename(&issued.key, &gone).unwrap();
    host.line("cannot read");
    echo(&mut authority.client().connects(&host).unwrap(), b"hello");
    replace(&issued.key, kept);
    host.line("certificates reloaded");
}

#[test]
fn certificates_that_keep_changing_are_read_all_the_same() {
    let (authority, issued, host) = served("restless", "echo", &[]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, _done) = (&done, Done(&done));
        let key = &issued.key;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if let Ok(file) = fs::File::options().write(true).open(key) {
                    file.set_modified(SystemTime::now()).unwrap();
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        host.line("certificates reloaded");
        echo(&mut authority.client().connects(&host).unwrap(), b"hello");
    });
}

#[test]
fn certificates_that_are_of_no_use_any_more_do_not_keep_a_file_from_being_read_again() {
    let authority = Authority::new("file");
    let issued = authority.issues(&["localhost"], &[]);
    let file = authority.dir.join("services.toml");
    let put = |more: &str| {
        let tls = "{ certificate = \"localhost.crt\", key = \"localhost.key\" }";
        let listen = format!("listen = [{{ address = \"127.0.0.1:0\", tls = {tls} }}]");
        replace(&file, format!("[[service]]\nname = \"echo\"\n{listen}\n{more}\n"));
    };
    put("");
    let host = Host::with_config(&file, 1);
    fs::remove_file(&issued.key).unwrap();
    put("limits = { max-connections = 9 }");
    host.signal(HUP);
    host.line("services reconfigured");
    echo(&mut authority.client().connects(&host).unwrap(), b"as before");
}

#[test]
fn what_cannot_be_used_is_named_at_the_start() {
    let authority = Authority::new("unusable");
    let (one, other) = (authority.issues(&["one"], &[]), authority.issues(&["other"], &[]));
    let (empty, missing) = (authority.dir.join("empty"), authority.dir.join("missing"));
    fs::write(&empty, "").unwrap();
    let broken = authority.dir.join("broken");
    fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    for (certificate, key, roots, expected) in [
        (&missing, &one.key, None, "cannot read"),
        (&one.certificate, &missing, None, "cannot read"),
        (&empty, &one.key, None, "contains no certificate"),
        (&one.certificate, &empty, None, "contains no private key"),
        (&one.key, &one.key, None, "contains no certificate"),
        (
            &one.certificate,
            &other.key,
            None,
            "does not belong to the certificate",
        ),
        (&broken, &one.key, None, "cannot use the certificate on line 1 of"),
        (
            &one.certificate,
            &one.key,
            Some(&empty),
            "contains no certificate",
        ),
        (
            &one.certificate,
            &one.key,
            Some(&broken),
            "cannot use the certificate on line 1 of",
        ),
    ] {
        let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let mut args = vec!["--listen".to_owned(), "127.0.0.1:0".to_owned()];
        args.extend(["--tls-certificate".to_owned(), path(certificate)]);
        args.extend(["--tls-key".to_owned(), path(key)]);
        args.extend(
            roots
                .map(|roots| ["--tls-client-ca".to_owned(), path(roots)])
                .into_iter()
                .flatten(),
        );
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let refusal = refused(&args);
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        assert!(
            refusal.message.contains(expected),
            "{expected}: {}",
            refusal.message
        );
    }
}

#[test]
fn a_handshake_that_takes_too_long_is_given_up() {
    let (authority, _, host) = served("timeout", "echo", &["--tls-timeout", "300ms"]);
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let client = host.connect();
        client.send(said);
        // Closed, whichever way.
        let _ = (&client.0).read_to_end(&mut Vec::new());
        host.line("reason=\"tls-timeout\"");
    }
    echo(&mut authority.client().connects(&host).unwrap(), b"hello");
}

#[test]
fn a_drain_does_not_wait_for_handshakes() {
    let (_, _, mut host) = served(
        "drain",
        "echo",
        &["--tls-timeout", "1h", "--drain-timeout", "100ms"],
    );
    let before = host.entries("fd");
    let client = host.connect();
    client.send(b"\x16\x03");
    until("it was accepted", || host.entries("fd") > before);
    assert!(host.stop().success());
    let _ = (&client.0).read_to_end(&mut Vec::new());
    assert!(host.log().contains("reason=\"drained\""), "{}", host.log());
}

#[test]
fn a_drain_ends_connections_in_the_terms_of_tls() {
    let (authority, _, mut host) = served("drained", "echo", &["--drain-timeout", "1s"]);
    let mut client = authority.client().connects(&host).unwrap();
    echo(&mut client, b"hello");
    let reading = thread::spawn(move || rest(&mut client));
    assert!(host.stop().success());
    assert_eq!(reading.join().unwrap(), "");
    assert!(host.log().contains("outcome=\"drained\""));
}

#[test]
fn what_is_no_tls_is_told_so() {
    let (_, _, host) = served("plain", "echo", &[]);
    for said in ["GET / HTTP/1.1\r\n\r\n", "hello, is anybody there?\n"] {
        let client = host.connect();
        client.send(said);
        // A fatal alert: `decode_error`.
        assert_eq!(client.rest(), [0x15, 3, 3, 0, 2, 2, 50]);
        host.line("reason=\"tls-handshake\"");
    }
}

/// A record with content that nobody has encrypted.
const BROKEN: &[u8] = b"\x17\x03\x03\x00\x20AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[test]
fn a_peer_that_breaks_tls_is_told_from_one_that_vanishes() {
    let (authority, _, host) = served("breaks", "echo", &[]);
    let mut client = authority.client().connects(&host).unwrap();
    // The host has seen the end of the handshake by then.
    echo(&mut client, b"hello");
    client.conn.writer().write_all(&[b'a'; 12_000]).unwrap();
    let mut bytes = Vec::new();
    while client.conn.wants_write() {
        client.conn.write_tls(&mut bytes).unwrap();
    }
    bytes.extend(BROKEN);
    client.sock.write_all(&bytes).unwrap();
    let line = host.line("connection ended");
    assert_eq!(field(&line, "outcome"), "peer-lost", "{line}");
    assert_eq!(field(&line, "reason"), "Protocol", "{line}");
    assert_eq!(field(&line, "bytes_in"), "12005", "{line}");
}

/// Sends `updates` of the keys and then `content`, and reads the answer of an echo guest if it
/// should be `answered`.
fn update_keys(client: &mut TlsClient, updates: u32, content: &[u8], answered: bool) -> io::Result<()> {
    for _ in 0..updates {
        client.conn.refresh_traffic_keys().unwrap();
    }
    client.write_all(content)?;
    if answered {
        let mut answer = vec![0; content.len()];
        client.read_exact(&mut answer)?;
        assert!(answer == content);
    }
    Ok(())
}

#[test]
fn a_client_that_sends_records_without_content_is_ended() {
    let (authority, _, host) = served("updates", "echo", &[]);
    let connects = || {
        let client = ClientBuilder {
            versions: NEWER,
            ..authority.client()
        };
        client.connects(&host).unwrap()
    };
    // rustls refuses more than 32 updates in a row. The host ends the connection while the client sends.
    let mut client = connects();
    let _ = (0..200).try_for_each(|_| update_keys(&mut client, 30, b"x", false));
    let line = host.line("connection ended");
    assert_eq!(field(&line, "outcome"), "peer-lost", "{line}");
    assert_eq!(field(&line, "reason"), "Protocol", "{line}");
    // As many updates between content are not too many.
    let mut client = connects();
    for _ in 0..100 {
        update_keys(&mut client, 30, &[b'x'; 100], true).unwrap();
    }
    finish(&mut client);
    assert_eq!(rest(&mut client), "");
    assert_eq!(host.outcome(), "finished");
}

#[test]
fn a_peer_that_sends_an_alert_resets() {
    let (authority, _, host) = served("aborts", "echo", &[]);
    // The client takes the record for one of the host, and sends an alert about it.
    let mut client = authority.client().connects(&host).unwrap();
    echo(&mut client, b"hello");
    client.conn.read_tls(&mut &*BROKEN).unwrap();
    client.conn.process_new_packets().unwrap_err();
    while client.conn.wants_write() {
        client.conn.write_tls(&mut client.sock).unwrap();
    }
    assert_eq!(host.outcome(), "peer-reset");
}

#[test]
fn what_came_before_a_reset_is_heard_although_a_write_meets_the_reset_first() {
    for isolation in ["connection", "service"] {
        let middleware = guest("line-limit").display().to_string();
        let args = [
            "--env",
            "ANSWER=between",
            "--isolation",
            isolation,
            "--middleware",
            &middleware,
        ];
        let (authority, _, host) = served(&format!("reset-{isolation}"), "upload", &args);
        for whole in [false, true] {
            let mut client = authority.client().connects(&host).unwrap();
            host.pause();
            client.write_all(&b"123456789\n".repeat(4000)).unwrap();
            if whole {
                client.conn.send_close_notify();
                client.conn.write_tls(&mut client.sock).unwrap();
            }
            Client(client.sock).reset();
            host.signal(CONT);
            let lines = [(); 2].map(|()| host.line_of(&["guest output", "connection ended"]));
            let has = |text: &str| lines.iter().any(|line| line.contains(text));
            let end = if whole {
                "Ok(())"
            } else {
                "Err(ErrorCode::ConnectionReset)"
            };
            assert!(has(&format!("\"40000 bytes, {end}\"")), "{isolation}: {lines:?}");
            assert!(has("outcome=\"peer-reset\""), "{isolation}: {lines:?}");
        }
    }
}

#[test]
fn a_peer_may_break_tls_after_the_guest_has_ended() {
    for (guest, args, outcome) in [
        ("daytime", &[][..], "finished"),
        ("whoami", &[], "finished"),
        ("upload", &["--env", "ANSWER=first"], "peer-lost"),
    ] {
        let (authority, _, host) = served(&format!("after-{guest}"), guest, args);
        for raw in [BROKEN, b"GET / HTTP/1.1\r\n\r\n"] {
            let mut client = authority.client().connects(&host).unwrap();
            assert!(!rest(&mut client).is_empty());
            client.sock.write_all(raw).unwrap();
            client.sock.shutdown(Shutdown::Write).unwrap();
            assert_eq!(host.outcome(), outcome, "{guest}");
        }
        assert!(!host.log().contains("panic"), "{}", host.log());
    }
}

#[test]
fn a_refused_client_that_writes_on_reads_its_alert() {
    let clients = Authority::new("writes-on-clients");
    let roots = clients.file();
    let mallory = Authority::new("writes-on-others").issues(&["mallory"], &[]);
    let args = ["--tls-client-ca", roots.to_str().unwrap()];
    let (authority, _, host) = served("writes-on", "echo", &args);
    for (identity, expected) in [
        (None, AlertDescription::CertificateRequired),
        (Some(mallory), AlertDescription::UnknownCA),
    ] {
        for (count, size) in [(3, 100), (1, 1 << 20)] {
            let client = ClientBuilder {
                identity: identity.clone(),
                versions: NEWER,
                ..authority.client()
            };
            let mut client = client.connects(&host).unwrap();
            host.line("reason=\"tls-handshake\"");
            for _ in 0..count {
                client.write_all(&noise(19, size)).unwrap();
            }
            let error = client.read_to_end(&mut Vec::new()).unwrap_err();
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
            let expected = rustls::Error::AlertReceived(expected);
            assert_eq!(cause, Some(&expected), "{error:?}");
        }
    }
}

#[test]
fn a_refused_client_keeps_its_permit_no_longer_than_a_handshake_may_take() {
    let args = ["--max-connections", "1", "--tls-timeout", "1s"];
    let (authority, _, host) = served("refused-stays", "echo", &args);
    let before = host.entries("fd");
    let client = host.connect();
    client.send("this is no TLS\n");
    host.line("reason=\"tls-handshake\"");
    // It neither reads nor ends, and the next is served.
    echo(&mut authority.client().connects(&host).unwrap(), b"hello");
    until("the descriptors are back", || host.entries("fd") <= before);
    drop(client);
}

#[test]
fn records_that_were_damaged_leave_nothing_behind() {
    let (authority, _, host) = served("damaged", "echo", &["--tls-timeout", "5s", "-q"]);
    let client = authority.client();
    let mut hello = Vec::new();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(client.config(), name).unwrap();
    connection.write_tls(&mut hello).unwrap();
    echo(&mut client.connects(&host).unwrap(), b"hello");
    let before = host.entries("fd");
    for random in noise(13, 4 * 300).chunks_exact(4) {
        let mut bytes = hello.clone();
        for change in random.chunks_exact(2) {
            // Two of the first bytes, since those of keys may be any.
            bytes[usize::from(change[0]) % 80] = change[1];
        }
        let client = host.connect();
        let _ = (&client.0).write_all(&bytes);
        let _ = client.0.shutdown(Shutdown::Write);
        let _ = (&client.0).read_to_end(&mut Vec::new());
    }
    // And in the middle of a connection.
    for random in noise(17, 4 * 100).chunks_exact(4) {
        let mut client = client.connects(&host).unwrap();
        client.conn.writer().write_all(b"hello").unwrap();
        let mut bytes = Vec::new();
        client.conn.write_tls(&mut bytes).unwrap();
        for change in random.chunks_exact(2) {
            let place = usize::from(change[0]) % bytes.len();
            bytes[place] = change[1];
        }
        let _ = client.sock.write_all(&bytes);
        let _ = client.sock.shutdown(Shutdown::Write);
        let _ = client.sock.read_to_end(&mut Vec::new());
    }
    until("all descriptors are back", || host.entries("fd") <= before);
    echo(&mut client.connects(&host).unwrap(), b"hello");
    assert!(!host.log().contains("panic"), "{}", host.log());
}

#[test]
fn the_proxy_protocol_comes_before_tls() {
    let (authority, _, host) = served("proxy", "whoami", &["--proxy-protocol-from", "127.0.0.1"]);
    let client = host.connect();
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 49152 443\r\n");
    let said = rest(&mut authority.client().over(client.0, "localhost").unwrap());
    assert!(
        said.starts_with("remote 192.0.2.7:49152\nlocal 192.0.2.1:443\n"),
        "{said}"
    );
    assert!(said.contains("version TLSv1.3"), "{said}");
}

#[test]
fn recorded_conversations_are_plain() {
    let authority = Authority::new("recorded");
    let issued = authority.issues(&["localhost"], &[]);
    let dir = scratch("tls-recorded-talks");
    let args = [
        "record",
        "--to",
        dir.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--tls-certificate",
        issued.certificate.to_str().unwrap(),
        "--tls-key",
        issued.key.to_str().unwrap(),
    ];
    let mut host = Host::start(&args);
    let mut client = authority.client().connects(&host).unwrap();
    echo(&mut client, b"hello\n");
    finish(&mut client);
    assert_eq!(rest(&mut client), "");
    assert!(host.stop().success());
    let said = fs::read_to_string(dir.join("00000001.conversation")).unwrap();
    assert!(
        said.contains("> \"hello\\n\"\n< \"hello\\n\"\n> end\n< end\n"),
        "{said}"
    );
}

/// Has a client of others say a line, and gives what it hears.
fn hears(command: &mut Command) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn s_client_is_served() {
    let Some(openssl) = tools::tool("openssl") else {
        return;
    };
    let clients = Authority::new("s-client-clients");
    let alice = clients.issues(&["alice"], &[(DnType::CommonName, "alice")]);
    let roots = clients.file();
    let args = [
        "--tls-client-ca",
        roots.to_str().unwrap(),
        "--tls-alpn",
        "upper/1",
    ];
    let (authority, _, host) = served("s-client", "whoami", &args);
    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = Command::new(&openssl);
        command
            .args([
                "s_client",
                "-quiet",
                "-verify_return_error",
                "-servername",
                "localhost",
            ])
            .args([
                "-alpn",
                "upper/1",
                "-verify_hostname",
                "localhost",
                version,
                "-connect",
            ])
            .arg(host.address().to_string())
            .arg("-CAfile")
            .arg(authority.file());
        let said = hears(
            command
                .arg("-cert")
                .arg(&alice.certificate)
                .arg("-key")
                .arg(&alice.key),
        );
        assert!(
            said.ends_with("server-name localhost\nprotocol upper/1\nsubject CN=alice\n"),
            "{version}: {said}"
        );
        assert_eq!(host.outcome(), "finished");
    }
    // By a version that is not spoken any more.
    let status = Command::new(&openssl)
        .args(["s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect"])
        .arg(host.address().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
    host.line("reason=\"tls-handshake\"");
}

#[test]
fn socat_is_served() {
    let Some(socat) = tools::tool("socat") else {
        return;
    };
    let dir = scratch("tls-socat-socket");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s");
    let listen = format!("unix:{}", path.display());
    let (authority, _, host) = served("socat", "upper", &["--listen", &listen]);
    let roots = authority.file();
    let address = format!(
        "OPENSSL:{},cafile={},commonname=localhost",
        host.address(),
        roots.display()
    );
    let said = hears(Command::new(&socat).args(["-t", "60", "-", &address]));
    assert_eq!(said, "HELLO\n");
    assert_eq!(field(&host.line("connection ended"), "outcome"), "finished");
    // Over a socket of the file system too.
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut client = authority.client().over(stream, "localhost").unwrap();
    client.write_all(b"hello\n").unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HELLO\n");
}
