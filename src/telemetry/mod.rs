//! What the host and the daemon are doing: counters, latencies, sensors, energy, the journal.
//!
//! The daemon tells it what happened, and it answers with a [`Report`]. Deliberately knows nothing
//! of the engine or the doors, decides nothing, starts no task and never sees a prompt's text.

mod answers;
mod buckets;
pub mod energy;
pub mod histogram;
mod journal;
pub mod log;
pub mod prometheus;
pub mod sensors;
mod spread;
pub mod textfile;
mod time;
mod window;

pub use buckets::{Distribution, Quantity};
pub use journal::{journal_line, write_journal};
pub use time::rfc3339;

use crate::protocol::{
    Cache, Code, Cpu, Done, Energy, FinishReason, Memory, MqttLink, Reading, Report, RequestEnergy, Requests,
    Screen,
};
use answers::Answers;
use energy::Meter;
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
    power: Mutex<Power>,
    seen: Mutex<Seen>,
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

/// The energy so far, and the reading behind it.
#[derive(Debug, Default)]
struct Power {
    meter: Meter,
    last: Option<Reading>,
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
            power: Mutex::default(),
            seen: Mutex::default(),
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

    /// Takes a power reading into the energy. Wanted about once a second, and once at the end of
    /// each request before [`energy_between`](Self::energy_between); one more does no harm.
    pub fn power(&self, now: Instant, reading: Option<&Reading>) {
        let mut power = locked(&self.power);
        power.meter.sample(now, reading.map(|reading| reading.value));
        if let Some(reading) = reading {
            power.last = Some(reading.clone());
        }
    }

    /// Energy drawn between two moments; `None` where the power was not known throughout.
    pub fn energy_between(&self, start: Instant, end: Instant) -> Option<RequestEnergy> {
        let power = locked(&self.power);
        let joules = power.meter.between(start, end)?;
        let method = power.last.as_ref()?.method;
        Some(RequestEnergy { joules, joules_above_idle: None, joules_per_token: None, method })
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
            alerts: Vec::new(),
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
        let power = locked(&self.power);
        let joules = power.meter.joules()?;
        let Reading { method, source, scope, .. } = power.last.clone()?;
        Some(Energy {
            joules,
            joules_above_idle: None,
            requests_joules: answers.joules(),
            joules_per_token: answers.joules_per_token(),
            joules_per_token_above_idle: answers.joules_per_token_above_idle(),
            idle_watts: None,
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
    use super::answers::tests::done;
    use super::*;
    use crate::protocol::Method;

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
        telemetry.power(start, Some(&watts(4.0)));
        telemetry.power(start + Duration::from_secs(10), Some(&watts(5.0)));
        let end = start + Duration::from_secs(10);
        let cost = telemetry.energy_between(start + Duration::from_secs(6), end).expect("known");
        assert!((cost.joules - 20.0).abs() < 1e-9, "{cost:?}");
        telemetry.completed(&Done { energy: Some(cost), ..done(3, 10) });
        let energy = report(&telemetry).energy.expect("power was read");
        assert_eq!((energy.joules, energy.joules_per_token), (50.0, Some(2.0)));
        assert_eq!((energy.source.as_str(), energy.scope.as_str()), ("/sys/p", "as wired"));
    }

    #[test]
    fn without_a_sensor_a_request_has_no_energy() {
        let (telemetry, now) = (Telemetry::new(0), Instant::now());
        telemetry.power(now, None);
        assert_eq!(telemetry.energy_between(now, now + Duration::from_secs(1)), None);
        assert_eq!(report(&telemetry).energy, None);
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
