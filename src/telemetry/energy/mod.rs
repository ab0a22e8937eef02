//! Energy from power over time, and whose it is.
//!
//! Pure: readings and moments come in, sums go out. Deliberately knows no sensor and no thread.

mod idle;
#[cfg(test)]
mod tests;

use crate::protocol::{Method, Reading, RequestEnergy};
use idle::Idle;
use std::time::{Duration, Instant};

/// A momentary reading says nothing of what was before it for longer than this: ten samples that did not come.
const LONGEST_MOMENT: Duration = Duration::from_secs(10);
/// A mean is right for however long it was taken over, as long as somebody was there to take it.
const LONGEST_MEAN: Duration = Duration::from_secs(60);
/// Counters of energy step about once a millisecond and those of load about once in ten, so who asks the sensors again
/// within this hears the mean before. It stands until there is a newer one, over all the time since the one before.
pub const SHORTEST_DERIVED: Duration = Duration::from_millis(10);
/// The same of an estimate.
pub const SHORTEST_ESTIMATE: Duration = Duration::from_millis(100);
/// A reading so young is as good as another, which would take a millisecond on a slow bus.
const YOUNG: Duration = Duration::from_millis(2);

/// Adds up the energy of a device whose power is sampled now and then, in the same few bytes for ever.
///
/// A derived or estimated reading is the mean since the one before, so that it is exact where it comes from an energy
/// counter. Between two momentary ones (measured) the power is taken to have gone straight from one to the other; but
/// where computing began or ended it stepped, and there a reading stands for all the time since the step. What was read
/// last while something was computed holds until computing ends: a reading after that would be of a device at rest.
#[derive(Debug, Default)]
pub struct Meter {
    last: Option<Sample>,
    sums: Sums,
    /// The reading behind the sums: its value is the last known.
    reading: Option<Reading>,
    idle: Idle,
    /// What the owner says that the board draws when idle, in watts.
    idle_said: Option<f64>,
    /// Requests that are being computed.
    running: usize,
    /// Something was computed since the last whole reading.
    was_busy: bool,
    /// The latest momentary reading while something was computed: the power of computing that ends before a reading.
    busy: Option<f64>,
    /// The most that was ever told: a mean may turn out lower than the one that stood for it.
    told: f64,
}

/// The last moment that the sums reach to.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    /// `None` where the power could not be read.
    watts: Option<f64>,
    /// The power stepped just after it.
    is_step: bool,
    /// From where on the next mean counts, and the energy until there.
    whole_at: Instant,
    whole_joules: f64,
}

/// Everything so far.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    joules: f64,
    /// Seconds for which the power was known, and was not.
    known_s: f64,
    unknown_s: f64,
    /// Seconds of computing for which the power before it had to do.
    guessed_s: f64,
}

/// Where the sums stood when the computing of a request began.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    sums: Sums,
    /// Of the last sample.
    at: Option<Instant>,
}

impl Meter {
    /// What the owner says that the board draws when idle, in watts: counts where the power is `estimated` too.
    pub fn set_idle(&mut self, watts: Option<f64>) {
        self.idle_said = watts;
    }

    /// Takes the power read at `now`; `None` where it could not be read.
    pub fn sample(&mut self, now: Instant, reading: Option<&Reading>) {
        let Some(last) = self.last else { return self.begin_with(now, reading) };
        if now <= last.at {
            return;
        }
        let since = now - last.at;
        let Some(reading) = reading.filter(|reading| self.is_usable(reading, since)) else {
            self.sums.unknown_s += since.as_secs_f64();
            return self.begin_with(now, reading);
        };
        match reading.method {
            Method::Measured => self.momentary(now, last, reading.value),
            Method::Derived => self.mean(now, last, reading.value, SHORTEST_DERIVED),
            Method::Estimated => self.mean(now, last, reading.value, SHORTEST_ESTIMATE),
        }
        self.sums.known_s += since.as_secs_f64();
        self.told = self.told.max(self.sums.joules);
        self.reading = Some(reading.clone());
    }

    /// Whether a reading says what was drawn since the last one, `since` ago. Of another sensor it does not: that one
    /// covers something else.
    fn is_usable(&self, reading: &Reading, since: Duration) -> bool {
        let longest = if reading.method == Method::Measured { LONGEST_MOMENT } else { LONGEST_MEAN };
        since <= longest && !self.is_of_another(reading)
    }

    fn is_of_another(&self, reading: &Reading) -> bool {
        let differs = |before: &Reading| before.source != reading.source || before.method != reading.method;
        self.reading.as_ref().is_some_and(differs)
    }

    /// The sums go on from here: what was drawn before is not known, or was none.
    fn begin_with(&mut self, now: Instant, reading: Option<&Reading>) {
        if let Some(reading) = reading {
            if self.is_of_another(reading) {
                (self.idle, self.busy) = (Idle::default(), None);
            }
            self.reading = Some(reading.clone());
        }
        let watts = reading.map(|reading| reading.value);
        let (whole_at, whole_joules) = (now, self.sums.joules);
        self.last = Some(Sample { at: now, watts, is_step: false, whole_at, whole_joules });
        self.was_busy = self.running > 0;
    }

    fn momentary(&mut self, now: Instant, last: Sample, watts: f64) {
        let since = (now - last.at).as_secs_f64();
        let before = last.watts.filter(|_| !last.is_step).unwrap_or(watts);
        let joules = (before + watts) / 2.0 * since;
        if self.running > 0 {
            self.busy = Some(watts);
        }
        self.whole(now, watts, joules, since, self.sums.joules + joules);
    }

    /// Computing has just ended: settles what it took where readings are momentary, and says whether they are. Else a
    /// reading is wanted now.
    pub fn close(&mut self, now: Instant) -> bool {
        let (Some(last), true) = (self.last, self.is_momentary()) else { return false };
        let since = now.saturating_duration_since(last.at);
        let Some(watts) = last.watts.filter(|_| since <= LONGEST_MOMENT) else {
            self.sample(now, None);
            return true;
        };
        let read = if last.is_step { self.busy } else { Some(watts) };
        let seconds = since.as_secs_f64();
        if read.is_none() {
            self.sums.guessed_s += seconds;
        }
        let joules = read.unwrap_or(watts) * seconds;
        self.sums.known_s += seconds;
        self.whole(now, watts, joules, seconds, self.sums.joules + joules);
        self.told = self.told.max(self.sums.joules);
        true
    }

    /// Whether the readings are of moments, so that more of them while something is computed say more.
    pub fn is_momentary(&self) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.method == Method::Measured)
    }

    fn mean(&mut self, now: Instant, last: Sample, watts: f64, shortest: Duration) {
        let whole = now - last.whole_at;
        if whole >= shortest {
            let (joules, seconds) = (watts * whole.as_secs_f64(), whole.as_secs_f64());
            return self.whole(now, watts, joules, seconds, last.whole_joules + joules);
        }
        self.sums.joules += watts * (now - last.at).as_secs_f64();
        self.last = Some(Sample { at: now, watts: Some(watts), is_step: false, ..last });
    }

    /// A reading settles what was drawn in the `seconds` before it; the sum is now `total`.
    fn whole(&mut self, now: Instant, watts: f64, joules: f64, seconds: f64, total: f64) {
        if !self.was_busy {
            self.idle.add(joules, seconds);
        }
        self.was_busy = self.running > 0;
        self.sums.joules = total;
        let watts = Some(watts);
        self.last = Some(Sample { at: now, watts, is_step: false, whole_at: now, whole_joules: total });
    }

    /// Whether the last sample is so young that another one would say nothing new.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last.at) <= YOUNG)
    }

    /// The computing of a request begins, at the last sample.
    pub fn begin(&mut self) -> Mark {
        self.running += 1;
        self.step();
        Mark { sums: self.sums, at: self.last.map(|last| last.at) }
    }

    /// The computing of a request ended, at the last sample.
    pub fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
        self.step();
    }

    fn step(&mut self) {
        self.was_busy = true;
        if let Some(last) = &mut self.last {
            last.is_step = true;
        }
    }

    /// What a request cost from its mark to the last sample, if `share` (0 to 1) of all that was computed in that
    /// time was its own; `None` where the power was not known throughout, or the request was shorter than the
    /// sensor's own pace: then it is only known together with what was before. [`close`](Self::close) or take a
    /// sample first.
    pub fn cost(&self, mark: Mark, share: f64, tokens: u32) -> Option<RequestEnergy> {
        let Mark { sums: before, at } = mark;
        let (method, last) = (self.reading.as_ref()?.method, self.last?);
        let is_guessed = self.sums.guessed_s > before.guessed_s;
        let is_settled = at.is_some_and(|at| last.whole_at > at);
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
        self.reading.as_ref().map(|_| self.told)
    }

    /// The last reading there was.
    pub fn reading(&self) -> Option<&Reading> {
        self.reading.as_ref()
    }

    /// The power while nothing is computed, in watts: where it is estimated as the owner says, else as it was seen.
    pub fn idle_watts(&self) -> Option<f64> {
        let is_estimated = self.reading.as_ref().is_some_and(|reading| reading.method == Method::Estimated);
        self.idle_said.filter(|_| is_estimated).or_else(|| self.idle.watts())
    }
}
