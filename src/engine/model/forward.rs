//! The forward pass, top to bottom.

use super::fused_rows::{self, Epilogue};
use super::state::{KvCache, QuantizedRows, State};
use super::timings::TimedPart;
use super::weights::{Layer, Matrix, MatrixData, PackedRows, RowTable};
use super::{Model, Shape};
use crate::engine::kernels::prefetch;
use crate::engine::ops::{self, QuantizedRow};
use crate::engine::quant::RowFormat;
use crate::engine::thread_pool::{ColumnStripe, none};

/// Integer sums of one tile: it stays in the first cache, and a call of the kernel covers enough rows to
/// cost nothing: base NEON prepares something for each call, and wants 256 rows of eight tokens.
const TILE_SUMS: usize = 2048;
/// Integer sums of rows and tokens that are multiplied in one call, where the kernels take many: they share
/// the second cache with the turned weights. Kept on the stack, 448 KB.
const BATCH_SUMS: usize = BATCH_ROWS * BATCH_TOKENS;
const BATCH_ROWS: usize = 28 * BAND_ROWS;
const BATCH_TOKENS: usize = 128;
/// Rows that are worth a call for many tokens, which turns and tabulates first.
const BATCH_GRAIN: usize = 5 * BAND_ROWS;
/// Rows of a part that there should be where there are several parts a thread: tables take 8 % of its time.
const BATCH_PART_ROWS: usize = 20 * BAND_ROWS;
/// Rows side by side in a register.
const BAND_ROWS: usize = 32;
/// Rows of a dense matrix that are multiplied by all tokens in turn: they stay in the second cache.
const FLOAT_ROWS: usize = 8;
/// Weights times tokens below which a matrix is not worth the hand-over to other threads: about
/// 10 microseconds of work.
const MIN_SHARED_WORK: usize = 1 << 19;
/// And below which a part of it is not worth taking.
const MIN_PART_WORK: usize = MIN_SHARED_WORK / 8;
/// Tokens whose steps between matrices are worth the hand-over: a token's take some two microseconds.
const MIN_SHARED_TOKENS: usize = 4;
/// Positions of the cache that are weighed together.
const POSITIONS: usize = 256;
/// Bytes of values that are asked for before the keys are read.
const VALUES_PREFETCH_BYTES: usize = 2048;
/// Heads that are computed at a time, at most.
const MAX_HEADS_AT_ONCE: usize = 4;

/// The input of a matrix: quantised for ternary ones, as it is for dense ones.
#[derive(Clone, Copy)]
struct LinearInput<'a> {
    x: &'a [f32], // [n, cols]
    quantized: &'a QuantizedRows,
}

impl Model {
    /// Runs `tokens` through the model behind those already in `state`. Row `i` of the pass is then that of token `i`.
    ///
    /// # Panics
    /// With no token, more than `state.batch()`, more than fit, or one outside the vocabulary: the
    /// session checks all of this.
    pub fn forward(&self, tokens: &[u32], state: &mut State) {
        self.forward_for(tokens, tokens.len(), state);
    }

    /// The same where only the logits of the last `wanted` tokens will be asked for, if any: row 0 of the pass is then
    /// that of the first of these. To the others the last layer gives their keys and values and no more.
    ///
    /// # Panics
    /// As [`Model::forward`], and where more are wanted than there are.
    pub fn forward_for(&self, tokens: &[u32], wanted: usize, state: &mut State) {
        let n = tokens.len();
        assert!(n > 0 && n <= state.batch && state.len + n <= state.context && wanted <= n);
        state.stopwatch.start(&self.pool);
        self.embed(tokens, state);
        self.rope_angles(n, state);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let to_the_end = if index + 1 == self.shape.layers { wanted } else { n };
            self.with_tuned_threads((n, to_the_end), || {
                self.attention(index, layer, (n, to_the_end), state);
                if to_the_end > 0 {
                    self.feed_forward(layer, to_the_end, state);
                }
            });
        }
        self.set_threads_outside_layers();
        state.len += n;
        state.stopwatch.lap(TimedPart::Between, &self.pool);
    }

    fn embed(&self, tokens: &[u32], state: &mut State) {
        let (embedding, State { residual: x, embedding_row: row, .. }) = (&self.weights.embedding, state);
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(self.shape.dim)) {
            embedding.format.read(embedding.row(*token as usize, row), x);
        }
    }

    fn rope_angles(&self, n: usize, state: &mut State) {
        let pairs = self.shape.rope_dims / 2;
        for row in 0..n {
            let part = row * pairs..(row + 1) * pairs;
            let (cos, sin) = (&mut state.cos[part.clone()], &mut state.sin[part]);
            ops::rope_angles(state.len + row, &self.weights.rope_frequencies, cos, sin);
        }
    }

    /// Of `n` rows the last `wanted` go on.
    fn attention(&self, index: usize, layer: &Layer, (n, wanted): (usize, usize), state: &mut State) {
        let shape = &self.shape;
        self.pre_norm(&layer.attn_norm, n, state);
        let input = LinearInput { x: &state.hidden, quantized: &state.quantized };
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        let (q, k, v) = (&mut state.attn_or_ffn[..], &mut state.k[..], &mut state.v[..]);
        self.linear([(&layer.q, q), (&layer.k, k), (&layer.v, v)], n, input);
        state.stopwatch.lap(TimedPart::Attention, &self.pool);
        self.rope(n, state);
        let kv = n * shape.kv_heads * shape.head_dim;
        let grain = if n < MIN_SHARED_TOKENS { shape.kv_heads } else { 1 };
        let made = (&state.k[..kv], &state.v[..kv]);
        state.cache.store((index, state.len), made, (&self.pool, grain));
        let width = shape.heads * shape.head_dim;
        state.keep_last_rows((n, wanted), width);
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        if wanted == 0 {
            return;
        }
        self.attend_rows(index, (state.len + n - wanted, wanted), state);
        state.stopwatch.lap(TimedPart::Attention, &self.pool);
        let n = wanted;
        let found = &mut state.attn_or_ffn[n * width..2 * n * width];
        self.sub_norm(layer.attn_sub_norm.as_deref(), (found, width), &mut state.quantized);
        let input = LinearInput { x: found, quantized: &state.quantized };
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        self.linear([(&layer.o, &mut state.hidden)], n, input);
        state.stopwatch.lap(TimedPart::Attention, &self.pool);
        self.add_residual(n, state);
    }

    fn feed_forward(&self, layer: &Layer, n: usize, state: &mut State) {
        let shape = &self.shape;
        self.pre_norm(&layer.ffn_norm, n, state);
        let input = LinearInput { x: &state.hidden, quantized: &state.quantized };
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        self.gated_linear(layer, n, input, &mut state.attn_or_ffn);
        state.stopwatch.lap(TimedPart::FeedForward, &self.pool);
        let made = (&mut state.attn_or_ffn[..n * shape.ffn], shape.ffn);
        self.sub_norm(layer.ffn_sub_norm.as_deref(), made, &mut state.quantized);
        let input = LinearInput { x: &state.attn_or_ffn, quantized: &state.quantized };
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        self.linear([(&layer.down, &mut state.hidden)], n, input);
        state.stopwatch.lap(TimedPart::FeedForward, &self.pool);
        self.add_residual(n, state);
    }

    /// What a block found is added to the stream.
    fn add_residual(&self, n: usize, state: &mut State) {
        let dim = self.shape.dim;
        let stream = (&mut state.residual[..n * dim], dim);
        self.pool.for_each_row((stream, none(), none()), MIN_SHARED_TOKENS, |row, (x, ..)| {
            let found = &state.hidden[row * dim..(row + 1) * dim];
            self.kernels.with_simd(fused_rows::AddResidual { x, y: found });
        });
    }

    /// The stream normalised and quantised.
    fn pre_norm(&self, weight: &[f32], n: usize, state: &mut State) {
        let (dim, epsilon) = (self.shape.dim, self.shape.epsilon);
        let State { residual: x, hidden: h, quantized, .. } = state;
        let (q, made) = quantized.split_for(dim, n);
        let h = (&mut h[..n * dim], dim);
        self.pool.for_each_row((h, q, made), MIN_SHARED_TOKENS, |row, (h, q, made)| {
            let x = &x[row * dim..(row + 1) * dim];
            made[0] = self.kernels.with_simd(fused_rows::NormQuantize { x, weight, epsilon, out: h, q });
        });
    }

    /// Rows normalised in place, where there is a norm, and quantised.
    fn sub_norm(
        &self,
        weight: Option<&[f32]>,
        (x, width): (&mut [f32], usize),
        quantized: &mut QuantizedRows,
    ) {
        let epsilon = self.shape.epsilon;
        let (q, made) = quantized.split_for(width, x.len() / width);
        self.pool.for_each_row(((x, width), q, made), MIN_SHARED_TOKENS, |_, (x, q, made)| {
            made[0] = self.kernels.with_simd(fused_rows::SubNormQuantize { x, weight, epsilon, q });
        });
    }

    /// `out = matrix * input` for matrices that take the same input: `[n, cols]` to `[n, rows]` each.
    fn linear<const N: usize>(&self, outs: [(&Matrix, &mut [f32]); N], n: usize, input: LinearInput) {
        let matrices = outs.each_ref().map(|(matrix, _)| *matrix);
        let rows = matrices.iter().map(|matrix| matrix.rows).sum();
        let outs = outs.map(|(matrix, out)| (&mut out[..n * matrix.rows], matrix.rows));
        self.pool.for_each_stripe_of(
            outs,
            self.linear_grain(rows, matrices[0].cols, n),
            |which, mut stripe| {
                self.matmul(matrices[which], n, input, (Epilogue::Store, &mut stripe));
            },
        );
    }

    /// `gate = activation(gate matrix * input) * (up matrix * input)`: `[n, cols]` to `[n, ffn]`. Who computes
    /// rows of one computes those of the other, so that the second needs no room of its own.
    fn gated_linear(&self, layer: &Layer, n: usize, input: LinearInput, gate: &mut [f32]) {
        let Matrix { rows, cols, .. } = layer.gate;
        let last = Epilogue::MultiplyGate(self.shape.activation);
        let grain = self.linear_grain(rows, 2 * cols, n);
        self.pool.for_each_stripe(&mut gate[..n * rows], rows, grain, |mut stripe| {
            self.matmul(&layer.gate, n, input, (Epilogue::Store, &mut stripe));
            self.matmul(&layer.up, n, input, (last, &mut stripe));
        });
    }

    /// Rows of a stripe at least, of so many with so many weights each.
    fn linear_grain(&self, rows: usize, cols: usize, n: usize) -> usize {
        let grain = self.grain(rows, cols * n);
        if !self.uses_batch_kernel(n) {
            return grain;
        }
        // As many parts of the same size as there may be and as are large enough, for each thread as many as for others.
        let threads = self.pool.active();
        let each = (rows / BATCH_PART_ROWS / threads).clamp(1, self.pool.preferred_parts() / threads);
        let part = rows.div_ceil(each * threads);
        grain.max(part).max(BATCH_GRAIN).next_multiple_of(BAND_ROWS)
    }

    /// Whether a pass of `n` tokens is worth the kernel for many of them.
    fn uses_batch_kernel(&self, n: usize) -> bool {
        self.kernels.batch_min_tokens().is_some_and(|fewest| n >= fewest)
    }

    /// Computes a stripe of `[n, rows]`.
    fn matmul(
        &self,
        matrix: &Matrix,
        n: usize,
        input: LinearInput,
        (put, stripe): (Epilogue, &mut ColumnStripe<f32>),
    ) {
        let rows = stripe.cols().len();
        match &matrix.form {
            MatrixData::Ternary(packed) if self.uses_batch_kernel(n) => {
                let tokens = n.div_ceil(n.div_ceil(BATCH_TOKENS));
                let rows = rows.div_ceil(rows.div_ceil(BATCH_ROWS)).next_multiple_of(BAND_ROWS);
                self.matmul_ternary::<BATCH_SUMS>(matrix, packed, (rows, tokens), (n, input), (put, stripe));
            }
            MatrixData::Ternary(packed) => {
                let tokens = self.kernels.tile_tokens();
                let rows = TILE_SUMS / n.min(tokens);
                self.matmul_ternary::<TILE_SUMS>(matrix, packed, (rows, tokens), (n, input), (put, stripe));
            }
            MatrixData::Float(table) => self.matmul_float(matrix, table, (n, input), (put, stripe)),
        }
    }

    /// So many rows and tokens to a call of the kernel; they are at most `SUMS` sums.
    #[inline(never)] // so that only the wide one takes its stack
    fn matmul_ternary<const SUMS: usize>(
        &self,
        matrix: &Matrix,
        packed: &PackedRows,
        (rows, tokens): (usize, usize),
        (n, LinearInput { quantized, .. }): (usize, LinearInput),
        (put, stripe): (Epilogue, &mut ColumnStripe<f32>),
    ) {
        let mut dots = AlignedSums([0i32; SUMS]);
        let (first, end) = (stripe.cols().start, stripe.cols().end);
        for rows in chunks(first..end, rows) {
            for tokens in chunks(0..n, tokens) {
                let dots = &mut dots.0[..rows.len() * tokens.len()];
                let q = quantized.rows(tokens.clone());
                self.kernels.ternary_gemm_codes(packed.rows(rows.clone()), q, tokens.len(), dots);
                for (token, dots) in tokens.zip(dots.chunks_exact(rows.len())) {
                    let QuantizedRow { scale, sum } = quantized.rows[token];
                    let scale = matrix.scale / scale;
                    let out = &mut stripe.row(token)[rows.start - first..rows.end - first];
                    self.kernels.with_simd(fused_rows::ApplyEpilogue {
                        epilogue: put,
                        out,
                        dots,
                        sum,
                        scale,
                    });
                }
            }
        }
    }

    fn matmul_float(
        &self,
        matrix: &Matrix,
        table: &RowTable,
        (n, LinearInput { x, .. }): (usize, LinearInput),
        (put, stripe): (Epilogue, &mut ColumnStripe<f32>),
    ) {
        let mut dots = [0.0f32; FLOAT_ROWS];
        let (first, end) = (stripe.cols().start, stripe.cols().end);
        for rows in chunks(first..end, FLOAT_ROWS) {
            let dots = &mut dots[..rows.len()];
            for (token, x) in x.chunks_exact(matrix.cols).take(n).enumerate() {
                self.kernels.dot(table.format, table.rows(rows.clone()), x, dots);
                let out = &mut stripe.row(token)[rows.start - first..rows.end - first];
                put.apply(out, dots.iter().map(|dot| dot * matrix.scale));
            }
        }
    }

    fn rope(&self, n: usize, state: &mut State) {
        let shape = &self.shape;
        let pairs = shape.rope_dims / 2;
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let State { attn_or_ffn: wide, k, cos, sin, .. } = state;
        let (wide, k) = ((&mut wide[..n * q], q), (&mut k[..n * kv], kv));
        self.pool.for_each_row((wide, k, none()), MIN_SHARED_TOKENS, |row, (q, k, ..)| {
            let part = row * pairs..(row + 1) * pairs;
            let (cos, sin) = (&cos[part.clone()], &sin[part]);
            for heads in [q, k] {
                self.kernels.with_simd(fused_rows::Rope {
                    heads,
                    head_dim: shape.head_dim,
                    cos,
                    sin,
                    pairs: shape.rope_pairs,
                });
            }
        });
    }

    /// `n` rows behind `before` others.
    fn attend_rows(&self, layer: usize, (before, n): (usize, usize), state: &mut State) {
        let shape = &self.shape;
        let (heads, size) = (shape.heads, shape.head_dim);
        let cache = &state.cache;
        let (queries, found) = state.attn_or_ffn.split_at_mut(n * heads * size);
        let together = self.heads_at_once(cache.format, n);
        let (groups, width) = (heads / together, together * size);
        let work = heads * n * size * (before + n);
        // In floats, two rows read for each product: an eighth of a ternary matrix's pace.
        let grain = if work < MIN_SHARED_WORK / 8 { groups * n } else { 1 };
        self.pool.for_each_chunk(&mut found[..n * heads * size], width, grain, |index, out| {
            let (row, group) = (index / groups, index % groups);
            let queries = &queries[index * width..(index + 1) * width];
            let kv_head = group * together * shape.kv_heads / heads;
            self.attend_heads(queries, cache, (layer, kv_head), before + row + 1, out);
        });
    }

    /// Heads that share keys and values and are computed at a time, so that each of those is read once for all of
    /// them; fewer where there would not be enough parts for the threads. No result depends on it.
    fn heads_at_once(&self, cache: RowFormat, n: usize) -> usize {
        let Shape { heads, kv_heads, .. } = self.shape;
        let fits = |together: &usize| (heads / kv_heads).is_multiple_of(*together);
        let is_enough = |together: &usize| n * heads / together >= 2 * self.pool.active();
        if !self.kernels.has_batch_kernels(cache) {
            return 1;
        }
        (1..=MAX_HEADS_AT_ONCE).rev().filter(fits).find(is_enough).unwrap_or(1)
    }

    /// Attention of some heads that share their keys over the first `len` positions, in one pass over the cache: the
    /// weights are rescaled whenever a larger score turns up, so no row of scores is stored.
    /// Source of the method: online softmax (Milakov and Gimelshein, arXiv 1805.02867).
    fn attend_heads(
        &self,
        queries: &[f32], // [heads, head_dim]
        cache: &KvCache,
        (layer, kv_head): (usize, usize),
        len: usize,
        out: &mut [f32], // [heads, head_dim]
    ) {
        let size = self.shape.head_dim;
        let scale = 1.0 / (size as f32).sqrt();
        let mut scores = [0.0f32; MAX_HEADS_AT_ONCE * POSITIONS];
        let mut sums = [(f32::NEG_INFINITY, 0.0f32); MAX_HEADS_AT_ONCE]; // the largest score, the total of weights
        out.fill(0.0);
        for positions in chunks(0..len, POSITIONS) {
            let count = positions.len();
            let scores = &mut scores[..queries.len() / size * count];
            let (keys, values) = cache.rows(layer, kv_head, positions);
            // Read after the keys, they are there then.
            prefetch(&values[..values.len().min(VALUES_PREFETCH_BYTES)]);
            self.kernels.dot_batch(cache.format, keys, queries, size, scores);
            let each = scores.chunks_exact_mut(count).zip(out.chunks_exact_mut(size));
            for ((scores, out), (before, total)) in each.zip(&mut sums) {
                let weigh =
                    fused_rows::OnlineSoftmax { scores, scale, max_before: *before, total: *total, out };
                (*before, *total) = self.kernels.with_simd(weigh);
            }
            self.kernels.weighted_sum_batch(cache.format, values, scores, size, out);
        }
        for (out, (_, total)) in out.chunks_exact_mut(size).zip(sums) {
            out.iter_mut().for_each(|x| *x /= total);
        }
    }

    /// Columns of a stripe: all of them when the work is too small to share.
    pub(super) fn grain(&self, rows: usize, work_per_row: usize) -> usize {
        if rows * work_per_row < MIN_SHARED_WORK {
            return rows;
        }
        (MIN_PART_WORK / work_per_row).max(1).next_multiple_of(16)
    }
}

/// Sums where a register's worth of them begins a line of the cache.
#[repr(align(64))]
struct AlignedSums<const N: usize>([i32; N]);

fn chunks(range: std::ops::Range<usize>, size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}
