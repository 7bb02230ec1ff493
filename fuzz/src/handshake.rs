//! A connection by TLS whose records are damaged on the way.

use std::fs;
use std::io::{self, Write as _};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use host::config::{Identity, Tls};
use host::socket::Stream;
use host::tls::{Server, Turns};
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// Far longer than a handshake takes.
const HANG: Duration = Duration::from_secs(120);

/// What a client says once they have agreed.
const SAID: &[u8] = b"hello";

#[derive(Debug)]
struct Case {
    older: bool,
    /// Bytes that are set, by their places in all that the client sends, of the beginning of which most is made.
    damage: Vec<(u8, bool, u8)>,
    /// How much is sent before the end, if not all.
    cut: Option<u16>,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            older: u.arbitrary()?,
            damage: u.arbitrary()?,
            cut: u.arbitrary()?,
        })
    }
}

struct Served {
    runtime: Runtime,
    server: Arc<Server>,
    older: Arc<ClientConfig>,
    newer: Arc<ClientConfig>,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let dir = std::env::temp_dir().join(format!("wasm-inetd-handshake-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let identity = Identity {
        certificate: dir.join("crt"),
        key: dir.join("key"),
    };
    fs::write(&identity.certificate, certificate.pem()).unwrap();
    fs::write(&identity.key, key.serialize_pem()).unwrap();
    let config = Tls {
        identities: vec![identity],
        alpn: Vec::new(),
        clients: None,
        timeout: HANG,
    };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(async { Server::new(&config, "fuzz").unwrap() });
    fs::remove_dir_all(dir).unwrap();
    let client = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    };
    Served {
        runtime,
        server,
        older: client(&[&rustls::version::TLS12]),
        newer: client(&[&rustls::version::TLS13]),
    }
});

/// Makes a case of any bytes, and connects as it says.
pub fn run(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let served = &*SERVED;
    let config = if case.older { &served.older } else { &served.newer };
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    served.runtime.block_on(async {
        let (near, far) = UnixStream::pair().unwrap();
        let both = async { tokio::join!(serve(&served.server, near), client(connection, far, &case)) };
        let (heard, sent_as_it_was) = timeout(HANG, both)
            .await
            .unwrap_or_else(|_| panic!("{case:?} hangs"));
        match heard {
            // Where the end is in good order, all before it is as it was said. (Not every byte of a record means something.)
            Ok(heard) => assert_eq!(heard, SAID, "{case:?}"),
            Err(error) => assert!(!sent_as_it_was, "{case:?}: {error}"),
        }
    });
}

/// Agrees with a client, and reads what it says until it ends in good order.
async fn serve(server: &Server, stream: UnixStream) -> io::Result<Vec<u8>> {
    let (mut reader, mut writer, _) = server
        .handshake(Stream::Unix(stream), &Turns::new(1))
        .await
        .map_err(|(error, _)| error)?;
    let mut heard = Vec::new();
    reader.read_to_end(&mut heard).await?;
    writer.shutdown().await?;
    Ok(heard)
}

/// Connects, says something and ends, with what it sends damaged. Says whether it was sent as it was.
async fn client(mut connection: ClientConnection, mut stream: UnixStream, case: &Case) -> bool {
    let (mut sent, mut as_it_was, mut said) = (0, true, false);
    loop {
        if !connection.is_handshaking() && !said {
            connection.writer().write_all(SAID).unwrap();
            connection.send_close_notify();
            said = true;
        }
        let mut bytes = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut bytes).unwrap();
        }
        for (place, far, byte) in &case.damage {
            let place = usize::from(*place) + if *far { 230 } else { 0 };
            if let Some(there) = place.checked_sub(sent).and_then(|place| bytes.get_mut(place)) {
                as_it_was &= there == byte;
                *there = *byte;
            }
        }
        let cut = case
            .cut
            .map_or(usize::MAX, |cut| usize::from(cut) % 1000)
            .saturating_sub(sent);
        if cut < bytes.len() {
            bytes.truncate(cut);
            as_it_was = false;
        }
        sent += bytes.len();
        // The server may have gone. One that was sent something else may wait for more of it, which is for a deadline to end.
        if stream.write_all(&bytes).await.is_err() || said || !as_it_was {
            break;
        }
        let mut answer = vec![0; 16 << 10];
        match stream.read(&mut answer).await {
            Ok(count) if count > 0 => {
                let mut answer = &answer[..count];
                while !answer.is_empty() {
                    if connection.read_tls(&mut answer).is_err() || connection.process_new_packets().is_err()
                    {
                        break;
                    }
                }
            }
            _ => break,
        }
    }
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    as_it_was
}
