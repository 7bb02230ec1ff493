//! Names of functions of guests, in messages and in the log.
//!
//! A short mangled name can stand for one of any length, since it can refer to its own parts. So
//! names and texts are bounded while they are written.

use std::fmt::{self, Write as _};

/// Bytes of a name in a message.
const MAX_NAME: usize = 256;

/// Bytes of a mangled name that is demangled.
const MAX_MANGLED: usize = 4096;

/// Bytes of a text that is longer than one line, such as a backtrace.
const MAX_TEXT: usize = 16 << 10;

/// Lines of such a text. The backtraces of wasmtime have 20 frames.
const MAX_LINES: usize = 100;

/// Writes the mangled names of functions in a message as Rust has them. Longer names than 256 bytes
/// end in an ellipsis.
pub(super) fn demangled(message: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(is_part) {
        let (before, word) = rest.split_at(start);
        let (word, after) = word.split_at(word.find(|c| !is_part(c)).unwrap_or(word.len()));
        text.push_str(before);
        let name = (word.len() <= MAX_MANGLED).then(|| rustc_demangle::try_demangle(word));
        text += &match name {
            Some(Ok(name)) => bounded(MAX_NAME, format_args!("{name:#}")),
            _ => bounded(MAX_NAME, format_args!("{word}")),
        };
        rest = after;
    }
    text + rest
}

/// Writes an error with its backtrace, in at most 100 lines, and says how many more there were. Longer
/// texts than 16 KiB end in an ellipsis.
pub(super) fn trace(error: &wasmtime::Error) -> String {
    let text = demangled(&bounded(MAX_TEXT, format_args!("{error:?}")));
    // A name can be seven times as long as its mangled form.
    let text = bounded(MAX_TEXT, format_args!("{text}"));
    // Names of functions can contain line feeds.
    match text.match_indices('\n').nth(MAX_LINES - 1) {
        None => text,
        Some((end, _)) => {
            let more = text[end..].matches('\n').count();
            format!("{}\n… {more} more lines were left out", &text[..end])
        }
    }
}

/// The first `max` bytes of a text, and an ellipsis if there is more. No more than that is made.
pub(super) fn bounded(max: usize, text: fmt::Arguments<'_>) -> String {
    let mut bounded = Bounded {
        text: String::new(),
        max,
    };
    if bounded.write_fmt(text).is_err() {
        bounded.text.push('…');
    }
    bounded.text
}

struct Bounded {
    text: String,
    max: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = self.max - self.text.len();
        if part.len() <= room {
            self.text.push_str(part);
            return Ok(());
        }
        self.text.push_str(&part[..part.floor_char_boundary(room)]);
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mangled_names_are_shown_as_in_the_source() {
        let message = "failed to compile: wasm[0]::function[98]::_RNvCs1234_7mycrate3foo: bad";
        let expected = "failed to compile: wasm[0]::function[98]::mycrate::foo: bad";
        assert_eq!(demangled(message), expected);
        assert_eq!(
            demangled("_ZN4core3fmt5write17h0123456789abcdefE"),
            "core::fmt::write"
        );
        for other in ["", "`_initialize` is _R and _ZN: 5 (at offset 0x7)", "é::_start"] {
            assert_eq!(demangled(other), other);
        }
    }

    #[test]
    fn a_trace_is_bounded_once_its_names_are_written_out() {
        // Each of its types is a pair of the one in it.
        let name = "_RMC0TTTTTTyB8_EB7_EB6_EB5_EB4_EB3_E";
        assert!(demangled(name).len() > 7 * name.len(), "{}", demangled(name));
        let text = trace(&wasmtime::Error::msg(
            format!("{name} ").repeat(MAX_TEXT / name.len()),
        ));
        assert!(
            text.len() <= MAX_TEXT + "…".len() && text.ends_with('…'),
            "{}",
            text.len()
        );
    }

    #[test]
    fn line_feeds_in_names_make_few_lines() {
        let text = trace(&wasmtime::Error::msg("a\n".repeat(8000)));
        assert_eq!(text.lines().count(), MAX_LINES + 1);
        assert!(text.ends_with("\n… 7901 more lines were left out"), "{text}");
        let lines = "a\n".repeat(MAX_LINES);
        let lines = lines.trim_end();
        assert_eq!(trace(&wasmtime::Error::msg(lines.to_owned())), lines);
    }

    /// A reference to a place in a mangled name (RFC 2603).
    fn reference(place: usize) -> String {
        let digits = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let (mut rest, mut text) = (place - 1, String::new());
        loop {
            text.insert(0, char::from(digits[rest % 62]));
            rest /= 62;
            if rest == 0 {
                return format!("B{text}_");
            }
        }
    }

    #[test]
    fn a_name_that_doubles_with_each_part_is_cut() {
        // A function of type arguments, each of which is a pair of the one before it.
        let mut name = "_RINvC1a1f".to_owned();
        let mut pair = "TmmE".to_owned();
        for _ in 0..40 {
            let place = name.len() - "_R".len();
            name += &pair;
            pair = format!("T{0}{0}E", reference(place));
        }
        name += "E";
        let shown = demangled(&format!("at {name}: unreachable"));
        assert!(
            shown.starts_with("at a::f::<(u32, u32), ((u32, u32), (u32, u32)), "),
            "{shown}"
        );
        assert!(
            shown.ends_with("…: unreachable") && shown.len() < 2 * MAX_NAME,
            "{shown}"
        );
    }

    #[test]
    fn long_names_and_long_texts_are_cut() {
        let long = "é".repeat(MAX_TEXT);
        assert_eq!(demangled(&"x".repeat(10_000)).len(), MAX_NAME + "…".len());
        let text = trace(&wasmtime::Error::msg(long));
        assert!(
            text.len() <= MAX_TEXT + "…".len() && text.ends_with("é…"),
            "{text}"
        );
    }
}
