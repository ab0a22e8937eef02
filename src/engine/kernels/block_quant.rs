//! Rows in block formats, for tables that have no kernel of their own for a format: each block is decoded into
//! registers or the L1 cache and multiplied there.
//!
//! All tables share this code. It is always inlined, so that each table compiles it for its own instruction set.

use super::multiply_add::multiply_add;
use crate::engine::quant::BlockFormat;
use crate::engine::quant::blocks::{read_q4_0, read_q4_k, read_q6_k, read_q8_0};

/// Sums that are kept side by side: four AVX2 registers, so that no addition waits for the one before.
const LANES: usize = 32;

/// `FMA`: whether the caller is compiled for a CPU with fused multiply-add; the bits are the same without.
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
                    *sum = multiply_add::<FMA>(*number, *x, *sum);
                }
            }
        }
        *out = sums.iter().sum();
    }
}

/// Adds rows, each multiplied by its weight, to `out`.
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
                *out = multiply_add::<FMA>(number, *weight, *out);
            }
        }
    }
}
