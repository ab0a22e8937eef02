//! Samples the host and publishes reports: the `info` payload once, a report every interval, alerts when they
//! change.
//!
//! Deliberately knows no engine: what it reports of the model is passed in.

use super::governor::EffortGovernor;
use super::health::{FaultDetector, HealthSample};
use super::locked;
use super::memory_plan::MemoryPlan;
use super::model_setup::EngineInfo;
use super::queue::Queue;
use super::report_schedule::ReportSchedule;
use super::textfile_exporter::TextfileExporter;
use crate::config::Config;
use crate::protocol::MqttLink;
use crate::telemetry::alerts::Alert;
use crate::telemetry::sensors::{self, Sensors};
use crate::telemetry::{self, Fault, Telemetry};
use log::warn;
use serde::Serialize;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Time between two samples of the host.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two samples of momentary power during computing.
const POWER_INTERVAL: Duration = Duration::from_millis(100);

/// The payload of the retained `info` topic.
pub(super) fn info_payload(config: &Config, engine_info: &EngineInfo, plan: &MemoryPlan) -> Vec<u8> {
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
        model: &engine_info.model,
        architecture: &engine_info.architecture,
        kernel: engine_info.kernel,
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

/// Samples the host and the broker link periodically for the telemetry, which counts requests itself.
pub(super) struct HostSampler {
    pub sensors: Arc<Mutex<Sensors>>,
    pub telemetry: Arc<Telemetry>,
    pub queue: Arc<Queue>,
    pub link: Option<watch::Receiver<MqttLink>>,
    /// The channel for alerts to the broker link; `None` without a broker.
    pub alerts: Option<mpsc::Sender<Alert>>,
    /// Requests an extra report.
    pub report_now: Arc<Notify>,
    /// The queue's depth.
    pub queue_depth: usize,
    pub governor: Arc<Mutex<EffortGovernor>>,
    pub faults: Mutex<FaultDetector>,
}

impl HostSampler {
    pub async fn run(self: Arc<Self>) {
        let mut interval = tokio::time::interval(SAMPLE_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => {
                    self.sample(Instant::now());
                    self.govern();
                }
                () = self.computing() => self.sample_power(Instant::now()),
            }
        }
    }

    /// Waits until a request has been computing for [`POWER_INTERVAL`].
    async fn computing(&self) {
        self.queue.running.begun().await;
        tokio::time::sleep(POWER_INTERVAL).await;
    }

    /// Most answers are shorter than a second, so a sensor of momentary power is sampled more often during
    /// computing.
    fn sample_power(&self, now: Instant) {
        if self.telemetry.is_power_momentary() {
            let reading = locked(&self.sensors).power(now);
            self.telemetry.record_power(now, reading.as_ref());
        }
    }

    fn sample(&self, now: Instant) {
        let host = locked(&self.sensors).read(now);
        self.telemetry.observe(now, host);
        if let Some(link) = &self.link {
            self.telemetry.set_link(link.borrow().clone());
        }
        if self.telemetry.health.set_faults(self.find_faults(now)) {
            self.report_now.notify_one();
        }
        for alert in self.telemetry.evaluate_alerts(now, self.queue_depth) {
            telemetry::write_alert(&alert);
            self.report_now.notify_one();
            self.forward_alert(alert);
        }
        self.telemetry.security.summarize(now);
        self.telemetry.record_history(now, SystemTime::now());
    }

    fn govern(&self) {
        let time = jiff::ZonedDateTime::now().time();
        let minute = 60 * time.hour() as u16 + time.minute() as u16;
        let (host, is_computing) = (self.telemetry.host(), self.queue.running.is_running());
        let state = locked(&self.governor).control(&host, minute, is_computing, &self.queue.worker);
        self.telemetry.set_governor(state);
    }

    fn find_faults(&self, now: Instant) -> Vec<Fault> {
        let (waiting, running) = self.queue.level();
        let sample = HealthSample {
            steps: self.queue.worker.steps(),
            is_busy: waiting + running > 0,
            is_memory_short: self.queue.memory.is_short(),
            is_unsubscribed: self.link.as_ref().is_some_and(|link| {
                let link = link.borrow();
                link.connected && !link.subscribed
            }),
        };
        locked(&self.faults).faults(sample, now)
    }

    /// The broker link takes alerts at any time, and keeps those that the broker cannot receive yet.
    fn forward_alert(&self, alert: Alert) {
        let Some(channel) = &self.alerts else { return };
        if let Err(mpsc::error::TrySendError::Full(alert)) = channel.try_send(alert) {
            warn!("the alert {} is not published: the broker link does not respond", alert.kind.name());
        }
    }
}

/// Makes a report every interval and on request, for the broker, the journal and node_exporter.
pub(super) struct Reporter {
    pub reports: watch::Sender<Option<Arc<Vec<u8>>>>,
    pub sampler: Arc<HostSampler>,
    /// Time between two reports; a reload may change it.
    pub interval: watch::Receiver<Duration>,
    pub exporter: TextfileExporter,
}

impl Reporter {
    pub async fn run(mut self) {
        let mut timetable = ReportSchedule::new(tokio::time::Instant::now());
        self.export();
        loop {
            let interval = *self.interval.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(timetable.due(interval)) => {}
                () = self.sampler.report_now.notified() => {
                    timetable.request_extra(tokio::time::Instant::now());
                    continue;
                }
                // A new interval counts from the last report. The sender lives as long as the daemon.
                Ok(()) = self.interval.changed() => continue,
                () = self.exporter.path_changed() => {
                    self.export();
                    continue;
                }
            }
            timetable.record(tokio::time::Instant::now(), interval);
            self.report();
        }
    }

    /// Samples once more, since the broker link may have changed since the last sample.
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
