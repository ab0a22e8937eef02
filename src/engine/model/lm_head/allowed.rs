//! Logits where a grammar allows only some tokens: of few, only their rows of the head are read; of many, all logits
//! are computed and those of the others are struck out.

use super::logits::{RescoreBuffers, SCAN_ROWS};
use crate::engine::model::timings::TimedPart;
use crate::engine::model::{Model, State};

/// The most tokens whose rows of the head are read one by one.
pub(in crate::engine::model) const MAX_SINGLE_ROWS: usize = 1024;

/// The tokens that may come next.
#[derive(Debug, Clone, Copy)]
pub struct AllowedTokens<'m> {
    /// Bit `id % 32` of word `id / 32` is set for each.
    pub mask: &'m [u32],
    /// How many there are.
    pub count: usize,
}

impl AllowedTokens<'_> {
    /// Whether a token is one of them.
    pub fn contains(&self, id: usize) -> bool {
        self.mask.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// The tokens, in order, of the first `vocab`.
    fn ids(&self, vocab: usize) -> impl Iterator<Item = u32> {
        let bits = |(at, word): (usize, &u32)| {
            let mut word = *word;
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(at as u32 * 32 + bit)
            })
        };
        self.mask.iter().enumerate().flat_map(bits).take_while(move |id| (*id as usize) < vocab)
    }

    /// Strikes out the logits of all other tokens; `logits` begins with that of token `first`, a multiple of 32.
    pub(super) fn apply(&self, first: usize, logits: &mut [f32]) {
        let words =
            self.mask.get(first / 32..).unwrap_or_default().iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            if word != u32::MAX {
                let mut bits = word;
                for logit in logits {
                    *logit = if bits & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                    bits >>= 1;
                }
            }
        }
    }
}

/// Buffers for single rows of the head; allocated once.
#[derive(Debug)]
pub(in crate::engine::model) struct SingleRows {
    ids: Vec<u32>,           // [MAX_SINGLE_ROWS] at most
    buffers: RescoreBuffers, // for as many
}

impl SingleRows {
    /// Buffers for rows of `row_bytes`.
    pub fn new(row_bytes: usize) -> Self {
        SingleRows {
            ids: Vec::with_capacity(MAX_SINGLE_ROWS),
            buffers: RescoreBuffers::new(MAX_SINGLE_ROWS, row_bytes),
        }
    }
}

impl Model {
    /// The logits of row `row` of the last pass for choosing one of `allowed`: `[vocab]`, those of all other tokens
    /// negative infinity. `reach`, `penalised`: see [`Model::sampling_logits`]; without a `reach` all are exact.
    pub fn allowed_logits<'s>(
        &self,
        row: usize,
        state: &'s mut State,
        reach: Option<f32>,
        penalised: Option<&[bool]>,
        allowed: AllowedTokens<'_>,
    ) -> &'s mut [f32] {
        let vocab = self.shape.vocab;
        if allowed.count <= MAX_SINGLE_ROWS.min(vocab / 2) {
            self.single_rows(row, state, allowed);
        } else if let Some(reach) = reach {
            self.shortlisted_logits(row, state, reach, penalised, Some(allowed));
        } else {
            self.logits(row, state);
        }
        // Where all logits were computed the others are struck out here; elsewhere they are already.
        allowed.apply(0, &mut state.logits);
        &mut state.logits
    }

    fn single_rows(&self, row: usize, state: &mut State, allowed: AllowedTokens<'_>) {
        self.final_norm(row, state);
        let State { final_hidden, logits, single_rows, .. } = state;
        let SingleRows { ids, buffers } = single_rows;
        ids.clear();
        ids.extend(allowed.ids(self.shape.vocab).take(MAX_SINGLE_ROWS));
        self.rescore_rows(ids, final_hidden, buffers);
        logits.fill(f32::NEG_INFINITY);
        for (id, logit) in ids.iter().zip(&buffers.logits) {
            logits[*id as usize] = *logit;
        }
        state.stopwatch.lap(TimedPart::Head, &self.pool);
    }
}

const _: () = assert!(SCAN_ROWS.is_multiple_of(32), "parts of the head begin with a whole word of the mask");
