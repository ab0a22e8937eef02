//! What the benchmark says, to a person and as JSON.

use crate::engine::model::{Screening, Timings};
use crate::engine::tuner::Threads;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// Weights of fewer bytes may stay in the caches of a large machine.
const CACHED: usize = 256 << 20;

/// Least, middle and most of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

/// The spread of some measurements, of which there is at least one.
pub(super) fn summary(mut values: Vec<f64>) -> Summary {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    // The mean of the two in the middle where their number is even.
    let median = (values[middle] + values[(values.len() - 1) / 2]) / 2.0;
    Summary { min: values[0], median, max: values[values.len() - 1] }
}

/// Where the time of one token went, in milliseconds of the thread that runs the model; medians, each
/// for itself, so that they add up to `token` only nearly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct TimeShares {
    /// All of it.
    pub token: f64,
    /// The matrices of attention, and attention itself.
    pub attention: f64,
    /// The matrices of the feed-forward layers.
    pub feed_forward: f64,
    /// The matrix that gives the logits.
    pub head: f64,
    /// Handing work to other threads, and waiting for them.
    pub barriers: f64,
    /// What is done between matrices: normalising, quantising, rotating, activating.
    pub between: f64,
    /// What is done with logits: choosing a token, and its text.
    pub text: f64,
    /// Share of the time that no matrix and no attention was computed: the last three.
    pub outside_kernels: f64,
}

/// Time of one measurement and where it went.
pub(super) struct MeasuredTime {
    pub wall: Duration,
    pub parts: Timings,
}

impl TimeShares {
    /// Parts of a token, of measurements over `tokens` each.
    pub fn of(measured: &[MeasuredTime], tokens: u32) -> Self {
        let median = |of: fn(&MeasuredTime) -> Duration| {
            let each = measured.iter().map(|spent| of(spent).as_secs_f64() * 1e3 / f64::from(tokens));
            summary(each.collect()).median
        };
        let shares = measured.iter().map(|spent| {
            let Timings { attention, feed_forward, head, .. } = spent.parts;
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

/// What screening the head did, and whether it chose as the whole head does.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct ShortlistCounts {
    #[serde(skip)]
    pub counts: Screening,
    /// Rows of the head that were read for a token: in four bits, and whole.
    pub fine_rows_per_token: f64,
    pub rows_per_token: f64,
    /// Tokens that were chosen by the whole head because the screen could not be trusted.
    pub scans: u64,
    /// Comparisons with the whole head, and how many of them found another best token.
    pub checks: u64,
    pub misses: u64,
    /// Tokens of the last answer that the whole head chose too, from the first on.
    pub tokens_alike: usize,
}

impl ShortlistCounts {
    pub fn of(counts: Screening, tokens_alike: usize) -> Self {
        let Screening { tokens, rows, fine, scans, checks, misses } = counts;
        let [fine_rows_per_token, rows_per_token] =
            [fine, rows].map(|rows| rows as f64 / tokens.max(1) as f64);
        ShortlistCounts { counts, fine_rows_per_token, rows_per_token, scans, checks, misses, tokens_alike }
    }
}

/// The numbers of threads that were found to be fastest; nothing where that is still open.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct TunedThreads {
    decode: Option<usize>,
    prefill: Option<usize>,
    /// Whether the measurements were made while other numbers were tried.
    is_open: bool,
}

impl TunedThreads {
    pub fn of(Threads { decode, prefill }: Threads, is_open: bool) -> Self {
        TunedThreads { decode, prefill, is_open }
    }

    /// For a person.
    fn line(&self) -> String {
        match (self.is_open, self.decode, self.prefill) {
            (false, Some(decode), Some(prefill)) => {
                format!("fastest: {decode} to decode, {prefill} to read the prompt")
            }
            // Too short a prompt for a number of its own.
            (false, Some(decode), None) => format!("fastest: {decode}"),
            _ => "fastest: still being found out, so that slower numbers were measured too; ask for more tokens".into(),
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct BenchReport {
    pub model: String,
    pub kernel: &'static str,
    pub threads: usize,
    /// Of those, where none were asked for.
    pub threads_found: Option<TunedThreads>,
    pub prompt_tokens: u32,
    pub generate_tokens: u32,
    pub repeat: u32,
    /// Tokens a second.
    pub prefill: Summary,
    /// Tokens a second.
    pub decode: Summary,
    /// Milliseconds of a token of the prompt, the first token's choice among them.
    pub prefill_parts: TimeShares,
    /// Milliseconds of a decoded token.
    pub decode_parts: TimeShares,
    /// Microseconds to hand a job to another thread and get it back, median; nothing on one thread.
    pub hand_over: Option<f64>,
    /// Weights that one decoded token reads.
    pub bytes_per_token: usize,
    /// Keys and values that it reads, mean.
    pub cache_bytes_per_token: usize,
    /// Nothing where the head is read whole.
    pub screen: Option<ShortlistCounts>,
    /// Bytes of both a second of decoding, median.
    pub read_speed: f64,
    /// Bytes a second that the same threads read from memory.
    pub memory_bandwidth: Summary,
    /// The former over the latter, median of those of each answer. Above 1 where the weights fit the caches.
    pub bandwidth_share: f64,
    /// Multiplications a second of a prompt with the layers' matrices, median.
    pub multiply_speed: f64,
    /// Multiplications a second that the same threads do when nothing holds them up: the kernel out of the caches.
    pub arithmetic: Summary,
    /// The former over the latter, median of those of each prompt.
    pub arithmetic_share: f64,
    /// Most bytes resident after the first answer, weights that are mapped among them.
    pub peak_memory: Option<u64>,
}

/// For a person.
pub(super) fn table(said: &BenchReport) -> String {
    let mut out = format!(
        "{} on {}, threads: {}, {} prompt tokens, {} generated, {} rounds, medians\n",
        said.model, said.kernel, said.threads, said.prompt_tokens, said.generate_tokens, said.repeat
    );
    if let Some(found) = said.threads_found {
        write(&mut out, format_args!("{}", found.line()));
    }
    let mut line = |name: &str, spread: Summary, scale: f64, unit: &str| {
        let [min, median, max] = [spread.min, spread.median, spread.max].map(|x| x / scale);
        write(&mut out, format_args!("{name:<18} {median:>10.1} {unit:<9} (min {min:.1}, max {max:.1})"));
    };
    line("prefill", said.prefill, 1.0, "tokens/s");
    line("decode", said.decode, 1.0, "tokens/s");
    line("memory, read only", said.memory_bandwidth, 1e9, "GB/s");
    line("kernel alone", said.arithmetic, 1e9, "GMAC/s");
    let [weights, cache] = [said.bytes_per_token, said.cache_bytes_per_token].map(|bytes| bytes as f64 / 1e6);
    let speed = said.read_speed / 1e9;
    let share = said.bandwidth_share * 100.0;
    let remark = match share > 100.0 {
        true if said.bytes_per_token < CACHED => " (the weights fit the caches)",
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
    let (speed, share) = (said.multiply_speed / 1e9, said.arithmetic_share * 100.0);
    write(
        &mut out,
        format_args!(
            "{:<18} {speed:>10.1} GMAC/s of a prompt, {share:.0} % of the kernel alone",
            "multiplied"
        ),
    );
    if let Some(screen) = said.screen {
        shortlist(&mut out, screen, said.generate_tokens);
    }
    if let Some(time) = said.hand_over {
        write(&mut out, format_args!("{:<18} {time:>10.1} microseconds", "handing over a job"));
    }
    if let Some(bytes) = said.peak_memory {
        write(&mut out, format_args!("{:<18} {:>10.1} MB, at most", "resident memory", bytes as f64 / 1e6));
    }
    parts(&mut out, said);
    out
}

/// The lines about a screened head.
fn shortlist(out: &mut String, screen: ShortlistCounts, wanted: u32) {
    let ShortlistCounts {
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

fn parts(out: &mut String, said: &BenchReport) {
    let (decode, prefill) = (&said.decode_parts, &said.prefill_parts);
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
        let parts = Timings {
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
    fn numbers_that_are_still_being_found_out_are_said_to_be() {
        let line = |decode, prefill, is_open| TunedThreads::of(Threads { decode, prefill }, is_open).line();
        assert_eq!(line(Some(2), Some(4), false), "fastest: 2 to decode, 4 to read the prompt");
        assert_eq!(line(Some(2), None, false), "fastest: 2");
        assert!(line(Some(2), None, true).starts_with("fastest: still being found out, "));
        assert!(line(None, None, true).starts_with("fastest: still being found out, "));
    }

    #[test]
    fn parts_are_of_one_token_and_what_is_left_is_text() {
        let parts = TimeShares::of(&[spent(14, 2), spent(14, 2), spent(28, 9)], 2);
        assert_eq!((parts.token, parts.attention, parts.feed_forward, parts.head), (7.0, 1.0, 2.0, 0.5));
        assert_eq!((parts.barriers, parts.between, parts.text), (1.0, 0.5, 2.0));
        assert_eq!(parts.outside_kernels, 0.5);
    }
}
