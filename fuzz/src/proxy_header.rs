//! A header of the PROXY protocol, damaged or whole, as it comes in pieces.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use arbitrary::{Arbitrary, Unstructured};
use host::proxy_protocol::{self, Client};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::Builder;

/// What the two versions begin with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LINE: &[u8] = b"PROXY ";

/// Bytes of the longest header that is taken.
const MAX: usize = 4096;

#[derive(Debug)]
struct Case {
    header: Header,
    source: SocketAddr,
    destination: SocketAddr,
    /// Bytes that are set, by their places.
    damage: Vec<(u16, u8)>,
    /// How much of it comes, if not all.
    cut: Option<u16>,
    /// What follows it.
    rest: Vec<u8>,
    /// How many bytes come at once, over and over.
    pieces: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    One,
    Two,
    /// With so many bytes more in a value that says so.
    TwoWithValue(u16),
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let header = match u.int_in_range(0..=2)? {
            0 => Header::One,
            1 => Header::Two,
            _ => Header::TwoWithValue(u.int_in_range(0..=5000)?),
        };
        let (source, destination): (IpAddr, IpAddr) = if u.arbitrary()? {
            (u.arbitrary::<[u8; 4]>()?.into(), u.arbitrary::<[u8; 4]>()?.into())
        } else {
            (
                u.arbitrary::<[u8; 16]>()?.into(),
                u.arbitrary::<[u8; 16]>()?.into(),
            )
        };
        Ok(Self {
            header,
            source: (source, u.arbitrary()?).into(),
            destination: (destination, u.arbitrary()?).into(),
            damage: u.arbitrary()?,
            cut: u.arbitrary()?,
            pieces: u.arbitrary()?,
            rest: u.arbitrary()?,
        })
    }
}

impl Case {
    fn header(&self) -> Vec<u8> {
        let ends = [self.source, self.destination];
        if self.header == Header::One {
            let kind = if self.source.is_ipv4() { 4 } else { 6 };
            let [source, destination] = ends;
            return format!(
                "PROXY TCP{kind} {} {} {} {}\r\n",
                source.ip(),
                destination.ip(),
                source.port(),
                destination.port()
            )
            .into_bytes();
        }
        let mut behind = Vec::new();
        for end in ends {
            match end.ip() {
                IpAddr::V4(v4) => behind.extend(v4.octets()),
                IpAddr::V6(v6) => behind.extend(v6.octets()),
            }
        }
        behind.extend(ends.iter().flat_map(|end| end.port().to_be_bytes()));
        if let Header::TwoWithValue(count) = self.header {
            behind.push(0xe0);
            behind.extend(count.to_be_bytes());
            behind.resize(behind.len() + usize::from(count), b'v');
        }
        let kind = if self.source.is_ipv4() { 0x11 } else { 0x21 };
        let length = u16::try_from(behind.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x21, kind], &length, &behind].concat()
    }
}

/// Makes a case of any bytes, and reads its header.
pub fn run(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let whole = case.header();
    let mut header = whole.clone();
    for (place, byte) in &case.damage {
        let place = usize::from(*place) % header.len();
        header[place] = *byte;
    }
    let is_damaged = header != whole;
    if let Some(cut) = case.cut {
        header.truncate(usize::from(cut) % (header.len() + 1));
    }
    let is_cut = header.len() < whole.len();
    let input = [header.as_slice(), &case.rest].concat();
    let runtime = Builder::new_current_thread().build().unwrap();
    let mut reader = Pieces::new(&input, &case.pieces);
    let read = runtime.block_on(proxy_protocol::read(&mut reader));
    let taken = input.len() - reader.left.len();

    // However it comes, it comes to the same.
    let mut other = Pieces::new(&input, &[]);
    let again = runtime.block_on(proxy_protocol::read(&mut other));
    assert_eq!(read.as_ref().ok(), again.as_ref().ok(), "{case:?}");
    // The block of a header `LOCAL` is dropped as it comes.
    let is_local = input.starts_with(SIGNATURE) && input.get(SIGNATURE.len()) == Some(&0x20);
    assert!(taken <= MAX || is_local, "{case:?}: {taken}");
    match read {
        Ok(client) => {
            assert_eq!(reader.left, other.left, "{case:?}");
            // What was taken is one header, and no byte of it could have been left.
            assert_eq!(
                proxy_protocol::parse(&input[..taken]).unwrap(),
                client,
                "{case:?}"
            );
            assert!(proxy_protocol::parse(&input[..taken - 1]).is_err(), "{case:?}");
            assert!(
                input.starts_with(SIGNATURE) || input.starts_with(LINE),
                "{case:?}"
            );
            if !is_damaged && !is_cut {
                let expected = Client::At {
                    source: case.source,
                    destination: case.destination,
                };
                assert_eq!((client, taken), (expected, whole.len()), "{case:?}");
            }
        }
        Err(refusal) => assert!(is_damaged || is_cut || whole.len() > MAX, "{case:?}: {refusal}"),
    }
}

/// Bytes that come in pieces, and an end.
struct Pieces<'a> {
    left: &'a [u8],
    pieces: std::iter::Cycle<std::slice::Iter<'a, u8>>,
}

impl<'a> Pieces<'a> {
    fn new(left: &'a [u8], pieces: &'a [u8]) -> Self {
        Self {
            left,
            pieces: pieces.iter().cycle(),
        }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let piece = self
            .pieces
            .next()
            .map_or(usize::MAX, |piece| usize::from(*piece) + 1);
        let count = self.left.len().min(buffer.remaining()).min(piece);
        let (now, left) = self.left.split_at(count);
        buffer.put_slice(now);
        self.left = left;
        Poll::Ready(Ok(()))
    }
}
