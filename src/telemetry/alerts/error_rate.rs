//! The share of requests that failed in the last minute, from counters that only rise. Deliberately knows neither
//! the requests nor the alert.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(60);
/// With fewer requests in the window there is no rate: a single failure would be 100 %.
const MIN_REQUESTS: u64 = 5;
/// Samples in memory: one a second for the last minute, and a few to spare.
const MAX_SAMPLES: usize = 64;

/// Samples of the counters over the last minute.
#[derive(Debug, Default)]
pub(super) struct ErrorRate {
    samples: VecDeque<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    failed: u64,
    ended: u64,
}

impl ErrorRate {
    /// The failed requests in percent of all that ended in the window; `None` where fewer than [`MIN_REQUESTS`]
    /// did.
    pub fn percent(&mut self, now: Instant, failed: u64, ended: u64) -> Option<f64> {
        // The oldest sample that stays is the last one from before the window.
        while self.samples.get(1).is_some_and(|next| now.saturating_duration_since(next.at) >= WINDOW) {
            self.samples.pop_front();
        }
        if self.samples.len() >= MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at: now, failed, ended });
        let before = self.samples.front()?;
        let (failed, ended) = (failed.saturating_sub(before.failed), ended.saturating_sub(before.ended));
        (ended >= MIN_REQUESTS).then(|| 100.0 * failed as f64 / ended as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_share_of_the_last_minute_and_of_five_requests_at_least() {
        let (mut errors, start) = (ErrorRate::default(), Instant::now());
        let mut at =
            |second, failed, ended| errors.percent(start + Duration::from_secs(second), failed, ended);
        assert_eq!(at(0, 100, 200), None, "what was before the first look is not of this minute");
        assert_eq!(at(1, 104, 204), None);
        assert_eq!(at(2, 104, 208), Some(50.0));
        assert_eq!(at(60, 104, 208), Some(50.0));
        assert_eq!(at(61, 104, 208), None, "four in the last minute");
        assert_eq!(at(200, 104, 208), None);
    }

    #[test]
    fn looks_that_come_too_often_take_no_more_memory() {
        let (mut errors, start) = (ErrorRate::default(), Instant::now());
        for n in 0..10_000 {
            errors.percent(start + Duration::from_millis(n), n, 2 * n);
        }
        assert!(errors.samples.len() <= MAX_SAMPLES);
    }
}
