//! Gives bytes back, as a program for WASI 0.3: its standard output is its standard input.

use wasip3::cli::{stdin, stdout};

struct Cat;

impl wasip3::exports::cli::run::Guest for Cat {
    async fn run() -> Result<(), ()> {
        let (input, _end) = stdin::read_via_stream();
        stdout::write_via_stream(input).await.map_err(drop)
    }
}

wasip3::cli::command::export!(Cat);
