//! Detects a stalled worker or broker link, for systemd's watchdog. The worker must make progress while it has
//! work, the event loop of the broker link always. Deliberately knows no systemd.

use crate::transport::Heartbeat;
use std::time::{Duration, Instant};

/// The parts that may stall while the rest of the daemon runs.
#[derive(Debug)]
pub(in crate::daemon) struct StallDetector {
    worker: StepWatch,
    link: Option<(Heartbeat, StepWatch)>,
}

impl StallDetector {
    /// A detector that allows a busy worker and the loop of the broker link, if there is one, `limit` without
    /// progress.
    pub fn new(limit: Duration, link: Option<Heartbeat>, now: Instant) -> Self {
        let link = link.map(|heartbeat| (heartbeat, StepWatch::new(limit, now)));
        StallDetector { worker: StepWatch::new(limit, now), link }
    }

    /// The part that has stalled, if one has; `steps` is the worker's counter, `busy` whether it has work.
    pub fn stuck(&mut self, steps: u64, busy: bool, now: Instant) -> Option<&'static str> {
        let worker = self.worker.is_progressing(steps, busy, now);
        let link = self
            .link
            .as_mut()
            .is_none_or(|(heartbeat, progress)| progress.is_progressing(heartbeat.beats(), true, now));
        match (worker, link) {
            (false, _) => Some("the worker"),
            (true, false) => Some("the broker link"),
            (true, true) => None,
        }
    }
}

/// Watches the progress of a counter.
#[derive(Debug)]
struct StepWatch {
    steps: u64,
    last_progress: Instant,
    limit: Duration,
}

impl StepWatch {
    fn new(limit: Duration, now: Instant) -> Self {
        StepWatch { steps: 0, last_progress: now, limit }
    }

    fn is_progressing(&mut self, steps: u64, busy: bool, now: Instant) -> bool {
        if steps != self.steps || !busy {
            self.steps = steps;
            self.last_progress = now;
        }
        now - self.last_progress < self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_busy_worker_that_takes_no_step_is_stuck() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watch = StallDetector::new(LIMIT, None, start);
        assert_eq!(watch.stuck(1, true, after(1)), None);
        assert_eq!(watch.stuck(1, true, after(10)), None);
        assert_eq!(watch.stuck(1, true, after(11)), Some("the worker"));
        assert_eq!(watch.stuck(2, true, after(12)), None, "it moves again");
        assert_eq!(watch.stuck(2, true, after(30)), Some("the worker"));
    }

    #[test]
    fn an_idle_worker_is_well_however_long() {
        let start = Instant::now();
        let mut watch = StallDetector::new(LIMIT, None, start);
        assert_eq!(watch.stuck(5, false, start + Duration::from_secs(1000)), None);
        assert_eq!(watch.stuck(5, true, start + Duration::from_secs(1009)), None);
    }

    #[test]
    fn a_link_whose_loop_stands_still_is_stuck_though_nobody_asks_anything() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let heartbeat = Heartbeat::default();
        let mut watch = StallDetector::new(LIMIT, Some(heartbeat.clone()), start);
        heartbeat.beat();
        assert_eq!(watch.stuck(0, false, after(9)), None);
        assert_eq!(watch.stuck(0, false, after(18)), None);
        assert_eq!(watch.stuck(0, false, after(19)), Some("the broker link"));
        heartbeat.beat();
        assert_eq!(watch.stuck(0, false, after(20)), None, "it turns again");
    }
}
