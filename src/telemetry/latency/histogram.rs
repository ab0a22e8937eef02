//! A logarithmic histogram of durations in fixed memory, with the same number of buckets for each power of two.
//! Deliberately knows no time window.

use std::time::Duration;

/// Buckets for each power of two, and its binary logarithm. A bucket is at most 1/32 of its lower end wide and is
/// reported by its middle, so the error is at most 1.6 %.
const PER_OCTAVE: u64 = 32;
const OCTAVE_BITS: u32 = 5;

/// The longest duration that is counted exactly, 24 h in microseconds; a longer one counts as this one.
const MAX_US: u64 = 24 * 3600 * 1_000_000;
pub(super) const BUCKETS: usize = bucket(MAX_US) + 1;

/// Counts durations from 1 µs to 24 h in 4 KiB.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: [u32; BUCKETS],
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: [0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    /// Adds `count` durations to one bucket.
    pub fn add(&mut self, BucketIndex(index): BucketIndex, count: u32) {
        let slot = &mut self.buckets[usize::from(index)];
        *slot = slot.saturating_add(count);
        self.count += u64::from(count);
    }

    /// The durations that were added since this histogram was as `earlier` is.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut added = Histogram { count: self.count.saturating_sub(earlier.count), ..self.clone() };
        for (count, before) in added.buckets.iter_mut().zip(&earlier.buckets) {
            *count = count.saturating_sub(*before);
        }
        added
    }

    /// The exact number of durations.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The duration that `share` (0 to 1) of all do not exceed, within 2 %; `None` when empty.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let rank = ((share * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = |&n: &u32| {
            seen += u64::from(n);
            seen >= rank
        };
        self.buckets.iter().position(reached).map(|index| Duration::from_nanos(middle_ns(index)))
    }
}

/// The bucket that a duration is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BucketIndex(u16);

impl BucketIndex {
    /// The bucket of this duration.
    pub fn of(duration: Duration) -> Self {
        let us = u64::try_from(duration.as_micros()).unwrap_or(MAX_US);
        BucketIndex(u16::try_from(bucket(us.min(MAX_US))).expect("there are about a thousand buckets"))
    }
}

/// The bucket of a number of microseconds; below 64 each number has its own.
const fn bucket(us: u64) -> usize {
    if us < PER_OCTAVE {
        return us as usize;
    }
    let shift = us.ilog2() - OCTAVE_BITS;
    (shift as u64 * PER_OCTAVE + (us >> shift)) as usize
}

/// The middle of a bucket, in nanoseconds.
fn middle_ns(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / PER_OCTAVE).saturating_sub(1);
    let low = (index - shift * PER_OCTAVE) << shift;
    (low * 1000) + ((1u64 << shift) - 1) * 500
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::random::Lcg;

    /// From microseconds to hours, each power of two as likely as the next.
    pub(in crate::telemetry) fn durations(seed: u64, count: usize) -> Vec<u64> {
        let (mut exponents, mut numbers) = (Lcg::new(seed), Lcg::new(seed + 1));
        let mut duration = || {
            let least = 1 << (exponents.next_u31() % 36);
            least + u64::from(numbers.next_u31()) % least
        };
        (0..count).map(|_| duration()).collect()
    }

    #[test]
    fn percentiles_are_within_two_percent_of_the_exact_ones() {
        for seed in 1..20 {
            let mut values = durations(seed, 997);
            let mut histogram = Histogram::default();
            values.iter().for_each(|&us| histogram.add(BucketIndex::of(Duration::from_micros(us)), 1));
            values.sort_unstable();
            for share in [0.01, 0.5, 0.95, 0.99, 1.0] {
                let exact = values[(share * 997.0_f64).ceil() as usize - 1] as f64;
                let reported = histogram.percentile(share).expect("not empty").as_nanos() as f64 / 1e3;
                assert!((reported / exact - 1.0).abs() < 0.02, "{share} of {seed}: {reported} for {exact}");
            }
        }
    }

    #[test]
    fn what_was_added_since_has_its_own_percentiles() {
        let mut histogram = Histogram::default();
        histogram.add(BucketIndex::of(Duration::from_micros(7)), 100);
        let earlier = histogram.clone();
        assert_eq!(histogram.since(&earlier).percentile(0.5), None);
        histogram.add(BucketIndex::of(Duration::from_micros(30)), 1);
        let added = histogram.since(&earlier);
        assert_eq!((added.count(), added.percentile(0.5)), (1, Some(Duration::from_micros(30))));
    }

    #[test]
    fn every_bucket_holds_its_own_middle() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(middle_ns(index) / 1000), index);
        }
    }

    #[test]
    fn short_durations_are_exact_and_long_ones_count_as_a_day() {
        let mut histogram = Histogram::default();
        histogram.add(BucketIndex::of(Duration::from_micros(63)), 1);
        assert_eq!(histogram.percentile(0.5), Some(Duration::from_micros(63)));
        histogram.add(BucketIndex::of(Duration::MAX), 1);
        let longest = histogram.percentile(1.0).expect("not empty").as_secs_f64();
        assert!((longest / 86_400.0 - 1.0).abs() < 0.02, "{longest}");
        assert_eq!(histogram.count(), 2);
    }

    #[test]
    fn an_empty_histogram_has_no_percentile() {
        assert_eq!(Histogram::default().percentile(0.99), None);
    }

    #[test]
    fn it_stays_within_a_few_kilobytes() {
        assert!(size_of::<Histogram>() < 5 << 10, "{}", size_of::<Histogram>());
    }
}
