//! From the last hidden vector to logits: through the whole head, or through the shortlist.
//!
//! Where the shortlist cannot be trusted with a token, the whole head is read. Every 512 tokens the whole head is
//! read anyway, to verify the shortlist; after one miss the shortlist is not used any more.

use super::allowed::AllowedTokens;
use super::shortlist::Shortlist;
use crate::engine::model::timings::TimedPart;
use crate::engine::model::{Model, State};
use crate::engine::ops;
use crate::engine::thread_pool::MatrixMut;
use std::ops::Range;

/// After so many tokens in a row that needed the whole head, the shortlist is not tried any more for this answer:
/// its logits are too flat.
const MAX_FULL_SCANS_IN_A_ROW: u32 = 4;
/// After so many tokens the shortlist is verified against the whole head.
const VERIFY_EVERY: u64 = 512;
/// Rows that are read at a time where the whole head is read, but must not stay in memory.
pub(in crate::engine::model) const SCAN_ROWS: usize = 1024;
const _: () =
    assert!(SCAN_ROWS.is_multiple_of(32), "parts of the head begin with a whole word of a set of tokens");
/// Single rows that are read at a time.
const ROWS_PER_READ: usize = 32;
/// The fewest rows that one thread reads: about ten microseconds of work.
const MIN_ROWS_PER_THREAD: usize = 8;

/// Counters of the shortlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShortlistStats {
    /// Tokens that were chosen through the shortlist.
    pub tokens: u64,
    /// Rows of the head that were read for them.
    pub rows: u64,
    /// Rows whose fine codes were read.
    pub fine: u64,
    /// How often the whole head was read because the shortlist could not be trusted.
    pub scans: u64,
    /// How often the whole head was read to verify the shortlist.
    pub checks: u64,
    /// Verifications that found another best token.
    pub misses: u64,
}

/// Buffers for single rows of the head and their logits; allocated once.
#[derive(Debug, Default)]
pub(in crate::engine::model) struct RescoreBuffers {
    pub logits: Vec<f32>, // [most], of rows that may be the best
    rows: Vec<u8>,        // [ROWS_PER_READ, row_bytes]
}

impl RescoreBuffers {
    /// Buffers for at most `most` rows of `row_bytes`.
    pub fn new(most: usize, row_bytes: usize) -> Self {
        RescoreBuffers { logits: vec![0.0; most], rows: vec![0; ROWS_PER_READ * row_bytes] }
    }
}

impl Model {
    /// The logits of row `row` of the last pass: `[vocab]`, all exact.
    pub fn logits<'s>(&self, row: usize, state: &'s mut State) -> &'s mut [f32] {
        self.final_norm(row, state);
        self.full_head(&state.final_hidden, &mut state.logits);
        state.stopwatch.lap(TimedPart::Head, &self.pool);
        &mut state.logits
    }

    /// The same for choosing a token: logits within `reach` of the best are exact, the others are the shortlist's
    /// estimates. Without a shortlist all are exact.
    ///
    /// `penalised`: `[vocab]`, tokens whose logit a penalty may reduce before one is chosen. By how much is not known
    /// here, so that the best of the other tokens sets the bar.
    pub fn sampling_logits<'s>(
        &self,
        row: usize,
        state: &'s mut State,
        reach: f32,
        penalised: Option<&[bool]>,
    ) -> &'s mut [f32] {
        self.shortlisted_logits(row, state, reach, penalised, None);
        &mut state.logits
    }

    /// Computes `state.logits` through the shortlist where it can be trusted. With `allowed` the others may be anything.
    pub(super) fn shortlisted_logits(
        &self,
        row: usize,
        state: &mut State,
        reach: f32,
        penalised: Option<&[bool]>,
        allowed: Option<AllowedTokens<'_>>,
    ) {
        let shortlist = self.weights.shortlist.as_ref().filter(|_| state.shortlist_stats.misses == 0);
        let Some(shortlist) = shortlist.filter(|_| state.full_scans_in_a_row < MAX_FULL_SCANS_IN_A_ROW)
        else {
            state.shortlist_stats.scans += u64::from(self.weights.shortlist.is_some());
            self.logits(row, state);
            return;
        };
        self.final_norm(row, state);
        if self.shortlist_logits(shortlist, state, reach, penalised, allowed) {
            state.shortlist_stats.tokens += 1;
            state.full_scans_in_a_row = 0;
            if state.shortlist_stats.tokens.is_multiple_of(VERIFY_EVERY)
                && !self.verify_shortlist(state, allowed)
            {
                self.full_head(&state.final_hidden, &mut state.logits);
            }
        } else {
            state.shortlist_stats.scans += 1;
            state.full_scans_in_a_row += 1;
            self.full_head(&state.final_hidden, &mut state.logits);
        }
        state.stopwatch.lap(TimedPart::Head, &self.pool);
    }

    /// Bytes that each token read, including the rows of the head that `counts` reports.
    pub fn bytes_read_per_token(&self, counts: Option<ShortlistStats>) -> usize {
        let ShortlistStats { tokens, rows, fine, scans, checks, .. } = counts.unwrap_or_default();
        let whole = (scans + checks) * self.shape.vocab as u64;
        let of_head = (rows + whole) as usize * self.weights.head().row_bytes();
        let of_shortlist =
            fine as usize * self.weights.shortlist.as_ref().map_or(0, Shortlist::fine_row_bytes);
        self.bytes_per_token() + (of_head + of_shortlist) / (tokens + scans).max(1) as usize
    }

    pub(super) fn final_norm(&self, row: usize, state: &mut State) {
        state.stopwatch.start(&self.pool);
        let dim = self.shape.dim;
        let x = &state.residual[row * dim..(row + 1) * dim];
        ops::rms_norm(&mut state.final_hidden, x, &self.weights.output_norm, self.shape.epsilon);
        state.stopwatch.lap(TimedPart::Between, &self.pool);
    }

    /// Multiplies every row of the head by `x`.
    fn full_head(&self, x: &[f32], logits: &mut [f32]) {
        let part = if self.weights.head().is_read_by_row() { SCAN_ROWS } else { logits.len() };
        for (index, logits) in logits.chunks_mut(part).enumerate() {
            self.head_chunk(x, index * part, logits);
        }
    }

    /// Multiplies the rows of the head from `first` on by `x`.
    fn head_chunk(&self, x: &[f32], first: usize, logits: &mut [f32]) {
        let (head, width) = (self.weights.head(), logits.len());
        self.pool.for_each_stripe(logits, width, self.grain(width, x.len()), |mut stripe| {
            let Range { start, end } = stripe.cols();
            self.kernels.dot(head.format, head.rows(first + start..first + end), x, stripe.row(0));
        });
        if head.is_read_by_row() {
            head.release();
        }
    }

    /// The exact logits of at most [`super::shortlist::MAX_RESCORED_ROWS`] rows.
    pub(super) fn rescore_rows(&self, rows: &[u32], x: &[f32], exact: &mut RescoreBuffers) {
        let (head, width) = (self.weights.head(), self.weights.head().row_bytes());
        for (rows, logits) in rows.chunks(ROWS_PER_READ).zip(exact.logits.chunks_mut(ROWS_PER_READ)) {
            let logits = MatrixMut::new(&mut logits[..rows.len()], 1);
            let buffers = MatrixMut::new(&mut exact.rows[..rows.len() * width], width);
            let none = MatrixMut::<()>::none();
            self.pool.for_each_row(logits, buffers, none, MIN_ROWS_PER_THREAD, |index, logit, buffer, _| {
                self.kernels.dot(head.format, head.row(rows[index] as usize, buffer), x, logit);
            });
        }
    }

    /// Whether the best token, of those that are allowed, is also the best of the whole head; a miss is counted.
    fn verify_shortlist(&self, state: &mut State, allowed: Option<AllowedTokens<'_>>) -> bool {
        let State { final_hidden: last, logits, rescore: exact, shortlist_stats: stats, .. } = state;
        let mut best = (0, f32::NEG_INFINITY);
        for first in (0..self.shape.vocab).step_by(SCAN_ROWS) {
            let part = &mut exact.logits[..SCAN_ROWS.min(self.shape.vocab - first)];
            self.head_chunk(last, first, part);
            if let Some(allowed) = allowed {
                allowed.apply(first, part);
            }
            let at = ops::argmax(part, None);
            if part[at] > best.1 {
                best = (first + at, part[at]);
            }
        }
        let agrees = ops::argmax(logits, None) == best.0;
        stats.checks += 1;
        stats.misses += u64::from(!agrees);
        agrees
    }
}
