//! When a report is due: every interval, and shortly after an event that people wait to see, such as an alert.
//!
//! Pure: the time is passed in. Deliberately knows no report.

use std::time::Duration;
use tokio::time::Instant;

/// Delay of an extra report, so that events at the same time are in one report.
const EXTRA_DELAY: Duration = Duration::from_millis(200);
/// Shortest time between an extra report and the one before it.
const MIN_EXTRA_INTERVAL: Duration = Duration::from_secs(1);

/// The reports that were made and that were requested.
#[derive(Debug)]
pub(super) struct ReportSchedule {
    /// The last regular report.
    regular: Instant,
    /// The last report of either kind.
    last: Option<Instant>,
    /// When an extra report is due.
    extra: Option<Instant>,
}

impl ReportSchedule {
    /// A schedule whose first interval begins now.
    pub fn new(now: Instant) -> Self {
        ReportSchedule { regular: now, last: None, extra: None }
    }

    /// Requests a report before the interval ends.
    pub fn request_extra(&mut self, now: Instant) {
        let soon =
            self.last.map_or(now + EXTRA_DELAY, |last| (now + EXTRA_DELAY).max(last + MIN_EXTRA_INTERVAL));
        self.extra.get_or_insert(soon);
    }

    /// When the next report is due.
    pub fn due(&self, interval: Duration) -> Instant {
        let regular = self.regular + interval;
        self.extra.map_or(regular, |extra| extra.min(regular))
    }

    /// Records that a report is made. A regular one begins the next interval, an extra one does not.
    pub fn record(&mut self, now: Instant, interval: Duration) {
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
        let mut timetable = ReportSchedule::new(start);
        assert_eq!(timetable.due(HOUR), start + HOUR);
        let now = start + Duration::from_secs(60);
        timetable.request_extra(now);
        timetable.request_extra(now + EXTRA_DELAY / 2);
        assert_eq!(timetable.due(HOUR), now + EXTRA_DELAY);
        timetable.record(now + EXTRA_DELAY, HOUR);
        assert_eq!(timetable.due(HOUR), start + HOUR);
        timetable.record(start + HOUR, HOUR);
        assert_eq!(timetable.due(HOUR), start + 2 * HOUR);
    }

    #[test]
    fn however_often_something_happens_there_is_one_a_second_at_most() {
        let start = Instant::now();
        let mut timetable = ReportSchedule::new(start);
        let (mut now, mut made) = (start, 0);
        while now < start + Duration::from_secs(60) {
            timetable.request_extra(now);
            if now >= timetable.due(HOUR) {
                timetable.record(now, HOUR);
                made += 1;
            }
            now += Duration::from_millis(10);
        }
        assert_eq!(made, 60);
    }

    #[test]
    fn a_regular_report_replaces_a_pending_extra_one() {
        let start = Instant::now();
        let mut timetable = ReportSchedule::new(start);
        timetable.request_extra(start + HOUR - EXTRA_DELAY / 2);
        assert_eq!(timetable.due(HOUR), start + HOUR);
        timetable.record(start + HOUR, HOUR);
        assert_eq!(timetable.due(HOUR), start + 2 * HOUR);
    }
}
