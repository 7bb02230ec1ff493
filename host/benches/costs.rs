//! What an operation costs in instructions, as valgrind's callgrind counts them, compared with `costs.txt`: a guard
//! against code that has become slower, which a busy machine cannot disturb.
//!
//! `cargo bench --profile dev -p host --bench costs` compares, and `-- --write` takes what is counted as what is expected
//! from now on.
//!
//! Each workload runs in memory, without sockets, a process each time, once with few operations and once with many: the
//! difference is what an operation costs, however much the start costs.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use host::config::{CacheDir, Grants, Limits};
use host::connection;
use host::half::Half;
use host::peer::Peer;
use host::sandbox::{Compiler, Generation, Origin, Sandbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

/// Guest, and whether an operation is a whole connection, one line to and fro on one that is open, or an instance alone.
const WORKLOADS: &[(&str, &str)] = &[
    ("lines-session", "line"),
    ("lines", "line"),
    ("echo", "line"),
    ("lines-session", "connection"),
    ("lines", "connection"),
    ("echo", "connection"),
    ("lines-session", "instance"),
    ("lines", "instance"),
];

/// Operations of the two runs.
const FEW: u64 = 100;
const MANY: u64 = 400;

/// How far a count may be from what is expected. Between two runs on one machine it moves by less than 1%; the rest is for
/// another processor, to which memory is copied and compared by other instructions.
const TOLERANCE: f64 = 0.1;

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["--run", guest, operation, count] = args.as_slice() {
        run(guest, operation, count.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    // As `cargo bench` adds it.
    let args: Vec<&str> = args.into_iter().filter(|arg| *arg != "--bench").collect();
    if Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        bail!("valgrind is absent: apt-get install valgrind");
    }
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/costs.txt");
    let expected = if args.contains(&"--write") {
        None
    } else {
        Some(std::fs::read_to_string(&place).with_context(|| place.display().to_string())?)
    };
    // Cargo builds the guests that have changed.
    guest_builder::build_all(
        guest_builder::workspace(),
        &guest_builder::target_dir(&std::env::current_exe()?)?,
    )?;
    let mut written = String::new();
    let mut failed = false;
    let mut compiled = Vec::new();
    for (guest, operation) in WORKLOADS {
        if !compiled.contains(guest) {
            // What the first run compiles is found by the next ones. (The processor that valgrind shows is its own.)
            instructions(guest, operation, 1)?;
            compiled.push(guest);
        }
        let few = instructions(guest, operation, FEW)?;
        let many = instructions(guest, operation, MANY)?;
        let each = many.saturating_sub(few) / (MANY - FEW);
        let name = format!("{guest} {operation}");
        writeln!(written, "{name} {each}")?;
        let Some(expected) = &expected else {
            println!("{name}: {each} instructions");
            continue;
        };
        let before: u64 = expected
            .lines()
            .find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
            .with_context(|| format!("`{}` has no line for {name}", place.display()))?;
        let ratio = each as f64 / before as f64;
        let verdict = match ratio {
            r if r > 1.0 + TOLERANCE => "slower: find out why, or write the new figure down with --write",
            r if r < 1.0 - TOLERANCE => "faster: write the new figure down with --write",
            _ => "as expected",
        };
        failed |= (ratio - 1.0).abs() > TOLERANCE;
        println!("{name}: {each} instructions, {ratio:.3} of {before}: {verdict}");
    }
    if expected.is_none() {
        std::fs::write(&place, written)?;
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// Instructions of a whole run of `count` operations.
fn instructions(guest: &str, operation: &str, count: u64) -> Result<u64> {
    let here = std::env::current_exe()?;
    let out = cache(&here)?.with_file_name(format!("callgrind-{guest}-{operation}-{count}.out"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(&here)
        .args(["--run", guest, operation, &count.to_string()])
        .output()?;
    ensure!(
        output.status.success(),
        "{guest} {operation} failed under valgrind: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = std::fs::read_to_string(&out)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.context("callgrind has written no total")?.trim().parse()?)
}

fn cache(here: &Path) -> Result<PathBuf> {
    Ok(guest_builder::target_dir(here)?.join("costs-cache"))
}

// The runtime of the host, whose only worker has nothing to do: all of it runs in this thread.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn run(guest: &str, operation: &str, count: u64) -> Result<()> {
    let (generation, limits) = load(guest).await?;
    let line = [[b'x'; 63].as_slice(), b"\n"].concat();
    match operation {
        "line" => serve(&generation, &limits, &line, count).await?,
        "connection" => {
            for _ in 0..count {
                serve(&generation, &limits, &line, 1).await?;
            }
        }
        "instance" => {
            for _ in 0..count {
                generation.probe().await?;
            }
        }
        _ => bail!("no such operation: {operation}"),
    }
    Ok(())
}

async fn load(guest: &str) -> Result<(Arc<Generation>, Limits)> {
    let here = std::env::current_exe()?;
    let target_dir = guest_builder::target_dir(&here)?;
    let component = target_dir.join("guests").join(guest).with_extension("wasm");
    let limits = Limits {
        // As many as valgrind has address space for.
        max_connections: NonZeroUsize::new(2).context("not 0")?,
        ..Limits::default()
    };
    let sandbox = Sandbox::new(
        &limits,
        &Grants::default(),
        &Compiler::in_process(&CacheDir::At(cache(&here)?)),
    )?;
    let generation = sandbox.load(&Origin::File(component).read()?).await?;
    Ok((generation, limits))
}

/// Serves one connection on which `line` goes to and fro `count` times.
async fn serve(generation: &Arc<Generation>, limits: &Limits, line: &[u8], count: u64) -> Result<()> {
    let peer = Peer {
        connection: 1,
        remote: "192.0.2.7:49152".into(),
        local: "192.0.2.1:8080".into(),
        listener: "192.0.2.1:8080".into(),
        ..Peer::default()
    };
    let (near, far) = duplex(64 << 10);
    let (reader, writer) = split(near);
    let (inbound, outbound) = (Half::new(reader, None), Half::new(writer, None));
    let served = connection::serve(
        generation,
        &peer,
        inbound,
        outbound,
        limits,
        std::future::pending(),
    );
    let (report, answered) = tokio::join!(served, client(far, line, count));
    answered?;
    ensure!(report.bytes_out == count * line.len() as u64, "{report:?}");
    Ok(())
}

async fn client(mut far: DuplexStream, line: &[u8], count: u64) -> Result<()> {
    let mut answer = vec![0; line.len()];
    for _ in 0..count {
        far.write_all(line).await?;
        far.read_exact(&mut answer).await?;
        ensure!(answer == line, "another answer");
    }
    far.shutdown().await?;
    ensure!(far.read(&mut answer).await? == 0, "more than was asked for");
    Ok(())
}
