//! How often one place in the code may log: a client must not be able to fill a disk with one mistake.
//!
//! Pure: the time is passed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lines of one place that may follow each other at once.
const BURST: u32 = 200;
/// Between two further ones.
const EVERY: Duration = Duration::from_millis(50);

/// A place in the code.
pub type Site = (&'static str, u32);

/// What each place has used.
#[derive(Debug, Default)]
pub struct Repetition(HashMap<Site, Bucket>);

#[derive(Debug)]
struct Bucket {
    /// Lines that may come now.
    left: u32,
    since: Instant,
    held_back: u64,
}

impl Repetition {
    /// Whether a line may be written; then with how many were held back before it.
    pub fn admit(&mut self, site: Site, now: Instant) -> Option<u64> {
        let fresh = Bucket { left: BURST, since: now, held_back: 0 };
        let bucket = self.0.entry(site).or_insert(fresh);
        let gained = now.saturating_duration_since(bucket.since).as_millis() / EVERY.as_millis();
        if gained > 0 {
            bucket.left = u32::try_from(gained).unwrap_or(BURST).saturating_add(bucket.left).min(BURST);
            bucket.since = now;
        }
        if bucket.left == 0 {
            bucket.held_back += 1;
            return None;
        }
        bucket.left -= 1;
        Some(std::mem::take(&mut bucket.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_held_back_and_others_are_not() {
        let (mut repetition, now) = (Repetition::default(), Instant::now());
        let passed = (0..2_000).filter(|_| repetition.admit(("a", 1), now).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(repetition.admit(("a", 2), now), Some(0));
        let later = now + EVERY;
        assert_eq!(repetition.admit(("a", 1), later), Some(2_000 - u64::from(BURST)), "it says how many");
        assert_eq!(repetition.admit(("a", 1), later), None);
        let rested = later + Duration::from_secs(3600);
        assert_eq!(
            (0..2_000).filter(|_| repetition.admit(("a", 1), rested).is_some()).count(),
            BURST as usize
        );
    }
}
