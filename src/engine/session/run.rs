//! One answer while it is generated: its sampler, its grammar, its text and its measurements. Deliberately knows no model.

use super::speculation::Speculation;
use super::{Answer, GenerateOptions, Step, StopReason};
use crate::engine::error::PromptError;
use crate::engine::grammar::{Constraint, GrammarError, NextTokens};
use crate::engine::logprobs::PositionLogprobs;
use crate::engine::model::{AllowedTokens, LogitsRequest, PassTimings};
use crate::engine::sampler::Sampler;
use crate::engine::tokenizer::{StreamStep, TextStream, Tokenizer};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Bytes that are reserved for an answer's text for each token it may have; longer texts grow.
const BYTES_PER_TOKEN: usize = 8;

/// An answer while it is generated.
#[derive(Debug)]
pub(super) struct GenerationRun {
    /// Which answer of the session it is.
    pub number: u64,
    sampler: Sampler,
    stream: TextStream,
    tokens: Vec<u32>,
    logprobs: Option<LogprobRun>,
    grammar: Option<GrammarRun>,
    forced: usize,
    /// Tokens of the prompt that were in the KV cache already.
    pub cached: usize,
    max_tokens: usize,
    /// How far below the best logit another still matters.
    logit_reach: Option<f32>,
    ignore_end: bool,
    /// `None` where nothing is looked up.
    pub speculation: Option<Speculation>,
    /// What is answered whatever is chosen.
    script: Vec<u32>,
    started: Instant,
    prefilled: Option<Instant>,
    first: Option<Instant>,
    prefill_parts: PassTimings,
    /// The time of passes since the first token, or since the start before there is one.
    parts: PassTimings,
}

/// The log-probabilities of an answer while it is generated.
#[derive(Debug)]
struct LogprobRun {
    top: usize,
    raw: Vec<f32>, // [vocab], the logits as the model gave them
    found: Vec<PositionLogprobs>,
}

/// The grammar of an answer, and what it says about the next token.
#[derive(Debug)]
struct GrammarRun {
    constraint: Constraint,
    /// How many tokens may come next, once that is known.
    choice: Option<usize>,
    /// Tokens that must come next and whose log-probabilities are asked for, each of which takes a pass.
    forced: VecDeque<u32>,
}

/// Whether an answer has ended, and how.
pub(super) type Ended = Option<Result<StopReason, PromptError>>;

impl GenerationRun {
    /// `vocab`: tokens of the vocabulary; `free`: tokens of the context that the prompt leaves.
    pub fn new(number: u64, prompt: &[u32], options: &GenerateOptions, vocab: usize, free: usize) -> Self {
        let max_tokens = options.max_tokens.unwrap_or(free).min(free);
        let is_exact = options.exact_head || options.logprobs.is_some();
        let logprobs = |top| LogprobRun { top, raw: vec![0.0; vocab], found: Vec::new() };
        let grammar = |constraint| GrammarRun { constraint, choice: None, forced: VecDeque::new() };
        let mut run = GenerationRun {
            number,
            sampler: Sampler::new(options.sampling.clone(), vocab),
            stream: TextStream::new(&options.stop, max_tokens.min(1024) * BYTES_PER_TOKEN),
            tokens: Vec::with_capacity(max_tokens.min(1024)),
            logprobs: options.logprobs.map(logprobs),
            grammar: options.constraint.clone().map(grammar),
            forced: 0,
            cached: 0,
            max_tokens,
            logit_reach: options.sampling.logit_reach().filter(|_| !is_exact),
            ignore_end: options.ignore_eos,
            speculation: options.speculate.then(|| Speculation::new(prompt, &options.prediction)),
            script: options.script.clone(),
            started: Instant::now(),
            prefilled: None,
            first: None,
            prefill_parts: PassTimings::default(),
            parts: PassTimings::default(),
        };
        prompt.iter().for_each(|id| run.sampler.record_prompt(*id));
        run
    }

    /// Whether all of the prompt was read.
    pub fn is_prefilled(&self) -> bool {
        self.prefilled.is_some()
    }

    /// All of the prompt was read.
    pub fn note_prefilled(&mut self) {
        self.prefilled.get_or_insert_with(Instant::now);
    }

    /// It goes on after an interruption, which its times leave out, as answer `number` of the session.
    pub fn resume(&mut self, number: u64, interruption: Duration) {
        self.number = number;
        self.started += interruption;
        for time in [&mut self.prefilled, &mut self.first].into_iter().flatten() {
            *time += interruption;
        }
    }

    /// Adds the time of a pass that this answer took part in.
    pub fn add_timings(&mut self, parts: PassTimings) {
        self.parts += parts;
    }

    /// How many tokens the answer may still have.
    pub fn tokens_left(&self) -> usize {
        self.max_tokens - self.tokens.len()
    }

    /// The tokens that the grammar forces and that were not appended yet.
    pub fn forced_ahead(&self) -> Option<impl Iterator<Item = u32>> {
        let forced = &self.grammar.as_ref()?.forced;
        (!forced.is_empty()).then(|| forced.iter().copied())
    }

    /// Behind how many of the tokens that are expected next [`GenerationRun::logits_request`] would be the same as now.
    pub fn requests_known(&self, expected: &[u32]) -> usize {
        match (&self.grammar, self.logit_reach) {
            (Some(_), _) if self.logprobs.is_none() => 0, // the grammar allows other tokens then
            (_, None) => expected.len(),
            (_, Some(_)) => expected.iter().take_while(|id| !self.sampler.changes_penalised(**id)).count(),
        }
    }

    /// Whether a grammar has to say what may come next.
    pub fn has_grammar(&self) -> bool {
        self.grammar.is_some()
    }

    fn is_full(&self) -> bool {
        self.tokens.len() >= self.max_tokens
    }

    /// Finds out what may come next: appends the tokens that the grammar forces to `tokens`, up to where one is to be
    /// chosen, and says whether the answer has ended.
    pub fn advance(
        &mut self,
        tokens: &mut Vec<u32>,
        tokenizer: &Tokenizer,
        step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Ended {
        if self.grammar.is_none() {
            return self.is_full().then_some(Ok(StopReason::Length));
        }
        loop {
            let is_full = self.is_full();
            let grammar = self.grammar.as_mut().filter(|grammar| !grammar.is_waiting())?;
            match grammar.constraint.next_tokens() {
                Err(error) => return Some(Err(grammar_error(error))),
                Ok(NextTokens::End) => return Some(Ok(StopReason::Stop)),
                Ok(_) if is_full => return Some(Ok(StopReason::Length)),
                Ok(NextTokens::Choice { count, .. }) => grammar.choice = Some(count),
                Ok(NextTokens::Forced(ids)) if self.logprobs.is_some() => grammar.forced.extend(ids),
                Ok(NextTokens::Forced(ids)) => {
                    for id in ids {
                        if self.is_full() {
                            return Some(Ok(StopReason::Length));
                        }
                        self.forced += 1;
                        if let Some(ended) = self.append(id, tokens, tokenizer, step) {
                            return Some(Ok(ended));
                        }
                    }
                }
            }
        }
    }

    /// The logits that the next token is chosen from; `row`, `sequence`: where they come from.
    pub fn logits_request(&self, row: usize, sequence: usize) -> LogitsRequest<'_> {
        let penalised = self.sampler.penalised();
        // Log-probabilities are those of the model, whatever a grammar allows.
        let allowed = self.allowed().filter(|_| self.logprobs.is_none());
        LogitsRequest { row, sequence, reach: self.logit_reach, penalised, allowed }
    }

    /// The tokens that the grammar allows, where one is to be chosen.
    fn allowed(&self) -> Option<AllowedTokens<'_>> {
        let GrammarRun { constraint, choice, .. } = self.grammar.as_ref()?;
        choice.map(|count| AllowedTokens { mask: constraint.mask(), count })
    }

    /// Chooses the next token from its logits, which change, and appends it to `tokens`.
    pub fn choose(
        &mut self,
        logits: &mut [f32],
        tokens: &mut Vec<u32>,
        tokenizer: &Tokenizer,
        step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Ended {
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.raw.copy_from_slice(logits);
        }
        let id = match self.grammar.as_mut().and_then(|grammar| grammar.forced.pop_front()) {
            Some(_) if self.is_full() => return Some(Ok(StopReason::Length)),
            Some(id) => {
                self.forced += 1;
                id
            }
            None => {
                let id = self.sample(logits);
                let id = self.script.get(self.tokens.len()).copied().unwrap_or(id);
                let is_end = tokenizer.is_end(id);
                if is_end && (!self.ignore_end || self.grammar.is_some()) {
                    return Some(Ok(StopReason::Stop));
                }
                if let Some(grammar) = &mut self.grammar {
                    grammar.choice = None;
                    if let Err(error) = grammar.constraint.consume(id) {
                        return Some(Err(grammar_error(error)));
                    }
                }
                id
            }
        };
        if let Some(ended) = self.append(id, tokens, tokenizer, step) {
            return Some(Ok(ended));
        }
        // An answer that its grammar completes at the limit has ended by itself, which only the grammar knows.
        (self.grammar.is_none() && self.is_full()).then_some(Ok(StopReason::Length))
    }

    fn sample(&mut self, logits: &mut [f32]) -> u32 {
        if self.logprobs.is_some()
            && let Some(allowed) = self.allowed()
        {
            allowed.apply(0, logits);
        }
        let id = self.sampler.sample(logits);
        match self.allowed() {
            // The logits of a damaged model: any token will do that fits.
            Some(allowed) if !allowed.contains(id as usize) => {
                (0..logits.len()).find(|id| allowed.contains(*id)).unwrap_or_default() as u32
            }
            _ => id,
        }
    }

    fn append(
        &mut self,
        id: u32,
        tokens: &mut Vec<u32>,
        tokenizer: &Tokenizer,
        step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Option<StopReason> {
        if self.first.is_none() {
            self.first = Some(Instant::now());
            self.prefill_parts = std::mem::take(&mut self.parts);
        }
        if let Some(LogprobRun { top, raw, found }) = &mut self.logprobs {
            found.push(PositionLogprobs::new(raw, id, *top));
            let _ = found.last().map(|position| step(Step::Logprobs(position))); // the token itself may end the answer
        }
        self.sampler.record(id);
        self.tokens.push(id);
        tokens.push(id);
        match self.stream.push(tokenizer.bytes(id)) {
            StreamStep::Stop(text) => {
                let _ = step(Step::Token(text)); // it ends here either way
                Some(StopReason::Stop)
            }
            StreamStep::More(text) => step(Step::Token(text)).is_break().then_some(StopReason::Cancelled),
        }
    }

    /// The answer, when it has ended.
    pub fn finish(mut self, end: StopReason, step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>) -> Answer {
        let rest = self.stream.finish();
        if end != StopReason::Cancelled && !rest.is_empty() {
            let _ = step(Step::Token(rest)); // the answer ends here in any case
        }
        let now = Instant::now();
        let (prefill_parts, decode_parts) = match self.first {
            Some(_) => (self.prefill_parts, self.parts),
            None => (self.parts, PassTimings::default()),
        };
        let prefilled = self.prefilled.unwrap_or(now);
        let (looked_up, predicted) = self.speculation.as_ref().map(Speculation::counts).unwrap_or_default();
        Answer {
            text: self.stream.into_text(),
            tokens: self.tokens,
            logprobs: self.logprobs.map(|run| run.found),
            forced: self.forced,
            cached: self.cached,
            looked_up,
            predicted,
            end,
            prefill: prefilled - self.started,
            first_token: self.first.map(|first| first - prefilled),
            decode: self.first.map_or(Duration::ZERO, |first| now - first),
            prefill_parts,
            decode_parts,
        }
    }
}

impl GrammarRun {
    /// Whether it is known what comes next, and a pass is waited for.
    fn is_waiting(&self) -> bool {
        self.choice.is_some() || !self.forced.is_empty()
    }
}

fn grammar_error(error: GrammarError) -> PromptError {
    PromptError::Grammar(error.to_string())
}
