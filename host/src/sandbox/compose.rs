//! Composing a service with the middlewares that stand before it, as `wac plug` does it offline.

use std::error::Error;

use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeError, EncodeOptions, NodeId, PackageId};
use wasmparser::Parser;

use super::configuration;
use super::content::{Content, Stage};
use super::contract::{CORE_MODULE, Contract, PACKAGE};
use super::load_error::{LoadError, Refusal};
use super::wasi;

/// What is called from part to part.
pub(super) const HANDLER: &str = Contract::Streams.interface();

/// Composes `service`, the last of the parts of `content` or what it has come to by being initialised, with those before it:
/// each calls the next. What else they import is imported by the whole.
///
/// # Errors
///
/// A part is not what its place takes, or imports an interface with another type than a part behind
/// it.
pub(super) fn compose(content: &Content, service: &Content) -> Result<Content, LoadError> {
    let impossible = |part: &Content, with: &str, error: &dyn Error| {
        part.refused(Refusal::Composition {
            with: with.to_owned(),
            error: line(error),
        })
    };
    let Some((_, middleware)) = content.parts().split_last() else {
        return Ok(service.clone());
    };
    let mut graph = CompositionGraph::new();
    let package = add(&mut graph, 0, service)?;
    if let Some(found) = not_callable(&graph, package) {
        return Err(service.refused(Refusal::NotCallable {
            found,
            handler: HANDLER,
        }));
    }
    if imports(&graph, package).any(|name| name == HANDLER) {
        return Err(service.refused(Refusal::Middleware(HANDLER)));
    }
    let mut instance = graph.instantiate(package);
    let mut instances = vec![(instance, service)];
    export_configuration(&mut graph, middleware.len(), package, instance)
        .map_err(|error| impossible(service, "its middleware", &*error))?;
    let mut behind = service;
    for (number, part) in (1..).zip(middleware.iter().rev()) {
        let package = add(&mut graph, number, part)?;
        if let Some(found) = no_middleware(&graph, package) {
            return Err(part.refused(Refusal::NoMiddleware {
                found,
                handler: HANDLER,
            }));
        }
        let handler = graph
            .alias_instance_export(instance, HANDLER)
            .map_err(|error| impossible(part, &behind.name, &error))?;
        instance = graph.instantiate(package);
        instances.push((instance, part));
        graph
            .set_instantiation_argument(instance, HANDLER, handler)
            .map_err(|error| impossible(part, &behind.name, &error))?;
        export_configuration(&mut graph, middleware.len() - number, package, instance)
            .map_err(|error| impossible(part, &behind.name, &*error))?;
        behind = part;
    }
    let handler = graph
        .alias_instance_export(instance, HANDLER)
        .map_err(|error| impossible(content, "its middleware", &error))?;
    graph
        .export(handler, HANDLER)
        .map_err(|error| impossible(content, "its middleware", &error))?;
    // What comes out is validated where it is compiled.
    let options = EncodeOptions {
        validate: false,
        ..EncodeOptions::default()
    };
    let bytes = graph.encode(options).map_err(|error| match &error {
        EncodeError::ImportTypeMergeConflict {
            import,
            second,
            source,
            ..
        } => {
            // The graph has the node of a part after the nodes of the parts behind it.
            let part = instances.iter().find(|(node, _)| node == second);
            let part = part.map_or(content, |(_, part)| part);
            part.refused(Refusal::ImportConflict {
                import: import.clone(),
                error: line(source.as_ref()),
                wit: wasi::wit_of(import),
            })
        }
        error => impossible(content, "its middleware", error),
    })?;
    Ok(content.composed(service.stage != Stage::AsRead, bytes))
}

/// Exports the interface by which the part at `index` checks its configuration, if it has that.
fn export_configuration(
    graph: &mut CompositionGraph,
    index: usize,
    package: PackageId,
    instance: NodeId,
) -> Result<(), Box<dyn Error>> {
    if exports(graph, package).any(|name| name == configuration::INTERFACE) {
        let check = graph.alias_instance_export(instance, configuration::INTERFACE)?;
        graph.export(check, configuration::of_part(index))?;
    }
    Ok(())
}

/// Adds a part to the graph.
fn add(graph: &mut CompositionGraph, number: usize, part: &Content) -> Result<PackageId, LoadError> {
    if Parser::is_core_wasm(part.bytes()) {
        // The graph takes components alone; what is said is up to the place of the part.
        let (found, handler) = (CORE_MODULE.to_owned(), HANDLER);
        return Err(part.refused(if number == 0 {
            Refusal::NotCallable { found, handler }
        } else {
            Refusal::NoMiddleware { found, handler }
        }));
    }
    let invalid = |error: &dyn Error| part.invalid(line(error));
    // The same component may stand in several places.
    let name = format!("inet:part{number}");
    let package = Package::from_bytes(&name, None, part.bytes(), graph.types_mut());
    let package = package.map_err(|error| invalid(error.as_ref()))?;
    graph.register_package(package).map_err(|error| invalid(&error))
}

/// Why no middleware can call it.
fn not_callable(graph: &CompositionGraph, package: PackageId) -> Option<String> {
    let names: Vec<&str> = exports(graph, package).collect();
    (!names.contains(&HANDLER)).then(|| format!("exports {}", list(&names)))
}

/// Why it is no middleware.
fn no_middleware(graph: &CompositionGraph, package: PackageId) -> Option<String> {
    let names: Vec<&str> = exports(graph, package).collect();
    if !names.contains(&HANDLER) {
        return Some(format!("exports {}", list(&names)));
    }
    let ours: Vec<&str> = imports(graph, package)
        .filter(|name| name.starts_with(PACKAGE))
        .collect();
    (!ours.contains(&HANDLER)).then(|| format!("imports {} from `inet:service`", list(&ours)))
}

fn exports(graph: &CompositionGraph, package: PackageId) -> impl Iterator<Item = &str> {
    let world = &graph.types()[graph[package].ty()];
    world.exports.keys().map(String::as_str)
}

fn imports(graph: &CompositionGraph, package: PackageId) -> impl Iterator<Item = &str> {
    let world = &graph.types()[graph[package].ty()];
    world.imports.keys().map(String::as_str)
}

/// Names as a message has them.
fn list(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        some => some
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// An error with its causes in one line.
fn line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
