//! The idle power of the device, learned from the time in which nothing is computed. Deliberately knows neither
//! sensors nor requests.

use std::collections::VecDeque;

/// Seconds of idling per mean, and the number of means: together ten minutes of idling.
const MEAN_SECONDS: f64 = 10.0;
const MAX_MEANS: usize = 60;

/// The median of the last means. Other load on the device, for up to a third of the time, does not move it; a
/// lasting change of the idle power shows within five idle minutes.
#[derive(Debug, Default)]
pub(super) struct IdlePower {
    /// Energy of the mean under way.
    joules: f64,
    seconds: f64,
    /// In watts, oldest first.
    means: VecDeque<f64>,
    median: Option<f64>,
}

impl IdlePower {
    /// Adds the energy of some seconds in which nothing was computed.
    pub fn add(&mut self, joules: f64, seconds: f64) {
        self.joules += joules;
        self.seconds += seconds;
        if self.seconds < MEAN_SECONDS {
            return;
        }
        if self.means.len() >= MAX_MEANS {
            self.means.pop_front();
        }
        self.means.push_back(self.joules / self.seconds);
        (self.joules, self.seconds) = (0.0, 0.0);
        self.median = self.median_of_means();
    }

    /// The idle power in watts; `None` before ten seconds of idling.
    pub fn watts(&self) -> Option<f64> {
        self.median
    }

    fn median_of_means(&self) -> Option<f64> {
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
        let mut idle = IdlePower::default();
        (0..9).for_each(|_| idle.add(4.0, 1.0));
        assert_eq!(idle.watts(), None);
        idle.add(4.0, 1.0);
        assert_eq!(idle.watts(), Some(4.0));
    }

    #[test]
    fn what_else_runs_now_and_then_does_not_move_it() {
        let mut idle = IdlePower::default();
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
        let mut idle = IdlePower::default();
        (0..3600).for_each(|_| idle.add(4.0, 1.0));
        (0..290).for_each(|_| idle.add(5.0, 1.0));
        assert_eq!(idle.watts(), Some(4.0));
        (0..20).for_each(|_| idle.add(5.0, 1.0));
        assert_eq!(idle.watts(), Some(5.0));
        assert_eq!(idle.means.len(), MAX_MEANS);
    }
}
