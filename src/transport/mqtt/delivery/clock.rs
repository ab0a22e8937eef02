//! The monotonic clock and the wall clock, read together.
//!
//! Deadlines count by the first; what is written to disk carries the second, which continues while the daemon does
//! not run.

use std::time::{Duration, Instant, SystemTime};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// The monotonic clock.
    pub now: Instant,
    /// The wall clock: seconds since 1970, as far as the device knows.
    pub time_s: u64,
}

impl Clock {
    /// Reads both.
    pub fn read() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clock { now: Instant::now(), time_s: since.as_secs() }
    }

    /// The time at which `left` is over; `None` where that is never, or beyond the clock's range.
    pub fn after(self, left: Option<Duration>) -> Option<Instant> {
        left.and_then(|left| self.now.checked_add(left))
    }
}
