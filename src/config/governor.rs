//! The checks of the section `[governor]`.
//!
//! Deliberately knows neither sensors nor the time of day.

use super::key_error::{KeyError, KeyResult, within};
use std::fmt;
use std::str::FromStr;

/// When the daemon computes less than it could.
#[derive(Debug, Clone, PartialEq)]
pub struct Governor {
    /// The temperature of the processor that is not exceeded, in degrees Celsius.
    pub target_c: Option<f64>,
    /// The power of the board that is not exceeded, in watts.
    pub limit_watts: Option<f64>,
    /// Hours of each day with reduced effort.
    pub quiet_hours: Option<DailyHours>,
    /// Whether effort is reduced while the machine runs on its battery.
    pub on_battery: bool,
    /// The reduced effort, in percent of all threads.
    pub reduced_percent: u8,
}

/// A part of each day, in local time; it may include midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DailyHours {
    /// Minutes since midnight.
    start: u16,
    end: u16,
}

impl DailyHours {
    /// Whether a minute of the day, counted from midnight, is within these hours; the last one is not.
    pub fn contains(self, minute: u16) -> bool {
        let DailyHours { start, end } = self;
        if start < end { (start..end).contains(&minute) } else { minute >= start || minute < end }
    }
}

impl FromStr for DailyHours {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "no hours; write them as \"22:00-07:00\"";
        let minute = |text: &str| {
            let (hours, minutes) = text.split_once(':')?;
            let number = |text: &str, below: u16| {
                let is_number =
                    (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
                is_number.then(|| text.parse().ok()).flatten().filter(|number: &u16| *number < below)
            };
            let minute = 60 * number(hours, 25)? + number(minutes, 60)?;
            (minute <= 24 * 60).then_some(minute)
        };
        let (start, end) = text.split_once('-').ok_or(wrong)?;
        let (start, end) = minute(start.trim()).zip(minute(end.trim())).ok_or(wrong)?;
        let start = start % (24 * 60);
        if start == end {
            Err("begin and end are equal; leave the key out, or give other hours")
        } else {
            Ok(DailyHours { start, end })
        }
    }
}

impl fmt::Display for DailyHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DailyHours { start, end } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", start / 60, start % 60, end / 60, end % 60)
    }
}

/// The values of the section, as they are written.
pub(super) struct Written {
    pub target_c: Option<f64>,
    pub limit_watts: Option<f64>,
    pub quiet_hours: Option<String>,
    pub on_battery: Option<bool>,
    pub reduced_percent: Option<u64>,
}

pub(super) fn checked(written: Written) -> KeyResult<Governor> {
    let Written { target_c, limit_watts, quiet_hours, on_battery, reduced_percent } = written;
    let hours = quiet_hours.filter(|text| !text.is_empty()).map(|text| text.parse()).transpose();
    let hours = hours.map_err(|reason: &str| KeyError("governor", "quiet_hours", reason.into()))?;
    Ok(Governor {
        target_c: between("target_c", target_c, 40.0, 100.0, "degrees Celsius")?,
        limit_watts: between("limit_watts", limit_watts, 0.5, 2000.0, "watts")?,
        quiet_hours: hours,
        on_battery: on_battery.unwrap_or(false),
        reduced_percent: within("governor", "reduced_percent", reduced_percent.unwrap_or(50), 10..=100)?
            as u8,
    })
}

/// 0 is as good as leaving the key out.
fn between(
    key: &'static str,
    value: Option<f64>,
    least: f64,
    most: f64,
    unit: &str,
) -> KeyResult<Option<f64>> {
    match value {
        None => Ok(None),
        Some(0.0) => Ok(None),
        Some(value) if (least..=most).contains(&value) => Ok(Some(value)),
        Some(value) => {
            let reason = format!("{value} is outside {least} to {most} {unit}; 0 sets no limit");
            Err(KeyError("governor", key, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(text: &str) -> DailyHours {
        text.parse().expect("sound")
    }

    #[test]
    fn hours_may_include_midnight() {
        let night = hours("22:00-7:30");
        let within = |minute| night.contains(minute);
        assert!(within(22 * 60) && within(23 * 60 + 59) && within(0) && within(7 * 60 + 29));
        assert!(!within(7 * 60 + 30) && !within(12 * 60) && !within(21 * 60 + 59));
        let noon = hours(" 12:00 - 13:00 ");
        assert!(noon.contains(12 * 60) && !noon.contains(13 * 60) && !noon.contains(0));
        assert_eq!(night.to_string(), "22:00-07:30");
        assert!((0..24 * 60).all(|minute| hours("0:00-24:00").contains(minute)));
    }

    #[test]
    fn what_are_no_hours_is_refused() {
        for wrong in [
            "",
            "22",
            "22-7",
            "22:00",
            "24:01-07:00",
            "22:60-07:00",
            "-1:00-07:00",
            "22:00-+7:00",
            "22:00-7:000",
            "7:00-07:00",
        ] {
            assert!(wrong.parse::<DailyHours>().is_err(), "{wrong}");
        }
    }
}
