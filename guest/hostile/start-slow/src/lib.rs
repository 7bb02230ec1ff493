//! Computes for tens of milliseconds when it is instantiated, and then ends each connection.

use inet_guest::streams::{Connection, ErrorCode, Service, export};

struct StartSlow;

/// Run when the component is instantiated, before any export can be called.
#[cfg_attr(target_family = "wasm", unsafe(no_mangle))]
pub extern "C" fn _initialize() {
    for turn in 0..100_000_000_u32 {
        std::hint::black_box(turn);
    }
}

impl Service for StartSlow {
    async fn serve(_connection: Connection) -> Result<(), ErrorCode> {
        Ok(())
    }
}

export!(StartSlow);
