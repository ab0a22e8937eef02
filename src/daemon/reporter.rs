//! What the daemon says of itself: once in the `info` topic, and every interval in a report.
//!
//! Deliberately knows no model: what it says of one is passed in.

use super::locked;
use super::memory_plan::Plan;
use super::queue::Queue;
use super::report_schedule::Timetable;
use super::textfile_exporter::Exporter;
use super::worker::Facts;
use crate::config::Config;
use crate::protocol::MqttLink;
use crate::telemetry::alerts::Alert;
use crate::telemetry::sensors::{self, Sensors};
use crate::telemetry::{self, Telemetry};
use crate::transport::mqtt::LinkState;
use log::warn;
use serde::Serialize;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Between two looks at the host.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at momentary power while something is computed.
const POWER_INTERVAL: Duration = Duration::from_millis(100);

/// What the retained `info` topic says.
pub(super) fn info_payload(config: &Config, facts: &Facts, plan: &Plan) -> Vec<u8> {
    #[derive(Serialize)]
    struct Info<'a> {
        version: &'a str,
        device: &'a str,
        model: &'a str,
        architecture: &'a str,
        kernel: &'a str,
        context: usize,
        budget: Budget,
    }
    #[derive(Serialize)]
    struct Budget {
        memory_mb: u64,
        planned_mb: usize,
        threads: usize,
        memory_limit_enforced: bool,
    }
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        device: &config.device.id,
        model: &facts.model,
        architecture: &facts.architecture,
        kernel: facts.kernel,
        context: plan.context,
        budget: Budget {
            memory_mb: config.budget.memory_bytes >> 20,
            planned_mb: plan.total().div_ceil(1 << 20),
            threads: config.budget.threads,
            memory_limit_enforced: sensors::memory_limit(Path::new("/")).bytes().is_some(),
        },
    };
    serde_json::to_vec(&info).expect("strings and numbers")
}

/// Looks at the host, the queue and the broker link again and again, for whoever asks for a report.
pub(super) struct Sampler {
    pub sensors: Arc<Mutex<Sensors>>,
    pub telemetry: Arc<Telemetry>,
    pub queue: Arc<Queue>,
    pub link: Option<watch::Receiver<LinkState>>,
    /// Where alerts go; nowhere without a broker.
    pub alerts: Option<mpsc::Sender<Alert>>,
    /// Asks for a report out of turn.
    pub hurry: Arc<Notify>,
    /// How many requests may wait.
    pub depth: usize,
}

impl Sampler {
    pub async fn run(self: Arc<Self>) {
        let mut interval = tokio::time::interval(SAMPLE_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => self.sample(Instant::now()),
                () = self.computing() => self.sample_power(Instant::now()),
            }
        }
    }

    /// Waits until something has been computed for a while.
    async fn computing(&self) {
        self.queue.begun().await;
        tokio::time::sleep(POWER_INTERVAL).await;
    }

    /// Most answers are shorter than a second, and a sensor of momentary power knows nothing of what it did not see.
    fn sample_power(&self, now: Instant) {
        if self.telemetry.is_power_momentary() {
            let reading = locked(&self.sensors).power(now);
            self.telemetry.power(now, reading.as_ref());
        }
    }

    fn sample(&self, now: Instant) {
        let host = locked(&self.sensors).read(now);
        self.telemetry.observe(now, host);
        let (waiting, running) = self.queue.level();
        self.telemetry.set_queue(waiting, running);
        if let Some(link) = &self.link {
            self.telemetry.set_link(link_report(&link.borrow()));
        }
        for alert in self.telemetry.look_for_alerts(now, self.depth) {
            telemetry::write_alert(&alert);
            self.hurry.notify_one();
            self.pass_on(alert);
        }
    }

    /// The broker link's loop always turns, and keeps what the broker cannot be told yet.
    fn pass_on(&self, alert: Alert) {
        let Some(door) = &self.alerts else { return };
        if let Err(mpsc::error::TrySendError::Full(alert)) = door.try_send(alert) {
            warn!("the broker is not told of the alert {}: its link stands still", alert.kind.name());
        }
    }
}

/// Makes a report every interval and where one is asked for, for the broker, the journal and node_exporter.
pub(super) struct Reporter {
    pub reports: watch::Sender<Option<Arc<Vec<u8>>>>,
    pub sampler: Arc<Sampler>,
    /// Between two reports; it may change.
    pub interval: watch::Receiver<Duration>,
    pub exporter: Exporter,
}

impl Reporter {
    pub async fn run(mut self) {
        let mut timetable = Timetable::new(tokio::time::Instant::now());
        self.export();
        loop {
            let interval = *self.interval.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(timetable.due(interval)) => {}
                () = self.sampler.hurry.notified() => {
                    timetable.hurry(tokio::time::Instant::now());
                    continue;
                }
                // A new interval counts from the last report. Its sender lives as long as the daemon.
                Ok(()) = self.interval.changed() => continue,
                () = self.exporter.is_moved() => {
                    self.export();
                    continue;
                }
            }
            timetable.made(tokio::time::Instant::now(), interval);
            self.report();
        }
    }

    /// Of this moment: between two looks the broker may have come or gone.
    fn report(&mut self) {
        self.sampler.sample(Instant::now());
        let report = self.sampler.telemetry.report(SystemTime::now());
        telemetry::write_journal(&report);
        let json = serde_json::to_vec(&report).expect("a report is plain data");
        self.reports.send_replace(Some(Arc::new(json)));
        self.export();
    }

    fn export(&mut self) {
        let telemetry = &self.sampler.telemetry;
        self.exporter.export(|| telemetry::prometheus::render(telemetry, SystemTime::now()));
    }
}

fn link_report(state: &LinkState) -> MqttLink {
    MqttLink {
        connected: state.connected,
        connects: state.connects,
        sessions_lost: state.sessions_lost,
        outbox: state.outbox,
        waiting: state.waiting,
        deaf: state.deaf,
        subscriptions_lost: state.subscriptions_lost,
        duplicates: state.duplicates,
        resent: state.resent,
        durable: state.durable,
        storage_problem: state.storage_problem.clone(),
        dropped: state.dropped,
        problem: state.problem.clone(),
    }
}
