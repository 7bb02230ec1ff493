//! Reading the text form of a conversation.

use std::num::NonZero;
use std::time::Duration;

use thiserror::Error;

use super::{Client, Conversation, Failure, Guest, MAX_PAUSE, Step, UNITS};

/// The characters that may stand around the parts of a line.
const SPACE: [char; 2] = [' ', '\t'];

/// The reason why a text is not a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The text has no steps.
    #[error("the file has no steps: expected lines such as `> \"hello\\n\"` and `< \"hello\\n\"`")]
    Empty,
    /// A line is not valid.
    #[error("line {line}: {problem}")]
    Line {
        /// The number of the line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// What is wrong with one line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The line does not begin with a mark.
    #[error("expected `>` (client), `<` (guest), `#` (comment) or `cut` at the start of the line")]
    Mark,
    /// What follows `>` is not something that a client does.
    #[error("expected a text in quotes, `break`, `pause TIME`, `end` or `reset` after `>`")]
    Client,
    /// What follows `<` is not something that a guest does.
    #[error(
        "expected a text in quotes, `end`, `reset`, `exit STATUS`, {} after `<`",
        failures()
    )]
    Guest,
    /// The status of an exit is not valid.
    #[error(
        "`{0}` is not a valid exit status: expected a whole number of 32 bits other than 0, as in \
         `< exit 2`"
    )]
    Status(String),
    /// The text has no quote at its end.
    #[error("the text in quotes has no closing quote")]
    Unclosed,
    /// A quote is not escaped.
    #[error("something follows the closing quote; a quote within the text is written `\\\"`")]
    Quote,
    /// A backslash is not part of an escape.
    #[error(
        "`{0}` is not a valid escape: expected `\\n`, `\\r`, `\\t`, `\\0`, `\\\\`, `\\\"`, `\\'` or \
         `\\x` with two hexadecimal digits"
    )]
    Escape(String),
    /// The time of a pause is not valid.
    #[error("`{0}` is not a valid pause: expected a time from `1ms` to `24h`, such as `500ms`")]
    Pause(String),
    /// A break is not between two texts of the client.
    #[error("`> break` has to stand between two lines in which the client sends bytes")]
    Break,
    /// A carriage return stands where no other character can.
    #[error("the line has a carriage return within it; end lines with LF or CRLF")]
    Return,
    /// The step cannot come after an earlier one.
    #[error("`{step}` cannot follow `{earlier}` in line {line}: {reason}")]
    After {
        /// The step.
        step: String,
        /// The earlier step.
        earlier: String,
        /// The line of the earlier step.
        line: usize,
        /// Why not.
        reason: &'static str,
    },
}

fn failures() -> String {
    let mut words: Vec<_> = Failure::ALL
        .map(|failure| format!("`{}`", failure.as_str()))
        .into();
    let last = words.pop().unwrap_or_default();
    format!("{} or {last}", words.join(", "))
}

impl Conversation {
    /// Reads the text form.
    ///
    /// # Errors
    ///
    /// A line is not valid, a step cannot come where it stands, or there are no steps.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut conversation = Self::default();
        let mut order = Order::default();
        let misplaced = |(line, problem)| ParseError::Line { line, problem };
        for (index, text) in text.split('\n').enumerate() {
            let line = index + 1;
            // The last line of a file with CRLF may have lost its LF.
            let text = text.strip_suffix('\r').unwrap_or(text).trim_matches(SPACE);
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let refused = |problem| ParseError::Line { line, problem };
            let step = step(text).map_err(|problem| refused(with_return(problem, text)))?;
            order.next(line, &step).map_err(misplaced)?;
            conversation.add(line, step);
        }
        order.end().map_err(misplaced)?;
        if conversation.steps.is_empty() {
            return Err(ParseError::Empty);
        }
        Ok(conversation)
    }
}

/// Reports a carriage return in `line` instead of `problem`. Editors do not show the character, so
/// the problem that it causes would be hard to understand.
fn with_return(problem: Problem, line: &str) -> Problem {
    if line.contains('\r') {
        Problem::Return
    } else {
        problem
    }
}

/// Reads one line that has a step.
fn step(line: &str) -> Result<Step, Problem> {
    match line.split_at_checked(1) {
        Some((">", rest)) => client(rest.trim_start_matches(SPACE)).map(Step::Client),
        Some(("<", rest)) => guest(rest.trim_start_matches(SPACE)).map(Step::Guest),
        _ if line == "cut" => Ok(Step::Cut),
        _ => Err(Problem::Mark),
    }
}

fn client(rest: &str) -> Result<Client, Problem> {
    Ok(match rest {
        "break" => Client::Break,
        "end" => Client::End,
        "reset" => Client::Reset,
        _ => {
            if let Some(time) = rest.strip_prefix("pause") {
                return pause(time.trim_start_matches(SPACE)).map(Client::Pause);
            }
            Client::Sends(unquote(rest, Problem::Client)?)
        }
    })
}

fn guest(rest: &str) -> Result<Guest, Problem> {
    if let Some(failure) = Failure::ALL.into_iter().find(|failure| failure.as_str() == rest) {
        return Ok(Guest::Fails(failure));
    }
    if let Some(status) = rest.strip_prefix("exit") {
        return status_of(status.trim_start_matches(SPACE)).map(Guest::Exits);
    }
    Ok(match rest {
        "end" => Guest::End,
        "reset" => Guest::Reset,
        _ => Guest::Sends(unquote(rest, Problem::Guest)?),
    })
}

fn status_of(text: &str) -> Result<NonZero<i32>, Problem> {
    // The standard library takes a plus sign too.
    let status = text.parse().ok().filter(|_| !text.starts_with('+'));
    status.ok_or_else(|| Problem::Status(text.to_owned()))
}

fn pause(text: &str) -> Result<Duration, Problem> {
    time(text)
        .filter(|time| (Duration::from_millis(1)..=MAX_PAUSE).contains(time))
        .ok_or_else(|| Problem::Pause(text.to_owned()))
}

/// Reads a time: whole numbers with a unit, such as `1s 500ms`.
fn time(text: &str) -> Option<Duration> {
    let mut time = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let (millis, after) = UNITS
            .into_iter()
            .filter_map(|(unit, millis)| Some((millis, after.strip_prefix(unit)?)))
            .next()?;
        let millis = number.parse::<u64>().ok()?.checked_mul(millis)?;
        time = time.checked_add(Duration::from_millis(millis))?;
        rest = after.trim_start_matches(SPACE);
    }
    Some(time)
}

/// Returns the bytes that stand in quotes. `otherwise` is the problem of a text without an opening
/// quote.
fn unquote(text: &str, otherwise: Problem) -> Result<Vec<u8>, Problem> {
    let inner = text.strip_prefix('"').ok_or(otherwise)?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    loop {
        match rest.next().ok_or(Problem::Unclosed)? {
            '"' if rest.as_str().is_empty() => return Ok(bytes),
            '"' => return Err(Problem::Quote),
            '\\' => bytes.push(escape(&mut rest)?),
            plain => bytes.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Reads what follows a backslash.
fn escape(rest: &mut std::str::Chars<'_>) -> Result<u8, Problem> {
    let escaped = rest.next().ok_or(Problem::Unclosed)?;
    Ok(match escaped {
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        '0' => 0,
        '\\' => b'\\',
        '"' => b'"',
        '\'' => b'\'',
        'x' => {
            let digits: String = rest
                .as_str()
                .chars()
                .take(2)
                .take_while(|char| *char != '"')
                .collect();
            let is_hex = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            let byte = u8::from_str_radix(&digits, 16).ok().filter(|_| is_hex);
            let byte = byte.ok_or_else(|| Problem::Escape(format!("\\x{digits}")))?;
            rest.nth(1);
            byte
        }
        other => return Err(Problem::Escape(format!("\\{other}"))),
    })
}

/// A step that ended something, with its line.
type Ended = Option<(usize, String)>;

/// A problem with the line that has it.
type Misplaced = (usize, Problem);

/// Checks that each step can come where it stands.
#[derive(Default)]
struct Order {
    client_ended: Ended,
    guest_ended: Ended,
    client_reset: Ended,
    /// The connection is over.
    over: Ended,
    /// The last step is one in which the client sends bytes.
    sent: bool,
    /// The line of a break that no bytes have followed yet.
    broken: Option<usize>,
}

impl Order {
    fn next(&mut self, line: usize, step: &Step) -> Result<(), Misplaced> {
        let after = |earlier: &Ended, reason| match earlier {
            None => Ok(()),
            Some((at, earlier)) => {
                let problem = Problem::After {
                    step: shortened(step),
                    earlier: earlier.clone(),
                    line: *at,
                    reason,
                };
                Err((line, problem))
            }
        };
        let sends = matches!(step, Step::Client(Client::Sends(_)));
        if !sends {
            self.end()?;
        }
        after(&self.over, "the connection is over")?;
        // After a reset by the client, only a failure of the guest can still be seen.
        if !matches!(step, Step::Guest(Guest::Fails(_))) {
            after(&self.client_reset, "the client has reset the connection")?;
        }
        match step {
            Step::Client(Client::Sends(_) | Client::Break | Client::End) => {
                after(&self.client_ended, "the client has ended its half")?;
            }
            Step::Guest(Guest::Sends(_) | Guest::End) => {
                after(&self.guest_ended, "the guest has ended its half")?;
            }
            _ => {}
        }
        let this = || Some((line, step.to_string()));
        match step {
            Step::Client(Client::Break) if !self.sent => return Err((line, Problem::Break)),
            Step::Client(Client::Break) => self.broken = Some(line),
            Step::Client(Client::Sends(_)) => self.broken = None,
            Step::Client(Client::End) => self.client_ended = this(),
            Step::Client(Client::Reset) => self.client_reset = this(),
            Step::Guest(Guest::End) => self.guest_ended = this(),
            Step::Guest(Guest::Reset | Guest::Fails(_) | Guest::Exits(_)) | Step::Cut => self.over = this(),
            Step::Client(Client::Pause(_)) | Step::Guest(Guest::Sends(_)) => {}
        }
        self.sent = sends;
        Ok(())
    }

    /// Checks that no bytes are missing behind a break.
    fn end(&self) -> Result<(), Misplaced> {
        self.broken.map_or(Ok(()), |line| Err((line, Problem::Break)))
    }
}

/// A step for a message, without the bytes.
fn shortened(step: &Step) -> String {
    match step {
        Step::Client(Client::Sends(_)) => "> \"...\"".to_owned(),
        Step::Guest(Guest::Sends(_)) => "< \"...\"".to_owned(),
        other => other.to_string(),
    }
}
