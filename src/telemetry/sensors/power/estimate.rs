//! Power estimated from the load, between two values that the owner measured once: with the board idle, and with
//! all its processors busy.
//!
//! It is a linear interpolation, and boards are not linear: the clock drops when idle and when hot, and disks,
//! radios and USB devices draw power of their own. So it is labelled as an estimate wherever it appears.
//! Deliberately knows no sensor but the load.

use super::watts;
use crate::config::BoardWatts;
use crate::protocol::{Method, Reading};
use crate::telemetry::energy::MIN_ESTIMATE_INTERVAL;
use crate::telemetry::sensors::rolling_mean::CpuTicks;
use crate::telemetry::sensors::sysfs::Root;
use std::time::Instant;

pub(super) const SCOPE: &str = "board";
pub(super) const SOURCE: &str = "telemetry.idle_watts and full_watts, by the load in /proc/stat";

/// An estimate since the last reading. Asked again too soon it returns the same value, since a load over a shorter
/// time would consist of a few ticks of 10 ms. Unlike the load in the reports it covers the time since the last
/// reading, so that the energy of a short answer is attributed to it.
#[derive(Debug)]
pub(super) struct LoadEstimate {
    board: BoardWatts,
    before: Option<(Instant, CpuTicks)>,
    watts: Option<f64>,
}

impl LoadEstimate {
    pub fn new(board: BoardWatts) -> Self {
        LoadEstimate { board, before: None, watts: None }
    }

    /// Whether the load of this machine can be read.
    pub fn can_read(root: &Root) -> bool {
        CpuTicks::read(root).is_some()
    }

    pub fn read(&mut self, root: &Root, now: Instant) -> Option<Reading> {
        let value = self.update(CpuTicks::read(root), now)?;
        Some(watts(value, Method::Estimated, SOURCE.into(), SCOPE))
    }

    fn update(&mut self, ticks: Option<CpuTicks>, now: Instant) -> Option<f64> {
        let Some(ticks) = ticks else {
            (self.before, self.watts) = (None, None);
            return None;
        };
        let elapsed = self.before.map(|(then, _)| now.saturating_duration_since(then));
        if elapsed.is_none_or(|elapsed| elapsed >= MIN_ESTIMATE_INTERVAL) {
            let load = self.before.and_then(|(_, before)| ticks.load_since(before));
            self.watts = load.map(|load| self.board.idle + (self.board.full - self.board.idle) * load);
            self.before = Some((now, ticks));
        }
        self.watts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The estimates of a board of 3 to 8 W after these busy and all ticks, at these milliseconds.
    fn estimates(readings: &[(u64, Option<(u64, u64)>)]) -> Vec<Option<f64>> {
        let start = Instant::now();
        let mut estimate = LoadEstimate::new(BoardWatts { idle: 3.0, full: 8.0 });
        let mut follow = |(ms, ticks): &(u64, Option<(u64, u64)>)| {
            let ticks = ticks.map(|(busy, all)| CpuTicks { busy, all });
            estimate.update(ticks, start + Duration::from_millis(*ms))
        };
        readings.iter().map(&mut follow).collect()
    }

    #[test]
    fn the_estimate_is_on_the_line_between_rest_and_work() {
        let message = estimates(&[
            (0, Some((0, 400))),
            (1000, Some((0, 800))),
            (2000, Some((400, 1200))),
            (3000, Some((500, 1600))),
        ]);
        assert_eq!(message, [None, Some(3.0), Some(8.0), Some(4.25)]);
    }

    #[test]
    fn asked_too_soon_it_returns_the_last_estimate() {
        let message = estimates(&[
            (0, Some((0, 400))),
            (50, Some((40, 440))),
            (100, Some((40, 480))),
            (150, Some((80, 520))),
        ]);
        assert_eq!(message, [None, None, Some(5.5), Some(5.5)]);
    }

    #[test]
    fn a_load_that_was_hidden_for_a_while_is_not_compared_with_an_old_one() {
        let message = estimates(&[(0, Some((0, 400))), (1000, None), (2000, Some((400, 1200)))]);
        assert_eq!(message, [None, None, None]);
    }
}
