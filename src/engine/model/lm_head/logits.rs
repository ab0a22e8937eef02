//! From the last hidden vector to logits: through the whole head, or through the shortlist.
//!
//! Where the shortlist cannot be trusted with a token, the whole head is read. Every 512 tokens the whole head is
//! read anyway, to verify the shortlist; after one miss the shortlist is not used any more.

use super::allowed::AllowedTokens;
use super::shortlist::Shortlist;
use crate::engine::model::timings::TimedPart;
use crate::engine::model::{MAX_LOGITS, Model, State};
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
/// Rows that are multiplied by one vector after the other, where several are wanted: they stay in the L2 cache.
const SHARED_ROWS: usize = 32;
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

/// What logits are wanted of one row of the last pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogitsRequest<'r> {
    /// The row of the pass.
    pub row: usize,
    /// The sequence that the row belongs to.
    pub sequence: usize,
    /// Logits within this distance of the best are exact, the others may be the shortlist's estimates; `None` where all
    /// are to be exact, as they are without a shortlist.
    pub reach: Option<f32>,
    /// `[vocab]`, tokens whose logit a penalty may reduce before one is chosen. By how much is not known here, so that the
    /// best of the other tokens sets the bar.
    pub penalised: Option<&'r [bool]>,
    /// The tokens that may be chosen; the logits of all others become negative infinity.
    pub allowed: Option<AllowedTokens<'r>>,
}

/// How the logits of a request are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::engine::model) enum HeadRead {
    /// Every row of the head is read.
    #[default]
    Whole,
    /// The rows of the allowed tokens are read.
    SingleRows,
    /// The shortlist chooses the rows that are read.
    Shortlist,
}

impl Model {
    /// The logits of row `row` of the last pass, which was over one sequence: `[vocab]`, all exact.
    pub fn logits<'s>(&self, row: usize, state: &'s mut State) -> &'s mut [f32] {
        self.compute_logits(&[LogitsRequest { row, ..LogitsRequest::default() }], state);
        state.logits_of(0)
    }

    /// The same for choosing a token: see [`LogitsRequest::reach`] and [`LogitsRequest::penalised`].
    pub fn sampling_logits<'s>(
        &self,
        row: usize,
        state: &'s mut State,
        reach: f32,
        penalised: Option<&[bool]>,
    ) -> &'s mut [f32] {
        let request = LogitsRequest { row, reach: Some(reach), penalised, ..LogitsRequest::default() };
        self.compute_logits(&[request], state);
        state.logits_of(0)
    }

    /// Computes the logits that are wanted, each row of the head and of the shortlist being read once for all requests.
    /// Those of request `i` are then [`State::logits_of`] `i`. They do not depend on the requests for other sequences, and
    /// of several for one sequence each gets what it would get in a call of its own after the one before.
    ///
    /// # Panics
    /// With more requests than [`State::logit_rows`].
    pub fn compute_logits(&self, requests: &[LogitsRequest<'_>], state: &mut State) {
        assert!(requests.len() <= state.logit_rows());
        state.stopwatch.start(&self.pool);
        let mut reads = [HeadRead::default(); MAX_LOGITS];
        for (index, request) in requests.iter().enumerate() {
            self.final_norm(index, request.row, state);
            reads[index] = self.head_read(request, state);
            state.full_scans_after[index] = state.sequences[request.sequence].full_scans_in_a_row;
        }
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        let reads = &mut reads[..requests.len()];
        if reads.contains(&HeadRead::Shortlist) {
            self.read_shortlist(requests, reads, state);
        }
        self.read_whole_head(reads, state);
        for (index, request) in requests.iter().enumerate() {
            match request.allowed {
                Some(allowed) if reads[index] == HeadRead::SingleRows => {
                    self.single_rows(index, allowed, state)
                }
                // The shortlist has struck the others out already.
                Some(allowed) if reads[index] == HeadRead::Whole => allowed.apply(0, state.logits_of(index)),
                _ => {}
            }
        }
        state.stopwatch.lap(TimedPart::Head, &self.pool);
    }

    /// How to compute the logits of a request.
    fn head_read(&self, request: &LogitsRequest<'_>, state: &mut State) -> HeadRead {
        if request.allowed.is_some_and(|allowed| self.is_read_by_single_rows(allowed)) {
            return HeadRead::SingleRows;
        }
        if request.reach.is_none() || self.weights.shortlist.is_none() {
            return HeadRead::Whole;
        }
        let is_tried = uses_shortlist(request, state);
        state.shortlist_stats.scans += u64::from(!is_tried);
        if is_tried { HeadRead::Shortlist } else { HeadRead::Whole }
    }

    /// Computes the logits of all requests for the shortlist; where it cannot be trusted, the whole head is to be read.
    fn read_shortlist(&self, requests: &[LogitsRequest<'_>], reads: &mut [HeadRead], state: &mut State) {
        let Some(shortlist) = &self.weights.shortlist else { return };
        let queries = self.score_coarse(shortlist, reads, state);
        for (index, request) in requests.iter().enumerate() {
            let Some(query) = &queries[index] else { continue };
            // An earlier request of this call may have shown that the shortlist is of no use.
            let is_settled = uses_shortlist(request, state)
                && self.shortlist_logits(shortlist, index, query, request, state);
            let full_scans = &mut state.sequences[request.sequence].full_scans_in_a_row;
            if is_settled {
                state.shortlist_stats.tokens += 1;
                *full_scans = 0;
                if state.shortlist_stats.tokens.is_multiple_of(VERIFY_EVERY)
                    && !self.verify_shortlist(index, state, request.allowed)
                {
                    reads[index] = HeadRead::Whole;
                }
            } else {
                state.shortlist_stats.scans += 1;
                *full_scans = (*full_scans + 1).min(MAX_FULL_SCANS_IN_A_ROW);
                reads[index] = HeadRead::Whole;
            }
            state.full_scans_after[index] = state.sequences[request.sequence].full_scans_in_a_row;
        }
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

    /// Normalises a row of the last pass for request `index`.
    fn final_norm(&self, index: usize, row: usize, state: &mut State) {
        let dim = self.shape.dim;
        let State { residual, final_hidden, .. } = state;
        let x = &residual[row * dim..(row + 1) * dim];
        let out = &mut final_hidden[index * dim..(index + 1) * dim];
        ops::rms_norm(out, x, &self.weights.output_norm, self.shape.epsilon);
    }

    /// Computes all logits of the requests for which the whole head is read.
    fn read_whole_head(&self, reads: &[HeadRead], state: &mut State) {
        let (dim, vocab, head) = (self.shape.dim, self.shape.vocab, self.weights.head());
        let State { final_hidden, logits, .. } = state;
        let is_whole = |index: &usize| reads[*index] == HeadRead::Whole;
        let count = (0..reads.len()).filter(is_whole).count();
        if head.is_read_by_row() || count <= 1 {
            // What must not stay in memory is read for one request after the other.
            let part = if head.is_read_by_row() { SCAN_ROWS } else { vocab };
            for index in (0..reads.len()).filter(is_whole) {
                let logits = &mut logits[index * vocab..(index + 1) * vocab];
                for (at, logits) in logits.chunks_mut(part).enumerate() {
                    self.head_chunk(&final_hidden[index * dim..(index + 1) * dim], at * part, logits);
                }
            }
            return;
        }
        let grain = self.grain(vocab, count * dim);
        self.pool.for_each_stripe(&mut logits[..reads.len() * vocab], vocab, grain, |mut stripe| {
            let Range { start: first, end } = stripe.cols();
            for start in (first..end).step_by(SHARED_ROWS) {
                let rows = start..(start + SHARED_ROWS).min(end);
                for index in (0..reads.len()).filter(is_whole) {
                    let out = &mut stripe.row(index)[rows.start - first..rows.end - first];
                    let x = &final_hidden[index * dim..(index + 1) * dim];
                    self.kernels.dot(head.format, head.rows(rows.clone()), x, out);
                }
            }
        });
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
    fn verify_shortlist(&self, index: usize, state: &mut State, allowed: Option<AllowedTokens<'_>>) -> bool {
        let State { final_hidden, logits, rescore: exact, shortlist_stats: stats, .. } = state;
        let (dim, vocab) = (self.shape.dim, self.shape.vocab);
        let last = &final_hidden[index * dim..(index + 1) * dim];
        let logits = &logits[index * vocab..(index + 1) * vocab];
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

/// Whether the shortlist is tried for a request.
fn uses_shortlist(request: &LogitsRequest<'_>, state: &State) -> bool {
    let scans = state.sequences[request.sequence].full_scans_in_a_row;
    state.shortlist_stats.misses == 0 && scans < MAX_FULL_SCANS_IN_A_ROW
}
