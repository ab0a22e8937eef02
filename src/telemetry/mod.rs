//! What the host and the daemon are doing: counters, latencies, sensors, energy, the journal.
//!
//! The daemon tells it what happened, and it answers with a [`Report`]. Deliberately knows nothing
//! of the engine or the doors, decides nothing, starts no task and never sees a prompt's text.

pub mod alerts;
pub mod energy;
mod journal;
mod latency;
pub mod log;
pub mod prometheus;
mod request_stats;
mod rfc3339;
pub mod sensors;
pub mod textfile;

pub use journal::{journal_line, write_alert, write_answered, write_journal};
pub use latency::{Distribution, Quantity};
pub use rfc3339::rfc3339;

use crate::config;
use crate::protocol::{
    Cache, Code, Cpu, Done, Energy, FinishReason, LogLines, Memory, MqttLink, Reading, Report, RequestEnergy,
    Requests, Screen, Throttled,
};
use alerts::{Alert, Alerts, Conditions, Planned};
use energy::{Mark, Meter};
use request_stats::Answers;
use sensors::Snapshot;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Everything counted since the daemon started. Shared by `Arc`; no call waits for more than
/// another one's sums.
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
    /// Refused, or out of time while answered; without what clients cancelled and what a stop cut off.
    failed: Counter,
    queued: Counter,
    running: Counter,
    cache_hits: Counter,
    cache_misses: Counter,
    /// 0 until it is set.
    thread_limit: Counter,
    about: OnceLock<About>,
    answers: Mutex<Answers>,
    meter: Mutex<Meter>,
    seen: Mutex<Seen>,
    alerts: Mutex<Alerts>,
}

/// What runs here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The model, as its file calls it.
    pub model: String,
    /// The kernel that computes it.
    pub kernel: String,
}

/// What was seen last of the host and of the broker link.
#[derive(Debug, Default)]
struct Seen {
    host: Snapshot,
    link: Option<MqttLink>,
}

/// A count or a level; each stands for itself, so no order among them is kept.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

/// A request that is being computed: until this is dropped, however that comes about.
#[derive(Debug)]
pub struct Work<'t> {
    meter: &'t Mutex<Meter>,
    begun: Mark,
}

impl Work<'_> {
    /// What it cost until the last power reading, and each of its tokens; `None` where the power was not known
    /// throughout.
    pub fn cost(&self, tokens: u32) -> Option<RequestEnergy> {
        // One request is computed at a time, and has all of it.
        locked(self.meter).cost(self.begun, 1.0, tokens)
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        locked(self.meter).end();
    }
}

impl Telemetry {
    /// Nothing happened yet; `budget_bytes` is the memory the configuration allows.
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
            thread_limit: Counter::default(),
            about: OnceLock::new(),
            answers: Mutex::default(),
            meter: Mutex::default(),
            seen: Mutex::default(),
            alerts: Mutex::new(Alerts::new(config::Alerts::off())),
        }
    }

    /// A request was read at some door.
    pub fn received(&self) {
        self.received.add();
    }

    /// Something was given an `error` event at a door: it is no request, or goes no further.
    pub fn refused(&self) {
        self.refused.add();
        self.failed.add();
    }

    /// A request that was taken in was given an `error` event, `took` after it came.
    pub fn failed(&self, code: Code, took: Duration) {
        self.refused.add();
        match code {
            Code::Cancelled => self.cancelled.add(),
            Code::Timeout => self.timed_out.add(),
            Code::BudgetExceeded => self.budget_exceeded.add(),
            _ => {}
        }
        // Neither is a fault of anybody's.
        if !matches!(code, Code::Cancelled | Code::ShuttingDown) {
            self.failed.add();
        }
        locked(&self.answers).fail(code, took);
    }

    /// An answer was computed to its end, or to what cut it short.
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
        locked(&self.answers).add(Instant::now(), done);
    }

    /// What screening the head did since start.
    pub fn screened(&self, counts: Screen) {
        locked(&self.answers).screened(counts);
    }

    /// A request was answered from the cache: completed, but no measure of the engine's speed.
    pub fn cache_hit(&self) {
        self.cache_hits.add();
        self.completed.add();
    }

    /// A request looked in the cache and found nothing.
    pub fn cache_miss(&self) {
        self.cache_misses.add();
    }

    /// Says what runs here, once it is loaded; the first word counts.
    pub fn describe(&self, about: About) {
        let _ = self.about.set(about);
    }

    /// What runs here; `None` before it is loaded.
    pub fn about(&self) -> Option<&About> {
        self.about.get()
    }

    /// How many threads may compute from now on, at least 1.
    pub fn set_thread_limit(&self, threads: usize) {
        self.thread_limit.set(threads as u64);
    }

    /// How many requests wait and run now.
    pub fn set_queue(&self, queued: usize, running: usize) {
        self.queued.set(queued as u64);
        self.running.set(running as u64);
    }

    /// Takes over what the sensors say now, power included.
    pub fn observe(&self, now: Instant, host: Snapshot) {
        self.power(now, host.power.as_ref());
        locked(&self.seen).host = host;
    }

    /// The host as it was seen last.
    pub fn host(&self) -> Snapshot {
        locked(&self.seen).host.clone()
    }

    /// Takes over how the broker link fares.
    pub fn set_link(&self, link: MqttLink) {
        locked(&self.seen).link = Some(link);
    }

    /// Alerts go by these rules from now on; without any there are none.
    pub fn set_alert_rules(&self, rules: config::Alerts) {
        locked(&self.alerts).set_rules(rules);
    }

    /// What the memory plan takes without what it keeps free, and that, both in bytes.
    pub fn set_planned(&self, held: usize, reserve: usize) {
        let percent = |bytes: usize| 100.0 * bytes as f64 / self.budget_bytes.max(1) as f64;
        locked(&self.alerts).set_planned(Planned { held: percent(held), reserve: percent(reserve) });
    }

    /// Looks whether something is wrong, or well again, with all that was told until now; at most `depth` requests
    /// may wait. Wanted about once a second.
    pub fn look_for_alerts(&self, now: Instant, depth: usize) -> Vec<Alert> {
        let conditions = self.conditions(now, depth);
        locked(&self.alerts).look(now, &conditions)
    }

    /// Names of the alerts now raised.
    pub fn raised_alerts(&self) -> Vec<String> {
        locked(&self.alerts).raised().map(str::to_owned).collect()
    }

    fn conditions(&self, now: Instant, depth: usize) -> Conditions {
        let latency = locked(&self.answers).latency(now);
        let seen = locked(&self.seen);
        let (thermal, link) = (&seen.host.thermal, seen.link.as_ref());
        let flags = thermal.throttling.as_ref().map(|throttling| throttling.now);
        let under_voltage = thermal.under_voltage.as_ref().map(|flag| flag.value);
        let budget = (self.budget_bytes > 0).then_some(self.budget_bytes as f64);
        let held = seen.host.memory.process_bytes.zip(budget);
        Conditions {
            temperature_c: thermal.cpu.as_ref().map(|cpu| cpu.value),
            // For want of power there is an alert of its own.
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

    /// Takes a power reading into the energy. Wanted about once a second, and at both ends of each request; one
    /// more does no harm.
    pub fn power(&self, now: Instant, reading: Option<&Reading>) {
        locked(&self.meter).sample(now, reading);
    }

    /// Computing has just ended at `now`; `read` reads the power where that says more than what is known.
    pub fn computed(&self, now: Instant, read: impl FnOnce() -> Option<Reading>) {
        let is_settled = locked(&self.meter).close(now);
        if !is_settled {
            self.power(now, read().as_ref());
        }
    }

    /// Whether readings of the power while something is computed make its energy known better.
    pub fn is_power_momentary(&self) -> bool {
        locked(&self.meter).is_momentary()
    }

    /// Whether the power was read so lately that reading it again would say nothing new.
    pub fn is_power_fresh(&self, now: Instant) -> bool {
        locked(&self.meter).is_fresh(now)
    }

    /// What the owner says that the board draws when idle, in watts, for a board whose power is estimated.
    pub fn set_idle_watts(&self, watts: Option<f64>) {
        locked(&self.meter).set_idle(watts);
    }

    /// The computing of a request begins; take a power reading just before.
    pub fn work(&self) -> Work<'_> {
        Work { meter: &self.meter, begun: locked(&self.meter).begin() }
    }

    /// Latencies since start at fixed bounds: those of answers, one a quantity, then the durations of what
    /// failed, one for each reason there was.
    pub fn distributions(&self) -> Vec<Distribution> {
        locked(&self.answers).distributions()
    }

    /// Tokens a second while answers are generated; `None` before the first.
    pub fn tokens_per_second(&self) -> Option<f64> {
        locked(&self.answers).throughput().tokens_per_second
    }

    /// Everything at once: host and broker link as seen last, `now` as the clock says.
    pub fn report(&self, now: SystemTime) -> Report {
        let (answers, seen) = (locked(&self.answers), locked(&self.seen));
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
            cache: Cache { hits: self.cache_hits.get(), misses: self.cache_misses.get() },
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

    fn energy(&self, answers: &Answers) -> Option<Energy> {
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

/// Counting goes on after a thread died while it counted: the sums are sound at every step.
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
        assert_eq!((requests, cache), (expected, Cache { hits: 1, misses: 1 }));
    }

    #[test]
    fn energy_says_what_the_power_behind_it_was() {
        let (telemetry, start) = (Telemetry::new(0), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        (0..=20).for_each(|s| telemetry.power(after(s), Some(&watts(4.0))));
        let work = telemetry.work();
        telemetry.power(after(25), Some(&watts(6.0)));
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
    fn work_that_is_given_up_without_a_word_leaves_the_device_idle() {
        let (telemetry, start) = (Telemetry::new(0), Instant::now());
        telemetry.power(start, Some(&watts(4.0)));
        drop(telemetry.work());
        (1..=20).for_each(|s| telemetry.power(start + Duration::from_secs(s), Some(&watts(4.0))));
        assert_eq!(report(&telemetry).energy.expect("power was read").idle_watts, Some(4.0));
    }

    #[test]
    fn without_a_sensor_a_request_has_no_energy() {
        let (telemetry, now) = (Telemetry::new(0), Instant::now());
        telemetry.power(now, None);
        assert_eq!(telemetry.work().cost(3), None);
        assert_eq!(report(&telemetry).energy, None);
    }

    /// Each with its worst reading: that it is raised shows that it is looked at.
    #[test]
    fn alerts_look_at_host_link_queue_and_requests() {
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
        assert_eq!(telemetry.look_for_alerts(now, 16), [], "nothing is known yet");
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
        let raised = [1, 600].map(|ms| telemetry.look_for_alerts(after(ms), 16).len());
        assert_eq!(raised, [11, 1], "the broker is away for half a second only then");
        assert_eq!(report(&telemetry).alerts, alerts::Kind::ALL.map(alerts::Kind::name));
    }

    /// 1400 MiB that the plan fills, 6 of them kept free.
    #[test]
    fn what_the_plan_foresees_is_no_alert_and_what_goes_beyond_it_is() {
        let (telemetry, start, mib) = (Telemetry::new(1400 << 20), Instant::now(), 1u64 << 20);
        telemetry.set_planned(1394 << 20, 6 << 20);
        let rules = config::Alerts { memory_percent: Some(95.0), ..config::Alerts::off() };
        telemetry.set_alert_rules(rules.clone());
        let mut second = 0;
        let mut held = |mb: u64| {
            let mut host = Snapshot::default();
            host.memory.process_bytes = Some(mb * mib);
            second += 1;
            let now = start + Duration::from_secs(second);
            telemetry.observe(now, host);
            telemetry.look_for_alerts(now, 1);
            telemetry.raised_alerts().len()
        };
        assert_eq!([1330, 1372, 1394, 1395, 1394, 1389, 1387].map(&mut held), [0, 0, 0, 1, 1, 1, 0]);
        // A plan that leaves room: the owner's threshold counts.
        telemetry.set_planned(400 << 20, 6 << 20);
        assert_eq!([1329, 1330, 1261, 1260].map(&mut held), [0, 1, 1, 0]);
    }

    #[test]
    fn what_clients_cancel_is_no_error() {
        let (telemetry, now) = (Telemetry::new(0), Instant::now());
        let rules = config::Alerts { error_percent: Some(1.0), ..config::Alerts::off() };
        telemetry.set_alert_rules(rules);
        telemetry.look_for_alerts(now, 1);
        (0..9).for_each(|_| telemetry.failed(Code::Cancelled, Duration::ZERO));
        telemetry.completed(&Done { finish_reason: FinishReason::Cancelled, ..done(1, 1) });
        assert_eq!(telemetry.look_for_alerts(now + Duration::from_secs(1), 1), []);
        (0..9).for_each(|_| {
            telemetry.completed(&Done { finish_reason: FinishReason::Timeout, ..done(1, 1) });
        });
        assert_eq!(telemetry.look_for_alerts(now + Duration::from_secs(2), 1).len(), 1);
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
