//! The search for the best rows: all rows are estimated from coarse codes, some are refined with fine codes, and a
//! few are read exactly.
//!
//! It gives up with `None`, and the whole head is read, when rows turn out to be further off than seven standard
//! deviations, or than five and a half where many were read, or when there are too many of them.

use super::format::PART_ROWS;
use super::{GROUP_ROWS, Shortlist, group_count};
use crate::engine::kernels::{WithSimd, prefetch, prefetch_first_line};
use crate::engine::model::lm_head::logits::{HeadRead, LogitsRequest, RescoreBuffers};
use crate::engine::model::{MAX_LOGITS, Model, State};
use crate::engine::ops::{self, QuantizedRow};
use crate::engine::quant::{RowBound, TWO_BIT_MAX_Q, packed_row};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Standard deviations that an estimated logit may be off.
const SIGMAS: f32 = 7.0;
/// Standard deviations that the rows which were read may turn out to be off. Among as many normal numbers as are
/// ever read, [`MAX_FINE_ROWS`], one exceeds this once in 600 times.
const CHECK_SIGMAS: f32 = 5.5;
/// The most rows whose fine codes are read for one token; for more, the whole head is read.
pub(in crate::engine::model) const MAX_FINE_ROWS: usize = 32_768;
/// The most rows of the head that are read exactly for one token.
pub(in crate::engine::model) const MAX_RESCORED_ROWS: usize = 2048;
/// Integer sums of one kernel call.
const TILE_SUMS: usize = 2048;
/// Rows that are multiplied by one query after the other, where there are several: they stay in the L2 cache.
const SHARED_ROWS: usize = 256;
/// The fewest groups that one thread tests, and rows of fine codes that it reads: about ten microseconds of work.
const MIN_GROUPS_PER_THREAD: usize = 256;
const MIN_FINE_PER_THREAD: usize = 64;
/// Groups whose rows' bounds are prefetched at the same time.
const GROUPS_IN_FLIGHT: usize = 16;
/// Rows of fine codes that are prefetched ahead, and rows whose bounds are, because they lie apart.
const FINE_PREFETCH: usize = 8;
const BOUNDS_PREFETCH: usize = 16;

/// The hidden vector, quantised for the shortlist, without its codes.
#[derive(Clone, Copy)]
pub(in crate::engine::model) struct Query {
    /// Its place among the codes of all queries.
    place: usize,
    quantized: QuantizedRow,
    /// What the two largest columns may add for each unit of a row's peak error. They are counted at their worst,
    /// because a hidden vector may consist of little else.
    top_two: f32,
    /// The standard deviation of what the other columns add for each unit of a row's error, and of its length.
    sigma: [f32; 2],
}

impl Query {
    /// `x`: the hidden vector, each number multiplied by the magnitude of its column; `q`: the buffer for its
    /// codes, the `place`th.
    fn new(x: &[f32], q: &mut [i8], place: usize) -> Self {
        let quantized = ops::quantize_within(TWO_BIT_MAX_Q, x, q);
        let mut strongest = [0.0f32; 2];
        let mut squares = 0.0;
        for x in x.iter().map(|x| x.abs()) {
            squares += x * x;
            strongest =
                if x > strongest[0] { [x, strongest[0]] } else { [strongest[0], strongest[1].max(x)] };
        }
        let others = (squares - strongest.iter().map(|x| x * x).sum::<f32>()).max(0.0).sqrt();
        let error =
            x.iter().zip(&*q).map(|(x, q)| x - f32::from(*q) / quantized.scale).map(|e| e * e).sum::<f32>();
        // A sum of products with random signs is as large as one of them times the root of their number.
        let root = (x.len() as f32).sqrt();
        let sigma = [others / root, error.sqrt() / root];
        Query { place, quantized, top_two: strongest.iter().sum(), sigma }
    }

    /// How far a row's logit may be off by its coarse codes, or by its fine ones, at so many standard deviations.
    fn error_bound(&self, row: &RowBound, deviations: f32) -> f32 {
        row.peak * self.top_two + deviations * (row.error * self.sigma[0] + row.length * self.sigma[1])
    }

    /// The logit that a row's codes give, or the correction that its fine codes give; `dot`: the sum of products of
    /// codes minus one.
    fn logit(&self, dot: i32, scale: f32) -> f32 {
        (2 * dot - self.quantized.sum) as f32 * (scale / self.quantized.scale)
    }
}

/// The estimate from both codes of a row.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::engine::model) struct Candidate {
    logit: f32,
    /// The largest value that the exact logit may have.
    upper_bound: f32,
}

/// Tests which logits of a group reach the threshold with `slack` added: one bit for each, the first the lowest.
struct ReachMask<'a> {
    logits: &'a [f32], // [GROUP_ROWS] at most
    slack: f32,
    threshold: f32,
}

impl WithSimd for ReachMask<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let Self { logits, slack, threshold } = self;
        let bit = |(at, logit): (usize, &f32)| u64::from(logit + slack >= threshold) << at;
        logits.iter().enumerate().map(bit).fold(0, |all, bit| all | bit)
    }
}

/// The positions of the bits of a word that are set, the lowest first.
fn set_bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(at)
    })
}

/// One search for the best rows.
struct Rerank<'a> {
    model: &'a Model,
    shortlist: &'a Shortlist,
    query: &'a Query,
    /// The codes of the query: `[dim]`, padded to whole blocks.
    q: &'a [i8],
    /// The hidden vector.
    x: &'a [f32],
    logit_reach: f32,
    penalised: Option<&'a [bool]>,
}

/// The buffers of a search; allocated once.
#[derive(Debug, Default)]
pub(in crate::engine::model) struct ShortlistScratch {
    tops: Vec<f32>,             // [groups], the largest logit of each
    masks: Vec<u64>, // [groups] up to a multiple of [`GROUPS_IN_FLIGHT`], one bit for each row that may be the best
    rows: Vec<u32>,  // [MAX_FINE_ROWS] at most: those rows, then those of them that still may be
    candidates: Vec<Candidate>, // [MAX_FINE_ROWS] at most: the estimates of those rows
}

impl ShortlistScratch {
    /// Buffers for a vocabulary of `vocab`.
    pub fn new(vocab: usize) -> Self {
        ShortlistScratch {
            tops: vec![0.0; group_count(vocab)],
            masks: vec![0; group_count(vocab).next_multiple_of(GROUPS_IN_FLIGHT)],
            rows: Vec::with_capacity(MAX_FINE_ROWS),
            candidates: Vec::with_capacity(MAX_FINE_ROWS),
        }
    }
}

impl Model {
    /// Estimates all logits of the requests for the shortlist from the coarse codes, which are read once for all of them.
    /// The query of each such request.
    pub(in crate::engine::model) fn score_coarse(
        &self,
        shortlist: &Shortlist,
        reads: &[HeadRead],
        state: &mut State,
    ) -> [Option<Query>; MAX_LOGITS] {
        let (dim, vocab, width) = (self.shape.dim, self.shape.vocab, packed_row(self.shape.dim) * 4);
        let State { final_hidden, scaled_hidden, logits, quantized, .. } = state;
        let mut queries = [None; MAX_LOGITS];
        let listed = (0..reads.len()).filter(|index| reads[*index] == HeadRead::Shortlist);
        for (place, index) in listed.enumerate() {
            let x = &final_hidden[index * dim..(index + 1) * dim];
            let scaled = scaled_hidden.iter_mut().zip(x.iter().zip(&shortlist.columns));
            scaled.for_each(|(to, (x, size))| *to = x * size);
            let q = &mut quantized.q[place * width..(place + 1) * width];
            queries[index] = Some(Query::new(scaled_hidden, q, place));
        }
        let queries_of = &queries[..reads.len()];
        let mut sums = [0; MAX_LOGITS];
        queries_of.iter().flatten().for_each(|query| sums[query.place] = query.quantized.sum);
        let count = queries_of.iter().flatten().count();
        let (codes, sums) = (&quantized.q[..count * width], &sums[..count]);
        let tile = if count == 1 { TILE_SUMS } else { SHARED_ROWS.min(TILE_SUMS / count) };
        let logits = &mut logits[..reads.len() * vocab];
        self.pool.for_each_stripe(logits, vocab, self.grain(vocab, count * dim), |mut stripe| {
            let mut dots = [0i32; TILE_SUMS];
            let Range { start: first, end } = stripe.cols();
            let mut start = first;
            while start < end {
                let rows = start..(start + tile).min(end).min((start / PART_ROWS + 1) * PART_ROWS);
                let dots = &mut dots[..count * rows.len()];
                self.kernels.two_bit_gemm(shortlist.coarse_rows(rows.clone()), codes, sums, dots);
                for (index, query) in queries_of.iter().enumerate() {
                    let Some(query) = query else { continue };
                    let dots = &dots[query.place * rows.len()..(query.place + 1) * rows.len()];
                    let these = &mut stripe.row(index)[rows.start - first..rows.end - first];
                    let scales = &shortlist.scales[rows.clone()];
                    for ((logit, dot), scale) in these.iter_mut().zip(dots).zip(scales) {
                        *logit = query.logit(*dot, *scale);
                    }
                }
                start = rows.end;
            }
        });
        queries
    }

    /// Turns the estimates of request `index` into its logits; `false` where the shortlist cannot be trusted with this
    /// token. Of tokens that are not allowed the logits become negative infinity.
    pub(in crate::engine::model) fn shortlist_logits(
        &self,
        shortlist: &Shortlist,
        index: usize,
        query: &Query,
        request: &LogitsRequest<'_>,
        state: &mut State,
    ) -> bool {
        let (dim, vocab, width) = (self.shape.dim, self.shape.vocab, packed_row(self.shape.dim) * 4);
        let State {
            final_hidden,
            logits,
            scratch: buffer,
            quantized,
            rescore: exact,
            shortlist_stats: stats,
            ..
        } = state;
        let logits = &mut logits[index * vocab..(index + 1) * vocab];
        if let Some(allowed) = request.allowed {
            allowed.apply(0, logits);
        }
        let search = Rerank {
            model: self,
            shortlist,
            query,
            q: &quantized.q[query.place * width..(query.place + 1) * width],
            x: &final_hidden[index * dim..(index + 1) * dim],
            logit_reach: request.reach.unwrap_or_default(),
            penalised: request.penalised,
        };
        search.find_tops(logits, &mut buffer.tops);
        buffer.rows.clear();
        let refined = search.score_fine(logits, buffer, exact);
        stats.fine += buffer.rows.len() as u64;
        let settled = refined.and_then(|bar| search.rescore(bar, logits, buffer, exact));
        stats.rows += settled.map_or(0, |()| buffer.rows.len() as u64);
        settled.is_some()
    }
}

impl Rerank<'_> {
    /// Finds the largest logit of each group.
    fn find_tops(&self, logits: &[f32], tops: &mut [f32]) {
        self.model.pool.for_each_chunk(tops, 1, MIN_GROUPS_PER_THREAD, |group, top| {
            top[0] = ops::max(group_of(logits, group));
        });
    }

    /// Refines the logits that may matter with their fine codes and notes their rows; returns the logit that a row
    /// must reach as far as it is known.
    fn score_fine(
        &self,
        logits: &mut [f32],
        buffer: &mut ShortlistScratch,
        exact: &mut RescoreBuffers,
    ) -> Option<f32> {
        let best = match self.penalised {
            Some(_) => ops::argmax(logits, self.penalised),
            None => {
                let group = ops::argmax(&buffer.tops, None);
                group * GROUP_ROWS + ops::argmax(group_of(logits, group), None)
            }
        };
        let bar = self.threshold(best as u32, exact)?;
        self.collect_candidates(logits, bar, buffer)?;
        let ShortlistScratch { rows, candidates, .. } = buffer;
        // The row that set the threshold reaches it, unless it is further off than allowed.
        rows.binary_search(&(best as u32)).ok()?;
        candidates.clear();
        candidates.resize(rows.len(), Candidate::default());
        let is_trusted = self.read_fine_codes(logits, rows, candidates);
        rows.iter().zip(candidates).for_each(|(row, candidate)| logits[*row as usize] = candidate.logit);
        is_trusted.then_some(bar)
    }

    /// Replaces the logits that still may matter by exact ones; `buffer.rows` keeps their rows.
    fn rescore(
        &self,
        bar: f32,
        logits: &mut [f32],
        buffer: &mut ShortlistScratch,
        exact: &mut RescoreBuffers,
    ) -> Option<()> {
        let ShortlistScratch { rows, candidates, .. } = buffer;
        let is_free = |row: u32| !self.penalised.is_some_and(|penalised| penalised[row as usize]);
        let of_rows = rows.iter().copied().zip(&*candidates).filter(|(row, _)| is_free(*row));
        let better = |best: (u32, f32), row: (u32, f32)| if row.1 > best.1 { row } else { best };
        let (best, _) = of_rows.map(|(row, candidate)| (row, candidate.logit)).reduce(better)?;
        let bar = bar.max(self.threshold(best, exact)?);
        let mut most = candidates.iter().map(|candidate| candidate.upper_bound);
        rows.retain(|_| most.next().is_some_and(|most| most >= bar));
        rows.binary_search(&best).ok()?;
        if rows.len() > MAX_RESCORED_ROWS {
            return None;
        }
        self.model.rescore_rows(rows, self.x, exact);
        let mut is_trusted = true;
        for (row, exact) in rows.iter().zip(&exact.logits) {
            let logit = &mut logits[*row as usize];
            is_trusted &= (*exact - *logit).abs() <= self.fine_error_bound(*row as usize, CHECK_SIGMAS);
            *logit = *exact;
        }
        is_trusted.then_some(())
    }

    /// The logit that a row must reach if `row` is the best.
    fn threshold(&self, row: u32, exact: &mut RescoreBuffers) -> Option<f32> {
        self.model.rescore_rows(&[row], self.x, exact);
        Some(exact.logits[0] - self.logit_reach).filter(|bar| bar.is_finite())
    }

    /// Collects the rows that may reach the threshold by their coarse codes.
    fn collect_candidates(&self, logits: &[f32], bar: f32, buffer: &mut ShortlistScratch) -> Option<()> {
        let ShortlistScratch { tops, masks, rows, .. } = buffer;
        // Bounds of rows that a group's bound lets through are prefetched; after the last group of a chunk the
        // first have arrived.
        self.model.pool.for_each_chunk(
            masks,
            GROUPS_IN_FLIGHT,
            MIN_GROUPS_PER_THREAD / GROUPS_IN_FLIGHT,
            |index, masks| {
                let groups = (index * GROUPS_IN_FLIGHT..)
                    .zip(masks.iter_mut())
                    .take(tops.len() - index * GROUPS_IN_FLIGHT);
                groups.for_each(|(group, mask)| *mask = self.group_candidates(logits, tops, group, bar));
                let groups = (index * GROUPS_IN_FLIGHT..).zip(masks);
                groups.for_each(|(group, mask)| *mask = self.row_candidates(*mask, logits, group, bar));
            },
        );
        for (group, mask) in masks.iter().enumerate() {
            (rows.len() + mask.count_ones() as usize <= MAX_FINE_ROWS).then_some(())?;
            rows.extend(set_bits(*mask).map(|at| (group * GROUP_ROWS + at) as u32));
        }
        Some(())
    }

    /// Which rows of a group may reach the threshold if all were as far off as any of them may be; prefetches their
    /// bounds.
    fn group_candidates(&self, logits: &[f32], tops: &[f32], group: usize, bar: f32) -> u64 {
        let doubt = self.query.error_bound(&self.shortlist.groups[group], SIGMAS);
        if tops[group] + doubt < bar {
            return 0;
        }
        let mask = self.model.kernels.with_simd(ReachMask {
            logits: group_of(logits, group),
            slack: doubt,
            threshold: bar,
        });
        let bounds = group_of(&self.shortlist.coarse, group);
        set_bits(mask).for_each(|at| prefetch_first_line(&bounds[at]));
        mask
    }

    /// Which of these rows of a group may reach the threshold by their own bounds; prefetches their fine bounds.
    fn row_candidates(&self, mask: u64, logits: &[f32], group: usize, bar: f32) -> u64 {
        set_bits(mask).fold(0, |mask, at| {
            let row = group * GROUP_ROWS + at;
            let may_reach = logits[row] + self.query.error_bound(&self.shortlist.coarse[row], SIGMAS) >= bar;
            if may_reach {
                prefetch_first_line(&self.shortlist.fine[row]);
            }
            mask | u64::from(may_reach) << at
        })
    }

    /// Estimates these rows with their fine codes too; `false` where one is further off than allowed.
    fn read_fine_codes(&self, logits: &[f32], rows: &[u32], candidates: &mut [Candidate]) -> bool {
        let Rerank { model, shortlist, query, q, .. } = self;
        let is_trusted = AtomicBool::new(true);
        model.pool.for_each_chunk(candidates, 1, MIN_FINE_PER_THREAD, |index, candidates| {
            let row = rows[index] as usize;
            if let Some(next) = rows.get(index + FINE_PREFETCH) {
                prefetch(shortlist.fine_row(*next as usize));
            }
            if let Some(next) = rows.get(index + BOUNDS_PREFETCH) {
                prefetch_first_line(&shortlist.fine[*next as usize]);
            }
            let mut dot = [0];
            model.kernels.ternary_gemm(shortlist.fine_row(row), q, &[query.quantized.sum], &mut dot);
            let left = query.logit(dot[0], shortlist.fine[row].scale);
            let bounds = [&shortlist.coarse[row], &shortlist.fine[row]]
                .map(|row| query.error_bound(row, CHECK_SIGMAS));
            // False for NaN too.
            let is_close = left.abs() <= bounds.iter().sum();
            if !is_close {
                is_trusted.store(false, Ordering::Relaxed);
            }
            let logit = logits[row] + left;
            candidates[0] = Candidate { logit, upper_bound: logit + self.fine_error_bound(row, SIGMAS) };
        });
        is_trusted.into_inner()
    }

    /// How far a row's logit may be off by both of its codes.
    fn fine_error_bound(&self, row: usize, deviations: f32) -> f32 {
        let (coarse, fine) = (&self.shortlist.coarse[row], &self.shortlist.fine[row]);
        self.query.error_bound(fine, deviations) + deviations * coarse.length * self.query.sigma[1]
    }
}

/// The elements of one group.
fn group_of<T>(all: &[T], group: usize) -> &[T] {
    &all[group * GROUP_ROWS..((group + 1) * GROUP_ROWS).min(all.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::Kernels;

    #[test]
    fn mask_bits_mark_the_logits_that_reach_the_threshold_and_no_nan() {
        let mut logits: Vec<f32> = (0..GROUP_ROWS).map(|at| (at * 37 % 64) as f32).collect();
        logits[11] = f32::NAN;
        for (kernels, len) in
            Kernels::all().into_iter().flat_map(|table| [1, 40, GROUP_ROWS].map(|len| (table, len)))
        {
            let logits = &logits[..len];
            let mask = kernels.with_simd(ReachMask { logits, slack: 2.5, threshold: 42.5 });
            let wanted: Vec<usize> = (0..len).filter(|at| logits[*at] >= 40.0).collect();
            assert_eq!(set_bits(mask).collect::<Vec<_>>(), wanted, "{}", kernels.name());
        }
    }
}
