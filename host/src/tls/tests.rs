use std::fs;
use std::future::poll_fn;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::yield_now;
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::Identity;

/// A directory of its own, which goes with it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wasm-inetd-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A certificate for some names, which no other has signed.
fn identity(dir: &Path, names: &[&str]) -> (Identity, CertificateDer<'static>) {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let stem = names[0].replace('*', "any");
    signed(dir, &stem, &CertificateParams::new(names).unwrap())
}

/// A certificate that no other has signed, in files whose names begin with `stem`.
fn signed(dir: &Path, stem: &str, params: &CertificateParams) -> (Identity, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let identity = Identity {
        certificate: dir.join(format!("{stem}.crt")),
        key: dir.join(format!("{stem}.key")),
    };
    fs::write(&identity.certificate, certificate.pem()).unwrap();
    fs::write(&identity.key, key.serialize_pem()).unwrap();
    (identity, certificate.der().clone())
}

fn config(identities: Vec<Identity>) -> Config {
    Config {
        identities,
        alpn: Vec::new(),
        clients: None,
        timeout: Duration::from_secs(60),
    }
}

fn server(identities: Vec<Identity>) -> Arc<Server> {
    Server::new(&config(identities), "test").unwrap()
}

type Client = tokio_rustls::client::TlsStream<UnixStream>;

/// Connects a client that trusts `roots` and asks for `name`; an address is not asked for.
async fn connect(
    server: &Server,
    roots: &[&CertificateDer<'static>],
    name: &str,
) -> (io::Result<Client>, io::Result<(Reader, Writer, peer::Tls)>) {
    let mut trusted = RootCertStore::empty();
    for root in roots {
        trusted.add((*root).clone()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let (near, far) = UnixStream::pair().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, far);
    let turns = Turns::new(1);
    let (client, served) = tokio::join!(connecting, server.handshake(Stream::Unix(near), &turns));
    (client, served.map_err(|(error, _)| error))
}

#[tokio::test]
async fn the_certificate_is_that_for_the_name() {
    let dir = Dir::new("names");
    let (first, first_root) = identity(&dir.0, &["first.example", "127.0.0.1"]);
    let (second, second_root) = identity(&dir.0, &["second.example", "also.example"]);
    let (any, any_root) = identity(&dir.0, &["*.any.example"]);
    let server = server(vec![first, second, any]);
    let roots = [&first_root, &second_root, &any_root];
    for (name, root) in [
        ("first.example", &first_root),
        ("second.example", &second_root),
        ("also.example", &second_root),
        ("SECOND.example", &second_root),
        ("one.any.example", &any_root),
        // Without a name to ask for.
        ("127.0.0.1", &first_root),
    ] {
        let (client, served) = connect(&server, &roots, name).await;
        let client = client.unwrap();
        assert_eq!(
            &client.get_ref().1.peer_certificates().unwrap()[0],
            root,
            "{name}"
        );
        let (_, _, said) = served.unwrap();
        let asked = (name != "127.0.0.1").then(|| name.to_lowercase());
        assert_eq!(said.server_name.map(|name| name.to_lowercase()), asked);
        assert_eq!(said.subject, None);
    }
    // None is for these, so that they are shown the first, which is not for them.
    for name in ["other.example", "any.example", "one.two.any.example"] {
        let (client, _) = connect(&server, &roots, name).await;
        let error = client.unwrap_err().to_string();
        assert!(error.contains("first.example"), "{name}: {error}");
    }
}

#[test]
fn certificates_that_no_client_gets_are_warned_of() {
    let dir = Dir::new("unnamed");
    let (address, _) = identity(&dir.0, &["127.0.0.1"]);
    let (named, _) = identity(&dir.0, &["127.0.0.2", "named.example"]);
    let (any, _) = identity(&dir.0, &["*.any.example"]);
    let (other, _) = identity(&dir.0, &["127.0.0.3"]);
    let config = Config {
        identities: vec![address, named, any, other],
        alpn: Vec::new(),
        clients: None,
        timeout: Duration::from_secs(60),
    };
    let read = identity::read(&config).unwrap();
    let [.., file] = &read.files[..] else { panic!() };
    let warnings: Vec<_> = read.files.iter().flat_map(|file| &file.warnings).collect();
    let [warning] = warnings[..] else {
        panic!("{warnings:?}")
    };
    assert!(warning.contains(&file.path.display().to_string()), "{warning}");
    assert!(warning.contains("has no DNS name"), "{warning}");
}

#[test]
fn certificates_whose_names_all_belong_to_earlier_ones_are_warned_of() {
    let dir = Dir::new("covered");
    for (number, (first, second, words)) in [
        (
            &["a.example"][..],
            &["A.example"][..],
            Some("all of its DNS names"),
        ),
        (
            &["*.example.org"],
            &["a.example.org", "b.example.org"],
            Some("all of its DNS names"),
        ),
        (
            &["*.example.org"],
            &["*.EXAMPLE.org"],
            Some("all of its DNS names"),
        ),
        (&["a.example.org"], &["*.example.org"], None),
        (&["a.example"], &["a.example", "b.example"], None),
        // A wildcard has to have two labels behind it.
        (
            &["a.example"],
            &["*.intern"],
            Some("has no DNS name that clients can match"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = dir.0.join(number.to_string());
        fs::create_dir(&dir).unwrap();
        let named = |stem, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            signed(&dir, stem, &CertificateParams::new(names).unwrap()).0
        };
        let config = Config {
            identities: vec![named("first", first), named("second", second)],
            alpn: Vec::new(),
            clients: None,
            timeout: Duration::from_secs(60),
        };
        let files = identity::read(&config).unwrap().files;
        let warnings: Vec<_> = files.iter().flat_map(|file| &file.warnings).collect();
        match (words, &warnings[..]) {
            (None, []) => {}
            (Some(words), [warning]) => {
                assert!(
                    warning.starts_with("no client gets the certificate in"),
                    "{warning}"
                );
                assert!(warning.contains(words) && warning.contains("second"), "{warning}");
            }
            (words, warnings) => panic!("{second:?} after {first:?}: {words:?}, {warnings:?}"),
        }
    }
}

#[test]
fn a_fault_has_the_key_of_the_file_to_change() {
    let dir = Dir::new("faults");
    let (issuer, _) = identity(&dir.0, &["issuer.example"]);
    let (unordered, _) = identity(&dir.0, &["unordered.example"]);
    let [first, second] =
        [&issuer, &unordered].map(|identity| fs::read_to_string(&identity.certificate).unwrap());
    fs::write(&unordered.certificate, first + &second).unwrap();
    let mut params = CertificateParams::new(["critical.example".to_owned()]).unwrap();
    let mut extension = rcgen::CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
    extension.set_criticality(true);
    params.custom_extensions = vec![extension];
    let (critical, _) = signed(&dir.0, "critical", &params);
    let (of_other, _) = identity(&dir.0, &["other.example"]);
    let mismatched = Identity {
        key: of_other.key,
        ..issuer.clone()
    };
    for (identity, expected, words) in [
        (unordered, "more[0].certificate", "move this certificate"),
        (critical, "more[0].certificate", "its critical extension"),
        (mismatched, "more[0].key", "does not belong to the certificate"),
    ] {
        let found = faults(&config(vec![issuer.clone(), identity]));
        let [(key, error)] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(key, expected, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// An expired certificate for some names, whose serial number has this size.
fn lenient(dir: &Path, names: &[&str], serial: usize) -> (Identity, CertificateDer<'static>) {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let stem = format!("{}-{serial}", names[0]);
    let mut params = CertificateParams::new(names).unwrap();
    params.serial_number = Some(vec![0x7f; serial].into());
    params.not_before = rcgen::date_time_ymd(2001, 1, 2);
    params.not_after = rcgen::date_time_ymd(2002, 1, 2);
    signed(dir, &stem, &params)
}

#[test]
fn certificates_that_do_not_follow_rfc_5280_are_warned_of_too() {
    let dir = Dir::new("lenient");
    // RFC 5280 permits 20 bytes.
    for serial in [20, 25] {
        let (first, der) = lenient(&dir.0, &["a.example"], serial);
        let (second, _) = lenient(&dir.0, &["127.0.0.1"], serial);
        let config = Config {
            identities: vec![first, second],
            alpn: Vec::new(),
            clients: None,
            timeout: Duration::from_secs(60),
        };
        let files = identity::read(&config).unwrap().files;
        let [first, second] = &files[..] else { panic!() };
        let [expired] = &first.warnings[..] else {
            panic!("{serial}: {:?}", first.warnings)
        };
        assert!(expired.contains("expired at 2002-01-02T00:00:00Z"), "{expired}");
        let [_, unnamed] = &second.warnings[..] else {
            panic!("{serial}: {:?}", second.warnings)
        };
        assert!(unnamed.contains("has no DNS name"), "{unnamed}");
        // There is no month 91.
        let mut der = der.to_vec();
        let end = b"020102000000Z";
        let at = der.windows(end.len()).position(|bytes| bytes == end).unwrap();
        der[at + 2] = b'9';
        let warning = identity::invalidity(&der, Path::new("a.crt"), 3).unwrap();
        let expected = "cannot read the validity of the certificate on line 3 of `a.crt`";
        assert!(warning.starts_with(expected), "{warning}");
    }
}

#[test]
fn a_message_about_a_key_does_not_look_for_it() {
    let dir = Dir::new("unread-key");
    let (identity, _) = identity(&dir.0, &["a.example"]);
    fs::remove_file(&identity.key).unwrap();
    let error = faults(&config(vec![identity.clone()])).remove(0).1;
    let named = error.to_string();
    assert!(named.contains(&identity.key.display().to_string()), "{named}");
    // Whoever looked for it now would not name it, since it might be the key itself.
    drop(dir);
    assert_eq!(error.to_string(), named);
}

#[tokio::test]
async fn what_was_written_arrives_whoever_waits() {
    let dir = Dir::new("flushed");
    let (one, root) = identity(&dir.0, &["one.example"]);
    let (client, served) = connect(&server(vec![one]), &[&root], "one.example").await;
    let (mut client, (reader, mut writer, _)) = (client.unwrap(), served.unwrap());
    // More than the socket takes, so that the last of it is taken by the half alone.
    let mut written = 0;
    let chunk = [b'x'; 10_000];
    while let Ok(count) = tokio::time::timeout(Duration::from_millis(200), writer.write(&chunk)).await {
        written += count.unwrap();
    }
    assert!(written > 0);
    // Nobody writes any more, and all of it comes.
    let mut heard = vec![0; written];
    client.read_exact(&mut heard).await.unwrap();
    assert!(heard.iter().all(|byte| *byte == b'x'));
    let mut end = [0];
    let (shut, read) = tokio::join!(writer.shutdown(), client.read(&mut end));
    shut.unwrap();
    assert_eq!(read.unwrap(), 0);
    drop(reader);
}

#[tokio::test]
async fn halves_that_are_dropped_leave_nothing_behind() {
    let dir = Dir::new("dropped");
    let (one, root) = identity(&dir.0, &["one.example"]);
    let (client, served) = connect(&server(vec![one]), &[&root], "one.example").await;
    let (mut client, (reader, mut writer, _)) = (client.unwrap(), served.unwrap());
    let chunk = [b'x'; 10_000];
    while tokio::time::timeout(Duration::from_millis(200), writer.write(&chunk))
        .await
        .is_ok()
    {}
    // What waits for the socket goes with them.
    writer.reset();
    drop((reader, writer));
    let cut = client.read_to_end(&mut Vec::new()).await;
    assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_peer_may_reset_after_its_last_message_of_the_handshake() {
    let dir = Dir::new("reset");
    let (one, root) = identity(&dir.0, &["one.example"]);
    let server = server(vec![one]);
    let mut trusted = RootCertStore::empty();
    trusted.add(root).unwrap();
    for is_complete in [true, false] {
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(trusted.clone())
            .with_no_client_auth();
        let name = ServerName::try_from("one.example").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (far, near) = (far.unwrap(), near.unwrap().0);
        let turns = Turns::new(1);
        let mut served = std::pin::pin!(server.handshake(Stream::Tcp(near), &turns));
        loop {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            if !is_complete && !client.is_handshaking() {
                // All but the last of it.
                bytes.pop();
            }
            assert_eq!(far.try_write(&bytes).unwrap(), bytes.len());
            if !client.is_handshaking() {
                break;
            }
            tokio::select! {
                _ = &mut served => panic!("the handshake ended"),
                readable = far.readable() => readable.unwrap(),
            }
            let mut bytes = [0; 4096];
            if let Ok(count) = far.try_read(&mut bytes) {
                client.read_tls(&mut &bytes[..count]).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        // The server finds the last message and the reset together.
        SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        let served = served.await;
        if is_complete {
            let (mut reader, _writer, _) = served.unwrap();
            let error = reader.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        } else {
            assert_eq!(served.unwrap_err().0.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}

/// A record with content that nobody has encrypted.
const BROKEN: &[u8] = b"\x17\x03\x03\x00\x20AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Writes `plain`, encrypted by `client`, and `raw` behind it at once.
async fn write_with(client: &mut Client, plain: &[u8], raw: &[u8]) {
    let (socket, connection) = client.get_mut();
    connection.writer().write_all(plain).unwrap();
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes.extend(raw);
    socket.write_all(&bytes).await.unwrap();
}

#[tokio::test]
async fn content_before_a_broken_record_is_read_first() {
    let dir = Dir::new("broken");
    let (one, root) = identity(&dir.0, &["one.example"]);
    let server = server(vec![one]);
    for raw in [BROKEN, b"GET / HTTP/1.1\r\n\r\n"] {
        let (client, served) = connect(&server, &[&root], "one.example").await;
        let (mut client, (mut reader, _writer, _)) = (client.unwrap(), served.unwrap());
        write_with(&mut client, b"hello", raw).await;
        let mut content: Vec<u8> = Vec::new();
        let error = loop {
            let mut some = [0; 3];
            match reader.read(&mut some).await {
                Ok(0) => panic!("the end was read"),
                Ok(count) => content.extend(&some[..count]),
                Err(error) => break error,
            }
        };
        assert_eq!(content, b"hello");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

/// Writes rounds of 30 updates of the keys and a byte of content.
async fn write_updates(client: &mut Client, rounds: usize) {
    for _ in 0..rounds {
        for _ in 0..30 {
            client.get_mut().1.refresh_traffic_keys().unwrap();
        }
        write_with(client, b"x", b"").await;
    }
}

#[tokio::test]
async fn records_without_content_give_others_their_turn_until_there_are_too_many() {
    let dir = Dir::new("updates");
    let (one, root) = identity(&dir.0, &["one.example"]);
    let (client, served) = connect(&server(vec![one]), &[&root], "one.example").await;
    let (mut client, (mut reader, _writer, _)) = (client.unwrap(), served.unwrap());
    write_updates(&mut client, 30).await;
    let (mut content, mut pauses) = (0, 0);
    while content < 30 {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        match poll_fn(|cx| Poll::Ready(Pin::new(&mut reader).poll_read(cx, &mut buffer))).await {
            Poll::Ready(read) => {
                read.unwrap();
                content += buffer.filled().len();
            }
            Poll::Pending => {
                pauses += 1;
                yield_now().await;
            }
        }
    }
    // The runtime may take a turn to find that the socket is readable.
    assert!(pauses > 3, "{pauses}");
    write_updates(&mut client, 30).await;
    let error = reader.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("records more than"), "{error}");
}

#[tokio::test]
async fn a_peer_may_break_tls_after_close_notify() {
    let dir = Dir::new("after");
    let (one, root) = identity(&dir.0, &["one.example"]);
    let server = server(vec![one]);
    for (plain, raw) in [
        (&b""[..], BROKEN),
        (b"hello", BROKEN),
        (b"", b"GET / HTTP/1.1\r\n\r\n"),
    ] {
        let (client, served) = connect(&server, &[&root], "one.example").await;
        let (mut client, (mut reader, mut writer, _)) = (client.unwrap(), served.unwrap());
        writer.shutdown().await.unwrap();
        write_with(&mut client, plain, raw).await;
        let mut content = Vec::new();
        let error = reader.read_to_end(&mut content).await.unwrap_err();
        assert_eq!(content, plain);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        // Nothing follows `close_notify`.
        drop((reader, writer));
        assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    }
}
