//! What is raised now, as it was raised, and what was cleared in the last hours. Bounded: of a condition that comes and
//! goes all the time the latest are kept. Deliberately decides nothing.

use super::{Alert, State};
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long an alert that is over is listed.
const SPAN: Duration = Duration::from_secs(6 * 3600);
/// The most that are listed, so that the list fits a message: a list of this length has 32 KiB at most.
const MAX_PAST: usize = 64;

/// An alert that is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PastAlert {
    /// The alert as it was raised, but with the state `cleared`.
    #[serde(flatten)]
    pub alert: Alert,
    /// When it was cleared: RFC 3339, UTC.
    pub cleared_time: String,
    /// The reading then.
    pub cleared_value: f64,
}

/// The alerts that are raised, and those that were.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct AlertList {
    /// What is raised now, the oldest first.
    pub raised: Vec<Alert>,
    /// What was cleared in the last six hours, the latest first.
    pub recent: Vec<PastAlert>,
}

/// Remembers the changes of the alerts.
#[derive(Debug, Default)]
pub(super) struct AlertHistory {
    raised: Vec<Alert>,
    /// The oldest first.
    past: VecDeque<(Instant, PastAlert)>,
    changes: u64,
}

impl AlertHistory {
    /// Adds a change.
    pub fn record(&mut self, now: Instant, change: &Alert) {
        self.changes += 1;
        if change.state == State::Raised {
            return self.raised.push(change.clone());
        }
        let Some(at) = self.raised.iter().position(|alert| alert.kind == change.kind) else { return };
        let alert = Alert { state: State::Cleared, ..self.raised.remove(at) };
        let (cleared_time, cleared_value) = (change.time.clone(), change.value);
        self.past.push_back((now, PastAlert { alert, cleared_time, cleared_value }));
        if self.past.len() > MAX_PAST {
            self.past.pop_front();
        }
    }

    /// How many changes there were; two equal numbers mean that the same is raised.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// What is raised now, the oldest first.
    pub fn raised(&self) -> &[Alert] {
        &self.raised
    }

    /// Both lists as they are `now`.
    pub fn list(&self, now: Instant) -> AlertList {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < SPAN;
        let recent = self.past.iter().rev().take_while(|(at, _)| is_recent(at));
        AlertList { raised: self.raised.clone(), recent: recent.map(|(_, past)| past.clone()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Severity};
    use super::*;

    fn change(kind: Kind, state: State, value: f64) -> Alert {
        let (severity, message, time) = (Severity::Warning, "a remedy".into(), format!("at {value}"));
        Alert { kind, severity, message, value, threshold: 1.0, state, time }
    }

    #[test]
    fn what_is_cleared_is_listed_for_six_hours_with_both_values_and_times() {
        let (mut history, start) = (AlertHistory::default(), Instant::now());
        history.record(start, &change(Kind::Queue, State::Raised, 2.0));
        history.record(start, &change(Kind::Cpu, State::Raised, 3.0));
        assert_eq!(history.list(start).raised.len(), 2);
        history.record(start, &change(Kind::Queue, State::Cleared, 0.5));
        let list = history.list(start + SPAN - Duration::from_secs(1));
        assert_eq!(list.raised, [change(Kind::Cpu, State::Raised, 3.0)]);
        let json = serde_json::to_value(&list.recent).expect("plain data");
        let expected = serde_json::json!([{
            "type": "queue", "severity": "warning", "message": "a remedy", "value": 2.0, "threshold": 1.0,
            "state": "cleared", "time": "at 2", "cleared_time": "at 0.5", "cleared_value": 0.5,
        }]);
        assert_eq!((json, history.changes()), (expected, 3));
        assert_eq!(history.list(start + SPAN).recent, []);
    }

    #[test]
    fn an_alert_that_comes_and_goes_takes_bounded_memory_and_the_latest_come_first() {
        let (mut history, now) = (AlertHistory::default(), Instant::now());
        for n in 0..1000 {
            history.record(now, &change(Kind::Queue, State::Raised, f64::from(n)));
            history.record(now, &change(Kind::Queue, State::Cleared, 0.0));
        }
        let list = history.list(now);
        assert_eq!((list.raised.len(), list.recent.len()), (0, MAX_PAST));
        assert_eq!((list.recent[0].alert.value, list.recent[MAX_PAST - 1].alert.value), (999.0, 936.0));
    }
}
