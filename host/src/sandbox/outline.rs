//! Components that a component imports or exports, which the engine cannot link.

use wasmparser::{ComponentExternalKind, ComponentTypeRef, Parser, Payload};

use super::content::Content;
use super::load_error::{LoadError, Refusal};

/// Checks that a part neither imports nor exports components.
///
/// # Errors
///
/// It does. If it is not valid either, that is the error.
pub(super) fn check_outline(part: &Content) -> Result<(), LoadError> {
    let Some((does, name)) = component_item(part.bytes()) else {
        return Ok(());
    };
    part.validate()?;
    Err(part.refused(Refusal::ComponentItem { does, name }))
}

/// Finds a component that is imported or exported, and returns which of the two, with its name. Of
/// a file that is not valid, it reads the sections that can be read.
pub(super) fn component_item(bytes: &[u8]) -> Option<(&'static str, String)> {
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
        let found = match &payload {
            Payload::Version { .. } => {
                depth += 1;
                None
            }
            Payload::End(_) => {
                depth -= 1;
                None
            }
            Payload::ComponentImportSection(section) if depth == 1 => {
                let mut imports = section.clone().into_iter().flatten();
                let found = imports.find(|import| matches!(import.ty, ComponentTypeRef::Component(_)));
                found.map(|import| ("imports", import.name.name))
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                let mut exports = section.clone().into_iter().flatten();
                let found = exports.find(|export| export.kind == ComponentExternalKind::Component);
                found.map(|export| ("exports", export.name.name))
            }
            _ => None,
        };
        if let Some((does, name)) = found {
            return Some((does, name.to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_components_at_the_root_are_found() {
        for (text, expected) in [
            ("(component (import \"c\" (component)))", Some(("imports", "c"))),
            (
                "(component (component $c) (export \"d\" (component $c)))",
                Some(("exports", "d")),
            ),
            (
                "(component (component (import \"c\" (component)) (component $d) (export \"d\" (component $d))))",
                None,
            ),
            ("(component (import \"m\" (core module)))", None),
            (
                "(component (core module $m) (export \"m\" (core module $m)))",
                None,
            ),
            ("(module (func (export \"f\")))", None),
        ] {
            let found = component_item(&wat::parse_str(text).unwrap());
            let expected = expected.map(|(does, name)| (does, name.to_owned()));
            assert_eq!(found, expected, "{text}");
        }
    }
}
