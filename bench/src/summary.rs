//! What the rounds of a workload come to: medians, ranges, and ratios.

use crate::contender::Contender;
use crate::workload::{Figures, Workload};

/// A workload with what was measured: for each contender the figures of each round.
#[derive(Debug)]
pub(crate) struct Measured<'a> {
    pub(crate) workload: Workload,
    pub(crate) contenders: Vec<&'a Contender>,
    pub(crate) rounds: Vec<Vec<Figures>>,
}

/// One figure of one contender over all rounds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) ours: bool,
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Measured<'_> {
    /// The names of the figures.
    pub(crate) fn figures(&self) -> Vec<&'static str> {
        let first = self.rounds.iter().find_map(|rounds| rounds.first());
        first.map_or_else(Vec::new, |figures| {
            figures.iter().map(|(name, _)| *name).collect()
        })
    }

    /// Every figure of every contender.
    pub(crate) fn columns(&self) -> Vec<Vec<Row>> {
        (0..self.figures().len()).map(|index| self.rows(index)).collect()
    }

    /// The figure `index` of every contender.
    pub(crate) fn rows(&self, index: usize) -> Vec<Row> {
        let rows = self
            .contenders
            .iter()
            .zip(&self.rounds)
            .map(|(contender, rounds)| {
                let mut values = column(rounds, index);
                values.sort_by(f64::total_cmp);
                Row {
                    name: contender.name,
                    ours: contender.ours(),
                    median: median(&values),
                    low: values.first().copied().unwrap_or(f64::NAN),
                    high: values.last().copied().unwrap_or(f64::NAN),
                }
            });
        rows.collect()
    }

    /// The median of the ratios, round by round, of the first figure of each contender to that of `other`.
    pub(crate) fn ratios(&self, other: &str) -> Option<Vec<f64>> {
        let index = self
            .contenders
            .iter()
            .position(|contender| contender.name == other)?;
        let other = column(self.rounds.get(index)?, 0);
        let ratios = self.rounds.iter().map(|rounds| {
            let own = column(rounds, 0);
            let mut ratios: Vec<f64> = own.iter().zip(&other).map(|(own, other)| own / other).collect();
            ratios.sort_by(f64::total_cmp);
            median(&ratios)
        });
        Some(ratios.collect())
    }
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
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v.is_nan() => "–".to_owned(),
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

    #[test]
    fn ratios_are_taken_round_by_round() {
        let all = crate::contender::all();
        let rounds = |values: [f64; 3]| values.map(|value| vec![("ops/s", value)]).to_vec();
        let measured = Measured {
            workload: Workload::Connect,
            contenders: all.iter().take(2).collect(),
            rounds: vec![rounds([10.0, 40.0, 30.0]), rounds([10.0, 20.0, 10.0])],
        };
        let other = measured.contenders[1].name;
        assert_eq!(measured.ratios(other), Some(vec![2.0, 1.0]));
        assert_eq!(measured.ratios("nobody"), None);
        let first = &measured.rows(0)[0];
        assert_eq!((first.median, first.low, first.high), (30.0, 10.0, 40.0));
    }
}
