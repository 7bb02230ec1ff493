//! Tables of what was measured.

use std::fmt::Write;

use crate::Figures;
use crate::contender::Contender;

/// A Markdown table: for each contender the median of each figure, with the least and the greatest, and the median of
/// the first figure's ratios to `textbook` and to `native` of the same round.
pub(crate) fn markdown(workload: &str, contenders: &[&Contender], results: &[Vec<Figures>]) -> String {
    let mut text = format!("### {workload}\n\n| contender |");
    let names: Vec<&str> = results
        .iter()
        .find_map(|rounds| rounds.first())
        .map(|figures| figures.iter().map(|(name, _)| *name).collect())
        .unwrap_or_default();
    for name in &names {
        let _ = write!(text, " {name} |");
    }
    let _ = write!(text, " ÷ textbook | ÷ native |\n|---|");
    text.push_str(&"---:|".repeat(names.len() + 2));
    let first = |name: &str| -> Option<Vec<f64>> {
        let index = contenders.iter().position(|contender| contender.name == name)?;
        Some(column(&results[index], 0))
    };
    let (textbook, native) = (first("textbook"), first("native"));
    for (contender, rounds) in contenders.iter().zip(results) {
        let _ = write!(text, "\n| **{}**: {} |", contender.name, contender.about);
        for index in 0..names.len() {
            let mut values = column(rounds, index);
            values.sort_by(f64::total_cmp);
            let (low, high) = (values.first(), values.last());
            let (low, high) = (
                low.copied().unwrap_or(f64::NAN),
                high.copied().unwrap_or(f64::NAN),
            );
            let _ = write!(
                text,
                " {} ({}–{}) |",
                short(median(&values)),
                short(low),
                short(high)
            );
        }
        for other in [&textbook, &native] {
            let ratios = other.as_ref().map(|other| {
                let ratios = column(rounds, 0)
                    .into_iter()
                    .zip(other)
                    .map(|(one, other)| one / other);
                let mut ratios: Vec<f64> = ratios.collect();
                ratios.sort_by(f64::total_cmp);
                median(&ratios)
            });
            let _ = match ratios {
                Some(ratio) => write!(text, " {ratio:.2} |"),
                None => write!(text, " – |"),
            };
        }
    }
    text.push('\n');
    text
}

fn column(rounds: &[Figures], index: usize) -> Vec<f64> {
    rounds
        .iter()
        .filter_map(|figures| figures.get(index))
        .map(|(_, value)| *value)
        .collect()
}

/// The median of sorted values.
fn median(sorted: &[f64]) -> f64 {
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (count, half) if count % 2 == 0 => f64::midpoint(sorted[half - 1], sorted[half]),
        (_, half) => sorted[half],
    }
}

/// A number with three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn three_digits_matter() {
        assert_eq!(short(123_456.0), "123k");
        assert_eq!(short(1234.4), "1234");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(1.234), "1.23");
    }
}
