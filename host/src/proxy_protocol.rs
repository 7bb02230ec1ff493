//! The PROXY protocol, by which a balancer says for whom it connects, in a header before all else
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that a header with addresses may have. One of version 1 has 107 at most, one of version 2
/// could have 65,551; balancers send some hundreds, with what they know of the client's
/// certificate.
const MAX: usize = 4096;

/// The longest header of version 1.
const MAX_V1: usize = 107;

/// What a header of version 1 begins with.
const PREFIX: &[u8] = b"PROXY ";

/// The shortest headers of version 1: in all, and of either kind of address.
const SHORTEST: usize = b"PROXY UNKNOWN\r\n".len();
const SHORTEST_TCP4: usize = b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".len();
const SHORTEST_TCP6: usize = b"PROXY TCP6 :: :: 0 0\r\n".len();

/// What a header of version 1 begins with whose sender knows no addresses.
const UNKNOWN: &[u8] = b"PROXY UNKNOWN";

/// What ends a header of version 1.
const END: &[u8] = b"\r\n";

/// Bytes of a header of version 2 before its addresses, the last two of which say how many there are behind them.
const FIXED: usize = 16;

/// The byte of version and command in a header of version 2, and its value for version 2, `LOCAL`.
const COMMAND: usize = 12;
const LOCAL: u8 = 0x20;

/// For whom a balancer connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// For this one, which has reached that address.
    At {
        /// The client.
        source: SocketAddr,
        /// What it has reached.
        destination: SocketAddr,
    },
    /// For itself, as to see whether the service is alive, or for one of which it cannot tell an address of TCP.
    Unknown,
}

/// Why a header is refused.
#[derive(Debug, Error)]
pub enum Refusal {
    /// It is no header.
    #[error("the connection does not begin with a PROXY protocol header")]
    Malformed,
    /// A header of version 1 that says what cannot be.
    #[error("malformed PROXY protocol header, version 1: {0}")]
    V1(v1::BinaryParseError),
    /// A header of version 1 has a port with a sign.
    #[error("malformed PROXY protocol header, version 1: a port is not a decimal number")]
    Port,
    /// A header of version 2 that says what cannot be.
    #[error("malformed PROXY protocol header, version 2: {0}")]
    V2(v2::ParseError),
    /// It has more bytes than a header may have.
    #[error("the PROXY protocol header has {0} bytes; the limit is {MAX}")]
    TooLong(usize),
    /// The peer was gone before its end.
    #[error("the connection ended before the PROXY protocol header was complete: {0}")]
    Lost(#[from] io::Error),
}

/// Reads a header, and no byte beyond it.
///
/// # Errors
///
/// There is none, or it is malformed or cut off.
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Client, Refusal> {
    let mut header = Vec::with_capacity(MAX_V1);
    loop {
        if header.len() == FIXED && is_local(&header) {
            // Its block can have 65,535 bytes, and says nothing.
            let block = block(&header).unwrap_or_default() as u64;
            let mut discarded = (&mut *reader).take(block);
            if tokio::io::copy(&mut discarded, &mut tokio::io::sink()).await? < block {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            return Ok(Client::Unknown);
        }
        let wanted = wanted(&header)?;
        if wanted == 0 {
            return parse(&header);
        }
        let mut limited = (&mut *reader).take(wanted as u64);
        if limited.read_buf(&mut header).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// How many more bytes surely belong to the header that begins like this; none if it is whole. A header of version 1 ends
/// with its line, so that only what its shortest form must still have can be taken without looking.
///
/// # Errors
///
/// It cannot become a header.
pub fn wanted(header: &[u8]) -> Result<usize, Refusal> {
    let begins = |with: &[u8]| {
        let length = header.len().min(with.len());
        header[..length] == with[..length]
    };
    if begins(v2::PROTOCOL_PREFIX) {
        let length = FIXED + block(header).unwrap_or_default();
        if length > MAX && !is_local(header) {
            return Err(Refusal::TooLong(length));
        }
        // Of an empty one it is not known yet which version it has.
        let length = if header.is_empty() { SHORTEST } else { length };
        return Ok(length.saturating_sub(header.len()));
    }
    if !begins(PREFIX) {
        return Err(Refusal::Malformed);
    }
    // The rest of the line is ignored, whatever bytes it has (section 2.1).
    let unknown = is_unknown(header);
    if header.ends_with(if unknown { END } else { b"\n" }) {
        return Ok(0);
    }
    // A line that ends before its shortest form does is found to be malformed when it is parsed.
    if header.len() >= MAX_V1 || !unknown && header.contains(&b'\n') {
        return Err(Refusal::Malformed);
    }
    let shortest = match header.get(PREFIX.len()..SHORTEST) {
        None => SHORTEST,
        Some(kind) if kind.starts_with(b"TCP4 ") => SHORTEST_TCP4,
        Some(kind) if kind.starts_with(b"TCP6 ") => SHORTEST_TCP6,
        Some(kind) if kind.starts_with(b"UNKNOWN") => SHORTEST,
        Some(_) => return Err(Refusal::Malformed),
    };
    let end = if header.ends_with(b"\r") { 1 } else { 2 };
    Ok(shortest
        .saturating_sub(header.len())
        .max(end)
        .min(MAX_V1 - header.len()))
}

/// The length of the block of addresses in a header of version 2, once it has come.
fn block(header: &[u8]) -> Option<usize> {
    let length = header.get(FIXED - 2..FIXED)?;
    Some(length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

/// Checks whether a header of version 2 is of a connection that the balancer makes for itself.
fn is_local(header: &[u8]) -> bool {
    header.starts_with(v2::PROTOCOL_PREFIX) && header.get(COMMAND) == Some(&LOCAL)
}

/// Checks whether a header of version 1 says that it has no addresses.
fn is_unknown(header: &[u8]) -> bool {
    header
        .strip_prefix(UNKNOWN)
        .is_some_and(|rest| rest.first().is_none_or(|byte| matches!(byte, b' ' | b'\r')))
}

/// What a header says.
///
/// # Errors
///
/// It is malformed, or not one header from its beginning to its end.
pub fn parse(header: &[u8]) -> Result<Client, Refusal> {
    if !header.starts_with(v2::PROTOCOL_PREFIX) {
        if is_unknown(header) {
            // The first end of a line is that of the header.
            let end = header.windows(END.len()).position(|bytes| bytes == END);
            return match end {
                Some(end) if end + END.len() == header.len() => Ok(Client::Unknown),
                _ => Err(Refusal::Malformed),
            };
        }
        // The parser of the library accepts a sign.
        if header.contains(&b'+') {
            return Err(Refusal::Port);
        }
        let parsed = v1::Header::try_from(header).map_err(Refusal::V1)?;
        // The parser of the library accepts a space in the place of the carriage return.
        if parsed.header.len() != header.len() || !header.ends_with(END) {
            return Err(Refusal::Malformed);
        }
        return Ok(match parsed.addresses {
            v1::Addresses::Tcp4(ends) => at(
                (ends.source_address, ends.source_port),
                (ends.destination_address, ends.destination_port),
            ),
            v1::Addresses::Tcp6(ends) => at(
                (ends.source_address, ends.source_port),
                (ends.destination_address, ends.destination_port),
            ),
            v1::Addresses::Unknown => Client::Unknown,
        });
    }
    // The receiver discards the block of addresses, its family included (section 2.2).
    if is_local(header) {
        return match wanted(header)? {
            0 if header.len() == FIXED + block(header).unwrap_or_default() => Ok(Client::Unknown),
            _ => Err(Refusal::Malformed),
        };
    }
    let parsed = v2::Header::try_from(header).map_err(Refusal::V2)?;
    if parsed.len() != header.len() {
        return Err(Refusal::Malformed);
    }
    for value in parsed.tlvs() {
        value.map_err(Refusal::V2)?;
    }
    Ok(match (parsed.command, parsed.protocol, parsed.addresses) {
        (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv4(ends)) => at(
            (ends.source_address, ends.source_port),
            (ends.destination_address, ends.destination_port),
        ),
        (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv6(ends)) => at(
            (ends.source_address, ends.source_port),
            (ends.destination_address, ends.destination_port),
        ),
        _ => Client::Unknown,
    })
}

fn at(source: impl Into<SocketAddr>, destination: impl Into<SocketAddr>) -> Client {
    Client::At {
        source: source.into(),
        destination: destination.into(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x01\xc0\x00\x1f\x90";

    fn client() -> Client {
        at(([192, 0, 2, 7], 49152), ([192, 0, 2, 1], 8080))
    }

    /// What comes of bytes, and what is left of them.
    async fn reads(bytes: &[u8]) -> (Result<Client, Refusal>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(128 << 10);
        far.write_all(bytes).await.unwrap();
        drop(far);
        let read = read(&mut near).await;
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        (read, rest)
    }

    #[tokio::test]
    async fn a_header_is_read_and_no_byte_beyond_it() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1 - SHORTEST - 1));
        let six = at(
            ("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap(), 1),
            ("::1".parse::<std::net::Ipv6Addr>().unwrap(), 65535),
        );
        let local = |family, block: &[u8]| [&V2[..12], &[0x20, family, 0, block.len() as u8], block].concat();
        let with_values = [&V2[..15], b"\x10", &V2[16..], b"\x04\x00\x01x"].concat();
        for (header, expected) in [
            (&b"PROXY TCP4 192.0.2.7 192.0.2.1 49152 8080\r\n"[..], client()),
            (
                b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n",
                at(([0; 4], 0), ([0; 4], 0)),
            ),
            (b"PROXY TCP6 2001:db8::7 ::1 1 65535\r\n", six),
            (b"PROXY UNKNOWN\r\n", Client::Unknown),
            (longest.as_bytes(), Client::Unknown),
            (b"PROXY UNKNOWN \xff\xfe\0\n\r +1\r\n", Client::Unknown),
            (b"PROXY UNKNOWN \r\r\n", Client::Unknown),
            (V2, client()),
            (&local(0x00, b""), Client::Unknown),
            (&local(0x11, b""), Client::Unknown),
            (&local(0x21, b"short"), Client::Unknown),
            (&local(0x31, b""), Client::Unknown),
            (&local(0x7f, b"unassigned"), Client::Unknown),
            (&local(0x11, b"192.0.2.1..\xff\xff\xff"), Client::Unknown),
            (&with_values, client()),
        ] {
            let text = header.escape_ascii();
            let (read, rest) = reads(&[header, b"\r\nrest"].concat()).await;
            assert_eq!(read.unwrap(), expected, "{text}");
            assert_eq!(rest, b"\r\nrest", "{text}");
            // Cut off anywhere, it is none.
            for length in 0..header.len() {
                let (read, _) = reads(&header[..length]).await;
                assert!(
                    matches!(read, Err(Refusal::Lost(_))),
                    "{length} of {text}: {read:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn the_block_of_a_local_header_is_dropped_whatever_its_length() {
        for length in [MAX - FIXED, MAX - FIXED + 1, 5000, 65_535] {
            let fixed = [&V2[..12], &[0x20, 0x11], &(length as u16).to_be_bytes()].concat();
            let header = [fixed, vec![b'x'; length]].concat();
            let (read, rest) = reads(&[&header, &b"rest"[..]].concat()).await;
            assert_eq!(read.unwrap(), Client::Unknown, "{length}");
            assert_eq!(rest, b"rest", "{length}");
            assert_eq!(parse(&header).unwrap(), Client::Unknown, "{length}");
            let (read, _) = reads(&header[..header.len() - 1]).await;
            assert!(matches!(read, Err(Refusal::Lost(_))), "{length}: {read:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_without_waiting_for_more() {
        let long = "x".repeat(200);
        for bytes in [
            "hello\n".to_owned(),
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            "PROXY\r\n".to_owned(),
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 1\r\n".to_owned(),
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n".to_owned(),
            "PROXY TCP4 1.2.3.4 1.2.3 1 6\r\n   ".to_owned(),
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n".to_owned(),
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n".to_owned(),
            "PROXY TCP6 ::1 ::1 1 +1\r\n".to_owned(),
            "PROXY TCP4 1.2.3.4 1.2.3.4 -1 1\r\n".to_owned(),
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 00\r\n".to_owned(),
            "PROXY UNKNOWNS\r\n".to_owned(),
            "PROXY TCP4 1.2.3.4 1.2.3.4 1111 1\n".to_owned(),
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n".to_owned(),
            format!("PROXY UNKNOWN {long}"),
            "\r\n\r\nhello".to_owned(),
            "\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c123456789012".to_owned(),
            "\r\n\r\n\0\r\nQUIT\n\x21\x41\0\x0c123456789012".to_owned(),
            "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b12345678901".to_owned(),
            "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0e12345678901212".to_owned(),
            "\r\n\r\n\0\r\nQUIT\n\x21\x11\x7f\x7f12345678901212".to_owned(),
        ] {
            let (near, mut far) = tokio::io::duplex(64 << 10);
            far.write_all(bytes.as_bytes()).await.unwrap();
            // The other end stays open.
            let refused = read(&mut { near }).await.unwrap_err();
            assert!(!matches!(refused, Refusal::Lost(_)), "{bytes:?}: {refused}");
        }
    }

    #[test]
    fn a_line_ends_with_both_of_its_characters() {
        let line = "PROXY TCP4 20.10.0.85 255.255.24.43 21577 21770";
        assert!(parse(format!("{line}\r\n").as_bytes()).is_ok());
        for end in [" \n", "\n", "\r", ""] {
            assert!(parse(format!("{line}{end}").as_bytes()).is_err(), "{end:?}");
        }
    }
}
