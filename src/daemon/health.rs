//! What an operator has to look at and no alert covers, sampled once a second, and the self-test of the kernels.
//!
//! The detector is pure: facts and the time come in. Deliberately knows no transport.

use super::malloc_trim;
use super::systemd::StallDetector;
use crate::engine::kernels::Kernels;
use crate::protocol::SelfTest;
use crate::telemetry::{self, Fault, Telemetry};
use log::{debug, error};
use std::time::{Duration, Instant, SystemTime};

/// How long a busy worker may take no step: half of the unit's watchdog, so that both name the same stall.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How long the broker may take to grant the subscriptions.
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(20);
/// Seed of the self-test; any number will do.
const SEED: u64 = 158;

/// The facts of one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HealthSample {
    /// The worker's counter of steps.
    pub steps: u64,
    /// Whether requests wait or run.
    pub is_busy: bool,
    /// Whether requests are refused because memory is short.
    pub is_memory_short: bool,
    /// Whether the broker is connected and has not granted the subscriptions.
    pub is_unsubscribed: bool,
}

/// Finds faults in one sample after the other.
#[derive(Debug)]
pub(super) struct FaultDetector {
    worker: StallDetector,
    unsubscribed_since: Option<Instant>,
}

impl FaultDetector {
    /// A detector that has seen nothing yet.
    pub fn new(now: Instant) -> Self {
        FaultDetector { worker: StallDetector::new(STALL_LIMIT, None, now), unsubscribed_since: None }
    }

    /// The faults that there are now.
    pub fn faults(&mut self, sample: HealthSample, now: Instant) -> Vec<Fault> {
        let is_stalled = self.worker.stuck(sample.steps, sample.is_busy, now).is_some();
        let since = sample.is_unsubscribed.then(|| self.unsubscribed_since.unwrap_or(now));
        self.unsubscribed_since = since;
        let is_denied = since.is_some_and(|since| now.saturating_duration_since(since) >= SUBSCRIBE_LIMIT);
        let all = [
            (is_stalled, Fault::WorkerStalled),
            (sample.is_memory_short, Fault::MemoryShort),
            (is_denied, Fault::NotSubscribed),
        ];
        all.into_iter().filter(|(is_so, _)| *is_so).map(|(_, fault)| fault).collect()
    }
}

/// Compares the kernels that compute with the reference, and records the outcome. It takes some 40 ms on a PC, and about 2 MiB for
/// that time, so it is run before the memory of the model is taken.
pub(super) fn run_self_test(telemetry: &Telemetry) {
    let (kernels, began) = (Kernels::detect(), Instant::now());
    let problem = kernels.self_test(SEED).err();
    // What it took is given back before the model is loaded.
    malloc_trim::malloc_trim();
    let (kernel, took) = (kernels.name(), began.elapsed());
    match &problem {
        None => debug!("self-test of {kernel}: ok in {took:.1?}"),
        Some(problem) => {
            error!("self-test: {problem}; answers may be wrong: see `bitnetd doctor`, and report this")
        }
    }
    let time = telemetry::rfc3339(SystemTime::now());
    telemetry.health.set_self_test(SelfTest { time, kernel, ok: problem.is_none(), problem });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_busy_worker_without_a_step_for_a_minute_is_a_fault_until_it_takes_one() {
        let start = Instant::now();
        let mut detector = FaultDetector::new(start);
        let busy = |steps| HealthSample { steps, is_busy: true, ..HealthSample::default() };
        assert_eq!(detector.faults(busy(1), at(start, 1)), []);
        assert_eq!(detector.faults(busy(1), at(start, 60)), []);
        assert_eq!(detector.faults(busy(1), at(start, 61)), [Fault::WorkerStalled]);
        assert_eq!(detector.faults(busy(2), at(start, 62)), []);
        assert_eq!(detector.faults(HealthSample::default(), at(start, 600)), [], "idle");
    }

    #[test]
    fn subscriptions_may_take_a_while_and_short_memory_counts_at_once() {
        let start = Instant::now();
        let mut detector = FaultDetector::new(start);
        let denied = HealthSample { is_unsubscribed: true, ..HealthSample::default() };
        assert_eq!(detector.faults(denied, start), []);
        assert_eq!(detector.faults(HealthSample::default(), at(start, 19)), []);
        assert_eq!(detector.faults(denied, at(start, 20)), [], "it was granted in between");
        assert_eq!(detector.faults(denied, at(start, 40)), [Fault::NotSubscribed]);
        let short = HealthSample { is_memory_short: true, ..HealthSample::default() };
        assert_eq!(detector.faults(short, at(start, 41)), [Fault::MemoryShort]);
    }

    #[test]
    fn the_self_test_of_this_machines_kernels_passes_and_is_recorded() {
        let telemetry = Telemetry::new(0);
        run_self_test(&telemetry);
        let health = telemetry.health(telemetry::DaemonPhase::Serving, SystemTime::UNIX_EPOCH);
        let test = health.self_test.expect("it was run");
        assert_eq!((test.ok, test.problem, test.kernel), (true, None, Kernels::detect().name()));
    }
}
