//! Rewriting the functions of a component or module.

use std::borrow::Cow;

use wasm_encoder::{CodeSection, Component, Module, ModuleSection, NestedComponentSection, RawSection};
use wasmparser::{Encoding, FunctionBody, Parser, Payload, Result};

/// How deep components may be nested in each other. Each level is copied once more for the one
/// around it.
const MAX_DEPTH: usize = 50;

/// A change of functions.
pub(super) trait Change {
    /// Sees each part of the component or module before it is written, in the order of the file.
    fn see(&mut self, _payload: &Payload) -> Result<()> {
        Ok(())
    }

    /// Returns whether a section of a module stays.
    fn keeps(&self, _id: u8) -> bool {
        true
    }

    /// Returns the locals and instructions of the function that replaces `body`.
    fn function<'a>(&mut self, body: &FunctionBody<'a>) -> Result<Cow<'a, [u8]>>;
}

/// Returns `bytes`, a component or module, with its functions changed. `None` says that components
/// are nested too deep in each other.
///
/// # Errors
///
/// A section cannot be read.
pub(super) fn rewrite(bytes: &[u8], change: &mut impl Change) -> Result<Option<Vec<u8>>> {
    let mut levels = Levels::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        change.see(&payload)?;
        match payload {
            Payload::Version { .. } if levels.open.len() > MAX_DEPTH => return Ok(None),
            Payload::Version { encoding, .. } => levels.open.push(Level::new(encoding)),
            // Its content comes as payloads of its own.
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {}
            Payload::CodeSectionStart { count, .. } => levels.begin_code(count),
            Payload::CodeSectionEntry(body) => levels.add_function(&change.function(&body)?),
            Payload::End(_) => levels.close(),
            section => {
                let Some((id, range)) = section.as_section() else {
                    continue;
                };
                let is_module = matches!(levels.open.last(), Some(Level::Module(_)));
                if !is_module || change.keeps(id) {
                    let data = &bytes[range];
                    levels.add(&RawSection { id, data });
                }
            }
        }
    }
    Ok(levels.whole)
}

/// A component or module that is being written.
enum Level {
    Module(Module),
    Component(Component),
}

impl Level {
    fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Module => Self::Module(Module::new()),
            Encoding::Component => Self::Component(Component::new()),
        }
    }
}

/// The components and modules that are being written, from the outermost on.
#[derive(Default)]
struct Levels {
    open: Vec<Level>,
    /// The code section of the innermost module, and the functions that it still lacks.
    code: CodeSection,
    missing: u32,
    /// All of it, once the outermost level is closed.
    whole: Option<Vec<u8>>,
}

impl Levels {
    /// Adds a section of a kind that both components and modules have.
    fn add(&mut self, section: &RawSection) {
        match self.open.last_mut() {
            Some(Level::Module(module)) => {
                module.section(section);
            }
            Some(Level::Component(component)) => {
                component.section(section);
            }
            None => {}
        }
    }

    fn begin_code(&mut self, count: u32) {
        self.code = CodeSection::new();
        self.missing = count;
        self.end_code();
    }

    fn add_function(&mut self, body: &[u8]) {
        self.code.raw(body);
        self.missing = self.missing.saturating_sub(1);
        self.end_code();
    }

    /// Writes the code section, if it is complete.
    fn end_code(&mut self) {
        if self.missing == 0
            && let Some(Level::Module(module)) = self.open.last_mut()
        {
            module.section(&std::mem::take(&mut self.code));
        }
    }

    /// Adds the innermost level to the one around it.
    fn close(&mut self) {
        let closed = self.open.pop();
        match (closed, self.open.last_mut()) {
            (Some(Level::Module(module)), Some(Level::Component(parent))) => {
                parent.section(&ModuleSection(&module));
            }
            (Some(Level::Component(component)), Some(Level::Component(parent))) => {
                parent.section(&NestedComponentSection(&component));
            }
            (Some(Level::Module(module)), _) => self.whole = Some(module.finish()),
            (Some(Level::Component(component)), _) => self.whole = Some(component.finish()),
            (None, _) => {}
        }
    }
}

/// A component of one module and another component, with a section of each kind that matters to a
/// change of functions.
#[cfg(test)]
pub(super) const NESTED: &str = "(component
    (core module $m
        (memory (export \"memory\") 3)
        (global $g (mut i32) (i32.const 7))
        (func $start i32.const 1 global.set $g)
        (start $start)
        (func (export \"f\") (param i64) (result i32) global.get $g)
        (data (i32.const 0) \"data\")
        (@custom \"note\" \"kept\"))
    (component $nested (core module (func (result i32) i32.const 300)))
    (core instance $i (instantiate $m))
    (func (export \"f\") (param \"x\" s64) (result u32)
        (canon lift (core func $i \"f\"))))";
