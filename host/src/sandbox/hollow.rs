//! Components without the code of their functions.
//!
//! Such a component has the imports, exports, types, memories and tables of the one that it is made
//! of, and compiles in milliseconds. A check links and instantiates it, which tells whether the host
//! accepts the component, without compiling or running the code of the guest.

use std::borrow::Cow;

use wasm_encoder::SectionId;
use wasmparser::{FunctionBody, Result};

use super::rewrite::{Change, rewrite};

/// A function without locals that traps: no locals, `unreachable` and `end`.
const TRAP: &[u8] = &[0, 0x00, 0x0b];

/// Returns `bytes`, a valid component or module, without the code of its functions. No function
/// runs when it is instantiated. Returns `None` if its sections cannot be read, or are nested too deep.
pub(super) fn hollow(bytes: &[u8]) -> Option<Vec<u8>> {
    rewrite(bytes, &mut Hollow).ok().flatten()
}

/// Replaces each function by one that traps.
struct Hollow;

impl Change for Hollow {
    /// Leaves out names of functions and hints about their code.
    fn keeps(&self, id: u8) -> bool {
        ![SectionId::Custom, SectionId::Start].map(u8::from).contains(&id)
    }

    fn function<'a>(&mut self, _body: &FunctionBody<'a>) -> Result<Cow<'a, [u8]>> {
        Ok(Cow::Borrowed(TRAP))
    }
}

#[cfg(test)]
mod tests {
    use wasmparser::{Parser, Payload};

    use super::super::content::ECHO;
    use super::super::extent::code_size;
    use super::super::proposals;
    use super::super::rewrite::NESTED;
    use super::*;

    /// The sections of imports and exports of a component.
    fn surface(bytes: &[u8]) -> Vec<&[u8]> {
        let payloads = Parser::new(0).parse_all(bytes).map(Result::unwrap);
        let ranges = payloads.filter_map(|payload| match payload {
            Payload::ComponentImportSection(section) => Some(section.range()),
            Payload::ComponentExportSection(section) => Some(section.range()),
            _ => None,
        });
        ranges.map(|range| &bytes[range]).collect()
    }

    #[test]
    fn only_code_is_left_out() {
        for component in [&wat::parse_str(NESTED).unwrap(), ECHO] {
            let hollow = hollow(component).unwrap();
            proposals::validate(&hollow).unwrap();
            assert_eq!(surface(&hollow), surface(component));
            assert!(code_size(&hollow) < code_size(component));
        }
    }

    #[test]
    fn what_is_cut_off_or_nested_too_deep_is_refused() {
        for length in [0, 7, 9, ECHO.len() / 2, ECHO.len() - 1] {
            assert_eq!(hollow(&ECHO[..length]), None, "{length}");
        }
        let nested = |depth| {
            let text = format!("{}{}", "(component ".repeat(depth), ")".repeat(depth));
            hollow(&wat::parse_str(text).unwrap())
        };
        assert!(nested(51).is_some());
        assert_eq!(nested(52), None);
    }
}
