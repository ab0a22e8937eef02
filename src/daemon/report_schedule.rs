//! When a report is due: every interval, and shortly after something that people wait to see.
//!
//! Pure; time comes in.

use std::time::Duration;
use tokio::time::Instant;

/// From what happened to the report of it: what happens together is in one.
const SOON: Duration = Duration::from_millis(200);
/// Between an extra report and the one before it, whoever asks how often.
const PAUSE: Duration = Duration::from_secs(1);

/// The reports made and asked for.
#[derive(Debug)]
pub(super) struct Timetable {
    /// The last regular one.
    regular: Instant,
    /// The last of either kind.
    last: Option<Instant>,
    /// When one is due out of turn.
    extra: Option<Instant>,
}

impl Timetable {
    /// The first interval begins now.
    pub fn new(now: Instant) -> Self {
        Timetable { regular: now, last: None, extra: None }
    }

    /// Something happened that is not to wait for the interval to end.
    pub fn hurry(&mut self, now: Instant) {
        let soon = self.last.map_or(now + SOON, |last| (now + SOON).max(last + PAUSE));
        self.extra.get_or_insert(soon);
    }

    /// When the next is due.
    pub fn due(&self, interval: Duration) -> Instant {
        let regular = self.regular + interval;
        self.extra.map_or(regular, |extra| extra.min(regular))
    }

    /// One is made. A regular one begins the next interval; one out of turn does not.
    pub fn made(&mut self, now: Instant, interval: Duration) {
        if now >= self.regular + interval {
            self.regular = now;
        }
        (self.last, self.extra) = (Some(now), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn what_happens_together_is_reported_once_and_soon_and_the_interval_goes_on() {
        let start = Instant::now();
        let mut timetable = Timetable::new(start);
        assert_eq!(timetable.due(HOUR), start + HOUR);
        let now = start + Duration::from_secs(60);
        timetable.hurry(now);
        timetable.hurry(now + SOON / 2);
        assert_eq!(timetable.due(HOUR), now + SOON);
        timetable.made(now + SOON, HOUR);
        assert_eq!(timetable.due(HOUR), start + HOUR);
        timetable.made(start + HOUR, HOUR);
        assert_eq!(timetable.due(HOUR), start + 2 * HOUR);
    }

    #[test]
    fn however_often_something_happens_there_is_one_a_second_at_most() {
        let start = Instant::now();
        let mut timetable = Timetable::new(start);
        let (mut now, mut made) = (start, 0);
        while now < start + Duration::from_secs(60) {
            timetable.hurry(now);
            if now >= timetable.due(HOUR) {
                timetable.made(now, HOUR);
                made += 1;
            }
            now += Duration::from_millis(10);
        }
        assert_eq!(made, 60);
    }

    #[test]
    fn a_regular_report_says_what_an_extra_one_was_to_say() {
        let start = Instant::now();
        let mut timetable = Timetable::new(start);
        timetable.hurry(start + HOUR - SOON / 2);
        assert_eq!(timetable.due(HOUR), start + HOUR);
        timetable.made(start + HOUR, HOUR);
        assert_eq!(timetable.due(HOUR), start + 2 * HOUR);
    }
}
