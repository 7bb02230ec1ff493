//! The command line.

mod listen;
mod refused;
mod service;
mod template;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{CacheDir, Config, Names, Replay, Terms};
use crate::logging::in_one_line;
use crate::scaffold;
use crate::values;
use refused::operand;
pub use refused::sentence;
use service::{
    CompileFlags, ConnectionLimitFlags, GrantFlags, InstanceLimitFlags, ServiceFlags, component, ids, limits,
    path,
};
use template::{ContractArg, Language};

/// inetd for WebAssembly components.
///
/// Listens on TCP and Unix sockets, with or without TLS, and hands each connection to a fresh,
/// sandboxed instance of a component. The instance has no file and no other socket, unless the
/// operator grants one.
#[derive(Debug, Parser)]
#[command(
    name = "wasm-inetd",
    version,
    max_term_width = 80,
    after_help = AFTER,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,

    /// Services file, instead of all other flags; SIGHUP reloads it
    #[arg(long, value_name = "FILE", value_parser = path(), conflicts_with_all = ids::<ServiceFlags>())]
    config: Option<PathBuf>,

    #[command(flatten)]
    service: ServiceFlags,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check a component or a services file without serving
    Check {
        /// Component to check
        #[arg(value_name = "FILE", value_parser = component().try_map(operand))]
        file: Option<PathBuf>,

        /// Services file to check, instead of a component
        ///
        /// The check reads all files that a start needs. It links components without the code of
        /// their functions, and binds no address.
        #[arg(long, value_name = "FILE", value_parser = path(), conflicts_with = "file", conflicts_with_all = ids::<TermFlags>())]
        config: Option<PathBuf>,

        /// Compile the components of the services file too
        #[arg(long, conflicts_with = "file", requires = "config")]
        compile: bool,

        #[command(flatten)]
        terms: TermFlags,
    },
    /// Compile components into the cache, so that a later start does not
    Compile {
        /// Components to compile
        #[arg(value_name = "FILE", value_parser = component().try_map(operand), required_unless_present = "config")]
        files: Vec<PathBuf>,

        /// Services file whose components are compiled, instead of FILE
        #[arg(long, value_name = "FILE", value_parser = path(), conflicts_with = "files", conflicts_with_all = ids::<TermFlags>())]
        config: Option<PathBuf>,

        /// Directory for compiled components [default: that of the services file, or wasm-inetd in
        /// the user's cache directory]
        #[arg(long, value_name = "DIR", value_parser = values::cache_to_fill)]
        cache: Option<CacheDir>,

        #[command(flatten)]
        terms: TermFlags,
    },
    /// Print flags as a services file, or the schema of services files
    Config {
        /// Print the services file that is equivalent to the other flags; this is the default
        #[arg(long, conflicts_with = "schema")]
        print: bool,

        /// Print the JSON Schema of services files, for editors
        #[arg(long, conflicts_with = "config", conflicts_with_all = ids::<ServiceFlags>())]
        schema: bool,

        /// Services file to print with all its defaults, instead of flags
        #[arg(long, value_name = "FILE", value_parser = path(), conflicts_with_all = ids::<ServiceFlags>())]
        config: Option<PathBuf>,

        #[command(flatten)]
        service: Box<ServiceFlags>,
    },
    /// Serve, and record what clients and guests send as conversations
    Record {
        /// Directory for the conversations, one file per connection
        #[arg(long, value_name = "DIR", value_parser = path())]
        to: PathBuf,

        #[command(flatten)]
        service: Box<ServiceFlags>,
    },
    /// Create a guest project with a build script and conversations
    New {
        /// Directory to create; its last part is the name of the guest
        #[arg(value_name = "NAME", value_parser = new_name)]
        dir: PathBuf,

        /// Contract of the guest [default: the first that its language supports]
        #[arg(long, value_name = "CONTRACT", value_enum)]
        contract: Option<ContractArg>,

        /// Language of the guest
        #[arg(long, value_name = "LANGUAGE", value_enum, default_value_t = Language::Rust)]
        lang: Language,

        /// Use the generated bindings instead of the crate inet-guest (only for Rust)
        #[arg(long)]
        bare: bool,
    },
    /// Print the completion script of a shell
    Completions {
        /// Shell to complete for
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print a manual page: wasm-inetd man | man -l -
    Man {
        /// Subcommand to describe [default: the program itself]
        #[arg(value_name = "COMMAND")]
        of: Option<String>,
    },
    /// Replay conversations repeatedly and write a CPU profile of the component
    Profile {
        /// Directory of conversations to replay
        #[arg(value_name = "DIR", value_parser = path().try_map(operand))]
        dir: PathBuf,

        /// Component to profile
        #[arg(value_name = "FILE", value_parser = component().try_map(operand))]
        file: PathBuf,

        /// File to write the profile to, for the Firefox Profiler
        #[arg(long, value_name = "FILE", default_value = "profile.json", value_parser = path())]
        to: PathBuf,

        /// How long to keep replaying
        #[arg(long, value_name = "TIME", default_value = "3s", value_parser = values::duration)]
        time: Duration,

        #[command(flatten)]
        patience: PatienceFlag,

        #[command(flatten)]
        terms: TermFlags,

        #[command(flatten)]
        limits: ConnectionLimitFlags,
    },
    /// Replay conversations against a component and show the first difference
    Replay {
        /// Directory of conversations to replay
        #[arg(value_name = "DIR", value_parser = path().try_map(operand))]
        dir: PathBuf,

        /// Component to test
        #[arg(value_name = "FILE", value_parser = component().try_map(operand))]
        file: PathBuf,

        #[command(flatten)]
        patience: PatienceFlag,

        /// Log each conversation, and what the guest writes to standard error
        #[arg(short, long)]
        verbose: bool,

        #[command(flatten)]
        terms: TermFlags,

        #[command(flatten)]
        limits: ConnectionLimitFlags,
    },
}

/// How long a replay waits for a guest.
#[derive(Debug, Args)]
struct PatienceFlag {
    /// How long the guest may take for a step of a conversation
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::deadline)]
    patience: Duration,
}

/// On what terms a component is tried.
#[derive(Debug, Args)]
struct TermFlags {
    /// Middleware between the client and the component; repeatable, the first is nearest the client
    #[arg(long, value_name = "FILE", value_parser = component())]
    middleware: Vec<PathBuf>,

    /// Initialise the component first with the function `wizer-initialize` that it exports
    #[arg(long)]
    preinit: bool,

    #[command(flatten)]
    grants: GrantFlags,

    #[command(flatten)]
    limits: InstanceLimitFlags,

    #[command(flatten)]
    compiling: CompileFlags,
}

impl TermFlags {
    /// The terms, with limits on connections where there are any.
    fn into_terms(self, connections: Option<ConnectionLimitFlags>) -> Terms {
        Terms {
            middleware: self.middleware,
            limits: limits(self.limits, connections, None),
            grants: self.grants.into(),
            preinit: self.preinit,
            max_compile_memory: self.compiling.max_compile_memory.unwrap_or_default(),
        }
    }
}

impl Cli {
    /// Returns the command line if it is complete and its flags do not contradict each other.
    ///
    /// # Errors
    ///
    /// Fails if something is missing, or if two flags contradict each other, in a way that clap does
    /// not check.
    pub fn checked(self) -> Result<Self, clap::Error> {
        if let Some(Verb::Check {
            file: None,
            config: None,
            ..
        }) = &self.command
        {
            let sentence = "nothing to check; expected FILE, a component, or --config FILE, a services file";
            return Err(self.error(ErrorKind::MissingRequiredArgument, sentence));
        }
        let contradiction = match &self.command {
            None => self.service.contradiction(),
            Some(Verb::Record { service, .. } | Verb::Config { service, .. }) => service.contradiction(),
            Some(
                Verb::Check { terms, .. }
                | Verb::Compile { terms, .. }
                | Verb::Profile { terms, .. }
                | Verb::Replay { terms, .. },
            ) => terms.grants.repeated(),
            Some(Verb::Completions { .. } | Verb::Man { .. } | Verb::New { .. }) => None,
        };
        match contradiction {
            None => Ok(self),
            Some(sentence) => Err(self.error(ErrorKind::ArgumentConflict, in_one_line(sentence))),
        }
    }

    /// An error with the usage of the command that was given.
    fn error(&self, kind: ErrorKind, sentence: impl Display) -> clap::Error {
        let name = match &self.command {
            None => None,
            Some(Verb::Check { .. }) => Some("check"),
            Some(Verb::Compile { .. }) => Some("compile"),
            Some(Verb::Config { .. }) => Some("config"),
            Some(Verb::Record { .. }) => Some("record"),
            Some(Verb::New { .. }) => Some("new"),
            Some(Verb::Completions { .. }) => Some("completions"),
            Some(Verb::Man { .. }) => Some("man"),
            Some(Verb::Profile { .. }) => Some("profile"),
            Some(Verb::Replay { .. }) => Some("replay"),
        };
        let mut command = Self::command();
        command.build();
        match name.and_then(|name| command.find_subcommand_mut(name)) {
            Some(command) => command.error(kind, sentence),
            None => command.error(kind, sentence),
        }
    }
}

/// The flag that sets what a services file sets by `key`, such as `service[0].limits.max-memory`.
pub fn flag_of(key: &str) -> String {
    let key = key.split_once("].").map_or(key, |(service, rest)| {
        if service.starts_with("service[") {
            rest
        } else {
            key
        }
    });
    // Indices count what a flag repeats.
    let key: String = key
        .split('[')
        .enumerate()
        .map(|(index, part)| match (index, part.split_once(']')) {
            (0, _) | (_, None) => part,
            (_, Some((_, rest))) => rest,
        })
        .collect();
    let flag = match key.as_str() {
        "record" => "to",
        "grants.dirs" => "dir",
        "listen.tls.certificate" => "tls-certificate",
        "listen.tls.key" => "tls-key",
        "listen.tls.client-ca" => "tls-client-ca",
        "tls.alpn" => "tls-alpn",
        "listen.socket.mode" => "socket-mode",
        "listen.socket.owner" => "socket-owner",
        "admin.listen" => "admin",
        "admin.token" => "admin-token",
        other => other.rsplit('.').next().unwrap_or(other),
    };
    format!("--{flag}")
}

/// The argument of `check`, `replay` and `profile` that sets what a services file sets by `key`.
/// They take the component as an argument without a flag.
fn argument_of(key: &str) -> String {
    match key {
        "component" => "FILE".to_owned(),
        other => flag_of(other),
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
    /// To say whether the host could start with a configuration file.
    CheckConfig {
        /// The file.
        file: PathBuf,
        /// Components are compiled too.
        compile: bool,
    },
    /// To compile components of files into the cache.
    Compile {
        /// The components.
        files: Vec<PathBuf>,
        /// On what terms they are loaded.
        terms: Terms,
        /// The cache.
        cache: CacheDir,
    },
    /// To compile the components of a services file, into its cache or another.
    CompileConfig(PathBuf, Option<CacheDir>),
    /// To print the configuration.
    Print(Given),
    /// To print the schema of configuration files.
    Schema,
    /// To say what a component is.
    Check(PathBuf, Terms),
    /// Create a project for a guest.
    New {
        /// The directory to create.
        dir: PathBuf,
        /// The language.
        language: &'static str,
        /// The contract, if one is named.
        contract: Option<&'static str>,
        /// Use the bindings, and not the crate `inet-guest`.
        bare: bool,
    },
    /// To print what this shell completes by.
    Completions(Shell),
    /// To print the page of the manual about the command of this name, or about the program.
    Manual(Option<String>),
    /// To write a CPU profile of a component that takes part in conversations.
    Profile {
        /// The component, and the conversations.
        what: Replay,
        /// Where to write.
        to: PathBuf,
        /// How long to go on.
        time: Duration,
    },
    /// To have a component take part in conversations, and to log more than the difference if that
    /// is asked for.
    Replay(Replay, bool),
}

impl Command {
    /// How messages name settings, if these come from arguments and not from a services file.
    pub fn names_of_settings(&self) -> Option<Names> {
        match self {
            Self::Serve(Given::Flags(_)) | Self::Print(Given::Flags(_)) => Some(flag_of),
            Self::Check(..) | Self::Compile { .. } | Self::Profile { .. } | Self::Replay(..) => {
                Some(argument_of)
            }
            Self::Serve(Given::File(_))
            | Self::Print(Given::File(_))
            | Self::CheckConfig { .. }
            | Self::CompileConfig(..)
            | Self::Schema
            | Self::New { .. }
            | Self::Completions(_)
            | Self::Manual(_) => None,
        }
    }
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
                config: Some(file),
                compile,
                ..
            }) => Self::CheckConfig { file, compile },
            Some(Verb::Check { file, terms, .. }) => {
                Self::Check(file.unwrap_or_default(), terms.into_terms(None))
            }
            Some(Verb::Compile {
                config: Some(file),
                cache,
                ..
            }) => Self::CompileConfig(file, cache),
            Some(Verb::Compile {
                files, cache, terms, ..
            }) => Self::Compile {
                files,
                terms: terms.into_terms(None),
                cache: cache.unwrap_or(CacheDir::OfUser),
            },
            Some(Verb::Completions { shell }) => Self::Completions(shell),
            Some(Verb::Man { of }) => Self::Manual(of),
            Some(Verb::New {
                dir,
                contract,
                lang,
                bare,
            }) => Self::New {
                dir,
                language: lang.as_str(),
                contract: contract.map(ContractArg::as_str),
                bare,
            },
            Some(Verb::Profile {
                dir,
                file,
                to,
                time,
                patience,
                terms,
                limits,
            }) => Self::Profile {
                what: replay(dir, file, &patience, terms.into_terms(Some(limits))),
                to,
                time,
            },
            Some(Verb::Replay {
                dir,
                file,
                patience,
                verbose,
                terms,
                limits,
            }) => {
                let terms = terms.into_terms(Some(limits));
                Self::Replay(replay(dir, file, &patience, terms), verbose)
            }
        }
    }
}

/// What `shell` completes commands and flags by.
pub fn completions(shell: Shell) -> String {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    let text = String::from_utf8_lossy(&text);
    // clap_complete 4.6 spells a program with a hyphen in two ways, so that bash would complete no
    // subcommand (https://github.com/clap-rs/clap/issues/6421).
    text.replace("wasm__subcmd__inetd", "wasm__inetd")
}

/// The page of the manual about the command of a name, or about the program, in the language of
/// man(7).
///
/// # Errors
///
/// There is no such command. The error is a sentence for the user.
pub fn manual(of: Option<&str>) -> Result<String, String> {
    let mut program = Cli::command();
    program.build();
    let command = match of {
        None => program,
        Some(name) => program.find_subcommand(name).cloned().ok_or_else(|| {
            format!(
                "there is no command {}; `wasm-inetd --help` lists the commands",
                values::quoted(name, "of this name")
            )
        })?,
    };
    let mut text = Vec::new();
    let written = clap_mangen::Man::new(command).render(&mut text);
    written.map_err(|error| format!("cannot write the page: {error}"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

const AFTER: &str = "\
Examples:
  Echo on 127.0.0.1:8080
      wasm-inetd
  Serve a component and reload it when its file changes
      wasm-inetd --component guest.wasm --watch
  Serve a WASI program that uses standard input and output
      wasm-inetd --component python.wasm -- -c 'print(1)'
  Observe the host on http://127.0.0.1:9090/
      wasm-inetd --component guest.wasm --admin 9090
  Run the services that a file describes
      wasm-inetd --config services.toml

Times take a unit (500ms, 30s, 5m, 1h). Sizes are in bytes or take a unit:
KiB, MiB and GiB (powers of 1024), or kB, MB and GB (powers of 1000).

Signals:
  SIGINT, SIGTERM  drain: stop accepting and let open connections finish;
                   a second signal ends the host at once
  SIGHUP           reload the services file, the certificates and the
                   components for new connections; drain if the terminal
                   of the host was closed
  SIGUSR2          roll back to the previous components

Exit status: 0 after a drain, 1 after a failure, 2 for a command line or a
services file that is not valid.";

fn replay(dir: PathBuf, file: PathBuf, patience: &PatienceFlag, terms: Terms) -> Replay {
    Replay {
        dir,
        file,
        patience: patience.patience,
        terms,
    }
}

fn given(file: Option<PathBuf>, flags: ServiceFlags) -> Given {
    file.map_or_else(|| Given::Flags(Box::new(flags.into())), Given::File)
}

fn new_name(text: &str) -> Result<PathBuf, String> {
    let dir = PathBuf::from(text);
    values::path_in_one_line(&dir)?;
    scaffold::name(&dir).map_err(|error| error.to_string())?;
    Ok(dir)
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
