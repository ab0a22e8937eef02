//! Integrates power over time to energy, and attributes it to requests and to idling.
//!
//! Pure: readings and the time come in, sums go out. Deliberately knows no sensor and no thread.

mod idle;
#[cfg(test)]
mod tests;

use crate::protocol::{Method, Reading, RequestEnergy};
use idle::IdlePower;
use std::time::{Duration, Instant};

/// A measured (momentary) reading stands for no longer than this, about ten samples.
const MAX_MEASURED_GAP: Duration = Duration::from_secs(10);
/// A mean is valid for the whole time since the last one, unless sampling paused for longer than this.
const MAX_MEAN_GAP: Duration = Duration::from_secs(60);
/// Sensors return the last mean again within this time: energy counters step about once a millisecond. A mean is
/// valid until the next one, which covers the whole time since the previous mean.
pub const MIN_DERIVED_INTERVAL: Duration = Duration::from_millis(10);
/// The same for an estimate, since the counters of load step only once in 10 ms.
pub const MIN_ESTIMATE_INTERVAL: Duration = Duration::from_millis(100);
/// A reading this young is not repeated, since one takes a millisecond on a slow bus.
const FRESH_FOR: Duration = Duration::from_millis(2);

/// Integrates the power of a device that is sampled at irregular times, in constant memory.
///
/// A derived or estimated reading is the mean since the one before, so it is exact where it comes from an energy
/// counter. Between two measured (momentary) readings the power is interpolated linearly. Where computing begins or
/// ends the power steps, and the next reading stands for all the time since the step. The last reading during
/// computing holds until computing ends, because a later one would show an idle device.
#[derive(Debug, Default)]
pub struct Meter {
    last: Option<Sample>,
    sums: EnergySums,
    /// The reading behind the sums; its value is the last known power.
    reading: Option<Reading>,
    idle: IdlePower,
    /// The idle power that the owner configured, in watts.
    configured_idle_watts: Option<f64>,
    /// Requests being computed now.
    running: usize,
    /// Whether something was computed since the last complete reading.
    computed_since_reading: bool,
    /// The latest measured reading during computing, used for computing that ends before the next reading.
    busy_watts: Option<f64>,
    /// The highest total reported, which keeps the counter monotonic: a final mean may be lower than the
    /// preliminary one.
    highest_reported: f64,
}

/// The last sample, up to which the sums are complete.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    /// `None` where the power could not be read.
    watts: Option<f64>,
    /// Whether the power stepped just after this sample.
    is_step: bool,
    /// Where the next mean begins, and the total energy until there.
    mean_start: Instant,
    mean_start_joules: f64,
}

/// Totals since start.
#[derive(Debug, Clone, Copy, Default)]
struct EnergySums {
    joules: f64,
    /// Seconds for which the power was known, and for which it was not.
    known_s: f64,
    unknown_s: f64,
    /// Seconds of computing for which the idle power before it was assumed.
    assumed_s: f64,
}

/// The totals when a request began to compute.
#[derive(Debug, Clone, Copy)]
pub struct EnergyMark {
    sums: EnergySums,
    /// The time of the last sample.
    at: Option<Instant>,
}

impl Meter {
    /// Sets the idle power that the owner configured, in watts; it is used where the power is estimated, too.
    pub fn set_idle(&mut self, watts: Option<f64>) {
        self.configured_idle_watts = watts;
    }

    /// Adds the power read at `now`; `None` where it could not be read.
    pub fn sample(&mut self, now: Instant, reading: Option<&Reading>) {
        let Some(last) = self.last else { return self.restart_from(now, reading) };
        if now <= last.at {
            return;
        }
        let since = now - last.at;
        let Some(reading) = reading.filter(|reading| self.is_usable(reading, since)) else {
            self.sums.unknown_s += since.as_secs_f64();
            return self.restart_from(now, reading);
        };
        match reading.method {
            Method::Measured => self.add_momentary(now, last, reading.value),
            Method::Derived => self.add_mean(now, last, reading.value, MIN_DERIVED_INTERVAL),
            Method::Estimated => self.add_mean(now, last, reading.value, MIN_ESTIMATE_INTERVAL),
        }
        self.sums.known_s += since.as_secs_f64();
        self.highest_reported = self.highest_reported.max(self.sums.joules);
        self.reading = Some(reading.clone());
    }

    /// Whether a reading covers the time since the last one, `since` ago. One of another sensor does not, since its
    /// scope differs.
    fn is_usable(&self, reading: &Reading, since: Duration) -> bool {
        let longest = if reading.method == Method::Measured { MAX_MEASURED_GAP } else { MAX_MEAN_GAP };
        since <= longest && !self.is_from_other_sensor(reading)
    }

    fn is_from_other_sensor(&self, reading: &Reading) -> bool {
        let differs = |before: &Reading| before.source != reading.source || before.method != reading.method;
        self.reading.as_ref().is_some_and(differs)
    }

    /// Restarts the integration at this sample; the energy before it is unknown.
    fn restart_from(&mut self, now: Instant, reading: Option<&Reading>) {
        if let Some(reading) = reading {
            if self.is_from_other_sensor(reading) {
                (self.idle, self.busy_watts) = (IdlePower::default(), None);
            }
            self.reading = Some(reading.clone());
        }
        let watts = reading.map(|reading| reading.value);
        let (whole_at, whole_joules) = (now, self.sums.joules);
        self.last = Some(Sample {
            at: now,
            watts,
            is_step: false,
            mean_start: whole_at,
            mean_start_joules: whole_joules,
        });
        self.computed_since_reading = self.running > 0;
    }

    fn add_momentary(&mut self, now: Instant, last: Sample, watts: f64) {
        let since = (now - last.at).as_secs_f64();
        let before = last.watts.filter(|_| !last.is_step).unwrap_or(watts);
        let joules = (before + watts) / 2.0 * since;
        if self.running > 0 {
            self.busy_watts = Some(watts);
        }
        self.settle(now, watts, joules, since, self.sums.joules + joules);
    }

    /// Called when computing has just ended. Settles its energy where readings are momentary and returns whether
    /// they are; otherwise the caller takes a reading now.
    pub fn settle_computing(&mut self, now: Instant) -> bool {
        let (Some(last), true) = (self.last, self.is_momentary()) else { return false };
        let since = now.saturating_duration_since(last.at);
        let Some(watts) = last.watts.filter(|_| since <= MAX_MEASURED_GAP) else {
            self.sample(now, None);
            return true;
        };
        let read = if last.is_step { self.busy_watts } else { Some(watts) };
        let seconds = since.as_secs_f64();
        if read.is_none() {
            self.sums.assumed_s += seconds;
        }
        let joules = read.unwrap_or(watts) * seconds;
        self.sums.known_s += seconds;
        self.settle(now, watts, joules, seconds, self.sums.joules + joules);
        self.highest_reported = self.highest_reported.max(self.sums.joules);
        true
    }

    /// Whether readings are momentary, so that sampling more often during computing is more exact.
    pub fn is_momentary(&self) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.method == Method::Measured)
    }

    fn add_mean(&mut self, now: Instant, last: Sample, watts: f64, shortest: Duration) {
        let whole = now - last.mean_start;
        if whole >= shortest {
            let (joules, seconds) = (watts * whole.as_secs_f64(), whole.as_secs_f64());
            return self.settle(now, watts, joules, seconds, last.mean_start_joules + joules);
        }
        self.sums.joules += watts * (now - last.at).as_secs_f64();
        self.last = Some(Sample { at: now, watts: Some(watts), is_step: false, ..last });
    }

    /// Completes the integration up to this reading: `joules` in the `seconds` before it, `total` since start.
    fn settle(&mut self, now: Instant, watts: f64, joules: f64, seconds: f64, total: f64) {
        if !self.computed_since_reading {
            self.idle.add(joules, seconds);
        }
        self.computed_since_reading = self.running > 0;
        self.sums.joules = total;
        let watts = Some(watts);
        self.last =
            Some(Sample { at: now, watts, is_step: false, mean_start: now, mean_start_joules: total });
    }

    /// Whether the last sample is so young that another one is not needed.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last.at) <= FRESH_FOR)
    }

    /// A request begins to compute, at the last sample.
    pub fn begin(&mut self) -> EnergyMark {
        self.running += 1;
        self.mark_power_step();
        EnergyMark { sums: self.sums, at: self.last.map(|last| last.at) }
    }

    /// A request ended, at the last sample.
    pub fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
        self.mark_power_step();
    }

    fn mark_power_step(&mut self) {
        self.computed_since_reading = true;
        if let Some(last) = &mut self.last {
            last.is_step = true;
        }
    }

    /// The energy of a request from its mark to the last sample, if `share` (0 to 1) of the computing in that time
    /// was its own. `None` where the power was not known throughout, or the request was shorter than the sensor's
    /// interval, so that its energy is not separable from what was before. Call
    /// [`settle_computing`](Self::settle_computing) or take a sample first.
    pub fn cost(&self, mark: EnergyMark, share: f64, tokens: u32) -> Option<RequestEnergy> {
        let EnergyMark { sums: before, at } = mark;
        let (method, last) = (self.reading.as_ref()?.method, self.last?);
        let is_guessed = self.sums.assumed_s > before.assumed_s;
        let is_settled = at.is_some_and(|at| last.mean_start > at);
        if self.sums.unknown_s > before.unknown_s || last.watts.is_none() || is_guessed || !is_settled {
            return None;
        }
        let gross = (self.sums.joules - before.joules).max(0.0);
        let seconds = self.sums.known_s - before.known_s;
        let above = |idle: f64| (gross - idle * seconds).max(0.0) * share;
        let joules = gross * share;
        Some(RequestEnergy {
            joules,
            joules_above_idle: self.idle_watts().map(above),
            joules_per_token: (tokens > 0).then(|| joules / f64::from(tokens)),
            method,
        })
    }

    /// Energy since the first sample, in joules; never falls. `None` where no power was ever read.
    pub fn joules(&self) -> Option<f64> {
        self.reading.as_ref().map(|_| self.highest_reported)
    }

    /// The last reading.
    pub fn reading(&self) -> Option<&Reading> {
        self.reading.as_ref()
    }

    /// The idle power in watts: the configured one where power is estimated, otherwise the learned one.
    pub fn idle_watts(&self) -> Option<f64> {
        let is_estimated = self.reading.as_ref().is_some_and(|reading| reading.method == Method::Estimated);
        self.configured_idle_watts.filter(|_| is_estimated).or_else(|| self.idle.watts())
    }
}
