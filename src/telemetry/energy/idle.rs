//! The power of the device while nothing is computed, learned from seconds in which nothing was.

use std::collections::VecDeque;

/// Seconds of idling that become one mean, and how many of these are kept: ten minutes of idling.
const SECONDS: f64 = 10.0;
const MEANS: usize = 60;

/// The median of the last means: what else runs on the device now and then, for a third of the time, does not
/// move it, and a device that draws another power from now on is followed within five idle minutes.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Of the mean being made.
    joules: f64,
    seconds: f64,
    /// In watts, oldest first.
    means: VecDeque<f64>,
    median: Option<f64>,
}

impl Idle {
    /// Takes what was drawn in some seconds in which nothing was computed.
    pub fn add(&mut self, joules: f64, seconds: f64) {
        self.joules += joules;
        self.seconds += seconds;
        if self.seconds < SECONDS {
            return;
        }
        if self.means.len() >= MEANS {
            self.means.pop_front();
        }
        self.means.push_back(self.joules / self.seconds);
        (self.joules, self.seconds) = (0.0, 0.0);
        self.median = self.middle();
    }

    /// In watts; `None` before ten seconds of idling.
    pub fn watts(&self) -> Option<f64> {
        self.median
    }

    fn middle(&self) -> Option<f64> {
        let mut means: Vec<f64> = self.means.iter().copied().collect();
        means.sort_unstable_by(f64::total_cmp);
        let (low, high) = (means.get(means.len().checked_sub(1)? / 2)?, means.get(means.len() / 2)?);
        Some((low + high) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_after_ten_seconds_and_not_before() {
        let mut idle = Idle::default();
        (0..9).for_each(|_| idle.add(4.0, 1.0));
        assert_eq!(idle.watts(), None);
        idle.add(4.0, 1.0);
        assert_eq!(idle.watts(), Some(4.0));
    }

    #[test]
    fn what_else_runs_now_and_then_does_not_move_it() {
        let mut idle = Idle::default();
        for second in 0..3600 {
            // Another program for 18 of every 60 seconds; a reading is off by a tenth of a watt.
            let watts = if second % 60 < 18 { 9.0 } else { 4.0 };
            idle.add(watts + f64::from(second * 7919 % 21 - 10) * 0.01, 1.0);
        }
        let watts = idle.watts().expect("an hour of it");
        assert!((watts - 4.0).abs() < 0.05, "{watts}");
    }

    #[test]
    fn a_device_that_draws_another_power_from_now_on_is_followed_within_five_minutes() {
        let mut idle = Idle::default();
        (0..3600).for_each(|_| idle.add(4.0, 1.0));
        (0..290).for_each(|_| idle.add(5.0, 1.0));
        assert_eq!(idle.watts(), Some(4.0));
        (0..20).for_each(|_| idle.add(5.0, 1.0));
        assert_eq!(idle.watts(), Some(5.0));
        assert_eq!(idle.means.len(), MEANS);
    }
}
