//! Chooses the number of threads of a pass: it measures candidates on the layers of the first real passes, keeps
//! the fastest, and repeats this now and then, because other work may have disturbed the first measurement, or come
//! or gone since.
//!
//! All layers of a model do the same work, so that neighbouring layers show which number of threads is fastest,
//! however long the context. Each candidate gets two layers in turn, of which the second counts: in the first a
//! parked thread may still be waking. A candidate is judged by its shortest time, because other work on the machine
//! can only add time. A token costs less in a longer pass, so only passes of equal length are compared: each length
//! has measurements of its own, and the first length that is complete settles the number.
//!
//! Deliberately knows no clock and no threads: its caller reports how long a layer took.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Tokens of a pass from which on computing is the limit, and not the memory that delivers the weights: the kernels
/// for several tokens take eight at a time.
pub const PREFILL_TOKENS: usize = 8;

/// Timed layers of each candidate. A decode step is short, so that other work can disturb many in a row. A layer of
/// a prompt is long, and a prompt or two should settle its number; with 4 samples one burst of other work chose
/// wrongly.
const DECODE_SAMPLES: usize = 48;
const PREFILL_SAMPLES: usize = 8;
/// More threads must be faster by this factor, because they take power and CPU time from others.
const MIN_GAIN: f64 = 0.97;

/// A number is kept for this many times the layers that it took to find it; then it is measured anew. With so few
/// measured layers even slow candidates cost little.
const REMEASURE_AFTER: usize = 100;

/// Chooses the numbers of threads for decoding and for prompts.
#[derive(Debug, Clone)]
pub struct ThreadTuner {
    decode: PassTuner,
    prefill: PassTuner,
    /// No pass uses more threads for now. Nothing is measured while this is below the maximum.
    limit: usize,
}

/// The numbers that were found last, or fixed from the start; `None` until the first measurement is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThreadCounts {
    /// For decoding, and for passes of less than [`PREFILL_TOKENS`], which are not timed.
    pub decode: Option<usize>,
    /// For prompts.
    pub prefill: Option<usize>,
}

/// How to compute the next layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// Threads to use.
    pub threads: usize,
    /// Whether the caller should measure it.
    pub is_timed: bool,
}

impl ThreadTuner {
    /// A tuner that measures what `fixed` leaves open, from 1 to `max_threads` threads, in passes of at most
    /// `longest` tokens.
    pub fn new(max_threads: usize, longest: usize, fixed: ThreadCounts) -> Self {
        ThreadTuner {
            decode: PassTuner::new(max_threads, DECODE_SAMPLES, 1..=1, fixed.decode),
            prefill: PassTuner::new(max_threads, PREFILL_SAMPLES, PREFILL_TOKENS..=longest, fixed.prefill),
            limit: max_threads.max(1),
        }
    }

    /// From the next layer on no pass uses more than `threads`, until another limit is set. Earlier results are
    /// kept for when the limit is lifted.
    pub fn limit(&mut self, threads: usize) {
        self.limit = threads.clamp(1, self.decode.max_threads);
    }

    fn is_limited(&self) -> bool {
        self.limit < self.decode.max_threads
    }

    /// How to compute the next layer of a pass of `tokens`.
    pub fn next(&self, tokens: usize) -> Trial {
        let choice = if tokens < PREFILL_TOKENS { &self.decode } else { &self.prefill };
        if self.is_limited() {
            let threads = choice.settled.unwrap_or(choice.max_threads).min(self.limit);
            return Trial { threads, is_timed: false };
        }
        choice.next(tokens)
    }

    /// Reports that the layer was computed; `took` is given where [`Trial::is_timed`] was set. Allocates nothing.
    pub fn record(&mut self, tokens: usize, took: Option<Duration>) {
        if self.is_limited() {
            return;
        }
        let choice = if tokens < PREFILL_TOKENS { &mut self.decode } else { &mut self.prefill };
        choice.record(tokens, took);
    }

    /// The number for work outside the layers, such as the head: the one found for decoding, or the maximum.
    pub fn outside_layers(&self) -> usize {
        self.decode.settled.unwrap_or(self.decode.max_threads).min(self.limit)
    }

    /// The numbers that are settled.
    pub fn threads(&self) -> ThreadCounts {
        ThreadCounts { decode: self.decode.settled, prefill: self.prefill.settled }
    }
}

impl ThreadCounts {
    /// Whether both numbers are settled.
    pub fn is_settled(&self) -> bool {
        self.decode.is_some() && self.prefill.is_some()
    }
}

/// Chooses the number for one kind of pass.
#[derive(Debug, Clone)]
struct PassTuner {
    max_threads: usize,
    /// The number of threads found last, or fixed from the start.
    settled: Option<usize>,
    phase: Phase,
    /// The numbers of threads that are measured, rising.
    candidates: Vec<usize>,
    /// Timed layers that each candidate gets.
    samples: usize,
    /// Tokens of the passes of the first measurements; the next have one more.
    shortest: usize,
    measurements: Vec<Measurements>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The number is fixed and never measured.
    Fixed,
    /// Candidates are measured, with so many layers so far.
    Measuring(usize),
    /// The number that was found is used for so many layers to come.
    Settled(usize),
}

/// The measurements from passes of one length.
#[derive(Debug, Clone)]
struct Measurements {
    /// Layers computed so far.
    layers: usize,
    /// The shortest time of a layer, for each candidate.
    least: Vec<Duration>,
}

impl PassTuner {
    fn new(max_threads: usize, samples: usize, lengths: RangeInclusive<usize>, fixed: Option<usize>) -> Self {
        let max_threads = max_threads.max(1);
        let settled = fixed.or((max_threads == 1).then_some(1));
        let phase = if settled.is_some() { Phase::Fixed } else { Phase::Measuring(0) };
        let candidates: Vec<usize> = candidates(max_threads).collect();
        let empty = Measurements { layers: 0, least: vec![Duration::MAX; candidates.len()] };
        let shortest = *lengths.start();
        let measurements = lengths.map(|_| empty.clone()).collect();
        PassTuner { max_threads, settled, phase, candidates, samples, shortest, measurements }
    }

    /// Each candidate gets two layers in turn, of which the second is timed.
    fn next(&self, tokens: usize) -> Trial {
        match (self.phase, self.measurements_of(tokens)) {
            (Phase::Measuring(_), Some(measurements)) => Trial {
                threads: self.candidates[measurements.next_candidate()],
                is_timed: measurements.layers % 2 == 1,
            },
            _ => Trial { threads: self.settled.unwrap_or(self.max_threads), is_timed: false },
        }
    }

    /// The index of the measurements for passes of `tokens`.
    fn length_index(&self, tokens: usize) -> Option<usize> {
        tokens.checked_sub(self.shortest).filter(|place| *place < self.measurements.len())
    }

    fn measurements_of(&self, tokens: usize) -> Option<&Measurements> {
        Some(&self.measurements[self.length_index(tokens)?])
    }

    fn record(&mut self, tokens: usize, took: Option<Duration>) {
        self.phase = match self.phase {
            Phase::Fixed => Phase::Fixed,
            Phase::Settled(layers) if layers > 1 => Phase::Settled(layers - 1),
            Phase::Settled(_) => {
                self.measurements.iter_mut().for_each(Measurements::reset);
                Phase::Measuring(0)
            }
            Phase::Measuring(layers) => self.record_trial(layers + 1, tokens, took),
        }
    }

    /// Records one more measured layer, the `layers`th so far.
    fn record_trial(&mut self, layers: usize, tokens: usize, took: Option<Duration>) -> Phase {
        let Some(place) = self.length_index(tokens) else { return Phase::Measuring(layers - 1) };
        let measurements = &mut self.measurements[place];
        measurements.record(took);
        if measurements.layers < 2 * self.samples * self.candidates.len() {
            return Phase::Measuring(layers);
        }
        self.settled = Some(self.candidates[measurements.fastest()]);
        Phase::Settled(layers * REMEASURE_AFTER)
    }
}

impl Measurements {
    /// Starts over. Allocates nothing.
    fn reset(&mut self) {
        self.layers = 0;
        self.least.fill(Duration::MAX);
    }

    /// The candidate whose turn is next.
    fn next_candidate(&self) -> usize {
        self.layers / 2 % self.least.len()
    }

    fn record(&mut self, took: Option<Duration>) {
        let candidate = self.next_candidate();
        self.least[candidate] = took.map_or(self.least[candidate], |took| took.min(self.least[candidate]));
        self.layers += 1;
    }

    /// The fastest candidate.
    fn fastest(&self) -> usize {
        let mut best = 0;
        for (candidate, least) in self.least.iter().enumerate() {
            if least.as_secs_f64() < self.least[best].as_secs_f64() * MIN_GAIN {
                best = candidate;
            }
        }
        best
    }
}

/// 1, 2, 3, 4, 6, 8, 12, 16, … up to `max_threads`, which is always among them.
fn candidates(max_threads: usize) -> impl Iterator<Item = usize> {
    let steps = (0..).map(|i: usize| if i < 2 { i + 1 } else { (2 + i % 2) << (i / 2 - 1) });
    // The steps are 1, 2, then 2 and 3 times each power of two: the second 2 is passed over.
    let steps = steps.enumerate().filter(|(i, _)| *i != 2).map(|(_, threads)| threads);
    steps.take_while(move |threads| *threads < max_threads).chain([max_threads])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of the longest pass.
    const LONGEST: usize = 64;

    /// Computes one pass of `tokens` over `layers`, each of which takes `seconds(threads)`.
    fn pass(tuner: &mut ThreadTuner, tokens: usize, layers: usize, mut seconds: impl FnMut(usize) -> f64) {
        for _ in 0..layers {
            let trial = tuner.next(tokens);
            let took = Duration::from_secs_f64(seconds(trial.threads));
            tuner.record(tokens, trial.is_timed.then_some(took));
        }
    }

    /// Runs passes of `tokens` over `layers` layers until the number is settled; gives it and the passes.
    fn settle(
        tuner: &mut ThreadTuner,
        tokens: usize,
        layers: usize,
        mut seconds: impl FnMut(usize, usize) -> f64,
    ) -> (usize, usize) {
        for pass in 0..10_000 {
            let found = tuner.threads();
            if let Some(threads) = if tokens < PREFILL_TOKENS { found.decode } else { found.prefill } {
                return (threads, pass);
            }
            self::pass(tuner, tokens, layers, |threads| seconds(threads, pass));
        }
        panic!("never settled");
    }

    fn open(most: usize) -> ThreadTuner {
        ThreadTuner::new(most, LONGEST, ThreadCounts::default())
    }

    #[test]
    fn candidates_rise_to_the_most_there_may_be() {
        let all = |most| candidates(most).collect::<Vec<_>>();
        assert_eq!(all(1), [1]);
        assert_eq!(all(2), [1, 2]);
        assert_eq!(all(4), [1, 2, 3, 4]);
        assert_eq!(all(10), [1, 2, 3, 4, 6, 8, 10]);
        assert_eq!(all(64), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]);
    }

    #[test]
    fn the_fastest_number_is_found_for_each_kind_of_pass() {
        let mut tuner = open(4);
        // Memory of a Pi 5: two threads read faster than four. A layer of the 2B shape.
        let decode = |threads: usize, _| 17e6 / [9.26e9, 13.23e9, 12.5e9, 11.59e9][threads - 1];
        assert_eq!(settle(&mut tuner, 1, 30, decode).0, 2);
        assert_eq!(tuner.threads(), ThreadCounts { decode: Some(2), prefill: None });
        assert_eq!(settle(&mut tuner, 64, 30, |threads, _| 0.02 / threads as f64).0, 4);
        assert_eq!(tuner.threads(), ThreadCounts { decode: Some(2), prefill: Some(4) });
    }

    #[test]
    fn more_threads_that_hardly_win_are_not_taken() {
        assert_eq!(settle(&mut open(2), 1, 30, |threads, _| [1.0, 0.98][threads - 1]).0, 1);
        assert_eq!(settle(&mut open(2), 1, 30, |threads, _| [1.0, 0.96][threads - 1]).0, 2);
    }

    #[test]
    fn a_busy_neighbour_and_a_growing_context_change_nothing() {
        // Every other layer takes up to twenty times as long, in no order, and each pass longer than the last.
        let mut random = 1u32;
        let seconds = |threads: usize, pass: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let spoilt = if random >> 31 == 0 { 1.0 } else { f64::from(random >> 8 & 0xf) + 5.0 };
            (1.0 / threads as f64 + pass as f64) * spoilt
        };
        assert_eq!(settle(&mut open(3), 1, 30, seconds).0, 3);
    }

    #[test]
    fn two_batches_settle_their_number_and_a_dozen_steps_theirs() {
        assert_eq!(settle(&mut open(4), 64, 32, |_, _| 1.0).1, 2);
        assert_eq!(settle(&mut open(4), 1, 32, |_, _| 1.0).1, 12);
        // Also where a pass has fewer layers than there are turns.
        assert_eq!(settle(&mut open(4), 1, 1, |threads, _| 1.0 / threads as f64), (4, 384));
    }

    #[test]
    fn a_pass_of_a_few_tokens_does_not_settle_what_decoding_uses() {
        // The rest of a prompt: much work for each layer, little for each token, and best on all threads.
        let rest = |threads: usize| 1.0 / threads as f64;
        let mut tuner = open(2);
        for tokens in 2..PREFILL_TOKENS {
            assert_eq!(tuner.next(tokens), Trial { threads: 2, is_timed: false }, "all of them");
            pass(&mut tuner, tokens, 1000, rest);
        }
        assert_eq!(tuner.threads(), ThreadCounts::default());
        assert_eq!(settle(&mut tuner, 1, 30, |threads, _| [1.0, 1.2][threads - 1]).0, 1);
        assert_eq!(tuner.next(5).threads, 1, "as one token, once that is known");
    }

    #[test]
    fn prompts_of_unlike_lengths_are_not_compared_and_settle_all_the_same() {
        // A layer takes as long as its pass has tokens squared: across lengths anything could win.
        let mut tuner = open(4);
        let mut lengths = (PREFILL_TOKENS..=LONGEST).cycle();
        let mut passes = 0;
        while tuner.threads().prefill.is_none() {
            let tokens = lengths.next().expect("endless");
            pass(&mut tuner, tokens, 32, |threads| {
                (tokens * tokens) as f64 / [1.0, 2.0, 3.0, 2.5][threads - 1]
            });
            passes += 1;
        }
        assert_eq!(tuner.threads().prefill, Some(3));
        assert_eq!(passes, (LONGEST - PREFILL_TOKENS + 1) + 1, "the first length that comes a second time");
    }

    #[test]
    fn a_pass_longer_than_any_that_was_foreseen_uses_all_threads() {
        let mut tuner = open(4);
        pass(&mut tuner, LONGEST + 1, 1000, |_| 1.0);
        assert_eq!(tuner.next(LONGEST + 1), Trial { threads: 4, is_timed: false });
    }

    #[test]
    fn a_number_measured_under_load_is_replaced_by_the_next_measurement() {
        let mut tuner = open(2);
        // Something else holds the second processor: what waits for it takes long.
        let tries = 2 * 2 * DECODE_SAMPLES;
        pass(&mut tuner, 1, tries, |threads| [1.0, 3.0][threads - 1]);
        assert_eq!(tuner.threads().decode, Some(1));
        let alone = |threads: usize| [1.0, 0.5][threads - 1];
        pass(&mut tuner, 1, tries * REMEASURE_AFTER - 1, |threads| {
            assert_eq!(threads, 1, "kept for now");
            alone(threads)
        });
        pass(&mut tuner, 1, tries, alone);
        assert_eq!(tuner.threads().decode, Some(1), "what was found last, until the last layer is tried");
        assert_eq!(tuner.outside_layers(), 1);
        pass(&mut tuner, 1, 1, alone);
        assert_eq!(tuner.threads(), ThreadCounts { decode: Some(2), prefill: None });
    }

    #[test]
    fn prompts_are_tried_anew_too_and_of_all_layers_few_are_tried() {
        let mut tuner = open(4);
        let (mut others, tries) = (0, 2 * 4 * PREFILL_SAMPLES);
        pass(&mut tuner, 64, 1000 * tries, |threads| {
            others += usize::from(threads != 4);
            1.0 / threads as f64
        });
        assert_eq!(tuner.threads().prefill, Some(4));
        assert!(others > 2 * tries, "tried again and again");
        assert!(others < 1000 * tries / REMEASURE_AFTER, "{others}");
        // Other work comes, and takes all processors but one.
        pass(&mut tuner, 64, (REMEASURE_AFTER + 2) * tries, |threads| threads as f64);
        assert_eq!(tuner.threads().prefill, Some(1));
    }

    #[test]
    fn a_fixed_number_is_used_from_the_first_layer() {
        let fixed = ThreadCounts { decode: Some(3), prefill: Some(1) };
        let tuner = ThreadTuner::new(4, LONGEST, fixed);
        assert_eq!(tuner.next(1), Trial { threads: 3, is_timed: false });
        assert_eq!(tuner.next(64), Trial { threads: 1, is_timed: false });
        assert!(tuner.threads().is_settled());
        assert!(open(1).threads().is_settled());
    }

    #[test]
    fn a_limit_bounds_every_pass_and_the_settled_number_returns_when_it_is_lifted() {
        let mut tuner = open(4);
        let fast = |threads: usize, _| 1.0 / threads as f64;
        assert_eq!(settle(&mut tuner, 1, 30, fast).0, 4);
        tuner.limit(2);
        for tokens in [1, 5, 64] {
            assert_eq!(tuner.next(tokens), Trial { threads: 2, is_timed: false });
            // As if more threads were slow: nothing is to be learnt from passes under a limit.
            pass(&mut tuner, tokens, 2 * REMEASURE_AFTER * 4 * 2 * DECODE_SAMPLES, |threads| threads as f64);
        }
        assert_eq!(tuner.outside_layers(), 2);
        tuner.limit(99);
        assert_eq!((tuner.next(1).threads, tuner.outside_layers()), (4, 4));
        assert_eq!(settle(&mut tuner, 64, 30, fast).0, 4);
        tuner.limit(0);
        assert_eq!(
            (tuner.next(1).threads, tuner.next(64).threads),
            (1, 1),
            "the caller's own is always used"
        );
    }

    #[test]
    fn a_limit_above_what_is_fastest_changes_nothing_of_it() {
        let mut tuner = ThreadTuner::new(4, LONGEST, ThreadCounts { decode: Some(1), prefill: Some(4) });
        tuner.limit(3);
        assert_eq!((tuner.next(1).threads, tuner.next(64).threads), (1, 3));
    }

    #[test]
    fn only_the_second_layer_of_a_candidate_is_timed() {
        // As if each first layer of two threads waited for a thread to wake.
        let mut layer = 0;
        let seconds = |threads: usize, _| {
            layer += 1;
            if threads == 2 && layer % 2 == 1 { 0.1 } else { 1.0 / threads as f64 }
        };
        let mut tuner = open(2);
        assert_eq!(settle(&mut tuner, 1, 30, seconds).0, 2);
        assert_eq!(tuner.outside_layers(), 2);
    }
}
