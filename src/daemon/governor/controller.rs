//! The control loop of the governor: from temperature and power to how much may be computed.
//!
//! Each limit has a proportional-integral controller. Its integral stops where the output is at an end of its range
//! (anti-windup) and while nothing is computed, since then the temperature tells nothing of the effort. The lower of both
//! outputs counts. Small corrections are made seldom, so that the number of threads does not change all the time.
//!
//! Deliberately knows neither sensors nor threads: numbers go in, numbers come out. It is to be called once a second.

/// The effort that is never reduced further, as a part of all threads: prompts are answered at any temperature.
const FLOOR: f64 = 0.1;

/// Seconds between two corrections while a limit is kept.
const CALM_SECONDS: u32 = 40;
/// Seconds between two corrections while it is not.
const URGENT_SECONDS: u32 = 5;
/// Smaller corrections are not made.
const LEAST_CHANGE: f64 = 0.025;
/// Efforts are multiples of this part of one thread, so that reports have round numbers.
const STEPS_OF_A_THREAD: f64 = 20.0;

/// How much a new reading counts: sensors of a Raspberry Pi have steps of half a degree.
const READING_WEIGHT: f64 = 0.3;
const SLOPE_WEIGHT: f64 = 0.2;

/// One limit.
#[derive(Debug)]
struct LimitLoop {
    limit: f64,
    /// Effort for each unit below the limit.
    gain: f64,
    /// Seconds after which a lasting difference has the effect of the same difference now.
    integral_seconds: f64,
    /// The reading is extrapolated by so many seconds, since heat arrives late.
    horizon_seconds: f64,
    /// Differences in units of the reading at which corrections are urgent: above the limit, and below it.
    urgent: (f64, f64),
    integral: f64,
    smoothed: Option<f64>,
    slope: f64,
}

/// The output of a loop.
#[derive(Debug, Clone, Copy)]
struct Output {
    effort: f64,
    is_urgent: bool,
}

impl LimitLoop {
    /// A limit on the temperature of the processor. The constants were chosen with the thermal model of the tests, for
    /// boards that warm up in half a minute to a quarter of an hour.
    fn temperature(limit: f64) -> Self {
        LimitLoop {
            limit,
            gain: 0.05,
            integral_seconds: 80.0,
            horizon_seconds: 4.0,
            urgent: (1.2, 4.0),
            ..LimitLoop::at_rest()
        }
    }

    /// A limit on the power of the board, which follows the effort at once.
    fn power(limit: f64) -> Self {
        LimitLoop {
            limit,
            gain: 0.2 / limit,
            integral_seconds: 8.0,
            urgent: (0.03 * limit, 0.2 * limit),
            ..LimitLoop::at_rest()
        }
    }

    fn at_rest() -> Self {
        LimitLoop {
            limit: 0.0,
            gain: 0.0,
            integral_seconds: 1.0,
            horizon_seconds: 0.0,
            urgent: (0.0, 0.0),
            integral: FLOOR,
            smoothed: None,
            slope: 0.0,
        }
    }

    fn step(&mut self, reading: f64, is_computing: bool) -> Output {
        let before = *self.smoothed.get_or_insert(reading);
        let smoothed = before + READING_WEIGHT * (reading - before);
        self.smoothed = Some(smoothed);
        self.slope += SLOPE_WEIGHT * (smoothed - before - self.slope);
        let below = self.limit - (smoothed + self.horizon_seconds * self.slope);
        let wanted = self.gain * below + self.integral;
        let is_at_end = (wanted >= 1.0 && below > 0.0) || (wanted <= FLOOR && below < 0.0);
        if is_computing && !is_at_end {
            let more = self.gain * below / self.integral_seconds;
            self.integral = (self.integral + more).clamp(FLOOR, 1.0);
        }
        Output {
            effort: wanted.clamp(FLOOR, 1.0),
            is_urgent: below < -self.urgent.0 || below > self.urgent.1,
        }
    }
}

/// What the sensors say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GovernorInputs {
    /// The temperature of the processor in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// The power of the board in watts.
    pub watts: Option<f64>,
    /// Whether a request is being answered.
    pub is_computing: bool,
    /// The effort that is allowed whatever the sensors say, from 0 to 1.
    pub allowed: f64,
}

/// Why the effort is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EffortReason {
    /// Nothing limits it.
    Unlimited,
    /// The temperature of the processor.
    Temperature,
    /// The power of the board.
    Power,
    /// Quiet hours, or the battery.
    Reduced,
}

/// Both limits, and the effort that follows from them.
#[derive(Debug)]
pub struct EffortController {
    temperature: Option<LimitLoop>,
    power: Option<LimitLoop>,
    threads: usize,
    effort: f64,
    reason: EffortReason,
    seconds_unchanged: u32,
}

impl EffortController {
    /// A controller for so many threads, which begins with all of them.
    pub fn new(target_c: Option<f64>, limit_watts: Option<f64>, threads: usize) -> Self {
        EffortController {
            temperature: target_c.map(LimitLoop::temperature),
            power: limit_watts.map(LimitLoop::power),
            threads: threads.max(1),
            effort: 1.0,
            reason: EffortReason::Unlimited,
            seconds_unchanged: CALM_SECONDS,
        }
    }

    /// The effort from [`FLOOR`] to 1, as a part of all threads, after another second; and its reason.
    pub fn step(&mut self, inputs: GovernorInputs) -> (f64, EffortReason) {
        let GovernorInputs { temperature_c, watts, is_computing, allowed } = inputs;
        let limit = |of: &mut Option<LimitLoop>, reading: Option<f64>| {
            of.as_mut().zip(reading).map(|(of, reading)| of.step(reading, is_computing))
        };
        let temperature = limit(&mut self.temperature, temperature_c);
        let power = limit(&mut self.power, watts);
        let allowed = allowed.clamp(FLOOR, 1.0);
        let mut wanted = Output { effort: allowed, is_urgent: false };
        let mut reason = if allowed < 1.0 { EffortReason::Reduced } else { EffortReason::Unlimited };
        for (output, its) in [(temperature, EffortReason::Temperature), (power, EffortReason::Power)] {
            if let Some(output) = output.filter(|output| output.effort < wanted.effort) {
                (wanted, reason) = (output, its);
            }
        }
        let steps = STEPS_OF_A_THREAD * self.threads as f64;
        let effort = ((wanted.effort * steps).round() / steps).max(FLOOR);
        self.seconds_unchanged = self.seconds_unchanged.saturating_add(1);
        let pause = if wanted.is_urgent { URGENT_SECONDS } else { CALM_SECONDS };
        let is_due = self.seconds_unchanged >= pause && (effort - self.effort).abs() >= LEAST_CHANGE;
        // What is allowed changes seldom, and then at once.
        let is_fixed = |reason| matches!(reason, EffortReason::Unlimited | EffortReason::Reduced);
        if is_due || self.effort > allowed || (is_fixed(reason) && is_fixed(self.reason)) {
            self.seconds_unchanged = 0;
            (self.effort, self.reason) = (effort, reason);
        }
        (self.effort, self.reason)
    }
}
