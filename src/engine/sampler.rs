//! Sampling: chooses a token from logits.
//!
//! The steps are always the same, in this order; each is left out where its parameter is neutral:
//!
//! 1. the bias of single tokens is added,
//! 2. the repetition penalty divides positive and multiplies negative logits of all tokens in the prompt or the answer,
//! 3. the frequency and the presence penalty are subtracted from the logits of all tokens in the answer,
//! 4. greedy: the largest logit wins, the first of equal ones; otherwise the logits are divided by the temperature,
//! 5. top-k, 6. min-p, 7. top-p: each removes unlikely candidates among those that the step before has left,
//! 8. one of the candidates that are left is drawn in proportion to their probabilities.

/// The parameters of sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens up to this probability mass.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the largest probability.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that have already occurred; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Is subtracted from the logit of every token that is in the answer already; 0 changes nothing.
    pub presence_penalty: f32,
    /// Is subtracted from a token's logit as many times as the token is in the answer already; 0 changes nothing.
    pub frequency_penalty: f32,
    /// What is added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// Greedy.
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// Tokens a thousand times less likely than the most likely one need no exact logit: `ln(1000)`.
const UNLIKELY: f32 = 6.9;

impl SamplingParams {
    /// How far below the best of the tokens without a penalty a logit may be and still matter to the choice; `None`
    /// where any may matter.
    pub fn logit_reach(&self) -> Option<f32> {
        // A penalty with the other sign, like a positive bias, can bring any token to the top.
        let raises_any = self.repetition_penalty < 1.0
            || self.presence_penalty < 0.0
            || self.frequency_penalty < 0.0
            || self.logit_bias.iter().any(|(_, bias)| *bias > 0.0);
        (!raises_any).then(|| self.temperature.max(0.0) * UNLIKELY)
    }

    /// Whether the penalties for tokens of the answer change anything.
    fn counts_tokens(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether any logit may be lowered.
    fn lowers_any(&self) -> bool {
        self.repetition_penalty > 1.0
            || self.presence_penalty > 0.0
            || self.frequency_penalty > 0.0
            || self.logit_bias.iter().any(|(_, bias)| *bias < 0.0)
    }
}

/// Chooses tokens. All memory is allocated once.
#[derive(Debug)]
pub struct Sampler {
    sampling: SamplingParams,
    random: SplitMix64,
    candidates: Vec<(f32, u32)>, // [vocab] at most: weight and id, the most likely first
    seen: Vec<bool>,             // [vocab], tokens of the prompt and the answer
    counts: Vec<u32>, // [vocab], how often each token is in the answer; empty where no penalty asks for it
    lowered: Vec<bool>, // [vocab], tokens whose logit may be lowered; empty where none may
}

/// Candidates that are less likely than this, relative to the most likely one, are below the resolution of a draw
/// of 32 bits: `ln(2^-32)`.
const NEGLIGIBLE: f32 = -22.18;

impl Sampler {
    /// A sampler for a vocabulary of `vocab`.
    ///
    /// # Panics
    /// Where a token with a bias is outside the vocabulary. The session checks this.
    pub fn new(sampling: SamplingParams, vocab: usize) -> Self {
        let random = SplitMix64(sampling.seed);
        let greedy = sampling.temperature <= 0.0;
        let candidates = Vec::with_capacity(if greedy { 0 } else { vocab });
        let counts = vec![0; if sampling.counts_tokens() { vocab } else { 0 }];
        let mut lowered = vec![false; if sampling.lowers_any() { vocab } else { 0 }];
        for (id, _) in sampling.logit_bias.iter().filter(|(_, bias)| *bias < 0.0) {
            lowered[*id as usize] = true;
        }
        Sampler { sampling, random, candidates, seen: vec![false; vocab], counts, lowered }
    }

    /// Tokens whose logits a penalty or a bias lowers: `[vocab]`; `None` where there is none of these.
    pub fn penalised(&self) -> Option<&[bool]> {
        (!self.lowered.is_empty()).then_some(&self.lowered)
    }

    /// Whether [`Sampler::record`] of a token changes what [`Sampler::penalised`] says.
    pub fn changes_penalised(&self, id: u32) -> bool {
        let is_lowered = !self.counts.is_empty() || self.sampling.repetition_penalty > 1.0;
        is_lowered && self.lowered.get(id as usize).is_some_and(|lowered| !lowered)
    }

    /// Records a token of the prompt, for the repetition penalty.
    pub fn record_prompt(&mut self, id: u32) {
        self.seen[id as usize] = true;
        if self.sampling.repetition_penalty > 1.0 {
            self.lowered[id as usize] = true;
        }
    }

    /// Records a token of the answer, for all penalties.
    pub fn record(&mut self, id: u32) {
        self.record_prompt(id);
        if let Some(count) = self.counts.get_mut(id as usize) {
            *count += 1;
            if let Some(lowered) = self.lowered.get_mut(id as usize) {
                *lowered = true;
            }
        }
    }

    /// Chooses the next token. NaN logits are never chosen.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        self.penalise(logits);
        if self.sampling.temperature <= 0.0 {
            return argmax(logits);
        }
        self.collect_candidates(logits);
        self.truncate_candidates();
        self.draw()
    }

    /// Adds the biases and applies the penalties.
    fn penalise(&self, logits: &mut [f32]) {
        let SamplingParams { repetition_penalty: penalty, logit_bias, .. } = &self.sampling;
        for (id, bias) in logit_bias {
            logits[*id as usize] += bias;
        }
        if *penalty != 1.0 {
            for (logit, _) in logits.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        let SamplingParams { presence_penalty, frequency_penalty, .. } = self.sampling;
        for (logit, count) in logits.iter_mut().zip(&self.counts).filter(|(_, count)| **count > 0) {
            *logit -= *count as f32 * frequency_penalty + presence_penalty;
        }
    }

    /// The weights of all candidates that could be drawn, relative to the most likely one, sorted.
    fn collect_candidates(&mut self, logits: &[f32]) {
        let best = logits[argmax(logits) as usize];
        self.candidates.clear();
        for (id, logit) in (0..).zip(logits) {
            let distance = (logit - best) / self.sampling.temperature;
            if distance > NEGLIGIBLE {
                self.candidates.push((distance.exp(), id));
            }
        }
        if self.candidates.is_empty() {
            // The best logit is not finite, as in a damaged model.
            self.candidates.push((1.0, argmax(logits)));
        }
        // Equal weights in the order of their ids, so that the same seed gives the same text everywhere.
        self.candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }

    fn truncate_candidates(&mut self) {
        let SamplingParams { top_k, top_p, min_p, .. } = self.sampling;
        if top_k > 0 {
            self.candidates.truncate(top_k);
        }
        let enough = self.candidates.iter().position(|(weight, _)| *weight < min_p);
        self.candidates.truncate(enough.unwrap_or(self.candidates.len()).max(1));
        let wanted = self.total() * f64::from(top_p);
        let mut mass = 0.0;
        let last = self.candidates.iter().position(|(weight, _)| {
            mass += f64::from(*weight);
            mass >= wanted
        });
        self.candidates.truncate(last.map_or(self.candidates.len(), |last| last + 1));
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|(weight, _)| f64::from(*weight)).sum()
    }

    fn draw(&mut self) -> u32 {
        let mut left = self.random.unit() * self.total();
        let drawn = self.candidates.iter().find(|(weight, _)| {
            left -= f64::from(*weight);
            left < 0.0
        });
        // Rounding may leave a little probability behind the last candidate.
        let (_, id) = drawn.or(self.candidates.last()).expect("the likeliest is always kept");
        *id
    }
}

/// The first of the largest logits; NaN is ignored. 0 where there is none.
pub fn argmax(logits: &[f32]) -> u32 {
    /// Logits that are compared side by side, in registers.
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        largest.iter_mut().zip(chunk).for_each(|(largest, logit)| *largest = larger(*largest, *logit));
    }
    let largest = largest.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger);
    let is_it = |logit: &f32| *logit == largest && largest > f32::NEG_INFINITY;
    logits.iter().position(is_it).unwrap_or(0) as u32
}

/// SplitMix64 (Steele, Lea, Flood 2014): a generator of six lines whose sequence never changes, because the same
/// seed must give the same text.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// At least 0, below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: SamplingParams, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling, logits.len());
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(&mut logits.to_vec()) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_never_a_nan() {
        let mut sampler = Sampler::new(SamplingParams::default(), 4);
        assert_eq!(sampler.sample(&mut [f32::NAN, 1.0, 3.0, 3.0]), 2);
        let warm = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        assert_eq!(counts(warm, &[f32::NAN, 0.0])[0], 0);
    }

    #[test]
    fn the_first_of_the_largest_is_found_at_any_place_of_any_number() {
        for len in [1, 15, 16, 17, 40, 64, 67] {
            for at in 0..len {
                let mut logits: Vec<f32> = (0..len).map(|i| (i % 13) as f32 - 20.0).collect();
                logits[at..].fill(3.0);
                assert_eq!(argmax(&logits), at as u32, "{len}");
                logits[len - 1] = f32::NAN;
                assert_eq!(
                    argmax(&logits) as usize,
                    if at < len - 1 { at } else { 12.min(at.saturating_sub(1)) },
                    "{len}"
                );
            }
        }
        assert_eq!([argmax(&[]), argmax(&[f32::NAN, f32::NEG_INFINITY])], [0; 2]);
    }

    #[test]
    fn logits_of_a_damaged_model_give_some_token() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for temperature in [0.0, 1.0] {
                let mut sampler =
                    Sampler::new(SamplingParams { temperature, ..SamplingParams::default() }, 3);
                assert!(sampler.sample(&mut [x; 3]) < 3);
            }
            let warm = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
            assert_eq!(Sampler::new(warm, 3).sample(&mut [0.0, f32::INFINITY, x]), 1);
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let warm = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::default() };
        let counts = counts(warm, &[4f32.ln(), 1f32.ln(), 3f32.ln(), 2f32.ln()]);
        for (count, share) in counts.iter().zip([0.4, 0.1, 0.3, 0.2]) {
            let expected = 20_000.0 * share;
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_the_right_candidates() {
        let logits = [4f32.ln(), 1f32.ln(), 3f32.ln(), 2f32.ln()];
        let warm = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        let kept = |sampling| {
            counts(sampling, &logits).iter().map(|count| usize::from(*count > 0)).collect::<Vec<_>>()
        };
        assert_eq!(kept(SamplingParams { top_k: 2, ..warm.clone() }), [1, 0, 1, 0]);
        assert_eq!(kept(SamplingParams { top_p: 0.39, ..warm.clone() }), [1, 0, 0, 0]);
        assert_eq!(kept(SamplingParams { top_p: 0.65, ..warm.clone() }), [1, 0, 1, 0]);
        assert_eq!(kept(SamplingParams { min_p: 0.45, ..warm.clone() }), [1, 0, 1, 1]);
        assert_eq!(kept(SamplingParams { top_p: 0.0, ..warm }), [1, 0, 0, 0]);
    }

    #[test]
    fn the_same_seed_gives_the_same_draws() {
        let warm = SamplingParams { temperature: 0.8, seed: 5, ..SamplingParams::default() };
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32).collect();
        let draws = |sampling: SamplingParams| {
            let mut sampler = Sampler::new(sampling, 50);
            (0..100).map(|_| sampler.sample(&mut logits.clone())).collect::<Vec<_>>()
        };
        assert_eq!(draws(warm.clone()), draws(warm.clone()));
        assert_ne!(draws(warm.clone()), draws(SamplingParams { seed: 6, ..warm }));
    }

    #[test]
    fn the_penalty_pushes_seen_tokens_down_whatever_their_sign() {
        let sampling = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        let mut sampler = Sampler::new(sampling, 3);
        sampler.record(0);
        sampler.record(1);
        let mut logits = [3.0, -1.0, 2.0];
        assert_eq!(sampler.sample(&mut logits), 2);
        assert_eq!(logits, [1.5, -2.0, 2.0]);
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time_and_both_only_the_answer() {
        let sampling =
            SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingParams::default() };
        let mut sampler = Sampler::new(sampling, 4);
        sampler.record_prompt(0);
        sampler.record(1);
        (0..3).for_each(|_| sampler.record(2));
        let mut logits = [0.0, 1.0, 1.0, -1.0];
        assert_eq!(sampler.sample(&mut logits), 1);
        assert_eq!(logits, [0.0, 0.25, -0.25, -1.0]);
        assert_eq!(sampler.penalised(), Some(&[false, true, true, false][..]));
    }

    #[test]
    fn it_is_known_before_which_tokens_will_be_lowered_when_they_are_recorded() {
        let greedy = SamplingParams::default;
        let all = [
            greedy(),
            SamplingParams { repetition_penalty: 1.5, ..greedy() },
            SamplingParams { repetition_penalty: 0.5, ..greedy() },
            SamplingParams { presence_penalty: 1.0, ..greedy() },
            SamplingParams { frequency_penalty: -1.0, logit_bias: vec![(1, -1.0)], ..greedy() },
            SamplingParams { logit_bias: vec![(1, -1.0)], ..greedy() },
        ];
        for sampling in all {
            let mut sampler = Sampler::new(sampling.clone(), 4);
            sampler.record_prompt(0);
            for id in [0, 1, 2, 2, 3] {
                let before = sampler.penalised().map(<[bool]>::to_vec);
                let is_expected = sampler.changes_penalised(id);
                sampler.record(id);
                assert_eq!(sampler.penalised() != before.as_deref(), is_expected, "{sampling:?}, {id}");
            }
        }
    }

    #[test]
    fn a_bias_is_added_before_the_penalties() {
        let logit_bias = vec![(0, 2.0), (2, -100.0)];
        let sampling = SamplingParams { logit_bias, repetition_penalty: 2.0, ..SamplingParams::default() };
        let mut sampler = Sampler::new(sampling, 3);
        sampler.record_prompt(0);
        let mut logits = [-1.0, 0.25, 50.0];
        assert_eq!(sampler.sample(&mut logits), 0);
        assert_eq!(logits, [0.5, 0.25, -50.0]);
        assert_eq!(sampler.penalised(), Some(&[true, false, true][..]));
    }

    #[test]
    fn what_can_raise_a_logit_needs_all_of_them_exactly() {
        let greedy = SamplingParams::default;
        let lowering = [
            greedy(),
            SamplingParams { repetition_penalty: 1.5, ..greedy() },
            SamplingParams { presence_penalty: 2.0, frequency_penalty: 2.0, ..greedy() },
            SamplingParams { logit_bias: vec![(1, -1.0)], ..greedy() },
        ];
        let raising = [
            SamplingParams { repetition_penalty: 0.9, ..greedy() },
            SamplingParams { presence_penalty: -0.1, ..greedy() },
            SamplingParams { presence_penalty: 1.0, frequency_penalty: -0.1, ..greedy() },
            SamplingParams { logit_bias: vec![(0, -1.0), (1, 0.1)], ..greedy() },
        ];
        assert!(lowering.iter().all(|sampling| sampling.logit_reach() == Some(0.0)));
        assert!(raising.iter().all(|sampling| sampling.logit_reach().is_none()));
        let masks = lowering.map(|sampling| Sampler::new(sampling, 2).penalised().is_some());
        assert_eq!(masks, [false, true, true, true]);
    }
}
