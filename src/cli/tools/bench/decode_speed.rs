//! A short measurement of decoding beside the memory bandwidth, for commands that judge a model. Deliberately prints
//! nothing.

use super::bandwidth::BandwidthProbe;
use super::generate_with_probes;
use super::report::summary;
use crate::cli::host;
use crate::engine::Engine;
use crate::engine::session::{GenerateOptions, Step};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Tokens of the prompt: as a spoken sentence with a chat template.
const PROMPT_TOKENS: usize = 32;
/// Tokens that are generated in each round.
const GENERATED_TOKENS: usize = 32;
/// Rounds, of which the median counts.
const ROUNDS: usize = 3;
/// How long is computed at most, beyond a first answer, until the numbers of threads are tuned.
const WARM_UP_LIMIT: Duration = Duration::from_secs(20);

/// What was measured.
pub(in crate::cli) struct DecodeSpeed {
    /// Tokens that were generated in the measured rounds.
    pub tokens: usize,
    /// Tokens a second after the first of each answer, the median of the rounds.
    pub tokens_per_second: f64,
    /// Tokens of the prompt a second, the median of the rounds.
    pub prompt_tokens_per_second: f64,
    /// Bytes a second that the same threads read of the memory meanwhile, the median of the rounds.
    pub bandwidth: f64,
    /// Bytes of weights that a token reads.
    pub weight_bytes: usize,
    /// Bytes of the KV cache that a token read, on average.
    pub cache_bytes: usize,
    /// The same for each token of context.
    pub cache_bytes_per_position: usize,
    /// Threads that generated.
    pub threads: usize,
}

/// Generates some tokens, first until the weights are in memory and the numbers of threads are tuned.
pub(in crate::cli) fn decode_speed(engine: &Engine, mut warmed_up: impl FnMut()) -> DecodeSpeed {
    let (model, pool) = (engine.model(), engine.model().pool());
    let context = model.shape().context;
    let generated = GENERATED_TOKENS.min(context / 2).max(2);
    let prompt_len = PROMPT_TOKENS.min(context.saturating_sub(generated)).max(1);
    let vocab = model.shape().vocab as u32;
    // Any tokens will do: speed does not depend on them.
    let prompt: Vec<u32> = (0..prompt_len as u32).map(|i| i.wrapping_mul(7919) % vocab).collect();
    let options =
        GenerateOptions { max_tokens: Some(generated), ignore_eos: true, ..GenerateOptions::default() };
    let mut session = engine.session(prompt_len + generated);
    let deadline = Instant::now() + WARM_UP_LIMIT;
    loop {
        let go_on = |_: Step<'_>| ControlFlow::Continue(());
        session.generate(&prompt, &options, go_on).expect("it fits the context");
        if model.threads().decode.is_some() || Instant::now() >= deadline {
            break;
        }
    }
    warmed_up();
    let mut memory = BandwidthProbe::new(host::host().memory_bytes);
    let (mut prefill, mut decode, mut tokens) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let answer = generate_with_probes(&mut session, &prompt, &options, |is_first| {
            if !is_first {
                memory.probe(pool);
            }
        });
        memory.end_round(pool);
        tokens += answer.tokens.len();
        prefill.push(prompt_len as f64 / answer.prefill.as_secs_f64());
        decode.push((generated - 1) as f64 / answer.decode.as_secs_f64());
    }
    let cache_bytes_per_position = session.cache_bytes_per_token();
    DecodeSpeed {
        tokens,
        tokens_per_second: summary(decode).median,
        prompt_tokens_per_second: summary(prefill).median,
        bandwidth: summary(memory.bandwidth()).median,
        weight_bytes: model.bytes_read_per_token(session.shortlist_stats()),
        // The positions of the prompt, and on average half of the answer's.
        cache_bytes: (prompt_len + generated / 2) * cache_bytes_per_position,
        cache_bytes_per_position,
        threads: pool.active(),
    }
}
