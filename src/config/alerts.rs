//! The settings of alerts. Deliberately does not know when an alert is raised.

use super::key_error::{KeyError, KeyResult};
use serde::Deserialize;
use std::time::Duration;

/// The thresholds of the alerts; `None` and `false` switch an alert off.
#[derive(Debug, Clone, PartialEq)]
pub struct Alerts {
    /// How long a condition must last before its alert is raised, and be over before it is cleared.
    pub hold: Duration,
    /// Temperature of the processor, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Whether throttling by the firmware raises an alert.
    pub throttled: bool,
    /// Whether under-voltage raises an alert.
    pub under_voltage: bool,
    /// Resident memory, in percent of the budget; planned memory raises no alert, even if it is more.
    pub memory_percent: Option<f64>,
    /// Load of all processors of the host, in percent.
    pub cpu_percent: Option<f64>,
    /// Lowest tokens per second while answers are generated.
    pub tokens_per_second: Option<f64>,
    /// Failed requests of the last minute, in percent.
    pub error_percent: Option<f64>,
    /// Time to the first token, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Waiting requests, in percent of the queue's depth.
    pub queue_percent: Option<f64>,
    /// Seconds without a connection to the broker.
    pub broker_link_s: Option<f64>,
    /// Whether a lost subscription for prompts raises an alert.
    pub subscription: bool,
    /// Whether answers that cannot be written to disk raise an alert.
    pub storage: bool,
    /// Whether it raises an alert that `model.fallback` answers.
    pub fallback: bool,
}

impl Alerts {
    /// All alerts switched off.
    pub fn off() -> Self {
        Alerts {
            hold: Duration::ZERO,
            temperature_c: None,
            throttled: false,
            under_voltage: false,
            memory_percent: None,
            cpu_percent: None,
            tokens_per_second: None,
            error_percent: None,
            ttft_ms: None,
            queue_percent: None,
            broker_link_s: None,
            subscription: false,
            storage: false,
            fallback: false,
        }
    }
}

/// The value of an alert's key in the file: both `false` and 0 switch it off.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "not known; use a number, or false to switch the alert off")]
pub(super) enum AlertValue {
    On(bool),
    At(f64),
}

/// The threshold of an alert; `None` where it is switched off.
pub(super) fn threshold(
    key: &'static str,
    value: Option<AlertValue>,
    default: f64,
    most: f64,
) -> KeyResult<Option<f64>> {
    let value = match value {
        None => default,
        Some(AlertValue::On(false)) => 0.0,
        Some(AlertValue::On(true)) if default > 0.0 => default,
        Some(AlertValue::On(true)) => {
            let message = "true names no threshold, and this alert has none by default; give a number";
            return Err(KeyError("alerts", key, message.into()));
        }
        Some(AlertValue::At(value)) => value,
    };
    if (0.0..=most).contains(&value) {
        return Ok((value > 0.0).then_some(value));
    }
    let message = format!("{value} is outside 0 to {most}; 0, or false, switches the alert off");
    Err(KeyError("alerts", key, message))
}

/// Whether an alert without a threshold is switched on, which is the default.
pub(super) fn switch(key: &'static str, value: Option<AlertValue>) -> KeyResult<bool> {
    match value {
        None => Ok(true),
        Some(AlertValue::On(is_on)) => Ok(is_on),
        Some(AlertValue::At(0.0)) => Ok(false),
        Some(AlertValue::At(value)) => {
            let message =
                format!("{value} is no threshold of this alert; use true, or false or 0 to switch it off");
            Err(KeyError("alerts", key, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::{error, host};

    #[test]
    fn an_alert_is_switched_off_by_0_and_a_threshold_that_makes_no_sense_is_refused() {
        let alerts = |text| Config::parse(text, "bitnetd.toml", &host()).expect("sound").alerts;
        let usual = alerts("");
        assert_eq!((usual.temperature_c, usual.ttft_ms, usual.throttled), (Some(80.0), None, true));
        let off = alerts("[alerts]\ntemperature_c = 0\ntokens_per_second = 0.5\nthrottled = false\n");
        assert_eq!((off.temperature_c, off.tokens_per_second, off.throttled), (None, Some(0.5), false));
        for (key, value) in [("temperature_c", "800"), ("queue_percent", "101"), ("ttft_ms", "-1")] {
            let message = error(&format!("[alerts]\n{key} = {value}\n"));
            assert!(message.starts_with(&format!("bitnetd.toml:2: alerts.{key}: {value} ")), "{message}");
            assert!(message.contains("0, or false, switches the alert off"), "{message}");
        }
        for value in ["nan", "inf"] {
            assert!(error(&format!("[alerts]\ncpu_percent = {value}\n")).contains("alerts.cpu_percent"));
        }
        assert!(error("[alerts]\nhold_s = 4000\n").contains("alerts.hold_s"));
        assert!(error("[alerts]\nthrottled = 1\n").contains("alerts.throttled"));
        assert!(error("[alerts]\ncpu_percent = true\n").contains("alerts.cpu_percent"));
        assert!(error("[alerts]\ncpu_percent = \"off\"\n").contains("alerts.cpu_percent"));
    }

    #[test]
    fn both_0_and_false_switch_every_alert_off() {
        let keys = [
            "temperature_c",
            "throttled",
            "under_voltage",
            "memory_percent",
            "cpu_percent",
            "tokens_per_second",
            "error_percent",
            "ttft_ms",
            "queue_percent",
            "broker_link_s",
            "subscription",
            "storage",
            "fallback",
        ];
        for off in ["0", "0.0", "false"] {
            let lines: String = keys.iter().map(|key| format!("{key} = {off}\n")).collect();
            let text = format!("[alerts]\nhold_s = 0\n{lines}");
            let read = Config::parse(&text, "bitnetd.toml", &host()).expect("sound").alerts;
            assert_eq!(read, super::Alerts::off(), "{off}");
        }
        let on =
            Config::parse("[alerts]\ntemperature_c = true\nstorage = true\n", "x", &host()).expect("sound");
        assert_eq!((on.alerts.temperature_c, on.alerts.storage), (Some(80.0), true));
    }
}
