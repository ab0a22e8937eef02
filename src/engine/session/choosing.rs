//! Which tokens the answers of a session get in one pass: the tokens that are proposed before it, and what is chosen from
//! its logits. Deliberately decides neither what is worth proposing nor how a token is sampled.

use super::slots::AnswerSlot;
use super::speculation::MAX_ROWS;
use super::{Session, Step};
use crate::engine::model::{LogitsRequest, MAX_LOGITS, MAX_SEQUENCES};
use std::ops::ControlFlow;

impl Session<'_> {
    /// Appends to the answers of the next pass what may come next in them. `shares`: the tokens of each slot that it takes.
    pub(super) fn propose(&mut self, shares: &mut [usize; MAX_SEQUENCES]) {
        let Session { slots, state, pass_cost, .. } = self;
        slots.iter_mut().for_each(|slot| slot.proposal.clear(&slot.tokens));
        let is_reading = |(index, slot): (usize, &AnswerSlot)| slot.is_reading(state.len_of(index));
        let answers = slots
            .iter()
            .enumerate()
            .filter(|(index, slot)| slot.run.is_some() && !is_reading((*index, slot)));
        let answers = answers.count();
        // Not beside a prompt, which makes the pass longer already.
        let is_reading = slots.iter().enumerate().any(is_reading);
        let rows = if is_reading { 0 } else { MAX_ROWS.min(state.batch()) };
        let most = rows.saturating_sub(shares.iter().sum()) / answers.max(1);
        for (index, slot) in slots.iter_mut().enumerate() {
            let is_whole = state.len_of(index) + shares[index] == slot.tokens.len();
            if is_whole && slot.run.as_ref().is_some_and(|run| run.is_prefilled()) {
                shares[index] += slot.propose(most, answers, *pass_cost);
            }
        }
    }

    /// Chooses the next token of each answer whose tokens are all in the KV cache, and goes on as long as it is the one
    /// that was proposed.
    pub(super) fn choose_tokens(&mut self, each: &mut impl FnMut(usize, Step<'_>) -> ControlFlow<()>) {
        for index in 0..self.slots.len() {
            if self.slots[index].next_row().is_some() {
                self.advance(index, false, each);
            }
        }
        while self.choose_from_rows(each) {}
        for (index, slot) in
            self.slots.iter().enumerate().filter(|(_, slot)| !slot.proposal.read().is_empty())
        {
            self.state.reject_from(index, slot.proposal.valid_len(&slot.tokens));
        }
    }

    /// Computes the logits of as many rows as are known to be asked for, and chooses from them; `false` where there are
    /// none.
    fn choose_from_rows(&mut self, each: &mut impl FnMut(usize, Step<'_>) -> ControlFlow<()>) -> bool {
        let Session { model, state, slots, .. } = self;
        let (mut requests, mut count) = ([LogitsRequest::default(); MAX_LOGITS], 0);
        for (index, slot) in slots.iter().enumerate() {
            let (Some(run), Some((row, rest))) = (&slot.run, slot.next_row()) else { continue };
            let rows = (1 + run.requests_known(rest)).min(state.logit_rows() - count);
            for row in row..row + rows {
                requests[count] = run.logits_request(row, index);
                count += 1;
            }
        }
        if count > 0 {
            model.compute_logits(&requests[..count], state);
        }
        let rows = requests.map(|request| (request.sequence, request.row));
        let parts = state.take_timings();
        slots.iter_mut().filter_map(|slot| slot.run.as_mut()).for_each(|run| run.add_timings(parts));
        for (request, (index, row)) in rows[..count].iter().enumerate() {
            // After a token that was not the proposed one the rows behind it are of another text.
            if self.slots[*index].next_row().is_some_and(|(next, _)| next == *row) {
                self.choose(*index, request, each);
            }
        }
        count > 0
    }

    /// Chooses the next token of an answer from the logits of a request.
    fn choose(
        &mut self,
        index: usize,
        request: usize,
        each: &mut impl FnMut(usize, Step<'_>) -> ControlFlow<()>,
    ) {
        let Session { tokenizer, state, slots, .. } = self;
        let slot = &mut slots[index];
        let Some(run) = &mut slot.run else { return };
        let logits = state.logits_of(request);
        let ended = run.choose(logits, &mut slot.tokens, tokenizer, &mut |step| each(index, step));
        if let Some(speculation) = &mut run.speculation {
            slot.proposal.compare(&slot.tokens, speculation);
        }
        slot.end(ended, |step| each(index, step));
        // Only if the rows behind it are chosen from too do they count.
        state.reject_logits_behind(index, request);
        let is_continued = slot.next_row().is_some();
        if is_continued && slot.run.as_ref().is_some_and(|run| run.has_grammar()) {
            self.advance(index, true, each);
        }
    }
}
