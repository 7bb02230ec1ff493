//! Proposals to WebAssembly that a component uses and that this host does not offer.

use wasmparser::{Validator, WasmFeatures};

/// The proposals that the engines of this host offer, in a build of wasmtime without garbage
/// collection.
const OFFERED: WasmFeatures = WasmFeatures::WASM3
    .union(WasmFeatures::COMPONENT_MODEL)
    .union(WasmFeatures::CM_ASYNC)
    .difference(WasmFeatures::GC_TYPES)
    .difference(WasmFeatures::EXCEPTIONS);

/// Names of proposals, as their documents have them.
const NAMES: [(WasmFeatures, &str); 19] = [
    (WasmFeatures::GC_TYPES, "garbage collection (GC)"),
    (WasmFeatures::EXCEPTIONS, "exceptions"),
    (WasmFeatures::LEGACY_EXCEPTIONS, "legacy exceptions"),
    (
        WasmFeatures::SHARED_EVERYTHING_THREADS,
        "shared-everything threads",
    ),
    (WasmFeatures::MEMORY_CONTROL, "memory control"),
    (WasmFeatures::CUSTOM_PAGE_SIZES, "custom page sizes"),
    (WasmFeatures::STACK_SWITCHING, "stack switching"),
    (WasmFeatures::WIDE_ARITHMETIC, "wide arithmetic"),
    (WasmFeatures::CUSTOM_DESCRIPTORS, "custom descriptors"),
    (WasmFeatures::COMPACT_IMPORTS, "compact import sections"),
    (
        WasmFeatures::CM_ASYNC_STACKFUL,
        "`async` lifts without a callback",
    ),
    (
        WasmFeatures::CM_MORE_ASYNC_BUILTINS,
        "additional `async` built-ins",
    ),
    (WasmFeatures::CM_THREADING, "threads of the component model"),
    (WasmFeatures::CM_ERROR_CONTEXT, "`error-context`"),
    (WasmFeatures::CM_FIXED_LENGTH_LISTS, "fixed-length lists"),
    (WasmFeatures::CM_GC, "GC in the component model"),
    (WasmFeatures::CM_MAP, "maps in the component model"),
    (WasmFeatures::CM64, "64-bit components"),
    (WasmFeatures::CM_VALUES, "values in the component model"),
];

/// Names the proposals that a valid component or module uses and that this host does not offer.
///
/// Returns `None` for one that is damaged, or that uses only what is offered.
pub(super) fn not_offered(bytes: &[u8]) -> Option<String> {
    let mut features = OFFERED;
    // Each round adds a proposal, and there are 64 at most.
    while let Err(error) = validate(bytes, features) {
        match error.missing_wasm_feature() {
            Some(missing) if !features.contains(missing) => features |= missing,
            _ => {
                // Some uses of a proposal are reported as errors of another kind.
                validate(bytes, WasmFeatures::all()).ok()?;
                return Some(format!("a proposal by which this is valid: {}", error.message()));
            }
        }
    }
    let used = features.difference(OFFERED);
    let names: Vec<String> = used
        .iter_names()
        .map(|(flag, feature)| name(flag, feature))
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn name(flag: &str, feature: WasmFeatures) -> String {
    match NAMES.iter().find(|(named, _)| *named == feature) {
        Some((_, name)) => (*name).to_owned(),
        None => flag.to_lowercase().replace('_', "-"),
    }
}

fn validate(bytes: &[u8], features: WasmFeatures) -> wasmparser::Result<()> {
    Validator::new_with_features(features)
        .validate_all(bytes)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(text: &str) -> Option<String> {
        not_offered(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn each_proposal_is_named() {
        for (text, expected) in [
            ("(module (type (struct)))", "garbage collection (GC)"),
            ("(module (func (param externref)))", "garbage collection (GC)"),
            ("(module (tag))", "exceptions"),
            ("(module (memory 1 (pagesize 1)))", "custom page sizes"),
            (
                "(module (func (param i64 i64) (result i64 i64)
                    local.get 0 local.get 1 i64.mul_wide_u))",
                "wide arithmetic",
            ),
            ("(component (type (list u8 4)))", "fixed-length lists"),
            (
                "(component (core module $m (func (export \"f\")))
                    (core instance $i (instantiate $m))
                    (func (export \"f\") async (canon lift (core func $i \"f\") async)))",
                "`async` lifts without a callback",
            ),
            ("(component (type (option error-context)))", "`error-context`"),
        ] {
            assert_eq!(uses(text).as_deref(), Some(expected), "{text}");
        }
        let both = uses("(module (tag) (memory 1 (pagesize 1)))").unwrap();
        assert_eq!(both, "exceptions, custom page sizes");
    }

    #[test]
    fn offered_and_damaged_components_name_none() {
        for offered in [
            "(module (memory 1) (memory 2))",
            "(module (memory i64 1))",
            "(module (func (result v128) v128.const i64x2 0 0))",
            "(component (type (stream u8)))",
        ] {
            assert_eq!(uses(offered), None, "{offered}");
        }
        let damaged = wat::parse_str("(module (tag) (func (result i32) i32.const 1))").unwrap();
        assert_eq!(not_offered(&damaged[..damaged.len() - 3]), None);
    }
}
