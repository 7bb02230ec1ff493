//! What a component exports and imports, as its sections tell before it is compiled.

use wasmparser::{Encoding, ExternalKind, Parser, Payload};

/// The names of what a component or module exports and imports.
#[derive(Debug, Default)]
pub(super) struct Outline {
    pub(super) is_module: bool,
    pub(super) exports: Vec<String>,
    pub(super) imports: Vec<String>,
}

impl Outline {
    /// Reads the sections of a component or module. Of a file that is not valid, it has what can be
    /// read.
    pub(super) fn of(bytes: &[u8]) -> Self {
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

    /// Returns whether it exports something by this name, which is a function in a module.
    pub(super) fn has_export(&self, name: &str) -> bool {
        self.exports.iter().any(|export| export == name)
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
}
