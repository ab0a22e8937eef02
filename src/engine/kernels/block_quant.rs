//! Rows of blocks, as a table without code of its own for a format runs them: each block is read into
//! registers or the first cache and multiplied there.
//!
//! One text for all tables, always inlined: each compiles it for its own processor.

use crate::engine::quant::BlockFormat;
use crate::engine::quant::blocks::{read_q4_0, read_q4_k, read_q6_k, read_q8_0};

/// Sums kept side by side: four registers of AVX2, so that no addition waits for the one before.
const LANES: usize = 32;

/// `FMA`: whether the processor multiplies and adds in one step; without, asking for it is slow.
#[inline(always)]
pub(super) fn dot<const FMA: bool>(kind: BlockFormat, rows: &[u8], x: &[f32], out: &mut [f32]) {
    match kind {
        BlockFormat::Q4_0 => dot_rows::<FMA, _, _>(rows, x, out, read_q4_0),
        BlockFormat::Q8_0 => dot_rows::<FMA, _, _>(rows, x, out, read_q8_0),
        BlockFormat::Q4K => dot_rows::<FMA, _, _>(rows, x, out, read_q4_k),
        BlockFormat::Q6K => dot_rows::<FMA, _, _>(rows, x, out, read_q6_k),
    }
}

#[inline(always)]
fn dot_rows<const FMA: bool, const BYTES: usize, const LEN: usize>(
    rows: &[u8],
    x: &[f32],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (row, out) in rows.chunks_exact(x.len() / LEN * BYTES).zip(out) {
        let mut sums = [0.0f32; LANES];
        for (block, x) in row.as_chunks().0.iter().zip(x.as_chunks::<LEN>().0) {
            let mut numbers = [0.0; LEN];
            read(block, &mut numbers);
            for (numbers, x) in numbers.as_chunks::<LANES>().0.iter().zip(x.as_chunks::<LANES>().0) {
                for ((sum, number), x) in sums.iter_mut().zip(numbers).zip(x) {
                    *sum = if FMA { number.mul_add(*x, *sum) } else { *sum + number * x };
                }
            }
        }
        *out = sums.iter().sum();
    }
}

/// Adds rows, each times its weight, to `out`.
#[inline(always)]
pub(super) fn weighted_sum<const FMA: bool>(
    kind: BlockFormat,
    rows: &[u8],
    weights: &[f32],
    out: &mut [f32],
) {
    match kind {
        BlockFormat::Q4_0 => weighted_sum_rows::<FMA, _, _>(rows, weights, out, read_q4_0),
        BlockFormat::Q8_0 => weighted_sum_rows::<FMA, _, _>(rows, weights, out, read_q8_0),
        BlockFormat::Q4K => weighted_sum_rows::<FMA, _, _>(rows, weights, out, read_q4_k),
        BlockFormat::Q6K => weighted_sum_rows::<FMA, _, _>(rows, weights, out, read_q6_k),
    }
}

#[inline(always)]
fn weighted_sum_rows<const FMA: bool, const BYTES: usize, const LEN: usize>(
    rows: &[u8],
    weights: &[f32],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (row, weight) in rows.chunks_exact(out.len() / LEN * BYTES).zip(weights) {
        for (block, out) in row.as_chunks().0.iter().zip(out.as_chunks_mut::<LEN>().0) {
            let mut numbers = [0.0; LEN];
            read(block, &mut numbers);
            for (out, number) in out.iter_mut().zip(numbers) {
                *out = if FMA { number.mul_add(*weight, *out) } else { *out + number * weight };
            }
        }
    }
}
