//! Keeps the processor below a temperature and the board below a power: by fewer threads, and by pauses between tokens. Also
//! reduces the effort in quiet hours and on battery.
//!
//! Deliberately computes nothing itself: [`controller`] does, from the numbers of the sensors.

mod controller;
#[cfg(test)]
mod thermal_model;

use super::queue::WorkerControls;
use crate::config;
use crate::protocol::{GovernorReason, GovernorState, Reading};
use crate::telemetry::sensors::Snapshot;
use controller::{EffortController, EffortReason, GovernorInputs};
use log::info;

/// The governor of a running daemon.
#[derive(Debug)]
pub(super) struct EffortGovernor {
    settings: config::Governor,
    controller: EffortController,
    /// Threads without a limit.
    threads: usize,
    state: Option<GovernorState>,
}

impl EffortGovernor {
    /// A governor with the settings of a start, for so many threads.
    pub fn new(settings: config::Governor, threads: usize) -> Self {
        let controller = EffortController::new(settings.target_c, settings.limit_watts, threads);
        EffortGovernor { settings, controller, threads, state: None }
    }

    /// Adopts the settings of a reload. What was learned is kept where the limits are the same.
    pub fn adopt(&mut self, settings: &config::Governor) {
        let limits = |of: &config::Governor| (of.target_c, of.limit_watts);
        if limits(&self.settings) != limits(settings) {
            self.controller = EffortController::new(settings.target_c, settings.limit_watts, self.threads);
        }
        self.settings = settings.clone();
    }

    /// Sets how much the worker may compute, from what the sensors say; to be called once a second. `minute`: of the day, in
    /// local time. Returns the state where the governor is on.
    pub fn control(
        &mut self,
        host: &Snapshot,
        minute: u16,
        is_computing: bool,
        worker: &WorkerControls,
    ) -> Option<GovernorState> {
        let is_quiet = self.settings.quiet_hours.is_some_and(|hours| hours.contains(minute));
        let is_reduced = is_quiet || (self.settings.on_battery && host.is_on_battery);
        let value = |reading: &Option<Reading>| reading.as_ref().map(|reading| reading.value);
        let inputs = GovernorInputs {
            temperature_c: value(&host.thermal.cpu),
            watts: value(&host.power),
            is_computing,
            allowed: if is_reduced { f64::from(self.settings.reduced_percent) / 100.0 } else { 1.0 },
        };
        let (effort, reason) = self.controller.step(inputs);
        let of_threads = effort * self.threads as f64;
        // A product that should be whole may be a little more.
        let threads = ((of_threads - 1e-9).ceil() as usize).clamp(1, self.threads);
        let percent = (100.0 * of_threads / threads as f64).round().clamp(1.0, 100.0) as u8;
        worker.set_effort(threads, percent);
        let reason = match reason {
            EffortReason::Unlimited => GovernorReason::None,
            EffortReason::Temperature => GovernorReason::Temperature,
            EffortReason::Power => GovernorReason::Power,
            EffortReason::Reduced if is_quiet => GovernorReason::QuietHours,
            EffortReason::Reduced => GovernorReason::Battery,
        };
        let config::Governor { target_c, limit_watts, .. } = self.settings;
        let state = GovernorState { threads, percent, reason, target_c, limit_watts };
        let before = self.state.replace(state);
        if before.is_some_and(|before| before != state) {
            self.log_change(state, inputs);
        }
        self.is_on().then_some(state)
    }

    fn log_change(&self, state: GovernorState, inputs: GovernorInputs) {
        let GovernorState { threads, percent, reason, .. } = state;
        let reading = |value: Option<f64>, unit: &str| {
            value.map_or("unknown".to_owned(), |value| format!("{value:.1} {unit}"))
        };
        let why = match reason {
            GovernorReason::None => "nothing limits it".to_owned(),
            GovernorReason::Temperature => {
                format!("the processor has {}", reading(inputs.temperature_c, "°C"))
            }
            GovernorReason::Power => format!("the power is {}", reading(inputs.watts, "W")),
            GovernorReason::QuietHours => "these are quiet hours".to_owned(),
            GovernorReason::Battery => "a battery supplies the machine".to_owned(),
        };
        info!(
            GOVERNOR_THREADS = threads, GOVERNOR_PERCENT = percent, GOVERNOR_REASON = reason.name();
            "governor: {threads} of {} threads, {percent} % of the time: {why}", self.threads
        );
    }

    /// Whether the configuration names any limit.
    fn is_on(&self) -> bool {
        let config::Governor { target_c, limit_watts, quiet_hours, on_battery, .. } = &self.settings;
        target_c.is_some() || limit_watts.is_some() || quiet_hours.is_some() || *on_battery
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(quiet_hours: Option<&str>, on_battery: bool) -> config::Governor {
        let quiet_hours = quiet_hours.map(|hours| hours.parse().expect("hours"));
        config::Governor { target_c: None, limit_watts: None, quiet_hours, on_battery, reduced_percent: 40 }
    }

    #[test]
    fn quiet_hours_and_the_battery_reduce_the_effort_at_once() {
        let worker = WorkerControls::default();
        let mut governor = EffortGovernor::new(settings(Some("22:00-07:00"), true), 4);
        let state = |threads, percent, reason| {
            Some(GovernorState { threads, percent, reason, target_c: None, limit_watts: None })
        };
        let (plugged, battery) =
            (Snapshot::default(), Snapshot { is_on_battery: true, ..Snapshot::default() });
        assert_eq!(governor.control(&plugged, 12 * 60, true, &worker), state(4, 100, GovernorReason::None));
        assert_eq!(
            governor.control(&plugged, 22 * 60, true, &worker),
            state(2, 80, GovernorReason::QuietHours)
        );
        assert_eq!((worker.thread_limit(), worker.computing_percent()), (2, 80));
        assert_eq!(governor.control(&battery, 7 * 60, true, &worker), state(2, 80, GovernorReason::Battery));
        assert_eq!(governor.control(&plugged, 7 * 60, true, &worker), state(4, 100, GovernorReason::None));
        assert_eq!((worker.thread_limit(), worker.computing_percent()), (4, 100));
        governor.adopt(&settings(None, false));
        assert_eq!(governor.control(&battery, 22 * 60, true, &worker), None, "it is off");
    }

    #[test]
    fn the_owners_limit_on_threads_counts_too() {
        let worker = WorkerControls::default();
        worker.limit_threads(1);
        let mut governor = EffortGovernor::new(settings(Some("22:00-07:00"), false), 4);
        governor.control(&Snapshot::default(), 0, true, &worker);
        assert_eq!(worker.thread_limit(), 1);
    }
}
