//! Imports and exports whose types differ from those of the host.

use std::fmt::{self, Write as _};

use wasmtime::component::types::{ComponentFunc, ComponentItem, Type};
use wasmtime::component::{Component, ResourceType};
use wasmtime::{ImportType, Module};

/// How deep a type is written. What it consists of below is left out.
const MAX_DEPTH: usize = 3;

/// Bytes of a type that are shown.
const MAX_TEXT: usize = 200;

/// Says in what a type of the component differs from the host's, by wasmtime's error about it.
///
/// wasmtime checks the types of a component against those of Rust functions. Its error has only the
/// first difference, with the host's type as the one that it expected.
pub(super) fn difference(error: &wasmtime::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let place = causes
        .iter()
        .find_map(|cause| match cause.strip_prefix("type mismatch with ")? {
            "parameters" => Some("in the parameters, "),
            "results" => Some("in the result, "),
            _ => None,
        })
        .unwrap_or_default();
    let last = causes.last().map_or("", String::as_str);
    if let Some(text) = last.strip_prefix("type mismatch with async") {
        return if text.contains("declared `async func`") {
            "the function of the component is `async`, and that of this host is not".to_owned()
        } else {
            "the function of this host is `async`, and that of the component is not".to_owned()
        };
    }
    if let Some((component, host)) = kinds(last, " found ") {
        return format!("this host has {host}, and the component has {component}");
    }
    let sides = last
        .strip_prefix("expected ")
        .and_then(|rest| rest.split_once(", found ").or_else(|| rest.split_once(" found ")));
    let missing = last
        .strip_prefix("instance export ")
        .and_then(|rest| rest.split_once(" does not have export "));
    match (sides, missing) {
        (Some((host, component)), _) => {
            let (host, component) = (values(host), values(component));
            format!("{place}this host has {host}, and the component has {component}")
        }
        (None, Some((instance, item))) => format!("{instance} has no {item}"),
        (None, None) => format!("{place}{last}"),
    }
}

/// Finds the kinds of two items in wasmtime's error about them: that of the component or module,
/// which the linker expects, and that of the host. Between them, the error has `between`.
///
/// Other errors about types begin with the type of the host.
fn kinds(error: &str, between: &str) -> Option<(&'static str, &'static str)> {
    let (guest, host) = error.strip_prefix("expected ")?.split_once(between)?;
    Some((kind(guest)?, kind(host)?))
}

/// The kind of an item with its article, by wasmtime's name for it.
fn kind(name: &str) -> Option<&'static str> {
    Some(match name {
        "func" | "function" => "a function",
        "instance" => "an instance",
        "module" => "a module",
        "component" => "a component",
        "resource" => "a resource",
        "memory" => "a memory",
        "table" => "a table",
        "global" => "a global",
        "tag" => "a tag",
        _ => return None,
    })
}

/// Finds the import for which this host has another type than `module`, by wasmtime's error about
/// it. Returns the import, and its type in the module and in the host. Returns `None` if the error is
/// about something else.
pub(super) fn in_module<'a>(
    module: &'a Module,
    error: &wasmtime::Error,
) -> Option<(ImportType<'a>, String, String)> {
    let message = error.to_string();
    let import = module.imports().find(|import| {
        let (module, name) = (import.module(), import.name());
        message == format!("incompatible import type for `{module}::{name}`")
    })?;
    let cause = error.root_cause().to_string();
    if let Some((module, host)) = kinds(&cause, ", but found ") {
        return Some((import, module.to_owned(), host.to_owned()));
    }
    let types = cause.strip_prefix("types incompatible: expected type ")?;
    let (module, host) = types.split_once(", found type ")?;
    Some((import, module.to_owned(), host.to_owned()))
}

/// Says how many values there are in place of wasmtime's `2-tuple`.
fn values(text: &str) -> String {
    match text.strip_suffix("-tuple") {
        Some("1") => "one value".to_owned(),
        Some(count) => format!("{count} values"),
        None => text.to_owned(),
    }
}

/// Names the import that the linker refuses, and in an instance the item that it refuses there.
pub(super) fn refused_import(error: &wasmtime::Error) -> Option<(String, Option<String>)> {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let quoted = |text: &String| text.split('`').nth(1).map(str::to_owned);
    let import = causes.first().and_then(quoted)?;
    let items = causes.iter().skip(1);
    let mut items = items.filter(|cause| cause.starts_with("instance export"));
    Some((import, items.next_back().and_then(quoted)))
}

/// Writes the type of a function that `component` imports, or of one in an instance, as WIT does.
/// Returns `None` if there is no such function.
pub(super) fn imported_type(component: &Component, import: &str, item: Option<&str>) -> Option<String> {
    let engine = component.engine();
    let found = component.component_type().get_import(engine, import)?.ty;
    let function = match (found, item) {
        (ComponentItem::ComponentFunc(function), None) => function,
        (ComponentItem::ComponentInstance(instance), Some(item)) => {
            match instance.get_export(engine, item)?.ty {
                ComponentItem::ComponentFunc(function) => function,
                _ => return None,
            }
        }
        _ => return None,
    };
    let mut text = fmt::from_fn(|f| write_function(f, &function)).to_string();
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push_str("...");
    }
    Some(text)
}

fn write_function(f: &mut fmt::Formatter<'_>, function: &ComponentFunc) -> fmt::Result {
    f.write_str(if function.async_() { "async func(" } else { "func(" })?;
    for (number, (name, ty)) in function.params().enumerate() {
        let comma = if number > 0 { ", " } else { "" };
        write!(f, "{comma}{name}: {}", wit(&ty, 0))?;
    }
    f.write_char(')')?;
    function
        .results()
        .try_for_each(|ty| write!(f, " -> {}", wit(&ty, 0)))
}

/// A type as WIT has it. Records, variants, enums and flags have their parts in place of their
/// names, which a component need not have.
fn wit(ty: &Type, depth: usize) -> impl fmt::Display {
    let parts = |keyword: &str, parts: &mut dyn Iterator<Item = String>| {
        let parts: Vec<String> = parts.collect();
        format!("{keyword} {{ {} }}", parts.join(", "))
    };
    let inner = |ty: &Type| wit(ty, depth + 1).to_string();
    let optional = |ty: Option<Type>| ty.map_or_else(|| "_".to_owned(), |ty| inner(&ty));
    // Resources have no names here.
    let resource = |_: &ResourceType| "resource";
    if depth > MAX_DEPTH {
        return "...".to_owned();
    }
    match ty {
        Type::Bool => "bool".to_owned(),
        Type::S8 => "s8".to_owned(),
        Type::U8 => "u8".to_owned(),
        Type::S16 => "s16".to_owned(),
        Type::U16 => "u16".to_owned(),
        Type::S32 => "s32".to_owned(),
        Type::U32 => "u32".to_owned(),
        Type::S64 => "s64".to_owned(),
        Type::U64 => "u64".to_owned(),
        Type::Float32 => "f32".to_owned(),
        Type::Float64 => "f64".to_owned(),
        Type::Char => "char".to_owned(),
        Type::String => "string".to_owned(),
        Type::ErrorContext => "error-context".to_owned(),
        Type::List(list) => format!("list<{}>", inner(&list.ty())),
        Type::FixedLengthList(list) => format!("list<{}, {}>", inner(&list.ty()), list.len()),
        Type::Map(map) => format!("map<{}, {}>", inner(&map.key()), inner(&map.value())),
        Type::Option(option) => format!("option<{}>", inner(&option.ty())),
        Type::Result(result) => match (result.ok(), result.err()) {
            (None, None) => "result".to_owned(),
            (Some(ok), None) => format!("result<{}>", inner(&ok)),
            (ok, err) => format!("result<{}, {}>", optional(ok), optional(err)),
        },
        Type::Tuple(tuple) => {
            let types: Vec<String> = tuple.types().map(|ty| inner(&ty)).collect();
            format!("tuple<{}>", types.join(", "))
        }
        Type::Record(record) => {
            let mut fields = record
                .fields()
                .map(|field| format!("{}: {}", field.name, inner(&field.ty)));
            parts("record", &mut fields)
        }
        Type::Variant(variant) => {
            let mut cases = variant.cases().map(|case| match &case.ty {
                Some(ty) => format!("{}({})", case.name, inner(ty)),
                None => case.name.to_owned(),
            });
            parts("variant", &mut cases)
        }
        Type::Enum(names) => parts("enum", &mut names.names().map(str::to_owned)),
        Type::Flags(names) => parts("flags", &mut names.names().map(str::to_owned)),
        Type::Own(of) => format!("own<{}>", resource(of)),
        Type::Borrow(of) => format!("borrow<{}>", resource(of)),
        Type::Future(future) => future
            .ty()
            .map_or_else(|| "future".to_owned(), |ty| format!("future<{}>", inner(&ty))),
        Type::Stream(stream) => stream
            .ty()
            .map_or_else(|| "stream".to_owned(), |ty| format!("stream<{}>", inner(&ty))),
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::Engine;
    use wasmtime::component::Linker;

    use super::*;

    fn module(engine: &Engine, text: &str) -> Module {
        Module::new(engine, wat::parse_str(text).unwrap()).unwrap()
    }

    /// Says in what an import of the component differs from the item that the host has as `x`.
    fn difference_from(host: &str, component: &str) -> String {
        let engine = Engine::default();
        let mut linker = Linker::<()>::new(&engine);
        let mut root = linker.root();
        match host {
            "a function" => root.func_wrap("x", |_, ()| Ok(())).unwrap(),
            "an instance" => drop(root.instance("x").unwrap()),
            "a module" => root.module("x", &module(&engine, "(module)")).unwrap(),
            "a resource" => {
                let ty = ResourceType::host::<u8>();
                root.resource("x", ty, |_, _| Ok(())).unwrap();
            }
            other => unreachable!("{other}"),
        }
        let component = Component::new(&engine, wat::parse_str(component).unwrap()).unwrap();
        let error = linker.instantiate_pre(&component).err().unwrap();
        difference(&error)
    }

    #[test]
    fn kinds_are_those_of_the_host_and_the_component() {
        let imports = [
            ("a function", "(component (import \"x\" (func)))"),
            (
                "an instance",
                "(component (import \"x\" (instance (export \"f\" (func)))))",
            ),
            ("a module", "(component (import \"x\" (core module)))"),
            ("a resource", "(component (import \"x\" (type (sub resource))))"),
        ];
        for (component, text) in imports {
            for host in ["a function", "an instance", "a module", "a resource"] {
                if host != component {
                    assert_eq!(
                        difference_from(host, text),
                        format!("this host has {host}, and the component has {component}")
                    );
                }
            }
        }
    }

    #[test]
    fn a_component_within_an_instance_is_one_of_the_component() {
        let engine = Engine::default();
        let mut linker = Linker::<()>::new(&engine);
        let mut root = linker.root();
        root.instance("i")
            .unwrap()
            .func_wrap("x", |_, ()| Ok(()))
            .unwrap();
        let text = "(component (import \"i\" (instance (export \"x\" (component)))))";
        let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let error = linker.instantiate_pre(&component).err().unwrap();
        assert_eq!(
            difference(&error),
            "this host has a function, and the component has a component"
        );
    }

    #[test]
    fn an_import_of_a_module_has_its_type_or_its_kind() {
        let engine = Engine::default();
        let mut linker = wasmtime::Linker::<()>::new(&engine);
        linker.func_wrap("a::b", "f", |_: i32| -> i64 { 0 }).unwrap();
        let host = "`(func (param i32) (result i64))`";
        for (item, found, expected) in [
            ("(func)", "`(func)`", host),
            ("(func (param i64))", "`(func (param i64))`", host),
            ("(memory 1)", "a memory", "a function"),
            ("(table 1 funcref)", "a table", "a function"),
            ("(global i32)", "a global", "a function"),
        ] {
            let text = format!("(module (import \"a::b\" \"f\" {item}))");
            let module = module(&engine, &text);
            let error = linker.instantiate_pre(&module).err().unwrap();
            let (import, in_module, in_host) = in_module(&module, &error).unwrap();
            assert_eq!((import.module(), import.name()), ("a::b", "f"));
            assert_eq!((&*in_module, &*in_host), (found, expected), "{item}");
        }
        let module = module(&engine, "(module (import \"a\" \"g\" (func)))");
        let unknown = linker.instantiate_pre(&module).err().unwrap();
        assert!(in_module(&module, &unknown).is_none());
    }
}
