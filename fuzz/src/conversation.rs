//! Conversations: any that can be is written and read again, and any text is read or refused with
//! its line.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use host::conversation::{Client, Conversation, Failure, Guest, MAX_PAUSE, ParseError, Step};

/// Lines and parts of lines that lead deeper into the parser than random text.
const WORDS: &[&str] = &[
    "> ",
    "< ",
    "\"",
    "\"a\"",
    "\\n",
    "\\x",
    "0f",
    "\\",
    "break",
    "pause ",
    "500ms",
    "end",
    "reset",
    "trap",
    "cut",
    "cpu-limit",
    "\n",
    "\n> \"b\"\n",
    "\n< \"c\"\n",
    "# ",
    " ",
    "\r\n",
    "\r",
];

#[derive(Debug)]
enum Case {
    /// Steps. Those that cannot come where they stand are left out.
    Steps(Vec<Step>),
    /// Any text.
    Text(String),
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        if u.arbitrary()? {
            let count = u.int_in_range(0..=20)?;
            let steps = (0..count).map(|_| step(u)).collect::<Result<_, _>>()?;
            return Ok(Self::Steps(steps));
        }
        let mut text = String::new();
        while !u.is_empty() {
            if u.ratio(7, 8)? {
                text.push_str(u.choose(WORDS)?);
            } else {
                text.push(u.arbitrary()?);
            }
        }
        Ok(Self::Text(text))
    }
}

fn step(u: &mut Unstructured<'_>) -> arbitrary::Result<Step> {
    Ok(match u.int_in_range(0..=13)? {
        0..=2 => Step::Client(Client::Sends(u.arbitrary()?)),
        3..=5 => Step::Guest(Guest::Sends(u.arbitrary()?)),
        6 => Step::Client(Client::Break),
        7 => {
            let most = u64::try_from(MAX_PAUSE.as_millis()).unwrap_or(u64::MAX);
            Step::Client(Client::Pause(Duration::from_millis(u.int_in_range(1..=most)?)))
        }
        8 => Step::Client(Client::End),
        9 => Step::Guest(Guest::End),
        10 => Step::Client(Client::Reset),
        11 => u.choose(&[Step::Guest(Guest::Reset), Step::Cut])?.clone(),
        12 => Step::Guest(Guest::Exits(u.arbitrary()?)),
        _ => Step::Guest(Guest::Fails(*u.choose(&Failure::ALL)?)),
    })
}

/// Makes a case of any bytes, and reads its text.
///
/// # Panics
///
/// The parser reads other steps than were written, or a refusal does not name a line of the text.
pub fn run(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    match case {
        Case::Steps(steps) => {
            let mut conversation = Conversation::default();
            for step in possible(steps) {
                conversation.add(0, step);
            }
            if !conversation.steps.is_empty() {
                assert_eq!(again(&conversation), conversation);
            }
        }
        Case::Text(text) => match Conversation::parse(&text) {
            Ok(read) => {
                let without_lines = unnumbered(read.clone());
                assert_eq!(again(&read), without_lines, "{text:?}");
                let count = lines(&text).count();
                let numbers: Vec<_> = read.steps.iter().map(|(line, _)| *line).collect();
                assert!(numbers.is_sorted() && numbers.iter().all(|line| (1..=count).contains(line)));
            }
            Err(ParseError::Empty) => {
                let is_empty = |line: &str| trim(line).is_empty() || trim(line).starts_with('#');
                assert!(lines(&text).all(is_empty), "{text:?}");
            }
            Err(ParseError::Line { line, problem }) => {
                let named = lines(&text).nth(line - 1);
                assert!(
                    named.is_some_and(|line| !trim(line).is_empty()),
                    "{text:?}: {problem}"
                );
            }
        },
    }
}

/// The lines of a text, each without its end.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
}

/// Removes the space that a line may begin and end with.
fn trim(line: &str) -> &str {
    line.trim_matches([' ', '\t'])
}

/// Writes a conversation and reads it again, without the numbers of lines.
fn again(conversation: &Conversation) -> Conversation {
    let text = conversation.to_string();
    let read = Conversation::parse(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    unnumbered(read)
}

fn unnumbered(mut conversation: Conversation) -> Conversation {
    conversation.steps.iter_mut().for_each(|(line, _)| *line = 0);
    conversation
}

/// Removes the steps that cannot come where they stand, by a model of the rules.
fn possible(steps: Vec<Step>) -> Vec<Step> {
    let mut kept: Vec<Step> = Vec::new();
    for step in steps {
        let had = |step: &Step| kept.contains(step);
        let is_failure = matches!(step, Step::Guest(Guest::Fails(_)));
        let is_over = kept.iter().any(|step| {
            matches!(
                step,
                Step::Cut | Step::Guest(Guest::Reset | Guest::Fails(_) | Guest::Exits(_))
            )
        });
        let is_reset = had(&Step::Client(Client::Reset)) && !is_failure;
        let has_ended = match &step {
            Step::Client(Client::Sends(_) | Client::Break | Client::End) => had(&Step::Client(Client::End)),
            Step::Guest(Guest::Sends(_) | Guest::End) => had(&Step::Guest(Guest::End)),
            _ => false,
        };
        if is_over || is_reset || has_ended {
            continue;
        }
        let (after_break, after_bytes) = match kept.last() {
            Some(Step::Client(Client::Break)) => (true, false),
            Some(Step::Client(Client::Sends(_))) => (false, true),
            _ => (false, false),
        };
        let sends = matches!(step, Step::Client(Client::Sends(_)));
        if step == Step::Client(Client::Break) && !after_bytes || after_break && !sends {
            continue;
        }
        kept.push(step);
    }
    if kept.last() == Some(&Step::Client(Client::Break)) {
        kept.pop();
    }
    kept
}
