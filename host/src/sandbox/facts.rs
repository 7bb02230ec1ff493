//! What can be said of a component before it serves.

use std::time::{Duration, Instant};

use super::Sandbox;
use super::capacity::Shortage;
use super::code::Code;
use super::configuration;
use super::content::Content;
use super::contract::{Contract, MIGRATION};
use super::grants::Granted;
use super::load_error::LoadError;
use super::preinit::INITIALISE;

/// What can be said of a component that can serve.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How it serves.
    pub contract: Contract,
    /// The export that it serves by.
    pub export: String,
    /// Its other exports, which the host does not use.
    pub unused: Vec<String>,
    /// Whether its sessions can move from one generation to another.
    pub migrates: bool,
    /// Its parts that have checked their configuration and accepted it.
    pub configured: Vec<String>,
    /// What it imports, by name.
    pub imports: Vec<Import>,
    /// Bytes of its largest memory when an instance has just been made.
    pub memory: u64,
    /// Whether fewer connections can be served at the same time than there may be.
    pub shortage: Option<Shortage>,
    /// How long it took to compile it, and to make and drop an instance.
    pub took: Duration,
}

/// Something that a component imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Its name, with its version.
    pub name: String,
    /// What a guest gets there, in a few words.
    pub granted: &'static str,
}

impl Sandbox {
    /// Loads a component to see what can be said of it.
    ///
    /// # Errors
    ///
    /// It cannot serve.
    pub async fn inspect(&self, content: &Content) -> Result<Facts, LoadError> {
        let start = Instant::now();
        let generation = self.load(content).await?;
        let took = start.elapsed();
        let contract = generation.contract();
        let import = |name: &str| Import {
            granted: granted(name, &self.granted, contract),
            name: name.to_owned(),
        };
        let (imports, export, unused) = match generation.code() {
            Code::Component(component) => {
                let (ty, engine) = (component.component_type(), component.engine());
                let imports = ty.imports(engine).map(|(name, _)| import(name)).collect();
                let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
                let export = contract.export(&exports).unwrap_or_default();
                let unused = exports
                    .into_iter()
                    .filter(|name| *name != export && !is_used(name, contract))
                    .filter(|name| !self.preinit || *name != INITIALISE)
                    .map(str::to_owned)
                    .collect();
                (imports, export.to_owned(), unused)
            }
            Code::Module(module) => {
                let imports = module
                    .imports()
                    .map(|found| import(&format!("{} {}", found.module(), found.name())))
                    .collect();
                (imports, "_start".to_owned(), Vec::new())
            }
        };
        Ok(Facts {
            contract,
            export,
            unused,
            migrates: generation.migrates(),
            configured: generation.configured().to_vec(),
            imports,
            memory: generation.code().required().memory,
            shortage: generation.shortage(),
            took,
        })
    }
}

/// Whether the host uses an export beside the one that the component serves by.
fn is_used(export: &str, contract: Contract) -> bool {
    configuration::is_exported_as(export) || contract == Contract::Sessions && export == MIGRATION
}

/// What a guest gets from `import`, which the linker has.
fn granted(import: &str, grants: &Granted, contract: Contract) -> &'static str {
    if let Some(function) = import.strip_prefix("wasi_snapshot_preview1 ") {
        return granted_to_module(function, grants);
    }
    let program = contract == Contract::Cli;
    let interface = import.split('@').next().unwrap_or_default();
    let package = interface.split('/').next().unwrap_or_default();
    match (package, interface) {
        ("inet:service", "inet:service/ends") => "granted",
        ("inet:service", _) => "types of the contract",
        ("wasi:clocks", _) => "granted",
        ("wasi:random", _) => "granted",
        ("wasi:io", _) => "granted; other granted interfaces use it",
        ("wasi:filesystem", _) if !grants.has_dirs() => "no directories; grant them with --dir",
        ("wasi:filesystem", _) => "the directories granted with --dir",
        (_, "wasi:sockets/udp" | "wasi:sockets/udp-create-socket") => "denied; guests have no UDP",
        (_, "wasi:sockets/ip-name-lookup") => "denied; guests look up no names",
        ("wasi:sockets", _) if !grants.has_outbound() => "denied; grant addresses with --allow-outbound",
        ("wasi:sockets", _) => "connections to the addresses granted with --allow-outbound only",
        (_, "wasi:cli/environment") if program => "arguments, the peer's address, and the variables of --env",
        (_, "wasi:cli/environment") => "arguments and the variables of --env",
        (_, "wasi:cli/stdin") if program => "the bytes that the peer sends",
        (_, "wasi:cli/stdin") => "empty",
        (_, "wasi:cli/stdout") if program => "the bytes that are sent to the peer",
        (_, "wasi:cli/stdout") => "discarded",
        (_, "wasi:cli/stderr") | ("wasi:logging", _) => "written to the log",
        (_, "wasi:cli/exit") if program => "ends the connection with FIN",
        (_, "wasi:cli/exit") => "ends the connection with a reset",
        _ => "present, but without effect",
    }
}

/// What a module gets from a function of WASI preview 1.
fn granted_to_module(function: &str, grants: &Granted) -> &'static str {
    match function.split('_').next().unwrap_or_default() {
        "args" | "environ" => "arguments, the peer's address, and the variables of --env",
        "path" if !grants.has_dirs() => "no directories; grant them with --dir",
        "path" => "the directories granted with --dir",
        "fd" => "the connection, the log, and the granted directories",
        "proc" => "ends the connection with FIN",
        "sock" => "denied; a module has no sockets",
        _ => "granted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_does_not_depend_on_a_version() {
        let limits = crate::config::Limits::default();
        let grants = Granted::resolve(&crate::config::Grants::default(), &limits, None).unwrap();
        let granted = |import: &str| granted(import, &grants, Contract::Streams);
        assert_eq!(granted("wasi:clocks/monotonic-clock@0.2.6"), "granted");
        assert_eq!(granted("wasi:clocks/monotonic-clock@0.3.0"), "granted");
        assert_eq!(granted("wasi:cli/stdin@0.2.6"), "empty");
        assert_eq!(
            granted("wasi:sockets/tcp@0.2.6"),
            "denied; grant addresses with --allow-outbound"
        );
        // There is no grant for these.
        for version in ["0.2.6", "0.3.0"] {
            let granted = |interface| granted(&format!("wasi:sockets/{interface}@{version}"));
            assert_eq!(granted("udp"), "denied; guests have no UDP");
            assert_eq!(granted("udp-create-socket"), "denied; guests have no UDP");
            assert_eq!(granted("ip-name-lookup"), "denied; guests look up no names");
        }
    }
}
