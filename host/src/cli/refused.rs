//! Messages about command lines that are refused.

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Says what is wrong with a command line, in place of the words of clap where those do not name
/// the flags.
pub fn sentence(error: &Error) -> String {
    conflict(error).or_else(|| negative(error)).unwrap_or_else(|| {
        let text = error.render().to_string();
        text.strip_prefix("error: ")
            .unwrap_or(&text)
            .trim_end()
            .to_owned()
    })
}

/// Explains a value such as `-1MiB`, which clap takes for flags.
fn negative(error: &Error) -> Option<String> {
    let ContextValue::String(found) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let is_number = found.strip_prefix('-')?.starts_with(|c: char| c.is_ascii_digit());
    (error.kind() == ErrorKind::UnknownArgument && is_number).then(|| {
        format!(
            "unexpected `{found}`: no flag takes a value below zero; arguments for guests come after `--`"
        )
    })
}

/// Names the flags of a conflict.
fn conflict(error: &Error) -> Option<String> {
    if error.kind() != ErrorKind::ArgumentConflict {
        return None;
    }
    let one = flags(error.get(ContextKind::InvalidArg)?)?;
    let other = flags(error.get(ContextKind::PriorArg)?)?;
    Some(if one == other {
        format!("{one} is given more than once; give it once")
    } else if one == CONFIG || other == CONFIG {
        let flags = if one == CONFIG { other } else { one };
        format!("{CONFIG} cannot be combined with {flags}: the services file replaces the other flags")
    } else {
        format!("{one} cannot be combined with {other}; remove one of the two")
    })
}

const CONFIG: &str = "--config";

/// The names of flags, without their values.
fn flags(context: &ContextValue) -> Option<String> {
    let name = |text: &str| {
        text.split(' ')
            .next()
            .unwrap_or(text)
            .trim_end_matches("...")
            .to_owned()
    };
    match context {
        ContextValue::String(one) => Some(name(one)),
        ContextValue::Strings(several) => {
            let names: Vec<_> = several.iter().map(|one| name(one)).collect();
            (!names.is_empty()).then(|| names.join(", "))
        }
        _ => None,
    }
}
