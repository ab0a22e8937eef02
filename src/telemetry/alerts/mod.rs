//! Alerts for the owner of the device: each is raised once when a condition has lasted for long enough, and cleared
//! once when it is over.
//!
//! Pure: readings and the time come in, changes go out. Deliberately knows no sensor, no broker and no journal.

mod error_rate;
mod history;
mod rules;
#[cfg(test)]
mod tests;

pub use history::{AlertList, PastAlert};

use super::rfc3339;
use crate::config;
use error_rate::ErrorRate;
use history::AlertHistory;
use rules::Rule;
use serde::Serialize;
use std::time::{Duration, Instant, SystemTime};

/// How long a reading may be missing before its alert is cleared as unknown.
const MAX_READING_GAP: Duration = Duration::from_secs(60);

/// The kinds of alerts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The processor is hot.
    Temperature,
    /// The firmware throttles the processor.
    Throttled,
    /// The supply's voltage is too low.
    UnderVoltage,
    /// The process uses nearly all of its memory budget.
    Memory,
    /// All processors of the host are busy.
    Cpu,
    /// Tokens are generated slowly.
    SlowTokens,
    /// Many requests fail for a reason that lies with the daemon.
    ErrorRate,
    /// The time to the first token is long.
    Latency,
    /// The queue is nearly full.
    Queue,
    /// There is no connection to the broker.
    BrokerLink,
    /// Prompts do not reach the daemon, though the broker is connected.
    Subscription,
    /// Answers cannot be written to disk.
    Storage,
    /// The configured model cannot be used, and another one answers.
    Fallback,
}

impl Kind {
    /// All kinds, in the order of their keys in `[alerts]`.
    pub const ALL: [Kind; 13] = [
        Kind::Temperature,
        Kind::Throttled,
        Kind::UnderVoltage,
        Kind::Memory,
        Kind::Cpu,
        Kind::SlowTokens,
        Kind::ErrorRate,
        Kind::Latency,
        Kind::Queue,
        Kind::BrokerLink,
        Kind::Subscription,
        Kind::Storage,
        Kind::Fallback,
    ];

    /// Its name in payloads.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Temperature => "temperature",
            Kind::Throttled => "throttled",
            Kind::UnderVoltage => "under_voltage",
            Kind::Memory => "memory",
            Kind::Cpu => "cpu",
            Kind::SlowTokens => "slow_tokens",
            Kind::ErrorRate => "error_rate",
            Kind::Latency => "latency",
            Kind::Queue => "queue",
            Kind::BrokerLink => "broker_link",
            Kind::Subscription => "subscription",
            Kind::Storage => "storage",
            Kind::Fallback => "fallback",
        }
    }
}

/// How severe an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The daemon answers, but is degraded.
    Warning,
    /// Data or answers may be lost.
    Critical,
}

/// Whether an alert was raised or cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The condition has lasted for the hold time.
    Raised,
    /// The condition has been over for the hold time, or its reading is no longer known.
    Cleared,
}

impl State {
    /// Its name in payloads.
    pub fn name(self) -> &'static str {
        match self {
            State::Raised => "raised",
            State::Cleared => "cleared",
        }
    }
}

/// One change of an alert, as it is published on `P/D/alert`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// The kind of the alert.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// How severe an alert is.
    pub severity: Severity,
    /// A sentence for people that also names a remedy.
    pub message: String,
    /// The reading, in the unit of its key in `[alerts]`; 1 and 0 where the key is a yes or no.
    pub value: f64,
    /// The threshold that the value was compared with, in the same unit.
    pub threshold: f64,
    /// What became of it.
    pub state: State,
    /// When it was raised or cleared, also where it is delivered later: RFC 3339, UTC.
    pub time: String,
}

/// The readings that the alerts are evaluated on, at one moment; `None` is unknown.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conditions {
    /// Temperature of the processor, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Whether the firmware throttles the processor.
    pub throttled: Option<bool>,
    /// Whether the supply's voltage is too low.
    pub under_voltage: Option<bool>,
    /// Resident memory, in percent of the budget.
    pub memory_percent: Option<f64>,
    /// Load of all processors of the host, in percent.
    pub cpu_percent: Option<f64>,
    /// Tokens per second while answers are generated, median of the last minute.
    pub tokens_per_second: Option<f64>,
    /// Requests since start that failed for a reason that lies with the daemon.
    pub failed: u64,
    /// Requests since start that ended, without those that failed for another reason.
    pub ended: u64,
    /// Time to the first token, 95th percentile of the last minute, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Waiting requests, in percent of the queue's depth.
    pub queue_percent: Option<f64>,
    /// Whether the broker is connected; `None` where none is configured.
    pub broker: Option<bool>,
    /// Whether a subscription for prompts is lost; `None` where no broker is configured.
    pub subscription: Option<bool>,
    /// Whether answers cannot be written to disk though they should be.
    pub storage: Option<bool>,
    /// Whether the fallback answers, because the configured model cannot be used.
    pub fallback: Option<bool>,
}

/// The memory plan, in percent of the budget. Memory that was planned for raises no alert, whatever the owner's
/// threshold.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PlannedMemory {
    /// All of the plan but the reserve.
    pub used_percent: f64,
    /// The reserve, which stays free.
    pub reserve_percent: f64,
}

/// The alerts of one daemon.
#[derive(Debug)]
pub struct Alerts {
    rules: config::Alerts,
    planned: PlannedMemory,
    errors: ErrorRate,
    /// When the connection to the broker was lost.
    disconnected_since: Option<Instant>,
    watches: [AlertWatch; Kind::ALL.len()],
    history: AlertHistory,
}

/// The state of one kind of alert.
#[derive(Debug, Clone, Copy, Default)]
struct AlertWatch {
    is_raised: bool,
    /// When the reading first contradicted the published state.
    contradicted_since: Option<Instant>,
    /// The last known reading, and when it was taken.
    last_reading: Option<(Instant, f64)>,
    /// The threshold when the alert was raised.
    threshold: f64,
}

impl Alerts {
    /// Alerts with these rules; none is raised yet.
    pub fn new(rules: config::Alerts) -> Self {
        let (planned, errors) = (PlannedMemory::default(), ErrorRate::default());
        let (watches, history) = Default::default();
        Alerts { rules, planned, errors, disconnected_since: None, watches, history }
    }

    /// Sets the memory plan, which the memory alert takes into account.
    pub fn set_planned(&mut self, planned: PlannedMemory) {
        self.planned = planned;
    }

    /// Replaces the rules; an alert that is raised stays raised until the new rules clear it.
    pub fn set_rules(&mut self, rules: config::Alerts) {
        self.rules = rules;
    }

    /// Evaluates all alerts and returns those that changed; `time` is that of `now`. To be called about once a second.
    pub fn evaluate(&mut self, now: Instant, time: SystemTime, conditions: &Conditions) -> Vec<Alert> {
        let values = self.values(now, conditions);
        let rule = |kind| Rule::of(kind, &self.rules, self.planned);
        let changes = Kind::ALL.into_iter().zip(values).zip(&mut self.watches);
        let changes = changes.filter_map(|((kind, value), watch)| watch.look(kind, rule(kind), value, now));
        let changes: Vec<Alert> = changes.map(|alert| Alert { time: rfc3339(time), ..alert }).collect();
        changes.iter().for_each(|alert| self.history.record(now, alert));
        changes
    }

    /// What is raised now, and what was cleared in the last hours.
    pub fn list(&self, now: Instant) -> AlertList {
        self.history.list(now)
    }

    /// The alerts that are raised now, as they were raised, and how many changes led to this.
    pub fn raised_alerts(&self) -> (&[Alert], u64) {
        (self.history.raised(), self.history.changes())
    }

    /// The names of the alerts that are raised now.
    pub fn raised(&self) -> impl Iterator<Item = &'static str> {
        let all = Kind::ALL.into_iter().zip(&self.watches);
        all.filter(|(_, watch)| watch.is_raised).map(|(kind, _)| kind.name())
    }

    /// The same as a set of bits in the order of [`Kind::ALL`], the first kind lowest.
    pub fn raised_bits(&self) -> u16 {
        let watches = self.watches.iter().enumerate();
        watches.filter(|(_, watch)| watch.is_raised).fold(0, |bits, (at, _)| bits | 1 << at)
    }

    /// The reading of each kind, in the order of [`Kind::ALL`].
    fn values(&mut self, now: Instant, conditions: &Conditions) -> [Option<f64>; Kind::ALL.len()] {
        let Conditions { failed, ended, .. } = *conditions;
        let errors = self.errors.percent(now, failed, ended);
        let disconnected_s = self.disconnected_for(now, conditions.broker);
        Kind::ALL.map(|kind| {
            let value = match kind {
                Kind::Temperature => conditions.temperature_c,
                Kind::Throttled => conditions.throttled.map(as_number),
                Kind::UnderVoltage => conditions.under_voltage.map(as_number),
                Kind::Memory => conditions.memory_percent,
                Kind::Cpu => conditions.cpu_percent,
                Kind::SlowTokens => conditions.tokens_per_second,
                Kind::ErrorRate => errors,
                Kind::Latency => conditions.ttft_ms,
                Kind::Queue => conditions.queue_percent,
                Kind::BrokerLink => disconnected_s,
                Kind::Subscription => conditions.subscription.map(as_number),
                Kind::Storage => conditions.storage.map(as_number),
                Kind::Fallback => conditions.fallback.map(as_number),
            };
            // Infinity and NaN are no JSON numbers.
            value.filter(|value| value.is_finite()).map(|value| (value * 1000.0).round() / 1000.0)
        })
    }

    /// Seconds since the broker was last connected; 0 while it is.
    fn disconnected_for(&mut self, now: Instant, is_connected: Option<bool>) -> Option<f64> {
        if is_connected? {
            self.disconnected_since = None;
            return Some(0.0);
        }
        let since = *self.disconnected_since.get_or_insert(now);
        Some(now.saturating_duration_since(since).as_secs_f64())
    }
}

fn as_number(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

impl AlertWatch {
    fn look(&mut self, kind: Kind, rule: Option<Rule>, value: Option<f64>, now: Instant) -> Option<Alert> {
        match (rule, value) {
            (None, _) => self.clear_alert(kind, format!("the alert {} is switched off", kind.name())),
            (Some(_), None) => {
                let is_short = |(seen, _)| now.saturating_duration_since(seen) < MAX_READING_GAP;
                if self.last_reading.is_some_and(is_short) {
                    return None;
                }
                self.clear_alert(kind, format!("{} is no longer known", rules::subject(kind)))
            }
            (Some(rule), Some(value)) => self.apply_rule(kind, rule, value, now),
        }
    }

    fn apply_rule(&mut self, kind: Kind, rule: Rule, value: f64, now: Instant) -> Option<Alert> {
        self.last_reading = Some((now, value));
        let is_bad = if self.is_raised { !rule.should_clear(value) } else { rule.should_raise(value) };
        if is_bad == self.is_raised {
            self.contradicted_since = None;
            return None;
        }
        let since = *self.contradicted_since.get_or_insert(now);
        let hold = if is_bad { rule.raise_after } else { rule.clear_after };
        if now.saturating_duration_since(since) < hold {
            return None;
        }
        (self.is_raised, self.contradicted_since, self.threshold) = (is_bad, None, rule.threshold);
        let (state, message) = match is_bad {
            true => (State::Raised, rules::raised_message(kind, value, rule.threshold)),
            false => (State::Cleared, rules::cleared_message(kind, value)),
        };
        let threshold = rule.threshold;
        let severity = rules::severity(kind);
        Some(Alert { kind, severity, message, value, threshold, state, time: String::new() })
    }

    /// Clears an alert whose condition can no longer be evaluated.
    fn clear_alert(&mut self, kind: Kind, message: String) -> Option<Alert> {
        let AlertWatch { is_raised, last_reading: seen, threshold, .. } = std::mem::take(self);
        let value = seen.filter(|_| is_raised)?.1;
        let (severity, state) = (rules::severity(kind), State::Cleared);
        Some(Alert { kind, severity, message, value, threshold, state, time: String::new() })
    }
}
