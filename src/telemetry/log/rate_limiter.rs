//! A token bucket for each call site of the logger, so that a client cannot fill a disk by repeating one mistake.
//!
//! Pure: the time is passed in. Deliberately knows no line and no sink.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lines of one call site that may follow each other without a pause.
const BURST: u32 = 200;
/// Time between two further lines.
const REFILL_INTERVAL: Duration = Duration::from_millis(50);

/// A call site: module and line.
pub type CallSite = (&'static str, u32);

/// The token buckets of all call sites.
#[derive(Debug, Default)]
pub struct RateLimiter(HashMap<CallSite, TokenBucket>);

#[derive(Debug)]
struct TokenBucket {
    /// Lines that may be written now.
    tokens: u32,
    refilled_at: Instant,
    suppressed: u64,
}

impl RateLimiter {
    /// `None` where the line is suppressed, otherwise how many lines were suppressed before it.
    pub fn admit(&mut self, site: CallSite, now: Instant) -> Option<u64> {
        let fresh = TokenBucket { tokens: BURST, refilled_at: now, suppressed: 0 };
        let bucket = self.0.entry(site).or_insert(fresh);
        let gained =
            now.saturating_duration_since(bucket.refilled_at).as_millis() / REFILL_INTERVAL.as_millis();
        if gained > 0 {
            bucket.tokens = u32::try_from(gained).unwrap_or(BURST).saturating_add(bucket.tokens).min(BURST);
            bucket.refilled_at = now;
        }
        if bucket.tokens == 0 {
            bucket.suppressed += 1;
            return None;
        }
        bucket.tokens -= 1;
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_held_back_and_others_are_not() {
        let (mut repetition, now) = (RateLimiter::default(), Instant::now());
        let passed = (0..2_000).filter(|_| repetition.admit(("a", 1), now).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(repetition.admit(("a", 2), now), Some(0));
        let later = now + REFILL_INTERVAL;
        assert_eq!(repetition.admit(("a", 1), later), Some(2_000 - u64::from(BURST)), "it says how many");
        assert_eq!(repetition.admit(("a", 1), later), None);
        let rested = later + Duration::from_secs(3600);
        assert_eq!(
            (0..2_000).filter(|_| repetition.admit(("a", 1), rested).is_some()).count(),
            BURST as usize
        );
    }
}
