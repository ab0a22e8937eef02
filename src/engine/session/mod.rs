//! A session: prefill of prompts, then decoding token by token until something ends each answer.
//!
//! A session has one or more slots, each for one answer. [`Session::step`] takes all of them one pass further, so that
//! the weights are read once for all; what is computed for an answer does not depend on the others. Text leaves through a
//! callback that may cancel; it is called after every pass over a part of a prompt and after every token.
//!
//! Deliberately knows nothing of clients, queues and deadlines.

mod choosing;
mod disk;
mod pacing;
mod run;
mod scoring;
mod slots;
mod speculation;
mod suspension;

use crate::engine::error::PromptError;
use crate::engine::grammar::Constraint;
use crate::engine::logprobs::PositionLogprobs;
use crate::engine::model::{BATCH, KV_BLOCK, KvCacheFormat, Model, PassTimings, ShortlistStats, State};
use crate::engine::prefix_cache::PrefixCache;
use crate::engine::prefix_store::PrefixStore;
use crate::engine::sampler::SamplingParams;
use crate::engine::tokenizer::Tokenizer;
use disk::DiskPrefixes;
use pacing::PromptPacing;
use slots::AnswerSlot;
use speculation::PassCost;
pub use speculation::SpeculationCounts;
use std::ops::ControlFlow;
use std::time::Duration;
pub use suspension::SuspendedAnswer;

/// A model's state, and the means to fill it.
#[derive(Debug)]
pub struct Session<'e> {
    model: &'e Model,
    tokenizer: &'e Tokenizer,
    state: State,
    /// Who owns the blocks of the KV cache.
    blocks: PrefixCache,
    /// Whether blocks are looked for that hold the beginning of a prompt already.
    finds_prefixes: bool,
    /// The blocks on disk, where the owner wants them.
    disk: Option<DiskPrefixes>,
    slots: Vec<AnswerSlot>, // [state.sequences()]
    pacing: PromptPacing,
    /// Answers that were begun so far.
    begun: u64,
    /// Passes that were made so far.
    passes: u64,
    /// What passes of several rows cost.
    pass_cost: PassCost,
}

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// How a token is chosen.
    pub sampling: SamplingParams,
    /// The most tokens to generate; `None` is as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Stop strings, which end the answer.
    pub stop: Vec<String>,
    /// Continues after end tokens, for measurements.
    pub ignore_eos: bool,
    /// Looks up in prompt, answer and prediction what may come next, and verifies several tokens in one pass where that pays.
    /// The tokens of the answer, their text and their log-probabilities are the same.
    pub speculate: bool,
    /// The tokens that the answer probably has, in which is looked up as well; empty where nothing is predicted.
    pub prediction: Vec<u32>,
    /// Tokens that are answered whatever is chosen, for measurements; behind them the answer goes on as ever.
    pub script: Vec<u32>,
    /// Reads the whole head where a shortlist is used, for comparisons.
    pub exact_head: bool,
    /// Gives the log-probability of every token, and of so many most likely ones. The whole head is read for it.
    pub logprobs: Option<usize>,
    /// Prompts share what their beginnings have in common only with others of the same number.
    pub prefix_scope: u128,
    /// The grammar that the answer fits. End tokens then end it only where the grammar allows that, also with
    /// `ignore_eos`.
    pub constraint: Option<Constraint>,
}

/// The progress that the callback receives.
#[derive(Debug, PartialEq)]
pub enum Step<'t> {
    /// Tokens of the prompt that were read so far.
    Prefill(usize),
    /// The log-probabilities of the token that comes next, where they were asked for; does not cancel.
    Logprobs(&'t PositionLogprobs),
    /// One token was generated, with the text it completed, which may be empty. Comes once more at the end for text
    /// that was held back until then.
    Token(&'t str),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The callback cancelled.
    Cancelled,
}

/// An answer with its measurements.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The generated tokens, without the end token.
    pub tokens: Vec<u32>,
    /// The log-probabilities of these tokens, where they were asked for.
    pub logprobs: Option<Vec<PositionLogprobs>>,
    /// How many of them the grammar forced, so that they were not sampled.
    pub forced: usize,
    /// How many tokens of the prompt were not read, because an earlier prompt began with them.
    pub cached: usize,
    /// Tokens that were looked up and verified.
    pub looked_up: SpeculationCounts,
    /// Of these, those that were found in the prediction.
    pub predicted: SpeculationCounts,
    /// Why it ended.
    pub end: StopReason,
    /// The time for the prompt.
    pub prefill: Duration,
    /// The time from the end of the prompt until the first token was chosen; `None` when there was none.
    pub first_token: Option<Duration>,
    /// The time from the first token to the last.
    pub decode: Duration,
    /// What the time until the first token was spent on: the prompt, and the logits of its last token.
    pub prefill_parts: PassTimings,
    /// What the time from the first token to the last was spent on.
    pub decode_parts: PassTimings,
}

impl<'e> Session<'e> {
    /// An empty session for one answer of `context` tokens, prompt included, with a KV cache in format `cache`.
    pub fn new(model: &'e Model, tokenizer: &'e Tokenizer, context: usize, cache: KvCacheFormat) -> Self {
        let session = Self::shared(model, tokenizer, context, cache, 1);
        Session { finds_prefixes: false, ..session }
    }

    /// The same with several slots, and with a memory of the beginnings of prompts.
    ///
    /// # Panics
    /// With no slots, or more than [`crate::engine::model::MAX_SEQUENCES`].
    pub fn shared(
        model: &'e Model,
        tokenizer: &'e Tokenizer,
        context: usize,
        cache: KvCacheFormat,
        slots: usize,
    ) -> Self {
        let state = model.shared_state(context, BATCH, cache, slots);
        Session {
            model,
            tokenizer,
            blocks: PrefixCache::new(state.blocks()),
            finds_prefixes: true,
            disk: None,
            pacing: PromptPacing::default(),
            slots: (0..slots).map(|_| AnswerSlot::new(context)).collect(),
            begun: 0,
            passes: 0,
            pass_cost: PassCost::of_kernels(model.kernels().name()),
            state,
        }
    }

    /// The same with blocks on disk, which are found as those in memory are. `model` names all that keys and values depend
    /// on besides the tokens. What is new is only written by [`Session::store_block`].
    pub fn with_store(self, store: PrefixStore, model: String) -> Self {
        Session { disk: Some(DiskPrefixes::new(store, model)), ..self }
    }

    /// The same with a cache that rounds nothing and takes twice the memory, for comparisons with a reference. Now
    /// and then a rounded key moves an activation across the border between two int8 codes, which changes a logit
    /// by up to some percent of the largest.
    pub fn exact(model: &'e Model, tokenizer: &'e Tokenizer, context: usize) -> Self {
        Self::new(model, tokenizer, context, KvCacheFormat::F32)
    }

    /// Tokens that one answer can have, prompt included.
    pub fn context(&self) -> usize {
        self.state.context()
    }

    /// Bytes of keys and values for each token.
    pub fn cache_bytes_per_token(&self) -> usize {
        self.state.cache_bytes_per_token()
    }

    /// Tokens for which the KV cache was ever written, so that its memory is in use.
    pub fn cache_tokens_written(&self) -> usize {
        self.blocks.touched() * KV_BLOCK
    }

    /// What the shortlist did so far; `None` where the head is read whole.
    pub fn shortlist_stats(&self) -> Option<ShortlistStats> {
        self.state.shortlist_stats()
    }

    /// Answers `prompt` in the first slot, with no other answer beside it.
    ///
    /// # Errors
    /// A prompt that does not fit, and a grammar that leads nowhere or becomes too complex under way.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        step: impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, PromptError> {
        self.begin(0, prompt, options)?;
        self.run_alone(step)
    }

    /// Answers the prompt of the call before once more, for which only its last token is read again; any other
    /// prompt as [`Session::generate`] does.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn generate_again(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        step: impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, PromptError> {
        match self.slots[0].prompt() == prompt {
            true => self.begin_again(0, options)?,
            false => self.begin(0, prompt, options)?,
        }
        self.run_alone(step)
    }

    fn run_alone(
        &mut self,
        mut step: impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, PromptError> {
        loop {
            self.step(|_, progress| step(progress));
            if let Some(answer) = self.take_answer(0) {
                return answer;
            }
        }
    }

    fn check(&self, tokens: &[u32], more: usize) -> Result<(), PromptError> {
        let (vocab, context) = (self.model.shape().vocab, self.state.context());
        if tokens.is_empty() {
            return Err(PromptError::Empty);
        }
        if tokens.len() + more > context {
            return Err(PromptError::ContextExceeded { tokens: tokens.len(), context });
        }
        match tokens.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(PromptError::UnknownToken { id: *id, vocab }),
            None => Ok(()),
        }
    }
}
