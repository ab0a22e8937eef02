//! The share of requests that failed in the last minute, from counts that only ever rise.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const SPAN: Duration = Duration::from_secs(60);
/// Of fewer requests in a minute nothing is said: one that fails is not a rate.
const LEAST: u64 = 5;
/// Looks that are kept: one a second of the last minute, and some to spare.
const MOST: usize = 64;

/// The counts of the last minute, one a look.
#[derive(Debug, Default)]
pub(super) struct ErrorRate {
    looks: VecDeque<Look>,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    failed: u64,
    ended: u64,
}

impl ErrorRate {
    /// In percent of all that ended; `None` where too few did.
    pub fn percent(&mut self, now: Instant, failed: u64, ended: u64) -> Option<f64> {
        // The oldest that stays is the last one from before the minute.
        while self.looks.get(1).is_some_and(|next| now.saturating_duration_since(next.at) >= SPAN) {
            self.looks.pop_front();
        }
        if self.looks.len() >= MOST {
            self.looks.pop_front();
        }
        self.looks.push_back(Look { at: now, failed, ended });
        let before = self.looks.front()?;
        let (failed, ended) = (failed.saturating_sub(before.failed), ended.saturating_sub(before.ended));
        (ended >= LEAST).then(|| 100.0 * failed as f64 / ended as f64)
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
        assert!(errors.looks.len() <= MOST);
    }
}
