//! Decoding under a grammar: tokens that it forces are not sampled, and are appended in one pass with the token
//! before them; of the others only those are considered that it allows.

use super::{GenerationRun, Session, Step, StopReason};
use crate::engine::error::PromptError;
use crate::engine::grammar::{Constraint, GrammarError, NextTokens};
use crate::engine::model::AllowedTokens;
use crate::engine::tokenizer::StreamStep;
use std::ops::ControlFlow;

/// What a constrained answer is made with.
struct Decoding<'r, F> {
    run: &'r mut GenerationRun,
    step: &'r mut F,
    /// Tokens that are generated and not in the KV cache yet.
    pending: Vec<u32>,
}

impl Session<'_> {
    /// Decodes until the grammar, the model or a limit ends the answer. An answer that the grammar completes at the
    /// limit has ended by itself.
    pub(super) fn decode_constrained<F: FnMut(Step<'_>) -> ControlFlow<()>>(
        &mut self,
        constraint: &mut Constraint,
        run: &mut GenerationRun,
        step: &mut F,
    ) -> Result<StopReason, PromptError> {
        let mut decoding = Decoding { run, step, pending: Vec::with_capacity(self.state.batch()) };
        loop {
            self.note_raw_logits(&mut decoding);
            let is_full = decoding.run.tokens.len() >= decoding.run.max_tokens;
            let ended = match constraint.next_tokens().map_err(grammar_error)? {
                NextTokens::End => Some(StopReason::Stop),
                _ if is_full => Some(StopReason::Length),
                NextTokens::Forced(ids) => self.append_forced(&ids, &mut decoding),
                NextTokens::Choice { mask, count } => {
                    let allowed = AllowedTokens { mask, count };
                    let id = self.choose(allowed, &mut decoding);
                    if self.tokenizer.is_end(id) {
                        return Ok(StopReason::Stop);
                    }
                    constraint.consume(id).map_err(grammar_error)?;
                    self.append(id, &mut decoding)
                }
            };
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
    }

    /// Appends forced tokens as far as the limit allows.
    fn append_forced<F: FnMut(Step<'_>) -> ControlFlow<()>>(
        &mut self,
        ids: &[u32],
        decoding: &mut Decoding<'_, F>,
    ) -> Option<StopReason> {
        for id in ids {
            if decoding.run.tokens.len() >= decoding.run.max_tokens {
                return Some(StopReason::Length);
            }
            decoding.run.forced += 1;
            self.note_raw_logits(decoding);
            if let Some(ended) = self.append(*id, decoding) {
                return Some(ended);
            }
        }
        None
    }

    /// Passes over the tokens that are not in the cache yet.
    fn catch_up<F>(&mut self, decoding: &mut Decoding<'_, F>) {
        for batch in decoding.pending.chunks(self.state.batch()) {
            self.model.forward_for(batch, 1, &mut self.state);
        }
        decoding.pending.clear();
    }

    /// Keeps the logits of all tokens where log-probabilities are asked for, which the grammar does not change.
    fn note_raw_logits<F>(&mut self, decoding: &mut Decoding<'_, F>) {
        let is_full = decoding.run.tokens.len() >= decoding.run.max_tokens;
        if decoding.run.logprobs.is_some() && !is_full {
            self.catch_up(decoding);
            let logits = self.model.logits(0, &mut self.state);
            decoding.run.keep_logits(logits);
        }
    }

    /// Chooses one of the allowed tokens, after a pass over those that are not in the cache yet.
    fn choose<F>(&mut self, allowed: AllowedTokens<'_>, decoding: &mut Decoding<'_, F>) -> u32 {
        self.catch_up(decoding);
        let run = &mut *decoding.run;
        let penalised = run.sampler.penalised();
        let logits = self.model.allowed_logits(0, &mut self.state, run.logit_reach, penalised, allowed);
        let id = run.sampler.sample(logits);
        if allowed.contains(id as usize) {
            return id;
        }
        // The logits of a damaged model: any token will do that fits.
        (0..self.model.shape().vocab).find(|id| allowed.contains(*id)).unwrap_or_default() as u32
    }

    fn append<F: FnMut(Step<'_>) -> ControlFlow<()>>(
        &mut self,
        id: u32,
        decoding: &mut Decoding<'_, F>,
    ) -> Option<StopReason> {
        if decoding.run.tokens.is_empty() {
            decoding.run.prefill_parts = self.state.take_timings();
        }
        decoding.pending.push(id);
        if let Some(logprobs) = decoding.run.note_logprobs(id) {
            let _ = (decoding.step)(Step::Logprobs(logprobs)); // the token itself may end the answer
        }
        match decoding.run.take(id, self.tokenizer.bytes(id)) {
            StreamStep::Stop(text) => {
                let _ = (decoding.step)(Step::Token(text)); // it ends here either way
                Some(StopReason::Stop)
            }
            StreamStep::More(text) => {
                (decoding.step)(Step::Token(text)).is_break().then_some(StopReason::Cancelled)
            }
        }
    }
}

fn grammar_error(error: GrammarError) -> PromptError {
    PromptError::Grammar(error.to_string())
}
