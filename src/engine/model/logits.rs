//! From a hidden vector to logits: through the whole head, or through a screen.
//!
//! A screen is the head in four bits. It gives every row's logit roughly, and for each how far off that
//! may be; rows that may be the best, or near it, are then read from the head itself. The bound of "may be" is no
//! proof but eight standard deviations, so that it is watched: where the rows that were read are off by more than
//! six, or are too many, the whole head is read; now and then it is read all the same, to count how often the screen
//! was wrong. After one miss it is used no more.

use super::head::Screen;
use super::timings::Part;
use super::weights::RESIDENT;
use super::{Model, State};
use crate::engine::ops::{self, Quantized};
use crate::engine::quant::{Outline, packed_row};
use std::ops::Range;

/// Standard deviations that a row's rough logit may be off.
const DOUBT: f32 = 8.0;
/// Deviations that the rows which were read may show. Of 2048 normal numbers the largest is below 4.
const TRUSTED: f32 = 6.0;
/// Most rows that are read for one token; more, and the whole head is.
pub(super) const MOST_ROWS: usize = 2048;
/// Tokens of an answer that needed the whole head one after the other, after which the screen is not asked any more for
/// this answer: its logits are too flat.
const GIVE_UP_AFTER: u32 = 4;
/// Tokens after which the screen is compared with the whole head.
const CHECK_EACH: u64 = 512;
/// Rows that are read at a time where the whole head is, but must not come to stay in memory.
pub(super) const SCAN_ROWS: usize = 1024;
/// Integer sums of one call.
const TILE: usize = 2048;
/// Rows that are looked through together, and passed over together.
const GROUP: usize = 64;
/// Rows that one thread reads at least: about ten microseconds of work.
const ROWS_EACH: usize = 16;

/// What screening did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Screening {
    /// Tokens that were chosen through the screen.
    pub tokens: u64,
    /// Rows of the head that were read for them.
    pub rows: u64,
    /// Times that the whole head was read because the screen could not be trusted.
    pub scans: u64,
    /// Times that it was read to check the screen.
    pub checks: u64,
    /// Checks that found another best token.
    pub misses: u64,
}

/// The hidden vector as a screen takes it.
struct Query<'a> {
    q: &'a [i8], // [dim], padded to whole blocks
    made: Quantized,
    /// What the strongest two columns may add for each unit of a row's peak. They are taken as they may be at the
    /// worst: a hidden vector may be little else.
    strong: f32,
    /// Standard deviation of what the other columns add for each unit of a row's error, and of its length.
    spread: [f32; 2],
}

impl<'a> Query<'a> {
    /// `x`: the hidden vector, each number times the size of its column; `q`: room for its codes.
    fn new(x: &[f32], q: &'a mut [i8]) -> Self {
        let made = ops::quantize(x, q);
        let mut strongest = [0.0f32; 2];
        let mut squares = 0.0;
        for x in x.iter().map(|x| x.abs()) {
            squares += x * x;
            strongest =
                if x > strongest[0] { [x, strongest[0]] } else { [strongest[0], strongest[1].max(x)] };
        }
        let others = (squares - strongest.iter().map(|x| x * x).sum::<f32>()).max(0.0).sqrt();
        let error =
            x.iter().zip(&*q).map(|(x, q)| x - f32::from(*q) / made.scale).map(|e| e * e).sum::<f32>();
        // A sum of products of random signs is as large as one of them times the root of their number.
        let root = (x.len() as f32).sqrt();
        Query { q, made, strong: strongest.iter().sum(), spread: [others / root, error.sqrt() / root] }
    }

    /// How far a row's rough logit may be off, at so many standard deviations.
    fn doubt(&self, row: &Outline, deviations: f32) -> f32 {
        row.peak * self.strong + deviations * (row.error * self.spread[0] + row.length * self.spread[1])
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
        let Screening { tokens, rows, scans, checks, .. } = counts.unwrap_or_default();
        let whole = (scans + checks) * self.shape.vocab as u64;
        let of_head = (rows + whole) as usize * self.weights.head().row_bytes();
        self.bytes_per_token() + of_head / (tokens + scans).max(1) as usize
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

    /// Makes the logits through the screen; `false` where it cannot be trusted with this token.
    fn screen(&self, screen: &Screen, state: &mut State, reach: f32, lowered: Option<&[bool]>) -> bool {
        let State { last, screened, logits, quantized, rows, exact, screening, .. } = state;
        screened.iter_mut().zip(last.iter().zip(&screen.columns)).for_each(|(to, (x, size))| *to = x * size);
        let query = Query::new(screened, &mut quantized.q[..packed_row(last.len()) * 4]);
        self.estimate(screen, &query, logits);
        let best = largest(logits, lowered);
        self.read_rows(&[best as u32], last, exact);
        let bar = exact[0] - reach;
        if !bar.is_finite() || !collect(screen, &query, logits, bar, rows) {
            return false;
        }
        self.read_rows(rows, last, exact);
        screening.rows += rows.len() as u64;
        // The row that set the bar reaches it, unless it is further off than any may be.
        let mut is_trusted = rows.binary_search(&(best as u32)).is_ok();
        for (row, exact) in rows.iter().map(|row| *row as usize).zip(exact) {
            // Not so either where one of them is no number.
            is_trusted &= (*exact - logits[row]).abs() <= query.doubt(&screen.outlines[row], TRUSTED);
            logits[row] = *exact;
        }
        is_trusted
    }

    /// The logit of every row as its codes have it.
    fn estimate(&self, screen: &Screen, query: &Query<'_>, logits: &mut [f32]) {
        let (vocab, cols) = (self.shape.vocab, self.shape.dim);
        self.pool.stripes(logits, vocab, self.grain(vocab, cols), |mut stripe| {
            let mut dots = [0i32; TILE];
            let Range { start: first, end } = stripe.cols();
            for start in (first..end).step_by(TILE) {
                let rows = start..(start + TILE).min(end);
                let dots = &mut dots[..rows.len()];
                self.kernels.nibbles(screen.rows(rows.clone()), query.q, query.made.sum, dots);
                let logits = &mut stripe.row(0)[rows.start - first..rows.end - first];
                for ((logit, dot), row) in logits.iter_mut().zip(dots).zip(&screen.outlines[rows]) {
                    *logit = *dot as f32 * (row.scale / query.made.scale);
                }
            }
        });
    }

    /// The head's own logits of some rows, a few at a time.
    fn read_rows(&self, rows: &[u32], x: &[f32], exact: &mut [f32]) {
        let head = self.weights.head();
        for (rows, exact) in rows.chunks(RESIDENT).zip(exact.chunks_mut(RESIDENT)) {
            self.pool.pieces(&mut exact[..rows.len()], 1, ROWS_EACH, |index, exact| {
                let row = rows[index] as usize;
                self.kernels.dot(head.kind, head.rows(row..row + 1), x, exact);
            });
            head.touch(rows.len());
        }
    }

    /// Whether the best token is the best one of the whole head; counts where it is not.
    fn check(&self, state: &mut State) -> bool {
        let State { last, logits, exact, screening, .. } = state;
        let mut best = (0, f32::NEG_INFINITY);
        for first in (0..self.shape.vocab).step_by(SCAN_ROWS) {
            let part = &mut exact[..SCAN_ROWS.min(self.shape.vocab - first)];
            self.scan_part(last, first, part);
            let at = largest(part, None);
            if part[at] > best.1 {
                best = (first + at, part[at]);
            }
        }
        let agrees = largest(logits, None) == best.0;
        screening.checks += 1;
        screening.misses += u64::from(!agrees);
        agrees
    }
}

/// Notes the rows whose logit may reach `bar`; `false` where they are too many.
fn collect(screen: &Screen, query: &Query<'_>, logits: &[f32], bar: f32, rows: &mut Vec<u32>) -> bool {
    let may_reach = |logit: f32, outline: &Outline| logit + query.doubt(outline, DOUBT) >= bar;
    rows.clear();
    for (group, (logits, outlines)) in logits.chunks(GROUP).zip(screen.outlines.chunks(GROUP)).enumerate() {
        // Without a branch for each row: hardly any group has one that may.
        let any = logits.iter().zip(outlines).fold(false, |any, (logit, row)| any | may_reach(*logit, row));
        if !any {
            continue;
        }
        for (at, (logit, row)) in logits.iter().zip(outlines).enumerate() {
            if may_reach(*logit, row) {
                if rows.len() == MOST_ROWS {
                    return false;
                }
                rows.push((group * GROUP + at) as u32);
            }
        }
    }
    true
}

/// Where the largest number is that is not lowered, the first of equal ones, as the sampler has it; 0 where
/// there is none.
fn largest(x: &[f32], lowered: Option<&[bool]>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (at, x) in x.iter().enumerate() {
        if *x > best.1 && !lowered.is_some_and(|lowered| lowered[at]) {
            best = (at, *x);
        }
    }
    best.0
}
