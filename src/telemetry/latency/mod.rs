//! The distribution of one latency: since start, over the last hour and over the last minute, as percentiles and as
//! a histogram for Prometheus. Deliberately knows no request: it is given durations and the time.

mod fixed_buckets;
pub mod histogram;
mod sliding_window;

pub use fixed_buckets::{Distribution, ErrorType, Quantity};

use crate::protocol::{LatencyWindows, Percentiles};
pub(super) use fixed_buckets::FixedBuckets;
use histogram::{BucketIndex, Histogram};
use sliding_window::SlidingWindow;
use std::time::{Duration, Instant};

/// Slices of the windows of a minute and of an hour. A window drops one slice at a time, so it covers up to one
/// slice more than its name says.
const MINUTE_STEP: Duration = Duration::from_secs(2);
const HOUR_STEP: Duration = Duration::from_secs(60);

/// The statistics of one latency. Takes 5 KiB, and in the windows 4 bytes for each distinct duration of a slice: at
/// most 400 KiB.
#[derive(Debug)]
pub(super) struct LatencyStats {
    all: Histogram,
    buckets: FixedBuckets,
    minute: SlidingWindow,
    hour: SlidingWindow,
}

impl LatencyStats {
    pub fn new(quantity: Quantity) -> Self {
        LatencyStats {
            all: Histogram::default(),
            buckets: FixedBuckets::new(quantity),
            minute: SlidingWindow::new(Duration::from_secs(60), MINUTE_STEP),
            hour: SlidingWindow::new(Duration::from_secs(3600), HOUR_STEP),
        }
    }

    pub fn record(&mut self, now: Instant, duration: Duration) {
        self.record_percentiles_only(now, duration);
        self.buckets.record(duration.as_secs_f64());
    }

    /// Counts a duration in the percentiles alone, for a caller that counts it in another histogram.
    pub fn record_percentiles_only(&mut self, now: Instant, duration: Duration) {
        let place = BucketIndex::of(duration);
        self.all.add(place, 1);
        self.minute.record(now, place);
        self.hour.record(now, place);
    }

    /// All durations since start.
    pub fn all(&self) -> &Histogram {
        &self.all
    }

    /// The percentiles of each window, in milliseconds.
    pub fn spans(&self, now: Instant) -> LatencyWindows {
        LatencyWindows {
            all: percentiles(&self.all),
            last_minute: percentiles(&self.minute.histogram(now)),
            last_hour: percentiles(&self.hour.histogram(now)),
        }
    }

    pub fn distribution(&self) -> Distribution {
        self.buckets.distribution(None)
    }
}

fn percentiles(histogram: &Histogram) -> Percentiles {
    let ms = |share| histogram.percentile(share).map(|d| d.as_secs_f64() * 1e3);
    Percentiles { p50: ms(0.5), p95: ms(0.95), p99: ms(0.99), count: histogram.count() }
}

#[cfg(test)]
mod tests {
    use super::histogram::tests::durations;
    use super::*;

    const STEP: Duration = Duration::from_millis(137);

    /// The exact percentiles of some durations in microseconds, in milliseconds.
    fn exact(mut us: Vec<u64>) -> [f64; 3] {
        us.sort_unstable();
        let at = |share: f64| us[(share * us.len() as f64).ceil() as usize - 1] as f64 / 1e3;
        [at(0.5), at(0.95), at(0.99)]
    }

    fn is_near(reported: &Percentiles, us: Vec<u64>) -> bool {
        let reported = [reported.p50, reported.p95, reported.p99].map(|ms| ms.expect("not empty"));
        reported.iter().zip(exact(us)).all(|(reported, exact)| (reported / exact - 1.0).abs() < 0.02)
    }

    /// Two hours of requests, one each [`STEP`]: the spread at their end, and each with its age.
    fn two_hours() -> (LatencyStats, Instant, Vec<(Duration, u64)>) {
        let start = Instant::now();
        let mut spread = LatencyStats::new(Quantity::TimeToFirstToken);
        let all = durations(7, 52_555);
        let end = start + STEP * all.len() as u32;
        let mut ages = Vec::new();
        for (n, us) in all.into_iter().enumerate() {
            let at = start + STEP * n as u32;
            spread.record(at, Duration::from_micros(us));
            ages.push((end - at, us));
        }
        (spread, end, ages)
    }

    #[test]
    fn percentiles_of_each_span_are_within_two_percent_of_the_exact_ones() {
        let (spread, end, ages) = two_hours();
        let spans = spread.spans(end);
        let cases = [
            (spans.all, Duration::from_secs(7201), Duration::ZERO),
            (spans.last_minute, Duration::from_secs(60), MINUTE_STEP),
            (spans.last_hour, Duration::from_secs(3600), HOUR_STEP),
        ];
        for (reported, span, piece) in cases {
            let within = |most: Duration| ages.iter().filter(move |(age, _)| *age <= most);
            let (least, most) = (within(span).count() as u64, within(span + piece).count() as u64);
            assert!(
                (least..=most).contains(&reported.count),
                "{} of {span:?}: {least} to {most}",
                reported.count
            );
            // The newest of them, as many as were counted.
            let counted = ages.iter().rev().take(reported.count as usize).map(|(_, us)| *us).collect();
            assert!(is_near(&reported, counted), "{span:?}: {reported:?}");
        }
    }

    #[test]
    fn windows_empty_as_time_passes_and_what_is_since_start_stays() {
        let (spread, end, ages) = two_hours();
        let later = spread.spans(end + Duration::from_secs(63));
        assert_eq!(later.last_minute, Percentiles::default());
        assert!(later.last_hour.count > 20_000);
        let much_later = spread.spans(end + Duration::from_secs(3661));
        assert_eq!(much_later.last_hour, Percentiles::default());
        assert_eq!(much_later.all.count, ages.len() as u64);
    }

    #[test]
    fn two_hours_of_a_busy_daemon_take_little_memory() {
        let (spread, ..) = two_hours();
        let bytes = spread.minute.bytes() + spread.hour.bytes() + size_of::<LatencyStats>();
        assert!(bytes < 256 << 10, "{bytes}");
    }
}
