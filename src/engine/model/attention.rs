//! Attention over the KV cache.
//!
//! Tokens of a pass that belong to one sequence are computed together, some hundred positions at a time, so that the keys
//! and values of these are read from memory once for all of the tokens. Otherwise each token of a long prompt would read
//! the whole cache, which takes longer than its share of the weights.
//!
//! What is computed for a token does not depend, to the bit, on the tokens that are computed with it.

use super::forward::{MIN_SHARED_WORK, chunks};
use super::state::{KV_BLOCK, KvCache, Sequence, State, TokenRow};
use super::{Model, Shape, fused_rows};
use crate::engine::kernels::prefetch;
use crate::engine::quant::RowFormat;
use std::ops::Range;

/// Positions of a sequence that are processed at a time: their keys and values of one head stay in the L2 cache.
const POSITIONS: usize = 256;
const _: () = assert!(POSITIONS.is_multiple_of(KV_BLOCK));
/// Bytes of values that are prefetched before the keys are read.
const VALUES_PREFETCH_BYTES: usize = 2048;
/// The most query heads that share one pass over their keys and values.
const MAX_HEADS_AT_ONCE: usize = 4;
/// The most tokens that are computed together. With eight, most of the time is that of computing.
const MAX_ROWS_AT_ONCE: usize = 8;

/// Of a query head after some positions: the largest score, and the sum of the weights relative to it.
type SoftmaxState = (f32, f32);

/// The keys and values of one layer.
#[derive(Clone, Copy)]
struct LayerKeys<'a> {
    layer: usize,
    cache: &'a KvCache,
    sequences: &'a [Sequence],
}

/// Query heads that share keys and values.
#[derive(Clone, Copy)]
struct HeadGroup {
    kv_head: usize,
    /// The first of their numbers in a row of queries.
    first: usize,
    /// How many numbers they are.
    width: usize,
}

impl Model {
    /// Attention of the first `n` rows of the pass, each over its own sequence up to its position.
    pub(super) fn attend_rows(&self, layer: usize, n: usize, state: &mut State) {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let all_heads = heads * head_dim;
        let State { cache, sequences, rows, attn_or_ffn, .. } = state;
        let (keys, rows) = (LayerKeys { layer, cache, sequences }, &rows[..n]);
        let (queries, attn_out) = attn_or_ffn.split_at_mut(n * all_heads);
        let (queries, attn_out) = (&*queries, &mut attn_out[..n * all_heads]);
        let together = self.heads_at_once(cache.format, n);
        let (groups, width) = (heads / together, together * head_dim);
        let kv_head = |group: usize| group * together * kv_heads / heads;
        let positions: usize = rows.iter().map(|row| row.position + 1).sum();
        // Products of floats that read two rows each: an eighth of a ternary matrix's pace.
        let is_small = all_heads * positions < MIN_SHARED_WORK / 8;
        let at_once = self.rows_at_once(rows);
        if at_once == 1 {
            let grain = if is_small { groups * n } else { 1 };
            self.pool.for_each_chunk(attn_out, width, grain, |index, out| {
                let (row, group) = (index / groups, index % groups);
                let group = HeadGroup { kv_head: kv_head(group), first: 0, width };
                self.attend(&rows[row..=row], &queries[index * width..][..width], keys, group, out);
            });
            return;
        }
        let grain = all_heads * if is_small { n } else { at_once };
        self.pool.for_each_stripe(attn_out, n * all_heads, grain, |mut stripe| {
            let first = stripe.cols().start / all_heads;
            for (first, out) in (first..).step_by(at_once).zip(stripe.row(0).chunks_mut(at_once * all_heads))
            {
                let (mut first, mut out) = (first, out);
                let part = &rows[first..first + out.len() / all_heads];
                for run in part.chunk_by(|a, b| a.sequence == b.sequence) {
                    let (of_run, rest) = out.split_at_mut(run.len() * all_heads);
                    let queries = &queries[first * all_heads..][..of_run.len()];
                    for group in 0..groups {
                        let group = HeadGroup { kv_head: kv_head(group), first: group * width, width };
                        self.attend(run, queries, keys, group, of_run);
                    }
                    (first, out) = (first + run.len(), rest);
                }
            }
        });
    }

    /// How many rows are computed in one part of the work; one where no neighbours are of the same sequence.
    fn rows_at_once(&self, rows: &[TokenRow]) -> usize {
        if rows.windows(2).all(|pair| pair[0].sequence != pair[1].sequence) {
            return 1;
        }
        // As many parts for each thread.
        let parts = rows.len().div_ceil(MAX_ROWS_AT_ONCE).next_multiple_of(self.pool.active());
        rows.len().div_ceil(parts)
    }

    /// How many query heads that share keys and values are computed in one pass over these; fewer where there would
    /// not be enough parts for the threads. No result depends on it.
    fn heads_at_once(&self, cache: RowFormat, n: usize) -> usize {
        let Shape { heads, kv_heads, .. } = self.shape;
        let fits = |together: &usize| (heads / kv_heads).is_multiple_of(*together);
        let is_enough = |together: &usize| n * heads / together >= 2 * self.pool.active();
        if !self.kernels.has_batch_kernels(cache) {
            return 1;
        }
        (1..=MAX_HEADS_AT_ONCE).rev().filter(fits).find(is_enough).unwrap_or(1)
    }

    /// Attention of some heads of rows of one sequence, in one pass over the cache: the output is rescaled whenever a larger
    /// score turns up, so that no row of scores is stored.
    /// Source of the method: online softmax (Milakov and Gimelshein, arXiv 1805.02867).
    fn attend(
        &self,
        rows: &[TokenRow],
        queries: &[f32], // [rows, heads, head_dim]
        keys: LayerKeys<'_>,
        group: HeadGroup,
        out: &mut [f32], // [rows, heads, head_dim]
    ) {
        let stride = queries.len() / rows.len();
        let columns = group.first..group.first + group.width;
        let mut sums = [[(f32::NEG_INFINITY, 0.0); MAX_HEADS_AT_ONCE]; MAX_ROWS_AT_ONCE];
        let longest = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        let keys = SequenceKeys {
            cache: keys.cache,
            layer: keys.layer,
            head: group.kv_head,
            blocks: &keys.sequences[rows[0].sequence].blocks,
        };
        out.chunks_exact_mut(stride).for_each(|out| out[columns.clone()].fill(0.0));
        for positions in chunks(0..longest, POSITIONS) {
            let each = queries.chunks_exact(stride).zip(out.chunks_exact_mut(stride));
            for ((row, sums), (queries, out)) in rows.iter().zip(&mut sums).zip(each) {
                let positions = positions.start..positions.end.min(row.position + 1);
                if !positions.is_empty() {
                    let (queries, out) = (&queries[columns.clone()], &mut out[columns.clone()]);
                    self.attend_to_positions(queries, &keys, positions, sums, out);
                }
            }
        }
        for (out, sums) in out.chunks_exact_mut(stride).zip(sums) {
            for (out, (_, total)) in out[columns.clone()].chunks_exact_mut(self.shape.head_dim).zip(sums) {
                out.iter_mut().for_each(|x| *x /= total);
            }
        }
    }

    /// Adds the values at some positions, weighted by their scores.
    fn attend_to_positions(
        &self,
        queries: &[f32], // [heads, head_dim]
        keys: &SequenceKeys<'_>,
        positions: Range<usize>,
        sums: &mut [SoftmaxState; MAX_HEADS_AT_ONCE],
        out: &mut [f32], // [heads, head_dim]
    ) {
        let head_dim = self.shape.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut scores = [0.0f32; MAX_HEADS_AT_ONCE * POSITIONS];
        let count = positions.len();
        let scores = &mut scores[..queries.len() / head_dim * count];
        self.attention_scores(queries, keys, positions.clone(), scores);
        let each = scores.chunks_exact_mut(count).zip(out.chunks_exact_mut(head_dim));
        for ((scores, out), (max_before, total)) in each.zip(sums) {
            let softmax =
                fused_rows::OnlineSoftmax { scores, scale, max_before: *max_before, total: *total, out };
            (*max_before, *total) = self.kernels.with_simd(softmax);
        }
        self.add_weighted_values(scores, keys, positions, out);
    }

    /// The products of queries, `[heads, head_dim]`, and the keys at `positions`: `[heads, positions.len()]`.
    fn attention_scores(
        &self,
        queries: &[f32],
        keys: &SequenceKeys<'_>,
        positions: Range<usize>,
        scores: &mut [f32],
    ) {
        let (format, head_dim) = (keys.cache.format, self.shape.head_dim);
        if let Some((keys, values)) = keys.one_piece(&positions) {
            // They are read after the keys, and have arrived by then.
            prefetch(&values[..values.len().min(VALUES_PREFETCH_BYTES)]);
            self.kernels.dot_batch(format, keys, queries, head_dim, scores);
            return;
        }
        let mut piece_scores = [0.0f32; MAX_HEADS_AT_ONCE * POSITIONS];
        for piece in keys.pieces(positions.clone()) {
            let (first, len) = (piece.positions.start - positions.start, piece.positions.len());
            let of_piece = &mut piece_scores[..scores.len() / positions.len() * len];
            self.kernels.dot_batch(format, piece.keys, queries, head_dim, of_piece);
            for (from, to) in of_piece.chunks_exact(len).zip(scores.chunks_exact_mut(positions.len())) {
                to[first..first + len].copy_from_slice(from);
            }
        }
    }

    /// Adds the values at `positions`, each multiplied by its weight, `[heads, positions.len()]`, to `out`.
    fn add_weighted_values(
        &self,
        weights: &[f32],
        keys: &SequenceKeys<'_>,
        positions: Range<usize>,
        out: &mut [f32], // [heads, head_dim]
    ) {
        let (format, head_dim) = (keys.cache.format, self.shape.head_dim);
        if let Some((_, values)) = keys.one_piece(&positions) {
            self.kernels.weighted_sum_batch(format, values, weights, head_dim, out);
            return;
        }
        let mut piece_weights = [0.0f32; MAX_HEADS_AT_ONCE * POSITIONS];
        for piece in keys.pieces(positions.clone()) {
            let (first, len) = (piece.positions.start - positions.start, piece.positions.len());
            let of_piece = &mut piece_weights[..weights.len() / positions.len() * len];
            for (to, from) in of_piece.chunks_exact_mut(len).zip(weights.chunks_exact(positions.len())) {
                to.copy_from_slice(&from[first..first + len]);
            }
            self.kernels.weighted_sum_batch(format, piece.values, of_piece, head_dim, out);
        }
    }
}

/// The keys and values of one head of a sequence.
struct SequenceKeys<'a> {
    cache: &'a KvCache,
    layer: usize,
    head: usize,
    blocks: &'a [u32],
}

/// Positions of a sequence that follow each other in the cache too.
struct Piece<'a> {
    positions: Range<usize>,
    keys: &'a [u8],   // [positions.len(), head_dim]
    values: &'a [u8], // the same
}

impl<'a> SequenceKeys<'a> {
    /// The pieces of `positions`, of which the first begins a block.
    fn pieces(&self, positions: Range<usize>) -> impl Iterator<Item = Piece<'a>> {
        let &SequenceKeys { cache, layer, head, blocks } = self;
        let mut next = positions.start;
        std::iter::from_fn(move || {
            let first = blocks[(next < positions.end).then_some(next / KV_BLOCK)?];
            let blocks = &blocks[next / KV_BLOCK..positions.end.div_ceil(KV_BLOCK)];
            let adjacent = (first..).zip(blocks).take_while(|(wanted, block)| wanted == *block).count();
            let end = positions.end.min(next + adjacent * KV_BLOCK);
            let row = first as usize * KV_BLOCK;
            let (keys, values) = cache.rows(layer, head, row..row + end - next);
            Some(Piece { positions: std::mem::replace(&mut next, end)..end, keys, values })
        })
    }

    /// The keys and values at `positions`, if they are one piece.
    fn one_piece(&self, positions: &Range<usize>) -> Option<(&'a [u8], &'a [u8])> {
        let Piece { positions: found, keys, values } = self.pieces(positions.clone()).next()?;
        (found.end == positions.end).then_some((keys, values))
    }
}
