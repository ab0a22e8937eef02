//! Logits where a grammar allows only some tokens: of few, only their rows of the head are read; of many, all logits
//! are computed and those of the others are struck out.

use super::allowed::AllowedTokens;
use super::logits::RescoreBuffers;
use crate::engine::model::{Model, State};

/// The most tokens whose rows of the head are read one by one.
const MAX_SINGLE_ROWS: usize = 1024;

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
    /// Whether only the rows of these tokens are read.
    pub(super) fn is_read_by_single_rows(&self, allowed: AllowedTokens<'_>) -> bool {
        allowed.count <= MAX_SINGLE_ROWS.min(self.shape.vocab / 2)
    }

    /// Computes the logits of the allowed tokens for request `index`; those of the others are negative infinity.
    pub(super) fn single_rows(&self, index: usize, allowed: AllowedTokens<'_>, state: &mut State) {
        let (dim, vocab) = (self.shape.dim, self.shape.vocab);
        let State { final_hidden, logits, single_rows, .. } = state;
        let logits = &mut logits[index * vocab..(index + 1) * vocab];
        let SingleRows { ids, buffers } = single_rows;
        ids.clear();
        ids.extend(allowed.ids(vocab).take(MAX_SINGLE_ROWS));
        self.rescore_rows(ids, &final_hidden[index * dim..(index + 1) * dim], buffers);
        logits.fill(f32::NEG_INFINITY);
        for (id, logit) in ids.iter().zip(&buffers.logits) {
            logits[*id as usize] = *logit;
        }
    }
}
