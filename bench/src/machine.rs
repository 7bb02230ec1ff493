//! Where and with what was measured.

use std::fs;
use std::thread;
use std::time::SystemTime;

use crate::contender::Contender;

/// Date, kernel, cores and versions, a line each.
pub(crate) fn describe(contenders: &[&Contender]) -> Vec<String> {
    let mut lines = vec![
        format!("date: {}", date()),
        format!("kernel: {}", read("/proc/sys/kernel/osrelease")),
        format!(
            "cores: {} ({})",
            thread::available_parallelism().map_or(1, usize::from),
            processor()
        ),
        format!("libraries of this host: {}", versions()),
    ];
    lines.extend(contenders.iter().filter_map(|contender| contender.version()));
    lines
}

fn date() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.split('T').next().unwrap_or(&now).to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn processor() -> String {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |model| model.trim_start_matches([' ', '\t', ':']).to_owned(),
    )
}

/// The versions of what our programs stand on, by the lock file.
fn versions() -> String {
    let lock = fs::read_to_string(guest_builder::workspace().join("Cargo.lock")).unwrap_or_default();
    let version = |name: &str| {
        let at = format!("name = \"{name}\"\nversion = \"");
        let (_, rest) = lock.split_once(&at)?;
        Some(format!("{name} {}", rest.split('"').next()?))
    };
    ["wasmtime", "tokio"]
        .into_iter()
        .filter_map(version)
        .collect::<Vec<_>>()
        .join(", ")
}
