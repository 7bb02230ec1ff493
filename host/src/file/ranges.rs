//! Patterns of values in a range, for the schema.
//!
//! They are made from the bounds that the parsers in `values.rs` have. A pattern bounds whole
//! numbers with one unit exactly, and each part of a time of several units. It takes a fraction
//! that is out of range by less than one unit, and parts of a time whose sum is out of range.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::patterns;

/// Units of a size: how they are written, and the number of bytes.
const SIZES: [(&str, u64); 13] = [
    ("[bB]", 1),
    ("[kK][bB]?", 1000),
    ("[kK][iI][bB]?", 1 << 10),
    ("[mM][bB]?", 1000_u64.pow(2)),
    ("[mM][iI][bB]?", 1 << 20),
    ("[gG][bB]?", 1000_u64.pow(3)),
    ("[gG][iI][bB]?", 1 << 30),
    ("[tT][bB]?", 1000_u64.pow(4)),
    ("[tT][iI][bB]?", 1 << 40),
    ("[pP][bB]?", 1000_u64.pow(5)),
    ("[pP][iI][bB]?", 1 << 50),
    ("[eE][bB]?", 1000_u64.pow(6)),
    ("[eE][iI][bB]?", 1 << 60),
];

/// Units of a time: how they are written, and the number of nanoseconds.
const TIMES: [(&str, u128); 10] = [
    ("(ns|nsec|nanos)", 1),
    ("(us|usec|µs)", 1000),
    ("(ms|msec|millis)", 1_000_000),
    ("(s|secs?|seconds?)", SECOND),
    ("(m|mins?|minutes?)", 60 * SECOND),
    ("(h|hrs?|hours?)", 3600 * SECOND),
    ("(d|days?)", 86_400 * SECOND),
    ("(w|wks?|weeks?)", 7 * 86_400 * SECOND),
    ("(M|months?)", 2_630_016 * SECOND),
    ("(y|yrs?|years?)", 31_557_600 * SECOND),
];

const SECOND: u128 = 1_000_000_000;

/// What may follow each digit of a number in a time, which the parser of times ignores.
const SPACES: &str = r"\s*";

/// A whole number in a range, with any number of zeros before it.
pub(super) fn number(range: RangeInclusive<u64>) -> String {
    spaced_number(range, "")
}

/// The same with a `gap` after each digit.
fn spaced_number(range: RangeInclusive<u64>, gap: &str) -> String {
    let digits = digits(*range.start(), *range.end(), gap);
    format!("(0{gap})*({})", digits.join("|"))
}

/// A whole number of `least` or more, with a `gap` after each digit.
fn number_from(least: u64, gap: &str) -> String {
    let least = least.to_string();
    let same_length = same_length(least.as_bytes(), "9".repeat(least.len()).as_bytes(), gap);
    let longer = format!("[1-9]{gap}([0-9]{gap}){{{},}}", least.len());
    format!("(0{gap})*({}|{longer})", same_length.join("|"))
}

/// A size in a range of bytes.
pub(super) fn size(range: RangeInclusive<u64>) -> String {
    let (least, greatest) = range.into_inner();
    let mut forms = vec![number(least..=greatest)];
    for (unit, bytes) in SIZES {
        let (first, last) = (least.div_ceil(bytes), greatest / bytes);
        if first <= last {
            forms.push(format!(r"{}\s*{unit}", number(first..=last)));
        }
        // The whole numbers to which every fraction may be added.
        let last = if greatest % bytes == 0 {
            forms.push(format!(r"0*{last}\.0+\s*{unit}"));
            last.checked_sub(1)
        } else {
            Some(last)
        };
        let first = least / bytes;
        if let Some(last) = last.filter(|last| first <= *last) {
            let optional = if first == 0 { "?" } else { "" };
            forms.push(format!(r"({}){optional}\.[0-9]+\s*{unit}", number(first..=last)));
        }
    }
    format!("({})", forms.join("|"))
}

/// A size of `least` bytes or more. One beyond 64 bits is taken for the greatest, unless it has no
/// unit.
pub(super) fn size_from(least: u64) -> String {
    let mut forms = vec![number(least..=u64::MAX)];
    for (unit, bytes) in SIZES {
        forms.push(format!(r"{}\s*{unit}", number_from(least.div_ceil(bytes), "")));
        // The whole numbers to which every fraction may be added.
        let first = least / bytes;
        let optional = if first == 0 { "?" } else { "" };
        forms.push(format!(
            r"({}){optional}\.[0-9]+\s*{unit}",
            number_from(first, "")
        ));
    }
    format!("((?=.*[1-9])({}))", forms.join("|"))
}

/// A time in a range.
pub(super) fn time(range: RangeInclusive<Duration>) -> String {
    let (least, greatest) = (range.start().as_nanos(), range.end().as_nanos());
    let forms = TIMES.iter().filter_map(|(unit, nanos)| {
        let first = u64::try_from(least.div_ceil(*nanos)).ok()?;
        let number = match u64::try_from(greatest / nanos) {
            Ok(last) if first > last => return None,
            Ok(last) => spaced_number(first..=last, SPACES),
            // A time of so many nanoseconds has no bound that matters.
            Err(_) => number_from(first, SPACES),
        };
        Some(format!("{number}{unit}"))
    });
    let one = forms.collect::<Vec<_>>().join("|");
    // Parts that are beyond the range alone, whatever stands beside them.
    let beyond = TIMES.iter().filter_map(|(unit, nanos)| {
        let last = u64::try_from(greatest / nanos).ok()?;
        let longer = number_from(last.checked_add(1)?, SPACES);
        let mut forms = vec![format!(r"{longer}(\.[0-9\s]+)?")];
        if greatest % nanos == 0 {
            let last = spaced_number(last..=last, SPACES);
            forms.push(format!(r"{last}\.[0-9\s]*[1-9][0-9\s]*"));
        }
        Some(format!("({}){unit}", forms.join("|")))
    });
    let beyond = beyond.collect::<Vec<_>>().join("|");
    // A whole number with one unit has a range. Everything else has the form of a time, and no part
    // that is beyond the range.
    let others = format!(
        r"(?!\s*[0-9][0-9\s]*[A-Za-zµ]+\s*$)(?=.*[1-9])(?!(.*[A-Za-zµ])?\s*({beyond})(?![A-Za-zµ])){}",
        patterns::ANY_TIME
    );
    format!(r"(\s*({one})\s*|{others})")
}

/// A network of IPv4 whose address has no bits behind the prefix, or an address.
pub(super) fn ipv4_network() -> String {
    let octet = |bits: u32| match bits {
        0 => "0".to_owned(),
        bits => {
            let step = 1 << (8 - bits);
            let values: Vec<String> = (0..256).step_by(step).map(|value| value.to_string()).collect();
            format!("({})", values.join("|"))
        }
    };
    let free = patterns::OCTET;
    let mut forms = vec![format!(r"{free}(\.{free}){{3}}(/0*32)?")];
    for length in 0..32 {
        let before = length as usize / 8;
        let mut octets = vec![free.to_owned(); before];
        octets.push(octet(length % 8));
        octets.resize(4, "0".to_owned());
        forms.push(format!(r"{}/0*{length}", octets.join(r"\.")));
    }
    format!("({})", forms.join("|"))
}

/// Patterns for the whole numbers of a range, without zeros before them, with a `gap` after each
/// digit.
fn digits(least: u64, greatest: u64, gap: &str) -> Vec<String> {
    let mut patterns = Vec::new();
    let mut from = least;
    loop {
        let text = from.to_string();
        let last = 10_u64
            .checked_pow(text.len() as u32)
            .map_or(u64::MAX, |power| power - 1);
        let to = last.min(greatest);
        patterns.extend(same_length(text.as_bytes(), to.to_string().as_bytes(), gap));
        if to == greatest {
            return patterns;
        }
        from = to + 1;
    }
}

/// Patterns for the whole numbers of a range whose ends have as many digits, with a `gap` after
/// each digit.
fn same_length(least: &[u8], greatest: &[u8], gap: &str) -> Vec<String> {
    let ([low, lows @ ..], [high, highs @ ..]) = (least, greatest) else {
        return vec![String::new()];
    };
    let after = |digit: &u8, rest: Vec<String>| {
        let digit = char::from(*digit);
        rest.into_iter().map(move |rest| format!("{digit}{gap}{rest}"))
    };
    if low == high {
        return after(low, same_length(lows, highs, gap)).collect();
    }
    let (zeros, nines) = (vec![b'0'; lows.len()], vec![b'9'; lows.len()]);
    let (mut first, mut last) = (*low, *high);
    let mut patterns = Vec::new();
    if lows != zeros {
        patterns.extend(after(low, same_length(lows, &nines, gap)));
        first += 1;
    }
    if highs != nines {
        patterns.extend(after(high, same_length(&zeros, highs, gap)));
        last -= 1;
    }
    if first <= last {
        let any = match lows.len() {
            0 => String::new(),
            count => format!("([0-9]{gap}){{{count}}}"),
        };
        patterns.push(format!("[{}-{}]{gap}{any}", char::from(first), char::from(last)));
    }
    patterns
}
