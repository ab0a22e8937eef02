//! Which running requests may be suspended for one of high priority, and when they go on: decisions only.
//!
//! Only requests of low priority are suspended. How long one was suspended raises its priority as waiting does, so that
//! after [`PRIORITY_STEP`](crate::transport::fair_queue::PRIORITY_STEP) twice it goes before all others, and is suspended
//! no more. Deliberately knows no queue and no session.

use crate::protocol::Priority;
use crate::transport::fair_queue::{HIGHEST, effective_priority};
use std::time::Duration;

/// How many times one request is suspended at most. Each time it may have to read a block of tokens again.
const MAX_SUSPENSIONS: u32 = 3;

/// How often and for how long a request was suspended.
#[derive(Debug, Clone, Copy)]
pub(super) struct SuspensionRecord {
    priority: Priority,
    count: u32,
    total: Duration,
}

impl SuspensionRecord {
    /// The record of a request that begins.
    pub fn new(priority: Priority) -> Self {
        SuspensionRecord { priority, count: 0, total: Duration::ZERO }
    }

    /// Whether one of high priority may take its place.
    pub fn may_be_suspended(&self) -> bool {
        let is_low = self.priority == Priority::Low && self.level(Duration::ZERO) < HIGHEST;
        is_low && self.count < MAX_SUSPENSIONS
    }

    /// Its effective priority when it has been suspended for so long, with the times before.
    pub fn level(&self, suspended: Duration) -> usize {
        effective_priority(self.priority as usize, self.total + suspended)
    }

    /// Records that it went on after so long.
    pub fn add(&mut self, suspended: Duration) {
        (self.count, self.total) = (self.count + 1, self.total + suspended);
    }

    /// Whether it goes on before a request that waits with priority `next`: what was begun is ahead of what was not.
    pub fn goes_before(&self, suspended: Duration, next: Option<usize>) -> bool {
        next.is_none_or(|next| self.level(suspended) >= next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::fair_queue::PRIORITY_STEP;

    #[test]
    fn a_request_of_low_priority_alone_is_suspended_and_that_three_times() {
        for priority in [Priority::Normal, Priority::High] {
            assert!(!SuspensionRecord::new(priority).may_be_suspended());
        }
        let mut record = SuspensionRecord::new(Priority::Low);
        for _ in 0..3 {
            assert!(record.may_be_suspended());
            record.add(Duration::from_millis(1));
        }
        assert!(!record.may_be_suspended());
    }

    #[test]
    fn a_suspended_request_rises_until_it_goes_first_and_stays_there() {
        let mut record = SuspensionRecord::new(Priority::Low);
        let goes_before = |record: &SuspensionRecord, suspended| {
            [Priority::Low, Priority::Normal, Priority::High]
                .map(|next| record.goes_before(suspended, Some(next as usize)))
        };
        let (none, step) = (Duration::ZERO, PRIORITY_STEP);
        assert_eq!(goes_before(&record, none), [true, false, false]);
        assert_eq!(goes_before(&record, step), [true, true, false]);
        assert_eq!(goes_before(&record, 2 * step), [true; 3]);
        assert!(record.goes_before(none, None), "nothing else waits");
        // The times of several suspensions count together.
        record.add(step);
        assert_eq!((goes_before(&record, step), record.may_be_suspended()), ([true; 3], true));
        record.add(step);
        assert!(!record.may_be_suspended());
    }
}
