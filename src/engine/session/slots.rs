//! The slots of a session: answers that are generated together, one pass over the weights a step.

use super::run::{Ended, GenerationRun};
use super::speculation::{PassCost, Proposal};
use super::{Answer, GenerateOptions, Session, Step, StopReason};
use crate::engine::error::PromptError;
use crate::engine::model::{KV_BLOCK, MAX_SEQUENCES, Segment};
use crate::engine::prefix_cache::Parent;
use crate::engine::prefix_store::BlockHash;
use std::ops::ControlFlow;
use std::time::Instant;

/// In one of so many passes the oldest prompt is read first, so that short ones do not hold up a long one for ever.
const OLDEST_FIRST_EVERY: u64 = 4;

/// A place for one answer.
#[derive(Debug)]
pub(super) struct AnswerSlot {
    /// The prompt and the tokens generated so far; those that are in the KV cache come first.
    pub tokens: Vec<u32>, // [context] at most
    pub prompt_len: usize,
    /// How many of them were computed before the answer was suspended, and are read again as a prompt is; 0 where it
    /// never was.
    pub restored: usize,
    pub run: Option<GenerationRun>,
    ended: Option<Result<Answer, PromptError>>,
    /// The row of the last pass that is behind all tokens before the proposal; the rows of the proposal follow.
    row: Option<usize>,
    /// The tokens that may come next.
    pub proposal: Proposal,
    /// How many of its blocks others can find, and what the next of them comes behind.
    pub findable: usize,
    pub parent: Parent,
    /// The hash of what the next of them comes behind; `None` where nothing is stored on disk.
    hash: Option<BlockHash>,
    /// Whose texts it shares beginnings with.
    pub scope: u128,
}

impl AnswerSlot {
    pub fn new(context: usize) -> Self {
        AnswerSlot {
            tokens: Vec::with_capacity(context),
            prompt_len: 0,
            restored: 0,
            run: None,
            ended: None,
            row: None,
            proposal: Proposal::new(),
            findable: 0,
            parent: Parent::Scope(0),
            hash: None,
            scope: 0,
        }
    }

    /// The tokens of the next block that others can find, once they are all there.
    pub fn next_block(&self) -> &[u32] {
        &self.tokens[self.findable * KV_BLOCK..(self.findable + 1) * KV_BLOCK]
    }

    /// The hash of that block.
    pub fn next_hash(&self) -> Option<BlockHash> {
        self.hash.map(|hash| hash.followed_by(self.next_block()))
    }

    /// Others can find the next block, which is `parent` to what follows it.
    fn note_findable(&mut self, parent: Parent) {
        self.hash = self.next_hash();
        self.parent = parent;
        self.findable += 1;
    }

    /// The next block of the prompt was found.
    pub fn note_found(&mut self, parent: Parent) {
        let (begin, end) = (self.findable * KV_BLOCK, (self.findable + 1) * KV_BLOCK);
        // Of the prompt, and computed for another.
        let found = end.min(self.prompt_len).saturating_sub(begin.max(self.restored));
        self.run.iter_mut().for_each(|run| run.cached += found);
        self.note_findable(parent);
    }

    /// The prompt that was read last.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// Whether tokens of its prompt, or of an answer that was suspended, are to be read first; `len`: those in the KV cache.
    pub fn is_reading(&self, len: usize) -> bool {
        self.run.as_ref().is_some_and(|run| !run.is_prefilled() || len < self.restored)
    }

    /// The row of the last pass from which the next token is chosen, and the proposed tokens whose rows follow.
    pub fn next_row(&self) -> Option<(usize, &[u32])> {
        let (row, rest) = (self.row?, self.proposal.rest(&self.tokens)?);
        Some((row + self.proposal.read().len() - rest.len(), rest))
    }

    /// Appends tokens that may come next, at most `most`, and returns how many. `answers`: how many share the pass.
    pub fn propose(&mut self, most: usize, answers: usize, cost: PassCost) -> usize {
        let AnswerSlot { tokens, run, proposal, .. } = self;
        let Some(run) = run else { return 0 };
        // One token is chosen behind the last of them.
        let most = most.min(run.tokens_left().saturating_sub(1));
        if let Some(forced) = run.forced_ahead() {
            proposal.take_known(tokens, forced, most);
        } else if let Some(speculation) = &mut run.speculation {
            speculation.propose(proposal, tokens, most, answers, cost);
        }
        tokens.extend_from_slice(proposal.read());
        proposal.read().len()
    }

    pub fn end(&mut self, ended: Ended, mut step: impl FnMut(Step<'_>) -> ControlFlow<()>) {
        if let Some(outcome) = ended
            && let Some(run) = self.run.take()
        {
            self.row = None;
            self.ended = Some(outcome.map(|end| run.finish(end, &mut step)));
        }
    }
}

impl Session<'_> {
    /// How many answers can be generated at the same time.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Begins to answer `prompt` in a slot, whose earlier answer is given up.
    ///
    /// # Errors
    /// A prompt that does not fit, or options that do not fit the vocabulary.
    pub fn begin(
        &mut self,
        slot: usize,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<(), PromptError> {
        self.check_options(prompt, options)?;
        self.release(slot);
        let AnswerSlot { tokens, prompt_len, scope, .. } = &mut self.slots[slot];
        tokens.extend_from_slice(prompt);
        (*prompt_len, *scope) = (prompt.len(), options.prefix_scope);
        self.begin_text(slot);
        self.begin_run(slot, options);
        Ok(())
    }

    /// A slot has no blocks, and those of its text may be looked for from the beginning.
    pub(super) fn begin_text(&mut self, slot: usize) {
        let Session { slots, disk, .. } = self;
        let AnswerSlot { findable, parent, hash, scope, .. } = &mut slots[slot];
        (*findable, *parent) = (0, Parent::Scope(*scope));
        *hash = disk.as_ref().map(|disk| disk.root(*scope));
    }

    /// Begins to answer the prompt of a slot once more, for which only its last token is read again.
    ///
    /// # Errors
    /// As [`Session::begin`].
    pub fn begin_again(&mut self, slot: usize, options: &GenerateOptions) -> Result<(), PromptError> {
        self.check_options(self.slots[slot].prompt(), options)?;
        self.rewind(slot);
        self.begin_run(slot, options);
        let known = self.state.len_of(slot);
        self.slots[slot].run.iter_mut().for_each(|run| run.cached = known);
        Ok(())
    }

    /// Removes the answer of a slot and the last token of its prompt from the KV cache.
    ///
    /// Where the answer was suspended, others may find the block in which it begins, so that nothing may be written to it
    /// any more. Then the slot has no blocks afterwards, and the prompt is looked for or read again.
    pub(super) fn rewind(&mut self, slot: usize) {
        let AnswerSlot { tokens, prompt_len, restored, findable, .. } = &mut self.slots[slot];
        tokens.truncate(*prompt_len);
        *restored = 0;
        let len = prompt_len.saturating_sub(1);
        if *findable * KV_BLOCK > len {
            self.begin_text(slot);
            self.blocks.release(self.state.blocks_of(slot));
            self.state.clear(slot);
        }
        self.state.truncate_to(slot, len);
    }

    fn check_options(&self, prompt: &[u32], options: &GenerateOptions) -> Result<(), PromptError> {
        // One position for the first token, without which there is no answer.
        self.check(prompt, 1)?;
        let vocab = self.model.shape().vocab;
        if let Some(id) = options.prediction.iter().find(|id| **id as usize >= vocab) {
            return Err(PromptError::UnknownToken { id: *id, vocab });
        }
        match options.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            Some((id, _)) => Err(PromptError::UnknownBiasToken { id: *id, vocab }),
            None => Ok(()),
        }
    }

    fn begin_run(&mut self, slot: usize, options: &GenerateOptions) {
        let Session { model, state, slots, begun, .. } = self;
        state.take_timings(); // of what was not an answer
        *begun += 1;
        let AnswerSlot { tokens, prompt_len, run, ended, row, .. } = &mut slots[slot];
        let free = state.context() - *prompt_len;
        *run = Some(GenerationRun::new(*begun, tokens, options, model.shape().vocab, free));
        (*ended, *row) = (None, None);
    }

    /// The answer of a slot, once it has ended. The slot keeps its tokens for [`Session::begin_again`] and
    /// [`Session::log_probabilities_of`] until it is released or begins another answer.
    pub fn take_answer(&mut self, slot: usize) -> Option<Result<Answer, PromptError>> {
        self.slots[slot].ended.take()
    }

    /// Empties a slot. Others can find the beginning of its text from now on.
    pub fn release(&mut self, slot: usize) {
        let known = self.state.len_of(slot).min(self.slots[slot].tokens.len());
        self.make_findable(slot, known / KV_BLOCK);
        self.blocks.release(self.state.blocks_of(slot));
        self.state.clear(slot);
        let AnswerSlot { tokens, prompt_len, restored, run, ended, row, findable, .. } =
            &mut self.slots[slot];
        tokens.clear();
        (*prompt_len, *restored, *findable) = (0, 0, 0);
        (*run, *ended, *row) = (None, None, None);
    }

    /// Empties all slots and forgets all texts: whatever happened before no longer matters, and is not written to disk.
    pub fn reset(&mut self) {
        self.forget_unwritten();
        self.blocks.clear();
        for index in 0..self.slots.len() {
            self.state.clear(index);
            self.slots[index] = AnswerSlot::new(self.state.context());
        }
    }

    /// Takes all answers one step further: one pass over the weights, in which each of them gets its next token or several,
    /// and prompts are read a part at a time. `each` gets the progress with the index of the slot, and may cancel that slot's
    /// answer.
    pub fn step(&mut self, mut each: impl FnMut(usize, Step<'_>) -> ControlFlow<()>) {
        for index in 0..self.slots.len() {
            self.advance(index, true, &mut each);
        }
        let began = Instant::now();
        if let Some((answers, prompt_tokens)) = self.pass(&mut each) {
            self.choose_tokens(&mut each);
            self.pacing.record(answers, prompt_tokens, began.elapsed());
        }
    }

    /// Finds out what may come next in an answer whose prompt was read.
    pub(super) fn advance(
        &mut self,
        index: usize,
        is_prefilled: bool,
        each: &mut impl FnMut(usize, Step<'_>) -> ControlFlow<()>,
    ) {
        let Session { slots, tokenizer, .. } = self;
        let slot = &mut slots[index];
        let Some(run) = slot.run.as_mut().filter(|run| run.is_prefilled() == is_prefilled) else { return };
        run.note_prefilled();
        let ended = run.advance(&mut slot.tokens, tokenizer, &mut |step| each(index, step));
        slot.end(ended, |step| each(index, step));
    }

    /// One pass over the tokens that are not in the KV cache yet, as many as fit: how many answers take part, and how
    /// many tokens of prompts. `None` where there are no tokens.
    fn pass(&mut self, each: &mut impl FnMut(usize, Step<'_>) -> ControlFlow<()>) -> Option<(usize, usize)> {
        self.passes += 1;
        let (mut shares, loading) = self.rows_of_slots();
        let (answers, prompt_tokens) = self.parts_of_pass(&shares);
        if let Some(index) = loading {
            self.report_prefill(index, self.state.len_of(index), each);
        }
        self.propose(&mut shares);
        for (index, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0) {
            self.allocate_blocks(index, *share);
        }
        let Session { model, state, slots, .. } = self;
        let (mut segments, mut count, mut wanted_rows) = ([Segment::default(); MAX_SEQUENCES], 0, 0);
        slots.iter_mut().for_each(|slot| slot.row = None);
        for (sequence, slot) in slots.iter_mut().enumerate().filter(|(index, _)| shares[*index] > 0) {
            let (len, share) = (state.len_of(sequence), shares[sequence]);
            let is_whole = len + share == slot.tokens.len();
            let wanted = if is_whole { 1 + slot.proposal.read().len() } else { 0 };
            slot.row = is_whole.then_some(wanted_rows);
            wanted_rows += wanted;
            segments[count] = Segment { sequence, tokens: &slot.tokens[len..len + share], wanted };
            count += 1;
        }
        if count == 0 {
            return None;
        }
        model.forward_segments(&segments[..count], state);
        slots.iter_mut().for_each(|slot| slot.tokens.truncate(slot.proposal.start()));
        for index in (0..self.slots.len()).filter(|index| shares[*index] > 0) {
            self.note_progress(index, each);
        }
        Some((answers, prompt_tokens))
    }

    /// How many answers a pass decodes, and how many tokens of prompts it reads.
    fn parts_of_pass(&self, shares: &[usize; MAX_SEQUENCES]) -> (usize, usize) {
        let taking_part = self.slots.iter().enumerate().filter(|(index, _)| shares[*index] > 0);
        taking_part.fold((0, 0), |(answers, tokens), (index, slot)| {
            match slot.is_reading(self.state.len_of(index)) {
                true => (answers, tokens + shares[index]),
                false => (answers + 1, tokens),
            }
        })
    }

    /// How many tokens of each slot the next pass takes: of answers all that they have, then of prompts as many
    /// as fit. Also the slot whose prompt is being read from disk instead.
    fn rows_of_slots(&mut self) -> ([usize; MAX_SEQUENCES], Option<usize>) {
        let (mut shares, mut loading) = ([0; MAX_SEQUENCES], None);
        let mut left = self.state.batch();
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.run.is_some() && !slot.is_reading(self.state.len_of(index)) {
                shares[index] = (slot.tokens.len() - self.state.len_of(index)).min(left);
                left -= shares[index];
            }
        }
        let is_beside_answers = left < self.state.batch();
        let mut left = if is_beside_answers { left.min(self.pacing.tokens()) } else { left };
        while left > 0
            && let Some(index) = self.next_prompt(&shares)
        {
            if self.find_prefix(index) {
                loading = Some(index);
                break;
            }
            shares[index] = (self.slots[index].tokens.len() - self.state.len_of(index)).min(left);
            left -= shares[index];
        }
        (shares, loading)
    }

    /// The slot whose prompt is read next, of those that have no share yet: the one of which the least is left, so that a
    /// short prompt does not wait for long ones.
    fn next_prompt(&self, shares: &[usize; MAX_SEQUENCES]) -> Option<usize> {
        let runs =
            self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.run.as_ref()?)));
        let is_reading = |index: usize| self.slots[index].is_reading(self.state.len_of(index));
        let prompts = runs.filter(|(index, _)| is_reading(*index) && shares[*index] == 0);
        let left = |index: usize| self.slots[index].tokens.len() - self.state.len_of(index);
        let is_oldest_first = self.passes.is_multiple_of(OLDEST_FIRST_EVERY);
        let next =
            prompts.min_by_key(|(index, run)| (if is_oldest_first { 0 } else { left(*index) }, run.number));
        next.map(|(index, _)| index)
    }

    /// Appends the blocks that hold the next tokens of a prompt already. Its last token is always read, since the logits
    /// behind it are needed. Whether the last of them was read from disk, so that the next may be there too: one in a pass,
    /// so that other answers wait for one at most.
    pub(super) fn find_prefix(&mut self, index: usize) -> bool {
        let Session { state, blocks, slots, finds_prefixes, .. } = self;
        let slot = &mut slots[index];
        let last = slot.prompt_len.max(slot.restored + 1);
        while *finds_prefixes
            && state.len_of(index) == slot.findable * KV_BLOCK
            && state.blocks_of(index).len() == slot.findable
            && (slot.findable + 1) * KV_BLOCK < last
        {
            let Some((block, parent)) = blocks.find(slot.parent, slot.next_block()) else {
                return self.load_next_block(index);
            };
            state.push_full_block(index, block);
            slot.note_found(parent);
        }
        false
    }

    /// Gives a slot blocks for so many tokens more.
    pub(super) fn allocate_blocks(&mut self, index: usize, tokens: usize) {
        let Session { state, blocks, .. } = self;
        while state.blocks_of(index).len() * KV_BLOCK < state.len_of(index) + tokens {
            let block = blocks.allocate(state.blocks_of(index).last().copied());
            state.push_block(index, block);
        }
    }

    /// Lets others find the first `count` blocks of a slot, which are full.
    fn make_findable(&mut self, index: usize, count: usize) {
        let Session { state, blocks, slots, finds_prefixes, disk, .. } = self;
        let slot = &mut slots[index];
        while *finds_prefixes && slot.findable < count {
            let block = state.blocks_of(index)[slot.findable];
            let parent = blocks.register(block, slot.parent, slot.findable, slot.next_block());
            slot.note_findable(parent);
            // Another with the same contents is written itself.
            if let (Some(disk), Some(hash), true) = (&mut *disk, slot.hash, blocks.holds(block, parent)) {
                disk.note_full(block, parent, hash, blocks);
            }
        }
    }

    /// Reports how far a prompt was read.
    fn note_progress(&mut self, index: usize, each: &mut impl FnMut(usize, Step<'_>) -> ControlFlow<()>) {
        let read = self.state.len_of(index);
        let slot = &self.slots[index];
        let Some(run) = slot.run.as_ref().filter(|run| !run.is_prefilled()) else { return };
        // The last token alone is no progress worth a report: the first token of the answer follows at once.
        let is_reported = read > run.cached + 1;
        // The last token of the prompt may be read again, so that its block stays the slot's own.
        self.make_findable(index, read.min(slot.prompt_len - 1) / KV_BLOCK);
        if is_reported {
            self.report_prefill(index, read, each);
        }
    }

    fn report_prefill(
        &mut self,
        index: usize,
        read: usize,
        each: &mut impl FnMut(usize, Step<'_>) -> ControlFlow<()>,
    ) {
        if each(index, Step::Prefill(read)).is_break() {
            self.slots[index].end(Some(Ok(StopReason::Cancelled)), |step| each(index, step));
        }
    }
}
