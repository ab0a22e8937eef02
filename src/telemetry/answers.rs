//! What finished answers add up to: latencies, tokens, energy.

use super::histogram::Histogram;
use crate::protocol::{Latency, Percentiles, Screen, Spans, Throughput, Timings, Usage};
use std::time::Duration;

/// Sums over all computed answers since start.
#[derive(Debug, Default)]
pub(super) struct Answers {
    queue: Histogram,
    ttft: Histogram,
    token: Histogram,
    total: Histogram,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// Time spent reading prompts.
    prompt_s: f64,
    /// Tokens after the first of each answer, and the time they took.
    decoded_tokens: u64,
    decode_s: f64,
    /// Energy of the answers that have one, and their tokens.
    joules: f64,
    metered_tokens: u64,
    screen: Option<Screen>,
}

impl Answers {
    /// Adds one computed answer.
    pub fn add(&mut self, usage: &Usage, timings: &Timings, joules: Option<f64>) {
        self.queue.record(duration(timings.queue_ms));
        self.total.record(duration(timings.total_ms));
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        self.prompt_s += duration(timings.prompt_ms).as_secs_f64();
        self.completion_tokens += u64::from(usage.completion_tokens);
        if usage.completion_tokens > 0 {
            self.ttft.record(duration(timings.ttft_ms));
            self.decoded(usage.completion_tokens - 1, timings);
        }
        if let Some(joules) = joules {
            self.joules += joules;
            self.metered_tokens += u64::from(usage.completion_tokens);
        }
    }

    fn decoded(&mut self, tokens: u32, timings: &Timings) {
        if tokens == 0 {
            return;
        }
        let time = duration(timings.total_ms - timings.ttft_ms);
        self.token.record(time / tokens);
        self.decoded_tokens += u64::from(tokens);
        self.decode_s += time.as_secs_f64();
    }

    /// Takes over the counts of the screened head.
    pub fn screened(&mut self, counts: Screen) {
        self.screen = Some(counts);
    }

    pub fn latency(&self) -> Latency {
        Latency {
            queue_ms: percentiles(&self.queue),
            ttft_ms: percentiles(&self.ttft),
            token_ms: percentiles(&self.token),
            total_ms: percentiles(&self.total),
        }
    }

    pub fn throughput(&self) -> Throughput {
        Throughput {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            prompt_tokens_per_second: share(self.prompt_tokens as f64, self.prompt_s),
            tokens_per_second: share(self.decoded_tokens as f64, self.decode_s),
            screen: self.screen,
        }
    }

    /// Energy of the answers that have one.
    pub fn joules(&self) -> f64 {
        self.joules
    }

    pub fn joules_per_token(&self) -> Option<f64> {
        share(self.joules, self.metered_tokens as f64)
    }
}

fn share(amount: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| amount / of)
}

/// Milliseconds as a duration; a clock's rounding below zero counts as none.
fn duration(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()
}

fn percentiles(histogram: &Histogram) -> Spans {
    let ms = |share| histogram.percentile(share).map(|d| d.as_secs_f64() * 1e3);
    let all = Percentiles { p50: ms(0.5), p95: ms(0.95), p99: ms(0.99), count: histogram.count() };
    Spans { all, ..Spans::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt_tokens: u32, completion_tokens: u32) -> Usage {
        Usage { prompt_tokens, completion_tokens }
    }

    /// 1 s in the queue, 2 s of prompt, then 4 s for the tokens after the first.
    fn timings() -> Timings {
        Timings {
            queue_ms: 1000.0,
            prompt_ms: 2000.0,
            ttft_ms: 3000.0,
            total_ms: 7000.0,
            tokens_per_second: 5.0,
        }
    }

    #[test]
    fn speeds_are_tokens_over_the_time_they_took() {
        let mut answers = Answers::default();
        answers.add(&usage(10, 21), &timings(), None);
        answers.add(&usage(30, 21), &timings(), None);
        let throughput = answers.throughput();
        assert_eq!((throughput.prompt_tokens, throughput.completion_tokens), (40, 42));
        assert_eq!(throughput.prompt_tokens_per_second, Some(10.0));
        assert_eq!(throughput.tokens_per_second, Some(5.0));
    }

    #[test]
    fn time_per_token_leaves_the_first_one_out() {
        let mut answers = Answers::default();
        answers.add(&usage(10, 21), &timings(), None);
        let p50 = answers.latency().token_ms.all.p50.expect("one request");
        assert!((p50 / 200.0 - 1.0).abs() < 0.02, "{p50}");
    }

    #[test]
    fn an_answer_without_tokens_has_no_first_one() {
        let mut answers = Answers::default();
        answers.add(&usage(10, 0), &timings(), None);
        answers.add(&usage(10, 1), &timings(), None);
        let latency = answers.latency();
        assert_eq!((latency.ttft_ms.all.count, latency.token_ms.all.count), (1, 0));
        assert_eq!(latency.total_ms.all.count, 2);
        assert_eq!(answers.throughput().tokens_per_second, None);
    }

    #[test]
    fn energy_for_each_token_counts_only_answers_whose_energy_is_known() {
        let mut answers = Answers::default();
        assert_eq!(answers.joules_per_token(), None);
        answers.add(&usage(10, 20), &timings(), Some(10.0));
        answers.add(&usage(10, 20), &timings(), None);
        assert_eq!(answers.joules_per_token(), Some(0.5));
    }

    #[test]
    fn times_that_are_no_times_count_as_none() {
        let mut answers = Answers::default();
        let odd = Timings { total_ms: f64::NAN, queue_ms: -1.0, ..timings() };
        answers.add(&usage(1, 2), &odd, None);
        assert_eq!(answers.latency().queue_ms.all.p99, Some(0.0));
    }
}
