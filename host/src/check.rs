//! `wasm-inetd check`: what a component is, and whether the host could start with a services file.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use bytesize::ByteSize;

use crate::admin;
use crate::compile::compiling;
use crate::config::{CacheDir, Terms};
use crate::file::{Sound, Text};
use crate::listener;
use crate::logging::in_one_line;
use crate::preflight::{self, Blocked, Obstacles, Purpose};
use crate::sandbox::{Compiler, Program, Sandbox, Source};
use crate::service::{mappings, warn_of_migration};
use crate::system;
use crate::terminal::Progress;
use crate::threads;

/// Says of the component at `path`, in a few lines, what it is.
///
/// # Errors
///
/// It would be refused.
pub async fn check(path: &Path, terms: &Terms, program: &Program) -> anyhow::Result<String> {
    // Nothing that was kept, so that the time is what it takes.
    let compiler = Compiler::in_child(program, &CacheDir::Off, terms.max_compile_memory, None);
    let sandbox = Sandbox::on(terms, &compiler).context("cannot start the sandbox")?;
    let content = Source::new(Some(path.to_owned()), terms.middleware.clone()).read()?;
    let facts = sandbox.inspect(&content).await?;
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        // A string takes all that is written to it.
        let _ = writeln!(text, "{key:<10} {}", in_one_line(value));
    };
    line("component", &path.display().to_string());
    for (index, path) in terms.middleware.iter().enumerate() {
        let key = if index == 0 { "middleware" } else { "" };
        line(key, &path.display().to_string());
    }
    line("contract", facts.contract.as_str());
    line("export", &facts.export);
    for (index, export) in facts.unused.iter().enumerate() {
        let key = if index == 0 { "unused" } else { "" };
        line(key, export);
    }
    if facts.migrates {
        line("migration", "sessions can move to another generation");
    }
    line("size", &ByteSize(content.size()).to_string());
    line("memory", &format!("{} at instantiation", ByteSize(facts.memory)));
    if let Some(shortage) = facts.shortage {
        line(
            "serves",
            &format!(
                "{} of {} connections at the same time",
                shortage.served, shortage.asked
            ),
        );
    }
    line("compiled", &format!("in {} ms", facts.took.as_millis()));
    for (index, part) in facts.configured.iter().enumerate() {
        let key = if index == 0 { "config" } else { "" };
        line(key, &format!("accepted by {part}"));
    }
    for (index, import) in facts.imports.iter().enumerate() {
        let key = if index == 0 { "imports" } else { "" };
        line(key, &format!("{} ({})", import.name, import.granted));
    }
    if facts.imports.is_empty() {
        line("imports", "nothing");
    }
    Ok(text)
}

/// Checks whether the host could start with the services file `file`, whose part without errors is
/// `sound`. Components are compiled if `compile` is set. Logs the warnings that a start logs, and
/// shows its `progress`.
///
/// # Errors
///
/// Something that a start needs is missing or unusable. The error has all that was found.
pub async fn check_services(
    file: &Text,
    sound: &Sound,
    compile: bool,
    progress: &Progress,
    program: &Program,
) -> Result<String, Blocked> {
    let config = &sound.config;
    let mut obstacles = Obstacles::default();
    system::raise_descriptors(config, admin::DESCRIPTORS);
    let threads = threads::check(config.threads().get()).map_err(anyhow::Error::msg);
    obstacles.note("threads", None, threads);
    preflight::check_admin(config, preflight::ADMIN_KEY, &mut obstacles);
    // A check leaves no files behind.
    let compiler = Compiler::of(config, program, Some(file.path())).with_cache(&CacheDir::Off);
    let found = preflight::find(
        sound.services(),
        Some(file),
        &compiler,
        Purpose::Check,
        &mut obstacles,
    );
    // The pools of all services share the address space and the memory mappings, as they do when
    // the host runs.
    let mut loaded = Vec::new();
    let count = found.services.len();
    for (number, (index, unloaded)) in (1..).zip(found.services) {
        let generation = if compile {
            progress.set(compiling(number, count));
            unloaded.sandbox.load(&unloaded.content).await
        } else {
            progress.set(format!("checking component {number} of {count}"));
            unloaded.sandbox.check_without_code(&unloaded.content).await
        };
        match generation {
            Ok(generation) => {
                warn_of_migration(&unloaded.config, &unloaded.source, &generation);
                loaded.push((unloaded.config.clone(), generation));
            }
            Err(error) => {
                let key = preflight::key_of(&unloaded.content, &error);
                let key = format!("service[{index}].{key}");
                obstacles.add(key, Some(&unloaded.config), error.into());
            }
        }
    }
    let mappings = loaded
        .iter()
        .filter_map(|(service, generation)| mappings(service, generation));
    system::check_mappings(None, mappings);
    drop(loaded);
    let listeners = || config.services.iter().flat_map(|service| &service.listen);
    for service in &config.services {
        let warn = |listen| listener::warn_of(listen, preflight::KEY, Some(&service.name));
        service.listen.iter().for_each(warn);
    }
    if let Some(admin) = &config.admin {
        admin::warn_of(admin, preflight::ADMIN_KEY);
    }
    Sandbox::check_cache(&config.cache);
    obstacles.end(Some(file))?;
    let mut text = match config.services.len() {
        1 => "1 service, no errors\n".to_owned(),
        count => format!("{count} services, no errors\n"),
    };
    for listen in listeners().filter(|listen| Purpose::Check.leaves_out(listen)) {
        // A string takes all that is written to it.
        let _ = writeln!(
            text,
            "not checked: {}, which the service manager opens when it starts the host",
            in_one_line(&listen.address)
        );
    }
    Ok(text)
}
