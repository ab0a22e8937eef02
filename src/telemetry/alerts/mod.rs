//! What the owner of the device is told of without asking: that something is wrong, once, and that it is well again,
//! once.
//!
//! Pure: readings and moments come in, changes go out. Deliberately knows no sensor, no broker and no journal.

mod error_rate;
mod rules;
#[cfg(test)]
mod tests;

use crate::config;
use error_rate::ErrorRate;
use rules::Rule;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How long a reading may be missing before what was raised over it is no longer known.
const LONGEST_GAP: Duration = Duration::from_secs(60);

/// The kinds of alerts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The processor is hot.
    Temperature,
    /// The firmware holds the processor back.
    Throttled,
    /// The supply's voltage is too low.
    UnderVoltage,
    /// The memory budget is nearly used up.
    Memory,
    /// All processors of the host are busy.
    Cpu,
    /// Tokens come slowly.
    SlowTokens,
    /// Many requests get an error, or run out of time.
    ErrorRate,
    /// The first token comes late.
    Latency,
    /// The queue is nearly full.
    Queue,
    /// The broker is away.
    BrokerLink,
    /// Prompts do not reach the daemon, though the broker is connected.
    Subscription,
    /// Answers cannot be kept on disk.
    Storage,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 12] = [
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
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The daemon does its work, but not as well as it could.
    Warning,
    /// Data or answers may be lost.
    Critical,
}

/// What became of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has been bad for long enough.
    Raised,
    /// It has been well for long enough, or is no longer known.
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

/// One change, as it goes to `P/D/alert`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// What is wrong, or was.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// For people; names the way out.
    pub message: String,
    /// The reading, in the unit of its key in `[alerts]`; 1 and 0 where the key is a yes or no.
    pub value: f64,
    /// What it is compared with.
    pub threshold: f64,
    /// What became of it.
    pub state: State,
}

/// What is looked at, at one moment; `None` is not known.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conditions {
    /// Of the processor, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Whether the firmware holds the processor back.
    pub throttled: Option<bool>,
    /// Whether the supply's voltage is too low.
    pub under_voltage: Option<bool>,
    /// Resident memory, in percent of the budget.
    pub memory_percent: Option<f64>,
    /// Load of all processors of the host.
    pub cpu_percent: Option<f64>,
    /// While answers are generated, median of the last minute.
    pub tokens_per_second: Option<f64>,
    /// Requests since start that got an error or ran out of time, and all that ended.
    pub failed: u64,
    /// See `failed`.
    pub ended: u64,
    /// To the first token, 95th percentile of the last minute, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Waiting requests, in percent of the most.
    pub queue_percent: Option<f64>,
    /// Whether the broker is connected; `None` where there is none.
    pub broker: Option<bool>,
    /// Whether prompts do not reach the daemon; `None` where there is no broker.
    pub subscription: Option<bool>,
    /// Whether answers that should be kept on disk cannot be.
    pub storage: Option<bool>,
}

/// What the memory plan takes, in percent of the budget: what it foresees is no alert, whatever the owner's threshold.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Planned {
    /// All but the reserve.
    pub held: f64,
    /// What is kept free.
    pub reserve: f64,
}

/// The alerts of one daemon.
#[derive(Debug)]
pub struct Alerts {
    rules: config::Alerts,
    planned: Planned,
    errors: ErrorRate,
    /// Since when the broker is away.
    away_since: Option<Instant>,
    watches: [Watch; Kind::ALL.len()],
}

/// One alert, and what it waits for.
#[derive(Debug, Clone, Copy, Default)]
struct Watch {
    is_raised: bool,
    /// Since when it is otherwise than told.
    otherwise_since: Option<Instant>,
    /// The last known reading.
    seen: Option<(Instant, f64)>,
    /// What it was compared with when it was raised.
    threshold: f64,
}

impl Alerts {
    /// Nothing is raised yet.
    pub fn new(rules: config::Alerts) -> Self {
        let (planned, errors) = (Planned::default(), ErrorRate::default());
        Alerts { rules, planned, errors, away_since: None, watches: Default::default() }
    }

    /// Says what the memory plan takes.
    pub fn set_planned(&mut self, planned: Planned) {
        self.planned = planned;
    }

    /// Goes by other rules from now on; what is raised stays so until they say otherwise.
    pub fn set_rules(&mut self, rules: config::Alerts) {
        self.rules = rules;
    }

    /// Looks at everything, about once a second, and says what changed.
    pub fn look(&mut self, now: Instant, conditions: &Conditions) -> Vec<Alert> {
        let values = self.values(now, conditions);
        let rule = |kind| Rule::of(kind, &self.rules, self.planned);
        let changes = Kind::ALL.into_iter().zip(values).zip(&mut self.watches);
        changes.filter_map(|((kind, value), watch)| watch.look(kind, rule(kind), value, now)).collect()
    }

    /// The names of those now raised.
    pub fn raised(&self) -> impl Iterator<Item = &'static str> {
        let all = Kind::ALL.into_iter().zip(&self.watches);
        all.filter(|(_, watch)| watch.is_raised).map(|(kind, _)| kind.name())
    }

    /// A reading for each kind.
    fn values(&mut self, now: Instant, conditions: &Conditions) -> [Option<f64>; Kind::ALL.len()] {
        let Conditions { failed, ended, .. } = *conditions;
        let errors = self.errors.percent(now, failed, ended);
        let away = self.away(now, conditions.broker);
        Kind::ALL.map(|kind| {
            let value = match kind {
                Kind::Temperature => conditions.temperature_c,
                Kind::Throttled => conditions.throttled.map(number),
                Kind::UnderVoltage => conditions.under_voltage.map(number),
                Kind::Memory => conditions.memory_percent,
                Kind::Cpu => conditions.cpu_percent,
                Kind::SlowTokens => conditions.tokens_per_second,
                Kind::ErrorRate => errors,
                Kind::Latency => conditions.ttft_ms,
                Kind::Queue => conditions.queue_percent,
                Kind::BrokerLink => away,
                Kind::Subscription => conditions.subscription.map(number),
                Kind::Storage => conditions.storage.map(number),
            };
            // JSON has no number for the rest.
            value.filter(|value| value.is_finite()).map(|value| (value * 1000.0).round() / 1000.0)
        })
    }

    /// Seconds since the broker was connected last.
    fn away(&mut self, now: Instant, is_connected: Option<bool>) -> Option<f64> {
        if is_connected? {
            self.away_since = None;
            return Some(0.0);
        }
        let since = *self.away_since.get_or_insert(now);
        Some(now.saturating_duration_since(since).as_secs_f64())
    }
}

fn number(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

impl Watch {
    fn look(&mut self, kind: Kind, rule: Option<Rule>, value: Option<f64>, now: Instant) -> Option<Alert> {
        match (rule, value) {
            (None, _) => self.give_up(kind, format!("the alert {} is switched off", kind.name())),
            (Some(_), None) => {
                let is_short = |(seen, _)| now.saturating_duration_since(seen) < LONGEST_GAP;
                if self.seen.is_some_and(is_short) {
                    return None;
                }
                self.give_up(kind, format!("{} is no longer known", rules::subject(kind)))
            }
            (Some(rule), Some(value)) => self.judge(kind, rule, value, now),
        }
    }

    fn judge(&mut self, kind: Kind, rule: Rule, value: f64, now: Instant) -> Option<Alert> {
        self.seen = Some((now, value));
        let is_bad = if self.is_raised { !rule.is_well(value) } else { rule.is_bad(value) };
        if is_bad == self.is_raised {
            self.otherwise_since = None;
            return None;
        }
        let since = *self.otherwise_since.get_or_insert(now);
        let hold = if is_bad { rule.raise_after } else { rule.clear_after };
        if now.saturating_duration_since(since) < hold {
            return None;
        }
        (self.is_raised, self.otherwise_since, self.threshold) = (is_bad, None, rule.threshold);
        let (state, message) = match is_bad {
            true => (State::Raised, rules::bad(kind, value, rule.threshold)),
            false => (State::Cleared, rules::well(kind, value)),
        };
        let threshold = rule.threshold;
        Some(Alert { kind, severity: rules::severity(kind), message, value, threshold, state })
    }

    /// Clears what can be judged no more.
    fn give_up(&mut self, kind: Kind, message: String) -> Option<Alert> {
        let Watch { is_raised, seen, threshold, .. } = std::mem::take(self);
        let value = seen.filter(|_| is_raised)?.1;
        let (severity, state) = (rules::severity(kind), State::Cleared);
        Some(Alert { kind, severity, message, value, threshold, state })
    }
}
