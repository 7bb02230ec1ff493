//! `wasm-inetd compile`: compiles components before a start, into the cache that the start uses.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use bytesize::ByteSize;

use crate::config::{CacheDir, CompileMemory, Config, Grants, Limits, Terms};
use crate::file::Text;
use crate::logging::in_one_line;
use crate::sandbox::{Ahead, Compiler, Program, Sandbox, Source};

/// A component to compile, on the terms on which a start loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    source: Source,
    limits: Limits,
    grants: Grants,
    preinit: bool,
    /// The key of the services file that names it.
    key: Option<String>,
}

/// Returns the tasks for components in files that are loaded on these terms.
pub fn tasks_of_files(files: Vec<PathBuf>, terms: &Terms) -> Vec<Task> {
    let task = |file| Task {
        source: Source::new(Some(file), terms.middleware.clone()),
        limits: terms.limits,
        grants: terms.grants.clone(),
        preinit: terms.preinit,
        key: None,
    };
    files.into_iter().map(task).collect()
}

/// Returns a task for each service.
pub fn tasks_of_services(config: &Config) -> Vec<Task> {
    let services = config.services.iter().enumerate();
    let tasks = services.map(|(index, service)| Task {
        source: Source::new(service.component.clone(), service.middleware.clone()),
        limits: service.limits,
        grants: service.grants.clone(),
        preinit: service.preinit,
        key: Some(format!("service[{index}].component")),
    });
    tasks.collect()
}

/// What compiling ahead has come to.
#[derive(Debug)]
pub struct Done {
    /// A line for each component that is in the cache now.
    pub text: String,
    /// A sentence for each component that is not.
    pub failed: Vec<String>,
}

/// Compiles components into `cache`, without a limit on time. `file` is the services file that
/// names them, if there is one.
pub async fn compile(
    tasks: &[Task],
    cache: &CacheDir,
    memory: CompileMemory,
    file: Option<&Text>,
    program: &Program,
) -> Done {
    let path = file.map(|file| file.path().to_owned());
    let compiler = Compiler::in_child(program, cache, memory, path).without_deadline();
    let mut done = Done {
        text: String::new(),
        failed: Vec::new(),
    };
    for task in tasks {
        match one(task, &compiler).await {
            // A string takes all that is written to it.
            Ok(line) => _ = writeln!(done.text, "{}", in_one_line(line)),
            Err(error) => done.failed.push(match (file, &task.key) {
                (Some(file), Some(key)) => file.problem(key, format!("{error:#}")),
                _ => format!("{error:#}"),
            }),
        }
    }
    done
}

async fn one(task: &Task, compiler: &Compiler) -> anyhow::Result<String> {
    // Only initialisation uses what is granted, and not all of that need be there yet.
    let none = Grants::default();
    let grants = if task.preinit { &task.grants } else { &none };
    let sandbox = Sandbox::new(&task.limits, grants, compiler).context("cannot start the sandbox")?;
    let content = task.source.read()?;
    let size = ByteSize::b(content.size()).display().iec();
    let (source, Ahead { entry, compiled }) = (
        &task.source,
        sandbox.preinit(task.preinit).compile_ahead(&content).await?,
    );
    let how = match compiled {
        Some((time, peak)) => {
            let peak = ByteSize::b(peak).display().iec();
            format!("compiled in {:.1} s with {peak} of memory", time.as_secs_f64())
        }
        None => "already compiled".to_owned(),
    };
    Ok(format!("{source}: {size}, {how}: {}", entry.display()))
}
