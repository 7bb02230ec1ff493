//! Values of the file that flags have as text too: each is read by the same parser, and can be written again.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

use super::{patterns, ranges};
use crate::config::{Address, CompileMemory, Endpoint, GrantedDir, Mode, Rate, Ratio};
use crate::values::{self, OFF};

/// How a kind of value is read and written.
pub(super) trait Kind {
    /// What it comes to.
    type Value;
    /// Its name in the schema.
    const NAME: &'static str;
    /// An example, for who sees the schema.
    const EXAMPLE: &'static str;
    /// What it matches as a string, in the schema.
    fn pattern() -> String;
    /// Whether it can stand there as a number.
    const NUMBERS: bool = false;
    /// Whether messages do not show it, because it can contain credentials.
    const IS_SECRET: bool = false;
    /// The least and the greatest of these numbers.
    const RANGE: (f64, f64) = (1.0, f64::INFINITY);

    fn parse(text: &str) -> Result<Self::Value, String>;
    fn show(value: &Self::Value) -> String;
}

/// A value of one kind.
pub(super) struct Word<K: Kind>(pub(super) K::Value);

impl<K: Kind<Value: Clone>> Clone for Word<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<'de, K: Kind> Deserialize<'de> for Word<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

struct Reader<K>(PhantomData<K>);

impl<K: Kind> Visitor<'_> for Reader<K> {
    type Value = Word<K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if K::NUMBERS && K::EXAMPLE.parse::<u64>().is_ok() {
            write!(f, "a number such as {}", K::EXAMPLE)
        } else if K::NUMBERS {
            write!(f, "a number, or a string such as \"{}\"", K::EXAMPLE)
        } else {
            write!(f, "a string such as \"{}\"", K::EXAMPLE)
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Word<K>, E> {
        K::parse(text).map(Word).map_err(|expected| {
            if K::IS_SECRET || values::hides_value(text, &expected) {
                E::custom(format_args!("invalid value: {expected}"))
            } else {
                E::custom(format_args!("invalid value `{text}`: {expected}"))
            }
        })
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Word<K>, E> {
        if K::NUMBERS {
            self.visit_str(&number.to_string())
        } else {
            Err(E::invalid_type(serde::de::Unexpected::Signed(number), &self))
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Word<K>, E> {
        // Zero is a number without a sign, however it is written.
        let number = if number == 0.0 { 0.0 } else { number };
        if K::NUMBERS {
            self.visit_str(&number.to_string())
        } else {
            Err(E::invalid_type(serde::de::Unexpected::Float(number), &self))
        }
    }
}

impl<K: Kind> Serialize for Word<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = K::show(&self.0);
        if K::NUMBERS
            && let Ok(number) = text.parse()
        {
            serializer.serialize_i64(number)
        } else if K::NUMBERS
            && let Ok(number) = text.parse()
        {
            serializer.serialize_f64(number)
        } else {
            serializer.serialize_str(&text)
        }
    }
}

impl<K: Kind> JsonSchema for Word<K> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        K::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let (example, pattern) = (K::EXAMPLE, K::pattern());
        if !K::NUMBERS {
            return json_schema!({ "type": "string", "pattern": pattern, "examples": [example] });
        }
        let number = if example.contains('.') {
            "number"
        } else {
            "integer"
        };
        let (least, greatest) = K::RANGE;
        // A range holds for numbers alone, and a pattern for strings.
        let mut schema = json_schema!({
            "type": [number, "string"],
            "minimum": least as u64,
            "pattern": pattern,
            "examples": [example],
        });
        if greatest.is_finite() {
            schema.insert("maximum".to_owned(), (greatest as u64).into());
        }
        schema
    }
}

/// Makes kinds: the value, its parser, how it is written, and an example.
macro_rules! kinds {
    ($(
        $(#[$doc:meta])*
        $name:ident: $value:ty = $parse:path, $show:expr, $example:literal, $pattern:expr $(, $least:literal to $greatest:expr)? $(=> $secret:literal)?;
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) enum $name {}

        impl Kind for $name {
            type Value = $value;
            const NAME: &'static str = stringify!($name);
            const EXAMPLE: &'static str = $example;
            $(const IS_SECRET: bool = $secret;)?
            $(
                const NUMBERS: bool = true;
                const RANGE: (f64, f64) = ($least, $greatest);
            )?

            fn parse(text: &str) -> Result<$value, String> {
                $parse(text)
            }

            fn pattern() -> String {
                $pattern.to_string()
            }

            fn show(value: &$value) -> String {
                let show: fn(&$value) -> String = $show;
                show(value)
            }
        }
    )*};
}

/// The bounds of numbers, as whole numbers of the schema.
const MAX_CONNECTIONS: u64 = values::MAX_CONNECTIONS as u64;
const MAX_RATE: u64 = values::MAX_RATE.get() as u64;
const MAX_THREADS: u64 = values::MAX_THREADS as u64;
const MAX_BACKLOG: u64 = values::MAX_BACKLOG as u64;

/// A pattern for a whole value.
fn whole(pattern: &str) -> String {
    format!("^({pattern})$")
}

/// A pattern for a whole value, or `off`.
fn or_off_pattern(pattern: &str) -> String {
    format!("^({OFF}|{pattern})$")
}

/// A pattern for the owner of a socket.
fn owner_pattern() -> String {
    // A text of digits is a number, and another one a name.
    let number = ranges::number(0..=u64::from(values::MAX_OWNER));
    let one = format!("({number}|[^:]*[^:0-9][^:]*)");
    whole(&format!("{one}(:{one})?|:{one}"))
}

kinds! {
    /// A time that may be none.
    Timeout: Option<Duration> = values::timeout, |time| or_off(time.as_ref(), span), "30s", patterns::TIMEOUT;
    /// The time that a call may take, if there is a limit.
    CallTime: Option<Duration> = values::call_time, |time| or_off(time.as_ref(), span), "1s", or_off_pattern(&ranges::time(values::MIN_CALL..=Duration::MAX));
    /// A time that may be zero.
    Time: Duration = values::duration, span, "10s", patterns::TIME;
    /// A time above zero.
    Deadline: Duration = values::deadline, span, "5s", patterns::DEADLINE;
    /// A turn.
    Slice: Duration = values::slice, span, "2ms", whole(&ranges::time(values::SLICE));
    /// When the kernel asks for a peer.
    Keepalive: Option<Duration> = values::keepalive, |time| or_off(time.as_ref(), span), "1m", or_off_pattern(&ranges::time(values::KEEPALIVE));
    /// An amount of memory.
    Size: usize = values::memory, |size| bytes(&(*size as u64)), "64MiB", whole(&ranges::size(values::MIN_MEMORY..=values::MAX_SIZE));
    /// Memory for a compiler.
    MaxCompileMemory: CompileMemory = values::compile_memory, show_compile_memory, "1GiB", or_off_pattern(&ranges::size_from(values::MIN_COMPILE_MEMORY));
    /// A number of bytes.
    Bytes: Option<u64> = values::bytes, |size| or_off(size.as_ref(), bytes), "10MiB", or_off_pattern(&ranges::size_from(1));
    /// A buffer of the kernel's.
    Buffer: Option<usize> = values::buffer, |size| or_off(size.as_ref(), |size| bytes(&(*size as u64))), "256KiB", or_off_pattern(&ranges::size(values::BUFFER));
    /// A number of connections.
    Connections: NonZeroUsize = values::connections, ToString::to_string, "1024", whole(&ranges::number(1..=MAX_CONNECTIONS)), 1.0 to MAX_CONNECTIONS as f64;
    /// A number of connections that may be none.
    Count: Option<NonZeroUsize> = values::count, |count| or_off(count.as_ref(), ToString::to_string), "100", or_off_pattern(&ranges::number(1..=MAX_CONNECTIONS)), 1.0 to MAX_CONNECTIONS as f64;
    /// Connections in a time.
    MaxRate: Option<Rate> = values::rate, |rate| or_off(rate.as_ref(), show_rate), "100/s", or_off_pattern(&format!("{}(/[smh])?", ranges::number(1..=MAX_RATE))), 1.0 to MAX_RATE as f64;
    /// Instances that connections share.
    Instances: NonZeroUsize = values::instances, ToString::to_string, "cores", whole(&format!("cores|{}", ranges::number(1..=MAX_THREADS))), 1.0 to MAX_THREADS as f64;
    /// Threads.
    Threads: NonZeroUsize = values::threads, ToString::to_string, "4", whole(&ranges::number(1..=MAX_THREADS)), 1.0 to MAX_THREADS as f64;
    /// Connections that wait.
    Backlog: u32 = values::backlog, ToString::to_string, "4096", whole(&ranges::number(1..=MAX_BACKLOG)), 1.0 to MAX_BACKLOG as f64;
    /// A part of all.
    Sample: Ratio = values::ratio, |ratio| ratio.get().to_string(), "0.1", patterns::SAMPLE, 0.0 to 1.0;
    /// An address to listen at.
    ListenAddress: Address = values::address, values::show_address, "127.0.0.1:8080", patterns::LISTEN;
    /// An address to be looked at.
    AdminAddress: Address = values::admin_address, values::show_address, "127.0.0.1:9090", patterns::ADMIN;
    /// A collector.
    Collector: Endpoint = values::endpoint, ToString::to_string, "http://127.0.0.1:4318", patterns::COLLECTOR => true;
    /// A network.
    Network: IpNet = values::network, ToString::to_string, "192.0.2.0/24", whole(&format!("{}|{}", ranges::ipv4_network(), patterns::IPV6_NETWORK));
    /// The mode of a socket.
    SocketMode: Mode = values::mode, |mode| format!("{:04o}", mode.0), "0660", patterns::MODE;
    /// The owner of a socket.
    Owner: String = values::owner, Clone::clone, "user:group", owner_pattern();
    /// A protocol for ALPN.
    Protocol: String = values::protocol, Clone::clone, "h2", patterns::PROTOCOL;
    /// The name of a service or a listener.
    Name: String = values::name, Clone::clone, "echo", patterns::NAME;
    /// A directory that is granted.
    Directory: GrantedDir = values::directory, show_directory, "data::/data:rw", patterns::DIRECTORY;
    /// A destination that is granted.
    Destination: String = values::destination, Clone::clone, "192.0.2.7:5432", patterns::DESTINATION => true;
}

fn or_off<T>(value: Option<&T>, show: impl Fn(&T) -> String) -> String {
    value.map_or_else(|| OFF.to_owned(), show)
}

fn span(time: &Duration) -> String {
    humantime::format_duration(*time).to_string()
}

/// A number of bytes in the largest unit that gives a whole number.
fn bytes(size: &u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if *size > 0 && size.trailing_zeros() >= shift {
            return format!("{}{unit}", size >> shift);
        }
    }
    format!("{size}B")
}

fn show_compile_memory(memory: &CompileMemory) -> String {
    match memory {
        CompileMemory::AtMost(max) => bytes(max),
        // The file has no word for the default, and is written without the key.
        CompileMemory::Default | CompileMemory::Off => OFF.to_owned(),
    }
}

fn show_rate(rate: &Rate) -> String {
    let unit = match rate.per.as_secs() {
        60 => "m",
        3600 => "h",
        _ => "s",
    };
    format!("{}/{unit}", rate.connections)
}

fn show_directory(dir: &GrantedDir) -> String {
    let access = if dir.writable { "rw" } else { "ro" };
    format!("{}::{}:{access}", dir.host.display(), dir.guest)
}
