//! Simulated days of a device, without waiting.

use super::*;

/// Every alert switched on, with a hold time of 20 s.
fn rules() -> config::Alerts {
    config::Alerts {
        hold: Duration::from_secs(20),
        temperature_c: Some(80.0),
        throttled: true,
        under_voltage: true,
        memory_percent: Some(95.0),
        cpu_percent: Some(90.0),
        tokens_per_second: Some(5.0),
        error_percent: Some(50.0),
        ttft_ms: Some(2000.0),
        queue_percent: Some(90.0),
        broker_link_s: Some(60.0),
        subscription: true,
        storage: true,
        fallback: true,
    }
}

/// Alerts that are evaluated once a simulated second.
struct Simulation {
    alerts: Alerts,
    start: Instant,
    second: u64,
}

impl Simulation {
    fn new() -> Self {
        Simulation { alerts: Alerts::new(rules()), start: Instant::now(), second: 0 }
    }

    /// Keeps the conditions for some seconds and returns each change with its second.
    fn run_for(&mut self, seconds: u64, conditions: &Conditions) -> Vec<(u64, Alert)> {
        let mut changes = Vec::new();
        for _ in 0..seconds {
            let now = self.start + Duration::from_secs(self.second);
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.second);
            let changed = self.alerts.evaluate(now, time, conditions);
            changes.extend(changed.into_iter().map(|alert| (self.second, alert)));
            self.second += 1;
        }
        changes
    }

    fn raised(&self) -> Vec<&'static str> {
        self.alerts.raised().collect()
    }
}

fn hot(temperature_c: f64) -> Conditions {
    Conditions { temperature_c: Some(temperature_c), ..Conditions::default() }
}

/// Readings that raise nothing.
fn well() -> Conditions {
    Conditions {
        temperature_c: Some(50.0),
        throttled: Some(false),
        under_voltage: Some(false),
        memory_percent: Some(40.0),
        cpu_percent: Some(30.0),
        tokens_per_second: Some(9.0),
        ttft_ms: Some(500.0),
        queue_percent: Some(0.0),
        broker: Some(true),
        storage: Some(false),
        fallback: Some(false),
        ..Conditions::default()
    }
}

fn bad() -> Conditions {
    Conditions {
        temperature_c: Some(85.0),
        throttled: Some(true),
        under_voltage: Some(true),
        memory_percent: Some(98.0),
        cpu_percent: Some(100.0),
        tokens_per_second: Some(2.0),
        ttft_ms: Some(5000.0),
        queue_percent: Some(100.0),
        broker: Some(false),
        storage: Some(true),
        fallback: Some(true),
        ..Conditions::default()
    }
}

#[test]
fn each_is_raised_once_and_cleared_once_after_its_hold() {
    let mut day = Simulation::new();
    assert_eq!(day.run_for(100, &well()), []);
    let raised = day.run_for(500, &bad());
    let mut seconds: Vec<_> =
        raised.iter().map(|(second, alert)| (alert.kind.name(), second - 100)).collect();
    seconds.sort_unstable();
    let held = ["cpu", "latency", "memory", "queue", "slow_tokens", "storage", "temperature", "throttled"];
    let mut expected: Vec<_> = held.map(|name| (name, 20)).into();
    expected.extend([("broker_link", 60), ("fallback", 0), ("under_voltage", 0)]);
    expected.sort_unstable();
    assert_eq!(seconds, expected);
    assert!(raised.iter().all(|(_, alert)| alert.state == State::Raised));
    assert_eq!(day.raised().len(), 11);
    let cleared = day.run_for(500, &well());
    assert_eq!(cleared.len(), 11, "{cleared:?}");
    assert!(cleared.iter().all(|(second, alert)| *second == 620 && alert.state == State::Cleared));
    assert!(day.raised().is_empty());
}

#[test]
fn a_reading_that_moves_around_the_threshold_raises_once() {
    let mut day = Simulation::new();
    assert_eq!(day.run_for(21, &hot(80.0)).len(), 1);
    for n in 0..1000 {
        assert_eq!(day.run_for(3, &hot(if n % 2 == 0 { 76.0 } else { 82.0 })), []);
    }
    // Below the clearing value, but never for the hold time.
    for _ in 0..100 {
        assert_eq!(day.run_for(19, &hot(70.0)), []);
        assert_eq!(day.run_for(1, &hot(76.0)), []);
    }
    assert_eq!(day.run_for(21, &hot(75.0)).len(), 1);
    // Above the threshold, but never for the hold time.
    for _ in 0..100 {
        assert_eq!(day.run_for(19, &hot(90.0)), []);
        assert_eq!(day.run_for(1, &hot(79.9)), []);
    }
}

#[test]
fn a_short_gap_of_readings_changes_nothing_and_a_long_one_clears() {
    let (mut day, unknown) = (Simulation::new(), Conditions::default());
    assert_eq!(day.run_for(300, &unknown), []);
    assert_eq!(day.run_for(5, &hot(85.0)), []);
    assert_eq!(day.run_for(16, &unknown), [], "it was not seen to be hot for so long");
    assert_eq!(day.run_for(1, &hot(85.0)).len(), 1);
    assert_eq!(day.run_for(59, &unknown), []);
    assert_eq!(day.run_for(10, &hot(85.0)), [], "still raised, not again");
    let cleared = day.run_for(500, &unknown);
    let [(_, alert)] = &cleared[..] else { panic!("{cleared:?}") };
    assert_eq!((alert.state, alert.value, alert.threshold), (State::Cleared, 85.0, 80.0));
    assert_eq!(alert.message, "the temperature of the processor is no longer known");
    assert_eq!(day.run_for(21, &hot(85.0)).len(), 1, "raised anew once it is known to be");
}

#[test]
fn what_was_seen_before_a_long_gap_does_not_count_after_it() {
    let mut day = Simulation::new();
    day.run_for(15, &hot(85.0));
    day.run_for(120, &Conditions::default());
    assert_eq!(day.run_for(20, &hot(85.0)), []);
    assert_eq!(day.run_for(1, &hot(85.0)).len(), 1);
}

#[test]
fn an_alert_that_is_switched_off_is_cleared_and_raised_no_more() {
    let mut day = Simulation::new();
    assert_eq!(day.run_for(30, &hot(85.0)).len(), 1);
    day.alerts.set_rules(config::Alerts { temperature_c: None, ..rules() });
    let cleared = day.run_for(100, &hot(85.0));
    let [(30, alert)] = &cleared[..] else { panic!("{cleared:?}") };
    assert_eq!(alert.message, "the alert temperature is switched off");
    day.alerts.set_rules(config::Alerts::off());
    assert_eq!(day.run_for(1000, &bad()), []);
}

#[test]
fn another_threshold_holds_at_once() {
    let mut day = Simulation::new();
    day.run_for(30, &hot(85.0));
    day.alerts.set_rules(config::Alerts { temperature_c: Some(90.0), ..rules() });
    let changes = day.run_for(21, &hot(85.0));
    assert_eq!((changes.len(), changes[0].1.threshold), (1, 90.0), "85 is well where 90 is not");
}

#[test]
fn requests_that_fail_are_a_rate_and_a_single_one_is_none() {
    let mut day = Simulation::new();
    let counts = |failed, ended| Conditions { failed, ended, ..Conditions::default() };
    assert_eq!(day.run_for(10, &counts(0, 100)), []);
    assert_eq!(day.run_for(100, &counts(1, 101)), []);
    let mut raised = Vec::new();
    for n in 0..30 {
        raised.extend(day.run_for(1, &counts(2 + n, 102 + n)));
    }
    let [(_, alert)] = &raised[..] else { panic!("{raised:?}") };
    assert_eq!((alert.kind, alert.value), (Kind::ErrorRate, 100.0));
    // Without requests the rate is unknown after a minute, and after another minute the alert is cleared.
    let cleared = day.run_for(300, &counts(31, 131));
    assert_eq!(cleared.len(), 1, "{cleared:?}");
    assert!(cleared[0].1.message.ends_with("no longer known"), "{cleared:?}");
}

#[test]
fn the_payload_is_that_of_the_contract() {
    let mut day = Simulation::new();
    let (_, alert) = day.run_for(30, &hot(81.25)).remove(0);
    let json = serde_json::to_value(&alert).expect("plain data");
    let message = "the processor has 81.2 °C, the alert is at 80 °C; give the board more air or a cooler, or fewer \
                   budget.threads";
    let expected = serde_json::json!({
        "type": "temperature", "severity": "warning", "message": message, "value": 81.25, "threshold": 80.0,
        "state": "raised", "time": "1970-01-01T00:00:20Z",
    });
    assert_eq!(json, expected);
}

#[test]
fn names_are_the_same_everywhere() {
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).expect("a word"), kind.name());
        for text in [rules::raised_message(kind, 1.0, 1.0), rules::cleared_message(kind, 1.0)] {
            assert!(!text.is_empty() && !text.contains('\n'), "{text}");
        }
    }
    for state in [State::Raised, State::Cleared] {
        assert_eq!(serde_json::to_value(state).expect("a word"), state.name());
    }
}

#[test]
fn numbers_that_are_none_are_not_known() {
    let mut day = Simulation::new();
    assert_eq!(day.run_for(100, &hot(f64::INFINITY)), []);
    assert_eq!(day.run_for(100, &hot(f64::NAN)), []);
}
