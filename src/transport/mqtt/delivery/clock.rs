//! The monotonic clock and the wall clock, read together: deadlines count by the first, and what is written to disk
//! carries the second, which goes on while the daemon does not run.

use std::time::{Duration, Instant, SystemTime};

/// The two clocks: ours, and the one that goes on while we do not.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Ours.
    pub now: Instant,
    /// Seconds since 1970, as far as the device knows.
    pub time_s: u64,
}

impl Clock {
    /// Both as they are.
    pub fn read() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clock { now: Instant::now(), time_s: since.as_secs() }
    }

    /// A deadline; one beyond all clocks is none.
    pub fn after(self, left: Option<Duration>) -> Option<Instant> {
        left.and_then(|left| self.now.checked_add(left))
    }
}
