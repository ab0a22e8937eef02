//! Attention over the KV cache.
//!
//! Tokens of a pass that belong to one sequence are computed together, some hundred positions at a time, so that the keys
//! and values of these are read from memory once for all of the tokens. Otherwise each token of a long prompt would read
//! the whole cache, which takes longer than its share of the weights.
//!
//! What is computed for a token does not depend, to the bit, on the tokens that are computed with it.

use super::forward::{MIN_SHARED_WORK, chunks};
use super::state::{KV_BLOCK, KvCache, MAX_SEQUENCES, State, TokenRow};
use super::{BATCH, Model, Shape, fused_rows};
use crate::engine::kernels::prefetch;
use crate::engine::quant::RowFormat;
use crate::engine::thread_pool::{ColumnStripe, MatrixMut};
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
/// The most tiles of a pass: whole ones, and one that is not whole for each sequence.
const MAX_TILES: usize = BATCH / MAX_ROWS_AT_ONCE + MAX_SEQUENCES;

/// Of a query head after some positions: the largest score, and the sum of the weights relative to it.
type SoftmaxState = (f32, f32);

/// Rows of a pass that are computed together: neighbours of one sequence.
#[derive(Clone, Copy, Default)]
struct Tile<'a> {
    /// The index of the first of them in the pass.
    first: usize,
    rows: &'a [TokenRow],
}

impl Model {
    /// Attention of the first `n` rows of the pass, each over its own sequence up to its position.
    pub(super) fn attend_rows(&self, layer: usize, n: usize, state: &mut State) {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let all_heads = heads * head_dim;
        let State { cache, sequences, rows, attn_or_ffn, .. } = state;
        let (cache, rows) = (&*cache, &rows[..n]);
        let (queries, attn_out) = attn_or_ffn.split_at_mut(n * all_heads);
        let width = head_dim * self.heads_at_once(cache.format, n);
        let tiles = tiles_of(rows);
        let mut left = &mut attn_out[..n * all_heads];
        let outputs = tiles.map(|tile| {
            let (of_tile, rest) = std::mem::take(&mut left).split_at_mut(tile.rows.len() * all_heads);
            left = rest;
            if tile.rows.is_empty() { MatrixMut::none() } else { MatrixMut::new(of_tile, all_heads) }
        });
        let positions: usize = rows.iter().map(|row| row.position + 1).sum();
        // Products of floats that read two rows each: an eighth of a ternary matrix's pace.
        let is_small = all_heads * positions < MIN_SHARED_WORK / 8;
        let grain = if is_small { n * all_heads } else { width };
        self.pool.for_each_stripe_of(outputs, grain, |tile, mut stripe| {
            let Tile { first, rows } = tiles[tile];
            let queries = &queries[first * all_heads..][..rows.len() * all_heads];
            for columns in chunks(stripe.cols(), width) {
                let head = columns.start / head_dim * kv_heads / heads;
                let keys = SequenceKeys { cache, layer, head, blocks: &sequences[rows[0].sequence].blocks };
                self.attend(rows, queries, columns, &keys, &mut stripe);
            }
        });
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

    /// Attention of the rows of a tile, for heads that share their keys: `columns` are those of these heads in a row of all
    /// heads, and of the stripe. There is one pass over the cache: the output is rescaled whenever a larger score turns up,
    /// so that no row of scores is stored.
    /// Source of the method: online softmax (Milakov and Gimelshein, arXiv 1805.02867).
    fn attend(
        &self,
        rows: &[TokenRow],
        queries: &[f32], // [rows, heads, head_dim]
        columns: Range<usize>,
        keys: &SequenceKeys<'_>,
        out: &mut ColumnStripe<'_, f32>,
    ) {
        let all_heads = queries.len() / rows.len();
        let of_stripe = columns.start - out.cols().start..columns.end - out.cols().start;
        let mut sums = [[(f32::NEG_INFINITY, 0.0); MAX_HEADS_AT_ONCE]; MAX_ROWS_AT_ONCE];
        let mut scores = [0.0f32; MAX_HEADS_AT_ONCE * POSITIONS];
        let longest = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        (0..rows.len()).for_each(|row| out.row(row)[of_stripe.clone()].fill(0.0));
        for positions in chunks(0..longest, POSITIONS) {
            let each = rows.iter().zip(queries.chunks_exact(all_heads)).zip(&mut sums);
            for (index, ((row, queries), sums)) in each.enumerate() {
                let positions = positions.start..positions.end.min(row.position + 1);
                if !positions.is_empty() {
                    let (queries, out) = (&queries[columns.clone()], &mut out.row(index)[of_stripe.clone()]);
                    let scores = &mut scores[..queries.len() / self.shape.head_dim * positions.len()];
                    self.attend_to_positions(queries, keys, positions, scores, sums, out);
                }
            }
        }
        for (row, sums) in sums[..rows.len()].iter().enumerate() {
            let heads = out.row(row)[of_stripe.clone()].chunks_exact_mut(self.shape.head_dim);
            for (out, (_, total)) in heads.zip(sums) {
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
        scores: &mut [f32], // [heads, positions.len()], overwritten
        sums: &mut [SoftmaxState; MAX_HEADS_AT_ONCE],
        out: &mut [f32], // [heads, head_dim]
    ) {
        let head_dim = self.shape.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        self.attention_scores(queries, keys, positions.clone(), scores);
        let each = scores.chunks_exact_mut(positions.len()).zip(out.chunks_exact_mut(head_dim));
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

/// Cuts rows into tiles of one sequence each, about equally long ones where a sequence has many rows. Unused tiles are empty.
fn tiles_of(rows: &[TokenRow]) -> [Tile<'_>; MAX_TILES] {
    let mut tiles = [Tile::default(); MAX_TILES];
    let (mut count, mut first) = (0, 0);
    for run in rows.chunk_by(|a, b| a.sequence == b.sequence) {
        let parts = run.len().div_ceil(MAX_ROWS_AT_ONCE);
        for rows in run.chunks(run.len().div_ceil(parts)) {
            tiles[count] = Tile { first, rows };
            (count, first) = (count + 1, first + rows.len());
        }
    }
    tiles
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
