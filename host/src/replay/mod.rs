//! Replaying conversations against a component, and comparing what it does.

mod clock;
mod difference;
mod player;

use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::{CacheDir, Limits, Replay};
use crate::connection::{self, Outcome, Report};
use crate::conversation::{Client, Conversation, Guest, Step};
use crate::cost::Cost;
use crate::half::Half;
use crate::peer::Peer;
use crate::record;
use crate::sandbox::{Compiler, Generation, Program, Sandbox, Seat, Source, Transcript};
use crate::terminal::Progress;
use clock::Time;
pub use difference::Difference;
use player::{Player, SETTLE};

/// The longest pause that takes real time.
const MAX_REAL: Duration = Duration::from_secs(60);

/// What is expected behind the last step of a conversation.
const NOTHING: &str = "nothing more";

/// On what terms conversations are replayed.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Limits on each connection.
    pub limits: Limits,
    /// How long a guest may take for a step.
    pub patience: Duration,
}

/// A component and conversations that are ready to be replayed.
#[derive(Debug)]
pub struct Replayer {
    /// The component.
    pub generation: Arc<Generation>,
    conversations: Vec<(PathBuf, Conversation)>,
    rules: Rules,
}

impl Replayer {
    /// Reads the conversations and loads the component, with a profile of it if `profiling` is set.
    /// Shows its `progress`.
    ///
    /// # Errors
    ///
    /// There are no conversations, one is not valid, or the component cannot serve.
    pub async fn new(
        what: &Replay,
        profiling: bool,
        progress: &Progress,
        program: &Program,
    ) -> anyhow::Result<Self> {
        let compiler = Compiler::in_child(program, &CacheDir::OfUser, what.terms.max_compile_memory, None);
        let conversations = Conversation::read_all(&what.dir)?;
        let sandbox = Sandbox::on(&what.terms, &compiler)
            .context("cannot start the sandbox")?
            .profiling(profiling);
        let source = Source::new(Some(what.file.clone()), what.terms.middleware.clone());
        progress.set("loading the component");
        let generation = sandbox.load(&source.read()?).await?;
        Ok(Self {
            generation,
            conversations,
            rules: Rules {
                limits: what.terms.limits,
                patience: what.patience,
            },
        })
    }

    /// The number of conversations.
    pub fn count(&self) -> usize {
        self.conversations.len()
    }

    /// Replays every conversation once, and shows its `progress`.
    ///
    /// # Errors
    ///
    /// The guest does something else in one of them.
    pub async fn replay(&self, progress: &Progress) -> Result<(), Difference> {
        let count = self.count();
        let begins = |number| progress.set(format!("replaying conversation {number} of {count}"));
        replay(&self.generation, &self.rules, &self.conversations, begins).await
    }
}

/// Has an instance of `generation` take part in each of `conversations`. Calls `begins` before each
/// one, with its number, counted from 1.
///
/// # Errors
///
/// The guest does something else in one of them.
pub async fn replay(
    generation: &Arc<Generation>,
    rules: &Rules,
    conversations: &[(PathBuf, Conversation)],
    begins: impl Fn(u64),
) -> Result<(), Difference> {
    for (number, (file, conversation)) in (1..).zip(conversations) {
        begins(number);
        let played = one(generation, rules, number, file, conversation).await;
        // Neither the next conversation nor a later connection gets a used instance.
        generation.renew();
        played?;
    }
    Ok(())
}

async fn one(
    generation: &Arc<Generation>,
    rules: &Rules,
    number: u64,
    file: &Path,
    conversation: &Conversation,
) -> Result<(), Difference> {
    let peer = Peer {
        connection: number,
        remote: "127.0.0.1:1".to_owned(),
        local: "127.0.0.1:2".to_owned(),
        listener: "replay".to_owned(),
        ..Peer::default()
    };
    let time = Time::new(generation.waits_by_timers_alone(), rules.patience);
    if time.is_real()
        && let Some(difference) = too_long(file, conversation)
    {
        return Err(difference);
    }
    let stage = Stage {
        generation: Arc::clone(generation),
        transcript: Transcript::default(),
        time: time.clone(),
    };
    let (mut player, reader, writer) = Player::new(rules.patience, time.clone());
    player.make_room_for(conversation);
    let inbound = Half::new(reader, rules.limits.max_bytes_in);
    let outbound = Half::new(writer, rules.limits.max_bytes_out);
    let (over, done) = (CancellationToken::new(), CancellationToken::new());
    let cut = {
        let over = over.clone();
        async move {
            over.cancelled().await;
            Outcome::Drained
        }
    };
    let served = async {
        let report = connection::serve(&stage, &peer, inbound, outbound, &rules.limits, cut).await;
        done.cancel();
        report
    };
    let played = perform(player, conversation, rules.patience, &time, &over, &done);
    // In this order, so that what ends the connection is seen before the client goes.
    let (report, played) = tokio::join!(biased; served, played);
    debug!(
        service = generation.service(),
        // Quoted, so that a file name cannot imitate other fields.
        file = &*file.to_string_lossy(),
        connection = number,
        outcome = report.outcome.as_str(),
        status = report.at_end.status,
        reason = report.reason,
        "conversation replayed"
    );
    let judged = played.map_err(|differs| differs.beside(&report));
    let judged = judged.and_then(|()| judge(conversation, &report));
    judged.map_err(
        |Differs {
             line,
             expected,
             found,
         }| Difference {
            file: file.to_owned(),
            line,
            expected,
            found,
            reason: report.reason,
            // No other connection shares its instance.
            is_of_system: !report.counts,
            output: stage.transcript.lines(),
        },
    )
}

/// Returns the first pause that is too long to be waited for in real time.
fn too_long(file: &Path, conversation: &Conversation) -> Option<Difference> {
    let is_long = |step: &Step| matches!(step, Step::Client(Client::Pause(time)) if *time > MAX_REAL);
    let (line, step) = conversation.steps.iter().find(|(_, step)| is_long(step))?;
    let max = humantime::format_duration(MAX_REAL);
    Some(Difference {
        file: file.to_owned(),
        line: *line,
        expected: step.to_string(),
        found: vec![format!(
            "a pause of at most {max}, since this component is replayed in real time"
        )],
        reason: None,
        is_of_system: false,
        output: Vec::new(),
    })
}

/// A step at which the guest does something else.
#[derive(Debug)]
struct Differs {
    line: usize,
    expected: String,
    found: Vec<String>,
}

impl Differs {
    /// The connection ends in another way than the conversation.
    fn in_ending(line: usize, expected: impl ToString, report: &Report) -> Self {
        let differs = Self {
            line,
            expected: expected.to_string(),
            found: Vec::new(),
        };
        differs.beside(report)
    }

    /// Adds how the connection has ended.
    fn beside(mut self, report: &Report) -> Self {
        self.found.extend(difference::ending(report));
        if self.found.is_empty() {
            self.found
                .push(format!("the outcome `{}`", report.outcome.as_str()));
        }
        self
    }
}

/// Plays a conversation to its end, or to the first difference, and then ends the connection by
/// `over`. `done` says that it has ended.
async fn perform(
    mut player: Player,
    conversation: &Conversation,
    patience: Duration,
    time: &Time,
    over: &CancellationToken,
    done: &CancellationToken,
) -> Result<(), Differs> {
    let played = play_all(&mut player, conversation).await;
    if played.is_err() {
        player.hear_out().await;
    }
    let last = conversation.steps.last().map(|(_, step)| step);
    // How long the guest may take to end by itself.
    let rest = match last {
        Some(Step::Cut) if played.is_ok() => Duration::ZERO,
        Some(Step::Client(Client::Reset)) if played.is_ok() => SETTLE,
        Some(Step::Guest(Guest::Fails(_) | Guest::Exits(_))) if played.is_ok() => patience,
        _ if player.has_ended() => patience,
        _ => Duration::ZERO,
    };
    if rest.is_zero() {
        over.cancel();
        // The guest is stopped before it can see that the client goes.
        yield_now().await;
    }
    drop(player);
    let _ = time.within(rest, done.cancelled()).await;
    over.cancel();
    played
}

async fn play_all(player: &mut Player, conversation: &Conversation) -> Result<(), Differs> {
    for (line, step) in &conversation.steps {
        player.play(step).await.map_err(|mismatch| Differs {
            line: *line,
            expected: mismatch.expected,
            found: mismatch.found,
        })?;
    }
    match conversation.steps.last() {
        Some((line, last)) if is_open(conversation, last) => player.settle().await.map_err(|found| Differs {
            line: *line,
            expected: NOTHING.to_owned(),
            found: vec![found],
        }),
        _ => Ok(()),
    }
}

/// Compares how the connection has ended with how the conversation ends.
fn judge(conversation: &Conversation, report: &Report) -> Result<(), Differs> {
    let end = guest_end(conversation);
    if let Some(line) = end
        && !report.at_end.guest_ended
    {
        return Err(Differs::in_ending(line, Step::Guest(Guest::End), report));
    }
    let Some((line, last)) = conversation.steps.last() else {
        return Ok(());
    };
    let found = record::last_step(report.outcome, report.at_end);
    let found = found.filter(|step| matches!(step, Step::Guest(_)));
    match (last, found) {
        (Step::Guest(Guest::Reset | Guest::Fails(_) | Guest::Exits(_)), found)
            if found.as_ref() != Some(last) =>
        {
            Err(Differs::in_ending(*line, last, report))
        }
        (Step::Guest(Guest::Reset | Guest::Fails(_) | Guest::Exits(_)), _) => Ok(()),
        // A program that cannot read what the client sent commonly ends with a status.
        (Step::Client(Client::Reset), Some(Step::Guest(Guest::Exits(_)))) => Ok(()),
        (_, Some(_)) => Err(Differs::in_ending(*line, NOTHING, report)),
        (Step::Cut | Step::Client(Client::Reset), None) => Ok(()),
        (_, None) if end.is_some() && report.outcome == Outcome::Drained => {
            let mut differs = Differs::in_ending(*line, "the end of the connection", report);
            differs.found.push("the guest keeps running".to_owned());
            Err(differs)
        }
        (_, None) => Ok(()),
    }
}

/// The line in which the guest ends its half.
fn guest_end(conversation: &Conversation) -> Option<usize> {
    let end = |(line, step): &(usize, Step)| (*step == Step::Guest(Guest::End)).then_some(*line);
    conversation.steps.iter().find_map(end)
}

/// Whether a conversation, of which this is the last step, does not say how the connection ends.
fn is_open(conversation: &Conversation, last: &Step) -> bool {
    let over = matches!(
        last,
        Step::Cut
            | Step::Client(Client::Reset)
            | Step::Guest(Guest::Reset | Guest::Fails(_) | Guest::Exits(_))
    );
    !over && guest_end(conversation).is_none()
}

/// The place of a replayed connection: one generation, and an ear for its guest.
struct Stage {
    generation: Arc<Generation>,
    transcript: Transcript,
    time: Time,
}

impl Seat for Stage {
    type Offer<'a> = Infallible;

    fn generation(&self) -> Arc<Generation> {
        Arc::clone(&self.generation)
    }

    /// Nobody asks for it.
    fn cost(&self) -> Arc<Cost> {
        Arc::default()
    }

    fn started(&self) {}

    fn offer(&self) -> impl Future<Output = Infallible> + Send {
        pending()
    }

    fn timer(&self, after: Option<Duration>) -> impl Future<Output = ()> + Send {
        self.time.timer(after)
    }

    fn transcript(&self) -> Option<Transcript> {
        Some(self.transcript.clone())
    }
}

#[cfg(test)]
mod tests;
