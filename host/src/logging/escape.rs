//! Escapes for text from outside the host, in the log and in messages on standard error.
//!
//! Clients, guests and names of files can contain any character. Everything that the host writes to
//! standard error passes through here, so that no such text can imitate a line of the host, control
//! a terminal, or change the order in which a line is displayed.

use std::fmt::{self, Debug, Display, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The field of an event that holds the backtrace of a guest. Its lines stay lines in the text log.
/// All other fields and the message stay in one line, because they can hold names from outside.
const TRACE: &str = "trace";

/// Begins the second and further lines of a backtrace. No line of the host begins with a space.
const INDENT: &str = "\n    ";

/// How unsafe characters are written.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// As Rust escapes them.
    Line,
    /// As Rust escapes them, but a line break begins an indented line.
    Lines,
    /// As JSON escapes them. A line break ends the line.
    Json,
}

impl Style {
    fn write(self, c: char, out: &mut impl Write) -> fmt::Result {
        match (self, c) {
            (Self::Lines, '\n') => out.write_str(INDENT),
            (Self::Json, '\n') => out.write_char(c),
            (Self::Json, _) => write!(out, "\\u{:04x}", u32::from(c)),
            (Self::Line | Self::Lines, _) => write!(out, "{}", c.escape_default()),
        }
    }
}

/// Checks whether a character can end a line, control a terminal, or reorder the text around it.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            // Arabic letter mark; left-to-right and right-to-left marks.
            '\u{61c}' | '\u{200e}' | '\u{200f}'
            // Line and paragraph separators; embeddings and overrides.
            | '\u{2028}'..='\u{202e}'
            // Isolates, and deprecated format characters.
            | '\u{2066}'..='\u{206f}'
            | '\u{feff}'
        )
}

/// Writes text on, with unsafe characters escaped.
struct Escaper<'a, W> {
    out: &'a mut W,
    style: Style,
}

impl<W: Write> Write for Escaper<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_unsafe) {
            let (plain, found) = rest.split_at(at);
            self.out.write_str(plain)?;
            let mut chars = found.chars();
            if let Some(c) = chars.next() {
                self.style.write(c, self.out)?;
            }
            rest = chars.as_str();
        }
        self.out.write_str(rest)
    }
}

/// Displays `text` in one line, with unsafe characters escaped.
pub fn in_one_line(text: impl Display) -> impl Display {
    fmt::from_fn(move |f| {
        let style = Style::Line;
        write!(Escaper { out: f, style }, "{text}")
    })
}

/// The longest beginning of `text` that takes at most `max` bytes where it is escaped.
pub(crate) fn beginning(text: &str, max: usize) -> &str {
    let mut room = max;
    let end = text.char_indices().find(|(_, c)| {
        let width = if is_unsafe(*c) {
            "\\u{202e}".len()
        } else {
            c.escape_debug().map(char::len_utf8).sum()
        };
        match room.checked_sub(width) {
            Some(left) => {
                room = left;
                false
            }
            None => true,
        }
    });
    end.map_or(text, |(end, _)| &text[..end])
}

/// Formats the fields of text lines, with unsafe characters escaped.
#[derive(Debug)]
pub(super) struct EscapedFields;

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = DefaultVisitor::new(writer, true);
        fields.record(&mut EscapedVisitor(&mut visitor));
        visitor.finish()
    }
}

/// Passes fields on, with unsafe characters escaped. Quotes a value that could be taken for several
/// fields.
struct EscapedVisitor<'a, V>(&'a mut V);

/// The field of an event that holds its message, which is never quoted.
const MESSAGE: &str = "message";

impl<V: Visit> Visit for EscapedVisitor<'_, V> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.write(field, Style::Line, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            TRACE => self.write(field, Style::Lines, value),
            MESSAGE => self.write(field, Style::Line, value),
            _ => {
                let text = format!("{value:?}");
                if is_one_word(&text) {
                    self.write(field, Style::Line, &format_args!("{text}"));
                } else {
                    self.write(field, Style::Line, &text);
                }
            }
        }
    }
}

impl<V: Visit> EscapedVisitor<'_, V> {
    fn write(&mut self, field: &Field, style: Style, value: &dyn Debug) {
        let escaped = fmt::from_fn(|f| write!(Escaper { out: f, style }, "{value:?}"));
        self.0.record_debug(field, &escaped);
    }
}

/// Checks whether a value of a field can stand without quotes.
fn is_one_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '='))
}

/// Formats JSON lines by `E`, with the unsafe characters escaped that JSON permits in strings.
#[derive(Debug)]
pub(super) struct EscapedJson<E>(pub(super) E);

impl<S, N, E> FormatEvent<S, N> for EscapedJson<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Outside of strings, JSON is ASCII without control characters.
        let style = Style::Json;
        let mut escaper = Escaper {
            out: &mut writer,
            style,
        };
        self.0.format_event(context, Writer::new(&mut escaper), event)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::info;

    use super::*;

    /// Characters that are escaped, each with its Rust escape.
    const UNSAFE: [(char, &str); 12] = [
        ('\n', "\\n"),
        ('\r', "\\r"),
        ('\t', "\\t"),
        ('\0', "\\u{0}"),
        ('\u{1b}', "\\u{1b}"),
        ('\u{7f}', "\\u{7f}"),
        ('\u{85}', "\\u{85}"),
        ('\u{9b}', "\\u{9b}"),
        ('\u{2028}', "\\u{2028}"),
        ('\u{202e}', "\\u{202e}"),
        ('\u{2066}', "\\u{2066}"),
        ('\u{200f}', "\\u{200f}"),
    ];

    #[test]
    fn the_beginning_of_a_text_counts_its_escapes() {
        for (text, expected) in [
            ("", ""),
            ("twelve bytes", "twelve bytes"),
            ("more than twelve", "more than tw"),
            ("éééééééé", "éééééé"),
            ("\"\"\"\"\"\"\"\"", "\"\"\"\"\"\""),
            ("\u{1b}\u{1b}a", "\u{1b}"),
            ("abcd\u{202e}", "abcd\u{202e}"),
            ("abcde\u{202e}", "abcde"),
        ] {
            assert_eq!(beginning(text, 12), expected, "{text:?}");
        }
    }

    fn written(style: Style, text: &str) -> String {
        let mut out = String::new();
        write!(Escaper { out: &mut out, style }, "{text}").unwrap();
        out
    }

    #[test]
    fn unsafe_characters_are_escaped_in_each_style() {
        for (c, escape) in UNSAFE {
            let text = format!("é{c}\"\\ x{c}");
            let line = format!("é{escape}\"\\ x{escape}");
            assert_eq!(in_one_line(&text).to_string(), line);
            let json = written(Style::Json, &text);
            if c == '\n' {
                assert_eq!(written(Style::Lines, &text), "é\n    \"\\ x\n    ");
                assert_eq!(json, text);
            } else {
                assert_eq!(written(Style::Lines, &text), line);
                assert_eq!(
                    json,
                    text.replace(c, &format!("\\u{:04x}", u32::from(c))),
                    "{line}"
                );
            }
        }
    }

    /// The lines of a log in memory.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn values_that_look_like_several_fields_are_quoted() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(EscapedFields)
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            info!(file = %"a b=\"c\"", plain = %"/a/b", "said {}", "x=\"y\" z");
            info!(text = "a b", error = %io::Error::other("no\nspace"), empty = %"", count = 3, "more");
            info!(quoted = %"\"a\" b=\"c\"", trace = %"one\ntwo three", flag = true);
        });
        let written = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let expected = [
            r#" INFO said x="y" z file="a b=\"c\"" plain=/a/b"#,
            r#" INFO more text="a b" error="no\nspace" empty="" count=3"#,
            r#" INFO quoted="\"a\" b=\"c\"" trace=one"#,
            "    two three flag=true",
        ];
        assert_eq!(written.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn other_characters_stay_as_they_are() {
        let text = "naïve “日本語” \u{1f469}\u{200d}\u{1f680} \\x1b";
        for style in [Style::Line, Style::Lines, Style::Json] {
            assert_eq!(written(style, text), text);
        }
    }
}
