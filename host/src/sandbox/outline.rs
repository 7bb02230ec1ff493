//! What a component exports and imports, as its sections tell before it is compiled.

use std::borrow::Cow;

use wasmparser::{Encoding, ExternalKind, Parser, Payload};

use super::Sandbox;
use super::compose::{compose, importer};
use super::content::Content;
use super::contract::{Contract, START};
use super::extent::Extent;
use super::generation::find_contract;
use super::load_error::{LoadError, Refusal};
use super::preinit::INITIALISE;
use super::wasi;
use crate::config::Isolation;

/// The names of what a component or module exports and imports.
#[derive(Debug, Default)]
struct Outline {
    is_module: bool,
    exports: Vec<String>,
    imports: Vec<String>,
}

impl Outline {
    /// Reads the sections of a component or module. Of a file that is not valid, it has what can be
    /// read.
    fn of(bytes: &[u8]) -> Self {
        let mut outline = Self::default();
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
            match &payload {
                Payload::Version { encoding, .. } => {
                    depth += 1;
                    outline.is_module |= depth == 1 && *encoding == Encoding::Module;
                }
                Payload::End(_) => depth -= 1,
                _ if depth == 1 => outline.see(&payload),
                _ => {}
            }
        }
        outline
    }

    fn see(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::ComponentExportSection(section) => {
                let names = section.clone().into_iter().flatten();
                self.exports
                    .extend(names.map(|export| export.name.name.to_owned()));
            }
            Payload::ComponentImportSection(section) => {
                let names = section.clone().into_iter().flatten();
                self.imports
                    .extend(names.map(|import| import.name.name.to_owned()));
            }
            Payload::ExportSection(section) => {
                let functions = section.clone().into_iter().flatten();
                let functions = functions.filter(|export| export.kind == ExternalKind::Func);
                self.exports
                    .extend(functions.map(|export| export.name.to_owned()));
            }
            _ => {}
        }
    }

    fn exports(&self, name: &str) -> bool {
        self.exports.iter().any(|export| export == name)
    }

    /// Finds the contract by which the host serves it.
    fn contract(&self) -> Result<Contract, Refusal> {
        if self.is_module {
            return if self.exports(START) {
                Ok(Contract::Cli)
            } else {
                Err(Refusal::NoProgram(format!("it exports no function `{START}`")))
            };
        }
        let exports: Vec<&str> = self.exports.iter().map(String::as_str).collect();
        find_contract(&exports)
    }
}

impl Sandbox {
    /// Checks whether a component can serve here, as far as that can be told without compiling it: by
    /// its size, and by the names of its exports and imports.
    ///
    /// # Errors
    ///
    /// It cannot.
    pub(crate) fn check_outline(&self, content: &Content) -> Result<(), LoadError> {
        content.validate()?;
        let parts = content.parts();
        let service = parts.last().unwrap_or(content);
        if self.preinit && !Outline::of(service.bytes()).exports(INITIALISE) {
            return Err(service.refused(Refusal::NoInitialiser(INITIALISE)));
        }
        let whole = if parts.len() > 1 {
            Cow::Owned(compose(content, service)?)
        } else {
            Cow::Borrowed(content)
        };
        let refused = |refusal| content.refused(refusal);
        Extent::of(whole.bytes()).check().map_err(refused)?;
        let outline = Outline::of(whole.bytes());
        let contract = outline.contract().map_err(refused)?;
        let handler = Contract::Streams.interface();
        if outline.imports.iter().any(|import| import == handler) {
            return Err(refused(Refusal::Middleware(handler)));
        }
        for import in &outline.imports {
            if let Some(refusal) = wasi::not_provided(import) {
                return Err(importer(content, &format!("`{import}`")).refused(refusal));
            }
        }
        match self.isolation {
            Isolation::Service { .. } if contract != Contract::Streams => Err(refused(Refusal::NotShared {
                contract: contract.interface(),
                streams: handler,
            })),
            _ => Ok(()),
        }
    }
}
