//! Places where a test can make the host fail. There are none in a release build.

use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// Kills the process in the middle of writing an entry of the cache if `WASM_INETD_DIE_IN_CACHE` is in the environment.
pub(crate) fn cache_write() {
    if cfg!(debug_assertions) && std::env::var_os("WASM_INETD_DIE_IN_CACHE").is_some() {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// Panics for connection `number` if `WASM_INETD_PANIC_AT` in the environment says so.
pub(crate) fn serve(number: u64) {
    if cfg!(debug_assertions)
        && let Ok(chosen) = std::env::var("WASM_INETD_PANIC_AT")
        && chosen == number.to_string()
    {
        panic!("failpoint: panic at connection {number}");
    }
}

/// Panics after connection `number`, before it is counted, if `WASM_INETD_PANIC_AFTER` in the
/// environment says so.
pub(crate) fn served(number: u64) {
    if cfg!(debug_assertions)
        && let Ok(chosen) = std::env::var("WASM_INETD_PANIC_AFTER")
        && chosen == number.to_string()
    {
        panic!("failpoint: panic after connection {number}");
    }
}

/// Hangs as a lost mount does if `WASM_INETD_HANG` in the environment is `place=PIPE`: until the
/// named pipe has a writer. Without a file of that name it goes on.
pub(crate) fn hang(place: &str) {
    if cfg!(debug_assertions)
        && let Ok(chosen) = std::env::var("WASM_INETD_HANG")
        && let Some((at, pipe)) = chosen.split_once('=')
        && at == place
    {
        let _ = std::fs::File::open(pipe);
    }
}

/// Returns how long compiling may take instead of the usual time, if `WASM_INETD_COMPILE_MS` in the
/// environment says so.
pub(crate) fn compile_time() -> Option<Duration> {
    let time = cfg!(debug_assertions).then(|| std::env::var("WASM_INETD_COMPILE_MS").ok());
    time.flatten()?.parse().ok().map(Duration::from_millis)
}

/// Returns the CPU time that examining a component may take instead of the usual, in seconds, if
/// `WASM_INETD_EXAMINE_S` in the environment says so.
pub(crate) fn examine_time() -> Option<Duration> {
    let time = cfg!(debug_assertions).then(|| std::env::var("WASM_INETD_EXAMINE_S").ok());
    time.flatten()?.parse().ok().map(Duration::from_secs)
}

/// Returns how many memory mappings a process may have instead of the system's limit, if
/// `WASM_INETD_MAX_MAP_COUNT` in the environment says so.
pub(crate) fn max_map_count() -> Option<u64> {
    let limit = cfg!(debug_assertions).then(|| std::env::var("WASM_INETD_MAX_MAP_COUNT").ok());
    limit.flatten()?.parse().ok()
}
