//! Patterns of values for the schema. They accept what the parsers in `values.rs` accept, except
//! for limits that a pattern cannot express, such as the longest time.

/// Makes a pattern of parts, for a whole value.
macro_rules! whole {
    ($($part:expr),+ $(,)?) => { concat!("^(", $($part),+, ")$") };
}

/// A number and a unit of time, several times.
macro_rules! time {
    () => {
        concat!(
            r"\s*([0-9][0-9\s]*(\.[0-9\s]+)?",
            r"(ns|nsec|nanos|us|usec|µs|ms|msec|millis|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|",
            r"d|days?|w|wks?|weeks?|M|months?|y|yrs?|years?)\s*)+"
        )
    };
}

/// A number of bytes, or a number with a unit.
macro_rules! size {
    () => {
        r"[0-9]+|[0-9]*\.?[0-9]+\s*([bB]|[kKmMgGtTpPeE][iI]?[bB]?)"
    };
}

/// Requires a digit above zero.
macro_rules! positive {
    () => {
        r"(?=.*[1-9])"
    };
}

/// A port above zero.
macro_rules! port {
    () => {
        r"0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
    };
}

/// A numeric address of IPv4 or IPv6 with a port.
macro_rules! tcp {
    () => {
        r"([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9a-fA-F:.]+(%[^\]]+)?\]):[0-9]{1,5}"
    };
}

pub(super) const TIME: &str = whole!(time!());
pub(super) const DEADLINE: &str = whole!(positive!(), "(", time!(), ")");
pub(super) const TIMEOUT: &str = whole!("off|", positive!(), "(", time!(), ")");
pub(super) const SIZE: &str = whole!(size!());
pub(super) const BYTES: &str = whole!("off|", positive!(), "(", size!(), ")");
pub(super) const CONNECTIONS: &str = whole!(r"\+?0*([1-9][0-9]{0,8}|1000000000)");
pub(super) const COUNT: &str = whole!(r"off|\+?0*[1-9][0-9]{0,18}");
pub(super) const RATE: &str = whole!(r"off|\+?0*([1-9][0-9]{0,5}|1000000)(/[smh])?");
pub(super) const THREADS: &str = whole!(r"\+?0*([1-9][0-9]{0,2}|10[01][0-9]|102[0-4])");
pub(super) const INSTANCES: &str = whole!(r"cores|\+?0*([1-9][0-9]{0,2}|10[01][0-9]|102[0-4])");
pub(super) const BACKLOG: &str = whole!(r"\+?", port!());
pub(super) const SAMPLE: &str = whole!(r"\+?0*(1(\.0*)?|\.[0-9]+|0\.?|0\.[0-9]+)");
pub(super) const LISTEN: &str = whole!("unix:.+|inherited:.+|", tcp!());
pub(super) const ADMIN: &str = whole!(r"[0-9]{1,5}|unix:[^@].*|", tcp!());
pub(super) const COLLECTOR: &str = "^http://.";
pub(super) const NETWORK: &str = whole!("[0-9a-fA-F:.]+(/[0-9]{1,3})?");
pub(super) const MODE: &str = whole!("0*[0-7]{1,3}");
pub(super) const OWNER: &str = whole!("[^:]+(:[^:]+)?|:[^:]+");
pub(super) const PROTOCOL: &str = whole!(r"[\s\S]{1,255}");
pub(super) const NAME: &str = whole!("[A-Za-z0-9_.-]{1,64}");
pub(super) const DIRECTORY: &str = r"^(?!.*:(RW|Rw|rW|RO|Ro|rO)$)(?!.*:r[wo]:r[wo]$).+?::(?!:?r[wo]$|$).";
pub(super) const DESTINATION: &str = whole!(".+:", port!());
