//! `wasm-inetd compile`: compiles components before a start, into the cache that the start uses.

use std::fmt::Write as _;
use std::path::PathBuf;

use bytesize::ByteSize;

use crate::config::{CacheDir, CompileMemory, Config, Grants, Limits, Service, Terms};
use crate::file::Text;
use crate::logging::in_one_line;
use crate::preflight::{self, Blocked, Obstacles};
use crate::sandbox::{Ahead, Compiler, Program, Sandbox, Source};
use crate::terminal::Progress;

/// A component to compile, on the terms on which a start loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    source: Source,
    limits: Limits,
    grants: Grants,
    preinit: bool,
    /// The service that it is for, and its number in the services file.
    service: Option<(usize, Service)>,
}

/// Returns the tasks for components in files that are loaded on these terms.
pub fn tasks_of_files(files: Vec<PathBuf>, terms: &Terms) -> Vec<Task> {
    let task = |file| Task {
        source: Source::new(Some(file), terms.middleware.clone()),
        limits: terms.limits,
        grants: terms.grants.clone(),
        preinit: terms.preinit,
        service: None,
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
        service: Some((index, service.clone())),
    });
    tasks.collect()
}

/// What compiling ahead has come to.
#[derive(Debug)]
pub struct Done {
    /// A line for each component that is in the cache now.
    pub text: String,
    /// A sentence for each reason why one is not.
    pub failed: Vec<String>,
}

/// Compiles components into `cache`, without a limit on time. `file` is the services file that
/// names them, if there is one. Shows its `progress`.
pub async fn compile(
    tasks: &[Task],
    cache: &CacheDir,
    memory: CompileMemory,
    file: Option<&Text>,
    progress: &Progress,
    program: &Program,
) -> Done {
    let path = file.map(|file| file.path().to_owned());
    let compiler = Compiler::in_child(program, cache, memory, path).without_deadline();
    let mut done = Done {
        text: String::new(),
        failed: Vec::new(),
    };
    for (number, task) in (1..).zip(tasks) {
        progress.set(compiling(number, tasks.len()));
        match one(task, &compiler).await {
            // A string takes all that is written to it.
            Ok(line) => _ = writeln!(done.text, "{}", in_one_line(line)),
            Err(obstacles) => {
                let blocked = obstacles.end(file).err();
                done.failed
                    .extend(blocked.into_iter().flat_map(|Blocked(sentences)| sentences));
            }
        }
    }
    done
}

/// Returns what the status line says while the component with this number is compiled, counted from
/// 1.
pub(crate) fn compiling(number: usize, count: usize) -> String {
    format!("compiling component {number} of {count}")
}

async fn one(task: &Task, compiler: &Compiler) -> Result<String, Obstacles> {
    let (index, service) = match &task.service {
        Some((index, service)) => (*index, Some(service)),
        // Messages name no keys.
        None => (0, None),
    };
    let mut obstacles = Obstacles::default();
    let source = &task.source;
    let parts = preflight::find_parts(index, service, source, &mut obstacles);
    // Only initialisation uses what is granted, and not all of that need be there yet.
    let none = Grants::default();
    let grants = if task.preinit { &task.grants } else { &none };
    preflight::find_granted_dirs(index, service, grants, &mut obstacles);
    let sandbox = Sandbox::new(&task.limits, grants, compiler);
    let sandbox = preflight::note_sandbox(index, service, grants, sandbox, &mut obstacles);
    let Some(sandbox) = sandbox.filter(|_| obstacles.is_empty()) else {
        return Err(obstacles);
    };
    let content = source.whole(parts);
    let size = ByteSize::b(content.size()).display().iec();
    let ahead = sandbox.preinit(task.preinit).compile_ahead(&content).await;
    let Ahead { entry, compiled } = ahead.map_err(|error| {
        let key = preflight::key_of(&content, &error);
        obstacles.add(format!("service[{index}].{key}"), service, error.into());
        obstacles
    })?;
    let how = match compiled {
        Some((time, peak)) => {
            let peak = ByteSize::b(peak).display().iec();
            format!("compiled in {:.1} s with {peak} of memory", time.as_secs_f64())
        }
        None => "already compiled".to_owned(),
    };
    Ok(format!("{source}: {size}, {how}: {}", entry.display()))
}
