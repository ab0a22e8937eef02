//! The history: the last 24 hours in steps of one minute and the last 30 days in steps of 15 minutes, in fixed memory; the
//! file that it outlives the process in; and the report of it, as text, as data and as a page with plots.
//!
//! Times of steps are minutes of the wall clock, durations are measured with the monotonic clock. Deliberately knows no
//! engine, no transport and no client, and writes nothing by itself: the daemon says when.

mod column;
mod data;
pub mod file;
pub mod format;
mod page;
mod record;
mod request;
mod ring;
mod step;
mod summary;
#[cfg(test)]
mod tests;
mod text;

pub use column::{COLUMNS, StepColumn};
pub use page::CONTENT_POLICY;
pub use record::{LatencyColumns, StepRecord, latency_percentiles};
pub use request::{MAX_HOURS, ReportForm, ReportRequest, price};
pub use ring::StepRing;
pub use step::{HistoryCounts, HistorySample, LatencyHistograms};
pub use summary::{HistoryReport, HistorySummary, ReportSubject};

use jiff::tz::TimeZone;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use step::OpenStep;

/// Steps of one minute: 24 hours.
const MINUTES: (u32, usize) = (1, 1440);
/// Steps of 15 minutes: 30 days.
const QUARTERS: (u32, usize) = (15, 2880);

/// Memory of the history, in bytes: its steps (355 KiB), a copy of them while they are written or reported, and one report,
/// whose longest form, 30 days as JSON, is 700 KiB and has twice that while it grows.
pub const HISTORY_BYTES: usize = 2 << 20;

/// The longest time between two samples that counts as observed: when it is longer, the machine slept or the process was
/// stopped, and nobody knows what happened.
const MAX_SAMPLE_GAP: Duration = Duration::from_secs(10);
/// A difference between the two clocks that is a jump of the wall clock.
const JUMP: Duration = Duration::from_secs(60);
/// How long the wall clock has to go without a jump, until steps that lie in its future are known to be wrong. A board
/// without a battery starts with an old time, and has the right one once it has reached a time server.
const CLOCK_SETTLES: Duration = Duration::from_secs(3600);

/// The steps of both lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct HistorySteps {
    /// One minute each.
    pub minutes: StepRing,
    /// 15 minutes each.
    pub quarters: StepRing,
}

impl Default for HistorySteps {
    fn default() -> Self {
        HistorySteps {
            minutes: StepRing::new(MINUTES.0, MINUTES.1),
            quarters: StepRing::new(QUARTERS.0, QUARTERS.1),
        }
    }
}

/// The history, as it is observed.
#[derive(Debug)]
pub struct History {
    steps: HistorySteps,
    open_minute: Option<OpenStep>,
    open_quarter: Option<OpenStep>,
    last: Option<LastSample>,
}

#[derive(Debug, Clone, Copy)]
struct LastSample {
    at: Instant,
    wall: SystemTime,
    counts: HistoryCounts,
    /// Since when the wall clock has not jumped.
    steady_since: Instant,
}

impl History {
    /// The history of a daemon that just started, behind what is known of earlier ones.
    pub fn new(steps: HistorySteps) -> Self {
        History { steps, open_minute: None, open_quarter: None, last: None }
    }

    /// Adds a sample, to be called about once a second. `latencies`: since the daemon started.
    pub fn observe(
        &mut self,
        now: Instant,
        wall: SystemTime,
        sample: &HistorySample,
        latencies: LatencyHistograms<'_>,
    ) {
        let is_first = self.last.is_none();
        let last = self.last.unwrap_or(LastSample {
            at: now,
            wall,
            counts: HistoryCounts::default(),
            steady_since: now,
        });
        let passed = now.saturating_duration_since(last.at);
        let seconds = if passed > MAX_SAMPLE_GAP { 0.0 } else { passed.as_secs_f64() };
        let counted = sample.counts.since(&last.counts);
        let steady_since = if has_jumped(last.wall, wall, passed) { now } else { last.steady_since };
        self.last = Some(LastSample { at: now, wall, counts: sample.counts, steady_since });

        let minute = minute_of(wall);
        let is_settled = now.saturating_duration_since(steady_since) >= CLOCK_SETTLES;
        let future_from = is_settled.then_some(minute);
        let open = [
            (&mut self.open_minute, &mut self.steps.minutes),
            (&mut self.open_quarter, &mut self.steps.quarters),
        ];
        for (open, ring) in open {
            let begins = minute - minute % ring.length();
            let starts = u32::from(is_first);
            let step = open.get_or_insert_with(|| OpenStep::new(begins, ring.length(), starts, latencies));
            // What happened until now belongs to the step that is about to end.
            step.add(sample, &counted, seconds);
            if step.minute() != begins {
                ring.add(step.record(latencies), future_from);
                *step = OpenStep::new(begins, ring.length(), 0, latencies);
            }
        }
    }

    /// All steps, those that are being observed included, as they are now.
    pub fn steps(&self, latencies: LatencyHistograms<'_>) -> HistorySteps {
        let mut steps = self.steps.clone();
        for (open, ring) in
            [(&self.open_minute, &mut steps.minutes), (&self.open_quarter, &mut steps.quarters)]
        {
            if let Some(step) = open {
                ring.add(step.record(latencies), None);
            }
        }
        steps
    }
}

/// Whether the wall clock was set between two samples that `passed` lies between.
fn has_jumped(before: SystemTime, after: SystemTime, passed: Duration) -> bool {
    let expected = before.checked_add(passed).unwrap_or(before);
    let difference = after.duration_since(expected).unwrap_or_else(|error| error.duration());
    difference > JUMP
}

/// Minutes since 1970; 0 before that.
pub fn minute_of(time: SystemTime) -> u32 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(seconds / 60).unwrap_or(u32::MAX)
}

/// The time of a minute since 1970.
pub fn time_of(minute: u32) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::from(minute) * 60)
}

/// A report in the form that is asked for; people read the times of `zone` in it, programs UTC.
pub fn render(
    history: &HistorySteps,
    subject: ReportSubject<'_>,
    request: &ReportRequest,
    now: SystemTime,
    zone: &TimeZone,
) -> Vec<u8> {
    let report = HistoryReport::new(history, subject, request, now);
    match request.form {
        ReportForm::Html => page::page(&report, zone).into_bytes(),
        ReportForm::Text => text::text(&report, zone).into_bytes(),
        ReportForm::Json => data::json(&report),
        ReportForm::Csv => data::csv(&report),
    }
}
