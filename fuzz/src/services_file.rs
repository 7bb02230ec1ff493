//! The services file: any key with any value, and any text.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use host::file;

/// Keys, in the table that is open at the end of [`BEFORE`].
const KEYS: &[&str] = &[
    "component",
    "middleware",
    "args",
    "gate",
    "record",
    "preinit",
    "watch",
    "migrate",
    "isolation",
    "instances",
    "drain-generations",
    "log-connections",
    "grants.env.A",
    "grants.env.PROTO",
    "grants.env.\"\"",
    "grants.dirs",
    "grants.allow-outbound",
    "access.allow",
    "access.deny",
    "socket.backlog",
    "socket.nodelay",
    "socket.keepalive",
    "socket.receive-buffer",
    "socket.send-buffer",
    "socket.dual-stack",
    "socket.mode",
    "socket.owner",
    "limits.max-connections",
    "limits.max-connections-per-source",
    "limits.max-rate",
    "limits.max-memory",
    "limits.cpu-slice",
    "limits.max-call-time",
    "limits.idle-timeout",
    "limits.max-bytes-in",
    "listen",
    "name",
    "no-such-key",
];

/// What stands before the key.
const BEFORE: &str = "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:1\", \"unix:a\", \"[::]:2\"]\n\
                      [[service]]\n";

/// Texts that some keys take.
const WORDS: &[&str] = &[
    "off",
    "cores",
    "service",
    "connection",
    "failed",
    "1s",
    "0s",
    "2ms",
    "64KiB",
    "7/m",
    "0660",
    "root:root",
    ":1",
    "192.0.2.0/24",
    "127.0.0.1:3",
    "[::1]:3",
    "unix:b",
    "unix:@b",
    "inherited:c",
    "a::/b:rw",
    "a::/b",
    "a:1",
];

#[derive(Debug)]
enum Case {
    Key(u8, Value),
    Text(String),
}

#[derive(Debug)]
enum Value {
    Word(u8),
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Value>),
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=7)? {
            0 => Self::Text(u.arbitrary()?),
            _ => Self::Key(u.arbitrary()?, u.arbitrary()?),
        })
    }
}

impl<'a> Arbitrary<'a> for Value {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=6)? {
            0 | 1 => Self::Word(u.arbitrary()?),
            2 => Self::Text(u.arbitrary()?),
            3 => Self::Integer(u.arbitrary()?),
            4 => Self::Float(u.arbitrary()?),
            5 => Self::Bool(u.arbitrary()?),
            _ => Self::List(u.arbitrary()?),
        })
    }
}

impl Value {
    fn toml(&self) -> String {
        match self {
            Self::Word(word) => quoted(WORDS[usize::from(*word) % WORDS.len()]),
            Self::Text(text) => quoted(text),
            Self::Integer(number) => number.to_string(),
            Self::Float(number) if number.is_finite() => format!("{number:e}"),
            Self::Float(_) => "nan".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::List(values) => {
                let values: Vec<_> = values.iter().map(Self::toml).collect();
                format!("[{}]", values.join(", "))
            }
        }
    }
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let escaped: String = text.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
    format!("\"{escaped}\"")
}

/// Parses a services file.
///
/// # Panics
///
/// It is refused without a line of it, or what is printed of it says something else.
pub fn run(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let text = match &case {
        Case::Text(text) => text.clone(),
        Case::Key(key, value) => {
            let key = KEYS[usize::from(*key) % KEYS.len()];
            let mut text = BEFORE.to_owned();
            for (required, value) in [("name", "\"b\""), ("listen", "[\"127.0.0.1:4\"]")] {
                if key != required {
                    text += &format!("{required} = {value}\n");
                }
            }
            text + &format!("{key} = {}\n", value.toml())
        }
    };
    match file::parse(&text, Path::new("/etc")) {
        Ok(config) => {
            let printed = file::print(&config).unwrap();
            let again = file::parse(&printed, Path::new("/"));
            assert_eq!(again.as_ref(), Ok(&config), "{case:?}\n{printed}");
        }
        Err(problems) => {
            assert!(!problems.0.is_empty(), "{case:?}");
            for problem in problems.0 {
                let sentence = problem.to_string();
                let line: usize = sentence.split(':').next().unwrap().parse().unwrap();
                assert!(
                    (1..=text.lines().count() + 1).contains(&line),
                    "{case:?}: {sentence}"
                );
            }
        }
    }
}
