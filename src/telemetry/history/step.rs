//! Observes one step: sums, means and extremes of what is seen about once a second.
//!
//! Deliberately knows neither a clock nor a ring: the time that passed comes with each observation.

use super::column::StepColumn;
use super::record::{LatencyColumns, StepRecord};
use crate::telemetry::latency::histogram::Histogram;

/// Readings at one moment, and counts since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HistorySample {
    /// In watts.
    pub power_w: Option<f64>,
    /// Of the processor, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Whether the firmware holds the processor back.
    pub throttled: Option<bool>,
    /// Whether the supply's voltage is too low.
    pub under_voltage: Option<bool>,
    /// Load of all processors of the host.
    pub cpu_percent: Option<f64>,
    /// Requests that wait.
    pub queued: u64,
    /// Requests that are answered.
    pub running: u64,
    /// Resident memory of the process.
    pub memory_bytes: Option<u64>,
    /// What the budget allows it.
    pub budget_bytes: u64,
    /// The kinds of alerts that are raised, one bit for each.
    pub alert_bits: u16,
    /// What is counted since the daemon started.
    pub counts: HistoryCounts,
}

/// Counts since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[allow(missing_docs, reason = "named as in the report")]
pub struct HistoryCounts {
    pub completed: u64,
    pub failed: u64,
    pub refused: u64,
    pub cancelled: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Tokens after the first of each answer, and the seconds they took.
    pub decoded_tokens: u64,
    pub decode_s: f64,
    /// `None` without a power reading.
    pub joules: Option<f64>,
    /// Joules and tokens of the requests whose energy is known.
    pub request_joules: f64,
    pub request_tokens: u64,
    pub alerts_raised: u64,
}

/// Latencies since the daemon started, in the order of [`LatencyColumns::ALL`].
pub type LatencyHistograms<'h> = [&'h Histogram; 2];

/// A step that is being observed.
#[derive(Debug)]
pub(super) struct OpenStep {
    minute: u32,
    /// The longest that it can be observed, in seconds.
    longest_s: f64,
    observed_s: f64,
    starts: u32,
    power: RunningMean,
    temperature: RunningMean,
    cpu: RunningMean,
    queue: RunningMean,
    running: RunningMean,
    memory_kib: RunningMean,
    budget_kib: f64,
    throttled_s: Option<f64>,
    under_voltage_s: Option<f64>,
    counts: HistoryCounts,
    alert_bits: u16,
    /// The latencies before this step.
    latencies_before: Box<[Histogram; 2]>,
}

/// Mean, lowest and highest of a reading.
#[derive(Debug, Clone, Copy, Default)]
struct RunningMean {
    weighted: f64,
    weight: f64,
    /// The reading before there was any weight, and the extremes.
    extremes: Option<(f64, f64)>,
}

impl RunningMean {
    fn add(&mut self, reading: Option<f64>, seconds: f64) {
        let Some(value) = reading.filter(|value| value.is_finite()) else { return };
        self.weighted += value * seconds;
        self.weight += seconds;
        let (low, high) = self.extremes.unwrap_or((value, value));
        self.extremes = Some((low.min(value), high.max(value)));
    }

    fn mean(&self) -> Option<f64> {
        let (low, high) = self.extremes?;
        Some(if self.weight > 0.0 { self.weighted / self.weight } else { (low + high) / 2.0 })
    }
}

impl OpenStep {
    /// A step of `length` minutes that begins at `minute`; `latencies`: as they are before it.
    pub fn new(minute: u32, length: u32, starts: u32, latencies: LatencyHistograms<'_>) -> Self {
        OpenStep {
            minute,
            longest_s: f64::from(length) * 60.0,
            observed_s: 0.0,
            starts,
            power: RunningMean::default(),
            temperature: RunningMean::default(),
            cpu: RunningMean::default(),
            queue: RunningMean::default(),
            running: RunningMean::default(),
            memory_kib: RunningMean::default(),
            budget_kib: 0.0,
            throttled_s: None,
            under_voltage_s: None,
            counts: HistoryCounts::default(),
            alert_bits: 0,
            latencies_before: Box::new(latencies.map(Histogram::clone)),
        }
    }

    /// When it began, in minutes since 1970.
    pub fn minute(&self) -> u32 {
        self.minute
    }

    /// Adds a sample that stands for the last `seconds`, and what was counted in them.
    pub fn add(&mut self, sample: &HistorySample, counted: &HistoryCounts, seconds: f64) {
        self.observed_s += seconds;
        self.power.add(sample.power_w, seconds);
        self.temperature.add(sample.temperature_c, seconds);
        self.cpu.add(sample.cpu_percent, seconds);
        self.queue.add(Some(sample.queued as f64), seconds);
        self.running.add(Some(sample.running as f64), seconds);
        self.memory_kib.add(sample.memory_bytes.map(|bytes| bytes as f64 / 1024.0), seconds);
        self.budget_kib = sample.budget_bytes as f64 / 1024.0;
        for (sum, flag) in
            [(&mut self.throttled_s, sample.throttled), (&mut self.under_voltage_s, sample.under_voltage)]
        {
            if let Some(is_so) = flag {
                *sum = Some(sum.unwrap_or(0.0) + if is_so { seconds } else { 0.0 });
            }
        }
        self.alert_bits |= sample.alert_bits;
        self.counts.add(counted);
    }

    /// The step until now; `latencies`: as they are now.
    pub fn record(&self, latencies: LatencyHistograms<'_>) -> StepRecord {
        use StepColumn as C;
        let counts = &self.counts;
        let mut record = StepRecord::new(self.minute);
        let whole = [
            (C::Completed, counts.completed),
            (C::Failed, counts.failed),
            (C::Refused, counts.refused),
            (C::Cancelled, counts.cancelled),
            (C::CacheHits, counts.cache_hits),
            (C::CacheMisses, counts.cache_misses),
            (C::PromptTokens, counts.prompt_tokens),
            (C::CompletionTokens, counts.completion_tokens),
            (C::DecodedTokens, counts.decoded_tokens),
            (C::RequestTokens, counts.request_tokens),
            (C::AlertsRaised, counts.alerts_raised),
            (C::Starts, u64::from(self.starts)),
            (C::AlertBits, u64::from(self.alert_bits)),
        ];
        whole.into_iter().for_each(|(column, count)| record.set(column, Some(count as f64)));
        let low = |mean: &RunningMean| mean.extremes.map(|(low, _)| low);
        let high = |mean: &RunningMean| mean.extremes.map(|(_, high)| high);
        let readings = [
            (C::ObservedS, Some(self.observed_s.min(self.longest_s))),
            (C::PowerMean, self.power.mean()),
            (C::PowerMin, low(&self.power)),
            (C::PowerMax, high(&self.power)),
            (C::TemperatureMean, self.temperature.mean()),
            (C::TemperatureMin, low(&self.temperature)),
            (C::TemperatureMax, high(&self.temperature)),
            (C::ThrottledS, self.throttled_s),
            (C::UnderVoltageS, self.under_voltage_s),
            (C::CpuMean, self.cpu.mean()),
            (C::QueueMean, self.queue.mean()),
            (C::QueueMax, high(&self.queue)),
            (C::RunningMean, self.running.mean()),
            (C::MemoryMean, self.memory_kib.mean()),
            (C::MemoryMax, high(&self.memory_kib)),
            (C::MemoryBudget, (self.budget_kib > 0.0).then_some(self.budget_kib)),
            (C::DecodeMs, Some(counts.decode_s * 1e3)),
            (C::Joules, counts.joules),
            (C::RequestJoules, Some(counts.request_joules)),
        ];
        readings.into_iter().for_each(|(column, value)| record.set(column, value));
        self.set_latencies(&mut record, latencies);
        record
    }

    fn set_latencies(&self, record: &mut StepRecord, latencies: LatencyHistograms<'_>) {
        for (at, latency) in LatencyColumns::ALL.into_iter().enumerate() {
            let step = latencies[at].since(&self.latencies_before[at]);
            let (count, percentiles) = latency.columns();
            record.set(count, Some(step.count() as f64));
            for (column, share) in percentiles.into_iter().zip([0.5, 0.95, 0.99]) {
                record.set(column, step.percentile(share).map(|duration| duration.as_secs_f64() * 1e3));
            }
        }
    }
}

impl HistoryCounts {
    /// What was counted since `earlier`, of the same daemon.
    pub(super) fn since(&self, earlier: &HistoryCounts) -> HistoryCounts {
        let whole = |get: fn(&HistoryCounts) -> u64| get(self).saturating_sub(get(earlier));
        let real = |get: fn(&HistoryCounts) -> f64| (get(self) - get(earlier)).max(0.0);
        HistoryCounts {
            completed: whole(|counts| counts.completed),
            failed: whole(|counts| counts.failed),
            refused: whole(|counts| counts.refused),
            cancelled: whole(|counts| counts.cancelled),
            cache_hits: whole(|counts| counts.cache_hits),
            cache_misses: whole(|counts| counts.cache_misses),
            prompt_tokens: whole(|counts| counts.prompt_tokens),
            completion_tokens: whole(|counts| counts.completion_tokens),
            decoded_tokens: whole(|counts| counts.decoded_tokens),
            decode_s: real(|counts| counts.decode_s),
            joules: self.joules.map(|joules| (joules - earlier.joules.unwrap_or(0.0)).max(0.0)),
            request_joules: real(|counts| counts.request_joules),
            request_tokens: whole(|counts| counts.request_tokens),
            alerts_raised: whole(|counts| counts.alerts_raised),
        }
    }

    fn add(&mut self, more: &HistoryCounts) {
        self.completed += more.completed;
        self.failed += more.failed;
        self.refused += more.refused;
        self.cancelled += more.cancelled;
        self.cache_hits += more.cache_hits;
        self.cache_misses += more.cache_misses;
        self.prompt_tokens += more.prompt_tokens;
        self.completion_tokens += more.completion_tokens;
        self.decoded_tokens += more.decoded_tokens;
        self.decode_s += more.decode_s;
        self.joules = match (self.joules, more.joules) {
            (Some(sum), Some(more)) => Some(sum + more),
            (one, other) => one.or(other),
        };
        self.request_joules += more.request_joules;
        self.request_tokens += more.request_tokens;
        self.alerts_raised += more.alerts_raised;
    }
}
