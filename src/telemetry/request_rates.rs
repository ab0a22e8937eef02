//! How many requests succeeded, how often they came and how long they took: since start, and in the last hour.
//! Deliberately knows no clock: the time is passed in.

use crate::protocol::{CacheRates, RequestRates};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The length of the window.
const HOUR: Duration = Duration::from_secs(3600);
/// The window moves in slices of this length, so that it has up to a minute more than the hour.
const SLICE: Duration = Duration::from_secs(60);

/// Sums since start and over the last hour.
#[derive(Debug)]
pub(super) struct RequestOutcomes {
    started: Instant,
    all: OutcomeSums,
    /// Oldest first, at least [`SLICE`] apart, so that there are at most 62.
    slices: VecDeque<(Instant, OutcomeSums)>,
}

/// What became of requests.
#[derive(Debug, Clone, Copy, Default)]
struct OutcomeSums {
    succeeded: u64,
    /// Without a whole answer for a reason that lies with the daemon.
    failed: u64,
    /// Without one for a reason that lies with the client, or because of a stop.
    others: u64,
    /// From the arrival of those that succeeded to their last event, all together.
    seconds: f64,
    hits: u64,
    lookups: u64,
}

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RequestOutcome {
    /// A whole answer, so long after the request arrived.
    Succeeded(Duration),
    /// None, for a reason that lies with the daemon.
    Failed,
    /// None, for a reason that lies with the client, or because of a stop.
    Other,
}

impl RequestOutcomes {
    /// No requests so far of a daemon that started then.
    pub fn new(started: Instant) -> Self {
        RequestOutcomes { started, all: OutcomeSums::default(), slices: VecDeque::new() }
    }

    /// A request ended at `now`.
    pub fn ended(&mut self, now: Instant, outcome: RequestOutcome) {
        self.add(now, |sums| match outcome {
            RequestOutcome::Succeeded(took) => {
                sums.succeeded += 1;
                sums.seconds += took.as_secs_f64();
            }
            RequestOutcome::Failed => sums.failed += 1,
            RequestOutcome::Other => sums.others += 1,
        });
    }

    /// A request was looked up in the cache of answers at `now`.
    pub fn looked_up(&mut self, now: Instant, is_hit: bool) {
        self.add(now, |sums| {
            sums.lookups += 1;
            sums.hits += u64::from(is_hit);
        });
    }

    /// Of all requests, and of those of the last hour.
    pub fn rates(&self, now: Instant) -> [RequestRates; 2] {
        let (hour, seconds) = self.last_hour(now);
        let running = now.saturating_duration_since(self.started).as_secs_f64();
        [self.all.rates(running), hour.rates(seconds)]
    }

    /// Of all requests that were looked up in the cache, and of those of the last hour.
    pub fn cache_rates(&self, now: Instant) -> [CacheRates; 2] {
        [self.all, self.last_hour(now).0].map(|sums| CacheRates {
            lookups: sums.lookups,
            hits: sums.hits,
            hit_ratio: ratio(sums.hits, sums.lookups),
        })
    }

    fn add(&mut self, now: Instant, change: impl Fn(&mut OutcomeSums)) {
        while self.slices.front().is_some_and(|(begun, _)| is_past(*begun, now)) {
            self.slices.pop_front();
        }
        let is_full = |begun: Instant| now.saturating_duration_since(begun) >= SLICE;
        if self.slices.back().is_none_or(|(begun, _)| is_full(*begun)) {
            self.slices.push_back((now, OutcomeSums::default()));
        }
        change(&mut self.slices.back_mut().expect("there is one now").1);
        change(&mut self.all);
    }

    /// The sums of the window, and the seconds that it covers: an hour, or less where the daemon has not run for one.
    fn last_hour(&self, now: Instant) -> (OutcomeSums, f64) {
        let mut sums = OutcomeSums::default();
        let slices = || self.slices.iter().filter(|(begun, _)| !is_past(*begun, now));
        slices().for_each(|(_, slice)| sums.merge(slice));
        let running = now.saturating_duration_since(self.started);
        let oldest =
            slices().next().map_or(Duration::ZERO, |(begun, _)| now.saturating_duration_since(*begun));
        (sums, running.min(HOUR.max(oldest)).as_secs_f64())
    }
}

fn is_past(begun: Instant, now: Instant) -> bool {
    now.saturating_duration_since(begun) >= HOUR + SLICE
}

impl OutcomeSums {
    fn merge(&mut self, other: &OutcomeSums) {
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.others += other.others;
        self.seconds += other.seconds;
        self.hits += other.hits;
        self.lookups += other.lookups;
    }

    /// `seconds`: the time in which the requests came.
    fn rates(&self, seconds: f64) -> RequestRates {
        let ended = self.succeeded + self.failed + self.others;
        RequestRates {
            succeeded: self.succeeded,
            failed: self.failed,
            success_ratio: ratio(self.succeeded, self.succeeded + self.failed),
            // In its first second a daemon has no rate: one request would be thousands a minute.
            per_minute: (seconds >= 1.0).then(|| rounded(ended as f64 * 60.0 / seconds)),
            mean_s: (self.succeeded > 0).then(|| rounded(self.seconds / self.succeeded as f64)),
        }
    }
}

fn ratio(part: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| rounded(part as f64 / of as f64))
}

/// Four decimals; further ones are noise.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(60 * count)
    }

    fn succeeded(seconds: u64) -> RequestOutcome {
        RequestOutcome::Succeeded(Duration::from_secs(seconds))
    }

    #[test]
    fn before_the_first_request_nothing_is_known_but_that_none_came() {
        let start = Instant::now();
        let outcomes = RequestOutcomes::new(start);
        let none = RequestRates { per_minute: Some(0.0), ..RequestRates::default() };
        assert_eq!(outcomes.rates(start), [RequestRates::default(), RequestRates::default()]);
        assert_eq!(outcomes.rates(start + minutes(5)), [none.clone(), none]);
        assert_eq!(outcomes.cache_rates(start), [CacheRates::default(), CacheRates::default()]);
    }

    #[test]
    fn what_clients_caused_is_neither_a_success_nor_a_failure() {
        let start = Instant::now();
        let mut outcomes = RequestOutcomes::new(start);
        for outcome in [succeeded(1), succeeded(2), succeeded(6), RequestOutcome::Failed] {
            outcomes.ended(start, outcome);
        }
        (0..6).for_each(|_| outcomes.ended(start, RequestOutcome::Other));
        let [all, hour] = outcomes.rates(start + minutes(2));
        assert_eq!((all.succeeded, all.failed, all.success_ratio), (3, 1, Some(0.75)));
        assert_eq!((all.mean_s, all.per_minute), (Some(3.0), Some(5.0)));
        assert_eq!(all, hour, "the daemon has not run for an hour");
    }

    #[test]
    fn the_hour_forgets_and_the_time_since_start_does_not() {
        let start = Instant::now();
        let mut outcomes = RequestOutcomes::new(start);
        (0..30).for_each(|_| outcomes.ended(start + minutes(1), RequestOutcome::Failed));
        outcomes.looked_up(start + minutes(1), false);
        for minute in 90..150 {
            outcomes.ended(start + minutes(minute), succeeded(4));
            outcomes.looked_up(start + minutes(minute), true);
        }
        let [all, hour] = outcomes.rates(start + minutes(150));
        assert_eq!((all.succeeded, all.failed, all.per_minute), (60, 30, Some(0.6)));
        assert_eq!(all.success_ratio, Some(0.6667));
        assert_eq!((hour.succeeded, hour.failed, hour.success_ratio), (60, 0, Some(1.0)));
        assert_eq!((hour.per_minute, hour.mean_s), (Some(1.0), Some(4.0)));
        let [cache, cache_of_hour] = outcomes.cache_rates(start + minutes(150));
        assert_eq!((cache.lookups, cache.hits, cache.hit_ratio), (61, 60, Some(0.9836)));
        assert_eq!((cache_of_hour.lookups, cache_of_hour.hit_ratio), (60, Some(1.0)));
        // Without a further request the window empties all the same.
        let [_, idle] = outcomes.rates(start + minutes(300));
        assert_eq!((idle.succeeded, idle.per_minute, idle.success_ratio), (0, Some(0.0), None));
    }

    #[test]
    fn a_request_stays_for_an_hour_and_for_a_minute_more_at_most() {
        let start = Instant::now();
        let mut outcomes = RequestOutcomes::new(start);
        outcomes.ended(start, succeeded(1));
        let at = start + Duration::from_secs(59);
        outcomes.ended(at, succeeded(1));
        assert_eq!(outcomes.rates(at + HOUR)[1].succeeded, 2);
        assert_eq!(outcomes.rates(at + HOUR + SLICE)[1].succeeded, 0);
    }

    #[test]
    fn memory_is_bounded_over_days() {
        let start = Instant::now();
        let mut outcomes = RequestOutcomes::new(start);
        for second in (0..3 * 86_400).step_by(7) {
            outcomes.ended(start + Duration::from_secs(second), succeeded(1));
            assert!(outcomes.slices.len() <= 62, "{}", outcomes.slices.len());
        }
    }
}
