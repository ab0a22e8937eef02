//! From a hidden vector to logits: through the whole head, or through a screen.
//!
//! Where the screen cannot be trusted with a token the whole head is read; now and then it is read all the same, to
//! count how often the screen was wrong. After one miss it is used no more.

use super::shortlist::{MAX_RESCORED_ROWS, Shortlist};
use crate::engine::model::timings::TimedPart;
use crate::engine::model::{Model, State};
use crate::engine::ops;
use crate::engine::thread_pool::MatrixMut;
use std::ops::Range;

/// Tokens of an answer that needed the whole head one after the other, after which the screen is not asked any more for
/// this answer: its logits are too flat.
const MAX_FULL_SCANS_IN_A_ROW: u32 = 4;
/// Tokens after which the screen is compared with the whole head.
const VERIFY_EVERY: u64 = 512;
/// Rows that are read at a time where the whole head is, but must not come to stay in memory.
pub(in crate::engine::model) const SCAN_ROWS: usize = 1024;
/// Rows that are read by themselves at a time.
const ROWS_PER_READ: usize = 32;
/// Rows that one thread reads at least: about ten microseconds of work.
const MIN_ROWS_PER_THREAD: usize = 8;

/// What screening did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShortlistStats {
    /// Tokens that were chosen through the screen.
    pub tokens: u64,
    /// Rows of the head that were read for them.
    pub rows: u64,
    /// Rows that were read in their fine codes.
    pub fine: u64,
    /// Times that the whole head was read because the screen could not be trusted.
    pub scans: u64,
    /// Times that it was read to check the screen.
    pub checks: u64,
    /// Checks that found another best token.
    pub misses: u64,
}

/// Where rows of the head are read to by themselves, and what their logits are; made once.
#[derive(Debug, Default)]
pub(in crate::engine::model) struct RescoreBuffers {
    pub logits: Vec<f32>, // [MOST_ROWS], of rows that may be the best
    rows: Vec<u8>,        // [READ_TOGETHER, row_bytes]
}

impl RescoreBuffers {
    /// For rows of so many bytes.
    pub fn new(row_bytes: usize) -> Self {
        RescoreBuffers { logits: vec![0.0; MAX_RESCORED_ROWS], rows: vec![0; ROWS_PER_READ * row_bytes] }
    }
}

impl Model {
    /// Logits behind row `row` of the last pass: `[vocab]`, all exact.
    pub fn logits<'s>(&self, row: usize, state: &'s mut State) -> &'s mut [f32] {
        self.final_norm(row, state);
        self.full_head(&state.final_hidden, &mut state.logits);
        state.stopwatch.lap(TimedPart::Head, &self.pool);
        &mut state.logits
    }

    /// The same for choosing a token: those within `reach` of the best are exact, of the others
    /// what the screen says. Without a screen all are exact.
    ///
    /// `lowered`: `[vocab]`, tokens whose logit may be made less before one is chosen; how far is not known here, so
    /// that the best of the others is what counts.
    pub fn sampling_logits<'s>(
        &self,
        row: usize,
        state: &'s mut State,
        reach: f32,
        lowered: Option<&[bool]>,
    ) -> &'s mut [f32] {
        let screen = self.weights.shortlist.as_ref().filter(|_| state.shortlist_stats.misses == 0);
        let Some(screen) = screen.filter(|_| state.full_scans_in_a_row < MAX_FULL_SCANS_IN_A_ROW) else {
            state.shortlist_stats.scans += u64::from(self.weights.shortlist.is_some());
            return self.logits(row, state);
        };
        self.final_norm(row, state);
        if self.shortlist_logits(screen, state, reach, lowered) {
            state.shortlist_stats.tokens += 1;
            state.full_scans_in_a_row = 0;
            if state.shortlist_stats.tokens.is_multiple_of(VERIFY_EVERY) && !self.verify_shortlist(state) {
                self.full_head(&state.final_hidden, &mut state.logits);
            }
        } else {
            state.shortlist_stats.scans += 1;
            state.full_scans_in_a_row += 1;
            self.full_head(&state.final_hidden, &mut state.logits);
        }
        state.stopwatch.lap(TimedPart::Head, &self.pool);
        &mut state.logits
    }

    /// Bytes that each token read, with what `counts` says was read of a screened head itself.
    pub fn bytes_read_per_token(&self, counts: Option<ShortlistStats>) -> usize {
        let ShortlistStats { tokens, rows, fine, scans, checks, .. } = counts.unwrap_or_default();
        let whole = (scans + checks) * self.shape.vocab as u64;
        let of_head = (rows + whole) as usize * self.weights.head().row_bytes();
        let of_screen = fine as usize * self.weights.shortlist.as_ref().map_or(0, Shortlist::fine_row_bytes);
        self.bytes_per_token() + (of_head + of_screen) / (tokens + scans).max(1) as usize
    }

    fn final_norm(&self, row: usize, state: &mut State) {
        state.stopwatch.start(&self.pool);
        let dim = self.shape.dim;
        let x = &state.residual[row * dim..(row + 1) * dim];
        ops::rms_norm(&mut state.final_hidden, x, &self.weights.output_norm, self.shape.epsilon);
        state.stopwatch.lap(TimedPart::Between, &self.pool);
    }

    /// Every row of the head times `x`.
    fn full_head(&self, x: &[f32], logits: &mut [f32]) {
        let part = if self.weights.head().is_read_by_row() { SCAN_ROWS } else { logits.len() };
        for (index, logits) in logits.chunks_mut(part).enumerate() {
            self.head_chunk(x, index * part, logits);
        }
    }

    /// Rows of the head from `first` on times `x`.
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

    /// The head's own logits of at most [`MOST_ROWS`] rows.
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

    /// Whether the best token is the best one of the whole head; counts where it is not.
    fn verify_shortlist(&self, state: &mut State) -> bool {
        let State { final_hidden: last, logits, rescore: exact, shortlist_stats: screening, .. } = state;
        let mut best = (0, f32::NEG_INFINITY);
        for first in (0..self.shape.vocab).step_by(SCAN_ROWS) {
            let part = &mut exact.logits[..SCAN_ROWS.min(self.shape.vocab - first)];
            self.head_chunk(last, first, part);
            let at = ops::argmax(part, None);
            if part[at] > best.1 {
                best = (first + at, part[at]);
            }
        }
        let agrees = ops::argmax(logits, None) == best.0;
        screening.checks += 1;
        screening.misses += u64::from(!agrees);
        agrees
    }
}
