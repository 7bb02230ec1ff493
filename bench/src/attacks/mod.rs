//! Measures attacks on one service of a host: the latency of another service, the memory of the
//! host, and how the attacked connections end.

mod bounds;
mod canary;
mod encrypted;
mod host;
mod list;
mod peers;
mod stage;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;

use crate::contender::Places;
use crate::machine;
use bounds::Bounds;
use canary::Canary;
use host::Host;
use stage::Stage;

/// The component that an attack is made on.
#[derive(Clone, Copy)]
enum Guest {
    /// One of the guests that this workspace builds.
    Built(&'static str),
    /// A program as text: a core module for WASI preview 1, or a component.
    Module(&'static str),
    /// A core module for the sessions contract, as text.
    Session(&'static str),
}

/// What attackers do to a service.
type Peers = fn(&Stage) -> Result<()>;

/// An attack on one service of a host.
///
/// In the keys, `{dir}` stands for a directory of this attack, which [`prepare`] fills, and
/// `{sink}` for an address that takes connections.
#[derive(Clone, Copy)]
struct Attack {
    name: &'static str,
    guest: Guest,
    /// Connections that the attackers have open at the same time, at most.
    connections: u64,
    /// `max-memory` of the service, in MiB.
    max_memory: u64,
    /// More items of the table `limits`, each with a comma before it.
    limits: &'static str,
    /// More keys of the service.
    keys: &'static str,
    /// Keys of the host.
    host: &'static str,
    /// Items of the table of the listener, each with a comma before it.
    listen: &'static str,
    /// What the attackers do until the attack is over.
    peers: Peers,
    /// Outcomes of connections, reasons of refusals and messages of the log that must occur. The
    /// attack goes on until they have.
    expect: &'static [&'static str],
    /// The same, of which none may occur.
    never: &'static [&'static str],
    bounds: Bounds,
}

/// What an attack came to.
struct Figures {
    /// Times of the round trips of the canary, in nanoseconds.
    canary: Histogram<u64>,
    /// Resident bytes of the host before the attack, and at most during it.
    before: u64,
    most: u64,
    /// Outcomes of connections, reasons of refusals and notes of the attackers, each with its
    /// number.
    outcomes: Vec<(String, u64)>,
}

/// How long each attack goes on.
const LENGTH: Duration = Duration::from_secs(3);

/// Where the figures of SECURITY.md begin and end.
const MARKS: (&str, &str) = ("<!-- attacks -->\n", "<!-- /attacks -->\n");

/// Makes every attack, or those in `names`, and prints a table. It also replaces the table of
/// SECURITY.md, if that is to be published.
///
/// # Errors
///
/// A name is not that of an attack, an attack cannot be made, or a bound is exceeded.
pub(crate) fn measure(places: &Places, names: &[String], publish: bool) -> Result<()> {
    let chosen = chosen(names)?;
    let mut text = String::new();
    let mut say = |line: &str| {
        println!("{line}");
        text.push_str(line);
        text.push('\n');
    };
    for line in conditions(places) {
        say(&line);
    }
    say("\n| attack | canary ms: p50 / p99 / max | host MiB: before / most | outcome |");
    say("|---|---:|---:|---|");
    let mut exceeded = Vec::new();
    for attack in chosen {
        let figures = match attack.make(places) {
            Ok(figures) => figures,
            // The others are made all the same.
            Err(error) => {
                exceeded.push(format!("{}: the attack failed: {error:#}", attack.name));
                continue;
            }
        };
        say(&figures.row(attack.name));
        let sentences = attack.exceeded_by(&figures).into_iter();
        exceeded.extend(sentences.map(|what| format!("{}: {what}", attack.name)));
    }
    if publish {
        let path = guest_builder::workspace().join("SECURITY.md");
        fs::write(&path, published(&fs::read_to_string(&path)?, &text)?)?;
    }
    ensure!(
        exceeded.is_empty(),
        "bounds are exceeded:\n{}",
        exceeded.join("\n")
    );
    Ok(())
}

/// When and where the attacks are made, a line each.
fn conditions(places: &Places) -> Vec<String> {
    let profile = if places.programs.ends_with("release") {
        "release"
    } else {
        "development"
    };
    let mut lines = machine::describe(&[]);
    lines.push(format!("build: {profile}"));
    lines.push(format!(
        "load averages before the first attack: {}",
        load_average()
    ));
    lines.iter().map(|line| format!("- {line}")).collect()
}

/// The document with `table` in place of the figures that it has.
fn published(document: &str, table: &str) -> Result<String> {
    let place = |mark: &str| format!("SECURITY.md does not contain the line {mark:?}");
    let (before, rest) = document.split_once(MARKS.0).with_context(|| place(MARKS.0))?;
    let (_, after) = rest.split_once(MARKS.1).with_context(|| place(MARKS.1))?;
    Ok(format!("{before}{}\n{table}\n{}{after}", MARKS.0, MARKS.1))
}

/// Checks that each of `names` is that of an attack.
///
/// # Errors
///
/// One is not. The error has the names of all attacks.
pub(crate) fn check(names: &[String]) -> Result<()> {
    chosen(names).map(drop)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Attack>> {
    if names.is_empty() {
        return Ok(list::ALL.iter().collect());
    }
    let find = |name: &String| {
        let found = list::ALL.iter().find(|attack| attack.name == name.as_str());
        found.with_context(|| {
            let all: Vec<_> = list::ALL.iter().map(|attack| attack.name).collect();
            format!(
                "`--attacks {name}`: expected one of the attacks: {}",
                all.join(", ")
            )
        })
    };
    names.iter().map(find).collect()
}

/// The load averages of the machine, which tell what else runs.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

impl Attack {
    /// Starts a host with the canary's service and the service under attack, and attacks it.
    fn make(&self, places: &Places) -> Result<Figures> {
        let dir = places.scratch.join("attack");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("guest.wasm"), self.guest.component(places)?)?;
        let sink = TcpListener::bind("127.0.0.1:0")?;
        prepare(&dir, self.listen.contains("tls"))?;
        let filled_in = |text: &str| {
            text.replace("{dir}", &dir.display().to_string()).replace(
                "{sink}",
                &sink
                    .local_addr()
                    .map_or_else(|_| String::new(), |at| at.to_string()),
            )
        };
        let config = filled_in(&self.config(places));
        let host = Host::start(places, &dir, &config)?;
        let canary = Canary::start(host.address("canary")?)?;
        let before = host.resident_from_now()?;
        let stage = Stage::new(&host, self, dir, sink)?;
        let recorded = canary.record();
        (self.peers)(&stage)?;
        stage.wait();
        drop(recorded);
        let most = host.most_resident()?;
        let canary = canary.stop()?;
        let notes = stage.close();
        let mut outcomes = host.outcomes("target");
        outcomes.extend(notes);
        Ok(Figures {
            canary,
            before,
            most,
            outcomes,
        })
    }

    fn config(&self, places: &Places) -> String {
        let guests = places.guests.display();
        format!(
            "cache = \"{}\"\n{}\n\
             [log]\nformat = \"json\"\n\
             [[service]]\nname = \"canary\"\nlisten = [\"127.0.0.1:0\"]\n\
             component = \"{guests}/lines-session.wasm\"\n\
             [[service]]\nname = \"target\"\ncomponent = \"{{dir}}/guest.wasm\"\n\
             listen = [{{ address = \"127.0.0.1:0\"{} }}]\n\
             limits = {{ max-memory = \"{}MiB\"{} }}\n{}\n",
            places.cache, self.host, self.listen, self.max_memory, self.limits, self.keys,
        )
    }

    /// The bounds that `figures` exceed, each as a sentence.
    fn exceeded_by(&self, figures: &Figures) -> Vec<String> {
        let mut exceeded = self.bounds.exceeded_by(figures, self.connections);
        for expected in self.expect {
            if !figures.outcomes.iter().any(|(outcome, _)| outcome == expected) {
                exceeded.push(format!("expected an outcome `{expected}`"));
            }
        }
        for (outcome, count) in &figures.outcomes {
            if *count == 0 {
                exceeded.push(format!("no {outcome}: expected some"));
            }
            let never = bounds::NEVER.iter().chain(self.never);
            if never.into_iter().any(|never| never == outcome) {
                exceeded.push(format!("{count} times the outcome `{outcome}`"));
            }
        }
        exceeded
    }
}

/// Puts a named pipe and files into a directory that can be granted, and certificates beside it.
fn prepare(dir: &Path, tls: bool) -> Result<()> {
    let files = dir.join("files");
    fs::create_dir_all(&files)?;
    fs::write(files.join("note"), "a note")?;
    fs::write(files.join("file"), vec![0; 1 << 20])?;
    let made = Command::new("mkfifo").arg(files.join("pipe")).status();
    ensure!(made.context("cannot run mkfifo")?.success(), "mkfifo failed");
    if tls {
        encrypted::prepare(dir)?;
    }
    Ok(())
}

impl Figures {
    /// Milliseconds within which this share of the canary's round trips ended.
    fn canary_ms(&self, quantile: f64) -> f64 {
        self.canary.value_at_quantile(quantile) as f64 / 1e6
    }

    fn row(&self, name: &str) -> String {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let outcomes = self.outcomes.iter();
        let mut outcomes: Vec<_> = outcomes
            .map(|(outcome, count)| format!("{outcome} {count}"))
            .collect();
        if outcomes.is_empty() {
            outcomes.push("no end".to_owned());
        }
        format!(
            "| {name} | {:.2} / {:.1} / {:.1} | {:.0} / {:.0} | {} |",
            self.canary_ms(0.5),
            self.canary_ms(0.99),
            self.canary_ms(1.0),
            mebibytes(self.before),
            mebibytes(self.most),
            outcomes.join(", "),
        )
    }
}

impl Guest {
    /// The bytes of the component.
    fn component(self, places: &Places) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Built(name) => {
                let path = places.guests.join(name).with_extension("wasm");
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?
            }
            Self::Module(text) => wat::parse_str(text)?,
            Self::Session(text) => session(wat::parse_str(text)?)?,
        })
    }
}

/// Makes a component for the sessions contract from a core module.
fn session(mut module: Vec<u8>) -> Result<Vec<u8>> {
    let mut wit = wit_parser::Resolve::default();
    let (package, _) = wit.push_dir(guest_builder::workspace().join("wit"))?;
    let world = wit.select_world(&[package], Some("session-service"))?;
    wit_component::embed_component_metadata(&mut module, &wit, world, wit_component::StringEncoding::UTF8)?;
    let encoder = wit_component::ComponentEncoder::default().module(&module);
    match encoder.and_then(|mut encoder| encoder.encode()) {
        Ok(component) => Ok(component),
        Err(error) => bail!("cannot make a component: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_are_chosen_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(chosen(&[]).unwrap().len(), list::ALL.len());
        let two = chosen(&names(&["hoard-memory", "loop-session"])).unwrap();
        assert_eq!((two[0].name, two[1].name), ("hoard-memory", "loop-session"));
        let error = check(&names(&["loop-session", "nope"])).unwrap_err().to_string();
        assert!(
            error.starts_with("`--attacks nope`: expected one of the attacks: none, "),
            "{error}"
        );
    }

    #[test]
    fn effects_that_are_missing_or_forbidden_are_named() {
        let attack = Attack {
            expect: &["cpu-limit"],
            never: &["guest-trap"],
            ..list::ALL[0]
        };
        let exceeded = |outcomes: &[(&str, u64)]| {
            attack.exceeded_by(&Figures {
                canary: Histogram::new(3).unwrap(),
                before: 0,
                most: 0,
                outcomes: outcomes
                    .iter()
                    .map(|(what, count)| ((*what).to_owned(), *count))
                    .collect(),
            })
        };
        assert!(exceeded(&[("cpu-limit", 1), ("peer-reset", 2)]).is_empty());
        assert!(exceeded(&[])[0].contains("expected an outcome `cpu-limit`"));
        for wrong in [("guest-trap", 1), ("host-panic", 1), ("answers", 0)] {
            let exceeded = exceeded(&[("cpu-limit", 1), wrong]);
            assert!(
                exceeded.len() == 1 && exceeded[0].contains(wrong.0),
                "{exceeded:?}"
            );
        }
    }

    #[test]
    fn figures_are_published_where_the_document_has_them() {
        let path = guest_builder::workspace().join("SECURITY.md");
        let document = fs::read_to_string(path).unwrap();
        let text = published(&document, "| a table |\n").unwrap();
        assert_eq!(text.matches("| a table |\n\n<!-- /attacks -->").count(), 1);
        assert!(!text.contains("| none |"), "the former table is gone");
        assert!(
            published("no marks", "")
                .unwrap_err()
                .to_string()
                .contains("<!-- attacks -->")
        );
    }

    #[test]
    fn every_module_is_valid() {
        for attack in list::ALL {
            match attack.guest {
                Guest::Built(_) => {}
                Guest::Module(text) => drop(wat::parse_str(text).unwrap()),
                Guest::Session(text) => drop(session(wat::parse_str(text).unwrap()).unwrap()),
            }
        }
    }
}
