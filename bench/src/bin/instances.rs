//! How many microseconds it takes to make an instance of a component or module and to drop it: `instances FILE`.
//!
//! `instances --bare FILE ARGS` tells instead how many a program for WASI preview 1 takes to its first word in wasmtime alone, with
//! none of the host around it, several times; `--interruptible` for `--bare` tells what it takes if its code can be interrupted.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use host::config::{CacheDir, Grants, Limits};
use host::sandbox::{Compiler, Origin, Sandbox};
use tokio::io::AsyncWrite;
use wasmtime::{Config, Engine, Linker, Module, Store};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::cli::AsyncStdoutStream;
use wasmtime_wasi::p1::{WasiP1Ctx, add_to_linker_async};

/// Instances of one round, and rounds, of which the best counts: what disturbs only ever adds.
const INSTANCES: u32 = 500;
const ROUNDS: u32 = 10;

/// How often a program is run.
const RUNS: u32 = 10;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let interruptible = args.first().is_some_and(|arg| arg == "--interruptible");
    if interruptible || args.first().is_some_and(|arg| arg == "--bare") {
        args.remove(0);
        let file = args
            .first()
            .context("expected the file of a program to run")?
            .clone();
        return bare(Path::new(&file), &args, interruptible).await;
    }
    let file = args.first().context("expected the file of a component")?;
    let sandbox = Sandbox::new(
        &Limits::default(),
        &Grants::default(),
        &Compiler::in_process(&CacheDir::Off),
    )?;
    let generation = sandbox.load(&Origin::File(PathBuf::from(file)).read()?).await?;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..INSTANCES {
            generation.probe().await?;
        }
        best = best.min(start.elapsed() / INSTANCES);
    }
    println!("{:.2}", best.as_secs_f64() * 1e6);
    Ok(())
}

/// Runs a program with arguments, the first of which is its name.
async fn bare(file: &Path, args: &[String], interruptible: bool) -> Result<()> {
    let engine = Engine::new(Config::new().epoch_interruption(interruptible))?;
    let module = Module::from_file(&engine, file)?;
    let mut linker: Linker<WasiP1Ctx> = Linker::new(&engine);
    add_to_linker_async(&mut linker, |ctx| ctx)?;
    let pre = linker.instantiate_pre(&module)?;
    for _ in 0..RUNS {
        let first = FirstByte::default();
        let start = Instant::now();
        let ctx = WasiCtxBuilder::new()
            .args(args)
            .stdout(AsyncStdoutStream::new(64 << 10, first.clone()))
            .build_p1();
        let mut store = Store::new(&engine, ctx);
        // The epoch never moves on.
        store.set_epoch_deadline(1);
        let instance = pre.instantiate_async(&mut store).await?;
        let start_function = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
        // It may end with an exit status, which is an error here.
        let _ = start_function.call_async(&mut store, ()).await;
        let came = first.0.get().context("the program wrote no output")?;
        println!("{:.2}", came.duration_since(start).as_secs_f64() * 1e6);
    }
    Ok(())
}

/// Notes when the first byte is written.
#[derive(Clone, Default)]
struct FirstByte(Arc<OnceLock<Instant>>);

impl AsyncWrite for FirstByte {
    fn poll_write(self: Pin<&mut Self>, _: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.get_or_init(Instant::now);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
