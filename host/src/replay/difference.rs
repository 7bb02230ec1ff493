//! Where a guest does something else than a conversation has, and how that is shown.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use crate::connection::{Outcome, Report};
use crate::conversation::{Guest, Step};
use crate::logging::in_one_line;
use crate::record;
use crate::sandbox::in_brief;

/// Bytes that are shown of what a guest sends.
const SHOWN: usize = 200;

/// Bytes that are shown before the first one that differs, where that one is far from the
/// beginning.
const BEFORE: usize = 40;

/// The first place where a guest does not do what a conversation has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The file of the conversation.
    pub file: PathBuf,
    /// The line of the step.
    pub line: usize,
    /// What the conversation has there.
    pub expected: String,
    /// What the guest does, in lines such as a conversation has them.
    pub found: Vec<String>,
    /// Why the guest failed, if it did.
    pub reason: Option<String>,
    /// The guest failed since the host had no memory or no room for its instance.
    pub is_of_system: bool,
    /// The last lines that the guest wrote to standard error or logged.
    pub output: Vec<String>,
}

impl Difference {
    /// Describes the difference in one line, for a log.
    pub fn in_one_line(&self) -> String {
        let Self {
            file, line, expected, ..
        } = self;
        let found = self.found.join(", then ");
        let mut text = format!("{}:{line}: expected {expected}, found {found}", file.display());
        if let Some(reason) = &self.reason {
            let _ = write!(text, " ({reason})");
        }
        if !self.output.is_empty() {
            let _ = write!(text, "; standard error: {}", in_brief(&self.output));
        }
        text
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = in_one_line(self.file.display());
        write!(f, "{file}:{}\n- {}", self.line, in_one_line(&self.expected))?;
        for found in &self.found {
            write!(f, "\n+ {}", in_one_line(found))?;
        }
        if let Some(reason) = &self.reason {
            write!(f, "\n  {}", in_one_line(reason))?;
        }
        if !self.output.is_empty() {
            f.write_str("\n  standard error:")?;
        }
        self.output
            .iter()
            .try_for_each(|line| write!(f, "\n    {}", in_one_line(line)))
    }
}

impl std::error::Error for Difference {}

/// Returns the position of the first byte in which two texts differ.
pub(super) fn first(one: &[u8], other: &[u8]) -> usize {
    one.iter()
        .zip(other)
        .take_while(|(one, other)| one == other)
        .count()
}

/// Shows a step of a conversation, of a long text the part around byte `at`.
pub(super) fn expected(step: &Step, at: usize) -> String {
    match step {
        Step::Guest(Guest::Sends(bytes)) => sends(bytes, at),
        Step::Client(_) => "the guest reads what the client sends".to_owned(),
        other => other.to_string(),
    }
}

/// Shows what a guest sends in one line, of a long text the part around byte `at`.
pub(super) fn sends(bytes: &[u8], at: usize) -> String {
    let start = if at + BEFORE < SHOWN { 0 } else { at - BEFORE };
    let skipped = match start {
        0 => String::new(),
        start => format!("after {start} bytes: "),
    };
    let rest = &bytes[start..];
    let more = if rest.len() > SHOWN { " ..." } else { "" };
    format!(
        "< {skipped}\"{}\"{more}",
        rest[..rest.len().min(SHOWN)].escape_ascii()
    )
}

/// Shows how a connection has ended: with the guest's FIN, its failure, or both. Empty if something
/// else ended it.
pub(super) fn ending(report: &Report) -> Vec<String> {
    let mut found = Vec::new();
    if report.at_end.guest_ended {
        found.push(Step::Guest(Guest::End).to_string());
    }
    match record::last_step(report.outcome, report.at_end) {
        Some(step @ Step::Guest(_)) => found.push(step.to_string()),
        // The host ends a replay in this way itself.
        Some(Step::Cut) if report.outcome != Outcome::Drained => {
            found.push(format!("cut by the host: {}", report.outcome.as_str()));
        }
        _ => {}
    }
    found
}
