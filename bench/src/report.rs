//! What a run leaves behind: a page with plots, tables for `docs/performance.md`, and the README's plot.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::contender::Contender;
use crate::summary::{Measured, short};
use crate::workload::Workload;
use crate::{machine, plot, table};

/// Where the measured part of `docs/performance.md` begins; what follows is written by `--publish`.
const MARK: &str = "<!-- what follows is written by `cargo run --release -p bench -- --publish` -->\n";

/// Where the README's table begins and ends.
const README: (&str, &str) = ("<!-- measured -->\n", "<!-- /measured -->\n");

/// The workload of the README's plot.
const PLOT: Workload = Workload::PingPong(50);

/// What was measured, and where, with what and how.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    about: Vec<String>,
    all: &'a [Measured<'a>],
}

impl<'a> Report<'a> {
    /// A report on `all` of what `contenders` did; `how` says how it was measured.
    pub(crate) fn new(contenders: &[&Contender], all: &'a [Measured<'a>], how: String) -> Self {
        let mut about = machine::describe(contenders);
        about.push(how);
        Self { about, all }
    }

    /// Writes `report.html` and `tables.md` into `dir`.
    ///
    /// # Errors
    ///
    /// They cannot be drawn or written.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("report.html"), self.page()?)?;
        fs::write(dir.join("tables.md"), self.tables())?;
        Ok(())
    }

    /// Puts the tables into `docs/performance.md`, and an overview and a plot into the README.
    ///
    /// # Errors
    ///
    /// They cannot be written, or have no place for it.
    pub(crate) fn publish(&self, workspace: &Path) -> Result<()> {
        let place = workspace.join("docs/performance.md");
        let text = fs::read_to_string(&place)?;
        let (kept, _) = text
            .split_once(MARK)
            .with_context(|| format!("docs/performance.md does not contain the line {MARK:?}"))?;
        fs::write(place, format!("{kept}{MARK}\n{}", self.tables()))?;

        let place = workspace.join("README.md");
        let text = fs::read_to_string(&place)?;
        let (before, rest) = text
            .split_once(README.0)
            .with_context(|| format!("README.md does not contain the line {:?}", README.0))?;
        let (_, after) = rest
            .split_once(README.1)
            .with_context(|| format!("README.md does not contain the line {:?}", README.1))?;
        let overview = table::readme(self.all);
        fs::write(
            place,
            format!("{before}{}\n{overview}\n{}{after}", README.0, README.1),
        )?;

        if let Some(measured) = self.all.iter().find(|measured| measured.workload == PLOT) {
            fs::write(workspace.join("docs/performance.svg"), plot(measured)?)?;
        }
        Ok(())
    }

    fn tables(&self) -> String {
        let mut text = String::from("## Measured\n\n");
        for line in &self.about {
            let _ = writeln!(text, "- {line}");
        }
        let _ = writeln!(text, "\n{}", table::overview(self.all));
        for measured in self.all {
            let _ = writeln!(text, "{}", table::of(measured));
        }
        text
    }

    fn page(&self) -> Result<String> {
        let mut body = String::new();
        for line in &self.about {
            let _ = write!(body, "<li>{}</li>", escape(line));
        }
        let mut sections = String::new();
        for measured in self.all {
            let _ = write!(
                sections,
                "<section>{}<table><tr><th>contender</th>",
                plot(measured)?
            );
            for name in measured.figures() {
                let _ = write!(sections, "<th>{}</th>", escape(name));
            }
            sections.push_str("</tr>");
            let columns = measured.columns();
            for (at, contender) in measured.contenders.iter().enumerate() {
                let _ = write!(
                    sections,
                    "<tr><td><b>{}</b> {}</td>",
                    contender.name,
                    escape(contender.about)
                );
                for column in &columns {
                    let row = &column[at];
                    let _ = write!(
                        sections,
                        "<td title=\"{} to {}\">{}</td>",
                        short(row.low),
                        short(row.high),
                        short(row.median)
                    );
                }
                sections.push_str("</tr>");
            }
            sections.push_str("</table></section>");
        }
        Ok(format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Benchmark</title><style>:root{{color-scheme:light dark}}body{{font:15px sans-serif;max-width:60rem;\
         margin:2rem auto;padding:0 1rem}}svg{{max-width:100%;height:auto}}table{{border-collapse:collapse}}\
         td,th{{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #8885}}\
         td:first-child,th:first-child{{text-align:left}}</style>\
         <h1>Benchmark</h1><ul>{body}</ul>{sections}</html>"
        ))
    }
}

/// A plot of the first figure of a workload.
fn plot(measured: &Measured<'_>) -> Result<String> {
    let better = if measured.workload.less_is_better() {
        "lower is better"
    } else {
        "higher is better"
    };
    let figures = measured.figures();
    let first = figures.first().copied().unwrap_or_default();
    let note = format!("{first}, {better}; median, with minimum and maximum of all rounds");
    plot::bars(&measured.workload.title(), &note, &measured.rows(0))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
