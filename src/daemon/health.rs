//! Whether the worker makes progress: it does when it is idle, or when it took a step of late.

use std::time::{Duration, Instant};

/// Watches a count of steps.
#[derive(Debug)]
pub(super) struct Progress {
    steps: u64,
    since: Instant,
    limit: Duration,
}

impl Progress {
    /// A busy worker may stay at one step for `limit`.
    pub fn new(limit: Duration, now: Instant) -> Self {
        Progress { steps: 0, since: now, limit }
    }

    /// Whether the worker is well: `steps` is its count, `busy` whether it has something to do.
    pub fn is_well(&mut self, steps: u64, busy: bool, now: Instant) -> bool {
        if steps != self.steps || !busy {
            self.steps = steps;
            self.since = now;
        }
        now - self.since < self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_worker_that_takes_no_step_is_not_well() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut progress = Progress::new(Duration::from_secs(10), start);
        assert!(progress.is_well(1, true, after(1)));
        assert!(progress.is_well(1, true, after(10)));
        assert!(!progress.is_well(1, true, after(11)));
        assert!(progress.is_well(2, true, after(12)), "it moves again");
        assert!(!progress.is_well(2, true, after(30)));
    }

    #[test]
    fn an_idle_worker_is_well_however_long() {
        let start = Instant::now();
        let mut progress = Progress::new(Duration::from_secs(10), start);
        assert!(progress.is_well(5, false, start + Duration::from_secs(1000)));
        assert!(progress.is_well(5, true, start + Duration::from_secs(1009)));
    }
}
