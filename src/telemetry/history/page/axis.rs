//! The axes of a plot: round numbers on the left, round times below.
//!
//! Deliberately draws nothing.

use super::super::text::local;
use jiff::tz::TimeZone;

/// A scale of numbers: what its ends are, and where its labels stand.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ValueAxis {
    pub low: f64,
    pub high: f64,
    /// Each label with its value.
    pub labels: Vec<(f64, String)>,
}

/// About how many steps a scale has.
const STEPS: f64 = 5.0;

impl ValueAxis {
    /// A scale for values from `low` to `high`, whose ends are round.
    pub fn covering(low: f64, high: f64) -> Self {
        let high = if high > low { high } else { low + low.abs().max(1.0) };
        let step = round_step((high - low) / STEPS);
        let (first, last) = ((low / step).floor(), (high / step - 1e-9).ceil());
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let count = (last - first).round() as i64;
        let label = |at: i64| {
            let value = (first + at as f64) * step;
            (value, format!("{value:.digits$}"))
        };
        ValueAxis { low: first * step, high: last * step, labels: (0..=count).map(label).collect() }
    }

    /// How high a value stands: 0 at the lower end, 1 at the upper one.
    pub fn place(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten that is no less.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// A label of the time axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TimeLabel {
    /// 0 at the left end, 1 at the right one.
    pub place: f64,
    pub text: String,
    /// Whether it is left out where there is little width.
    pub is_minor: bool,
}

/// Distances of time labels in minutes, below a day.
const DISTANCES: [u32; 8] = [5, 10, 15, 30, 60, 120, 180, 360];
/// The most labels of one axis.
const MOST_LABELS: u32 = 9;
const DAY: u32 = 1440;

/// Labels at round times of a zone between two minutes since 1970. Each midnight has its date.
pub(super) fn time_labels(from: u32, to: u32, zone: &TimeZone) -> Vec<TimeLabel> {
    let span = to.saturating_sub(from).max(1);
    let distance = DISTANCES.into_iter().find(|distance| span / distance <= MOST_LABELS);
    let distance = distance.unwrap_or_else(|| DAY * span.div_ceil(MOST_LABELS * DAY));
    let is_round = |minute: u32| {
        let of_day: u32 = number(minute, zone, "%H") * 60 + number(minute, zone, "%M");
        match distance {
            days if days >= DAY => of_day == 0 && number(minute, zone, "%j").is_multiple_of(days / DAY),
            minutes => of_day.is_multiple_of(minutes),
        }
    };
    // All zones of today differ from UTC by multiples of 15 minutes.
    let raster = distance.min(15);
    let first = from.next_multiple_of(raster);
    let places = (first..to).step_by(raster as usize).filter(|minute| is_round(*minute));
    places
        .enumerate()
        .map(|(at, minute)| TimeLabel {
            place: f64::from(minute - from) / f64::from(span),
            text: match number(minute, zone, "%H") * 60 + number(minute, zone, "%M") {
                0 => local(minute, zone, "%-d %b"),
                _ => local(minute, zone, "%H:%M"),
            },
            is_minor: at % 2 == 1,
        })
        .collect()
}

fn number(minute: u32, zone: &TimeZone, format: &str) -> u32 {
    local(minute, zone, format).parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        ValueAxis::covering(low, high).labels.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn a_scale_has_round_numbers_and_covers_all_values() {
        assert_eq!(labels(0.0, 7.3), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(41.0, 83.0), ["40", "50", "60", "70", "80", "90"]);
        assert_eq!(labels(0.0, 0.31), ["0.0", "0.1", "0.2", "0.3", "0.4"]);
        assert_eq!(labels(0.0, 1024.0), ["0", "500", "1000", "1500"]);
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (-3.0, -3.0), (0.0, 1e9), (1e-6, 2e-6), (-12.0, 40.0)] {
            let axis = ValueAxis::covering(low, high);
            assert!(axis.low <= low && axis.high >= high && axis.high > axis.low, "{axis:?}");
            assert!((2..=7).contains(&axis.labels.len()), "{axis:?}");
        }
    }

    #[test]
    fn times_are_round_in_their_zone_and_midnight_has_its_date() {
        let texts = |from: u32, hours: u32, zone: &TimeZone| -> Vec<String> {
            time_labels(from, from + hours * 60, zone).into_iter().map(|label| label.text).collect()
        };
        let noon = 29_930_400 - 29_930_400 % DAY + 12 * 60;
        let day = texts(noon, 24, &TimeZone::UTC);
        assert_eq!(day, ["12:00", "15:00", "18:00", "21:00", "29 Nov", "03:00", "06:00", "09:00"]);
        let nepal = TimeZone::fixed(jiff::tz::Offset::from_seconds(5 * 3600 + 2700).expect("a zone"));
        assert_eq!(texts(noon, 24, &nepal)[..3], ["18:00", "21:00", "29 Nov"]);
        assert_eq!(texts(noon, 1, &TimeZone::UTC)[..3], ["12:00", "12:10", "12:20"]);
        for hours in 1..=720 {
            assert!((3..=10).contains(&texts(noon + 7, hours, &TimeZone::UTC).len()), "{hours}");
        }
    }
}
