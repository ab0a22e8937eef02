//! The columns of a step of the history: their names, their units, how two steps become one, and the 16 bits that a value
//! takes.
//!
//! Deliberately knows no time and no file.

/// Defines the columns in their order in the file. A new column goes to the end: the file says how many columns it has, so
/// that a file of an earlier version stays readable.
macro_rules! columns {
    ($($name:ident, $key:literal, $scale:literal, $merge:ident;)+) => {
        /// A column of a step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the table below has their names and units")]
        pub enum StepColumn { $($name,)+ }

        impl StepColumn {
            /// All columns in their order.
            pub const ALL: &[StepColumn] = &[$(StepColumn::$name,)+];

            fn about(self) -> (&'static str, f64, MergeRule) {
                match self { $(StepColumn::$name => ($key, $scale, MergeRule::$merge),)+ }
            }
        }
    };
}

/// How the values of several steps become that of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MergeRule {
    /// The sum.
    Sum,
    /// The mean, weighted by the seconds that were observed.
    Mean,
    /// The lowest.
    Min,
    /// The highest.
    Max,
    /// The last that is known.
    Last,
    /// A set of bits: all that are in any.
    Bits,
    /// Percentiles of latencies, which are merged together.
    Percentile,
}

columns! {
    // Name, key in the CSV and JSON forms, codes for each unit, how it is merged.
    ObservedS, "observed_s", 1.0, Sum;
    Starts, "starts", 1.0, Sum;
    PowerMean, "power_mean_w", 1000.0, Mean;
    PowerMin, "power_min_w", 1000.0, Min;
    PowerMax, "power_max_w", 1000.0, Max;
    TemperatureMean, "temperature_mean_c", 10.0, Mean;
    TemperatureMin, "temperature_min_c", 10.0, Min;
    TemperatureMax, "temperature_max_c", 10.0, Max;
    ThrottledS, "throttled_s", 1.0, Sum;
    UnderVoltageS, "under_voltage_s", 1.0, Sum;
    CpuMean, "cpu_mean_percent", 10.0, Mean;
    QueueMean, "queue_mean", 100.0, Mean;
    QueueMax, "queue_max", 1.0, Max;
    RunningMean, "running_mean", 100.0, Mean;
    // KiB, so that the smallest process is exact and the largest server still fits.
    MemoryMean, "memory_mean_kib", 1.0, Mean;
    MemoryMax, "memory_max_kib", 1.0, Max;
    MemoryBudget, "memory_budget_kib", 1.0, Last;
    Completed, "completed", 1.0, Sum;
    Failed, "failed", 1.0, Sum;
    Refused, "refused", 1.0, Sum;
    Cancelled, "cancelled", 1.0, Sum;
    CacheHits, "cache_hits", 1.0, Sum;
    CacheMisses, "cache_misses", 1.0, Sum;
    PromptTokens, "prompt_tokens", 1.0, Sum;
    CompletionTokens, "completion_tokens", 1.0, Sum;
    // Tokens after the first of each answer, and the milliseconds that they took: their quotient is the speed.
    DecodedTokens, "decoded_tokens", 1.0, Sum;
    DecodeMs, "decode_ms", 1.0, Sum;
    TtftCount, "ttft_count", 1.0, Sum;
    TtftP50, "ttft_p50_ms", 10.0, Percentile;
    TtftP95, "ttft_p95_ms", 10.0, Percentile;
    TtftP99, "ttft_p99_ms", 10.0, Percentile;
    TotalCount, "total_count", 1.0, Sum;
    TotalP50, "total_p50_ms", 10.0, Percentile;
    TotalP95, "total_p95_ms", 10.0, Percentile;
    TotalP99, "total_p99_ms", 10.0, Percentile;
    Joules, "energy_j", 10.0, Sum;
    // Joules and tokens of the requests whose energy is known.
    RequestJoules, "request_energy_j", 10.0, Sum;
    RequestTokens, "request_energy_tokens", 1.0, Sum;
    AlertsRaised, "alerts_raised", 1.0, Sum;
    // One bit for each kind of alert that was raised at any time of the step, in the order of their keys in `[alerts]`.
    AlertBits, "alerts", 1.0, Bits;
}

/// How many columns there are.
pub const COLUMNS: usize = StepColumn::ALL.len();

/// The code of what is not known.
pub(super) const UNKNOWN: u16 = u16::MAX;

/// What a temperature is stored above, in degrees Celsius: codes are not negative.
const COLDEST_C: f64 = -100.0;

impl StepColumn {
    /// Its name in data files, with the unit.
    pub fn key(self) -> &'static str {
        self.about().0
    }

    pub(super) fn merge_rule(self) -> MergeRule {
        self.about().2
    }

    /// The value of a code, in the column's unit.
    pub(super) fn value(self, code: u16) -> Option<f64> {
        if self.merge_rule() == MergeRule::Bits {
            return Some(f64::from(code));
        }
        (code != UNKNOWN).then(|| decode(code) / self.about().1 + self.zero())
    }

    /// The code of a value in the column's unit.
    pub(super) fn code(self, value: Option<f64>) -> u16 {
        match value.filter(|value| !value.is_nan()) {
            Some(bits) if self.merge_rule() == MergeRule::Bits => bits as u16,
            None if self.merge_rule() == MergeRule::Bits => 0,
            Some(value) => encode((value - self.zero()) * self.about().1),
            None => UNKNOWN,
        }
    }

    fn zero(self) -> f64 {
        match self {
            StepColumn::TemperatureMean | StepColumn::TemperatureMin | StepColumn::TemperatureMax => {
                COLDEST_C
            }
            _ => 0.0,
        }
    }
}

/// Bits of the mantissa, besides the one that is implied.
const MANTISSA_BITS: u32 = 11;
const IMPLIED: u64 = 1 << MANTISSA_BITS;

/// A number that is not negative as a floating-point number of 16 bits, 5 of them exponent: whole numbers up to 4096 are
/// exact, and larger ones are within 1/4096. Larger numbers have larger codes. Beyond 4.4e12 all have the largest.
fn encode(value: f64) -> u16 {
    let whole = value.round().max(0.0) as u64;
    if whole < IMPLIED {
        return whole as u16;
    }
    let shift = whole.ilog2() - MANTISSA_BITS;
    // Rounding up may carry into the exponent, which gives the right code too.
    let mantissa = whole.saturating_add((1 << shift) >> 1) >> shift;
    let code = (u64::from(shift + 1) << MANTISSA_BITS) + (mantissa - IMPLIED);
    code.min(u64::from(UNKNOWN - 1)) as u16
}

fn decode(code: u16) -> f64 {
    let (exponent, mantissa) = (u32::from(code) >> MANTISSA_BITS, u64::from(code) & (IMPLIED - 1));
    match exponent {
        0 => mantissa as f64,
        exponent => ((IMPLIED + mantissa) << (exponent - 1)) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_the_code_of_its_own_value() {
        for code in 0..UNKNOWN {
            assert_eq!(encode(decode(code)), code);
        }
    }

    #[test]
    fn small_counts_are_exact_and_large_ones_nearly() {
        for count in 0..=4096 {
            assert_eq!(decode(encode(f64::from(count))), f64::from(count));
        }
        let mut value = 4097.0f64;
        while value < 4e12 {
            let stored = decode(encode(value));
            assert!((stored / value - 1.0).abs() <= 1.0 / 4096.0, "{value}: {stored}");
            value = (value * 1.0037).ceil();
        }
    }

    #[test]
    fn what_is_no_number_is_unknown_and_what_is_too_large_is_the_largest() {
        assert_eq!(StepColumn::PowerMean.code(None), UNKNOWN);
        assert_eq!(StepColumn::PowerMean.code(Some(f64::NAN)), UNKNOWN);
        for large in [f64::INFINITY, 1e300, 1e13] {
            assert_eq!(StepColumn::Completed.code(Some(large)), UNKNOWN - 1);
        }
        assert_eq!(StepColumn::Completed.code(Some(-1.0)), 0);
        assert_eq!(StepColumn::PowerMean.value(UNKNOWN), None);
    }

    #[test]
    fn a_frosty_board_has_its_temperature() {
        for degrees in [-40.0, -0.5, 0.0, 85.5, 119.5] {
            let stored = StepColumn::TemperatureMean.value(StepColumn::TemperatureMean.code(Some(degrees)));
            assert!((stored.expect("known") - degrees).abs() < 0.11, "{degrees}: {stored:?}");
        }
    }

    #[test]
    fn keys_are_unique() {
        let mut keys: Vec<&str> = StepColumn::ALL.iter().map(|column| column.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), COLUMNS);
    }
}
