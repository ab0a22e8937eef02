//! The forward pass, from token ids to the residual stream behind the last layer.
//!
//! A pass over `n` tokens computes for each layer
//!
//! ```text
//! hidden   = quantize(rms_norm(residual))            q, k, v = W_q hidden, W_k hidden, W_v hidden
//! attn_out = attention(rope(q), rope(k), v)          residual += W_o quantize(sub_norm(attn_out))
//! hidden   = quantize(rms_norm(residual))            gate = activation(W_gate hidden) * (W_up hidden)
//! residual += W_down quantize(sub_norm(gate))
//! ```

use super::Model;
use super::fused_rows::{self, Epilogue};
use super::state::{QuantizedRows, Segment, State};
use super::timings::TimedPart;
use super::weights::{Layer, Matrix, MatrixData, PackedRows, RowTable};
use crate::engine::ops::{self, QuantizedRow};
use crate::engine::thread_pool::{ColumnStripe, MatrixMut};
use std::ops::Range;

/// Integer sums of one kernel call: they stay in the L1 cache, and the call covers enough rows that its own cost
/// does not matter. The NEON kernels build tables in each call and want 256 rows of eight tokens.
const TILE_SUMS: usize = 2048;
/// Integer sums of one call of the batch kernel. They share the L2 cache with the transposed weights, and take 448 KB
/// of stack.
const BATCH_SUMS: usize = BATCH_ROWS * BATCH_TOKENS;
const BATCH_ROWS: usize = 28 * BAND_ROWS;
const BATCH_TOKENS: usize = 128;
/// The fewest rows that are worth a call of the batch kernel, which first transposes weights and builds tables.
const BATCH_GRAIN: usize = 5 * BAND_ROWS;
/// The fewest rows of a part where each thread has several parts: building tables takes 8 % of the time of such a part.
const BATCH_PART_ROWS: usize = 20 * BAND_ROWS;
/// Rows side by side in a register of the batch kernel.
const BAND_ROWS: usize = 32;
/// Rows of a float matrix that are multiplied by one token after the other: they stay in the L2 cache.
const FLOAT_ROWS: usize = 8;
/// Weights times tokens below which a matrix is not shared between threads: about 10 microseconds of work.
pub(super) const MIN_SHARED_WORK: usize = 1 << 19;
/// Weights times tokens below which a part of a matrix is not worth handing over.
const MIN_PART_WORK: usize = MIN_SHARED_WORK / 8;
/// Tokens from which on the steps between matrices are shared between threads; one token takes about two microseconds.
const MIN_SHARED_TOKENS: usize = 4;

/// The input of a linear layer: int8 for ternary matrices, floats for the others.
#[derive(Clone, Copy)]
struct LinearInput<'a> {
    /// Tokens of the pass.
    n: usize,
    x: &'a [f32], // [n, cols]
    quantized: &'a QuantizedRows,
}

/// Where a matrix product goes: a stripe of `[n, rows]`, and what is done with each number on the way.
struct LinearOutput<'s, 'm> {
    epilogue: Epilogue,
    stripe: &'s mut ColumnStripe<'m, f32>,
}

/// Rows and tokens of one kernel call.
#[derive(Clone, Copy)]
struct CallSize {
    rows: usize,
    tokens: usize,
}

impl Model {
    /// Runs `tokens` through the model behind those already in `state`, which has one sequence. Row `i` of the pass is
    /// then that of token `i`.
    ///
    /// # Panics
    /// As [`Model::forward_segments`].
    pub fn forward(&self, tokens: &[u32], state: &mut State) {
        self.forward_for(tokens, tokens.len(), state);
    }

    /// The same where only the logits of the last `wanted` tokens will be asked for. Row 0 of the pass is then that of
    /// the first of these tokens; for the others the last layer computes only keys and values.
    ///
    /// # Panics
    /// As [`Model::forward_segments`].
    pub fn forward_for(&self, tokens: &[u32], wanted: usize, state: &mut State) {
        self.forward_segments(&[Segment { sequence: 0, tokens, wanted }], state);
    }

    /// Runs tokens of several sequences through the model in one pass over the weights. The rows of the pass are then
    /// those of the wanted tokens, one segment after the other. What is computed for a token does not depend, to the bit,
    /// on the other tokens of the pass.
    ///
    /// # Panics
    /// With no token or an empty segment, with more tokens than `state.batch()`, with more than fit into the context or
    /// the blocks of a sequence, with more wanted than there are, or with an id outside the vocabulary. The session checks
    /// all of this.
    pub fn forward_segments(&self, segments: &[Segment<'_>], state: &mut State) {
        let (n, wanted) = state.begin_pass(segments);
        state.stopwatch.start(&self.pool);
        self.embed(segments, state);
        self.rope_angles(state);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let kept = if index + 1 == self.shape.layers { wanted } else { n };
            self.with_tuned_threads(n, kept, || {
                self.attention(index, layer, n, kept, state);
                if kept > 0 {
                    self.feed_forward(layer, kept, state);
                }
            });
        }
        self.set_threads_outside_layers();
        segments.iter().for_each(|segment| state.sequences[segment.sequence].len += segment.tokens.len());
        state.stopwatch.lap(TimedPart::Between, &self.pool);
    }

    fn embed(&self, segments: &[Segment<'_>], state: &mut State) {
        let embedding = &self.weights.embedding;
        let State { residual, embedding_row, .. } = state;
        let tokens = segments.iter().flat_map(|segment| segment.tokens);
        for (token, residual) in tokens.zip(residual.chunks_exact_mut(self.shape.dim)) {
            embedding.format.read(embedding.row(*token as usize, embedding_row), residual);
        }
    }

    fn rope_angles(&self, state: &mut State) {
        let pairs = self.shape.rope_dims / 2;
        let State { rows, cos, sin, .. } = state;
        let angles = cos.chunks_exact_mut(pairs.max(1)).zip(sin.chunks_exact_mut(pairs.max(1)));
        for (row, (cos, sin)) in rows.iter().zip(angles) {
            ops::rope_angles(row.position, &self.weights.rope_frequencies, cos, sin);
        }
    }

    /// The attention block of one layer. All `n` rows give keys and values; `kept` rows go on: all of them, or those that
    /// are wanted.
    fn attention(&self, index: usize, layer: &Layer, n: usize, kept: usize, state: &mut State) {
        let shape = &self.shape;
        self.pre_norm(&layer.attn_norm, n, state);
        let input = LinearInput { n, x: &state.hidden, quantized: &state.quantized };
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        let (q, k, v) = (&mut state.attn_or_ffn[..], &mut state.k[..], &mut state.v[..]);
        self.linear([(&layer.q, q), (&layer.k, k), (&layer.v, v)], input);
        state.stopwatch.lap(TimedPart::Attention, &self.pool);
        self.rope(n, state);
        let kv = n * shape.kv_heads * shape.head_dim;
        let grain = if n < MIN_SHARED_TOKENS { shape.kv_heads } else { 1 };
        let (keys, values) = (&state.k[..kv], &state.v[..kv]);
        state.cache.store(index, &state.rows, keys, values, &self.pool, grain);
        let width = shape.heads * shape.head_dim;
        if kept < n {
            state.gather_wanted(width, shape.dim);
        }
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        if kept == 0 {
            return;
        }
        self.attend_rows(index, kept, state);
        state.stopwatch.lap(TimedPart::Attention, &self.pool);
        let n = kept;
        let attn_out = &mut state.attn_or_ffn[n * width..2 * n * width];
        let rows = MatrixMut::new(attn_out, width);
        self.sub_norm(layer.attn_sub_norm.as_deref(), rows, n, width, &mut state.quantized);
        let input =
            LinearInput { n, x: &state.attn_or_ffn[n * width..2 * n * width], quantized: &state.quantized };
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        self.linear([(&layer.o, &mut state.hidden)], input);
        state.stopwatch.lap(TimedPart::Attention, &self.pool);
        self.add_residual(n, state);
    }

    fn feed_forward(&self, layer: &Layer, n: usize, state: &mut State) {
        let shape = &self.shape;
        self.pre_norm(&layer.ffn_norm, n, state);
        let input = LinearInput { n, x: &state.hidden, quantized: &state.quantized };
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        self.gated_linear(layer, input, &mut state.attn_or_ffn);
        state.stopwatch.lap(TimedPart::FeedForward, &self.pool);
        let gate = MatrixMut::new(&mut state.attn_or_ffn[..n * shape.ffn], shape.ffn);
        self.sub_norm(layer.ffn_sub_norm.as_deref(), gate, n, shape.ffn, &mut state.quantized);
        let input = LinearInput { n, x: &state.attn_or_ffn, quantized: &state.quantized };
        state.stopwatch.lap(TimedPart::Between, &self.pool);
        self.linear([(&layer.down, &mut state.hidden)], input);
        state.stopwatch.lap(TimedPart::FeedForward, &self.pool);
        self.add_residual(n, state);
    }

    /// `residual += hidden`, where `hidden` holds a block's output.
    fn add_residual(&self, n: usize, state: &mut State) {
        let dim = self.shape.dim;
        let hidden = &state.hidden;
        let residual = MatrixMut::new(&mut state.residual[..n * dim], dim);
        let (no_b, no_c) = (MatrixMut::<()>::none(), MatrixMut::<()>::none());
        self.pool.for_each_row(residual, no_b, no_c, MIN_SHARED_TOKENS, |row, x, _, _| {
            let y = &hidden[row * dim..(row + 1) * dim];
            self.kernels.with_simd(fused_rows::AddResidual { x, y });
        });
    }

    /// `hidden = rms_norm(residual)`, which is also quantised.
    fn pre_norm(&self, weight: &[f32], n: usize, state: &mut State) {
        let (dim, epsilon) = (self.shape.dim, self.shape.epsilon);
        let State { residual, hidden, quantized, .. } = state;
        let (q, scales) = quantized.split_for(dim, n);
        let hidden = MatrixMut::new(&mut hidden[..n * dim], dim);
        self.pool.for_each_row(hidden, q, scales, MIN_SHARED_TOKENS, |row, out, q, scale| {
            let x = &residual[row * dim..(row + 1) * dim];
            scale[0] = self.kernels.with_simd(fused_rows::NormQuantize { x, weight, epsilon, out, q });
        });
    }

    /// Normalises `n` rows in place, where there is a norm, and quantises them.
    fn sub_norm(
        &self,
        weight: Option<&[f32]>,
        rows: MatrixMut<'_, f32>,
        n: usize,
        width: usize,
        quantized: &mut QuantizedRows,
    ) {
        let epsilon = self.shape.epsilon;
        let (q, scales) = quantized.split_for(width, n);
        self.pool.for_each_row(rows, q, scales, MIN_SHARED_TOKENS, |_, x, q, scale| {
            scale[0] = self.kernels.with_simd(fused_rows::SubNormQuantize { x, weight, epsilon, q });
        });
    }

    /// `out = matrix * input` for matrices with the same input: `[n, cols]` to `[n, rows]` each.
    fn linear<const N: usize>(&self, outs: [(&Matrix, &mut [f32]); N], input: LinearInput) {
        let matrices = outs.each_ref().map(|(matrix, _)| *matrix);
        let rows = matrices.iter().map(|matrix| matrix.rows).sum();
        let grain = self.linear_grain(rows, matrices[0].cols, input.n);
        let outs = outs.map(|(matrix, out)| MatrixMut::new(&mut out[..input.n * matrix.rows], matrix.rows));
        self.pool.for_each_stripe_of(outs, grain, |which, mut stripe| {
            let output = LinearOutput { epilogue: Epilogue::Store, stripe: &mut stripe };
            self.matmul(matrices[which], input, output);
        });
    }

    /// `gate = activation(W_gate * input) * (W_up * input)`: `[n, cols]` to `[n, ffn]`. The thread that computes rows
    /// of the gate computes the same rows of `up`, so that `up` needs no buffer of its own.
    fn gated_linear(&self, layer: &Layer, input: LinearInput, gate: &mut [f32]) {
        let Matrix { rows, cols, .. } = layer.gate;
        let multiply_gate = Epilogue::MultiplyGate(self.shape.activation);
        let grain = self.linear_grain(rows, 2 * cols, input.n);
        self.pool.for_each_stripe(&mut gate[..input.n * rows], rows, grain, |mut stripe| {
            let output = LinearOutput { epilogue: Epilogue::Store, stripe: &mut stripe };
            self.matmul(&layer.gate, input, output);
            let output = LinearOutput { epilogue: multiply_gate, stripe: &mut stripe };
            self.matmul(&layer.up, input, output);
        });
    }

    /// The fewest rows of a stripe, for matrices of `rows` in all with `cols` weights a row.
    fn linear_grain(&self, rows: usize, cols: usize, n: usize) -> usize {
        let grain = self.grain(rows, cols * n);
        if !self.uses_batch_kernel(n) {
            return grain;
        }
        // As many equal parts as allowed that are large enough, and the same number of parts for each thread.
        let threads = self.pool.active();
        let each = (rows / BATCH_PART_ROWS / threads).clamp(1, self.pool.preferred_parts() / threads);
        let part = rows.div_ceil(each * threads);
        grain.max(part).max(BATCH_GRAIN).next_multiple_of(BAND_ROWS)
    }

    /// Whether a pass of `n` tokens is worth the batch kernel.
    fn uses_batch_kernel(&self, n: usize) -> bool {
        self.kernels.batch_min_tokens().is_some_and(|fewest| n >= fewest)
    }

    /// Computes one stripe of a product `[n, rows]`.
    fn matmul(&self, matrix: &Matrix, input: LinearInput, output: LinearOutput) {
        let (rows, n) = (output.stripe.cols().len(), input.n);
        match &matrix.form {
            MatrixData::Ternary(packed) if self.uses_batch_kernel(n) => {
                let tokens = n.div_ceil(n.div_ceil(BATCH_TOKENS));
                let rows = rows.div_ceil(rows.div_ceil(BATCH_ROWS)).next_multiple_of(BAND_ROWS);
                self.matmul_ternary::<BATCH_SUMS>(matrix, packed, CallSize { rows, tokens }, input, output);
            }
            MatrixData::Ternary(packed) => {
                let tokens = self.kernels.tile_tokens();
                let rows = TILE_SUMS / n.min(tokens);
                self.matmul_ternary::<TILE_SUMS>(matrix, packed, CallSize { rows, tokens }, input, output);
            }
            MatrixData::Float(table) => self.matmul_float(matrix, table, input, output),
        }
    }

    /// Calls the kernel for `call.rows` rows and `call.tokens` tokens at a time, which give at most `SUMS` sums.
    #[inline(never)] // so that only the batch form takes its stack
    fn matmul_ternary<const SUMS: usize>(
        &self,
        matrix: &Matrix,
        packed: &PackedRows,
        call: CallSize,
        LinearInput { n, quantized, .. }: LinearInput,
        LinearOutput { epilogue, stripe }: LinearOutput,
    ) {
        let mut dots = AlignedSums([0i32; SUMS]);
        let (first, end) = (stripe.cols().start, stripe.cols().end);
        for rows in chunks(first..end, call.rows) {
            for tokens in chunks(0..n, call.tokens) {
                let dots = &mut dots.0[..rows.len() * tokens.len()];
                let q = quantized.rows(tokens.clone());
                self.kernels.ternary_gemm_codes(packed.rows(rows.clone()), q, tokens.len(), dots);
                for (token, dots) in tokens.zip(dots.chunks_exact(rows.len())) {
                    let QuantizedRow { scale, sum } = quantized.scales[token];
                    let scale = matrix.scale / scale;
                    let out = &mut stripe.row(token)[rows.start - first..rows.end - first];
                    self.kernels.with_simd(fused_rows::ApplyEpilogue { epilogue, out, dots, sum, scale });
                }
            }
        }
    }

    fn matmul_float(
        &self,
        matrix: &Matrix,
        table: &RowTable,
        LinearInput { n, x, .. }: LinearInput,
        LinearOutput { epilogue, stripe }: LinearOutput,
    ) {
        let mut dots = [0.0f32; FLOAT_ROWS];
        let (first, end) = (stripe.cols().start, stripe.cols().end);
        for rows in chunks(first..end, FLOAT_ROWS) {
            let dots = &mut dots[..rows.len()];
            for (token, x) in x.chunks_exact(matrix.cols).take(n).enumerate() {
                self.kernels.dot(table.format, table.rows(rows.clone()), x, dots);
                let out = &mut stripe.row(token)[rows.start - first..rows.end - first];
                epilogue.apply(out, dots.iter().map(|dot| dot * matrix.scale));
            }
        }
    }

    /// Rotates queries and keys by their positions.
    fn rope(&self, n: usize, state: &mut State) {
        let shape = &self.shape;
        let pairs = shape.rope_dims / 2;
        let (q_width, k_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let State { attn_or_ffn, k, cos, sin, .. } = state;
        let q = MatrixMut::new(&mut attn_or_ffn[..n * q_width], q_width);
        let k = MatrixMut::new(&mut k[..n * k_width], k_width);
        self.pool.for_each_row(q, k, MatrixMut::<()>::none(), MIN_SHARED_TOKENS, |row, q, k, _| {
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

    /// The fewest columns of a stripe: all of them where the work is too small to share.
    pub(super) fn grain(&self, rows: usize, work_per_row: usize) -> usize {
        if rows * work_per_row < MIN_SHARED_WORK {
            return rows;
        }
        (MIN_PART_WORK / work_per_row).max(1).next_multiple_of(16)
    }
}

/// Sums that begin at a cache line, so that no register's worth of them crosses one.
#[repr(align(64))]
struct AlignedSums<const N: usize>([i32; N]);

pub(super) fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}
