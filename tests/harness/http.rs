//! A client of HTTP/1.1, for the admin endpoint and for WebDriver: one request for each connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::DEADLINE;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl At {
    /// What follows `http://`, or begins with `unix:`.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.into()),
            None => {
                let bare = text.strip_prefix("http://").unwrap_or(text);
                Self::Tcp(bare.trim_end_matches('/').parse().unwrap())
            }
        }
    }

    /// The address, where it is one of TCP.
    pub fn tcp(&self) -> SocketAddr {
        match self {
            Self::Tcp(address) => *address,
            Self::Unix(path) => panic!("{} has no address", path.display()),
        }
    }

    /// What a request says in `Host`, unless it says something else.
    fn host(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.set_write_timeout(Some(DEADLINE))?;
                Box::new(stream)
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.set_write_timeout(Some(DEADLINE))?;
                Box::new(stream)
            }
        })
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path).answer()
    }

    /// What is answered with 200, as JSON.
    pub fn json(&self, path: &str) -> serde_json::Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.json()
    }

    pub fn request(&self, method: &str, path: &str) -> Request {
        Request {
            at: self.clone(),
            method: method.to_owned(),
            path: path.to_owned(),
            headers: vec![
                ("Host".to_owned(), self.host()),
                ("Connection".to_owned(), "close".to_owned()),
            ],
            body: Vec::new(),
        }
    }
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A request that is to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    at: At,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// With this header, in place of one of the same name.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers
            .retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this token.
    pub fn bearing(self, token: &str) -> Self {
        self.with("Authorization", &format!("Bearer {token}"))
    }

    /// With this body.
    pub fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = serde_json::to_vec(body).unwrap();
        self.with("Content-Type", "application/json")
    }

    pub fn answer(self) -> Answer {
        self.send().unwrap().whole().unwrap()
    }

    /// Whether there is an answer. A server that is not there yet is no reason to fail.
    pub fn try_answer(self) -> io::Result<Answer> {
        self.send()?.whole()
    }

    /// The same for a request whose answer has a head alone, as that to HEAD.
    pub fn head(self) -> Answer {
        let begun = self.send().unwrap();
        Answer {
            status: begun.status,
            headers: begun.headers,
            body: String::new(),
        }
    }

    /// The events that are answered, as they come.
    pub fn events(self) -> Events {
        let begun = self.send().unwrap();
        assert_eq!(begun.status, 200);
        assert_eq!(header(&begun.headers, "content-type"), Some("text/event-stream"));
        Events(BufReader::new(begun.body))
    }

    fn send(mut self) -> io::Result<Begun> {
        let length = self.body.len().to_string();
        if !self.body.is_empty() || self.method == "POST" {
            self = self.with("Content-Length", &length);
        }
        let mut message = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            message += &format!("{name}: {value}\r\n");
        }
        let mut message = (message + "\r\n").into_bytes();
        message.extend(&self.body);
        let mut stream = self.at.connect()?;
        stream.write_all(&message)?;
        Begun::read(BufReader::new(stream))
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut found = headers.iter().filter(|(other, _)| other == name);
    let value = found.next().map(|(_, value)| value.as_str());
    assert_eq!(found.next(), None, "{name} is there twice");
    value
}

/// An answer whose body is still to come.
struct Begun {
    status: u16,
    headers: Vec<(String, String)>,
    body: Box<dyn Read>,
}

impl Begun {
    fn read(mut stream: BufReader<Box<dyn Stream>>) -> io::Result<Self> {
        let status = line(&mut stream)?;
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let status = status
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| invalid(&format!("no status in {status:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = line(&mut stream)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let chunked = header(&headers, "transfer-encoding") == Some("chunked");
        let length = header(&headers, "content-length").map(|length| length.parse().unwrap());
        let body: Box<dyn Read> = match length {
            _ if chunked => Box::new(Chunks { stream, left: 0 }),
            Some(length) => Box::new(stream.take(length)),
            None => Box::new(stream),
        };
        Ok(Self {
            status,
            headers,
            body,
        })
    }

    fn whole(mut self) -> io::Result<Answer> {
        let mut body = String::new();
        self.body.read_to_string(&mut body)?;
        if let Some(length) = header(&self.headers, "content-length") {
            assert_eq!(body.len().to_string(), length, "the body is cut off: {body}");
        }
        Ok(Answer {
            status: self.status,
            headers: self.headers,
            body,
        })
    }
}

/// A line without its end.
fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, line)),
    }
}

/// A body that comes in chunks (RFC 9112, section 7.1).
struct Chunks {
    stream: BufReader<Box<dyn Stream>>,
    /// Bytes that are left of the chunk.
    left: u64,
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let size = line(&mut self.stream)?;
            self.left = u64::from_str_radix(&size, 16).map_err(io::Error::other)?;
            if self.left == 0 {
                line(&mut self.stream)?;
                return Ok(0);
            }
        }
        let count = (&mut self.stream).take(self.left).read(into)?;
        self.left -= count as u64;
        if self.left == 0 {
            line(&mut self.stream)?;
        }
        Ok(count)
    }
}

/// Server-sent events.
pub struct Events(BufReader<Box<dyn Read>>);

impl Events {
    /// Waits for the next event, and gives its name and what it says as JSON.
    pub fn next(&mut self) -> (String, serde_json::Value) {
        let (mut name, mut data) = (String::new(), Vec::new());
        loop {
            let mut line = String::new();
            assert_ne!(
                self.0.read_line(&mut line).unwrap(),
                0,
                "there are no more events"
            );
            match line.trim_end_matches('\n').split_once(": ") {
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("data", value)) => data.push(value.to_owned()),
                None if line == "\n" => break,
                _ => panic!("{line:?} is no part of an event"),
            }
        }
        (name, serde_json::from_str(&data.join("\n")).unwrap())
    }
}
