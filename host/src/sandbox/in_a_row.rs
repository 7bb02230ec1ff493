//! Functions that can make many calls to the host in a row.
//!
//! Compiled code checks the epoch where a function begins and in each round of a loop. In between,
//! a guest is interrupted only if the host checks its turn at each return ([`after_calls`]), which
//! costs a streams guest 4% of an answer. Few components have a function for which that matters.
//!
//! [`after_calls`]: super::after_calls

use wasmparser::{Encoding, FunctionBody, Operator, Payload, TypeRef};

/// Instructions of one function that may call the host, beyond which returns are checked. Each
/// takes at most some milliseconds.
const MANY: usize = 32;

/// Bytes of code that are read to count them. Components with more code have such functions.
const MAX_CODE: usize = 1 << 20;

/// Looks for functions that can make many calls to the host in a row.
#[derive(Debug, Default)]
pub(super) struct InARow {
    /// Functions that the current module imports.
    imported: u32,
    /// Bytes of code so far.
    code: usize,
    found: bool,
}

impl InARow {
    /// Whether a function can make many calls.
    pub(super) fn is_found(&self) -> bool {
        self.found
    }

    pub(super) fn see(&mut self, payload: &Payload) {
        match payload {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } => self.imported = 0,
            Payload::ImportSection(section) => {
                let imports = section.clone().into_imports().flatten();
                let functions =
                    imports.filter(|import| matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)));
                self.imported = u32::try_from(functions.count()).unwrap_or(u32::MAX);
            }
            Payload::CodeSectionEntry(body) if !self.found => {
                self.code = self.code.saturating_add(body.range().len());
                self.found = self.code > MAX_CODE || self.calls(body) > MANY;
            }
            _ => {}
        }
    }

    /// Counts the instructions of a function that may call the host. Stops a little above the
    /// bound.
    fn calls(&self, body: &FunctionBody) -> usize {
        // What is not valid is refused later.
        let operators = body.get_operators_reader().into_iter().flatten();
        let calls = operators.map_while(Result::ok).filter(|operator| match operator {
            Operator::Call { function_index } | Operator::ReturnCall { function_index } => {
                *function_index < self.imported
            }
            Operator::CallIndirect { .. }
            | Operator::ReturnCallIndirect { .. }
            | Operator::CallRef { .. }
            | Operator::ReturnCallRef { .. }
            | Operator::MemoryGrow { .. }
            | Operator::MemoryInit { .. }
            | Operator::MemoryCopy { .. }
            | Operator::MemoryFill { .. }
            | Operator::TableGrow { .. }
            | Operator::TableInit { .. }
            | Operator::TableCopy { .. }
            | Operator::TableFill { .. } => true,
            _ => false,
        });
        calls.take(MANY + 1).count()
    }
}

#[cfg(test)]
mod tests {
    use wasmparser::Parser;

    use super::*;

    fn is_found(text: &str) -> bool {
        let bytes = wat::parse_str(text).unwrap();
        let mut in_a_row = InARow::default();
        for payload in Parser::new(0).parse_all(&bytes) {
            in_a_row.see(&payload.unwrap());
        }
        in_a_row.is_found()
    }

    #[test]
    fn calls_of_the_host_in_one_function_are_counted() {
        for (call, expected) in [
            ("(call $host)", true),
            ("(call_indirect (i32.const 0))", true),
            ("(drop (memory.grow (i32.const 1)))", true),
            ("(memory.fill (i32.const 0) (i32.const 0) (i32.const 9))", true),
            // A function of the module checks where it begins.
            ("(call $own)", false),
            ("(nop)", false),
        ] {
            let module = |name: &str, calls: usize| {
                format!(
                    "({name} (import \"\" \"host\" (func $host)) (memory 1) (table 1 funcref)
                        (func $own) (func {}) (func {}))",
                    call.repeat(calls),
                    call.repeat(MANY)
                )
            };
            assert!(!is_found(&module("module", MANY)), "{call}");
            assert_eq!(is_found(&module("module", MANY + 1)), expected, "{call}");
            // Each module of a component has imports of its own.
            let component = format!(
                "(component {} (core module (func $host) (func {})))",
                module("core module", MANY),
                "(call $host)".repeat(MANY + 1)
            );
            assert!(!is_found(&component), "{call}");
            let component = format!("(component {})", module("core module", MANY + 1));
            assert_eq!(is_found(&component), expected, "{call}");
        }
    }

    #[test]
    fn much_code_is_not_read() {
        let functions = format!("(func {})", "(nop)".repeat(100_000)).repeat(11);
        assert!(is_found(&format!("(module {functions})")));
    }
}
