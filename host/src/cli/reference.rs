//! Writes `docs/flags.md` from the definitions of the flags, and compares it.

use std::fmt::Write as _;
use std::{env, fs};

use clap::{Arg, Command, CommandFactory as _};

use super::Cli;

/// Set this variable to rewrite the page instead of comparing it.
const WRITE: &str = "WASM_INETD_WRITE_DOCS";

const WIDTH: usize = 100;

const INTRO: &str = "\
# Command line

<!-- `WASM_INETD_WRITE_DOCS=1 cargo test -p host --lib flags_page` writes this page. -->

`wasm-inetd` without a subcommand serves connections. Its flags describe one service; a
[services file](services.md) describes any number of them with the same names as keys. A time is a
number with a unit (`500ms`, `30s`, `5m`, `1h`). A size is a number of bytes, or a number with a
unit (`64KiB`, `64MiB`, `1GiB`). Arguments after `--` go to the guest.

- **Exit status**: 0 after a drain, 1 after a failure, 2 for a command line or a services file that
  is not valid.
- **SIGINT, SIGTERM**: drain, that is, stop accepting and let open connections end. A second signal
  ends the host at once, with status 1. **SIGHUP**: reload, or drain if the terminal that the host
  was started from was closed. **SIGUSR2**: roll back. See [Reloading](reloading.md).

[Limits, outcomes and refusals](limits.md) explains each limit and what a client sees when it is
reached.
";

#[test]
fn flags_page_is_current() {
    let page = page();
    let path = guest_builder::workspace().join("docs/flags.md");
    if env::var_os(WRITE).is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/flags.md is not current: run `{WRITE}=1 cargo test -p host --lib flags_page`"
    );
}

fn page() -> String {
    let mut program = Cli::command();
    program.build();
    let mut page = INTRO.to_owned();
    for heading in headings(&program) {
        let _ = write!(page, "\n## {heading}\n\n");
        for flag in flags(&program).filter(|flag| flag.get_help_heading().unwrap_or("General") == heading) {
            entry(&mut page, flag);
        }
    }
    page.push_str("\n## Subcommands\n");
    for command in program
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        subcommand(&mut page, &program, command);
    }
    page
}

/// The headings of a command's flags, in order of their first flag.
fn headings(command: &Command) -> Vec<&str> {
    let mut headings = Vec::new();
    for flag in flags(command) {
        let heading = flag.get_help_heading().unwrap_or("General");
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    headings
}

fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|argument| argument.get_long().is_some())
}

/// Describes a subcommand: its own flags in full, the headings of those that it shares with `program`.
fn subcommand(page: &mut String, program: &Command, command: &Command) {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut usage = command.clone().render_usage().to_string();
    usage = usage.trim_start_matches("Usage: ").replace('\n', " ");
    let _ = write!(
        page,
        "\n### `{}`\n\n{about}.\n\n    {usage}\n\n",
        command.get_name()
    );
    let shared = |flag: &Arg| {
        flags(program).any(|other| other.get_long() == flag.get_long()) && flag.get_help_heading().is_some()
    };
    for argument in command.get_arguments().filter(|argument| !shared(argument)) {
        if !["help", "args"].contains(&argument.get_id().as_str()) {
            entry(page, argument);
        }
    }
    let mut headings: Vec<&str> = Vec::new();
    for heading in flags(command)
        .filter(|flag| shared(flag))
        .filter_map(Arg::get_help_heading)
    {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    if !headings.is_empty() {
        page.push('\n');
        wrapped(
            page,
            "",
            &format!("Also takes the flags under: {}.", headings.join(", ")),
        );
    }
}

/// One item of a list: how the flag is written, its default, and its help text.
fn entry(page: &mut String, flag: &Arg) {
    let values = flag.get_value_names().unwrap_or_default();
    let value = if flag.get_action().takes_values() {
        values.join(" ")
    } else {
        String::new()
    };
    let name = match (flag.get_short(), flag.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long} {value}"),
        (None, Some(long)) => format!("--{long} {value}"),
        (_, None) => value,
    };
    let help = flag.get_long_help().or(flag.get_help()).map(ToString::to_string);
    let help = help.unwrap_or_default();
    let (first, rest) = help.split_once("\n\n").unwrap_or((&help, ""));
    let (first, default) = match first.split_once(" [default: ") {
        Some((first, default)) => (first, Some(default.trim_end_matches(']').to_owned())),
        None => (first, given_default(flag)),
    };
    let mut text = format!("**`{}`**: {first}.", name.trim_end());
    if let Some(default) = default {
        let _ = write!(text, " Default: {default}.");
    }
    let values: Vec<_> = flag
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if flag.get_action().takes_values() && !values.is_empty() {
        let _ = write!(text, " Values: {}.", values.join(", "));
    }
    if !rest.is_empty() {
        let _ = write!(text, " {}", rest.replace('\n', " "));
    }
    wrapped(page, "- ", &text);
}

fn given_default(flag: &Arg) -> Option<String> {
    let values: Vec<_> = flag
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    (flag.get_action().takes_values() && !values.is_empty()).then(|| values.join(", "))
}

/// Appends `text` in lines of at most `WIDTH` columns, the first after `bullet`, the others indented.
fn wrapped(page: &mut String, bullet: &str, text: &str) {
    let mut line = bullet.to_owned();
    for word in text.split_whitespace() {
        if line.len() + word.len() > WIDTH && line.trim() != "-" {
            page.push_str(line.trim_end());
            page.push('\n');
            line = " ".repeat(bullet.len());
        }
        line.push_str(word);
        line.push(' ');
    }
    page.push_str(line.trim_end());
    page.push('\n');
}
