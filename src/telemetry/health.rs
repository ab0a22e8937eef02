//! The health of the daemon: its state, and what an operator has to look at.
//!
//! The daemon and the worker record facts here, and [`Telemetry::health`] puts them together with the raised alerts.
//! Deliberately decides nothing about requests.

use super::alerts::Kind;
use super::{Telemetry, locked, rfc3339};
use crate::protocol::{
    BrokerHealth, Health, HealthState, HealthSummary, LastAnswer, MemoryLevel, QueueLevel, SelfTest, Timings,
};
use std::sync::Mutex;
use std::time::SystemTime;

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DaemonPhase {
    /// It loads the model.
    Loading,
    /// It answers.
    Serving,
    /// It stops.
    Draining,
}

impl DaemonPhase {
    /// The phase of a daemon whose model is loaded or not, and that stops or not.
    pub fn of(is_loaded: bool, is_draining: bool) -> Self {
        match (is_loaded, is_draining) {
            (_, true) => DaemonPhase::Draining,
            (false, false) => DaemonPhase::Loading,
            (true, false) => DaemonPhase::Serving,
        }
    }
}

/// What needs an operator and is no alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Requests wait or run, and the worker takes no step.
    WorkerStalled,
    /// So little memory is free that requests are refused.
    MemoryShort,
    /// The broker is connected and did not grant the subscriptions for prompts.
    NotSubscribed,
}

impl Fault {
    /// Its name among the reasons. Prompts that do not arrive have the same name, whatever the cause.
    pub fn name(self) -> &'static str {
        match self {
            Fault::WorkerStalled => "worker_stalled",
            Fault::MemoryShort => "memory_short",
            Fault::NotSubscribed => Kind::Subscription.name(),
        }
    }
}

/// The reason of a failed self-test.
const SELF_TEST: &str = "self_test";

/// The names of alerts that are no reason to be degraded. They measure how much is asked; the daemon is as it should be.
fn is_load(alert: &str) -> bool {
    [Kind::Cpu, Kind::Latency, Kind::Queue].iter().any(|kind| kind.name() == alert)
}

/// Facts about the health that nothing else of the telemetry holds.
#[derive(Debug, Default)]
pub struct HealthFacts(Mutex<Facts>);

#[derive(Debug, Default)]
struct Facts {
    planned_bytes: u64,
    queue_depth: u64,
    last_answer: Option<(SystemTime, Timings)>,
    self_test: Option<SelfTest>,
    faults: Vec<Fault>,
}

impl HealthFacts {
    /// Sets what the memory plan foresees, in bytes.
    pub fn set_planned(&self, bytes: u64) {
        locked(&self.0).planned_bytes = bytes;
    }

    /// Sets how many requests may wait.
    pub fn set_queue_depth(&self, depth: usize) {
        locked(&self.0).queue_depth = depth as u64;
    }

    /// An answer was computed, which ended `now`.
    pub fn answered(&self, now: SystemTime, timings: &Timings) {
        locked(&self.0).last_answer = Some((now, *timings));
    }

    /// A self-test of the kernels has ended.
    pub fn set_self_test(&self, outcome: SelfTest) {
        locked(&self.0).self_test = Some(outcome);
    }

    /// Sets the faults that there are now; whether they are others than before.
    pub fn set_faults(&self, faults: Vec<Fault>) -> bool {
        let known = &mut locked(&self.0).faults;
        let is_changed = *known != faults;
        *known = faults;
        is_changed
    }
}

impl Telemetry {
    /// State and reasons now.
    pub fn health_summary(&self, phase: DaemonPhase) -> HealthSummary {
        let raised = locked(&self.alerts).raised().filter(|alert| !is_load(alert)).collect();
        let mut reasons: Vec<&'static str> = raised;
        let facts = locked(&self.health.0);
        let is_broken = facts.self_test.as_ref().is_some_and(|test| !test.ok);
        let others = facts.faults.iter().map(|fault| fault.name()).chain(is_broken.then_some(SELF_TEST));
        for name in others {
            if !reasons.contains(&name) {
                reasons.push(name);
            }
        }
        let state = match phase {
            DaemonPhase::Loading => HealthState::Loading,
            DaemonPhase::Draining => HealthState::Draining,
            DaemonPhase::Serving if reasons.is_empty() => HealthState::Ready,
            DaemonPhase::Serving => HealthState::Degraded,
        };
        HealthSummary { state, reasons }
    }

    /// The health now.
    pub fn health(&self, phase: DaemonPhase, now: SystemTime) -> Health {
        let summary = self.health_summary(phase);
        let (facts, seen) = (locked(&self.health.0), locked(&self.last_observed));
        Health {
            summary,
            time: rfc3339(now),
            uptime_s: self.started.elapsed().as_secs(),
            model: self.about().map(|about| about.model.clone()),
            last_answer: facts
                .last_answer
                .map(|(ended, timings)| LastAnswer { time: rfc3339(ended), timings }),
            queue: QueueLevel {
                waiting: self.waiting.total(),
                running: self.running.get(),
                depth: facts.queue_depth,
            },
            memory: MemoryLevel {
                process_bytes: seen.host.memory.process_bytes,
                planned_bytes: facts.planned_bytes,
                budget_bytes: self.budget_bytes,
            },
            broker: seen
                .link
                .as_ref()
                .map(|link| BrokerHealth { connected: link.connected, problem: link.problem.clone() }),
            self_test: facts.self_test.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::protocol::MqttLink;
    use std::time::{Duration, Instant};

    fn summary(telemetry: &Telemetry) -> (HealthState, Vec<&'static str>) {
        let HealthSummary { state, reasons } = telemetry.health_summary(DaemonPhase::Serving);
        (state, reasons)
    }

    fn test(problem: Option<&str>) -> SelfTest {
        let problem = problem.map(str::to_owned);
        SelfTest { time: rfc3339(SystemTime::UNIX_EPOCH), kernel: "scalar", ok: problem.is_none(), problem }
    }

    #[test]
    fn the_phase_comes_before_the_reasons() {
        let telemetry = Telemetry::new(0);
        telemetry.health.set_faults(vec![Fault::WorkerStalled]);
        let state =
            |is_loaded, is_draining| telemetry.health_summary(DaemonPhase::of(is_loaded, is_draining)).state;
        assert_eq!((state(false, false), state(true, false)), (HealthState::Loading, HealthState::Degraded));
        assert_eq!((state(true, true), state(false, true)), (HealthState::Draining, HealthState::Draining));
    }

    #[test]
    fn a_fault_and_a_failed_self_test_degrade_and_a_passed_one_does_not() {
        let telemetry = Telemetry::new(0);
        telemetry.health.set_self_test(test(None));
        assert_eq!(summary(&telemetry), (HealthState::Ready, vec![]));
        assert!(telemetry.health.set_faults(vec![Fault::MemoryShort, Fault::NotSubscribed]));
        assert!(!telemetry.health.set_faults(vec![Fault::MemoryShort, Fault::NotSubscribed]), "as before");
        telemetry.health.set_self_test(test(Some("row 1: 2 instead of 3")));
        assert_eq!(
            summary(&telemetry),
            (HealthState::Degraded, vec!["memory_short", "subscription", "self_test"])
        );
    }

    #[test]
    fn prompts_that_do_not_arrive_are_one_reason_and_load_is_none() {
        let telemetry = Telemetry::new(1000);
        let rules = config::Alerts { subscription: true, queue_percent: Some(50.0), ..config::Alerts::off() };
        telemetry.set_alert_rules(rules);
        (0..9).for_each(|_| telemetry.waiting.joined("a"));
        telemetry.set_link(MqttLink { connected: true, deaf: true, ..MqttLink::default() });
        telemetry.health.set_faults(vec![Fault::NotSubscribed]);
        let start = Instant::now();
        (0..60).for_each(|second| drop(telemetry.evaluate_alerts(start + Duration::from_secs(second), 10)));
        assert_eq!(telemetry.raised_alerts(), ["queue", "subscription"]);
        assert_eq!(summary(&telemetry), (HealthState::Degraded, vec!["subscription"]));
    }

    #[test]
    fn it_holds_what_was_recorded_and_null_for_the_rest() {
        let telemetry = Telemetry::new(1000);
        let json = |phase| {
            let health = telemetry.health(phase, SystemTime::UNIX_EPOCH);
            serde_json::to_value(health).expect("plain data")
        };
        let loading = json(DaemonPhase::Loading);
        let unknown = ["model", "last_answer", "broker", "self_test"];
        assert!(unknown.iter().all(|key| loading[key].is_null()), "{loading}");
        assert_eq!(loading["time"], "1970-01-01T00:00:00Z");
        telemetry.set_planned_memory(600, 100);
        telemetry.health.set_queue_depth(16);
        (0..2).for_each(|_| telemetry.waiting.joined("a"));
        telemetry.set_running(1);
        telemetry.health.answered(SystemTime::UNIX_EPOCH, &Timings { total_ms: 7.5, ..Timings::default() });
        telemetry.set_link(MqttLink { problem: Some("refused".into()), ..MqttLink::default() });
        let json = json(DaemonPhase::Serving);
        assert_eq!((&json["state"], &json["reasons"]), (&"ready".into(), &serde_json::json!([])));
        assert_eq!(json["queue"], serde_json::json!({"waiting": 2, "running": 1, "depth": 16}));
        assert_eq!(
            json["memory"],
            serde_json::json!({"process_bytes": null, "planned_bytes": 700, "budget_bytes": 1000})
        );
        assert_eq!(
            (&json["last_answer"]["total_ms"], &json["broker"]["problem"]),
            (&7.5.into(), &"refused".into())
        );
    }
}
