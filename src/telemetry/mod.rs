//! Telemetry of the host and the daemon: counters, latencies, sensors, energy, alerts, the journal.
//!
//! The daemon records events, and gets a [`Report`]. Deliberately knows nothing of the engine or the transports,
//! decides nothing, starts no task and never sees the text of a prompt.

pub mod alerts;
pub mod energy;
mod journal;
mod latency;
pub mod log;
pub mod prometheus;
mod request_stats;
mod rfc3339;
pub mod sensors;
mod structured_output;
pub mod textfile;

pub use journal::{journal_line, write_alert, write_answered, write_journal};
pub use latency::{Distribution, Quantity};
pub use rfc3339::rfc3339;
pub use structured_output::StructuredOutputCounters;

use crate::config;
use crate::protocol::{
    CacheCounts, Code, Cpu, Done, Energy, FinishReason, LogLines, Memory, MqttLink, Reading, Report,
    RequestEnergy, Requests, ShortlistCounts, Throttled,
};
use alerts::{Alert, Alerts, Conditions, PlannedMemory};
use energy::{EnergyMark, Meter};
use request_stats::RequestStats;
use sensors::Snapshot;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Everything counted since the daemon started. It is shared by `Arc`; no lock is held for longer than an addition
/// takes.
#[derive(Debug)]
pub struct Telemetry {
    started: Instant,
    budget_bytes: u64,
    received: Counter,
    completed: Counter,
    refused: Counter,
    budget_exceeded: Counter,
    cancelled: Counter,
    timed_out: Counter,
    /// Refused, or timed out while answered; without requests that clients cancelled or that a stop cut off.
    failed: Counter,
    queued: Counter,
    running: Counter,
    cache_hits: Counter,
    cache_misses: Counter,
    /// Counters of answers that had to fit a `response_format`.
    pub structured_output: StructuredOutputCounters,
    /// At most so many threads compute; 0 until it is set.
    thread_limit: Counter,
    about: OnceLock<About>,
    request_stats: Mutex<RequestStats>,
    meter: Mutex<Meter>,
    last_observed: Mutex<LastObserved>,
    alerts: Mutex<Alerts>,
}

/// The model and the kernel that run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The name of the model, from its metadata.
    pub model: String,
    /// The name of the kernel table.
    pub kernel: String,
}

/// The last snapshots of the host and of the broker link.
#[derive(Debug, Default)]
struct LastObserved {
    host: Snapshot,
    link: Option<MqttLink>,
}

/// A counter or a gauge. They are independent of each other, so relaxed ordering is enough.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

/// A request that is being computed, until this is dropped.
#[derive(Debug)]
pub struct ComputeSpan<'t> {
    meter: &'t Mutex<Meter>,
    begun: EnergyMark,
}

impl ComputeSpan<'_> {
    /// The energy until the last power reading, in total and per token; `None` where the power was not known
    /// throughout.
    pub fn cost(&self, tokens: u32) -> Option<RequestEnergy> {
        // One request is computed at a time, so its share is 1.
        locked(self.meter).cost(self.begun, 1.0, tokens)
    }
}

impl Drop for ComputeSpan<'_> {
    fn drop(&mut self) {
        locked(self.meter).end();
    }
}

impl Telemetry {
    /// Telemetry of a daemon that just started; `budget_bytes` is its memory budget.
    pub fn new(budget_bytes: u64) -> Self {
        Telemetry {
            started: Instant::now(),
            budget_bytes,
            received: Counter::default(),
            completed: Counter::default(),
            refused: Counter::default(),
            budget_exceeded: Counter::default(),
            cancelled: Counter::default(),
            timed_out: Counter::default(),
            failed: Counter::default(),
            queued: Counter::default(),
            running: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            structured_output: StructuredOutputCounters::default(),
            thread_limit: Counter::default(),
            about: OnceLock::new(),
            request_stats: Mutex::default(),
            meter: Mutex::default(),
            last_observed: Mutex::default(),
            alerts: Mutex::new(Alerts::new(config::Alerts::off())),
        }
    }

    /// A transport received a request.
    pub fn received(&self) {
        self.received.add();
    }

    /// A transport answered with an `error` event by itself, before the request was admitted.
    pub fn refused(&self) {
        self.refused.add();
        self.failed.add();
    }

    /// An admitted request got an `error` event, `took` after it arrived.
    pub fn failed(&self, code: Code, took: Duration) {
        self.refused.add();
        match code {
            Code::Cancelled => self.cancelled.add(),
            Code::Timeout => self.timed_out.add(),
            Code::BudgetExceeded => self.budget_exceeded.add(),
            _ => {}
        }
        // Neither is a failure of the daemon.
        if !matches!(code, Code::Cancelled | Code::ShuttingDown) {
            self.failed.add();
        }
        locked(&self.request_stats).fail(code, took);
    }

    /// An answer was computed, to its end or until it was cut short.
    pub fn completed(&self, done: &Done) {
        self.completed.add();
        match done.finish_reason {
            FinishReason::Cancelled => self.cancelled.add(),
            FinishReason::Timeout => {
                self.timed_out.add();
                self.failed.add();
            }
            FinishReason::Stop | FinishReason::Length => {}
        }
        locked(&self.request_stats).add(Instant::now(), done);
    }

    /// Sets the counters of the screened head, which count from the start.
    pub fn set_screen_counts(&self, counts: ShortlistCounts) {
        locked(&self.request_stats).set_screen_counts(counts);
    }

    /// A request was answered from the cache: it counts as completed, but not in the latencies.
    pub fn cache_hit(&self) {
        self.cache_hits.add();
        self.completed.add();
    }

    /// A request was not in the cache.
    pub fn cache_miss(&self) {
        self.cache_misses.add();
    }

    /// Sets what runs here, once the model is loaded; later calls have no effect.
    pub fn describe(&self, about: About) {
        let _ = self.about.set(about);
    }

    /// What runs here; `None` before it is loaded.
    pub fn about(&self) -> Option<&About> {
        self.about.get()
    }

    /// Sets how many threads may compute from now on, at least 1.
    pub fn set_thread_limit(&self, threads: usize) {
        self.thread_limit.set(threads as u64);
    }

    /// Sets how many requests wait and run now.
    pub fn set_queue(&self, queued: usize, running: usize) {
        self.queued.set(queued as u64);
        self.running.set(running as u64);
    }

    /// Records a snapshot of the sensors, power included.
    pub fn observe(&self, now: Instant, host: Snapshot) {
        self.record_power(now, host.power.as_ref());
        locked(&self.last_observed).host = host;
    }

    /// The last snapshot of the host.
    pub fn host(&self) -> Snapshot {
        locked(&self.last_observed).host.clone()
    }

    /// Records the state of the broker link.
    pub fn set_link(&self, link: MqttLink) {
        locked(&self.last_observed).link = Some(link);
    }

    /// Sets the rules of the alerts; before the first call all are switched off.
    pub fn set_alert_rules(&self, rules: config::Alerts) {
        locked(&self.alerts).set_rules(rules);
    }

    /// Sets the memory plan: what it uses, and the reserve that stays free, both in bytes.
    pub fn set_planned_memory(&self, held: usize, reserve: usize) {
        let percent = |bytes: usize| 100.0 * bytes as f64 / self.budget_bytes.max(1) as f64;
        locked(&self.alerts)
            .set_planned(PlannedMemory { used_percent: percent(held), reserve_percent: percent(reserve) });
    }

    /// Evaluates the alerts on all that was recorded until now and returns those that changed; `depth` is the
    /// queue's depth. To be called about once a second.
    pub fn evaluate_alerts(&self, now: Instant, depth: usize) -> Vec<Alert> {
        let conditions = self.conditions(now, depth);
        locked(&self.alerts).evaluate(now, &conditions)
    }

    /// Names of the alerts now raised.
    pub fn raised_alerts(&self) -> Vec<String> {
        locked(&self.alerts).raised().map(str::to_owned).collect()
    }

    fn conditions(&self, now: Instant, depth: usize) -> Conditions {
        let latency = locked(&self.request_stats).latency(now);
        let seen = locked(&self.last_observed);
        let (thermal, link) = (&seen.host.thermal, seen.link.as_ref());
        let flags = thermal.throttling.as_ref().map(|throttling| throttling.now);
        let under_voltage = thermal.under_voltage.as_ref().map(|flag| flag.value);
        let budget = (self.budget_bytes > 0).then_some(self.budget_bytes as f64);
        let held = seen.host.memory.process_bytes.zip(budget);
        Conditions {
            temperature_c: thermal.cpu.as_ref().map(|cpu| cpu.value),
            // Under-voltage has an alert of its own.
            throttled: flags.map(|flags| Throttled { under_voltage: false, ..flags }.any()),
            under_voltage: under_voltage.or(flags.map(|flags| flags.under_voltage)),
            memory_percent: held.map(|(bytes, budget)| 100.0 * bytes as f64 / budget),
            cpu_percent: seen.host.cpu.host_percent.map(f64::from),
            tokens_per_second: latency.token_ms.last_minute.p50.filter(|ms| *ms > 0.0).map(|ms| 1000.0 / ms),
            failed: self.failed.get(),
            ended: self.completed.get() + self.refused.get(),
            ttft_ms: latency.ttft_ms.last_minute.p95,
            queue_percent: Some(100.0 * self.queued.get() as f64 / depth.max(1) as f64),
            broker: link.map(|link| link.connected),
            subscription: link.map(|link| link.deaf),
            storage: link.map(|link| link.storage_problem.is_some()),
        }
    }

    /// Integrates a power reading into the energy. To be called about once a second, and at both ends of each
    /// request; further calls do no harm.
    pub fn record_power(&self, now: Instant, reading: Option<&Reading>) {
        locked(&self.meter).sample(now, reading);
    }

    /// A request has just been computed at `now`; `read` reads the power, and is called only where a reading is
    /// needed.
    pub fn computing_ended(&self, now: Instant, read: impl FnOnce() -> Option<Reading>) {
        let is_settled = locked(&self.meter).settle_computing(now);
        if !is_settled {
            self.record_power(now, read().as_ref());
        }
    }

    /// Whether more readings of the power during computing make its energy more exact.
    pub fn is_power_momentary(&self) -> bool {
        locked(&self.meter).is_momentary()
    }

    /// Whether the power was read so recently that it need not be read again.
    pub fn is_power_fresh(&self, now: Instant) -> bool {
        locked(&self.meter).is_fresh(now)
    }

    /// Sets the idle power that the owner configured, in watts, for a board whose power is estimated.
    pub fn set_configured_idle_watts(&self, watts: Option<f64>) {
        locked(&self.meter).set_idle(watts);
    }

    /// A request begins to compute; take a power reading just before.
    pub fn computing_began(&self) -> ComputeSpan<'_> {
        ComputeSpan { meter: &self.meter, begun: locked(&self.meter).begin() }
    }

    /// Histograms since start: one for each quantity of the answers, then one for each error code of the requests
    /// that failed.
    pub fn distributions(&self) -> Vec<Distribution> {
        locked(&self.request_stats).distributions()
    }

    /// Tokens per second while answers are generated; `None` before the first answer.
    pub fn tokens_per_second(&self) -> Option<f64> {
        locked(&self.request_stats).throughput().tokens_per_second
    }

    /// The report: counters and latencies, and the last snapshots of host and broker link; `now` is its timestamp.
    pub fn report(&self, now: SystemTime) -> Report {
        let (answers, seen) = (locked(&self.request_stats), locked(&self.last_observed));
        let host = &seen.host;
        Report {
            time: rfc3339(now),
            uptime_s: self.started.elapsed().as_secs(),
            power: host.power.clone(),
            thermal: host.thermal.clone(),
            cpu: Cpu { thread_limit: self.thread_limit(), ..host.cpu.clone() },
            memory: Memory { budget_bytes: self.budget_bytes, ..host.memory.clone() },
            latency: answers.latency(Instant::now()),
            throughput: answers.throughput(),
            requests: self.requests(),
            energy: self.energy(&answers),
            cache: CacheCounts { hits: self.cache_hits.get(), misses: self.cache_misses.get() },
            structured_output: self.structured_output.counts(),
            mqtt: seen.link.clone(),
            alerts: self.raised_alerts(),
            log: LogLines { dropped: log::dropped() },
        }
    }

    fn thread_limit(&self) -> Option<usize> {
        usize::try_from(self.thread_limit.get()).ok().filter(|threads| *threads > 0)
    }

    fn requests(&self) -> Requests {
        Requests {
            received: self.received.get(),
            completed: self.completed.get(),
            refused: self.refused.get(),
            budget_exceeded: self.budget_exceeded.get(),
            cancelled: self.cancelled.get(),
            timed_out: self.timed_out.get(),
            queued: self.queued.get(),
            running: self.running.get(),
        }
    }

    fn energy(&self, answers: &RequestStats) -> Option<Energy> {
        let meter = locked(&self.meter);
        let joules = meter.joules()?;
        let Reading { method, source, scope, .. } = meter.reading()?.clone();
        Some(Energy {
            joules,
            joules_above_idle: answers.joules_above_idle(),
            requests_joules: answers.joules(),
            joules_per_token: answers.joules_per_token(),
            joules_per_token_above_idle: answers.joules_per_token_above_idle(),
            idle_watts: meter.idle_watts(),
            method,
            source,
            scope,
        })
    }
}

impl Counter {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn set(&self, level: u64) {
        self.0.store(level, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Locks a mutex also after a panic in another thread: the sums are consistent at every step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::request_stats::tests::done;
    use super::*;
    use crate::protocol::{Method, Throttling};

    fn watts(value: f64) -> Reading {
        let (source, scope) = ("/sys/p".into(), "as wired".into());
        Reading { value, unit: "W", method: Method::Measured, source, scope }
    }

    fn report(telemetry: &Telemetry) -> Report {
        telemetry.report(SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_daemon_that_did_nothing_reports_no_made_up_numbers() {
        let report = report(&Telemetry::new(7));
        assert_eq!(report.time, "1970-01-01T00:00:00Z");
        assert_eq!((report.power, report.energy, report.mqtt), (None, None, None));
        assert_eq!((report.requests, report.latency), Default::default());
        assert_eq!(report.throughput.tokens_per_second, None);
        assert_eq!(report.memory.budget_bytes, 7);
    }

    #[test]
    fn each_event_is_counted_where_it_belongs() {
        let telemetry = Telemetry::new(0);
        telemetry.received();
        telemetry.received();
        telemetry.refused();
        for code in [Code::BudgetExceeded, Code::Cancelled, Code::Timeout] {
            telemetry.failed(code, Duration::from_secs(1));
        }
        telemetry.cache_hit();
        telemetry.cache_miss();
        telemetry.set_queue(3, 1);
        let Report { requests, cache, .. } = report(&telemetry);
        let expected = Requests {
            received: 2,
            completed: 1,
            refused: 4,
            budget_exceeded: 1,
            cancelled: 1,
            timed_out: 1,
            queued: 3,
            running: 1,
        };
        assert_eq!((requests, cache), (expected, CacheCounts { hits: 1, misses: 1 }));
    }

    #[test]
    fn energy_names_the_power_reading_behind_it() {
        let (telemetry, start) = (Telemetry::new(0), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        (0..=20).for_each(|s| telemetry.record_power(after(s), Some(&watts(4.0))));
        let work = telemetry.computing_began();
        telemetry.record_power(after(25), Some(&watts(6.0)));
        let cost = work.cost(10).expect("known");
        let expected = RequestEnergy {
            joules: 30.0,
            joules_above_idle: Some(10.0),
            joules_per_token: Some(3.0),
            method: Method::Measured,
        };
        assert_eq!(cost, expected);
        drop(work);
        telemetry.completed(&Done { energy: Some(cost), ..done(3, 10) });
        let energy = report(&telemetry).energy.expect("power was read");
        assert_eq!(
            (energy.joules, energy.requests_joules, energy.joules_per_token),
            (110.0, 30.0, Some(3.0))
        );
        assert_eq!((energy.joules_above_idle, energy.joules_per_token_above_idle), (Some(10.0), Some(1.0)));
        assert_eq!(energy.idle_watts, Some(4.0));
        assert_eq!((energy.source.as_str(), energy.scope.as_str()), ("/sys/p", "as wired"));
    }

    #[test]
    fn dropped_work_leaves_the_device_idle() {
        let (telemetry, start) = (Telemetry::new(0), Instant::now());
        telemetry.record_power(start, Some(&watts(4.0)));
        drop(telemetry.computing_began());
        (1..=20).for_each(|s| telemetry.record_power(start + Duration::from_secs(s), Some(&watts(4.0))));
        assert_eq!(report(&telemetry).energy.expect("power was read").idle_watts, Some(4.0));
    }

    #[test]
    fn without_a_sensor_a_request_has_no_energy() {
        let (telemetry, now) = (Telemetry::new(0), Instant::now());
        telemetry.record_power(now, None);
        assert_eq!(telemetry.computing_began().cost(3), None);
        assert_eq!(report(&telemetry).energy, None);
    }

    /// Each condition has its worst reading, so an alert that is not raised is not evaluated.
    #[test]
    fn alerts_are_evaluated_on_host_link_queue_and_requests() {
        let (telemetry, now) = (Telemetry::new(100), Instant::now());
        telemetry.set_alert_rules(config::Alerts {
            hold: Duration::ZERO,
            temperature_c: Some(80.0),
            throttled: true,
            under_voltage: true,
            memory_percent: Some(95.0),
            cpu_percent: Some(90.0),
            tokens_per_second: Some(6.0),
            error_percent: Some(50.0),
            ttft_ms: Some(2900.0),
            queue_percent: Some(90.0),
            broker_link_s: Some(0.5),
            subscription: true,
            storage: true,
        });
        assert_eq!(telemetry.evaluate_alerts(now, 16), [], "nothing is known yet");
        let mut host = Snapshot::default();
        host.thermal.cpu = Some(watts(81.0));
        let all = Throttled { under_voltage: true, throttled: true, ..Throttled::default() };
        let (source, scope) = ("/dev/vcio".to_owned(), "board".to_owned());
        host.thermal.throttling =
            Some(Throttling { now: all, since_boot: all, method: Method::Measured, source, scope });
        host.cpu.host_percent = Some(100.0);
        host.memory.process_bytes = Some(96);
        telemetry.observe(now, host);
        telemetry.set_queue(15, 1);
        telemetry.completed(&done(10, 21));
        (0..5).for_each(|_| telemetry.failed(Code::QueueFull, Duration::ZERO));
        telemetry.set_link(MqttLink {
            deaf: true,
            storage_problem: Some("full".into()),
            ..MqttLink::default()
        });
        let after = |ms| now + Duration::from_millis(ms);
        let raised = [1, 600].map(|ms| telemetry.evaluate_alerts(after(ms), 16).len());
        assert_eq!(raised, [11, 1], "the broker is away for half a second only then");
        assert_eq!(report(&telemetry).alerts, alerts::Kind::ALL.map(alerts::Kind::name));
    }

    /// The plan takes the whole budget of 1400 MiB, of which 6 are the reserve.
    #[test]
    fn what_the_plan_foresees_is_no_alert_and_what_goes_beyond_it_is() {
        let (telemetry, start, mib) = (Telemetry::new(1400 << 20), Instant::now(), 1u64 << 20);
        telemetry.set_planned_memory(1394 << 20, 6 << 20);
        let rules = config::Alerts { memory_percent: Some(95.0), ..config::Alerts::off() };
        telemetry.set_alert_rules(rules.clone());
        let mut second = 0;
        let mut held = |mb: u64| {
            let mut host = Snapshot::default();
            host.memory.process_bytes = Some(mb * mib);
            second += 1;
            let now = start + Duration::from_secs(second);
            telemetry.observe(now, host);
            telemetry.evaluate_alerts(now, 1);
            telemetry.raised_alerts().len()
        };
        assert_eq!([1330, 1372, 1394, 1395, 1394, 1389, 1387].map(&mut held), [0, 0, 0, 1, 1, 1, 0]);
        // With a smaller plan the owner's threshold counts.
        telemetry.set_planned_memory(400 << 20, 6 << 20);
        assert_eq!([1329, 1330, 1261, 1260].map(&mut held), [0, 1, 1, 0]);
    }

    #[test]
    fn what_clients_cancel_is_no_error() {
        let (telemetry, now) = (Telemetry::new(0), Instant::now());
        let rules = config::Alerts { error_percent: Some(1.0), ..config::Alerts::off() };
        telemetry.set_alert_rules(rules);
        telemetry.evaluate_alerts(now, 1);
        (0..9).for_each(|_| telemetry.failed(Code::Cancelled, Duration::ZERO));
        telemetry.completed(&Done { finish_reason: FinishReason::Cancelled, ..done(1, 1) });
        assert_eq!(telemetry.evaluate_alerts(now + Duration::from_secs(1), 1), []);
        (0..9).for_each(|_| {
            telemetry.completed(&Done { finish_reason: FinishReason::Timeout, ..done(1, 1) });
        });
        assert_eq!(telemetry.evaluate_alerts(now + Duration::from_secs(2), 1).len(), 1);
    }

    #[test]
    fn threads_count_together() {
        let telemetry = Telemetry::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| telemetry.received()));
            }
        });
        assert_eq!(report(&telemetry).requests.received, 4000);
    }

    #[test]
    fn a_report_is_one_json_object_with_null_for_the_unknown() {
        let json = serde_json::to_value(report(&Telemetry::new(0))).expect("plain data");
        for key in ["power", "energy", "mqtt"] {
            assert!(json[key].is_null(), "{key}");
        }
        for key in ["thermal", "cpu", "memory", "latency", "throughput", "requests", "cache"] {
            assert!(json[key].is_object(), "{key}");
        }
        assert!(json["alerts"].is_array() && json["uptime_s"].is_u64());
    }
}
