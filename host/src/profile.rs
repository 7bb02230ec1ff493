//! `host profile`: a component taken through conversations again and again, and where its time
//! goes.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use tokio::time::Instant;

use crate::config::Replay;
use crate::logging::in_one_line;
use crate::replay::Replayer;
use crate::sandbox::Program;
use crate::terminal::Progress;
use crate::whole_file;

/// Looks that a profile has at least before it says anything; less is chance.
const FEW: u64 = 100;

/// Replays conversations for `time`, writes a CPU profile of the component to the file `to`, and
/// describes it in a few lines.
///
/// # Errors
///
/// There are no conversations, the component cannot serve or does something else in one, it does
/// too little to be sampled, or the file cannot be written. The text is empty if `to` is a pipe
/// that nobody reads any more.
pub async fn profile(
    what: &Replay,
    to: &Path,
    time: Duration,
    progress: &Progress,
    program: &Program,
) -> anyhow::Result<String> {
    let prepared = Replayer::new(what, true, progress, program).await?;
    let said = || format!("cannot write the profile to `{}`", to.display());
    whole_file::check_writable(to).with_context(said)?;
    let start = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || start.elapsed() < time {
        let replayed = prepared.replay(progress).await;
        replayed.map_err(|difference| anyhow::anyhow!("{}", difference.in_one_line()))?;
        rounds += 1;
    }
    let took = start.elapsed();
    let looks = prepared.generation.looks();
    if looks == 0 {
        bail!(
            "no samples: the guest did too little work in {} of the conversations in `{}`; raise \
             --time, or use conversations that need more work",
            count(rounds, "round"),
            what.dir.display()
        );
    }
    let write = |output: &mut _| prepared.generation.write_profile(output);
    let size = match whole_file::write(to, write) {
        // Whoever read it has left, as `head` does.
        Err(error) if is_on_stdout(to) && is_closed_pipe(&error) => return Ok(String::new()),
        written => written.with_context(said)?,
    };
    let mut text = format!(
        "{}, {} in {took:.1?}: {}, one per 1 ms tick in which the guest ran\n\
         wrote `{}` ({}): open it at https://profiler.firefox.com\n",
        count(prepared.count() as u64, "conversation"),
        count(rounds, "round"),
        count(looks, "sample"),
        in_one_line(to.display()),
        ByteSize::b(size).display().iec(),
    );
    if looks < FEW {
        text.push_str("too few samples for a reliable profile: raise --time\n");
    }
    Ok(text)
}

/// Returns whether the profile goes to standard output, where nothing else may follow it.
pub fn is_on_stdout(to: &Path) -> bool {
    whole_file::is_stdout(to)
}

/// Whether an output is a pipe that nobody reads.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn Error + 'static)| match cause.downcast_ref::<serde_json::Error>() {
        Some(error) => error.io_error_kind(),
        None => cause.downcast_ref::<io::Error>().map(io::Error::kind),
    };
    error
        .chain()
        .any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// A number with its noun.
fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
