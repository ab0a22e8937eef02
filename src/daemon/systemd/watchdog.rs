//! Whether what must move does: the worker while it has something to do, the broker link's loop always.

use crate::transport::Pulse;
use std::time::{Duration, Instant};

/// The parts that may get stuck while the rest of the daemon goes on.
#[derive(Debug)]
pub(super) struct Watch {
    worker: Progress,
    link: Option<(Pulse, Progress)>,
}

impl Watch {
    /// A busy worker may stay at one step for `limit`, and so may the loop of the broker link, if there is one.
    pub fn new(limit: Duration, link: Option<Pulse>, now: Instant) -> Self {
        let link = link.map(|pulse| (pulse, Progress::new(limit, now)));
        Watch { worker: Progress::new(limit, now), link }
    }

    /// The part that is stuck, if one is: `steps` is the worker's count, `busy` whether it has something to do.
    pub fn stuck(&mut self, steps: u64, busy: bool, now: Instant) -> Option<&'static str> {
        let worker = self.worker.is_well(steps, busy, now);
        let link =
            self.link.as_mut().is_none_or(|(pulse, progress)| progress.is_well(pulse.beats(), true, now));
        match (worker, link) {
            (false, _) => Some("the worker"),
            (true, false) => Some("the broker link"),
            (true, true) => None,
        }
    }
}

/// Watches a count of steps.
#[derive(Debug)]
struct Progress {
    steps: u64,
    since: Instant,
    limit: Duration,
}

impl Progress {
    fn new(limit: Duration, now: Instant) -> Self {
        Progress { steps: 0, since: now, limit }
    }

    fn is_well(&mut self, steps: u64, busy: bool, now: Instant) -> bool {
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

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_busy_worker_that_takes_no_step_is_stuck() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::new(LIMIT, None, start);
        assert_eq!(watch.stuck(1, true, after(1)), None);
        assert_eq!(watch.stuck(1, true, after(10)), None);
        assert_eq!(watch.stuck(1, true, after(11)), Some("the worker"));
        assert_eq!(watch.stuck(2, true, after(12)), None, "it moves again");
        assert_eq!(watch.stuck(2, true, after(30)), Some("the worker"));
    }

    #[test]
    fn an_idle_worker_is_well_however_long() {
        let start = Instant::now();
        let mut watch = Watch::new(LIMIT, None, start);
        assert_eq!(watch.stuck(5, false, start + Duration::from_secs(1000)), None);
        assert_eq!(watch.stuck(5, true, start + Duration::from_secs(1009)), None);
    }

    #[test]
    fn a_link_whose_loop_stands_still_is_stuck_though_nobody_asks_anything() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let pulse = Pulse::default();
        let mut watch = Watch::new(LIMIT, Some(pulse.clone()), start);
        pulse.beat();
        assert_eq!(watch.stuck(0, false, after(9)), None);
        assert_eq!(watch.stuck(0, false, after(18)), None);
        assert_eq!(watch.stuck(0, false, after(19)), Some("the broker link"));
        pulse.beat();
        assert_eq!(watch.stuck(0, false, after(20)), None, "it turns again");
    }
}
