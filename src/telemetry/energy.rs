//! Energy from power over time.

use std::time::Instant;

/// How many moments are remembered; 24 bytes each. At one sample a second the last two minutes are
/// remembered to the second, and what lies before ever more coarsely.
const MOST_POINTS: usize = 256;

/// Adds up the energy of a device whose power is sampled now and then.
///
/// A sample stands for the time since the one before. So it is exact where the power was itself
/// derived from an energy counter, and the error of a momentary reading does not grow with time.
#[derive(Debug, Default)]
pub struct Meter {
    points: Vec<Point>,
    /// The last reading: stands for the time after it until the next one comes.
    watts: Option<f64>,
    /// Whether there ever was a reading.
    known: bool,
}

/// What had been used up at one moment.
#[derive(Debug, Clone, Copy)]
struct Point {
    at: Instant,
    joules: f64,
    /// Seconds for which the power was not known.
    unknown_s: f64,
}

impl Point {
    /// The sums at `at` if the power was `watts` since.
    fn after(self, at: Instant, watts: Option<f64>) -> Self {
        let seconds = at.saturating_duration_since(self.at).as_secs_f64();
        Point {
            at,
            joules: self.joules + watts.map_or(0.0, |watts| watts * seconds),
            unknown_s: self.unknown_s + watts.map_or(seconds, |_| 0.0),
        }
    }

    /// The sums at `at`, between this point and the `next`.
    fn towards(self, next: Point, at: Instant) -> Self {
        let share = (at - self.at).as_secs_f64() / (next.at - self.at).as_secs_f64();
        let between = |a: f64, b: f64| a + (b - a) * share;
        Point {
            at,
            joules: between(self.joules, next.joules),
            unknown_s: between(self.unknown_s, next.unknown_s),
        }
    }
}

impl Meter {
    /// Takes the power read at `now`; `None` where it could not be read.
    pub fn sample(&mut self, now: Instant, watts: Option<f64>) {
        let first = Point { at: now, joules: 0.0, unknown_s: 0.0 };
        let point = match self.points.last() {
            Some(last) if last.at >= now => return,
            Some(last) => last.after(now, watts),
            None => first,
        };
        if self.points.len() >= MOST_POINTS {
            self.thin();
        }
        self.points.push(point);
        self.known |= watts.is_some();
        self.watts = watts;
    }

    /// Energy since the first sample, in joules; `None` where no power was ever read.
    pub fn joules(&self) -> Option<f64> {
        self.points.last().filter(|_| self.known).map(|last| last.joules)
    }

    /// Energy of a span of time, in joules; `None` where the power was not known throughout.
    ///
    /// What lies after the last sample counts at its power: take one sample at the end of a request
    /// before asking what it cost, or a short request is charged at the idle power before it.
    pub fn between(&self, start: Instant, end: Instant) -> Option<f64> {
        let (before, after) = (self.at(start)?, self.at(end)?);
        let known = self.known && after.unknown_s <= before.unknown_s;
        known.then_some((after.joules - before.joules).max(0.0))
    }

    /// The sums at one moment; `None` before the first sample.
    fn at(&self, moment: Instant) -> Option<Point> {
        let next = self.points.partition_point(|point| point.at <= moment);
        let last = *self.points.get(next.checked_sub(1)?)?;
        match self.points.get(next) {
            Some(next) => Some(last.towards(*next, moment)),
            None => Some(last.after(moment, self.watts)),
        }
    }

    /// Forgets every second moment of the older half. The sums at the others stay exact.
    fn thin(&mut self) {
        let (half, mut index) = (self.points.len() / 2, 0);
        self.points.retain(|_| {
            index += 1;
            index > half || index % 2 == 1
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    /// An hour of 4 W idle with 8 W for 20 s of every 60 s, sampled about once a second.
    fn hour(start: Instant) -> Meter {
        let mut meter = Meter::default();
        let mut seconds = 0.0;
        while seconds <= 3600.0 {
            let watts = if seconds % 60.0 < 20.0 { 8.0 } else { 4.0 };
            meter.sample(after(start, seconds), Some(watts));
            seconds += if (seconds as u64).is_multiple_of(3) { 0.9 } else { 1.05 };
        }
        meter
    }

    #[test]
    fn the_energy_of_an_hour_is_right_within_one_percent() {
        let joules = hour(Instant::now()).joules().expect("power was read");
        let exact = 60.0 * (20.0 * 8.0 + 40.0 * 4.0);
        assert!((joules / exact - 1.0).abs() < 0.01, "{joules} for {exact}");
    }

    #[test]
    fn a_span_is_charged_what_was_drawn_in_it() {
        let start = Instant::now();
        let meter = hour(start);
        let joules = meter.between(after(start, 3541.5), after(start, 3558.5)).expect("known");
        assert!((joules / (17.0 * 8.0) - 1.0).abs() < 0.01, "{joules}");
        let whole = meter.between(start, after(start, 3600.0)).expect("known");
        assert!((whole / (60.0 * 320.0) - 1.0).abs() < 0.01, "{whole}");
    }

    #[test]
    fn memory_is_bounded_and_the_last_minute_is_remembered_to_the_second() {
        let meter = hour(Instant::now());
        assert!(meter.points.len() <= MOST_POINTS);
        let last = &meter.points[meter.points.len() - 60..];
        assert!(last.windows(2).all(|pair| pair[1].at - pair[0].at < Duration::from_millis(1100)));
    }

    #[test]
    fn time_after_the_last_sample_counts_at_its_power() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.sample(start, Some(5.0));
        assert_eq!(meter.between(after(start, 1.0), after(start, 3.0)), Some(10.0));
    }

    #[test]
    fn without_a_reading_there_is_no_energy() {
        let start = Instant::now();
        let mut meter = Meter::default();
        assert_eq!((meter.joules(), meter.between(start, start)), (None, None));
        meter.sample(start, None);
        meter.sample(after(start, 1.0), None);
        assert_eq!((meter.joules(), meter.between(start, start)), (None, None));
    }

    #[test]
    fn a_span_with_a_gap_in_it_has_no_energy_but_others_have() {
        let start = Instant::now();
        let mut meter = Meter::default();
        let trace = [Some(5.0), Some(5.0), None, Some(5.0), Some(5.0)];
        for (second, watts) in trace.into_iter().enumerate() {
            meter.sample(after(start, second as f64), watts);
        }
        assert_eq!(meter.between(start, after(start, 4.0)), None);
        assert_eq!(meter.between(start, after(start, 1.0)), Some(5.0));
        assert_eq!(meter.between(after(start, 2.0), after(start, 4.0)), Some(10.0));
        assert_eq!(meter.between(start - Duration::from_secs(1), after(start, 1.0)), None);
    }

    #[test]
    fn a_sample_out_of_order_changes_nothing() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.sample(after(start, 1.0), Some(5.0));
        meter.sample(start, Some(500.0));
        meter.sample(after(start, 2.0), Some(5.0));
        assert_eq!(meter.joules(), Some(5.0));
    }
}
