//! The report of the benchmark, as text and as JSON. Deliberately measures nothing.

use crate::engine::model::{PassTimings, ShortlistStats};
use crate::engine::thread_tuner::ThreadCounts;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// Weights of fewer bytes may stay in the caches of a large machine.
const CACHED: usize = 256 << 20;

/// Minimum, median and maximum of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

/// The summary of one or more measurements.
pub(super) fn summary(mut values: Vec<f64>) -> Summary {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    // With an even number, the mean of the two middle ones.
    let median = (values[middle] + values[(values.len() - 1) / 2]) / 2.0;
    Summary { min: values[0], median, max: values[values.len() - 1] }
}

/// The time of one token by operation, in milliseconds of the thread that runs the model. Each is a median of its
/// own, so they add up to `token` only approximately.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct TimeShares {
    /// The whole token.
    pub token: f64,
    /// The matrices of attention, and attention itself.
    pub attention: f64,
    /// The matrices of the feed-forward layers.
    pub feed_forward: f64,
    /// The output head (lm_head).
    pub head: f64,
    /// Sending jobs to the thread pool, and waiting for it.
    pub barriers: f64,
    /// Work between matrices: normalisation, quantisation, rotary embedding, activation.
    pub between: f64,
    /// Work after the logits: sampling and detokenisation.
    pub text: f64,
    /// The share of the time without matrices and attention: the last three.
    pub outside_kernels: f64,
}

/// Time of one measurement, in total and by operation.
pub(super) struct MeasuredTime {
    pub wall: Duration,
    pub parts: PassTimings,
}

impl TimeShares {
    /// The times per token of measurements over `tokens` tokens each.
    pub fn of(measured: &[MeasuredTime], tokens: u32) -> Self {
        let median = |of: fn(&MeasuredTime) -> Duration| {
            let each = measured.iter().map(|spent| of(spent).as_secs_f64() * 1e3 / f64::from(tokens));
            summary(each.collect()).median
        };
        let shares = measured.iter().map(|spent| {
            let PassTimings { attention, feed_forward, head, .. } = spent.parts;
            1.0 - (attention + feed_forward + head).as_secs_f64() / spent.wall.as_secs_f64()
        });
        TimeShares {
            token: median(|spent| spent.wall),
            attention: median(|spent| spent.parts.attention),
            feed_forward: median(|spent| spent.parts.feed_forward),
            head: median(|spent| spent.parts.head),
            barriers: median(|spent| spent.parts.waiting),
            between: median(|spent| spent.parts.between),
            text: median(|spent| spent.wall.saturating_sub(spent.parts.total())),
            outside_kernels: summary(shares.collect()).median,
        }
    }

    fn rows(&self) -> [(&'static str, f64); 7] {
        [
            ("a token", self.token),
            ("attention", self.attention),
            ("feed-forward", self.feed_forward),
            ("head", self.head),
            ("barriers", self.barriers),
            ("between matrices", self.between),
            ("sampling, text", self.text),
        ]
    }
}

/// Counters of the screened head, and whether it chose the same tokens as the whole head.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct ShortlistSummary {
    #[serde(skip)]
    pub counts: ShortlistStats,
    /// Rows of the head that were read per token: in four bits, and whole.
    pub fine_rows_per_token: f64,
    pub rows_per_token: f64,
    /// Tokens that were chosen with the whole head because the shortlist was not reliable.
    pub scans: u64,
    /// Comparisons with the whole head, and how many of them found a different best token.
    pub checks: u64,
    pub misses: u64,
    /// How many tokens of the last answer, from the first on, are the same with the whole head.
    pub tokens_alike: usize,
}

impl ShortlistSummary {
    pub fn of(counts: ShortlistStats, tokens_alike: usize) -> Self {
        let ShortlistStats { tokens, rows, fine, scans, checks, misses } = counts;
        let [fine_rows_per_token, rows_per_token] =
            [fine, rows].map(|rows| rows as f64 / tokens.max(1) as f64);
        ShortlistSummary { counts, fine_rows_per_token, rows_per_token, scans, checks, misses, tokens_alike }
    }
}

/// The times of a constrained answer and of a free one, in milliseconds from the end of the prompt to the last token.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct ConstrainedTimes {
    /// Tokens of each answer.
    pub tokens: usize,
    /// Tokens of the constrained answer that the schema forced.
    pub forced_tokens: usize,
    /// Free decoding.
    pub free_ms: Summary,
    /// Decoding under the schema.
    pub constrained_ms: Summary,
    /// The second by the first, medians.
    pub time_ratio: f64,
    /// Milliseconds that making the trie of the vocabulary took, once.
    pub trie_ms: f64,
    /// Milliseconds that compiling the schema took.
    pub compile_ms: f64,
}

/// Several requests that are answered together, and one alone.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct ParallelTimes {
    /// Requests at the same time.
    pub requests: usize,
    /// Tokens of each answer.
    pub tokens: usize,
    /// Tokens per second of one request.
    pub alone: Summary,
    /// Tokens per second of all requests together.
    pub together: Summary,
    /// The second by the first, of each round.
    pub speedup: Summary,
    pub join: JoinTimes,
}

/// An answer whose tokens are given, decoded with speculation and without.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct SpeculationTimes {
    /// What kind of answer it is.
    pub kind: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Tokens that were proposed during it.
    pub proposed_tokens: usize,
    /// Those of them that were accepted.
    pub accepted_tokens: usize,
    /// Tokens per second without speculation.
    pub without: Summary,
    /// Tokens per second with it.
    pub with: Summary,
    /// The second by the first, of each round.
    pub speedup: Summary,
}

/// A prompt that is read while other answers are decoded.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct JoinTimes {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Answers that are decoded meanwhile.
    pub running: usize,
    /// Milliseconds between two tokens of an answer before.
    pub usual_gap_ms: Summary,
    /// The longest time between two tokens while the prompt is read.
    pub longest_gap_ms: Summary,
    /// The second by the first.
    pub gap_ratio: Summary,
    /// The speed of reading the prompt, by that alone.
    pub prompt_speed_ratio: Summary,
}

/// The tuned numbers of threads; `None` where tuning has not finished.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct TunedThreads {
    decode: Option<usize>,
    prefill: Option<usize>,
    /// Whether tuning was still under way during the measurements.
    is_open: bool,
}

impl TunedThreads {
    pub fn of(ThreadCounts { decode, prefill }: ThreadCounts, is_open: bool) -> Self {
        TunedThreads { decode, prefill, is_open }
    }

    /// The report as text.
    fn line(&self) -> String {
        match (self.is_open, self.decode, self.prefill) {
            (false, Some(decode), Some(prefill)) => {
                format!("fastest: {decode} to decode, {prefill} to read the prompt")
            }
            // A prompt this short is read with the threads of decoding.
            (false, Some(decode), None) => format!("fastest: {decode}"),
            _ => "fastest: still being measured, so that slower numbers of threads are in the results too; ask for more tokens".into(),
        }
    }
}

/// The report, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct BenchReport {
    pub model: String,
    pub kernel: &'static str,
    pub threads: usize,
    /// The tuned numbers of threads, where `--threads` was not given.
    pub threads_found: Option<TunedThreads>,
    pub prompt_tokens: u32,
    pub generate_tokens: u32,
    pub repeat: u32,
    /// Tokens per second.
    pub prefill: Summary,
    /// Tokens per second.
    pub decode: Summary,
    /// Milliseconds per token of the prompt, including the choice of the first token.
    pub prefill_parts: TimeShares,
    /// Milliseconds per decoded token.
    pub decode_parts: TimeShares,
    /// Median overhead of one job of the thread pool, in microseconds; `None` with one thread.
    pub hand_over: Option<f64>,
    /// Bytes of weights that one decoded token reads.
    pub bytes_per_token: usize,
    /// Bytes of the KV cache that it reads, on average.
    pub cache_bytes_per_token: usize,
    /// `None` where the head is read whole.
    pub screen: Option<ShortlistSummary>,
    /// `None` without `--constrained`.
    pub constrained: Option<ConstrainedTimes>,
    /// `None` without `--parallel`.
    pub parallel: Option<ParallelTimes>,
    /// Empty without `--speculate`.
    pub speculation: Vec<SpeculationTimes>,
    /// Bytes of both per second of decoding, median.
    pub read_speed: f64,
    /// Memory bandwidth of the same threads, in bytes per second.
    pub memory_bandwidth: Summary,
    /// The ratio of the two, median over the answers. It is above 1 where the weights fit into the caches.
    pub bandwidth_share: f64,
    /// Multiply-accumulates per second during prefill, median.
    pub multiply_speed: f64,
    /// Multiply-accumulates per second of the same threads with all data in the caches.
    pub arithmetic: Summary,
    /// The ratio of the two, median over the prompts.
    pub arithmetic_share: f64,
    /// Peak of the resident memory after the warm-up in bytes, mapped weights included.
    pub peak_memory: Option<u64>,
}

/// The report as text.
pub(super) fn table(report: &BenchReport) -> String {
    let mut out = format!(
        "{} on {}, threads: {}, {} prompt tokens, {} generated, {} rounds, medians\n",
        report.model,
        report.kernel,
        report.threads,
        report.prompt_tokens,
        report.generate_tokens,
        report.repeat
    );
    if let Some(found) = report.threads_found {
        write(&mut out, format_args!("{}", found.line()));
    }
    let mut line = |name: &str, spread: Summary, scale: f64, unit: &str| {
        let [min, median, max] = [spread.min, spread.median, spread.max].map(|x| x / scale);
        write(&mut out, format_args!("{name:<18} {median:>10.1} {unit:<9} (min {min:.1}, max {max:.1})"));
    };
    line("prefill", report.prefill, 1.0, "tokens/s");
    line("decode", report.decode, 1.0, "tokens/s");
    line("memory, read only", report.memory_bandwidth, 1e9, "GB/s");
    line("kernel alone", report.arithmetic, 1e9, "GMAC/s");
    let [weights, cache] =
        [report.bytes_per_token, report.cache_bytes_per_token].map(|bytes| bytes as f64 / 1e6);
    let speed = report.read_speed / 1e9;
    let share = report.bandwidth_share * 100.0;
    let remark = match share > 100.0 {
        true if report.bytes_per_token < CACHED => " (the weights fit the caches)",
        true => " (something disturbed it: measure again)",
        false => "",
    };
    write(
        &mut out,
        format_args!(
            "{:<18} {weights:>10.1} MB of weights, {cache:.1} of keys and values",
            "bytes per token"
        ),
    );
    write(
        &mut out,
        format_args!("{:<18} {speed:>10.1} GB/s, {share:.0} % of the memory's speed{remark}", "read"),
    );
    let (speed, share) = (report.multiply_speed / 1e9, report.arithmetic_share * 100.0);
    write(
        &mut out,
        format_args!(
            "{:<18} {speed:>10.1} GMAC/s of a prompt, {share:.0} % of the kernel alone",
            "multiplied"
        ),
    );
    if let Some(screen) = report.screen {
        shortlist(&mut out, screen, report.generate_tokens);
    }
    if let Some(times) = report.constrained {
        constrained(&mut out, times);
    }
    if let Some(times) = report.parallel {
        parallel(&mut out, times);
    }
    report.speculation.iter().for_each(|times| speculation(&mut out, times));
    if let Some(time) = report.hand_over {
        write(&mut out, format_args!("{:<18} {time:>10.1} microseconds", "handing over a job"));
    }
    if let Some(bytes) = report.peak_memory {
        write(&mut out, format_args!("{:<18} {:>10.1} MB, at most", "resident memory", bytes as f64 / 1e6));
    }
    parts(&mut out, report);
    out
}

/// The lines about a screened head.
fn shortlist(out: &mut String, screen: ShortlistSummary, wanted: u32) {
    let ShortlistSummary {
        fine_rows_per_token: fine,
        rows_per_token: rows,
        scans,
        checks,
        misses,
        tokens_alike,
        ..
    } = screen;
    write(
        out,
        format_args!(
            "{:<18} {rows:>10.1} rows read whole, {fine:.0} in four bits, {scans} scans",
            "screened head"
        ),
    );
    write(
        out,
        format_args!(
            "{:<18} {tokens_alike:>10} of {wanted} tokens, {misses} misses in {checks} checks",
            "as the whole head"
        ),
    );
}

/// The lines about an answer under a schema.
fn constrained(out: &mut String, times: ConstrainedTimes) {
    let ConstrainedTimes { tokens, forced_tokens, free_ms, constrained_ms, time_ratio, trie_ms, compile_ms } =
        times;
    let (free, held) = (free_ms.median, constrained_ms.median);
    let name = "under a schema";
    write(
        out,
        format_args!(
            "{name:<18} {held:>10.1} ms for {tokens} tokens, {forced_tokens} forced; free {free:.1} ms"
        ),
    );
    let name = "of the free time";
    write(
        out,
        format_args!("{name:<18} {time_ratio:>10.2} (trie {trie_ms:.1} ms once, schema {compile_ms:.1} ms)"),
    );
}

fn parallel(out: &mut String, times: ParallelTimes) {
    let ParallelTimes { requests, alone, together, speedup, join, .. } = times;
    let (speedup, alone, name) = (speedup.median, alone.median, format!("{requests} together"));
    write(
        out,
        format_args!(
            "{name:<18} {:>10.2} tokens/s, {speedup:.2} times one alone ({alone:.2})",
            together.median
        ),
    );
    let (gap, usual) = (join.longest_gap_ms.median, join.usual_gap_ms.median);
    let (name, ratio, tokens) = ("longest gap", join.gap_ratio.median, join.prompt_tokens);
    write(
        out,
        format_args!(
            "{name:<18} {gap:>10.2} ms while a prompt of {tokens} joins, {ratio:.2} times the usual one ({usual:.2} ms)"
        ),
    );
    let (name, ratio) = ("prompt beside them", join.prompt_speed_ratio.median);
    write(out, format_args!("{name:<18} {ratio:>10.2} of its speed alone, beside {} answers", join.running));
}

fn speculation(out: &mut String, times: &SpeculationTimes) {
    let SpeculationTimes { kind, tokens, proposed_tokens, accepted_tokens, .. } = times;
    let [with, without, speedup] = [times.with, times.without, times.speedup].map(|spread| spread.median);
    let name = format!("speculation, {kind}");
    write(
        out,
        format_args!(
            "{name:<18} {with:>8.2} tokens/s, {speedup:.2} times without ({without:.2}); {accepted_tokens} of \
             {proposed_tokens} proposed tokens accepted, {tokens} in all"
        ),
    );
}

fn parts(out: &mut String, report: &BenchReport) {
    let (decode, prefill) = (&report.decode_parts, &report.prefill_parts);
    write(out, format_args!("\n{:<18} {:>19}  {:>19}", "milliseconds", "decoded", "of the prompt"));
    for ((name, ours), (_, theirs)) in decode.rows().into_iter().zip(prefill.rows()) {
        let (share, other) = (ours / decode.token * 100.0, theirs / prefill.token * 100.0);
        write(out, format_args!("{name:<18} {ours:>11.4}  {share:>4.0} %  {theirs:>11.4}  {other:>4.0} %"));
    }
    let [ours, theirs] = [decode, prefill].map(|parts| parts.outside_kernels * 100.0);
    let name = "outside the kernels";
    write(out, format_args!("{name:<18} {:>10}  {ours:>4.0} %  {:>11}  {theirs:>4.0} %", "", ""));
}

fn write(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("into a string");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(wall: u64, waiting: u64) -> MeasuredTime {
        let [one, two, four] = [1, 2, 4].map(Duration::from_millis);
        let parts = PassTimings {
            attention: two,
            feed_forward: four,
            head: one,
            waiting: Duration::from_millis(waiting),
            between: one,
        };
        MeasuredTime { wall: Duration::from_millis(wall), parts }
    }

    #[test]
    fn the_middle_of_an_even_number_is_the_mean_of_two() {
        assert_eq!(summary(vec![4.0, 1.0, 3.0, 2.0]), Summary { min: 1.0, median: 2.5, max: 4.0 });
    }

    #[test]
    fn numbers_that_are_still_being_tuned_are_reported_as_such() {
        let line =
            |decode, prefill, is_open| TunedThreads::of(ThreadCounts { decode, prefill }, is_open).line();
        assert_eq!(line(Some(2), Some(4), false), "fastest: 2 to decode, 4 to read the prompt");
        assert_eq!(line(Some(2), None, false), "fastest: 2");
        assert!(line(Some(2), None, true).starts_with("fastest: still being measured, "));
        assert!(line(None, None, true).starts_with("fastest: still being measured, "));
    }

    #[test]
    fn parts_are_of_one_token_and_what_is_left_is_text() {
        let parts = TimeShares::of(&[spent(14, 2), spent(14, 2), spent(28, 9)], 2);
        assert_eq!((parts.token, parts.attention, parts.feed_forward, parts.head), (7.0, 1.0, 2.0, 0.5));
        assert_eq!((parts.barriers, parts.between, parts.text), (1.0, 0.5, 2.0));
        assert_eq!(parts.outside_kernels, 0.5);
    }
}
