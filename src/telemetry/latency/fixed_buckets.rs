//! Cumulative histograms with bucket bounds that a standard fixes, as Prometheus scrapes them.
//!
//! They are counted separately from [`Histogram`](super::histogram::Histogram), whose buckets do not end exactly at
//! these bounds. Deliberately knows no text format.

use crate::protocol::Code;

/// The quantity that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// From arrival to the last event.
    RequestDuration,
    /// From arrival to the first token, the queue included.
    TimeToFirstToken,
    /// Mean time between the tokens after the first.
    TimePerOutputToken,
    /// Time in the queue, before the worker takes the request.
    QueueTime,
}

/// The bounds of OpenTelemetry's `gen_ai.server.*` metrics (semantic conventions, status Development), in seconds,
/// extended upwards for small boards.
const DURATION: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
    655.36,
];
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    60.0, 120.0,
];
const OUTPUT_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];

impl Quantity {
    /// The name in OpenTelemetry's conventions, or a name in their style.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::RequestDuration => "gen_ai.server.request.duration",
            Quantity::TimeToFirstToken => "gen_ai.server.time_to_first_token",
            Quantity::TimePerOutputToken => "gen_ai.server.time_per_output_token",
            Quantity::QueueTime => "bitnetd.queue.duration",
        }
    }

    /// Upper bounds of its buckets, in seconds, rising; the last one, infinity, is left out.
    pub fn bounds(self) -> &'static [f64] {
        match self {
            Quantity::RequestDuration => DURATION,
            // The queue time is part of the time to the first token.
            Quantity::TimeToFirstToken | Quantity::QueueTime => FIRST_TOKEN,
            Quantity::TimePerOutputToken => OUTPUT_TOKEN,
        }
    }
}

/// Why requests failed: `error.type` of OpenTelemetry's conventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// With this code.
    Code(Code),
    /// With one that has no histogram of its own: `_OTHER`.
    Other,
}

/// The histogram of one quantity since start.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// The quantity that was measured.
    pub quantity: Quantity,
    /// Why these requests failed; `None` for those that did not.
    pub error: Option<ErrorType>,
    /// How many durations were no longer than each of [`Quantity::bounds`].
    pub cumulative: Vec<u64>,
    /// The sum of all durations, in seconds.
    pub sum_s: f64,
    /// The number of durations.
    pub count: u64,
}

/// Counts the durations of one quantity.
#[derive(Debug)]
pub(in crate::telemetry) struct FixedBuckets {
    quantity: Quantity,
    /// A count for each bound, and one for longer durations.
    counts: Vec<u64>,
    sum_s: f64,
}

impl FixedBuckets {
    pub fn new(quantity: Quantity) -> Self {
        FixedBuckets { quantity, counts: vec![0; quantity.bounds().len() + 1], sum_s: 0.0 }
    }

    /// Counts one duration in seconds; bounds are inclusive.
    pub fn record(&mut self, seconds: f64) {
        let at = self.quantity.bounds().partition_point(|bound| *bound < seconds);
        self.counts[at] += 1;
        self.sum_s += seconds;
    }

    pub fn distribution(&self, error: Option<ErrorType>) -> Distribution {
        let (mut count, mut cumulative) = (0, Vec::with_capacity(self.counts.len()));
        for of_bucket in &self.counts {
            count += of_bucket;
            cumulative.push(count);
        }
        cumulative.pop(); // of the bucket without a bound
        Distribution { quantity: self.quantity, error, cumulative, sum_s: self.sum_s, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Quantity; 4] = [
        Quantity::RequestDuration,
        Quantity::TimeToFirstToken,
        Quantity::TimePerOutputToken,
        Quantity::QueueTime,
    ];

    #[test]
    fn bounds_rise_and_each_holds_what_is_as_long_as_itself() {
        for quantity in ALL {
            let bounds = quantity.bounds();
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{quantity:?}");
            let mut buckets = FixedBuckets::new(quantity);
            // As it comes: milliseconds, which are divided.
            bounds.iter().for_each(|bound| buckets.record((bound * 1e6).round() / 1e3 / 1e3));
            let reported = buckets.distribution(None);
            assert_eq!(reported.cumulative, (1..=bounds.len() as u64).collect::<Vec<_>>(), "{quantity:?}");
        }
    }

    #[test]
    fn counts_are_those_of_counting_by_hand() {
        let seconds: Vec<f64> = (0..5000u32).map(|n| f64::from(n * n % 7919) * 0.13).collect();
        for quantity in ALL {
            let mut buckets = FixedBuckets::new(quantity);
            seconds.iter().for_each(|seconds| buckets.record(*seconds));
            let error = Some(ErrorType::Code(Code::Timeout));
            let reported = buckets.distribution(error);
            assert_eq!((reported.count, reported.error), (5000, error));
            assert!((reported.sum_s / seconds.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (bound, cumulative) in quantity.bounds().iter().zip(reported.cumulative) {
                let by_hand = seconds.iter().filter(|seconds| *seconds <= bound).count();
                assert_eq!(cumulative, by_hand as u64, "{bound} of {quantity:?}");
            }
        }
    }
}
