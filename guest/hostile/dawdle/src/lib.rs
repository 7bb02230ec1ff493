//! Echoes, but no call of `handle` returns before its instance has been called for as many
//! milliseconds as `WAIT` in the environment says.

wit_bindgen::generate!({
    path: "../../../wit",
    inline: "package guest:dawdle;
        package wasi:clocks@0.3.0 {
            interface monotonic-clock {
                wait-for: async func(how-long: u64);
            }
        }
        world dawdle {
            include inet:service/service@0.1.0;
            import wasi:clocks/monotonic-clock@0.3.0;
        }",
    world: "guest:dawdle/dawdle",
    generate_all,
});

use std::cell::Cell;
use std::time::{Duration, Instant};

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wasi::clocks::monotonic_clock::wait_for;
use wit_bindgen::{FutureReader, StreamReader};

type End = FutureReader<Result<(), ErrorCode>>;

thread_local! {
    /// When the instance was first called.
    static CALLED: Cell<Option<Instant>> = const { Cell::new(None) };
}

struct Dawdle;

impl Guest for Dawdle {
    async fn handle(_peer: Peer, inbound: StreamReader<u8>, end: End) -> (StreamReader<u8>, End) {
        let wait = std::env::var("WAIT").ok();
        let wait = Duration::from_millis(wait.and_then(|wait| wait.parse().ok()).unwrap_or_default());
        let called = CALLED.get().unwrap_or_else(Instant::now);
        CALLED.set(Some(called));
        wait_for(wait.saturating_sub(called.elapsed()).as_nanos() as u64).await;
        (inbound, end)
    }
}

export!(Dawdle);
