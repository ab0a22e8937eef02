//! Telemetry of the host and the daemon: counters, latencies, sensors, energy, alerts, the journal.
//!
//! The daemon records events, and gets a [`Report`]. Deliberately knows nothing of the engine or the transports,
//! decides nothing, starts no task and never sees the text of a prompt.

pub mod alerts;
mod answer_cache;
mod decoding;
pub mod energy;
mod health;
pub mod history;
mod history_sample;
mod http_calls;
mod journal;
mod latency;
pub mod log;
pub mod prometheus;
mod refusal_limit;
mod request_rates;
mod request_stats;
mod rfc3339;
mod security;
pub mod sensors;
mod structured_output;
#[cfg(test)]
mod tests;
pub mod textfile;
mod waiting;

pub use answer_cache::AnswerCacheSize;
pub use decoding::DecodingCounters;
pub use health::{DaemonPhase, Fault, HealthFacts};
pub use http_calls::{HttpApi, HttpCounters};
pub use journal::{journal_line, write_alert, write_answered, write_journal};
pub use latency::{Distribution, ErrorType, Quantity};
pub use rfc3339::rfc3339;
pub use security::{
    ReloadOutcome, RemoteCommand, SecurityEvent, SecurityEventKind, SecurityRecord, TokenFailure,
};
pub use structured_output::StructuredOutputCounters;
pub use waiting::WaitingCounters;

use crate::config;
use crate::protocol::{
    CacheCounts, Code, Cpu, Done, Energy, FinishReason, GovernorState, LogLines, Memory, MqttLink, Reading,
    Report, RequestEnergy, Requests, ShortlistCounts, Throttled,
};
use ::log::{debug, info};
use alerts::{Alert, AlertList, Alerts, Conditions, PlannedMemory, State};
use energy::{EnergyMark, Meter};
use history::History;
use refusal_limit::{RefusalLimit, RefusalLine};
use request_rates::{RequestOutcome, RequestOutcomes};
use request_stats::RequestStats;
use sensors::Snapshot;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Requests without an answer for a reason that lies with the daemon, see [`is_own_failure`].
    failed: Counter,
    /// Requests that were refused for a reason that lies with their client, or that a stop cut off.
    blameless: Counter,
    running: Counter,
    cache_hits: Counter,
    cache_misses: Counter,
    /// How full the cache of answers is.
    pub answer_cache: Arc<AnswerCacheSize>,
    /// Counters of answers that had to fit a `response_format`.
    pub structured_output: StructuredOutputCounters,
    /// Counters of requests that are answered together.
    pub decoding: DecodingCounters,
    /// Counters of the waiting of each client.
    pub waiting: WaitingCounters,
    /// Counters of calls over HTTP.
    pub http: HttpCounters,
    /// What concerns the security of the daemon: counters, and the record.
    pub security: SecurityRecord,
    /// Facts about the health of the daemon.
    pub health: HealthFacts,
    /// At most so many threads compute; 0 until it is set.
    thread_limit: Counter,
    about: Mutex<Option<Arc<About>>>,
    refusal_lines: Mutex<RefusalLimit>,
    request_stats: Mutex<RequestStats>,
    outcomes: Mutex<RequestOutcomes>,
    meter: Mutex<Meter>,
    last_observed: Mutex<LastObserved>,
    alerts: Mutex<Alerts>,
    /// How many alerts were raised since start.
    alerts_raised: Counter,
    /// `None` until it is begun, and where it is switched off.
    history: Mutex<Option<History>>,
}

/// The model and the kernel that run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The name of the model, from its metadata.
    pub model: String,
    /// The name of the kernel table.
    pub kernel: String,
    /// Whether it is the fallback, because the configured model cannot be used.
    pub is_fallback: bool,
}

/// The last snapshots of the host and of the broker link.
#[derive(Debug, Default)]
struct LastObserved {
    host: Snapshot,
    link: Option<MqttLink>,
    governor: Option<GovernorState>,
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
    ///
    /// `share`: the part of the computing, 0 to 1, that was for this request.
    pub fn cost(&self, share: f64, tokens: u32) -> Option<RequestEnergy> {
        locked(self.meter).cost(self.begun, share, tokens)
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
        let started = Instant::now();
        Telemetry {
            started,
            budget_bytes,
            received: Counter::default(),
            completed: Counter::default(),
            refused: Counter::default(),
            budget_exceeded: Counter::default(),
            cancelled: Counter::default(),
            timed_out: Counter::default(),
            failed: Counter::default(),
            blameless: Counter::default(),
            running: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            answer_cache: Arc::default(),
            structured_output: StructuredOutputCounters::default(),
            decoding: DecodingCounters::default(),
            waiting: WaitingCounters::default(),
            http: HttpCounters::default(),
            security: SecurityRecord::default(),
            health: HealthFacts::default(),
            thread_limit: Counter::default(),
            about: Mutex::default(),
            refusal_lines: Mutex::default(),
            request_stats: Mutex::default(),
            outcomes: Mutex::new(RequestOutcomes::new(started)),
            meter: Mutex::default(),
            last_observed: Mutex::default(),
            alerts: Mutex::new(Alerts::new(config::Alerts::off())),
            alerts_raised: Counter::default(),
            history: Mutex::default(),
        }
    }

    /// A transport received a request.
    pub fn received(&self) {
        self.received.add();
    }

    /// A transport answered with an `error` event by itself, before the request was admitted: it was not a valid one, or
    /// not allowed. The log names the client, where it is known, as the guard shows it, and `reason`, which has no text of the
    /// client; `message`, which may repeat some, is only in a log of level debug.
    pub fn refused(&self, client: Option<&str>, reason: &str, message: &str) {
        let line = locked(&self.refusal_lines).admit(client, Instant::now());
        let further = match line {
            RefusalLine::Last => "; further ones of this client are not logged for a minute",
            _ => "",
        };
        let shown =
            client.map(|client| self.security.client_name(client).unwrap_or_else(|| client.to_owned()));
        match shown {
            _ if line == RefusalLine::None => {}
            Some(client) => info!(CLIENT = client.as_str(); "refused: {reason}{further}"),
            None => info!("refused: {reason}{further}"),
        }
        debug!("refused: {message}");
        self.refused.add();
        self.blameless.add();
        self.ended(RequestOutcome::Other);
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
        match is_own_failure(code) {
            true => {
                self.failed.add();
                self.ended(RequestOutcome::Failed);
            }
            false => {
                self.blameless.add();
                self.ended(RequestOutcome::Other);
            }
        }
        locked(&self.request_stats).fail(code, took);
    }

    /// An answer was computed, to its end or until it was cut short.
    pub fn completed(&self, done: &Done) {
        self.completed.add();
        self.ended(match done.finish_reason {
            FinishReason::Cancelled => {
                self.cancelled.add();
                RequestOutcome::Other
            }
            FinishReason::Timeout => {
                self.timed_out.add();
                self.failed.add();
                RequestOutcome::Failed
            }
            FinishReason::Stop | FinishReason::Length => {
                RequestOutcome::Succeeded(request_stats::duration(done.timings.total_ms))
            }
        });
        self.health.answered(SystemTime::now(), &done.timings);
        locked(&self.request_stats).add(Instant::now(), done);
    }

    /// Sets the counters of the screened head, which count from the start.
    pub fn set_screen_counts(&self, counts: ShortlistCounts) {
        locked(&self.request_stats).set_screen_counts(counts);
    }

    /// A request was answered from the cache, `took` after it arrived: it counts as completed, but not in the latencies.
    pub fn cache_hit(&self, took: Duration) {
        self.cache_hits.add();
        self.completed.add();
        locked(&self.outcomes).looked_up(Instant::now(), true);
        self.ended(RequestOutcome::Succeeded(took));
    }

    /// A request was not in the cache.
    pub fn cache_miss(&self) {
        self.cache_misses.add();
        locked(&self.outcomes).looked_up(Instant::now(), false);
    }

    fn ended(&self, outcome: RequestOutcome) {
        locked(&self.outcomes).ended(Instant::now(), outcome);
    }

    /// Sets what runs here, once a model is loaded.
    pub fn describe(&self, about: About) {
        *locked(&self.about) = Some(Arc::new(about));
    }

    /// What runs here; `None` before it is loaded.
    pub fn about(&self) -> Option<Arc<About>> {
        locked(&self.about).clone()
    }

    /// Sets how many threads may compute from now on, at least 1.
    pub fn set_thread_limit(&self, threads: usize) {
        self.thread_limit.set(threads as u64);
    }

    /// Sets how many requests are being answered now; [`Telemetry::waiting`] counts those that wait.
    pub fn set_running(&self, requests: usize) {
        self.running.set(requests as u64);
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

    /// Records what the governor allows; `None` where it is off.
    pub fn set_governor(&self, state: Option<GovernorState>) {
        locked(&self.last_observed).governor = state;
    }

    /// Sets the rules of the alerts; before the first call all are switched off.
    pub fn set_alert_rules(&self, rules: config::Alerts) {
        locked(&self.alerts).set_rules(rules);
    }

    /// Sets the memory plan: what it uses, and the reserve that stays free, both in bytes.
    pub fn set_planned_memory(&self, held: usize, reserve: usize) {
        self.health.set_planned((held + reserve) as u64);
        let percent = |bytes: usize| 100.0 * bytes as f64 / self.budget_bytes.max(1) as f64;
        locked(&self.alerts)
            .set_planned(PlannedMemory { used_percent: percent(held), reserve_percent: percent(reserve) });
    }

    /// Evaluates the alerts on all that was recorded until now and returns those that changed; `depth` is the
    /// queue's depth. To be called about once a second.
    pub fn evaluate_alerts(&self, now: Instant, depth: usize) -> Vec<Alert> {
        let conditions = self.conditions(now, depth);
        let changed = locked(&self.alerts).evaluate(now, SystemTime::now(), &conditions);
        changed.iter().filter(|alert| alert.state == State::Raised).for_each(|_| self.alerts_raised.add());
        changed
    }

    /// The alerts that are raised now, and those of the last hours.
    pub fn alert_list(&self, now: Instant) -> AlertList {
        locked(&self.alerts).list(now)
    }

    /// The alerts that are raised now as JSON, where it is not the `known` number of changes that led to them; and that
    /// number.
    pub fn raised_alerts_since(&self, known: Option<u64>) -> Option<(Vec<u8>, u64)> {
        let alerts = locked(&self.alerts);
        let (raised, changes) = alerts.raised_alerts();
        let json = || serde_json::to_vec(raised).expect("an alert is plain data");
        (known != Some(changes)).then(|| (json(), changes))
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
            // One client's mistakes neither raise the rate nor hide the failures of others.
            ended: (self.completed.get() + self.refused.get()).saturating_sub(self.blameless.get()),
            ttft_ms: latency.ttft_ms.last_minute.p95,
            queue_percent: Some(100.0 * self.waiting.total() as f64 / depth.max(1) as f64),
            broker: link.map(|link| link.connected),
            subscription: link.map(|link| link.deaf),
            storage: link.map(|link| link.storage_problem.is_some()),
            fallback: self.about().map(|about| about.is_fallback),
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

    /// The report: counters and latencies as they are, and the last snapshots of host and broker link; `now` is its timestamp.
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
            cache: self.cache(),
            structured_output: self.structured_output.counts(),
            decoding: self.decoding.counts(),
            governor: seen.governor,
            waiting: self.waiting.counts(),
            http: self.http.counts(),
            security: self.security.counts(),
            mqtt: seen.link.clone(),
            alerts: self.raised_alerts(),
            log: LogLines { dropped: log::dropped() },
        }
    }

    fn thread_limit(&self) -> Option<usize> {
        usize::try_from(self.thread_limit.get()).ok().filter(|threads| *threads > 0)
    }

    fn cache(&self) -> CacheCounts {
        let (entries, bytes) = self.answer_cache.get();
        let [rates, last_hour] = locked(&self.outcomes).cache_rates(Instant::now());
        CacheCounts { misses: rates.lookups - rates.hits, rates, entries, bytes, last_hour }
    }

    fn requests(&self) -> Requests {
        let [rates, last_hour] = locked(&self.outcomes).rates(Instant::now());
        Requests {
            received: self.received.get(),
            completed: self.completed.get(),
            refused: self.refused.get(),
            budget_exceeded: self.budget_exceeded.get(),
            cancelled: self.cancelled.get(),
            timed_out: self.timed_out.get(),
            queued: self.waiting.total(),
            running: self.running.get(),
            rates,
            last_hour,
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

/// Whether a request without an answer counts as a failure of the daemon: all but those that no daemon could have
/// answered, or was allowed to.
fn is_own_failure(code: Code) -> bool {
    match code {
        Code::QueueFull | Code::Timeout | Code::BudgetExceeded | Code::Internal => true,
        Code::InvalidRequest
        | Code::TooLarge
        | Code::ContextExceeded
        | Code::RateLimited
        | Code::ContentFiltered
        | Code::ResponseFiltered
        | Code::Cancelled
        | Code::ShuttingDown => false,
    }
}

/// Locks a mutex also after a panic in another thread: the sums are consistent at every step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
