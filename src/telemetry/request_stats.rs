//! Statistics of the requests that ended: latencies, token counts, energy. Deliberately knows no text of a request
//! or an answer.

use super::latency::histogram::Histogram;
use super::latency::{Distribution, ErrorType, FixedBuckets, LatencyStats, Quantity};
use crate::protocol::{
    Code, Done, FinishReason, Latency, RequestEnergy, ShortlistCounts, Throughput, Timings, Usage,
};
use std::time::{Duration, Instant};

/// Error codes that have a histogram of their own, besides `internal`, which is a fault of the daemon and always has one:
/// the first that occur. Each takes 3 KiB of the metrics, whose length is limited.
const MAX_NAMED_CODES: usize = 6;

/// Statistics over all computed answers since start.
#[derive(Debug)]
pub(super) struct RequestStats {
    queue: LatencyStats,
    ttft: LatencyStats,
    token: LatencyStats,
    total: LatencyStats,
    /// Durations of requests that failed.
    failed: Vec<(ErrorType, FixedBuckets)>,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// Seconds spent on prefill.
    prompt_s: f64,
    /// Tokens after the first of each answer, and the seconds they took.
    decoded_tokens: u64,
    decode_s: f64,
    /// Energy of the answers for which it is known, and their tokens.
    gross: EnergySum,
    /// The same above the idle power, of the answers for which that is known.
    above_idle: EnergySum,
    screen: Option<ShortlistCounts>,
}

#[derive(Debug, Default)]
struct EnergySum {
    joules: f64,
    tokens: u64,
    is_any: bool,
}

impl EnergySum {
    fn add(&mut self, joules: f64, usage: &Usage) {
        self.is_any = true;
        self.joules += joules;
        self.tokens += u64::from(usage.completion_tokens);
    }

    fn per_token(&self) -> Option<f64> {
        ratio(self.joules, self.tokens as f64)
    }
}

impl Default for RequestStats {
    fn default() -> Self {
        RequestStats {
            queue: LatencyStats::new(Quantity::QueueTime),
            ttft: LatencyStats::new(Quantity::TimeToFirstToken),
            token: LatencyStats::new(Quantity::TimePerOutputToken),
            total: LatencyStats::new(Quantity::RequestDuration),
            failed: Vec::new(),
            prompt_tokens: 0,
            completion_tokens: 0,
            prompt_s: 0.0,
            decoded_tokens: 0,
            decode_s: 0.0,
            gross: EnergySum::default(),
            above_idle: EnergySum::default(),
            screen: None,
        }
    }
}

impl RequestStats {
    /// Adds one computed answer that ended at `now`.
    pub fn add(&mut self, now: Instant, done: &Done) {
        let (usage, timings) = (&done.usage, &done.timings);
        self.queue.record(now, duration(timings.queue_ms));
        self.add_duration(now, done.finish_reason, duration(timings.total_ms));
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        self.prompt_s += duration(timings.prompt_ms).as_secs_f64();
        self.completion_tokens += u64::from(usage.completion_tokens);
        if usage.completion_tokens > 0 {
            self.ttft.record(now, duration(timings.ttft_ms));
            self.add_decode(now, usage.completion_tokens - 1, timings);
        }
        if let Some(energy) = &done.energy {
            self.add_energy(energy, usage);
        }
    }

    /// An answer that was cut short counts as a failure in the exported histograms, and as an answer in the
    /// percentiles.
    fn add_duration(&mut self, now: Instant, reason: FinishReason, took: Duration) {
        match reason {
            FinishReason::Stop | FinishReason::Length => self.total.record(now, took),
            FinishReason::Timeout => {
                self.total.record_percentiles_only(now, took);
                self.fail(Code::Timeout, took);
            }
            FinishReason::Cancelled => {
                self.total.record_percentiles_only(now, took);
                self.fail(Code::Cancelled, took);
            }
        }
    }

    fn add_decode(&mut self, now: Instant, tokens: u32, timings: &Timings) {
        if tokens == 0 {
            return;
        }
        let time = duration(timings.total_ms - timings.ttft_ms);
        self.token.record(now, time / tokens);
        self.decoded_tokens += u64::from(tokens);
        self.decode_s += time.as_secs_f64();
    }

    fn add_energy(&mut self, energy: &RequestEnergy, usage: &Usage) {
        self.gross.add(energy.joules, usage);
        if let Some(joules) = energy.joules_above_idle {
            self.above_idle.add(joules, usage);
        }
    }

    /// Adds one request that failed `took` after it arrived.
    pub fn fail(&mut self, code: Code, took: Duration) {
        let error = self.error_type(code);
        let at = self.failed.iter().position(|(known, _)| *known == error).unwrap_or_else(|| {
            self.failed.push((error, FixedBuckets::new(Quantity::RequestDuration)));
            self.failed.len() - 1
        });
        self.failed[at].1.record(took.as_secs_f64());
    }

    /// Under which a failure is counted.
    fn error_type(&self, code: Code) -> ErrorType {
        let (own, internal) = (ErrorType::Code(code), ErrorType::Code(Code::Internal));
        let is_known = self.failed.iter().any(|(known, _)| *known == own);
        let named = self.failed.iter().filter(|(known, _)| *known != internal).count();
        if is_known || own == internal || named < MAX_NAMED_CODES { own } else { ErrorType::Other }
    }

    /// Sets the counters of the screened head, which count from the start.
    pub fn set_screen_counts(&mut self, counts: ShortlistCounts) {
        self.screen = Some(counts);
    }

    pub fn latency(&self, now: Instant) -> Latency {
        Latency {
            queue_ms: self.queue.spans(now),
            ttft_ms: self.ttft.spans(now),
            token_ms: self.token.spans(now),
            total_ms: self.total.spans(now),
        }
    }

    /// Histograms with fixed buckets since start.
    pub fn distributions(&self) -> Vec<Distribution> {
        let sound = [&self.total, &self.ttft, &self.token, &self.queue].map(LatencyStats::distribution);
        let failed = self.failed.iter().map(|(code, buckets)| buckets.distribution(Some(*code)));
        sound.into_iter().chain(failed).collect()
    }

    pub fn throughput(&self) -> Throughput {
        Throughput {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            prompt_tokens_per_second: ratio(self.prompt_tokens as f64, self.prompt_s),
            tokens_per_second: ratio(self.decoded_tokens as f64, self.decode_s),
            screen: self.screen,
        }
    }

    /// Tokens after the first of each answer, and the seconds they took.
    pub fn decoded(&self) -> (u64, f64) {
        (self.decoded_tokens, self.decode_s)
    }

    /// All times to the first token, and all times to the last, since start.
    pub fn latencies_since_start(&self) -> [&Histogram; 2] {
        [self.ttft.all(), self.total.all()]
    }

    /// Tokens of the answers whose energy is known.
    pub fn energy_tokens(&self) -> u64 {
        self.gross.tokens
    }

    /// Energy of the answers for which it is known, in joules.
    pub fn joules(&self) -> f64 {
        self.gross.joules
    }

    /// Energy above the idle power, in joules, of the answers for which that is known; `None` without any.
    pub fn joules_above_idle(&self) -> Option<f64> {
        self.above_idle.is_any.then_some(self.above_idle.joules)
    }

    pub fn joules_per_token(&self) -> Option<f64> {
        self.gross.per_token()
    }

    pub fn joules_per_token_above_idle(&self) -> Option<f64> {
        self.above_idle.per_token()
    }
}

fn ratio(amount: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| amount / of)
}

/// Milliseconds as a duration; a slightly negative difference, from rounding, counts as 0.
pub(super) fn duration(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::protocol::AnswerDetails;
    use crate::protocol::Method;

    /// An answer with 1 s in the queue, 2 s of prefill, and 4 s for the tokens after the first.
    pub(in crate::telemetry) fn done(prompt_tokens: u32, completion_tokens: u32) -> Done {
        let timings = Timings {
            queue_ms: 1000.0,
            prompt_ms: 2000.0,
            ttft_ms: 3000.0,
            total_ms: 7000.0,
            tokens_per_second: 5.0,
        };
        Done {
            id: "a".into(),
            text: String::new(),
            finish_reason: FinishReason::Stop,
            usage: Usage { prompt_tokens, completion_tokens, cached_tokens: 0 },
            timings,
            energy: None,
            cached: false,
            model: "m".into(),
            details: AnswerDetails::default(),
        }
    }

    fn of(all: &[Done]) -> (RequestStats, Instant) {
        let (mut answers, now) = (RequestStats::default(), Instant::now());
        all.iter().for_each(|done| answers.add(now, done));
        (answers, now)
    }

    #[test]
    fn speeds_are_tokens_over_the_time_they_took() {
        let throughput = of(&[done(10, 21), done(30, 21)]).0.throughput();
        assert_eq!((throughput.prompt_tokens, throughput.completion_tokens), (40, 42));
        assert_eq!(throughput.prompt_tokens_per_second, Some(10.0));
        assert_eq!(throughput.tokens_per_second, Some(5.0));
    }

    #[test]
    fn time_per_token_leaves_the_first_one_out() {
        let (answers, now) = of(&[done(10, 21)]);
        let p50 = answers.latency(now).token_ms.all.p50.expect("one request");
        assert!((p50 / 200.0 - 1.0).abs() < 0.02, "{p50}");
    }

    #[test]
    fn an_answer_without_tokens_has_no_first_one() {
        let (answers, now) = of(&[done(10, 0), done(10, 1)]);
        let latency = answers.latency(now);
        assert_eq!((latency.ttft_ms.all.count, latency.token_ms.all.count), (1, 0));
        assert_eq!(latency.total_ms.all.count, 2);
        assert_eq!(answers.throughput().tokens_per_second, None);
    }

    #[test]
    fn energy_for_each_token_counts_only_answers_whose_energy_is_known() {
        let cost = |joules, joules_above_idle| {
            let method = Method::Measured;
            let energy = RequestEnergy { joules, joules_above_idle, joules_per_token: None, method };
            Done { energy: Some(energy), ..done(10, 20) }
        };
        assert_eq!(RequestStats::default().joules_per_token(), None);
        let (answers, _) = of(&[cost(10.0, None), done(10, 20), cost(20.0, Some(5.0))]);
        assert_eq!(answers.joules_per_token(), Some(0.75));
        assert_eq!(answers.joules_per_token_above_idle(), Some(0.25));
        assert_eq!((answers.joules(), answers.joules_above_idle()), (30.0, Some(5.0)));
    }

    #[test]
    fn times_that_are_no_times_count_as_none() {
        let timings = Timings { total_ms: f64::NAN, queue_ms: -1.0, ..done(1, 2).timings };
        let (answers, now) = of(&[Done { timings, ..done(1, 2) }]);
        assert_eq!(answers.latency(now).queue_ms.all.p99, Some(0.0));
    }

    #[test]
    fn what_failed_is_counted_by_its_reason_and_apart_from_the_rest() {
        let late = Done { finish_reason: FinishReason::Timeout, ..done(10, 21) };
        let (mut answers, now) = of(&[done(10, 21), late]);
        answers.fail(Code::QueueFull, Duration::from_millis(3));
        answers.fail(Code::QueueFull, Duration::from_millis(30));
        let all = answers.distributions();
        let durations = all.iter().filter(|reported| reported.quantity == Quantity::RequestDuration);
        let counts: Vec<_> =
            durations.map(|reported| (reported.error, reported.count, reported.sum_s)).collect();
        let [timeout, full] = [Code::Timeout, Code::QueueFull].map(ErrorType::Code);
        let expected = [(None, 1, 7.0), (Some(timeout), 1, 7.0), (Some(full), 2, 0.033)];
        assert_eq!(counts, expected);
        // A person who waited until the time was up did wait that long.
        assert_eq!(answers.latency(now).total_ms.all.count, 2);
    }

    #[test]
    fn more_codes_than_have_a_histogram_are_counted_together_and_a_fault_of_the_daemon_never() {
        let mut answers = RequestStats::default();
        let named = [
            Code::QueueFull,
            Code::Timeout,
            Code::Cancelled,
            Code::BudgetExceeded,
            Code::ContextExceeded,
            Code::InvalidRequest,
        ];
        let others = [Code::TooLarge, Code::RateLimited, Code::ShuttingDown];
        for code in named.into_iter().chain(others).chain([Code::Internal]).chain(named) {
            answers.fail(code, Duration::from_secs(1));
        }
        let counts: Vec<_> = answers
            .distributions()
            .iter()
            .filter_map(|reported| Some((reported.error?, reported.count)))
            .collect();
        let mut expected: Vec<_> = named.map(|code| (ErrorType::Code(code), 2)).to_vec();
        expected.extend([(ErrorType::Other, 3), (ErrorType::Code(Code::Internal), 1)]);
        assert_eq!(counts, expected);
    }
}
