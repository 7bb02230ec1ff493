//! Says `during` and returns from `run`, and says `after` a tenth of a second later, as a program
//! for WASI 0.3.

use wasip3::cli::stdout;
use wasip3::clocks::monotonic_clock;
use wasip3::{spawn_local, wit_stream};

const WAIT: u64 = 100_000_000;

struct Afterwards;

impl wasip3::exports::cli::run::Guest for Afterwards {
    async fn run() -> Result<(), ()> {
        let (mut output, reader) = wit_stream::new();
        spawn_local(async move {
            let _ = stdout::write_via_stream(reader).await;
        });
        output.write_all(b"during\n".to_vec()).await;
        spawn_local(async move {
            monotonic_clock::wait_for(WAIT).await;
            output.write_all(b"after\n".to_vec()).await;
        });
        Ok(())
    }
}

wasip3::cli::command::export!(Afterwards);
