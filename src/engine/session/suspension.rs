//! Answers that give up their slot for another one, and go on later.
//!
//! Whatever an answer has is retained as it is: its sampler, its grammar, its text. Only its blocks of the KV cache are
//! released, where they are found again by its tokens; those that were given to others meanwhile are computed again, as
//! a prompt is.

use super::run::GenerationRun;
use super::slots::AnswerSlot;
use super::{Answer, Session, StopReason};
use std::ops::ControlFlow;
use std::time::Instant;

/// An answer without a slot.
#[derive(Debug)]
pub struct SuspendedAnswer {
    /// The prompt and the tokens generated so far.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// How many of them were in the KV cache.
    computed: usize,
    scope: u128,
    run: GenerationRun,
    since: Instant,
}

impl Session<'_> {
    /// Takes the answer that is generated in a slot out of it, between two steps; the slot is empty then. `None` where none
    /// is generated there.
    pub fn suspend(&mut self, slot: usize) -> Option<SuspendedAnswer> {
        let computed = self.state.len_of(slot);
        let AnswerSlot { tokens, prompt_len, run, scope, restored, .. } = &mut self.slots[slot];
        let suspended = SuspendedAnswer {
            run: run.take()?,
            tokens: tokens.clone(),
            prompt_len: *prompt_len,
            // It may be suspended again before all of its tokens are back.
            computed: computed.max(*restored),
            scope: *scope,
            since: Instant::now(),
        };
        self.release(slot);
        Some(suspended)
    }

    /// Goes on with an answer in a slot, whose earlier answer is given up. Its tokens are those that it would have had
    /// without the interruption. At most [`KV_BLOCK`](crate::engine::model::KV_BLOCK) of them are read again where none of
    /// its blocks was given to others, and all of them in a session that looks for no beginnings of prompts.
    ///
    /// The answer's times leave out how long it was suspended.
    pub fn resume(&mut self, slot: usize, suspended: SuspendedAnswer) {
        self.release(slot);
        self.begun += 1;
        let SuspendedAnswer { tokens, prompt_len, computed, scope, mut run, since } = suspended;
        run.resume(self.begun, since.elapsed());
        let resumed = &mut self.slots[slot];
        resumed.tokens.extend_from_slice(&tokens);
        (resumed.prompt_len, resumed.restored, resumed.run) = (prompt_len, computed, Some(run));
        resumed.scope = scope;
        self.begin_text(slot);
    }
}

impl SuspendedAnswer {
    /// Ends the answer with what it has.
    pub fn cancel(self) -> Answer {
        let SuspendedAnswer { mut run, since, .. } = self;
        run.resume(run.number, since.elapsed());
        run.finish(StopReason::Cancelled, &mut |_| ControlFlow::Continue(()))
    }
}
