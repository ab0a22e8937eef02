//! `strftime_now`: the date as templates ask for it, in the zone of the machine as Hugging Face has it.

use jiff::ZonedDateTime;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// What gives the time; the engine reads no clock of its own.
#[derive(Debug, Clone, Copy)]
pub struct LocalClock(fn() -> ZonedDateTime);

impl Default for LocalClock {
    /// The first of January 1970, for callers to whom the date is the same.
    fn default() -> Self {
        LocalClock(|| jiff::Timestamp::UNIX_EPOCH.to_zoned_datetime(TimeZone::UTC))
    }
}

/// What Python's `strftime` writes alike on every system, and jiff too.
const OFFERED: &str = "YymdeBbhAaHIMSpjwuFTDRZz%";

impl LocalClock {
    /// A clock that `now` reads.
    pub fn new(now: fn() -> ZonedDateTime) -> Self {
        LocalClock(now)
    }

    /// The time as Python's `strftime` writes it in the C locale.
    pub(super) fn strftime(self, format: &str) -> Result<String, String> {
        let wrong = || format!("strftime_now: the format {format:?} has a part that is not offered");
        let mut chars = format.chars();
        // Hugging Face's time knows no zone: Python leaves those parts empty.
        let mut plain = String::new();
        while let Some(c) = chars.next() {
            if c != '%' {
                plain.push(c);
                continue;
            }
            let code = chars.next().ok_or_else(wrong)?;
            let (flag, code) = if code == '-' { ("-", chars.next().ok_or_else(wrong)?) } else { ("", code) };
            match code {
                'Z' | 'z' => {}
                'X' => plain.push_str("%H:%M:%S"),
                'x' => plain.push_str("%m/%d/%y"),
                'c' => plain.push_str("%a %b %e %H:%M:%S %Y"),
                code if OFFERED.contains(code) => {
                    plain.extend(["%", flag].into_iter().chain([code.to_string().as_str()]))
                }
                _ => return Err(wrong()),
            }
        }
        strtime::format(&plain, &(self.0)()).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::LocalClock;
    use jiff::Timestamp;
    use jiff::tz::{TimeZone, offset};

    #[test]
    fn dates_are_written_as_python_writes_them_in_the_zone_of_the_clock() {
        let at = |clock: fn() -> jiff::ZonedDateTime| {
            LocalClock::new(clock)
                .strftime("%a %A %d %-d %b %B %Y %y %H:%M:%S %p %I %j %D%Z")
                .expect("offered")
        };
        assert_eq!(
            at(|| Timestamp::from_second(951_827_696).expect("a time").to_zoned_datetime(TimeZone::UTC)),
            "Tue Tuesday 29 29 Feb February 2000 00 12:34:56 PM 12 060 02/29/00"
        );
        assert_eq!(
            at(|| Timestamp::from_second(1_735_689_599)
                .expect("a time")
                .to_zoned_datetime(TimeZone::fixed(offset(1)))),
            "Wed Wednesday 01 1 Jan January 2025 25 00:59:59 AM 12 001 01/01/25"
        );
        for wrong in ["%Q", "%", "%s", "%-"] {
            assert!(LocalClock::default().strftime(wrong).is_err(), "{wrong}");
        }
    }
}
