//! The command line: any text for every flag, and times, sizes and rates.

use std::sync::LazyLock;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use clap::{CommandFactory as _, Parser};
use host::cli::{Cli, Command, Given};
use host::config::Config;

/// The flags of the program that take a value, except the one that replaces all others.
static FLAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let program = Cli::command();
    let flags = program
        .get_arguments()
        .filter(|flag| flag.get_action().takes_values());
    flags
        .filter_map(|flag| flag.get_long())
        .filter(|name| *name != "config")
        .map(|name| format!("--{name}"))
        .collect()
});

#[derive(Debug)]
enum Case {
    /// Any text for a flag.
    Text(u8, String),
    /// A time.
    Time(u32, u8),
    /// A number of bytes.
    Size(u32, u8),
    /// A rate.
    Rate(u32, u8),
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=3)? {
            0 => Self::Text(u.arbitrary()?, u.arbitrary()?),
            1 => Self::Time(u.arbitrary()?, u.arbitrary()?),
            2 => Self::Size(u.arbitrary()?, u.arbitrary()?),
            _ => Self::Rate(u.arbitrary()?, u.arbitrary()?),
        })
    }
}

/// Parses a command line.
///
/// # Panics
///
/// It is refused without saying why, or is understood as something else than what it says.
pub fn run(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    match &case {
        Case::Text(flag, value) => {
            let flag = &FLAGS[usize::from(*flag) % FLAGS.len()];
            if let Err(error) = config(flag, value) {
                assert!(
                    error.contains(flag) && error.trim_end().lines().count() > 0,
                    "{case:?}: {error}"
                );
            }
        }
        Case::Time(number, unit) => {
            let (unit, nanoseconds) = pick(
                *unit,
                &[
                    ("ns", 1),
                    ("us", 1_000),
                    ("ms", 1_000_000),
                    ("s", 1_000_000_000),
                    ("m", 60_000_000_000),
                    ("h", 3_600_000_000_000),
                ],
            );
            let time = Duration::from_nanos_u128(u128::from(*number) * u128::from(nanoseconds));
            match config("--idle-timeout", &format!("{number}{unit}")) {
                Ok(config) => assert_eq!(config.services[0].limits.idle_timeout, Some(time), "{case:?}"),
                Err(error) => assert!(time.is_zero(), "{case:?}: {error}"),
            }
        }
        Case::Size(number, unit) => {
            let (unit, each) = pick(
                *unit,
                &[
                    ("B", 1),
                    ("KiB", 1 << 10),
                    ("MiB", 1 << 20),
                    ("GiB", 1 << 30),
                    ("kB", 1000),
                ],
            );
            let size = u64::from(*number) * each;
            match config("--max-bytes-in", &format!("{number}{unit}")) {
                Ok(config) => assert_eq!(config.services[0].limits.max_bytes_in, Some(size), "{case:?}"),
                Err(error) => assert!(size == 0, "{case:?}: {error}"),
            }
            match config("--max-memory", &format!("{number}{unit}")) {
                Ok(config) => assert_eq!(config.services[0].limits.max_memory as u64, size, "{case:?}"),
                Err(error) => assert!(!(64 << 10..=4 << 30).contains(&size), "{case:?}: {error}"),
            }
        }
        Case::Rate(number, unit) => {
            let (unit, seconds) = pick(*unit, &[("", 1), ("/s", 1), ("/m", 60), ("/h", 3600)]);
            match config("--max-rate", &format!("{number}{unit}")) {
                Ok(config) => {
                    let rate = config.services[0].limits.max_rate.unwrap();
                    assert_eq!(rate.connections.get(), *number, "{case:?}");
                    assert_eq!(rate.per, Duration::from_secs(seconds), "{case:?}");
                }
                Err(error) => assert!(*number == 0 || *number > 1_000_000, "{case:?}: {error}"),
            }
        }
    }
}

fn pick(number: u8, units: &[(&'static str, u64)]) -> (&'static str, u64) {
    units[usize::from(number) % units.len()]
}

fn config(flag: &str, value: &str) -> Result<Config, String> {
    let args = ["wasm-inetd".to_owned(), format!("{flag}={value}")];
    match Cli::try_parse_from(args).and_then(Cli::checked) {
        Ok(cli) => match Command::from(cli) {
            Command::Serve(Given::Flags(config)) => Ok(*config),
            other => panic!("{flag}={value}: {other:?}"),
        },
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{flag}={value}");
            Err(error.to_string())
        }
    }
}
