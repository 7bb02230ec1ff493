//! The command line.

mod listen;
mod service;

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{Config, Terms};
use crate::scaffold;
use crate::values;
use service::{GrantFlags, LimitFlags, ServiceFlags};

/// inetd for WebAssembly components.
///
/// Listens on TCP and on Unix sockets, with TLS or without, and hands every connection to a fresh, sandboxed instance of a
/// component, which has no socket, no file and no environment of its own.
#[derive(Debug, Parser)]
#[command(name = "host", version, max_term_width = 100, after_help = AFTER, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,

    /// File that describes any number of services, in place of all other flags; SIGHUP reads it again
    #[arg(long, value_name = "FILE", exclusive = true)]
    config: Option<PathBuf>,

    #[command(flatten)]
    service: ServiceFlags,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what a component is, and whether it could serve; or whether a configuration file is in order
    Check {
        /// The component
        #[arg(value_name = "FILE", required_unless_present = "config")]
        file: Option<PathBuf>,

        /// File of services to be checked in place of a component; nothing is loaded, and nothing bound
        #[arg(long, value_name = "FILE", exclusive = true)]
        config: Option<PathBuf>,

        #[command(flatten)]
        terms: TermFlags,
    },
    /// Print the configuration that is in force with these flags, or with this file, as a configuration file
    Config {
        /// Print it, which is what is done without --schema too
        #[arg(long, conflicts_with = "schema")]
        print: bool,

        /// Print the schema of configuration files, by JSON Schema, for editors
        #[arg(long, exclusive = true)]
        schema: bool,

        /// File of services, in place of the flags that describe one
        #[arg(long, value_name = "FILE", conflicts_with_all = service::ids())]
        config: Option<PathBuf>,

        #[command(flatten)]
        service: Box<ServiceFlags>,
    },
    /// Serve, and write down what peers and guests say to each other
    Record {
        /// Directory for the conversations, a file for each connection
        #[arg(long, value_name = "DIR")]
        to: PathBuf,

        #[command(flatten)]
        service: Box<ServiceFlags>,
    },
    /// Make a guest to begin with, which builds and passes its conversations as it is
    New {
        /// Directory to make; its last part is the guest's name
        #[arg(value_name = "NAME", value_parser = new_name)]
        dir: PathBuf,

        /// What the guest serves by [default: the first that its language has]
        #[arg(long, value_name = "CONTRACT", value_enum)]
        contract: Option<ContractArg>,

        /// What it is written in
        #[arg(long, value_name = "LANGUAGE", value_enum, default_value_t = Language::Rust)]
        lang: Language,
    },
    /// Print what a shell completes commands and flags by
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print a page of the manual, as for `host man | man -l -`
    Man {
        /// The command that it is about [default: host itself]
        #[arg(value_name = "COMMAND")]
        of: Option<String>,
    },
    /// Have a component take part in recorded conversations again and again, and write down where its time goes
    Profile {
        /// The component
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// Directory of conversations
        #[arg(value_name = "DIR")]
        dir: PathBuf,

        /// File for the profile, which the profiler of Firefox opens
        #[arg(long, value_name = "FILE", default_value = "profile.json")]
        to: PathBuf,

        /// How long to go on
        #[arg(long, value_name = "TIME", default_value = "3s", value_parser = values::duration)]
        time: Duration,

        #[command(flatten)]
        terms: TermFlags,
    },
    /// Have a component take part in recorded conversations, and show where it says something else
    Replay {
        /// Directory of conversations
        #[arg(value_name = "DIR")]
        dir: PathBuf,

        /// The component
        #[arg(value_name = "FILE")]
        file: PathBuf,

        #[command(flatten)]
        terms: TermFlags,
    },
}

/// On what terms a component is tried.
#[derive(Debug, Args)]
struct TermFlags {
    /// Component that stands between the peer and it; may be repeated, the first is nearest the peer
    #[arg(long, value_name = "FILE")]
    middleware: Vec<PathBuf>,

    /// Initialise the component first, by the function `wizer-initialize` that it exports
    #[arg(long)]
    preinit: bool,

    #[command(flatten)]
    grants: GrantFlags,

    #[command(flatten)]
    limits: LimitFlags,
}

impl From<TermFlags> for Terms {
    fn from(flags: TermFlags) -> Self {
        Self {
            middleware: flags.middleware,
            limits: flags.limits.into(),
            grants: flags.grants.into(),
            preinit: flags.preinit,
        }
    }
}

impl Cli {
    /// The same, if its flags can be had together.
    ///
    /// # Errors
    ///
    /// They cannot.
    pub fn checked(self) -> Result<Self, clap::Error> {
        let service = match &self.command {
            None => &self.service,
            Some(Verb::Record { service, .. } | Verb::Config { service, .. }) => service,
            Some(
                Verb::Check { .. }
                | Verb::Completions { .. }
                | Verb::Man { .. }
                | Verb::New { .. }
                | Verb::Profile { .. }
                | Verb::Replay { .. },
            ) => return Ok(self),
        };
        if service.has_instances_for_nothing() {
            let conflict =
                "--instances is for --isolation service, and each connection has an instance of its own";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, conflict));
        }
        Ok(self)
    }
}

/// Where the configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// In the flags.
    Flags(Box<Config>),
    /// In a file.
    File(PathBuf),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// To serve.
    Serve(Given),
    /// To say whether a configuration file is in order.
    CheckConfig(PathBuf),
    /// To print the configuration.
    Print(Given),
    /// To print the schema of configuration files.
    Schema,
    /// To say what a component is.
    Check(PathBuf, Terms),
    /// To make a guest in a directory of this language and, if it is named, this contract.
    New(PathBuf, &'static str, Option<&'static str>),
    /// To print what this shell completes by.
    Completions(Shell),
    /// To print the page of the manual about the command of this name, or about the program.
    Manual(Option<String>),
    /// To write down to this file where a component spends its time in the conversations of a directory.
    Profile {
        /// The component.
        file: PathBuf,
        /// The conversations.
        dir: PathBuf,
        /// Where to write.
        to: PathBuf,
        /// How long to go on.
        time: Duration,
        /// On what terms.
        terms: Terms,
    },
    /// To have a component take part in the conversations of a directory.
    Replay(PathBuf, PathBuf, Terms),
}

impl From<Cli> for Command {
    fn from(cli: Cli) -> Self {
        match cli.command {
            None => Self::Serve(given(cli.config, cli.service)),
            Some(Verb::Record { to, service }) => {
                let mut config = Config::from(*service);
                for service in &mut config.services {
                    service.record = Some(to.clone());
                }
                Self::Serve(Given::Flags(Box::new(config)))
            }
            Some(Verb::Config { schema: true, .. }) => Self::Schema,
            Some(Verb::Config { config, service, .. }) => Self::Print(given(config, *service)),
            Some(Verb::Check {
                config: Some(config), ..
            }) => Self::CheckConfig(config),
            Some(Verb::Check { file, terms, .. }) => Self::Check(file.unwrap_or_default(), terms.into()),
            Some(Verb::Completions { shell }) => Self::Completions(shell),
            Some(Verb::Man { of }) => Self::Manual(of),
            Some(Verb::New { dir, contract, lang }) => {
                Self::New(dir, lang.as_str(), contract.map(ContractArg::as_str))
            }
            Some(Verb::Profile {
                file,
                dir,
                to,
                time,
                terms,
            }) => Self::Profile {
                file,
                dir,
                to,
                time,
                terms: terms.into(),
            },
            Some(Verb::Replay { dir, file, terms }) => Self::Replay(dir, file, terms.into()),
        }
    }
}

/// What `shell` completes commands and flags by.
pub fn completions(shell: Shell) -> String {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The page of the manual about the command of a name, or about the program, in the language of man(7); `None` if there is no such
/// command.
pub fn manual(of: Option<&str>) -> Option<String> {
    let mut program = Cli::command();
    program.build();
    let command = match of {
        None => program,
        Some(name) => program.find_subcommand(name)?.clone(),
    };
    let mut text = Vec::new();
    // Nothing fails that is written to memory.
    clap_mangen::Man::new(command).render(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

const AFTER: &str = "\
Examples:
  host                                           echo on 127.0.0.1:8080
  host --component guest.wasm --watch            serve with a file, whatever it becomes
  host --component guest.wasm --admin 9090       and be looked at on http://127.0.0.1:9090/
  host --component python.wasm -- -c 'print(1)'  any WASI program, behind each connection
  host --config services.toml                    any number of services

Times are numbers with a unit (500ms, 30s, 5m, 1h), sizes too (64KiB, 64MiB, 1GiB).
SIGINT and SIGTERM drain: no more connections are accepted and those that are open may finish. A second one ends
the host at once. SIGHUP reads the configuration file, certificates and components again for the connections to come,
SIGUSR2 goes back to the components before.

Exit status: 0 after a drain, 1 if something failed, 2 for a command line or a configuration that cannot be understood.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ContractArg {
    Streams,
    #[value(alias = "session")]
    Sessions,
    Cli,
}

impl ContractArg {
    fn as_str(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Sessions => "sessions",
            Self::Cli => "cli",
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Language {
    Rust,
    C,
    #[value(alias = "javascript")]
    Js,
    Python,
    Go,
    Zig,
}

impl Language {
    fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
            Self::Js => "js",
            Self::Python => "python",
            Self::Go => "go",
            Self::Zig => "zig",
        }
    }
}

fn given(file: Option<PathBuf>, flags: ServiceFlags) -> Given {
    file.map_or_else(|| Given::Flags(Box::new(flags.into())), Given::File)
}

fn new_name(text: &str) -> Result<PathBuf, scaffold::BadName> {
    let dir = PathBuf::from(text);
    scaffold::name(&dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests;
