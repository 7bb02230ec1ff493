//! Markdown tables of what was measured.

use std::fmt::Write;

use crate::summary::{Measured, short};
use crate::workload::Workload;

/// One workload: for each contender the median of each figure, with the least and the greatest, and the median of the
/// first figure's ratios to `textbook` and to `native`.
pub(crate) fn of(measured: &Measured<'_>) -> String {
    let figures = measured.figures();
    let mut text = format!("### {}\n\n| contender |", measured.workload.title());
    for name in &figures {
        let _ = write!(text, " {name} |");
    }
    let _ = write!(text, " ÷ textbook | ÷ native |\n|---|");
    text.push_str(&"---:|".repeat(figures.len() + 2));
    let columns = measured.columns();
    let ratios = [measured.ratios("textbook"), measured.ratios("native")];
    for (at, contender) in measured.contenders.iter().enumerate() {
        let _ = write!(text, "\n| **{}**: {} |", contender.name, contender.about);
        for column in &columns {
            let row = &column[at];
            let _ = write!(
                text,
                " {} ({}–{}) |",
                short(row.median),
                short(row.low),
                short(row.high)
            );
        }
        for ratios in &ratios {
            let ratio = ratios.as_ref().and_then(|ratios| ratios.get(at));
            let _ = write!(text, " {} |", ratio.map_or("–".to_owned(), |ratio| short(*ratio)));
        }
    }
    text.push('\n');
    text
}

/// The figures of [`overview`]: a workload, which of its figures, and the head of the column.
const OVERVIEW: &[(Workload, usize, &str)] = &[
    (Workload::PingPong(50), 0, "64 B × 50, ops/s"),
    (Workload::PingPong(50), 1, "CPU µs/op"),
    (Workload::PingPong(50), 3, "p99 µs"),
    (Workload::Connect, 0, "connections/s"),
    (Workload::Bulk(8), 0, "bulk × 8, GB/s"),
    (Workload::Idle(1000), 0, "KiB per idle connection"),
    (Workload::StartCached, 0, "start, ms"),
];

/// One table of the medians that matter most.
pub(crate) fn overview(all: &[Measured<'_>]) -> String {
    let columns: Vec<_> = OVERVIEW
        .iter()
        .filter_map(|(workload, figure, head)| {
            let measured = all.iter().find(|measured| measured.workload == *workload)?;
            Some((head, measured.rows(*figure)))
        })
        .collect();
    let mut text = "| contender |".to_owned();
    for (head, _) in &columns {
        let _ = write!(text, " {head} |");
    }
    let _ = write!(text, "\n|---|{}", "---:|".repeat(columns.len()));
    let widest = columns.iter().map(|(_, rows)| rows).max_by_key(|rows| rows.len());
    for row in widest.into_iter().flatten() {
        let _ = write!(text, "\n| {} |", row.name);
        for (_, rows) in &columns {
            let median = rows
                .iter()
                .find(|other| other.name == row.name)
                .map(|row| row.median);
            let _ = write!(text, " {} |", short(median.unwrap_or(f64::NAN)));
        }
    }
    text.push('\n');
    text
}

/// The rows of [`readme`]: a contender, and what the README calls it.
const README_ROWS: [(&str, &str); 5] = [
    ("session", "guest, sessions contract"),
    ("copy", "guest, streams contract"),
    ("textbook", "tokio's echo example, no sandbox"),
    ("haproxy", "HAProxy with a Lua service"),
    ("nginx", "nginx with a njs filter"),
];

/// The figures of [`readme`], as in [`OVERVIEW`].
const README_FIGURES: [(Workload, usize, &str); 3] = [
    (Workload::PingPong(50), 0, "answers/s"),
    (Workload::PingPong(50), 1, "CPU µs per answer"),
    (Workload::Connect, 1, "CPU µs per connection"),
];

/// The short table of the README. A figure that was not measured is a dash.
pub(crate) fn readme(all: &[Measured<'_>]) -> String {
    let mut text = "| server |".to_owned();
    for (_, _, head) in README_FIGURES {
        let _ = write!(text, " {head} |");
    }
    let _ = write!(text, "\n|---|{}", "---:|".repeat(README_FIGURES.len()));
    for (name, about) in README_ROWS {
        let _ = write!(text, "\n| {about} |");
        for (workload, figure, _) in README_FIGURES {
            let measured = all.iter().find(|measured| measured.workload == workload);
            let rows = measured.map(|measured| measured.rows(figure)).unwrap_or_default();
            let row = rows.iter().find(|row| row.name == name);
            let _ = write!(text, " {} |", short(row.map_or(f64::NAN, |row| row.median)));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::{README_FIGURES, README_ROWS, readme};

    fn document(path: &str) -> String {
        std::fs::read_to_string(guest_builder::workspace().join(path)).unwrap()
    }

    /// The cells of each row of the first table of a text.
    fn rows(text: &str) -> Vec<Vec<String>> {
        let table = text.lines().skip_while(|line| !line.starts_with('|'));
        let cells = |line: &str| -> Vec<String> {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        };
        table
            .take_while(|line| line.starts_with('|'))
            .map(cells)
            .collect()
    }

    #[test]
    fn the_readme_has_the_rows_and_columns_that_publishing_writes() {
        let document = document("README.md");
        let (_, table) = document.split_once("<!-- measured -->\n").unwrap();
        let (shown, written) = (rows(table), rows(&readme(&[])));
        assert_eq!(shown[0], written[0]);
        let names = |rows: &[Vec<String>]| -> Vec<String> { rows.iter().map(|row| row[0].clone()).collect() };
        assert_eq!(names(&shown), names(&written));
    }

    #[test]
    fn the_figures_of_the_readme_are_those_of_the_tables() {
        let (readme, tables) = (document("README.md"), document("docs/performance.md"));
        let (_, shown) = readme.split_once("<!-- measured -->\n").unwrap();
        let shown = rows(shown);
        for (column, (workload, figure, _)) in README_FIGURES.iter().enumerate() {
            let title = format!("\n### {}\n", workload.title());
            let (_, table) = tables.split_once(&title).unwrap_or_else(|| panic!("no{title}"));
            let table = rows(table);
            for (row, (name, _)) in README_ROWS.iter().enumerate() {
                let measured = table
                    .iter()
                    .find(|row| row[0].starts_with(&format!("**{name}**")));
                let measured = &measured.unwrap_or_else(|| panic!("no {name} in{title}"))[figure + 1];
                // The median stands before the range.
                let median = measured.split(' ').next().unwrap();
                assert_eq!(shown[row + 2][column + 1], median, "{name} in{title}");
            }
        }
    }
}
