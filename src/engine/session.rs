//! A session: prefill of a prompt, then decoding token by token until something ends the answer.
//!
//! Text leaves through a callback that may cancel; it is called between batches of the prompt and after every
//! token.
//!
//! Deliberately knows nothing of clients, queues and deadlines.

mod constrained;
mod scoring;

use super::error::PromptError;
use super::grammar::Constraint;
use super::logprobs::{PositionLogprobs, nll};
use super::model::{BATCH, KvCacheFormat, Model, PassTimings, ShortlistStats, State};
use super::sampler::{Sampler, SamplingParams};
use super::tokenizer::{StreamStep, TextStream, Tokenizer};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Bytes that are reserved for an answer's text for each token it may have; longer texts grow.
const BYTES_PER_TOKEN: usize = 8;

/// A model's state, and the means to fill it.
#[derive(Debug)]
pub struct Session<'e> {
    model: &'e Model,
    tokenizer: &'e Tokenizer,
    state: State,
    prompt: Vec<u32>, // [context] at most, the tokens of the prompt at the beginning of the state
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
    /// Reads the whole head where a shortlist is used, for comparisons.
    pub exact_head: bool,
    /// Gives the log-probability of every token, and of so many most likely ones. The whole head is read for it.
    pub logprobs: Option<usize>,
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
    /// An empty session for `context` tokens, with a KV cache in format `cache`.
    pub fn new(model: &'e Model, tokenizer: &'e Tokenizer, context: usize, cache: KvCacheFormat) -> Self {
        let state = model.state(context, BATCH, cache);
        Session { model, tokenizer, state, prompt: Vec::with_capacity(context) }
    }

    /// The same with a cache that rounds nothing and takes twice the memory, for comparisons with a reference. Now
    /// and then a rounded key moves an activation across the border between two int8 codes, which changes a logit
    /// by up to some percent of the largest.
    pub fn exact(model: &'e Model, tokenizer: &'e Tokenizer, context: usize) -> Self {
        Self::new(model, tokenizer, context, KvCacheFormat::F32)
    }

    /// Tokens that the session can hold.
    pub fn context(&self) -> usize {
        self.state.context()
    }

    /// Bytes of keys and values for each token.
    pub fn cache_bytes_per_token(&self) -> usize {
        self.state.cache_bytes_per_token()
    }

    /// What the shortlist did so far; `None` where the head is read whole.
    pub fn shortlist_stats(&self) -> Option<ShortlistStats> {
        self.state.shortlist_stats()
    }

    /// Runs `tokens` through the model from an empty state; `each` gets every position and its logits, `[vocab]`.
    pub fn logits(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<(), PromptError> {
        self.check(tokens, 0)?;
        self.state.truncate(0);
        self.prompt.clear();
        for batch in tokens.chunks(self.state.batch()) {
            let before = self.state.len();
            self.model.forward(batch, &mut self.state);
            for row in 0..batch.len() {
                each(before + row, self.model.logits(row, &mut self.state));
            }
        }
        Ok(())
    }

    /// Runs `tokens` through the model from an empty state; `each` gets the negative log-likelihood, in nats, of
    /// every token from index `from` on, except the first token, which nothing precedes.
    pub fn token_nll(
        &mut self,
        tokens: &[u32],
        from: usize,
        mut each: impl FnMut(f64),
    ) -> Result<(), PromptError> {
        self.check(tokens, 0)?;
        self.state.truncate(0);
        self.prompt.clear();
        let mut next = 1;
        for batch in tokens.chunks(self.state.batch()) {
            self.model.forward(batch, &mut self.state);
            for row in 0..batch.len() {
                // Logits take most of the time of a small model; only those that are needed are computed.
                if let Some(token) = tokens.get(next).filter(|_| next >= from) {
                    each(nll(self.model.logits(row, &mut self.state), *token));
                }
                next += 1;
            }
        }
        Ok(())
    }

    /// Answers `prompt` from an empty state.
    ///
    /// # Errors
    /// A prompt that does not fit, and a grammar that leads nowhere or becomes too complex under way.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut step: impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, PromptError> {
        let run = self.begin(prompt, options)?;
        let read = self.prefill(prompt, &mut step);
        self.finish(run, options, read, step)
    }

    /// Answers the prompt of the call before once more, for which only its last token is read again; any other
    /// prompt as [`Session::generate`] does.
    pub fn generate_again(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut step: impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, PromptError> {
        let run = self.begin(prompt, options)?;
        let read = match prompt.split_last() {
            Some((last, before)) if self.prompt == prompt => {
                self.state.truncate(before.len());
                self.model.forward(&[*last], &mut self.state);
                ControlFlow::Continue(())
            }
            _ => self.prefill(prompt, &mut step),
        };
        self.finish(run, options, read, step)
    }

    fn begin(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<GenerationRun, PromptError> {
        // One position for the first token, without which there is no answer.
        self.check(prompt, 1)?;
        let vocab = self.model.shape().vocab;
        if let Some((id, _)) = options.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            return Err(PromptError::UnknownBiasToken { id: *id, vocab });
        }
        self.state.take_timings(); // of earlier passes
        let remaining = self.state.context() - prompt.len();
        let max_tokens = options.max_tokens.unwrap_or(remaining).min(remaining);
        let is_exact = options.exact_head || options.logprobs.is_some();
        let mut run = GenerationRun {
            sampler: Sampler::new(options.sampling.clone(), vocab),
            stream: TextStream::new(&options.stop, max_tokens.min(1024) * BYTES_PER_TOKEN),
            tokens: Vec::with_capacity(max_tokens.min(1024)),
            logprobs: options.logprobs.map(|top| LogprobRun {
                top,
                raw: vec![0.0; vocab],
                found: Vec::new(),
            }),
            forced: 0,
            max_tokens,
            logit_reach: options.sampling.logit_reach().filter(|_| !is_exact),
            ignore_end: options.ignore_eos,
            started: Instant::now(),
            prefilled: None,
            first: None,
            prefill_parts: PassTimings::default(),
        };
        prompt.iter().for_each(|id| run.sampler.record_prompt(*id));
        Ok(run)
    }

    /// Decodes the answer where the prompt was `read`.
    fn finish(
        &mut self,
        mut run: GenerationRun,
        options: &GenerateOptions,
        read: ControlFlow<()>,
        mut step: impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, PromptError> {
        let end = match read {
            ControlFlow::Break(()) => StopReason::Cancelled,
            ControlFlow::Continue(()) => {
                run.prefilled = Some(Instant::now());
                match options.constraint.clone() {
                    None => self.decode(&mut run, &mut step),
                    Some(mut constraint) => self.decode_constrained(&mut constraint, &mut run, &mut step)?,
                }
            }
        };
        let rest = run.stream.finish();
        if end != StopReason::Cancelled && !rest.is_empty() {
            let _ = step(Step::Token(rest)); // the answer ends here in any case
        }
        Ok(run.answer(end, self.state.take_timings()))
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

    /// Fills the state with the prompt; the only row of the last pass is then that of its last token.
    fn prefill(
        &mut self,
        prompt: &[u32],
        step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.state.truncate(0);
        self.prompt.clear();
        for batch in prompt.chunks(self.state.batch()) {
            let is_last = self.state.len() + batch.len() == prompt.len();
            self.model.forward_for(batch, usize::from(is_last), &mut self.state);
            step(Step::Prefill(self.state.len()))?;
        }
        self.prompt.extend_from_slice(prompt);
        ControlFlow::Continue(())
    }

    fn decode(
        &mut self,
        run: &mut GenerationRun,
        step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> StopReason {
        let logit_reach = run.logit_reach;
        while run.tokens.len() < run.max_tokens {
            let logits = match logit_reach {
                Some(logit_reach) => {
                    self.model.sampling_logits(0, &mut self.state, logit_reach, run.sampler.penalised())
                }
                None => self.model.logits(0, &mut self.state),
            };
            let id = run.choose(logits);
            if !run.ignore_end && self.tokenizer.is_end(id) {
                return StopReason::Stop;
            }
            if run.tokens.is_empty() {
                run.prefill_parts = self.state.take_timings();
            }
            if let Some(logprobs) = run.note_logprobs(id) {
                let _ = step(Step::Logprobs(logprobs)); // the token itself may end the answer
            }
            match run.take(id, self.tokenizer.bytes(id)) {
                StreamStep::Stop(text) => {
                    let _ = step(Step::Token(text)); // it ends here either way
                    return StopReason::Stop;
                }
                StreamStep::More(text) if step(Step::Token(text)).is_break() => return StopReason::Cancelled,
                StreamStep::More(_) => {}
            }
            if run.tokens.len() < run.max_tokens {
                self.model.forward(&[id], &mut self.state);
            }
        }
        StopReason::Length
    }
}

/// An answer while it is generated.
struct GenerationRun {
    sampler: Sampler,
    stream: TextStream,
    tokens: Vec<u32>,
    logprobs: Option<LogprobRun>,
    forced: usize,
    max_tokens: usize,
    /// How far below the best logit another still matters.
    logit_reach: Option<f32>,
    ignore_end: bool,
    started: Instant,
    prefilled: Option<Instant>,
    first: Option<Instant>,
    prefill_parts: PassTimings,
}

/// The log-probabilities of an answer while it is generated.
struct LogprobRun {
    top: usize,
    raw: Vec<f32>, // [vocab], the logits as the model gave them
    found: Vec<PositionLogprobs>,
}

impl GenerationRun {
    /// Chooses a token, which changes the logits.
    fn choose(&mut self, logits: &mut [f32]) -> u32 {
        self.keep_logits(logits);
        self.sampler.sample(logits)
    }

    /// Keeps the logits as the model gave them, where log-probabilities are asked for.
    fn keep_logits(&mut self, logits: &[f32]) {
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.raw.copy_from_slice(logits);
        }
    }

    /// Notes the log-probabilities of the token that was chosen last, where they were asked for.
    fn note_logprobs(&mut self, id: u32) -> Option<&PositionLogprobs> {
        let LogprobRun { top, raw, found } = self.logprobs.as_mut()?;
        found.push(PositionLogprobs::new(raw, id, *top));
        found.last()
    }

    fn take(&mut self, id: u32, bytes: &[u8]) -> StreamStep<'_> {
        self.first.get_or_insert_with(Instant::now);
        self.sampler.record(id);
        self.tokens.push(id);
        self.stream.push(bytes)
    }

    /// `parts`: the timings since the first token, or since the start when there was none.
    fn answer(self, end: StopReason, parts: PassTimings) -> Answer {
        let now = Instant::now();
        let none = PassTimings::default();
        let (prefill_parts, decode_parts) =
            if self.first.is_some() { (self.prefill_parts, parts) } else { (parts, none) };
        let prefilled = self.prefilled.unwrap_or(now);
        Answer {
            text: self.stream.into_text(),
            tokens: self.tokens,
            logprobs: self.logprobs.map(|run| run.found),
            forced: self.forced,
            end,
            prefill: prefilled - self.started,
            first_token: self.first.map(|first| first - prefilled),
            decode: self.first.map_or(Duration::ZERO, |first| now - first),
            prefill_parts,
            decode_parts,
        }
    }
}
