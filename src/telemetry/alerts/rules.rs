//! When each alert is raised and cleared, and its messages. Deliberately knows no time: how long a condition lasts
//! is counted elsewhere.

use super::{Kind, PlannedMemory, Severity};
use crate::config;
use std::time::Duration;

/// The thresholds of one alert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rule {
    pub threshold: f64,
    /// The value at which a raised alert may be cleared; it differs from the threshold, so that a value near it
    /// does not raise and clear again and again.
    clear_at: f64,
    /// Whether values below the threshold are the bad ones.
    is_lower_bound: bool,
    /// How long the condition must last without a break before the alert is raised, and be over before it is
    /// cleared.
    pub raise_after: Duration,
    pub clear_after: Duration,
}

impl Rule {
    /// The rule for a kind; `None` where the owner has switched the alert off.
    pub fn of(kind: Kind, rules: &config::Alerts, planned: PlannedMemory) -> Option<Self> {
        let flag = |is_on: bool| is_on.then_some(1.0);
        let (threshold, clear_at) = match kind {
            // The hysteresis of 5 degrees absorbs the switching of a fan.
            Kind::Temperature => offset_below(rules.temperature_c, 5.0),
            Kind::Throttled => offset_below(flag(rules.throttled), 0.5),
            Kind::UnderVoltage => offset_below(flag(rules.under_voltage), 0.5),
            Kind::Memory => rules.memory_percent.map(|percent| memory_threshold(planned, percent)),
            Kind::Cpu => offset_below(rules.cpu_percent, 10.0),
            Kind::SlowTokens => scaled(rules.tokens_per_second, 1.1),
            Kind::ErrorRate => scaled(rules.error_percent, 0.5),
            Kind::Latency => scaled(rules.ttft_ms, 0.8),
            Kind::Queue => scaled(rules.queue_percent, 0.5),
            // Only a connection clears it.
            Kind::BrokerLink => scaled(rules.broker_link_s, 0.0),
            Kind::Subscription => offset_below(flag(rules.subscription), 0.5),
            Kind::Storage => offset_below(flag(rules.storage), 0.5),
            Kind::Fallback => offset_below(flag(rules.fallback), 0.5),
        }?;
        // These are raised at once: under-voltage is short and may corrupt the card, the broker's threshold is a
        // time already, a subscription counts as lost only after two failed checks, and a model stays until a reload.
        let at_once =
            matches!(kind, Kind::UnderVoltage | Kind::BrokerLink | Kind::Subscription | Kind::Fallback);
        let raise_after = if at_once { Duration::ZERO } else { rules.hold };
        let is_lower_bound = kind == Kind::SlowTokens;
        Some(Rule { threshold, clear_at, is_lower_bound, raise_after, clear_after: rules.hold })
    }

    pub fn should_raise(&self, value: f64) -> bool {
        if self.is_lower_bound { value < self.threshold } else { value >= self.threshold }
    }

    pub fn should_clear(&self, value: f64) -> bool {
        if self.is_lower_bound { value >= self.clear_at } else { value <= self.clear_at }
    }
}

/// The threshold, and the value that clears the alert: `by` below it.
fn offset_below(threshold: Option<f64>, by: f64) -> Option<(f64, f64)> {
    threshold.map(|threshold| (threshold, threshold - by))
}

/// The owner's threshold for memory, cleared 5 below. The threshold is raised to what is planned, rounded up to two
/// decimals, and it is cleared where twice the reserve is free, which is where requests are admitted again.
fn memory_threshold(planned: PlannedMemory, percent: f64) -> (f64, f64) {
    let planned_at = (planned.used_percent * 100.0).ceil() / 100.0;
    (percent.max(planned_at), (percent - 5.0).max(planned.used_percent - planned.reserve_percent))
}

/// The threshold, and the value that clears the alert: `part` times it.
fn scaled(threshold: Option<f64>, part: f64) -> Option<(f64, f64)> {
    threshold.map(|threshold| (threshold, threshold * part))
}

pub(super) fn severity(kind: Kind) -> Severity {
    match kind {
        Kind::UnderVoltage
        | Kind::Memory
        | Kind::BrokerLink
        | Kind::Subscription
        | Kind::Storage
        | Kind::Fallback => Severity::Critical,
        _ => Severity::Warning,
    }
}

/// The subject of a sentence about this alert.
pub(super) fn subject(kind: Kind) -> &'static str {
    match kind {
        Kind::Temperature => "the temperature of the processor",
        Kind::Throttled => "whether the firmware holds the processor back",
        Kind::UnderVoltage => "whether the supply's voltage is too low",
        Kind::Memory => "the share of the memory budget",
        Kind::Cpu => "the load of the processors",
        Kind::SlowTokens => "the pace of tokens",
        Kind::ErrorRate => "the share of requests that fail",
        Kind::Latency => "the time to the first token",
        Kind::Queue => "the level of the queue",
        Kind::BrokerLink => "the link to the broker",
        Kind::Subscription => "whether prompts reach the daemon",
        Kind::Storage => "whether answers are kept on disk",
        Kind::Fallback => "whether the configured model answers",
    }
}

/// The message of a raised alert: the condition, and a remedy.
pub(super) fn raised_message(kind: Kind, value: f64, threshold: f64) -> String {
    match kind {
        Kind::Temperature => format!(
            "the processor has {value:.1} °C, the alert is at {threshold} °C; give the board more air or a cooler, or \
             fewer budget.threads"
        ),
        Kind::Throttled => {
            "the firmware holds the processor back; look at its cooling, its power supply and its clock settings".into()
        }
        Kind::UnderVoltage => {
            "the voltage of the supply is too low, which may spoil the card; use a stronger supply or a shorter cable"
                .into()
        }
        Kind::Memory => format!(
            "{value:.1} % of the memory budget are in use, the alert is at {threshold} %; raise budget.memory_mb, \
             or shorten model.context"
        ),
        Kind::Cpu => format!(
            "the processors are {value:.0} % busy, the alert is at {threshold} %; see what else runs, or lower \
             budget.threads"
        ),
        Kind::SlowTokens => format!(
            "{value:.2} tokens per second are generated, the alert is below {threshold}; look for heat, other load, \
             or a swapped model"
        ),
        Kind::ErrorRate => format!(
            "{value:.0} % of the last minute's requests failed, the alert is at {threshold} %; the journal says why each \
             was refused"
        ),
        Kind::Latency => format!(
            "the first token takes {value:.0} ms (95th percentile of a minute), the alert is at {threshold} ms; ask less \
             often, or for shorter prompts"
        ),
        Kind::Queue => format!(
            "the queue is full to {value:.0} %, the alert is at {threshold} %; ask less often, or raise queue.depth"
        ),
        Kind::BrokerLink => format!(
            "the broker is away for {value:.0} s; the journal says why, and `bitnetd doctor` whether it can be reached"
        ),
        Kind::Subscription => {
            "prompts did not reach the daemon, a subscription was gone; it subscribes again: see what else uses this \
             device.id at the broker, and whether the broker lost its state"
                .into()
        }
        Kind::Storage => {
            "answers cannot be kept on disk, and a power cut would lose them; see device.state_dir and the journal".into()
        }
        Kind::Fallback => {
            "the configured model cannot be used, and model.fallback answers; the journal says why: mend it, and reload"
                .into()
        }
    }
}

/// The message of a cleared alert.
pub(super) fn cleared_message(kind: Kind, value: f64) -> String {
    match kind {
        Kind::Temperature => format!("the processor has {value:.1} °C again"),
        Kind::Throttled => "the processor is no longer held back".into(),
        Kind::UnderVoltage => "the voltage of the supply is high enough again".into(),
        Kind::Memory => format!("{value:.1} % of the memory budget are in use, below the alert again"),
        Kind::Cpu => format!("the processors are {value:.0} % busy, below the alert again"),
        Kind::SlowTokens => format!("{value:.2} tokens per second are generated again"),
        Kind::ErrorRate => {
            format!("{value:.0} % of the last minute's requests failed, below the alert again")
        }
        Kind::Latency => format!("the first token takes {value:.0} ms again"),
        Kind::Queue => format!("the queue is full to {value:.0} %, below the alert again"),
        Kind::BrokerLink => "the broker is connected again".into(),
        Kind::Subscription => "prompts reach the daemon again".into(),
        Kind::Storage => "answers are kept on disk again".into(),
        Kind::Fallback => "the configured model answers again".into(),
    }
}
