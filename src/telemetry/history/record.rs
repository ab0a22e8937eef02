//! One step of the history, and several steps as one.
//!
//! Deliberately knows neither how a step is observed nor how it is stored.

use super::column::{COLUMNS, MergeRule, StepColumn, UNKNOWN};

/// What happened in one step: 84 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRecord {
    /// When the step began, in minutes since 1970.
    pub minute: u32,
    /// The codes of all columns.
    pub(super) codes: [u16; COLUMNS],
}

/// A latency: how many there were, and three percentiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatencyColumns {
    /// From arrival to the first token.
    Ttft,
    /// From arrival to the last token.
    Total,
}

impl LatencyColumns {
    /// Both of them.
    pub const ALL: [LatencyColumns; 2] = [LatencyColumns::Ttft, LatencyColumns::Total];

    /// The column of the count, then those of the percentiles 50, 95 and 99.
    pub fn columns(self) -> (StepColumn, [StepColumn; 3]) {
        use StepColumn::{TotalCount, TotalP50, TotalP95, TotalP99, TtftCount, TtftP50, TtftP95, TtftP99};
        match self {
            LatencyColumns::Ttft => (TtftCount, [TtftP50, TtftP95, TtftP99]),
            LatencyColumns::Total => (TotalCount, [TotalP50, TotalP95, TotalP99]),
        }
    }
}

impl StepRecord {
    /// A step of which nothing is known.
    pub fn new(minute: u32) -> Self {
        let mut record = StepRecord { minute, codes: [UNKNOWN; COLUMNS] };
        record.set(StepColumn::AlertBits, None);
        record
    }

    /// A value in the unit of its column; `None` where it is not known.
    pub fn get(&self, column: StepColumn) -> Option<f64> {
        column.value(self.codes[column as usize])
    }

    /// A value that counts as 0 where it is not known.
    pub fn count(&self, column: StepColumn) -> f64 {
        self.get(column).unwrap_or(0.0)
    }

    /// Sets a value in the unit of its column.
    pub fn set(&mut self, column: StepColumn, value: Option<f64>) {
        self.codes[column as usize] = column.code(value);
    }

    /// Tokens a second while answers were generated; `None` where none were.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let (tokens, ms) = (self.get(StepColumn::DecodedTokens)?, self.get(StepColumn::DecodeMs)?);
        (tokens > 0.0 && ms > 0.0).then(|| tokens * 1000.0 / ms)
    }

    /// Several steps as one that begins at `minute`.
    pub fn merged(minute: u32, steps: &[&StepRecord]) -> StepRecord {
        let mut merged = StepRecord::new(minute);
        for column in StepColumn::ALL {
            merged.set(*column, merged_value(*column, steps));
        }
        for latency in LatencyColumns::ALL {
            let percentiles = latency_percentiles(latency, steps.iter().copied());
            for (at, column) in latency.columns().1.into_iter().enumerate() {
                merged.set(column, percentiles.map(|values| values[at]));
            }
        }
        merged
    }
}

fn merged_value(column: StepColumn, steps: &[&StepRecord]) -> Option<f64> {
    let known = || steps.iter().filter_map(|step| step.get(column));
    match column.merge_rule() {
        MergeRule::Sum => known().reduce(|sum, value| sum + value),
        MergeRule::Min => known().reduce(f64::min),
        MergeRule::Max => known().reduce(f64::max),
        MergeRule::Last => known().last(),
        MergeRule::Bits => {
            Some(f64::from(steps.iter().fold(0, |bits, step| bits | step.codes[column as usize])))
        }
        MergeRule::Mean => {
            let weighted = steps.iter().filter_map(|step| {
                Some((step.get(column)?, step.get(StepColumn::ObservedS)?.max(f64::MIN_POSITIVE)))
            });
            let (sum, weight) =
                weighted.fold((0.0, 0.0), |(sum, all), (value, weight)| (sum + value * weight, all + weight));
            (weight > 0.0).then(|| sum / weight)
        }
        MergeRule::Percentile => None,
    }
}

/// Where the answers of a step are assumed to lie between its percentiles: a share of them, and a place from 0 (the 50th
/// percentile) over 1 (the 95th) to 2 (the 99th). All answers of a step with one answer have the same place.
const ASSUMED: [(f64, f64); 9] = [
    (0.5, 0.0),
    (0.09, 0.1),
    (0.09, 0.3),
    (0.09, 0.5),
    (0.09, 0.7),
    (0.09, 0.9),
    (0.02, 1.25),
    (0.02, 1.75),
    (0.01, 2.0),
];

/// The percentiles 50, 95 and 99 of all answers of several steps in milliseconds, put together from the percentiles of each
/// step; `None` without an answer. Of one step they are its own.
pub fn latency_percentiles<'r>(
    latency: LatencyColumns,
    steps: impl Iterator<Item = &'r StepRecord> + Clone,
) -> Option<[f64; 3]> {
    let (count, columns) = latency.columns();
    let of_step = |step: &StepRecord| {
        let answers = step.get(count).filter(|count| *count > 0.0)?;
        let [p50, p95, p99] = columns.map(|column| step.get(column));
        Some((answers, [p50?, p95?, p99?]))
    };
    let mut known = steps.clone().filter_map(of_step);
    let first = known.next()?;
    if known.next().is_none() {
        return Some(first.1);
    }
    let mut points = Vec::new();
    for (answers, [p50, p95, p99]) in steps.filter_map(of_step) {
        points.extend(ASSUMED.map(|(share, place)| {
            let ms = if place < 1.0 { p50 + (p95 - p50) * place } else { p95 + (p99 - p95) * (place - 1.0) };
            (ms, share * answers)
        }));
    }
    let quantiles = weighted_quantiles(points, [0.5, 0.95, 0.99]);
    Some(quantiles.expect("there are at least two steps with answers"))
}

/// For each share, the least value that this share of the weight does not exceed; `None` without weight.
pub fn weighted_quantiles<const N: usize>(mut points: Vec<(f64, f64)>, shares: [f64; N]) -> Option<[f64; N]> {
    points.retain(|(_, weight)| *weight > 0.0);
    points.sort_unstable_by(|(one, _), (other, _)| one.total_cmp(other));
    let total: f64 = points.iter().map(|(_, weight)| weight).sum();
    let last = points.last()?.0;
    Some(shares.map(|share| {
        // A rounding error must not make the median of two equal halves the upper one.
        let wanted = share * total * (1.0 - 1e-9);
        let mut seen = 0.0;
        let reached = points.iter().find(|(_, weight)| {
            seen += weight;
            seen >= wanted
        });
        reached.map_or(last, |(value, _)| *value)
    }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A step with these values.
    pub(in crate::telemetry::history) fn step(minute: u32, values: &[(StepColumn, f64)]) -> StepRecord {
        let mut record = StepRecord::new(minute);
        values.iter().for_each(|(column, value)| record.set(*column, Some(*value)));
        record
    }

    #[test]
    fn a_record_is_as_small_as_its_documentation_says() {
        assert_eq!(size_of::<StepRecord>(), 84);
    }

    #[test]
    fn counts_are_added_means_are_weighted_and_extremes_stay() {
        use StepColumn::*;
        let one = step(
            3,
            &[(ObservedS, 60.0), (PowerMean, 4.0), (PowerMin, 3.0), (PowerMax, 5.0), (Completed, 2.0)],
        );
        let other = step(
            4,
            &[(ObservedS, 20.0), (PowerMean, 8.0), (PowerMin, 2.0), (PowerMax, 4.0), (AlertBits, 5.0)],
        );
        let unknown = step(5, &[(ObservedS, 60.0), (AlertBits, 2.0)]);
        let merged = StepRecord::merged(3, &[&one, &other, &unknown]);
        let values = [ObservedS, PowerMean, PowerMin, PowerMax, Completed, AlertBits].map(|c| merged.get(c));
        assert_eq!(values, [140.0, 5.0, 2.0, 5.0, 2.0, 7.0].map(Some));
        assert_eq!((merged.minute, merged.get(TemperatureMean), merged.get(TtftP50)), (3, None, None));
        assert_eq!(StepRecord::merged(4, &[&other]), other);
    }

    #[test]
    fn percentiles_of_one_step_are_its_own_and_of_several_lie_between() {
        use StepColumn::*;
        let one = step(1, &[(TtftCount, 1.0), (TtftP50, 100.0), (TtftP95, 100.0), (TtftP99, 100.0)]);
        let three = step(2, &[(TtftCount, 3.0), (TtftP50, 500.0), (TtftP95, 900.0), (TtftP99, 900.0)]);
        let of = |steps: &[&StepRecord]| latency_percentiles(LatencyColumns::Ttft, steps.iter().copied());
        assert_eq!(of(&[&one]), Some([100.0; 3]));
        assert_eq!(of(&[&three]), Some([500.0, 900.0, 900.0]));
        let [p50, p95, p99] = of(&[&one, &three]).expect("four answers");
        assert_eq!((p50, p99), (500.0, 900.0));
        assert!((500.0..=900.0).contains(&p95), "{p95}");
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_quantile_is_reached_by_its_share_of_the_weight() {
        let points = vec![(3.0, 1.0), (1.0, 1.0), (2.0, 2.0), (9.0, 0.0)];
        assert_eq!(
            weighted_quantiles(points, [0.0, 0.25, 0.5, 0.75, 0.76, 1.0]),
            Some([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
        );
        assert_eq!(weighted_quantiles(vec![], [0.5]), None);
    }

    #[test]
    fn speed_is_tokens_over_the_time_they_took() {
        use StepColumn::*;
        assert_eq!(step(1, &[(DecodedTokens, 20.0), (DecodeMs, 4000.0)]).tokens_per_second(), Some(5.0));
        assert_eq!(step(1, &[(DecodedTokens, 0.0), (DecodeMs, 0.0)]).tokens_per_second(), None);
        assert_eq!(StepRecord::new(1).tokens_per_second(), None);
    }
}
