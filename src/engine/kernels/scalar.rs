//! The reference kernels in plain Rust, against which every other table is tested.

use super::simd_dispatch::SimdLevel;
use super::{Kernels, block_quant};
use crate::engine::quant::{BLOCK, BLOCK_BYTES, BlockFormat, packed_row};
use half::{bf16, f16};

pub(super) const TABLE: Kernels = Kernels {
    name: "scalar",
    batch: None,
    tiles: &[(4, gemm), (1, gemm)],
    dot_f16,
    weighted_sum_f16,
    batch_f16: None,
    dot_blocks,
    weighted_sum_blocks,
    simd: SimdLevel::Baseline,
};

/// Sums that are kept side by side, so that the compiler can put them into one register.
const LANES: usize = 8;

fn gemm(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let rows = weights.len() / packed_row(cols);
    for (row, weights) in weights.chunks_exact(packed_row(cols)).enumerate() {
        for (token, q) in q.chunks_exact(cols).enumerate() {
            out[token * rows + row] = dot_codes(weights, q);
        }
    }
}

fn dot_codes(weights: &[u8], q: &[i8]) -> i32 {
    let mut sum = 0;
    for (bytes, q) in weights.chunks_exact(BLOCK_BYTES).zip(q.chunks_exact(BLOCK)) {
        for (group, q) in q.chunks_exact(BLOCK_BYTES).enumerate() {
            for (byte, q) in bytes.iter().zip(q) {
                sum += i32::from(byte >> (6 - 2 * group) & 3) * i32::from(*q);
            }
        }
    }
    sum
}

fn dot_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    dot_rows(rows, x, out, |bytes: [u8; 2]| f16::from_le_bytes(bytes).to_f32_const());
}

pub(super) fn dot_bf16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    dot_rows(rows, x, out, |bytes: [u8; 2]| bf16::from_le_bytes(bytes).to_f32_const());
}

pub(super) fn dot_f32(rows: &[u8], x: &[f32], out: &mut [f32]) {
    dot_rows(rows, x, out, f32::from_le_bytes);
}

fn dot_rows<const N: usize>(rows: &[u8], x: &[f32], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (row, out) in rows.chunks_exact(x.len() * N).zip(out) {
        let mut sums = [0.0f32; LANES];
        for (bytes, x) in row.as_chunks::<N>().0.chunks(LANES).zip(x.chunks(LANES)) {
            for ((bytes, x), sum) in bytes.iter().zip(x).zip(&mut sums) {
                *sum += read(*bytes) * x;
            }
        }
        *out = sums.iter().sum();
    }
}

fn dot_blocks(kind: BlockFormat, rows: &[u8], x: &[f32], out: &mut [f32]) {
    block_quant::dot::<false>(kind, rows, x, out);
}

fn weighted_sum_blocks(kind: BlockFormat, rows: &[u8], weights: &[f32], out: &mut [f32]) {
    block_quant::weighted_sum::<false>(kind, rows, weights, out);
}

fn weighted_sum_f16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    weighted_sum_rows(rows, weights, out, |bytes: [u8; 2]| f16::from_le_bytes(bytes).to_f32_const());
}

pub(super) fn weighted_sum_bf16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    weighted_sum_rows(rows, weights, out, |bytes: [u8; 2]| bf16::from_le_bytes(bytes).to_f32_const());
}

pub(super) fn weighted_sum_f32(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    weighted_sum_rows(rows, weights, out, f32::from_le_bytes);
}

fn weighted_sum_rows<const N: usize>(
    rows: &[u8],
    weights: &[f32],
    out: &mut [f32],
    read: impl Fn([u8; N]) -> f32,
) {
    for (row, weight) in rows.chunks_exact(out.len() * N).zip(weights) {
        for (out, bytes) in out.iter_mut().zip(row.as_chunks::<N>().0) {
            *out += read(*bytes) * weight;
        }
    }
}
