//! Messages about command lines that are refused.

use std::borrow::Cow;
use std::error::Error as _;
use std::ffi::OsString;
use std::iter;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory as _, Error, Parser as _};

use super::Cli;
use crate::logging::in_one_line;
use crate::values;

/// Flags whose values are not shown, because they can contain credentials.
const SECRET: [&str; 3] = ["--allow-outbound", "--env", "--otlp"];

/// Says what is wrong with a command line, in place of the words of clap where those do not name
/// the flags. `words` are the command line. The first line is the sentence. No value adds a line,
/// and no secret is shown.
pub fn sentence(mut error: Error, words: impl IntoIterator<Item = OsString>) -> String {
    let words: Vec<_> = words.into_iter().collect();
    conflict(&error)
        .or_else(|| not_utf8(&error, &words))
        .or_else(|| negative(&error, &words))
        .or_else(|| late_command(&error))
        .or_else(|| split_variable(&error, &words))
        .or_else(|| assignment(&error, &words))
        .or_else(|| no_config(&error, &words))
        .or_else(|| of_other_commands(&error))
        .or_else(|| invalid(&error))
        .unwrap_or_else(|| {
            if error.kind() == ErrorKind::UnknownArgument && !takes_arguments_for_guests(&words) {
                // The advice to pass the argument after `--`.
                error.remove(ContextKind::Suggested);
            }
            rendered(&mut error)
        })
}

/// Renders an error, with its values in one line each.
fn rendered(error: &mut Error) -> String {
    let context: Vec<_> = error
        .context()
        .map(|(kind, value)| (kind, value.clone()))
        .collect();
    for (kind, value) in context {
        let shown = match value {
            ContextValue::String(text) => ContextValue::String(shown(&text)),
            ContextValue::Strings(texts) => {
                ContextValue::Strings(texts.iter().map(|text| shown(text)).collect())
            }
            // Advice that repeats a value.
            ContextValue::StyledStrs(texts) if !texts.iter().all(|text| is_plain(&text.to_string())) => {
                error.remove(kind);
                continue;
            }
            other => other,
        };
        error.insert(kind, shown);
    }
    let text = error.render().to_string();
    text.strip_prefix("error: ")
        .unwrap_or(&text)
        .trim_end()
        .to_owned()
}

/// Says that a value is invalid, and why.
fn invalid(error: &Error) -> Option<String> {
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let ContextValue::String(flag) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let reason = error.source()?.to_string();
    let is_secret = SECRET.contains(&name(flag).as_str()) || reason == VARIABLE;
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) if !is_secret && !values::hides_value(value, &reason) => {
            format!(" '{}'", shown(value))
        }
        _ => String::new(),
    };
    let reason = if values::is_content(&reason) {
        String::new()
    } else {
        format!(": {}", in_one_line(reason))
    };
    Some(format!(
        "invalid value{value} for '{flag}'{reason}\n\nFor more information, try '--help'."
    ))
}

/// The value of a flag as messages show it.
fn shown(value: &str) -> String {
    if values::is_content(value) {
        "(the content of a file, not shown)".to_owned()
    } else if values::may_be_secret(value) {
        "(not shown, since it may be a secret)".to_owned()
    } else {
        in_one_line(value).to_string()
    }
}

/// Checks whether a text has one line and nothing that is escaped or not shown.
fn is_plain(text: &str) -> bool {
    shown(text) == text
}

/// Explains a value such as `-1MiB`, which clap takes for flags, and of which it names the first.
fn negative(error: &Error, words: &[OsString]) -> Option<String> {
    let ContextValue::String(found) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let is_number = found.strip_prefix('-')?.starts_with(|c: char| c.is_ascii_digit());
    (error.kind() == ErrorKind::UnknownArgument && is_number).then(|| {
        let mut words = words.iter().filter_map(|word| word.to_str());
        let found = shown(words.find(|word| word.starts_with(found)).unwrap_or(found));
        format!(
            "unexpected `{found}`: no flag takes a value below zero; arguments for guests come after `--`"
        )
    })
}

/// Names an argument of the form `NAME=VALUE` that no flag takes, without its value: it may be a
/// variable that was meant for `--env`, with a secret.
fn assignment(error: &Error, words: &[OsString]) -> Option<String> {
    let found = unexpected(error)?;
    if !found.contains('=') {
        return None;
    }
    // Base64 ends in `=`.
    let found = match values::assigned(found) {
        Some(name) => format!("unexpected argument `{name}=...` (its value is not shown)"),
        None => "unexpected argument (not shown, since it contains `=`)".to_owned(),
    };
    let is_env = |word: &OsString| word == "--env" || word.to_string_lossy().starts_with("--env=");
    let advice = if words.iter().any(is_env) {
        "each `--env` takes one variable; repeat the flag for each"
    } else {
        "expected a flag; variables for guests come after `--env`, and arguments after `--`"
    };
    Some(format!(
        "{found}: {advice}\n\nFor more information, try '--help'."
    ))
}

/// Returns the argument that no command or flag takes.
fn unexpected(error: &Error) -> Option<&str> {
    let (ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand) = error.kind() else {
        return None;
    };
    let kinds = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand];
    match kinds.into_iter().find_map(|kind| error.get(kind))? {
        ContextValue::String(found) => Some(found),
        _ => None,
    }
}

/// Explains the second word of a variable that was given as two, such as `--env PASSWORD secret`,
/// without showing it.
fn split_variable(error: &Error, words: &[OsString]) -> Option<String> {
    let found = unexpected(error)?;
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let is_value = |(number, word): (usize, &Cow<'_, str>)| {
        // A flag of one letter is named without the others.
        let before = &words[..number];
        let variable = match before {
            [.., flag, variable] if flag == "--env" => Some(&**variable),
            [.., flag] => flag.strip_prefix("--env="),
            [] => None,
        };
        word.starts_with(found) && variable.is_some_and(|variable| !variable.contains('='))
    };
    words.iter().enumerate().any(is_value).then(|| {
        "`--env` takes KEY=VALUE as one argument, and the argument after it (not shown) belongs to no flag: \
         write `--env KEY=VALUE`"
            .to_owned()
    })
}

/// Explains a command that comes after flags of the host, where clap takes it for an argument.
fn late_command(error: &Error) -> Option<String> {
    let found = unexpected(error)?;
    let is_command = Cli::command().find_subcommand(found).is_some();
    is_command.then(|| {
        format!(
            "unexpected argument '{found}': a command comes before all flags; write `wasm-inetd {found}` \
             first"
        )
    })
}

/// Says that a variable was given where a path is expected.
const VARIABLE: &str = "no file has this name; expected a path; each `--env` takes one variable, so \
     repeat the flag for each";

/// Checks that an operand is no variable that was meant for `--env`, whose value messages would
/// show.
pub(super) fn operand(path: PathBuf) -> Result<PathBuf, &'static str> {
    let is_variable = values::assigned(&path.to_string_lossy()).is_some();
    if is_variable && !path.exists() {
        Err(VARIABLE)
    } else {
        Ok(path)
    }
}

/// Explains `--config` for a command that takes settings by flags only. clap would advise to pass
/// it to the guest.
fn no_config(error: &Error, words: &[OsString]) -> Option<String> {
    let ContextValue::String(found) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    if error.kind() != ErrorKind::UnknownArgument || name(found) != CONFIG {
        return None;
    }
    let mut words = words.iter().filter_map(|word| word.to_str());
    let (command, instead) = words.find_map(|word| {
        let instead = match word {
            "record" => "set the key `record` of a service in the file, and start the host with the file",
            "profile" | "replay" => "give the settings of the service as flags",
            _ => return None,
        };
        Some((word, instead))
    })?;
    Some(format!(
        "`wasm-inetd {command}` reads no services file and has no flag {CONFIG}: {instead}"
    ))
}

/// Names the commands that take a flag, if the command that was given does not.
fn of_other_commands(error: &Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let flag = name(unexpected(error)?);
    let is_flag = |argument: &Arg| {
        let long = argument.get_long().map(|long| format!("--{long}"));
        let short = argument.get_short().map(|short| format!("-{short}"));
        long.as_deref() == Some(&flag) || short.as_deref() == Some(&flag)
    };
    let mut program = Cli::command();
    // With the flags that clap adds.
    program.build();
    let takes = |command: &&Command| command.get_arguments().any(is_flag);
    let commands = iter::once(&program).chain(program.get_subcommands());
    let commands = commands
        .filter(takes)
        .map(|command| command.get_bin_name().unwrap_or(command.get_name()));
    let mut commands: Vec<_> = commands.map(|name| format!("`{name}`")).collect();
    let last = commands.pop()?;
    let (commands, take) = if commands.is_empty() {
        (last, "takes")
    } else {
        (format!("{} and {last}", commands.join(", ")), "take")
    };
    Some(format!(
        "unexpected argument '{flag}': only {commands} {take} this flag\n\n\
         For more information, try '--help'."
    ))
}

/// Returns whether the command of a command line takes arguments for guests, after `--`.
fn takes_arguments_for_guests(words: &[OsString]) -> bool {
    let program = Cli::command();
    // A command comes before all flags.
    let before_flags = words
        .iter()
        .filter_map(|word| word.to_str())
        .take_while(|word| !word.starts_with('-'));
    let command = before_flags
        .filter_map(|word| program.find_subcommand(word))
        .next();
    command.unwrap_or(&program).get_arguments().any(Arg::is_last_set)
}

/// Names the flag whose value is not UTF-8, which clap does not.
fn not_utf8(error: &Error, words: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::InvalidUtf8 {
        return None;
    }
    let suspects = || (0..words.len()).filter(|number| words[*number].to_str().is_none());
    // Paths can have any bytes. The culprit is refused by itself too.
    let is_refused = |number: &usize| {
        let only = words.iter().enumerate().map(|(other, word)| {
            if other == *number {
                word.clone()
            } else {
                word.to_string_lossy().into_owned().into()
            }
        });
        Cli::try_parse_from(only).is_err_and(|error| error.kind() == ErrorKind::InvalidUtf8)
    };
    let number = suspects().find(is_refused).or_else(|| suspects().next())?;
    let flag_of = |word: &OsString| {
        let text = word.to_string_lossy();
        let is_flag = text.len() > 2 && text.starts_with("--");
        is_flag.then(|| text.split('=').next().unwrap_or_default().to_owned())
    };
    let before = &words[..number];
    let what = if before.iter().any(|word| word == "--") {
        "an argument after `--`".to_owned()
    } else if let Some(flag) = flag_of(&words[number]).or_else(|| flag_of(before.last()?)) {
        format!("the value of {}", in_one_line(flag))
    } else {
        format!("the argument `{}`", shown(&words[number].to_string_lossy()))
    };
    Some(format!("{what} is not valid UTF-8; expected text in UTF-8"))
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

/// The name of a flag, without its value.
fn name(text: &str) -> String {
    text.split(' ')
        .next()
        .unwrap_or(text)
        .trim_end_matches("...")
        .to_owned()
}

/// The names of flags, without their values.
fn flags(context: &ContextValue) -> Option<String> {
    match context {
        ContextValue::String(one) => Some(name(one)),
        ContextValue::Strings(several) => {
            let names: Vec<_> = several.iter().map(|one| name(one)).collect();
            (!names.is_empty()).then(|| names.join(", "))
        }
        _ => None,
    }
}
