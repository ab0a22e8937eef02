//! Logits where a grammar allows only some tokens: of few, only their rows of the head are read; of many, all logits
//! are computed and those of the others are struck out.

use super::allowed::AllowedTokens;
use super::logits::RescoreBuffers;
use crate::engine::model::timings::TimedPart;
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
