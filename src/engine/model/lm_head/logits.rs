//! From a hidden vector to logits: through the whole head, or through a screen.
//!
//! Where the screen cannot be trusted with a token the whole head is read; now and then it is read all the same, to
//! count how often the screen was wrong. After one miss it is used no more.

use super::shortlist::{MOST_ROWS, Screen};
use crate::engine::model::timings::Part;
use crate::engine::model::{Model, State};
use crate::engine::ops;
use crate::engine::thread_pool::none;
use std::ops::Range;

/// Tokens of an answer that needed the whole head one after the other, after which the screen is not asked any more for
/// this answer: its logits are too flat.
const GIVE_UP_AFTER: u32 = 4;
/// Tokens after which the screen is compared with the whole head.
const CHECK_EACH: u64 = 512;
/// Rows that are read at a time where the whole head is, but must not come to stay in memory.
pub(in crate::engine::model) const SCAN_ROWS: usize = 1024;
/// Rows that are read by themselves at a time.
const READ_TOGETHER: usize = 32;
/// Rows that one thread reads at least: about ten microseconds of work.
const ROWS_EACH: usize = 8;

/// What screening did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Screening {
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
pub(in crate::engine::model) struct Exact {
    pub logits: Vec<f32>, // [MOST_ROWS], of rows that may be the best
    rows: Vec<u8>,        // [READ_TOGETHER, row_bytes]
}

impl Exact {
    /// For rows of so many bytes.
    pub fn new(row_bytes: usize) -> Self {
        Exact { logits: vec![0.0; MOST_ROWS], rows: vec![0; READ_TOGETHER * row_bytes] }
    }
}

impl Model {
    /// Logits behind row `row` of the last pass: `[vocab]`, all exact.
    pub fn logits<'s>(&self, row: usize, state: &'s mut State) -> &'s mut [f32] {
        self.normalise(row, state);
        self.scan(&state.last, &mut state.logits);
        state.watch.lap(Part::Head, &self.pool);
        &mut state.logits
    }

    /// The same for choosing a token: those within `reach` of the best are exact, of the others
    /// what the screen says. Without a screen all are exact.
    ///
    /// `lowered`: `[vocab]`, tokens whose logit may be made less before one is chosen; how far is not known here, so
    /// that the best of the others is what counts.
    pub fn near_logits<'s>(
        &self,
        row: usize,
        state: &'s mut State,
        reach: f32,
        lowered: Option<&[bool]>,
    ) -> &'s mut [f32] {
        let screen = self.weights.screen.as_ref().filter(|_| state.screening.misses == 0);
        let Some(screen) = screen.filter(|_| state.scans_in_a_row < GIVE_UP_AFTER) else {
            state.screening.scans += u64::from(self.weights.screen.is_some());
            return self.logits(row, state);
        };
        self.normalise(row, state);
        if self.screen(screen, state, reach, lowered) {
            state.screening.tokens += 1;
            state.scans_in_a_row = 0;
            if state.screening.tokens.is_multiple_of(CHECK_EACH) && !self.check(state) {
                self.scan(&state.last, &mut state.logits);
            }
        } else {
            state.screening.scans += 1;
            state.scans_in_a_row += 1;
            self.scan(&state.last, &mut state.logits);
        }
        state.watch.lap(Part::Head, &self.pool);
        &mut state.logits
    }

    /// Bytes that each token read, with what `counts` says was read of a screened head itself.
    pub fn bytes_read_per_token(&self, counts: Option<Screening>) -> usize {
        let Screening { tokens, rows, fine, scans, checks, .. } = counts.unwrap_or_default();
        let whole = (scans + checks) * self.shape.vocab as u64;
        let of_head = (rows + whole) as usize * self.weights.head().row_bytes();
        let of_screen = fine as usize * self.weights.screen.as_ref().map_or(0, Screen::fine_bytes);
        self.bytes_per_token() + (of_head + of_screen) / (tokens + scans).max(1) as usize
    }

    fn normalise(&self, row: usize, state: &mut State) {
        state.watch.start(&self.pool);
        let dim = self.shape.dim;
        let x = &state.x[row * dim..(row + 1) * dim];
        ops::rmsnorm(&mut state.last, x, &self.weights.output_norm, self.shape.epsilon);
        state.watch.lap(Part::Between, &self.pool);
    }

    /// Every row of the head times `x`.
    fn scan(&self, x: &[f32], logits: &mut [f32]) {
        let part = if self.weights.head().is_sparse() { SCAN_ROWS } else { logits.len() };
        for (index, logits) in logits.chunks_mut(part).enumerate() {
            self.scan_part(x, index * part, logits);
        }
    }

    /// Rows of the head from `first` on times `x`.
    fn scan_part(&self, x: &[f32], first: usize, logits: &mut [f32]) {
        let (head, width) = (self.weights.head(), logits.len());
        self.pool.stripes(logits, width, self.grain(width, x.len()), |mut stripe| {
            let Range { start, end } = stripe.cols();
            self.kernels.dot(head.kind, head.rows(first + start..first + end), x, stripe.row(0));
        });
        if head.is_sparse() {
            head.release();
        }
    }

    /// The head's own logits of at most [`MOST_ROWS`] rows.
    pub(super) fn read_rows(&self, rows: &[u32], x: &[f32], exact: &mut Exact) {
        let (head, width) = (self.weights.head(), self.weights.head().row_bytes());
        for (rows, logits) in rows.chunks(READ_TOGETHER).zip(exact.logits.chunks_mut(READ_TOGETHER)) {
            let (logits, rooms) =
                ((&mut logits[..rows.len()], 1), (&mut exact.rows[..rows.len() * width], width));
            self.pool.rows((logits, rooms, none()), ROWS_EACH, |index, (logit, room, ..)| {
                self.kernels.dot(head.kind, head.row(rows[index] as usize, room), x, logit);
            });
        }
    }

    /// Whether the best token is the best one of the whole head; counts where it is not.
    fn check(&self, state: &mut State) -> bool {
        let State { last, logits, exact, screening, .. } = state;
        let mut best = (0, f32::NEG_INFINITY);
        for first in (0..self.shape.vocab).step_by(SCAN_ROWS) {
            let part = &mut exact.logits[..SCAN_ROWS.min(self.shape.vocab - first)];
            self.scan_part(last, first, part);
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
