//! How one latency spreads: since start, over the last minute and over the last hour.

mod fixed_buckets;
pub mod histogram;
mod sliding_window;

pub use fixed_buckets::{Distribution, Quantity};

use crate::protocol::{Percentiles, Spans};
pub(super) use fixed_buckets::Buckets;
use histogram::{Histogram, Place};
use sliding_window::Window;
use std::time::{Duration, Instant};

/// Pieces of the last minute, and of the last hour: what they hold is forgotten a piece at a time, so that a
/// window covers as much more than it says, at most.
const OF_MINUTE: Duration = Duration::from_secs(2);
const OF_HOUR: Duration = Duration::from_secs(60);

/// All that is kept of one latency: 5 KiB, and in the windows 4 bytes for each distinct duration of a piece;
/// 400 KiB at the very most.
#[derive(Debug)]
pub(super) struct Spread {
    all: Histogram,
    buckets: Buckets,
    minute: Window,
    hour: Window,
}

impl Spread {
    pub fn new(quantity: Quantity) -> Self {
        Spread {
            all: Histogram::default(),
            buckets: Buckets::new(quantity),
            minute: Window::new(Duration::from_secs(60), OF_MINUTE),
            hour: Window::new(Duration::from_secs(3600), OF_HOUR),
        }
    }

    pub fn record(&mut self, now: Instant, duration: Duration) {
        self.record_elsewhere(now, duration);
        self.buckets.record(duration.as_secs_f64());
    }

    /// Counts it in the percentiles alone: at the fixed bounds it is counted elsewhere.
    pub fn record_elsewhere(&mut self, now: Instant, duration: Duration) {
        let place = Place::of(duration);
        self.all.add(place, 1);
        self.minute.record(now, place);
        self.hour.record(now, place);
    }

    /// In milliseconds.
    pub fn spans(&self, now: Instant) -> Spans {
        Spans {
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

    fn is_near(told: &Percentiles, us: Vec<u64>) -> bool {
        let told = [told.p50, told.p95, told.p99].map(|ms| ms.expect("not empty"));
        told.iter().zip(exact(us)).all(|(told, exact)| (told / exact - 1.0).abs() < 0.02)
    }

    /// Two hours of requests, one each [`STEP`]: the spread at their end, and each with its age.
    fn two_hours() -> (Spread, Instant, Vec<(Duration, u64)>) {
        let start = Instant::now();
        let mut spread = Spread::new(Quantity::TimeToFirstToken);
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
            (spans.last_minute, Duration::from_secs(60), OF_MINUTE),
            (spans.last_hour, Duration::from_secs(3600), OF_HOUR),
        ];
        for (told, span, piece) in cases {
            let within = |most: Duration| ages.iter().filter(move |(age, _)| *age <= most);
            let (least, most) = (within(span).count() as u64, within(span + piece).count() as u64);
            assert!((least..=most).contains(&told.count), "{} of {span:?}: {least} to {most}", told.count);
            // The newest of them, as many as were counted.
            let counted = ages.iter().rev().take(told.count as usize).map(|(_, us)| *us).collect();
            assert!(is_near(&told, counted), "{span:?}: {told:?}");
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
        let bytes = spread.minute.bytes() + spread.hour.bytes() + size_of::<Spread>();
        assert!(bytes < 256 << 10, "{bytes}");
    }
}
