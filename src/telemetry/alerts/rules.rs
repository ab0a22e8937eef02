//! When each alert is raised and cleared, and what it says.

use super::{Kind, Planned, Severity};
use crate::config;
use std::time::Duration;

/// What one reading is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rule {
    pub threshold: f64,
    /// What a raised one has to come back to.
    well: f64,
    /// Whether less is worse.
    is_least: bool,
    /// How long it has to be bad without a break, and well.
    pub raise_after: Duration,
    pub clear_after: Duration,
}

impl Rule {
    /// `None` where the owner has switched it off.
    pub fn of(kind: Kind, rules: &config::Alerts, planned: Planned) -> Option<Self> {
        let flag = |is_on: bool| is_on.then_some(1.0);
        let (threshold, well) = match kind {
            // A cooler switches, and a case warms up, within some degrees.
            Kind::Temperature => below(rules.temperature_c, 5.0),
            Kind::Throttled => below(flag(rules.throttled), 0.5),
            Kind::UnderVoltage => below(flag(rules.under_voltage), 0.5),
            Kind::Memory => rules.memory_percent.map(|percent| beyond(planned, percent)),
            Kind::Cpu => below(rules.cpu_percent, 10.0),
            Kind::SlowTokens => times(rules.tokens_per_second, 1.1),
            Kind::ErrorRate => times(rules.error_percent, 0.5),
            Kind::Latency => times(rules.ttft_ms, 0.8),
            Kind::Queue => times(rules.queue_percent, 0.5),
            // Connected is well, and nothing else.
            Kind::BrokerLink => times(rules.broker_link_s, 0.0),
            Kind::Subscription => below(flag(rules.subscription), 0.5),
            Kind::Storage => below(flag(rules.storage), 0.5),
        }?;
        // The supply's voltage breaks down for moments, and each may spoil the card; the broker's threshold is a time
        // already; a lost subscription is asked for again at once, and was found missing twice.
        let at_once = matches!(kind, Kind::UnderVoltage | Kind::BrokerLink | Kind::Subscription);
        let raise_after = if at_once { Duration::ZERO } else { rules.hold };
        let is_least = kind == Kind::SlowTokens;
        Some(Rule { threshold, well, is_least, raise_after, clear_after: rules.hold })
    }

    pub fn is_bad(&self, value: f64) -> bool {
        if self.is_least { value < self.threshold } else { value >= self.threshold }
    }

    pub fn is_well(&self, value: f64) -> bool {
        if self.is_least { value >= self.well } else { value <= self.well }
    }
}

/// A threshold, and what is well: so much below it.
fn below(threshold: Option<f64>, by: f64) -> Option<(f64, f64)> {
    threshold.map(|threshold| (threshold, threshold - by))
}

/// The owner's threshold for the memory, and what is well: 5 below. But more than what is planned, up to two decimals,
/// and well is what leaves twice the reserve free of the plan, as where requests are taken in again.
fn beyond(planned: Planned, percent: f64) -> (f64, f64) {
    let planned_at = (planned.held * 100.0).ceil() / 100.0;
    (percent.max(planned_at), (percent - 5.0).max(planned.held - planned.reserve))
}

/// A threshold, and what is well: this part of it.
fn times(threshold: Option<f64>, part: f64) -> Option<(f64, f64)> {
    threshold.map(|threshold| (threshold, threshold * part))
}

pub(super) fn severity(kind: Kind) -> Severity {
    match kind {
        Kind::UnderVoltage | Kind::Memory | Kind::BrokerLink | Kind::Subscription | Kind::Storage => {
            Severity::Critical
        }
        _ => Severity::Warning,
    }
}

/// What is watched, for a sentence about it.
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
    }
}

/// What is wrong, and the way out.
pub(super) fn bad(kind: Kind, value: f64, threshold: f64) -> String {
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
            "{value:.1} % of the memory budget are held, the alert is at {threshold} %; raise budget.memory_mb, or \
             shorten model.context"
        ),
        Kind::Cpu => format!(
            "the processors are busy to {value:.0} %, the alert is at {threshold} %; see what else runs, or lower \
             budget.threads"
        ),
        Kind::SlowTokens => format!(
            "{value:.2} tokens come in a second, the alert is below {threshold}; look for heat, other load, or a swapped \
             model"
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
    }
}

/// That it is over.
pub(super) fn well(kind: Kind, value: f64) -> String {
    match kind {
        Kind::Temperature => format!("the processor has {value:.1} °C again"),
        Kind::Throttled => "the processor is no longer held back".into(),
        Kind::UnderVoltage => "the voltage of the supply is high enough again".into(),
        Kind::Memory => format!("{value:.1} % of the memory budget are held, no more"),
        Kind::Cpu => format!("the processors are busy to {value:.0} %, no more"),
        Kind::SlowTokens => format!("{value:.2} tokens come in a second again"),
        Kind::ErrorRate => format!("{value:.0} % of the last minute's requests failed, no more"),
        Kind::Latency => format!("the first token takes {value:.0} ms again"),
        Kind::Queue => format!("the queue is full to {value:.0} %, no more"),
        Kind::BrokerLink => "the broker is connected again".into(),
        Kind::Subscription => "prompts reach the daemon again".into(),
        Kind::Storage => "answers are kept on disk again".into(),
    }
}
