//! Patterns of values for the schema. They accept what the parsers in `values.rs` accept, except
//! for limits that a pattern cannot express, such as the longest time.

/// Makes a pattern of parts, for a whole value.
macro_rules! whole {
    ($($part:expr),+ $(,)?) => { concat!("^(", $($part),+, ")$") };
}

/// A fraction with up to so many digits before zeros, or none.
macro_rules! fraction {
    ($digits:literal) => {
        concat!(r"(\.(\s*[0-9]){1,", $digits, r"}(\s*0)*\s*)?")
    };
}

/// A number and a unit of time, several times. Fractions of the smaller units have only as many
/// digits as give whole nanoseconds.
macro_rules! time {
    () => {
        concat!(
            r"\s*([0-9][0-9\s]*((ns|nsec|nanos)|",
            fraction!(3),
            "(us|usec|µs)|",
            fraction!(6),
            "(ms|msec|millis)|",
            fraction!(9),
            "(s|secs?|seconds?)|",
            fraction!(10),
            "(m|mins?|minutes?)|",
            fraction!(""),
            r"(h|hrs?|hours?|d|days?|w|wks?|weeks?|M|months?|y|yrs?|years?))\s*)+"
        )
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

/// A port, or 0 for any that is free.
macro_rules! any_port {
    () => {
        concat!("(0+|", port!(), ")")
    };
}

/// A number up to 255.
macro_rules! octet {
    () => {
        "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}

/// An address of IPv4.
macro_rules! ipv4 {
    () => {
        concat!(octet!(), r"(\.", octet!(), "){3}")
    };
}

/// A group of an address of IPv6.
macro_rules! group {
    () => {
        "[0-9a-fA-F]{1,4}"
    };
}

/// Up to so many groups of an address of IPv6, or none.
macro_rules! groups {
    ($most:literal) => {
        concat!("((", group!(), ":){0,", $most, "}", group!(), ")?")
    };
}

/// The last 32 bits of an address of IPv6.
macro_rules! low {
    () => {
        concat!("(", group!(), ":", group!(), "|", ipv4!(), ")")
    };
}

/// An address of IPv6 (RFC 3986, section 3.2.2).
macro_rules! ipv6 {
    () => {
        concat!(
            "((",
            group!(),
            ":){6}",
            low!(),
            "|::(",
            group!(),
            ":){5}",
            low!(),
            "|(",
            group!(),
            ")?::(",
            group!(),
            ":){4}",
            low!(),
            "|",
            groups!(1),
            "::(",
            group!(),
            ":){3}",
            low!(),
            "|",
            groups!(2),
            "::(",
            group!(),
            ":){2}",
            low!(),
            "|",
            groups!(3),
            "::",
            group!(),
            ":",
            low!(),
            "|",
            groups!(4),
            "::",
            low!(),
            "|",
            groups!(5),
            "::",
            group!(),
            "|",
            groups!(6),
            "::)"
        )
    };
}

/// A numeric address of IPv4 or IPv6 with a port, which is neither multicast nor broadcast. A
/// link-local one has an interface, and no other.
macro_rules! tcp {
    () => {
        concat!(
            r"(?!(22[4-9]|23[0-9])\.|255\.255\.255\.255:|\[[fF]{2}[0-9a-fA-F]{2}:|",
            r"\[[0:]*:[fF]{4}:((22[4-9]|23[0-9])\.[0-9.]+|255\.255\.255\.255|",
            r"[eE][0-9a-fA-F]{3}:[0-9a-fA-F]{1,4}|[fF]{4}:[fF]{4})\]|",
            r"\[[fF][eE][89abAB][0-9a-fA-F]:[^%\]]*\])",
            "(",
            ipv4!(),
            r"|\[",
            ipv6!(),
            r"\]|\[(?=[fF][eE][89abAB][0-9a-fA-F]:)",
            ipv6!(),
            r"%[^\]]+\]):",
            any_port!(),
        )
    };
}

/// The path of a socket: 107 bytes at most, of which a pattern counts characters.
macro_rules! socket {
    () => {
        r"unix:[^@\n\x00][^\n\x00]{0,106}"
    };
}

pub(super) const TIME: &str = whole!("0|", time!());
pub(super) const DEADLINE: &str = whole!(positive!(), "(", time!(), ")");
pub(super) const TIMEOUT: &str = whole!("off|", positive!(), "(", time!(), ")");
pub(super) const SAMPLE: &str = whole!(r"0*(1(\.0*)?|\.[0-9]+|0\.?|0\.[0-9]+)");
pub(super) const LISTEN: &str = whole!(socket!(), r"|unix:@[^\n\x00]{1,107}|inherited:[^\n]+|", tcp!());
pub(super) const ADMIN: &str = whole!(any_port!(), "|", socket!(), "|", tcp!());
pub(super) const COLLECTOR: &str = whole!(
    r"(?!.*/v1/(traces|metrics)/*$)[hH][tT]{2}[pP]://(\[",
    ipv6!(),
    r"\]|[A-Za-z0-9!$&'()*+,.;=_~-]+)(:",
    port!(),
    r")?(/[^?#\s<>`]*)?"
);
pub(super) const IPV6_NETWORK: &str = concat!(ipv6!(), "(/0*(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?");
pub(super) const OCTET: &str = octet!();
pub(super) const ANY_TIME: &str = time!();
pub(super) const MODE: &str = whole!("0*[0-7]{1,3}");
pub(super) const PROTOCOL: &str = whole!(r"[^\x00-\x1f\x7f-\x9f]{1,255}");
pub(super) const NAME: &str = whole!("[A-Za-z0-9_.-]{1,64}");
pub(super) const DIRECTORY: &str =
    r"^((?!::)[^\x00])+::(?!r[wo](:|$))(?!([^:]*/)?\.\.(/|:|$))[^:\x00]+(:r[wo])?$";
pub(super) const DESTINATION: &str = whole!("[^/@?#=]+:", port!());
