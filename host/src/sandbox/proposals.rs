//! Why a component that cannot be compiled is no damaged file: it uses proposals to WebAssembly that
//! this host does not offer, or exceeds a bound.

use wasmparser::{
    CompositeInnerType, ElementItems, HeapType, Operator, Parser, Payload, RecGroup, RefType, TypeRef,
    ValType, Validator, WasmFeatures,
};

use super::load_error::Refusal;

/// The proposals that the engines of this host offer, in a build of wasmtime without garbage
/// collection.
const OFFERED: WasmFeatures = WasmFeatures::WASM3
    .union(WasmFeatures::COMPONENT_MODEL)
    .union(WasmFeatures::CM_ASYNC)
    .difference(WasmFeatures::GC_TYPES)
    .difference(WasmFeatures::EXCEPTIONS);

/// What uses of [`WasmFeatures::GC_TYPES`] are called that do not need garbage collection: that
/// feature also has the references to objects of the embedder, which are older.
const EXTERNREF: &str = "`externref` of reference types";

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

/// Parts of the messages by which the parser reports a number, a size or a depth beyond its bound.
/// Its errors have no other mark of their kind.
const BOUNDS: [&str; 10] = [
    "exceeds limit of",
    "exceeds the limit of",
    "implementation limit",
    // Of counts in types and instructions, and of strings. An index is "index out of bounds".
    "size is out of bounds",
    "string size out of bounds",
    "number of elements is out of bounds",
    "too many locals",
    "too many data segments",
    // Of types of components, and of types with supertypes.
    "too deep",
    "type index too large",
];

/// Validates a component or a module as the engines of this host do.
///
/// # Errors
///
/// It is not valid, or uses a proposal that the host does not offer.
pub(super) fn validate(bytes: &[u8]) -> wasmparser::Result<()> {
    validate_with(bytes, OFFERED)
}

/// Says why a component or module cannot be compiled, which wasmtime reports as `reason`.
pub(super) fn why(bytes: &[u8], reason: String) -> Refusal {
    let mut features = OFFERED;
    // Each round adds a proposal, and there are 64 at most.
    while let Err(error) = validate_with(bytes, features) {
        match error.missing_wasm_feature() {
            Some(missing) if !features.contains(missing) => features |= missing,
            _ => {
                // Some uses of a proposal are reported as errors of another kind.
                return match validate_with(bytes, WasmFeatures::all()) {
                    Ok(()) => {
                        let message = error.message();
                        Refusal::Unsupported(format!("a proposal by which this is valid: {message}"))
                    }
                    Err(error) if BOUNDS.iter().any(|bound| error.message().contains(bound)) => {
                        Refusal::Bound(error.message().to_owned())
                    }
                    // Wasmtime has other words for the same, by the way that it reads the bytes.
                    Err(error) => Refusal::Invalid(error.to_string()),
                };
            }
        }
    }
    let used = features.difference(OFFERED);
    let needs_no_gc = || validate_with(bytes, features.difference(WasmFeatures::GC)).is_ok();
    let names: Vec<String> = used
        .iter_names()
        .filter_map(|(flag, feature)| match feature {
            WasmFeatures::GC_TYPES if needs_no_gc() => {
                if has_externref(bytes) {
                    Some(EXTERNREF.to_owned())
                } else if used == WasmFeatures::GC_TYPES {
                    Some(name(flag, feature))
                } else {
                    // Types of other proposals, such as continuations, need this feature too.
                    None
                }
            }
            _ => Some(name(flag, feature)),
        })
        .collect();
    if names.is_empty() {
        // It is valid, whatever wasmtime says before its reason.
        let own = reason.strip_prefix("failed to parse WebAssembly module: ");
        Refusal::NotCompiled(own.unwrap_or(&reason).to_owned())
    } else {
        Refusal::Unsupported(names.join(", "))
    }
}

fn name(flag: &str, feature: WasmFeatures) -> String {
    match NAMES.iter().find(|(named, _)| *named == feature) {
        Some((_, name)) => (*name).to_owned(),
        None => flag.to_lowercase().replace('_', "-"),
    }
}

/// Checks whether `externref` occurs in a component or module.
fn has_externref(bytes: &[u8]) -> bool {
    let payloads = Parser::new(0).parse_all(bytes).map_while(Result::ok);
    payloads
        .into_iter()
        .any(|payload| names_externref(&payload).unwrap_or(false))
}

fn names_externref(payload: &Payload<'_>) -> wasmparser::Result<bool> {
    let is_value = |ty: &ValType| matches!(ty, ValType::Ref(ty) if *ty == RefType::EXTERNREF);
    Ok(match payload {
        Payload::TypeSection(section) => {
            let groups = section.clone().into_iter().flatten();
            groups
                .flat_map(RecGroup::into_types)
                .any(|ty| match ty.composite_type.inner {
                    CompositeInnerType::Func(ty) => ty.params().iter().chain(ty.results()).any(is_value),
                    _ => false,
                })
        }
        Payload::ImportSection(section) => {
            let imports = section.clone().into_imports().flatten();
            imports.into_iter().any(|import| match import.ty {
                TypeRef::Table(ty) => ty.element_type == RefType::EXTERNREF,
                TypeRef::Global(ty) => is_value(&ty.content_type),
                _ => false,
            })
        }
        Payload::TableSection(section) => {
            let mut tables = section.clone().into_iter().flatten();
            tables.any(|table| table.ty.element_type == RefType::EXTERNREF)
        }
        Payload::GlobalSection(section) => {
            let mut globals = section.clone().into_iter().flatten();
            globals.any(|global| is_value(&global.ty.content_type))
        }
        Payload::ElementSection(section) => {
            let mut elements = section.clone().into_iter().flatten();
            elements.any(|element| match element.items {
                ElementItems::Expressions(ty, _) => ty == RefType::EXTERNREF,
                ElementItems::Functions(_) => false,
            })
        }
        Payload::CodeSectionEntry(body) => {
            let mut locals = body.get_locals_reader()?.into_iter().flatten();
            locals.any(|(_, ty)| is_value(&ty))
                || body
                    .get_operators_reader()?
                    .into_iter()
                    .flatten()
                    .any(|operator| match operator {
                        Operator::RefNull { hty } => hty == HeapType::EXTERN,
                        Operator::TypedSelect { ty } => is_value(&ty),
                        _ => false,
                    })
        }
        _ => false,
    })
}

fn validate_with(bytes: &[u8], features: WasmFeatures) -> wasmparser::Result<()> {
    Validator::new_with_features(features)
        .validate_all(bytes)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(bytes: &[u8]) -> Refusal {
        super::why(bytes, "reason".to_owned())
    }

    fn uses(text: &str) -> String {
        match why(&wat::parse_str(text).unwrap()) {
            Refusal::Unsupported(proposals) => proposals,
            other => panic!("{text}: {other}"),
        }
    }

    #[test]
    fn each_proposal_is_named() {
        for (text, expected) in [
            ("(module (type (struct)))", "garbage collection (GC)"),
            ("(module (type (array i8)))", "garbage collection (GC)"),
            ("(module (func (param anyref)))", "garbage collection (GC)"),
            ("(module (func (param externref)))", EXTERNREF),
            ("(module (table 10 externref))", EXTERNREF),
            (
                "(module (type (struct)) (table 10 externref))",
                "garbage collection (GC)",
            ),
            (
                "(module (table 10 externref) (memory 1 (pagesize 1)))",
                "custom page sizes, `externref` of reference types",
            ),
            ("(module (func ref.null extern drop))", EXTERNREF),
            (
                "(module (type $f (func)) (type $c (cont $f)) (func (param (ref $c))))",
                "stack switching",
            ),
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
            assert_eq!(uses(text), expected, "{text}");
        }
        let both = uses("(module (tag) (memory 1 (pagesize 1)))");
        assert_eq!(both, "exceptions, custom page sizes");
    }

    #[test]
    fn a_bound_of_the_parser_is_named() {
        let many = |item: &str, count| item.repeat(count);
        let nested: String = (0..100).map(|inner| format!("(type (list {inner}))")).collect();
        for (text, expected) in [
            (
                format!("(module {})", many("(memory 1)", 101)),
                "memories count exceeds limit of 100",
            ),
            (
                format!("(module {})", many("(table 1 funcref)", 101)),
                "tables count exceeds limit of 100",
            ),
            (
                format!(
                    "(component (component $c) {})",
                    many("(instance (instantiate $c))", 1001)
                ),
                "instances count exceeds limit of 1000",
            ),
            (
                format!("(module (func (local {})))", many("i32 ", 50_001)),
                "too many locals: locals exceed maximum",
            ),
            (
                format!("(module (func (param {})))", many("i32 ", 1001)),
                "function params size is out of bounds",
            ),
            (
                format!("(module (type (func (result {}))))", many("i32 ", 1001)),
                "function returns size is out of bounds",
            ),
            (
                format!("(module (func (export \"{}\")))", many("a", 110_000)),
                "string size out of bounds",
            ),
            (
                format!("(component (type (record {})))", many("(field \"a\" u8)", 10_001)),
                "record field size is out of bounds",
            ),
            (
                format!("(component (type (list u8)) {nested})"),
                "type nesting is too deep",
            ),
        ] {
            match why(&wat::parse_str(text).unwrap()) {
                Refusal::Bound(bound) => assert_eq!(bound, expected),
                other => panic!("{expected}: {other}"),
            }
        }
    }

    #[test]
    fn offered_and_damaged_components_name_none() {
        for offered in [
            "(module (memory 1) (memory 2))",
            "(module (memory i64 1))",
            "(module (func (result v128) v128.const i64x2 0 0))",
            "(component (type (stream u8)))",
        ] {
            let why = why(&wat::parse_str(offered).unwrap());
            assert!(matches!(why, Refusal::NotCompiled(_)), "{offered}: {why}");
        }
        let damaged = wat::parse_str("(module (tag) (func (result i32) i32.const 1))").unwrap();
        let why = why(&damaged[..damaged.len() - 3]);
        assert!(matches!(why, Refusal::Invalid(_)), "{why}");
    }
}
