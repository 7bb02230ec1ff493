//! Places where a test can make the host fail. There are none in a release build.

/// Panics for connection `number` if `WASM_INETD_PANIC_AT` in the environment says so.
pub(crate) fn serve(number: u64) {
    if cfg!(debug_assertions)
        && let Ok(chosen) = std::env::var("WASM_INETD_PANIC_AT")
        && chosen == number.to_string()
    {
        panic!("made to panic at connection {number}");
    }
}
