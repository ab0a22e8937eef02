//! The forward pass, top to bottom.

use super::state::{Cache, QuantizedRows, State};
use super::timings::Part;
use super::weights::{Form, Layer, Matrix, Packed, Table};
use super::{Activation, Model};
use crate::engine::ops::{self, Quantized};
use crate::engine::pool::Stripe;
use crate::engine::quant::packed_row;

/// Integer sums of one tile: it stays in the first cache, and a call of the kernel covers enough rows to
/// cost nothing: base NEON prepares something for each call, and wants 256 rows of eight tokens.
const TILE: usize = 2048;
/// Integer sums of rows and tokens that are multiplied in one call, where the kernels take many: they share
/// the second cache with the turned weights. Kept on the stack, 256 KB.
const MANY: usize = MANY_ROWS * MANY_TOKENS;
const MANY_ROWS: usize = 512;
const MANY_TOKENS: usize = 128;
/// Rows that are worth a call for many tokens, which turns and tabulates first; a multiple of what stands
/// side by side in a register.
const MANY_GRAIN: usize = 5 * ROWS_TOGETHER;
const ROWS_TOGETHER: usize = 32;
/// Rows of a dense matrix that are multiplied by all tokens in turn: they stay in the second cache.
const DENSE_ROWS: usize = 8;
/// Weights times tokens below which a matrix is not worth the hand-over to other threads: about
/// 10 microseconds of work.
const WORTH_SHARING: usize = 1 << 19;
/// And below which a part of it is not worth taking.
const WORTH_TAKING: usize = WORTH_SHARING / 8;
/// Positions of the cache that are weighed together.
const POSITIONS: usize = 64;

/// The input of a matrix: quantised for ternary ones, as it is for dense ones.
#[derive(Clone, Copy)]
struct Input<'a> {
    x: &'a [f32], // [n, cols]
    quantized: &'a QuantizedRows,
}

impl Model {
    /// Runs `tokens` through the model behind those already in `state`.
    ///
    /// # Panics
    /// With no token, more than `state.batch()`, more than fit, or one outside the vocabulary: the
    /// session checks all of this.
    pub fn forward(&self, tokens: &[u32], state: &mut State) {
        let n = tokens.len();
        assert!(n > 0 && n <= state.batch && state.len + n <= state.context);
        state.watch.start(&self.pool);
        self.embed(tokens, state);
        self.angles(n, state);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.on_its_threads(n, || {
                self.attention(index, layer, n, state);
                self.feed_forward(layer, n, state);
            });
        }
        self.leave_layers();
        state.len += n;
        state.watch.lap(Part::Between, &self.pool);
    }

    fn embed(&self, tokens: &[u32], state: &mut State) {
        let embedding = &self.weights.embedding;
        for (token, x) in tokens.iter().zip(state.x.chunks_exact_mut(self.shape.dim)) {
            let token = *token as usize;
            embedding.kind.read(embedding.rows(token..token + 1), x);
            embedding.touch(1);
        }
    }

    fn angles(&self, n: usize, state: &mut State) {
        let pairs = self.shape.rope_dims / 2;
        for row in 0..n {
            let part = row * pairs..(row + 1) * pairs;
            let (cos, sin) = (&mut state.cos[part.clone()], &mut state.sin[part]);
            ops::rope_angles(state.len + row, &self.weights.rope_frequencies, cos, sin);
        }
    }

    fn attention(&self, index: usize, layer: &Layer, n: usize, state: &mut State) {
        let shape = &self.shape;
        norm_rows(&mut state.h, &state.x, &layer.attn_norm, n, shape.epsilon);
        quantize_rows(&state.h, shape.dim, n, &mut state.quantized);
        let input = Input { x: &state.h, quantized: &state.quantized };
        state.watch.lap(Part::Between, &self.pool);
        let (q, k, v) = (&mut state.wide[..], &mut state.k[..], &mut state.v[..]);
        self.project([(&layer.q, q), (&layer.k, k), (&layer.v, v)], n, input);
        state.watch.lap(Part::Attention, &self.pool);
        self.rotate(n, state);
        let kv = shape.kv_heads * shape.head_dim;
        for row in 0..n {
            let part = row * kv..(row + 1) * kv;
            let (k, v) = (&state.k[part.clone()], &state.v[part]);
            state.cache.store(index, state.len + row, k, v);
        }
        state.watch.lap(Part::Between, &self.pool);
        self.attend(index, n, state);
        state.watch.lap(Part::Attention, &self.pool);
        let width = shape.heads * shape.head_dim;
        let found = &mut state.wide[n * width..2 * n * width];
        if let Some(weight) = &layer.attn_sub_norm {
            for row in found.chunks_exact_mut(width) {
                ops::rmsnorm_in_place(row, weight, shape.epsilon);
            }
        }
        quantize_rows(found, width, n, &mut state.quantized);
        let input = Input { x: found, quantized: &state.quantized };
        state.watch.lap(Part::Between, &self.pool);
        self.project([(&layer.o, &mut state.h)], n, input);
        state.watch.lap(Part::Attention, &self.pool);
        ops::add(&mut state.x[..n * shape.dim], &state.h);
    }

    fn feed_forward(&self, layer: &Layer, n: usize, state: &mut State) {
        let shape = &self.shape;
        norm_rows(&mut state.h, &state.x, &layer.ffn_norm, n, shape.epsilon);
        quantize_rows(&state.h, shape.dim, n, &mut state.quantized);
        let input = Input { x: &state.h, quantized: &state.quantized };
        state.watch.lap(Part::Between, &self.pool);
        self.project_gated(layer, n, input, &mut state.wide);
        state.watch.lap(Part::FeedForward, &self.pool);
        if let Some(weight) = &layer.ffn_sub_norm {
            for row in state.wide[..n * shape.ffn].chunks_exact_mut(shape.ffn) {
                ops::rmsnorm_in_place(row, weight, shape.epsilon);
            }
        }
        quantize_rows(&state.wide, shape.ffn, n, &mut state.quantized);
        let input = Input { x: &state.wide, quantized: &state.quantized };
        state.watch.lap(Part::Between, &self.pool);
        self.project([(&layer.down, &mut state.h)], n, input);
        state.watch.lap(Part::FeedForward, &self.pool);
        ops::add(&mut state.x[..n * shape.dim], &state.h);
    }

    /// `out = matrix * input` for matrices that take the same input: `[n, cols]` to `[n, rows]` each.
    fn project<const N: usize>(&self, outs: [(&Matrix, &mut [f32]); N], n: usize, input: Input) {
        let matrices = outs.each_ref().map(|(matrix, _)| *matrix);
        let rows = matrices.iter().map(|matrix| matrix.rows).sum();
        let outs = outs.map(|(matrix, out)| (&mut out[..n * matrix.rows], matrix.rows));
        self.pool.all_stripes(outs, self.project_grain(rows, matrices[0].cols, n), |which, mut stripe| {
            self.multiply(matrices[which], n, input, (Put::There, &mut stripe));
        });
    }

    /// `gate = activation(gate matrix * input) * (up matrix * input)`: `[n, cols]` to `[n, ffn]`. Who computes
    /// rows of one computes those of the other, so that the second needs no room of its own.
    fn project_gated(&self, layer: &Layer, n: usize, input: Input, gate: &mut [f32]) {
        let Matrix { rows, cols, .. } = layer.gate;
        let last = Put::Gate(self.shape.activation);
        let grain = self.project_grain(rows, 2 * cols, n);
        self.pool.stripes(&mut gate[..n * rows], rows, grain, |mut stripe| {
            self.multiply(&layer.gate, n, input, (Put::There, &mut stripe));
            self.multiply(&layer.up, n, input, (last, &mut stripe));
        });
    }

    /// Rows of a stripe at least, of so many with so many weights each.
    fn project_grain(&self, rows: usize, cols: usize, n: usize) -> usize {
        let grain = self.grain(rows, cols * n);
        if self.takes_many(n) { grain.next_multiple_of(MANY_GRAIN) } else { grain }
    }

    /// Whether a pass of `n` tokens is worth the kernel for many of them.
    fn takes_many(&self, n: usize) -> bool {
        self.kernels.many().is_some_and(|fewest| n >= fewest)
    }

    /// Computes a stripe of `[n, rows]`.
    fn multiply(&self, matrix: &Matrix, n: usize, input: Input, (put, stripe): (Put, &mut Stripe<f32>)) {
        let rows = stripe.cols().len();
        match &matrix.form {
            Form::Ternary(packed) if self.takes_many(n) => {
                let tokens = n.div_ceil(n.div_ceil(MANY_TOKENS));
                let rows = rows.div_ceil(rows.div_ceil(MANY_ROWS)).next_multiple_of(ROWS_TOGETHER);
                self.multiply_ternary::<MANY>(matrix, packed, (rows, tokens), (n, input), (put, stripe));
            }
            Form::Ternary(packed) => {
                let tokens = self.kernels.tokens();
                let rows = TILE / n.min(tokens);
                self.multiply_ternary::<TILE>(matrix, packed, (rows, tokens), (n, input), (put, stripe));
            }
            Form::Dense(table) => self.multiply_dense(matrix, table, (n, input), (put, stripe)),
        }
    }

    /// So many rows and tokens to a call of the kernel; they are at most `SUMS` sums.
    #[inline(never)] // so that only the wide one takes its stack
    fn multiply_ternary<const SUMS: usize>(
        &self,
        matrix: &Matrix,
        packed: &Packed,
        (rows, tokens): (usize, usize),
        (n, Input { quantized, .. }): (usize, Input),
        (put, stripe): (Put, &mut Stripe<f32>),
    ) {
        let mut dots = [0i32; SUMS];
        let (first, end) = (stripe.cols().start, stripe.cols().end);
        for rows in chunks(first..end, rows) {
            for tokens in chunks(0..n, tokens) {
                let dots = &mut dots[..rows.len() * tokens.len()];
                let (q, sums) = (quantized.rows(tokens.clone()), &quantized.sums[tokens.clone()]);
                self.kernels.ternary(packed.rows(rows.clone()), q, sums, dots);
                for (token, dots) in tokens.zip(dots.chunks_exact(rows.len())) {
                    let scale = matrix.scale / quantized.made[token].scale;
                    let out = &mut stripe.row(token)[rows.start - first..rows.end - first];
                    put.row(out, dots.iter().map(|dot| *dot as f32 * scale));
                }
            }
        }
    }

    fn multiply_dense(
        &self,
        matrix: &Matrix,
        table: &Table,
        (n, Input { x, .. }): (usize, Input),
        (put, stripe): (Put, &mut Stripe<f32>),
    ) {
        let mut dots = [0.0f32; DENSE_ROWS];
        let (first, end) = (stripe.cols().start, stripe.cols().end);
        for rows in chunks(first..end, DENSE_ROWS) {
            let dots = &mut dots[..rows.len()];
            for (token, x) in x.chunks_exact(matrix.cols).take(n).enumerate() {
                self.kernels.dot(table.kind, table.rows(rows.clone()), x, dots);
                let out = &mut stripe.row(token)[rows.start - first..rows.end - first];
                put.row(out, dots.iter().map(|dot| dot * matrix.scale));
            }
        }
    }

    fn rotate(&self, n: usize, state: &mut State) {
        let shape = &self.shape;
        let pairs = shape.rope_dims / 2;
        let turn = |heads: &mut [f32], count: usize, cos: &[f32], sin: &[f32]| {
            for (row, heads) in heads.chunks_exact_mut(count * shape.head_dim).take(n).enumerate() {
                let part = row * pairs..(row + 1) * pairs;
                for head in heads.chunks_exact_mut(shape.head_dim) {
                    ops::rope(head, &cos[part.clone()], &sin[part.clone()], shape.rope_pairs);
                }
            }
        };
        turn(&mut state.wide, shape.heads, &state.cos, &state.sin);
        turn(&mut state.k, shape.kv_heads, &state.cos, &state.sin);
    }

    fn attend(&self, layer: usize, n: usize, state: &mut State) {
        let shape = &self.shape;
        let (heads, size) = (shape.heads, shape.head_dim);
        let (cache, before) = (&state.cache, state.len);
        let (queries, found) = state.wide.split_at_mut(n * heads * size);
        let work = heads * n * size * (before + n);
        // In floats, two rows read for each product: an eighth of a ternary matrix's pace.
        let grain = if work < WORTH_SHARING / 8 { heads * n } else { 1 };
        self.pool.pieces(&mut found[..n * heads * size], size, grain, |index, out| {
            let (row, head) = (index / heads, index % heads);
            let query = &queries[index * size..(index + 1) * size];
            let kv_head = head * shape.kv_heads / heads;
            self.attend_head(query, cache, layer, kv_head, before + row + 1, out);
        });
    }

    /// Attention of one head over the first `len` positions, in one pass over the cache: the
    /// weights are rescaled whenever a larger score turns up, so no row of scores is stored.
    /// Source of the method: online softmax (Milakov and Gimelshein, arXiv 1805.02867).
    fn attend_head(
        &self,
        query: &[f32], // [head_dim]
        cache: &Cache,
        layer: usize,
        kv_head: usize,
        len: usize,
        out: &mut [f32], // [head_dim]
    ) {
        let scale = 1.0 / (query.len() as f32).sqrt();
        let mut scores = [0.0f32; POSITIONS];
        let (mut largest, mut total) = (f32::NEG_INFINITY, 0.0f32);
        out.fill(0.0);
        for positions in chunks(0..len, POSITIONS) {
            let scores = &mut scores[..positions.len()];
            let (keys, values) = cache.rows(layer, kv_head, positions);
            self.kernels.dot(cache.kind, keys, query, scores);
            let before = largest;
            largest = largest.max(ops::largest(scores) * scale);
            let rescale = ops::exp(before - largest);
            out.iter_mut().for_each(|x| *x *= rescale);
            scores.iter_mut().for_each(|score| *score = ops::exp(*score * scale - largest));
            total = total * rescale + ops::sum(scores);
            self.kernels.mix(cache.kind, values, scores, out);
        }
        out.iter_mut().for_each(|x| *x /= total);
    }

    /// Columns of a stripe: all of them when the work is too small to share.
    pub(super) fn grain(&self, rows: usize, work_per_row: usize) -> usize {
        if rows * work_per_row < WORTH_SHARING {
            return rows;
        }
        (WORTH_TAKING / work_per_row).max(1).next_multiple_of(16)
    }
}

/// What a product's numbers are put into.
#[derive(Clone, Copy)]
enum Put {
    /// Where they belong.
    There,
    /// What holds the gate's, as the product of both once those went through this.
    Gate(Activation),
}

impl Put {
    fn row(self, out: &mut [f32], numbers: impl Iterator<Item = f32>) {
        match self {
            Put::There => out.iter_mut().zip(numbers).for_each(|(out, x)| *out = x),
            Put::Gate(Activation::SquaredRelu) => ops::squared_relu_times(out, numbers),
            Put::Gate(Activation::Silu) => ops::silu_times(out, numbers),
        }
    }
}

fn norm_rows(out: &mut [f32], x: &[f32], weight: &[f32], n: usize, epsilon: f32) {
    let rows = out.chunks_exact_mut(weight.len()).zip(x.chunks_exact(weight.len()));
    for (out, x) in rows.take(n) {
        ops::rmsnorm(out, x, weight, epsilon);
    }
}

fn quantize_rows(x: &[f32], cols: usize, n: usize, out: &mut QuantizedRows) {
    out.width = packed_row(cols) * 4;
    for row in 0..n {
        let q = &mut out.q[row * out.width..(row + 1) * out.width];
        let made: Quantized = ops::quantize(&x[row * cols..(row + 1) * cols], q);
        out.made[row] = made;
        out.sums[row] = made.sum;
    }
}

fn chunks(range: std::ops::Range<usize>, size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}
